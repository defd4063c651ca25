"""CONTROLS: which sets of a known truth the job makes, and that the plan is of arms alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from standins import Project

SMALL = {"ARMS": "voronoi", "REPEATS": 2}
MADE = "*contact_sheet*=1"  # by then all images are


def error(result) -> str:
    line, = [line for line in result.stderr.splitlines() if "error:" in line]
    return line


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Project:
    project = Project(tmp_path_factory.mktemp("controls"))
    result = project.pipeline(CONTROLS=1, SEED=3, CONTROLS_OPTIONS="--of-controls x", **SMALL)
    assert result.returncode == 0, result.stderr
    return project


def test_controls_of_real_and_of_the_sample_are_made_and_trained(ran):
    datasets, run_dir = ran.run_dir / "datasets", ran.run_dir
    made = {call.option("--control"): call for call in ran.calls("controls", dry=False)}
    assert set(made) == {"copy", "photocopier", "shuffled", "colour-only", "noise", "oracle"}
    for name, call in made.items():
        assert call.option("--output") == str(datasets / f"control-{name}")
        assert (call.option("--real"), call.option("--seed")) == (str(datasets / "real"), "3")
        assert call.option("--of-controls") == "x"
        other = str(run_dir / "oracle/real") if name == "oracle" else None
        assert call.option("--other") == other
    assert made["oracle"].options("--samples") == [str(run_dir / "sample"),
                                                   str(run_dir / "oracle/sample")]
    sample, other = ran.calls("phantom", dry=False)
    assert (sample.option("--seed"), other.option("--seed")) == (None, "1")
    real, oracle = ran.calls("tumor", dry=False)
    assert oracle.option("--input") == str(run_dir / "oracle/sample/images")
    assert oracle.option("--groups") == str(run_dir / "oracle/sample/groups.csv")
    assert real.option("--half") is oracle.option("--half") is None
    trained = {Path(word).name for call in ran.calls("cnn", dry=False)
               for word in call.options("--data")}
    assert trained == {"real", "voronoi", *(f"control-{name}" for name in made)}


def test_the_plan_and_the_likeness_are_of_arms_alone_and_the_test_of_all(ran):
    for call in ran.calls("plan"):
        assert set(call.options("--arms")) == {"real", "voronoi"}
    test, = ran.calls("test", dry=False)
    assert {"real", "voronoi", "control-copy", "control-oracle"} <= set(test.options("--datasets"))


@pytest.mark.parametrize(("maker", "modality"), [
    ("tumor", {}), ("ct", {"MODALITY": "ct", "ARMS": "layout"})])
def test_other_half_makes_real_of_one_half_and_keeps_it_so(tmp_path, maker, modality):
    project = Project(tmp_path)
    settings = {"CONTROLS": "other-half noise", "REPLICATES": 2, **SMALL, **modality}
    assert project.pipeline(FAULTS=MADE, **settings).returncode == 1
    found = {call.option("--output"): call.option("--half")
             for call in project.calls(maker, dry=False)}
    second = project.run_dir / "replicates/001"
    assert found == {str(root / place): half for root in (project.run_dir, second)
                     for place, half in (("datasets/real", "1"), ("other-half/real", "2"))}
    others = {call.option("--output"): call.option("--other")
              for call in project.calls("controls", dry=False)}
    assert others[str(second / "datasets/control-other-half")] == str(second / "other-half/real")
    project.forget()
    again = {**SMALL, **modality, "REPLICATES": 2, "FAULTS": "[lv]*_seg.py*=1"}
    assert project.pipeline(**again).returncode == 1  # and without CONTROLS
    assert {call.option("--half") for call in project.calls(maker, dry=False)} == {"1"}


@pytest.mark.parametrize(("settings", "words"), [
    ({"CONTROLS": "copy gan"}, ["'gan' is no control", "colour-only"]),
    ({"CONTROLS": "oracle", "INPUT": "."}, ["an oracle is of simulated images", "INPUT"]),
])
def test_controls_that_cannot_be_made_are_one_line(tmp_path, settings, words):
    project = Project(tmp_path)
    result = project.pipeline(**settings)
    assert result.returncode == 2 and all(word in error(result) for word in words)
    assert not project.calls()


def test_real_and_controls_alone_are_no_comparison(ran):
    result = ran.compare(2, DATASETS="real control-copy")
    assert result.returncode == 1 and "apart from controls and mixtures" in error(result)


def test_an_oracle_of_chests_is_of_a_second_thorax(tmp_path):
    project = Project(tmp_path)
    result = project.pipeline(MODALITY="ct", CONTROLS="oracle", ARMS="layout", FAULTS=MADE)
    assert result.returncode == 1, result.stderr
    sample = project.run_dir / "oracle/sample"
    real, oracle = project.calls("ct", dry=False)
    assert oracle.option("--input") == str(sample / "LIDC-IDRI")
    assert oracle.option("--output") == str(project.run_dir / "oracle/real")
    for name in ("--view", "--labels", "--preset", "--seed"):
        assert oracle.option(name) == real.option(name)
    made, = project.calls("controls", dry=False)
    assert made.options("--samples") == [str(project.run_dir / "sample"), str(sample)]


# ------------------------------------------------------------------ MIX

def test_mixtures_are_made_of_arms_that_are_made_and_trained_beside_them(tmp_path):
    project = Project(tmp_path)
    result = project.pipeline(MIX="voronoi:0.5,1 real:0.25", MIX_OPTIONS="--of-mix x", **SMALL)
    assert result.returncode == 0, result.stderr
    assert {call.option("--of-mix") for call in project.calls("mix", dry=False)} == {"x"}
    datasets = project.run_dir / "datasets"
    told = {Path(call.option("--output")).name: (
        call.option("--real-share"), call.option("--synthetic"), call.option("--dose"))
        for call in project.calls("mix", dry=False)}
    voronoi = str(datasets / "voronoi")
    assert told == {
        "mix-real-0.25": ("0.25", None, None),
        "mix-voronoi-0.5": (None, voronoi, "0.5"), "mix-voronoi-1": (None, voronoi, "1"),
        "mix-real-1-voronoi-0.5": ("1", voronoi, "0.5"),
        "mix-real-1-voronoi-1": ("1", voronoi, "1")}
    stages = [call.stage for call in project.calls(dry=False)]
    assert stages.index("voronoi") < stages.index("mix") < stages.index("cnn")
    trained = {Path(word).name for call in project.calls("cnn", dry=False)
               for word in call.options("--data")}
    assert trained == {"real", "voronoi", *told}
    for call in project.calls("plan", dry=False):
        assert set(call.options("--arms")) == {"real", "voronoi"}


@pytest.mark.parametrize(("mix", "words"), [
    ("voronoi", "'voronoi' is no mixture"), ("voronoi:", "is no mixture"),
    ("voronoi:1,,2", "is no mixture"), ("voronoi:-1", "is no mixture"),
    ("prompt:1", "'prompt' is not among ARMS"),
    ("real:0", "'real:0': a share"), ("real:1", "'real:1': a share"), ("real:2", "a share"),
    ("voronoi:0", "'voronoi:0': a share of real is between 0 and 1, a dose above 0")])
def test_mixtures_that_are_none_are_one_line(tmp_path, mix, words):
    project = Project(tmp_path)
    result = project.pipeline(MIX=mix, **SMALL)
    assert result.returncode == 2 and words in error(result) and not project.calls()


@pytest.mark.parametrize(("settings", "words"), [
    ({"ARMS": "voronoi", "MIX": "voronoi:2"}, "voronoi has 1 times: give a smaller dose"),
    ({"ARMS": "prompt", "MIX": "prompt:0.5,1.5"},
     "prompt has 1 times: give a smaller dose, or a larger POOL"),
    ({"ARMS": "prompt", "MIX": "prompt:4", "POOL": 3}, "prompt has 3 times"),
    ({"ARMS": "prompt", "MIX": "prompt:3", "POOL": 3}, None),
    ({"ARMS": "prompt", "MIX": "prompt:3", "PROMPT_OPTIONS": "--pool 3"}, None)])
def test_a_dose_beyond_what_an_arm_holds_is_found_before_it_is_made(tmp_path, settings, words):
    project = Project(tmp_path)
    result = project.pipeline(FAULTS="*phantom*=1", **settings)
    assert result.returncode == (2 if words else 1), result.stderr
    if words:
        assert words in error(result)
        assert {call.stage for call in project.calls()} <= {"setup_env"}
