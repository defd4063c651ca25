"""Where the last arms leave cores idle, the trainings on what is made begin there."""

from __future__ import annotations

from pathlib import Path

import pytest

from standins import ARMS, Project

PLANNED = sorted(["real", *ARMS])
EARLY = {"LUNGKIT_JOB": "1.0.0.1", "LUNGKIT_EARLY": 1, "LUNGKIT_ARMS": " ".join(ARMS), "WORKERS": 1}


def trained_on(project: Project) -> list[set[str]]:
    return [{Path(word).name for word in call.options("--data")}
            for call in project.calls("cnn", dry=False)]


def test_all_arms_are_planned_and_those_there_are_trained_on(tmp_path):
    project = Project(tmp_path)
    project.make_datasets("real", "prompt")
    assert project.compare(2, **EARLY).returncode == 0
    plan, = project.calls("plan", dry=False)
    assert plan.options("--arms") == PLANNED and plan.options("--baselines") == ["nuclei"]
    assert trained_on(project) == [{"real", "prompt"}]
    assert not project.calls("test", dry=False) and not project.calls("nuclei", dry=False)
    project.make_datasets("voronoi")
    project.forget()
    assert project.compare(2, **EARLY).returncode == 0
    assert trained_on(project) == [{"real", "prompt", "voronoi"}]
    assert project.calls("nuclei", dry=False) and not project.calls("test", dry=False)


def test_the_comparison_after_it_has_the_same_plan_and_all_arms(tmp_path):
    project = Project(tmp_path)
    result = project.pipeline(REPEATS=2, JOBS=2)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "the verdict\n"
    early, last = project.calls("plan", dry=False)
    assert early.words == last.words and early.options("--arms") == PLANNED
    first, *others = trained_on(project)
    assert {"real"} <= first <= set(PLANNED) and others and all(
        each == set(PLANNED) for each in others)
    assert len(project.calls("test", dry=False)) == 1


def test_what_fails_in_it_ends_the_job_with_its_line(tmp_path):
    project = Project(tmp_path)
    result = project.pipeline(REPEATS=2, JOBS=2, FAULTS="*contact_sheet*=3")
    line, = [line for line in result.stderr.splitlines() if "error:" in line]
    assert result.returncode == 3 and "stage sheet " in line and "(exit 3): its last words" in line


@pytest.mark.parametrize("settings", [
    {"JOBS": 1}, {"JOBS": 2, "GPUS": "0"}, {"JOBS": 2, "REPLICATES": 2}, {"JOBS": 5},
    {"JOBS": 2, "MIX": "real:0.5"}], ids=str)
def test_where_no_core_is_idle_nothing_begins_early(settings, tmp_path):
    project = Project(tmp_path)
    result = project.pipeline(REPEATS=2, **settings)
    assert result.returncode == 0, result.stderr
    assert len(project.calls("plan", dry=False)) == 1


def test_what_is_made_already_is_not_trained_on_early(tmp_path):
    project = Project(tmp_path)
    assert project.pipeline(REPEATS=2, JOBS=2).returncode == 0
    project.forget()
    assert project.pipeline(REPEATS=2, JOBS=2).returncode == 0
    assert len(project.calls("plan", dry=False)) == 1
