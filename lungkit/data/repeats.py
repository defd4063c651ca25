"""Many processes, one directory: each takes the repeats that no other has done or holds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from lungkit.data.result import differences, read_records, repeat_path
from lungkit.run.faults import BadOptions, check_stop
from lungkit.run.output import release, try_lock
from lungkit.run.progress import say

POLL_INTERVAL_SEC = 0.5


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
                path.with_suffix(".npz").unlink(missing_ok=True)
        finally:
            release(held, path)


def share(directory: Path, identities: list[dict], work: Callable) -> None:
    """Do every repeat that is neither complete nor with another process; then wait for those."""
    waiting = False
    while True:
        stale, pending = survey(directory, identities)
        if stale:
            raise BadOptions(f"another process writes other results to {directory} "
                             f"({stale[min(stale)]}): use another --results")
        if not pending:
            return
        check_stop()
        if not any(take(directory, identity, work) for identity in pending):
            if not waiting:
                say(f"{len(pending)} repeats are with other processes: waiting for them")
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
        work(identity)
        return True
    finally:
        release(held, path)


def report(directory: Path, identities: list[dict], state: str) -> None:
    """Print mean, standard deviation and number of the accuracies of the repeats asked for."""
    there = read_records(directory)
    asked = [there[each["repeat"]] for each in identities]
    parts = []
    for name in ("accuracy_real", "accuracy_own"):
        values = [record[name] for record in asked]
        sd = f"{statistics.stdev(values):.4f}" if len(values) > 1 else "-"
        parts.append(f"{name} mean {statistics.fmean(values):.4f} sd {sd}")
    print(f"{identities[0]['dataset']} {state}: {'  '.join(parts)}  n {len(asked)}  {directory}")
