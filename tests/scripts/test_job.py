"""The job scripts with stand-ins for the stages: what reaches which stage, signals, statuses."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from standins import ARMS, ROOT, Project

GENERATORS = ("diffusion", "prompt", "context")
ENVIRONMENT = {"VENV": "/a/venv", "PYTHON": "/a/python", "MODULES": "python/3.11 cuda/12.8",
               "TORCH_INDEX_URL": "https://index.invalid/cu128"}


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path)


def errors(result) -> list[str]:
    return [line for line in result.stderr.splitlines() if "error:" in line]


# ------------------------------------------------------------------ what reaches which stage

LOOKS = ("OUTLIERS", "SCREEN", "TUNE", "EXPLAIN")
# variable: its value, and (stage, option, value) that must be seen of it; "*" is every stage's
PIPELINE = {
    "MODALITY": ("tissue", []),
    "TASK": ("", []),
    "TASKS": ("", []),
    "INPUT": ("images", [("tumor", "--input", "{cwd}/images")]),
    "BENIGN": ("healthy", [("tumor", "--benign", "healthy")]),
    "GROUPS_CSV": ("groups.csv", [("tumor", "--groups", "{cwd}/groups.csv")]),
    "RUN": ("elsewhere", [("tumor", "--output", "{cwd}/elsewhere/datasets/real"),
                          *((arm, "--output", "{cwd}/elsewhere/datasets/" + arm) for arm in ARMS),
                          *((arm, "--real", "{cwd}/elsewhere/datasets/real") for arm in ARMS),
                          ("cnn", "--results", "{cwd}/elsewhere/results"),
                          ("test", "--output", "{cwd}/elsewhere/comparison")]),
    "PRESET": ("full", [(stage, "--preset", "full") for stage in ("tumor", *ARMS, "cnn")]),
    "REPEATS": ("3", [(stage, "--repeats", "3") for stage in ("cnn", "nuclei", "test", "plan")]),
    "REPLICATES": ("1", [(stage, "--replicates", "1") for stage in ("test", "plan")]),
    "FOLDS": ("4", [("tumor", "--fold", "1/4")]),
    "SEED": ("41", [(stage, "--seed", "41") for stage in ("tumor", *GENERATORS, "cnn", "nuclei")]),
    "BASE_MODEL": ("hub/model", [(arm, "--base-model", "hub/model")
                                 for arm in ("prompt", "context")]),
    "ADAPTER": ("lora", [(arm, "--adapter", "lora") for arm in ("prompt", "context")]),
    "POOL": ("5", [(arm, "--pool", "5") for arm in GENERATORS]),
    "ARMS": ("voronoi diffusion prompt context", []),
    "JOBS": ("4", [("voronoi", "--workers", "2")]),  # a quarter of eight cores
    "WORKERS": ("2", []),
    "MODEL": ("resnet18", [("cnn", "--model", "resnet18")]),
    "METRIC": ("auroc", [(stage, "--metric", "auroc") for stage in ("test", "plan")]),
    "MARGIN": ("0.03", [(stage, "--margin", "0.03") for stage in ("test", "plan")]),
    "FORCE": ("0", []),
    "MAX_RESTARTS": ("7", []),
    "CONTROLS": ("noise", [("controls", "--control", "noise")]),
    "MIX": ("voronoi:0.5", [("mix", "--dose", "0.5")]),
    **{f"{stage.upper()}_OPTIONS": (f"--of-{stage} x", [(stage, f"--of-{stage}", "x")])
       for stage in ("tumor", *ARMS, "controls", "mix", "cnn", "test")},
    "BASELINE": ("nuclei", [("nuclei", "--features", "{cwd}/elsewhere/datasets/voronoi"),
                            ("nuclei", "--baseline", "nuclei")]),
    "UNET_OPTIONS": ("--of-unet x", []),
    **{f"{name}_OPTIONS": (f"--of-{name.lower()} x", []) for name in LOOKS},
    **{name: (value, [("setup_env", name, value)]) for name, value in ENVIRONMENT.items()},
}
# held by tests of their own
ASKED = "test_what_is_asked_for_is_done"
ELSEWHERE = {"MODALITY": "test_ct_is_another_maker", "TASK": "test_ct_is_another_maker",
             "TASKS": "test_each_task_is_a_run", "SEGMENT": "test_unets_are_trained_on",
             "UNET_OPTIONS": "test_unets_are_trained_on",
             **{name: ASKED for each in LOOKS for name in (each, f"{each}_OPTIONS")},
             "TUNED": "test_what_was_found_is_what_all_cnns_are_trained_with",
             "ARMS": "test_arms_are_those_named", "WORKERS": "test_trainings_at_a_time",
             "MAX_RESTARTS": "test_a_stopped_job", "FORCE": "test_a_plan_that_is_refused",
             "SAMPLE_OPTIONS": "test_without_input_the_sample_is_made_first",
             "FIDELITY": "test_fidelity_is_measured"}
COMPARISON = {
    "RUN": ("elsewhere", [("cnn", "--real", "{cwd}/elsewhere/datasets/real"),
                          ("cnn", "--results", "{cwd}/elsewhere/results"),
                          ("nuclei", "--results", "{cwd}/elsewhere/results"),
                          ("contact_sheet", "--output", "{cwd}/elsewhere/sheets/*.png"),
                          ("test", "--sheets", "{cwd}/elsewhere/sheets")]),
    "DATASETS": ("real voronoi", []),
    "FIDELITY": ("0", []),
    **{name: ("0", []) for name in ("SEGMENT", "OUTLIERS", "SCREEN", "EXPLAIN", "TUNED")},
    "TUNE": ("", []),
    **{name: PIPELINE[name] for name in ("PRESET", "MODEL", "METRIC", "MARGIN", "FORCE", "BASELINE",
                                         "WORKERS", "CNN_OPTIONS", "UNET_OPTIONS", "TEST_OPTIONS",
                                         *(f"{name}_OPTIONS" for name in LOOKS),
                                         "REPLICATES", "MAX_RESTARTS", *ENVIRONMENT)},
    "PRESET": ("full", [("cnn", "--preset", "full")]),
    "SEED": ("41", [("cnn", "--seed", "41"), ("nuclei", "--seed", "41")]),
}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Project:
    """A pipeline in which every documented variable is set."""
    project = Project(tmp_path_factory.mktemp("pipeline"))
    (project.path / "images").mkdir()
    (project.path / "groups.csv").touch()
    result = project.pipeline(**{name: value for name, (value, _) in PIPELINE.items()},
                              COMPARE_OPTIONS="an option nobody documents")
    assert result.returncode == 0, result.stderr
    return project


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> Project:
    project = Project(tmp_path_factory.mktemp("comparison"))
    project.make_datasets("real", "voronoi", "diffusion")
    project.run_dir.rename(project.path / "elsewhere")
    result = project.compare(3, **{name: value for name, (value, _) in COMPARISON.items()})
    assert result.returncode == 0, result.stderr
    assert result.stdout == "the verdict\n"
    return project


@pytest.mark.parametrize(("script", "name"), [
    *(("pipeline", name) for name in PIPELINE), *(("comparison", name) for name in COMPARISON)])
def test_a_variable_reaches_every_stage_it_concerns(script, name, request):
    project = request.getfixturevalue(script)
    _, expected = {"pipeline": PIPELINE, "comparison": COMPARISON}[script][name]
    for stage, option, value in expected:
        # the dry run of the tests looks at the options alone: results are not there yet
        calls = project.calls(stage, dry=False if stage == "test" else None)
        assert calls, f"{stage} was not started"
        pattern = re.escape(value.format(cwd=project.path)).replace(r"\*", "[a-z]+")
        assert all(re.fullmatch(pattern, call.option(option) or "") for call in calls), \
            (stage, option, calls)


@pytest.fixture(scope="module")
def ct(tmp_path_factory) -> Project:
    """A pipeline of simulated scans, of one fold."""
    project = Project(tmp_path_factory.mktemp("ct"))
    assert project.pipeline(MODALITY="ct", FOLDS=3, REPLICATES=1, RUN="ct").returncode == 0
    return project


@pytest.mark.parametrize("script", ["pipeline", "comparison", "ct"])
def test_every_stage_knows_the_options_that_it_is_given(script, request):
    started = set()
    for call in request.getfixturevalue(script).calls():
        if call.words[0] != "python":
            continue
        if call.words[1] == "-m":
            name, words = call.words[2], call.words[3:]
            name += ".sample" * name.startswith("lungkit.phantom")  # their __main__ runs this
        else:
            name, words = Path(call.words[1]).stem, call.words[2:]
        words = re.sub(r"--of-\w+\tx(\t|$)", "", "\t".join(words)).split("\t")
        importlib.import_module(name).build_parser().parse_args([w for w in words if w])
        started.add(call.stage)
    compared = {"cnn", "nuclei", "plan", "contact_sheet", "test"}
    assert started >= {
        "pipeline": {"tumor", *ARMS, *compared}, "comparison": compared,
        "ct": {"phantom.thorax", "ct", "diffusion", "layout", "cnn", "test"}}[script]


def test_workers_are_trainings_at_a_time_of_the_pipeline_too(pipeline):
    assert len(pipeline.calls("cnn", dry=False)) == 2


def test_paths_are_meant_from_where_the_user_is(project, tmp_path):
    (tmp_path / "here/images").mkdir(parents=True)
    for name in ("groups.csv", "base.safetensors"):
        (tmp_path / "here" / name).touch()
    settings = {"INPUT": "images", "GROUPS_CSV": "groups.csv", "RUN": "run",
                "BASE_MODEL": "base.safetensors"}
    result = project.bash(project.path / "run_pipeline.slurm", cwd=tmp_path / "here", ARMS="prompt",
                          FAULTS="prompt_seg.py*=1", **settings)
    assert result.returncode == 1
    tumor, = project.calls("tumor")
    assert [tumor.option(name) for name in ("--input", "--groups", "--output")] == \
        [str(tmp_path / "here" / name) for name in ("images", "groups.csv", "run/datasets/real")]
    assert {call.option("--base-model") for call in project.calls("prompt")} == {
        str(tmp_path / "here/base.safetensors")}


def test_only_what_was_asked_is_passed(project):
    """Without a setting a stage's own default holds: no option, not an empty one."""
    (project.path / "images").mkdir()
    assert project.pipeline(INPUT="images").returncode == 0
    for stage, option in [("tumor", "--groups"), ("tumor", "--benign"), ("diffusion", "--pool"),
                          ("prompt", "--base-model"), ("cnn", "--model")]:
        assert {call.option(option) for call in project.calls(stage)} == {None}, (stage, option)
    assert not [call for call in project.calls() if "" in call.words[1:]
                and call.stage not in ("setup_env",)]
    tumor, = project.calls("tumor")
    assert tumor.option("--seed") == "0" and tumor.option("--preset") == "demo"
    assert {call.option("--adapter") for call in project.calls("prompt")} == {"dora"}
    test, = project.calls("test", dry=False)
    assert test.option("--metric") is None and test.option("--repeats") == "6"


