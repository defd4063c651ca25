"""A journal of results: each is appended as it comes, so that a killed run need not repeat it.

For what takes long and decides what comes after, such as the survey of a thousand slides. The
file lies beside the output, hidden, and goes when the output is complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pickle
import struct
import zlib
from pathlib import Path

from lungkit.run.files import sha256
from lungkit.run.output import release, try_lock

FRAME = struct.Struct("<II")  # bytes of a pickle, its checksum
# what a pickled array, its scalars and a path call for, besides dataclasses
PLAIN = {("numpy", "ndarray"), ("numpy", "dtype"), ("numpy._core.numeric", "_frombuffer"),
         ("numpy._core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "scalar"),
         ("pathlib", "PosixPath")}


class _Reader(pickle.Unpickler):
    """Loads dataclasses, arrays and paths only, so that a pickle cannot call anything else."""

    def find_class(self, module: str, name: str) -> object:
        found = super().find_class(module, name)
        if (module, name) in PLAIN or isinstance(found, type) and dataclasses.is_dataclass(found):
            return found
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a result")


class Journal:
    """Results by name, of one recipe; what another recipe left, or a kill tore, is discarded.

    Use: `with Journal(path, recipe) as journal:` then `get` and `add`, and `discard` at the end.
    A result is made of dataclasses, arrays, paths and Python's own values. A journal that is not
    ours, or that others may write, is not read. Where another process holds it, or with keep=False,
    nothing is written. Flushed to the system, not to the disk: the checksums find what a power cut
    tore.
    """

    def __init__(self, path: Path, recipe: str, *, keep: bool = True) -> None:
        self.path, self.keep = Path(path), keep
        self.header = sha256(recipe.encode()).encode() + b"\n"
        self._results: dict[str, tuple] = {}

    def __enter__(self) -> Journal:
        self._file = self._lock = None
        if self.keep:
            self._lock = try_lock(self.path)
        whole = self._read()
        if self._lock is not None and whole == 0:
            self.path.unlink(missing_ok=True)
        elif self._lock is not None:
            os.truncate(self.path, whole)
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._lock is not None:
            release(self._lock, self.path)

    def _read(self) -> int:
        """Load what is whole; return its length in bytes."""
        with contextlib.suppress(FileNotFoundError), open(self.path, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.getuid() or status.st_mode & 0o022:
                return 0  # others could have written it, and a pickle may hold any code
            if file.read(len(self.header)) != self.header:
                return 0
            whole = file.tell()
            while len(head := file.read(FRAME.size)) == FRAME.size:
                size, checksum = FRAME.unpack(head)
                content = file.read(size)
                if len(content) < size or zlib.crc32(content) != checksum:
                    break
                try:
                    name, stamp, result = _Reader(io.BytesIO(content)).load()
                except Exception:  # of a class that is elsewhere now: any error may come of it
                    break
                self._results[name] = stamp, result
                whole = file.tell()
            return whole
        return 0

    def get(self, name: str, stamp: object) -> object | None:
        """The result kept under `name`, if it was kept with this stamp; else None."""
        kept, result = self._results.get(name, (None, None))
        return result if kept == stamp else None

    def add(self, name: str, stamp: object, result: object) -> None:
        if self._lock is None:
            return
        if self._file is None:  # not before: an empty journal is no progress
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            self._file = open(os.open(self.path, flags, 0o600), "ab")
            if self._file.tell() == 0:
                self._file.write(self.header)
        content = pickle.dumps((name, stamp, result), pickle.HIGHEST_PROTOCOL)
        self._file.write(FRAME.pack(len(content), zlib.crc32(content)) + content)
        self._file.flush()

    def discard(self) -> None:
        """Remove the file: what it was for is complete."""
        if self._lock is not None:
            self.path.unlink(missing_ok=True)
