"""The folder deploy/ of the server as a whole, checked by each format's own linter or schema, and against the command line it calls."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from roadkit.cli import app

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def run(tool: str, *arguments: str) -> subprocess.CompletedProcess:
    """A tool that pip put beside the interpreter."""
    command = [str(Path(sys.executable).parent / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "command",
    [
        ("hadolint", "Dockerfile"),
        ("kubernetes-validate", "--strict", "kubernetes.yaml"),
        ("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"),
    ],
)
def test_linters_find_nothing(command, tmp_path):
    tool, *options, file = command
    done = run(tool, *options, str(DEPLOY / file))
    assert done.returncode == 0, done.stdout + done.stderr
    broken = tmp_path / file  # the linter itself works
    broken.write_text((DEPLOY / file).read_text().replace("USER 10001", "USER").replace("ports:", "prots:"))
    assert run(tool, *options, str(broken)).returncode != 0


def test_every_option_exists():
    group: Any = typer.main.get_command(app)
    serve = group.commands["serve"]
    known = {name for parameter in serve.params for name in parameter.opts}
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    container = next(one for one in documents if one["kind"] == "Deployment")["spec"]["template"]["spec"]["containers"][
        0
    ]
    given = [argument.partition("=")[0] for argument in container["args"]]
    given += re.findall(r'"(--[\w-]+)"', (DEPLOY / "Dockerfile").read_text().partition("ENTRYPOINT")[2])
    assert given[0] == "smollm2" and {option for option in given if option.startswith("--")} <= known


def test_the_parts_fit_together():
    """Prometheus scrapes the compose service with the secret that it mounts; grace periods outlast the drain."""
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    scrape = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"][0]
    (secret,) = compose["services"]["prometheus"]["secrets"]
    assert scrape["static_configs"] == [{"targets": ["roadkit:8000"]}] and "roadkit" in compose["services"]
    assert scrape["authorization"]["credentials_file"] == f"/run/secrets/{secret}" and secret in compose["secrets"]
    assert int(compose["services"]["roadkit"]["stop_grace_period"].removesuffix("s")) > 30
    documents = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    pod = next(one for one in documents if one["kind"] == "Deployment")["spec"]["template"]["spec"]
    (drain,) = (arg for arg in pod["containers"][0]["args"] if arg.startswith("--drain-seconds="))
    sleep = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > int(drain.partition("=")[2]) + sleep
