"""`roadkit serve --engine …`: what goes with which engine. Serving on vLLM itself is tested in tests/vllm."""

import logging

import pytest
from typer.testing import CliRunner

from roadkit.cli import app
from roadkit.engine.options import VllmOptions
from roadkit.errors import RoadkitError


@pytest.fixture(autouse=True)
def _logging_as_before():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "vlm"], "--engine 'vlm': there are embedded and vllm"),
        (["--tensor-parallel-size", "2"], "tensor_parallel_size is an option of --engine vllm"),
        (["--group-size", "2"], "group_sizes is an option of --engine vllm"),
        (["--engine", "vllm", "--num-labels", "2"], "--num-labels is for encoders"),
        (["--engine", "vllm", "--device", "cpu"], "--device cpu: vLLM computes where it was built for"),
        (["--device", "gpu"], "there is no device 'gpu' here"),
        (["--engine", "vllm", "--engine-options", "[1]"], "must be an object such as"),
        (["--engine", "vllm", "--engine-options", "{"], "--engine-options is no JSON"),
    ],
)
def test_options_of_the_other_engine_are_refused(tiny_folder, options, message):
    with pytest.raises(RoadkitError, match=message):
        CliRunner().invoke(app, ["serve", str(tiny_folder), *options], catch_exceptions=False)


def test_encoders_and_int8_are_refused_before_vllm_starts(tiny_folder, monkeypatch):
    from roadkit import models
    from roadkit.server.backends import opening

    monkeypatch.setattr(opening, "find_spec", lambda name: object())
    with pytest.raises(RoadkitError, match="vLLM reads quantised checkpoints"):
        opening.open_backend(str(tiny_folder), VllmOptions(weights="int8"))
    monkeypatch.setattr(models, "is_encoder", lambda name: True)
    with pytest.raises(RoadkitError, match="is an encoder, and --engine vllm generates text"):
        opening.open_backend(str(tiny_folder), VllmOptions())
