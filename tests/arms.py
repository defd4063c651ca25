"""The arms that contract tests run over: how to run each at a tiny size."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

TINY_DIFFUSION = ["--train-steps", "3", "--batch-size", "4", "--sampling-steps", "2",
                  "--decoder-steps", "2", "--decoder-batch-size", "4"]
TINY_ADAPTER = [*TINY_DIFFUSION, "--rank", "2", "--target", "attention"]
ARMS = {
    "voronoi": [],
    "diffusion": [*TINY_DIFFUSION, "--widths", "32", "32", "32"],
    "prompt": TINY_ADAPTER,
    "context": [*TINY_ADAPTER, "--controlnet-steps", "2"],
}
CT_ARMS = {"layout": [], "diffusion": ARMS["diffusion"], "prompt": ARMS["prompt"]}
# (modality, arm): what the contract runs over
CASES = [*(("he", arm) for arm in ARMS), *(("ct", arm) for arm in CT_ARMS)]
GENERATORS = ["diffusion", "prompt", "context"]  # they see the train split of real alone
# an option with another value, and the name the refusal must give
OTHER_OPTION = {"voronoi": ["--render", "borders"], "layout": ["--render", "labels"],
                "diffusion": ["--guidance-scale", "1"], "prompt": ["--guidance-scale", "3"],
                "context": ["--layouts", "training"]}


def arguments(arm: str, real: Path, output: Path, *more: str) -> list[str]:
    device = ["--device", "cpu"] if arm in GENERATORS else []
    return ["--real", str(real), "--output", str(output), *{**ARMS, **CT_ARMS}[arm], *device, *more]


def main_of(arm: str) -> Callable[[list[str]], int]:
    return importlib.import_module(f"{arm}_seg").main


def blind(monkeypatch, arm: str) -> None:
    """Take the val and test images and masks from under `arm` as soon as it has checked its real.

    For a copy of real to throw away.
    """
    from lungkit.data.dataset import open_dataset

    def open_and_blind(path: Path):
        data = open_dataset(path)
        for row in data.rows:
            if row.split != "train":
                for file in (data.path / row.file_name, *data.path.glob(f"masks/*/*/{row.stem}.*")):
                    file.unlink()
        return data

    monkeypatch.setattr("lungkit.generate.items.open_dataset", open_and_blind)


def content(directory: Path) -> dict[str, bytes]:
    """Every file below `directory` but the progress log, which holds times."""
    return {path.relative_to(directory).as_posix(): path.read_bytes()
            for path in sorted(directory.rglob("*"))
            if path.is_file() and path.name != "progress.jsonl"}


def fork(call: Callable[[], int], stderr: Path | None = None) -> int:
    """Run `call` in a forked process, as cheap as a new one is dear with torch; return its pid.

    stderr: of what it says. Who reads that while it runs needs a file: pytest's capture empties its
    own after each reading, and with it what was said in between.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            if stderr:
                sys.stderr = open(stderr, "w", buffering=1)
            os._exit(call())
        except BaseException:
            traceback.print_exc()
            os._exit(99)
    return pid


def killed_while_writing(call: Callable[[], int], number: int) -> int:
    """Run `call` forked off and killed once a dataset has `number` images; its exit status."""
    from lungkit.data.writer import DatasetWriter

    add = DatasetWriter.add

    def add_or_die(writer, *args, **columns):
        add(writer, *args, **columns)
        if len(writer.records) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def writes() -> int:
        DatasetWriter.add = add_or_die
        return call()

    return os.waitstatus_to_exitcode(os.waitpid(fork(writes), 0)[1])


def ended_in_training(call: Callable[[], int], number: int) -> int:
    """Run `call` forked off, sent the signal `number` once it has a checkpoint; its exit status."""
    from lungkit.learn import loop

    save = loop.save

    def save_and_end(*args, **more):
        save(*args, **more)
        os.kill(os.getpid(), number)

    def trains() -> int:
        loop.save = save_and_end
        return call()

    return os.waitstatus_to_exitcode(os.waitpid(fork(trains), 0)[1])


def signal_when(pid: int, ready: Callable[[], bool], number: int = signal.SIGKILL,
                timeout_sec: float = 240) -> int:
    """Send `number` to `pid` as soon as `ready()`; return the exit status, -N for signal N."""
    end = time.monotonic() + timeout_sec
    while not ready():
        done, status = os.waitpid(pid, os.WNOHANG)
        ended = os.waitstatus_to_exitcode(status)
        assert not done, f"ended with {ended} before it was ready to be killed"
        assert time.monotonic() < end, "never became ready to be killed"
        time.sleep(0.005)
    os.kill(pid, number)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
