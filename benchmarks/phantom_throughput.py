#!/usr/bin/env python
"""Measure how long simulated tissue takes, by number of tiles, by size, and by what is written.

    python benchmarks/phantom_throughput.py | tee benchmarks/phantom_throughput.txt    (2 minutes)

Time has to be linear in the number of tiles, and memory not to grow with it. Each line is one
`python -m lungkit.phantom` of its own: wall time less that of its imports, processor time, peak
memory of the main process.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BASE = {"tiles-per-patient": 10, "image-size": 224}


def measure(folder: Path, **options) -> tuple[float, float, float]:
    """Wall and processor seconds, and MB, of one run."""
    options = {name.replace("_", "-"): value for name, value in options.items()}
    flags = [f"--{name}" if value is True else f"--{name}={value}"
             for name, value in (BASE | options).items()]
    start, before = time.perf_counter(), os.times()
    child = subprocess.Popen(
        [sys.executable, "-m", "lungkit.phantom", "--output", str(folder), *flags], cwd=ROOT,
        stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    _, status, usage = os.wait4(child.pid, 0)
    wall, after = time.perf_counter() - start, os.times()
    assert status == 0, flags
    processor = (after.children_user + after.children_system
                 - before.children_user - before.children_system)
    return wall, processor, usage.ru_maxrss / 1024


def main() -> None:
    cases = [("50 tiles", {"num_patients": 5}), ("100 tiles", {"num_patients": 10}),
             ("200 tiles", {"num_patients": 20}), ("400 tiles", {"num_patients": 40}),
             ("100 tiles, 64 px", {"num_patients": 10, "image_size": 64}),
             ("100 tiles, 512 px", {"num_patients": 10, "image_size": 512}),
             ("100 tiles, 1024 px", {"num_patients": 10, "image_size": 1024}),
             ("100 tiles, fluorescence", {"num_patients": 10, "fluorescence": True}),
             ("100 tiles, 5 focal planes", {"num_patients": 10, "fluorescence": True,
                                            "z_planes": 5}),
             ("100 tiles, 4 siblings", {"num_patients": 10, "siblings": 4}),
             ("400 tiles, 2 processes", {"num_patients": 40, "workers": 2})]
    with tempfile.TemporaryDirectory() as folder:
        start_up = measure(Path(folder) / "one", num_patients=1, tiles_per_patient=1)
        print(f"224 px where not said; start and two tiles take {start_up[0]:.1f} s\n"
              f"{'':26s}{'wall s':>8s}{'cpu s':>8s}{'ms a tile':>11s}{'MB':>7s}")
        for number, (words, options) in enumerate(cases):
            wall, processor, memory = measure(Path(folder) / str(number), **options)
            tiles = 10 * options["num_patients"]
            print(f"{words:26s}{wall:8.1f}{processor:8.1f}"
                  f"{1000 * (processor - start_up[1]) / (tiles - 2):11.0f}{memory:7.0f}",
                  flush=True)


if __name__ == "__main__":
    main()
