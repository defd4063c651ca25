"""The dataset contract: what every arm writes and the CNN reads. In full: docs/dataset.md.

  <dataset>/
      train/<class>/000000.png   val/<class>/...   test/<class>/...   8 bit, square, one size
      masks/<kind>/<class>/000000.png    optional, grey, same names (a name is unique in a dataset)
      metadata.csv                       one row an image, sorted by file_name
      dataset.json                       the manifest, written last: present means complete

torchvision's ImageFolder(<dataset>/train) and Hugging Face's imagefolder loader read it as it is
(masks lie by kind and class, not by split, because the latter would take them for images).
Images are RGB or grey on disk, and uint8 [S, S, channels] in memory, channels 3 or 1.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from lungkit.data import cache
from lungkit.data.manifest import COLUMNS, MANIFEST, SPLITS, read_manifest
from lungkit.data.png import GREY, RGB, decode_png, describe_header, read_header
from lungkit.run.faults import Fault, several
from lungkit.run.files import sha256
from lungkit.run.system_files import listed
from lungkit.run.tables import read_table


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
    """A complete, checked dataset on disk. Open one with `open_dataset`.

    channels 1 or 3; bits 8; modality "he", "fluorescence", "ct" or None; um_per_px float or None
    (unknown); intensity {unit, window: [black, white]} or None; symmetries 8, 2 or 1; masks
    {kind: "binary" | "labels"}; targets {column of metadata.csv: {kind, values}}.
    groups_given: how groups came about, as audit/confounding.py says it, or None (unknown).
    """

    def __init__(self, path: Path, manifest: dict, rows: list[Row],
                 splits: Sequence[str] = SPLITS) -> None:
        """manifest: as `read_manifest` gives it; rows: by file name; splits: those there are."""
        self.path, self.manifest, self.rows, self.splits = path, manifest, rows, splits
        self.name: str = manifest["name"]
        self.classes: list[str] = manifest["classes"]
        self.image_size: int = manifest["image_size"]
        self.fingerprint: str = manifest["fingerprint"]
        self.warnings: list[str] = manifest["warnings"]
        self.channels: int = manifest["channels"]
        self.bits: int = manifest["bits"]
        self.modality: str | None = manifest["modality"]
        self.um_per_px: float | None = manifest["um_per_px"]
        self.intensity: dict | None = manifest["intensity"]
        self.symmetries: int = manifest["symmetries"]
        self.masks: dict[str, str] = manifest["masks"]
        self.targets: dict[str, dict] = manifest["targets"]
        self.groups_given: str | None = manifest.get("confounding", {}).get("groups_given")

    def select(self, split: str, label: str | None = None) -> list[Row]:
        """The rows of a split, and of one class if `label` is given, by file name."""
        return [row for row in self.rows
                if row.split == split and (label is None or row.label == label)]

    def image(self, row: Row) -> np.ndarray:
        """uint8 [S, S, channels], RGB or grey."""
        image = decode_png((self.path / row.file_name).read_bytes())
        return image if image.ndim == 3 else image[..., None]

    def mask(self, kind: str, row: Row) -> np.ndarray:
        """uint8 [S, S]: 0 and 255, or label values."""
        return decode_png(self.mask_path(kind, row).read_bytes())

    def mask_path(self, kind: str, row: Row) -> Path:
        return self.path / "masks" / kind / row.label / f"{row.stem}.png"

    def load(self, split: str, label: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [N, S, S, channels] and labels int64 [N] in the order of `select`.

        A split of more than cache.IN_MEMORY_BYTES is mapped from a file and cannot be written to.
        """
        rows = self.select(split)
        shape = (len(rows), self.image_size, self.image_size, self.channels)
        chosen = [index for index, row in enumerate(rows) if label in (None, row.label)]
        if int(np.prod(shape)) > cache.IN_MEMORY_BYTES:
            images = cache.map_split(self.path, self.fingerprint, split, shape,
                                     map(self.image, rows))
            images = images[chosen[0]:chosen[-1] + 1] if chosen else images[:0]  # of one folder
        else:
            images = np.empty((len(chosen), *shape[1:]), np.uint8)
            for number, index in enumerate(chosen):
                images[number] = self.image(rows[index])
        labels = [self.classes.index(rows[index].label) for index in chosen]
        return images, np.array(labels, np.int64)

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

    @property
    def is_ordinal(self) -> bool:
        """Whether the classes are grades: <target>_<value> of an ordinal target, in its order."""
        named = [[f"{name}_{value}" for value in target["values"]]
                 for name, target in self.targets.items() if target["kind"] == "ordinal"]
        return any(self.classes == [grade for grade in grades if grade in self.classes]
                   for grades in named)

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


def inherited(real: Dataset) -> dict:
    """What images drawn after those of `real` share with them, for `DatasetWriter.publish`."""
    return {"modality": real.modality, "um_per_px": real.um_per_px, "intensity": real.intensity,
            "symmetries": real.symmetries}


# ------------------------------------------------------------------ opening and checking

