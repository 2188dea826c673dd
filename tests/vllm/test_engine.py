"""The seam: roadkit's requests on vLLM's asynchronous engine, in processes of its own, adapters coming and going."""

import asyncio
import gc

import pytest

from roadkit import expression
from roadkit.engine.request import Request
from roadkit.errors import AdapterError, ExpressionError, RequestError, RoadkitError
from roadkit.vllm_plugin.engine import AsyncVllmEngine
from tests.vllm.tiny import expected_tokens

PROMPT = [10, 20, 30, 40, 50, 60]


@pytest.fixture(scope="module")
def run(tiny):
    """`run(story)`: a coroutine function of an engine, on one event loop and engine for the whole file."""
    loop = asyncio.new_event_loop()
    options = {"enforce_eager": True, "max_num_batched_tokens": 256}
    engine = loop.run_until_complete(
        AsyncVllmEngine.from_pretrained(
            tiny("llama").path, max_batch=8, slots=4, max_context=256, group_sizes=(64, 2), arguments=options
        )
    )
    yield lambda story: loop.run_until_complete(story(engine))
    engine.close()
    loop.close()
    gc.collect()  # vLLM leaves sockets to the collector, which warns: now, where warnings are let pass


def test_mixed_requests_equal_transformers(run, tiny, adapters):
    made = {f"a{i}": each for i, each in enumerate(adapters("llama"))}
    known = {name: each.adapter for name, each in made.items()}
    texts = [None, "a0", "a1*0.5", "a2*2", "a0*0.3 + a2", "a4", "a5"]

    async def story(engine):
        for name, each in made.items():
            await engine.add_adapter(name, each.path)
        requests = [Request(prompt=PROMPT, adapter=text, max_tokens=6, ignore_eos=True) for text in texts]
        return await engine.generate(requests)

    for text, completion in zip(texts, run(story), strict=True):
        assert completion.error is None
        adapter = expression.compose(text, known) if text else None
        assert completion.token_ids == expected_tokens(tiny("llama").model, adapter, PROMPT, 6), text
        assert completion.finish_reason == "length" and completion.prompt_tokens == len(PROMPT)


def test_bad_requests_and_adapters_are_refused_alone(run, tmp_path, tiny, make_adapter):
    async def story(engine):
        await engine.add_adapter("good", make_adapter(tiny("llama").model, seed=60).path)
        for request, error, message in [
            (Request(prompt=PROMPT, adapter="nobody"), ExpressionError, "no adapter 'nobody'"),
            (Request(prompt=PROMPT, max_tokens=1000), RequestError, "together at most 256"),
            (Request(prompt=[99999]), RequestError, "outside the vocabulary"),
            (Request(prompt=PROMPT, no_repeat_ngram_size=2), RequestError, "vLLM has no such option"),
        ]:
            with pytest.raises(error, match=message):
                await engine.submit(request)
        with pytest.raises(AdapterError):
            await engine.add_adapter("bad", tmp_path)
        strange = make_adapter(tiny("llama").model, "road_1", 32, seed=61)
        with pytest.raises(AdapterError, match=r"group_size is 32, the engine was told of \[64, 2\]"):
            await engine.add_adapter("good", strange.path)  # refused by the workers: the old version stays
        (answer,) = await engine.generate([Request(prompt=PROMPT, adapter="good", max_tokens=2)])
        return answer

    assert run(story).error is None


@pytest.mark.parametrize(
    ("option", "message"),
    [("enforce_eagre", "did you mean 'enforce_eager'"), ("max_loras", "is roadkit's to set, here to 8")],
)
def test_options_that_are_not_vllms_or_not_free(tiny, option, message):
    with pytest.raises(RoadkitError, match=message):
        AsyncVllmEngine.start(tiny("llama").path, arguments={option: 1})


def test_tenants_share_no_block(run):
    """The same prompt, longer than two blocks of the cache: again for one tenant it is read, for another computed."""
    prompt = [1 + i % 200 for i in range(200)]

    async def story(engine):
        found = []
        for tenant in ("a", "a", "b"):
            stream = await engine.submit(Request(prompt=prompt, max_tokens=1), tenant=tenant)
            found.append((await stream.result()).cached_tokens)
        return found

    first, again, other = run(story)
    assert first == other == 0 < again


def test_stream_and_cancel(run):
    async def story(engine):
        request = Request(prompt="hello", max_tokens=200, ignore_eos=True, logprobs=2)
        stream, chunks = await engine.submit(request), []
        async for chunk in stream:
            chunks.append(chunk)
            if len(chunks) == 3:
                await engine.cancel(stream.id)
        assert engine.stats()["requests"] == 0
        return chunks

    chunks = run(story)
    completion = chunks[-1].completion
    assert completion is not None and completion.finish_reason == "cancelled" and len(completion.token_ids) < 200
    assert [token for chunk in chunks for token in chunk.token_ids] == completion.token_ids
    assert all(len(logprob.top) == 2 for chunk in chunks for logprob in chunk.logprobs)


def test_cancelled_before_it_began(run):
    async def story(engine):
        stream = await engine.submit(Request(prompt="hello", max_tokens=200))
        await stream.cancel()
        await stream.cancel()
        return await stream.result(), engine.stats()

    completion, stats = run(story)
    assert completion.finish_reason == "cancelled" and completion.token_ids == [] and stats["requests"] == 0


def test_versions_and_removal_under_load(run, tiny, make_adapter, tmp_path):
    """A name changes its meaning, and goes, while requests run: each request keeps what it was accepted with."""
    base = tiny("llama").model
    versions = [make_adapter(base, "road_1", 64, seed=70 + i) for i in range(4)]
    expected = [expected_tokens(base, each.adapter, PROMPT, 40) for each in versions]
    plain = expected_tokens(base, None, PROMPT, 40)

    async def story(engine):
        running = []
        for version in versions:
            await engine.add_adapter("moving", version.path)
            for adapter in ("moving", "moving", None):
                running.append(
                    await engine.submit(Request(prompt=PROMPT, adapter=adapter, max_tokens=40, ignore_eos=True))
                )
            await asyncio.sleep(0.05)
        await engine.remove_adapter("moving")
        with pytest.raises(ExpressionError):
            await engine.submit(Request(prompt=PROMPT, adapter="moving"))
        return [await stream.result() for stream in running]

    answers = run(story)
    for i, tokens in enumerate(expected):
        assert [answer.token_ids for answer in answers[3 * i : 3 * i + 3]] == [tokens, tokens, plain], f"version {i}"


def test_unused_compositions_are_evicted(run, tiny, make_adapter):
    async def story(engine):
        await engine.add_adapter("x", make_adapter(tiny("llama").model, seed=80).path)
        before, engine.compositions.max_idle = engine.compositions.max_idle, 5
        try:
            for i in range(12):
                await engine.generate([Request(prompt=PROMPT, adapter=f"x*0.{i + 10}", max_tokens=1)])
            return engine.stats(), len(await engine.llm.list_loras())
        finally:
            engine.compositions.max_idle = before

    stats, listed = run(story)
    assert stats["loaded"] <= 6 and listed <= 6 and stats["used"] == 0
