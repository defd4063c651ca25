"""The shell scripts, run under bash: environment, pipeline, comparison, signals, Slurm."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from arms import arguments
from lungkit.run.output import release, try_lock
from standins import Project

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(  # every shell script, wherever it lies
    path.relative_to(ROOT).as_posix()
    for folder in (".", ".ci", "benchmarks", "docs", "lungkit", "tests", "tests/mutants")
    for path in (ROOT / folder).iterdir() if path.is_file()
    and re.match(rb"#!.*\b(ba)?sh\n|# shellcheck shell=", path.read_bytes()))
SETTINGS = """INPUT GROUPS_CSV RUN PRESET REPEATS SEED BASE_MODEL ADAPTER POOL ARMS JOBS WORKERS
    MODEL METRIC MARGIN FORCE FIDELITY REPLICATES FOLDS MAX_RESTARTS DATASETS BENIGN BASELINE VENV
    PYTHON MODULES TORCH_INDEX_URL EXTRA_REQUIREMENTS PYTHONPATH MODALITY TASK TASKS
    CONTROLS SEGMENT""".split()


def clean_env(**settings: object) -> dict[str, str]:
    """The environment without the scripts' own settings or a Slurm job's, plus `settings`."""
    env = {name: value for name, value in os.environ.items()
           if name not in SETTINGS and not name.startswith(("SLURM_", "SBATCH_", "PIP_"))
           and not name.endswith("_OPTIONS")}
    return {**env, **{name: str(value) for name, value in settings.items()}}


def bash(*command: object, cwd: Path = ROOT, timeout_sec: float = 600, **settings: object):
    return subprocess.run(["bash", *map(str, command)], cwd=cwd, env=clean_env(**settings),
                          capture_output=True, text=True, timeout=timeout_sec)


def one_error(result, exit_status: int, *words: str) -> None:
    lines = [line for line in result.stderr.splitlines() if "error:" in line]
    assert result.returncode == exit_status, result.stderr
    assert len(lines) == 1 and all(word in lines[0] for word in words), result.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck: apt-get install it")
# those that others source are looked at with them
@pytest.mark.parametrize("script", sorted({*SCRIPTS} - {"lungkit/job.sh", "setup_env.sh"}))
def test_shellcheck_finds_nothing(script):
    result = subprocess.run(["shellcheck", "-a", "-x", "-s", "bash", script], cwd=ROOT, text=True,
                            capture_output=True)
    assert result.returncode == 0, result.stdout


def test_every_script_is_looked_at():
    assert {"setup_env.sh", "run_pipeline.slurm", "compare_models.sh", "lungkit/job.sh", ".ci/run",
            "tests/run", "tests/slurm", "tests/slurm_up", "tests/steady"} <= set(SCRIPTS)


# ------------------------------------------------------------------ the environment

@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Path:
    """Two tiny wheels, so that no test asks a package index."""
    folder = tmp_path_factory.mktemp("wheels")
    for name in ("tinybase", "tinyextra"):
        info = f"{name}-1.0.dist-info"
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}.py", "")
            wheel.writestr(f"{info}/METADATA",
                           f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL",
                           "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    return folder


@pytest.fixture
def checkout(tmp_path) -> Path:
    """setup_env.sh with requirements of its own, in a path with a space."""
    folder = tmp_path / "a checkout"
    (folder / "tests").mkdir(parents=True)
    shutil.copy(ROOT / "setup_env.sh", folder)
    (folder / "requirements.txt").write_text("tinybase==1.0\n")
    (folder / "tests" / "requirements.txt").write_text("tinyextra==1.0\n")
    return folder


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The interpreter, but its `-m venv` copies the pip that is here: to install one takes 5 s."""
    import pip

    path, packages = tmp_path_factory.mktemp("python") / "python", Path(pip.__file__).parents[1]
    path.write_text(f"""#!/bin/bash
[[ "$1 $2" == "-m venv" ]] || exec {base_python()} "$@"
{base_python()} -m venv --without-pip "$3" && cp -a '{packages}'/pip{{,-*.dist-info}} \
    "$3"/lib/python3*/site-packages
""")
    path.chmod(0o755)
    return path