def documented(script: str) -> set[str]:
    """The variables that a script's first lines name."""
    head = (ROOT / script).read_text().split("\nset -euo pipefail")[0].split("environment:\n")[-1]
    named = set(re.findall(r"^([A-Z_]+)=", head, re.MULTILINE))
    for line in head.splitlines():
        if line.startswith("#"):
            named |= set(re.findall(r"\b(?:[A-Z]+_OPTIONS|BASELINE|VENV|PYTHON|MODULES|"
                                    r"TORCH_INDEX_URL)\b", line))
    return named


def read_by(script: str) -> set[str]:
    """The variables that a script's code and lungkit/job.sh look at."""
    code = (ROOT / script).read_text() + (ROOT / "lungkit/job.sh").read_text()
    code = re.sub(r"(^|\s)#.*", "", code)
    named = set(re.findall(r"\$\{?!?([A-Z][A-Z_]*)\b", code))
    return {name for name in named if not name.startswith(("SLURM_", "BASH_", "LUNGKIT_"))} - {
        "PWD", "PATH", "ENVIRONMENT", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HOSTNAME",
        "SECONDS", "STOP_SEC", "TMPDIR"}


@pytest.mark.parametrize(("script", "table"), [
    ("run_pipeline.slurm", PIPELINE), ("compare_models.sh", COMPARISON)])
