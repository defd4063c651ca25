"""What every training said of every real test image, read from the .npz beside the records.

One file is open at a time; what is kept of a training is its score, the influence of every test
group on it, and its confusion matrix by group.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lungkit.compare import scores
from lungkit.compare.bootstrap import Trainings
from lungkit.compare.influence import ITEM_SCORES, SCORES, influence, of_items
from lungkit.compare.results import Results
from lungkit.data import size_bands
from lungkit.data.metrics import mean_auroc
from lungkit.data.result import TUMOUR_SCORES, repeat_path, replicate_dir
from lungkit.run.faults import Fault, check_stop

CALIBRATION_BINS = 10  # of equal counts: Nguyen and O'Connor 2015
FOREGROUND = "foreground"  # the one class of what is segmented: groups are drawn among all
AGREEMENT = 1e-3       # between a record's score and that of its .npz, which holds float32


class NoEvidence(Exception):
    """The results do not say what was answered of which group; the words say why."""


@dataclass
class TestSet:
    """The real test images of one split; all arms were tested on them, in this order.

    Of what is segmented they are items, images or volumes, and FOREGROUND is the only class: a
    group counts where it shows some.
    """

    replicates: list[int]
    classes: list[str]
    labels: np.ndarray    # int [N]; of items the voxels of foreground
    groups: list[str]     # [G], sorted
    group: np.ndarray     # int [N], an index into groups
    unknown: int          # images that have no group id, each its own group
    counts: np.ndarray    # int [G, C], images of each class in each group
    band: np.ndarray | None  # int [N], the size band of each image, -1: none; None: no sizes

    def in_bands(self, images: np.ndarray) -> np.ndarray:
        """int [B, G, C], how many of `images`, bool [N], are of each band, group and class."""
        found = np.zeros((len(size_bands.BANDS), *self.counts.shape), np.int64)
        chosen = images & (self.band >= 0)
        np.add.at(found, (self.band[chosen], self.group[chosen], self.labels[chosen]), 1)
        return found

    @property
    def is_classified(self) -> bool:
        """Whether a class was said of each image."""
        return self.classes != [FOREGROUND]

    @property
    def groups_per_class(self) -> dict[str, int]:
        return dict(zip(self.classes, (self.counts > 0).sum(0).tolist()))


@dataclass
class Answers:
    """What the T trainings of one arm answered on one test set of G groups and C classes."""

    trainings: list[tuple[int, int]] = field(default_factory=list)  # replicate, repeat
    fingerprints: list[str] = field(default_factory=list)           # of the set trained on
    values: list[float] = field(default_factory=list)               # the score compared
    influence: list[np.ndarray] = field(default_factory=list)       # T of float64 [G]
    confusion: list[np.ndarray] = field(default_factory=list)       # T of int [G, C, C], row: true
    right_in_bands: list[np.ndarray] = field(default_factory=list)  # T of int [B, G, C]
    auroc_in_bands: list[np.ndarray] = field(default_factory=list)  # T of float [B], NaN: none
    influence_in_bands: list[np.ndarray] = field(default_factory=list)  # on these, T of [B, G]
    brier: list[float] = field(default_factory=list)
    calibration: list[float] = field(default_factory=list)

    def counts(self) -> np.ndarray:
        """int [T, G, C, C]"""
        return np.stack(self.confusion)


@dataclass
class Evidence:
    """The answers of every arm on the test set of every split, in the order of `splits`."""

    metric: str
    splits: list[TestSet]
    arms: dict[str, list[Answers]]

    def __post_init__(self) -> None:
        self.groups = sorted({name for split in self.splits for name in split.groups})
        index = {name: place for place, name in enumerate(self.groups)}
        self._places = [np.array([index[name] for name in split.groups]) for split in self.splits]
        counts = np.zeros((len(self.groups), len(self.splits[0].classes)), np.int64)
        for split, places in zip(self.splits, self._places):
            counts[places] += split.counts
        self.strata = counts.argmax(1)  # int [G]: the class of most of a group's images
        number = np.bincount(self.strata)
        self.strata[number[self.strata] == 1] = number.argmax()  # one alone could not be redrawn

    def over_groups(self, per_split: list[Trainings]) -> list[Trainings]:
        """The same over the groups of all splits: influence 0 where a split does not test one."""
        spread = []
        for one, places in zip(per_split, self._places):
            wide = np.zeros((len(one.values), len(self.groups)))
            wide[:, places] = one.influence
            spread.append(Trainings(one.values, wide))
        return spread

    def trainings(self, arm: str) -> list[Trainings]:
        """Of each split: the arm's trainings or, where it has several sets there, its sets."""
        return self.over_groups([_units(answers) for answers in self.arms[arm]])


