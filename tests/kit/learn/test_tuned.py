"""What a search over settings is said to have found: the best, its luck, and the defaults."""

from __future__ import annotations

import pytest

from lungkit.learn import tuned
from lungkit.learn.search_records import Records
from lungkit.learn.tuning import COMPLETE, DIVERGED, GIVEN_UP, Trial
from lungkit.run.faults import Fault


def trial(number, scores, state=COMPLETE):
    return Trial(number, {"dropout": number / 10}, state, scores)


DEFAULTS, BEST = trial(0, [0.7, 0.8]), trial(2, [0.9, 0.9])
TRIALS = [DEFAULTS, trial(1, [0.95], GIVEN_UP), BEST, trial(3, [], DIVERGED)]


@pytest.mark.parametrize(("best", "defaults", "noise", "words"), [
    ([0.8, 0.9], [0.8, 0.81], True, "within noise of the defaults"),      # error 0.05
    ([0.8, 0.9], [0.79, 0.79], False, "better than the defaults by more"),
    ([0.8, 0.9], [0.9, 0.95], True, "within noise of the defaults"),      # they are even better
    ([0.8], [0.8, 0.9], True, "the best diverged: within noise of the defaults until"),
    ([0.8, 0.9], [], False, "the defaults diverged"),
])
def test_the_best_is_trained_again_beside_the_defaults(best, defaults, noise, words):
    found = tuned.conclude(TRIALS, DEFAULTS, {2: best, 0: defaults}, "auroc")
    assert found["within_noise"] is noise and words in found["reason"]
    assert "the best of 4 looked at" in found["reason"] and "optimistic" in found["reason"]
    assert (found["trial"], found["score"], found["looked_at"]) == (2, pytest.approx(0.9), 4)
    assert (found["given_up"], found["diverged"]) == (1, 1)


def test_defaults_that_are_the_best_are_told():
    found = tuned.conclude([BEST, trial(3, [0.5, 0.5])], BEST, {2: [0.9, 0.9]}, "auroc")
    assert found["within_noise"] and "none of 2 looked at was better" in found["reason"]


def test_another_trial_of_the_settings_of_the_defaults_is_no_better_than_they():
    twin = Trial(1, DEFAULTS.settings, COMPLETE, [0.9, 0.9])
    found = tuned.conclude([DEFAULTS, twin], DEFAULTS, {1: [0.9, 0.9], 0: [0.5, 0.5]}, "auroc")
    assert found["within_noise"] and "none of 2 looked at was better" in found["reason"]


def test_each_is_trained_again_with_its_own_settings(tmp_path):
    seen = []

    def train(name, fold, settings):
        seen.append((name, fold, settings))
        return {} if fold else {"scores": {"auroc": settings["dropout"]}}  # diverges on fold 2

    found = tuned.rescore([BEST, DEFAULTS], Records(tmp_path / "s", {}), 2, "auroc", train)
    assert seen == [(f"again{each.number:04d}-fold{fold + 1}", fold, each.settings)
                    for each in (BEST, DEFAULTS) for fold in (0, 1)]
    assert found == {2: [0.2], 0: [0.0]}


def test_trials_that_were_given_up_are_never_the_best_and_equals_are_the_first():
    assert tuned.best_of([*TRIALS, trial(5, [0.9, 0.9])]) is BEST
    with pytest.raises(Fault, match="none of 1 trials has a score"):
        tuned.best_of([trial(3, [], DIVERGED)])


def test_the_table_shows_the_best_first_and_always_the_defaults():
    many = [DEFAULTS, *(trial(k, [0.8 + k / 100] * 2) for k in range(1, 9))]
    lines = tuned.table(many, DEFAULTS, most=3)
    assert [line.split()[0] for line in lines[1:]] == ["8", "7", "6", "0"]
    assert "the defaults: " in lines[-1]


def test_every_trial_has_its_row():
    rows = tuned.rows(TRIALS)
    assert [(row["trial"], row["state"], row["folds"]) for row in rows] == [
        (0, "complete", 2), (1, "given up", 1), (2, "complete", 2), (3, "diverged", 0)]
    assert rows[1]["standard_error"] == "" and rows[3]["mean"] == ""
