from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from roadkit.engine.bank.slots import Row
from roadkit.engine.cache import PAGE, PagedCache
from roadkit.engine.request import Request
from roadkit.engine.scheduler import Scheduler
from roadkit.engine.sequence import TokenSequence
from roadkit.errors import AdapterError, BankFull, QueueFull

ids = itertools.count()


class Rows:
    """What the scheduler sees of a bank: a few slots, least recently used first, several versions of each adapter."""

    def __init__(self, slots: int):
        self.slots, self.resident, self.users = slots, {}, {}
        self.version = dict.fromkeys("abcd", 0)

    def acquire(self, sequence: TokenSequence) -> Row:
        name = sequence.request.adapter
        if name is None:
            return Row(0, "")
        if name == "bad":
            raise AdapterError("bad: cannot be read")
        key = f"{name}#{self.version[name]}"
        if key not in self.resident:
            if len(self.resident) == self.slots:
                unused = next((key for key in self.resident if not self.users.get(key)), None)
                if unused is None:
                    raise BankFull("full")
                self.resident[key] = self.resident.pop(unused)
            else:
                self.resident[key] = len(self.resident) + 1
        self.users[key] = self.users.get(key, 0) + 1
        return Row(self.resident[key], key)

    def release(self, row: Row) -> None:
        if row.slot:
            self.users[row.key] -= 1
            assert self.users[row.key] >= 0, f"{row} released more often than acquired"


def make(pages: int = 64, slots: int = 8, **options) -> tuple[Scheduler, Rows]:
    rows = Rows(slots)
    cache = PagedCache(pages, device=torch.device("cpu"))
    return Scheduler(cache, acquire=rows.acquire, release=rows.release, **options), rows


def request(prompt, adapter=None, *, max_tokens=8, tenant="", **options) -> TokenSequence:
    prompt = list(prompt)
    return TokenSequence(
        id=next(ids),
        request=Request(prompt=prompt, adapter=adapter, max_tokens=max_tokens, **options),
        terms=(),
        token_ids=prompt,
        tenant=tenant,
    )


def step(scheduler: Scheduler, token: int = 1) -> list[tuple[TokenSequence, int]]:
    """What the engine does in a step, with `token` for whatever the model would say."""
    batch = scheduler.next_batch()
    scheduler.advance(batch)
    for sequence, _ in batch:
        if not sequence.remaining:
            sequence.token_ids.append(token)
            if sequence.num_generated >= sequence.request.max_tokens:
                sequence.finished = "length"
                scheduler.finish(sequence)
    return batch


def until(scheduler: Scheduler, reached) -> None:
    for _ in range(1000):
        if reached():
            return
        step(scheduler)
    raise AssertionError(f"{len(scheduler.running)} running and {len(scheduler.waiting)} waiting after 1,000 steps")


def finish_all(scheduler: Scheduler) -> None:
    until(scheduler, lambda: not scheduler.running and not scheduler.waiting)


