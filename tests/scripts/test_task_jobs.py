"""TASKS: several tasks of CT on one sample, each a run of its own, and a table of all."""

from __future__ import annotations

from pathlib import Path

import pytest

from standins import Project

TASKS = "crop-binary slice-grade"
SMALL = {"MODALITY": "ct", "TASKS": TASKS, "REPEATS": 2, "FIDELITY": 0}


def error(result) -> str:
    line, = [line for line in result.stderr.splitlines() if "error:" in line]
    return line


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Project:
    project = Project(tmp_path_factory.mktemp("tasks"))
    result = project.pipeline(SEED=3, BASELINE="size", **SMALL)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines().count("the table") == 1
    return project


@pytest.fixture
def again(ran):
    """The same, of which nothing was called so far; for the other tests it is as it was."""
    calls = ran.calls_path.read_text()
    ran.forget()
    yield ran
    ran.calls_path.write_text(calls)


def test_each_task_is_a_run_of_one_sample_and_one_seed(ran):
    samples = [Path(call.option("--output")) for call in ran.calls("phantom.thorax", dry=False)]
    assert samples[0] == ran.run_dir / "sample" and len({each.resolve() for each in samples}) == 1
    made = {call.option("--output"): call for call in ran.calls("ct", dry=False)}
    for task in TASKS.split():
        root = ran.run_dir / task
        call = made[str(root / "datasets/real")]
        assert (call.option("--view"), call.option("--labels")) == tuple(task.split("-"))
        assert call.option("--input") == str(root / "sample/LIDC-IDRI")
        assert (root / "sample").resolve() == (ran.run_dir / "sample").resolve()
        assert call.option("--seed") == "3" and call.option("--split-from") is None
        assert (root / "decided/task").read_text().strip() == task
    assert len(made) == 2


def test_the_images_of_all_tasks_come_before_the_first_arm_and_the_table_last(ran):
    calls = ran.calls(dry=False)
    stages = [call.stage for call in calls]
    before = calls[:stages.index("layout")]
    assert {call.option("--view") for call in before if call.stage == "ct"} == {"crop", "slice"}
    assert stages[-1] == "tasks" and stages.count("test") == 2 and stages.count("tasks") == 1
    table, = ran.calls("tasks")
    assert table.words[3] == str(ran.run_dir) and table.options("--tasks") == TASKS.split()


def test_by_default_the_arm_is_layout_and_the_score_is_weighted_auprc(ran):
    for call in ran.calls("test", dry=False):
        assert call.options("--datasets") == ["layout", "real", "size"]
        assert call.option("--metric") == "auprc_weighted"
    assert {call.option("--metric") for call in ran.calls("plan")} == {"auprc_weighted"}
    assert len(ran.calls("setup_env")) == 1  # of the whole job


def test_a_run_of_tasks_knows_them_and_is_compared_as_one(again):
    quick = {"BASELINE": "", "FIDELITY": 0}
    stopped = again.compare(4, FAULTS="*cnn_classify.py*slice-grade/results*=75", **quick)
    assert stopped.returncode == 75 and "run the same command again" in stopped.stderr
    assert not again.calls("tasks")
    other = again.pipeline(TASKS="crop-grade")
    assert other.returncode == 2 and f"was begun with '{TASKS}'" in error(other)
    again.forget()
    result = again.compare(4, **quick)
    assert result.returncode == 0 and "the table" in result.stdout, result.stderr
    assert {call.option("--repeats") for call in again.calls("cnn", dry=False)} == {"4"}
    assert {call.option("--results") for call in again.calls("cnn", dry=False)} == {
        str(again.run_dir / task / "results") for task in TASKS.split()}
    assert [call.stage for call in again.calls(dry=False)][-1] == "tasks"
    again.forget()
    assert again.compare(4, "--dry-run", BASELINE="").returncode == 0
    assert all(call.is_dry for call in again.calls() if call.stage in ("cnn", "test", "nuclei"))
    assert not again.calls("tasks")


@pytest.mark.parametrize(("fault", "status"), [
    ("*ct_seg.py*--view?slice*=1", 1), ("cnn_classify.py*slice-grade*--dry-run*=2", 2)])
def test_a_fault_in_any_task_ends_the_job_before_an_arm_is_made(tmp_path, fault, status):
    project = Project(tmp_path)
    result = project.pipeline(**SMALL, FAULTS=fault, BASELINE="")
    assert result.returncode == status and "its last words" in result.stderr
    assert not project.calls("layout", dry=False) and not project.calls("cnn", dry=False)


@pytest.mark.parametrize(("settings", "words"), [
    ({"TASKS": TASKS}, "that is of MODALITY=ct"),
    ({"MODALITY": "ct", "TASKS": "crop-binary crop-size"}, "TASK is 'crop-size'"),
    ({"MODALITY": "ct", "TASKS": "crop-binary crop-binary"}, "each once"),
    ({"MODALITY": "ct", "TASKS": TASKS, "TASK": "crop-grade"}, "give one of them")])
def test_tasks_that_cannot_be_are_one_line(tmp_path, settings, words):
    project = Project(tmp_path)
    result = project.pipeline(**settings)
    assert result.returncode == 2 and words in error(result) and not project.calls()


def test_a_run_that_was_stopped_in_its_first_task_is_known_by_its_directory(tmp_path):
    project = Project(tmp_path)
    stopped = project.pipeline(**SMALL, FOLDS=3, FAULTS="*ct_seg.py*--view?crop*=75", BASELINE="")
    assert stopped.returncode == 75 and not project.calls("layout", dry=False)
    result = project.pipeline(BASELINE="", FAULTS="layout_seg.py*demo?=1")
    assert result.returncode == 1 and project.calls("layout", dry=False), result.stderr
    assert {call.option("--fold") for call in project.calls("ct", dry=False)
            if call.option("--view") == "slice"} == {"1/3", "2/3", "3/3"}


def test_a_task_of_an_array_leaves_the_table_to_the_one_that_ends_last(tmp_path):
    project = Project(tmp_path)
    project.leave_records()
    for task, said in ((0, "no table of all tasks yet: crop-binary slice-grade have"), (1, "")):
        result = project.pipeline(SLURM_JOB_ID=7, SLURM_ARRAY_TASK_MAX=1, SLURM_ARRAY_TASK_ID=task,
                                  BASELINE="", **SMALL)
        assert result.returncode == 0 and said in result.stderr, result.stderr
        assert ("the table" in result.stdout) == (not said)