def test_what_is_documented_is_what_is_read_and_tested(script, table):
    by_stage = {f"{name.upper()}_OPTIONS" for name in (
        "sample", "tumor", "ct", "layout", "controls", "mix", *ARMS)}
    inherited = {*ENVIRONMENT, *({"BASELINE", "CNN_OPTIONS", "TEST_OPTIONS", "UNET_OPTIONS",
                                  *(f"{name}_OPTIONS" for name in LOOKS)}
                                 | by_stage if script == "run_pipeline.slurm" else ())}
    assert documented(script) == read_by(script) | inherited
    tested = set(table) | (by_stage if script == "run_pipeline.slurm" else set())
    assert tested == documented(script)
    there = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert all(f"def {test}" in there for test in ELSEWHERE.values())
    untested = {name for name, (_, expected) in table.items() if not expected}
    assert untested <= {*ELSEWHERE, "DATASETS"}


def test_what_setup_env_documents_is_what_it_reads():
    head, code = (ROOT / "setup_env.sh").read_text().split("\n\nlungkit_load_modules()")
    documented_names = set(re.findall(r"^#   ([A-Z_]+)  ", head, re.MULTILINE))
    read_names = set(re.findall(r"\$\{([A-Z_]+):?-", code))
    assert documented_names == read_names - {"PIP_INDEX_URL"}


# ------------------------------------------------------------------ run_pipeline.slurm

def test_without_input_the_sample_is_made_first(project):
    result = project.pipeline(SAMPLE_OPTIONS="--num-patients 4", SEED=3, GPUS="0 1",
                              FAULTS="tumor*=1")
    assert result.returncode == 1, result.stderr
    sample, tumor = [call for call in project.calls(dry=False) if call.stage != "setup_env"]
    assert (sample.stage, tumor.stage) == ("phantom", "tumor")
    assert sample.option("--output") == str(project.run_dir / "sample")
    assert sample.option("--num-patients") == "4"
    assert tumor.option("--input") == str(project.run_dir / "sample/images")
    assert tumor.option("--groups") == str(project.run_dir / "sample/groups.csv")
    assert tumor.option("--benign") == "lung_n" and tumor.option("--source-mpp") == "0.80357"
    assert tumor.option("--preset") == "demo" and tumor.option("--seed") == "3"


def test_ct_is_another_maker_of_real_and_has_arms_of_its_own(project):
    (project.path / "scans").mkdir()
    result = project.pipeline(MODALITY="ct", INPUT="scans", TASK="slice-grade", SEED=3,
                              CT_OPTIONS="--min-readers 2", LAYOUT_OPTIONS="--render labels",
                              FIDELITY=0)
    assert result.returncode == 0, result.stderr
    made, = project.calls("ct")
    assert [made.option(f"--{name}") for name in ("input", "output", "view", "labels", "seed",
                                                  "preset", "min-readers")] == \
        [str(project.path / "scans"), str(project.run_dir / "datasets/real"), "slice", "grade", "3",
         "demo", "2"]
    made = {call.stage for call in project.calls(dry=False)}
    assert made >= {"diffusion", "prompt", "layout", "cnn"}
    assert {call.option("--render") for call in project.calls("layout")} == {"labels"}
    for stage in ("tumor", "phantom", "voronoi", "context"):
        assert not project.calls(stage), stage
    kept = project.run_dir / "decided"
    assert [(kept / name).read_text() for name in ("modality", "task")] == ["ct\n", "slice-grade\n"]


