"""What is concluded of runs of a known truth: the table of what must come out, line by line.

The same at full size, with its shares: benchmarks/verdict_simulations.txt.
"""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import pytest

from lungkit.compare import answer, decide, limits
from lungkit.compare.answer import BETTER, EQUIVALENT, FILES, NOT_WORSE, PRIMARY, WORSE
from lungkit.compare.bootstrap import Trainings, crossed_mean
from lungkit.compare.replicates import seeds_mean
from lungkit.compare.results import Results
from simulated_results import Truth, conclude_of, simulate

DIFFERENT, PASSED = {BETTER, WORSE}, {BETTER, EQUIVALENT, NOT_WORSE}


def cells_of(rng, truths, *, groups, images, share, repeats=30):
    """Shares of right answers float [R, G] of arms of these accuracies, as the simulator's."""
    from statistics import NormalDist

    shared = rng.normal(0, 0.15**0.5, groups)[:, None] + rng.normal(0, 0.35**0.5, (groups, images))
    for accuracy in truths:
        own = rng.normal(0, share**0.5, groups)[:, None]
        seed = rng.normal(0, 0.004**0.5, (repeats, 1, 1))
        rest = rng.normal(0, (0.496 - share)**0.5, (repeats, groups, images))
        yield (NormalDist().inv_cdf(accuracy) + shared + own + seed + rest > 0).mean(2)


def decided(seed, truths, *, groups, images, share):
    rng = np.random.default_rng(seed)
    strata = np.arange(groups) % 2
    real, arm = ([Trainings(cells.mean(1), (cells - cells.mean(1, keepdims=True)) / groups)]
                 for cells in cells_of(rng, truths, groups=groups, images=images, share=share))
    found = decide.estimate("B", crossed_mean(arm, strata, real), alpha=0.05, margin=0.02,
                            n_arm=30, n_against=30, num_trainings=30)
    decide.judge([found], PRIMARY, alpha=0.05, margin=0.02)
    return found.decision


SIZES = [{"groups": 20, "images": 3}, {"groups": 90, "images": 5}]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("size", SIZES, ids=["20 x 3", "90 x 5"])
def test_equal_arms_are_not_told_apart_by_what_single_groups_are_to_them(size, share):
    words = [decided(seed, (0.85, 0.85), share=share, **size) for seed in range(60)]
    assert sum(word in DIFFERENT for word in words) <= 7  # of 60: 7 % gives 9 in 1 of 50


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("size", SIZES, ids=["20 x 3", "90 x 5"])
def test_an_arm_two_points_worse_passes_for_none_that_is_not(size, share):
    words = [decided(seed, (0.85, 0.83), share=share, **size) for seed in range(60)]
    assert sum(word in PASSED for word in words) <= 7


def test_an_arm_as_good_as_real_is_shown_to_be_where_the_groups_suffice():
    words = [decided(seed, (0.85, 0.85), share=0.05, groups=900, images=3) for seed in range(20)]
    assert sum(word in PASSED for word in words) >= 16
    words = [decided(seed, (0.85, 0.70), share=0.05, groups=90, images=3) for seed in range(20)]
    assert sum(word == WORSE for word in words) >= 19


@pytest.mark.parametrize("repeats", [20, 50])
def test_a_true_difference_between_two_test_images_is_covered(repeats):
    rng, covered = np.random.default_rng(repeats), 0
    for _ in range(1000):
        arm, real = rng.binomial(60, 0.8375, repeats) / 60, rng.binomial(60, 0.85, repeats) / 60
        low, high = seeds_mean([arm], [real]).interval(0.95)
        covered += low <= -0.0125 <= high
    assert 0.92 <= covered / 1000 <= 0.98


@pytest.mark.parametrize("collapsed", [2, 4, 6])
def test_an_arm_of_which_some_trainings_collapse_is_not_equivalent_and_that_is_named(collapsed):
    found = conclude_of(simulate({"real": Truth(), "gan": Truth(collapsed=collapsed)},
                                 seed=collapsed, groups=30))
    [pair] = found.pairs
    assert pair.level == "B" and pair.decision not in PASSED
    [said] = [str(each) for each in found.warnings if each.name == "collapsed training"]
    assert said.startswith(f"collapsed training: gan: {collapsed} of 20 trainings (33.3 where the "
                           "median is ")
    block = found.answer
    assert block.index(f"- {said}") < block.index("Answer:")
    assert any(each.name == "spread" for each in found.warnings)


