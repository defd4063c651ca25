"""The dataset contract: what every arm writes and the CNN reads.

    <dataset>/
      train/<class>/000000.png   val/<class>/...   test/<class>/...   RGB uint8, square, one size
      masks/<kind>/<class>/000000.png    optional, 8-bit, same names (a name is unique in a dataset)
      metadata.csv                       one row an image, sorted by file_name
      dataset.json                       the manifest, written last: present means complete

torchvision's ImageFolder(<dataset>/train) and Hugging Face's imagefolder loader read it as it is
(masks lie by kind and class, not by split, because the latter would take them for images).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from lungkit.data.png import RGB, decode_png, describe_header, read_header
from lungkit.run.faults import Fault, several
from lungkit.run.files import read_json, sha256

SCHEMA = "lungkit.dataset/1"
MANIFEST = "dataset.json"
SPLITS = ("train", "val", "test")
COLUMNS = ("file_name", "label", "split", "group", "source", "prompt", "seed", "sha256")


@dataclass(frozen=True)
class Row:
    """One image: `file_name` is relative to the dataset, e.g. train/lung_n/000012.png."""

    file_name: str
    label: str
    split: str
    group: str = ""
    source: str = ""
    prompt: str = ""
    seed: str = ""
    sha256: str = ""
    extra: dict = field(default_factory=dict, compare=False)

    @property
    def stem(self) -> str:
        return Path(self.file_name).stem


def fingerprint(rows: list[Row]) -> str:
    """SHA-256 over the sorted file names, labels and content hashes."""
    lines = sorted(f"{row.file_name}\t{row.label}\t{row.sha256}" for row in rows)
    return sha256("\n".join(lines).encode())


# ------------------------------------------------------------------ reading

class Dataset:
    """A complete, checked dataset on disk. Open one with `open_dataset`."""

    def __init__(self, path: Path, manifest: dict, rows: list[Row]) -> None:
        self.path, self.manifest, self.rows = path, manifest, rows
        self.name: str = manifest["name"]
        self.classes: list[str] = manifest["classes"]
        self.image_size: int = manifest["image_size"]
        self.fingerprint: str = manifest["fingerprint"]
        self.warnings: list[str] = manifest.get("warnings", [])

    def select(self, split: str, label: str | None = None) -> list[Row]:
        """The rows of a split, and of one class if `label` is given, by file name."""
        return [row for row in self.rows
                if row.split == split and (label is None or row.label == label)]

    def image(self, row: Row) -> np.ndarray:
        """uint8 [S, S, 3], RGB."""
        return decode_png((self.path / row.file_name).read_bytes())

    def mask(self, kind: str, row: Row) -> np.ndarray:
        """uint8 [S, S]."""
        return decode_png(self.mask_path(kind, row).read_bytes())

    def mask_path(self, kind: str, row: Row) -> Path:
        return self.path / "masks" / kind / row.label / f"{row.stem}.png"

    def load(self, split: str, label: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [N, S, S, 3] and labels int64 [N] in the order of `select`."""
        rows = self.select(split, label)
        images = np.empty((len(rows), self.image_size, self.image_size, 3), np.uint8)
        for index, row in enumerate(rows):
            images[index] = self.image(row)
        return images, np.array([self.classes.index(row.label) for row in rows], np.int64)

    def trained_on(self) -> list[dict]:
        """What a model trained on this dataset's train and val splits has seen of other datasets.

        Returns [{name, fingerprint, splits}]: itself, and each parent with the splits read.
        """
        seen = [{"name": self.name, "fingerprint": self.fingerprint, "splits": ["train", "val"]}]
        for parent in self.manifest["parents"]:
            splits = {split for own in ("train", "val") for split in parent["splits"].get(own, [])}
            seen.append({"name": parent["name"], "fingerprint": parent["fingerprint"],
                         "splits": sorted(splits)})
        return seen

    @cached_property
    def counts(self) -> dict[str, dict[str, int]]:
        return count(self.rows, self.classes)


def count(rows: list[Row], classes: list[str]) -> dict[str, dict[str, int]]:
    """Images by split and class."""
    table = {split: dict.fromkeys(classes, 0) for split in SPLITS}
    for row in rows:
        table[row.split][row.label] += 1
    return table


def parent_of(dataset: Dataset, splits: dict[str, list[str]]) -> dict:
    """A `parents` entry: which splits of `dataset` each split of the new dataset was made from."""
    return {"name": dataset.name, "fingerprint": dataset.fingerprint, "splits": splits}


