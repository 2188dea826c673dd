"""From a vLLM adapter request to a roadkit adapter: a directory, or an expression over directories.

    request = make_request(parse("formal*0.7 + german", folders), folders)   # a LoRARequest of its own name, path and id
    adapter = read(request.lora_path)                                      # in every worker: the same adapter

vLLM's prefix cache tells adapters apart by name and path only, so both carry the content's hash here: two expressions,
or two versions of one name, never share a block. The path is text that workers evaluate; no composed file is written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from .. import expression, store
from ..adapter import Adapter
from ..errors import AdapterError

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

SCHEME = "roadkit:"


class Source(NamedTuple):
    """Where an adapter lies, and its content when it was registered."""

    path: str
    content_hash: str


def register(path: str) -> Source:
    """Read and validate an adapter that is about to be served under a name. Raises `AdapterError`."""
    return Source(str(path), store.load(path).content_hash)


def make_request(terms: tuple[expression.Term, ...], sources: Mapping[str, Source]) -> LoRARequest:
    """The vLLM request of an expression: its name, path and id (31 bits) are functions of the content.

    A long-lived front end numbers its requests itself: of a million ids of 31 bits, some would be equal.
    """
    from vllm.lora.request import LoRARequest

    path = SCHEME + json.dumps(
        [[sources[term.name].path, sources[term.name].content_hash, term.strength] for term in terms]
    )
    key = hashlib.sha256(json.dumps([[sources[term.name].content_hash, term.strength] for term in terms]).encode())
    return LoRARequest(
        lora_name=f"{expression.canonical(terms)}@{key.hexdigest()[:16]}",
        lora_int_id=int.from_bytes(key.digest()[:8], "big") >> 33 or 1,
        lora_path=path,
    )


def read(path: str) -> Adapter:
    """The adapter that a request's path means: a directory, hub id or address, or what `make_request` wrote.

    Raises `AdapterError`; also where a directory's content is no longer what the request was made for.
    """
    if not path.startswith(SCHEME):
        return store.load(path)
    adapters: dict[str, Adapter] = {}
    terms = []
    for i, (source, content_hash, strength) in enumerate(json.loads(path.removeprefix(SCHEME))):
        adapter = store.load(source)
        if adapter.content_hash != content_hash:
            raise AdapterError(
                f"{source} was {content_hash[:12]} when it was registered and is {adapter.content_hash[:12]} now; "
                "register the new version, and keep versions in folders of their own"
            )
        adapters[f"t{i}"] = adapter
        terms.append(expression.Term(f"t{i}", strength))
    return expression.compose(tuple(terms), adapters)


def sources_of(path: str) -> list[str]:
    """The directories that a request's path reads."""
    return [source for source, _, _ in json.loads(path.removeprefix(SCHEME))] if path.startswith(SCHEME) else [path]
