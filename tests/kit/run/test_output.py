"""What a stage tells its job: that it saved something new; and a disk that fills while saving."""

from __future__ import annotations

import argparse
import errno
import os
from pathlib import Path

import numpy as np
import pytest

from lungkit.run import cli
from lungkit.run.journal import Journal
from lungkit.run.output import Output

ROOT = Path(__file__).resolve().parents[3]


def checkpoint(folder):
    from lungkit.learn import loop

    loop.save(folder / "step.ckpt", {}, {}, 1)


def record(folder):
    with Journal(folder / "records.jsonl") as journal:
        journal.add("a.png", {})


def dataset(folder):
    output = Output(folder / "out", "m.json", {})
    with output.writing():
        output.publish({})


def result(folder):
    from lungkit.data.result import write_record

    write_record(folder, {"repeat": 0}, {"x": np.zeros(1)}, {})


def cache(folder):
    from lungkit.data.cache import build

    build(folder / "train.npy", (1, 2, 2, 3), [np.zeros((2, 2, 3), np.uint8)],
          dtype=np.uint8, what="images")


def nothing(folder):
    """A journal that only reads, and an output that is only begun, as at every start."""
    with Journal(folder / "records.jsonl") as journal:
        assert "a.png" not in journal
    with Output(folder / "out", "m.json", {}).writing() as work_dir:
        (work_dir / ".plan").write_text("as before")


@pytest.mark.parametrize(("save", "is_progress"), [
    (checkpoint, True), (record, True), (dataset, True), (result, True), (cache, True),
    (nothing, False)])
def test_what_saves_something_new_says_so(save, is_progress, tmp_path, monkeypatch):
    """Wherever it lies: the job's run directory may only link to it."""
    said = tmp_path / "said"
    for name in ("alone", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.delenv("LUNGKIT_SAVED", raising=False)
    save(tmp_path / "alone")  # there is nobody to tell
    monkeypatch.setenv("LUNGKIT_SAVED", str(said))
    save(tmp_path / "here")
    assert said.exists() == is_progress


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_published_weights_are_read_by_whom_the_umask_lets(umask, mode, tmp_path):
    """By a group that shares a run: safetensors writes its files for their user alone."""
    from safetensors.numpy import save_file

    before = os.umask(umask)
    try:
        output = Output(tmp_path / "model", "model.json", {})
        with output.writing() as work_dir:
            (work_dir / "unet").mkdir()
            save_file({"x": np.zeros(1)}, work_dir / "unet/weights.safetensors")
            output.publish({})
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "model").rglob("*.*")}
    assert modes == {mode}


def test_a_job_whose_place_to_be_told_is_gone_is_no_obstacle(tmp_path, monkeypatch):
    monkeypatch.setenv("LUNGKIT_SAVED", str(tmp_path / "gone/said"))
    record(tmp_path)


@pytest.mark.parametrize(("saving_sec", "interval_sec"), [
    (0, 60), (3, 60), (4, 80), (7, 140), (10, 150), (100, 150)])
def test_checkpoints_come_more_often_than_a_job_is_warned(saving_sec, interval_sec):
    from lungkit.learn import loop

    assert loop.save_interval(saving_sec) == interval_sec < loop.WARNING_SEC
    for script in ("run_pipeline.slurm", "compare_models.sh"):
        assert f"#SBATCH --signal=B:USR2@{loop.WARNING_SEC}\n" in (ROOT / script).read_text()


def test_a_model_that_is_long_in_saving_is_said_with_its_seconds(monkeypatch, tmp_path, capsys):
    import torch

    from lungkit.learn import loop

    clock = iter(range(0, 100000, 100))
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock))
    losses = loop.Losses()
    for _ in loop.loop(3, what="a model", state={}, losses=losses, identity={},
                       checkpoint_path=tmp_path / "x.ckpt"):
        losses.add(loss=torch.zeros(()))
    told = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(told) == 1 and "saving takes 100 s" in told[0] and "B:USR2@600" in told[0]


# ------------------------------------------------------------------ a full disk

class LibraryError(Exception):
    """As safetensors': no OSError, and no errno."""


def torch_save():
    import torch

    torch.save({"a": torch.zeros(300000)}, "/dev/full")


def raising(error):
    def save():
        raise error
    return save


@pytest.mark.parametrize("save", [
    torch_save,
    raising(LibraryError("Error while serializing: I/O error: No space left on device "
                         "(os error 28)")),
    raising(LibraryError("Error while serializing: I/O error: Disk quota exceeded (os error 122)")),
    raising(RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")),
    raising(RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed")),
    raising(OSError(errno.ENOSPC, "No space left on device")),
    raising(OSError(errno.EDQUOT, "Disk quota exceeded"))])
def test_a_disk_that_fills_while_a_model_is_saved_is_one_line(save, capsys):
    assert cli.main(argparse.ArgumentParser(prog="stage"), save, []) == 1
    told, = capsys.readouterr().err.splitlines()
    assert told.startswith("stage: error:") and "free some space" in told


def test_another_error_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="bug"):
        cli.main(argparse.ArgumentParser(prog="stage"), raising(RuntimeError("a bug")), [])
