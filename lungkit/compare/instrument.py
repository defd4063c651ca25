"""Did the instrument pass? What a comparison found of its controls, beside what was expected.

Controls stand apart: the arms are compared as if no control had been trained, and each control is
then compared with real by itself, by the same means. What would be a false alarm (a difference of
real from itself, a perfect generator that is worse, more than chance where nothing can be learnt)
is tested together, by Holm over the controls; what must be seen (that noise is worse than real) is
tested by itself.

A control of other groups or of another simulation is one draw of them. At level B the draw itself
is not in the interval, so that "lower" there may be true of this draw: it is then said that only
replicates can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lungkit.compare import scores
from lungkit.compare.against import Beside, against, read_arrays
from lungkit.compare.bootstrap import Mean, Trainings, crossed_mean
from lungkit.compare.evidence import Evidence
from lungkit.compare.rank_sum import holm
from lungkit.compare.replicates import TO_ESTIMATE, paired_mean
from lungkit.compare.results import REAL, Results
from lungkit.compare.set_aside import controls_of
from lungkit.compare.tables import Table, p_words, percent, points
from lungkit.data.controls import (
    COLOUR_ONLY,
    COPY,
    EXPECTED,
    FLAGGED,
    NOISE,
    ORACLE,
    OTHER_HALF,
    PHOTOCOPIER,
    SHUFFLED,
)

PASSED, FAILED, OPEN = "passed", "not passed", "cannot be told"
ABOVE, BELOW, UNSHOWN = "more than colour", "no morphology shown", "not shown to be above colour"


@dataclass
class ControlAnswer:
    """One control: what was expected, what was found, and whether that is it."""

    dataset: str
    control: str
    expected: str
    found: str
    outcome: str               # PASSED, FAILED or OPEN
    n: int                     # trainings
    mean: float                # of the score on real's test images; colour-only: on its own
    difference: float | None   # from real, at the highest level; colour-only: its own - real
    low: float | None
    high: float | None
    level: str | None
    p_difference: float | None
    p_alarm: float | None      # of what would be a false alarm; None where nothing would be
    p_alarm_holm: float | None
    chance: float | None       # mean recall of classes less that of guessing; None: not asked
    flagged: float | None      # of a photocopier, the least of all replicates


@dataclass
class Morphology:
    """One arm on real's test images against colour-only on its own, which are made of the same."""

    arm: str
    difference: float
    low: float
    high: float
    level: str
    p_holm: float              # two-sided, Holm over the arms
    told: str                  # ABOVE, BELOW or UNSHOWN


def judge(source: Path, found: Results, metric: str, benign: str | None, *, alpha: float,
          margin: float, read: Callable[[Path], dict[str, np.ndarray]] | None = None
          ) -> tuple[list[ControlAnswer], list[Morphology]]:
    """What was found of every control of `found`, and of every arm beside colour-only.

    read: gives the arrays of an .npz; None: from disk. Nothing is judged of own test images, nor
    without real.
    """
    if scores.parts(metric)[1] != "real" or REAL not in found.datasets or not found.control_rows:
        return [], []
    asked = {"benign": benign, "alpha": alpha, "margin": margin, "read": read or read_arrays}
    answers, morphology = [], []
    order = {name: place for place, name in enumerate(EXPECTED)}
    for name, control in sorted(controls_of(found).items(),
                                key=lambda each: order.get(each[1]["name"], len(order))):
        own = control["name"] == COLOUR_ONLY
        told = against(source, found, name, REAL, metric, own=own, **asked)
        answers.append(_answer(told, name, control, metric, found.overlap))
        if own:
            arms = [arm for arm in found.datasets if arm not in {REAL, *found.baselines}]
            morphology += _morphology(source, found, name, arms, metric, asked, alpha)
    _decide(answers, alpha)
    return answers, morphology


# ------------------------------------------------------------------ one control

def _answer(told: Beside, name: str, control: dict, metric: str, overlap: float) -> ControlAnswer:
    rows, best, evidence = told.rows, told.estimate, told.evidence
    said = ControlAnswer(
        name, control["name"], control["expected"], "", OPEN, len(rows),
        float(np.mean([row[metric] for row in rows])),
        *((best.difference, best.low, best.high, best.level, best.p_difference) if best
          else [None] * 5), None, None, None, None)
    lower = best is not None and best.difference < 0
    if said.control == COPY and best:
        said.p_alarm = best.p_difference
    elif said.control in (OTHER_HALF, ORACLE) and best:
        said.p_alarm = best.p_difference if lower else 1.0
    elif said.control in (SHUFFLED, NOISE):
        chance = beside_chance(evidence, name, overlap) if evidence else None
        if chance:
            said.chance = chance.value
            said.p_alarm = min(1.0, 2 * min(chance.p_above(0), 1 - chance.p_above(0)))
    elif said.control == PHOTOCOPIER:
        shares = [(row["control"].get("flagged")) for row in rows]
        said.flagged = None if None in shares else float(min(shares))
    said.found = _in_words(said)
    return said


