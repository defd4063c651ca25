"""What the generative arms share: options checked, items planned, drawn in batches, published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lungkit.compare import curves
from lungkit.data.dataset import (
    MANIFEST,
    SPLITS,
    Dataset,
    inherited,
    open_dataset,
    parent_of,
    read_manifest,
)
from lungkit.data.orientations import as_setting
from lungkit.data.writer import DatasetWriter
from lungkit.generate.held_out import NOTHING, HoldOut, add_validation_options
from lungkit.generate.model_card import card
from lungkit.generate.model_files import read_shapes
from lungkit.learn.device import by_halves, use_device
from lungkit.run import cli, faults, ranks
from lungkit.run.files import quick_fingerprint, read_json, write_bytes, write_text
from lungkit.run.output import Output
from lungkit.run.progress import Progress, say
from lungkit.run.provenance import provenance
from lungkit.run.seeds import stream
from lungkit.run.system_files import listed

if TYPE_CHECKING:
    from lungkit.learn.validation import Validation

GPU_BATCHES = 4  # ours: batches of a CPU drawn at once on a GPU, which a small one leaves idle


@dataclass(frozen=True)
class Item:
    """One image to generate; `index` names it and seeds it."""

    index: int
    split: str
    label: str


@dataclass(frozen=True)
class Arm:
    """What a generative arm works on, once its options are checked."""

    stage: str
    data: Dataset     # the real one
    items: list[Item]  # to draw
    target: Output    # the dataset to make
    weights: Output   # the model to train, or trained
    is_trained: bool
    device: object    # a torch.device
    seed: int         # --seed
    drops_copies: bool = False  # whether images that are copies are drawn anew
    rule: HoldOut = NOTHING
    held: frozenset[int] = frozenset()  # places of train images that are not learnt from

    @property
    def draws(self) -> int:
        """The seed of the images' own random numbers."""
        return stream(self.stage, self.seed)

    def sides(self, label: str | None = None) -> tuple[list[int], list[int]]:
        """Places of the train images of a class (None: of all) to learn from, and held out.

        They count as `Dataset.load("train", label)` orders images.
        """
        own = [place for place, row in enumerate(self.data.select("train"))
               if label in (None, row.label)]
        sides: tuple[list[int], list[int]] = [], []
        for number, place in enumerate(own):
            sides[place in self.held].append(number)
        return sides

    def watched(self, loss_over: Callable[[list[int]], Callable], *, steps: int,
                label: str | None = None) -> tuple[Callable, Validation | None]:
        """The loss_at of a training over the images of `sides(label)` and what looks at the rest.

        loss_over(places): the loss_at of a training on those images.
        """
        seen, held = self.sides(label)
        return loss_over(seen), self.rule.validation(
            loss_over(held) if held else None, steps=steps, seed=self.seed)


def open_arm(stage: str, *, real: Path, output: Path, model: Path | None, training: dict,
             sampling: dict, seed: int, parts: str, model_files: Callable[[list[str]], list[str]],
             check: Callable[[dict], None], device: str, overwrite: bool, dry_run: bool,
             drop_copies: bool = False, rule: HoldOut = NOTHING) -> Arm | None:
    """Check options and the real dataset, and say what is pending.

    Returns None where nothing is to be done: the dataset is complete, or this is a dry run.

    training, sampling: what decides the model besides seed and real; what else the dataset.
    parts: what is trained, in words. model_files: what a finished model of these classes holds.
    check(manifest of real): raises BadOptions or Fault where the arm cannot draw such images.
    drop_copies: draw images anew that are copies. rule: of what is held out of the training images.
    """
    manifest = read_manifest(real)
    training = {**training, **rule.as_setting(), "seed": seed, "real": manifest["fingerprint"],
                **as_setting(manifest["symmetries"])}
    if drop_copies:
        from lungkit.audit import memorised

        sampling = {**sampling, "drop_copies": memorised.RECIPE}
    target = Output(output, MANIFEST, {**training, **sampling}, overwrite=overwrite)
    if ranks.by_first(target.is_complete):
        say(f"{stage}: {output} is already complete")
        return None
    weights = Output(model or model_dir_for(output), "model.json", training, overwrite=overwrite)
    is_trained = ranks.by_first(lambda: weights.matches() or weights.is_complete())
    if is_trained:
        require_files(weights.output_dir, *model_files(manifest["classes"]))
    else:
        ranks.check_batches(training)
    check(manifest)
    data = open_dataset(real)
    items = plan_items(data.counts, data.classes, sampling["pool"])
    say(f"{stage}: found {sum(data.counts['train'].values())} training images, {parts} "
        f"{'complete' if is_trained else 'pending'}, {len(items)} images to draw; "
        + ", ".join(f"{key}={value}" for key, value in target.options.items()))
    place = use_device(device, needed=not dry_run)
    if dry_run:
        return None
    held = frozenset() if is_trained else rule.choose(data, seed)
    return Arm(stage, data, items, target, weights, is_trained, place, seed, drop_copies, rule,
               held)


