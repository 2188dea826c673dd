"""PEFT directories there and back, what is refused in them, and writers that are killed."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from roadkit import modules, store
from roadkit.adapter import Adapter, Base
from roadkit.errors import AdapterError
from roadkit.rotation import VARIANTS
from tests.conftest import random_parameters

CONFIG, WEIGHTS = store.CONFIG, store.WEIGHTS
LAYERS = {"model.layers.0.self_attn.q_proj": 24, "model.layers.0.mlp.up_proj": 36}
SOURCE = str(Path(store.__file__).parents[1])


def adapter(variant="road_1", group_size=4, *, seed=0, dtype=torch.float32, **options) -> Adapter:
    parameters = {name: random_parameters(variant, width, group_size, seed + width) for name, width in LAYERS.items()}
    parameters = {name: (theta.to(dtype), alpha.to(dtype)) for name, (theta, alpha) in parameters.items()}
    return Adapter.from_parameters(parameters, variant=variant, group_size=group_size, **options)


def files(**changes) -> tuple[bytes, bytes]:
    """The two files of a valid adapter, with other settings."""
    config, weights = store.serialize(adapter())
    return json.dumps(json.loads(config) | changes).encode(), weights


def tensors() -> dict[str, torch.Tensor]:
    found = {}
    for name, (theta, alpha) in adapter().parameters.items():
        found[f"base_model.model.{name}.road_theta"], found[f"base_model.model.{name}.road_alpha"] = theta, alpha
    return found


Q, UP = (f"base_model.model.{name}" for name in LAYERS)


# ---- there and back ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_and_loaded_is_the_same_bit_for_bit(tmp_path, variant, dtype):
    for group_size in (2, 4, 12):
        original = adapter(variant, group_size, dtype=dtype)
        original.save(tmp_path / "saved")
        loaded = Adapter.load(tmp_path / "saved")
        assert loaded == original
        assert loaded.variant == variant
        assert loaded.layout == original.layout
        assert torch.equal(loaded.a, original.a)
        assert torch.equal(loaded.b, original.b)
        for name, pair in original.parameters.items():
            for one, other in zip(pair, loaded.parameters[name], strict=True):
                assert one.dtype == other.dtype == dtype
                assert torch.equal(one, other)


def test_file_holds_peft_names_and_settings(tmp_path):
    adapter("road_2", 12, base=Base("HuggingFaceTB/SmolLM2", "0123")).save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / CONFIG).read_text())
    assert config["peft_type"] == "ROAD"
    assert config["variant"] == "road_2"
    assert config["group_size"] == 12
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2"
    assert config["target_modules"] == sorted(LAYERS)
    assert set(load_file(tmp_path / "saved" / WEIGHTS)) == set(tensors())


def test_base_model_travels_along(tmp_path):
    base = Base("HuggingFaceTB/SmolLM2", "0123456789abcdef")
    adapter(base=base).save(tmp_path / "saved")
    assert Adapter.load(tmp_path / "saved").base == base


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_heads_travel_along(tmp_path, dtype):
    heads = {
        "score": {"weight": torch.randn(3, 8).to(dtype), "bias": torch.zeros(3).to(dtype)},
        "pooler": {"dense.weight": torch.ones(2, 2), "dense.norm.weight": torch.ones(())},
    }
    adapter(heads=heads).save(tmp_path / "saved")
    loaded = Adapter.load(tmp_path / "saved").heads
    assert loaded.keys() == heads.keys()
    for module, saved in heads.items():
        assert loaded[module].keys() == saved.keys()
        for name, tensor in saved.items():
            assert loaded[module][name].dtype == tensor.dtype
            assert torch.equal(loaded[module][name], tensor)


def test_tied_heads_are_saved(tmp_path):
    shared = torch.randn(4, 8)
    adapter(heads={"lm_head": {"weight": shared}, "model.embed_tokens": {"weight": shared}}).save(tmp_path / "saved")
    loaded = Adapter.load(tmp_path / "saved").heads
    assert torch.equal(loaded["lm_head"]["weight"], loaded["model.embed_tokens"]["weight"])


@settings(max_examples=10)
@given(st.sampled_from(VARIANTS), st.sampled_from(VARIANTS), st.integers(0, 100))
def test_computed_adapters_are_saved_within_a_millionth(one, other, seed):
    computed = adapter(one, seed=seed).then(adapter(other, seed=seed + 1))
    loaded = store.parse(*store.serialize(computed))
    assert loaded.variant == ("road_1" if one == other == "road_1" else "road_2")
    for ours, theirs in ((computed.a, loaded.a), (computed.b, loaded.b)):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6 * float(ours.abs().max().clamp_min(1)))


def test_layers_of_different_group_sizes_cannot_be_saved(tmp_path):
    other = Adapter.from_parameters({"extra": random_parameters("road_1", 8, 2)}, variant="road_1", group_size=2)
    with pytest.raises(AdapterError, match=r"one group_size an adapter, this one has \[2, 4\]"):
        adapter().then(other).save(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


# ---- PEFT -------------------------------------------------------------------------------------------------------


@pytest.fixture
def peft(monkeypatch):
    """PEFT with its own layer, whatever another test enabled."""
    import peft
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.road import RoadModel

    monkeypatch.setitem(PEFT_TYPE_TO_TUNER_MAPPING, peft.PeftType.ROAD, RoadModel)
    return peft


IDS = torch.tensor([[5, 9, 200, 31, 7, 7, 64]])


@pytest.mark.parametrize(("variant", "group_size"), [*itertools.product(VARIANTS, (2, 32)), ("road_1", 64)])
def test_peft_and_roadkit_read_each_others_directories(tmp_path, tiny_qwen, peft, close, variant, group_size):
    targets = ["q_proj", "down_proj"]
    config = peft.RoadConfig(variant=variant, group_size=group_size, target_modules=targets, init_weights=False)
    theirs = peft.get_peft_model(tiny_qwen(), config).eval()
    theirs.save_pretrained(tmp_path / "peft")
    expected = theirs(IDS).logits

    ours, plain = Adapter.load(tmp_path / "peft"), tiny_qwen()
    assert (expected - plain(IDS).logits).abs().max() > 0.1, "the adapter does nothing, so this test shows nothing"
    with modules.attached(plain, ours):
        close(plain(IDS).logits, expected)

    ours.save(tmp_path / "roadkit")
    again = peft.PeftModel.from_pretrained(tiny_qwen(), tmp_path / "roadkit").eval()
    assert torch.equal(again(IDS).logits, expected)
    computed = ours.then(ours**2)
    computed.save(tmp_path / "computed")
    again = peft.PeftModel.from_pretrained(tiny_qwen(), tmp_path / "computed").eval()
    with modules.attached(plain, computed):
        torch.testing.assert_close(again(IDS).logits, plain(IDS).logits, rtol=1e-4, atol=1e-4)


def test_peft_classifiers_keep_their_heads(tmp_path, tiny_bert, peft, close):
    config = peft.RoadConfig(task_type="SEQ_CLS", group_size=16, target_modules=["query", "value"], init_weights=False)
    theirs = peft.get_peft_model(tiny_bert(num_labels=3), config).eval()
    torch.nn.init.normal_(theirs.base_model.model.classifier.modules_to_save["default"].weight)
    theirs.save_pretrained(tmp_path / "peft")
    ours, plain = Adapter.load(tmp_path / "peft"), tiny_bert(num_labels=3)
    assert set(ours.heads) == {"classifier"}
    with modules.attached(plain, ours):
        close(plain(IDS).logits, theirs(IDS).logits)
    ours.save(tmp_path / "roadkit")
    again = peft.PeftModel.from_pretrained(tiny_bert(num_labels=3), tmp_path / "roadkit").eval()
    assert torch.equal(again(IDS).logits, theirs(IDS).logits)


# ---- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LORA"}, "peft_type is 'LORA', not 'ROAD': only RoAd adapters can be rotated"),
        ({"peft_type": None}, "peft_type is None"),
        ({"variant": "road_3"}, "variant 'road_3' is none of road_1, road_2, road_4; did you mean 'road_"),
        ({"variant": ["road_1"]}, "variant"),
        ({"group_size": 3}, "group_size must be an even number of at least 2, got 3"),
        ({"group_size": 0}, "group_size must be an even number of at least 2, got 0"),
        ({"group_size": "4"}, "group_size must be an even number of at least 2, got '4'"),
        ({"group_size": True}, "group_size must be an even number of at least 2, got True"),
        ({"group_size": 10**30}, "is not a multiple of group_size"),
        ({"group_size": 8}, "up_proj: width 36 is not a multiple of group_size 8; group_size=4 would fit"),
        ({"base_model_name_or_path": 7}, "base_model_name_or_path must be text, got 7"),
        ({"modules_to_save": "score"}, "modules_to_save must be a list of names, got 'score'"),
        ({"modules_to_save": [1]}, "modules_to_save must be a list of names"),
    ],
)
def test_settings_that_make_no_adapter_are_refused(changes, message):
    with pytest.raises(AdapterError, match=re.escape(message)):
        store.parse(*files(**changes))


@pytest.mark.parametrize("config", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 10000, b"{}"])
def test_config_that_is_no_settings_is_refused(config):
    with pytest.raises(AdapterError, match="adapter_config.json|peft_type"):
        store.parse(config, files()[1])


def test_huge_config_is_refused():
    with pytest.raises(AdapterError, match=r"adapter_config.json has \d+ bytes, at most 1048576"):
        store.parse(files(comment="x" * (1 << 20))[0], files()[1])


def test_every_problem_is_in_one_error():
    broken = tensors()
    del broken[f"{Q}.road_alpha"]
    broken[f"{UP}.road_theta"][3] = torch.nan
    broken[f"{UP}.road_theta"][5] = torch.inf
    broken["base_model.model.k.road_theta"] = torch.zeros(4)
    broken["base_model.model.k.road_alpha"] = torch.zeros(6)
    for leaf in ("road_theta", "road_alpha"):
        broken[f"base_model.model.v.{leaf}"], broken[f"base_model.model.o.{leaf}"] = torch.zeros(3, 2), torch.zeros(3)
    broken["base_model.model.i.road_theta"] = torch.zeros(4, dtype=torch.int32)
    broken["base_model.model.i.road_alpha"] = torch.ones(4, dtype=torch.int32)
    broken["base_model.model.x.lora_A"], broken["wte.road_theta"] = torch.zeros(2, 4).unbind()
    with pytest.raises(AdapterError) as caught:
        store.parse(files()[0], save(broken), origin="uploads/formal")
    for expected in (
        "uploads/formal: ",
        "model.layers.0.self_attn.q_proj: road_alpha is missing",
        "model.layers.0.mlp.up_proj.road_theta: 2 of 18 values are not finite",
        "k: road_theta [4] and road_alpha [6] must be equal, 1-D",
        "v: road_theta [3, 2] and road_alpha [3, 2] must be equal, 1-D",
        "o: width 6 is not a multiple of group_size 4; group_size=2 would fit",
        "i.road_theta: dtype torch.int32 is none of float32, float16, bfloat16, float64",
        "unexpected tensor 'base_model.model.x.lora_A': neither road_theta, road_alpha nor in modules_to_save",
        "unexpected tensor 'wte.road_theta': names start with 'base_model.model.'",
    ):
        assert expected in str(caught.value)


def test_many_problems_are_counted():
    many = {f"base_model.model.l{i}.road_theta": torch.zeros(4) for i in range(25)}
    with pytest.raises(AdapterError, match=r"\(and 15 more\)$"):
        store.parse(files()[0], save(many))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("leaf", ["road_theta", "road_alpha"])
def test_values_that_are_not_finite_are_refused(value, leaf):
    broken = tensors()
    broken[f"{Q}.{leaf}"][0] = value
    with pytest.raises(AdapterError, match=f"q_proj.{leaf}: 1 of 12 values are not finite"):
        store.parse(files()[0], save(broken))


def test_values_beyond_float32_are_refused(tmp_path):
    broken = {name: tensor.double() for name, tensor in tensors().items()}
    broken[f"{UP}.road_alpha"][2] = 1e300
    with pytest.raises(AdapterError, match="up_proj: the rotation is not finite in float32"):
        store.parse(files()[0], save(broken))
    large = {name: (theta, 1e30 * alpha) for name, (theta, alpha) in adapter().parameters.items()}
    with pytest.raises(AdapterError, match="cannot be saved: .*: the rotation is not finite"):
        (Adapter.from_parameters(large, variant="road_1", group_size=4) ** 2).save(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bool, torch.complex64])
def test_other_dtypes_are_refused(dtype):
    broken = tensors()
    broken[f"{Q}.road_theta"] = torch.zeros(12).to(dtype)
    with pytest.raises(AdapterError, match=f"q_proj.road_theta: dtype {dtype} is none of"):
        store.parse(files()[0], save(broken))


@pytest.mark.parametrize("name", ["..", "a..b", "a/b", "", "a.", ".a", "a b", "a\n", "é", "a.b\x00"])
def test_modules_with_odd_names_are_refused(name):
    broken = {
        f"base_model.model.{name}.road_theta": torch.zeros(4),
        f"base_model.model.{name}.road_alpha": torch.ones(4),
    }
    with pytest.raises(AdapterError, match="unexpected tensor"):
        store.parse(files()[0], save(broken))


def test_nothing_inside_is_refused():
    with pytest.raises(AdapterError, match="it holds no road_theta and road_alpha tensors"):
        store.parse(files()[0], save({}))


def test_non_finite_heads_are_refused():
    broken = tensors() | {"base_model.model.score.weight": torch.tensor([1.0, torch.nan])}
    with pytest.raises(AdapterError, match="score.weight: 1 of 2 values are not finite"):
        store.parse(files(modules_to_save=["score"])[0], save(broken))


def test_truncated_and_corrupt_weights_are_refused():
    config, weights = files()
    for cut in (0, 4, 8, 100, len(weights) // 2, len(weights) - 1):
        with pytest.raises(AdapterError, match=r"\(\d+ bytes\) cannot be read, it is truncated or corrupt"):
            store.parse(config, weights[:cut])
    with pytest.raises(AdapterError, match="truncated or corrupt"):
        store.parse(config, b"\xff" * 1000)


@settings(max_examples=150)
@given(st.data())
def test_damaged_bytes_give_an_adapter_or_an_adapter_error(data):
    config, weights = (bytearray(part) for part in files())
    for part in (config, weights):
        for _ in range(data.draw(st.integers(0, 3))):
            part[data.draw(st.integers(0, len(part) - 1))] = data.draw(st.integers(0, 255))
    try:
        loaded = store.parse(bytes(config), bytes(weights))
    except AdapterError:
        return
    assert loaded.a.isfinite().all()
    assert loaded.b.isfinite().all()


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("exploited",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_are_never_loaded(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        AdapterError, match="it is a pickle, which is never loaded" if protocol > 1 else "cannot be read"
    ):
        store.parse(files()[0], pickle.dumps(Exploit(), protocol))
    torch.save(tensors(), "adapter_model.bin")
    with pytest.raises(AdapterError, match="it is a pickle, which is never loaded"):
        store.parse(files()[0], Path("adapter_model.bin").read_bytes())
    Path(CONFIG).write_bytes(files()[0])
    with pytest.raises(
        AdapterError, match="adapter_model.safetensors is missing; adapter_model.bin is a pickle, which"
    ):
        Adapter.load(tmp_path)
    assert not Path("exploited").exists()


def test_regular_expressions_are_data(monkeypatch):
    """A pattern that would run for ages, and one that is malformed, are read as any other text."""

    def refuse(*_):
        raise AssertionError("a pattern from a file was compiled")

    for pattern in ("(a+)+$", "((((", ["q_proj", "*"], None):
        config, weights = files(target_modules=pattern, exclude_modules="(b+)+$", layers_pattern="((")
        with monkeypatch.context() as patch:
            for name in ("compile", "match", "search", "fullmatch"):
                patch.setattr(store.re, name, refuse)
            assert store.parse(config, weights) == adapter()


# ---- files ------------------------------------------------------------------------------------------------------


def test_replacing_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(
        AdapterError, match=r"holds other things \(notes.txt\), which would be deleted; name a new folder"
    ):
        adapter().save(tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]
    with pytest.raises(AdapterError, match=r"notes.txt: is a file; an adapter is saved as a directory"):
        adapter().save(tmp_path / "notes.txt")


def test_what_lies_beside_an_adapter_is_not_deleted(tmp_path, random_adapter, tiny_llama):
    adapter = random_adapter(tiny_llama())
    for name in ("README.md", "training.json"):  # of the training run before, which is replaced
        (tmp_path / name).write_text("old")
    adapter.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    (tmp_path / "optimizer.pt").write_text("hours")
    with pytest.raises(AdapterError, match=r"holds other things \(optimizer.pt\), which would be deleted"):
        adapter.save(tmp_path)
    assert (tmp_path / "optimizer.pt").read_text() == "hours" and Adapter.load(tmp_path) == adapter


def test_extra_files_are_saved_beside(tmp_path):
    store.save(adapter(), tmp_path / "saved", extra_files={"README.md": b"hello"})
    assert sorted(os.listdir(tmp_path / "saved")) == ["README.md", CONFIG, WEIGHTS]


SAVER = """
import itertools, sys
from roadkit import store
config, weights = [open(path, "rb").read() for path in sys.argv[2:]]
versions = [store.parse(config, weights)]
versions.append(versions[0] ** 2)
print("ready", flush=True)
for i in itertools.count():
    store.save(versions[i % 2], sys.argv[1])
"""


def test_killed_savers_leave_the_old_or_the_new(tmp_path):
    known = {adapter(), store.parse(*store.serialize(adapter() ** 2))}
    paths = [tmp_path / CONFIG, tmp_path / WEIGHTS]
    for path, content in zip(paths, files(), strict=True):
        path.write_bytes(content)
    adapter().save(tmp_path / "saved")
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    command = [sys.executable, "-c", SAVER, tmp_path / "saved", *paths]
    for delay in (0.01,):
        saver = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        assert saver.stdout is not None
        saver.stdout.readline()
        time.sleep(delay)
        for _ in range(20):  # readers beside the writer see whole versions too
            assert Adapter.load(tmp_path / "saved") in known
        saver.kill()
        saver.communicate()
        assert Adapter.load(tmp_path / "saved") in known