# ---- any order of events ----------------------------------------------------------------------------------------


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come, go and are cancelled in every order, with too few pages, slots and places.

    The model beside it is what each cached position holds: the adapter's content and all tokens up to there.
    """

    @initialize(
        pages=st.integers(4, 14),
        slots=st.integers(1, 3),
        max_batch=st.integers(1, 5),
        chunk=st.sampled_from([1, 5, 32]),
    )
    def start(self, pages, slots, max_batch, chunk):
        self.pages, self.max_batch, self.chunk = pages, max_batch, chunk
        self.scheduler, self.rows = make(pages, slots, max_batch=max_batch, max_waiting=6, chunk=chunk, burst=2 * chunk)
        self.scheduler.max_skips = 3
        self.content: dict[tuple[int, int], tuple] = {}  # (page, offset) → (tenant and adapter, tokens so far)
        self.live: list[TokenSequence] = []
        self.first_key: dict[int, str] = {}
        self.admitted: set[int] = set()
        take = self.scheduler._take_prefix

        def taken(sequence, row) -> bool:
            admitted = take(sequence, row)
            self.admitted |= {sequence.id} if admitted else set()
            return admitted

        self.scheduler._take_prefix = taken

    @rule(
        start=st.sampled_from([1, 2]),
        length=st.integers(1, 70),
        adapter=st.sampled_from([None, "a", "b", "c", "d", "bad"]),
        max_tokens=st.integers(1, 40),
        tenant=st.sampled_from(["", "t"]),
        scored=st.booleans(),
    )
    def submit(self, start, length, adapter, max_tokens, tenant, scored):
        room = self.pages * PAGE
        length = min(length, room - 1)
        prompt = range(start, start + length)
        options = {"prompt_logprobs": 0} if scored else {}
        sequence = request(prompt, adapter, max_tokens=min(max_tokens, room - length), tenant=tenant, **options)
        if len(self.scheduler.waiting) >= 6:
            with pytest.raises(QueueFull):
                self.scheduler.submit(sequence)
        else:
            self.scheduler.submit(sequence)
            self.live.append(sequence)

    @rule(count=st.integers(1, 12))
    def steps(self, count):
        for _ in range(count):
            self.one_step()

    @rule(name=st.sampled_from("abcd"))
    def new_version(self, name):
        self.rows.version[name] += 1

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data):
        sequence = data.draw(st.sampled_from(self.live))
        sequence.finished = "cancelled"
        self.scheduler.finish(sequence)
        self.live.remove(sequence)

    def one_step(self):
        batch = self.scheduler.next_batch()
        for sequence, error in self.scheduler.failed:
            assert sequence.request.adapter == "bad", error
            self.live.remove(sequence)
        self.scheduler.failed.clear()
        self.check_batch(batch)
        for sequence, count in batch:
            self.compute(sequence, count)
        self.scheduler.advance(batch)
        for sequence, _ in batch:
            if not sequence.remaining:
                sequence.token_ids.append(len(sequence.token_ids) % 3)
                if sequence.num_generated >= sequence.request.max_tokens:
                    sequence.finished = "length"
                    self.scheduler.finish(sequence)
                    self.live.remove(sequence)

    def check_batch(self, batch):
        assert len({sequence.id for sequence, _ in batch}) == len(batch) <= self.max_batch
        assert all(sequence in self.scheduler.running for sequence, _ in batch)
        assert all(1 <= count <= sequence.remaining for sequence, count in batch)
        generating = [sequence for sequence, count in batch if sequence.remaining == 1]
        prompt_tokens = sum(count for sequence, count in batch if sequence.remaining > 1)
        assert prompt_tokens <= (self.chunk if generating else 2 * self.chunk)
        if self.scheduler.running:
            assert batch, "requests are running, but none of them gets on"
            first = self.scheduler.running[0]
            assert any(sequence is first for sequence, _ in batch), "the oldest request stands still"

    def compute(self, sequence, count):
        who = sequence.tenant, sequence.row.key
        assert self.first_key.setdefault(sequence.id, sequence.row.key) == sequence.row.key, "changed its adapter"
        for position in range(sequence.num_computed + count):
            place = sequence.pages[position // PAGE], position % PAGE
            expected = who, tuple(sequence.token_ids[: position + 1])
            if position < sequence.num_computed:
                assert self.content[place] == expected, f"position {position} is attended to, but holds something else"
            else:
                self.content[place] = expected

    @invariant()
    def nothing_is_lost_or_doubled(self):
        if not hasattr(self, "scheduler"):
            return
        scheduler, cache = self.scheduler, self.scheduler.cache
        assert len(scheduler.running) <= self.max_batch
        everywhere = [*scheduler.running, *scheduler.waiting]
        assert {sequence.id for sequence in everywhere} == {sequence.id for sequence in self.live}
        assert len(everywhere) == len(self.live)
        users: dict[int, int] = {}
        for page in itertools.chain.from_iterable(sequence.pages for sequence in everywhere):
            users[page] = users.get(page, 0) + 1
        assert [users.get(page, 0) for page in range(self.pages)] == cache._users
        assert cache.num_free == self.pages - len(users)
        for sequence in everywhere:
            if sequence in scheduler.running:
                assert sequence.row is not None
                assert len(sequence.pages) * PAGE >= sequence.num_computed
            else:
                assert sequence.pages == []
                assert sequence.num_computed == 0
                assert sequence.row is None or sequence.id in self.admitted, (
                    "it waits with a row that it never ran with"
                )
        held: dict[str, int] = {}
        for sequence in everywhere:
            if sequence.row is not None and sequence.row.slot:
                held[sequence.row.key] = held.get(sequence.row.key, 0) + 1
        assert held == {key: count for key, count in self.rows.users.items() if count}

    def teardown(self):
        if not hasattr(self, "scheduler"):
            return
        for _ in range(4000):
            if not self.live:
                break
            self.one_step()
        assert not self.live, f"{len(self.live)} requests never end"
        assert self.scheduler.cache.num_free == self.pages
        assert not any(self.rows.users.values())


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, report_multiple_bugs=False
)


# ---- the rules one by one ---------------------------------------------------------------------------------------


def test_first_come_first_served():
    scheduler, _ = make(max_batch=2)
    sequences = [request(range(5), max_tokens=3) for _ in range(5)]
    for sequence in sequences:
        scheduler.submit(sequence)
    step(scheduler)
    assert scheduler.running == sequences[:2]
    step(scheduler)
    step(scheduler)
    step(scheduler)
    assert scheduler.running == sequences[2:4]
    finish_all(scheduler)


def test_queue_is_bounded():
    scheduler, _ = make(max_waiting=2)
    for _ in range(2):
        scheduler.submit(request([1]))
    with pytest.raises(QueueFull, match="2 requests are waiting, at most 2 may; try again later"):
        scheduler.submit(request([1]))
    step(scheduler)
    scheduler.submit(request([1]))


def test_long_prompts_do_not_stall_others():
    scheduler, _ = make(chunk=32, burst=100)
    short, long = request(range(4), max_tokens=50), request(range(300))
    scheduler.submit(short)
    step(scheduler)
    scheduler.submit(long)
    for count in range(9):
        assert step(scheduler) == [(short, 1), (long, 32)], f"step {count}"
    assert step(scheduler) == [(short, 1), (long, 12)]
    assert step(scheduler) == [(short, 1), (long, 1)]


def test_prompts_alone_take_larger_steps():
    scheduler, _ = make(chunk=32, burst=100)
    one, other = request(range(150)), request(range(200, 260))
    scheduler.submit(one)
    scheduler.submit(other)
    assert step(scheduler) == [(one, 100)]
    assert step(scheduler) == [(one, 50), (other, 50)]
    assert step(scheduler) == [(one, 1), (other, 10)]


def test_youngest_gives_way_when_pages_run_out_and_keeps_its_words():
    scheduler, _ = make(pages=5)
    old, young = request(range(30), max_tokens=40), request(range(100, 130), "a", max_tokens=10)
    scheduler.submit(old)
    scheduler.submit(young)
    until(scheduler, lambda: young.num_generated and young in scheduler.waiting)
    assert scheduler.running == [old]
    assert list(scheduler.waiting) == [young]
    words = young.token_ids[30:]
    assert len(words) == 3
    finish_all(scheduler)
    assert young.token_ids[30:33] == words
    assert young.num_generated == 10
    assert old.num_generated == 40


def test_preempted_request_goes_before_those_that_came_later():
    scheduler, _ = make(pages=5, max_batch=2)
    old, young, late = request(range(30), max_tokens=40), request(range(100, 130), max_tokens=10), request([1])
    for sequence in (old, young, late):
        scheduler.submit(sequence)
    until(scheduler, lambda: young.num_generated and young in scheduler.waiting)
    assert list(scheduler.waiting)[0] is young


def test_same_beginning_is_computed_once():
    scheduler, _ = make()
    first, second = (request([*range(50), last], "a") for last in (98, 99))
    scheduler.submit(first)
    step(scheduler)
    scheduler.submit(second)
    assert step(scheduler) == [(first, 1), (second, 3)]
    assert second.num_cached == 48
    assert second.pages[:3] == first.pages[:3]
    assert second.pages[3] != first.pages[3]


def test_beginning_outlives_its_request():
    scheduler, _ = make()
    scheduler.submit(request(range(50), "a", max_tokens=2))
    finish_all(scheduler)
    again = request(range(50), "a")
    scheduler.submit(again)
    assert step(scheduler) == [(again, 2)]


def test_a_single_token_is_enough_to_leave_the_beginning():
    """Such as a classifier's requests, which all begin with the same instructions."""
    scheduler, _ = make()
    scheduler.submit(request(range(50), max_tokens=1))
    finish_all(scheduler)
    again = request(range(50), max_tokens=1)
    scheduler.submit(again)
    assert step(scheduler) == [(again, 2)]


