"""The dose curve: what reduced real sets and mixtures with an arm reach, and an image's worth.

Mixtures stand apart as controls do: each is compared with real by itself, and no p of an arm
depends on them. How many synthetic images one real image is worth: the number of real images at
which the curve of real alone reaches what so many synthetic images alone reach, interpolated in the
logarithm of the number, the curve made rising. Its interval is over the crossed bootstrap draws of
test groups and trainings, the same groups for all points (Owen 2007), in each of which the curve is
read anew. A draw beyond either end of the curve says only "more than" or "at most", and where the
curve is not shown to rise nothing is said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lungkit.compare import scores
from lungkit.compare.against import against, read_arrays
from lungkit.compare.bootstrap import crossed_draws
from lungkit.compare.evidence import NoEvidence, read_evidence
from lungkit.compare.results import REAL, Results
from lungkit.compare.set_aside import joint
from lungkit.compare.tables import Table, percent, points

ALONE, BESIDE, REDUCED = "alone", "beside real", "real alone"


@dataclass
class Point:
    """One training set: real, real reduced, an arm's images, or both."""

    dataset: str
    kind: str               # REDUCED (real itself too), ALONE or BESIDE
    synthetic: str          # the arm; "" of none
    real_share: float
    dose: float             # synthetic images, as a multiple of real's training images
    num_real: float         # training images, means over replicates
    num_synthetic: float
    n: int                  # trainings
    mean: float
    low: float | None       # interval over groups and trainings; None: groups not known
    high: float | None
    difference: float | None  # from real
    difference_low: float | None
    difference_high: float | None
    level: str | None
    p_difference: float | None


@dataclass
class Worth:
    """How many images of an arm, at one dose and alone, one real image is worth."""

    synthetic: str
    dose: float
    num_synthetic: float
    rate: float | None      # None: not within the curve of real, or not told
    low: float | None       # percentiles of the draws; inf: without a bound
    high: float | None
    told: str

    @property
    def told_of(self) -> str:
        return f"{self.num_synthetic:.0f} images of {self.synthetic}: {self.told}"


def curve(source: Path, found: Results, metric: str, benign: str | None, *, alpha: float,
          margin: float, read: Callable[[Path], dict[str, np.ndarray]] | None = None
          ) -> tuple[list[Point], list[Worth]]:
    """Every mixture of `found` and real itself, and what an arm's images are worth.

    read: gives the arrays of an .npz; None: from disk. Empty of own test images and without real.
    """
    if scores.parts(metric)[1] != "real" or REAL not in found.datasets or not found.mix_rows:
        return [], []
    asked = {"benign": benign, "alpha": alpha, "margin": margin, "read": read or read_arrays}
    names = list(dict.fromkeys(row["dataset"] for row in found.mix_rows))
    told = {name: against(source, found, name, REAL, metric, **asked) for name in names}
    own = [row for row in found.rows if row["dataset"] == REAL]
    points_ = [_point(each.rows, each.arm, each.estimate) for each in told.values()]
    points_.append(_point([row | {"mix": {
        "real": 1.0, "dose": 0.0, "synthetic": None, "num_synthetic": 0,
        "num_real": row["num_train_images"]}} for row in own], _real_of(source, found, asked, names,
                                                                        metric), None))
    points_.sort(key=lambda point: (point.kind != REDUCED, point.synthetic, point.kind,
                                    point.num_real + point.num_synthetic))
    return points_, worth(points_, _draws(source, found, metric, benign, asked["read"], names),
                          alpha=alpha)


def _real_of(source: Path, found: Results, asked: dict, names: Sequence[str], metric: str):
    """Real itself as an arm, with its interval."""
    from lungkit.compare.per_class import arm_answer

    evidence = None
    try:
        evidence = read_evidence(source, joint(found, [REAL], []), metric, asked["benign"],
                                 asked["read"])
    except NoEvidence:
        pass
    return arm_answer(found, REAL, metric, found.values(REAL, metric), evidence,
                      alpha=asked["alpha"])


def _point(rows: Sequence[dict], arm, best) -> Point:
    mix = rows[0]["mix"]
    kind = REDUCED if not mix["synthetic"] else BESIDE if mix["real"] else ALONE
    return Point(rows[0]["dataset"], kind, mix["synthetic"] or "", mix["real"], mix["dose"],
                 *(float(np.mean([row["mix"][key] for row in rows]))
                   for key in ("num_real", "num_synthetic")),
                 len(rows), arm.mean, arm.low, arm.high,
                 *((best.difference, best.low, best.high, best.level, best.p_difference)
                   if best else [None] * 5))


def _draws(source: Path, found: Results, metric: str, benign: str | None,
           read: Callable[[Path], dict[str, np.ndarray]],
           names: Sequence[str]) -> dict[str, np.ndarray]:
    """The mean of real and of every mixture in every crossed draw; {} where groups are not known,
    or are too few to be drawn."""
    try:
        evidence = read_evidence(source, joint(found, [REAL], names), metric, benign, read)
    except NoEvidence:
        return {}
    trainings = {name: evidence.trainings(name) for name in (REAL, *names)}
    sizes = np.bincount(evidence.strata)
    fewest = min(len(one.values) for of_arm in trainings.values() for one in of_arm)
    if fewest < 2 or min(sizes[sizes > 0]) < 2 or any(split.unknown for split in evidence.splits):
        return {}
    return crossed_draws(trainings, evidence.strata)


