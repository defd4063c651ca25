"""Make a real dataset again without some of its training images: those that a table names.

Reads   --data     real, as tumor_seg.py or ct_seg.py made it
        --exclude  outliers.csv, of which the rows that say yes in `flagged`, or any table whose
                   column `file_name` names training images
Writes  --output   the same dataset, of the same name, without them: each other file, and val and
                   test, as they were; `excluded` of its manifest says what is left out

Made before the arms, so that real and all arms are without them. The options in its manifest are
those of DATA: in another run directory, RUN/datasets/real, the pipeline takes it for its own.
Its fingerprint is another, so that results with and without are never mixed. Reports beside the
images (confounding, qc.csv) are those of DATA.

Running the same command again resumes; a complete output is left as it is.
Exit statuses: 0 complete, 1 bad data or failed run, 2 bad options, 75 stopped and resumable.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from lungkit.data.dataset import Dataset, open_dataset
from lungkit.data.exclude import read_exclusions
from lungkit.data.manifest import MANIFEST, read_manifest
from lungkit.data.writer import DatasetWriter
from lungkit.run import cli, faults
from lungkit.run.files import sha256
from lungkit.run.output import Output, check_apart
from lungkit.run.progress import say
from lungkit.run.system_files import listed

# what the writer says of a dataset by itself
WRITTEN = {"schema", "name", "stage", "classes", "image_size", "channels", "counts", "seed",
           "parents", "fingerprint", "warnings", "masks", "mask_counts", "targets", "parameters",
           "versions", "commit", "dirty", "command", "excluded"}


def excluded(data: Dataset, left_out: list[str]) -> dict:
    """What the manifest says of it, and what an earlier table left out."""
    before = data.manifest.get("excluded")
    return {"from": data.fingerprint, "file_names": left_out, **({"before": before} if before
                                                                 else {})}


def write(data: Dataset, left_out: list[str], target: Output) -> Dataset:
    """Copy all but `left_out` to `target`, file by file, and publish."""
    about, manifest, names = excluded(data, left_out), data.manifest, set(left_out)
    with DatasetWriter(target, stage=manifest["stage"], classes=data.classes,
                       image_size=data.image_size, channels=data.channels,
                       mask_forms=data.masks, targets=data.targets,
                       plan=sha256(repr(about).encode())) as writer:
        for row in data.rows:
            if row.file_name in names or row.file_name in writer.records:
                continue
            masks = {kind: path.read_bytes() for kind in data.masks
                     if (path := data.mask_path(kind, row)).exists()}
            writer.add(row.split, row.label, int(row.stem),
                       (data.path / row.file_name).read_bytes(), masks=masks, group=row.group,
                       source=row.source, prompt=row.prompt, seed=row.seed, **row.extra)
            faults.check_stop()
        for path in listed(data.path):
            if path.is_file() and path.name not in (MANIFEST, "metadata.csv"):
                shutil.copyfile(path, writer.work_dir / path.name)
        said = (f"excluded: {len(left_out)} of {len(data.select('train'))} training images were "
                "left out by a table before any arm was made")
        return writer.publish(parents=[], seed=manifest["seed"], excluded=about,
                              warnings=[*data.warnings, said],
                              **{k: v for k, v in manifest.items() if k not in WRITTEN})


def run(*, data: Path, exclude: Path, output: Path, overwrite: bool, dry_run: bool) -> None:
    check_apart(data, output, option="--data")
    manifest = read_manifest(data)
    if manifest["parents"]:
        raise faults.BadOptions(f"--data {data} was made from {manifest['parents'][0]['name']}: "
                                "leave images out of that, and make the arms from what is left")
    if output.name != manifest["name"]:
        raise faults.BadOptions(f"--output {output}: the dataset keeps its name, which results "
                                f"know it by: end it in {manifest['name']}, in another folder")
    if not exclude.is_file():
        raise faults.BadOptions(f"--exclude {exclude} is not a file")
    dataset = open_dataset(data)
    left_out = read_exclusions(exclude, dataset)
    target = Output(output, MANIFEST, manifest.get("parameters", {}), overwrite=overwrite)
    if target.is_complete():
        if target.manifest().get("excluded") != excluded(dataset, left_out):
            raise faults.BadOptions(f"{output} was made without other images: use the same table, "
                                    "another --output, or --overwrite")
        print(f"{output}: already complete")
        return
    say(f"exclude: found {len(dataset.rows)} images, {len(left_out)} of train to be left out")
    if dry_run:
        print(f"{output}: would write {len(dataset.rows) - len(left_out)} images")
        return
    made = write(dataset, left_out, target)
    print(f"{made.path}: {len(made.rows)} images, without {len(left_out)} of train")


def build_parser() -> argparse.ArgumentParser:
    parser = cli.stage_parser("python -m lungkit.tools.exclude", __doc__)
    parser.add_argument("--data", type=cli.directory, required=True, metavar="DIR",
                        help="the real dataset")
    parser.add_argument("--exclude", type=Path, required=True, metavar="CSV",
                        help="table of the training images to leave out")
    parser.add_argument("--output", type=cli.directory, required=True, metavar="DIR",
                        help="the dataset to make, of the same name in another folder")
    cli.add_common(parser, seed=False, device=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
