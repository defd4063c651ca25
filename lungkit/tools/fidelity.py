"""Measure how like real images an arm's are, class by class, in pretrained features.

Reads   DATA, datasets of one REAL, and REAL
Writes  DATA/fidelity.json, beside the manifest; features are kept beside the datasets
Prints  a line a class of each dataset

Reference are REAL's val and test images. Beside each of DATA's train images stand, at the same
number of images, REAL's own train images (the floor: real images of other groups) and noise (the
ceiling). fid, kid, precision, recall, density, coverage: lungkit/audit/fidelity.py. label: how
often a linear classifier, trained on features of REAL's train images, says the class that was
meant, beside how often it is right on the reference. nuclei, where there are any: how many an image
has, how large and how far apart, beside the reference's. membership: whether REAL's train images
can be told from the reference by how near the arm's images come to them. copy_control, of an arm
that was looked through for copies: how many images of the reference that audit flags, all none.

Nothing is chosen or trained by what is found. Running the same command again changes nothing; with
other options or datasets the file is made anew.
Exit statuses: 0 complete, 1 bad data, 2 bad options, 75 stopped, run it again.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np

from lungkit.audit import fidelity, memorised
from lungkit.data.dataset import Dataset, Row, check_same_task, open_dataset
from lungkit.learn import linear
from lungkit.learn.device import use_device
from lungkit.learn.features import Extractor
from lungkit.learn.pretrained import LITE0
from lungkit.nuclei import detect, statistics
from lungkit.run import cli
from lungkit.run.faults import check_stop
from lungkit.run.files import read_json, sha256, write_json
from lungkit.run.progress import say

SCHEMA, RECIPE = "lungkit.fidelity/1", 4
FILE = "fidelity.json"
PER_CLASS = 100       # ours: seconds an arm; intervals say what so few can tell
FEWEST_OF_ARM = 50    # ours: of an arm as many as are compared, but so many for label fidelity


# ------------------------------------------------------------------ which images

def choose(rows: list[Row], most: int) -> list[Row]:
    """At most so many rows, one of each group in turn, in an order that the file names decide."""
    seen: Counter = Counter()
    turns = {}
    for row in sorted(rows, key=lambda row: sha256(row.file_name.encode())):
        turns[row.file_name] = seen[group_of(row)]
        seen[group_of(row)] += 1
    ordered = sorted(rows, key=lambda row: (turns[row.file_name], sha256(row.file_name.encode())))
    return ordered[:most]


def group_of(row: Row) -> str:
    return row.group or row.file_name


class Side:
    """Chosen images of some splits by class: features float32 [N, D], groups [N], nuclei [N, 3].

    nuclei: of lungkit.nuclei.statistics; {} of CT, which shows none, and where none are asked for.
    """

    def __init__(self, extractor: Extractor, dataset: Dataset, splits: tuple[str, ...],
                 most: dict[str, int], *, with_nuclei: bool = True) -> None:
        self.features, self.groups, self.nuclei = {}, {}, {}
        for label in dataset.classes:
            rows = choose([row for split in splits for row in dataset.select(split, label)],
                          most[label])
            names = sha256("\n".join(row.file_name for row in rows).encode())[:12]
            self.features[label] = extractor.of_rows(dataset, rows, f"some-{names}")
            self.groups[label] = np.array([group_of(row) for row in rows])
            if with_nuclei and dataset.modality != "ct":
                self.nuclei[label] = statistics.of_rows(dataset, rows, names)


def noise_of(extractor: Extractor, real: Dataset, most: int) -> np.ndarray:
    """Features float32 [most, D] of noise of real's size and channels, every byte by itself."""
    shape = (real.image_size, real.image_size, real.channels)
    images = (np.random.default_rng([0, number]).integers(0, 256, shape, np.uint8)
              for number in range(most))
    return extractor.keep(real, f"noise-{most}", most, images)


# ------------------------------------------------------------------ what is measured

def of_class(label: str, arm: Side, train: Side, held_out: Side, noise: np.ndarray) -> dict:
    """{n, scores: {name: {value, low, high, floor, floor_low, floor_high, ceiling}}} of a class.

    Where there are too few images, {n, too_few: true}.
    """
    n = min(len(arm.features[label]), len(train.features[label]), len(held_out.features[label]),
            len(noise))
    if n < fidelity.FEWEST:
        return {"n": n, "too_few": True}
    reference, groups = held_out.features[label][:n], held_out.groups[label][:n]
    found = {}
    for name, side in (("", arm), ("floor", train)):
        found[name] = fidelity.measure(reference, side.features[label][:n], groups,
                                       side.groups[label][:n])
    ceiling = fidelity.measure(reference, noise[:n]).values
    scores = {}
    for name, value in found[""].values.items():
        low, high = (found[""].intervals or {}).get(name, (None, None))
        floor_low, floor_high = (found["floor"].intervals or {}).get(name, (None, None))
        scores[name] = {"value": value, "low": low, "high": high,
                        "floor": found["floor"].values[name], "floor_low": floor_low,
                        "floor_high": floor_high, "ceiling": ceiling[name]}
    scores["kid"]["deviation"] = found[""].deviation
    return {"n": n, "scores": scores}


def classifier_of(train: Side):
    """What says a class of features; trained on real's train images."""
    labels = np.concatenate([[label] * len(each) for label, each in train.features.items()])
    return linear.fit(np.concatenate(list(train.features.values())), labels)


def nuclei_of(arm: Side, held_out: Side, label: str) -> dict[str, dict]:
    """{quantity: {arm, real: {value, low, high}}}: means over the images of a class."""
    return {name: {of: fidelity.mean_of(side.nuclei[label][:, number], side.groups[label])
                   for of, side in (("arm", arm), ("real", held_out))}
            for number, name in enumerate(statistics.QUANTITIES) if label in arm.nuclei}