@pytest.mark.parametrize(
    "other",
    [{"adapter": "b"}, {"adapter": None}, {"adapter": "a", "tenant": "t"}, {"adapter": "a", "prompt_logprobs": 1}],
)
def test_beginnings_are_shared_within_one_adapter_and_tenant_only(other):
    scheduler, _ = make()
    scheduler.submit(request(range(50), "a"))
    step(scheduler)
    sequence = request(range(50), **other)
    scheduler.submit(sequence)
    step(scheduler)
    assert sequence.num_cached == 0


def test_beginnings_are_shared_within_one_version_only():
    scheduler, rows = make()
    scheduler.submit(request(range(50), "a"))
    step(scheduler)
    rows.version["a"] += 1
    sequence = request(range(50), "a")
    scheduler.submit(sequence)
    step(scheduler)
    assert sequence.num_cached == 0


def test_the_last_token_is_always_computed():
    """Its logits are what the request wants."""
    scheduler, _ = make()
    scheduler.submit(request(range(48)))
    step(scheduler)
    again = request(range(48))
    scheduler.submit(again)
    assert step(scheduler)[1] == (again, 16)


def test_generated_text_is_a_beginning_too():
    scheduler, _ = make()
    first = request(range(20), max_tokens=30)
    scheduler.submit(first)
    finish_all(scheduler)
    following = request([*first.token_ids, 7])
    scheduler.submit(following)
    step(scheduler)
    assert following.num_cached == 48


