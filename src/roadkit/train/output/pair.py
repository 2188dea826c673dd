"""RoAd with a LoRA around it, put back on a base model: z = R(Wx) + s·BAx.

model = load_pair(base_model, "adapters/captions")      # reads road/, then lora/
"""

from __future__ import annotations

from pathlib import Path

from peft import LoraConfig, PeftModel, RoadConfig, get_peft_model
from transformers import PreTrainedModel

from ...adapter import Adapter
from ...errors import AdapterError
from ...modules import match
from ...peft_tuner import enable_peft
from ...store import CONFIG
from ..model.trainable import ADAPTER_NAME, add_lora_around
from .directory import LORA, ROAD
from .tensors import load_into


def is_pair(path: str | Path) -> bool:
    """Does a run's output hold two adapters, road/ and lora/?"""
    return all((Path(path) / kind / CONFIG).is_file() for kind in (ROAD, LORA))


def load_pair(model: PreTrainedModel, path: str | Path) -> PeftModel:
    """Put the rotations of `path`/road on the model, and the LoRA of `path`/lora around them; for inference.

    To merge instead: `roadkit.merge(model, Adapter.load(path / "road"))`, then PEFT's merge of lora/. In the other order
    the rotation would turn the LoRA too. Raises `AdapterError` if `path` does not hold such a pair.
    """
    if not is_pair(path):
        raise AdapterError(f"{path}: holds no road/ and lora/ directories; a single adapter loads with Adapter.load")
    adapter = Adapter.load(Path(path) / ROAD)
    match(model, adapter)
    (group_size,) = adapter.group_sizes
    enable_peft()
    config = RoadConfig(
        variant=adapter.variant or "road_2",
        group_size=group_size,
        target_modules=list(adapter.layout.layers),
        modules_to_save=sorted(adapter.heads) or None,
    )
    peft_model = get_peft_model(model, config, adapter_name=ADAPTER_NAME)
    lora: object = LoraConfig.from_pretrained(str(Path(path) / LORA))
    if not isinstance(lora, LoraConfig):
        raise AdapterError(f"{path}/{LORA} is a {getattr(lora, 'peft_type', 'foreign')} adapter, not a LoRA")
    lora.inference_mode = False  # PEFT would freeze it, and what is frozen is not looked for in the files
    add_lora_around(peft_model, lora)
    load_into(peft_model, path)
    for parameter in peft_model.parameters():
        parameter.requires_grad_(False)
    return peft_model.eval()
