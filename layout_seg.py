#!/usr/bin/env python3
"""Make the dataset "layout": each CT image as the label map of what lies in it, and no more.

CT's Voronoi arm. What a generator is given with a label map is the outline of every nodule, and
with it its size, which tells much of the class. This arm is that map alone: what an arm made from
maps shows beyond it is of the images, and not of the outlines. Splits, labels, groups and file
names are those of the real dataset.

Reads   --real    a dataset made by ct_seg.py from scans: masks/layout and no pixel of the images
Writes  --output  a dataset of grey images in real's window, one grey to a label

Running the same command again resumes; a complete output is left as it is.
Exit status: 0 complete, 1 bad data or failed run, 2 bad options, 75 stopped and resumable.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from lungkit.data.dataset import SPLITS, Dataset, inherited, open_dataset, parent_of
from lungkit.data.manifest import MANIFEST, read_manifest
from lungkit.data.writer import DatasetWriter
from lungkit.run import cli, faults
from lungkit.run.output import Output, check_apart
from lungkit.run.progress import Progress, say

PRESETS = {"demo": {}, "full": {}}  # nothing here depends on the size of the machine
RECIPE = 1  # raise it when the drawing changes: a dataset of another is not complete
RENDERS = ("tissues", "labels")
# typical HU of what ct_seg.py's labels mean; ours, rounded. Fixed, and not the means of an image:
# a mean would tell a solid nodule from ground glass, which the outline does not
TISSUE_HU = {"outside": -1000, "body": 40, "lung": -850, "bone": 400, "vessel": 40, "nodule": 40}


def greys(names: list[str], render: str, window: tuple[float, float]) -> np.ndarray:
    """The grey of each label, uint8 [N]: of its tissue in `window` (HU), or evenly spaced."""
    if render == "labels":
        levels = np.linspace(0, 1, len(names))
    else:
        low, high = window
        levels = (np.array([TISSUE_HU[name] for name in names]) - low) / (high - low)
    return np.rint(np.clip(levels, 0, 1) * 255).astype(np.uint8)


def check_layouts(manifest: dict, real: Path) -> None:
    """Raise Fault unless every image of `real` has a label map of known labels, and a window."""
    again = "make it from scans by ct_seg.py"
    written = manifest["mask_counts"].get("layout", 0)
    images = sum(sum(row.values()) for row in manifest["counts"].values())
    if manifest["masks"].get("layout") != "labels" or written != images:
        raise faults.Fault(f"{real} has label maps (masks/layout) of {written} of its {images} "
                           f"images: {again}")
    if unknown := [name for name in manifest.get("layout") or ["none"] if name not in TISSUE_HU]:
        raise faults.Fault(f"{real} names labels of masks/layout that are not known here "
                           f"({', '.join(map(str, unknown))}): {again}")
    if manifest["channels"] != 1 or (manifest["intensity"] or {}).get("unit") != "HU":
        raise faults.Fault(f"{real} does not hold grey images of a window in HU: {again}")


def draw(data: Dataset, row, grey_of: np.ndarray) -> np.ndarray:
    """The label map of a row, uint8 [S, S, 1], in the grey of each label. Raises Fault."""
    labels = data.mask("layout", row)
    if labels.max() >= len(grey_of):
        raise faults.Fault(f"{data.mask_path('layout', row)} holds label {labels.max()}, the "
                           f"manifest names 0 to {len(grey_of) - 1}: restore it or make the "
                           "dataset again with --overwrite")
    return grey_of[labels][..., None]


def run(*, real: Path, output: Path, render: str, preset: str, overwrite: bool,
        dry_run: bool) -> None:
    check_apart(real, output)
    manifest = read_manifest(real)
    target = Output(output, MANIFEST, {"real": manifest["fingerprint"], "render": render,
                                       "recipe": RECIPE}, overwrite=overwrite)
    if target.is_complete():
        print(f"{output}: already complete")
        return
    check_layouts(manifest, real)
    data = open_dataset(real)
    grey_of = greys(manifest["layout"], render, manifest["intensity"]["window"])
    say("layout_seg: " + ", ".join(f"{name} {grey}" for name, grey
                                   in zip(manifest["layout"], grey_of, strict=True)))
    if dry_run:
        print(f"plan: found {len(data.rows)} images in {len(data.classes)} classes, would write "
              f"{output}, preset {preset}")
        return
    with DatasetWriter(target, stage="layout_seg", classes=data.classes, channels=1,
                       image_size=data.image_size, targets=data.targets) as writer:
        progress = Progress("layout", len(data.rows), done=len(writer.records),
                            jsonl_path=writer.work_dir / "progress.jsonl")
        for row in data.rows:
            if writer.has(row.split, row.label, int(row.stem)):
                continue
            writer.add(row.split, row.label, int(row.stem), draw(data, row, grey_of),
                       group=row.group, source=row.file_name,
                       **{name: row.extra[name] for name in data.targets})
            progress.update(len(writer.records))
            faults.check_stop()
        shared = inherited(data) | ({} if render == "tissues" else {"intensity": None})
        made = writer.publish(parents=[parent_of(data, {split: [split] for split in SPLITS})],
                              seed=data.manifest.get("seed", 0), warnings=data.warnings, **shared)
    print(f"{made.path}: {len(made.rows)} label maps of {len(made.classes)} classes")


def build_parser() -> argparse.ArgumentParser:
    parser = cli.stage_parser("layout_seg.py", __doc__)
    group = parser.add_argument_group("Main")
    group.add_argument("--real", type=cli.directory, required=True, metavar="DIR",
                       help="dataset of ct_seg.py")
    group.add_argument("--output", type=cli.directory, required=True, metavar="DIR",
                       help="dataset to make")
    group = parser.add_argument_group("Hyperparameters")
    group.add_argument("--render", choices=RENDERS, default="tissues",
                       help="tissues: each label in the HU of its tissue, so that a nodule is as "
                            "bright as a vessel, as in CT; labels: in greys evenly spaced")
    cli.add_common(parser, presets=PRESETS, seed=False, device=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
