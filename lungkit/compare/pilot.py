"""What earlier results of a run tell of the next: how much scores vary, how long a training takes.

Read leniently: of what is broken or of another kind the comparison complains, not the plan.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from pathlib import Path

import numpy as np

from lungkit.compare import scores
from lungkit.compare.power import Deviations
from lungkit.data.result import BASELINE, read_record
from lungkit.run.faults import Fault

REAL = "real"
FEWEST = 2     # repeats of an arm that tell of a deviation

Arms = dict[str, dict[int, list[tuple[dict, Path]]]]  # by arm and replicate: record, and its place


def read(results: Path, arms: list[str]) -> Arms:
    """The CNNs' records of these arms, as far as they can be read."""
    found: Arms = {}
    for arm in arms:
        by_replicate = defaultdict(list)
        for path in sorted(results.glob(f"{arm}/replicate_*/repeat_*.json")):
            try:
                record = read_record(path)
                if record.get("kind") != BASELINE:
                    by_replicate[int(record["replicate"])].append((record, path))
            except (Fault, KeyError, TypeError, ValueError):
                continue
        found[arm] = dict(by_replicate)
    return found


def count(found: Arms) -> int:
    return sum(len(records) for of_arm in found.values() for records in of_arm.values())


def seconds_per_repeat(found: Arms) -> float | None:
    """The median time of a training, None where none is recorded."""
    times = [record["run"]["elapsed_sec"] for of_arm in found.values()
             for records in of_arm.values() for record, _ in records
             if isinstance(record.get("run", {}).get("elapsed_sec"), (int, float))]
    return statistics.median(times) if times else None


def deviations(found: Arms, metric: str, default: Deviations, num_groups: float) -> Deviations:
    """Those of the results where they tell, else the default's; the source says which is which.

    num_groups: the effective test groups that a mean rests on, 0 where they are not known.
    """
    values = _values(found, metric)
    measured = {"seed": _between_repeats(values),
                "group": _between_groups(found, metric, num_groups),
                "replicate": _between_replicates(values)}
    of_run = {name: value for name, value in measured.items() if value}
    if not of_run:
        return default
    others = [name for name in measured if name not in of_run]
    source = f"{', '.join(of_run)} of this run's own {count(found)} results" + (
        f", {', '.join(others)} {default.source}" if others else "")
    return Deviations(**{name: of_run.get(name, getattr(default, name)) for name in measured},
                      source=source)


def _values(found: Arms, metric: str) -> dict[str, dict[int, list[float]]]:
    """The scores by arm and replicate."""
    name, split = scores.parts(metric)
    return {arm: {replicate: [record["scores"][split][name] for record, _ in records
                              if name in record.get("scores", {}).get(split, {})]
                  for replicate, records in of_arm.items()} for arm, of_arm in found.items()}


def _pooled(samples: list[list[float]]) -> float | None:
    """The deviation within the samples, None of fewer than FEWEST values in each."""
    samples = [each for each in samples if len(each) >= FEWEST]
    if not samples:
        return None
    squares = sum(statistics.variance(each) * (len(each) - 1) for each in samples)
    return math.sqrt(squares / sum(len(each) - 1 for each in samples))


def _between_repeats(values: dict[str, dict[int, list[float]]]) -> float | None:
    return _pooled([each for of_arm in values.values() for each in of_arm.values()])


def _between_replicates(values: dict[str, dict[int, list[float]]]) -> float | None:
    """Of the differences to real of the replicates' means."""
    means = {arm: {replicate: statistics.fmean(each) for replicate, each in of_arm.items() if each}
             for arm, of_arm in values.items()}
    real = means.get(REAL, {})
    return _pooled([[of_arm[k] - real[k] for k in sorted(set(of_arm) & set(real))]
                    for arm, of_arm in means.items() if arm != REAL])


def _between_groups(found: Arms, metric: str, num_groups: float) -> float | None:
    """Of one effective group: from the variance that the test groups give a difference to real."""
    from lungkit.compare.influence import SCORES

    name, split = scores.parts(metric)
    if split != REAL or name not in SCORES or not num_groups:
        return None
    moved = {arm: {k: _by_cell(records, name) for k, records in of_arm.items()}
             for arm, of_arm in found.items()}
    variances = []
    for arm, of_arm in moved.items():
        for replicate in of_arm if arm != REAL else ():
            one, other = of_arm[replicate], moved.get(REAL, {}).get(replicate, {})
            if one and one.keys() == other.keys():
                variances.append(_stratified({cell: one[cell] - other[cell] for cell in one}))
    return math.sqrt(statistics.fmean(variances) * num_groups) if variances else None


def _by_cell(records: list[tuple[dict, Path]], name: str) -> dict[tuple[int, str], float]:
    """How much every (class, group) of test images moves the score, the mean over repeats."""
    from lungkit.compare.influence import influence

    total: dict[tuple[int, str], float] = defaultdict(float)
    for _, path in records:
        try:
            with np.load(path.with_suffix(".npz")) as arrays:
                labels, groups = arrays["real_labels"], arrays["real_groups"]
                moved = influence(name, arrays["real_probabilities"], labels)
        except (OSError, ValueError, KeyError):
            return {}
        for label, group, part in zip(labels.tolist(), groups.tolist(), moved.tolist()):
            total[label, group] += part / len(records)
    return dict(total)


def _stratified(moved: dict[tuple[int, str], float]) -> float:
    """The variance of a sum over groups drawn within their classes."""
    variance = 0.0
    for label in {label for label, _ in moved}:
        parts = [part for (other, _), part in moved.items() if other == label]
        if len(parts) > 1:
            variance += len(parts) * statistics.variance(parts)
    return variance
