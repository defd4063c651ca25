"""The search over settings: whose turn a trial is, when it is given up, what a kill leaves."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal

import pytest

from lungkit.learn import tuning
from lungkit.learn.search_records import Records
from lungkit.run.faults import BadOptions
from lungkit.run.output import release, try_lock

DEFAULTS = {"learning_rate": 2e-3, "batch_size": 32}


def journal(root, *, folds=2, seed=0, **identity) -> tuning.Journal:
    records = Records(root / "search", {"seed": seed, **identity})
    records.begin()
    return tuning.Journal(records, list(DEFAULTS), DEFAULTS, metric="accuracy", folds=folds,
                          seed=seed)


def score(name, fold, settings):
    """Best at a rate of 1e-3; of fold 2 a little better."""
    import math
    return {"scores": {"accuracy": 1 - abs(math.log10(settings["learning_rate"]) + 3) / 10
                       + fold / 100}}


def test_the_first_trial_is_of_the_defaults_and_a_trial_is_worth_the_mean_of_its_folds(tmp_path):
    trials = journal(tmp_path).run(4, score)
    assert [each.number for each in trials] == [0, 1, 2, 3]
    assert trials[0].settings == DEFAULTS
    for each in trials:
        assert each.state == tuning.COMPLETE
        assert each.scores == [score("", fold, each.settings)["scores"]["accuracy"]
                               for fold in (0, 1)]
    assert len({each.settings["learning_rate"] for each in trials}) == 4


def test_a_search_goes_on_to_more_trials_and_draws_as_if_it_had_never_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "AT_RANDOM", 2)  # then the estimator is asked
    whole = journal(tmp_path / "whole").run(5, score)
    parts = journal(tmp_path / "parts").run(3, score)
    seen = []
    parts = journal(tmp_path / "parts").run(
        5, lambda name, *more: seen.append(name) or score(name, *more))
    assert [each.settings for each in parts] == [each.settings for each in whole]
    assert len(seen) == 2 * 2
    other = journal(tmp_path / "other", seed=1).run(2, score)
    assert other[1].settings != whole[1].settings


def test_nine_trials_are_drawn_at_random_and_those_after_by_what_was_found(tmp_path):
    def worse(*given):
        return {"scores": {"accuracy": 1 - score(*given)["scores"]["accuracy"]}}

    one, other = ([each.settings for each in journal(tmp_path / name, folds=1).run(12, train)]
                  for name, train in (("one", score), ("other", worse)))
    assert one[:10] == other[:10] and one[10:] != other[10:]


def killed(root):
    """A process that is killed in its second trial's second fold."""
    def train(name, fold, settings):
        if name == "trial0001-fold2":
            os.kill(os.getpid(), signal.SIGKILL)
        return score(name, fold, settings)

    journal(root).run(3, train)


def test_a_killed_process_trial_is_gone_on_with_and_blocks_nobody(tmp_path):
    child = multiprocessing.get_context("fork").Process(target=killed, args=(tmp_path,))
    child.start()
    child.join()
    left = journal(tmp_path).trials()
    assert [each.state for each in left] == [tuning.COMPLETE, tuning.RUNNING]
    seen = []
    trials = journal(tmp_path).run(3, lambda name, *more: seen.append(name) or score(name, *more))
    assert seen == ["trial0001-fold2", "trial0002-fold1", "trial0002-fold2"]
    assert trials[1].settings == left[1].settings
    assert [each.state for each in trials] == [tuning.COMPLETE] * 3


def some(root, both_at_it):
    def train(name, *more):
        if not met:
            met.append(both_at_it.wait(60))  # each has a trial of its own before either goes on
        with open(root / "trained", "a") as file:
            file.write(f"{os.getpid()} {name}\n")
        return score(name, *more)

    met = []
    journal(root).run(5, train)


