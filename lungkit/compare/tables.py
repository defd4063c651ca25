"""The tables of the page: every number of a comparison as it is printed, none of them made here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lungkit.compare import scores
from lungkit.compare.answer import (
    EQUIVALENT,
    LEVELS,
    PRIMARY,
    ArmAnswer,
    Comparison,
    Estimate,
    of_whom,
)
from lungkit.compare.pairs import Pair
from lungkit.compare.results import Results
from lungkit.data.result import ORDINAL_SCORES, SCORES, TUMOUR_SCORES

MEASURES = (*dict.fromkeys(name for of_task in SCORES.values() for name in of_task),
            *ORDINAL_SCORES, *TUMOUR_SCORES)  # in the order of the columns
UNKNOWN = "–"


@dataclass(frozen=True)
class Table:
    """A table as text. Its first `named` columns say what a line is of; the next are words."""

    caption: str
    heads: list[str]
    lines: list[list[str]]
    named: int = 1
    words: int = 0  # columns of words after the names; all others are numbers


# ------------------------------------------------------------------ numbers as they are printed

def points(shift: float | None) -> str:
    """A difference of scores as it is printed, in points: +1.7, 0.0, -unbounded."""
    if shift is None:
        return UNKNOWN
    if math.isinf(shift):
        return "-unbounded" if shift < 0 else "unbounded"
    return f"{shown:+.1f}" if (shown := round(100 * shift, 1)) else "0.0"  # never -0.0


def p_words(p: float | None) -> str:
    """A p-value as it is printed: 0.0123, or <0.0001."""
    if p is None:
        return UNKNOWN
    return "<0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def percent(share: float | None) -> str:
    """A share as it is printed, in percent."""
    return UNKNOWN if share is None else f"{100 * share:.1f}"


def _between(low: float | None, high: float | None, printed=points) -> str:
    return UNKNOWN if low is None else f"{printed(low)} to {printed(high)}"


def _confidence(alpha: float) -> tuple[str, str]:
    """Heads of the two-sided interval and of the one of equivalence."""
    return f"{100 - 100 * alpha:g} % interval", f"{100 - 200 * alpha:g} % interval"


# ------------------------------------------------------------------ what is decided

def noninferiority(found: Comparison) -> Table | None:
    """Each synthetic arm against real at its highest level; None without any."""
    lines = []
    for pair in found.pairs:
        if pair.family != PRIMARY:
            continue
        best = pair.estimates.get(pair.level)
        lines.append([pair.arm, pair.decision or "no answer", pair.level or UNKNOWN] + (
            [points(best.difference), _between(best.low, best.high),
             _between(best.low_equivalence, best.high_equivalence), f"-{100 * found.margin:g}",
             p_words(best.p_not_worse), p_words(best.p_not_worse_holm)]
            if best else [UNKNOWN] * 6))
    return Table(
        "Each synthetic arm against real: is it worse by the margin or more? Points, arm − real",
        ["Arm", "Decision", "Level", "Difference", *_confidence(found.alpha), "Margin",
         "p, one-sided", "p after Holm"], lines, words=2) if lines else None


def levels(found: Comparison) -> Table:
    """Every pair at the three levels side by side."""
    return Table(
        "Every pair at every level that the data reach: difference in points, its interval, and "
        "the word. The level furthest to the right is the answer's",
        ["Pair", "Family", *(f"{level}: {of_whom(words, found.whom)}"
                             for level, words in LEVELS.items())],
        [[f"{pair.arm} − {pair.against}", pair.family,
          *(_at_level(pair.estimates.get(level), found.alpha) for level in LEVELS)]
         for pair in found.pairs], words=4)


def _at_level(found: Estimate | None, alpha: float) -> str:
    if found is None:
        return "not reached"
    if not found.se:
        return f"{points(found.difference)}, values do not vary\n{found.decision}"
    ends, confidence = ((found.low, found.high), 1 - alpha)
    if found.decision == EQUIVALENT:  # the interval that the word rests on
        ends, confidence = (found.low_equivalence, found.high_equivalence), 1 - 2 * alpha
    return (f"{points(found.difference)}, {100 * confidence:g} % {_between(*ends)}\n"
            f"{found.decision}")


def all_levels(found: Comparison) -> Table:
    """All numbers of every pair at every level."""
    return Table(
        "All numbers of the levels: differences, standard errors and ends in points",
        ["Arm", "Against", "Level", "Decision", "n", "Test groups", "Difference",
         "Standard error", "df", *_confidence(found.alpha), "Crossed draws", "p not worse",
         "after Holm", "p difference", "after Holm", "p equivalent", "after Holm", "p sign flips",
         "Smallest margin"],
        [[pair.arm, pair.against, level, each.decision, f"{each.n_arm}, {each.n_against}",
          str(each.num_groups or UNKNOWN), points(each.difference), f"{100 * each.se:.2f}",
          f"{each.df:.1f}", _between(each.low, each.high),
          _between(each.low_equivalence, each.high_equivalence),
          _between(each.drawn_low, each.drawn_high),
          *map(p_words, (each.p_not_worse, each.p_not_worse_holm, each.p_difference,
                         each.p_difference_holm, each.p_equivalent, each.p_equivalent_holm,
                         each.p_sign_flip)),
          f"{100 * each.smallest_margin:.1f}"]
         for pair in found.pairs for level, each in pair.estimates.items()], named=3, words=1)


def rank_sum(tests: Sequence[Pair], alpha: float) -> Table:
    """The rank-sum test of every pair."""
    return Table(
        f"Wilcoxon rank-sum tests of these {tests[0].unit}s. Shift: Hodges-Lehmann, a − b, points",
        ["a", "b", "n", "Shift", _confidence(alpha)[0], "A12", "p", "p after Holm",
         "Equivalence p after Holm"],
        [[pair.dataset_a, pair.dataset_b, f"{pair.n_a}, {pair.n_b}", points(pair.shift),
          _between(pair.shift_low, pair.shift_high), f"{pair.a12:.2f}", p_words(pair.p),
          p_words(pair.p_holm), p_words(pair.p_equivalent_holm)] for pair in tests], named=2)


def all_rank_sum(tests: Sequence[Pair]) -> Table:
    """All else that is known of the rank-sum tests."""
    return Table(
        "All numbers of the rank-sum tests",
        ["a", "b", "Method", "Median a", "Median b", "U", "Smallest p, these ties",
         "Smallest p, no ties", "n needed", "p a not worse", "p b not worse", "p equivalent"],
        [[pair.dataset_a, pair.dataset_b, pair.method, percent(pair.median_a),
          percent(pair.median_b), f"{pair.u:g}", p_words(pair.p_smallest),
          p_words(pair.p_smallest_without_ties), str(pair.n_needed), p_words(pair.p_a_not_worse),
          p_words(pair.p_b_not_worse), p_words(pair.p_equivalent)] for pair in tests],
        named=2, words=1)


# ------------------------------------------------------------------ arms looked at closely

def arms(found: Results, said: Comparison) -> Table:
    """The scores of every arm: a column for all that is known of any of them."""
    name, split = scores.parts(said.metric)
    others = [other for other in MEASURES if other != name]
    own = f"{scores.capital(scores.metric_words(name))} on its own test images"
    heads = ["Arm", "n", "Mean", f"{_confidence(said.alpha)[0]}, groups and trainings",
             "SD", "SD within a replicate", "Median", own, "Largest class",
             *(scores.capital(scores.metric_words(other)) for other in others),
             "AUPRC by prevalence", "Mean absolute error, grades", "Brier score",
             "Calibration error"]
    lines = [[arm.dataset, str(arm.n), percent(arm.mean), _between(arm.low, arm.high, percent),
              percent(arm.sd),
              UNKNOWN if said.num_replicates == 1 else percent(arm.training_sd),
              percent(arm.median), percent(arm.own),
              percent(largest_class(arm)),
              *(percent(arm.scores.get(f"{other}_{split}")) for other in others),
              percent(_mean_of(found, arm, f"auprc_baseline_{split}")),
              _decimals(_mean_of(found, arm, f"mean_absolute_error_{split}")),
              _decimals(arm.brier),
              percent(arm.calibration_error)] for arm in said.arms]
    known = [place for place in range(len(heads))
             if any(line[place] != UNKNOWN for line in lines)]
    return Table(f"{scores.capital(scores.metric_words(said.metric))} of every arm, in percent",
                 [heads[place] for place in known],
                 [[line[place] for place in known] for line in lines])


def largest_class(arm: ArmAnswer) -> float | None:
    """The accuracy of always answering the largest class; None of any other score."""
    if not (scores.is_accuracy(arm.metric) and arm.confusion):
        return None
    lines = [sum(line) for line in arm.confusion]
    return max(lines) / sum(lines)


def _mean_of(found: Results, arm: ArmAnswer, name: str) -> float | None:
    """The mean over an arm's repeats of a number that is no score; None where none has it."""
    known = [row[name] for row in found.rows
             if row["dataset"] == arm.dataset and row.get(name) is not None]
    return statistics.fmean(known) if known else None