def test_what_trainings_may_still_fail_is_told_of_an_arm_that_passes():
    found = conclude_of(simulate({"real": Truth(0.7), "gan": Truth(0.9), "vae": Truth(0.4)}, seed=0,
                                 groups=20))
    assert [pair.decision for pair in found.pairs[:2]] == [BETTER, WORSE]
    [said] = [str(each) for each in found.warnings if each.name == "trainings that fail"]
    assert said == ("trainings that fail: gan none of 20, so up to 14 % of all may; the means know "
                    "only those there are")
    assert f"- {said}" in found.answer


def test_five_folds_of_separated_arms_get_a_decision_for_every_pair():
    arms = dict(zip(("real", "gan", "vae", "flow", "prompt"), (0.95, 0.8, 0.7, 0.6, 0.5)))
    found = conclude_of(simulate({name: Truth(level) for name, level in arms.items()}, seed=0,
                                 replicates=5, repeats=4, groups=60, images=2))
    assert {frozenset((pair.arm, pair.against)) for pair in found.pairs
            if pair.level == "C" and pair.decision in DIFFERENT} == {
        frozenset(pair) for pair in combinations(arms, 2)}
    assert found.level == "C" and found.next_level is None
    assert any(str(each).startswith("few replicates: 5 replicates") for each in found.warnings)
    for pair in found.pairs:
        assert pair.sentence.startswith("As a method, for new patients and new trainings (level C)")
        assert pair.rank_sum["p_holm"] > 0.05  # five values a side cannot, after Holm over ten


def test_draws_of_a_generator_are_no_difference_between_methods():
    """One set of each of four equal generators, then six: the first differ, as sets do."""
    truths = {"real": Truth(), **{name: Truth(draw=4.0) for name in ("gan", "vae", "flow")}}
    one = conclude_of(simulate(truths, seed=3, groups=60))
    assert any(pair.decision in DIFFERENT for pair in one.pairs)
    assert all("With this generated set, for new patients (level B)" in pair.sentence
               for pair in one.pairs)
    assert any(line.startswith("- one replicate: ") for line in one.answer)
    assert one.answer[-1].startswith("Next: level C, this method, for new patients and new "
                                     "trainings of the generator, needs 3 replicates")
    six = conclude_of(simulate(truths, seed=3, groups=10, repeats=4, replicates=6))
    assert not any(pair.decision in DIFFERENT for pair in six.pairs)
    assert six.pairs[0].estimates["C"].p_sign_flip is not None
    assert six.level == "C" and not any(each.name in ("one replicate", "few replicates")
                                        for each in six.warnings)


def limits_of(found, name):
    """The lines of this name above the answer."""
    return [line for line in found.answer if line.startswith(f"- {name}: ")]


def test_where_most_trainings_collapsed_their_median_is_no_yardstick():
    arms = {"real": Truth(0.9), "gan": Truth(0.9, collapsed=6)}
    [said] = limits_of(conclude_of(simulate(arms, seed=1, groups=12, repeats=6)),
                       "collapsed training")
    assert said == ("- collapsed training: gan: 6 of 6 trainings (33.3, 33.3, ...): they say one "
                    "class of nearly every image")


