"""Which backend is opened, and what goes with which. Serving on vLLM itself is tested in tests/vllm."""

import logging
from typing import Any

import pytest
from typer.testing import CliRunner

from roadkit import models
from roadkit.cli import app
from roadkit.engine.options import EngineOptions, VllmOptions
from roadkit.errors import RoadkitError
from roadkit.server.backends import choice


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
    monkeypatch.setattr(choice, "find_spec", lambda name: object())
    with pytest.raises(RoadkitError, match="vLLM reads quantised checkpoints"):
        choice.open_backend(str(tiny_folder), VllmOptions(weights="int8"))
    monkeypatch.setattr(models, "is_encoder", lambda name: True)
    with pytest.raises(RoadkitError, match="is an encoder, and --engine vllm generates text"):
        choice.open_backend(str(tiny_folder), VllmOptions())


def test_an_encoder_goes_where_there_is_a_gpu(tmp_path, tiny_bert, tiny_tokenizer, monkeypatch):
    tiny_bert(vocab_size=384).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(models, "best_device", lambda asked=None: asked or "meta")  # stands for a GPU
    for asked, device in ((None, "meta"), ("cpu", "cpu")):
        backend: Any = choice.open_backend(str(tmp_path), EngineOptions(), device=asked)
        assert backend.model.device.type == backend.bank.device.type == device
