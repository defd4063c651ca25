"""SEGMENT: U-Nets on the datasets with masks, and their comparison by Dice where two have them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from standins import Project

SMALL = {"SEGMENT": 1, "BASELINE": "", "WORKERS": 2}


def make(project: Project, **masks: dict) -> None:
    """Datasets by name, each with masks {kind: form}."""
    project.make_datasets(*masks)
    for name, kinds in masks.items():
        path = project.run_dir / "datasets" / name / "dataset.json"
        path.write_text(json.dumps({"masks": kinds, "mask_counts": {"nodule": 3}}, indent=2))


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path)


def test_unets_are_trained_on_what_has_masks_such_as_real_s_and_compared_by_dice(project):
    make(project, real={"lung": "binary", "nodule": "binary"}, prompt={"nodule": "binary"},
         layout={"layout": "labels"})
    result = project.compare(3, SEED=5, UNET_OPTIONS="--steps 7", FORCE=1, **SMALL)
    assert result.returncode == 0, result.stderr
    segment, datasets = project.run_dir / "segment", project.run_dir / "datasets"
    calls = project.calls("unet", dry=False)
    assert len(calls) == 2  # processes that share the repeats
    for call in calls:
        assert call.options("--data") == [str(datasets / name) for name in ("prompt", "real")]
        assert call.option("--real") == str(datasets / "real")
        assert call.option("--results") == str(segment / "results")
        assert [call.option(name) for name in ("--repeats", "--replicate", "--seed", "--steps")] \
            == ["3", "0", "5", "7"]
    assert len(project.calls("unet", dry=True)) == 1
    classes, dice = project.calls("plan", dry=False)
    assert dice.options("--arms") == ["prompt", "real"] and dice.option("--metric") == "dice"
    assert dice.option("--output") == str(segment / "comparison/plan.json")
    assert "--force" in dice.words
    assert classes.option("--results") == str(project.run_dir / "results")
    first, second = project.calls("test", dry=False)
    assert first.option("--metric") is None and second.option("--metric") == "dice"
    assert second.words[2] == str(segment / "results")
    assert second.option("--plan") == str(segment / "comparison/plan.json")
    assert result.stdout.count("the verdict") == 2
    stages = [call.stage for call in project.calls(dry=False)]
    assert stages.index("plan") < stages.index("cnn") < stages.index("unet") < stages.index("test")
    timings = (project.run_dir / "logs/timings.tsv").read_text().splitlines()
    assert {line.split("\t")[1] for line in timings} >= {"cnn", "unet", "segment-plan"}


def test_real_alone_is_trained_on_twice_and_nothing_is_compared(project):
    make(project, real={"tumour": "binary"}, voronoi={"nuclei": "labels"})
    project.leave_records()
    result = project.compare(5, **SMALL)
    assert {call.option("--repeats") for call in project.calls("unet")} == {"2"}
    assert result.returncode == 0 and "only real has masks such as real's" in result.stderr
    assert {call.option("--data") for call in project.calls("unet", dry=False)} == {
        str(project.run_dir / "datasets/real")}
    assert len(project.calls("test", dry=False)) == len(project.calls("plan", dry=False)) == 1


def test_the_last_task_of_an_array_compares_when_all_unets_are_there(project):
    make(project, real={"nodule": "binary"}, prompt={"nodule": "binary"})
    shutil.copytree(project.run_dir / "datasets", project.run_dir / "replicates/001/datasets")
    project.leave_records()
    array = {"SLURM_JOB_ID": 7, "SLURM_ARRAY_TASK_MAX": 1, **SMALL}
    for task, others in ((0, "1"), (1, "")):
        result = project.compare(2, SLURM_ARRAY_TASK_ID=task, **array)
        assert result.returncode == 0, result.stderr
        assert len(project.calls("test", dry=False)) == (0 if others else 2)
        assert not others or f"replicate(s) {others} are not" in result.stderr
    project.forget()
    shutil.rmtree(project.run_dir / "segment/results/prompt/replicate_001")
    result = project.compare(2, SLURM_ARRAY_TASK_ID=0, **array)
    assert "replicate(s) 1 are not" in result.stderr and not project.calls("test", dry=False)


@pytest.mark.parametrize(("preset", "size", "patch"), [
    ("demo", 128, "64"), ("demo", 64, None), ("full", 128, None)])
def test_of_a_demo_s_slices_unets_are_shown_parts(project, preset, size, patch):
    make(project, real={"nodule": "binary"}, layout={})
    path = project.run_dir / "datasets/real/dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_size": size}))
    assert project.compare(2, PRESET=preset, **SMALL).returncode == 0
    assert {call.option("--patch-size") for call in project.calls("unet")} == {patch}


def test_a_task_of_an_array_asks_of_real_alone_two_unets(project):
    make(project, real={"nodule": "binary"}, layout={})
    shutil.copytree(project.run_dir / "datasets", project.run_dir / "replicates/001/datasets")
    project.leave_records()
    for task in (0, 1):
        result = project.compare(5, SLURM_ARRAY_TASK_ID=task, SLURM_JOB_ID=7,
                                 SLURM_ARRAY_TASK_MAX=1, **SMALL)
        assert result.returncode == 0, result.stderr
    assert len(project.calls("test", dry=False)) == 1


def test_a_stopped_unet_stops_the_job_to_be_resumed(project):
    make(project, real={"nodule": "binary"}, layout={})
    result = project.compare(2, FAULTS="unet_segment.py*--repeats?2*=75", **SMALL)
    assert result.returncode == 75 and not project.calls("test", dry=False)


@pytest.mark.parametrize(("settings", "words"), [
    ({"SEGMENT": "yes"}, "SEGMENT is 'yes'"), ({}, "real has no masks of nodules or tumour")])
def test_what_cannot_be_segmented_is_one_line_before_any_training(project, settings, words):
    make(project, real={"lung": "binary"}, layout={})
    for more in ([], ["--dry-run"]):
        result = project.compare(2, *more, **{**SMALL, **settings})
        assert result.returncode == 2 and words in result.stderr, result.stderr
        assert not project.calls("cnn", dry=False) and not project.calls("unet", dry=False)


def test_by_default_nothing_is_segmented(project):
    make(project, real={"nodule": "binary"}, layout={"nodule": "binary"})
    assert project.compare(2, "--dry-run", BASELINE="").returncode == 0
    assert not project.calls("unet") and Path(project.run_dir / "datasets").is_dir()
    assert project.compare(2, "--dry-run", **SMALL).returncode == 0
    call, = project.calls("unet")
    assert call.is_dry and len(call.options("--data")) == 2


def test_what_begins_early_leaves_the_plan_of_the_unets_to_when_all_arms_are_there(project):
    make(project, real={"nodule": "binary"}, prompt={"nodule": "binary"})
    result = project.compare(2, LUNGKIT_JOB="1.0.0.1", LUNGKIT_EARLY=1,
                             LUNGKIT_ARMS="diffusion prompt", **SMALL)
    assert result.returncode == 0 and project.calls("cnn", dry=False), result.stderr
    assert len(project.calls("plan", dry=False)) == 1 and not project.calls("unet")


def test_of_several_tasks_the_first_of_each_view_is_segmented(tmp_path):
    project = Project(tmp_path)
    tasks = ["crop-binary", "crop-grade", "slice-grade", "slice-binary"]
    project.decide(tasks=" ".join(tasks))
    for task in tasks:
        real = project.run_dir / task / "datasets/real"
        for name in ("real", "layout"):
            (real.parent / name).mkdir(parents=True)
            (real.parent / name / "dataset.json").write_text(
                json.dumps({"masks": {"nodule": "binary"}}))
    result = project.compare(2, SEGMENT=1, OUTLIERS=1, BASELINE="", FIDELITY=0)
    assert result.returncode == 0, result.stderr
    assert {call.option("--results") for call in project.calls("unet", dry=False)} == {
        str(project.run_dir / task / "segment/results") for task in ("crop-binary", "slice-grade")}
    assert len(project.calls("outliers", dry=False)) == 4
    project.forget()
    alone = project.compare(2, SEGMENT=1, BASELINE="", FIDELITY=0,
                            RUN=project.run_dir / "crop-grade")
    assert alone.returncode == 0 and project.calls("unet", dry=False), "asked for by itself"
