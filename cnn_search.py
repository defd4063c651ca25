#!/usr/bin/env python
"""Choose a network, then its training's settings, inside the train split of a dataset.

  cnn_search.py screen    which network, and frozen, fine-tuned or from scratch
  cnn_search.py tune      which settings of one network's training

Reads   DATA, a dataset: of its train split the images, of the others nothing
Writes  OUTPUT/screen.csv    screen: a row for each network, mode and fold
        OUTPUT/screen.json   the choice, why, and how many were looked at
        OUTPUT/trials.csv    tune: a row for each trial; trials.log is Optuna's journal
        OUTPUT/best.json     the best settings, what they scored, and whether the defaults are as
                             good; cnn_classify.py --settings takes it
        OUTPUT/trainings/    both: a record of each training
Prints  the choice and what it was chosen among.

Everything is scored on folds of train that keep a group on one side; val and test are never opened.
The choice is the cheapest within one standard error of the best: "within noise" is said where more
than one are. The best of many trials is optimistic: it is trained again, beside the defaults, on
other folds. What a training draws depends on the seed, its own name and the fold alone.

Running the same command again resumes: trainings that are done are kept. Any number of processes,
and array tasks of a cluster, may run the same command on one OUTPUT at once. More --trials later
only add. A search of other data, folds or options is refused.

Optuna: Akiba et al. 2019 (arXiv:1907.10902); one standard error: Breiman et al. 1984. Networks:
ResNet: He et al. 2016 (arXiv:1512.03385); DenseNet: Huang et al. 2017 (arXiv:1608.06993);
EfficientNet: Tan and Le 2019 (arXiv:1905.11946); MobileNetV3: Howard et al. 2019
(arXiv:1905.02244); ConvNeXt: Liu et al. 2022 (arXiv:2201.03545).
Exit statuses: 0 complete, 1 bad data or failed run, 2 bad options, 75 stopped, run it again.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lungkit.data.dataset import Dataset, open_dataset
from lungkit.data.result import SCORES
from lungkit.learn import screening, training_options, tuned, tuning
from lungkit.learn.cnns import MODELS, resolve
from lungkit.learn.device import use_device
from lungkit.learn.fold_training import Bench
from lungkit.learn.folds import grouped_folds
from lungkit.learn.search_records import Records
from lungkit.learn.settings import SCHEMA, SETTINGS
from lungkit.run import cli
from lungkit.run.faults import BadOptions
from lungkit.run.files import sha256_file, write_json, write_text
from lungkit.run.output import check_apart
from lungkit.run.progress import say
from lungkit.run.provenance import provenance

RECIPE = 1  # raise it when a training draws or scores otherwise, as cnn_classify.RECIPE
# as cnn_classify.py's, whose training is searched
PRESETS = {"demo": {"model": "small", "steps": 200, "batch_size": 32},
           "full": {"model": "resnet18", "steps": 2000, "batch_size": 128}}
METRIC = "auprc_weighted"  # needs no threshold, and classes of unlike size do not hide in it
SEARCHABLE = ["batch_size", "learning_rate",
              *(name for name in training_options.NAMES if SETTINGS[name].searched)]


# ------------------------------------------------------------------ what both do

def open_train(data: Path, output: Path) -> Dataset:
    """The dataset with its train split alone. Raises Fault, BadOptions."""
    check_apart(data, output, option="--data")
    return open_dataset(data, ["train"])


def identity_of(bench: Bench, chosen: dict) -> dict:
    """What decides any training of a search."""
    if chosen["batch_size"] < 2:
        raise BadOptions("--batch-size 1: batch normalisation needs two images or more")
    return {"data": bench.data.fingerprint, "folds": len(bench.folds), "seed": bench.seed,
            "steps": chosen["steps"], "batch_size": chosen["batch_size"], "recipe": RECIPE}


def about(bench: Bench, records: Records) -> dict:
    """What a result says of where it comes from."""
    return {"data": bench.data.name, "fingerprint": bench.data.fingerprint,
            "folds": len(bench.folds), "num_images": len(bench.labels),
            "num_groups": len(set(bench.groups)), "seed": bench.seed,
            "search": records.identity, **provenance()}


def as_csv(rows: list[dict]) -> str:
    written = io.StringIO()
    writer = csv.DictWriter(written, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return written.getvalue()


def say_plan(bench: Bench, what: str, records: Records, names: list[str]) -> None:
    """names: of all trainings; of trials that are given up some are never made."""
    found = sum(records.path(name).exists() for name in names)
    say(f"{what}: {len(bench.labels)} training images of {len(set(bench.groups))} groups in "
        f"{len(bench.folds)} folds; found {found}, pending {len(names) - found} of {len(names)} "
        "trainings")


# ------------------------------------------------------------------ screen

def run_screen(*, data: Path, output: Path, backbones: list[str] | None, weights: str, mode: str,
               folds: int, metric: str, seed: int, device: str, overwrite: bool, dry_run: bool,
               **chosen: object) -> None:
    chosen = cli.fill_preset(chosen, PRESETS)
    candidates = screening.candidates(backbones, weights, mode)
    bench = Bench(open_train(data, output), folds, seed)
    records = Records(output, screening.identity(identity_of(bench, chosen), candidates),
                      overwrite=overwrite)
    records.check()
    names = [each.training(fold) for each in candidates for fold in range(folds)]
    say_plan(bench, f"screen: {', '.join(each.name for each in candidates)}", records, names)
    bench.device = use_device(device, needed=not dry_run)
    if dry_run:
        return
    records.begin()
    done = screening.screen(bench, candidates, records,
                            {name: chosen[name] for name in ("steps", "batch_size")})
    found = screening.conclude(candidates, done, len(bench.data.classes), metric=metric,
                               weights=weights)
    write_text(output / "screen.csv", as_csv(screening.rows(done)))
    write_json(output / "screen.json", {**found, **about(bench, records)})
    print("\n".join([*screening.table(found), found["reason"],
                     f"train it: cnn_classify.py {' '.join(found['chosen']['options'])}"]))


# ------------------------------------------------------------------ tune

def searched_names(search: list[str] | None, has_weights: bool) -> list[str]:
    """Which settings are searched. Raises BadOptions where one can make no difference."""
    allowed = [name for name in SEARCHABLE
               if has_weights or name not in training_options.OF_WEIGHTS]
    if senseless := set(search or ()) - set(allowed):
        raise BadOptions(f"--search {', '.join(sorted(senseless))}: needs --weights to begin from")
    return [name for name in allowed if search is None or name in search]


def run_tune(*, data: Path, output: Path, trials: int, model: str | None, weights: Path | None,
             search: list[str] | None, folds: int, metric: str, seed: int, device: str,
             overwrite: bool, dry_run: bool, **chosen: object) -> None:
    model, weights_path = resolve(model, weights, frozen=False)
    chosen = cli.fill_preset({**chosen, "model": model}, PRESETS)
    bench = Bench(open_train(data, output), folds, seed)
    other_folds = grouped_folds(bench.labels, bench.groups, bench.data.classes, folds, seed + 1)
    names = searched_names(search, weights_path is not None)
    defaults = {**{name: SETTINGS[name].default for name in names},
                "batch_size": chosen["batch_size"], "learning_rate": MODELS[chosen["model"]][1]}
    records = Records(output, {
        "schema": SCHEMA, **identity_of(bench, chosen), "metric": metric, "searched": names,
        "model": chosen["model"], "weights_sha256": weights_path and sha256_file(weights_path)},
        overwrite=overwrite)
    records.check()
    say_plan(bench, f"tune {chosen['model']}: {trials} trials of {', '.join(names)}", records,
             [tuning.training(number, fold) for number in range(trials) for fold in range(folds)])
    bench.device = use_device(device, needed=not dry_run)
    if dry_run:
        return
    records.begin()
    train = trainer(bench, records, {"steps": chosen["steps"], **defaults}, chosen["model"],
                    weights_path)
    journal = tuning.Journal(records, names, defaults, metric=metric, folds=folds, seed=seed)
    done = journal.run(trials, train)
    first = next(each for each in done if each.settings == journal.defaults)
    best = tuned.best_of(done)
    rescored = tuned.rescore([best, first][:1 + (best is not first)], records, folds, metric,
                             partial(train, folds=other_folds))
    found = tuned.conclude(done, first, rescored, metric)
    settings = {"model": chosen["model"], "weights": as_given(weights),
                **{name: defaults[name] for name in ("batch_size", "learning_rate")},
                **best.settings}
    write_text(output / "trials.csv", as_csv(tuned.rows(done)))
    write_json(output / "best.json", {**found, "settings": settings, "defaults": defaults,
                                      "steps": chosen["steps"], **about(bench, records)})
    print("\n".join([*tuned.table(done, first), found["reason"],
                     f"train it: cnn_classify.py --settings {output / 'best.json'}"]))


def as_given(weights: Path | None) -> str | None:
    """`--weights` as it is found from anywhere: a file's whole path, or the name of a set."""
    return weights and str(weights.resolve() if weights.is_file() else weights)