@pytest.mark.parametrize(("folds", "seeds"), [(None, ["0", "1000"]), (3, ["0", "0"])])
def test_replicates_of_ct_have_a_split_each(project, folds, seeds):
    more = {"FOLDS": folds} if folds else {"REPLICATES": 2}
    project.pipeline(MODALITY="ct", ARMS="layout", FAULTS="layout*=1", **more)
    made = project.calls("ct", dry=False)
    assert [call.option("--seed") for call in made][:2] == seeds
    assert [call.option("--fold") for call in made][:2] == (["1/3", "2/3"] if folds else [None] * 2)


def test_ct_without_input_is_a_simulated_thorax(project):
    assert project.pipeline(MODALITY="ct", RUN="", SAMPLE_OPTIONS="--num-patients 4",
                            FAULTS="ct*=1").returncode == 1
    sample, made = [call for call in project.calls(dry=False) if call.stage != "setup_env"]
    run_dir = project.path / "runs/ct-crop-binary-demo"
    assert (sample.stage, made.stage) == ("phantom.thorax", "ct")
    assert sample.option("--output") == str(run_dir / "sample")
    assert sample.option("--num-patients") == "4"
    assert made.option("--input") == str(run_dir / "sample/LIDC-IDRI")
    assert (made.option("--view"), made.option("--labels")) == ("crop", "binary")


def test_a_run_of_ct_goes_on_as_it_was_begun(project):
    first = {"MODALITY": "ct", "TASK": "crop-grade"}
    assert project.pipeline(**first, FAULTS="ct*=1").returncode == 1
    project.forget()
    assert project.pipeline(FAULTS="diffusion_seg.py*=1").returncode == 1
    made, = project.calls("ct", dry=False)
    assert made.option("--labels") == "grade" and not project.calls("tumor")
    for other in ({"MODALITY": "tissue"}, {"TASK": "crop-binary"}):
        result = project.pipeline(**other)
        assert result.returncode == 2 and "was begun with" in errors(result)[0]


@pytest.mark.parametrize(("settings", "said"), [
    ({"MODALITY": "mri"}, "expected tissue or ct"), ({"TASK": "crop-binary"}, "of MODALITY=ct"),
    *(({"MODALITY": "ct", "TASK": task}, "such as crop-binary")
      for task in ("crop", "binary", "crop-binary-grade", "segment")),
    ({"MODALITY": "ct", "BENIGN": "x"}, "of tissue"),
    ({"MODALITY": "ct", "REPLICATES": 2, "CT_OPTIONS": "--seed 3"}, "CT_OPTIONS holds --seed")])
def test_options_of_ct_that_contradict_each_other(project, settings, said):
    result = project.pipeline(**settings)
    assert result.returncode == 2 and said in errors(result)[0] and not project.calls()
    assert len(errors(result)) == 1


@pytest.mark.parametrize(("settings", "preset", "repeats"), [
    ({}, "demo", "6"), ({"GPUS": "0"}, "full", "30"),
    ({"GPUS": "0", "PRESET": "demo"}, "demo", "6"),
    ({"PRESET": "full"}, "full", "30"), ({"GPUS": "0", "REPEATS": "2"}, "full", "2")])
def test_an_input_has_the_full_preset_where_there_is_a_gpu(settings, preset, repeats, project):
    (project.path / "images").mkdir()
    assert project.pipeline(INPUT="images", ARMS="voronoi", FAULTS="tumor*=1", RUN="",
                            **settings).returncode == 1
    tumor, = project.calls("tumor")
    assert tumor.option("--preset") == preset
    assert tumor.option("--output") == str(project.path / f"runs/images-{preset}/datasets/real")
    log = project.path / f"runs/images-{preset}/logs/tumor.log"
    assert log.read_text() == "its last words\n"


def test_every_arm_passes_a_dry_run_before_the_first_is_made(project):
    result = project.pipeline(FAULTS="voronoi_seg.py*--dry-run*=2", JOBS=1)
    assert result.returncode == 2
    assert "stage options voronoi failed (exit 2): its last words" in result.stderr
    assert [call.stage for call in project.calls(dry=True)] == list(ARMS)
    assert not project.calls("phantom") and not project.calls("tumor", dry=False)
    project.make_datasets("real", "context", "prompt")
    project.forget()
    result = project.pipeline(FAULTS="voronoi_seg.py*--dry-run*=1", JOBS=1)
    assert result.returncode == 1
    assert "stage check voronoi failed (exit 1): its last words" in result.stderr
    assert not [arm for arm in ARMS if project.calls(arm, dry=False)]
    project.forget()
    assert project.pipeline(JOBS=1, FAULTS="*contact_sheet*=1").returncode == 1
    arms = [call.stage for call in project.calls(dry=True) if call.stage in ARMS]
    assert arms == ["diffusion", "voronoi"]
    made = [call.stage for call in project.calls(dry=False) if call.stage in ARMS]
    assert made == list(ARMS)  # each says itself whether it is complete with these options


def test_arms_are_those_named(project):
    (project.path / "mri_seg.py").touch()
    assert project.pipeline(ARMS="mri voronoi", JOBS=1, FIDELITY=0).returncode == 0
    called = [call.stage for call in project.calls(dry=False)]
    assert [name for name in called if name in (*ARMS, "mri")] == ["mri", "voronoi"]
    test, = project.calls("test", dry=False)
    assert test.words[test.words.index("--datasets") + 1:][:4] == [
        "mri", "real", "voronoi", "nuclei"]


