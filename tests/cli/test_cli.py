"""The command line: what a user types, what they read, and the exit code."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from roadkit.adapter import Adapter
from roadkit.cli import app, main
from roadkit.cli.options import named_adapters
from roadkit.errors import RoadkitError


@pytest.fixture
def runner():
    return CliRunner()


@pytest.fixture
def folder(tmp_path):
    """A folder of two adapters, `formal` and `german`."""
    for i, name in enumerate(("formal", "german")):
        torch.manual_seed(i)
        parameters = {"model.layers.0.self_attn.q_proj": (0.2 * torch.randn(32), 1 + 0.1 * torch.randn(32))}
        Adapter.from_parameters(parameters, variant="road_1", group_size=8).save(tmp_path / "adapters" / name)
    return tmp_path / "adapters"


def test_help_names_every_verb_quickly():
    start = time.perf_counter()
    shown = subprocess.run([sys.executable, "-m", "roadkit", "--help"], capture_output=True, text=True, check=True)
    taken = time.perf_counter() - start
    for verb in ("demo", "train", "eval", "generate", "bench", "adapter"):
        assert verb in shown.stdout
    assert "torch" not in imported_by("import roadkit.cli"), f"--help imports torch and took {taken:.1f} s"


def test_importing_roadkit_does_not_import_torch():
    assert "torch" not in imported_by("import roadkit")


def imported_by(statement: str) -> list[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_show_describes_an_adapter(runner, folder):
    result = runner.invoke(app, ["adapter", "show", str(folder / "formal"), "--json"])
    facts = json.loads(result.stdout)
    assert facts["variant"] == "road_1" and facts["parameters"] == 64
    expected = Adapter.load(folder / "formal").parameters["model.layers.0.self_attn.q_proj"][0]
    assert facts["modules"]["q_proj"]["mean_angle"] == pytest.approx(float(expected.abs().rad2deg().mean()), rel=1e-4)
    assert "q_proj" in runner.invoke(app, ["adapter", "show", str(folder / "formal")]).stdout


def test_compose_writes_what_the_expression_means(runner, folder, tmp_path):
    target = tmp_path / "both"
    arguments = ["adapter", "compose", "formal*0.5 + german", "--adapters", str(folder), "-o", str(target)]
    assert runner.invoke(app, arguments).exit_code == 0
    formal, german = Adapter.load(folder / "formal"), Adapter.load(folder / "german")
    expected, saved = (formal**0.5).then(german), Adapter.load(target)
    torch.testing.assert_close(saved.a, expected.a)
    torch.testing.assert_close(saved.b, expected.b)


def test_convert_to_the_smallest_variant_keeps_the_function(runner, tmp_path):
    parameters = {"layer": (0.3 * torch.randn(32), 1 + 0.1 * torch.randn(32))}
    original = Adapter.from_parameters(parameters, variant="road_4", group_size=8)
    original.save(tmp_path / "wide")
    result = runner.invoke(app, ["adapter", "convert", str(tmp_path / "wide"), "-o", str(tmp_path / "small"), "--json"])
    assert json.loads(result.stdout)["variant"] == "road_2"
    torch.testing.assert_close(Adapter.load(tmp_path / "small").b, original.b)


def test_merge_writes_a_model_that_transformers_loads(runner, tmp_path, tiny_llama, random_adapter, monkeypatch):
    from transformers import AutoModelForCausalLM

    from roadkit import models, modules

    model = tiny_llama()
    random_adapter(model).save(tmp_path / "adapter")
    adapter = Adapter.load(tmp_path / "adapter")
    ids = torch.arange(3, 12).unsqueeze(0)
    with torch.no_grad(), modules.attached(model, adapter):
        expected = model(ids).logits

    class Tokenizer:
        def save_pretrained(self, folder):
            (folder / "tokenizer.json").write_text("{}")

    monkeypatch.setattr(models, "load_causal", lambda name, dtype: tiny_llama())
    monkeypatch.setattr(models, "load_processor", lambda name: Tokenizer())
    arguments = ["adapter", "merge", str(tmp_path / "adapter"), "--model", "tiny", "-o", str(tmp_path / "merged")]
    assert runner.invoke(app, arguments).exit_code == 0
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)


def test_a_merged_model_is_the_base_in_type_and_tokenizer(runner, tmp_path, tiny_llama, tiny_tokenizer, random_adapter):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tiny_llama().to(torch.bfloat16).save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    published = AutoTokenizer.from_pretrained(tmp_path / "base")
    random_adapter(tiny_llama()).save(tmp_path / "adapter")
    arguments = ["adapter", "merge", str(tmp_path / "adapter"), "--model", str(tmp_path / "base")]
    for options, dtype in (([], torch.bfloat16), (["--dtype", "float32"], torch.float32)):
        assert runner.invoke(app, [*arguments, *options, "-o", str(tmp_path / "merged")]).exit_code == 0
        assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").dtype == dtype
        assert AutoTokenizer.from_pretrained(tmp_path / "merged").pad_token == published.pad_token
    (tmp_path / "merged" / "notes.txt").write_text("mine")
    refused = runner.invoke(app, [*arguments, "-o", str(tmp_path / "merged")]).exception
    assert isinstance(refused, RoadkitError) and "notes.txt" in str(refused)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["adapter", "verify", "missing"], "'missing': no such directory"),
        (["adapter", "compose", "formal + germn", "--adapters", "FOLDER", "-o", "out"], "did you mean 'german'?"),
        (["bench", "kernl"], "did you mean 'kernel'?"),
        (
            ["bench", "merge", "--device", "cuda"],
            "bench merge measures the CPU; --device cuda is for mixed and figure4",
        ),
        (["bench", "mixed", "--device", "gpu"], "there is no device 'gpu' here"),
        (["generate", "hi", "--device", "gpu"], "there is no device 'gpu' here"),
        (["generate", "hi", "--adapters", "nowhere"], "write name=path"),
    ],
)
def test_mistakes_end_with_one_line_and_exit_code_1(arguments, message, folder, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["roadkit", *(str(folder) if part == "FOLDER" else part for part in arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = capsys.readouterr().err
    assert stopped.value.code == 1
    assert shown.startswith("error: ") and message in shown and "Traceback" not in shown


def test_adapters_are_named_by_folder_or_by_hand(folder):
    both = {"formal": str(folder / "formal"), "german": str(folder / "german")}
    assert named_adapters([str(folder)]) == both
    assert named_adapters([str(folder / "formal")]) == {"formal": both["formal"]}
    assert named_adapters([f"polite={folder}/formal"]) == {"polite": both["formal"]}


def test_two_adapters_of_one_name_are_refused(folder, tmp_path):
    (tmp_path / "other").mkdir()
    (folder / "german").rename(tmp_path / "other" / "formal")
    with pytest.raises(RoadkitError, match="two adapters are called 'formal'"):
        named_adapters([str(folder), str(tmp_path / "other")])


@pytest.mark.model
def test_generate_answers_every_prompt_with_every_adapter(runner):
    arguments = ["generate", "The capital of France is", "--raw", "--max-tokens", "3", "--adapter", "base", "--json"]
    answers = json.loads(runner.invoke(app, arguments).stdout.splitlines()[-1])["answers"]
    assert [answer["adapter"] for answer in answers] == ["base"]
    assert "Paris" in answers[0]["text"]


def test_the_demo_asks_no_hub_for_adapters_that_are_not_there(tmp_path, monkeypatch):
    from roadkit import demo

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "load", lambda path: pytest.fail(f"{path} was looked for beyond this machine"))
    assert not demo._usable(Path("adapters/json"))
