#!/usr/bin/env python3
"""Make a mixture: a share of real's training images, some of an arm's, or both.

The points of a dose curve. Val and test are real's, untouched; train alone is mixed. Every mixture
is trained on whole and with as many optimiser steps as any arm. Subsets are nested: a smaller share
lies within a larger one, whatever else is mixed in. Real is reduced by whole groups (patients), in
an order in which the classes stay in proportion, so that the share reached is that of whole groups;
an arm's images are drawn by class, `--dose` times as many as real has.

Reads   --real       the real dataset
        --synthetic  an arm made from it
Writes  --output     a dataset of real's classes and size; metadata.csv says of every image which
                     dataset it is of (`made_of`) and which image there (`source`)

Running the same command again resumes; a complete output is left as it is.
Exit status: 0 complete, 1 bad data or failed run, 2 bad options, 75 stopped and resumable.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from zlib import crc32

import numpy as np

from lungkit.data.controls import control_of
from lungkit.data.dataset import (
    SPLITS,
    Dataset,
    Row,
    check_same_task,
    inherited,
    open_dataset,
    parent_of,
)
from lungkit.data.draws import in_turn
from lungkit.data.manifest import MANIFEST, read_manifest
from lungkit.data.writer import DatasetWriter
from lungkit.run import cli, faults
from lungkit.run.output import Output, check_apart
from lungkit.run.progress import Progress, say
from lungkit.run.seeds import stream

PRESETS = {"demo": {}, "full": {}}  # nothing here depends on the size of the machine
RECIPE = 1  # raise it when other images are drawn: a dataset of another is not complete


# ------------------------------------------------------------------ which images

def some_groups(rows: list[Row], share: float, seed: int) -> list[Row]:
    """The rows of the first groups of a seeded order whose number of images is nearest to `share`.

    A group is of the class of most of its images, and the classes' groups take turns, in
    proportion. Every class has an image. A smaller share gives a part of what a larger one does.
    """
    if share in (0, 1):
        return rows[:len(rows) * int(share)]
    members: dict[str, list[Row]] = {}
    for row in rows:
        members.setdefault(row.group or row.file_name, []).append(row)
    by_class: dict[str, list[str]] = {}
    for group in sorted(members):
        main = Counter(row.label for row in members[group]).most_common()
        by_class.setdefault(min(label for label, n in main if n == main[0][1]), []).append(group)
    rng = np.random.default_rng([stream("mix_seg", seed), crc32(b"real")])
    waiting = {label: list(rng.permutation(groups)) for label, groups in sorted(by_class.items())}
    order = [waiting[label].pop() for label in in_turn(
        {label: len(groups) for label, groups in waiting.items()})]
    sizes = np.cumsum([len(members[group]) for group in order])
    count = 1 + int(np.abs(sizes - share * len(rows)).argmin())
    labels = {row.label for row in rows}
    while {row.label for group in order[:count] for row in members[group]} != labels:
        count += 1
    kept = set(order[:count])
    return [row for row in rows if (row.group or row.file_name) in kept]


def some_images(rows: list[Row], wanted: dict[str, int], name: str, seed: int) -> list[Row]:
    """The first images of every class in a seeded order, as many as wanted. Raises Fault."""
    chosen = []
    for place, label in enumerate(sorted(wanted)):
        pool = [row for row in rows if row.label == label]
        if len(pool) < wanted[label]:
            raise faults.Fault(f"{name} has {len(pool)} training images of {label}, and "
                               f"{wanted[label]} are asked for: a smaller --dose, or make {name} "
                               "with a larger --pool (POOL)")
        rng = np.random.default_rng([stream("mix_seg", seed), crc32(name.encode()), place])
        chosen += [pool[i] for i in rng.permutation(len(pool))[:wanted[label]]]
    return sorted(chosen, key=lambda row: row.file_name)


def plan(real: Dataset, synthetic: Dataset | None, share: float, dose: float,
         seed: int) -> list[tuple[Dataset, Row, int]]:
    """Every image of the mixture: of which dataset, which, and its number."""
    beyond = 1 + max(int(row.stem) for row in real.rows)
    chosen = some_groups(real.select("train"), share, seed)
    items = [(real, row, int(row.stem)) for row in
             [*chosen, *(row for row in real.rows if row.split != "train")]]
    if synthetic is not None:
        wanted = {label: max(1, round(dose * n)) for label, n in real.counts["train"].items()}
        items += [(synthetic, row, beyond + int(row.stem)) for row in
                  some_images(synthetic.select("train"), wanted, synthetic.name, seed)]
    return items


def parents_of(real: Dataset, synthetic: Dataset | None, share: float) -> list[dict]:
    """What the splits are made from: real's by themselves, and what the arm has seen of real."""
    seen = {"train"} if share else set()
    if synthetic is None:
        return [parent_of(real, {split: [split] for split in SPLITS})]
    for parent in synthetic.manifest["parents"]:
        if parent["fingerprint"] == real.fingerprint:
            seen |= set(parent["splits"].get("train", []))
    return [parent_of(real, {"train": sorted(seen), "val": ["val"], "test": ["test"]}),
            parent_of(synthetic, {"train": ["train"], "val": [], "test": []})]


