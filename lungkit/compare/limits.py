"""What limits an answer, each limit named: it stands above the answer, not after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lungkit.compare import alike, scores
from lungkit.compare.answer import ArmAnswer, Caution
from lungkit.compare.evidence import Evidence
from lungkit.compare.plan import looks_in_words
from lungkit.compare.rank_sum import wilson_interval
from lungkit.compare.replicates import TO_ESTIMATE, TO_TEST
from lungkit.compare.results import REAL, UNNAMED, Results

GROUPS_NEEDED = 10  # test groups a class for level B; ours: below, a t interval rests on too little
SPREAD_RATIO = 2.0  # of the standard deviations of two arms
SPREAD_FROM = 5     # values each, from which a ratio of two says something
MOST_NAME = 60      # letters before a colon that may name a warning
# what limits single arms, in this order: a sentence about all that have it
OF_ARMS = {
    "lost class": "{}", "collapsed training": "{}: they say one class of nearly every image",
    "outlying training": "{}",
    "chance level": "{} cannot be told from always answering the largest class; a comparison with "
                    "an arm that learned nothing says nothing",
    "spread": "between trainings these arms vary otherwise than real, {} as much: rank tests and "
              "shifts take equal spreads, the means do not"}


def cautions(found: Results, arms: Sequence[ArmAnswer], evidence: Evidence | None,
             missing: str | None, *, metric: str) -> list[Caution]:
    """All limits of the answer, then what the results themselves warn of.

    missing: why there is no evidence by group; None where there is.
    """
    by_name = {arm.dataset: arm for arm in arms}
    return [*_of_size(found, evidence, missing, metric),
            *_of_arms(arms, by_name.get(REAL)), *_of_results(found)]


def few_groups(evidence: Evidence) -> dict[str, int]:
    """The classes that have too few test groups on some split, and how many they have."""
    fewest: dict[str, int] = {}
    for split in evidence.splits:
        for label, count in split.groups_per_class.items():
            fewest[label] = min(count, fewest.get(label, count))
    return {label: count for label, count in fewest.items() if count < GROUPS_NEEDED}


def _of_results(found: Results) -> list[Caution]:
    """What the results themselves warn of; what is said again of other arms is one line."""
    said = [_named(text, found.datasets) for text in found.warnings]
    lines = []
    if found.groups_are_files:
        lines.append(Caution(
            "a file is no patient", "patients are not named: a test group may be no more than one "
            "file with its copies. Images of one patient may lie on both sides of a split, so that "
            "accuracies are upper bounds; what holds for new images need not for new patients"))
        said = [each for each in said if each[0] not in UNNAMED]
    for name in dict.fromkeys(name for name, _ in said):
        for texts in alike.clusters([text for other, text in said if other == name]):
            if (line := alike.one_line(texts)) is not None:
                lines.append(Caution(name, line))
                continue
            lines += [Caution(name, f"{texts[0]} (one of {len(texts)} such; the others are among "
                              "the further warnings)"),
                      *(Caution(name, text, limits=False) for text in texts[1:])]
    return lines


def _named(text: str, datasets: Sequence[str]) -> tuple[str, str]:
    """A warning of the results: its name, "results" where it has none, and its words."""
    arms, colon, rest = text.partition(": ")
    if not colon or not {*arms.split(", ")} <= {*datasets}:
        arms, rest = "", text
    name, colon, words = rest.partition(": ")
    if not colon or len(name) >= MOST_NAME:
        name, words = "results", rest
    told = not arms or all(arm in words for arm in arms.split(", "))
    return name, words if told else f"{arms}: {words}"


def _of_size(found: Results, evidence: Evidence | None, missing: str | None,
             metric: str) -> list[Caution]:
    lines, split = [], scores.parts(metric)[1]
    if split == "own":
        lines.append(Caution(
            "own test images", "each CNN is tested on its own kind of image; nothing here says how "
            f"it does on real patients (that is {scores.parts(metric)[0]}_real)"))
    if len(found.splits) == 1:
        lines.append(Caution(
            "one replicate", "every number speaks about this one split of the real images and this "
            "one training of each generator, not about the methods; more repeats do not cure it, "
            "whole-pipeline replicates (another split, another generator seed) do"))
    elif len(found.splits) < TO_TEST:
        lines.append(Caution(
            "few replicates", f"{len(found.splits)} replicates: the interval takes their "
            "differences for normal, and no exact test can check it with fewer than "
            f"{TO_TEST}" + ("" if len(found.splits) >= TO_ESTIMATE else
                            f"; level C needs {TO_ESTIMATE}")))
    if missing and split == "real":
        lines.append(Caution("no groups", f"level A only: {missing}"))
    if evidence:
        few = few_groups(evidence)
        if few:
            listed = ", ".join(f"{label} has {count}" for label, count in few.items())
            lines.append(Caution(
                "few groups", f"{listed} test groups; with fewer than {GROUPS_NEEDED} a class "
                "nothing is said of new patients"))
        unknown = sum(each.unknown for each in evidence.splits)
        if unknown:
            lines.append(Caution(
                "no group ids", f"{unknown} test images have none: nothing is said of new "
                "patients, since images of one patient would count as several"))
    counts = {name: len(found.values(name, metric)) for name in found.datasets}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        lines.append(Caution("unequal n", f"{listed} values"))
    return lines


def _of_arms(arms: Sequence[ArmAnswer], real: ArmAnswer | None) -> list[Caution]:
    """A line for each kind of limit, with all arms that have it."""
    told: dict[str, list[str]] = {name: [] for name in OF_ARMS}
    for arm in arms:
        for name, text in _of_arm(arm, real):
            told[name].append(text)
    return [Caution(name, OF_ARMS[name].format(", ".join(texts)))
            for name, texts in told.items() if texts]


def _of_arm(arm: ArmAnswer, real: ArmAnswer | None) -> Iterator[tuple[str, str]]:
    """The limits of one arm: their names in OF_ARMS, and its part of the sentence there."""
    name = arm.dataset
    if lost := [each for each in arm.classes if each.lost]:
        listed = " and ".join(f"{each.name} (recall {100 * each.recall:.0f} %)" for each in lost)
        yield "lost class", f"{name} finds less than chance of {listed}"
    for word, chosen in (
            ("collapsed training", [each for each in arm.outlying if each["collapsed"]]),
            ("outlying training", [each for each in arm.outlying if not each["collapsed"]])):
        if chosen:
            listed = ", ".join(_beside_median(each) for each in chosen[:2])
            listed += ", ..." if len(chosen) > 2 else ""
            yield word, f"{name}: {len(chosen)} of {arm.num_repeats} trainings ({listed})"
    if scores.is_accuracy(arm.metric) and arm.confusion:
        classes = [sum(line) for line in arm.confusion]
        low = arm.low  # of images, where no groups are known
        if low is None:
            low = wilson_interval(arm.mean, sum(classes) / arm.num_repeats)[0]
        if low <= max(classes) / sum(classes):
            yield "chance level", name
    if (real and arm is not real and min(arm.num_repeats, real.num_repeats) >= SPREAD_FROM
            and arm.training_sd and real.training_sd):
        ratio = arm.training_sd / real.training_sd
        if max(ratio, 1 / ratio) > SPREAD_RATIO:
            yield "spread", f"{name} {ratio:.1f} times"


def _beside_median(training: dict) -> str:
    """Its score in percent, and the median's unless that is the same: most have then collapsed."""
    value, median = (f"{100 * training[name]:.1f}" for name in ("value", "median"))
    return value if value == median else f"{value} where the median is {median}"


def unseen_collapse(arms: Sequence[ArmAnswer], passed: Sequence[str],
                    alpha: float) -> list[Caution]:
    """How many trainings of an arm that passed may fail although none did.

    With none of n seen the share is at most 1 - alpha^(1/n) (the rule of three: Hanley and
    Lippman-Hand 1983), and a mean takes no account of it.
    """
    told = [f"{arm.dataset} none of {arm.num_repeats}, so up to "
            f"{100 * (1 - alpha**(1 / arm.num_repeats)):.0f} %" for arm in arms
            if arm.dataset in passed and arm.kind == "cnn" and not any(
                each["collapsed"] for each in arm.outlying)]
    return [Caution("trainings that fail", f"{', '.join(told)} of all may; the means know only "
                    "those there are")] if told else []


def of_looks(plan: dict | None) -> list[Caution]:
    """What departures from the plan cost: each look is another chance of a false difference."""
    said = looks_in_words(plan) if plan else None
    return [Caution("looks", said)] if said else []
