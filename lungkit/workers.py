"""A `map` over processes, in order, that ends with its parent and leaves signals to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial


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


@contextlib.contextmanager
def mapper(workers: int, num_items: int) -> Iterator:
    """A `map` over `workers` processes, in order; in this process if one is enough.

    The function and its arguments must pickle: a function of a module, or a partial of one.
    """
    if min(workers, num_items) <= 1:
        yield map
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # spawn: a forked child would hold the output's lock after this process was killed
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker) as pool:
        try:
            yield partial(pool.map, chunksize=8)
        finally:
            pool.shutdown(cancel_futures=True)
