#!/usr/bin/env python
"""Measure how long simulated chest CT takes, by patients, by size, and by what is written.

    python benchmarks/thorax_throughput.py | tee benchmarks/thorax_throughput.txt    (3 minutes)

Time has to be linear in the number of patients, and memory not to grow with it. Each line is one
`python -m lungkit.phantom.thorax` of its own: wall time with its imports, processor time, peak
memory of the largest process.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--image-size", "128", "--field-mm", "128"]
CASES = [
    ("4 patients, 128 px, one lung", ["--num-patients", "4", *SMALL]),
    ("8 patients, 128 px, one lung", ["--num-patients", "8", *SMALL]),
    ("16 patients, 128 px, one lung", ["--num-patients", "16", *SMALL]),
    ("24 patients, 128 px, one lung, 2 processes", ["--num-patients", "24", *SMALL,
                                                    "--workers", "2"]),
    ("8 patients, 256 px, whole chest", ["--num-patients", "8"]),
    ("4 patients, 256 px, four formats", ["--num-patients", "4", "--format", "lidc", "luna16",
                                          "msd", "petct"]),
    ("1 patient, 512 px, 200 slices", ["--num-patients", "1", "--image-size", "512",
                                       "--num-slices", "200"]),
]


def measure(folder: Path, options: list[str]) -> tuple[float, float, float]:
    """Wall and processor seconds, and MB of the largest process, of one run."""
    start, before = time.perf_counter(), os.times()
    command = [sys.executable, "-c", (
        "import resource, sys; from lungkit.phantom.thorax.sample import main; main(sys.argv[1:]); "
        "print(max(resource.getrusage(who).ru_maxrss for who in "
        "(resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))"), "--output", str(folder), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    wall, after = time.perf_counter() - start, os.times()
    processor = (after.children_user + after.children_system
                 - before.children_user - before.children_system)
    return wall, processor, int(done.stdout) / 1024


def main() -> None:
    print(f"64 slices where not said; 4 nodules a patient; every eighth patient has two scans\n"
          f"{'':48s}{'wall s':>8s}{'cpu s':>8s}{'cpu s a scan':>14s}{'MB':>6s}")
    for words, options in CASES:
        patients = int(options[1])
        with tempfile.TemporaryDirectory() as folder:
            wall, processor, memory = measure(Path(folder) / "sample", options)
        num_scans = sum(1 + (patient % 8 == 5) for patient in range(patients))
        print(f"{words:48s}{wall:8.1f}{processor:8.1f}{processor / num_scans:14.2f}{memory:6.0f}",
              flush=True)


if __name__ == "__main__":
    main()