def _decimals(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3f}"


def outlying(said: Comparison) -> Table | None:
    """The trainings that collapsed or lie far from the others; None without any."""
    lines = [[arm.dataset, f"{each['replicate']}", f"{each['repeat']}",
              "collapsed" if each["collapsed"] else "outlying", percent(each["value"]),
              percent(each["median"])] for arm in said.arms for each in arm.outlying]
    return Table("Trainings that collapsed or lie far from the others, in percent",
                 ["Arm", "Replicate", "Repeat", "Is", "Score", "Median of its split"], lines,
                 named=3, words=1) if lines else None


def worst_groups(said: Comparison) -> Table | None:
    """The test group that each arm does worst on; None where no groups are known."""
    lines = [[arm.dataset, str(worst["group"]), worst["label"], percent(worst["accuracy"]),
              str(worst["num_images"])] for arm in said.arms if (worst := arm.worst_group)]
    return Table("The test group of two images or more that each arm does worst on",
                 ["Arm", "Group", "Class", "Accuracy, %", "Images"], lines,
                 words=2) if lines else None


def classes(said: Comparison) -> Table | None:
    """Recall and precision of every class; None where what was said of each image is not known."""
    interval = _confidence(said.alpha)[0]
    lines = [[arm.dataset, each.name, "lost: finds less than chance" if each.lost else "",
              str(each.num_images), str(each.num_groups or UNKNOWN), percent(each.recall),
              _between(each.recall_low, each.recall_high, percent), percent(each.precision),
              _between(each.precision_low, each.precision_high, percent)]
             for arm in said.arms for each in arm.classes]
    return Table("Recall and precision of every class in percent, intervals over test groups and "
                 "trainings", ["Arm", "Class", "Note", "Images", "Groups", "Recall", interval,
                               "Precision", interval], lines, named=2, words=1) if lines else None