def test_one_line_names_every_arm_that_a_limit_is_of():
    arms = {"real": Truth(0.9), "a": Truth(0.9, lost=0), "b": Truth(0.9, lost=1),
            "c": Truth(0.9, collapsed=1), "d": Truth(0.9, collapsed=2)}
    found = conclude_of(simulate(arms, seed=1, groups=12, repeats=6))
    assert limits_of(found, "lost class") == [
        "- lost class: a finds less than chance of class0 (recall 0 %), b finds less than chance "
        "of class1 (recall 0 %)"]
    [said] = limits_of(found, "collapsed training")
    assert said.startswith("- collapsed training: c: 1 of 6 trainings (33.3 where the median is ")
    assert "), d: 2 of 6 trainings (33.3 where the median is " in said
    [said] = limits_of(found, "spread")
    assert re.fullmatch("- spread: between trainings these arms vary otherwise than real, c [0-9.]+"
                        " times, d [0-9.]+ times as much: rank tests and shifts take equal "
                        "spreads, the means do not", said)
    guessing = {"real": Truth(0.9), "a": Truth(0.3), "b": Truth(0.35), "c": Truth(0.9)}
    found = conclude_of(simulate(guessing, seed=1, groups=12, repeats=3))
    [said] = limits_of(found, "chance level")
    assert said.startswith("- chance level: a, b cannot be told from always answering the largest")


def warned(*texts):
    """The cautions of results that warn of these."""
    return limits._of_results(Results([], ["real", "gan", "vae"], [], [], [], warnings=[*texts]))


COPIES = ("copies: {share}% of the images of {arm} are copies of a training image, or far more "
          "alike to one than training images of different groups are to one another")


def test_warnings_of_one_kind_are_one_line():
    copies = [f"{arm}: {COPIES.format(share=share, arm=arm)}" for arm, share in
              (("gan", 4), ("vae", 31))]
    few = [f"gan: class {name} has {count} training images, real has 90" for name, count in
           (("a", 30), ("b", 50))]
    said = warned("few groups: 'a' has 8 groups only", *copies, *few, "mixed device: 2")
    assert [str(each) for each in said] == [
        "few groups: 'a' has 8 groups only",
        "copies: 4% of the images of gan, 31% of the images of vae are copies of a training image, "
        "or far more alike to one than training images of different groups are to one another",
        "results: gan: class a has 30, b has 50 training images, real has 90", "mixed device: 2"]
    assert all(each.limits for each in said)


def test_of_long_warnings_of_one_kind_the_first_stands_above_the_answer():
    texts = [f"trivial statistics predict the class: Without any shape it is told by {figures}; "
             "guessing scores 0.33." for figures in (f"colour {k} " * 12 for k in range(3))]
    first, *others = warned(*texts)
    assert str(first) == texts[0] + " (one of 3 such; the others are among the further warnings)"
    assert [str(each) for each in others] == texts[1:] and not any(each.limits for each in others)


def test_where_groups_are_files_every_sentence_says_images():
    made = simulate({"real": Truth(), "gan": Truth(0.5)}, seed=0, groups=12, repeats=4)
    for row in made.rows:
        row["groups_given"] = "auto"
    found = conclude_of(made)
    assert found.whom == FILES and found.level == "B"
    assert found.pairs[0].sentence.startswith(
        "With this generated set, for new images, not new patients (level B), gan scores lower")
    [said] = limits_of(found, "a file is no patient")
    assert "upper bounds" in said
    assert not any("new patients" in line.replace(FILES, "") for line in found.answer
                   if line != said)
    told = warned("groups found only: No group ids were given", "few groups: 'a' has 8")
    assert [each.name for each in told] == ["a file is no patient", "few groups"]


def test_fewer_trainings_than_exclude_that_one_in_ten_fails_show_no_equivalence():
    arms = {"real": Truth(), "gan": Truth()}
    for repeats, word in ((28, "out of reach at this n"), (30, EQUIVALENT)):
        found = conclude_of(simulate(arms, seed=4, groups=60, repeats=repeats), margin=0.06)
        assert found.pairs[0].decision == word
        assert found.pairs[0].estimates["B"].num_trainings == repeats
    assert "28 trainings do not exclude that one in ten fails, 29 would" in conclude_of(
        simulate(arms, seed=4, groups=60, repeats=28), margin=0.06).answer[-2]
    several = conclude_of(simulate(arms, seed=2, groups=20, repeats=10, replicates=3), margin=0.06)
    assert several.pairs[0].estimates["C"].num_trainings == 30


