"""A `map` over processes: in order, bounded in memory, ended with its parent, blind to signals."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

CHUNK = 8  # most items sent to a process at a time: sending costs about a millisecond
AHEAD = 3  # chunks per process begun before the first is taken: results wait, and must not pile up


def _start_worker() -> None:
    """Leave signals to the parent, and end with it however it ends."""
    import multiprocessing
    import os
    import signal
    import threading

    import cv2

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _run_chunk(function: Callable, items: list) -> list:
    return [function(item) for item in items]


@contextlib.contextmanager
def mapper(workers: int, num_items: int, *, chunk: int | None = None) -> Iterator[Callable]:
    """A `map` over `workers` processes, in order; in this process if one is enough.

    The function and the items must pickle: a function of a module, or a partial of one. Memory
    does not grow with the number of items: at most AHEAD chunks per process wait to be taken.
    chunk: items sent at a time; None: up to CHUNK, fewer where some process would have none.
    """
    chunk = chunk or max(1, min(CHUNK, num_items // (4 * workers)))
    if min(workers, num_items) <= 1:
        yield map
        return
    import multiprocessing
    from collections import deque
    from concurrent.futures import ProcessPoolExecutor
    from itertools import islice

    # spawn: a forked child would hold the output's lock after this process was killed
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker) as pool:

        def mapped(function: Callable, items: Iterable) -> Iterator:
            waiting, rest = deque(), iter(items)
            while True:
                while len(waiting) < AHEAD * workers and (part := list(islice(rest, chunk))):
                    waiting.append(pool.submit(_run_chunk, function, part))
                if not waiting:
                    return
                yield from waiting.popleft().result()

        try:
            yield mapped
        finally:
            pool.shutdown(cancel_futures=True)