def trainer(bench: Bench, records: Records, usual: dict, model: str,
            weights_path: Path | None) -> Callable:
    """What trains a trial on a fold: of a name, the fold and the settings, to its record.

    usual: the settings that are not searched. One that diverged has no scores.
    """
    def train(name: str, fold: int, settings: dict, folds=None) -> dict:
        from lungkit.learn.loop import Diverged

        try:
            return bench.train_fold(name.partition("-")[0], fold, {**usual, **settings},
                                    model=model, weights_path=weights_path, folds=folds,
                                    checkpoint_path=records.checkpoint_path(name))
        except Diverged as fault:
            return {"diverged": str(fault)}

    return train


# ------------------------------------------------------------------ the stage

def add_options(parser) -> None:
    """Those that both commands have."""
    parser.add_argument("--data", type=cli.directory, required=True, metavar="DIR",
                        help="the dataset whose train split is searched in")
    parser.add_argument("--output", type=cli.directory, required=True, metavar="DIR",
                        help="where the search is kept, outside the dataset")
    parser.add_argument("--folds", type=number_of_folds, default=5, metavar="K",
                        help="folds of train, by group")
    parser.add_argument("--metric", choices=SCORES["classify"], default=METRIC,
                        help="the score that decides")
    group = parser.add_argument_group("Training (no default shown: the preset decides)")
    group.add_argument("--steps", type=cli.positive_int, metavar="INT", help="optimiser steps")
    group.add_argument("--batch-size", type=cli.positive_int, metavar="IMAGES",
                       help="images a step; of tune, that of the defaults")
    cli.add_common(parser, presets=PRESETS)