def _units(answers: Answers) -> Trainings:
    values, by_group = np.array(answers.values), np.stack(answers.influence)
    sets = list(dict.fromkeys(answers.fingerprints))
    if len(sets) == 1:
        return Trainings(values, by_group)
    of_set = [np.array(answers.fingerprints) == name for name in sets]
    return Trainings(np.array([values[which].mean() for which in of_set]),
                     np.stack([by_group[which].mean(0) for which in of_set]))


# ------------------------------------------------------------------ reading

def read_evidence(source: Path, found: Results, metric: str, benign: str | None,
                  read: Callable[[Path], dict[str, np.ndarray]] | None = None) -> Evidence:
    """Read the answers behind the rows of a results tree.

    benign: the class that is no tumour, for sensitivity and specificity; None: not known.
    read: gives the arrays of an .npz; None: from disk.
    Raises NoEvidence where a record has no .npz or that has no groups, Fault where one disagrees
    with its record or with the others.
    """
    name, test_split = scores.parts(metric)
    if test_split != "real":
        raise NoEvidence("a table of accuracies names no test image")
    segmented = found.rows[0].get("task") == "segment"
    if name not in (ITEM_SCORES if segmented else SCORES) and (
            name not in TUMOUR_SCORES or benign is None):
        raise NoEvidence(f"{scores.metric_words(metric)} has no value by test image")
    splits: list[TestSet] = []
    arms: dict[str, list[Answers]] = {arm: [] for arm in found.datasets}
    for replicates in found.splits:
        test_set = None
        for arm in found.datasets:
            answers = Answers()
            for row in found.rows:
                if row["dataset"] == arm and row["replicate"] in replicates:
                    check_stop()
                    path = _npz_path(source, row)
                    arrays = (read or _read)(path, *([ITEMS] if segmented else []))
                    test_set = test_set or _test_set(arrays, replicates)
                    _check_same(arrays, test_set, path)
                    if segmented:
                        _add_items(answers, row, arrays, test_set, metric, path)
                    else:
                        _add(answers, row, arrays["real_probabilities"], test_set, metric, benign,
                             path)
            arms[arm].append(answers)
        splits.append(test_set)
    return Evidence(metric, splits, arms)


def _npz_path(source: Path, row: dict) -> Path:
    directory = replicate_dir(source, row["dataset"], row["replicate"])
    return repeat_path(directory, row["repeat"]).with_suffix(".npz")


NAMED = ("real_file_names", "real_groups")
IMAGES = ("classes", "real_probabilities", "real_labels", *NAMED)
ITEMS = (*(f"real_{name}" for name in ("true", "said", "both", "lesions", "found", "dice",
                                       "surface_dice")), *NAMED)


def _read(path: Path, wanted: tuple[str, ...] = IMAGES) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:
            missing = [name for name in wanted if name not in file.files]
            if missing:
                raise NoEvidence(f"{path.parent.parent.name}/{path.parent.name}/{path.name} lacks "
                                 f"{', '.join(missing)} (results of version 1 have no groups)")
            also = [f"real_{size_bands.COLUMN}"] if f"real_{size_bands.COLUMN}" in file else []
            return {name: file[name] for name in (*wanted, *also)}
    except FileNotFoundError:
        raise NoEvidence(f"{path.parent.parent.name}/{path.parent.name}/{path.name} is not "
                         "there") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise not_whole(path, error) from None


def not_whole(path: Path, error: Exception) -> Fault:
    """What to say of arrays beside a record that cannot be read."""
    return Fault(f"{path} is no whole .npz ({error}): delete it and its .json and run the repeat "
                 "again")


def _test_set(arrays: dict[str, np.ndarray], replicates: list[int]) -> TestSet:
    groups, group = np.unique(arrays["real_groups"], return_inverse=True)
    if "real_true" in arrays:
        labels, classes = arrays["real_true"], [FOREGROUND]
        counts = np.bincount(group, labels > 0, len(groups)).astype(np.int64)[:, None]
    else:
        labels, classes = arrays["real_labels"], arrays["classes"].tolist()
        counts = np.zeros((len(groups), len(classes)), np.int64)
        np.add.at(counts, (group, labels), 1)
    names = arrays["real_file_names"]  # of a volume its series, which may be its patient's too
    unknown = int(((arrays["real_groups"] == names) & np.char.endswith(names, ".png")).sum())
    diameters = arrays.get(f"real_{size_bands.COLUMN}")
    return TestSet(replicates, classes, labels, groups.tolist(), group, unknown, counts,
                   None if diameters is None else size_bands.band_of(diameters))


