"""Where the last arms leave cores idle, the trainings on what is made begin there."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from standins import ARMS, Project

QUICK = {"REPEATS": 2, "FIDELITY": 0}
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


def test_the_comparison_after_it_has_the_same_plan_and_all_arms_and_only_then(tmp_path):
    project = Project(tmp_path)
    result = project.pipeline(JOBS=2, WORKERS=2, **QUICK)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "the verdict\n"
    early, last = project.calls("plan", dry=False)
    stages = [call.stage for call in project.calls(dry=False)]
    assert stages[:len(stages) - stages[::-1].index("plan")].count("cnn") == 1  # on the idle core
    assert early.words == last.words and early.options("--arms") == PLANNED
    first, *others = trained_on(project)
    assert {"real"} <= first <= set(PLANNED) and others and all(
        each == set(PLANNED) for each in others)
    assert len(project.calls("test", dry=False)) == 1
    project.forget()  # what is made already is not trained on early
    assert project.pipeline(JOBS=2, **QUICK).returncode == 0
    assert len(project.calls("plan", dry=False)) == 1


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
    result = project.pipeline(ARMS="prompt voronoi", BASELINE="", **QUICK, **settings)
    assert result.returncode == 0, result.stderr
    assert len(project.calls("plan", dry=False)) == 1


def test_a_signal_between_two_checks_ends_the_job(tmp_path):
    """Bash notes it when the check that runs has ended: the next one must not be begun."""
    project = Project(tmp_path)
    project.make_datasets("real", "prompt")
    (tmp_path / "tools/python").write_text(f"""#!/bin/bash
printf '\\t\\t\\tpython\\t%s\\t\\n' "$1" >>"$CALLS"
touch "{tmp_path}/begun"
until [[ -e "{tmp_path}/go on" ]]; do sleep 0.02; done
""")
    process = subprocess.Popen(["bash", "compare_models.sh", "2"], cwd=project.path,
                               env=project.env, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "begun").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    (tmp_path / "go on").touch()
    assert "run the same command again to go on" in process.communicate(timeout=60)[1]
    assert process.returncode == 75 and len(project.calls("test")) == len(project.calls()) - 1 == 1
