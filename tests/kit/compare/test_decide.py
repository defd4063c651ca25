"""One word a pair: which p decides which word, at which level of Holm, in which order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lungkit.compare import decide, wording
from lungkit.compare.answer import DECISIONS, FILES, OUTSIDE, PRIMARY, SECOND, Estimate
from lungkit.compare.bootstrap import Mean

UNDECIDED = Estimate("B", 0.004, 0.01, 20.0, -0.016, 0.024, -0.013, 0.021, 0.9, 0.9, 0.9, 0.9, 0.9,
                     0.9, None, 0.017, 40, 40, 40, 60, None, None)


@pytest.mark.parametrize(("family", "changed", "word"), [
    (PRIMARY, {}, "inconclusive"),
    # what holds after Holm decides, and it may be as large as its level
    (PRIMARY, {"p_difference": 0.001, "p_difference_holm": 0.051}, "inconclusive"),
    (PRIMARY, {"p_difference_holm": 0.05}, "better"),
    (PRIMARY, {"p_difference_holm": 0.05, "difference": -0.004}, "worse"),
    (PRIMARY, {"p_equivalent": 0.001, "p_equivalent_holm": 0.051}, "inconclusive"),
    (PRIMARY, {"p_equivalent_holm": 0.05}, "equivalent"),
    # one-sided at half of alpha, and of an arm against real alone
    (PRIMARY, {"p_not_worse": 0.001, "p_not_worse_holm": 0.0251}, "inconclusive"),
    (PRIMARY, {"p_not_worse_holm": 0.025}, "not worse"),
    (OUTSIDE, {"p_not_worse_holm": 0.025}, "not worse"),
    (SECOND, {"p_not_worse_holm": 0.025}, "inconclusive"),
    # more than one: better says most, worse least where it is within the margin
    (PRIMARY, {"p_difference_holm": 0.01, "p_equivalent_holm": 0.01, "p_not_worse_holm": 0.01},
     "better"),
    (PRIMARY, {"p_difference_holm": 0.01, "p_equivalent_holm": 0.01, "difference": -0.004},
     "equivalent"),
    (PRIMARY, {"p_difference_holm": 0.01, "p_not_worse_holm": 0.01, "difference": -0.004},
     "not worse"),
    (PRIMARY, {"p_equivalent_holm": 0.01, "p_not_worse_holm": 0.01}, "equivalent"),
    # said only where nothing else is shown
    (PRIMARY, {"smallest_margin": 0.02}, "out of reach at this n"),
    (PRIMARY, {"smallest_margin": 0.03}, "out of reach at this n"),
    (PRIMARY, {"smallest_margin": 0.5, "p_difference_holm": 0.01}, "better"),
    # that it does as well is said of 29 trainings and more, that it does better or worse of any
    *((PRIMARY, {**which, "num_trainings": count}, word) for which, words in [
        ({"p_equivalent_holm": 0.01}, ("out of reach at this n", "equivalent")),
        ({"p_not_worse_holm": 0.01}, ("out of reach at this n", "not worse")),
        ({"p_difference_holm": 0.01}, ("better", "better")),
        ({"p_difference_holm": 0.01, "p_equivalent_holm": 0.01, "difference": -0.004},
         ("worse", "equivalent")),
        ({}, ("out of reach at this n", "inconclusive"))] for count, word in zip((28, 29), words)),
    (SECOND, {"smallest_margin": 0.5, "p_difference_holm": 0.01, "difference": -1}, "worse"),
])
def test_which_word_is_said_of_which_numbers(family, changed, word):
    found = replace(UNDECIDED, **changed)
    assert decide.decision(found, family, alpha=0.05, margin=0.02) == word
    assert word in DECISIONS


def of(difference, se=0.01, df=20.0, level="B"):
    return decide.estimate(level, Mean(difference, se, df, 0, 0, 0), alpha=0.05, margin=0.02,
                           n_arm=40, n_against=40, num_trainings=40)


@pytest.mark.parametrize("difference", [-0.015, 0.003, 0.015])
def test_the_numbers_of_an_estimate_are_those_of_students_t(difference):
    from scipy.stats import t

    found, se, df = of(difference), 0.01, 20
    above, below = t.sf((difference + 0.02) / se, df), t.cdf((difference - 0.02) / se, df)
    half, half_equivalence = (t.ppf(share, df) * se for share in (0.975, 0.95))
    assert [found.p_difference, found.p_not_worse, found.p_equivalent] == pytest.approx(
        [2 * t.sf(abs(difference) / se, df), above, max(above, below)])
    assert [found.low, found.high, found.low_equivalence, found.high_equivalence] == pytest.approx([
        difference - half, difference + half, difference - half_equivalence,
        difference + half_equivalence])
    assert found.smallest_margin == pytest.approx(half_equivalence)


def test_holm_is_over_the_family_and_for_each_test():
    p = of(0.0251).p_difference
    assert 0.01 < p < 0.05
    several = [of(0.0251), of(0.02), of(0.0)]
    decide.judge(several, PRIMARY, alpha=0.05, margin=0.02)
    assert several[0].p_difference_holm == pytest.approx(3 * p) and several[0].decision != "better"
    assert several[0].p_not_worse_holm == pytest.approx(3 * several[0].p_not_worse)
    assert several[0].decision == "not worse" and several[0].p_difference == p
    alone = [of(0.0251)]
    decide.judge(alone, PRIMARY, alpha=0.05, margin=0.02)
    assert alone[0].decision == "better"
    outside = [of(0.0251), of(0.02), of(0.0)]
    decide.judge(outside, OUTSIDE, alpha=0.05, margin=0.02)
    assert outside[0].p_difference_holm == p and outside[0].decision == "better"


@pytest.mark.parametrize("difference", [-0.03, -0.02, -0.01, 0.0, 0.004, 0.02])
@pytest.mark.parametrize("se", [0.002, 0.006, 0.011])
def test_words_and_intervals_agree(difference, se):
    found = of(difference, se)
    decide.judge([found], PRIMARY, alpha=0.05, margin=0.02)
    assert (found.p_not_worse <= 0.025) == (found.low >= -0.02)
    assert (found.p_equivalent <= 0.05) == (
        -0.02 <= found.low_equivalence and found.high_equivalence <= 0.02)
    assert (found.p_difference <= 0.05) == (found.low >= 0 or found.high <= 0)
    equal = of(0.0, se)
    assert (equal.smallest_margin < 0.02) == (equal.p_equivalent < 0.05)
    if found.decision == "equivalent":
        told = wording.sentence("gan", "real", PRIMARY, found, alpha=0.05, margin=0.02)
        assert "90 % interval" in told and -0.02 <= found.low_equivalence


@pytest.mark.parametrize(("pair", "family"), [
    (("gan", "real"), PRIMARY), (("gan", "vae"), SECOND), (("nuclei", "real"), OUTSIDE),
    (("gan", "nuclei"), OUTSIDE)])
def test_baselines_and_controls_stand_outside_both_families(pair, family):
    assert decide.family_of(*pair, {"nuclei"}, "real") == family


@pytest.mark.parametrize(("changed", "told"), [
    ({"decision": "better"}, "gan scores higher than real: +0.4 points, 95 % interval -1.6 to "
                             "+2.4."),
    ({"decision": "equivalent"}, "gan is equivalent to real within ±2 points: +0.4 points, 90 % "
                                 "interval -1.3 to +2.1."),
    ({"decision": "equivalent", "p_difference_holm": 0.01, "difference": -0.004},
     "gan is equivalent to real within ±2 points, though lower: -0.4 points, 90 % interval -1.3 to "
     "+2.1."),
    ({"decision": "not worse"}, "gan is not worse than real by 2 points or more: +0.4 points, 95 % "
                                "interval -1.6 to +2.4."),
    ({"decision": "worse"}, "gan scores lower than real: +0.4 points, 95 % interval -1.6 to +2.4."),
    ({"decision": "inconclusive"}, "gan against real is inconclusive: +0.4 points, 95 % interval "
                                   "-1.6 to +2.4."),
    ({"decision": "out of reach at this n", "smallest_margin": 0.027},
     "gan against real is out of reach at this n: +0.4 points, 95 % interval -1.6 to +2.4; equal "
     "arms could be shown equivalent within ±2.7 points at best."),
    ({"decision": "out of reach at this n", "num_trainings": 20},
     "gan against real is out of reach at this n: +0.4 points, 95 % interval -1.6 to +2.4; 20 "
     "trainings do not exclude that one in ten fails, 29 would."),
    ({"decision": "worse", "p_sign_flip": 0.03125},
     "gan scores lower than real: +0.4 points, 95 % interval -1.6 to +2.4; sign-flip p 0.031.")])
def test_a_sentence_names_its_level_and_holds_the_interval(changed, told):
    found = replace(UNDECIDED, **changed)
    assert wording.sentence("gan", "real", PRIMARY, found, alpha=0.05, margin=0.02) == (
        f"With this generated set, for new patients (level B), {told}")
    for level, scope in (("A", "In these trainings on these test images (level A), "),
                         ("C", "As a method, for new patients and new trainings (level C), ")):
        assert wording.sentence("gan", "real", PRIMARY, replace(found, level=level), alpha=0.05,
                                margin=0.02) == scope + told
    constant = wording.sentence("gan", "real", PRIMARY, replace(found, se=0.0), alpha=0.05,
                                margin=0.02)
    assert "points, no interval, for the values of each do not vary" in constant
    assert wording.sentence("gan", "real", OUTSIDE, found, alpha=0.05, margin=0.02).endswith(
        "; outside both families, not adjusted.")


def test_where_groups_are_files_no_sentence_speaks_of_patients():
    def told(level):
        return wording.sentence("gan", "real", PRIMARY, replace(
            UNDECIDED, level=level, decision="worse"), alpha=0.05, margin=0.02, whom=FILES)

    assert told("B").startswith("With this generated set, for new images, not new patients "
                                "(level B), gan scores lower")
    assert told("C").startswith("As a method, for new images, not new patients, and new trainings "
                                "(level C), gan")
    assert wording.what_next("A", 1, None, {}, FILES).startswith(
        "level B, this generated set, for new images, not new patients, needs two")
