"""`PackedLinear`: a linear layer whose weight is packed once for the fused CPU kernel, rotation included.

    packed = pack(model, weights="int8")     # replaces the forward of every linear layer

One packing serves every number of rows, and each row is computed in the same order whatever else is in the batch. The
plain weights are dropped: from then on the model can only run forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ModelError
from ...kernels import native
from ...modules import width_of
from ..bank_layer import BankLayer
from ..options import Weights

PANEL = 32  # outputs side by side in a panel; see inference.c
_SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16", torch.int8: "i8"}  # in the order of inference.c's STORED_*


class PackedLinear:
    """y = R(W x + bias) in one call, float32 inside; stands in for the `forward` of the layer it was made from.

    weight [outputs, inputs] float32, bfloat16 or int8; an int8 weight has a scale for each output
    layer  is set when the bank starts to rotate this layer
    """

    layer: BankLayer | None = None

    def __init__(self, weight: Tensor, scale: Tensor | None, bias: Tensor | None):
        self.num_outputs, self.num_inputs = weight.shape
        self.packed = _panels(weight)
        self.scale = None if scale is None else nn.functional.pad(scale.float(), (0, -len(scale) % PANEL))
        self.bias = None if bias is None else bias.float().contiguous()
        library = native.load()
        assert library is not None, "pack() was called without the native kernels"
        self._call = getattr(library, f"rk_linear_{_SUFFIX[weight.dtype]}")
        tensors = (self.packed, self.scale, self.bias)
        self._pointers = tuple(None if tensor is None else tensor.data_ptr() for tensor in tensors)
        self._stored = list(_SUFFIX).index(weight.dtype)

    def describe(self) -> native.Linear:
        """What `inference.c` reads of this layer, without its rotations; this object has to outlive it."""
        return native.Linear(*self._pointers, self.num_outputs, self.num_inputs, self._stored)

    def __call__(self, x: Tensor) -> Tensor:
        wide = x if x.dtype is torch.float32 and x.is_contiguous() else x.float().contiguous()
        y = torch.empty((*x.shape[:-1], self.num_outputs))
        layer = self.layer
        rows = layer.bank.current if layer is not None else None
        num_rows = x.numel() // self.num_inputs
        assert rows is None or rows.numel() == num_rows, f"{num_rows} tokens, but {rows.numel()} bank rows"
        self._call(
            wide.data_ptr(),
            *self._pointers,
            y.data_ptr(),
            num_rows,
            self.num_outputs,
            self.num_inputs,
            rows.data_ptr() if rows is not None else None,
            layer.native if rows is not None else None,  # type: ignore[union-attr]
            torch.get_num_threads(),
        )
        return y if x.dtype is torch.float32 else y.to(x.dtype)


def pack(model: nn.Module, *, weights: Weights | None = None) -> dict[nn.Module, PackedLinear]:
    """Pack every linear of the model; module → its packed form, {} where the kernel is missing.

    weights  what to store: None keeps the model's own type; 'bfloat16' halves and 'int8' (torchao's symmetric
             quantisation, a scale for each output) quarters the memory that decoding reads

    Layers on other devices, and quantised in ways that the kernel does not read, stay as they are.
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
    if type(weight) is not Tensor or weight.device.type != "cpu" or weight.dtype not in _SUFFIX:
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
