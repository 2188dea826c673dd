"""One request's jobs: a reader that is too slow, a deadline, a full queue, adapters told in the last moment."""

import asyncio
import concurrent.futures

from roadkit.expression import Term
from roadkit.server.api.generation import Generation
from roadkit.server.api.requests import CompletionRequest
from tests.server.process import parts
from tests.server.tenants import BODY


def test_a_reader_that_is_too_slow_is_cut_off(local):
    async def run():
        async with local(stream_buffer=8) as (service, _):
            body = CompletionRequest(model="tiny", prompt="the", max_tokens=500, stream=True, ignore_eos=True)
            caller = service.keyring.caller(None)
            generation = await Generation.begin(service, service.backend, caller, body)
            while service.traffic.running:
                await asyncio.sleep(0.01)
            pieces = [chunk async for _, chunk in generation.events()]
            last, failed = pieces[-1].completion, generation.failure(0)
            assert len(pieces) == 9
            assert last is not None
            assert last.finish_reason == "cancelled"
            assert failed is not None
            assert "too slowly" in failed.message
            generation.close()

    asyncio.run(run())


def test_a_full_queue_says_when_to_come_back(start):
    server = start("--max-batch", "1", "--max-queue", "2")
    body = {**BODY, "max_tokens": 400, "ignore_eos": True}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda _: server.http.post("/v1/completions", json=body), range(8)))
    refused = [response for response in responses if response.status_code == 429]
    assert refused and all(int(response.headers["retry-after"]) >= 1 for response in refused)
    assert {response.status_code for response in responses} == {200, 429}
    assert server.http.post("/v1/completions", json=BODY).status_code == 200
    assert server.stop() == 0


def test_a_deadline_ends_a_request(start):
    server = start("--request-seconds", "0.2")
    response = server.http.post("/v1/completions", json={**BODY, "max_tokens": 1000, "ignore_eos": True, "n": 8})
    assert response.status_code == 504 and server.settled("roadkit_requests_running", 0)
    assert server.stop() == 0


def test_an_adapter_told_in_the_last_moment_is_there_for_its_request(local, made):
    """The engine's thread looks at its inbox, then takes a job: what came between the two looks counts."""

    async def run():
        async with local(adapters=[f"late={made(4)}"]) as (service, http):
            backend = service.backend
            pop, told = backend._queue.pop, []

            def slow():
                job = pop()
                if job is not None and not told:
                    told.append(job)  # as if load had come after the look at the inbox, and before this
                    backend.load("x1", service.residents.validate(*parts(made(5)).values(), origin="x1"))
                    job.prepared.terms = (Term("x1", 1.0),)
                return job

            backend._queue.pop = slow
            answer = await http.post("/v1/completions", json={**BODY, "model": "late"})
            assert answer.status_code == 200, answer.text

    asyncio.run(run())
