"""What fidelity and the audit for copies cost beside the arm that they are of, in CPU seconds.

  python benchmarks/instruments_cost.py [DIR]        in a temporary directory, or in DIR, kept

Makes the demo's real dataset, runs one arm on it as a run does, the audit for copies being part of
it, and measures: the arm, the audit by itself, and fidelity of the arm alone and of four such arms
in one process, as a job measures those of a run. One thread each, 8 minutes of one core.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
ARM = "prompt"  # the generator that takes the least time
ARMS = 4        # of a demo


def cpu_of(*command: str) -> float:
    """The CPU seconds of a python command of the project."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(getattr(after, name) - getattr(before, name) for name in ("ru_utime", "ru_stime"))


def cold(place: Path, *of_runs: list[str]):
    """Yield each, when nothing that was worked out for another is left."""
    for some in of_runs:
        for left in [*place.glob("*/.*.cache/*/*"), *place.glob("*/*/fidelity.json")]:
            left.unlink()
        yield some


def main() -> None:
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    sample, real, arm = (str(place / name) for name in ("sample", "datasets/real",
                                                        f"datasets/{ARM}"))
    cpu_of("-m", "lungkit.phantom", "--output", sample)
    cpu_of("tumor_seg.py", "--input", f"{sample}/images", "--groups", f"{sample}/groups.csv",
           "--output", real, "--benign", "lung_n", "--source-mpp", "0.80357")
    of_arm = cpu_of(f"{ARM}_seg.py", "--real", real, "--output", arm)

    from lungkit.audit import memorised
    from lungkit.data.dataset import open_dataset

    start = time.process_time()
    real_set, drawn = open_dataset(Path(real)), open_dataset(Path(arm))
    audit = memorised.Audit(real_set)
    matches = audit.matches(map(drawn.image, drawn.rows))
    memorised.summary(audit, [row.label for row in drawn.rows], matches)
    of_audit = time.process_time() - start

    arms = [f"{place}/again-{number}/{ARM}" for number in range(ARMS)]  # a name is the folder's
    for path in arms:
        shutil.copytree(arm, path)
    of_one, of_all = (cpu_of("-m", "lungkit.tools.fidelity", "--real", real, "--device", "cpu",
                             "--data", *some) for some in cold(place, [arm], arms))
    of_fidelity = (of_all - of_one) / (ARMS - 1)
    print(f"{len(real_set.rows)} real images, {len(drawn.rows)} of {ARM}, "
          f"{real_set.image_size} px, demo; CPU seconds\n"
          f"the arm, audit included              {of_arm:7.1f}\n"
          f"the audit for copies                 {of_audit:7.1f}  {of_audit / of_arm:6.1%}\n"
          f"fidelity of an arm                   {of_fidelity:7.1f}  {of_fidelity / of_arm:6.1%}\n"
          f"start, real and noise, once          {of_one - of_fidelity:7.1f}\n"
          f"fidelity of {ARMS} arms, each of them    {of_all / ARMS:7.1f}  "
          f"{of_all / ARMS / of_arm:6.1%}")


if __name__ == "__main__":
    main()
