"""Progress: spaced lines or a bar, and the same numbers as JSON lines."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

import lungkit.run.progress
from lungkit.run.progress import LINE_INTERVAL_SEC, Progress, say


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets: clock.now."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(lungkit.run.progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_a_line_comes_every_half_minute_and_at_the_end(clock, capsys):
    progress = Progress("drawing", 100)
    shown = []
    for done, now in [(1, 1001), (2, 1029.9), (3, 1030), (4, 1031), (50, 1060),
                      (99, 1061), (100, 1062)]:
        clock.now = now
        progress.update(done)
        if capsys.readouterr().err:
            shown.append(done)
    assert LINE_INTERVAL_SEC == 30 and shown == [3, 50, 100]


def test_lines_are_of_one_width(clock, capsys):
    for what, total in [("a", 10), ("a very long name of what is being done", 9_999)]:
        progress = Progress(what, total)
        for done, loss in [(1, 0.5), (total // 2, 12.25), (total, 1234.5)]:
            clock.now += 40
            progress.update(done, loss=loss)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 6 and len({len(line) for line in lines}) == 1 and captured.out == ""
    assert lines[1].split() == ["a", "5/10", "loss", "12.2500", "0.06/s", "eta", "80", "s",
                                *lines[1].split()[-2:]]
    assert lines[1].endswith(" MB")


def test_a_resumed_stage_counts_its_own_rate(clock, capsys, tmp_path):
    """600 of 1000 were there: 100 more in 50 s are 2 a second, and 150 s to go."""
    progress = Progress("drawing", 1000, done=600, jsonl_path=tmp_path / "p.jsonl")
    clock.now += 50
    progress.update(700, loss=0.25)
    assert "    2.00/s  eta    150 s" in capsys.readouterr().err
    clock.now += 100
    progress.update(1000, loss=0.125)
    first, last = map(json.loads, (tmp_path / "p.jsonl").read_text().splitlines())
    assert first.pop("peak_mb") > 1
    assert first == {"what": "drawing", "done": 700, "total": 1000, "elapsed_sec": 50.0,
                     "rate_per_sec": 2.0, "loss": 0.25}
    assert (last["done"], last["elapsed_sec"], last["loss"]) == (1000, 150.0, 0.125)


def test_nothing_done_yet_has_no_rate_and_no_error(clock, capsys):
    progress = Progress("drawing", 10)
    clock.now += 31
    progress.update(0)
    assert "0/10" in capsys.readouterr().err


def test_a_terminal_has_a_bar_on_one_line(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = Progress("drawing", 3)
    for done, passed in [(1, 0.25), (2, 0.1), (3, 0.1)]:
        clock.now += passed
        progress.update(done)
    bar = capsys.readouterr().err
    assert bar.count("\r") == 2 and bar.count("\n") == 1 and bar.endswith("\n")


def test_what_is_said_goes_to_standard_error(capsys):
    say("found 3")
    assert tuple(capsys.readouterr()) == ("", "found 3\n")