@pytest.fixture
def set_up(checkout, wheels, python):
    """Run setup_env.sh in `checkout`, with `wheels` for a package index."""
    def run(*arguments: str, **settings: object):
        settings = {"PIP_NO_INDEX": 1, "PIP_FIND_LINKS": wheels, "PIP_CONFIG_FILE": os.devnull,
                    "PYTHON": python, **settings}
        return bash("setup_env.sh", *arguments, cwd=checkout, **settings)
    return run


def base_python() -> str:
    """The interpreter this environment was made with: one that certainly has the venv module."""
    return os.path.realpath(sys.executable)


def has(checkout: Path, module: str) -> bool:
    return subprocess.run([checkout / ".venv/bin/python", "-c", f"import {module}"],
                          capture_output=True).returncode == 0


def test_environment_is_made_once(checkout, wheels, python, set_up):
    stamp = checkout / ".venv/.lungkit-stamp"
    racers = [subprocess.Popen(
        ["bash", "setup_env.sh"], cwd=checkout, text=True, stderr=subprocess.PIPE,
        env=clean_env(PIP_NO_INDEX=1, PIP_FIND_LINKS=wheels, PYTHON=python))
        for _ in range(2)]
    told = [racer.communicate()[1] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], told
    assert sum("installing" in text for text in told) == 1  # the other waited, and used it
    assert has(checkout, "tinybase") and not has(checkout, "tinyextra")

    made = stamp.stat().st_mtime_ns
    result = set_up()
    assert result.returncode == 0 and result.stderr == ""
    assert stamp.stat().st_mtime_ns == made

    # the tests' requirements are added, and then both ask for nothing
    extra = {"EXTRA_REQUIREMENTS": "tests/requirements.txt"}
    first = (checkout / ".venv/.lungkit-begun").stat().st_mtime_ns
    assert set_up("--check", **extra).returncode == 1
    result = set_up(**extra)
    assert result.returncode == 0
    assert "adding" in result.stderr and "installing" not in result.stderr
    assert has(checkout, "tinyextra") and has(checkout, "tinybase")
    assert set_up(**extra).stderr == set_up().stderr == ""
    assert (checkout / ".venv/.lungkit-begun").stat().st_mtime_ns == first


def test_failed_install_says_what_to_do_and_is_not_used(checkout, set_up):
    (checkout / "requirements.txt").write_text("not-there==1.0\n")
    one_error(set_up(), 1, "pip could not install", "not-there==1.0", "pip.log")
    assert set_up("--check").returncode == 1
    result = set_up(PIP_NO_INDEX="", PIP_RETRIES=1, PIP_FIND_LINKS="",
                    PIP_INDEX_URL="http://127.0.0.1:9/simple")
    one_error(result, 1, "no package index can be reached", "login node", "PIP_INDEX_URL")


