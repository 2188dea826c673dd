"""The worker's side: it stands where vLLM's LoRA manager stands, and keeps rows of a bank instead of low-rank factors.

    manager = RoadManager(vllm_config, device)        # what vLLM's model runner builds in place of its own
    model = manager.create_lora_manager(model, vllm_config)
    manager.add_adapter(LoRARequest("formal", 1, "adapters/formal"))

It offers the methods that `LoRAModelRunnerMixin` (vLLM 0.32) calls, under vLLM's names, and no more.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AdapterError
from . import loading, support
from .layers import IDENTITY, WorkerBank
from .sharding import survey

log = logging.getLogger("roadkit.vllm")


@dataclass
class ResidentRow:
    """An adapter in this worker's memory.

    name    what it was loaded under
    path    what it was loaded from
    row     its row of the bank
    listed  do clients still see it?
    pinned  must it stay in memory until it is removed?
    """

    name: str
    path: str
    row: Tensor
    listed: bool = True
    pinned: bool = False


class RoadManager:
    """Loads adapters, keeps `max_cpu_loras` of them in memory and `max_loras` in the bank. Not thread-safe, like vLLM's."""

    def __init__(self, vllm_config: Any, device: torch.device, *unused: Any):
        options = support.plugin_options(vllm_config)
        assert options is not None, "RoadManager was built for an engine without RoAd"
        self.group_sizes, self.device = options.group_sizes, device
        self.num_slots = vllm_config.lora_config.max_loras
        self.capacity = max(vllm_config.lora_config.max_cpu_loras or 0, self.num_slots)
        scheduler = vllm_config.scheduler_config
        # tokens of a step: as scheduled, or padded to a captured CUDA graph
        self.max_tokens = max(
            scheduler.max_num_batched_tokens,
            scheduler.max_num_seqs,
            vllm_config.compilation_config.max_cudagraph_capture_size or 0,
        )
        self.bank: WorkerBank
        self._residents: OrderedDict[int, ResidentRow] = OrderedDict()  # id → adapter, least recently used first
        self._slots: OrderedDict[int, int] = OrderedDict()  # id → slot, least recently used first
        self._versions: dict[tuple[str, str], str] = {}  # (name, directory) → content when first seen

    # ---- called once ----------------------------------------------------------------------------------------------

    def create_lora_manager(self, model: nn.Module, vllm_config: Any) -> nn.Module:
        """Give the loaded model its bank. Returns the same model object. Raises `AdapterError` if no layer can rotate."""
        found = survey(model, group_sizes=self.group_sizes)
        if not found.layers:
            raise AdapterError(f"{type(model).__name__} has no linear layer that can rotate")
        self._rename = getattr(model, "hf_to_vllm_mapper", None)
        if self._rename is not None:  # as vLLM does for LoRA: names only, without merging q, k and v
            self._rename = self._rename.get_rename_mapper()
        self.bank = WorkerBank(found, slots=self.num_slots, max_tokens=self.max_tokens, device=self.device)
        log.info(
            "RoAd: %d layers rotate, group sizes %s, %d slots of %.1f MB",
            len(found.layers),
            list(self.group_sizes),
            self.num_slots,
            self.bank.row_bytes / 1e6,
        )
        return model

    # ---- adapters ---------------------------------------------------------------------------------------------------

    def add_adapter(self, request: Any, *, keep: Collection[int] = ()) -> bool:
        """Load an adapter if it is not there yet; True if it was loaded.

        keep  ids of adapters that must not leave memory for it

        Raises `AdapterError`; nothing is changed then.
        """
        if request.load_inplace:
            raise AdapterError(
                f"{request.lora_name}: load_inplace would swap weights under running requests and leave stale blocks in "
                "the prefix cache; load the new version under a name or path of its own"
            )
        known = self._residents.get(request.lora_int_id)
        if known is not None and (known.name, known.path) != (request.lora_name, request.lora_path):
            if known.listed or request.lora_int_id in self._slots:
                raise AdapterError(
                    f"adapter id {request.lora_int_id} is {known.name!r} from {known.path}, not {request.lora_name!r} from "
                    f"{request.lora_path}; give each adapter an id of its own"
                )
            known = None
        if known is not None:
            self._residents.move_to_end(request.lora_int_id)
            loaded, known.listed = not known.listed, True
            return loaded
        row = self._load(request)
        self._residents[request.lora_int_id] = ResidentRow(request.lora_name, request.lora_path, row)
        self._shrink({request.lora_int_id, *keep})
        return True

    def remove_adapter(self, adapter_id: int) -> bool:
        """Hide an adapter from clients. It stays until its memory is needed, so that accepted requests finish."""
        known = self._residents.get(adapter_id)
        if known is None or not known.listed:
            return False
        known.listed = known.pinned = False
        self._residents.move_to_end(adapter_id, last=False)
        return True

    def pin_adapter(self, adapter_id: int) -> bool:
        """Keep an adapter in memory until it is removed. False if none of that id is loaded."""
        if adapter_id not in self.list_adapters():
            return False
        self._residents[adapter_id].pinned = True
        return True

    def list_adapters(self) -> set[int]:
        return {adapter_id for adapter_id, known in self._residents.items() if known.listed}

    def remove_all_adapters(self) -> None:
        self._residents.clear()
        self._slots.clear()

    # ---- every step -------------------------------------------------------------------------------------------------

    def set_active_adapters(self, requests: set[Any], mapping: Any) -> None:
        """Load the adapters of the coming step and say which token uses which. Raises for no adapter.

        An exception here would end the engine and every request in it. Adapters are checked before their requests are
        accepted (`admission`). So a failure means that files changed since, after this worker had let go of the adapter.
        """
        wanted = {request.lora_int_id for request in requests}
        slot_of = {0: IDENTITY}
        for request in requests:
            try:
                if request.lora_int_id not in self._residents:
                    self.add_adapter(request, keep=wanted)
                slot_of[request.lora_int_id] = self._activate(request.lora_int_id, wanted)
            except (AdapterError, ValueError, OSError) as error:
                log.error("requests with adapter %r cannot be answered any more: %s", request.lora_name, error)
                slot_of[request.lora_int_id] = self.bank.refused
        self.bank.assign([slot_of[number] for number in map(int, mapping.index_mapping)])

    def _activate(self, adapter_id: int, wanted: set[int]) -> int:
        """The slot of an adapter in memory, written now if it has none yet. No adapter of `wanted` loses its slot."""
        slot = self._slots.get(adapter_id)
        if slot is None:
            taken = set(self._slots.values())
            slot = next((slot for slot in range(1, self.num_slots + 1) if slot not in taken), None)
            if slot is None:
                oldest = next(number for number in self._slots if number not in wanted)  # vLLM batches ≤ max_loras
                slot = self._slots.pop(oldest)
            self.bank.write(slot, self._residents[adapter_id].row)
            self._slots[adapter_id] = slot
        self._slots.move_to_end(adapter_id)
        self._residents.move_to_end(adapter_id)
        return slot

    def _load(self, request: Any) -> Tensor:
        """An adapter's row, checked. Raises `AdapterError`."""
        adapter = loading.read(request.lora_path)
        version = (request.lora_name, request.lora_path)
        if self._versions.get(version, adapter.content_hash) != adapter.content_hash:
            raise AdapterError(
                f"{request.lora_path} has changed since {request.lora_name!r} was first loaded from it; vLLM's prefix cache "
                "tells versions apart by name and path only, so load the new one from a folder of its own"
            )
        names = {name: self._own_name(name) for name in adapter.layout.layers}
        self.bank.found.check(adapter, names)
        row = self.bank.row(adapter, names)
        if not request.lora_path.startswith(loading.SCHEME):  # those paths say which content they mean
            self._versions[version] = adapter.content_hash
        return row.pin_memory() if self.device.type == "cuda" else row

    def _own_name(self, name: str) -> str:
        """This model's name for an adapter's layer."""
        if self._rename is None:
            return name
        return self._rename.map_name(name) or name

    def _shrink(self, keep: set[int]) -> None:
        """Let go of the least recently used adapters beyond the capacity, but of none in `keep` and none pinned."""
        for adapter_id in list(self._residents):
            if len(self._residents) <= self.capacity:
                return
            if adapter_id not in keep and not self._residents[adapter_id].pinned:
                del self._residents[adapter_id]
                self._slots.pop(adapter_id, None)

    # ---- called by vLLM's warm-up, which runs the model with made-up adapters ------------------------------------------

    @contextmanager
    def dummy_lora_cache(self) -> Iterator[None]:
        yield

    def add_dummy_lora(self, request: Any, rank: int) -> bool:
        self._residents[request.lora_int_id] = ResidentRow(request.lora_name, request.lora_path, self.bank.identity)
        return True

    def get_dummy_lora_warmup_rank(self, default_rank: int) -> int:
        return default_rank

    def supports_tower_connector_lora(self) -> bool:
        return False
