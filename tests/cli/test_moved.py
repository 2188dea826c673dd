"""Commands that moved name the new one."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from roadkit.cli import app
from roadkit.errors import RoadkitError


@pytest.mark.parametrize(
    ("words", "named"),
    [([], "python -m paper --help"), (["glue", "--rates", "3"], "python -m paper glue --rates 3")],
)
def test_reproduce_names_the_papers_own_command(words, named):
    done = CliRunner().invoke(app, ["reproduce", *words])
    assert isinstance(done.exception, RoadkitError) and str(done.exception).endswith(named)