def open_dataset(path: Path, splits: Sequence[str] = SPLITS) -> Dataset:
    """Open a dataset after checking all of it; raise Fault once, with every fault found.

    Masks are checked for their form, images for their content too. What an operating system or a
    file server left in the folder (lungkit/run/system_files.py) is no fault. splits: of the others
    metadata.csv is read and nothing else, and the dataset then has neither their rows nor masks.
    """
    path = Path(path)
    manifest = read_manifest(path)
    rows = read_rows(path)
    if others := set(SPLITS) - set(splits):
        manifest = {**manifest, "masks": {}}
    dataset = Dataset(path, manifest, [row for row in rows if row.split not in others], splits)
    if respelt := list(respelt_folders(dataset)):
        raise Fault(f"dataset {path} was copied by a program that spells letters in another form "
                    f"(composed, decomposed) than it was made with: {several(respelt)}: rename the "
                    "folders")
    faults = [*image_faults(dataset), *mask_faults(dataset), *target_faults(dataset)]
    strays = list(stray_files(dataset))
    if not faults and any(dataset.counts[split] != manifest["counts"].get(split)
                          for split in splits):
        faults.append(f"counts differ from {MANIFEST}")
    if not faults and fingerprint(rows) != manifest["fingerprint"]:
        faults.append(f"the fingerprint differs from {MANIFEST}")
    if faults or strays:
        number = len(faults) + len(strays)
        raise Fault(f"dataset {path} has {number} fault{'s'[:number > 1]}: "
                    f"{several([*faults, *strays])}: "
                    + ("restore the files or make the dataset again with --overwrite" if faults
                       else f"remove {'them' if number > 1 else 'it'}, the rest is whole"))
    return dataset


def respelt_folders(dataset: Dataset) -> Iterator[str]:
    """Class folders that are there by the same letters in another form, and what they should be."""
    for folder in (*dataset.splits, *(f"masks/{kind}" for kind in dataset.masks)):
        for label in dataset.classes:
            if (dataset.path / folder / label).exists():
                continue
            for other in listed(dataset.path / folder):
                if unicodedata.normalize("NFC", other.name) == unicodedata.normalize("NFC", label):
                    yield f"{folder}/{ascii(other.name)} to {ascii(label)}"


def stray_files(dataset: Dataset) -> Iterator[str]:
    """What lies among the images and masks and is not of the dataset."""
    composed = partial(unicodedata.normalize, "NFC")  # some file systems exchange the spellings
    known = {composed(row.file_name) for row in dataset.rows}
    classes = set(map(composed, dataset.classes))
    for split in dataset.splits:
        for file in listed(dataset.path / split, "*/*"):
            name = file.relative_to(dataset.path).as_posix()
            if composed(name) not in known:
                yield f"{name}: not in metadata.csv"
        for folder in listed(dataset.path / split):
            if folder.is_dir() and composed(folder.name) not in classes:
                yield f"{split}/{folder.name}: not a class of this dataset"
    for folder in listed(dataset.path / "masks") if dataset.splits == SPLITS else ():
        if folder.name not in dataset.masks:
            yield f"masks/{folder.name}: a kind that the manifest does not declare"


def read_rows(path: Path) -> list[Row]:
    """The rows of metadata.csv, by file name. Raises Fault if it cannot be read."""
    rows: list[Row] = []
    try:
        for _, record in read_table(path / "metadata.csv", ["file_name", "label", "split"]).rows:
            known = {name: record.pop(name) for name in COLUMNS if name in record}
            rows.append(Row(**known, extra=record))
    except OSError as error:
        raise Fault(f"{path / 'metadata.csv'} cannot be read ({error.strerror}): restore it or "
                    "make the dataset again") from None
    return sorted(rows, key=lambda row: row.file_name)


def image_faults(dataset: Dataset) -> Iterator[str]:
    """What is wrong with the images that metadata.csv lists."""
    size, wanted = dataset.image_size, GREY if dataset.channels == 1 else RGB
    for row in dataset.rows:
        if row.label not in dataset.classes or row.split not in SPLITS \
                or not row.file_name.startswith(f"{row.split}/{row.label}/"):
            yield f"{row.file_name}: listed with unknown class or split"
            continue
        try:
            content = (dataset.path / row.file_name).read_bytes()
        except OSError:
            yield f"{row.file_name}: missing or unreadable"
            continue
        header = read_header(content)
        if header != (size, size, 8, wanted):
            yield (f"{row.file_name}: {describe_header(header)}, not "
                   f"{'a grey' if wanted == GREY else 'an RGB'} PNG of {size} x {size}")
        elif sha256(content) != row.sha256:
            yield f"{row.file_name}: altered since the dataset was made"


def mask_faults(dataset: Dataset) -> Iterator[str]:
    """What is wrong with the masks; a kind is of every image, or of as many as were written."""
    size = dataset.image_size
    written = dataset.manifest["mask_counts"]
    for kind in dataset.masks:
        missing = []
        for row in dataset.rows:
            file = dataset.mask_path(kind, row)
            name = file.relative_to(dataset.path).as_posix()
            try:
                header = read_header(file.read_bytes())
            except OSError:
                missing.append(f"{name}: missing or unreadable")
                continue
            if header != (size, size, 8, GREY):
                yield f"{name}: {describe_header(header)}, not a grey PNG of {size} x {size}"
        there = len(dataset.rows) - len(missing)
        if written.get(kind, len(dataset.rows)) == len(dataset.rows):
            yield from missing
        elif there != written[kind]:
            yield f"masks/{kind}: {there} masks of images, {written[kind]} were written"


def target_faults(dataset: Dataset) -> Iterator[str]:
    """What is wrong with the further label columns; an empty cell is an unknown value."""
    for name, target in dataset.targets.items():
        values = [row.extra.get(name) for row in dataset.rows]
        if None in values:
            yield f"metadata.csv: no column {name!r}, which is a target"
            continue
        for row, value in zip(dataset.rows, values, strict=True):
            if value and not is_allowed(value, target):
                yield f"{row.file_name}: {name} {value!r} is not of {target['values']}"


def is_allowed(value: str, target: dict) -> bool:
    """Whether a cell is one of the target's values, or a number from its least to its largest."""
    if target["kind"] != "number":
        return value in map(str, target["values"])
    try:
        least, most = target["values"] or (-np.inf, np.inf)
        return least <= float(value) <= most
    except ValueError:
        return False


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