@pytest.mark.parametrize(("fault", "exit_status", "never_started"), [
    ("*phantom*=1", 1, "tumor"), ("tumor_seg.py*[0-9]?=75", 75, "voronoi"),
    ("*contact_sheet*=1", 1, "cnn"),
    ("cnn_classify.py*--dry-run*=2", 2, "nuclei"), ("cnn_classify.py*--seed?0?=75", 75, "test"),
    ("nuclei_classify.py*=1", 1, "test"), ("wilcoxon_test.py*=1", 1, "nothing")])
def test_the_first_failure_is_the_jobs_status_and_its_end(
        fault, exit_status, never_started, project):
    result = project.pipeline(ARMS="voronoi", FIDELITY=0, FAULTS=fault)
    assert result.returncode == exit_status, result.stderr
    assert not project.calls(never_started, dry=False)
    assert bool(errors(result)) == (exit_status != 75) and result.stdout == ""


# ------------------------------------------------------------------ compare_models.sh

def test_trainings_at_a_time(project):
    """By that many identical processes, each for all datasets, never by more than trainings."""
    project.make_datasets("real", "diffusion")
    for settings, processes, threads in [({"WORKERS": 3}, 3, "1"), ({}, 8, "1"),
                                         ({"WORKERS": 9}, 8, "1"),
                                         ({"GPUS": "0 1"}, 2, "4"),
                                         ({"OMP_NUM_THREADS": 5}, 8, "5")]:
        settings = {"WORKERS": "", "FIDELITY": 0, **settings}
        project.forget()
        shutil.rmtree(project.run_dir / "decided", ignore_errors=True)
        assert project.compare(4, **settings).returncode == 0
        calls = project.calls("cnn", dry=False)
        assert len(calls) == processes and {call.threads for call in calls} == {threads}
        assert {call.gpu for call in calls} == set(settings.get("GPUS", "").split() or [""])
        assert {call.option("--repeats") for call in calls} == {"4"}
        assert not project.calls("nuclei")  # no features of nuclei without voronoi


@pytest.mark.parametrize(("settings", "names"), [
    ({}, ["diffusion", "real", "voronoi", "nuclei"]),
    ({"BASELINE": ""}, ["diffusion", "real", "voronoi"]),
    ({"DATASETS": "real diffusion"}, ["real", "diffusion"])])
def test_the_datasets_compared(settings, names, project):
    project.make_datasets("real", "voronoi", "diffusion")
    (project.run_dir / "datasets/half_made").mkdir()
    assert project.compare(2, FIDELITY=0, **settings).returncode == 0
    test, = project.calls("test", dry=False)
    first = test.words.index("--datasets") + 1
    assert test.words[first:test.words.index("--repeats")] == names
    trained = {tuple(Path(path).name for path in call.options("--data"))
               for call in project.calls("cnn", dry=False)}
    assert trained == {tuple(name for name in names if name != "nuclei")}
    assert bool(project.calls("nuclei")) == ("nuclei" in names)
    assert test.words[2] == str(project.run_dir / "results")


@pytest.mark.parametrize(("made", "settings", "exit_status", "words"), [
    (["real"], {}, 1, "holds one dataset only (real)"),
    (["voronoi"], {}, 1, "datasets/real is not"),
    (["real", "voronoi"], {"DATASETS": "real prompt"}, 1,
     "datasets/prompt is not a complete dataset"),
    (["real", "voronoi"], {"BASELINE": "forest"}, 2, "BASELINE is 'forest'"),
    (["real", "voronoi"], {"SEED": "x"}, 2, "SEED is 'x'"),
    (["real", "voronoi"], {"WORKERS": "0"}, 2, "WORKERS is '0'"),
    (["real", "voronoi"], {"MAX_RESTARTS": "0"}, 2, "MAX_RESTARTS is '0'"),
    (["real", "voronoi", "nuclei"], {}, 2, "datasets/nuclei has the name of the baseline"),
    (["real", "voronoi"], {"PRESET": "big"}, 2, "PRESET is 'big'")])
def test_a_comparison_that_cannot_be_is_one_line(made, settings, exit_status, words, project):
    project.make_datasets(*made)
    result = project.compare(2, **settings)
    assert result.returncode == exit_status
    line, = errors(result)
    assert words in line and not project.calls()


def test_an_arm_may_be_called_nuclei_where_there_is_no_baseline(project):
    project.make_datasets("real", "voronoi", "nuclei")
    assert project.compare(2, BASELINE="").returncode == 0


@pytest.mark.parametrize(("status", "goes_on"), [(2, False), (1, True)])
def test_a_misspelt_score_ends_the_job_before_any_training(project, status, goes_on):
    """1: there are no results yet to look at."""
    project.make_datasets("real", "voronoi")
    result = project.compare(2, METRIC="aurok", FAULTS=f"wilcoxon_test.py*--dry-run*={status}")
    check, *_ = project.calls("test", dry=True)
    assert check.option("--metric") == "aurok" and check.option("--datasets") is None
    assert result.returncode == (0 if goes_on else 2)
    assert bool(project.calls("cnn", dry=False)) == goes_on
    if not goes_on:
        line, = errors(result)
        assert "check test failed (exit 2): its last words" in line


