"""How the generative arms fill a dataset: plan, batches, resume, audit, and what is recorded."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lungkit.data.dataset import open_dataset
from lungkit.data.writer import DatasetWriter
from lungkit.generate import copied
from lungkit.generate.items import (
    Item,
    batches,
    check_divisible,
    fill,
    folder_fingerprint,
    in_parts,
    model_dir_for,
    plan_items,
    publish,
    train_only_parent,
)
from lungkit.run import faults, seeds
from lungkit.run.faults import BadOptions, Stopped
from lungkit.run.output import Output

COUNTS = {"train": {"a": 5, "b": 3}, "val": {"a": 2, "b": 1}, "test": {"a": 1, "b": 4}}
SPLITS = ("train", "val", "test")


def picture(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return coarse.repeat(2, 0).repeat(2, 1)


def writer_at(path: Path, options: dict | None = None) -> DatasetWriter:
    return DatasetWriter(Output(path, "dataset.json", options or {"seed": 3}), stage="test",
                         classes=["a", "b"], image_size=16)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A dataset of COUNTS with a warning; image i is picture(i), of a group of its own."""
    with writer_at(tmp_path_factory.mktemp("generation") / "real") as writer:
        for item in plan_items(COUNTS, ["a", "b"], 1):
            writer.add(item.split, item.label, item.index, picture(item.index),
                       group=f"g{item.index}")
        writer.publish(parents=[], seed=0, warnings=["confounded: by hand"])
    return open_dataset(writer.output.output_dir)


# ------------------------------------------------------------------ the plan

@pytest.mark.parametrize("pool", [1, 3])
def test_the_plan_is_as_real_in_every_split_and_class_and_the_pool_is_of_train_alone(pool):
    items = plan_items(COUNTS, ["a", "b"], pool)
    found = Counter((item.split, item.label) for item in items)
    assert found == {(split, label): COUNTS[split][label] * (pool if split == "train" else 1)
                     for split in SPLITS for label in "ab"}
    assert [item.index for item in items] == list(range(len(items))), "an index names and seeds one"


def test_batches_hold_every_item_of_the_class_once_whatever_is_written_already():
    items = plan_items(COUNTS, ["a", "b"], 2)
    for label in "ab":
        parts = batches(items, label, 4)
        assert [len(part) for part in parts[:-1]] == [4] * (len(parts) - 1)
        assert 1 <= len(parts[-1]) <= 4
        assert [item for part in parts for item in part] == [i for i in items if i.label == label]


def test_a_stream_belongs_to_one_stage_and_one_seed():
    keys = [(stage, seed)
            for stage in ("diffusion_seg", "prompt_seg", "prompt_seg a", "prompt_seg b")
            for seed in (0, 1, 2**40)]
    drawn = [seeds.stream(*key) for key in keys]
    assert len(set(drawn)) == len(keys) and drawn == [seeds.stream(*key) for key in keys]
    assert all(0 <= seed < 2**62 for seed in drawn)  # torch takes it, and seed + 2 too


# ------------------------------------------------------------------ filling

def test_a_begun_batch_is_drawn_again_as_it_was_and_a_written_one_is_not(tmp_path):
    items = [Item(index, "train", "a") for index in range(6)]
    parts = batches(items, "a", 3)
    progress = SimpleNamespace(update=lambda done: None)
    drawn = []

    def draw(batch):
        drawn.append([item.index for item in batch])
        return np.stack([picture(item.index) for item in batch]), [
            {"seed": f"7:{item.index}", "prompt": f"p{item.index}"} for item in batch]

    with writer_at(tmp_path / "x") as writer:
        for index in (0, 1, 2, 4):  # the first batch, and a part of the second
            writer.add("train", "a", index, picture(index))
        fill(writer, parts, draw, progress)
        assert drawn == [[3, 4, 5]]
        assert {name: record.get("seed", "") for name, record in writer.records.items()} == {
            f"train/a/{i:06d}.png": f"7:{i}" if i > 2 else "" for i in range(6)}
        assert writer.records["train/a/000005.png"]["prompt"] == "p5"


def test_what_a_gpu_has_no_room_for_is_drawn_in_halves_and_in_order():
    import torch

    asked = []

    def draw(items):
        asked.append(len(items))
        if len(items) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return np.array([[[[item.index] * 3]] for item in items], np.uint8), [
            {"seed": str(item.index)} for item in items]
    images, columns = in_parts(draw, [Item(i, "train", "a") for i in range(9)])
    assert images[:, 0, 0, 0].tolist() == list(range(9)) and images.shape == (9, 1, 1, 3)
    assert [each["seed"] for each in columns] == [str(i) for i in range(9)]
    assert asked == [9, 4, 2, 2, 5, 2, 3]

    def never(items):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        in_parts(never, [Item(0, "train", "a")] * 4)


