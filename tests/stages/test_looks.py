"""Comparisons beside the planned one: each is a look, and is said."""

from __future__ import annotations

import json

import pytest

import result_trees as trees
import wilcoxon_test
from lungkit.compare import plan
from lungkit.compare.results import read_results
from lungkit.run.faults import BadOptions


@pytest.fixture
def planned(tmp_path):
    """A tree of five repeats, of which four were planned, with a margin of three points."""
    trees.make_results(tmp_path / "results", arms={"real": 0.9, "prompt": 0.5}, repeats=5)
    assert plan.main(["--results", str(tmp_path / "none"), "--real", str(tmp_path / "none"),
                      "--arms", "real", "prompt", "--repeats", "4", "--margin", "0.03",
                      "--output", str(tmp_path / "out/plan.json")]) == 0
    return tmp_path


def compare(planned, *more):
    assert wilcoxon_test.main([str(planned / "results"), "--output", str(planned / "out"),
                               "--plan", str(planned / "out/plan.json"), *more]) == 0
    return json.loads((planned / "out/comparison.json").read_text())


def test_the_planned_comparison_is_no_look_and_every_other_one_is(planned, capsys):
    made = compare(planned, "--repeats", "4")
    assert (made["metric"], made["margin"], made["plan"]["looks"]) == ("accuracy_real", 0.03, [])
    assert "looks:" not in capsys.readouterr().out
    made = compare(planned, "--margin", "0.05")
    assert [look["changed"] for look in made["plan"]["looks"]] == [
        ["margin 0.05 for 0.03", "repeats 5 for 4"]]
    told = capsys.readouterr().out
    assert "looks: 2 comparisons were made" in told and "up to 10%" in told
    compare(planned, "--margin", "0.05")
    assert "already complete" in capsys.readouterr().out
    assert plan.read(planned / "out/plan.json") == made["plan"]


def test_what_was_planned_after_results_is_said(planned):
    path = planned / "out/plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"results_there": 8}))
    assert "planned after 8 results were there" in plan.looks_in_words(plan.read(path))


def test_the_first_replicates_can_be_compared_alone(tmp_path):
    trees.make_results(tmp_path, arms={"real": 0.9, "prompt": 0.5}, repeats=2, replicates=3)
    assert read_results(tmp_path, num_replicates=2).replicates == [0, 1]
    with pytest.raises(BadOptions, match="--replicates 4: .* holds 3"):
        read_results(tmp_path, num_replicates=4)
