"""The options of every stage and tool: each says what it is for."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGES = sorted(path.stem for pattern in ("*_seg.py", "*_classify.py", "*_segment.py", "*_test.py")
                for path in ROOT.glob(pattern))
TOOLS = sorted(str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
               for path in (ROOT / "lungkit").rglob("*.py")
               if "def build_parser" in path.read_text())


def test_there_are_stages_and_tools():
    assert len(STAGES) == 13 and "lungkit.phantom.sample" in TOOLS and len(TOOLS) >= 4


@pytest.mark.parametrize("name", STAGES + TOOLS)
def test_every_option_says_what_it_is_for(name):
    actions = importlib.import_module(name).build_parser()._actions
    silent = [action.dest for action in actions if not (action.help or "").strip()]
    assert not silent, f"{name}: no help for {', '.join(silent)}"
