"""`PagedCache`: keys and values in pages of 16 positions, preallocated, shared between requests with the same prefix.

    pages = cache.allocate(3)          # None when the pool is exhausted
    cache.release(pages)

However long a request gets, it wastes at most one partly filled page, 15 positions. Pages whose content is complete are
remembered by a key that names the adapter's content and every token up to their end: a later request with the same
beginning under the same adapter reads them instead of computing them again. Pages that nobody uses keep their content
until they are needed, least recently used first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Collection

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from ..errors import RequestError

PAGE = 16  # positions, as in c/inference.h: the C kernels read one page's scores as one vector


class PagedCache:
    """A pool of `num_pages` pages for every layer, made when a layer first stores and its shape is known."""

    def __init__(self, num_pages: int, *, device: torch.device):
        self.num_pages, self.device = num_pages, device
        self.spare_page = num_pages  # where padding writes; nobody reads it
        self.keys: dict[int, Tensor] = {}  # layer → [pages, kv_heads, head_dim, PAGE], transposed for the C kernels
        self.values: dict[int, Tensor] = {}  # layer → [pages, kv_heads, PAGE, head_dim]
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_pages))
        self._users = [0] * num_pages
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Pages that nobody uses."""
        return len(self._free)

    def layer(self, index: int, num_heads: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The key and value pool of one layer, in `stored_dtype`."""
        if index not in self.keys:  # zeros: on the CPU the system commits memory when it is first written
            dtype = stored_dtype(dtype, self.device)
            pool = (self.num_pages + 1, num_heads)
            self.keys[index] = torch.zeros(*pool, head_dim, PAGE, device=self.device, dtype=dtype)
            self.values[index] = torch.zeros(*pool, PAGE, head_dim, device=self.device, dtype=dtype)
        return self.keys[index], self.values[index]

    def allocate(self, count: int) -> list[int] | None:
        """`count` pages with one user each, or None (and nothing taken) if there are not enough."""
        if count > len(self._free):
            return None
        pages = [self._free.popitem(last=False)[0] for _ in range(count)]
        for page in pages:
            self._users[page] = 1
            key = self._key_of.pop(page, None)
            if key is not None:
                del self._page_of[key]
        return pages

    def release(self, pages: list[int]) -> None:
        """Drop one use of each page. The last pages are reused first, so that shared beginnings live longest."""
        for page in reversed(pages):
            self._users[page] -= 1
            assert self._users[page] >= 0, f"page {page} released more often than taken"
            if self._users[page] == 0:
                self._free[page] = None

    def lookup(self, keys: list[bytes]) -> list[int]:
        """Take the longest run of remembered pages from the start of `keys`."""
        found = []
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            if self._users[page] == 0:
                del self._free[page]
            self._users[page] += 1
            found.append(page)
        return found

    def remember(self, page: int, key: bytes) -> None:
        """Offer a complete page to later requests."""
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key], self._key_of[page] = page, key


def stored_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What a model of `dtype` keeps in its pages: on the CPU float32, which the C kernels read."""
    return torch.float32 if device.type == "cpu" else dtype


def pages_that_fit(model: PreTrainedModel, *, gib: float, max_batch: int, max_context: int) -> int:
    """Pages that fit `gib` GiB (2^30 bytes), or that every request could ever fill, whichever is less.

    Raises `RequestError` if not one page fits.
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    number_bytes = stored_dtype(model.dtype, model.device).itemsize
    page_bytes = 2 * PAGE * heads * head_dim * number_bytes * config.num_hidden_layers
    fitting = int(gib * 2**30) // page_bytes
    if fitting < 1:
        raise RequestError(f"cache_gib {gib:g} holds no page: one needs {page_bytes} bytes")
    return min(fitting, max_batch * -(-max_context // PAGE))


def page_keys(adapter_key: str, token_ids: list[int], marks: Collection[int] = ()) -> list[bytes]:
    """One key for every complete page: a hash of the adapter's content and of all tokens up to the page's end.

    marks   positions at which an intervention acts; they depend on the prompt's length, so the pages tell them apart
    """
    keys, digest = [], hashlib.sha256(adapter_key.encode()).digest()
    for start in range(0, len(token_ids) - PAGE + 1, PAGE):
        page = torch.tensor(token_ids[start : start + PAGE], dtype=torch.int64).numpy().tobytes()
        if marks:
            page += bytes(position in marks for position in range(start, start + PAGE))
        digest = hashlib.sha256(digest + page).digest()
        keys.append(digest)
    return keys
