"""Adopt a folder of images that others made as a dataset that can be compared with real.

Reads   DATA, train|val|test/<class>/*.png of REAL's classes and size, and REAL; of a metadata.csv
        that lies there its columns are kept, by file_name
Writes  DATA/metadata.csv, then DATA/dataset.json, the manifest; no image is moved or changed
Prints  what was adopted

No image of train or val may be a test image of REAL, nor a copy of one: turned, cropped,
re-encoded or re-stained. What the images' maker was trained on cannot be seen in them: --trained-on
states it, and goes into every result. Whoever trained on the public collection that REAL was made
from has seen its test images, too.

  nothing    no image of REAL, and none of its patients
  train      images of REAL's train split; train val: of both
  test       of its test split, too: refused, for a score on these would be a memory
  unknown    refused: ask who made them

A folder that is a dataset already is checked, and left as it is. Running the same command again
changes nothing. Exit statuses: 0 adopted, 1 bad data, 2 bad options, 75 stopped, run it again.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from pathlib import Path

from lungkit.audit import leaks
from lungkit.data.dataset import (
    Dataset,
    Row,
    check_same_task,
    count,
    fingerprint,
    inherited,
    open_dataset,
    parent_of,
)
from lungkit.data.manifest import COLUMNS, DEFAULTS, MANIFEST, SCHEMA, SPLITS
from lungkit.data.png import GREY, RGB, describe_header, read_header
from lungkit.run import cli
from lungkit.run.faults import BadOptions, Fault, several
from lungkit.run.files import read_json, sha256, write_json, write_text
from lungkit.run.output import lock
from lungkit.run.progress import say
from lungkit.run.provenance import provenance
from lungkit.run.system_files import listed
from lungkit.run.tables import read_table

NOTHING, UNKNOWN, TABLE = "nothing", "unknown", "metadata.csv"


# ------------------------------------------------------------------ what is said

def stated(words: list[str]) -> list[str]:
    """The splits of real that the maker is said to have seen. Raises BadOptions."""
    if UNKNOWN in words:
        raise BadOptions("--trained-on unknown: nobody could say whether the maker saw REAL's test "
                         "images, and a score on these would mean nothing: ask who made the images")
    if "test" in words:
        raise BadOptions("--trained-on test: a maker that saw REAL's test images has made nothing "
                         "that can be tested on them: take images made without them")
    if NOTHING in words and len(set(words)) > 1:
        raise BadOptions(f"--trained-on {' '.join(words)}: it is nothing, or it is something")
    return [split for split in SPLITS if split in words]


def check_name(name: str | None, data: Path, real: Dataset) -> str:
    """The dataset's name, which is its folder's. Raises BadOptions."""
    folder = Path(os.path.abspath(data)).name
    if name not in (None, folder):
        raise BadOptions(f"--name {name}: the folder is called {folder}, by which results know a "
                         f"dataset: rename it to {name}, or leave --name out")
    if folder == real.name:
        raise BadOptions(f"{data} has the name of the real dataset, and so would have its results: "
                         "rename the folder")
    return folder


# ------------------------------------------------------------------ what is there

def find_rows(data: Path, real: Dataset) -> tuple[list[Row], int]:
    """A row for every image, and the number of channels. Raises Fault with all that is wrong."""
    if not data.is_dir():
        raise Fault(f"{data} is not a folder: expected train, val and test in it")
    faults: list[str] = []
    contents: dict[Path, tuple | None] = {}
    for split in SPLITS:
        folders = [path.name for path in listed(data / split) if path.is_dir()]
        faults += [f"{split}/{name}: no class of {real.path}" for name in folders
                   if name not in real.classes]
        for label in real.classes:
            files = listed(data / split / label)
            faults += [] if files else [f"{split}/{label}: no image"]
            contents |= {file: read_header(file.read_bytes()) if file.is_file() else None
                         for file in files}
    colours = {header[3] for header in contents.values() if header}
    colour = GREY if colours == {GREY} else RGB
    wanted = (real.image_size, real.image_size, 8, colour)
    faults += [f"{file.relative_to(data).as_posix()}: {describe_header(header)}, not "
               f"{describe_header(wanted)}"
               for file, header in contents.items() if header != wanted]
    if (data / "masks").exists():
        faults.append("masks: only images are adopted, move it out of the folder")
    table = read_columns(data, faults)
    names = {file.relative_to(data).as_posix(): file for file in sorted(contents)}
    faults += [f"{TABLE}: {name} is not there" for name in sorted(set(table) - set(names))]
    if faults:
        raise Fault(f"{data} cannot be adopted: {several(faults)}")
    return [row_of(name, sha256(file.read_bytes()), table.get(name, {}))
            for name, file in names.items()], 3 if colour == RGB else 1


def read_columns(data: Path, faults: list[str]) -> dict[str, dict]:
    """What a table that lies there says of each image, by file name; none is needed."""
    if not (data / TABLE).exists():
        return {}
    try:
        records = read_table(data / TABLE, ["file_name"]).rows
    except Fault as fault:
        faults.append(f"{fault}; as it would be written over, mend it or move it away")
        return {}
    return {record["file_name"]: record for _, record in records}


def row_of(name: str, digest: str, kept: dict) -> Row:
    split, label, _ = name.split("/")
    known = {key: kept.get(key, "") for key in ("group", "source", "prompt", "seed")}
    return Row(name, label, split, **known, sha256=digest,
               extra={key: value for key, value in kept.items() if key not in COLUMNS})


# ------------------------------------------------------------------ what is made

def describe_dataset(data: Path, real: Dataset, name: str, seen: list[str]) -> Dataset:
    """The dataset that DATA will be; nothing is written."""
    rows, channels = find_rows(data, real)
    before = read_json(data / MANIFEST) if (data / MANIFEST).exists() else None
    if before and before.get("stage") == "adopt":
        before = before["adopted"]["before"]
    splits = " and ".join(seen) or NOTHING
    manifest = {
        **DEFAULTS, "schema": SCHEMA, "name": name, "stage": "adopt", "classes": real.classes,
        "image_size": real.image_size, "channels": channels, "counts": count(rows, real.classes),
        "parents": [parent_of(real, {split: seen for split in SPLITS})],
        "fingerprint": fingerprint(rows), **inherited(real),
        "warnings": [f"adopted: {name} was made by others; that its maker was trained on {splits} "
                     f"of {real.name} is their word. Its training images are no copies of test "
                     "images of it, by file, pixels and content"],
        "adopted": {"trained_on": seen, "before": before},
        "parameters": {"real": real.fingerprint, "trained_on": seen}, **provenance()}
    return Dataset(data, manifest, rows)


def table_of(dataset: Dataset) -> str:
    """The text of metadata.csv."""
    extra = sorted({key for row in dataset.rows for key in row.extra})
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS, *extra], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**{key: getattr(row, key) for key in COLUMNS}, **row.extra}
                     for row in dataset.rows)
    return text.getvalue()


def check_leaks(dataset: Dataset, real: Dataset) -> None:
    """Raise Fault where an image of train or val is a test image of real, or a copy of one."""
    say(f"{dataset.name}: looking among {len(leaks.training_rows(dataset))} training images for "
        f"copies of {len(real.select('test'))} test images of {real.name}")
    try:
        found = leaks.find_leaks(dataset, real)
    except ValueError as error:  # a whole header, and no image behind it
        raise Fault(f"{dataset.path} holds a PNG that cannot be decoded ({error})") from None
    if found:
        raise Fault(leaks.fault(found, dataset, real))


def check_adopted(data: Path, real: Dataset, seen: list[str]) -> Dataset:
    """Open what is a dataset already. Raises Fault, or BadOptions where it says otherwise."""
    dataset = open_dataset(data)
    check_same_task(dataset, real)
    says = sorted({split for entry in dataset.trained_on() for split in entry["splits"]
                   if entry["fingerprint"] == real.fingerprint})
    if says != sorted(seen):
        raise BadOptions(f"{data / MANIFEST} says that it was made from "
                         f"{' and '.join(says) or NOTHING} of {real.path}, --trained-on says "
                         f"{' and '.join(seen) or NOTHING}: --overwrite makes another manifest")
    return dataset


# ------------------------------------------------------------------ the command

def run(*, data: Path, real: Path, name: str | None, trained_on: list[str], overwrite: bool,
        dry_run: bool) -> None:
    """Check what is said and what is there, search, write, open."""
    seen = stated(trained_on)
    yardstick = open_dataset(real)
    name = check_name(name, data, yardstick)
    is_there = (data / MANIFEST).exists() and not overwrite
    dataset = check_adopted(data, yardstick, seen) if is_there else \
        describe_dataset(data, yardstick, name, seen)
    say(f"adopt: found {len(dataset.rows)} images of {len(dataset.classes)} classes, said to be "
        f"made from {' and '.join(seen) or NOTHING} of {yardstick.path}")
    if dry_run:
        return
    check_leaks(dataset, yardstick)
    if not is_there:
        with lock(data):
            write_text(data / TABLE, table_of(dataset))
            write_json(data / MANIFEST, dataset.manifest)
        dataset = open_dataset(data)
    state = "a dataset already" if is_there else "adopted"
    print(f"{data}: {state}, {len(dataset.rows)} images of {len(dataset.classes)} classes; none of "
          f"train and val is a copy of a test image of {real}")


def build_parser():
    parser = cli.stage_parser("python -m lungkit.tools.adopt", __doc__)
    group = parser.add_argument_group("Main")
    group.add_argument("--data", type=cli.directory, required=True, metavar="DIR",
                       help="the folder to adopt")
    group.add_argument("--real", type=cli.directory, required=True, metavar="DIR",
                       help="dataset of tumor_seg.py that it will be compared with")
    group.add_argument("--name", metavar="NAME",
                       help="of the dataset, and of its folder (default: the folder's)")
    group.add_argument("--trained-on", required=True, nargs="+", metavar="WHAT",
                       choices=(NOTHING, *SPLITS, UNKNOWN),
                       help="what of REAL the images' maker has seen: nothing, train, val")
    cli.add_common(parser, seed=False, device=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
