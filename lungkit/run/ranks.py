"""Several processes that share one stage's work: who they are, what the first does, how all end.

Ranks are started by torchrun, or by srun with several tasks to a step; a process that is alone is
rank 0 of 1, for which nothing here does anything. `accelerate` sets them up (gloo on CPUs, NCCL on
GPUs). Rank 0 alone writes and speaks. What only one may do is `by_first`; what can be dealt out is
`dealt`. A fault of any rank ends all, each within seconds, and is told once.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from lungkit.run import faults
from lungkit.run.faults import BadOptions, Fault, Overtaken, Stopped, ToldByAnother
from lungkit.run.launch import Place, find

CONNECT_SEC = 600    # ours: until all ranks have come
TOGETHER_SEC = 1800  # ours: until all have come to a step that they take together
SEEN_SEC = 120       # ours: until a node sees what another wrote: NFS may be a minute late
POLL_SEC = 0.2
LINGER_SEC = 5       # ours: rank 0 may keep the store, and outlives the work so long for the others
GONE = (f"another rank is gone, or was not heard for {TOGETHER_SEC // 60} minutes: look whether it "
        "was killed (out of memory?), and run the same command again to resume")
# what rank 0 may raise for all, the narrower before the wider
RAISED = {each.__name__: each for each in (Overtaken, BadOptions, Fault, Stopped)}
Found, Item = TypeVar("Found"), TypeVar("Item")


class _Here:
    """This process: its place, and by what it is joined to the others."""

    place = Place()
    store = None      # where ranks leave words for one another; None: not joined
    device = None     # on which they exchange numbers
    turns = 0         # of by_first
    by_itself = False  # within by_first
    ended = False     # it goes its own way: others' faults do not end it any more


_here = _Here()


def number() -> int:
    """How many ranks share the work; 1 within `by_first`."""
    return 1 if _here.by_itself else _here.place.number


def rank() -> int:
    return _here.place.rank


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return _here.place.rank == 0


def named(program: str) -> str:
    """`program` as a line of log names it, with the rank where there are several."""
    place = _here.place
    return program if place.number == 1 else f"{program}: rank {place.rank} of {place.number}"


@contextlib.contextmanager
def first_speaks() -> Iterator[None]:
    """Within the block what all ranks would print alike is printed by the first."""
    with contextlib.ExitStack() as quiet:
        if not is_first():
            quiet.enter_context(contextlib.redirect_stderr(io.StringIO()))
            quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield


# ------------------------------------------------------------------ set up, and ended

def together(run: Callable[..., None]) -> Callable[..., None]:
    """`run(**options)` of a stage whose ranks share one work; a dry run is the first's alone."""
    _here.place = find(os.environ)
    if number() > 1:  # torch's own words of a broken connection are no help
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    def run_together(**options: object) -> None:
        if number() == 1 or options["dry_run"]:
            return run(**options) if is_first() else None
        try:
            join(str(options["device"]), f"{Path(sys.argv[0]).name} {options}")
            run(**options)
        except Overtaken:  # of all ranks: `cli.main` runs all again
            raise
        except Stopped:    # of all ranks
            leave()
            if is_first():
                raise
            raise ToldByAnother(faults.STOPPED) from None
        except BaseException as error:
            told = explained(error)
            status = faults.BAD_OPTIONS if isinstance(told, BadOptions) else faults.FAILED
            if not speaks(status):
                raise ToldByAnother(status) from None
            if told is error:
                raise
            raise told from None
        leave()
        return None
    return run_together


def check_batches(settings: dict) -> None:
    """Raise BadOptions where a batch, by its size in `settings`, has no image for some ranks."""
    for name, size in settings.items():
        if name.endswith("batch_size") and size < number():
            raise BadOptions(f"--{name.replace('_', '-')} {size}: {number()} ranks share each batch"
                             f" and need an image each: give {number()} or more, or start fewer")


