"""Replicates through the job scripts: what each makes of its own, arrays, folds, pools, plans."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from standins import Project

SMALL = {"ARMS": "diffusion voronoi", "REPEATS": 2, "FIDELITY": 0}


@pytest.fixture
def project(tmp_path) -> Project:
    made = Project(tmp_path)
    made.leave_records()
    return made


def errors(result) -> list[str]:
    return [line for line in result.stderr.splitlines() if "error:" in line]


def root(project: Project, replicate: int) -> Path:
    return project.run_dir / (f"replicates/{replicate:03d}" if replicate else "")


# ------------------------------------------------------------------ what each has of its own

@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Project:
    project = Project(tmp_path_factory.mktemp("three"))
    result = project.pipeline(REPLICATES=3, SEED="05", **SMALL)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "the verdict\n"
    return project


@pytest.mark.parametrize("replicate", [0, 1, 2])
def test_a_replicate_has_a_split_trainings_and_seeds_of_its_own(replicate, three):
    place, seed = root(three, replicate) / "datasets", str(5 + 1000 * replicate)
    tumor = three.calls("tumor", dry=False)[replicate]
    assert (tumor.option("--output"), tumor.option("--seed")) == (str(place / "real"), seed)
    assert tumor.option("--input") == str(three.run_dir / "sample/images")
    for arm in ("diffusion", "voronoi"):
        call, = [call for call in three.calls(arm, dry=False)
                 if call.option("--output") == str(place / arm)]
        assert call.option("--real") == str(place / "real")
        assert call.option("--seed") in (seed, None)
    for stage in ("cnn", "nuclei"):
        calls = [call for call in three.calls(stage, dry=False)
                 if call.option("--replicate") == str(replicate)]
        assert calls
        for call in calls:
            assert call.option("--real") == str(place / "real") and call.option("--seed") == seed
            assert call.option("--results") == str(three.run_dir / "results")
            assert call.option("--repeats") == "2"
    found = [path for path in (root(three, replicate) / "logs").iterdir() if path.suffix == ".log"]
    assert {"tumor.log", "diffusion.log", "cnn-1.log"} <= {path.name for path in found}
    assert (root(three, replicate) / "decided/threads").read_text() == "4\n"


def test_of_the_replicates_there_is_one_sample_one_plan_and_one_comparison(three):
    assert len(three.calls("phantom", dry=False)) == 1
    plan, = three.calls("plan", dry=False)
    test, = three.calls("test", dry=False)
    assert plan.option("--replicates") == test.option("--replicates") == "3"
    assert plan.option("--output") == test.option("--plan") == str(
        three.run_dir / "comparison/plan.json")
    assert plan.options("--arms") == ["diffusion", "real", "voronoi"]
    assert {call.option("--baselines") for call in three.calls("plan")} == {"nuclei"}
    assert {Path(call.option("--dataset")).parent for call in three.calls("contact_sheet")} == {
        three.run_dir / "datasets"}
    stages = [call.stage for call in three.calls(dry=False)]
    assert stages.index("plan") < stages.index("cnn")


def test_only_the_first_that_lacks_an_arm_is_checked_before_it_is_made(three):
    checked = [call for call in three.calls("diffusion", dry=True)
               if call.option("--output") != str(three.run_dir / "datasets/diffusion")]
    assert not checked


def test_replicates_are_added_and_then_belong_to_the_run(project):
    assert project.pipeline(**SMALL).returncode == 0
    project.forget()
    assert project.pipeline(REPLICATES=2, **SMALL).returncode == 0
    assert {call.option("--output") for call in project.calls("diffusion", dry=True)} == {
        str(root(project, 1) / "datasets/diffusion")}
    assert project.calls("cnn", dry=True)[-1].option("--replicate") == "1"
    project.forget()
    assert project.compare(2).returncode == 0
    test, = project.calls("test", dry=False)
    assert test.option("--replicates") == "2"
    project.forget()
    assert project.pipeline(REPLICATES=1, **SMALL).returncode == 0
    test, = project.calls("test", dry=False)
    assert test.option("--replicates") == "1"
    assert {call.option("--replicate") for call in project.calls("cnn")} == {"0"}


def test_what_failed_is_named(project):
    result = project.pipeline(REPLICATES=2, FAULTS="diffusion_seg.py*replicates/001*=3", **SMALL)
    line, = [each for each in errors(result) if each.startswith("run_pipeline:")]
    assert result.returncode == 3 and "stage diffusion of replicate 1 failed (exit 3)" in line
    assert f"{root(project, 1)}/logs/diffusion.log" in line
    assert not project.calls("cnn", dry=False)


def test_killed_in_its_second_replicate_the_same_command_finishes(project):
    """By SIGKILL, which no script can note: the arms made by then are not made again."""
    arm = project.path.parent / "tools/python"
    text = arm.read_text()
    after = "[[ $words != *--dry-run* ]] || exit 0\n"
    assert after in text
    arm.write_text(text.replace(after, f"""{after}
