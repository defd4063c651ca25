"""How the generative arms fill a dataset: the plan of items, their seeds, their batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lungkit.data.dataset import SPLITS, Dataset, parent_of
from lungkit.data.png import decode_png
from lungkit.data.writer import DatasetWriter
from lungkit.run import cli, faults
from lungkit.run.progress import Progress


@dataclass(frozen=True)
class Item:
    """One image to generate; `index` names it and seeds it."""

    index: int
    split: str
    label: str


def plan_items(counts: dict[str, dict[str, int]], classes: list[str], pool: int) -> list[Item]:
    """As many images of each split and class as real has, and `pool` times as many for train."""
    items: list[Item] = []
    for split in SPLITS:
        for label in classes:
            number = counts[split][label] * (pool if split == "train" else 1)
            items += [Item(len(items) + i, split, label) for i in range(number)]
    return items


def batches(items: list[Item], label: str, batch_size: int) -> list[list[Item]]:
    """The items of a class in fixed batches: a resumed run repeats a begun batch as it was."""
    own = [item for item in items if item.label == label]
    return [own[i:i + batch_size] for i in range(0, len(own), batch_size)]


def fill(writer: DatasetWriter, batches_to_draw: list[list[Item]], draw: Callable,
         progress: Progress) -> None:
    """Draw and write every batch not yet written.

    draw(items) returns uint8 images [B, S, S, 3] and a list of per-item `DatasetWriter.add`
    keywords (prompt, masks, further columns). Raises Stopped after a signal.
    """
    for batch in batches_to_draw:
        if all(writer.has(item.split, item.label, item.index) for item in batch):
            continue
        images, columns = draw(batch)
        for item, image, more in zip(batch, images, columns, strict=True):
            writer.add(item.split, item.label, item.index, image, **more)
        progress.update(len(writer.records))
        faults.check_stop()


def publish(writer: DatasetWriter, real: Dataset) -> Dataset:
    """Audit the images drawn for copies of training images, then publish the dataset."""
    from lungkit.audit import memorised

    drawn = sorted(writer.records)
    picks = np.linspace(0, len(drawn) - 1, min(len(drawn), memorised.MOST_IMAGES)).astype(int)
    audited = memorised.audit(real, np.stack(
        [decode_png((writer.work_dir / drawn[i]).read_bytes()) for i in picks]))
    name = writer.output.output_dir.name
    return writer.publish(parents=train_only_parent(real), copy_audit=audited,
                          seed=writer.output.options["seed"],
                          warnings=[*real.warnings, *memorised.warnings_of(name, audited)])


def train_only_parent(real: Dataset) -> list[dict]:
    """The `parents` of a generated dataset: every split was made from real/train alone."""
    return [parent_of(real, {split: ["train"] for split in SPLITS})]


def model_dir_for(output_dir: Path) -> Path:
    """Where a generator's weights go unless told: models/<arm> of the run, else beside OUTPUT."""
    output_dir = Path(output_dir).absolute()
    if output_dir.parent.name == "datasets":
        return output_dir.parent.parent / "models" / output_dir.name
    return output_dir.with_name(output_dir.name + "-model")


def add_generator_options(group, hyperparameters) -> None:
    """Add the options that all generative arms spell alike to their two groups."""
    group.add_argument("--real", type=cli.directory, required=True, metavar="DIR",
                       help="dataset of tumor_seg.py")
    group.add_argument("--output", type=cli.directory, required=True, metavar="DIR",
                       help="dataset to make")
    group.add_argument("--model", type=cli.directory, metavar="DIR",
                       help="where the weights go (default: models/<arm> of the run, else "
                            "OUTPUT-model)")
    group.add_argument("--pool", type=cli.positive_int, default=1, metavar="INT",
                       help="training images to draw, as a multiple of REAL's")
    hyperparameters.add_argument("--sampler", choices=("dpm", "ddim"), default="dpm",
                                 help="DPM-Solver++ of second order, or DDIM")
    hyperparameters.add_argument("--sampling-steps", type=cli.positive_int, metavar="INT")
    hyperparameters.add_argument("--guidance-scale", type=cli.positive_float, metavar="FLOAT",
                                 help="1: no guidance")


def check_divisible(image_size: int, divisor: int) -> None:
    """Raise BadOptions unless images of `image_size` px can be halved as the model needs."""
    if image_size % divisor:
        raise faults.BadOptions(f"images of {image_size} px do not fit the model, which needs a "
                             f"multiple of {divisor} px: make the real dataset with another --image-size")


def folder_fingerprint(directory: Path) -> str:
    """A quick fingerprint of a model folder: names, sizes, three samples of every file."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.suffix not in (".json", ".txt", ".safetensors") or not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.relative_to(directory).as_posix()}\t{size}\n".encode())
        with open(path, "rb") as file:
            for start in (0, size // 2, max(0, size - 65536)):
                file.seek(start)
                digest.update(file.read(65536))
    return digest.hexdigest()