def join(device: str, work: str) -> None:
    """Meet the other ranks, and have accelerate set up the group; where that was done, nothing.

    work: what this rank was asked for, which all have to be.
    """
    if _here.store is not None:
        return
    import torch
    from accelerate import PartialState
    from torch.distributed import DistError, PrefixStore

    place = _here.place
    if ":" in device:
        raise BadOptions(f"--device {device} names one GPU, and {place.number} ranks take one each:"
                         " leave the number out")
    on_gpu = device != "cpu" and torch.cuda.is_available()
    # counted among the GPUs that this process sees, which with --gpus-per-task are its own alone
    local = place.local % torch.cuda.device_count() if on_gpu else place.local
    os.environ.update(RANK=str(place.rank), WORLD_SIZE=str(place.number), LOCAL_RANK=str(local),
                      MASTER_ADDR=place.address, MASTER_PORT=str(place.port))
    try:
        meeting, _, _ = next(torch.distributed.rendezvous(
            "env://", timeout=timedelta(seconds=CONNECT_SEC)))
        _here.store = PrefixStore("lungkit", meeting)
        threading.Thread(target=watch, args=(_here.store.clone(),), daemon=True).start()
        check_work(work)
        check_devices(f"GPU {torch.cuda.get_device_properties(local).uuid}" if on_gpu else "CPU")
        with warnings.catch_warnings():  # of threads, which use_device sets
            warnings.simplefilter("ignore")
            _here.device = PartialState(
                cpu=not on_gpu, store=PrefixStore("group", meeting), rank=place.rank,
                world_size=place.number, timeout=timedelta(seconds=TOGETHER_SEC)).device
        of_all("joined", "")  # who leaves earlier breaks the connections of others to one another
    except DistError as error:
        raise Fault(f"the {place.number} ranks did not meet at {place.address}:{place.port} "
                    f"({str(error).splitlines()[0]}): all have to be started, and to reach it; "
                    "MASTER_ADDR and MASTER_PORT name another place") from None


def of_all(what: str, own: str) -> list[str]:
    """What each rank says of itself, by rank."""
    _here.store.set(f"{what} {rank()}", own)
    return [_here.store.get(f"{what} {other}").decode() for other in range(number())]


def check_work(own: str) -> None:
    """Raise BadOptions unless all ranks were asked for the same."""
    if len(set(of_all("work", own))) > 1:
        raise BadOptions(f"the {number()} tasks of this step were given different commands and are "
                         "no ranks of one work: start each by a step of its own (srun --ntasks=1)")


def check_devices(own: str) -> None:
    """Raise BadOptions unless all ranks are on CPUs, or each on a GPU of its own."""
    devices = of_all("device", own)
    kinds = [device.split()[0] for device in devices]
    if len(set(kinds)) > 1:
        raise BadOptions(f"rank {kinds.index('CPU')} sees no GPU and rank {kinds.index('GPU')} one:"
                         " give each one, or all --device cpu")
    if kinds[0] == "GPU" and len(set(devices)) < len(devices):
        raise BadOptions(f"{len(devices)} ranks were given {len(set(devices))} GPU(s): start as "
                         "many ranks as there are GPUs (torchrun --nproc-per-node, srun "
                         "--gpus-per-task=1)")


def watch(store) -> None:
    """End this process where another told a fault, or where rank 0 is gone: a daemon thread.

    A rank that waits on a GPU for another hears of nothing else.
    """
    from torch.distributed import DistError

    while not _here.ended:
        time.sleep(POLL_SEC)
        status = faults.FAILED
        try:
            if not store.check(["fault"]):
                continue
            status = int(store.get("fault"))
        except DistError:  # the process that kept the store is gone
            time.sleep(2 * LINGER_SEC)  # what waited for it may hear so, too, and tell it
            if not _here.ended:
                print(f"{named(Path(sys.argv[0]).name)}: error: {GONE}", file=sys.stderr)
        if not _here.ended:
            sys.stdout.flush()
            sys.stderr.flush()
            last_of_all(store)
            os._exit(status)


def explained(error: BaseException) -> BaseException:
    """`error`, or a Fault in its place where it says only that a connection broke."""
    from torch.distributed import DistError

    if isinstance(error, Fault) or not (isinstance(error, DistError) or (
            isinstance(error, RuntimeError) and "gloo" in str(error))):
        return error
    time.sleep(5 * POLL_SEC)  # where the other told its fault, the watch ends this process here
    return Fault(GONE)


