"""One arm looked at closely: classes, size bands, calibration, worst group, failed trainings."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from lungkit.compare import scores
from lungkit.compare.answer import ArmAnswer, BandScores, ClassScores
from lungkit.compare.bootstrap import Mean, Trainings, crossed_mean, share_interval
from lungkit.compare.evidence import Answers, Evidence
from lungkit.compare.results import Results
from lungkit.data import size_bands
from lungkit.data.result import TUMOUR_SCORES, is_baseline

# a training is outlying further from the median than both: ours. Of ten or twenty values the robust
# deviation is often half of the true one, so six of it are three; five points are no seed's whim
OUTLYING_SDS, OUTLYING_POINTS = 6.0, 0.05
OUTLYING_FROM = 8  # trainings on a split; the robust deviation of fewer is often near 0
ONE_CLASS = 0.95  # a training that says one class of so many images has collapsed


def arm_answer(found: Results, arm: str, metric: str, values: Sequence[float],
               evidence: Evidence | None, *, alpha: float) -> ArmAnswer:
    """What one arm scored; its classes and intervals where the answers by group are known."""
    name, split = scores.parts(metric)
    rows = [row for row in found.rows if row["dataset"] == arm]
    by_split = [[row for row in rows if row["replicate"] in replicates]
                for replicates in found.splits]
    means = {measure: statistics.fmean(row[measure] for row in rows) for measure in found.metrics}
    said = ArmAnswer(
        arm, metric, "baseline" if is_baseline(rows[0]) else "cnn", len(values), len(rows),
        statistics.fmean(values), statistics.median(values),
        statistics.stdev(values) if len(values) > 1 else None,
        _pooled_sd([[row[metric] for row in of_split] for of_split in by_split]), None, None,
        means.get(f"{name}_own") if split == "real" else None, means)
    said.outlying = [each for of_split in by_split if of_split
                     for each in _outlying(of_split, metric, split)]
    if split:
        said.confusion = np.sum([row[split]["confusion_matrix"] for row in rows if
                                 "confusion_matrix" in row[split]] or [[]], axis=0).tolist()
    if evidence:
        answers = evidence.arms[arm]
        mean = _mean(evidence, evidence.trainings(arm))
        if mean:
            said.low, said.high = interval_of(mean, metric, len(evidence.groups), alpha=alpha)
    if evidence and evidence.splits[0].is_classified:
        said.brier = statistics.fmean(value for each in answers for value in each.brier)
        said.calibration_error = statistics.fmean(
            value for each in answers for value in each.calibration)
        said.worst_group = _worst_group(evidence, answers)
        said.classes = class_scores(evidence, answers, alpha=alpha)
        said.bands = band_scores(evidence, answers, alpha=alpha)
    return said


def interval_of(mean: Mean, metric: str, num_groups: int, *, alpha: float) -> tuple[float, float]:
    """The interval of one mean score: of a share Wilson's, else that of t within 0..1."""
    if scores.on_grid(metric) or scores.parts(metric)[0] in TUMOUR_SCORES:
        return share_interval(mean, 1 - alpha, num_groups)
    low, high = mean.interval(1 - alpha)
    return max(0.0, low), min(1.0, high)


def _mean(evidence: Evidence, trainings: Sequence[Trainings]) -> Mean | None:
    """None where the variance cannot be estimated."""
    enough = min(len(one.values) for one in trainings) > 1 and min(
        np.bincount(evidence.strata)[np.unique(evidence.strata)]) > 1
    return crossed_mean(trainings, evidence.strata) if enough else None


# ------------------------------------------------------------------ classes

def class_scores(evidence: Evidence, answers: Sequence[Answers], *,
                 alpha: float) -> list[ClassScores]:
    """Recall and precision of every class, with intervals over groups and trainings."""
    classes = evidence.splits[0].classes
    counts = [each.counts() for each in answers]  # a split: int [T, G, C, C]
    lines = []
    for k, label in enumerate(classes):
        groups = len({name for split in evidence.splits
                      for name, there in zip(split.groups, split.counts[:, k] > 0) if there})
        recall = _ratio(evidence, [each[:, :, k, k] for each in counts],
                        [each[:, :, k].sum(-1) for each in counts], groups, alpha)
        precision = _ratio(evidence, [each[:, :, k, k] for each in counts],
                           [each[:, :, :, k].sum(-1) for each in counts], groups, alpha)
        lines.append(ClassScores(
            label, int(sum(split.counts[:, k].sum() for split in evidence.splits)), groups,
            *recall, *precision, lost=recall[0] is not None and recall[0] < 1 / len(classes)))
    return lines


