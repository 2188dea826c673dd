"""The queue: bounded, fair over tenants, first come first served within one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roadkit.errors import QueueFull
from roadkit.server.backends.queue import FairQueue

TENANTS = ("a", "b", "c")


def test_tenants_take_turns():
    queue = FairQueue(max_waiting=100, max_waiting_per_tenant=100)
    for i in range(6):
        queue.put("flood", f"f{i}")
    queue.put("other", "o0")
    queue.put("other", "o1")
    assert [queue.pop() for _ in range(8)] == ["f0", "o0", "f1", "o1", "f2", "f3", "f4", "f5"]


def test_who_runs_least_goes_first():
    queue = FairQueue(max_waiting=100, max_waiting_per_tenant=100)
    for i in range(5):
        queue.put("a", i)
    assert [queue.pop() for _ in range(3)] == [0, 1, 2]
    queue.put("b", "b0")
    queue.put("b", "b1")
    queue.put("b", "b2")
    assert [queue.pop() for _ in range(3)] == ["b0", "b1", "b2"]


def test_bounds():
    queue = FairQueue(max_waiting=3, max_waiting_per_tenant=2)
    queue.put("a", 1)
    queue.put("a", 2)
    with pytest.raises(QueueFull, match="of your requests"):
        queue.put("a", 3)
    queue.put("b", 1)
    with pytest.raises(QueueFull, match="3 requests are waiting"):
        queue.put("c", 1)


@given(st.lists(st.tuples(st.sampled_from(["put", "pop", "done", "remove"]), st.sampled_from(TENANTS)), max_size=60))
def test_it_behaves_as_its_plain_model(actions):
    queue = FairQueue(max_waiting=8, max_waiting_per_tenant=4)
    waiting: dict[str, list[int]] = {tenant: [] for tenant in TENANTS}
    running: dict[str, int] = dict.fromkeys(TENANTS, 0)
    owner: dict[int, str] = {}
    for number, (action, tenant) in enumerate(actions):
        if action == "put":
            fits = sum(map(len, waiting.values())) < 8 and len(waiting[tenant]) < 4
            try:
                queue.put(tenant, number)
            except QueueFull:
                assert not fits
            else:
                assert fits
                waiting[tenant].append(number)
                owner[number] = tenant
        elif action == "pop":
            item = queue.pop()
            candidates = [name for name in TENANTS if waiting[name]]
            if item is None:
                assert not candidates
                continue
            name = owner[item]
            assert waiting[name].pop(0) == item  # first come, first served
            assert running[name] == min(running[other] for other in candidates)
            running[name] += 1
        elif action == "done" and running[tenant]:
            running[tenant] -= 1
            queue.done(tenant)
        elif action == "remove":
            item = waiting[tenant][0] if waiting[tenant] else -1
            assert queue.remove(tenant, item) == bool(waiting[tenant])
            waiting[tenant] = waiting[tenant][1:]
        assert len(queue) == sum(map(len, waiting.values()))
