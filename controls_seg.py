#!/usr/bin/env python3
"""Make a control: a dataset of a known truth, by which the comparison itself is tried.

  copy         real again: the ceiling; a difference from real is a false one
  other-half   real images of groups that no split of real holds: what a perfect generator draws
  oracle       tissue or chests simulated from another seed, where real is simulated
  photocopier  turned, re-stained copies of training images: accurate, and all memorised
  shuffled     real's images, each class's shared out evenly over all labels
  colour-only  each image as a chequerboard of its own mean colour and contrast: no morphology
  noise        every byte by itself

What is expected of each goes with its manifest (lungkit/data/controls.py), and so into every
result: a comparison knows a control by it, keeps it out of all families of arms and says first
whether the instrument passed.

Reads   --real    a dataset made by tumor_seg.py or ct_seg.py
        --other   of other-half: one of other groups (--half 1 and --half 2 of the same stage); of
                  oracle: one made as real was, of the sample of another seed
Writes  --output  a dataset of real's classes and size, and of its counts but for
                 other-half and oracle, which have the other's

Running the same command again resumes; a complete output is left as it is.
Exit status: 0 complete, 1 bad data or failed run, 2 bad options, 75 stopped and resumable.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np

from lungkit.data.controls import (
    COLOUR_ONLY,
    COPY,
    EXPECTED,
    NOISE,
    ORACLE,
    OTHER_HALF,
    PHOTOCOPIER,
    SHUFFLED,
)
from lungkit.data.dataset import SPLITS, Dataset, Row, inherited, open_dataset, parent_of
from lungkit.data.draws import in_turn
from lungkit.data.manifest import MANIFEST, read_manifest
from lungkit.data.orientations import orient
from lungkit.data.writer import DatasetWriter
from lungkit.run import cli, faults
from lungkit.run.files import quick_fingerprint, read_json
from lungkit.run.output import Output, check_apart
from lungkit.run.progress import Progress, say
from lungkit.run.seeds import stream

PRESETS = {"demo": {}, "full": {}}  # nothing here depends on the size of the machine
RECIPE = 1  # raise it when other images or labels come out: a dataset of another is not complete
SQUARES = 8              # of a chequerboard's side; ours: 8 px and more each in the presets
MOST_TURN_DEG = 15.0     # of a photocopy, ours: within what the audits are calibrated on
RESTAIN = 0.2            # of a photocopy, ours: share by which a channel's optical density differs
OUTSIDE = (OTHER_HALF, ORACLE)  # these are of images that real does not hold


@dataclass(frozen=True)
class Item:
    """One image of a control: where it goes, and which image it is made of.

    number: that of the real image whose place it takes, so that own test images are real's.
    """

    split: str
    label: str
    number: int
    row: Row


# ------------------------------------------------------------------ what is made of an image

def keep(image: np.ndarray, rng: np.random.Generator, symmetries: int) -> np.ndarray:
    return image


def photocopy(image: np.ndarray, rng: np.random.Generator, symmetries: int) -> np.ndarray:
    """A copy of uint8 [S, S, C] in any valid orientation, turned a little and re-stained.

    Each channel's optical density (of grey: the grey itself) is multiplied by 1 +- RESTAIN.
    """
    import cv2

    size = len(image)
    turned = orient(image, int(rng.integers(symmetries)), symmetries, axes=(0, 1))
    matrix = cv2.getRotationMatrix2D(((size - 1) / 2,) * 2,
                                     rng.uniform(-MOST_TURN_DEG, MOST_TURN_DEG), 1)
    turned = cv2.warpAffine(np.ascontiguousarray(turned), matrix, (size, size),
                            flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    levels = turned.reshape(image.shape) / 255
    strength = rng.uniform(1 - RESTAIN, 1 + RESTAIN, image.shape[2])
    levels = levels * strength if image.shape[2] == 1 else np.maximum(levels, 1 / 255)**strength
    return np.rint(np.clip(levels, 0, 1) * 255).astype(np.uint8)


def colour_only(image: np.ndarray, rng: np.random.Generator, symmetries: int) -> np.ndarray:
    """A chequerboard with the mean and the standard deviation of every channel of uint8 [S, S, C].

    Where these leave 0..255 it is cut.
    """
    at = np.arange(len(image)) * SQUARES // len(image)
    board = np.where((at[:, None] + at) % 2, 1.0, -1.0)[..., None]
    levels = image.mean((0, 1)) + image.std((0, 1)) * board
    return np.rint(np.clip(levels, 0, 255)).astype(np.uint8)


def noise(image: np.ndarray, rng: np.random.Generator, symmetries: int) -> np.ndarray:
    return rng.integers(0, 256, image.shape, np.uint8)


DRAWN = {COPY: keep, OTHER_HALF: keep, ORACLE: keep, PHOTOCOPIER: photocopy, SHUFFLED: keep,
         COLOUR_ONLY: colour_only, NOISE: noise}


# ------------------------------------------------------------------ which image goes where

def shuffle(rows: list[Row], rng: np.random.Generator) -> list[str]:
    """A label for every row of one split: every class's images get all labels in proportion.

    As many rows of each label as before. Drawn blindly, some class would have more images of its
    own label than of another's, and that little is learnt.
    """
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.label] = counts.get(row.label, 0) + 1
    order = sorted(range(len(rows)), key=lambda i: (rows[i].label, rng.random()))
    labels = dict(zip(order, in_turn(counts)))
    return [labels[i] for i in range(len(rows))]


def plan(control: str, real: Dataset, other: Dataset | None, seed: int) -> list[Item]:
    """What the control consists of, in order."""
    rng = np.random.default_rng([stream("controls_seg", seed), crc32(control.encode())])
    if other is not None:
        return [Item(row.split, row.label, int(row.stem), row) for row in other.rows]
    items = []
    for split in SPLITS:
        rows = real.select(split)
        numbers = [int(row.stem) for row in rows]
        labels = shuffle(rows, rng) if control == SHUFFLED else [row.label for row in rows]
        if control == PHOTOCOPIER and split != "train":  # all that it holds it has from train
            trained = {label: real.select("train", label) for label in real.classes}
            rows = [trained[label][int(rng.integers(len(trained[label])))] for label in labels]
        items += map(Item, [split] * len(rows), labels, numbers, rows)
    return items


def splits_of(control: str) -> dict[str, list[str]]:
    """Which splits of real each split of the control is made from."""
    if control in OUTSIDE:
        return {split: [] for split in SPLITS}
    return {split: ["train"] if control == PHOTOCOPIER else [split] for split in SPLITS}


# ------------------------------------------------------------------ what must be so

def open_other(control: str, real: Dataset, other: Path, samples: list[Path] | None) -> Dataset:
    """The images from outside real. Raises Fault unless they are what this control needs."""
    data = open_dataset(other)
    alike = ("classes", "image_size", "channels", "modality", "symmetries", "intensity")
    if unlike := [name for name in alike if getattr(data, name) != getattr(real, name)]:
        raise faults.Fault(f"--other {other} and {real.path} differ in {', '.join(unlike)}: make "
                           "both with the same options")
    if control == ORACLE:
        check_simulated(real, data, samples)
        return data
    if lacking := sum(not row.group for each in (real, data) for row in each.rows):
        raise faults.Fault(f"{lacking} images of {real.path} and --other {other} have no group: "
                           "nothing shows that they are of others")
    if shared := {row.group for row in real.rows} & {row.group for row in data.rows}:
        raise faults.Fault(
            f"--other {other} shares {len(shared)} groups with {real.path} "
            f"({faults.several(sorted(shared), 2)}): an other half is of groups that real does not "
            "hold: make real by --half 1 and the other by --half 2, or of scans of other patients")
    return data


def check_simulated(real: Dataset, other: Dataset, samples: list[Path]) -> None:
    """Raise Fault unless both were made of simulated samples, and these of two seeds."""
    seeds = []
    for data, sample in zip((real, other), samples, strict=True):
        made = read_json(sample / "sample.json") if (sample / "sample.json").exists() else {}
        if "seed" not in made.get("parameters", {}):
            raise faults.Fault(f"--samples {sample} is no simulated sample (sample.json of python "
                               "-m lungkit.phantom, or lungkit.phantom.thorax)")
        if data.manifest["parameters"].get("input") not in inputs_of(sample, data.modality):
            raise faults.Fault(f"{data.path} was not made of the images of {sample}: an oracle is "
                               "for simulated images alone; name the samples of --real and --other")
        seeds.append(made["parameters"]["seed"])
    if seeds[0] == seeds[1]:
        raise faults.Fault(f"--samples {samples[0]} and {samples[1]} are of one seed, {seeds[0]}: "
                           "the other would be real itself; draw it with another --seed")


def inputs_of(sample: Path, modality: str | None) -> list[str]:
    """What datasets made of a sample may have as `input`: the fingerprint of its images."""
    if modality != "ct":
        from lungkit.formats import sources

        return [sources.fingerprint(sources.find_sources(sources.find_root(sample))[0])]
    from lungkit.ct.folders import walk

    found = []
    for folder in sorted(path for path in sample.iterdir() if path.is_dir()):
        files = (at / name for at, names in walk(folder) for name in names)
        found.append(quick_fingerprint(((path.relative_to(folder).as_posix(), path)
                                        for path in files), sample_bytes=1024))
    return found


# ------------------------------------------------------------------ the stage

def audit(control: str, real: Dataset, writer: DatasetWriter) -> dict:
    """Of a photocopier the audit for copies that every generator passes; nothing of the others."""
    if control != PHOTOCOPIER:
        return {}
    from lungkit.generate import copied

    return {"copy_audit": copied.audit(writer, real)}


def write(control: str, items: list[Item], real: Dataset, source: Dataset, target: Output,
          seed: int) -> Dataset:
    """Draw what is pending, and publish. source: the dataset that the items' rows are of."""
    draws = stream("controls_seg", seed)
    with DatasetWriter(target, stage="controls_seg", classes=real.classes,
                       image_size=real.image_size, channels=real.channels) as writer:
        progress = Progress(control, len(items), done=len(writer.records),
                            jsonl_path=writer.work_dir / "progress.jsonl")
        for item in items:
            if writer.has(item.split, item.label, item.number):
                continue
            rng = np.random.default_rng([draws, item.number])
            image = DRAWN[control](source.image(item.row), rng, real.symmetries)
            writer.add(item.split, item.label, item.number, image, source=item.row.file_name,
                       group=f"oracle {item.row.group}" if control == ORACLE else item.row.group)
            progress.update(len(writer.records))
            faults.check_stop()
        audited = audit(control, real, writer)
        said = {"name": control, "expected": EXPECTED[control]}
        if audited:
            said["flagged"] = audited["copy_audit"]["share_near_copies"]
        if source is not real:
            said["of"] = {"name": source.name, "fingerprint": source.fingerprint}
        return writer.publish(
            parents=[parent_of(real, splits_of(control))], seed=seed, control=said,
            warnings=[*real.warnings, f"control: {control} is no arm; {EXPECTED[control]}"],
            **audited, **inherited(real))