def read_manifest(path: Path) -> dict:
    """The manifest of a complete dataset. Raises Fault if there is none."""
    path = Path(path)
    if not path.is_dir():
        raise Fault(f"dataset {path} is not a directory: make it with its stage first")
    if not (path / MANIFEST).exists():
        raise Fault(f"{path} has no {MANIFEST}, so it is not a complete dataset: "
                    "run the stage that makes it (again)")
    manifest = read_json(path / MANIFEST)
    missing = [key for key in ("schema", "name", "classes", "image_size", "counts", "parents",
                               "fingerprint") if key not in manifest]
    if manifest.get("schema") != SCHEMA or missing:
        raise Fault(f"{path / MANIFEST} is not a {SCHEMA} manifest"
                    + (f" (no {', '.join(missing)})" if missing else ""))
    return manifest


def open_dataset(path: Path) -> Dataset:
    """Open a dataset after checking all of it; raise Fault once, with every fault found."""
    path = Path(path)
    manifest = read_manifest(path)
    faults: list[str] = []
    rows: list[Row] = []
    try:
        with open(path / "metadata.csv", newline="", encoding="utf-8") as file:
            for record in csv.DictReader(file):
                known = {name: record.pop(name) for name in COLUMNS if name in record}
                rows.append(Row(**known, extra=record))
    except (FileNotFoundError, TypeError, csv.Error) as error:
        raise Fault(f"{path / 'metadata.csv'} cannot be read ({error}): "
                    "make the dataset again") from None
    classes, size = manifest["classes"], manifest["image_size"]
    for row in rows:
        if row.label not in classes or row.split not in SPLITS \
                or not row.file_name.startswith(f"{row.split}/{row.label}/"):
            faults.append(f"{row.file_name}: listed with unknown class or split")
            continue
        file = path / row.file_name
        try:
            content = file.read_bytes()
        except OSError:
            faults.append(f"{row.file_name}: missing or unreadable")
            continue
        header = read_header(content)
        if header != (size, size, 8, RGB):
            faults.append(f"{row.file_name}: {describe_header(header)}, "
                          f"not an RGB PNG of {size} x {size}")
        elif sha256(content) != row.sha256:
            faults.append(f"{row.file_name}: altered since the dataset was made")
    listed = {row.file_name for row in rows}
    for split in SPLITS:
        for file in sorted((path / split).glob("*/*")):
            name = file.relative_to(path).as_posix()
            if name not in listed:
                faults.append(f"{name}: not in metadata.csv")
        for folder in sorted(p.name for p in (path / split).glob("*") if p.is_dir()):
            if folder not in classes:
                faults.append(f"{split}/{folder}: not a class of this dataset")
    if not faults and count(rows, classes) != manifest["counts"]:
        faults.append("counts differ from the manifest")
    if not faults and fingerprint(rows) != manifest["fingerprint"]:
        faults.append("the fingerprint differs from the manifest")
    if faults:
        raise Fault(f"dataset {path} has {len(faults)} fault{'s'[:len(faults) > 1]}: "
                    f"{several(faults)}: restore the files or make the dataset again with "
                    "--overwrite")
    return Dataset(path, manifest, rows)


def check_same_task(dataset: Dataset, real: Dataset) -> None:
    """Raise Fault unless `dataset` compares with `real`: classes, size, parent, no test image."""
    if dataset.classes != real.classes:
        raise Fault(f"{dataset.path} has classes {dataset.classes}, {real.path} has "
                    f"{real.classes}: compare datasets of one run")
    if dataset.image_size != real.image_size:
        raise Fault(f"{dataset.path} has images of {dataset.image_size} px, {real.path} of "
                    f"{real.image_size} px: make both at one --image-size")
    seen = dataset.trained_on()
    others = [entry for entry in seen if entry["name"] == real.name
              and entry["fingerprint"] != real.fingerprint]
    # unless it comes from this very real, who knows whether its images are real's test images
    if others or real.fingerprint not in [entry["fingerprint"] for entry in seen]:
        raise Fault(f"{dataset.path} was not made from {real.path} as it is now (fingerprint "
                    f"{real.fingerprint[:12]}): make it again from there")
    if any("test" in entry["splits"] for entry in seen if entry["fingerprint"] == real.fingerprint):
        raise Fault(f"{dataset.path} saw test images of {real.path} in its training splits: "
                    "its accuracy would be a leak; make it again from the train split")
