"""The wheel, installed into an empty environment outside the checkout, does what the checkout does.

The environment borrows everything but roadkit from the one that the tests run in.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import sysconfig
import time
import urllib.request
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "roadkit"
TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"

Command = Callable[..., str]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built by the project's own back end, without network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_llama, tiny_tokenizer) -> Path:
    """A folder with a tiny chat model and nothing else."""
    folder = tmp_path_factory.mktemp("place")
    tiny_llama(vocab_size=384, num_key_value_heads=4).save_pretrained(folder / "tiny")
    tiny_tokenizer.save_pretrained(folder / "tiny")
    (folder / "tiny" / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory, wheel) -> Path:
    """The folder with the commands of an environment that holds the wheel."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-q", "--no-index", "--no-deps", str(wheel)], check=True, capture_output=True)
    # Only now, so that pip did not find the roadkit that the tests run on.
    asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


@pytest.fixture
def variables() -> dict[str, str]:
    """Without PYTHONPATH, which would lead back to the checkout."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


@pytest.fixture
def call(environment, place, variables) -> Command:
    """`call("roadkit", "generate", …)` in the folder of the model; → what it printed."""

    def run(command: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(environment / command), *arguments],
            cwd=place,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    info = {name for name in names if name.partition("/")[0].endswith(".dist-info")}
    sources = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert names - info == {str(path.relative_to(PACKAGE.parent)) for path in sources}
    assert {path.rpartition("/")[2] for path in info} == {"METADATA", "WHEEL", "RECORD", "LICENSE", "entry_points.txt"}
    assert not [name for name in names if {"paper", "tests", "bench"} & set(Path(name).parts)]
    needed = ["py.typed", "kernels/c/inference.h", "kernels/c/training.c", "server/studio/static/index.html"]
    needed += [f"data/demo/{name}.jsonl" for name in ("brief", "formal", "json", "pirate")]
    assert {f"roadkit/{name}" for name in needed} <= names


def test_installed_package_is_not_the_checkout(call, environment):
    origin = call("python", "-c", "import roadkit; print(roadkit.__file__)").strip()
    assert Path(origin).is_relative_to(environment.parent)
    assert call("python", "-c", "import importlib.util; print(importlib.util.find_spec('paper'))").strip() == "None"
    assert "generate" in call("roadkit", "--help")


@pytest.mark.slow
def test_demo_generate_and_serve_from_the_wheel(call, environment, place, variables):
    demo = call("roadkit", "demo", "--model", "tiny", "--question", "Why?", "--json")
    facts = json.loads(demo.splitlines()[-1])
    assert facts["trained"] == ["json", "pirate", "formal", "brief"]
    assert set(facts["answers"]) == {"Why?"}

    answers = call(
        "roadkit", "generate", "Hello", "--model", "tiny", "--adapters", "adapters", "--adapter", "formal*0.5",
        "--max-tokens", "4", "--json",
    )  # fmt: skip
    assert "formal*0.5" in answers

    command = [str(environment / "roadkit"), "serve", "tiny", "--adapters", "adapters", "--port", "0"]
    log = place / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, cwd=place, env=variables, stdout=out, stderr=subprocess.STDOUT)
    try:
        address = _until(lambda: next(line for line in log.read_text().splitlines() if line.startswith("serving ")))
        url = address.split(" on ")[1].removesuffix("/v1")
        assert _until(lambda: urllib.request.urlopen(f"{url}/health", timeout=5).status) == 200
        assert b"roadkit" in urllib.request.urlopen(f"{url}/studio", timeout=5).read()
    finally:
        server.terminate()
        assert server.wait(timeout=60) == 0, log.read_text()


@pytest.mark.slow
def test_train_from_the_wheel(call, place):
    rows = [{"prompt": f"What is {i}?", "completion": "A number."} for i in range(8)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "recipe.yaml").write_text("model: tiny\ndata: rows.jsonl\noutput: trained\nmax_steps: 2\n")
    call("roadkit", "train", "recipe.yaml", "batch_size=4", "--json")
    assert "road_1" in call("roadkit", "adapter", "show", "trained")


def _until(look: Callable, seconds: float = 90):
    """What `look` returns once it raises no more."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, StopIteration):
            return look()
        time.sleep(0.1)
    return look()