# ------------------------------------------------------------------ the stage

def check_synthetic(synthetic: Dataset, real: Dataset) -> None:
    """Raise Fault unless its images may be mixed with those of real."""
    check_same_task(synthetic, real)
    if synthetic.channels != real.channels:
        raise faults.Fault(f"{synthetic.path} has {synthetic.channels} channels, {real.path} has "
                           f"{real.channels}: mix images of one form")
    if control_of(synthetic.manifest) or "mix" in synthetic.manifest:
        raise faults.Fault(f"{synthetic.path} is a control or a mixture: mix in an arm")


def write(items: list[tuple[Dataset, Row, int]], real: Dataset, synthetic: Dataset | None,
          target: Output, said: dict) -> Dataset:
    """Copy what is pending, and publish. said: {real, dose}, the shares asked for."""
    with DatasetWriter(target, stage="mix_seg", classes=real.classes, targets=real.targets,
                       image_size=real.image_size, channels=real.channels) as writer:
        progress = Progress("mixture", len(items), done=len(writer.records),
                            jsonl_path=writer.work_dir / "progress.jsonl")
        for data, row, number in items:
            if writer.has(row.split, row.label, number):
                continue
            writer.add(row.split, row.label, number, (data.path / row.file_name).read_bytes(),
                       group=row.group, source=row.file_name, made_of=data.name, prompt=row.prompt,
                       seed=row.seed, **{name: row.extra.get(name, "") for name in real.targets})
            progress.update(len(writer.records))
            faults.check_stop()
        trained = Counter((data is real, row.label) for data, row, _ in items
                          if row.split == "train")
        mix = {**said, "synthetic": synthetic and synthetic.name,
               "num_real": sum(trained[True, label] for label in real.classes),
               "num_synthetic": sum(trained[False, label] for label in real.classes)}
        warnings = [*real.warnings, *(synthetic.warnings if synthetic else [])]
        return writer.publish(parents=parents_of(real, synthetic, said["real"]), mix=mix,
                              seed=target.options["seed"],
                              warnings=list(dict.fromkeys(warnings)), **inherited(real))


def run(*, real: Path, synthetic: Path | None, real_share: float, dose: float | None,
        output: Path, seed: int, preset: str, overwrite: bool, dry_run: bool) -> None:
    check_apart(real, output)
    if (synthetic is None) != (dose is None):
        raise faults.BadOptions("--synthetic, an arm, and --dose, how much of it, go together")
    if synthetic is None and real_share in (0, 1):
        raise faults.BadOptions(f"--real-share {real_share:g} without --synthetic is "
                                f"{'real itself' if real_share else 'nothing'}: give a share "
                                "between 0 and 1, or an arm to mix in")
    options = {"real": read_manifest(real)["fingerprint"], "real_share": real_share,
               "synthetic": synthetic and read_manifest(synthetic)["fingerprint"], "dose": dose,
               "seed": seed, "recipe": RECIPE}
    target = Output(output, MANIFEST, options, overwrite=overwrite)
    if target.is_complete():
        print(f"{output}: already complete")
        return
    data, arm = open_dataset(real), synthetic and open_dataset(synthetic)
    if arm is not None:
        check_synthetic(arm, data)
    items = plan(data, arm, real_share, dose or 0.0, seed)
    counts = Counter(each.name for each, row, _ in items if row.split == "train")
    told = ", ".join(f"{n} of {name}" for name, n in counts.items())
    say(f"mix_seg: training images: {told}")
    if dry_run:
        print(f"plan: would write {len(items)} images to {output}, preset {preset}")
        return
    made = write(items, data, arm, target, {"real": real_share, "dose": dose or 0.0})
    print(f"{made.path}: {len(made.rows)} images; training images: {told}")


def build_parser() -> argparse.ArgumentParser:
    parser = cli.stage_parser("mix_seg.py", __doc__)
    group = parser.add_argument_group("Main")
    group.add_argument("--real", type=cli.directory, required=True, metavar="DIR",
                       help="the real dataset")
    group.add_argument("--output", type=cli.directory, required=True, metavar="DIR",
                       help="the dataset to make")
    group.add_argument("--synthetic", type=cli.directory, metavar="DIR", help="an arm to mix in")
    group = parser.add_argument_group("Hyperparameters")
    group.add_argument("--real-share", type=cli.fraction, default=0.0, metavar="FRACTION",
                       help="share of real's training images, by whole groups")
    group.add_argument("--dose", type=cli.positive_float, metavar="TIMES",
                       help="images of the arm, as a multiple of real's training images")
    cli.add_common(parser, presets=PRESETS, device=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