def sizes(said: Comparison) -> Table | None:
    """The scores in every band of nodule size; None where sizes are not known."""
    interval = _confidence(said.alpha)[0]
    lines = [[arm.dataset, each.name, str(each.num_images), str(each.num_groups),
              percent(each.largest_class), percent(each.accuracy),
              _between(each.accuracy_low, each.accuracy_high, percent), percent(each.auroc),
              _between(each.auroc_low, each.auroc_high, percent)]
             for arm in said.arms for each in arm.bands]
    return Table("By the size of the nodule, in percent, intervals over test groups and trainings",
                 ["Arm", "Diameter", "Images", "Groups", "Largest class", "Accuracy", interval,
                  "AUROC", interval], lines, named=2) if lines else None


def confusions(found: Results, said: Comparison) -> list[Table]:
    """What each arm's trainings said of the test images, summed over repeats."""
    split = scores.parts(said.metric)[1]
    made = []
    for arm in said.arms:
        row = next(row for row in found.rows if row["dataset"] == arm.dataset)
        names = (row.get(split) or {}).get("classes") or [
            f"class {place}" for place in range(len(arm.confusion))]
        if arm.confusion:
            made.append(Table(
                f"{arm.dataset}: true class by row, said by column, {arm.num_repeats} trainings",
                ["True", *names], [[name, *map(str, line)]
                                   for name, line in zip(names, arm.confusion)]))
    return made


def components(said: Comparison) -> Table | None:
    """Where the variance of each difference is from; None where it cannot be told."""
    lines = [[each.arm, each.name, each.cost, f"{100 * each.sd:.2f}", str(each.units),
              f"{100 * each.share:.0f} %"] for each in said.components]
    return Table("Where the variance of each arm's difference from real is from, and what having "
                 "as many again would give", ["Arm", "Source", "To make it smaller",
                                              "SD of one, points", "There are", "Share"],
                 lines, named=2, words=1) if lines else None