def test_looks_are_counted_above_the_answer():
    looks = [{"alpha": 0.05, "changed": [f"repeats {n} for 6"]} for n in (10, 15)]
    [said] = limits.of_looks({"alpha": 0.05, "looks": looks})
    assert str(said) == (
        "looks: 3 comparisons were made, as planned and by repeats 10 for 6; repeats 15 for 6: the "
        "chance of any false difference is up to 15% over all of them")
    assert limits.of_looks({"alpha": 0.05, "looks": []}) == limits.of_looks(None) == []
    found = conclude_of(simulate({"real": Truth(), "gan": Truth()}, seed=0, repeats=2),
                        plan={"alpha": 0.05, "looks": looks})
    assert f"- {said}" in found.answer and found.plan["looks"] == looks


# ------------------------------------------------------------------ what a level needs

def test_fewer_than_ten_groups_of_a_class_say_nothing_of_patients():
    found = conclude_of(simulate({"real": Truth(), "gan": Truth(0.5)}, seed=0, groups=9, repeats=5))
    [pair] = found.pairs
    assert set(pair.estimates) == {"A"} and found.level == "A"
    assert pair.sentence.startswith("In these trainings on these test images (level A), gan")
    assert "- few groups: class0 has 9, class1 has 9, class2 has 9 test groups; with fewer than " \
        "10 a class nothing is said of new patients" in found.answer
    assert found.answer[-1] == (
        "Next: level B, this generated set, for new patients, needs 10 test groups in every class; "
        "class0 has 9, class1 has 9, class2 has 9")
    assert set(conclude_of(simulate({"real": Truth(), "gan": Truth(0.5)}, seed=0, groups=10,
                                    repeats=5)).pairs[0].estimates) == {"A", "B"}


def test_images_without_a_group_say_nothing_of_patients():
    made = simulate({"real": Truth(), "gan": Truth(0.5)}, seed=0, repeats=4)
    for arrays in made.arrays.values():
        arrays["real_groups"] = arrays["real_file_names"]
    found = conclude_of(made)
    assert found.level == "A"
    assert any(line.startswith("- no group ids: 90 test images have none") for line in found.answer)


def test_replicates_on_one_split_are_repeats_and_that_is_named():
    made = simulate({"real": Truth(), "gan": Truth()}, seed=0, repeats=4, replicates=3)
    for row in made.rows:
        row["real_fingerprint"] = "real0"
    for arrays in made.arrays.values():
        arrays["real_groups"] = made.arrays["real", 0, 0]["real_groups"]
    found = conclude_of(made)
    assert set(found.pairs[0].estimates) == {"A", "B"} and found.num_replicates == 1
    assert found.pairs[0].estimates["A"].n_arm == 12 and found.pairs[0].estimates["B"].n_arm == 3
    [component] = [each for each in found.components if each.name.startswith("generator's")]
    assert component.units == 3


def test_one_training_a_split_reaches_level_c_alone():
    found = conclude_of(simulate({"real": Truth(), "gan": Truth()}, seed=0, repeats=1,
                                 replicates=4))
    assert set(found.pairs[0].estimates) == {"C"} and found.components == []


def test_an_arm_of_one_training_takes_level_b_from_no_other_pair():
    made = simulate({"real": Truth(), "gan": Truth(), "one": Truth()}, seed=0, repeats=3)
    made.rows = [row for row in made.rows if row["dataset"] != "one" or row["repeat"] == 0]
    found = conclude_of(made)
    levels = {(pair.arm, pair.against): pair.level for pair in found.pairs}
    assert levels == {("gan", "real"): "B", ("one", "real"): None, ("gan", "one"): None}
    assert found.level is None
    assert "- one against real: one training each, nothing can be said." in found.answer


def test_baselines_and_controls_are_told_but_take_no_part():
    truths = {"real": Truth(), "gan": Truth(), "nuclei": Truth(0.6, kind="baseline")}
    found = conclude_of(simulate(truths, seed=0, repeats=4))
    assert [(pair.arm, pair.against, pair.family) for pair in found.pairs] == [
        ("gan", "real", "primary"), ("nuclei", "real", "outside"), ("gan", "nuclei", "outside")]
    first = found.pairs[0].estimates["B"]
    assert first.p_not_worse_holm == first.p_not_worse  # the only one of its family
    answer = "\n".join(found.answer).split("Answer:")[1]
    assert "nuclei" not in answer


