"""The rule of the house, read in lungkit/__init__.py: a folder imports only folders below it."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

import lungkit

ROOT = Path(lungkit.__file__).resolve().parent.parent
STAGES = {path.stem for path in ROOT.glob("*.py")}
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
           for path in (ROOT / "lungkit").rglob("*.py")}


def floors() -> list[set[str]]:
    """The folders of each floor, lowest first, as the package's own map draws them."""
    line = next(line for line in lungkit.__doc__.splitlines() if "<-" in line)
    return [{name.strip() for name in floor.split(",")} for floor in line.split("<-")]


def imports(source: str) -> set[str]:
    """Modules of ours that a source imports, wherever in it: in functions and under conditions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide where an arrow goes"
            found |= {name if (name := f"{node.module}.{alias.name}") in MODULES else node.module
                      for alias in node.names}
    return {name for name in found if name.split(".")[0] in {"lungkit", *STAGES}}


@functools.cache
def arrows() -> dict[str, set[str]]:
    """Every module and stage, with what of ours it imports."""
    paths = [*(ROOT / "lungkit").rglob("*.py"), *ROOT.glob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"):
            imports(path.read_text(encoding="utf-8")) for path in paths}


def faults(found: dict[str, set[str]]) -> list[str]:
    """Arrows that break the rule, each in words."""
    floor_of = {folder: number for number, floor in enumerate(floors()) for folder in floor}
    broken = []
    for module, targets in found.items():
        for target in sorted(targets):
            if target in STAGES:
                broken.append(f"{module} imports the stage {target}")
                continue
            if module in STAGES:
                continue
            here, there = (name.split(".")[1] if "." in name else name for name in (module, target))
            if here != there and floor_of[there] >= floor_of[here]:
                broken.append(f"{module} imports {target}, which is not below it")
    return broken


def circle(found: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle; none: an empty list."""
    done: set[str] = set()

    def follow(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module):], module]
        if module in done:
            return []
        for target in sorted(found.get(module, ())):
            if round_trip := follow(target, [*path, module]):
                return round_trip
        done.add(module)
        return []

    return next((trip for module in sorted(found) if (trip := follow(module, []))), [])


def test_every_folder_has_its_floor_and_its_line_in_the_map():
    folders = {path.name for path in (ROOT / "lungkit").iterdir()
               if path.is_dir() and path.name != "__pycache__"}
    on_floors = set().union(*floors()) - {"stages"}
    assert folders <= on_floors
    said = {line.split()[0].rstrip("/") for line in lungkit.__doc__.splitlines()
            if line.strip() and line.split()[0].endswith("/")}
    assert folders == said


def test_a_folder_imports_only_folders_below_it():
    assert faults(arrows()) == []


def test_no_modules_import_one_another_in_a_circle():
    assert circle(arrows()) == []


@pytest.mark.parametrize(("module", "source", "words"), [
    ("lungkit.run.files", "from lungkit.data import dataset", "not below"),
    ("lungkit.data.dataset", "def f():\n    from lungkit.compare.results import read_results",
     "not below"),
    ("lungkit.histology.stain", "import lungkit.generate.items", "not below"),
    ("lungkit.compare.report", "if True:\n    import wilcoxon_test", "imports the stage"),
    ("voronoi_seg", "def f():\n    from tumor_seg import run", "imports the stage"),
])
def test_an_arrow_that_breaks_the_rule_is_found(module, source, words):
    assert words in faults({module: imports(source)})[0]


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
