"""Files that are whole or absent: atomic writes, hashes, one writer per output.

A stage builds `<output>` in the hidden sibling `.<name>.partial` and renames it when complete:
what is under its own name is complete, and a killed stage leaves only the sibling to resume from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from lungkit.run.faults import Fault


@contextlib.contextmanager
def atomic_path(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Yield a hidden sibling to write to; flush it and rename it to `path` on success.

    flush=False: for one of many files that their owner flushes together and checks on resuming.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # the suffix stays last: image and table writers choose the format by it
    hidden = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield hidden
        if flush:
            with open(hidden, "rb") as file:
                os.fsync(file.fileno())
        os.replace(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, *, flush: bool = True) -> None:
    with atomic_path(path, flush=flush) as hidden:
        hidden.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: object) -> None:
    """Write JSON with sorted keys; NaN is refused, for it is not JSON."""
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> dict:
    """Read a JSON object written by this package. Raises Fault on anything else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Fault(f"{path} is missing") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise Fault(f"{path} is not JSON ({error}): restore it or make it again") from None
    if not isinstance(content, dict):
        raise Fault(f"{path} holds a {type(content).__name__}, not a JSON object")
    return content


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def quick_fingerprint(files: Iterable[tuple], *, sample_bytes: int, whole_bytes: int = 0) -> str:
    """SHA-256 over names, sizes and three samples of each content: quick, whatever the size.

    An edited file is noticed unless it keeps its size and these bytes; a copied tree, whose times
    differ, is the same.
    files: (name, path, and paths beside it whose names and sizes count, too) of each.
    whole_bytes: up to so many the whole content counts.
    """
    digest = hashlib.sha256()
    for name, path, *beside in files:
        size = os.stat(path).st_size
        sizes = [(name, size), *((other.name, os.stat(other).st_size) for other in beside)]
        for said in sizes:
            digest.update("{}\t{}\n".format(*said).encode("utf-8", "surrogateescape"))
        with open(path, "rb") as file:
            if size <= whole_bytes:
                digest.update(file.read())
                continue
            for start in (0, size // 2, max(0, size - sample_bytes)):
                file.seek(start)
                digest.update(file.read(sample_bytes))
    return digest.hexdigest()


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()  # Python 3.10 has no hashlib.file_digest
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
