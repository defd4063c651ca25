#!/usr/bin/env python
"""What the CNN and the ruler score on real nodules: crops of LIDC-IDRI, candidates of LUNA16.

    LIDC_CROPS=DIR LUNA16_CROPS=DIR python benchmarks/ct_classification.py --work DIR \
        > benchmarks/ct_classification.txt

LIDC_CROPS: manifest.csv (file, malignancy_ratings, patient_id, pixel_spacing_mm, max_diam_mm),
images/ and masks/. LUNA16_CROPS: manifest.csv (file, label, candidate_row, rotated_copy_of) and the
pictures it names. Everything is made by the stages themselves: ct_seg.py by fold, cnn_classify.py
with the small CNN's demo preset and, with --baselines, nuclei_classify.py. Nothing is chosen by a
test image: the field is as wide as the largest nodules; of LUNA16, of which there are more images
to learn from, steps are chosen by val (accuracy of 200, 1,000 and 3,000: 0.88, 0.92, 0.94). Of
grades 400 steps, for 500 were better than 200 on one fold's val (0.48 and 0.46), and answers
averaged over eight orientations, untried; 200 steps without that had a weighted AUPRC of 0.491
in test.

LIDC by patient, 5 folds, every crop tested once by each repeat: grades 1 to 5, or benign (median of
the readers up to 2) against malignant (from 4), those between dropped. LUNA16's rows say neither
patient nor scan, but are sorted by scan, about 620 a scan: of five stretches of rows the first is
tested and the second val, and rows within MARGIN of a cut are left out; groups of the bootstrap are
blocks of 620 rows. Of its pictures turned copies are left out.

A score is of the test images of all folds together, the mean over repeats; its 95 % interval is
that of 500 bootstrap draws of patients. "ruler": logistic regression on log diameter and log area
fitted to all of a fold's train split, tested on the same images; CNN - ruler in the same draws.
"averaged": one answer of all repeats, the mean of their probabilities.
Running the same command again goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lungkit.data import metrics, size_bands  # noqa: E402  (after the path is set)
from lungkit.data.dataset import open_dataset  # noqa: E402

FOLDS, DRAWS = 5, 500
TESTED = {"binary": FOLDS, "grade": FOLDS, "presence": 1}  # folds
BLOCK_ROWS, MARGIN = 620, 1240  # of candidates.csv: a scan has about 620
TRAINING = {"grade": ["--steps", 400, "--tta", "eight"],  # else the preset's
            "presence": ["--steps", 3000]}
MIDDLE_MM = (6.0, 15.0)         # where size tells least
LIDC = ["--min-readers", "2", "--min-diameter-mm", "0", "--field-mm", "32", "--image-size", "64"]
LUNA16 = ["--labels", "presence", "--input-window", "-1000", "400", "--image-size", "50"]
TARGETS = {"binary": {"auprc_weighted": 0.94, "auroc": 0.93, "auroc, 6-15 mm": 0.75},
           "grade": {"auprc_weighted": 0.50, "kappa_quadratic": 0.70},
           "presence": {"auroc": 0.95}}
SHOWN = ("auprc_weighted", "auroc", "auroc, 6-15 mm", "kappa_quadratic", "mean_absolute_error",
         "weighted_f1", "balanced_accuracy", "accuracy")


@dataclass
class Answers:
    """What one repeat said of the test images of all folds."""

    probabilities: np.ndarray  # float [N, C]
    labels: np.ndarray         # int [N]
    groups: np.ndarray         # str [N]
    diameters: np.ndarray      # float [N], NaN: unknown

    def take(self, which: np.ndarray) -> Answers:
        return Answers(self.probabilities[which], self.labels[which], self.groups[which],
                       self.diameters[which])


def scores_of(said: Answers, graded: bool) -> dict[str, float]:
    """The scores of `SHOWN` that there are."""
    every = [str(k) for k in range(said.probabilities.shape[1])]
    found, about = metrics.split_metrics(said.probabilities, said.labels, every)
    if graded:
        more, error = metrics.ordinal_metrics(said.labels, said.probabilities.argmax(1), len(every))
        found |= {**more, "mean_absolute_error": error["mean_absolute_error"]}
    middle = said.take((said.diameters >= MIDDLE_MM[0]) & (said.diameters < MIDDLE_MM[1]))
    if len(np.unique(middle.labels)) > 1:
        found["auroc, 6-15 mm"] = metrics.mean_auroc(middle.probabilities, middle.labels)
    return found


# ------------------------------------------------------------------ making it

def stage(name: str, *arguments: object) -> None:
    done = subprocess.run([sys.executable, ROOT / f"{name}.py", *map(str, arguments)], cwd=ROOT,
                          stdout=sys.stderr, check=False,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(f"{name}.py ended with {done.returncode}")


def lidc(source: Path, labels: str, fold: int, run: Path) -> None:
    stage("ct_seg", "--input", source, "--images", source / "manifest.csv", "--labels", labels,
          "--fold", f"{fold + 1}/{FOLDS}", "--output", run / "datasets/real", *LIDC)


def luna16(source: Path, _: str, fold: int, run: Path) -> None:
    """The candidates of a stretch of rows are test, those of the next val."""
    with open(source / "manifest.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if not row["rotated_copy_of"]]
    place = np.array([int(row["candidate_row"]) for row in rows])
    cuts = np.linspace(0, place.max() + 1, FOLDS + 1)
    kept = np.abs(place[:, None] - cuts[1:-1]).min(1) >= MARGIN
    stretch = np.searchsorted(cuts, place, side="right") - 1
    split_of, lines = {}, []
    for row, number, part in zip([row for row, keep in zip(rows, kept) if keep], place[kept],
                                 stretch[kept]):
        block = f"rows{number // BLOCK_ROWS * BLOCK_ROWS:07d}of{part}"
        split_of[block] = {fold: "test", (fold + 1) % FOLDS: "val"}.get(int(part), "train")
        label = "nodule" if row["label"] == "nodule" else "no_nodule"
        lines.append(f"{row['file']},{label},{block}")
    run.mkdir(parents=True, exist_ok=True)
    (run / "images.csv").write_text("file,label,patient\n" + "\n".join(lines) + "\n")
    (run / "split.csv").write_text("patient,split\n" + "\n".join(
        f"{block},{split}" for block, split in sorted(split_of.items())) + "\n")
    stage("ct_seg", "--input", source, "--images", run / "images.csv", "--split-from",
          run / "split.csv", "--output", run / "datasets/real", *LUNA16)


def ruler(real: Path) -> Answers:
    """Logistic regression on log diameter and log area, fitted to all of train."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = open_dataset(real)
    values, labels = {}, {}
    for split in ("train", "test"):
        rows = data.select(split)
        values[split] = np.log([[float(row.extra["diameter_mm"]),
                                 max(0.1, float(row.extra["area_mm2"]))] for row in rows])
        labels[split] = np.array([data.classes.index(row.label) for row in rows])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(values["train"], labels["train"])
    rows = data.select("test")
    return Answers(model.predict_proba(values["test"]), labels["test"],
                   np.array([row.group for row in rows]), size_bands.diameters_mm(rows))


