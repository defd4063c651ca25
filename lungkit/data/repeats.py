"""Many processes, one directory: each takes the repeats that no other has done or holds."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lungkit.data.dataset import Dataset, check_same_task, open_dataset
from lungkit.data.draws import num_draws
from lungkit.data.result import (
    CNN,
    differences,
    masks_dir,
    read_records,
    repeat_path,
    replicate_dir,
)
from lungkit.run import cli
from lungkit.run.faults import BadOptions, check_stop, several
from lungkit.run.output import holder, release, try_lock
from lungkit.run.progress import say

POLL_INTERVAL_SEC = 0.5


# ------------------------------------------------------------------ what a stage asks for

def add_options(group) -> None:
    """Add to an argparse group what every stage that makes repeats is asked for."""
    group.add_argument("--real", type=cli.directory, required=True, metavar="DIR",
                       help="the real dataset, whose test split is the common yardstick")
    group.add_argument("--results", type=cli.directory, required=True, metavar="DIR",
                       help="the root of all results, outside the datasets")
    group.add_argument("--repeats", type=cli.repeat_range, default="10", metavar="N|A-B",
                       help="repeats 0..N-1, or A..B")
    group.add_argument("--replicate", type=cli.non_negative_int, default=0, metavar="K",
                       help="number of the whole-pipeline replicate the datasets belong to")


def identities(data: dict, real: dict, repeats: range, *, replicate: int, seed: int, model: str,
               settings: dict) -> list[dict]:
    """What decides each repeat asked for; data and real are manifests.

    settings: what else decides the training. A pool larger than real's train split says how many
    draws it holds.
    """
    have, wanted = ([manifest["counts"]["train"].get(label, 0) for label in real["classes"]]
                    for manifest in (data, real))
    larger = "mix" not in data and any(pool > draw for pool, draw in zip(have, wanted))
    draws = {"draws": num_draws(have, wanted)} if larger else {}
    return [{"dataset": data["name"], "dataset_fingerprint": data["fingerprint"],
             "real_fingerprint": real["fingerprint"], "replicate": replicate, "repeat": repeat,
             "seed": seed + repeat, "model": model, **draws, "settings": settings}
            for repeat in repeats]


@dataclass(frozen=True)
class Repeats:
    """The repeats asked for of one dataset and replicate. Get one from `open_repeats`."""

    directory: Path
    identities: list[dict]  # of all that are asked for
    pending: list[dict]     # of those that are not there, or were made otherwise
    stale: dict             # {repeat: how it was made otherwise}, to be discarded

    @property
    def are_complete(self) -> bool:
        return not self.pending and not self.stale

    def records(self) -> list[dict]:
        """The records of all, once all are complete."""
        there = read_records(self.directory)
        return [there[each["repeat"]] for each in self.identities]

    def say_plan(self) -> None:
        found = len(self.identities) - len(self.pending)
        say(f"found {found}, pending {len(self.pending)} of {len(self.identities)} repeats in "
            f"{self.directory}"
            + (f", discarding {len(self.stale)} of other options" if self.stale else ""))

    def make(self, work: Callable, *, waits: bool = True) -> None:
        """Discard what is stale, then call work(identity) for all that is missing, once each.

        waits: for what other processes do as well; without, return once they hold all the rest.
        """
        if self.stale:
            discard(self.directory, self.identities)
        share(self.directory, self.identities, work, waits=waits)


def open_repeats(results: Path, identities: list[dict], *, kind: str = CNN,
                 overwrite: bool) -> Repeats:
    """Find what is there of the repeats that `identities` describe.

    Raises BadOptions where another kind of classifier keeps its results, and, unless `overwrite`,
    where results of other options or datasets lie.
    """
    name = identities[0]["dataset"]
    directory = replicate_dir(results, name, identities[0]["replicate"])
    others = {record.get("kind", CNN) for record in read_records(directory).values()} - {kind}
    if others:
        raise BadOptions(f"{directory} holds the results of another kind ({min(others)}, not "
                         f"{kind}) under the name {name}: use another --results, or make the "
                         "dataset under another name")
    stale, pending = survey(directory, identities)
    if stale and not overwrite:
        raise BadOptions(f"{directory} holds results of other options or datasets "
                         f"({stale[min(stale)]}): use the same options, another --results or "
                         "--replicate, or --overwrite")
    return Repeats(directory, identities, pending, stale)


def open_both(data: Path, real: Path, results: Path) -> tuple[Dataset, Dataset]:
    """Open and check both datasets and where the results go. Raises Fault, BadOptions."""
    for path in (data, real):
        if path.resolve() in (results.resolve(), *results.resolve().parents):
            raise BadOptions(f"--results {results} lies in the dataset {path}: choose another")
    if results.exists() and not results.is_dir():
        raise BadOptions(f"--results {results} is not a directory")
    real_dataset = open_dataset(real)
    data_dataset = real_dataset if data.resolve() == real.resolve() else open_dataset(data)
    check_same_task(data_dataset, real_dataset)
    return data_dataset, real_dataset


# ------------------------------------------------------------------ many processes, one directory


def survey(directory: Path, identities: list[dict]) -> tuple[dict, list[dict]]:
    """Look at what is there: {repeat: differences} of stale results, and the repeats missing.

    Results outside the asked range count as well: a directory holds results of one kind.
    """
    there = read_records(directory)
    base = identities[0]
    seed = base["seed"] - base["repeat"]
    stale = {}
    for repeat, record in there.items():
        wanted = {**base, "repeat": repeat, "seed": seed + repeat}
        changed = differences(record, wanted)
        if changed:
            stale[repeat] = f"repeat {repeat}: {'; '.join(changed)}"
    return stale, [each for each in identities
                   if each["repeat"] not in there or each["repeat"] in stale]


def discard(directory: Path, identities: list[dict]) -> None:
    """Remove the results of other options; --overwrite asked for it.

    Each is looked at again under its lock: another process may have redone it by now.
    """
    for repeat in survey(directory, identities)[0]:
        path = repeat_path(directory, repeat)
        held = try_lock(path)
        if held is None:
            continue
        try:
            if repeat in survey(directory, identities)[0]:
                path.unlink(missing_ok=True)
                for suffix in (".npz", ".png", ".safetensors"):
                    path.with_suffix(suffix).unlink(missing_ok=True)
                shutil.rmtree(masks_dir(directory, repeat), ignore_errors=True)
        finally:
            release(held, path)


def share(directory: Path, identities: list[dict], work: Callable, *, waits: bool = True) -> None:
    """Do every repeat that is neither complete nor with another process; then wait for those.

    waits: False returns where nothing is left but what others do.
    """
    waiting = False
    while True:
        stale, pending = survey(directory, identities)
        if stale:
            raise BadOptions(f"another process writes other results to {directory} "
                             f"({stale[min(stale)]}): use another --results")
        if not pending:
            sweep(directory)
            return
        check_stop()
        if not any(take(directory, identity, work) for identity in pending):
            if not waits:
                return
            if not waiting:
                holders = {holder(repeat_path(directory, each["repeat"])) for each in pending}
                say(f"{len(pending)} repeats are with other processes "
                    f"({several(sorted(holders))}): waiting for them")
            waiting = True
            time.sleep(POLL_INTERVAL_SEC)


def take(directory: Path, identity: dict, work: Callable) -> bool:
    """Do a repeat unless another process has done it meanwhile; False if one holds it."""
    path = repeat_path(directory, identity["repeat"])
    held = try_lock(path)
    if held is None:
        return False
    try:
        if path.exists():
            return True
        for left_over in directory.glob(f".*{path.stem}.*.tmp*"):  # by a kill while writing
            left_over.unlink()
        shutil.rmtree(masks_dir(directory, identity["repeat"]), ignore_errors=True)
        work(identity)
        return True
    finally:
        release(held, path)


def sweep(directory: Path) -> None:
    """Remove the locks that processes left which were killed between a record and its release."""
    for left_over in directory.glob(".repeat_*.json.lock"):
        path = directory / left_over.name.removeprefix(".").removesuffix(".lock")
        if path.exists() and (held := try_lock(path)) is not None:
            release(held, path)


def make_all(asked: dict[Path, Repeats], train: Callable, *, dry_run: bool,
             score: str = "accuracy") -> None:
    """Make the repeats that are missing of every dataset, and report all; a dry run makes none.

    train(path, waits): makes those of one dataset; without `waits` only what no other holds.
    """
    pending = [path for path in asked if not asked[path].are_complete]
    for waits in () if dry_run else (False, True):  # first what is free, of every dataset
        for path in pending:
            train(path, waits)
    for path in asked:
        if path not in pending or not dry_run:
            report(asked[path], "complete" if path in pending else "already complete", score)


def report(asked: Repeats, state: str, score: str = "accuracy") -> None:
    """Print mean, standard deviation and number of a score of the repeats asked for."""
    records = asked.records()
    parts = []
    for name in (f"{score}_real", f"{score}_own"):
        values = [record[name] for record in records]
        sd = f"{statistics.stdev(values):.4f}" if len(values) > 1 else "-"
        parts.append(f"{name} mean {statistics.fmean(values):.4f} sd {sd}")
    print(f"{asked.identities[0]['dataset']} {state}: {'  '.join(parts)}  n {len(records)}  "
          f"{asked.directory}")