def test_unusable_pythons_are_named(checkout, set_up, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in "bash dirname cat sha256sum cut grep sort paste tail mkdir flock ls env".split():
        (tools / name).symlink_to(shutil.which(name))
    old, shim = tools / "python3", tools / "python3.12"
    shim.write_text("#!/bin/sh\nexit 127\n")  # as pyenv's, for a version that is not there
    old.write_text('#!/bin/sh\ncase "$*" in *version*) echo 3.9;; esac\n')
    for path in (old, shim):
        path.chmod(0o755)
    result = set_up(PYTHON="", PATH=tools)
    one_error(result, 1, "no Python 3.10 to 3.12", "found: 3.9", "apt-get install", "PYTHON")
    one_error(set_up(PYTHON=shim), 1, str(shim), "does not run")
    one_error(set_up(PYTHON=old), 1, "is Python 3.9", "3.10 to 3.12")
    old.write_text('#!/bin/sh\ncase "$*" in *version*) echo 3.11;; *) exit 1;; esac\n')
    one_error(set_up(PYTHON="", PATH=tools), 1, "no venv module", "python3-venv")
    assert not (checkout / ".venv").exists()


# ------------------------------------------------------------------ options

@pytest.mark.parametrize(("settings", "exit_status", "words"), [
    ({"REPEATS": 0}, 2, ["REPEATS", "'0'", "at least 1"]),
    ({"REPEATS": "many"}, 2, ["REPEATS", "'many'"]),
    ({"REPEATS": 1}, 2, ["REPEATS is 1", "two or more"]),
    ({"PRESET": "fast"}, 2, ["PRESET", "demo or full"]),
    ({"SEED": "-1"}, 2, ["SEED"]),
    ({"ADAPTER": "full"}, 2, ["ADAPTER", "lora or dora"]),
    ({"ARMS": "voronoi gan"}, 2, ["ARMS", "'gan'", "gan_seg.py"]),
    ({"ARMS": "voronoi tumor"}, 2, ["ARMS", "'tumor' is not an arm", "real images"]),
    ({"ARMS": "voronoi", "GROUPS_CSV": "groups.csv"}, 2, ["GROUPS_CSV", "INPUT"]),
    ({"ARMS": "voronoi", "INPUT": "/not/there"}, 1, ["INPUT=/not/there", "one folder"]),
])
def test_bad_options_are_one_line(settings, exit_status, words, tmp_path):
    result = bash("run_pipeline.slurm", RUN=tmp_path / "run", VENV=tmp_path / "venv", **settings)
    one_error(result, exit_status, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("arguments", "exit_status", "words"), [
    (["0"], 2, ["N is '0'"]), (["ten"], 2, ["N is 'ten'"]), (["1"], 2, ["two or more"]),
    (["3", "4"], 2, ["usage"]), (["3"], 1, ["holds no datasets", "run_pipeline.slurm"]),
])
def test_bad_comparisons_are_one_line(arguments, exit_status, words, tmp_path):
    result = bash("compare_models.sh", *arguments, RUN=tmp_path / "run", VENV=tmp_path / "venv")
    one_error(result, exit_status, *words)
    assert not list(tmp_path.iterdir())


def test_a_copy_elsewhere_finds_the_project_or_says_so(tmp_path):
    """sbatch runs a copy from its spool directory."""
    for script in ("run_pipeline.slurm", "compare_models.sh"):
        shutil.copy(ROOT / script, tmp_path / "slurm_script")
        result = bash(tmp_path / "slurm_script", cwd=tmp_path)
        one_error(result, 2, "the project is not here", "submit from its directory")
        result = bash(tmp_path / "slurm_script", cwd=tmp_path, SLURM_SUBMIT_DIR=ROOT, PRESET="fast")
        one_error(result, 2, "PRESET")


# ------------------------------------------------------------------ the pipeline

TINY = {"SAMPLE_OPTIONS": "--num-patients 8 --tiles-per-patient 3 --image-size 112",
        "TUMOR_OPTIONS": "--source-mpp 1.60714", "REPEATS": 2,
        "CNN_OPTIONS": "--steps 3 --batch-size 8",
        "WORKERS": 1, "ARMS": "voronoi"}


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """The settings that let the scripts use the environment the tests run in."""
    if bash("setup_env.sh", "--check", VENV=sys.prefix).returncode:
        pytest.skip(f"setup_env.sh did not make {sys.prefix}: run the tests by `bash tests/run`")
    # so few repeats can show nothing; what is measured beside them has tests of its own
    return {"VENV": sys.prefix, "FORCE": "1", "FIDELITY": "0"}


@pytest.fixture(scope="module")
def finished(environment, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A whole run, in a directory with a space in its name."""
    run_dir = tmp_path_factory.mktemp("runs") / "a run"
    return run_dir, bash("run_pipeline.slurm", RUN=run_dir, **TINY, **environment)


def content(folder: Path) -> dict[str, bytes]:
    """Every finished file: not the hidden ones, and not the progress reports, which grow."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and path.suffix != ".jsonl" and not path.name.startswith(".")}


def test_pipeline_ends_with_the_verdict_and_the_report(finished):
    run_dir, result = finished
    assert result.returncode == 0, result.stderr[-3000:]
    assert "voronoi" in result.stdout
    report = Path(result.stdout.splitlines()[-1].removeprefix("report:").strip())
    assert report == run_dir / "comparison/report.html" and report.stat().st_size > 1000
    assert {path.name for path in (run_dir / "sheets").iterdir()} == {"real.png", "voronoi.png"}
    found = list((run_dir / "results").glob("*/replicate_000/repeat_*.json"))
    assert sorted(path.parts[-3] for path in found) == sorted(["nuclei", "real", "voronoi"] * 2)
    assert all(json.loads(path.read_text())["malignancy"]["benign"] == "lung_n"
               for path in found if path.parts[-3] == "nuclei")
    assert "seconds by stage" in result.stderr and "[voronoi] " in result.stderr
    assert (run_dir / "logs/tumor.log").stat().st_size > 0


def test_same_command_again_makes_nothing_anew(finished, environment):
    run_dir, _ = finished
    before = {name: content(run_dir / name) for name in ("datasets", "results", "sheets")}
    result = bash("run_pipeline.slurm", RUN=run_dir, **TINY, **environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert before == {name: content(run_dir / name) for name in before}


def test_what_is_asked_about_real_beside_is_shown_and_not_made_anew(finished, environment,
                                                                    tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir)
    settings = {"RUN": run_dir, "CNN_OPTIONS": TINY["CNN_OPTIONS"], "WORKERS": 1, "BASELINE": "",
                "OUTLIERS": 1, "EXPLAIN": 1, "EXPLAIN_OPTIONS": "--mask nuclei --shuffles 2",
                "TUNE": 2, "TUNE_OPTIONS": "--folds 2 --steps 2 --search learning_rate",
                **environment}
    first = bash("compare_models.sh", 2, **settings)
    assert first.returncode == 0, first.stderr[-3000:]
    page = (run_dir / "comparison/report.html").read_text()
    assert "Where does the CNN look?" in page and "Strange training images" in page
    made = ("results", "outliers", "explain", "kept", "searches")
    before = {name: content(run_dir / name) for name in made}
    assert "best.json" in " ".join(before["searches"]) and all(before.values())
    results = before["results"] == content(finished[0] / "results")
    again = bash("compare_models.sh", 2, **settings)
    assert again.returncode == 0 and results, again.stderr[-3000:]
    assert before == {name: content(run_dir / name) for name in made}
    tuned = bash("compare_models.sh", 2, TUNED=1, **settings)
    assert tuned.returncode == 2 and "learning_rate" in tuned.stderr, tuned.stderr[-3000:]
    assert before["results"] == content(run_dir / "results"), "of other settings: refused"


def test_failed_stage_is_named_with_its_last_words(finished, environment):
    run_dir, _ = finished
    result = bash("run_pipeline.slurm", RUN=run_dir, VORONOI_OPTIONS="--colour red",
                  **TINY, **environment)
    one_error(subprocess.CompletedProcess([], result.returncode, "", "\n".join(
        line for line in result.stderr.splitlines() if line.startswith("run_pipeline:"))),
        2, "stage voronoi failed (exit 2)", "--colour red", "logs/voronoi.log")


def test_signal_stops_with_75_and_the_same_command_adds_what_a_larger_n_lacks(
        finished, environment, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir)
    settings = {"RUN": run_dir, "CNN_OPTIONS": TINY["CNN_OPTIONS"], "WORKERS": 1, "BASELINE": "",
                **environment}
    before = content(run_dir / "results")
    first, last = (run_dir / f"results/{name}/replicate_000/repeat_0002.json"
                   for name in ("real", "voronoi"))
    held = try_lock(last)  # as if another process did it: nothing is complete before the signal
    process = subprocess.Popen(["bash", "compare_models.sh", "3"], cwd=ROOT, text=True,
                               env=clean_env(**settings), stderr=subprocess.PIPE,
                               stdout=subprocess.DEVNULL)
    wait_for(first.exists, process=process)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=300)[1]
    release(held, last)
    assert process.returncode == 75, told
    assert "run the same command again to go on" in told
    kept = first.read_bytes()
    assert not last.exists()
    result = bash("compare_models.sh", 3, **settings)
    assert result.returncode == 0, result.stderr[-3000:]
    assert first.read_bytes() == kept and last.exists()
    after = content(run_dir / "results")
    assert len([name for name in after if "/repeat_" in name and name.endswith(".json")]) == 2 * 4
    assert {name: after[name] for name in before} == before
    lines = (run_dir / "comparison/accuracies.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 3


def wait_for(condition, *, process=None, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.1)


# ------------------------------------------------------------------ Slurm

@pytest.fixture(scope="module")
def slurm() -> dict[str, str]:
    """The settings of a Slurm to throw away, that is stopped at the end whatever happens."""
    script = os.environ.get("LOCAL_SLURM")
    if not script:
        pytest.skip("LOCAL_SLURM is not set: bash tests/slurm sets it to a script that "
                    "starts a Slurm")
    if shutil.which("slurmctld", path=os.environ["PATH"] + ":/usr/sbin") is None:
        pytest.skip("no slurmctld: apt-get install slurmctld slurmd slurm-client munge")
    folder = Path(os.environ.get("SLURM_LOCAL_ROOT") or tempfile.mkdtemp(prefix="slurm-"))
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)  # munged asks for a way that all can go
    state = {"SLURM_LOCAL_ROOT": str(folder / "state"), "SLURM_LOCAL_ACCT": "no"}
    try:
        try:
            up = bash(script, "up", timeout_sec=120, **state)
        except subprocess.TimeoutExpired:
            pytest.skip(f"{script} did not start a Slurm within 120 s")
        if up.returncode:
            pytest.skip(f"{script} could not start a Slurm: {' '.join(up.stderr.split())[-300:]}")
        setting = up.stdout.strip().removeprefix("export SLURM_CONF=")
        yield {**state, "SLURM_CONF": setting}
    finally:
        bash(script, "down", timeout_sec=120, **state)
        shutil.rmtree(folder, ignore_errors=True)


def command(*arguments: object, **settings: object) -> str:
    return subprocess.run(list(map(str, arguments)), cwd=ROOT, env=clean_env(**settings), text=True,
                          capture_output=True, check=True).stdout.strip()


def job_field(slurm: dict, job: str, field: str) -> str:
    words = command("scontrol", "show", "job", job, "--oneliner", **slurm).split()
    return next(word.partition("=")[2] for word in words if word.startswith(f"{field}="))


@pytest.mark.slurm
def test_a_job_shares_its_tasks_and_ends_with_their_status(slurm, tmp_path):
    """Submitted from the project, run from a copy elsewhere; the stages are stand-ins."""
    project = Project(tmp_path)
    project.env["WORKERS"] = ""
    for name in ("srun", "scontrol"):
        (tmp_path / "tools" / name).unlink()
    project.make_datasets("real", "diffusion")
    for fault, state in (("", "COMPLETED"), ("cnn_classify.py*=3", "FAILED")):
        submitted = subprocess.run(
            ["sbatch", "--parsable", "--ntasks=2", "--cpus-per-task=3", "--mem=200M", "--time=5",
             f"--output={tmp_path}/job.out", "compare_models.sh", "2"], cwd=project.path, text=True,
            env={**project.env, **slurm, "FAULTS": fault}, capture_output=True, timeout=60)
        assert submitted.returncode == 0, submitted.stderr
        job = submitted.stdout.strip()
        try:
            wait_for(lambda: job_field(slurm, job, "JobState") in (
                "COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"), seconds=120)
        except AssertionError:
            if job_field(slurm, job, "JobState") != "PENDING":
                raise
            pytest.skip("this Slurm did not start a job of two tasks within 120 s")
        told = (tmp_path / "job.out").read_text()
        assert job_field(slurm, job, "JobState") == state, told
        if not fault:
            assert told.splitlines()[-1] == "the verdict"
            trained = project.calls("cnn", dry=False)
            assert len(trained) == 2 * 2 and {call.threads for call in trained} == {"1"}
    assert job_field(slurm, job, "ExitCode") == "3:0" and "failed (exit 3)" in told


ENDED = ("COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "CANCELLED")


def submit(project: Project, slurm: dict, *words: object) -> str:
    """Submit from the project; its stages are stand-ins, srun and scontrol are Slurm's."""
    for name in ("srun", "scontrol"):
        (project.path.parent / "tools" / name).unlink(missing_ok=True)
    submitted = subprocess.run(
        ["sbatch", "--parsable", "--time=5", f"--output={project.path.parent}/job.out",
         *map(str, words)], cwd=project.path, text=True, capture_output=True, timeout=60,
        env={**project.env, "WORKERS": "", **slurm})
    assert submitted.returncode == 0, submitted.stderr
    return submitted.stdout.strip()


@pytest.mark.slurm
@pytest.mark.parametrize(("words", "told"), [
    (["--ntasks=2", "--cpus-per-task=2", "--mem-per-cpu=100M", "compare_models.sh", "3"], ""),
    (["--ntasks=1", "--cpus-per-task=1", "--mem=200M", "compare_models.sh", "3"], "1 at a time"),
    (["--ntasks=2", "--cpus-per-task=1", "--mem=200M",
      "--wrap=srun -n2 bash compare_models.sh 3"], "rank 1 has nothing to do"),
    (["--ntasks=2", "--export=ALL", "--mem=200M", "compare_models.sh", "3"], "")])
def test_a_job_is_what_was_asked_for(words, told, slurm, tmp_path):
    """Memory by core, one core, within a step: done once, with the same threads everywhere."""
    project = Project(tmp_path)
    project.make_datasets("real", "diffusion")
    job = submit(project, slurm, *words)
    wait_for(lambda: job_field(slurm, job, "JobState") in ENDED, seconds=120)
    out = (tmp_path / "job.out").read_text()
    assert job_field(slurm, job, "JobState") == "COMPLETED", out
    assert out.count("the verdict") == 1 and told in out
    assert {call.threads for call in project.calls("cnn", dry=False)} == {"1"}


@pytest.mark.slurm
@pytest.mark.parametrize(("order", "told"), [
    ("scontrol requeue", "do not submit it a second time"),
    ("scancel", "submit the same job again")])
def test_a_job_that_is_ended_says_what_slurm_does_next(order, told, slurm, tmp_path):
    project = Project(tmp_path)
    project.make_datasets("real", "diffusion")
    (tmp_path / "tools/python").write_text(
        "#!/bin/bash\ntrap 'sleep 0.5; exit 75' TERM USR2\ntouch \"$RUN/begun\"\n"
        "for ((k = 0; k < 600; k++)); do sleep 0.1; done\n")
    job = submit(project, slurm, "--mem=200M", "compare_models.sh", "2")
    wait_for((project.run_dir / "begun").exists, seconds=120)
    command(*order.split(), job, **slurm)
    out = tmp_path / "job.out"
    try:
        wait_for(lambda: "everything is saved" in out.read_text(), seconds=60)
        assert told in out.read_text()
    finally:
        bash("-c", f"scancel {job}", **slurm)


@pytest.mark.slurm
def test_an_array_makes_a_replicate_by_task_and_one_comparison(slurm, tmp_path):
    project = Project(tmp_path)
    project.leave_records()
    project.env |= {"ARMS": "voronoi", "REPEATS": "2"}
    job = submit(project, slurm, "--array=0-2", "--mem=200M", "run_pipeline.slurm")
    wait_for(lambda: not command("squeue", "-h", "-j", job, **slurm), seconds=180)
    out = (tmp_path / "job.out").read_text()
    test, *more = project.calls("test", dry=False)  # two that end together may both see all
    assert test.option("--replicates") == "3" and len(more) < 2, out
    assert {call.option("--replicate") for call in project.calls("cnn", dry=False)} == {
        "0", "1", "2"}
    assert len(list(project.run_dir.glob("results/*/replicate_00[012]/repeat_000[01].json"))) == 18


@pytest.mark.slow
@pytest.mark.slurm
def test_warned_job_requeues_itself_and_finishes(slurm, environment, tmp_path):
    """Two tasks share the work by srun; the warning stops both, the requeued job goes on."""
    settings = {**TINY, **slurm, **environment, "RUN": tmp_path / "run",
                "CNN_OPTIONS": "--steps 60 --batch-size 8", "REPEATS": 4}
    job = command("sbatch", "--parsable", "--ntasks=2", "--cpus-per-task=1", "--mem=8G",
                  "--time=20", f"--output={tmp_path}/job.out", "run_pipeline.slurm", **settings)
    results = tmp_path / "run/results"
    wait_for(lambda: list(results.glob("real/*/repeat_*.json"))
             or job_field(slurm, job, "JobState") == "FAILED")
    command("scancel", "--batch", "--signal=USR2", job, **slurm)
    # the job's word and Slurm's: either may come first, and in between the state reads FAILED
    wait_for(lambda: "requeued (restart" in (tmp_path / "job.out").read_text()
             and job_field(slurm, job, "Restarts") == "1"
             and job_field(slurm, job, "JobState") == "PENDING")
    told = (tmp_path / "job.out").read_text()
    assert "requeued (restart 1" in told, told[-3000:]
    kept = content(results)
    assert 0 < len([name for name in kept if name.endswith(".json")]) < 8
    time.sleep(4)  # hurried on, the second start would be taken for the first, whose end is late

    def ended() -> bool:
        bash(os.environ["LOCAL_SLURM"], "hurry", **slurm)  # a requeued job waits two minutes
        return job_field(slurm, job, "JobState") in ("FAILED", "COMPLETED", "NODE_FAIL")

    wait_for(ended)
    told = (tmp_path / "job.out").read_text()
    assert job_field(slurm, job, "JobState") == "COMPLETED", told[-3000:]
    assert "report:" in told.splitlines()[-1]
    assert {name: data for name, data in content(results).items() if name in kept} == kept


@pytest.mark.slow
@pytest.mark.slurm
def test_job_that_gets_nowhere_is_not_requeued(slurm, environment, request, tmp_path):
    """Warned before the first image is examined: the same would happen again."""
    from PIL import Image

    sample_dir = request.getfixturevalue("sample_dir")  # not made where there is no Slurm
    shutil.copytree(sample_dir / "images", tmp_path / "input")
    first = min((tmp_path / "input").glob("*/*.png"))
    tile = np.asarray(Image.open(first))
    many = np.tile(tile, (4096 // len(tile), 4096 // len(tile), 1))  # many tiles: half a minute
    Image.fromarray(many).save(first.with_name("0.png"))
    job = command("sbatch", "--parsable", "--time=20", f"--output={tmp_path}/job.out",
                  "run_pipeline.slurm", **{**TINY, **slurm, **environment, "RUN": tmp_path / "run",
                                           "INPUT": tmp_path / "input",
                                           "TUMOR_OPTIONS": "--tile-size 64"})
    wait_for(lambda: (tmp_path / "run/logs/tumor.log").exists())
    command("scancel", "--batch", "--signal=USR2", job, **slurm)
    wait_for(lambda: job_field(slurm, job, "JobState") in ("FAILED", "COMPLETED"))
    told = (tmp_path / "job.out").read_text()
    assert "no progress since the last start: not requeued" in told, told[-3000:]


@pytest.mark.slow
@pytest.mark.slurm
def test_tasks_of_a_step_are_ranks_of_one_generator_and_those_of_a_job_are_not(slurm, request,
                                                                               tmp_path):
    asking = f"{sys.executable} -c 'from lungkit.run import launch; import os; " \
             "print(launch.find(os.environ).number)'"
    out, address = tmp_path / "job.out", {"MASTER_ADDR": "127.0.0.1"}  # its nodes have names alone
    command("sbatch", "--wait", "--ntasks=2", f"--output={out}",
            f"--wrap={asking}; srun --ntasks=1 {asking}; srun --ntasks=2 {asking}", **slurm)
    assert out.read_text().split() == ["1", "1", "2", "2"]
    real, output = request.getfixturevalue("few_real"), tmp_path / "datasets" / "diffusion"
    told = command("srun", "--ntasks=2", "--nodes=2", "--kill-on-bad-exit", sys.executable,
                   "diffusion_seg.py", *arguments("diffusion", real, output), **address, **slurm)
    assert told.count("12 images of 3 classes") == 1 and (output / "dataset.json").is_file()
    assert len(list(output.glob("*/*/*.png"))) == 12
