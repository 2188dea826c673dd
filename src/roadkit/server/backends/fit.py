"""Does an adapter fit the model that a backend serves?

check_base(models.config_fingerprint(config), adapter)      # AdapterError for an adapter of another structure
check_fit(model, adapter)                                   # and for layers or sites that the model lacks
"""

from __future__ import annotations

from transformers import PreTrainedModel

from ... import kinds, models
from ...adapter import Adapter
from ...errors import AdapterError
from ...kinds import AnyAdapter


def check_base(fingerprint: str, adapter: AnyAdapter) -> None:
    """Raise `AdapterError` for an adapter of a model with another structure (see `models.config_fingerprint`)."""
    base = adapter.rotation.base
    if base.fingerprint and base.fingerprint != fingerprint:
        raise AdapterError(
            f"the adapter was made for {base.name!r} (structure {base.fingerprint}), "
            f"this server's model has structure {fingerprint}"
        )


def check_fit(model: PreTrainedModel, adapter: AnyAdapter) -> None:
    """`check_base`; and `AdapterError` or `ModelError` for layers or sites that the model lacks."""
    check_base(models.config_fingerprint(model.config), adapter)
    kinds.check_fit(model, adapter)


def of_layers(adapter: AnyAdapter) -> Adapter:
    """An adapter of linear layers. Raises `AdapterError` for an intervention, which only the embedded engine serves."""
    if adapter.positions is not None:
        raise AdapterError("this server's engine rotates linear layers only; an intervention needs the embedded engine")
    return adapter.rotation
