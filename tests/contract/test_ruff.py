"""ruff finds nothing, by the rules of pyproject.toml, in the package, stages, tests, benchmarks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def ruff(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess:
    """Run ruff in the project; `given` is its standard input."""
    pytest.importorskip("ruff", reason="ruff is missing: tests/requirements.txt has it")
    return subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "--quiet",
                           "--output-format", "concise", *arguments], cwd=ROOT, input=given,
                          capture_output=True, text=True, check=False)


def test_ruff_finds_nothing():
    found = ruff(".")
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize(("code", "rule"), [
    (f"long = '{'x' * 93}'\n", "E501"), ("import os\n", "F401"),
    ("import sys\nimport os\n", "I001"),
    ("from typing import List\nnames: List[str] = []\n", "UP006"),
    ("def f(given=[]):\n    return given\n", "B006")])
def test_what_the_rules_forbid_is_found(code, rule):
    found = ruff("--stdin-filename", "lungkit/run/new.py", "-", given=code)
    assert found.returncode == 1 and rule in found.stdout
