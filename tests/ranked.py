"""Several ranks of one stage in forked processes, as torchrun would start them."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from arms import fork

LIMIT_SEC = 120  # what is not over then hangs


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(call: Callable[[], int], number: int, folder: Path) -> list[int]:
    """Start `call` as each of the ranks; what rank k says goes to folder/k.txt. Their pids."""
    port, folder = free_port(), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def as_rank(rank: int) -> Callable[[], int]:
        def run() -> int:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(number),
                              MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            return call()
        return run
    return [fork(as_rank(rank), folder / f"{rank}.txt") for rank in range(number)]


def ended(pids: list[int]) -> list[int | str]:
    """The exit status of each, "hangs" of what is not over in time and killed here."""
    found, limit = {}, time.monotonic() + LIMIT_SEC
    while len(found) < len(pids):
        for pid in pids:
            if pid in found:
                continue
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                found[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > limit:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
                found[pid] = "hangs"
        time.sleep(0.05)
    return [found[pid] for pid in pids]


def together(call: Callable[[], int], number: int, folder: Path) -> tuple[list, list[str]]:
    """Run `call` by so many ranks: exit statuses, and what each said."""
    statuses = ended(start(call, number, folder))
    return statuses, [(Path(folder) / f"{rank}.txt").read_text() for rank in range(number)]
