"""Import floors: what a folder of the package may import, and what its `__init__` says about it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "projects" / "SSL" / "person_search"
BASE = {"errors", "io", "progress", "tf32", "config", "config_files", "values"}
# Folder -> what it may import beside itself. Three modules reach further than their folders: `data.registration`, which
# registers the synthetic sets too, the evaluator, which writes the page of a report, and `search.adapt`, which trains.
FLOORS = {
    "synthetic": BASE | {"data"},
    "data": BASE | {"synthetic"},
    "labels": BASE,
    "modeling": BASE | {"data", "labels"},
    "weights": BASE | {"modeling"},
    "evaluation": BASE | {"data", "report"},
    "report": BASE | {"data", "evaluation"},
    "engine": BASE | {"data", "labels", "modeling", "weights", "evaluation", "report", "__version__"},
    "search": BASE | {"data", "modeling", "evaluation", "report", "weights", "engine", "add_ssl_config", "__version__"},
    "reproduction": BASE | {"data", "labels", "modeling", "evaluation", "report", "engine"},
}


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name below `person_search` of everything that a module imports from it, lazily or not."""
    folder = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            start = list(folder[: len(folder) - node.level + 1])
        elif (node.module or "").split(".")[0] == "person_search":
            start = []
        else:
            continue
        module = (node.module or "").removeprefix("person_search").strip(".")
        parts = start + (module.split(".") if module else [])
        for name in [parts] if parts else [[alias.name] for alias in node.names]:
            yield node.lineno, ".".join(name)


@pytest.mark.parametrize("folder", sorted(FLOORS))
def test_a_folder_imports_only_what_it_may(folder: str) -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports {name}"
        for path in sorted((PACKAGE / folder).rglob("*.py"))
        for line, name in imported(path)
        if name.split(".")[0] not in FLOORS[folder] | {folder}
    ]
    assert not wrong, "\n".join(wrong)


def test_every_folder_has_a_floor() -> None:
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == FLOORS.keys()


@pytest.mark.parametrize("module", sorted(BASE))
def test_modules_beside_the_folders_import_none_of_them(module: str) -> None:
    assert {name.split(".")[0] for _, name in imported(PACKAGE / f"{module}.py")} <= {"errors", "config_files"}


@pytest.mark.parametrize(
    ("folder", "other", "module"),
    [("data", "synthetic", "registration"), ("evaluation", "report", "evaluator"), ("search", "engine", "adapt")],
)
def test_one_module_alone_reaches_further_than_its_folder(folder: str, other: str, module: str) -> None:
    modules = (PACKAGE / folder).rglob("*.py")
    knowing = {path.stem for path in modules for _, name in imported(path) if name.split(".")[0] == other}
    assert knowing == {module}


@pytest.mark.parametrize("folder", sorted(FLOORS))
def test_an_init_says_what_is_inside_and_who_imports_whom(folder: str) -> None:
    says = ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text(encoding="utf-8")))
    assert says and re.search(r"[Mm]ay import", says) and re.search(r"imports? it|Imported by", says), folder
