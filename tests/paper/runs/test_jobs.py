"""Jobs are done once, and as long as the budget lasts; an experiment goes on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from paper.ledger import Ledger
from paper.runs.jobs import Job, run_jobs


def test_a_finished_run_is_not_run_again_and_a_budget_leaves_the_rest(ledger, monkeypatch):
    done, clock = [], [0.0]
    monkeypatch.setattr("os.times", lambda: (clock[0], 0.0, 0.0, 0.0, 0.0))

    def job(name):
        return Job(name, {"experiment": "x", "name": name}, 0, lambda: done.append(name) or {"value": 1})

    assert run_jobs([job("a"), job("b")], ledger) == 0
    assert run_jobs([job("a"), job("b"), job("c")], ledger) == 0
    assert done == ["a", "b", "c"]
    assert run_jobs([job("a"), job("d")], ledger, budget=0) == 1  # what is done costs nothing, what is not waits
    busy = Job("e", {"name": "e"}, 0, lambda: clock.append(clock.pop() + 50) or {"value": 1})
    assert run_jobs([busy, job("f")], ledger, budget=1.5) == 1  # the second would take as long as the first did
    assert done == ["a", "b", "c"]


@pytest.mark.slow
def test_an_experiment_goes_on_after_a_kill(bert, data, tmp_path):
    path = tmp_path / "ledger.jsonl"
    command = [
        sys.executable, "-m", "paper", "glue", "--model", bert, "--data", str(data), "--ledger", str(path),
        "--tasks", "sst2", "--methods", "head,road_1", "--rates", "2", "--epochs", "1", "--rows", "12", "--json",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < 1):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = path.read_bytes()
    with open(path, "ab") as file:
        file.write(b'{"key": "half a li')  # what a kill in the middle of a write leaves
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"ledger": str(path), "runs": 4, "left": 0}
    assert path.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    rows = Ledger(path).rows()
    assert len({row["key"] for row in rows}) == len(rows) == 4
