"""Imports point one way: no circle between files or between rooms, and nothing that climbs.

The imports are read from the sources. Those inside functions and under TYPE_CHECKING count like all others.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# (importer, imported): why the import stands inside the functions `load` and `save`.
LAZY = {
    (
        "roadkit.adapter",
        "roadkit.store",
    ): "`Adapter.load` and `save` are the public way to files, and files make Adapters",
    ("roadkit.intervene.intervention", "roadkit.intervene.files"): "the same for `Intervention.load` and `save`",
}


def modules() -> dict[str, Path]:
    """Every module of the library, of the paper's experiments and of the benchmarks, by the name it is imported by."""
    roots = {ROOT / "src": "roadkit/**/*.py", ROOT: "paper/**/*.py", ROOT / "bench": "*.py"}
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for root, pattern in roots.items()
        for path in root.glob(pattern)
    }


MODULES = modules()
BENCH = {module for module, path in MODULES.items() if path.parent == ROOT / "bench"}


def imported(module: str) -> Iterator[tuple[str, ast.stmt]]:
    """What a module imports, with the statement: `from .engine import bank` gives roadkit.engine.bank."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for statement in ast.walk(ast.parse(path.read_text())):
        if isinstance(statement, ast.Import):
            yield from ((alias.name, statement) for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            climbed = package[: len(package) - statement.level + 1] if statement.level else []
            origin = ".".join([*climbed, *filter(None, [statement.module])])
            for alias in statement.names:
                submodule = f"{origin}.{alias.name}"
                yield (submodule if submodule in MODULES else origin, statement)


IMPORTS = {module: {name for name, _ in imported(module)} for module in MODULES}


def within(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Imports between our own modules, without the lazy ones that are allowed."""
    return {
        module: {name for name in names if name in MODULES and name != module and (module, name) not in LAZY}
        for module, names in graph.items()
    }


def rooms(base: str) -> dict[str, set[str]]:
    """The same for the rooms of a package: the folders and files that lie directly in it."""

    def room(module: str) -> str:
        return ".".join(module.split(".")[: base.count(".") + 2])

    graph: dict[str, set[str]] = {}
    for module, names in within(IMPORTS).items():
        if module.startswith(f"{base}."):
            inside = {room(name) for name in names if name.startswith(f"{base}.")}
            graph.setdefault(room(module), set()).update(inside - {room(module)})
    return graph


def circles(graph: Mapping[str, set[str]]) -> list[str]:
    """Circles that, opened one after another, leave none: each as `a imports b imports a`."""
    left = {node: set(targets) for node, targets in graph.items()}
    found = []
    while True:
        try:
            TopologicalSorter(left).prepare()
        except CycleError as error:
            path = error.args[1][::-1]
            found.append(" imports ".join(path))
            left[path[0]].remove(path[1])
        else:
            return found


def test_a_circle_is_seen():
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set(), "d": {"e"}, "e": {"f"}, "f": {"d"}}
    assert [sorted(set(circle.split(" imports "))) for circle in circles(graph)] == [["d", "e", "f"]]
    assert circles({"a": {"b"}, "b": {"a", "c"}, "c": {"b"}}) != []
    assert circles({"a": {"b"}, "b": set()}) == []


def test_no_circle_between_files():
    assert len(MODULES) > 150
    found = circles(within(IMPORTS))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("base", ["roadkit", "roadkit.engine", "roadkit.server", "roadkit.train", "paper"])
def test_no_circle_between_rooms(base):
    graph = rooms(base)
    assert len(graph) > 3
    found = circles(graph)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("importer", "name"), LAZY)
def test_lazy_imports_are_those_of_load_and_save(importer, name):
    tree = ast.parse(MODULES[importer].read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in ("load", "save")]
    allowed = {node.lineno for function in functions for node in ast.walk(function) if isinstance(node, ast.ImportFrom)}
    lines = {statement.lineno for found, statement in imported(importer) if found == name}
    assert lines
    assert lines <= allowed


def test_the_library_knows_neither_paper_nor_bench_nor_tests():
    outside = {"paper", "bench", "tests"} | BENCH
    for module in MODULES:
        if module.partition(".")[0] == "roadkit":
            strangers = {name for name in IMPORTS[module] if name.partition(".")[0] in outside}
            assert not strangers, f"{module} imports {sorted(strangers)}"


def test_nobody_imports_the_command_line():
    for module, names in IMPORTS.items():
        if not module.startswith("roadkit.cli") and module != "roadkit.__main__":
            assert not {name for name in names if name.startswith("roadkit.cli")}, f"{module} imports the command line"


def test_the_core_stands_on_itself():
    """errors ← rotation ← matrices, layout ← adapter ← everything else."""
    assert within(IMPORTS)["roadkit.errors"] == set()
    assert within(IMPORTS)["roadkit.rotation"] <= {"roadkit.errors"}
    assert within(IMPORTS)["roadkit.matrices"] <= {"roadkit.errors", "roadkit.rotation"}
    assert within(IMPORTS)["roadkit.layout"] <= {"roadkit.errors", "roadkit.rotation"}
    below = {"roadkit.errors", "roadkit.rotation", "roadkit.matrices", "roadkit.layout"}
    assert within(IMPORTS)["roadkit.adapter"] <= below
