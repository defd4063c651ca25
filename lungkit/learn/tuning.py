"""The settings of one network's training, searched by Optuna inside a train split.

Tree-structured Parzen estimators (Bergstra et al. 2011; Akiba et al. 2019, arXiv:1907.10902). The
first trial is of the defaults. A trial is trained on every fold, the same ones as all others, and
is worth the mean of its scores; it is given up where the mean so far is below the median of what
the others had by then (Golovin et al. 2017), the defaults never.

Optuna's journal says which trial is tried with which settings, and is written under a lock of ours,
one process at a time; what a trial's folds scored is in the search's records. A trial whose process
was killed is one that nobody holds the lock of: it is gone on with, by whoever comes first. What a
trial draws depends on the search's seed, its number and the fold, never on who trains it.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from lungkit.learn.folds import mean_of
from lungkit.learn.search_records import TRAININGS, Records, wait
from lungkit.learn.settings import SETTINGS
from lungkit.run import seeds
from lungkit.run.faults import BadOptions, check_stop
from lungkit.run.files import sha256
from lungkit.run.output import release, try_lock
from lungkit.run.progress import say

JOURNAL = "trials.log"
AT_RANDOM = 10     # trials before the estimator is asked; Optuna's own default
GIVE_UP_AFTER = 5  # other trials that must have come as far; Optuna's default of its median pruner
POLL_SEC = 0.02
COMPLETE, GIVEN_UP, DIVERGED, RUNNING = "complete", "given up", "diverged", "running"


def space(names: Sequence[str], defaults: dict) -> dict:
    """Optuna's distributions of settings by name; one of a set holds the default, too."""
    from optuna import distributions

    found = {}
    for name in names:
        setting = SETTINGS[name]
        if setting.kind is float:
            low, high = setting.searched
            found[name] = distributions.FloatDistribution(
                min(low, defaults[name]), max(high, defaults[name]), log=setting.log)
        else:
            values = dict.fromkeys([*setting.searched, defaults[name]])
            found[name] = distributions.CategoricalDistribution(list(values))
    return found