# ------------------------------------------------------------------ an arm looked at closely

def test_a_lost_class_is_named_in_the_answer_block():
    made = simulate({"real": Truth(0.9), "gan": Truth(0.9, lost=1)}, seed=1, repeats=4)
    found = conclude_of(made)
    gan = found.arms[1]
    assert [each.lost for each in gan.classes] == [False, True, False]
    assert gan.classes[1].recall == 0 and gan.classes[1].recall_high > 0.2
    assert gan.classes[1].precision is None or gan.classes[1].precision < 0.5
    assert "- lost class: gan finds less than chance of class1 (recall 0 %)" in found.answer
    matrices = [row["real"]["confusion_matrix"] for row in made.rows if row["dataset"] == "gan"]
    assert gan.confusion == np.sum(matrices, axis=0).tolist()
    recall = [sum(m[k][k] for m in matrices) / sum(sum(m[k]) for m in matrices) for k in range(3)]
    precision = sum(m[0][0] for m in matrices) / sum(row[0] for m in matrices for row in m)
    assert [each.recall for each in gan.classes] == pytest.approx(recall)
    assert gan.classes[0].precision == pytest.approx(precision)
    assert all(each.recall_low <= each.recall <= each.recall_high for each in gan.classes)
    assert gan.worst_group["label"] == "class1" and gan.worst_group["accuracy"] == 0
    assert gan.worst_group["num_images"] == 3


def test_an_interval_over_groups_is_wider_than_one_over_images():
    from lungkit.compare.rank_sum import wilson_interval

    real = conclude_of(simulate({"real": Truth(), "gan": Truth()}, seed=0, groups=10, images=20,
                                repeats=5)).arms[0]
    low, high = wilson_interval(real.mean, 600)
    assert real.low < low < high < real.high


def test_an_outlying_training_is_named_and_a_usual_one_is_not():
    made = simulate({"real": Truth(), "gan": Truth()}, seed=0, groups=30, repeats=10)
    assert not [each for each in conclude_of(made).warnings if each.name.endswith(" training")]
    for row in made.rows:
        if (row["dataset"], row["repeat"]) == ("gan", 7):
            told = made.arrays["gan", 0, 7]["real_probabilities"]
            told[:90] = np.roll(told[:90], 1, axis=1)
            labels = made.arrays["gan", 0, 7]["real_labels"]
            matrix = np.zeros((3, 3), int)
            np.add.at(matrix, (labels, told.argmax(1)), 1)
            row["real"] = row["own"] = row["real"] | {"confusion_matrix": matrix.tolist()}
            accuracy = float(np.trace(matrix) / len(labels))
            row["accuracy_real"] = accuracy
            row["scores"] = {"own": {"accuracy": accuracy}, "real": {"accuracy": accuracy}}
    [said] = [each for each in conclude_of(made).warnings if each.name.endswith(" training")]
    assert said.name == "outlying training" and said.text.startswith("gan: 1 of 10 trainings (")


def test_components_share_out_the_variance_and_say_what_less_would_cost():
    found = conclude_of(simulate({"real": Truth(), "gan": Truth(arm_group=0.2)}, seed=0, groups=30,
                                 repeats=6))
    shares = {each.name: each.share for each in found.components}
    assert sum(shares.values()) == pytest.approx(1) and max(shares, key=shares.get) == (
        "arm x test group")
    group = next(each for each in found.components if each.name == "arm x test group")
    assert group.units == 90 and group.cost.startswith("as many test groups again: standard error ")
    before, after = group.cost.split("error ")[1].removesuffix(" points").split(" to ")
    assert float(after) < float(before)


def test_an_infinite_end_is_no_number_of_json():
    infinite = float("inf")
    assert answer.plain({"ends": [-infinite, (infinite, 0.5)]}) == {"ends": [None, [None, 0.5]]}
