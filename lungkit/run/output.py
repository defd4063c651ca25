"""A directory in the making: one writer, resumed, refused or published.

A stage builds `<output>` in the hidden sibling `.<name>.partial` and renames it when complete:
what is under its own name is complete, and a killed stage leaves only the sibling to resume from.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from lungkit.run import heartbeat, ranks
from lungkit.run.faults import BadOptions, Fault, Overtaken, check_stop
from lungkit.run.files import read_json, write_json
from lungkit.run.progress import note_saved, say
from lungkit.run.system_files import listed

POLL_SEC = 0.5


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold `.<name>.lock` beside `path`; it names host, pid and job. Waits for another holder.

    The kernel frees the lock of a killed process, so a stale file never blocks a rerun. Raises
    Stopped where a signal comes while waiting.
    """
    told = None
    while (file := try_lock(path)) is None:
        if (named := holder(path)) != told:
            say(f"{path} is being written by another process ({named}): waiting for it")
            told = named
        check_stop()
        time.sleep(POLL_SEC)
    try:
        yield
    finally:
        release(file, path)


def try_lock(path: Path):
    """Return an open, locked file beside `path`, or None if another process holds it."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    lock_path = path.parent / f".{path.name}.lock"
    named = (f"host {socket.gethostname()} pid {os.getpid()} "
             f"job {os.environ.get('SLURM_JOB_ID', 'none')}\n")
    while True:
        file = open(lock_path, "a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError as error:  # a file system without locks
            file.close()
            lock_path.unlink(missing_ok=True)
            return heartbeat.hold(heartbeat.held_path(lock_path), named, why=error)
        try:  # the previous holder may have unlinked the file between our open and our lock
            if os.fstat(file.fileno()).st_ino == os.stat(lock_path).st_ino:
                break
        except FileNotFoundError:
            pass
        file.close()
    file.truncate(0)
    file.write(named)
    file.flush()
    return file


def holder(path: Path) -> str:
    """Host, pid and job of who holds the lock beside `path`, as far as it can be told."""
    lock_path = path.parent / f".{path.name}.lock"
    for place in (heartbeat.held_path(lock_path), lock_path):
        with contextlib.suppress(OSError):
            if named := place.read_text(errors="replace").strip():
                return named
    return "unknown"


def release(file, path: Path) -> None:
    """Give back what try_lock returned."""
    (path.parent / f".{path.name}.lock").unlink(missing_ok=True)
    file.close()


def check_apart(real: Path, output: Path, *, option: str = "--real") -> None:
    """Raise BadOptions where one of the two is the other or lies in it. option: real's name."""
    at, to = Path(real).resolve(), Path(output).resolve()
    if at == to or at in to.parents or to in at.parents:
        raise BadOptions(f"--output {output} and {option} {real} lie in one another: "
                         f"choose an --output outside the {option.lstrip('-')} dataset")


class Output:
    """An output directory in the making: open it, fill `work_dir`, publish it.

    `options` are what decides its content. The same options resume or find it complete;
    others are refused and named, unless `overwrite`.
    """

    def __init__(self, output_dir: Path, manifest_name: str, options: dict, *,
                 overwrite: bool = False) -> None:
        self.output_dir = Path(os.path.abspath(output_dir))
        self.work_dir = self.output_dir.parent / f".{self.output_dir.name}.partial"
        self.manifest_name = manifest_name
        self.options = json.loads(json.dumps(options, default=str))
        self.overwrite = overwrite

    def manifest(self) -> dict | None:
        """The manifest of the complete output, or None."""
        path = self.output_dir / self.manifest_name
        return read_json(path) if path.exists() else None

    def matches(self) -> bool:
        """Whether the output is complete with these very options."""
        manifest = self.manifest()
        return manifest is not None and manifest.get("parameters") == self.options

    def is_complete(self) -> bool:
        """Whether the output is complete with these options.

        Raises BadOptions if it was made (or begun) with other options, Fault if foreign files
        are in the way.
        """
        manifest = self.manifest()
        in_the_way = self.output_dir.exists() and (
            not self.output_dir.is_dir() or listed(self.output_dir))
        if manifest is None and in_the_way:  # also with `overwrite`: it was never ours to replace
            raise Fault(f"{self.output_dir} exists and holds no {self.manifest_name}: "
                        "it was not made here; choose another --output or move it away")
        if self.overwrite:
            return False
        if manifest is not None:
            self._refuse_differences(manifest.get("parameters", {}), self.output_dir)
            return True
        begun = self.work_dir / ".options.json"
        if begun.exists():
            self._refuse_differences(read_json(begun), self.work_dir)
        return False

    def _refuse_differences(self, made_with: dict, where: Path) -> None:
        names = sorted(set(made_with) | set(self.options))
        differences = [f"{name}: {made_with.get(name)!r} there, {self.options.get(name)!r} now"
                       for name in names if made_with.get(name) != self.options.get(name)]
        if differences:
            raise BadOptions(f"{where} was made with other options ({'; '.join(differences)}): "
                             "use the same options, another --output, or --overwrite")

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path]:
        """Hold the lock and yield `work_dir`; `overwrite` discards what other options left.

        Of several ranks the first holds it for all.
        """
        with ranks.held_by_first(self._writing()):
            yield self.work_dir

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        self.output_dir.parent.mkdir(parents=True, exist_ok=True)
        with lock(self.output_dir):
            if self.is_complete():  # asked again: there may have been another writer to wait for
                raise Overtaken(f"{self.output_dir} was completed by another process just now: "
                                "run the same command again")
            begun = self.work_dir / ".options.json"
            if self.overwrite and begun.exists() and read_json(begun) != self.options:
                shutil.rmtree(self.work_dir)
            self.work_dir.mkdir(exist_ok=True)
            for left in self.work_dir.rglob(".*.tmp*"):  # what a kill left of atomic_path
                if left.is_file():
                    left.unlink()
            if not begun.exists():
                write_json(begun, self.options)
            yield

    def publish(self, manifest: dict) -> None:
        """Write the manifest last and rename `work_dir` to the output's own name.

        Weights may then be read by whom the umask lets read: safetensors writes for its user alone.
        """
        manifest_path = self.work_dir / self.manifest_name
        write_json(manifest_path, {**manifest, "parameters": self.options})
        for weights in self.work_dir.rglob("*.safetensors"):
            weights.chmod(manifest_path.stat().st_mode)
        old = self.output_dir.parent / f".{self.output_dir.name}.old"
        if self.output_dir.exists():
            if old.exists():
                shutil.rmtree(old)
            os.replace(self.output_dir, old)
        os.replace(self.work_dir, self.output_dir)
        note_saved()
        if old.exists():  # also where a kill came between the two
            shutil.rmtree(old)
        (self.output_dir / ".options.json").unlink(missing_ok=True)