def test_results_that_are_half_made_are_not_held_against_the_options(project):
    """--datasets of what is not trained yet is no bad option: a requeued job goes on."""
    project.make_datasets("real", "voronoi")
    result = project.compare(2, TEST_OPTIONS="--datasets real voronoi",
                             FAULTS="wilcoxon_test.py*/results?--output*--dry-run*=2")
    assert result.returncode == 0, result.stderr
    check, = project.calls("test", dry=True)
    assert check.words[-4:] == ["--datasets", "real", "voronoi", "--dry-run"]
    test, = project.calls("test", dry=False)
    assert test.words[2] == str(project.run_dir / "results")


def test_fidelity_is_measured_of_every_replicate_beside_its_trainings_and_shown(project):
    project.make_datasets("real", "voronoi")
    shutil.copytree(project.run_dir / "datasets", project.run_dir / "replicates/001/datasets")
    assert project.compare(2, REPLICATES=2).returncode == 0
    made = {call.option("--real"): call for call in project.calls("tools.fidelity", dry=False)}
    places = [str(folder / "datasets") for folder in
              (project.run_dir, project.run_dir / "replicates/001")]
    assert sorted(made) == [f"{place}/real" for place in places]
    for place in places:
        assert made[f"{place}/real"].options("--data") == [f"{place}/real", f"{place}/voronoi"]
    order = [call.stage for call in project.calls(dry=False) if call.words[0] == "python"]
    assert order.index("tools.fidelity") < order.index("test")
    assert project.calls("test", dry=False)[0].options("--fidelity") == places


def test_fidelity_is_not_measured_where_it_is_not_wanted(project):
    project.make_datasets("real", "voronoi")
    assert project.compare(2, FIDELITY=0).returncode == 0
    assert not project.calls("tools.fidelity")
    assert project.calls("test", dry=False)[0].option("--fidelity") is None


def test_fidelity_that_cannot_be_measured_ends_the_job_before_the_trainings(project):
    project.make_datasets("real", "voronoi")
    result = project.compare(2, FAULTS="*tools.fidelity*--dry-run*=2")
    assert result.returncode == 2 and "its last words" in result.stderr
    assert not project.calls("cnn", dry=False)


def test_sheets_and_checks_are_of_what_is_new(project):
    project.make_datasets("real", "voronoi")
    (project.run_dir / "sheets").mkdir()
    for name, dataset_sec, sheet_sec in (("voronoi", 1, 2), ("real", 2, 1)):  # real was made again
        (project.run_dir / f"sheets/{name}.png").touch()
        os.utime(project.run_dir / f"sheets/{name}.png", (sheet_sec, sheet_sec))
        os.utime(project.run_dir / f"datasets/{name}/dataset.json", (dataset_sec, dataset_sec))
    for name, repeat in (("voronoi", 0), ("voronoi", 1), ("real", 0)):
        folder = project.run_dir / f"results/{name}/replicate_000"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"repeat_{repeat:04d}.json").touch()
    assert project.compare(2).returncode == 0
    sheet, = project.calls("contact_sheet")
    assert sheet.option("--dataset") == str(project.run_dir / "datasets/real")
    assert len(project.calls("cnn", dry=True)) == 1
    (project.run_dir / "results/real/replicate_000/repeat_0001.json").touch()
    project.forget()
    assert project.compare(2).returncode == 0  # both have all that is asked for
    assert not project.calls("cnn", dry=True)


@pytest.mark.parametrize("refuse", ["plan*--dry-run*=2", "plan*--replicates?1?=2"])
def test_a_plan_without_an_answer_ends_the_job_before_anything_is_made(refuse, project):
    result = project.pipeline(FAULTS=f"*compare.{refuse}", ARMS="diffusion voronoi")
    assert result.returncode == 2 and "plan failed (exit 2)" in errors(result)[0]
    made = {call.stage for call in project.calls(dry=False)}
    assert not made & ({"cnn"} | ({"phantom", "diffusion"} if "dry" in refuse else set()))


def test_the_plan_is_shown_before_the_first_arm_is_made(project):
    """Once real is there: before, it knows no test groups."""
    python = project.path.parent / "tools/python"
    python.write_text(python.read_text().replace("#!/bin/bash\n", """#!/bin/bash
        [[ $* != *compare.plan* ]] || echo "of ${*: -1}" >&2\n"""))
    result = project.pipeline(ARMS="diffusion", REPEATS=2, FAULTS="diffusion_seg.py*[0-9]?=1")
    assert result.returncode == 1
    assert result.stderr.count("[check compare] of --dry-run") == 1
    assert "[options compare]" not in result.stderr


def test_a_plan_that_is_refused_is_forced_and_has_the_options_of_the_test(project):
    project.make_datasets("real", "diffusion")
    assert project.compare(2, FORCE=1, TEST_OPTIONS="--alpha 0.01 --benign x --margin=0.03",
                           MARGIN="0.05", METRIC="auroc").returncode == 0
    plan, = project.calls("plan", dry=False)
    test, = project.calls("test", dry=False)
    assert "--force" in plan.words and "--benign" not in plan.words
    for call in (plan, test):
        assert call.option("--alpha") == "0.01" and "--margin=0.03" in call.words
        assert (call.option("--margin"), call.option("--metric")) == ("0.05", "auroc")
    project.forget()
    assert project.compare(2, FORCE=0).returncode == 0
    plan, = project.calls("plan", dry=False)
    assert "--force" not in plan.words and plan.option("--metric") is None


