"""A lock where the file system has none: a file made exclusively, which its holder keeps touching.

For Lustre without the option flock, some NFS and BeeGFS. The file names host, pid and job. It is
taken over from a holder that no longer touches it, or, on this host, no longer lives.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path

from lungkit.run.progress import say

BEAT_SEC = 15
GONE_SEC = 240  # many beats: a node may hang for a minute, and NFS may show an old time as long
_told: set[str] = set()


class HeldFile:
    """A held lock; `close` gives it back."""

    def __init__(self, path: Path, named: str) -> None:
        self.path, self.named, self.closed = path, named, False
        self._end = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while not self._end.wait(BEAT_SEC):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def close(self) -> None:
        self._end.set()
        self.closed = True
        with contextlib.suppress(OSError):
            if self.path.read_text() == self.named:  # else it was taken over from us
                self.path.unlink()


def held_path(lock_path: Path) -> Path:
    return lock_path.with_name(lock_path.name + ".held")


def hold(path: Path, named: str, *, why: OSError) -> HeldFile | None:
    """Hold `path`, or return None where another does. named: who we are; why: flock's error."""
    if str(path.parent) not in _told:
        _told.add(str(path.parent))
        say(f"warning: {path.parent} has no file locks ({why.strerror}): files with a heartbeat "
            "take their place; have the file system mounted with flock, alike on every node")
    for _ in range(2):  # once more after a holder that is gone
        try:
            number = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            if not _take_away(path):
                return None
            continue
        with open(number, "w", encoding="utf-8") as file:
            file.write(named)
        return HeldFile(path, named)
    return None


def _take_away(path: Path) -> bool:
    """Whether the file of a holder that is gone was removed, by us or by another."""
    aside = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        seen = path.stat()
        named = path.read_text(errors="replace")
        if not _is_gone(path, named, seen.st_mtime):
            return False
        os.rename(path, aside)
        taken = aside.stat()
        if (taken.st_ino, taken.st_mtime_ns) != (seen.st_ino, seen.st_mtime_ns) or (
                aside.read_text(errors="replace") != named):
            _put_back(aside, path)  # of another, that was quicker, or lives after all
            return False
        aside.unlink()
    except FileNotFoundError:
        pass
    return True


def _put_back(aside: Path, path: Path) -> None:
    """Give a lock that was not ours to take its name again, unless a third has made it anew."""
    try:
        os.link(aside, path)
    except FileExistsError:
        pass
    except OSError:  # no links here
        os.rename(aside, path)
    aside.unlink(missing_ok=True)


def _is_gone(path: Path, named: str, touched: float) -> bool:
    """Whether its holder, `named`, is dead, on this host, or long silent by the disk's clock."""
    words = named.split()
    if len(words) == 6 and words[1] == socket.gethostname() and words[3].isdigit():
        try:
            os.kill(int(words[3]), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
    now = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.now")
    now.touch()
    try:
        return now.stat().st_mtime - touched > GONE_SEC
    finally:
        now.unlink(missing_ok=True)