def is_behind(scores: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
    """Whether a trial is to be given up: the mean of its folds is below the others' median.

    others: the scores by fold of the other trials; of those that have come as far the same folds
    count. Never after the first fold alone, nor beside fewer than GIVE_UP_AFTER.
    """
    done = len(scores)
    as_far = [mean_of(each[:done]) for each in others if len(each) >= done]
    return done > 1 and len(as_far) >= GIVE_UP_AFTER and mean_of(scores) < median(as_far)


def training(number: int, fold: int) -> str:
    """The name of a trial's training on a fold."""
    return f"trial{number:04d}-fold{fold + 1}"


@dataclass(frozen=True)
class Trial:
    """A trial of the journal: its number, settings by name and state; scores of its folds."""

    number: int
    settings: dict
    state: str
    scores: list[float]


class Journal:
    """The journal of a search, and whose turn it is. Every call reads it anew.

    searched: names of settings; defaults: their values in the first trial, at least.
    """

    def __init__(self, records: Records, searched: Sequence[str], defaults: dict, *, metric: str,
                 folds: int, seed: int) -> None:
        self.records, self.metric, self.folds, self.seed = records, metric, folds, seed
        self.defaults = {name: defaults[name] for name in searched}
        self.path = records.directory / JOURNAL
        self.name = "search-" + sha256(json.dumps(records.identity, sort_keys=True).encode())[:16]

    @contextlib.contextmanager
    def opened(self) -> Iterator:
        """Optuna's study, which no other process reads or writes meanwhile.

        Raises BadOptions where the journal is another search's.
        """
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        while (held := try_lock(self.path)) is None:  # another has it for as long as it takes to
            check_stop()                              # read and to write a line
            time.sleep(POLL_SEC)
        try:
            cut_torn_line(self.path)
            storage = JournalStorage(JournalFileBackend(str(self.path), lock_obj=_Held()))
            there = [study.study_name for study in storage.get_all_studies()]
            if there and there != [self.name]:
                raise BadOptions(f"{self.path} is the journal of another search ({there[0]}, not "
                                 f"{self.name}): move it away, or choose another --output")
            yield optuna.load_study(storage=storage, study_name=self.name) if there else \
                optuna.create_study(storage=storage, study_name=self.name, direction="maximize")
        finally:
            release(held, self.path)

    def scores(self, number: int) -> list[float]:
        """Those of a trial's folds, in order, up to the first that is not done or diverged."""
        found: list[float] = []
        for fold in range(self.folds):
            record = self.records.get(training(number, fold))
            if record is None or "scores" not in record:
                break
            found.append(record["scores"][self.metric])
        return found

    def trials(self) -> list[Trial]:
        """Those that were begun with all their settings, by number."""
        states = {"COMPLETE": COMPLETE, "PRUNED": GIVEN_UP, "FAIL": DIVERGED}
        with self.opened() as study:
            told = [(each.number, each.params, states.get(each.state.name, RUNNING))
                    for each in study.get_trials(deepcopy=False) if self._is_whole(each)]
        return [Trial(*each, self.scores(each[0])) for each in told]

    def _is_whole(self, trial) -> bool:
        return set(trial.params) == set(self.defaults)

    # ------------------------------------------------------------------ whose turn it is

    def _lock_path(self, number: int) -> Path:
        return self.records.directory / TRAININGS / f"trial{number:04d}"

    def take(self, num_trials: int) -> tuple[int, dict, object] | None:
        """A trial that nobody works on: number, settings, its lock; None where there is none.

        One that a killed process left is taken first, then a new one is drawn, up to num_trials.
        """
        with self.opened() as study:
            trials = study.get_trials(deepcopy=False)
            for each in trials:
                if each.state.name == "RUNNING":
                    held = try_lock(self._lock_path(each.number))
                    if held and self._is_whole(each):
                        return each.number, each.params, held
                    if held:  # killed while its settings were drawn: it was never a trial
                        study.tell(each.number, state=_state(DIVERGED))
                        release(held, self._lock_path(each.number))
            if sum(map(self._is_whole, trials)) >= num_trials:
                return None
            number, settings = self._draw(study, trials)
            return number, settings, try_lock(self._lock_path(number))

    def _draw(self, study, trials: list) -> tuple[int, dict]:
        from optuna.samplers import TPESampler

        if not any(map(self._is_whole, trials)) and all(
                each.state.name != "WAITING" for each in trials):
            study.enqueue_trial(self.defaults)
        number = sum(each.state.name != "WAITING" for each in trials)
        study.sampler = TPESampler(n_startup_trials=AT_RANDOM,
                                   seed=seeds.weights_seed("search", self.seed, number))
        drawn = study.ask(space(list(self.defaults), self.defaults))
        return drawn.number, drawn.params

    def tell(self, number: int, state: str, value: float | None = None) -> None:
        with self.opened() as study:
            study.tell(number, value, state=_state(state))

    # ------------------------------------------------------------------ one trial, and all

    def work(self, number: int, settings: dict, train: Callable[[str, int, dict], dict]) -> None:
        """Train a trial's folds that are not done, and tell what came of it.

        train: of the training's name, the fold and the settings, to a record with "scores", or
        without where the loss was not finite.
        """
        for fold in range(self.folds):
            check_stop()
            name = training(number, fold)
            # shared: where locks are files, a dead process's of this may outlive that of the trial
            done = self.records.share([name], lambda name, fold=fold: train(name, fold, settings))
            if "scores" not in done[name]:
                say(f"trial {number} diverged on fold {fold + 1}")
                return self.tell(number, DIVERGED)
            others = [self.scores(each) for each in range(self._last()) if each != number]
            scores = self.scores(number)[:fold + 1]  # as if no later one was there after a kill
            if settings != self.defaults and fold + 1 < self.folds and is_behind(scores, others):
                say(f"trial {number} given up after fold {fold + 1}: {self.metric} "
                    f"{mean_of(scores):.3f} so far")
                return self.tell(number, GIVEN_UP)
        self.tell(number, COMPLETE, mean_of(scores))
        say(f"trial {number}: {self.metric} {mean_of(scores):.3f}")
        return None

    def _last(self) -> int:
        numbers = [int(path.name.partition("-")[0].removeprefix("trial")) for path in
                   self.records.directory.glob(f"{TRAININGS}/trial*-fold1.json")]
        return max(numbers, default=-1) + 1

    def run(self, num_trials: int, train: Callable[[str, int, dict], dict]) -> list[Trial]:
        """Work until so many trials are done, by this process and others; all of them."""
        told = None
        while True:
            check_stop()
            if taken := self.take(num_trials):
                number, settings, held = taken
                try:
                    self.work(number, settings, train)
                finally:
                    release(held, self._lock_path(number))
                continue
            trials = self.trials()
            running = [each.number for each in trials if each.state == RUNNING]
            if not running:
                return trials
            told = wait(map(self._lock_path, running), told)


class _Held:
    """The lock that Optuna asks for: ours is held around every call."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _state(state: str):
    from optuna.trial import TrialState

    return {COMPLETE: TrialState.COMPLETE, GIVEN_UP: TrialState.PRUNED,
            DIVERGED: TrialState.FAIL}[state]


def cut_torn_line(path: Path) -> None:
    """Cut what a power cut or a full disk left of the last line, on which Optuna would stop."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        whole = file.read().rpartition(b"\n")
    if whole[2]:
        os.truncate(path, len(whole[0]) + len(whole[1]))