@pytest.mark.parametrize(("arguments", "preset", "repeats"), [
    ([], "demo", "6"), ([], "full", "30"), (["7"], "full", "7")])
def test_repeats_are_by_preset_or_as_asked(arguments, preset, repeats, project):
    project.make_datasets("real", "diffusion")
    project.compare(*arguments, PRESET=preset, FAULTS="cnn_classify.py*=1")
    assert {call.option("--repeats") for call in project.calls("cnn")} == {repeats}


# ------------------------------------------------------------------ lungkit/job.sh

def test_an_allocation_is_shared_out_by_srun(project):
    project.make_datasets("real", "diffusion")
    slurm = {"SLURM_JOB_ID": 9, "SLURM_NTASKS": 4, "SLURM_JOB_NUM_NODES": 2,
             "SLURM_CPUS_PER_TASK": 3, "SLURM_MEM_PER_NODE": 9000, "SLURM_GPUS_ON_NODE": 2}
    assert project.compare(8, **slurm, GPUS="0 1", WORKERS="").returncode == 0
    assert len(project.calls("cnn", dry=False)) == 4
    assert {call.threads for call in project.calls("cnn")} == {"3"}
    assert {tuple(call.words[1:call.words.index("python")]) for call in project.calls("srun")} == {
        ("--exact", "--export=ALL", "--nodes=1", "--ntasks=1", "--cpus-per-task=3",
         "--kill-on-bad-exit=0", "--mem=4500M", "--gres=gpu:1")}


@pytest.mark.parametrize(("settings", "wanted", "slots", "threads", "prefix"), [
    ({}, "", 2, 4, ""), ({}, "4", 4, 2, ""), ({}, "16", 16, 1, ""),
    ({"QUOTA": "250000 100000"}, "", 2, 1, ""),
    ({"QUOTA": "350000 100000"}, "", 2, 2, ""), ({"QUOTA": "max 100000"}, "", 2, 4, ""),
    ({"GPUS": "0 1 2 3"}, "", 4, 2, ""), ({"OMP_NUM_THREADS": "5"}, "", 2, 5, ""),
    ({"GPUS": "0 1 2 3", "CUDA_VISIBLE_DEVICES": "3"}, "", 1, 8, ""),
    ({"GPUS": "0 1", "CUDA_VISIBLE_DEVICES": "-1"}, "", 2, 4, ""),
    ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1"}, "", 2, 4, ""),
    ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "3"}, "", 3, 1, "srun"),
    ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "3"}, "2", 2, 1, "srun"),
    ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "3"}, "9", 3, 1, "srun")])
def test_the_machine_is_divided(settings, wanted, slots, threads, prefix, project):
    if "QUOTA" in settings:
        project.quota_path.write_text(settings["QUOTA"] + "\n")
    result = project.job(f"share_out '{wanted}' 2; echo $slots $threads ${{prefix[0]:-}}",
                         **settings)
    assert result.stdout.split() == [str(slots), str(threads), *prefix.split()], result.stderr


STAGES = """
stage_command() { echo "$1" >>begun; command=(bash -c "${!1}"); }
"""
AFTER_THE_OTHER = "until [[ -s logs/timings.tsv ]]; do sleep 0.02; done; "


@pytest.mark.parametrize(("stages", "status"), [
    ({"a": "true", "b": "true"}, 0), ({"a": "exit 75", "b": "true"}, 75),
    ({"a": "exit 3", "b": AFTER_THE_OTHER + "exit 4"}, 3),
    ({"a": "exit 75", "b": AFTER_THE_OTHER + "exit 4"}, 4),  # a failure tells more than a stop
    ({"a": "exit 4", "b": AFTER_THE_OTHER + "exit 75"}, 4)])
def test_stages_side_by_side_end_with_the_worst(stages, status, project):
    result = project.job(f"{STAGES} begin_job; run_stages 2 a b", **stages)
    assert result.returncode == status, result.stderr
    assert len(errors(result)) == sum("75" not in text and "exit" in text
                                      for text in stages.values())


def test_a_failure_stops_none_that_runs_and_starts_no_more(project):
    result = project.job(f"{STAGES} begin_job; run_stages 2 a b c 2>told", a="exit 3", c="exit 0",
                         b="until grep -q 'a failed' told; do sleep 0.02; done; touch ended")
    assert result.returncode == 3
    assert (project.run_dir / "ended").exists()
    assert (project.run_dir / "begun").read_text().split() == ["a", "b"]


def test_a_job_stopped_before_all_stages_were_started_says_so(project):
    result = project.job(f"{STAGES} begin_job; run_stages 1 a b || end_job $?; end_job 0",
                         a="kill -TERM $PPID; exit 0", b="exit 0")
    assert result.returncode == 75, result.stderr
    assert (project.run_dir / "begun").read_text() == "a\n"
    assert "run the same command again" in result.stderr


@pytest.mark.parametrize(("sent", "prefix", "got"), [
    ("TERM", "", "TERM"), ("USR2", "", "TERM"), ("INT", "", "TERM"), ("USR2", "srun --x", "USR2"),
    ("TERM", "srun --x", "USR2")])
