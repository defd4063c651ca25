"""Which classical baselines the job scripts start: of CT the ruler and the nodule, by default."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from standins import Project

BOTH = ["size", "nodule"]


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path)


def baselines(project: Project, **which) -> list[str]:
    """Those that were started; each reads the real dataset alone."""
    calls = project.calls("nuclei", dry=False)
    for call in calls:
        assert call.option("--features") == call.option("--real")
    return [call.option("--baseline") for call in calls]


def compared(project: Project) -> list[str]:
    """The datasets of the comparison."""
    test, = project.calls("test", dry=False)
    return test.options("--datasets")


def make_ct(project: Project, *names: str, labels: str = "binary") -> None:
    project.make_datasets(*names)
    manifest = {"modality": "ct", "truth": {"labels": labels}}
    path = project.run_dir / "datasets/real/dataset.json"
    path.write_text(json.dumps(manifest, indent=2))


def test_a_run_of_ct_is_compared_with_its_baselines(project):
    assert project.pipeline(MODALITY="ct", ARMS="layout", FIDELITY=0).returncode == 0
    assert sorted(baselines(project)) == sorted(BOTH)
    assert compared(project) == ["layout", "real", *BOTH]


@pytest.mark.parametrize(("task", "asked", "started"), [
    ("crop-binary", {"BASELINE": "all"}, BOTH), ("crop-binary", {"BASELINE": "size"}, ["size"]),
    ("crop-binary", {"BASELINE": ""}, []), ("slice-grade", {}, BOTH), ("crop-presence", {}, []),
    ("slice-presence", {}, [])])
def test_ct_has_the_ruler_and_the_nodule_but_where_a_size_is_the_class(project, task, asked,
                                                                       started):
    project.make_datasets("real", "layout")
    project.decide(modality="ct", task=task)
    assert project.compare(2, "--dry-run", **asked).returncode == 0
    assert project.compare(2, FIDELITY=0, **asked).returncode == 0
    assert sorted(baselines(project)) == sorted(started)
    assert compared(project) == ["layout", "real", *started]
    plan, = project.calls("plan", dry=False)
    assert (plan.options("--baselines") if started else plan.option("--baselines")) == \
        (started or None)
    checked = {call.option("--baseline") for call in project.calls("nuclei", dry=True)}
    assert checked == set(started)


def test_each_replicate_of_ct_has_its_own_ruler(project):
    project.leave_records()
    assert project.pipeline(MODALITY="ct", ARMS="layout", REPLICATES=2, BASELINE="size",
                            FIDELITY=0).returncode == 0
    calls = project.calls("nuclei", dry=False)
    assert [(call.option("--replicate"), call.option("--seed")) for call in calls] == [
        ("0", "0"), ("1", "1000")]
    assert [Path(call.option("--real")) for call in calls] == [
        project.run_dir / "datasets/real", project.run_dir / "replicates/001/datasets/real"]


@pytest.mark.parametrize(("labels", "started"), [("grade", BOTH), ("presence", [])])
def test_a_comparison_by_hand_knows_ct_by_its_real_images(project, labels, started):
    make_ct(project, "real", "layout", labels=labels)
    assert project.compare(2).returncode == 0
    assert compared(project) == ["layout", "real", *started]


@pytest.mark.parametrize(("settings", "said"), [
    ({"MODALITY": "ct", "BASELINE": "nuclei"}, "BASELINE is 'nuclei': expected size nodule, all"),
    ({"MODALITY": "ct", "BASELINE": "size forest"}, "BASELINE is 'size forest'"),
    ({"MODALITY": "ct", "TASK": "crop-presence", "BASELINE": "size"},
     "BASELINE is 'size': of nodule or none there is no baseline"),
    ({"BASELINE": "size"}, "BASELINE is 'size': expected nuclei, all")])
def test_a_baseline_that_a_run_cannot_have_is_found_at_its_start(project, settings, said):
    result = project.pipeline(**settings)
    assert result.returncode == 2 and said in result.stderr
    assert {call.stage for call in project.calls(dry=False)} == {"setup_env"}


def test_an_arm_may_not_have_the_name_of_a_baseline(project):
    make_ct(project, "real", "size")
    result = project.compare(2)
    assert result.returncode == 2
    assert "datasets/size has the name of the baseline" in result.stderr
    assert project.compare(2, BASELINE="nodule").returncode == 0