def membership_of(arm: Side, train: Side, held_out: Side) -> dict:
    """Whether real's train images can be told from the held-out ones by the arm's, all classes."""
    sides = ({label: (fidelity.nearest(arm.features[label], each), side.groups[label])
              for label, each in side.features.items()} for side in (train, held_out))
    return fidelity.membership(*sides)


def most_of_arm(train: Side, held_out: Side, per_class: int) -> dict[str, int]:
    """{class: images of an arm to look at}: those that are compared with as many real ones."""
    return {label: min(per_class, max(FEWEST_OF_ARM, min(len(each), len(train.features[label]))))
            for label, each in held_out.features.items()}


def most_compared(train: Side, held_out: Side) -> int:
    """Images of the class with most that real has of its own on both sides."""
    return max(min(len(each), len(train.features[label]))
               for label, each in held_out.features.items())


def of_dataset(dataset: Dataset, extractor: Extractor, train: Side, held_out: Side,
               noise: np.ndarray, per_class: int) -> dict[str, dict]:
    """{classes: {class: what is found of it}, membership}."""
    most = most_of_arm(train, held_out, per_class)
    arm, head = Side(extractor, dataset, ("train",), most), classifier_of(train)
    classes = {}
    for label in dataset.classes:
        check_stop()
        classes[label] = {**of_class(label, arm, train, held_out, noise), "label": {
            name: {**fidelity.mean_of(head.predict(side.features[label]) == label,
                                       side.groups[label]), "n": len(side.groups[label])}
            for name, side in (("arm", arm), ("real", held_out))},
            "nuclei": nuclei_of(arm, held_out, label)}
    return {"classes": classes, "membership": membership_of(arm, train, held_out)}


# ------------------------------------------------------------------ the command

def run(*, data: list[Path], real: Path, per_class: int, network: str, weights: Path | None,
        device: str, dry_run: bool) -> None:
    yardstick = open_dataset(real)
    extractor = Extractor(network, weights, use_device(device, needed=False))
    identity = {"schema": SCHEMA, "recipe": RECIPE, "real_fingerprint": yardstick.fingerprint,
                "per_class": per_class, "features": extractor.identity,
                "recipes": {"copies": memorised.RECIPE, "nuclei": detect.RECIPE}}
    pending = []
    for path in data:
        dataset = yardstick if path.resolve() == real.resolve() else open_dataset(path)
        check_same_task(dataset, yardstick)
        wanted = {**identity, "dataset_fingerprint": dataset.fingerprint}
        place = path / FILE
        there = read_json(place) if place.exists() else {}
        if dataset is yardstick:
            say(f"fidelity: {path} is real itself: its train images are the floor")
        elif there.items() >= wanted.items():
            print(in_words(path, there))
        else:
            pending.append((dataset, wanted))
    say(f"fidelity: found {len(data) - len(pending)}, pending {len(pending)} of {len(data)} "
        f"datasets; {per_class} images a class at most; {extractor.name}")
    if dry_run or not pending:
        return
    extractor.device = use_device(device)
    most = dict.fromkeys(yardstick.classes, per_class)
    train = Side(extractor, yardstick, ("train",), most, with_nuclei=False)
    held_out = Side(extractor, yardstick, ("val", "test"), most)
    noise, flagged = noise_of(extractor, yardstick, most_compared(train, held_out)), None
    for dataset, wanted in pending:
        found = wanted | of_dataset(dataset, extractor, train, held_out, noise, per_class)
        if "copy_audit" in dataset.manifest:
            flagged = flagged or memorised.control(memorised.Audit(yardstick))
            found["copy_control"] = flagged
        write_json(dataset.path / FILE, found)
        print(in_words(dataset.path, found))


def in_words(path: Path, found: dict) -> str:
    """A line a class: the arm's value, and in brackets floor and ceiling; then the membership."""
    lines = []
    for label, each in found["classes"].items():
        said = "  ".join(f"{name} {score['value']:.3g} ({score['floor']:.3g}, "
                         f"{score['ceiling']:.3g})"
                         for name, score in each.get("scores", {}).items())
        label_said = (f"label {each['label']['arm']['value']:.2f} "
                      f"(real {each['label']['real']['value']:.2f})")
        lines.append(f"{path.name} {label} n {each['n']}  "
                     f"{said or 'too few images'}  {label_said}")
    told = found["membership"]
    ends = "" if told["low"] is None else f" ({told['low']:.2f} to {told['high']:.2f})"
    return "\n".join([*lines, f"{path.name} membership AUROC {told['auroc']:.2f}{ends}"])


def build_parser():
    parser = cli.stage_parser("python -m lungkit.tools.fidelity", __doc__)
    group = parser.add_argument_group("Main")
    group.add_argument("--data", type=cli.directory, required=True, nargs="+", metavar="DIR",
                       help="the datasets to measure; real among them is passed over")
    group.add_argument("--real", type=cli.directory, required=True, metavar="DIR",
                       help="the real dataset they were made from")
    group.add_argument("--per-class", type=cli.positive_int, default=PER_CLASS, metavar="IMAGES",
                       help="images of a class at most")
    group.add_argument("--network", default=LITE0, metavar="NAME",
                       help="of timm's, whose features are compared")
    group.add_argument("--weights", type=Path, metavar="FILE",
                       help="its weights (default: ImageNet's, as a package, of "
                            f"{LITE0} alone)")
    cli.add_common(parser, seed=False, overwrite=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
