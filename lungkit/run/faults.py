"""How a command ends: faults of the user's data and options, exit statuses, the stop flag.

Exit statuses: 0 complete, 1 bad data or failed run, 2 bad options, 75 stopped and resumable.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence

COMPLETE, FAILED, BAD_OPTIONS, STOPPED = 0, 1, 2, 75


class Fault(Exception):
    """A fault in the user's data: what was found, expected, where, and what to do. Exit 1."""


class BadOptions(Fault):
    """A fault in the user's options. Exit 2."""


class Overtaken(Fault):
    """Another process completed what this one waited to write: look again, and it is there."""


class Stopped(Exception):
    """A signal asked for an end and the state is saved. Exit 75: the same command resumes."""


class ToldByAnother(Exception):
    """This process ends with `status`, and another of the same stage says why."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@contextlib.contextmanager
def cured_by(remedy: str) -> Iterator[None]:
    """What `cli.main` advises where memory runs out within the block, as "lower --batch-size"."""
    try:
        yield
    except Exception as error:
        if not hasattr(error, "remedy"):  # what is further within knows better
            error.remedy = remedy
        raise


_stop_signal: list[int] = []


def stop_requested() -> bool:
    """Whether SIGTERM, SIGINT or SIGUSR2 has asked this stage to finish its item and stop."""
    return bool(_stop_signal)


def stop_signal() -> int:
    """The number of the signal that asked for an end; 0: none did."""
    return _stop_signal[0] if _stop_signal else 0


def check_stop() -> None:
    """Raise Stopped if a signal has asked for it; call where everything done so far is saved."""
    if _stop_signal:
        name = signal.Signals(_stop_signal[0]).name
        raise Stopped(f"stopped by {name}; run the same command again to resume")


def forget_signals() -> None:
    """Begin anew: no signal has come."""
    _stop_signal.clear()


def stop_by(number: int) -> None:
    """Take it that a signal asked for an end, which another process got."""
    if not _stop_signal:
        _stop_signal.append(number)


def note_signal(number: int, _frame: object) -> None:
    if _stop_signal and number == signal.SIGINT:
        raise KeyboardInterrupt  # a second Ctrl-C means: now
    _stop_signal.append(number)


def several(items: Sequence[str], most: int = 5) -> str:
    """The first `most` items and how many more there are: "a; b; and 3 more"."""
    more = len(items) - most
    return "; ".join([*items[:most], f"and {more} more"] if more > 0 else items)


def one_line(message: object) -> str:
    """`message` without line breaks: a file name may hold one, an error line must not."""
    return " ".join(str(message).replace("\n", "\\n").replace("\r", "\\r").split())
