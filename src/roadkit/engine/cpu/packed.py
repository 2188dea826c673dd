"""`PackedLinear`: a linear layer whose weight is packed once for the fused CPU kernel, rotation included.

    packed = pack(model, weights="int8")     # replaces the forward of every linear layer

One packing serves every number of rows, and each row is computed in the same order whatever else is in the batch. The
plain weights are dropped: from then on the model can only run forward.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ModelError
from ...kernels import native
from ...modules import width_of
from ..bank.layer import BankLayer
from ..options import Weights

PANEL = 32  # outputs side by side in a panel, as in c/linear.c
_STORED = (torch.float32, torch.bfloat16, torch.int8)  # in the order of c/inference.h's STORED_*


class PackedLinear:
    """`y = R (W x + bias)` in one call, float32 inside; stands in for the `forward` of the layer it was made from.

    weight  [outputs, inputs] float32, bfloat16 or int8
    scale   [outputs], of an int8 weight
    bias    [outputs], or None

    `native` is what the C kernels read of it; this object has to outlive it.
    """

    def __init__(self, weight: Tensor, scale: Tensor | None, bias: Tensor | None):
        self._call = native.loaded().rk_linear
        self.num_outputs, self.num_inputs = weight.shape
        self.packed = _panels(weight)
        self.scale = None if scale is None else nn.functional.pad(scale.float(), (0, -len(scale) % PANEL))
        self.bias = None if bias is None else bias.float().contiguous()
        tensors = (self.packed, self.scale, self.bias)
        addresses = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
        self.native = native.Linear(*addresses, self.num_outputs, self.num_inputs, _STORED.index(weight.dtype))
        self._layer: BankLayer | None = None

    def attach(self, layer: BankLayer) -> None:
        """Rotate by the bank's current rows from now on."""
        self._layer, self.native.rotations = layer, ctypes.pointer(layer.rotations)

    def detach(self) -> None:
        """Rotate no more."""
        self._layer = self.native.rotations = None

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., inputs] → [..., outputs], in x's dtype."""
        wide = x if x.dtype is torch.float32 and x.is_contiguous() else x.float().contiguous()
        y = torch.empty((*x.shape[:-1], self.num_outputs))
        rows = self._layer.current.linear if self._layer is not None else None
        num_rows = x.numel() // self.num_inputs
        assert rows is None or rows.numel() == num_rows, f"{num_rows} tokens, but {rows.numel()} bank rows"
        row_pointer = None if rows is None else rows.data_ptr()
        self._call(self.native, wide.data_ptr(), y.data_ptr(), num_rows, row_pointer, torch.get_num_threads())
        return y if x.dtype is torch.float32 else y.to(x.dtype)


def pack(model: nn.Module, *, weights: Weights | None = None) -> dict[nn.Module, PackedLinear]:
    """Pack every linear layer of the model. → module → its packed form, {} if there are no C kernels.

    weights  what to store: None keeps the model's own type; 'bfloat16' halves the memory that decoding reads, and 'int8'
             (torchao's symmetric quantisation, a scale for each output) quarters it

    Layers on other devices, and layers quantised in ways that the kernel does not read, stay as they are. Raises
    `ModelError` if `weights` needs kernels or packages that are missing.
    """
    if native.load() is None:
        if weights not in (None, "float32"):
            raise ModelError(f"weights={weights!r} needs the fused CPU kernels, and there is no C compiler")
        return {}
    packed: dict[nn.Module, PackedLinear] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) and type(module).__name__ != "Conv1D":
            continue
        stored = _stored(module, weights)
        if stored is None:
            continue
        weight, scale = stored
        assert weight.shape[0] == width_of(module), f"{name}: weight {list(weight.shape)}, width {width_of(module)}"
        bias = getattr(module, "bias", None)
        packed[module] = PackedLinear(weight, scale, None if bias is None else bias.data)
        module.forward = packed[module]  # type: ignore[method-assign]
        module.weight = nn.Parameter(torch.empty(0), requires_grad=False)
    return packed


def _stored(module: nn.Module, weights: Weights | None) -> tuple[Tensor, Tensor | None] | None:
    """(weight [outputs, inputs], scale) as the kernel reads them; None for a layer that it cannot serve."""
    weight: Any = module.get_parameter("weight").data
    if hasattr(weight, "qdata") and hasattr(weight, "scale"):  # torchao's Int8Tensor
        per_output = weight.qdata.dtype is torch.int8 and weight.scale.numel() == weight.shape[0]
        zero = getattr(weight, "zero_point", None)
        if not per_output or (zero is not None and bool(zero.any())):
            return None
        return weight.qdata, weight.scale.view(-1)
    if type(weight) is not Tensor or weight.device.type != "cpu" or weight.dtype not in _STORED:
        return None
    if type(module).__name__ == "Conv1D":
        weight = weight.t()
    if weights == "int8":
        return _quantised(weight)
    return (weight if weights is None else weight.to(getattr(torch, weights))), None


def _quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise ModelError("weights='int8' needs torchao: pip install torchao") from error
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight.float(), requires_grad=False)
    quantize_(layer, Int8WeightOnlyConfig(version=2))
    quantised: Any = layer.weight
    return quantised.qdata, quantised.scale.view(-1)


def _panels(weight: Tensor) -> Tensor:
    """[outputs, inputs] → [panels, inputs, PANEL] contiguous, the last panel padded with zeros."""
    short = -weight.shape[0] % PANEL
    padded = nn.functional.pad(weight, (0, 0, 0, short)) if short else weight
    return padded.unflatten(0, (-1, PANEL)).transpose(1, 2).contiguous()
