#!/usr/bin/env python
"""How fast and in how much memory CT is read: per format, by number of scans and of series.

    python benchmarks/ct_reading.py --depth 600 --scans 2 4 8 > benchmarks/ct_reading.txt

Writes noise with a chest's values to a temporary folder, then reads it, each measurement in a
process of its own: MB of pixels a second of one core, and the most memory the process had. A scan
of DEPTH slices of 512 x 512 is read by format; then `ct_seg.py` makes a dataset of N small scans,
to see that time is linear in N and memory is not of N; then the headers of N series are looked at,
once, and once more as after a kill, with what the first time left in its journal.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "kit" / "ct")]

import numpy as np

import ct_files

HEADERS = 100  # files of a series whose headers are looked at
PEAK = """
import sys, time
def peak_mb():  # unlike rusage's, not that of the process which started this one
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
"""
READ = PEAK + """
from pathlib import Path
from lungkit.ct.annotations import Annotations
from lungkit.ct.folders import walk
from lungkit.ct.lung_mask import find_lungs
from lungkit.ct.studies import survey_folder
root = Path(sys.argv[1])
start = time.process_time()
[scan] = [each for folder in walk(root) for each in survey_folder(folder, root, Annotations())]
looked = time.process_time()
volume = scan.load()
read = time.process_time()
find_lungs(volume)
end = time.process_time()
mb = volume.hu.nbytes / 1e6
print(f"{mb:6.0f} MB  headers {looked - start:5.2f} s  read {mb / (read - looked):5.0f} MB/s  "
      f"both {mb / (read - start):5.0f} MB/s  lungs {end - read:5.2f} s  peak "
      f"{peak_mb():5.0f} MB")
"""


SURVEY = PEAK + """
from pathlib import Path
from lungkit.ct.annotations import find_annotations
from lungkit.ct.studies import survey
from lungkit.run.journal import ResultJournal
root = Path(sys.argv[1])
start = time.process_time()
with ResultJournal(root.parent / "journal", "benchmark") as journal:
    found = survey(root, find_annotations(root, None, None), journal, map)
print(f"{time.process_time() - start:6.2f} s  peak {peak_mb():4.0f} MB")
"""


def measured(program: list[str]) -> str:
    answer = subprocess.run(program, capture_output=True, text=True, cwd=ROOT, check=False,
                            env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                                 "PATH": "/usr/bin:/bin"})
    if answer.returncode:
        sys.exit(answer.stderr)
    return answer.stdout.strip()


def scan_of(depth: int, side: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    hu = ct_files.chest(shape=(4, 64, 64))
    scale = side // 64
    one = np.kron(hu[0], np.ones((scale, scale), np.int16))
    return np.stack([one + rng.integers(-20, 20, one.shape, np.int16) for _ in range(depth)])


def by_format(work: Path, depth: int) -> None:
    hu, step = scan_of(depth, 512), (0.6, 0.65, 0.65)
    ct_files.write_series(work / "dicom", hu, step=step)
    together = ct_files.write_series(work / "enhanced", hu, step=step)
    ct_files.join_frames(together, work / "enhanced" / "all.dcm")
    ct_files.write_mhd(work / "metaimage" / "a.mhd", hu, step=step)
    ct_files.write_nifti(work / "nifti.gz" / "a.nii.gz", hu, step=step)
    print(f"one scan of 512 x 512 x {depth}")
    for name in ("dicom", "enhanced", "metaimage", "nifti.gz"):
        print(f"  {name:<10}", measured([sys.executable, "-c", READ, str(work / name)]))


def by_number(work: Path, numbers: list[int]) -> None:
    program = PEAK + ("import ct_seg; start = time.process_time(); "
                      "code = ct_seg.main(sys.argv[1:]); "
                      "print(f'{time.process_time() - start:6.1f} s  peak {peak_mb():5.0f} MB'); "
                      "sys.exit(code)")
    print("ct_seg.py on N scans of 256 x 256 x 60, two nodules each")
    for number in numbers:
        tree = work / f"of_{number}"
        for each in range(number):
            ct_files.write_patient(tree, each, [((20, 120, 70), 5, 1), ((40, 112, 180), 9, 5)],
                                   shape=(60, 256, 256))
        start = time.monotonic()
        said = measured([sys.executable, "-c", program, "--input", str(tree), "--output",
                         str(work / f"made_{number}" / "real")])
        print(f"  {number:>4} scans: CPU {said.splitlines()[-1]}  "
              f"(wall {time.monotonic() - start:.0f} s)")


def by_series(work: Path, numbers: list[int]) -> None:
    print(f"headers of N series of {HEADERS} files")
    image = np.zeros((HEADERS, 4, 4), np.int16)
    for number in numbers:
        tree = work / f"series_{number}" / "in"
        for each in range(number):
            ct_files.write_series(tree / f"{each:04d}", image, series=f"1.2.{each}")
        once, again = (measured([sys.executable, "-c", SURVEY, str(tree)]) for _ in range(2))
        print(f"  {number:>4} series: CPU {once}, again {again}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=600, metavar="SLICES")
    parser.add_argument("--scans", type=int, nargs="+", default=[3, 6, 12, 24], metavar="N")
    parser.add_argument("--series", type=int, nargs="+", default=[50, 100, 200], metavar="N")
    how = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        by_format(Path(folder), how.depth)
        by_number(Path(folder), how.scans)
        by_series(Path(folder), how.series)


if __name__ == "__main__":
    main()
