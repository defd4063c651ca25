"""OUTLIERS, SCREEN, TUNE, TUNED, EXPLAIN: what a job asks about real's images beside."""

from __future__ import annotations

import shutil

import pytest

from standins import Call, Project

ALL = {"OUTLIERS": 1, "SCREEN": 1, "TUNE": 6, "EXPLAIN": 1}
SMALL = {"BASELINE": "", "FIDELITY": 0}


@pytest.fixture
def project(tmp_path) -> Project:
    made = Project(tmp_path)
    made.make_datasets("real", "layout")
    return made


def searches(project: Project, command: str, *, dry: bool = False) -> list[Call]:
    return [call for call in project.calls("cnn_search", dry=dry) if call.words[2] == command]


def kept(project: Project, *, dry: bool = False) -> list[Call]:
    return [call for call in project.calls("cnn", dry=dry) if "--keep-weights" in call.words]


def error(result) -> str:
    line, = [line for line in result.stderr.splitlines() if "error:" in line]
    return line


def test_what_is_asked_for_is_done_of_real_alone_and_before_the_page(project):
    options = {f"{name}_OPTIONS": f"--of-{name.lower()} x" for name in ALL}
    result = project.compare(3, SEED=5, MODEL="resnet18", CNN_OPTIONS="--of-cnn x", WORKERS=2,
                             **SMALL, **ALL, **options)
    assert result.returncode == 0, result.stderr
    real, run_dir = str(project.run_dir / "datasets/real"), project.run_dir
    (outliers,), (explain,) = (project.calls(name, dry=False)
                               for name in ("outliers", "cnn_explain"))
    (screen,), (tune,) = searches(project, "screen"), searches(project, "tune")
    network, = kept(project)
    for call, output, name in ((outliers, "outliers", "outliers"), (explain, "explain", "explain"),
                               (screen, "searches/screen", "screen"),
                               (tune, "searches/tune", "tune")):
        assert call.option("--output") == str(run_dir / output)
        assert call.option(f"--of-{name}") == "x"
    for call in (outliers, explain, screen, tune, network):
        assert call.options("--data") == [real] and call.option("--seed") == "5"
    assert (tune.option("--trials"), tune.option("--model")) == ("6", "resnet18")
    assert explain.option("--results") == network.option("--results") == str(run_dir / "kept")
    results = [call for call in project.calls("cnn", dry=False) if call not in kept(project)]
    for name in ("--seed", "--replicate", "--preset", "--model", "--of-cnn"):
        assert network.option(name) == results[0].option(name), "the same network"
    assert network.option("--repeats") == "1" and network.option("--settings") is None
    assert not any("--settings" in call.words for call in project.calls("cnn")), "not TUNED"
    stages = [call.stage for call in project.calls(dry=False)]
    assert stages.index("cnn_explain") > max(
        i for i, call in enumerate(project.calls(dry=False)) if call == network)
    test, = project.calls("test", dry=False)
    assert test.options("--explained") == [str(run_dir / "explain"), str(run_dir / "outliers")]
    assert stages[-1] == "test"


def test_by_default_nothing_is(project):
    assert project.compare(3, **SMALL).returncode == 0
    assert not {"outliers", "cnn_search", "cnn_explain"} & {call.stage for call in project.calls()}
    assert not kept(project)


@pytest.mark.parametrize(("preset", "folds", "mode", "steps"), [
    ("demo", "3", "features", ["100", "50"]), ("full", None, None, [None, None])])
def test_a_demo_s_searches_are_small(project, preset, folds, mode, steps):
    assert project.compare(3, PRESET=preset, **SMALL, **ALL).returncode == 0
    (screen,), (tune,) = searches(project, "screen"), searches(project, "tune")
    assert screen.option("--folds") == tune.option("--folds") == folds
    assert screen.option("--mode") == mode
    assert [call.option("--steps") for call in (screen, tune)] == steps
    assert {screen.option("--preset"), tune.option("--preset")} == {preset}


def test_what_was_found_is_what_all_cnns_are_trained_with(project):
    best = project.run_dir / "searches/tune/best.json"
    result = project.compare(3, TUNED=1, **SMALL, **ALL)
    assert result.returncode == 0, result.stderr
    calls = project.calls(dry=False)
    trained = [i for i, call in enumerate(calls) if call.stage == "cnn"]
    assert {calls[i].option("--settings") for i in trained} == {str(best)}
    assert len(searches(project, "tune")) == 1
    first = calls.index(searches(project, "tune")[0])
    assert first < min(trained) and first < calls.index(project.calls("outliers", dry=False)[0]), \
        "by itself, before anything that runs side by side"
    project.forget()  # repeats are added later by the same settings, without another search
    assert project.compare(4, TUNED=1, **SMALL).returncode == 0
    assert {call.option("--settings") for call in project.calls("cnn")} == {str(best)}
    assert not project.calls("cnn_search")


