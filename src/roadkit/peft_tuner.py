"""PEFT's `RoadConfig` builds roadkit's layer: the same configuration, the same files, a cheaper layer.

    enable_peft()
    model = get_peft_model(model, RoadConfig(variant="road_1", target_modules="all-linear"))

Everything that builds adapters through PEFT then does: `PeftModel.from_pretrained`, `inject_adapter_in_model`, TRL's
`peft_config=`. `roadkit.peft_layer` has the layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from peft import PeftType, RoadConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.road import RoadLayer, RoadModel
from torch import nn

from .errors import AdapterError, AlgebraError, ModelError
from .modules import width_of
from .peft_layer import MixedBatch, RoadLinear, innermost, why_not_mergeable


def enable_peft() -> None:
    """Let PEFT's `RoadConfig` build roadkit's layer from now on. Models that exist already keep theirs. Idempotent."""
    PEFT_TYPE_TO_TUNER_MAPPING[PeftType.ROAD] = RoadTuner


def disable_peft() -> None:
    """Give `RoadConfig` back to PEFT's own layer. Idempotent."""
    PEFT_TYPE_TO_TUNER_MAPPING[PeftType.ROAD] = RoadModel


class RoadTuner(RoadModel):
    """PEFT's `RoadModel`, with roadkit's layer in it and the checks that concern all layers together."""

    @staticmethod
    def _create_new_module(road_config: RoadConfig, adapter_name: str, target: nn.Module, **kwargs) -> RoadLinear:
        if width_of(innermost(target)) is None:
            raise ModelError(
                f"Target module {target} is not supported. Currently, only the following modules are supported: "
                "`torch.nn.Linear`. roadkit adds transformers' `Conv1D` and quantised linear layers."
            )
        return RoadLinear(target, adapter_name, road_config)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args, **kwargs) -> Iterator[None]:
        """PEFT enters this around `forward` and `generate`: each layer is told which adapter each row has."""
        names = kwargs.pop("adapter_names", None)
        if names is None:
            yield
            return
        if self.training:
            raise AdapterError("Cannot pass `adapter_names` when the model is in training mode.")
        layers = [module for module in self.modules() if isinstance(module, RoadLayer)]
        known = {"__base__"}.union(*(layer.road_theta for layer in layers))
        if unknown := sorted(set(names) - known):
            raise AdapterError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}")
        give_names = partial(_give_names, names=MixedBatch(names))
        handles = [layer.register_forward_pre_hook(give_names, with_kwargs=True) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _check_merge_allowed(self) -> None:
        """Refuse to merge before the first layer is merged, if any layer cannot be. Raises `ModelError`."""
        super()._check_merge_allowed()
        refused: dict[str, list[str]] = {}
        for name, layer in self._road_layers():
            if reason := why_not_mergeable(layer):
                refused.setdefault(reason, []).append(name)
        for reason, names in refused.items():
            more = f" and {len(names) - 3} more layers" if len(names) > 3 else ""
            raise ModelError(f"cannot merge into {', '.join(names[:3])}{more}: {reason}")

    def unmerge_adapter(self) -> None:
        """Undo every merge in every layer. Raises `AlgebraError` if a block has no inverse; no layer is changed then."""
        for name, layer in self._road_layers():
            try:
                layer.inverses()
            except AlgebraError as error:
                raise AlgebraError(f"{name}: {error}", pair=error.pair) from None
        super().unmerge_adapter()

    def _road_layers(self) -> list[tuple[str, RoadLinear]]:
        return [(name, module) for name, module in self.model.named_modules() if isinstance(module, RoadLinear)]


def _give_names(module: nn.Module, args: tuple, kwargs: dict, *, names: MixedBatch) -> tuple[tuple, dict]:
    return args, kwargs | {"adapter_names": names}
