"""A copy of the job scripts in which python, srun, scontrol and the GPUs only record their use."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ARMS = ("diffusion", "context", "prompt", "voronoi")

# one line a call; makes what scripts look for; FAULTS: "PATTERN=STATUS ..." by which a stage ends
PYTHON = r"""#!/bin/bash
printf -v line '%s\t' "${OMP_NUM_THREADS-}" "${CUDA_VISIBLE_DEVICES-}" "${PYTHONPATH-}" python "$@"
printf '%s\n' "$line" >>"$CALLS"
words="$* " output='' name=''
for fault in ${FAULTS-}; do
	# shellcheck disable=SC2053
	if [[ $words == ${fault%=*} ]]; then
		echo "its last words" >&2
		exit "${fault##*=}"
	fi
done
[[ $words != *--dry-run* ]] || exit 0
name=$1
[[ $2 != lungkit.compare.tasks ]] || echo "the table" >"$3/tasks.txt"
while (($# > 0)); do
	[[ $1 != --output ]] || output=$2
	shift
done
case $name in
	*_seg.py) [[ -d $output ]] || mkdir -p "$output"
		echo '{}' >"$output/dataset.json"
		[[ $name != controls* ]] || echo '{"control": {}}' >"$output/dataset.json"
		[[ $name != mix* ]] || echo '{"mix": {}}' >"$output/dataset.json"
		[[ $name != voronoi* ]] || : >"$output/image_features.csv" ;;
	cnn_search.py) mkdir -p "$output" && echo '{}' >"$output/best.json" ;;
	outliers.py) mkdir -p "$output" && echo '{}' >"$output/outliers.json" ;;
	cnn_explain.py) mkdir -p "$output" && echo '{}' >"$output/explain.json" ;;
	wilcoxon_test.py) echo "the verdict"
		mkdir -p "$output" && echo '{}' >"$output/comparison.json" ;;
esac
"""
# in it: what the trainings leave, empty records
RECORDS = r"""
if [[ $name =~ ^(cnn_classify|nuclei_classify|unet_segment)\.py$ ]]; then
	arms='' key=''
	for word in "$@"; do
		[[ $word != --* ]] || { key=$word; continue; }
		case $key in
			--data) arms+=" ${word##*/}" ;; --baseline) arms=$word ;; --results) results=$word ;;
			--repeats) repeats=$word ;; --replicate) replicate=$word ;;
		esac
	done
	for arm in $arms; do
		for ((k = 0; k < repeats; k++)); do
			printf -v place 'replicate_%03d/repeat_%04d.json' "$replicate" "$k"
			mkdir -p "$results/$arm/${place%/*}"
			: >"$results/$arm/$place"
		done
	done
