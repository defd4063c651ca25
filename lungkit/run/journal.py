"""Journals of what is finished: each record is appended as it comes, so that a kill loses none.

`Journal` holds JSON, for the one process that makes an output, in its directory. `ResultJournal`
holds dataclasses, for what takes long and decides what comes after, such as the survey of a
thousand slides: beside the output, for every command that asks for the same.
Both are flushed to the system, not to the disk, and end where a power cut tore them: of JSON any
torn line is none, zeros included; pickles have checksums.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lungkit.run.files import sha256
from lungkit.run.output import release, try_lock
from lungkit.run.progress import note_saved, say

FRAME = struct.Struct("<II")  # bytes of an entry, its checksum
# what a pickled array, its scalars and a path call for, besides dataclasses
PLAIN = {("numpy", "ndarray"), ("numpy", "dtype"), ("numpy._core.numeric", "_frombuffer"),
         ("numpy._core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "scalar"),
         ("pathlib", "PosixPath")}


class Journal:
    """JSON objects by name, one a line; of a name the last counts. What a kill tore is cut off.

    Use: `with Journal(path) as journal:` then `get` and `add`. Only places in the file are kept in
    memory.
    """

    mode = 0o666  # of the file, before the umask
    header = b""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._places: dict[str, int] = {}
        self._reading = self._file = None

    def __enter__(self) -> Journal:
        whole = self._scan()
        if whole:
            os.truncate(self.path, whole)
        elif self._reading is not None:
            self._reading.close()
            self._reading = None
            self.path.unlink()
        return self

    def __exit__(self, *error: object) -> None:
        for file in (self._reading, self._file):
            if file is not None:
                file.close()

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def _scan(self) -> int:
        """Find the places of what is whole; return its length in bytes."""
        if not self.path.exists():
            return 0
        file = self._reading = open(self.path, "rb")  # kept open: another process may discard it
        if not self._is_ours(file):
            say(f"{self.path}: of another version or recipe, or others may write it: begun anew")
            return 0
        whole = file.tell()
        while (entry := self._read(file)) is not None:
            self._places[entry[0]] = whole
            whole = file.tell()
        return whole

    def _is_ours(self, file: BinaryIO) -> bool:
        return file.read(len(self.header)) == self.header

    def _read(self, file: BinaryIO) -> tuple[str, object] | None:
        """Name and content of the next entry; None where it is torn, or nothing follows."""
        line = file.readline()
        try:
            record = json.loads(line)
            return (record["file_name"], record) if line.endswith(b"\n") else None
        except (ValueError, TypeError, KeyError):
            return None

    def get(self, name: str) -> dict | None:
        """The record last added under `name`, itself under "file_name"; None if there is none."""
        if name not in self._places:
            return None
        if self._reading is None:
            self._reading = open(self.path, "rb")
        self._reading.seek(self._places[name])
        return self._read(self._reading)[1]

    def add(self, name: str, record: dict) -> None:
        self._append(name, json.dumps({"file_name": name, **record}).encode() + b"\n")

    def _append(self, name: str, entry: bytes) -> None:
        if self._file is None:  # not before: an empty journal is no progress
            self._file = open(self.path, "ab",
                              opener=lambda path, flags: os.open(path, flags, self.mode))
            if self._file.tell() == 0:
                self._file.write(self.header)
        self._places[name] = self._file.tell()
        self._file.write(entry)
        self._file.flush()
        note_saved()


class ResultJournal(Journal):
    """Results by name, of one recipe; a journal of another recipe is begun anew.

    A result is made of dataclasses, arrays, paths and Python's own values; it is not given back
    where a field of any dataclass in it was added, dropped or typed otherwise since. A journal that
    is not ours, or that others may write, is not read. Where another process holds it, or with
    keep=False, nothing is written. `discard` it when what it was for is complete.
    """

    mode = 0o600  # a pickle may hold any code: others must not have written it

    def __init__(self, path: Path, recipe: str, *, keep: bool = True) -> None:
        super().__init__(path)
        self.keep, self._lock = keep, None
        self.header = sha256(recipe.encode()).encode() + b"\n"

    def __enter__(self) -> ResultJournal:
        self._lock = try_lock(self.path) if self.keep else None
        if self._lock is None:
            self._scan()
            return self
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if self._lock is not None:
            release(self._lock, self.path)

    def _is_ours(self, file: BinaryIO) -> bool:
        status = os.fstat(file.fileno())
        return (status.st_uid == os.getuid() and not status.st_mode & 0o022
                and super()._is_ours(file))

    def _read(self, file: BinaryIO) -> tuple[str, tuple] | None:
        head = file.read(FRAME.size)
        if len(head) < FRAME.size:
            return None
        size, checksum = FRAME.unpack(head)
        content = file.read(size)
        if len(content) < size or zlib.crc32(content) != checksum:
            return None
        try:
            name, *kept = _Reader(io.BytesIO(content), {}).load()
        except Exception:  # whole, but not written here: any error may come of it
            return None
        return name, tuple(kept)

    def get(self, name: str, stamp: object) -> object | None:
        """The result last kept under `name`, if it was kept with this stamp; else None."""
        kept, classes, result = super().get(name) or (None, {}, b"")
        if kept != stamp:
            return None
        try:
            return _Reader(io.BytesIO(result), classes).load()
        except Exception:  # of a class that is elsewhere or otherwise now: any error may come of it
            return None

    def add(self, name: str, stamp: object, result: object) -> None:
        if self._lock is None:
            return
        content = io.BytesIO()
        writer = _Writer(content, pickle.HIGHEST_PROTOCOL)
        writer.dump(result)
        entry = pickle.dumps((name, stamp, writer.classes, content.getvalue()),
                             pickle.HIGHEST_PROTOCOL)
        self._append(name, FRAME.pack(len(entry), zlib.crc32(entry)) + entry)

    def discard(self) -> None:
        if self._lock is not None:
            self.path.unlink(missing_ok=True)


class _Writer(pickle.Pickler):
    """Notes the dataclasses of what it writes, however deep: {(module, name): fields}."""

    def __init__(self, file: BinaryIO, protocol: int) -> None:
        super().__init__(file, protocol)
        self.classes: dict[tuple[str, str], list] = {}

    def reducer_override(self, value: object) -> object:
        kind = type(value)
        if dataclasses.is_dataclass(kind):
            self.classes.setdefault((kind.__module__, kind.__qualname__), _fields(kind))
        return NotImplemented


class _Reader(pickle.Unpickler):
    """Loads dataclasses of these fields, arrays and paths: a pickle cannot call anything else."""

    def __init__(self, file: BinaryIO, classes: dict[tuple[str, str], list]) -> None:
        super().__init__(file)
        self.classes = classes

    def find_class(self, module: str, name: str) -> object:
        found = super().find_class(module, name)
        if (module, name) in PLAIN or (isinstance(found, type) and dataclasses.is_dataclass(found)
                                       and self.classes.get((module, name)) == _fields(found)):
            return found
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a result, or has changed")


def _fields(kind: type) -> list[tuple[str, str]]:
    """Names and types of a dataclass's fields."""
    return [(field.name, str(field.type)) for field in dataclasses.fields(kind)]