def _check_same(arrays: dict[str, np.ndarray], test_set: TestSet, path: Path) -> None:
    same = np.array_equal(arrays["real_groups"], np.array(test_set.groups)[test_set.group])
    if test_set.is_classified:
        same = (same and arrays["classes"].tolist() == test_set.classes
                and np.array_equal(arrays["real_labels"], test_set.labels)
                and arrays["real_probabilities"].shape == (len(test_set.labels),
                                                           len(test_set.classes)))
    else:
        same = same and np.array_equal(arrays["real_true"], test_set.labels)
    if not same:
        raise Fault(f"{path} was tested on other images, groups or classes than the results beside "
                    "it of the same real dataset")


def _add(answers: Answers, row: dict, probabilities: np.ndarray, test_set: TestSet, metric: str,
         benign: str | None, path: Path) -> None:
    labels, said = test_set.labels, probabilities.argmax(1)
    right = said == labels
    if abs(right.mean() - row["accuracy_real"]) > AGREEMENT:
        raise Fault(f"{path} holds answers of accuracy {right.mean():.4f}, its record says "
                    f"{row['accuracy_real']:.4f}")
    num_groups, num_classes = test_set.counts.shape
    cell = (test_set.group * num_classes + labels) * num_classes + said
    counts = np.bincount(cell, minlength=num_groups * num_classes**2)
    probabilities = probabilities.astype(np.float64)
    by_image = influence(scores.parts(metric)[0], probabilities, labels,
                         None if benign is None else test_set.classes.index(benign))
    answers.trainings.append((row["replicate"], row["repeat"]))
    answers.fingerprints.append(row["dataset_fingerprint"])
    answers.values.append(row[metric])
    answers.influence.append(np.bincount(test_set.group, by_image, num_groups))
    answers.confusion.append(counts.reshape(num_groups, num_classes, num_classes))
    if test_set.band is not None:
        _add_bands(answers, probabilities, right, test_set)
    one_hot = np.eye(num_classes)[labels]
    answers.brier.append(float(((probabilities - one_hot)**2).sum(1).mean()))
    answers.calibration.append(calibration_error(probabilities.max(1), right))


def _add_items(answers: Answers, row: dict, arrays: dict[str, np.ndarray], test_set: TestSet,
               metric: str, path: Path) -> None:
    """Add what one training found of every item."""
    items = {name.removeprefix("real_"): values for name, values in arrays.items()}
    value, by_item = of_items(scores.parts(metric)[0], items)
    if not abs(value - row[metric]) <= AGREEMENT:
        raise Fault(f"{path} holds items of {scores.metric_words(metric)} {value:.4f}, its record "
                    f"says {row[metric]:.4f}")
    answers.trainings.append((row["replicate"], row["repeat"]))
    answers.fingerprints.append(row["dataset_fingerprint"])
    answers.values.append(row[metric])
    answers.influence.append(np.bincount(test_set.group, by_item, len(test_set.groups)))


def _add_bands(answers: Answers, probabilities: np.ndarray, right: np.ndarray,
               test_set: TestSet) -> None:
    """Add what one training answered in each size band."""
    areas, moved = [], []
    for band in range(len(size_bands.BANDS)):
        inside = test_set.band == band
        told, labels = probabilities[inside], test_set.labels[inside]
        ranked = len(np.unique(labels)) > 1
        areas.append(mean_auroc(told, labels) if ranked else np.nan)
        by_image = influence("auroc", told, labels) if ranked else np.zeros(len(labels))
        moved.append(np.bincount(test_set.group[inside], by_image, len(test_set.groups)))
    answers.right_in_bands.append(test_set.in_bands(right))
    answers.auroc_in_bands.append(np.array(areas))
    answers.influence_in_bands.append(np.stack(moved))


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Mean |confidence - accuracy| over ten bins of equal counts, weighted by them.

    Naeini et al. 2015, with bins of equal counts. It is above 0 for a calibrated model too, the
    more the fewer the images: compare arms by it, on the same images.
    """
    order = np.argsort(confidence, kind="stable")
    over = (confidence - right)[order]  # sums to confidence - accuracy, bin by bin
    starts = np.unique(np.linspace(0, len(order), CALIBRATION_BINS + 1).astype(int)[:-1])
    return float(np.abs(np.add.reduceat(over, starts)).sum() / len(order))
