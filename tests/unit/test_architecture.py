"""Checks the structure of the three packages: no import cycles, no ambiguous names."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache

import pytest
from support import ROOT

PACKAGES = {
    "yolojob": ROOT / "yolojob",
    "yolojob_operator": ROOT / "operator" / "yolojob_operator",
    "yolojob_trainer": ROOT / "trainer" / "yolojob_trainer",
}

SHARED_CLASS_NAMES: dict[str, str] = {}
"""Class names that more than one module may define, each with the reason."""


@cache
def modules() -> dict[str, ast.Module]:
    """Syntax trees of all modules by their dotted names."""
    trees = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join([package, *parts]).removesuffix(".__init__")
            trees[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return trees


def imports(name: str, tree: ast.Module, known: set[str]) -> Iterator[str]:
    """Modules among `known` that a module imports anywhere: also under TYPE_CHECKING and inside functions.

    Relative imports are not resolved; `test_packages_have_no_relative_imports` shows that there are none.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            candidates = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import name` imports the submodule where there is one, else the package itself.
            candidates = [
                submodule if (submodule := f"{node.module}.{alias.name}") in known else node.module
                for alias in node.names
            ]
        else:
            continue
        yield from (candidate for candidate in candidates if candidate in known and candidate != name)


@cache
def import_graph() -> dict[str, set[str]]:
    """Imported modules by importing module."""
    trees = modules()
    return {name: set(imports(name, tree, set(trees))) for name, tree in trees.items()}


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one module (Tarjan's algorithm), each sorted by name."""
    indexes: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []

    def visit(node: str) -> None:
        indexes[node] = lowest[node] = len(indexes)
        stack.append(node)
        for neighbour in sorted(graph[node]):
            if neighbour not in indexes:
                visit(neighbour)
                lowest[node] = min(lowest[node], lowest[neighbour])
            elif neighbour in stack:
                lowest[node] = min(lowest[node], indexes[neighbour])
        if lowest[node] == indexes[node]:
            start = stack.index(node)
            component = sorted(stack[start:])
            del stack[start:]
            if len(component) > 1:
                components.append(component)

    for node in sorted(graph):
        if node not in indexes:
            visit(node)
    return sorted(components)


def test_cycles_finds_each_component_once() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "e"}, "e": {"d"}, "f": set[str]()}
    assert cycles(graph) == [["a", "b", "c"], ["d", "e"]]


def test_imports_finds_local_and_type_checking_imports() -> None:
    source = "if TYPE_CHECKING:\n    from p.b import X\ndef f():\n    import p.c\n    from p import d, name\n"
    assert set(imports("p.a", ast.parse(source), {"p", "p.a", "p.b", "p.c", "p.d"})) == {"p", "p.b", "p.c", "p.d"}


def test_import_graph_covers_the_three_packages() -> None:
    graph = import_graph()
    assert len(graph) > 100
    assert "yolojob.api.status" in graph["yolojob.client.client"] | graph["yolojob.cli.job_view"]


def test_packages_have_no_relative_imports() -> None:
    relative = [
        f"{name}:{node.lineno}"
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


@pytest.mark.parametrize("package", PACKAGES)
def test_package_has_no_import_cycle(package: str) -> None:
    offenders = [component for component in cycles(import_graph()) if component[0].partition(".")[0] == package]
    assert offenders == [], "\n".join("cycle: " + ", ".join(component) for component in offenders)


def test_no_function_is_called_of() -> None:
    """Such a name means nothing where it is used, and cannot be searched for."""
    offenders = [
        f"{name}:{node.lineno}"
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == "of"
    ]
    assert offenders == []


def test_class_names_are_unique() -> None:
    owners: dict[str, list[str]] = defaultdict(list)
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                owners[node.name].append(f"{name}:{node.lineno}")
    shared = {name: places for name, places in owners.items() if len({p.partition(":")[0] for p in places}) > 1}
    surplus = {name: places for name, places in shared.items() if name not in SHARED_CLASS_NAMES}
    assert surplus == {}, "\n".join(f"{name}: {', '.join(places)}" for name, places in sorted(surplus.items()))
    assert set(SHARED_CLASS_NAMES) <= set(shared), "a name in the allow-list is unique by now"