def require_files(model_dir: Path, *names: str) -> None:
    """Raise Fault unless a finished model still has the files `names`, its weights whole."""
    again = "or move the folder away to train it again"
    missing = [name for name in names if not (model_dir / name).is_file()]
    if missing:
        raise faults.Fault(f"{model_dir} was complete and has no {', '.join(missing)} now: restore "
                           f"what is missing, {again}")
    for name in names:
        if name.endswith(".safetensors"):
            try:
                read_shapes(model_dir / name)
            except faults.Fault as fault:
                raise faults.Fault(f"{model_dir} was complete and now {fault}: restore that file, "
                                   f"{again}") from None


def publish_model(arm: Arm, losses: dict[str, float], base: Path | None = None) -> None:
    """Publish what was trained in the `work_dir` of arm.weights, with a card, without checkpoints.

    base: the folder of the base model that it belongs to, None where there is none. Of several
    ranks the first does, and all then see it.
    """
    ranks.by_first(partial(_publish_model, arm, losses, base))
    ranks.see(arm.weights.output_dir / arm.weights.manifest_name)


def _publish_model(arm: Arm, losses: dict[str, float], base: Path | None) -> None:
    from lungkit.learn.loop import VALIDATION

    for checkpoint in arm.weights.work_dir.glob("*.ckpt"):
        checkpoint.unlink()
    model = {"schema": "lungkit.model/1", "stage": arm.stage, "classes": arm.data.classes,
             "losses": losses, "parents": train_only_parent(arm.data), **provenance()}
    found = {path.parent.name: read_json(path)
             for path in sorted(arm.weights.work_dir.glob(f"*/{VALIDATION}"))}
    if found:
        rows = arm.data.select("train")
        model["validation"] = {
            "images": dict(Counter(rows[place].label for place in sorted(arm.held))),
            "trained": found}
    if shown := curves.of_model(arm.weights.work_dir):
        write_bytes(arm.weights.work_dir / curves.PICTURE, curves.png(shown))
    write_text(arm.weights.work_dir / "README.md", card(
        arm.stage, {**model, "parameters": arm.weights.options}, arm.data, base))
    arm.weights.publish(model)


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


def as_real(images: np.ndarray, channels: int) -> np.ndarray:
    """Images uint8 [B, S, S, C] with real's channels: where it is grey, the mean of all."""
    if channels == images.shape[-1]:
        return images
    return images.mean(-1, keepdims=True).round().astype(np.uint8)


def draw_dataset(arm: Arm, draw_for: Callable[[str], Callable], *, batch_size: int,
                 report: Callable[[list[dict]], dict] | None = None) -> None:
    """Draw every item of every class with draw_for(label), which `fill` calls; publish and print.

    batch_size: drawn at once on a CPU, where the last bits of an image may depend on it. Images are
    written with real's channels. report(records of the images): further keys of the manifest.
    """
    from lungkit.generate import copied

    data, kept = arm.data, {}

    def draw_like_real(items: list[Item]) -> tuple[np.ndarray, list[dict]]:
        label = items[0].label
        if label not in kept:
            kept.clear()  # a class at a time: what draws one may be a whole model
            kept[label] = draw_for(label)
        images, columns = in_parts(kept[label], items)
        return as_real(images, data.channels), columns

    def again_of(label: str) -> Callable[[str, int], tuple[np.ndarray, dict]]:
        def draw_one(split: str, index: int) -> tuple[np.ndarray, dict]:
            images, columns = draw_like_real([Item(index, split, label)])
            return images[0], columns[0]
        return draw_one

    if arm.device.type == "cuda":
        batch_size *= GPU_BATCHES
    writer = DatasetWriter(arm.target, stage=arm.stage, classes=data.classes,
                           image_size=data.image_size, channels=data.channels)

    def end() -> None:
        audited = copied.audit(writer, data, again_of if arm.drops_copies else None)
        more = report(list(writer.records.values())) if report else {}
        made = publish(writer, data, audited, **more)
        print(f"{made.path}: {len(made.rows)} images of {len(made.classes)} classes "
              f"from {arm.weights.output_dir}")

    with ranks.held_by_first(writer):
        progress = Progress(f"{arm.stage.removesuffix('_seg')} images", len(arm.items),
                            done=len(writer.records))
        fill(writer, [batch for label in data.classes
                      for batch in batches(arm.items, label, batch_size)], draw_like_real, progress)
        kept.clear()
        ranks.by_first(end)


