"""From results to what they say: every pair at every level that the data reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from lungkit.compare import decide, limits, scores, wording
from lungkit.compare.answer import (
    BETTER,
    EQUIVALENT,
    FILES,
    NOT_WORSE,
    OUTSIDE,
    PATIENTS,
    PRIMARY,
    SECOND,
    Comparison,
    Component,
    Estimate,
    PairAnswer,
)
from lungkit.compare.bootstrap import crossed_draws, crossed_mean
from lungkit.compare.evidence import Evidence
from lungkit.compare.pairs import REFERENCE, Pair
from lungkit.compare.per_class import arm_answer
from lungkit.compare.replicates import (
    TO_ESTIMATE,
    between_splits,
    paired_mean,
    pooled_sd,
    seeds_mean,
    set_variance,
    sign_flip_p,
)
from lungkit.compare.results import Results

PASSED = (BETTER, EQUIVALENT, NOT_WORSE)
BESIDE = ("p", "p_holm", "shift", "shift_low", "shift_high", "a12")  # of the rank-sum test


def conclude(found: Results, tests: Sequence[Pair], metric: str, evidence: Evidence | None,
             missing: str | None, *, alpha: float, margin: float, outside: Sequence[str] = (),
             plan: dict | None = None) -> Comparison:
    """Decide every pair of the rank-sum table.

    evidence: None where the answers by test group are not known, and `missing` says why.
    outside: controls, which belong to no family; the baselines never do.
    """
    apart = {*found.baselines, *outside}
    pairs = [_pair(test, apart) for test in tests]
    few = limits.few_groups(evidence) if evidence else {}
    whom = FILES if found.groups_are_files else PATIENTS
    if scores.parts(metric)[1] != "own":
        _estimate_all(pairs, found, metric, evidence, few, alpha=alpha, margin=margin)
    for pair, test in zip(pairs, tests):
        if "A" in pair.estimates and not pair.estimates["A"].se:
            _by_ranks(pair.estimates["A"], test, pair.arm == test.dataset_b)
    for family in (PRIMARY, SECOND, OUTSIDE):
        for level in "ABC":
            decide.judge([pair.estimates[level] for pair in pairs
                          if pair.family == family and level in pair.estimates],
                         family, alpha=alpha, margin=margin)
    for pair in pairs:
        if pair.estimates:
            pair.level = max(pair.estimates)
            best = pair.estimates[pair.level]
            pair.decision = best.decision
            pair.sentence = wording.sentence(pair.arm, pair.against, pair.family, best,
                                             alpha=alpha, margin=margin, whom=whom)
    pairs.sort(key=lambda pair: (PRIMARY, SECOND, OUTSIDE).index(pair.family))
    arms = [arm_answer(found, name, metric, found.values(name, metric), evidence, alpha=alpha)
            for name in found.datasets]
    asked = [pair for pair in pairs if pair.family == PRIMARY] or pairs
    level = min((pair.level or "" for pair in asked), default="") or None
    warnings = limits.cautions(found, arms, evidence, missing, metric=metric)
    warnings += limits.unseen_collapse(
        arms, [pair.arm for pair in asked if pair.decision in PASSED], alpha)
    warnings += limits.of_looks(plan)
    next_level = wording.what_next(level, len(found.splits), missing, few, whom)
    return Comparison(
        metric=metric, margin=margin, alpha=alpha, level=level,
        answer=wording.answer_block(pairs, warnings, metric, alpha=alpha, margin=margin,
                                    next_level=next_level),
        warnings=warnings, pairs=pairs, arms=arms,
        components=_components(pairs, evidence) if evidence else [],
        num_replicates=len(found.splits), num_repeats=len(found.repeats),
        groups_per_class={} if evidence is None else evidence.splits[0].groups_per_class,
        next_level=next_level, whom=whom, plan=plan)


def _pair(test: Pair, apart: set[str]) -> PairAnswer:
    """The pair of a test, the arm first and what it is measured against second."""
    arm, against = test.dataset_a, test.dataset_b
    if arm == REFERENCE:
        arm, against = against, arm
    return PairAnswer(arm, against, decide.family_of(arm, against, apart, REFERENCE), {}, None,
                      "", "", {name: value for name, value in asdict(test).items()
                               if name in BESIDE})


# ------------------------------------------------------------------ the three levels

def _estimate_all(pairs: Sequence[PairAnswer], found: Results, metric: str,
                  evidence: Evidence | None, few: dict[str, int], *, alpha: float,
                  margin: float) -> None:
    by_group = evidence is not None and not few and not any(
        split.unknown for split in evidence.splits)
    trainings = {name: evidence.trainings(name) for name in found.datasets} if by_group else {}
    trainings = {name: of_arm for name, of_arm in trainings.items()
                 if min(len(one.values) for one in of_arm) > 1}
    draws = crossed_draws(trainings, evidence.strata) if trainings else {}
    for pair in pairs:
        arm, against = (_by_split(found, name, metric) for name in (pair.arm, pair.against))
        options = {"alpha": alpha, "margin": margin, "num_trainings": min(
            sum(map(len, each.values())) for each in (arm, against))}
        shared = sorted(arm.keys() & against.keys())
        if all(len(values) > 1 for values in [*arm.values(), *against.values()]):
            pair.estimates["A"] = decide.estimate(
                "A", seeds_mean(list(arm.values()), list(against.values())),
                n_arm=sum(map(len, arm.values())), n_against=sum(map(len, against.values())),
                **options)
        if {pair.arm, pair.against} <= trainings.keys():
            drawn = np.quantile(draws[pair.arm] - draws[pair.against], [alpha / 2, 1 - alpha / 2])
            pair.estimates["B"] = decide.estimate(
                "B", crossed_mean(trainings[pair.arm], evidence.strata, trainings[pair.against]),
                n_arm=sum(len(one.values) for one in trainings[pair.arm]),
                n_against=sum(len(one.values) for one in trainings[pair.against]),
                num_groups=len(evidence.groups), drawn=tuple(map(float, drawn)), **options)
        if len(shared) >= TO_ESTIMATE:
            differences = [float(np.mean(arm[k]) - np.mean(against[k])) for k in shared]
            pair.estimates["C"] = decide.estimate(
                "C", paired_mean(differences, found.overlap),
                n_arm=len(shared), n_against=len(shared), p_sign_flip=sign_flip_p(differences),
                **options)


def _by_split(found: Results, arm: str, metric: str) -> dict[int, np.ndarray]:
    """The arm's scores on every split it has results of."""
    by_split = {number: [row[metric] for row in found.rows
                         if row["dataset"] == arm and row["replicate"] in replicates]
                for number, replicates in enumerate(found.splits)}
    return {number: np.array(values) for number, values in by_split.items() if values}


