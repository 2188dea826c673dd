"""Computing with whole adapters: differences, ways between two, means, distances, parts and wholes.

    difference(tuned, formal)              # what comes after `formal` to give `tuned`
    interpolate(formal, pirate, 0.3)       # 30 % of the way from one to the other
    mean([a, b, c], [2, 1, 1])             # weighted geometric mean
    parts = split(formal, "layer"); union(parts.values()) == formal

Every pair's block is an invertible 2×2 matrix. The scaled rotations of road_1 commute, and everything here is exact for
them: angles go by their shortest arcs, scales by geometric means. General blocks (road_2, road_4 and most of their
products) do not commute. Each function says what it takes for them, and raises `AlgebraError` if that does not exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from . import matrices, rotation
from .adapter import Adapter, common_base, common_heads, common_layout
from .errors import AlgebraError
from .layout import Layout

MAX_CHUNK = 1 << 22  # how many entries of all adapters `distances` holds at a time
_NUMBER = re.compile(r"(?:^|\.)([0-9]+)(?:\.|$)")


def difference(adapter: Adapter, removed: Adapter) -> Adapter:
    """What has to come after `removed` to give `adapter`: D with `removed.then(D) == adapter`.

    Raises `AlgebraError` if `removed` has no inverse, `AdapterError` if the two do not compose.
    """
    return removed.inverse().then(adapter)


def interpolate(first: Adapter, second: Adapter, share: float) -> Adapter:
    """The adapter at `share` of the way from `first` (0) to `second` (1): `first.then(difference(second, first) ** share)`.

    For scaled rotations this is the geodesic of R₊ × SO(2): angles by their shortest arcs, scales geometrically. For
    general blocks it is the one-parameter path of GL(2) between the two, the same from either end. It exists if the
    difference has a real power: no eigenvalue on (−∞, 0], unless the block is −c·I. It is no geodesic, because GL(2)
    has no metric that both sides keep. Raises `AlgebraError` or `AdapterError`.
    """
    return first.then(difference(second, first) ** share)


def mean(adapters: Sequence[Adapter], weights: Sequence[float] | None = None) -> Adapter:
    """Weighted geometric mean exp(Σ wᵢ log Mᵢ) of every block. The order of the adapters does not matter.

    weights  one for each adapter, scaled to sum to 1; by default all equal

    For scaled rotations it is the weighted mean of angles in (−π, π] and of log scales. For general blocks it is the
    log-Euclidean mean, one of several that there are. Raises `AlgebraError` if a block has no real logarithm, and
    `AdapterError` if base models, layers or heads do not agree.
    """
    if not adapters:
        raise AlgebraError("the mean of no adapters does not exist")
    weights = [1.0] * len(adapters) if weights is None else list(weights)
    if len(weights) != len(adapters) or sum(weights) <= 0:
        raise AlgebraError(f"{len(adapters)} adapters need as many weights with a positive sum, got {weights}")
    layout = common_layout(adapters)
    total = torch.zeros(2, layout.width, dtype=torch.float64)
    for adapter, weight in zip(adapters, weights, strict=True):
        total += weight / sum(weights) * _spread_logarithm(adapter, layout)
    a, b = torch.empty(layout.width), torch.empty(layout.width)
    for group_size, part in layout.parts.items():
        a[part], b[part] = (x.float() for x in matrices.exponential(total[0, part], total[1, part], group_size))
    return Adapter(layout, a, b, common_heads(adapters), common_base(adapters))


def distances(adapters: Sequence[Adapter]) -> torch.Tensor:
    """How far adapters are from each other, [n, n] float64, in radians a pair.

    The root mean square over all pairs of √(Δangle² + Δlog scale²). For scaled rotations this is the geodesic distance,
    with differences of angles wrapped into (−π, π]. For general blocks it is the log-Euclidean distance
    ‖log Mᵢ − log Mⱼ‖ / √2, which gives the same for scaled rotations. Layers that an adapter lacks count as the identity.
    Memory beside the adapters is bounded: `MAX_CHUNK` entries at a time.
    Raises `AlgebraError` naming layer and pair if a block has no real logarithm, `AdapterError` if layers do not agree.
    """
    layout = common_layout(adapters)
    count, num_pairs = len(adapters), layout.width // 2
    spread = [adapter.spread(layout) for adapter in adapters]
    squared = torch.zeros(count, count, dtype=torch.float64)
    for group_size, part in layout.parts.items():
        step = max(1, MAX_CHUNK // count // group_size) * group_size
        for start in range(part.start, part.stop, step):
            columns = slice(start, min(start + step, part.stop))
            a, b = (torch.cat([vectors[i][columns] for vectors in spread]) for i in (0, 1))
            if rotation.is_scaled_rotation(a, b, group_size).all():
                if (a.view(count, -1) == 0).logical_and(b.view(count, -1) == 0).any():
                    _refuse(adapters, layout, group_size, part)
                angle, scale = (x.view(count, -1) for x in rotation.turn(a, b, group_size))
                squared += _squared_distances(scale) + _squared_angles(angle)
            else:
                try:
                    logs = matrices.logarithm(a, b, group_size)
                except AlgebraError:
                    _refuse(adapters, layout, group_size, part)
                    raise
                squared += sum(_squared_distances(x.view(count, -1)) for x in logs) / 2
    return (squared.clamp_min(0) / num_pairs).sqrt().fill_diagonal_(0)


def cluster(matrix: torch.Tensor) -> list[tuple[int, int, float]]:
    """Average linkage (UPGMA) of a distance matrix [n, n]: n − 1 merges (one, other, distance), the nearest first.

    Items are numbered 0 to n − 1, and merge k, counted from 0, makes item n + k.
    """
    count = len(matrix)
    work = matrix.double().clone().fill_diagonal_(torch.inf)
    names, sizes = list(range(count)), torch.ones(count, dtype=torch.float64)
    merges = []
    for step in range(count - 1):
        first, second = sorted(divmod(int(work.argmin()), count))
        merges.append((*sorted((names[first], names[second])), float(work[first, second])))
        joined = (sizes[first] * work[first] + sizes[second] * work[second]) / (sizes[first] + sizes[second])
        work[first], work[:, first] = joined, joined
        work[second], work[:, second] = torch.inf, torch.inf
        work[first, first] = torch.inf
        sizes[first] += sizes[second]
        names[first] = count + step
    return merges


def split(adapter: Adapter, by: str, parts: int = 2) -> dict[str, Adapter]:
    """Cut an adapter into adapters whose `union` it is.

    by     'layer': by the number of the transformer block in a layer's name; 'module': by the kind of layer, such as
           q_proj; 'pairs': into `parts` sets of consecutive pairs of every layer, named '0', '1', …
    parts  how many sets of pairs

    Raises `AlgebraError` for any other `by`.
    """
    if by == "pairs":
        return {str(i): within(adapter, i / parts, (i + 1) / parts) for i in range(parts)}
    if by not in ("layer", "module"):
        raise AlgebraError(f"split by {by!r} is not known; use layer, module or pairs")
    kinds: dict[str, list[str]] = {}
    for name in adapter.layout.layers:
        if by == "module":
            label = name.rpartition(".")[2]
        else:
            number = _NUMBER.search(name)
            label = number[1] if number else name
        kinds.setdefault(label, []).append(name)
    return {label: only(adapter, chosen) for label, chosen in kinds.items()}


def only(adapter: Adapter, layers: Iterable[str]) -> Adapter:
    """The adapter with these layers alone. Raises `AlgebraError` for a layer that it lacks, and for none."""
    chosen = list(layers)
    missing = [name for name in chosen if name not in adapter.layout.layers]
    if missing or not chosen:
        raise AlgebraError(f"the adapter has no layer {missing[0]!r}" if missing else "no layers are chosen")
    layout = Layout({name: adapter.layout.layers[name] for name in chosen})
    a = torch.cat([adapter.a[adapter.layout.spans[name]] for name in layout.layers])
    b = torch.cat([adapter.b[adapter.layout.spans[name]] for name in layout.layers])
    return Adapter(layout, a, b, adapter.heads, adapter.base)


def within(adapter: Adapter, start: float, stop: float) -> Adapter:
    """The adapter in a range of every layer's pairs, and the identity in all others.

    start  where the range begins, as a share of the layer's pairs counted group by group: 0 to 1
    stop   where it ends

    Raises `AlgebraError` if the shares are no range.
    """
    if not 0 <= start < stop <= 1:
        raise AlgebraError(f"pairs from {start:g} to {stop:g}: shares go from 0 to 1, the first below the second")
    a, b = torch.ones_like(adapter.a), torch.zeros_like(adapter.b)
    for name, (width, group_size) in adapter.layout.layers.items():
        pairs = torch.arange(width // 2).view(-1, 1, group_size // 2).expand(-1, 2, -1).reshape(-1)
        mask = (pairs >= round(start * width / 2)) & (pairs < round(stop * width / 2))
        span = adapter.layout.spans[name]
        a[span], b[span] = torch.where(mask, adapter.a[span], 1.0), torch.where(mask, adapter.b[span], 0.0)
    return Adapter(adapter.layout, a, b, adapter.heads, adapter.base)


def union(parts: Iterable[Adapter]) -> Adapter:
    """Adapters that rotate different pairs, as one adapter. Raises `AlgebraError` if two rotate the same pair."""
    parts = list(parts)
    if not parts:
        raise AlgebraError("the union of no adapters does not exist")
    layout = common_layout(parts)
    whole, taken = parts[0], torch.zeros(layout.width, dtype=torch.bool)
    for part in parts:
        a, b = part.spread(layout)
        turned = torch.zeros_like(taken)
        for group_size, piece in layout.parts.items():
            moved = (a[piece] != 1) | (b[piece] != 0)
            turned[piece] = moved | rotation.swap(moved, group_size)
        if (turned & taken).any():
            at = int((turned & taken).nonzero()[0])
            name = next(name for name, span in layout.spans.items() if span.start <= at < span.stop)
            raise AlgebraError(
                f"two parts rotate output {at - layout.spans[name].start} of {name}; compose them instead"
            )
        taken |= turned
        whole = part if part is parts[0] else whole.then(part)
    return whole


def conflicts(first: Adapter, second: Adapter, *, threshold: float = 0.01) -> list[dict[str, Any]]:
    """Where two adapters turn the same pairs in opposite directions: a row for each layer that both have.

    layer      its name
    both       the number of pairs that both turn by more than `threshold` radians
    opposed    how many of those they turn in opposite directions
    share      `opposed` as a share of the layer's pairs
    cancelled  the radians that the two undo of each other in an opposed pair, on average

    Angles are those of the blocks' rotation parts (`roadkit.rotation.turn`).
    """
    common_layout([first, second])
    rows = []
    for name in first.layout.layers:
        if name not in second.layout.layers:
            continue
        (one, _), (other, _) = (rotation.turn(*adapter.layer(name)) for adapter in (first, second))
        both = (one.abs() > threshold) & (other.abs() > threshold)
        opposed = both & (one * other < 0)
        cancelled = torch.minimum(one.abs(), other.abs())[opposed]
        rows.append(
            {
                "layer": name,
                "both": int(both.sum()),
                "opposed": int(opposed.sum()),
                "share": float(opposed.float().mean()),
                "cancelled": float(cancelled.mean()) if len(cancelled) else 0.0,
            }
        )
    return rows


def _spread_logarithm(adapter: Adapter, layout: Layout) -> torch.Tensor:
    """The (a, b) of log M for every block, [2, layout.width] float64; zero in layers that the adapter lacks."""
    whole = torch.zeros(2, layout.width, dtype=torch.float64)
    for group_size, part in layout.parts.items():
        whole[:, part] = _logarithm(adapter, layout, group_size, part)
    return whole


def _logarithm(adapter: Adapter, layout: Layout, group_size: int, part: slice) -> torch.Tensor:
    """The same for the layers of one group size. Raises `AlgebraError` naming layer and pair."""
    a, b = adapter.spread(layout)
    try:
        return torch.stack(matrices.logarithm(a[part], b[part], group_size))
    except AlgebraError as error:
        assert error.pair is not None, error
        name, pair = layout.locate(error.pair, group_size)
        raise AlgebraError(f"layer {name}, pair {pair}: {error}", pair=pair) from None


def _refuse(adapters: Sequence[Adapter], layout: Layout, group_size: int, part: slice) -> None:
    """Raise the `AlgebraError` that names the block without a logarithm."""
    for adapter in adapters:
        _logarithm(adapter, layout, group_size, part)


def _squared_distances(points: torch.Tensor) -> torch.Tensor:
    """Squared Euclidean distances of the rows of points [n, d]: [n, n] float64."""
    points = points.double()
    norms = points.square().sum(dim=1)
    return norms.unsqueeze(0) + norms.unsqueeze(1) - 2 * points @ points.T


def _squared_angles(angles: torch.Tensor) -> torch.Tensor:
    """The same for angles [n, d] in (−π, π], whose differences are wrapped: [n, n] float64.

    No difference exceeds π in most columns, and a matrix product does for those.
    """
    far = angles.amax(dim=0) - angles.amin(dim=0) > torch.pi
    squared = _squared_distances(angles[:, ~far])
    for column in angles[:, far].double().unbind(1):
        gap = (column.unsqueeze(0) - column.unsqueeze(1)).abs()
        squared += torch.minimum(gap, 2 * torch.pi - gap) ** 2
    return squared
