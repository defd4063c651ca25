"""What made a file: library versions, the commit and the command, without importing libraries."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

LIBRARIES = ("torch", "torchvision", "diffusers", "transformers", "peft", "numpy", "scipy",
             "scikit-image", "opencv-python-headless")


@cache
def provenance() -> dict:
    """{versions: {library: version}}, and `origin`."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"versions": versions, **origin()}


@cache
def origin() -> dict:
    """{commit, dirty, command}: what may differ between two runs that give the same bytes.

    commit: of this project, str. dirty: whether a file that git knows differs from it, bool. Both
    None outside a git checkout. command: this process's command line, as a shell reads it.
    """
    described = _describe()
    commit = described and described.removesuffix("-dirty")
    return {"commit": commit, "dirty": described and described != commit,
            "command": shlex.join(sys.argv)}


def _describe() -> str | None:
    """The commit, with "-dirty" where a file differs from it; None where git gives no answer."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty",
               "--abbrev=40", "--exclude=*"]  # no tag: the commit itself
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