def speaks(status: int) -> bool:
    """Whether this rank is the first to tell a fault of exit `status`; it ends the others."""
    _here.ended = True
    if _here.store is None:  # a fault of options is all ranks'; who did not meet the others says so
        return is_first() or status != faults.BAD_OPTIONS
    try:
        is_earliest = _here.store.add("faults", 1) == 1
        if is_earliest:
            _here.store.set("fault", str(status))
    except RuntimeError:
        return True  # rank 0 is gone with the store
    last_of_all(_here.store)
    return is_earliest


def leave() -> None:
    """Go apart when all is done."""
    from accelerate import PartialState

    _here.ended = True
    PartialState().destroy_process_group()
    last_of_all(_here.store)


def last_of_all(store) -> None:
    """Say that this rank goes; rank 0, which may keep the store, waits a little for the others."""
    end = time.monotonic() + LINGER_SEC
    with contextlib.suppress(RuntimeError):  # it went with rank 0
        gone = store.add("gone", 1)
        while is_first() and gone < _here.place.number and time.monotonic() < end:
            time.sleep(POLL_SEC)
            gone = store.add("gone", 0)


# ------------------------------------------------------------------ what one does, what all share

def by_first(work: Callable[[], Found]) -> Found:
    """work() by rank 0 as if it were alone, however long; all have what it returns, or raises.

    What it returns is small and JSON holds it: it comes by an open port, and is not unpickled.
    """
    if number() == 1:
        return work()
    _here.turns += 1
    key = f"turn {_here.turns}"
    if not is_first():
        while not _here.store.check([key]):
            time.sleep(POLL_SEC)
        kind, found = json.loads(_here.store.get(key))
        if kind is not None:
            raise RAISED[kind](found)
        return found
    _here.by_itself = True
    try:
        found = work()
    except tuple(RAISED.values()) as error:
        kind = next(name for name, each in RAISED.items() if isinstance(error, each))
        _here.store.set(key, json.dumps([kind, str(error)]))
        raise
    finally:
        _here.by_itself = False
    _here.store.set(key, json.dumps([None, found]))
    return found


@contextlib.contextmanager
def held_by_first(context: contextlib.AbstractContextManager) -> Iterator[None]:
    """Within the block rank 0 has entered `context`; the others wait for it, and with it."""
    with contextlib.ExitStack() as held:
        by_first(lambda: held.enter_context(context) and None)
        yield


def dealt(work: Callable[[Item], Found], items: Sequence[Item]) -> Iterator[Found]:
    """work(item) of each, in their order: each is done by one rank, and all have all.

    All ranks give the same items and take as many results.
    """
    if number() == 1:
        yield from map(work, items)
        return
    from accelerate.utils import gather_object

    for first in range(0, len(items), number()):
        own = items[first:first + number()][rank():rank() + 1]  # none where a round is not full
        yield from gather_object([work(item) for item in own])


def any_of(*flags: bool) -> list[bool]:
    """Of each flag whether any rank has it set: the same on all."""
    if number() == 1:
        return list(flags)
    return [bool(value) for value in largest(flags)]


def largest(values: Sequence[int]) -> list[int]:
    """Of each value the largest that any rank has: the same on all."""
    import torch
    from accelerate.utils import reduce

    return reduce(torch.tensor([int(value) for value in values], device=_here.device),
                  "max").tolist()


def check_stop() -> None:
    """`faults.check_stop` of all ranks at once, where any was told to stop."""
    if number() > 1 and (signal := largest([faults.stop_signal()])[0]):
        faults.stop_by(signal)
    faults.check_stop()


def see(path: Path) -> Path:
    """`path`, which rank 0 has written; a node may take a while to show it. Raises Fault."""
    end = time.monotonic() + SEEN_SEC
    while not path.exists():
        if time.monotonic() > end:
            raise Fault(f"rank {rank()} on {socket.gethostname()} does not see {path}, which rank 0"
                        " has written: have it on a file system that all nodes share")
        os.listdir(path.parent) if path.parent.is_dir() else None  # NFS looks again
        time.sleep(POLL_SEC)
    return path
