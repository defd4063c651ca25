"""What sites, clusters and other jobs do to the job scripts, a table of cases for each kind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from standins import ARMS, ROOT, Project

BATCH = {"ENVIRONMENT": "BATCH", "SLURM_JOB_ID": "7"}
STAGES = """
stage_command() { echo "$1" >>begun; command=(bash -c "${!1}"); }
"""
RUN_A = f"{STAGES} begin_job; run_stages 1 a || end_job $?; end_job 0"


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path)


def errors(result) -> list[str]:
    return [line for line in result.stderr.splitlines() if "error:" in line]


# ------------------------------------------------------------------ sh, and what a site exports

COMMANDS = ("run_pipeline.slurm", "compare_models.sh", "setup_env.sh", "tests/run", "tests/slurm",
            "tests/steady", "tests/slurm_up", ".ci/run")


@pytest.mark.parametrize("script", COMMANDS)
def test_run_by_sh_a_script_says_in_one_line_what_it_is_run_by(script):
    if "BASH" in subprocess.run(["sh", "-c", "set"], capture_output=True, text=True).stdout:
        pytest.skip("sh is bash here, which runs the scripts: dash or busybox would not")
    result = subprocess.run(["sh", script], cwd=ROOT, capture_output=True, text=True, timeout=60,
                            stdin=subprocess.DEVNULL)
    line, = errors(result)
    assert result.returncode == 2 and result.stderr == line + "\n"
    assert f"run it by 'bash {script}'" in line


@pytest.mark.parametrize("settings", [
    {}, {"CDPATH": "/:/tmp"}, {"BASH_ENV": "noise"}, {"TMPDIR": "/not/there"},
    {"TMPDIR": "/tmp/" + "x" * 200}, {"OMP_NUM_THREADS": "1,1"}, {"POSIXLY_CORRECT": "1"},
    {"LC_ALL": "de_DE.UTF-8", "LC_NUMERIC": "de_DE.UTF-8"}, {"PYTHONPATH": "/other"},
    {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, {"SLURM_EXPORT_ENV": "NONE"}])
def test_what_a_site_exports_changes_nothing(settings, project):
    (project.path / "noise").write_text("echo noise\n")
    project.make_datasets("real", "diffusion")
    (project.path / "scripts").mkdir()
    result = project.bash("compare_models.sh", 2, "--dry-run", **settings)
    assert result.returncode == 0, result.stderr
    result = project.bash("compare_models.sh", 2, FIDELITY=0, **settings)
    assert result.returncode == 0, result.stderr
    if "BASH_ENV" not in settings:  # what bash itself read before the script's first line
        assert result.stdout == "the verdict\n"
        assert ": warning: OMP" not in result.stderr
    assert {call.threads for call in project.calls("cnn", dry=False)} == {"1"}


def test_the_noise_of_a_site_is_not_read_by_the_stages(project):
    (project.path / "noise").write_text("echo noise\n")
    result = project.job("bash -c 'echo only this'", BASH_ENV=str(project.path / "noise"))
    assert result.stdout == "noise\nonly this\n"  # once: by the first bash


@pytest.mark.parametrize(("devices", "gpus"), [
    (None, "0 1"), ("1", "1"), ("1,0", "1 0"), ("1, 0", "1 0"), ("", ""), ("-1", ""),
    ("NoDevFiles", ""), ("0,-1,1", "0"), ("GPU-8932f937-d72c", "GPU-8932f937-d72c"),
    ("MIG-GPU-8932f937/1/0,MIG-5b9f", "MIG-GPU-8932f937/1/0 MIG-5b9f")])
def test_the_gpus_are_those_that_cuda_sees(devices, gpus, project):
    settings = {} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}
    result = project.job("find_gpus; echo ${gpus[*]}", GPUS="0 1", **settings)
    assert result.stdout.strip() == gpus


def test_the_gpus_are_asked_for_once_in_one_environment(project, tmp_path):
    smi = tmp_path / "tools/nvidia-smi"
    smi.write_text(smi.read_text() + 'echo asked >>"$CALLS"\n')
    result = project.job("find_gpus; find_gpus; echo ${gpus[*]}; export CUDA_VISIBLE_DEVICES=1; "
                         "find_gpus; echo ${gpus[*]}", GPUS="0 1")
    assert result.stdout.splitlines() == ["0 1", "1"]
    assert project.calls_path.read_text().split() == ["asked", "asked"]


@pytest.mark.parametrize(("value", "threads", "warned"), [
    ("4", "4", False), ("4,1", "4", False), (" 3 , 2,1", "3", False), ("", "8", False),
    ("auto", "8", True), ("0", "8", True), ("-2", "8", True)])
def test_the_threads_asked_for_may_be_a_list(value, threads, warned, project, monkeypatch):
    result = project.job("share_out '' 1; echo $threads", OMP_NUM_THREADS=value)
    assert result.stdout.strip() == threads and bool(result.stderr) == warned
    if value and not warned:
        from lungkit.learn import device

        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert device._number("OMP_NUM_THREADS") == int(threads)


def test_python_begins_as_we_mean_it(tmp_path):
    """What a person or a module exports for the Python of a terminal."""
    text = (ROOT / "setup_env.sh").read_text().replace("MODULES='' bash", "true")
    (tmp_path / "setup_env.sh").write_text(text)
    names = ["PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "PYTHONOPTIMIZE", "PYTHONINSPECT",
             "PYTHONSTARTUP", "PYTHONWARNINGS"]
    result = subprocess.run(
        ["bash", "-c", f"source ./setup_env.sh; env | grep -E '^({'|'.join(names)})='"],
        cwd=tmp_path, env={"PATH": os.environ["PATH"], **dict.fromkeys(names, "1")},
        capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("", "")


def set_up_without_flock(tmp_path, **tools: str):
    folder = tmp_path / "tools"
    folder.mkdir()
    for name, text in {"flock": "exit 71", **tools}.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return subprocess.run(
        ["bash", ROOT / "setup_env.sh"], cwd=tmp_path, capture_output=True, text=True, timeout=20,
        env={"PATH": f"{folder}:{os.environ['PATH']}", "VENV": str(tmp_path / "venv"),
             "PYTHON": "/not/there"})


@pytest.mark.parametrize(("age_sec", "is_full", "waits"), [
    (None, False, False), (3600, False, False), (0, False, True), (3600, True, True)])
def test_one_sets_up_where_there_is_no_flock(age_sec, is_full, waits, tmp_path):
    """Also where the directory of one that is gone cannot be removed: a look each second."""
    held = tmp_path / "venv.lock.held"
    if age_sec is not None:
        held.mkdir()
        if is_full:
            (held / ".nfs0001").touch()
        os.utime(held, (held.stat().st_mtime - age_sec,) * 2)
    result = set_up_without_flock(tmp_path, sleep=f"rm -rf '{held}'")
    assert result.returncode == 1 and "PYTHON=/not/there does not run" in result.stderr
    assert ("another set-up is at work" in result.stderr) == waits


@pytest.mark.parametrize(("is_file", "reason"), [(False, "No space left"), (True, "File exists")])
def test_a_lock_that_cannot_be_made_ends_the_set_up(is_file, reason, tmp_path):
    tools = {} if is_file else {"mkdir": f"""
        [[ $* == *.held ]] || exec /bin/mkdir "$@"
        echo "mkdir: cannot create directory 'x': {reason}" >&2; exit 1"""}
    if is_file:
        (tmp_path / "venv.lock.held").touch()
    result = set_up_without_flock(tmp_path, sleep="exec /bin/sleep 0.2", **tools)
    line, = result.stderr.splitlines()
    assert result.returncode == 1 and f"cannot make {tmp_path}/venv.lock.held ({reason})" in line


# ------------------------------------------------------------------ progress, and what comes next

@pytest.mark.parametrize(("stage", "is_requeued"), [
    (': >"$LUNGKIT_SAVED"', True), ("true", False),
    ("mkdir -p datasets; echo >datasets/plan", False),
    ("mkdir -p models/x; echo >models/x/survey.json", False)])
def test_a_job_goes_on_where_a_stage_says_that_it_saved(stage, is_requeued, project):
    """Wherever that lies; what is written anew at every start does not count."""
    result = project.job(RUN_A, a=f"{stage}; kill -USR2 $PPID; sleep 0.1; exit 75", **BATCH)
    assert result.returncode == (75 if is_requeued else 1), result.stderr
    assert bool(project.calls("scontrol")) == is_requeued


@pytest.mark.parametrize(("shown", "restarts", "words", "not_words"), [
    ("JobId=7 JobState=COMPLETING Requeue=1 Restarts=1 Batch=1", 0, "do not submit", "same job"),
    ("JobId=7 JobState=PENDING Requeue=1 Restarts=3 Batch=1", 2, "do not submit", "same job"),
    ("JobId=7 JobState=COMPLETING Requeue=1 Restarts=2 Batch=1", 2, "submit the same job", "not"),
    ("JobId=7 JobState=RUNNING Restarts=0 PreemptTime=2026-11-27T00:00:00 x", 0, "preempted",
     "same"),
    ("JobId=7 JobState=RUNNING Restarts=0 PreemptTime=None x", 0, "submit the same job", "not"),
    ("", 0, "squeue -j 7", "again to go on")])
def test_who_ended_the_job_decides_what_is_said(shown, restarts, words, not_words, project):
    result = project.job("begin_job; stop_signal=TERM; end_job 75", SHOWN=shown,
                         SLURM_RESTART_COUNT=restarts, **BATCH)
    assert result.returncode == 75
    told = result.stderr.split("everything is saved: ")[1]
    assert words in told and not_words not in told and not project.calls("scontrol")


@pytest.mark.parametrize(("settings", "asked", "words"), [
    ({"AWAY": 2}, 3, "requeued (restart 1"),
    ({"AWAY": 9}, 5, "Unable to contact slurm controller"),
    ({"SCONTROL_STATUS": 1}, 1, "scontrol requeue 7 failed")])
def test_a_requeue_is_asked_for_while_slurmctld_is_away(settings, asked, words, project):
    result = project.job('begin_job; : >"$LUNGKIT_SAVED"; stop_signal=USR2; end_job 75',
                         **settings, **BATCH)
    assert result.returncode == 75 and words in result.stderr
    assert len(project.calls("scontrol")) == asked


def test_without_scontrol_it_is_said_at_the_start_and_at_the_end(project, tmp_path):
    (tmp_path / "tools/scontrol").unlink()
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in "bash mkdir rm date env cat mv mktemp sleep".split():
        (bare / name).symlink_to(shutil.which(name))
    script = 'begin_job; : >"$LUNGKIT_SAVED"; stop_signal=USR2; end_job 75'
    result = project.job(script, PATH=f"{tmp_path / 'tools'}:{bare}", **BATCH)
    assert result.returncode == 75
    assert "warning: no scontrol on the PATH" in result.stderr
    assert "no scontrol on the PATH to requeue this job by: submit" in result.stderr
    result = project.job("begin_job; end_job 0", PATH=f"{tmp_path / 'tools'}:{bare}")
    assert result.stderr == ""  # nothing to requeue outside of a job


def test_a_signal_during_the_set_up_ends_it(project):
    (project.path / "setup_env.sh").write_text(
        'kill -USR2 $PPID; sleep 30; touch "$RUN/made"\n')
    result = project.job(f"cd '{project.path}'; begin_job; set_up; end_job 0", **BATCH)
    assert result.returncode == 1 and "no progress" in result.stderr  # not the default: 140
    assert "USR2: the running stages save and stop" in result.stderr


@pytest.mark.parametrize(("setup", "status"), [("exit 0", 0), ("exit 1", 1)])
def test_a_set_up_that_fails_ends_the_job(setup, status, project):
    (project.path / "setup_env.sh").write_text(f'[[ $0 != *setup_env.sh ]] || {setup}\n')
    result = project.job(f"cd '{project.path}'; begin_job; set_up; end_job 0")
    assert result.returncode == status, result.stderr


def test_a_stage_that_does_not_stop_in_time_is_ended_and_the_job_goes_on(project):
    stage = """trap '' TERM; : >"$LUNGKIT_SAVED"; kill -USR2 $PPID
        while :; do sleep 0.05; done"""
    result = project.job(f"STOP_SEC=-1; {RUN_A}", a=stage, **BATCH)
    assert result.returncode == 75 and "requeued (restart 1" in result.stderr, result.stderr
    assert "not stopped" in result.stderr and "what they saved before counts" in result.stderr


def test_what_stops_late_leaves_time_to_requeue(project):
    pauses = re.search(r"for pause in ([\d ]+);", (ROOT / "lungkit/job.sh").read_text())[1]
    stop_sec = int(project.job("echo $STOP_SEC").stdout)
    for script in ("run_pipeline.slurm", "compare_models.sh"):
        warned = re.search(r"--signal=B:USR2@(\d+)", (ROOT / script).read_text())[1]
        assert stop_sec + sum(map(int, pauses.split())) < int(warned)


def test_a_driver_that_hangs_is_none(project, tmp_path):
    """The stand-in of timeout ends at once what would have ended after its seconds."""
    (tmp_path / "tools/timeout").write_text('#!/bin/bash\n[[ $* != *nvidia-smi* ]] || exit 124\n')
    (tmp_path / "tools/timeout").chmod(0o755)
    result = project.job("find_gpus; echo ${#gpus[@]}", GPUS="0 1")
    assert (result.returncode, result.stdout) == (0, "0\n")


# ------------------------------------------------------------------ how a stage failed

@pytest.mark.parametrize(("stage", "status", "words", "not_words"), [
    ("echo mine >&2; exit 3", 3, "stage a failed (exit 3): mine", "memory"),
    ("echo mine >&2; kill -KILL $$", 137, "was killed (exit 137), probably out of memory", "mine"),
    ("echo 'slurmstepd: error: Detected 1 oom_kill event in step 7.0' >&2; exit 1", 1,
     "ask for more --mem", "Detected"),
    ("echo mine >&2; kill -SEGV $$", 139, "was ended by SIGSEGV (exit 139): mine", "memory"),
    ("exit 4", 4, "stage a failed (exit 4): no message", "memory")])
@pytest.mark.parametrize("log", ["alone", "shared", "on a full disk"])
def test_a_failed_stage_is_told_by_its_own_last_line(stage, status, words, not_words, log, project):
    (project.run_dir / "logs").mkdir(parents=True)
    path = project.run_dir / "logs/a.log"
    if log == "on a full disk":
        path.symlink_to("/dev/full")
    elif log == "shared":
        stage = f"{stage.rpartition(';')[0] or ':'}; echo another job >>logs/a.log;" + \
            stage.rpartition(";")[2]
    result = project.job(f"{STAGES} begin_job; run_stages 1 a || end_job $?", a=stage)
    assert result.returncode == status, result.stderr
    line, = [line for line in errors(result) if line.startswith("job:")]
    assert words in line and not_words not in line and "another job" not in line


def test_a_job_shows_its_own_verdict(project):
    """Another that compares at the same time removes the common file."""
    project.make_datasets("real", "diffusion")
    python = project.path.parent / "tools/python"
    python.write_text(python.read_text().replace('echo "the verdict"', """
        rm -f "$RUN/logs/verdict.txt"; echo "the verdict" """))
    result = project.compare(2)
    assert (result.returncode, result.stdout) == (0, "the verdict\n"), result.stderr
    assert [path.name for path in (project.run_dir / "logs").glob("*verdict*")] == ["verdict.txt"]


@pytest.mark.parametrize("status", [1, 75])
def test_without_a_verdict_none_is_left(status, project):
    project.make_datasets("real", "diffusion")
    (project.run_dir / "logs").mkdir()
    (project.run_dir / "logs/verdict.txt").write_text("the verdict\n")
    assert project.compare(2, FIDELITY=0,
                           FAULTS=f"wilcoxon_test.py*--sheets*={status}").returncode == status
    assert not list((project.run_dir / "logs").glob("verdict*"))


# ------------------------------------------------------------------ steps and typos

@pytest.mark.parametrize("script", ["run_pipeline.slurm", "compare_models.sh"])
@pytest.mark.parametrize(("rank", "works"), [("0", True), ("1", False)])
def test_within_a_step_rank_0_works_and_its_steps_overlap(script, rank, works, project):
    project.make_datasets("real", "diffusion")
    (project.run_dir / "datasets/voronoi").mkdir()
    result = project.bash(script, ARMS="diffusion", SLURM_JOB_ID=7, SLURM_NTASKS=2, SLURM_STEP_ID=0,
                          SLURM_PROCID=rank)
    assert result.returncode == 0, result.stderr
    started = project.calls("srun")
    assert bool(started) == works and all("--overlap" in call.words for call in started)
    assert works or "rank 1 has nothing to do" in result.stderr and not project.calls()


@pytest.mark.parametrize("script", ["run_pipeline.slurm", "compare_models.sh"])
def test_what_rank_0_starts_takes_itself_for_no_rank(script, project):
    project.make_datasets("real", "diffusion")
    (project.run_dir / "datasets/voronoi").mkdir()
    (project.path.parent / "tools/nvidia-smi").write_text(
        '#!/bin/sh\necho "${SLURM_STEP_NUM_TASKS-none}" >>"$CALLS.tasks"\n')
    result = project.bash(script, ARMS="diffusion", SLURM_JOB_ID=7, SLURM_NTASKS=2, SLURM_STEP_ID=0,
                          SLURM_PROCID=0, SLURM_STEP_NUM_TASKS=2)
    assert result.returncode == 0, result.stderr
    assert set(Path(f"{project.calls_path}.tasks").read_text().split()) == {"none"}


@pytest.mark.parametrize("pattern", [
    *(f"{name}_seg.py*=2" for name in ARMS), "cnn_classify.py*=2", "nuclei_classify.py*=2",
    "wilcoxon_test.py*=2"])
def test_a_typo_is_found_before_anything_is_made(pattern, project):
    (project.path / "images").mkdir()
    for settings in ({}, {"INPUT": "images"}):
        project.forget()
        result = project.pipeline(FAULTS=pattern, **settings)
        assert result.returncode == 2 and "its last words" in result.stderr, result.stderr
        made = [call.stage for call in project.calls(dry=False) if call.stage != "setup_env"]
        assert made == []


def test_a_typo_of_the_first_stage_is_found_before_the_sample_is_made(project):
    result = project.pipeline(FAULTS="tumor_seg.py*--dry-run*=2")
    assert result.returncode == 2 and not project.calls("phantom")


def test_bad_data_of_a_comparison_is_found_before_the_first_arm(project):
    project.make_datasets("real")
    result = project.pipeline(FAULTS="cnn_classify.py*--dry-run*=1")
    assert result.returncode == 1 and "check cnn failed (exit 1)" in result.stderr
    assert not [call for call in project.calls(dry=False) if call.stage in ARMS]


@pytest.mark.parametrize(("settings", "checked"), [
    ({}, ["gan", "real", "voronoi"]), ({"DATASETS": "real voronoi later"}, ["real", "voronoi"])])
def test_every_dataset_there_is_is_checked_before_the_first_arm(settings, checked, project):
    """One that was renamed, or altered, would else be told after the trainings of the arms."""
    project.make_datasets("real", "voronoi", "gan")
    result = project.bash("compare_models.sh", 2, "--dry-run", **settings)
    assert result.returncode == 0, result.stderr
    cnn, = project.calls("cnn")
    data = cnn.words[cnn.words.index("--data") + 1:cnn.words.index("--real")]
    assert [os.path.basename(word) for word in data] == checked


def test_a_baseline_that_is_none_is_found_at_the_start(project):
    result = project.pipeline(BASELINE="forest")
    assert result.returncode == 2 and "BASELINE is 'forest'" in result.stderr
    assert not [call for call in project.calls(dry=False) if call.stage != "setup_env"]


# ------------------------------------------------------------------ the allocation is not the node

@pytest.mark.parametrize(("settings", "cores"), [
    ({}, "8"), ({"SLURM_JOB_ID": 7, "SLURM_CPUS_PER_TASK": 1}, "1"),
    ({"SLURM_JOB_ID": 7, "SLURM_CPUS_ON_NODE": 3}, "3"),
    ({"SLURM_JOB_ID": 7, "SLURM_CPUS_ON_NODE": 6, "SLURM_CPUS_PER_TASK": 3}, "3"),
    ({"SLURM_JOB_ID": 7, "SLURM_CPUS_PER_TASK": 64}, "8"), ({"SLURM_CPUS_PER_TASK": 2}, "8")])
def test_the_cores_are_those_of_the_allocation(settings, cores, project):
    assert project.job("cores", **settings).stdout.strip() == cores


TASKS = {"SLURM_JOB_ID": 7, "SLURM_NTASKS": 4, "SLURM_CPUS_PER_TASK": 2}


@pytest.mark.parametrize(("settings", "words"), [
    ({"SLURM_MEM_PER_NODE": 8000}, ["--mem=2000M"]),
    ({"SLURM_MEM_PER_NODE": 8000, "SLURM_TASKS_PER_NODE": "2(x2)", "SLURM_JOB_NUM_NODES": 2},
     ["--mem=4000M"]),
    ({"SLURM_MEM_PER_NODE": 9000, "SLURM_TASKS_PER_NODE": "1,3", "SLURM_JOB_NUM_NODES": 2},
     ["--mem=3000M"]),
    # tasks that take turns at one GPU have the memory for themselves
    ({"SLURM_MEM_PER_NODE": 8000, "SLURM_GPUS_ON_NODE": 1}, ["--mem=8000M", "--gres=gpu:1"]),
    ({"SLURM_MEM_PER_NODE": 8000, "SLURM_GPUS_ON_NODE": 2}, ["--mem=4000M", "--gres=gpu:1"]),
    ({"SLURM_MEM_PER_NODE": 8000, "SLURM_GPUS_ON_NODE": 8}, ["--mem=2000M", "--gres=gpu:2"]),
    # the first node has fewer GPUs than the others, and as many as it has tasks
    ({"SLURM_GPUS_ON_NODE": 1, "SLURM_GPUS_PER_TASK": "a100:1", "SLURM_TASKS_PER_NODE": "1,3",
      "SLURM_JOB_NUM_NODES": 2, "SLURM_MEM_PER_NODE": 9000}, ["--mem=3000M", "--gres=gpu:1"]),
    ({"SLURM_MEM_PER_CPU": 4000}, []), ({"SLURM_MEM_PER_NODE": 0}, [])])
def test_a_step_has_its_share_of_the_node(settings, words, project):
    result = project.job("share_out '' 1; echo ${prefix[*]}", **TASKS, **settings)
    shares = [word for word in result.stdout.split() if word.startswith(("--mem", "--gres"))]
    assert shares == words


@pytest.mark.parametrize("script", ["run_pipeline.slurm", "compare_models.sh"])
def test_memory_may_be_asked_for_by_core(script):
    """sbatch refuses --mem-per-cpu where the script asks for --mem."""
    asked = [line for line in (ROOT / script).read_text().splitlines()
             if line.startswith("#SBATCH") and "--mem" in line]
    assert asked == []


@pytest.mark.parametrize(("first", "later", "preset"), [
    ({"GPUS": "0"}, {}, "full"), ({}, {"GPUS": "0"}, "demo"), ({}, {}, "demo"),
    ({"GPUS": "0"}, {"PRESET": "demo"}, "demo"), ({"PRESET": "full"}, {}, "full")])
@pytest.mark.parametrize("run", ["a run", ""])
def test_a_run_goes_on_with_its_preset_whatever_the_node_shows(first, later, preset, run, project):
    if (first, run) == ({"PRESET": "full"}, ""):
        preset = "demo"  # its name tells: another run
    (project.path / "images").mkdir()
    faults = {"INPUT": "images", "ARMS": "voronoi", "FAULTS": "voronoi*=2", "RUN": run, "JOBS": 1}
    for settings in (first, later):
        project.forget()
        assert project.pipeline(**faults, **settings).returncode == 2
    voronoi, = project.calls("voronoi")
    assert voronoi.option("--preset") == preset
    if not run:
        assert voronoi.option("--output").endswith(f"runs/images-{preset}/datasets/voronoi")


def make_real(folder, side: int) -> None:
    (folder / "datasets/real").mkdir(parents=True)
    (folder / "datasets/real/dataset.json").write_text(f'{{\n "image_size": {side}\n}}')


@pytest.mark.parametrize(("begun", "gpus", "preset"), [
    ({"demo": "real"}, "0", "demo"), ({"full": "real"}, "", "full"),
    ({"full": "tried"}, "", "full"), ({"full": "tried", "demo": "real"}, "0", "demo"),
    ({"full": "tried", "demo": "tried"}, "", "full"),
    ({"full": "real", "demo": "tried"}, "", "full"),
    ({"full": "real", "demo": "both"}, "0", "demo"), ({}, "0", "full"), ({}, "", "demo")])
def test_images_that_were_made_tell_the_preset_before_the_node_does(begun, gpus, preset, project):
    (project.path / "images").mkdir()
    for name, what in begun.items():
        folder = project.path / f"runs/images-{name}"
        if what != "tried":
            make_real(folder, 1)
        if what != "real":
            (folder / "decided").mkdir(parents=True)
            (folder / "decided/preset_by_node").write_text(f"{name}\n")
    project.pipeline(INPUT="images", RUN="", GPUS=gpus, ARMS="voronoi", JOBS=1,
                     FAULTS="tumor*=1 voronoi*=2")
    first, = [call for call in project.calls() if call.words[0] == "python"]
    assert first.option("--preset") == preset
    assert f"/runs/images-{preset}/datasets/" in first.option("--output")


@pytest.mark.parametrize(("side", "gpus", "preset"), [
    (64, "0", "demo"), (256, "", "full"), (640, "0", "full"), (25, "", "demo")])
def test_the_images_of_a_named_run_tell_its_preset(side, gpus, preset, project):
    (project.path / "images").mkdir()
    make_real(project.run_dir, side)
    project.pipeline(INPUT="images", GPUS=gpus, ARMS="voronoi", FAULTS="tumor*=1")
    tumor, *_ = project.calls("tumor")
    assert tumor.option("--preset") == preset


@pytest.mark.parametrize(("is_made", "preset"), [(False, "full"), (True, "demo")])
def test_a_preset_asked_for_replaces_one_by_which_nothing_was_made(is_made, preset, project):
    if is_made:
        make_real(project.run_dir, 1)
    for asked in ("demo", "full"):
        project.pipeline(PRESET=asked, ARMS="voronoi", FAULTS="tumor*--input*=1")
    assert (project.run_dir / "decided/preset").read_text() == f"{preset}\n"


@pytest.mark.parametrize(("fault", "kept"), [
    ("voronoi_seg.py*--dry-run*=2", set()), ("tumor_seg.py*=1", set()),
    ("voronoi_seg.py*--workers?8?=1", {"device", "threads"}),
    ("*contact_sheet*=1", {"device", "threads"}),
    ("cnn_classify.py*--seed?0?=1", {"device", "threads", "threads_cnn"})])
def test_what_the_node_offers_is_kept_once_bytes_depend_on_it(fault, kept, project):
    assert project.pipeline(ARMS="voronoi", GPUS="0", FAULTS=fault).returncode in (1, 2)
    found = {path.name: path.read_text() for path in (project.run_dir / "decided").iterdir()}
    assert set(found) == {"preset", "preset_by_node", "modality"} | kept
    assert "device" not in found or (found["device"], found["threads"]) == ("cuda\n", "8\n")


def test_a_comparison_has_the_preset_of_its_run(project):
    assert project.pipeline(PRESET="full", ARMS="voronoi", FAULTS="*phantom*=1").returncode == 1
    project.forget()
    project.make_datasets("real", "diffusion")
    assert project.compare(2, FAULTS="cnn_classify.py*=1").returncode == 1
    assert {call.option("--preset") for call in project.calls("cnn")} == {"full"}


@pytest.mark.parametrize(("slurm", "status"), [
    ({"SLURM_GPUS_ON_NODE": 1}, 1), ({"SLURM_JOB_GPUS": "0"}, 1), ({"SLURM_GPUS_ON_NODE": 0}, 0),
    ({"SLURM_GPUS_ON_NODE": 0, "SLURM_JOB_GPUS": "0"}, 0), ({}, 0)])
def test_a_node_with_a_broken_driver_does_not_train_on_its_cpu(slurm, status, project):
    project.make_datasets("real", "diffusion")
    project.decide(device="cuda")
    result = project.compare(2, FIDELITY=0, **slurm, **BATCH)
    assert result.returncode == status, result.stderr
    assert "nvidia-smi shows none on" in result.stderr or "warning: the run was begun on a GPU" in (
        result.stderr)
    assert bool(project.calls("cnn", dry=False)) == (status == 0)


@pytest.mark.parametrize("left", [None, "", "2\n", "/dev/full", "a file"])
@pytest.mark.parametrize("tool", ["", "mv", "ln"])
def test_what_is_kept_survives_a_full_disk_and_every_coreutils(left, tool, project, tmp_path):
    """mv -n of coreutils 9.2 to 9.4 fails where the target is there; some disks have no links."""
    decided = project.run_dir / "decided"
    project.run_dir.mkdir()
    if left == "a file":
        decided.write_text("")
    else:
        decided.mkdir()
        if left == "/dev/full":
            (decided / "x.job").symlink_to(left)
        elif left is not None:
            (decided / "x").write_text(left)
    if tool:
        (tmp_path / "tools" / tool).write_text("#!/bin/bash\nexit 1\n")
        (tmp_path / "tools" / tool).chmod(0o755)
    begun = 2 if left == "2\n" else 4
    result = project.job("threads=4; keep_threads x; echo $threads; kept x", LUNGKIT_JOB="job")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(begun)] * (2 if (decided / "x").is_file() else 1)
    assert (decided / "x").is_file() == (left in (None, "", "2\n"))
    assert not (decided / "x.job").exists() and not (decided / "x.job").is_symlink()
    assert (f"by {decided}/x: for another number remove it" in result.stderr) == (begun == 2)


def test_who_was_slower_keeps_what_is_there(project, tmp_path):
    (tmp_path / "tools/rm").write_text('#!/bin/bash\n[[ -s decided/x ]] || echo first >decided/x\n')
    (tmp_path / "tools/rm").chmod(0o755)
    result = project.job("kept x second")
    assert (result.stdout, result.stderr) == ("first\n", "")


# ------------------------------------------------------------------ threads decide bytes

def allocation(tasks: int, cores: int) -> dict:
    return {"SLURM_JOB_ID": 7, "SLURM_NTASKS": tasks, "SLURM_CPUS_PER_TASK": cores}


@pytest.mark.parametrize("later", [
    {}, allocation(1, 8), allocation(3, 1), allocation(3, 8), {"JOBS": 1}, {"JOBS": 4},
    {"OMP_NUM_THREADS": 2}])
def test_the_generators_of_a_run_have_one_number_of_threads(later, project):
    project.make_datasets("real")
    project.decide(threads=4)
    assert project.pipeline(ARMS="diffusion", FAULTS="diffusion_seg.py*--seed?0?=1",
                            **later).returncode == 1
    assert {call.threads for call in project.calls("diffusion", dry=False)} == {"4"}


@pytest.mark.parametrize(("settings", "processes"), [
    ({}, 8), (allocation(1, 3), 3), (allocation(2, 3), 6), (allocation(4, 1), 4)])
def test_a_training_on_a_cpu_has_one_thread_in_every_allocation(settings, processes, project):
    project.make_datasets("real", "diffusion")
    assert project.compare(9, WORKERS="", FIDELITY=0, **settings).returncode == 0
    trained = project.calls("cnn", dry=False)
    assert {call.threads for call in trained} == {"1"} and len(trained) == processes
    assert {"--cpus-per-task=1" in call.words for call in project.calls("srun")} <= {True}
