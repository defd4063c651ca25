"""The directory of a search: what it is of, and a record of every training that is done.

  DIR/search.json            what decides the search: data, folds, seed, options
  DIR/trainings/<name>.json  one training's scores, whole or absent
  DIR/<results>              written last, when every training asked for is done

Any number of processes work in one directory: a training that no other has done or holds is taken
under a lock, which the kernel frees when its holder is killed. A directory of another search is
refused.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from lungkit.run.faults import BadOptions, Fault, check_stop, several
from lungkit.run.files import read_json, write_json
from lungkit.run.output import holder, lock, release, try_lock
from lungkit.run.progress import note_saved, say
from lungkit.run.system_files import listed

SEARCH, TRAININGS = "search.json", "trainings"
BEGUN = ".search.*.tmp.json"  # what a kill leaves of the first file
POLL_INTERVAL_SEC = 0.5


class Records:
    """One search's directory. `check` it, `begin`, then `share` trainings by name.

    identity: what decides the search, of JSON's own kinds; a directory of another is refused, or
    with `overwrite` emptied.
    """

    def __init__(self, directory: Path, identity: dict, *, overwrite: bool = False) -> None:
        self.directory = Path(directory)
        self.identity = json.loads(json.dumps(identity))
        self.overwrite = overwrite

    def check(self) -> None:
        """Raise Fault where the directory is not a search's, BadOptions where another search's."""
        if not (self.directory / SEARCH).exists():
            if self.directory.exists() and (not self.directory.is_dir() or any(
                    not path.match(BEGUN) for path in listed(self.directory))):
                raise Fault(f"{self.directory} exists and holds no {SEARCH}: it is not a search's; "
                            "choose another --output or move it away")
            return
        differences = self._differences()
        if differences and not self.overwrite:
            raise BadOptions(f"{self.directory} holds another search ({several(differences)}): use "
                             "the same options, another --output, or --overwrite")

    def _differences(self) -> list[str]:
        there = read_json(self.directory / SEARCH)
        return [f"{name}: {there.get(name)!r} there, {self.identity.get(name)!r} now"
                for name in sorted(set(there) | set(self.identity))
                if there.get(name) != self.identity.get(name)]

    def begin(self) -> None:
        """Write down what the search is of; `overwrite` discards another one."""
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        with lock(self.directory):
            self.check()
            if (self.directory / SEARCH).exists() and not self._differences():
                return
            for path in listed(self.directory):
                if path.name != SEARCH:  # which says what this is until nothing else is left
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            write_json(self.directory / SEARCH, self.identity)

    def path(self, name: str) -> Path:
        return self.directory / TRAININGS / f"{name}.json"

    def checkpoint_path(self, name: str) -> Path:
        """Where a training's checkpoint lies until its record is there."""
        return self.directory / TRAININGS / f".{name}.checkpoint.pt"

    def get(self, name: str) -> dict | None:
        """The record of a training, None where it is not done."""
        path = self.path(name)
        return read_json(path) if path.exists() else None

    def take(self, name: str, work: Callable[[], dict]) -> bool:
        """Do a training unless it is done; False where another process holds it."""
        path = self.path(name)
        if path.exists():
            return True
        held = try_lock(path)
        if held is None:
            return False
        try:
            if not path.exists():
                for dots in (".", ".."):  # of a record and a checkpoint, by a kill while writing
                    for left_over in path.parent.glob(f"{dots}{name}.*.tmp*"):
                        left_over.unlink()
                write_json(path, work())
                self.checkpoint_path(name).unlink(missing_ok=True)
                note_saved()
            return True
        finally:
            release(held, path)

    def share(self, names: Sequence[str], work: Callable[[str], dict]) -> dict[str, dict]:
        """Do all trainings that no other process does, wait for those, return every record."""
        told = None
        while pending := [name for name in names if not self.path(name).exists()]:
            taken = False
            for name in pending:
                check_stop()
                taken |= self.take(name, partial(work, name))
            if not taken:
                told = wait(map(self.path, pending), told)
        return {name: self.get(name) for name in names}


def wait(held: Iterable[Path], told: str | None) -> str:
    """Sleep a little, for what other processes hold; say by whom where it was not `told` yet."""
    named = several(sorted({holder(path) for path in held}))
    if named != told:
        say(f"the rest is with other processes ({named}): waiting for them")
    time.sleep(POLL_INTERVAL_SEC)
    return named
