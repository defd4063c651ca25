"""The generators by several ranks: the same model and images, each drawn by one, ended and resumed.

Two processes over gloo stand for two GPUs over NCCL.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
from accelerate import Accelerator  # noqa: F401  (before the ranks are forked)
from diffusers import StableDiffusionPipeline

from arms import GENERATORS, arguments, main_of
from lungkit.data.dataset import open_dataset
from lungkit.data.writer import DatasetWriter
from lungkit.run import ranks
from ranked import free_port, together

pytestmark = pytest.mark.usefixtures("found_once")

ROOT = Path(__file__).resolve().parents[2]
MOST_APART = 1  # grey levels of a pixel, of images by different numbers of ranks
# uneven shares, and more steps than tiny ones: what adds up shows
MORE = ["--train-steps", "5", "--batch-size", "3", "--pool", "3"]
OTHERS = {"diffusion": ["--autoencoder", "train", "--autoencoder-steps", "3",
                        "--autoencoder-batch-size", "3"]}


def run_of(arm: str, real: Path, root: Path, *more: str):
    output = root / "datasets" / arm
    return lambda: main_of(arm)(arguments(arm, real, output, *MORE, *OTHERS.get(arm, []), *more))


def made(arm: str, root: Path):
    return open_dataset(root / "datasets" / arm)


def apart(one, other) -> int:
    """Grey levels that two datasets of the same items differ by, in the pixel that differs most."""
    assert [row.file_name for row in one.rows] == [row.file_name for row in other.rows]
    return max(int(np.abs(one.image(a).astype(int) - other.image(b)).max())
               for a, b in zip(one.rows, other.rows, strict=True))


@pytest.fixture(scope="module", params=GENERATORS)
def alone(request, few_real, tmp_path_factory) -> tuple[str, Path]:
    """An arm, and the folder in which one process made it."""
    root = tmp_path_factory.mktemp(request.param)
    assert run_of(request.param, few_real, root)() == 0
    return request.param, root


def test_ranks_make_the_same_model_and_images_as_one_process(alone, few_real, tmp_path,
                                                             monkeypatch):
    arm, root = alone
    add, seen = DatasetWriter.add, tmp_path / "drawn"

    def add_by_first(*args, **columns):
        assert ranks.is_first(), "another rank writes"
        add(*args, **columns)

    def noted(work, items, *, dealt=ranks.dealt):
        what = "encoded" if work.__module__.endswith("latents") else "drawn"

        def working(item):
            with open(seen, "a") as file:
                file.write(f"{what} by {ranks.rank()}\n")
            return work(item)
        return dealt(working, items)

    def save_by_first(*args, kept=StableDiffusionPipeline.save_lora_weights, **how):
        assert ranks.is_first(), "another rank writes"
        kept(*args, **how)

    monkeypatch.setattr(DatasetWriter, "add", add_by_first)
    monkeypatch.setattr(StableDiffusionPipeline, "save_lora_weights", save_by_first)
    monkeypatch.setattr(ranks, "dealt", noted)
    statuses, said = together(run_of(arm, few_real, tmp_path), 2, tmp_path)
    assert statuses == [0, 0], said
    assert not said[1] and f"{arm} images" in said[0]
    one, two = made(arm, root), made(arm, tmp_path)
    assert apart(one, two) <= MOST_APART
    differ = {key for key in one.manifest if one.manifest[key] != two.manifest[key]}
    assert differ <= {"fingerprint", "copy_audit"}, "more than what the last bits of images decide"
    files = [sorted(path.relative_to(place).as_posix() for path in place.rglob("*"))
             for place in (root, tmp_path)]
    assert files[0] == [name for name in files[1] if not re.fullmatch(r"\d\.txt|drawn", name)]
    for what in ("encoded", "drawn"):
        counts = [seen.read_text().count(f"{what} by {rank}\n") for rank in (0, 1)]
        assert min(counts) >= max(1, 0.3 * sum(counts)), f"one rank has {what} nearly all"


@pytest.mark.parametrize("alone", ["diffusion"], indirect=True)
def test_torchrun_starts_ranks(few_real, alone, tmp_path):
    arm, root = alone
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
               f"--master-port={free_port()}", str(ROOT / f"{arm}_seg.py"),
               *arguments(arm, few_real, tmp_path / "datasets" / arm, *MORE, *OTHERS[arm])]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert apart(made(arm, root), made(arm, tmp_path)) <= MOST_APART
    assert result.stdout.count("images of 3 classes") == 1
    assert result.stderr.count("found ") == 1, "more than one rank speaks"


@pytest.mark.parametrize("alone", ["diffusion", "prompt"], indirect=True)
@pytest.mark.parametrize(("first", "then"), [(2, 1), (2, 3)])
def test_a_set_that_a_kill_left_unfinished_is_finished_by_another_number_of_ranks(
        first, then, alone, few_real, tmp_path, monkeypatch):
    arm, root = alone
    shutil.copytree(root / "models", tmp_path / "models")
    add = DatasetWriter.add

    def add_or_die(writer, *args, **columns):
        add(writer, *args, **columns)
        if len(writer.records) == 11:
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(DatasetWriter, "add", add_or_die)
        statuses, _ = together(run_of(arm, few_real, tmp_path), first, tmp_path)
    assert statuses == [-9, 1]
    kept = tmp_path / "datasets" / f".{arm}.partial"
    before = {path: path.stat().st_mtime_ns for path in kept.rglob("*.png")}
    assert len(before) == 11
    assert together(run_of(arm, few_real, tmp_path), then, tmp_path)[0] == [0] * then
    one, other = made(arm, root), made(arm, tmp_path)
    assert [row.sha256 for row in one.rows] == [row.sha256 for row in other.rows]


def test_a_batch_with_no_image_for_some_ranks_is_refused(few_real, tmp_path):
    for number, name in enumerate(("--batch-size", "--decoder-batch-size")):
        folder = tmp_path / str(number)
        statuses, said = together(run_of("prompt", few_real, folder, name, "1"), 2, folder)
        assert statuses == [2, 2]
        line, = [line for each in said for line in each.splitlines() if "error" in line]
        assert f"{name} 1: 2 ranks share each batch" in line and not list(folder.glob("models/*"))


# ------------------------------------------------------------------ out of memory

def full(*args: object, **how: object):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


SMALLER = "make REAL with a smaller --image-size"
PLACES = {
    "diffusion": [("diffusion_seg.train_unet", "lower --batch-size"),
                  ("diffusion_seg.train_autoencoder", "lower --autoencoder-batch-size,"),
                  ("diffusion_seg.sample_images", SMALLER)],
    "prompt": [("lungkit.generate.adapters.denoise_with", "lower --batch-size"),
               ("lungkit.generate.autoencoder.train_autoencoder", "lower --decoder-batch-size"),
               ("diffusers.AutoencoderKL.encode", SMALLER, "--decoder-steps", "0"),
               ("prompt_seg.draw_images", SMALLER)],
    "context": [("context_seg.train_controlnet", "lower --batch-size"),
                ("context_seg.draw_images", SMALLER)]}


def test_out_of_memory_on_any_rank_names_what_to_lower(alone, few_real, tmp_path, monkeypatch):
    arm, root = alone
    for number, (place, remedy, *more) in enumerate(PLACES[arm]):
        rank, folder = number % 2, tmp_path / str(number)
        if "draw" in place or "sample" in place:
            shutil.copytree(root / "models", folder / "models")
        with monkeypatch.context() as patch:
            kept = resolve_name(place)
            patch.setattr(place, lambda *args, kept=kept, rank=rank, **how: (
                full if ranks.rank() == rank else kept)(*args, **how))
            statuses, said = together(run_of(arm, few_real, folder, *more), 2, folder)
        assert statuses == [1, 1], place
        line, = [line for each in said for line in each.splitlines() if "error" in line]
        assert line.startswith(f"{arm}_seg.py: rank {rank} of 2: error: out of memory (CUDA out of")
        assert remedy in line, place
