"""Interventions on disk: `intervention.json` (what, where, which subspaces) and `intervention.safetensors` (θ and α).

    save(intervention, "tasks"); load("tasks")

Both are checked in full before anything is used. A computed rotation is kept as road_1 if every block is a scaled
rotation, else as road_2: so are adapters.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import safetensors.torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from .. import sources
from ..adapter import Adapter, Base
from ..errors import AdapterError, RoadkitError
from ..files import replaced_directory
from ..validation import problems
from .intervention import Intervention
from .positions import Positions
from .subspace import Subspace

CONFIG, WEIGHTS = FILES = "intervention.json", "intervention.safetensors"
MAX_CONFIG_BYTES = 1 << 20
MAX_SUBSPACES = 256


class _Config(BaseModel):
    """intervention.json. Subspaces are lists of [first, last) ranges of pairs."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Annotated[int, Field(ge=1, le=1)]
    variant: str
    group_size: int
    positions: str
    sites: list[str] = Field(min_length=1)
    subspaces: dict[str, list[list[int]]] = Field(max_length=MAX_SUBSPACES)
    chosen: list[list[int]] | None = None
    base_model: str = ""
    base_fingerprint: str = ""


def is_intervention(path: str | os.PathLike) -> bool:
    """Does the folder hold an intervention?"""
    return os.path.isfile(Path(path) / CONFIG)


def is_config(data: bytes) -> bool:
    """Are these the bytes of an intervention.json, rather than of an adapter's configuration?"""
    try:
        settings = json.loads(data[:MAX_CONFIG_BYTES])
    except (ValueError, RecursionError):
        return False
    return isinstance(settings, dict) and "sites" in settings and "peft_type" not in settings


def save(intervention: Intervention, path: str | os.PathLike) -> None:
    """Write the folder in one step. Raises `AdapterError` for what a file cannot hold: hidden states to interchange."""
    if intervention.source is not None:
        raise AdapterError("an intervention with a source run's hidden states is not saved; save it without")
    rotation = intervention.rotation
    if len(rotation.group_sizes) != 1:
        raise AdapterError(f"a saved intervention has one group_size, this one {list(rotation.group_sizes)}")
    (group_size,) = rotation.group_sizes
    variant, parameters = rotation.to_parameters()
    config = _Config(
        format=1,
        variant=variant,
        group_size=group_size,
        positions=str(intervention.positions),
        sites=list(intervention.sites),
        subspaces={name: _ranges(subspace) for name, subspace in intervention.subspaces.items()},
        chosen=None if intervention.chosen is None else _ranges(intervention.chosen),
        base_model=rotation.base.name,
        base_fingerprint=rotation.base.fingerprint,
    )
    tensors = {}
    for name, (theta, alpha) in parameters.items():
        tensors[f"{name}.road_theta"] = theta.detach().clone().contiguous()
        tensors[f"{name}.road_alpha"] = alpha.detach().clone().contiguous()
    try:
        with replaced_directory(path) as folder:
            (folder / CONFIG).write_text(config.model_dump_json(indent=2) + "\n")
            (folder / WEIGHTS).write_bytes(safetensors.torch.save(tensors, {"format": "pt"}))
    except FileExistsError as error:
        raise AdapterError(str(error)) from error


def load(path: str | os.PathLike) -> Intervention:
    """Read a folder. Raises `AdapterError` naming what is missing or wrong."""
    if not Path(path).is_dir():
        raise AdapterError(f"{path} is no intervention: a directory with {CONFIG} and {WEIGHTS}")
    return parse(*sources.read(path, FILES), origin=str(path))


def parse(text: bytes, weights: bytes, *, origin: str = "intervention") -> Intervention:
    """Validate both files' bytes, from a folder or an upload. Raises `AdapterError`."""
    path = origin
    if len(text) > MAX_CONFIG_BYTES:
        raise AdapterError(f"{path}: {CONFIG} has {len(text)} bytes, at most {MAX_CONFIG_BYTES} are read")
    try:
        config = _Config.model_validate_json(text)
        tensors = safetensors.torch.load(weights)
    except ValidationError as error:
        problem = problems(error, _Config, noun="key")[0]
        raise AdapterError(f"{path}: {'' if problem.field else f'{CONFIG}: '}{problem}") from error
    except (SafetensorError, ValueError) as error:
        raise AdapterError(f"{path}: {WEIGHTS} cannot be read, it is truncated or corrupt: {error}") from error
    expected = {f"{site}.{leaf}" for site in config.sites for leaf in ("road_theta", "road_alpha")}
    if tensors.keys() != expected:
        odd = sorted(tensors.keys() ^ expected)[0]
        raise AdapterError(f"{path}: tensor {odd!r} is {'missing' if odd in expected else 'unexpected'}")
    broken = next((name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())), None)
    if broken:
        raise AdapterError(f"{path}: {broken} is not finite")
    try:
        rotation = Adapter.from_parameters(
            {site: (tensors[f"{site}.road_theta"], tensors[f"{site}.road_alpha"]) for site in config.sites},
            variant=config.variant,
            group_size=config.group_size,
            base=Base(config.base_model, config.base_fingerprint),
        )
        widths = {width for width, _ in rotation.layout.layers.values()}
        if len(widths) > 1:
            raise AdapterError(f"its sites have different widths: {', '.join(map(str, sorted(widths)))}")
        width = widths.pop()
        subspaces = {name: _subspace(ranges, width, config) for name, ranges in config.subspaces.items()}
        chosen = None if config.chosen is None else _subspace(config.chosen, width, config)
        return Intervention(rotation, Positions.parse(config.positions), subspaces, chosen=chosen)
    except RoadkitError as error:
        raise AdapterError(f"{path}: {error}") from error


def _ranges(subspace: Subspace) -> list[list[int]]:
    ranges: list[list[int]] = []
    for pair in sorted(subspace.pairs):
        if ranges and ranges[-1][1] == pair:
            ranges[-1][1] = pair + 1
        else:
            ranges.append([pair, pair + 1])
    return ranges


def _subspace(ranges: list[list[int]], width: int, config: _Config) -> Subspace:
    for item in ranges:
        if len(item) != 2 or not 0 <= item[0] < item[1] <= width // 2:
            raise AdapterError(f"pairs {json.dumps(item)} are no range [first, last) within the {width // 2} pairs")
    if sum(last - first for first, last in ranges) > width // 2:
        raise AdapterError(f"a subspace names more pairs than the {width // 2} there are: its ranges overlap")
    numbers = [pair for first, last in ranges for pair in range(first, last)]
    return Subspace.of(width, numbers, group_size=config.group_size)