def test_more_adapters_than_slots_wait_and_others_pass():
    scheduler, _ = make(slots=1)
    one, other, same = request([1], "a", max_tokens=4), request([2], "b"), request([3], "a", max_tokens=4)
    for sequence in (one, other, same):
        scheduler.submit(sequence)
    assert [sequence for sequence, _ in step(scheduler)] == [one, same]
    finish_all(scheduler)
    assert other.num_generated == 8


def test_a_request_is_not_passed_for_ever():
    scheduler, _ = make(slots=1, max_batch=2)
    blocked = request([2], "b", max_tokens=1)
    scheduler.submit(request([1], "a", max_tokens=3))
    step(scheduler)
    scheduler.submit(blocked)
    for count in range(500):
        if not blocked.remaining or blocked.num_generated:
            break
        scheduler.submit(request([count], "a", max_tokens=3))  # a stream of requests for the adapter in the slot
        step(scheduler)
    else:
        raise AssertionError("others passed 500 times")


def test_unreadable_adapter_is_that_requests_trouble_alone():
    scheduler, _ = make()
    bad, good = request([1], "bad"), request([2], "a")
    scheduler.submit(bad)
    scheduler.submit(good)
    assert [sequence for sequence, _ in step(scheduler)] == [good]
    assert [(sequence, str(error)) for sequence, error in scheduler.failed] == [(bad, "bad: cannot be read")]
    assert bad not in scheduler.waiting


@pytest.mark.parametrize("steps", range(4))
def test_cancelling_frees_everything_within_a_step(steps):
    scheduler, rows = make(pages=8, slots=1, max_batch=1, chunk=16, burst=16)
    sequence, following = request(range(40), "a"), request(range(100), "b")
    scheduler.submit(sequence)
    scheduler.submit(following)
    for _ in range(steps):
        step(scheduler)
    scheduler.finish(sequence)
    assert scheduler.cache.num_free == 8
    assert not any(rows.users.values())
    assert step(scheduler)[0][0] is following
    scheduler.finish(sequence)
    assert following in scheduler.running