[[ $words != "diffusion_seg.py"*replicates/001* ]] || {{ kill -KILL $PPID; exit 137; }}
"""))
    assert project.pipeline(REPLICATES=2, **SMALL).returncode == -signal.SIGKILL
    assert not project.calls("cnn", dry=False)
    arm.write_text(text)
    project.forget()
    result = project.pipeline(REPLICATES=2, **SMALL)
    assert result.returncode == 0 and result.stdout == "the verdict\n"
    assert str(root(project, 1) / "datasets/diffusion") in {
        call.option("--output") for call in project.calls("diffusion", dry=False)}
    assert {call.option("--replicate") for call in project.calls("cnn", dry=False)} == {"0", "1"}
    assert len(project.calls("test", dry=False)) == 1


def test_an_incomplete_replicate_is_named(project):
    project.make_datasets("real", "diffusion", "voronoi")
    shutil.copytree(root(project, 0) / "datasets", root(project, 1) / "datasets")
    (root(project, 1) / "datasets/voronoi/dataset.json").unlink()
    line, = errors(result := project.compare(2))
    assert result.returncode == 1
    assert f"{root(project, 1)}/datasets/voronoi is not a complete dataset" in line


# ------------------------------------------------------------------ a job array

def test_each_task_of_an_array_makes_one_and_the_last_compares(project):
    array = {"SLURM_JOB_ID": 7, "SLURM_ARRAY_TASK_MAX": 2, **SMALL}
    for task, missing in ((1, "0 2"), (2, "0"), (0, "")):
        project.forget()
        result = project.pipeline(SLURM_ARRAY_TASK_ID=task, **array)
        assert result.returncode == 0, result.stderr
        assert {call.option("--replicate") for call in project.calls("cnn")} == {str(task)}
        tumor, = project.calls("tumor", dry=False)
        assert tumor.option("--output") == str(root(project, task) / "datasets/real")
        tests = project.calls("test", dry=False)
        assert len(tests) == (0 if missing else 1) and bool(result.stdout) == (not missing)
        assert not missing or f"replicate(s) {missing} are not" in result.stderr
    assert tests[0].option("--replicates") == "3"


@pytest.mark.parametrize(("settings", "words"), [
    ({"REPLICATES": 0}, "REPLICATES is '0'"), ({"REPLICATES": 1000}, "from 1 to 999"),
    ({"REPLICATES": "two"}, "REPLICATES is 'two'"), ({"FOLDS": 2}, "FOLDS is 2"),
    ({"FOLDS": "x"}, "FOLDS is 'x'"),
    ({"REPLICATES": 2, "TUMOR_OPTIONS": "--mpp 1 --seed 3"}, "TUMOR_OPTIONS holds --seed"),
    ({"REPLICATES": 2, "TUMOR_OPTIONS": "--fold=1/5"}, "TUMOR_OPTIONS holds --fold"),
    ({"REPLICATES": 2, "DIFFUSION_OPTIONS": "--seed 3"}, "DIFFUSION_OPTIONS holds --seed"),
    ({"REPLICATES": 2, "CNN_OPTIONS": "--replicate 1"}, "CNN_OPTIONS holds --replicate"),
    ({"REPLICATES": 2, "SLURM_ARRAY_TASK_ID": 2}, "task 2 of the job array")])
def test_what_replicates_cannot_share_is_refused(settings, words, project):
    result = project.pipeline(**settings)
    line, = errors(result)
    assert result.returncode == 2 and words in line and not project.run_dir.exists()


def test_one_replicate_may_have_its_own_seed_and_fold(project):
    settings = {"TUMOR_OPTIONS": "--seed 3 --fold 1/5", "FAULTS": "voronoi*=1"}
    assert project.pipeline(ARMS="voronoi", **settings).returncode == 1
    tumor, *_ = project.calls("tumor")
    assert tumor.options("--fold") == ["1/5"]


# ------------------------------------------------------------------ folds

def test_replicates_are_folds_where_folds_are_asked_for(project):
    stop = {"ARMS": "voronoi", "FAULTS": "voronoi*=1"}
    asked = []
    for settings in ({"FOLDS": 3}, {"REPLICATES": 4}):  # the run keeps its folds
        project.forget()
        assert project.pipeline(**settings, **stop).returncode == 1
        asked.append([(call.option("--fold"), call.option("--seed"))
                      for call in project.calls("tumor", dry=False)])
    folds = [("1/3", "0"), ("2/3", "0"), ("3/3", "0")]
    assert asked == [folds, [*folds, ("1/3", "1000")]]


# ------------------------------------------------------------------ pools and samples

@pytest.mark.parametrize(("preset", "asked", "begun", "pool"), [
    ("demo", "", None, None), ("full", "", None, "10"), ("full", "3", None, "3"),
    ("full", "", "datasets/prompt/dataset.json", "1"),
    ("full", "", "datasets/.prompt.partial/.options.json", "1"),
    ("full", "", "decided/pool", "1")])
def test_full_draws_a_pool_of_ten_unless_the_run_was_begun_otherwise(
        preset, asked, begun, pool, project):
    if begun:
        (project.run_dir / begun).parent.mkdir(parents=True)
        (project.run_dir / begun).write_text(
            "1\n" if begun.startswith("decided") else '{\n  "pool": 1,\n  "seed": 0\n}\n')
    project.make_datasets("real")
    for later in ({"POOL": asked}, {}):
        project.forget()
        assert project.pipeline(PRESET=preset, ARMS="diffusion", **later,
                                FAULTS="diffusion_seg.py*[0-9]?=1").returncode == 1
        assert {call.option("--pool") for call in project.calls("diffusion")} == {pool}


@pytest.mark.parametrize(("options", "is_made"), [("", False), ("--num-patients 9", True)])
def test_a_sample_that_is_there_is_used_as_it_is(options, is_made, project):
    (project.run_dir / "sample").mkdir(parents=True)
    (project.run_dir / "sample/sample.json").write_text("{}")
    assert project.pipeline(ARMS="voronoi", SAMPLE_OPTIONS=options,
                            FAULTS="tumor*=1").returncode == 1
    assert bool(project.calls("phantom", dry=False)) == is_made