fi
while (($# > 0)); do
"""
NVIDIA_SMI = r"""#!/bin/bash
printf '%s\n' ${GPUS-}
[[ -n ${GPUS-} ]]
"""
SRUN = r"""#!/bin/bash
printf -v line '%s\t' '' '' '' srun "$@"
printf '%s\n' "$line" >>"$CALLS"
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
# AWAY: how often a requeue is not answered; SHOWN: what is shown of the job
SCONTROL = r"""#!/bin/bash
if [[ $1 == show ]]; then
	echo "${SHOWN-}"
	[[ -n ${SHOWN-} ]]
	exit
fi
printf '\t\t\t%s\t%s\t%s\t\n' scontrol "$@" >>"$CALLS"
if (($(grep -c scontrol "$CALLS") <= ${AWAY:-0})); then
	echo "slurm_requeue error: Unable to contact slurm controller (connect failure)" >&2
	exit 1
fi
exit "${SCONTROL_STATUS:-0}"
"""
SETUP_ENV = r"""
[[ ${BASH_SOURCE[0]} != "$0" ]] || exit "${SETUP_STATUS:-0}"
printf -v line '%s\t' '' '' '' setup_env VENV "${VENV-}" PYTHON "${PYTHON-}" MODULES "${MODULES-}" \
	TORCH_INDEX_URL "${TORCH_INDEX_URL-}"
printf '%s\n' "$line" >>"$CALLS"
"""


@dataclass(frozen=True)
class Call:
    """How one program was started: threads, GPU and PYTHONPATH it found, its words."""

    threads: str
    gpu: str
    pythonpath: str
    words: list[str]

    @property
    def stage(self) -> str:
        """E.g. tumor, cnn, test, phantom; srun, scontrol and setup_env are called so."""
        if self.words[0] != "python":
            return self.words[0]
        name = self.words[2] if self.words[1] == "-m" else Path(self.words[1]).stem
        name = name.removeprefix("lungkit.").removeprefix("compare.")
        return {"wilcoxon_test": "test"}.get(name, name.split("_seg")[0].removesuffix("_classify"))

    @property
    def is_dry(self) -> bool:
        return "--dry-run" in self.words

    def option(self, name: str) -> str | None:
        """The word after `name`, or None where it is not given."""
        return self.words[self.words.index(name) + 1] if name in self.words else None

    def options(self, name: str) -> list[str]:
        """The words from `name` to the next option."""
        rest = self.words[self.words.index(name) + 1:]
        return list(itertools.takewhile(lambda word: not word.startswith("--"), rest))


class Project:
    """The copy, its run directory and what was called in it."""

    def __init__(self, folder: Path) -> None:
        self.path, self.run_dir = folder / "a project", folder / "a run"
        self.calls_path, tools = folder / "calls", folder / "tools"
        (self.path / "lungkit").mkdir(parents=True)
        tools.mkdir()
        for name in ("run_pipeline.slurm", "compare_models.sh"):
            shutil.copy(ROOT / name, self.path)
        job = (ROOT / "lungkit/job.sh").read_text()
        self.quota_path = folder / "cpu.max"
        (self.path / "lungkit/job.sh").write_text(
            job.replace("/sys/fs/cgroup/cpu.max", f"'{self.quota_path}'").replace(" 0.2", " 0.005")
            .replace("in 5 10 15 30 0", "in 0 0 0 0 0"))
        (self.path / "setup_env.sh").write_text(SETUP_ENV)
        for arm in (*ARMS, "layout"):
            (self.path / f"{arm}_seg.py").touch()
        for name, text in {"python": PYTHON, "nvidia-smi": NVIDIA_SMI, "srun": SRUN,
                           "scontrol": SCONTROL, "nproc": "#!/bin/bash\necho 8\n"}.items():
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        # a test to which the number of trainings matters gives WORKERS
        self.env = {"PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(folder), "LC_ALL": "C",
                    "CALLS": str(self.calls_path), "RUN": str(self.run_dir), "WORKERS": "1"}

    def bash(self, *words: object, cwd: Path | None = None, **settings: object):
        """Run `bash words...` with no setting of the scripts but these; RUN is `run_dir`."""
        env = {**self.env, **{name: str(value) for name, value in settings.items()}}
        return subprocess.run(["bash", *map(str, words)], cwd=cwd or self.path, env=env, text=True,
                              capture_output=True, timeout=300, check=False,
                              # ignored by a shell's background jobs, which bash cannot trap
                              preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))

    def pipeline(self, **settings: object):
        return self.bash("run_pipeline.slurm", **settings)

    def compare(self, *words: object, **settings: object):
        return self.bash("compare_models.sh", *words, **settings)

    def job(self, script: str, **settings: object):
        """Run bash text in the run directory after lungkit/job.sh was sourced."""
        self.run_dir.mkdir(exist_ok=True)
        text = (f"set -euo pipefail; source '{self.path}/lungkit/job.sh'; run_dir=$RUN "
                f"log_dir=$RUN/logs\n{script}")
        return self.bash("-c", text, cwd=self.run_dir, **settings)

    def calls(self, stage: str | None = None, *, dry: bool | None = None) -> list[Call]:
        """The calls so far, in order; a stage's; dry: only the dry runs, or only the others."""
        if not self.calls_path.exists():
            return []
        rows = [line.split("\t")[:-1] for line in self.calls_path.read_text().splitlines()]
        found = [Call(*row[:3], row[3:]) for row in rows]
        return [call for call in found if stage in (None, call.stage)
                and dry in (None, call.is_dry)]

    def forget(self) -> None:
        self.calls_path.unlink(missing_ok=True)

    def decide(self, **values: object) -> None:
        """Keep what a first start of the run decides."""
        (self.run_dir / "decided").mkdir(parents=True, exist_ok=True)
        for name, value in values.items():
            (self.run_dir / "decided" / name).write_text(f"{value}\n")

    def leave_records(self) -> None:
        """From now on the stand-ins of the trainings leave a record of every repeat asked for."""
        python = self.path.parent / "tools/python"
        before, loop, after = python.read_text().partition("\nwhile (($# > 0)); do\n")
        python.write_text(before + RECORDS + after)

    def make_datasets(self, *names: str) -> None:
        for name in names:
            folder = self.run_dir / "datasets" / name
            folder.mkdir(parents=True)
            (folder / "dataset.json").write_text("{}")
            if name == "voronoi":
                (folder / "image_features.csv").touch()