def in_parts(draw: Callable, items: list[Item]) -> tuple[np.ndarray, list[dict]]:
    """draw(items), by halves where a GPU's memory does not take them all at once."""
    parts = by_halves(draw, items)
    if len(parts) == 1:
        return parts[0]
    images, columns = zip(*parts, strict=True)
    return np.concatenate(images), [each for part in columns for each in part]


def fill(writer: DatasetWriter, batches_to_draw: list[list[Item]], draw: Callable,
         progress: Progress) -> None:
    """Draw and write every batch not yet written; several ranks draw a batch each in turn.

    draw(items) returns uint8 images [B, S, S, C] and a list of per-item `DatasetWriter.add`
    keywords (prompt, masks, further columns). Raises Stopped after a signal.
    """
    left = [batches_to_draw[number] for number in ranks.by_first(lambda: [
        number for number, batch in enumerate(batches_to_draw) if not all(
            writer.has(item.split, item.label, item.index) for item in batch)])]
    for batch, (images, columns) in zip(left, ranks.dealt(draw, left), strict=True):
        if ranks.is_first():
            for item, image, more in zip(batch, images, columns, strict=True):
                writer.add(item.split, item.label, item.index, image, **more)
            progress.update(len(writer.records))
        ranks.check_stop()


def publish(writer: DatasetWriter, real: Dataset, audited: dict, **more: object) -> Dataset:
    """Publish the dataset with what the audit for copies found of it, and its warning.

    audited: of `copied.audit`. more: further keys of the manifest.
    """
    from lungkit.audit import memorised

    name = writer.output.output_dir.name
    return writer.publish(parents=train_only_parent(real), copy_audit=audited, **inherited(real),
                          seed=writer.output.options["seed"],
                          warnings=[*real.warnings, *memorised.warnings_of(name, audited)], **more)


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
                       help="dataset of tumor_seg.py or ct_seg.py")
    group.add_argument("--output", type=cli.directory, required=True, metavar="DIR",
                       help="dataset to make")
    group.add_argument("--model", type=cli.directory, metavar="DIR",
                       help="where the weights go (default: models/<arm> of the run, else "
                            "OUTPUT-model)")
    group.add_argument("--pool", type=cli.positive_int, default=1, metavar="INT",
                       help="training images to draw, as a multiple of REAL's")
    group.add_argument("--drop-copies", action="store_true",
                       help="draw every image anew that is a copy of a training image (see "
                            "copies.csv), from other seeds, until none is")
    hyperparameters.add_argument("--sampler", choices=("dpm", "ddim"), default="dpm",
                                 help="DPM-Solver++ of second order, or DDIM")
    hyperparameters.add_argument("--sampling-steps", type=cli.positive_int, metavar="INT",
                                 help="steps from noise to an image")
    hyperparameters.add_argument("--guidance-scale", type=cli.positive_float, metavar="FLOAT",
                                 help="1: no guidance")
    add_validation_options(hyperparameters)


def check_divisible(image_size: int, divisor: int) -> None:
    """Raise BadOptions unless images of `image_size` px can be halved as the model needs."""
    if image_size % divisor:
        raise faults.BadOptions(f"images of {image_size} px do not fit the model, which needs a "
                                f"multiple of {divisor} px: make the real dataset with another "
                                "--image-size")


def folder_fingerprint(directory: Path) -> str:
    """`quick_fingerprint` of the weights and settings of a model folder.

    What is hidden there is not its own: a folder made of a single file lies beside that.
    """
    paths = [path for path in listed(directory, "**/*")
             if path.suffix in (".json", ".txt", ".safetensors") and path.is_file()
             and not any(part.startswith(".") for part in path.relative_to(directory).parts)]
    return quick_fingerprint(((path.relative_to(directory).as_posix(), path) for path in paths),
                             sample_bytes=65536)
