#!/usr/bin/env python
"""Measure what a CNN shows beyond nodule size, where it is known what there is to show.

    python benchmarks/ct_ruler.py [--work DIR] [--lidc DIR] | tee benchmarks/ct_ruler.txt

On simulated chests (25 minutes of one core; --work keeps what is made, and resumes):
--size-matched  grades differ in looks alone: the CNN has to beat the ruler, which knows size alone
--size-only     grades differ in size alone: the CNN cannot beat the ruler; does it equal it?
--confounded    the scanner tells the class: the page of the comparison has to say so
Six in ten patients train, one is val, three test; readers' median grades, 3 dropped. Crops show
40 mm, which hold nearly all nodules whole, at 0.83 mm a pixel; the scans have 1 mm. To read a size
off takes more crops than to see looks: --size-only has 450 patients. The CNN's answers are averaged
over the eight ways up of a crop (--tta eight): the ruler's are the same for all.
Scores and pairs are those of wilcoxon_test.py --metric auroc: intervals at level B are over test
patients and trainings, and arms whose difference is shown to be within MARGIN are equivalent.

--lidc DIR: a folder of LIDC crops with manifest.csv, masks/ and images/; the two baselines of
nuclei_classify.py alone, in five folds by patient.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = {"--size-matched": (100, 8, 64), "--size-only": (450, 8, 28),
           "--confounded": (24, 4, 64)}  # patients, nodules of each, slices
ONE_LUNG = ["--image-size", "128", "--field-mm", "128"]
CROP = ["--image-size", "48", "--field-mm", "40"]
PARTS = ("train",) * 6 + ("val",) + ("test",) * 3  # of each ten patients
REPEATS, STEPS, MARGIN = 4, 600, 0.05
FOLDS = 5
LIDC_TASKS = {
    "grades 1 to 3 against 4 and 5": ["--benign-max", "3", "--malignant-min", "3.5"],
    "grades 1 and 2 against 4 and 5": [], "five grades": ["--labels", "grade"]}
SCORES = ("auprc_weighted", "auroc", "accuracy")


def run(*words: object) -> None:
    """Run a stage of the project on one thread."""
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True,
                          text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    if done.returncode:
        sys.exit(f"{words[0]} ended with {done.returncode}: {done.stderr[-600:]}")


def classify(real: Path, results: Path, baseline: str, *more: object) -> None:
    run("nuclei_classify.py", "--features", real, "--real", real, "--results", results,
        "--baseline", baseline, *more)


def compare(folder: Path, *more: object) -> dict:
    """The comparison of folder/results: what wilcoxon_test.py writes down."""
    run("wilcoxon_test.py", folder / "results", "--output", folder / "comparison", "--metric",
        "auroc", "--margin", MARGIN, *more)
    return json.loads((folder / "comparison/comparison.json").read_text())


# ------------------------------------------------------------------ simulated chests

def make_real(folder: Path, law: str, *, by_parts: bool) -> None:
    """Draw a sample, cut its crops and split them by patient: by PARTS, or as ct_seg.py does."""
    patients, nodules, slices = SAMPLES[law]
    run("-m", "lungkit.phantom.thorax", "--output", folder / "sample", "--num-patients", patients,
        "--nodules-per-patient", nodules, "--num-slices", slices, "--seed", 1, law, *ONE_LUNG)
    names = sorted(path.name for path in (folder / "sample/LIDC-IDRI").iterdir() if path.is_dir())
    lines = [f"{name},{PARTS[number % len(PARTS)]}\n" for number, name in enumerate(names)]
    (folder / "split.csv").write_text("".join(["patient,split\n", *lines]))
    run("ct_seg.py", "--input", folder / "sample/LIDC-IDRI", "--output", folder / "datasets/real",
        *CROP, *(["--split-from", folder / "split.csv"] if by_parts else []))


def train(folder: Path, repeats: int, steps: int, baselines: tuple[str, ...]) -> None:
    real, results = folder / "datasets/real", folder / "results"
    for baseline in baselines:
        classify(real, results, baseline, "--repeats", repeats)
    run("cnn_classify.py", "--data", real, "--real", real, "--results", results, "--repeats",
        repeats, "--steps", steps, "--tta", "eight", "--device", "cpu")


def simulated(work: Path, law: str) -> None:
    """Print what the CNN ("real"), the ruler and the nodule score on a sample, and their pairs."""
    folder = work / law.strip("-")
    make_real(folder, law, by_parts=True)
    train(folder, REPEATS, STEPS, ("size", "nodule") if law == "--size-matched" else ("size",))
    manifest = json.loads((folder / "datasets/real/dataset.json").read_text())
    found = compare(folder)
    counts = {split: sum(row.values()) for split, row in manifest["counts"].items()}
    print(f"{law}: {sum(counts.values())} nodules of {SAMPLES[law][0]} patients, "
          + ", ".join(f"{split} {n}" for split, n in counts.items())
          + f"; {REPEATS} trainings of {STEPS} steps")
    size = manifest["confounding"]["trivial"]["families"]["nodule size"]
    print(f"  nodule size in the confounding report: balanced accuracy "
          f"{size['balanced_accuracy']:.2f}")
    for arm in found["arms"]:
        print(f"  {arm['dataset']:8s}AUROC {arm['mean']:.3f} (95 % interval {arm['low']:.3f} to "
              f"{arm['high']:.3f})")
    for pair in found["pairs"]:
        if {pair["arm"], pair["against"]} in ({"real", "size"}, {"real", "nodule"}):
            print(f"  {pair['sentence']}")
            at = pair["estimates"]["B"]
            print(f"    90 % interval {100 * at['low_equivalence']:+.1f} to "
                  f"{100 * at['high_equivalence']:+.1f}, of the margin of {100 * MARGIN:g} points: "
                  f"two one-sided tests, p = {at['p_equivalent']:.2g}")


def confounded(work: Path) -> None:
    """Print what the page says of a sample whose scanners tell the class."""
    folder = work / "confounded"
    make_real(folder, "--confounded", by_parts=False)
    train(folder, 2, 50, ("size",))
    compare(folder)
    page = (folder / "comparison/report.html").read_text()
    warnings = json.loads((folder / "datasets/real/dataset.json").read_text())["warnings"]
    named = [text for text in warnings if "scanner" in text or "kernel" in text
             or "manufacturer" in text]
    print(f"--confounded: {len(named)} warnings name the scanner, "
          f"{sum(text.split(': ')[0] in page for text in named)} of them on the page")
    for text in named:
        print(f"  {text}")


# ------------------------------------------------------------------ LIDC's crops

def lidc(work: Path, crops: Path) -> None:
    """Print the scores of both baselines by task, means over folds."""
    for number, (words, options) in enumerate(LIDC_TASKS.items()):
        folder, images, patients = work / f"lidc_{number}", 0, 0
        for fold in range(FOLDS):
            real = folder / f"{fold}/datasets/real"
            run("ct_seg.py", "--input", crops, "--images", crops / "manifest.csv", "--output", real,
                "--min-readers", "2", "--fold", f"{fold + 1}/{FOLDS}", *options)
            for baseline in ("size", "nodule"):
                classify(real, folder / "results", baseline, "--repeats", 2, "--replicate", fold)
            manifest = json.loads((real / "dataset.json").read_text())
            images = sum(sum(row.values()) for row in manifest["counts"].values())
            patients = manifest["confounding"]["groups"]
        print(f"LIDC crops, {words}: {images} of {patients} patients, {FOLDS} folds by patient")
        for metric in SCORES:
            found = {arm["dataset"]: arm for arm in compare(folder, "--metric", metric)["arms"]}
            print(f"  {metric:15s}" + "".join(
                f"  {name} {found[name]['mean']:.3f} ({found[name]['low']:.3f} to "
                f"{found[name]['high']:.3f})" for name in ("size", "nodule")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="keep what is made here, and go on from there")
    parser.add_argument("--lidc", type=Path, help="folder of LIDC crops with manifest.csv")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        for law in ("--size-matched", "--size-only"):
            simulated(work, law)
        confounded(work)
        if options.lidc:
            lidc(work, options.lidc.resolve())


if __name__ == "__main__":
    main()