def answers_of(path: Path) -> Answers:
    with np.load(path) as file:
        labels = file["real_labels"]
        unknown = np.full(len(labels), np.nan)
        return Answers(file["real_probabilities"].astype(float), labels, file["real_groups"],
                       file["real_diameter_mm"] if "real_diameter_mm" in file else unknown)


def joined(parts: list[Answers]) -> Answers:
    return Answers(*(np.concatenate([getattr(part, name) for part in parts])
                     for name in ("probabilities", "labels", "groups", "diameters")))


def make(name: str, labels: str, made: Callable, source: Path, work: Path, repeats: int,
         baselines: list[str]) -> dict[str, list[Answers]]:
    """The answers of every arm, one a repeat, over all folds."""
    arms = ["real"] if labels == "presence" else ["real", *baselines]
    parts: dict[tuple[str, int], list[Answers]] = {}
    for fold in range(TESTED[labels]):
        run = work / name / f"fold_{fold}"
        real, results = run / "datasets/real", run / "results"
        made(source, labels, fold, run)
        common = ["--real", real, "--results", results, "--repeats", repeats]
        stage("cnn_classify", "--data", real, "--device", "cpu", *TRAINING.get(labels, []), *common)
        for arm in arms[1:]:
            stage("nuclei_classify", "--features", real, "--baseline", arm, *common)
        for arm in arms:
            for repeat in range(repeats):
                path = results / arm / "replicate_000" / f"repeat_{repeat:04d}.npz"
                parts.setdefault((arm, repeat), []).append(answers_of(path))
        if labels != "presence":
            parts.setdefault(("ruler", 0), []).append(ruler(real))
    found: dict[str, list[Answers]] = {}
    for (arm, _), of_folds in parts.items():
        found.setdefault("cnn" if arm == "real" else arm, []).append(joined(of_folds))
    one = found["cnn"][0]
    found["averaged"] = [replace(one, probabilities=np.mean(
        [each.probabilities for each in found["cnn"]], axis=0))]
    return found