def test_what_begins_early_is_tuned_and_looks_at_nothing_else(project):
    result = project.compare(3, LUNGKIT_JOB="1.0.0.1", LUNGKIT_EARLY=1, LUNGKIT_ARMS="layout",
                             TUNED=1, **SMALL, **ALL)
    assert result.returncode == 0, result.stderr
    assert [call.words[1] for call in project.calls(dry=False) if "lungkit" not in call.words[2]] \
        == ["cnn_search.py", "cnn_classify.py"]
    project.forget()
    assert project.compare(3, LUNGKIT_JOB="1.0.0.1", LUNGKIT_EARLY=1, LUNGKIT_ARMS="layout",
                           **SMALL, **ALL).returncode == 0
    assert not searches(project, "tune") and not kept(project)


@pytest.mark.parametrize(("settings", "words"), [
    ({"OUTLIERS": "yes"}, "OUTLIERS is 'yes'"), ({"SCREEN": 2}, "SCREEN is '2'"),
    ({"EXPLAIN": "all"}, "EXPLAIN is 'all'"), ({"TUNE": "yes"}, "TUNE is 'yes'"),
    ({"TUNED": 1}, "there is no"), ({"TUNED": 1, "TUNE": 3, "REPLICATES": 2}, "not of 2"),
    ({"EXPLAIN": 1, "CNN_OPTIONS": "--frozen --weights x"}, "no map of its own"),
    ({"SCREEN": 1, "FAULTS": "cnn_search.py?screen*--dry-run*=2"}, "its last words"),
    ({"TUNE": 3, "FAULTS": "cnn_search.py?tune*--dry-run*=1"}, "its last words"),
    ({"OUTLIERS": 1, "FAULTS": "outliers.py*--dry-run*=2"}, "its last words"),
    ({"EXPLAIN": 1, "FAULTS": "cnn_explain.py*--dry-run*=2"}, "its last words")])
def test_what_cannot_be_done_is_one_line_before_any_training(project, settings, words):
    for more in ([], ["--dry-run"]):
        result = project.compare(2, *more, **{**SMALL, **settings})
        assert result.returncode in (1, 2) and words in error(result), result.stderr
        assert not project.calls("cnn", dry=False) and not searches(project, "tune")


def test_a_network_that_is_not_there_yet_does_not_end_a_dry_run(project):
    fault = "cnn_explain.py*--dry-run*=1"  # which says that it finds no weights
    assert project.compare(2, FAULTS=fault, EXPLAIN=1, **SMALL).returncode == 0
    assert project.calls("cnn_explain", dry=False)


@pytest.mark.parametrize("stage", ["outliers.py", "cnn_search.py?tune", "*--keep-weights",
                                   "cnn_explain.py"])
def test_what_is_stopped_stops_the_job_to_be_resumed(project, stage):
    stopped = project.compare(2, FAULTS=f"{stage}*0?=75", **SMALL, **ALL)
    assert stopped.returncode == 75 and not project.calls("test", dry=False), stopped.stderr
    assert project.calls("outliers", dry=False), "no dry run stopped it"
    project.forget()
    assert project.compare(2, **SMALL, **ALL).returncode == 0
    assert len(project.calls("cnn_explain", dry=False)) == 1


def test_of_replicates_and_of_an_array_the_first_is_looked_at(project):
    shutil.copytree(project.run_dir / "datasets", project.run_dir / "replicates/001/datasets")
    assert project.compare(2, **SMALL, **ALL).returncode == 0
    assert len(project.calls("outliers", dry=False)) == len(kept(project)) == 1
    project.forget()
    project.leave_records()
    array = {"SLURM_JOB_ID": 7, "SLURM_ARRAY_TASK_MAX": 1, **SMALL, **ALL}
    for task, looked in ((1, 0), (0, 1)):
        project.forget()
        result = project.compare(2, SLURM_ARRAY_TASK_ID=task, **array)
        assert result.returncode == 0, result.stderr
        assert len(project.calls("outliers", dry=False)) == len(kept(project)) == looked


def test_the_pipeline_hands_them_on_and_tries_them_before_an_arm_is_made(tmp_path):
    project = Project(tmp_path)
    quick = {"ARMS": "voronoi", "REPEATS": 2, **SMALL}
    bad = project.pipeline(**quick, **ALL, FAULTS="cnn_search.py?tune*--dry-run*=2")
    assert bad.returncode == 2 and not project.calls("voronoi", dry=False)
    result = project.pipeline(**quick, **ALL)
    assert result.returncode == 0, result.stderr
    for name in ("outliers", "cnn_explain"):
        assert len(project.calls(name, dry=False)) == 1
    assert searches(project, "screen")[0].option("--data") == str(
        project.run_dir / "datasets/real")