def number_of_folds(text: str) -> int:
    value = cli.positive_int(text)
    if value < 2:
        raise argparse.ArgumentTypeError("at least 2 folds are needed for a standard error")
    return value


def build_parser():
    parser = cli.stage_parser("cnn_search.py", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="screen|tune",
                                     help="what is chosen; each has a --help of its own")
    screen, tune = (commands.add_parser(
        name, help=what, description=what, allow_abbrev=False,
        formatter_class=parser.formatter_class) for name, what in (
            ("screen", "which network, and frozen, fine-tuned or from scratch"),
            ("tune", "which settings of one network's training")))
    add_options(screen)
    screen.add_argument("--backbones", nargs="+", choices=screening.NETWORKS, metavar="NAME",
                        help=f"of {', '.join(screening.NETWORKS)} (all that --weights has, and "
                             "small, which is trained from scratch)")
    screen.add_argument("--weights", choices=screening.WEIGHTS, default="imagenet-lite0",
                        help="to begin from: none; imagenet, torchvision's, from torch's cache or "
                             "fetched into it; imagenet-lite0, which come as a package")
    screen.add_argument("--mode", choices=(screening.FEATURES, screening.FINETUNE, screening.BOTH),
                        default=screening.BOTH,
                        help="of networks with weights: a linear head on frozen features, all of "
                             "the network, or both")
    add_options(tune)
    tune.add_argument("--trials", type=cli.positive_int, required=True, metavar="N",
                      help="how many settings are looked at, the defaults among them")
    tune.add_argument("--model", choices=list(MODELS), help="the network (default: the preset's)")
    tune.add_argument("--weights", type=Path, metavar="FILE",
                      help="weights to begin from, as cnn_classify.py takes them")
    tune.add_argument("--search", nargs="+", choices=SEARCHABLE, metavar="NAME",
                      help=f"which settings, of {', '.join(SEARCHABLE)} (all that apply)")
    return parser


def run(*, command: str, **options: object) -> None:
    {"screen": run_screen, "tune": run_tune}[command](**options)


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