def test_a_signal_is_passed_on_once_to_every_stage(sent, prefix, got, project):
    """srun passes USR2 on, and takes TERM as an order to kill."""
    stage = """
        for name in TERM USR2; do trap "echo $name >>got" $name; done
        echo >>ready; until [[ -e end ]]; do sleep 0.02; done; exit 75"""
    control = f"""
        trap '' TERM USR2; until [[ $(wc -l <ready) == 2 ]]; do sleep 0.02; done; kill -{sent} $PPID
        until [[ $(wc -l <got) == 2 ]]; do sleep 0.02; done; kill -{sent} $PPID
        sleep 0.1; touch end"""
    result = project.job(
        f"{STAGES} begin_job; touch ready got; prefix=({prefix}); "
        "run_stages 3 a b control || end_job $?",
        a=stage, b=stage, control=control)
    assert result.returncode == 75, result.stderr
    assert (project.run_dir / "got").read_text().split() == [got, got]
    assert result.stderr.count("the running stages save and stop") == 1


BATCH = {"ENVIRONMENT": "BATCH", "SLURM_JOB_ID": "7"}


@pytest.mark.parametrize(("status", "settings", "exit_status", "requeued", "words"), [
    (0, BATCH, 0, False, ""), (1, BATCH, 1, False, ""), (2, {}, 2, False, ""),
    (75, {}, 75, False, "run the same command again"),
    (75, {"SLURM_JOB_ID": "7"}, 75, False, "run the same command again"),  # within salloc
    (75, BATCH, 75, True, "requeued (restart 1 of at most 100)"),
    (75, {**BATCH, "stop_signal": "USR2"}, 75, True, "requeued"),
    (75, {**BATCH, "stop_signal": "TERM", "SHOWN": "JobId=7 Restarts=0 BatchFlag=1"}, 75, False,
     "submit the same job again"),
    (75, {**BATCH, "SLURM_RESTART_COUNT": "2", "MAX_RESTARTS": "3"}, 75, True,
     "restart 3 of at most 3"),
    (75, {**BATCH, "SLURM_RESTART_COUNT": "3", "MAX_RESTARTS": "3"}, 1, False, "MAX_RESTARTS is 3"),
    (75, {**BATCH, "idle": "1"}, 1, False, "no progress since the last start"),
    (75, {**BATCH, "SCONTROL_STATUS": "1"}, 75, True, "scontrol requeue 7 failed"),
    (75, {**BATCH, "LUNGKIT_JOB": "1.2"}, 75, False, "")])
def test_a_stopped_job_is_requeued_only_where_that_helps(status, settings, exit_status, requeued,
                                                         words, project):
    signal_name = settings.get("stop_signal", "")
    made = "x" if {"idle", "LUNGKIT_JOB"} & set(settings) else '"$LUNGKIT_SAVED"'
    result = project.job(f"begin_job; echo more >{made}; stop_signal={signal_name}; "
                         f"end_job {status}", **settings)
    assert result.returncode == exit_status, result.stderr
    assert words in result.stderr and bool(result.stderr) == bool(words)
    assert not list(project.run_dir.glob("logs/.saved*"))
    called = [call.words for call in project.calls("scontrol")]
    assert called == [["scontrol", "requeue", "7"]] * requeued


def test_a_stage_killed_by_the_stop_is_no_failure(project):
    """A signal that comes before Python is ready to note it ends it at once."""
    stage = "kill -TERM $PPID; kill -TERM $$"
    result = project.job(f"{STAGES} begin_job; run_stages 1 a || end_job $?; end_job 0", a=stage)
    assert result.returncode == 75 and not errors(result)
    result = project.job(f"{STAGES} begin_job; run_stages 1 a || end_job $?; end_job 0",
                         a="kill -KILL $$")
    assert result.returncode == 128 + signal.SIGKILL and len(errors(result)) == 1


def test_a_stages_output_goes_to_its_log_and_is_shown(project, tmp_path):
    """Each line once, though it comes in pieces, and the last without an end."""
    (tmp_path / "tmp").mkdir()
    result = project.job(
        f"{STAGES} begin_job; echo old >logs/a.log; run_stages 1 a; print_timings",
        a="printf ne >&2; sleep 0.05; printf 'w\\n last'", TMPDIR=tmp_path / "tmp")
    assert (project.run_dir / "logs/a.log").read_text() == "old\nnew\n last\n"
    assert result.stderr.startswith("[a] new\n[a]  last\n") and "old" not in result.stderr
    assert not list((tmp_path / "tmp").iterdir())
    assert re.search(r"^  a +\d+ / +\d+$", result.stderr, re.MULTILINE)


def test_seconds_are_summed_by_stage_over_runs(project):
    (project.run_dir / "logs").mkdir(parents=True)
    (project.run_dir / "logs/timings.tsv").write_text(
        "5.1\tcnn\t110\t130\t0\n5.1\tcnn\t100\t150\t0\n9.9\tcnn\t200\t207\t0\n"
        "5.1\tcnn\t160\t163\t0\n")  # two at a time, and one begun when both had ended
    result = project.job("print_timings", LUNGKIT_JOB="9.9")
    assert re.search(r"cnn +7 / +60$", result.stderr, re.MULTILINE), result.stderr
