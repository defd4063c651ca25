"""The options of every stage and tool: each says what it is for."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGES = sorted(path.stem for pattern in (
    "*_seg.py", "*_classify.py", "*_segment.py", "*_search.py", "*_test.py",
    "*_explain.py", "outliers.py")
    for path in ROOT.glob(pattern))
TOOLS = sorted(str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
               for path in (ROOT / "lungkit").rglob("*.py")
               if "def build_parser" in path.read_text())


def actions_of(parser) -> list:
    """Its own, and those of its commands."""
    found = list(parser._actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [one for command in action.choices.values() for one in actions_of(command)]
    return found


def test_there_are_stages_and_tools():
    assert len(STAGES) == 16 and "lungkit.phantom.sample" in TOOLS and len(TOOLS) >= 4


@pytest.mark.parametrize("name", STAGES + TOOLS)
def test_every_option_says_what_it_is_for(name):
    silent = [action.dest for action in actions_of(importlib.import_module(name).build_parser())
              if not (action.help or "").strip()]
    assert not silent, f"{name}: no help for {', '.join(silent)}"