def test_a_signal_stops_between_batches_and_keeps_what_was_drawn(tmp_path, monkeypatch):
    items = [Item(index, "train", "a") for index in range(6)]
    drawn = []

    def draw(batch):
        drawn.append(len(batch))
        monkeypatch.setattr(faults, "_stop_signal", [15])
        return np.stack([picture(item.index) for item in batch]), [{} for _ in batch]

    with writer_at(tmp_path / "x") as writer, pytest.raises(Stopped):
        fill(writer, batches(items, "a", 2), draw,
                        SimpleNamespace(update=lambda done: None))
    assert drawn == [2] and len(writer.records) == 2


# ------------------------------------------------------------------ publishing

def published(real, path: Path, first: int, options: dict | None = None):
    """A generated set of COUNTS whose image i is picture(first + i), published as an arm's."""
    with writer_at(path, options) as writer:
        for item in plan_items(COUNTS, ["a", "b"], 1):
            writer.add(item.split, item.label, item.index, picture(first + item.index))
        return publish(writer, real, copied.audit(writer, real))


def test_copies_are_warned_of_in_the_dataset_itself_after_the_warnings_of_real(real, tmp_path):
    made = published(real, tmp_path / "copier", 0)
    manifest = open_dataset(made.path).manifest
    assert manifest["copy_audit"]["share_near_copies"] == 0.5  # 8 of 16: those of real's train
    assert manifest["warnings"][0] == "confounded: by hand" and len(manifest["warnings"]) == 2
    assert "copies: 50% of the images of copier" in manifest["warnings"][1]


def test_a_generated_set_records_its_seed_and_that_it_saw_the_train_split_alone(real, tmp_path):
    made = published(real, tmp_path / "fresh", 1000, {"seed": 41, "x": 1})
    manifest = open_dataset(made.path).manifest
    assert manifest["seed"] == 41 and manifest["parameters"] == {"seed": 41, "x": 1}
    assert manifest["warnings"] == ["confounded: by hand"]
    assert manifest["copy_audit"]["share_near_copies"] == 0
    assert manifest["copy_audit"]["images"] == 16
    assert manifest["parents"] == train_only_parent(real) == [
        {"name": "real", "fingerprint": real.fingerprint,
         "splits": dict.fromkeys(SPLITS, ["train"])}]


# ------------------------------------------------------------------ models

@pytest.mark.parametrize(("output", "model"), [
    ("runs/x/datasets/diffusion", "runs/x/models/diffusion"),
    ("elsewhere/mine", "elsewhere/mine-model")])
def test_the_weights_go_to_the_models_of_the_run_or_beside_the_output(output, model, tmp_path):
    assert model_dir_for(tmp_path / output) == tmp_path / model


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    (path / "unet").mkdir(parents=True)
    (path / "unet" / "weights.safetensors").write_bytes(bytes(400_000))
    (path / "config.json").write_text("{}")
    return path


def overwrite(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("change", [
    lambda folder: overwrite(folder / "unet/weights.safetensors", 0),
    lambda folder: overwrite(folder / "unet/weights.safetensors", 200_001),
    lambda folder: overwrite(folder / "unet/weights.safetensors", 399_999),
    lambda folder: (folder / "unet/weights.safetensors").write_bytes(bytes(400_001)),
    lambda folder: (folder / "config.json").write_text("[]"),
    lambda folder: (folder / "vocabulary.txt").write_text("lung"),
    lambda folder: (folder / "unet/weights.safetensors").rename(folder / "unet/other.safetensors"),
    lambda folder: (folder / "unet").rename(folder / "vae")])
def test_a_changed_model_folder_has_another_fingerprint(change, folder):
    before = folder_fingerprint(folder)
    change(folder)
    assert folder_fingerprint(folder) != before


def test_a_moved_or_annotated_model_folder_keeps_its_fingerprint(folder, tmp_path):
    before = folder_fingerprint(folder)
    shutil.copytree(folder, tmp_path / "elsewhere" / "copy")
    (tmp_path / "elsewhere" / "copy" / "README.md").write_text("notes")
    assert folder_fingerprint(tmp_path / "elsewhere" / "copy") == before


def test_an_image_size_that_cannot_be_halved_as_often_is_refused():
    check_divisible(64, 16)
    with pytest.raises(BadOptions, match="72 px.*16 px"):
        check_divisible(72, 16)


@pytest.mark.parametrize("name", ["._config.json", "@eaDir/config.json", "unet/._w.safetensors",
                                  "unet/.ipynb_checkpoints/config.json", "__MACOSX/a.txt"])
def test_a_look_at_a_model_leaves_it_the_same(name, tmp_path):
    for file in ("config.json", "unet/w.safetensors"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(file)
    before = folder_fingerprint(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("left behind")
    assert folder_fingerprint(tmp_path) == before
