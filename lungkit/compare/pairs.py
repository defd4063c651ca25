"""All pairs of datasets by rank-sum tests: the table that stands beside every answer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lungkit.compare.answer import Caution
from lungkit.compare.rank_sum import (
    EXACT_LIMIT,
    holm,
    margin_tests,
    n_needed,
    rank_sum_test,
    shift_with_interval,
    smallest_p,
)
from lungkit.run import faults

REFERENCE = "real"  # the dataset the others are measured against, where it is among them


@dataclass
class Pair:
    """One line of wilcoxon.csv. Shifts are a - b, of the metric (0.02 is two points)."""

    dataset_a: str
    dataset_b: str
    metric: str
    unit: str            # what one value is: repeat or replicate
    n_a: int
    n_b: int
    median_a: float
    median_b: float
    u: float
    p: float
    p_holm: float
    method: str
    shift: float
    shift_low: float
    shift_high: float
    confidence: float    # of shift_low..shift_high, not adjusted for the number of pairs
    a12: float           # P(a above b) + P(tie) / 2
    p_smallest: float            # attainable at this n with these ties
    p_smallest_without_ties: float
    can_reach_alpha: bool        # after Holm, were every pair as far apart as it can be
    n_needed: int                # without ties; it makes significance possible, not likely
    margin: float
    margin_tested: float         # the margin in whole test images
    p_a_not_worse: float
    p_b_not_worse: float
    p_equivalent: float          # the larger of the two
    p_equivalent_holm: float
    p_b_not_worse_holm: float | None  # over the pairs with the reference; None for other pairs
    verdict: str = ""    # the sentence of the pair at the highest level, by its means


def compare(values: dict[str, list[float]], *, metric: str, unit: str, alpha: float,
            margin: float, margin_tested: float | None = None, grid: float = 0) -> list[Pair]:
    """Test every pair of datasets; `values` holds one number per unit of replication.

    margin_tested: None means the margin as it is. grid: of the values, 0 means none or not known.
    """
    import numpy as np

    names, pairs = list(values), []
    margin_tested = margin if margin_tested is None else margin_tested
    for i, name_a in enumerate(names):
        for name_b in names[i + 1:]:
            faults.check_stop()
            a, b = np.asarray(values[name_a], float), np.asarray(values[name_b], float)
            test = rank_sum_test(a, b)
            shift, low, high = shift_with_interval(a, b, alpha, grid)
            not_worse = margin_tests(a, b, margin_tested)
            pairs.append(Pair(
                name_a, name_b, metric, unit, len(a), len(b), float(np.median(a)),
                float(np.median(b)), test.u, test.p_two_sided, math.nan,
                "exact" if test.exact else "normal", shift, low, high, 1 - alpha,
                test.u / (len(a) * len(b)), test.p_smallest, smallest_p(len(a), len(b)), True, 0,
                margin, margin_tested, *not_worse, max(not_worse), math.nan, None))
    holm_p = holm([pair.p for pair in pairs])
    holm_equivalent = holm([pair.p_equivalent for pair in pairs])
    holm_best_case = holm([pair.p_smallest for pair in pairs])
    for pair, p, p_equivalent, best in zip(pairs, holm_p, holm_equivalent, holm_best_case):
        pair.p_holm, pair.p_equivalent_holm = p, p_equivalent
        pair.can_reach_alpha = best <= alpha  # Holm is monotone: no data can do better
        pair.n_needed = n_needed(len(pairs), alpha)
    against_reference = [pair for pair in pairs if pair.dataset_a == REFERENCE]
    for pair, p in zip(against_reference, holm([q.p_b_not_worse for q in against_reference])):
        pair.p_b_not_worse_holm = p
    return pairs


def rank_cautions(pairs: list[Pair], alpha: float) -> list[Caution]:
    """What weakens the rank-sum tests, which stand beside the answer and do not decide it."""
    lines = []
    out_of_reach = [pair for pair in pairs if not pair.can_reach_alpha]
    few = [pair for pair in out_of_reach if max(pair.n_a, pair.n_b) < pair.n_needed]
    if few:
        lines.append(Caution(
            "rank-sum test", f"{len(few)} of {len(pairs)} pairs cannot be significant at {alpha:g} "
            f"after Holm with n = {few[0].n_a}; n >= {few[0].n_needed} {few[0].unit}s make it "
            "possible, not likely", limits=False))
    if len(out_of_reach) > len(few):
        lines.append(Caution(
            "rank-sum test", f"{len(out_of_reach) - len(few)} of {len(pairs)} pairs cannot be "
            "significant because most values are equal", limits=False))
    if any(pair.method == "normal" for pair in pairs):
        lines.append(Caution(
            "rank-sum test", f"with more than {EXACT_LIMIT} values a pair, p comes from the normal "
            "distribution with tie correction", limits=False))
    return lines