def _ratio(evidence: Evidence, right: Sequence[np.ndarray], among: Sequence[np.ndarray],
           num_groups: int, alpha: float) -> tuple[float | None, float | None, float | None]:
    """right / among of counts int [T, G] a split, pooled over its trainings, and its interval."""
    if any(not each.sum() for each in among):
        return None, None, None
    trainings = []
    for a, b in zip(right, among):
        ratio = a.sum() / b.sum()
        moved = len(a) * (a - ratio * b) / b.sum()  # linearised: exact where b is the same in all
        trainings.append(Trainings(ratio + moved.sum(1), moved))
    trainings = evidence.over_groups(trainings)
    mean = _mean(evidence, trainings)
    value = float(np.mean([one.values.mean() for one in trainings]))
    return (value, *(share_interval(mean, 1 - alpha, num_groups) if mean else (None, None)))


# ------------------------------------------------------------------ size bands

def band_scores(evidence: Evidence, answers: Sequence[Answers], *,
                alpha: float) -> list[BandScores]:
    """Accuracy and AUROC in every size band, with intervals over groups and trainings.

    Empty where the sizes of a split are not known.
    """
    if any(split.band is None for split in evidence.splits):
        return []
    there = [split.in_bands(np.ones(len(split.labels), bool)) for split in evidence.splits]
    lines = []
    for band, name in enumerate(size_bands.BANDS):
        by_class = sum(each[band].sum(0) for each in there)
        groups = len({group for split, each in zip(evidence.splits, there)
                      for group, images in zip(split.groups, each[band].sum(1)) if images})
        accuracy = _ratio(
            evidence, [np.stack(each.right_in_bands)[:, band].sum(-1) for each in answers],
            [np.tile(each[band].sum(-1), (len(of_split.trainings), 1))
             for each, of_split in zip(there, answers)], groups, alpha)
        area = _auroc_in(evidence, answers, band, alpha)
        if groups < 2:  # nothing is known of another patient
            accuracy, area = (accuracy[0], None, None), (area[0], None, None)
        lines.append(BandScores(
            name, int(by_class.sum()), groups,
            float(by_class.max() / by_class.sum()) if by_class.any() else None, *accuracy, *area))
    return lines


def _auroc_in(evidence: Evidence, answers: Sequence[Answers], band: int,
              alpha: float) -> tuple[float | None, float | None, float | None]:
    """The AUROC in a band and its interval; None where a split has one class there."""
    trainings = [Trainings(np.stack(each.auroc_in_bands)[:, band],
                           np.stack(each.influence_in_bands)[:, band]) for each in answers]
    if any(np.isnan(one.values).any() for one in trainings):
        return None, None, None
    mean = _mean(evidence, evidence.over_groups(trainings))
    value = float(np.mean([one.values.mean() for one in trainings]))
    return (value, *(interval_of(mean, "auroc", 0, alpha=alpha) if mean else (None, None)))


# ------------------------------------------------------------------ what a mean hides

def _worst_group(evidence: Evidence, answers: Sequence[Answers]) -> dict | None:
    """The group of two images or more with the lowest accuracy; None where no group has two."""
    worst = None
    for split, each in zip(evidence.splits, answers):
        counts = each.counts()
        total = counts.sum((0, 2, 3))
        right = np.trace(counts, axis1=2, axis2=3).sum(0)
        for place in np.flatnonzero(split.counts.sum(1) > 1):
            accuracy = float(right[place] / total[place])
            if worst is None or accuracy < worst["accuracy"]:
                worst = {"group": split.groups[place], "accuracy": accuracy,
                         "label": split.classes[int(split.counts[place].argmax())],
                         "num_images": int(split.counts[place].sum())}
    return worst


def _pooled_sd(by_split: Sequence[Sequence[float]]) -> float | None:
    """The standard deviation within splits; None where no split has two values."""
    freedom = sum(max(0, len(values) - 1) for values in by_split)
    squares = sum(statistics.pvariance(values) * len(values) for values in by_split if values)
    return (squares / freedom)**0.5 if freedom else None


def _outlying(rows: list[dict], metric: str, split: str | None) -> list[dict]:
    """Trainings far from the others on their split, and those that say one class of all images."""
    values = np.array([row[metric] for row in rows])
    middle = np.median(values)
    reach = max(OUTLYING_POINTS, OUTLYING_SDS * 1.4826 * float(np.median(np.abs(values - middle))))
    found = []
    for row, value in zip(rows, values):
        matrix = row[split].get("confusion_matrix") if split else None
        collapsed = bool(matrix) and len(matrix) > 1 and max(
            map(sum, zip(*matrix))) >= ONE_CLASS * sum(map(sum, matrix)) > ONE_CLASS * max(
            map(sum, matrix))
        outlying = len(values) >= OUTLYING_FROM and abs(value - middle) > reach
        if outlying or collapsed:
            found.append({"replicate": row["replicate"], "repeat": row["repeat"],
                          "value": float(value), "median": float(middle), "collapsed": collapsed})
    return found
