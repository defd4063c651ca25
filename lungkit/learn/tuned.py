"""What came of a search over settings: best.json, the table of the trials, and what they are worth.

The best of many trials was partly lucky on its folds. So it is trained again, and the defaults
beside it, on folds drawn by another seed with weights of their own; by the rule of one standard
error (lungkit.learn.folds) these say whether the search found more than noise. The images are the
same ones: only a test on images that no trial saw says what a setting is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lungkit.learn.folds import choose, mean_of, shown, standard_error
from lungkit.learn.search_records import Records
from lungkit.learn.settings import SCHEMA
from lungkit.learn.tuning import COMPLETE, DIVERGED, GIVEN_UP, Trial
from lungkit.run.faults import Fault

BEST, DEFAULTS = "best", "defaults"


def best_of(trials: Sequence[Trial]) -> Trial:
    """The complete trial of the best mean, of equals the first. Raises Fault where all diverged."""
    complete = [each for each in trials if each.state == COMPLETE]
    if not complete:
        raise Fault(f"none of {len(trials)} trials has a score: every training diverged; look at "
                    "the images, or search a lower learning_rate")
    return max(complete, key=lambda each: mean_of(each.scores))


def rescore(trials: Sequence[Trial], records: Records, folds: int, metric: str,
            train: Callable[[str, int, dict], dict]) -> dict[int, list[float]]:
    """The scores by number of some trials, trained again; shared with other processes.

    train: as `Journal.run` takes it, on the folds of the second division.
    """
    trainings = {f"again{each.number:04d}-fold{fold + 1}": (each, fold)
                 for each in trials for fold in range(folds)}
    done = records.share(list(trainings), lambda name: train(
        name, trainings[name][1], trainings[name][0].settings))
    scores: dict[int, list[float]] = {each.number: [] for each in trials}
    for name, record in done.items():
        if "scores" in record:
            scores[trainings[name][0].number].append(record["scores"][metric])
    return scores


def conclude(trials: Sequence[Trial], defaults: Trial, rescored: dict[int, list[float]],
             metric: str) -> dict:
    """What best.json says of the search, beside the settings.

    defaults: the trial of the defaults. rescored: by a trial's number its scores on the second
    folds, fewer than folds where it diverged there.
    """
    best = best_of(trials)
    states = [each.state for each in trials]
    found = {"schema": SCHEMA, "metric": metric, "trial": best.number,
             "score": mean_of(best.scores), "standard_error": standard_error(best.scores),
             "looked_at": len(trials), "given_up": states.count(GIVEN_UP),
             "diverged": states.count(DIVERGED), "folds_scores": best.scores,
             "again": {name: rescored[each.number] for name, each in
                       ((BEST, best), (DEFAULTS, defaults))}}
    return {**found, **verdict(found, best.settings == defaults.settings, len(best.scores))}


def verdict(found: dict, best_is_defaults: bool, folds: int) -> dict:
    """{within_noise, reason}: whether the defaults are within one standard error, in words."""
    again, number = found["again"], found["looked_at"]
    lead = (f"trial {found['trial']} is the best of {number} looked at ({found['metric']} "
            f"{shown(found['folds_scores'])}), which is optimistic")
    if best_is_defaults:
        return {"within_noise": True, "reason": (
            f"none of {number} looked at was better than the defaults: within noise of the "
            "defaults, for they are the best")}
    lost = [name for name in (BEST, DEFAULTS) if len(again[name]) < folds]
    if lost:
        return {"within_noise": BEST in lost, "reason": (
            f"{lead}: trained again on other folds, the {' and the '.join(lost)} diverged"
            + (": within noise of the defaults until that is mended" if BEST in lost else ""))}
    choice = choose({BEST: again[BEST], DEFAULTS: again[DEFAULTS]}, {BEST: (1,), DEFAULTS: (0,)})
    noise = choice.chosen == DEFAULTS
    words = ("within noise of the defaults" if noise else
             "better than the defaults by more than its standard error")
    return {"within_noise": noise, "reason": (
        f"{lead}: trained again on other folds {shown(again[BEST])}, the defaults "
        f"{shown(again[DEFAULTS])}: {words}")}


def rows(trials: Sequence[Trial]) -> list[dict]:
    """One of trials.csv for each trial."""
    return [{"trial": each.number, "state": each.state, "folds": len(each.scores),
             "mean": mean_of(each.scores) if each.scores else "",
             "standard_error": standard_error(each.scores) if len(each.scores) > 1 else "",
             **each.settings} for each in trials]


def table(trials: Sequence[Trial], defaults: Trial, most: int = 5) -> list[str]:
    """The best trials in lines, best first, and the defaults."""
    complete = sorted((each for each in trials if each.state == COMPLETE),
                      key=lambda each: -mean_of(each.scores))
    shown_ones = complete[:most] + [defaults] * (defaults in complete[most:])
    lines = [f"{'trial':>5}  {'score':<15}  settings"]
    for each in shown_ones:
        settings = "  ".join(f"{name} {value:.3g}" if isinstance(value, float) else
                             f"{name} {value}" for name, value in each.settings.items())
        lines.append(f"{each.number:>5}  {shown(each.scores):<15}  "
                     + ("the defaults: " if each is defaults else "") + settings)
    return lines
