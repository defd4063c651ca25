"""How long a module, a stage script and a function may be; a longer function says why it is.

A comment `# long: REASON` on the line above a function (above its decorators) defends it. Nothing
defends a file: it holds two nouns, and is split.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE_LINES, STAGE_LINES, FUNCTION_LINES = 350, 380, 60
DEFENCE = "# long: "


def long_functions(source: str) -> list[tuple[str, int, str]]:
    """Functions over FUNCTION_LINES: (name, lines, the reason given or "")."""
    lines, found = source.splitlines(), []
    left = [ast.parse(source)]
    for node in left:
        left += [child for child in ast.iter_child_nodes(node)
                 if isinstance(child, (ast.stmt, ast.excepthandler, ast.match_case))]
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = node.end_lineno - node.lineno + 1
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            above = lines[first - 2].strip() if first > 1 else ""
            if length > FUNCTION_LINES:
                found.append((node.name, length, above.removeprefix(DEFENCE)
                              if above.startswith(DEFENCE) else ""))
    return found


def undefended(paths) -> list[str]:
    return [f"{path.relative_to(ROOT)}: {name} has {length} lines" for path in sorted(paths)
            for name, length, reason in long_functions(path.read_text(encoding="utf-8"))
            if not reason]


def over(paths, limit: int) -> list[str]:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sorted(paths)}
    return [f"{path.relative_to(ROOT)}: {length} lines, at most {limit}"
            for path, length in lengths.items() if length > limit]


def test_no_package_module_is_longer_than_a_sitting():
    assert over((ROOT / "lungkit").rglob("*.py"), MODULE_LINES) == []


def test_no_stage_script_is_longer_than_a_page_or_two():
    assert over(ROOT.glob("*.py"), STAGE_LINES) == []


def test_no_function_is_long_without_a_reason():
    assert undefended([*(ROOT / "lungkit").rglob("*.py"), *ROOT.glob("*.py"),
                       *(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tests").rglob("*.py")]) == []


@pytest.mark.parametrize(("above", "found"), [
    ("", [("f", 62, "")]), ("# long: one table\n", [("f", 62, "one table")]),
    ("# long: one table\n@cache\n", [("f", 62, "one table")]), ("# long\n", [("f", 62, "")])])
def test_a_long_function_is_found_with_its_reason(above, found):
    assert long_functions("x = 1\n" + above + "def f():\n" + "    y = 1\n" * 61) == found
    assert long_functions(above + "def f():\n" + "    y = 1\n" * 59) == []
