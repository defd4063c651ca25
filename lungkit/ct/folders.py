"""The user's files below a folder, in one order, without what systems leave there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lungkit.run.system_files import is_system


def walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """(folder, names of its files) below `root`; links are followed, each folder is entered once.

    The `._` files of Macintosh archives are among them: whoever reads files names what is left out.
    """
    seen = set()
    for folder, inner, names in os.walk(root, followlinks=True):
        inner[:] = sorted(name for name in inner
                          if not name.startswith(".") and not is_system(name))
        if (real := os.path.realpath(folder)) in seen:
            inner[:] = []
            continue
        seen.add(real)
        yield Path(folder), sorted(name for name in names if name.startswith("._")
                                   or not (name.startswith(".") or is_system(name)))
