"""The answer in words: one sentence a pair, which names its level, and the block they stand in."""

from __future__ import annotations

from collections.abc import Sequence

from lungkit.compare import scores
from lungkit.compare.answer import (
    BETTER,
    EQUIVALENT,
    INCONCLUSIVE,
    LEVELS,
    NOT_WORSE,
    OUT_OF_REACH,
    OUTSIDE,
    PATIENTS,
    PRIMARY,
    WORSE,
    Caution,
    Estimate,
    PairAnswer,
    of_whom,
)
from lungkit.compare.limits import GROUPS_NEEDED
from lungkit.compare.power import trainings_needed
from lungkit.compare.replicates import TO_ESTIMATE, TO_TEST

SCOPES = {"A": "In these trainings on these test images (level A)",
          "B": "With this generated set, for {whom} (level B)",
          "C": "As a method, for {whom_and} new trainings (level C)"}
TOLD = {BETTER: "{arm} scores higher than {against}",
        EQUIVALENT: "{arm} is equivalent to {against} within ±{margin} points",
        NOT_WORSE: "{arm} is not worse than {against} by {margin} points or more",
        WORSE: "{arm} scores lower than {against}",
        INCONCLUSIVE: "{arm} against {against} is inconclusive",
        OUT_OF_REACH: "{arm} against {against} is out of reach at this n"}


def points(difference: float) -> str:
    """A difference of scores in points: +1.7, 0.0, -3.1."""
    return f"{shown:+.1f}" if (shown := round(100 * difference, 1)) else "0.0"  # never -0.0


def sentence(arm: str, against: str, family: str, found: Estimate, *, alpha: float,
             margin: float, whom: str = PATIENTS) -> str:
    """What one pair shows at one level, with the interval that its word rests on."""
    equivalence = found.decision == EQUIVALENT
    low, high = ((found.low_equivalence, found.high_equivalence) if equivalence
                 else (found.low, found.high))
    confidence = 100 * (1 - 2 * alpha if equivalence else 1 - alpha)
    told = TOLD[found.decision].format(arm=arm, against=against, margin=f"{100 * margin:g}")
    also = ""
    if found.p_difference_holm <= alpha and found.decision in (EQUIVALENT, NOT_WORSE):
        also = ", though lower"
    more = "" if found.p_sign_flip is None else f"; sign-flip p {found.p_sign_flip:.2g}"
    if found.decision == OUT_OF_REACH and found.smallest_margin >= margin:
        more += ("; equal arms could be shown equivalent within "
                 f"±{100 * found.smallest_margin:.1f} points at best")
    if found.decision == OUT_OF_REACH and found.num_trainings < trainings_needed(alpha):
        more += (f"; {found.num_trainings} trainings do not exclude that one in ten fails, "
                 f"{trainings_needed(alpha)} would")
    if family == OUTSIDE:
        more += "; outside both families, not adjusted"
    interval = (f"{confidence:g} % interval {points(low)} to {points(high)}" if found.se
                else "no interval, for the values of each do not vary")
    return (f"{of_whom(SCOPES[found.level], whom)}, {told}{also}: "
            f"{points(found.difference)} points, {interval}{more}.")


def answer_block(pairs: Sequence[PairAnswer], cautions: Sequence[Caution], metric: str, *,
                 alpha: float, margin: float, next_level: str | None) -> list[str]:
    """The lines a reader sees first: what limits the answer, the answer, what would reach further.

    It is the same on the terminal, in verdict.txt and on the page.
    """
    lines = [f"{scores.capital(scores.metric_words(metric))}, margin {100 * margin:g} points, "
             f"level {alpha:g} after Holm"]
    limits = [str(each) for each in cautions if each.limits]
    if limits:
        lines += ["Read first:", *(f"- {text}" for text in limits)]
    if scores.parts(metric)[1] == "own":
        return [*lines, "No answer: on its own test images no arm is measured against real."]
    asked = [pair for pair in pairs if pair.family == PRIMARY] or list(pairs)
    told = [pair.sentence for pair in asked if pair.level]
    told += [f"{pair.arm} against {pair.against}: one training each, nothing can be said."
             for pair in asked if not pair.level]
    lines += ["Answer:", *(f"- {text}" for text in told)]
    if next_level:
        lines.append(f"Next: {next_level}")
    return lines


def what_next(level: str | None, num_splits: int, missing: str | None,
              few: dict[str, int], whom: str = PATIENTS) -> str | None:
    """What the level above the one reached needs."""
    levels = {name: of_whom(words, whom) for name, words in LEVELS.items()}
    if level == "C":
        return None
    if level == "B":
        return (f"level C, {levels['C']}, needs {TO_ESTIMATE} replicates to estimate and {TO_TEST} "
                f"to test, each with its own split and training of the generators; there "
                f"{'is' if num_splits == 1 else 'are'} {num_splits}")
    if few:
        there = ", ".join(f"{label} has {count}" for label, count in few.items())
        return (f"level B, {levels['B']}, needs {GROUPS_NEEDED} test groups in every class; "
                f"{there}")
    return (f"level B, {levels['B']}, needs two trainings of each arm and what each said of every "
            "test image, with its group" + (f"; {missing}" if missing else ""))
