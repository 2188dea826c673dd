"""`Layout`: where each of an adapter's layers lies in its flat vectors.

    layout = Layout({"model.layers.0.self_attn.q_proj": (576, 64)})      # width and group size
    adapter.a[layout.spans["model.layers.0.self_attn.q_proj"]]

Layers are ordered by group size and then by name, so that all layers of one group size lie together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Layout:
    """Where each layer lies in the flat vectors.

    layers  module name → (width, group size)
    spans   module name → the layer's slice of the flat vectors
    parts   group size → the contiguous slice of all layers that have it
    """

    layers: Mapping[str, tuple[int, int]]
    spans: Mapping[str, slice] = field(init=False, compare=False)
    parts: Mapping[int, slice] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        ordered = dict(sorted(self.layers.items(), key=lambda item: (item[1][1], item[0])))
        spans: dict[str, slice] = {}
        parts: dict[int, slice] = {}
        offset = 0
        for name, (width, group_size) in ordered.items():
            spans[name] = slice(offset, offset + width)
            parts[group_size] = slice(parts[group_size].start if group_size in parts else offset, offset + width)
            offset += width
        object.__setattr__(self, "layers", ordered)
        object.__setattr__(self, "spans", spans)
        object.__setattr__(self, "parts", parts)

    @property
    def width(self) -> int:
        """Length of the flat vectors: the summed widths of all layers."""
        return sum(width for width, _ in self.layers.values())

    def locate(self, pair: int, group_size: int) -> tuple[str, int]:
        """The layer of a pair that is counted through all layers of one group size, and its number in that layer."""
        position = self.parts[group_size].start + 2 * pair
        for name, span in self.spans.items():
            if span.start <= position < span.stop:
                return name, (position - span.start) // 2
        raise AssertionError(f"pair {pair} lies outside the layout of width {self.width}")
