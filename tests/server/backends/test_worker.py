"""The thread that owns a model hands its answers to the event loop, and waits for it no longer than it was told."""

import asyncio
import threading
import time

from roadkit.server.backends.worker import Worker


def answered(wait: float, busy: float = 0.0) -> tuple[list[str], list[str]]:
    """What had run when `answer` returned, and at the end; the loop is busy for so many seconds first."""
    seen: list[str] = []
    at_return: list[str] = []

    async def main() -> None:
        woken = asyncio.get_running_loop().create_future()
        blocked, returned = threading.Event(), asyncio.Event()

        async def reader() -> None:
            await woken
            seen.append("woken")

        def run() -> None:
            blocked.wait()
            worker.answer(lambda: (seen.append("called"), woken.set_result(None))[0], wait=wait)
            at_return.extend(seen)
            worker.answer(returned.set)

        worker = Worker("test", run)
        task = asyncio.create_task(reader())
        worker.start()
        await asyncio.sleep(0)
        blocked.set()
        time.sleep(busy)
        await task
        await returned.wait()

    asyncio.run(main())
    return at_return, seen


def test_waits_until_what_it_woke_has_run():
    at_return, seen = answered(wait=30.0)
    assert at_return == seen == ["called", "woken"]


def test_a_busy_loop_does_not_hold_it_longer():
    at_return, seen = answered(wait=0.01, busy=1.0)
    assert at_return == [] and seen == ["called", "woken"]


def test_without_a_loop_nothing_waits():
    Worker("test", lambda: None).answer(lambda: None, wait=30.0)
