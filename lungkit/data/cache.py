"""Splits too large for memory: decoded once into a file, and mapped from there.

The file lies beside the dataset, in `.<name>.cache/<fingerprint>/<split>.npy`; where nothing may be
written there, below XDG_CACHE_HOME, if it is set, or else TMPDIR; of what lies in these, only that
is believed which nobody but its user could write. Its pages are the kernel's to keep or drop: they
are no part of what a process must hold. It may be deleted at any time that nobody reads it; it is
built again. Whoever comes while another builds waits.
"""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from lungkit.run.faults import Fault, check_stop
from lungkit.run.files import atomic_path
from lungkit.run.output import holder, release, try_lock
from lungkit.run.progress import Progress, note_saved, say

IN_MEMORY_BYTES = 64 * 2**20  # ours: as large a split is decoded at each start in a few seconds
WAIT_SEC = 0.2


def map_split(dataset: Path, fingerprint: str, split: str, shape: tuple[int, ...],
              images: Iterable[np.ndarray]) -> np.ndarray:
    """A split's images, uint8 of `shape` [N, S, S, C], mapped and not to be written to.

    images: N of [S, S, C] in order, decoded one by one and only where no file holds them yet.
    Raises Fault where no place for the file is found, Stopped after a signal.
    """
    return map_rows(dataset, fingerprint, split, shape, images,
                    what=f"decoding {split}",
                    why=f"the {split} split of {dataset} is too large for memory")


def map_rows(dataset: Path, fingerprint: str, name: str, shape: tuple[int, ...],
             rows: Iterable[np.ndarray], *, what: str, why: str, dtype=np.uint8,
             version: str = "") -> np.ndarray:
    """What is worked out of a dataset row by row, of `shape` and `dtype`, kept in `<name>.npy`.

    fingerprint: the dataset's own: of caches by another none is kept. version: what else the rows
    are made of, a digest, part of the file's name; of a name one version is kept. rows: as many as
    shape[0] says, asked for only where no file holds them yet. what: is done, as the progress calls
    it. why: a file is needed, for the fault. Mapped, not to be written to. Raises as `map_split`
    does.
    """
    file_name = f"{name}.{version}.npy" if version else f"{name}.npy"
    places = [folder / file_name for folder in folders(dataset, fingerprint)]
    for path in places:
        if (mapped := map_file(path, shape, dtype)) is not None:
            return mapped
    for path in places:
        try:
            for folder in reversed(path.parents[:3]):
                folder.mkdir(0o777 if is_beside(path) else 0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(path.parent, os.W_OK) and (is_beside(path) or is_private(*path.parents[:2])):
            return build(path, shape, rows, dtype=dtype, what=what,
                         older=f"{glob.escape(name)}.*.npy" if version else "")
    raise Fault(f"{why} and its cache cannot be written, or others could write it too, in all "
                f"of {', '.join(str(path.parent) for path in places)}: set TMPDIR to a folder with "
                "room for it")


def folders(dataset: Path, fingerprint: str) -> Iterator[Path]:
    """Where the cache of a dataset may lie, best first."""
    dataset = dataset.resolve()
    yield dataset.parent / f".{dataset.name}.cache" / fingerprint
    if os.environ.get("XDG_CACHE_HOME"):
        yield Path(os.environ["XDG_CACHE_HOME"]) / "lungkit" / fingerprint
    yield Path(tempfile.gettempdir()) / f"lungkit-{os.getuid()}" / fingerprint


def is_beside(path: Path) -> bool:
    """Whether a cache file lies beside its dataset: who may write it may write the dataset."""
    return path.parent.parent.name.startswith(".")


def is_private(*paths: Path) -> bool:
    """Whether nobody else may write `paths`, nor owns a link among them. Raises OSError."""
    return all(path.lstat().st_uid == path.stat().st_uid == os.getuid()
               and not path.stat().st_mode & 0o022 for path in paths)


def map_file(path: Path, shape: tuple[int, ...], dtype=np.uint8) -> np.ndarray | None:
    """The array of a cache file, or None if there is no whole one of this shape to be believed."""
    try:
        if not (is_beside(path) or is_private(path, *path.parents[:2])):
            return None
        mapped = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return np.asarray(mapped) if mapped.shape == shape and mapped.dtype == dtype else None


def build(path: Path, shape: tuple[int, ...], rows: Iterable[np.ndarray], *, dtype,
          what: str, older: str = "") -> np.ndarray:
    """Write the file, unless another process does so meanwhile, and map it.

    older: pattern of the names of its other versions, which are deleted, or "".
    """
    waiting = False
    while (held := try_lock(path)) is None:
        if not waiting:
            say(f"waiting for another process that writes {path} ({holder(path)})")
        waiting = True
        check_stop()
        time.sleep(WAIT_SEC)
    try:
        if (mapped := map_file(path, shape, dtype)) is not None:
            return mapped
        forget_others(path, older)
        size = np.prod(shape) * np.dtype(dtype).itemsize
        say(f"{what}: {shape[0]} images, {size / 2**20:.1f} MB, once into {path}")
        progress = Progress(what, shape[0])
        with atomic_path(path) as hidden, open(hidden, "wb") as file:
            if not is_beside(path):
                os.fchmod(file.fileno(), 0o600)
            np.lib.format.write_array_header_1_0(
                file, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape})
            for number, row in enumerate(rows, start=1):    # writing, not mapping: a full disk
                file.write(np.ascontiguousarray(row, dtype))  # is then an error, not a signal
                progress.update(number)
                check_stop()
            file.flush()
        note_saved()
    except OSError as error:
        raise Fault(f"the cache {path} cannot be made ({error}): make room, or set TMPDIR and "
                    "take write permission from the folder") from None
    finally:
        release(held, path)
    mapped = map_file(path, shape, dtype)
    assert mapped is not None, f"{path} is not whole"
    return mapped


def forget_others(path: Path, older: str) -> None:
    """Delete what killed builds left of this file, and caches of older makings of the dataset."""
    for version in path.parent.glob(older) if older else ():
        version.unlink(missing_ok=True)
    for left in path.parent.glob(f".{path.stem}.*.tmp*"):
        left.unlink(missing_ok=True)
    if is_beside(path):  # of no other dataset
        for folder in path.parent.parent.iterdir():
            if folder != path.parent:
                shutil.rmtree(folder, ignore_errors=True)
