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
from ..model.tuned import ADAPTER, surround
from .directory import LORA, ROAD, load_into


def is_pair(path: str | Path) -> bool:
    """Does a run's output hold two adapters, to be applied in order?"""
    return all((Path(path) / kind / CONFIG).is_file() for kind in (ROAD, LORA))


def load_pair(model: PreTrainedModel, path: str | Path) -> PeftModel:
    """Put the rotations of `path`/road on the model, and the LoRA of `path`/lora around them; for inference.

    To merge instead: `roadkit.merge(model, Adapter.load(path / "road"))`, then PEFT's merge of lora/. In this order;
    the other way round the rotation would turn the LoRA too. Raises `AdapterError` for anything else than such a pair.
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
    tuned = get_peft_model(model, config, adapter_name=ADAPTER)
    lora: object = LoraConfig.from_pretrained(str(Path(path) / LORA))
    if not isinstance(lora, LoraConfig):
        raise AdapterError(f"{path}/{LORA} is a {getattr(lora, 'peft_type', 'foreign')} adapter, not a LoRA")
    lora.inference_mode = False  # PEFT would freeze it, and what is frozen is not looked for in the files
    surround(tuned, lora)
    load_into(tuned, path)
    for parameter in tuned.parameters():
        parameter.requires_grad_(False)
    return tuned.eval()
