"""An operator's limits hold."""

import asyncio

from roadkit.server.settings import Limits
from tests.server.tenants import BODY


def test_limits_can_be_set(local):
    async def run():
        async with local(limits=Limits(max_body=300, max_tokens=5)) as (_, http):
            assert (await http.post("/v1/completions", json={**BODY, "max_tokens": 6})).status_code == 400
            assert (await http.post("/v1/completions", json={**BODY, "prompt": "x" * 300})).status_code == 413
            chat = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "temperature": 0}
            answer = (await http.post("/v1/chat/completions", json=chat)).json()
            assert answer["usage"]["completion_tokens"] <= 5

    asyncio.run(run())
