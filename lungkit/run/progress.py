"""Progress for a person and for a program: a bar or spaced lines, and JSON lines in a file."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from pathlib import Path

from lungkit.run import ranks

LINE_INTERVAL_SEC = 30


class Progress:
    """Report `done` of `total`: a bar on a terminal, else one fixed-width line about every 30 s.

    The same numbers go to `jsonl_path` (None: nowhere), one object a line.
    """

    def __init__(self, what: str, total: int, *, done: int = 0,
                 jsonl_path: Path | None = None) -> None:
        self.what, self.total, self.first, self.done = what, total, done, done
        self.jsonl_path = jsonl_path
        self.start = self.last = time.monotonic()
        self.tty = sys.stderr.isatty()

    def update(self, done: int, **numbers: float) -> None:
        """Note that `done` items are finished; `numbers` such as loss are shown beside."""
        self.done = done
        now = time.monotonic()
        interval = 0.2 if self.tty else LINE_INTERVAL_SEC
        if now - self.last >= interval or done >= self.total:
            self.last = now
            self._show(now - self.start, numbers)

    def _show(self, elapsed_sec: float, numbers: dict[str, float]) -> None:
        if not ranks.is_first():
            return
        rate = (self.done - self.first) / max(elapsed_sec, 1e-9)
        eta_sec = (self.total - self.done) / rate if rate > 0 else 0.0
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        shown = "  ".join(f"{name} {value:8.4f}" for name, value in numbers.items())
        line = (f"{self.what:<28.28} {self.done:>7d}/{self.total:<7d} {shown:<18}"
                f"{rate:8.2f}/s  eta {eta_sec:6.0f} s  {peak_mb:6.0f} MB")
        if self.tty:
            end = "\n" if self.done >= self.total else ""
            print(f"\r{line}", end=end, file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)
        if self.jsonl_path is not None:
            record = {"what": self.what, "done": self.done, "total": self.total,
                      "elapsed_sec": round(elapsed_sec, 3), "rate_per_sec": round(rate, 4),
                      "peak_mb": round(peak_mb), **numbers}
            with open(self.jsonl_path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


def note_saved() -> None:
    """Tell the job that something new was saved, from which the next start goes on.

    A job that is stopped before anything was is not started again. The job's script names a file
    in LUNGKIT_SAVED that shall be made; without it there is nobody to tell.
    """
    path = os.environ.get("LUNGKIT_SAVED")
    if path and not os.path.exists(path):
        with contextlib.suppress(OSError):
            Path(path).touch()


def say(message: str) -> None:
    """One line of log on standard error; standard output is for results."""
    if ranks.is_first():
        print(message, file=sys.stderr, flush=True)
