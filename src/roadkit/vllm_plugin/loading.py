"""From a vLLM adapter request to a roadkit adapter: a directory, or an expression over directories.

    sources = {"formal": read_source("adapters/formal"), "german": read_source("adapters/german")}
    request = make_request(parse("formal*0.7 + german", sources), sources)   # a LoRARequest of its own name, path and id
    adapter = read(request.lora_path)                                        # in every worker: the same adapter

vLLM's prefix cache tells adapters apart by name and path only. So both carry the content's hash here, and two
expressions, or two versions of one name, never share a block. The path is text that workers evaluate; no composed file is
written.
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
    """Where an adapter lies, and what it was when it was registered.

    path          a directory, hub id or address
    content_hash  the adapter's
    """

    path: str
    content_hash: str


def read_source(path: str) -> Source:
    """Read and validate an adapter that is about to be served. Raises `AdapterError`."""
    return Source(str(path), store.load(path).content_hash)


def make_request(terms: tuple[expression.Term, ...], sources: Mapping[str, Source]) -> LoRARequest:
    """The vLLM request of an expression. Its name, path and id follow from the content of its adapters.

    terms    of the expression
    sources  its adapters, by name

    The id has 31 bits, and of a million such ids some would be equal. A long-lived front end numbers its requests itself.
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
    """The adapter that a request's path means. The path is a directory, hub id or address, or what `make_request` wrote.

    Raises `AdapterError`, also if a directory's content is no longer what the request was made for.
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
    """The directories, hub ids or addresses that a request's path reads."""
    if not path.startswith(SCHEME):
        return [path]
    return [source for source, _, _ in json.loads(path.removeprefix(SCHEME))]