# ------------------------------------------------------------------ what an image is worth

def worth(found: Sequence[Point], draws: dict[str, np.ndarray], *, alpha: float) -> list[Worth]:
    """One real image in images of every arm, at every dose that it was trained on alone."""
    real = sorted((point for point in found if point.kind == REDUCED),
                  key=lambda point: point.num_real)
    said = []
    for point in (point for point in found if point.kind == ALONE):
        unknown = Worth(point.synthetic, point.dose, point.num_synthetic, None, None, None, "")
        said.append(unknown)
        if why := why_not(real, draws, alpha):
            unknown.told = f"the data cannot tell: {why}"
            continue
        sizes = np.array([each.num_real for each in real])
        curves = np.stack([draws[each.dataset] for each in real], axis=1)  # [draws, K]
        rates = [_rate(point.num_synthetic, sizes, means, value)
                 for means, value in zip(curves, draws[point.dataset], strict=True)]
        low, high = np.quantile(rates, [alpha / 2, 1 - alpha / 2], method="nearest")
        unknown.low, unknown.high = float(low), float(high)
        unknown.rate = _rate(point.num_synthetic, sizes, np.array([each.mean for each in real]),
                             point.mean)
        unknown.told = in_words(unknown, sizes)
    return said


def why_not(real: Sequence[Point], draws: dict[str, np.ndarray], alpha: float) -> str | None:
    """Why nothing can be said of any arm; None where something can."""
    if len(real) < 2:
        return "real was not reduced (MIX=\"real:0.25,0.5 ...\"), so that there is no curve to read"
    if not draws:
        return "two trainings of each set and two test groups a class are needed, with their groups"
    least = real[0]
    if least.p_difference is None or least.p_difference > alpha or least.difference >= 0:
        return (f"real reduced to {least.num_real:.0f} images is not shown to be lower than all "
                f"{real[-1].num_real:.0f}")
    return None


def real_images(sizes: np.ndarray, means: np.ndarray, value: float) -> float:
    """At how many real images, of sizes float [K] ascending, the curve reaches `value`.

    means: float [K], made rising. 0: below the curve; the largest size: at or above its end.
    """
    rising = np.maximum.accumulate(means)
    if value < rising[0]:
        return 0.0
    if value >= rising[-1]:
        return float(sizes[-1])
    above = int(np.searchsorted(rising, value, side="right"))
    low, high = rising[above - 1], rising[above]
    share = (value - low) / (high - low)
    ends = np.log(sizes[above - 1:above + 1])
    return float(math.exp(ends[0] + share * (ends[1] - ends[0])))


def _rate(number: float, sizes: np.ndarray, means: np.ndarray, value: float) -> float:
    """Synthetic images a real one; inf: they reach less than the fewest real images."""
    reached = real_images(sizes, means, value)
    return number / reached if reached else math.inf


def in_words(found: Worth, sizes: np.ndarray) -> str:
    """What the rate and its interval say, with the bounds that the ends of the curve set."""
    number = found.num_synthetic
    most, least = number / sizes[0], number / sizes[-1]  # what the curve can tell apart
    if math.isinf(found.low):
        return f"one real image is worth more than {most:.1f} of them"
    if found.high <= least:
        return f"one real image is worth {least:.1f} of them or fewer"
    below, beyond = found.low <= least, math.isinf(found.high)
    if below and beyond:
        return "the data cannot tell what one real image is worth"
    if below or beyond:
        bound = f"{found.high:.1f} at most" if below else f"{found.low:.1f} at least"
        return f"the data cannot tell more than that one real image is worth {bound}"
    return f"one real image is worth {found.rate:.1f} of them ({found.low:.1f} to {found.high:.1f})"


# ------------------------------------------------------------------ as it is printed

def lines(said: Sequence[Worth], alpha: float) -> list[str]:
    """What stands after the answer; [] without an arm's images alone."""
    return [] if not said else [f"Worth, {100 - 100 * alpha:g} % intervals:", *(
        f"- {each.told_of}" for each in said)]


def table(found: Sequence[Point], alpha: float) -> Table | None:
    """Every point of the curve; None without."""
    def between(low: float | None, high: float | None, printed: Callable) -> str:
        return "–" if low is None else f"{printed(low)} to {printed(high)}"

    interval = f"{100 - 100 * alpha:g} % interval"
    return Table(
        "What was trained on, and the score on the real test images, percent; difference from real "
        "in points",
        ["Training set", "Made of", "Real images", "Synthetic images", "n", "Mean", interval,
         "Difference", interval, "Level"],
        [[each.dataset, f"{each.synthetic} {each.kind}".strip(), f"{each.num_real:.0f}",
          f"{each.num_synthetic:.0f}", str(each.n), percent(each.mean),
          between(each.low, each.high, percent),
          "–" if each.difference is None else points(each.difference),
          between(each.difference_low, each.difference_high, points), each.level or "–"]
         for each in found], words=1) if found else None