def run(*, control: str, real: Path, other: Path | None, samples: list[Path] | None, output: Path,
        seed: int, preset: str, overwrite: bool, dry_run: bool) -> None:
    check_apart(real, output)
    check_options(control, other, samples)
    options = {"real": read_manifest(real)["fingerprint"], "control": control, "seed": seed,
               "other": other and read_manifest(other)["fingerprint"], "recipe": RECIPE}
    target = Output(output, MANIFEST, options, overwrite=overwrite)
    if target.is_complete():
        print(f"{output}: already complete")
        return
    data = open_dataset(real)
    source = data if other is None else open_other(control, data, other, samples)
    items = plan(control, data, None if other is None else source, seed)
    say(f"controls_seg: {control}, {EXPECTED[control]}")
    if dry_run:
        print(f"plan: found {len(data.rows)} images in {len(data.classes)} classes, would write "
              f"{len(items)} to {output}, preset {preset}")
        return
    made = write(control, items, data, source, target, seed)
    flagged = made.manifest["control"].get("flagged")
    print(f"{made.path}: {len(made.rows)} images of {len(made.classes)} classes"
          + ("" if flagged is None else f", {flagged:.0%} flagged as copies"))


def check_options(control: str, other: Path | None, samples: list[Path] | None) -> None:
    """Raise BadOptions unless a control has what it is made of, and nothing else."""
    if control in OUTSIDE and other is None:
        raise faults.BadOptions(
            f"--control {control} is of images that real does not hold: give --other, "
            + ("a dataset of groups that neither real nor an arm has used (tumor_seg.py or "
               "ct_seg.py --half 1 makes a real of one half of them, --half 2 of the other)"
               if control == OTHER_HALF else
               "a dataset made as real was, of a simulated sample of another seed"))
    if control not in OUTSIDE and other is not None:
        raise faults.BadOptions(f"--other {other}: {control} is made of real's own images")
    if (control == ORACLE) != (samples is not None):
        raise faults.BadOptions("--samples, the simulated samples of --real and --other, goes with "
                                "--control oracle, which needs them: other images have no oracle")


def build_parser() -> argparse.ArgumentParser:
    parser = cli.stage_parser("controls_seg.py", __doc__)
    group = parser.add_argument_group("Main")
    group.add_argument("--control", choices=list(EXPECTED), required=True, help="which one")
    group.add_argument("--real", type=cli.directory, required=True, metavar="DIR",
                       help="the real dataset")
    group.add_argument("--output", type=cli.directory, required=True, metavar="DIR",
                       help="the dataset to make")
    group.add_argument("--other", type=cli.directory, metavar="DIR",
                       help="dataset that other-half or oracle takes its images from")
    group.add_argument("--samples", type=cli.directory, nargs=2, metavar="DIR",
                       help="of oracle: the folders of the simulated samples that --real and "
                            "--other were made of")
    cli.add_common(parser, presets=PRESETS, device=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