def beside_chance(evidence: Evidence, arm: str, overlap: float) -> Mean | None:
    """The mean recall of the classes less 1 / their number, with what it varies by.

    It is 0 for whatever is said without looking, however often each class is said. Over groups and
    trainings or, of three splits or more, over these. None where that cannot be estimated.
    """
    trainings = []
    for split, answers in zip(evidence.splits, evidence.arms[arm]):
        counts = answers.counts().astype(float)  # [T, G, C, C]
        total = split.counts.sum(0)
        there = total > 0
        right = np.diagonal(counts, axis1=2, axis2=3)[..., there] / total[there]  # [T, G, C]
        recall = right.sum(1, keepdims=True)
        moved = right - recall * (split.counts[:, there] / total[there])
        trainings.append(Trainings(recall.mean((1, 2)) - 1 / there.sum(), moved.mean(2)))
    if len(trainings) >= TO_ESTIMATE:
        return paired_mean([float(one.values.mean()) for one in trainings], overlap)
    if any(split.unknown for split in evidence.splits):
        return None
    sizes = np.bincount(evidence.strata)
    if min(len(one.values) for one in trainings) < 2 or min(sizes[sizes > 0]) < 2:
        return None
    return crossed_mean(evidence.over_groups(trainings), evidence.strata)


def _in_words(said: ControlAnswer) -> str:
    """What was found, as the table has it."""
    parts = []
    if said.flagged is not None:
        parts.append(f"{percent(said.flagged)} % flagged")
    if said.control == COLOUR_ONLY:
        parts.append(f"reaches {percent(said.mean)} % on its own test images, made of real's")
    if said.chance is not None:
        parts.append(f"mean recall {points(said.chance)} points beside chance")
    if said.difference is not None:
        parts.append(f"{points(said.difference)} points from real, {points(said.low)} to "
                     f"{points(said.high)} (level {said.level})")
    return "; ".join(parts) or "too few trainings to say anything"


def _decide(answers: Sequence[ControlAnswer], alpha: float) -> None:
    """Fill in the outcomes: false alarms after Holm over all controls, then what must be seen."""
    asked = [each for each in answers if each.p_alarm is not None]
    for each, p in zip(asked, holm([each.p_alarm for each in asked])):
        each.p_alarm_holm = p
    for each in answers:
        alarm = each.p_alarm_holm is not None and each.p_alarm_holm <= alpha
        lower = each.difference is not None and each.difference < 0 and each.p_difference <= alpha
        if each.control in (SHUFFLED, COLOUR_ONLY, NOISE) and each.level and not lower:
            each.found += "; not shown to be lower than real"
        if each.control == PHOTOCOPIER:
            each.outcome = OPEN if each.flagged is None else \
                PASSED if each.flagged >= FLAGGED else FAILED
        elif each.control == COLOUR_ONLY:
            each.outcome = OPEN if each.difference is None else PASSED if lower else FAILED
        elif each.p_alarm_holm is None:
            each.outcome = OPEN
        elif each.control in (SHUFFLED, NOISE):
            each.outcome = PASSED if lower and not alarm else FAILED
        elif alarm and each.control != COPY and each.level != "C":
            each.outcome = OPEN
            each.found += "; lower, but of this one draw: only replicates can tell"
        else:
            each.outcome = FAILED if alarm else PASSED


# ------------------------------------------------------------------ arms beside colour-only

def _morphology(source: Path, found: Results, name: str, arms: Sequence[str], metric: str,
                asked: dict, alpha: float) -> list[Morphology]:
    told = []
    for arm in arms:
        best = against(source, found, name, arm, metric, own=True, **asked).estimate
        if best:
            told.append(Morphology(arm, -best.difference, -best.high, -best.low, best.level,
                                   best.p_difference, UNSHOWN))
    for each, p in zip(told, holm([each.p_holm for each in told])):
        each.p_holm = p
        if each.difference <= 0:
            each.told = BELOW
        elif p <= alpha:
            each.told = ABOVE
    return told


# ------------------------------------------------------------------ as it is printed

def lines(answers: Sequence[ControlAnswer], morphology: Sequence[Morphology]) -> list[str]:
    """What stands before the answer; [] without controls."""
    if not answers:
        return []
    passed = sum(each.outcome == PASSED for each in answers)
    others = [each for each in answers if each.outcome != PASSED]
    failed = any(each.outcome == FAILED for each in others)
    state = "NOT passed" if failed else "cannot be told in full" if others else "passed"
    said = [f"- {each.control} {each.outcome}: expected {each.expected}; found {each.found}"
            for each in others]
    for word, told in ((BELOW, "no higher than colour and contrast alone, so that no morphology is "
                               "shown by it"), (UNSHOWN, "not shown to be above colour and "
                                                         "contrast alone")):
        names = [each.arm for each in morphology if each.told == word]
        if names:
            said.append(f"- {', '.join(names)}: {told}")
    head = f"Instrument: {state}, {passed} of {len(answers)} controls as expected"
    return [head + (":" if said else ""), *said]


def table(answers: Sequence[ControlAnswer], alpha: float) -> Table | None:
    """Control, expected, found, passed or not; None without controls."""
    return Table(
        "Sets of a known truth, trained as the arms are; differences in points with their "
        f"{100 - 100 * alpha:g} % intervals",
        ["Control", "Expected", "Found", "Outcome", "n", "p of a false alarm", "after Holm"],
        [[each.control, each.expected, each.found, each.outcome, str(each.n),
          p_words(each.p_alarm), p_words(each.p_alarm_holm)] for each in answers],
        words=3) if answers else None


def morphology_table(told: Sequence[Morphology], alpha: float) -> Table | None:
    """Every arm beside colour-only; None without."""
    return Table(
        "Each arm on the real test images less colour-only on its own, which are made of the same",
        ["Arm", "Says", "Level", "Difference", f"{100 - 100 * alpha:g} % interval",
         "p after Holm"],
        [[each.arm, each.told, each.level, points(each.difference),
          f"{points(each.low)} to {points(each.high)}", p_words(each.p_holm)] for each in told],
        words=2) if told else None
