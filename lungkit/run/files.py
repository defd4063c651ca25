"""Files that are whole or absent: atomic writes, hashes, one writer per output.

A stage builds `<output>` in the hidden sibling `.<name>.partial` and renames it when complete:
what is under its own name is complete, and a killed stage leaves only the sibling to resume from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
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


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()  # Python 3.10 has no hashlib.file_digest
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