def test_two_processes_share_the_trials_and_train_none_twice(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    children = [context.Process(target=some, args=(tmp_path, barrier)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    trials = journal(tmp_path).trials()
    assert [(each.number, each.state) for each in trials] == [
        (number, tuning.COMPLETE) for number in range(5)]
    trained = [line.split() for line in (tmp_path / "trained").open()]
    assert len({name for _, name in trained}) == len(trained) == 10
    assert {int(pid) for pid, _ in trained} == {child.pid for child in children}


def test_a_trial_that_another_process_holds_is_not_taken(tmp_path):
    first = journal(tmp_path)
    number, _, held = first.take(2)
    other, _, also_held = journal(tmp_path).take(2)
    assert (number, other) == (0, 1) and journal(tmp_path).take(2) is None
    release(held, first._lock_path(0))
    release(also_held, first._lock_path(1))
    assert journal(tmp_path).take(2)[0] == 0


def test_a_trial_that_diverged_was_looked_at_and_is_no_fault(tmp_path):
    trials = journal(tmp_path).run(3, lambda name, fold, settings: (
        {} if name.startswith("trial0001") else score(name, fold, settings)))
    assert [each.state for each in trials] == [tuning.COMPLETE, tuning.DIVERGED, tuning.COMPLETE]
    assert trials[1].scores == []


@pytest.mark.parametrize(("scores", "others", "behind"), [
    ([0.4, 0.4], [[0.5, 0.5, 0.9]] * 5, True),
    ([0.5, 0.5], [[0.5, 0.5, 0.9]] * 5, False),          # not below the median
    ([0.4, 0.4], [[0.3, 0.3, 0.9]] * 5, False),          # the others' third fold does not count
    ([0.4], [[0.5, 0.5]] * 5, False),                    # one fold tells too little
    ([0.4, 0.4], [[0.5, 0.5]] * 4 + [[0.9]], False),     # only four have come as far
    ([0.4, 0.4], [[0.5, 0.5]] * 3 + [[0.1, 0.1]] * 2, True),
])
def test_a_trial_is_given_up_below_the_median_of_what_others_had_by_then(scores, others, behind):
    assert tuning.is_behind(scores, others) is behind


def test_the_defaults_are_never_given_up(tmp_path):
    def train(name, fold, settings):  # the defaults are worst, and trained last
        return {"scores": {"accuracy": 0.1 if settings == DEFAULTS else 0.5 + fold / 10}}

    first = journal(tmp_path, folds=3)
    number, settings, held = first.take(7)
    later = journal(tmp_path, folds=3)
    for _ in range(6):
        each, drawn, lock = later.take(7)
        later.work(each, drawn, train)
        release(lock, later._lock_path(each))
    first.work(number, settings, train)
    release(held, first._lock_path(number))
    assert first.trials()[0].state == tuning.COMPLETE and len(first.trials()[0].scores) == 3


def test_a_worse_trial_is_given_up_and_the_rest_of_its_folds_not_trained(tmp_path):
    def train(name, fold, settings):
        return {"scores": {"accuracy": 0.1 if name.startswith("trial0006") else 0.5}}

    trials = journal(tmp_path, folds=4).run(7, train)
    assert trials[6].state == tuning.GIVEN_UP and len(trials[6].scores) == 2
    assert {each.state for each in trials[:6]} == {tuning.COMPLETE}


def test_a_kill_before_a_trial_is_told_gives_no_other_end(tmp_path, monkeypatch):
    """Its last fold, which no trial is given up after, must not count for the folds before it."""
    def train(name, fold, settings):
        return {"scores": {"accuracy": 0.1 if name == "trial0006-fold3" else 0.5}}

    def killed(*_):
        raise KeyboardInterrupt

    one = journal(tmp_path, folds=3)
    one.run(6, train)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(one, "tell", killed)
        one.run(7, train)
    assert len(one.scores(6)) == 3
    last = journal(tmp_path, folds=3).run(7, None)[-1]
    assert (last.number, last.state) == (6, tuning.COMPLETE)


def test_a_dead_process_s_lock_of_a_fold_that_outlives_that_of_its_trial_is_waited_for(
        tmp_path, monkeypatch):
    one = journal(tmp_path)
    path = one.records.path("trial0000-fold1")
    held = try_lock(path)
    monkeypatch.setattr("lungkit.learn.search_records.time.sleep", lambda _: release(held, path))
    assert [each.state for each in one.run(1, score)] == [tuning.COMPLETE]


def test_the_journal_of_another_search_is_refused(tmp_path):
    one = journal(tmp_path / "one", data="a")
    one.run(1, score)
    other = journal(tmp_path / "other", data="b")
    other.path.write_bytes(one.path.read_bytes())
    with pytest.raises(BadOptions, match="journal of another search"):
        other.run(1, score)


def test_a_line_that_a_power_cut_tore_is_cut(tmp_path):
    journal(tmp_path).run(2, score)
    path = tmp_path / "search" / tuning.JOURNAL
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code":4,"wor')
    assert len(journal(tmp_path).trials()) == 2 and path.read_bytes() == whole


def test_settings_that_a_kill_left_half_drawn_were_never_a_trial(tmp_path):
    journal(tmp_path).run(1, score)
    path = tmp_path / "search" / tuning.JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    journal(tmp_path).run(2, score)
    drawn = path.read_bytes().splitlines(keepends=True)[len(lines):]
    kept = [line for line in drawn if json.loads(line)["op_code"] in (4, 5)][:2]
    path.write_bytes(b"".join([*lines, *kept]))  # created, one setting of two
    trials = journal(tmp_path).run(2, score)
    assert [each.number for each in trials] == [0, 2]


def test_a_default_outside_what_is_searched_is_in_the_space():
    found = tuning.space(["batch_size", "learning_rate"], {"batch_size": 48, "learning_rate": 0.5})
    assert 48 in found["batch_size"].choices and found["learning_rate"].high == 0.5


def test_rates_are_drawn_by_their_logarithm_and_shares_are_not():
    found = tuning.space(["learning_rate", "dropout"], {"learning_rate": 2e-3, "dropout": 0.0})
    assert found["learning_rate"].log and not found["dropout"].log


def test_the_lock_of_a_trial_is_free_after_it(tmp_path):
    one = journal(tmp_path)
    one.run(1, score)
    held = try_lock(one._lock_path(0))
    assert held
    release(held, one._lock_path(0))
