#!/usr/bin/env python
r"""What each option of the CNN's training changes on a dataset, over N repeats of each.

    python benchmarks/cnn_ablation.py DATASET --work DIR --weights FILE \
        > benchmarks/cnn_ablation.txt

Every row is cnn_classify.py with one option more than the first row of its group, N repeats with
the seeds of that row, so that a repeat of one and the same repeat of the other begin alike and are
a pair. The difference of a score is the mean over pairs; its 95 % interval is Student's with N - 1
degrees of freedom, of the variance between pairs / N and, of the test images, the variance of a
group's summed influence on the difference (lungkit.compare.influence): for new patients and new
trainings, of this one split. Nothing is chosen by these figures, and rows are not adjusted for
their number: of twenty rows that change nothing one is expected to look as if it did.

small    the small CNN on images
frozen   a head on features of EfficientNet-Lite0
tuned    the small CNN from FILE, trained on other images by cnn_classify.py --keep-weights;
         without, EfficientNet-Lite0 fine-tuned, hours on a CPU

Running the same command again goes on where it was. benchmarks/cnn_ablation.txt is of crops of
LIDC-IDRI in five grades,

    python ct_seg.py --input lidc_crops --images lidc_crops/manifest.csv --labels grade \
        --min-readers 2 --min-diameter-mm 0 --field-mm 32 --image-size 64 --output DATASET

and of weights of 200 steps on the simulated thorax of MODALITY=ct TASK=crop-grade.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import cnn_classify  # noqa: E402  (after the path is set)
from lungkit.compare.influence import influence  # noqa: E402
from lungkit.data.dataset import open_dataset  # noqa: E402
from lungkit.data.metrics import split_metrics  # noqa: E402

LITE0 = ["--weights", "imagenet-lite0"]
BALANCE = {name: ["--balance", name] for name in ("sampler", "loss", "upsample")}
MIXED = {"mixup 0.2": ["--mixup", "0.2"], "cutmix 1": ["--cutmix", "1"]}
GROUPS = {
    "small": ([], {**BALANCE, **MIXED, "tta flips": ["--tta", "flips"],
                   "tta eight": ["--tta", "eight"]}),
    "frozen": ([*LITE0, "--frozen"], {
        **{name: BALANCE[name] for name in ("sampler", "loss")}, "mixup 0.2": MIXED["mixup 0.2"],
        "dropout 0.5": ["--dropout", "0.5"], "no smoothing": ["--label-smoothing", "0"],
        "adam": ["--optimizer", "adam"]}),
    "tuned": (["--steps", "100"], {
        **{f"unfreeze {name}": ["--unfreeze", name] for name in (
            "none", "conservative", "moderate", "aggressive")},
        "layer decay 0.7": ["--layer-decay", "0.7"]})}
SCORES = ("auprc_weighted", "balanced_accuracy", "accuracy")


def train(data: Path, results: Path, repeats: int, options: list[str]) -> None:
    """Make the repeats that are missing."""
    with contextlib.redirect_stdout(sys.stderr):
        status = cnn_classify.main(["--data", str(data), "--real", str(data), "--results",
                                    str(results), "--repeats", str(repeats), "--device", "cpu",
                                    *options])
    if status:
        sys.exit(f"cnn_classify.py {' '.join(options)} ended with {status}")


def answers(results: Path, repeats: int) -> list[tuple]:
    """(probabilities, labels, groups) of each repeat's test images."""
    found = []
    for path in sorted(results.glob("*/replicate_000/repeat_*.npz"))[:repeats]:
        with np.load(path) as file:
            found.append((file["real_probabilities"].astype(float), file["real_labels"],
                          file["real_groups"]))
    return found


def score(name: str, said: tuple) -> float:
    probabilities, labels, _ = said
    return split_metrics(probabilities, labels, list(map(str, range(probabilities.shape[1]))))[0][
        name]


def difference(name: str, row: list[tuple], first: list[tuple]) -> tuple[float, float]:
    """The mean difference of a score over pairs, and half of its interval."""
    from scipy.stats import t

    pairs = np.array([score(name, one) - score(name, other) for one, other in zip(row, first)])
    moved = np.mean([influence(name, *one[:2]) - influence(name, *other[:2])
                     for one, other in zip(row, first)], 0)
    _, place = np.unique(row[0][2], return_inverse=True)
    groups = np.bincount(place, weights=moved)
    variance = pairs.var(ddof=1) / len(pairs) + (groups**2).sum() * len(groups) / (len(groups) - 1)
    return pairs.mean(), t.ppf(0.975, len(pairs) - 1) * np.sqrt(variance)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="of ct_seg.py or tumor_seg.py")
    parser.add_argument("--work", type=Path, required=True, help="where results are kept")
    parser.add_argument("--repeats", type=int, default=5, help="of each row")
    parser.add_argument("--weights", type=Path, help="what the rows of `tuned` begin from")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    options = parser.parse_args()
    data = open_dataset(options.dataset)
    counts = {split: "/".join(str(n) for n in data.counts[split].values())
              for split in ("train", "test")}
    print(f"{data.name}: classes {', '.join(data.classes)}; train {counts['train']}, test "
          f"{counts['test']} of {len({row.group for row in data.select('test')})} groups; "
          f"n = {options.repeats}, differences to the first row in points", flush=True)
    for group in options.groups:
        base, rows = GROUPS[group]
        if group == "tuned":
            base = [*base, *(["--weights", str(options.weights)] if options.weights else LITE0)]
        print(f"\n{group:<22}" + "".join(f"{name:>26}" for name in SCORES))
        first = None
        for name, more in {"usual": [], **rows}.items():
            results = options.work / group / name.replace(" ", "-")
            train(options.dataset, results, options.repeats, [*base, *more])
            said = answers(results, options.repeats)
            if first is None:
                first = said
                cells = [f"{np.mean([score(each, one) for one in said]):.3f}" for each in SCORES]
            else:
                changes = [100 * np.array(difference(each, said, first)) for each in SCORES]
                cells = [f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"
                         for mean, half in changes]
            print(f"{name:<22}" + "".join(f"{cell:>26}" for cell in cells), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
