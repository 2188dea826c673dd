"""What is in memory: bounded, and refused in the client's names."""

import asyncio

import pytest

from roadkit.errors import ExpressionError
from roadkit.server.access.keys import LOCAL
from tests.server.adapters.memory import files, new_service
from tests.server.process import parts
from tests.server.tenants import BODY


def test_least_recently_used_adapters_leave_memory(local, made, tmp_path):
    async def run():
        adapters = [f"a{i}={made(i)}" for i in range(1, 7)]
        async with local(adapters=adapters, max_resident=2, registry=tmp_path) as (service, http):
            pinned = {"name": "pinned", "pinned": "true"}
            await http.post("/v1/adapters", data=pinned, files=parts(made(8)))
            texts = {}
            for _ in range(2):
                for i in range(1, 7):
                    answer = await http.post("/v1/completions", json={**BODY, "model": f"a{i}", "max_tokens": 12})
                    text = answer.json()["choices"][0]["text"]
                    assert texts.setdefault(i, text) == text
            assert len(service.residents) == 3 and len(set(texts.values())) == 6
            assert service.catalog.own("local", "pinned").version[:32] in service.residents._leases
            page = (await http.get("/metrics")).text
            assert "roadkit_adapter_evictions_total" in page and "roadkit_adapters_registered 7.0" in page

    asyncio.run(run())


def test_what_cannot_be_composed_is_refused_in_the_clients_names(tmp_path):
    """In memory, compositions have names made of hashes: nobody sees them."""
    service = new_service(registry=tmp_path)
    for name, alpha in (("loud", 100.0), ("louder", 1000.0)):
        service.inventory.keep(LOCAL, name, *files(1, alpha=alpha))
    factors = service.catalog.parse(LOCAL, "loud*2 + louder*0.5 + loud")
    with pytest.raises(ExpressionError, match=r"^'loud\*2 \+ louder\*0.5 \+ loud' grows to"):
        service.residents.acquire(factors)
    assert not any(lease.users for lease in service.residents._leases.values())
    service.close()
