"""The command line: what a user types, what they read, and the exit code."""

import subprocess
import sys
import time

import pytest
import typer

import roadkit
from roadkit.cli import app, main


def test_help_names_every_verb_quickly():
    start = time.perf_counter()
    shown = subprocess.run([sys.executable, "-m", "roadkit", "--help"], capture_output=True, text=True, check=True)
    taken = time.perf_counter() - start
    for verb in ("demo", "train", "eval", "generate", "serve", "chat", "keys", "bench", "adapter", "plot"):
        assert verb in shown.stdout
    assert "torch" not in imported_by("import roadkit.cli"), f"--help imports torch and took {taken:.1f} s"


def test_version_is_printed(runner):
    result = runner.invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"roadkit {roadkit.__version__}\n")


def test_every_command_and_every_option_has_a_help_text():
    for words, command in commands(typer.main.get_command(app)):
        assert command.help, words
        unsaid = [parameter.name for parameter in command.params if not getattr(parameter, "help", None)]
        assert not unsaid, f"{' '.join(words)}: {unsaid}"


def commands(command, words=("roadkit",)):
    """A command and all below it, each with the words that call it."""
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))


def test_importing_roadkit_does_not_import_torch():
    assert "torch" not in imported_by("import roadkit")


def imported_by(statement: str) -> list[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


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
