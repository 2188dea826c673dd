"""`PackedLinear`: a linear layer whose weight is packed once for the fused CPU kernel, rotation included.

    packed = pack(model)     # replaces the forward of every float32 or bfloat16 linear

One packing serves every number of rows; each row is computed in the same order whatever else is in the batch. The plain
weights are dropped, so the model can from then on only run forward.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import native
from ..modules import width_of
from .bank import BankLayer

PANEL = 32  # outputs side by side in a panel; see kernels.c


class PackedLinear:
    """y = R(W x + bias) in one call; stands in for the `forward` of the layer it was made from.

    `layer` is set when the bank starts to rotate this layer.
    """

    layer: BankLayer | None = None

    def __init__(self, module: nn.Module, weight: Tensor):
        self.num_outputs, self.num_inputs = weight.shape
        self.bias = module.bias.data.float().contiguous() if getattr(module, "bias", None) is not None else None  # type: ignore[union-attr]
        self.packed = _panels(weight)
        suffix = {torch.float32: "f32", torch.bfloat16: "bf16"}[weight.dtype]
        library = native.load()
        assert library is not None, "pack() was called without the native kernels"
        self._call = getattr(library, f"rk_linear_{suffix}")
        self._packed_pointer = self.packed.data_ptr()
        self._bias_pointer = None if self.bias is None else self.bias.data_ptr()

    def __call__(self, x: Tensor) -> Tensor:
        wide = x if x.dtype is torch.float32 and x.is_contiguous() else x.float().contiguous()
        y = torch.empty((*x.shape[:-1], self.num_outputs))
        layer = self.layer
        rows = layer.bank.current if layer is not None else None
        num_rows = x.numel() // self.num_inputs
        assert rows is None or rows.numel() == num_rows, f"{num_rows} tokens, but {rows.numel()} bank rows"
        self._call(
            wide.data_ptr(),
            self._packed_pointer,
            self._bias_pointer,
            y.data_ptr(),
            num_rows,
            self.num_outputs,
            self.num_inputs,
            rows.data_ptr() if rows is not None else None,
            layer.native if rows is not None else None,  # type: ignore[union-attr]
            torch.get_num_threads(),
        )
        return y if x.dtype is torch.float32 else y.to(x.dtype)


def pack(model: nn.Module) -> dict[nn.Module, PackedLinear]:
    """Pack every linear of the model; module → its packed form, {} where the kernel is missing.

    Quantised layers, and those on other devices, stay as they are. A weight that another module reads too (a tied embedding) is kept for that module.
    """
    if native.load() is None:
        return {}
    packed: dict[nn.Module, PackedLinear] = {}
    for name, module in model.named_modules():
        if type(module) is not nn.Linear and type(module).__name__ != "Conv1D":
            continue
        weight = module.weight.data  # type: ignore[union-attr]
        if type(weight) is not Tensor or weight.dtype not in (torch.float32, torch.bfloat16) or weight.device.type != "cpu":
            continue
        matrix = weight.t() if type(module).__name__ == "Conv1D" else weight
        assert matrix.shape[0] == width_of(module), f"{name}: weight {list(weight.shape)}, width {width_of(module)}"
        packed[module] = module.forward = PackedLinear(module, matrix)  # type: ignore[method-assign]
        module.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)
    return packed


def _panels(weight: Tensor) -> Tensor:
    """[outputs, inputs] → [panels, inputs, PANEL] contiguous, the last panel padded with zeros."""
    short = -weight.shape[0] % PANEL
    padded = nn.functional.pad(weight, (0, 0, 0, short)) if short else weight
    return padded.unflatten(0, (-1, PANEL)).transpose(1, 2).contiguous()