def _by_ranks(found: Estimate, test: Pair, arm_is_b: bool) -> None:
    """Where nothing varies the t interval is a point; the exact rank tests still have a p."""
    found.p_difference = found.p_difference_holm = test.p
    found.p_not_worse = found.p_not_worse_holm = (
        test.p_b_not_worse if arm_is_b else test.p_a_not_worse)
    found.p_equivalent = found.p_equivalent_holm = test.p_equivalent


# ------------------------------------------------------------------ where the variance is from

def _components(pairs: Sequence[PairAnswer], evidence: Evidence) -> list[Component]:
    """Of each synthetic arm against real at its highest level, what its variance consists of."""
    return [component for pair in pairs if pair.family == PRIMARY and pair.level in ("B", "C")
            for component in _of_pair(pair, evidence)]


def _of_pair(pair: PairAnswer, evidence: Evidence) -> list[Component]:
    arm, against = (evidence.trainings(name) for name in (pair.arm, pair.against))
    if min(len(one.values) for one in (*arm, *against)) < 2:
        return []  # one training a split: its seed cannot be told from the split
    whole, num_splits = crossed_mean(arm, evidence.strata, against), len(arm)
    groups = max(0.0, whole.groups - whole.residual)
    seeds = max(0.0, whole.trainings - whole.residual)
    num_trainings = sum(len(one.values) for one in (*arm, *against))
    num_groups = len(evidence.groups)
    cells = num_trainings / 4 * num_groups / num_splits  # of each arm on each split, halved twice
    sources = [
        ("CNN seed", np.sqrt(np.mean([pooled_sd(arm)**2, pooled_sd(against)**2])), num_trainings,
         seeds, "as many repeats again"),
        ("arm x test group", np.sqrt(groups * num_groups), num_groups, groups,
         "as many test groups again"),
        ("training x test group", np.sqrt(whole.residual * cells), num_trainings, whole.residual,
         "as many repeats or test groups again")]
    sets = set_variance([(each.fingerprints, np.array(each.values))
                         for each in evidence.arms[pair.arm]])
    if sets:
        variance, number = sets
        sources.append(("generator's training and draw", np.sqrt(variance), number,
                        variance / number, "as many trainings of the generator again"))
    if num_splits >= TO_ESTIMATE:
        within = [crossed_mean([one], evidence.strata, [other])
                  for one, other in zip(arm, against)]
        variance = between_splits([one.values.mean() - other.values.mean()
                                   for one, other in zip(arm, against)], within)
        sources.append(("split and generator's training", np.sqrt(variance), num_splits,
                        variance / num_splits, "as many replicates again"))
    total = sum(part for *_, part, _ in sources)
    return [Component(pair.arm, pair.against, name, float(sd), units,
                      float(part / total) if total else 0.0,
                      f"{cost}: standard error {100 * np.sqrt(total):.2f} to "
                      f"{100 * np.sqrt(total - part / 2):.2f} points")
            for name, sd, units, part, cost in sources]