# ------------------------------------------------------------------ intervals

def drawn(found: dict[str, list[Answers]], graded: bool) -> dict[str, list[dict[str, float]]]:
    """Of every arm the mean scores over repeats: of all images first, then of each draw."""
    first = found["cnn"][0]
    names, group = np.unique(first.groups, return_inverse=True)
    images = [np.flatnonzero(group == k) for k in range(len(names))]
    rng = np.random.default_rng(0)
    draws = [np.arange(len(group))] + [
        np.concatenate([images[k] for k in rng.integers(0, len(names), len(names))])
        for _ in range(DRAWS)]
    told: dict[str, list[dict[str, float]]] = {}
    for arm, repeats in found.items():
        assert all((each.labels == first.labels).all() for each in repeats)
        told[arm] = []
        for draw in draws:
            each = [scores_of(one.take(draw), graded) for one in repeats]
            told[arm].append({name: float(np.mean([one[name] for one in each]))
                              for name in each[0]})
    return told


def line(values: np.ndarray, form: str = "") -> str:
    """The first value and the interval of the rest."""
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return f"{values[0]:{form}.3f} ({low:{form}.3f} to {high:{form}.3f})"


def show(name: str, labels: str, found: dict[str, list[Answers]]) -> None:
    told = drawn(found, labels == "grade")
    first = found["cnn"][0]
    share = np.bincount(first.labels) / len(first.labels)
    middle = ((first.diameters >= MIDDLE_MM[0]) & (first.diameters < MIDDLE_MM[1])).sum()
    print(f"\n{name}: {len(first.labels)} images of {len(set(first.groups))} groups, classes "
          f"{', '.join(map(str, np.bincount(first.labels)))}; {middle} of 6 to 15 mm; weighted "
          f"AUPRC by prevalence {(share**2).sum():.3f}; {len(found['cnn'])} repeats of "
          f"{TESTED[labels]} fold{'s'[:TESTED[labels] > 1]}")
    for score in SHOWN:
        for arm in told:
            if score not in told[arm][0]:
                continue
            values = np.array([each[score] for each in told[arm]])
            said = line(values)
            target = TARGETS[labels].get(score) if arm == "cnn" else None
            if target:
                said += f"   target {target:.2f}: {'reached' if values[0] >= target else 'not'}"
            if arm == "cnn" and "ruler" in told:
                apart = values - np.array([each[score] for each in told["ruler"]])
                said += f"   CNN - ruler {line(apart, '+')}"
            print(f"  {score:<20}{arm:<9}{said}")
    for number, band in enumerate(metrics.by_size(first.probabilities, first.labels,
                                                  first.diameters)):
        for arm in found if band["num_images"] else ():
            of_all = [metrics.by_size(each.probabilities, each.labels, each.diameters)[number]
                      for each in found[arm]]
            print(f"  {band['band']:<12} {band['num_images']:>4} images  largest class "
                  f"{band['largest_class']:.3f}  {arm:<9}accuracy "
                  f"{np.mean([one['accuracy'] for one in of_all]):.3f}" + (
                      f"  AUROC {np.mean([one['auroc'] for one in of_all]):.3f}"
                      if band["auroc"] is not None else ""))
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--repeats", type=int, default=2, metavar="N")
    parser.add_argument("--baselines", nargs="*", default=[], choices=["size", "nodule"])
    parser.add_argument("--tasks", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    how = parser.parse_args()
    print("small CNN, demo preset, one CPU thread; " + " ".join(
        f"{name}: {' '.join(options)};" for name, options in (("LIDC", LIDC), ("LUNA16", LUNA16))))
    for labels in how.tasks:
        name, variable, made = (("luna16-presence", "LUNA16_CROPS", luna16)
                                if labels == "presence" else
                                (f"lidc-{labels}", "LIDC_CROPS", lidc))
        if variable not in os.environ:
            sys.exit(f"{variable} is not set: the folder with manifest.csv")
        source = Path(os.environ[variable]).resolve()
        show(name, labels, make(name, labels, made, source, how.work.resolve(), how.repeats,
                                how.baselines))


if __name__ == "__main__":
    main()
