"""Masks to train on and to be scored by: which pixels are foreground, which images are one volume.

Foreground of a binary mask is 255, and 0 is background; any other value is a fault. Of a mask of
label values it is those that are named; one whose labels are 0 and 255 alone is read as binary. An
image without a mask of the kind is of unknown truth: it is neither trained on nor scored. What
masks of the kind IGNORED cover is neither a nodule nor none: it is not trained on, and what is
found there is neither right nor wrong.

Slices of one scan are one volume where a dataset shows whole slices: `ct_seg.py --view slice`, by
the columns `series` and `slice_index`. All else is scored image by image.

Feeds unet_segment.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lungkit.data import cache
from lungkit.data.dataset import Dataset, Row, read_manifest
from lungkit.run.faults import BadOptions, Fault, check_stop, several
from lungkit.run.files import sha256_file

BINARY = "binary"
FOREGROUND = 255
USUAL = ("nodule", "tumour")     # what is segmented where nothing is said: the first there is
IGNORED = "ignored"              # kind of masks, of images that show such findings; of nodules


# ------------------------------------------------------------------ which pixels

@dataclass(frozen=True)
class Target:
    """What is to be found: a kind of masks and, where it holds label values, which of them."""

    kind: str
    labels: tuple[int, ...] = ()

    def setting(self) -> dict:
        """Among what decides a training."""
        return {"mask": self.kind, "labels": list(self.labels)}


def choose(masks: dict[str, str], kind: str | None, labels: Sequence[int], where: object) -> Target:
    """The target that options mean. masks: {kind: form} of the dataset at `where`.

    Raises BadOptions where there is no such kind, none that is usual, or labels are lacking.
    """
    there = ", ".join(f"{name} ({form})" for name, form in masks.items()) or "none"
    if kind is None:
        kind = next((name for name in USUAL if name in masks), None)
        if kind is None:
            raise BadOptions(f"{where} has no masks of {' or '.join(USUAL)}: say which kind by "
                             f"--mask; there are {there}")
    if kind not in masks:
        raise BadOptions(f"--mask {kind}: {where} has no such masks; there are {there}")
    if masks[kind] == BINARY and labels:
        raise BadOptions(f"--labels is of masks of label values, and masks/{kind} of {where} are "
                         "binary: leave it out")
    if any(not 1 <= label <= 255 for label in labels):
        raise BadOptions("--labels: a label value is from 1 to 255, and 0 is background")
    return Target(kind, tuple(sorted(set(labels))))


def foreground(mask: np.ndarray, target: Target, name: str) -> np.ndarray:
    """bool [S, S] of a mask uint8 [S, S]. Raises Fault where its values are not understood."""
    if target.labels:
        return np.isin(mask, target.labels)
    values = np.unique(mask)
    odd = values[(values != 0) & (values != FOREGROUND)]
    if len(odd):
        raise Fault(f"{name} holds {several([str(each) for each in odd], 3)} where a binary mask "
                    f"holds 0, background, and {FOREGROUND}, foreground: of label values say which "
                    "by --labels")
    return mask == FOREGROUND


def fingerprint(path: Path, kind: str) -> str:
    """SHA-256 of the masks of a kind of the dataset at `path`, which its own does not know."""
    found = hashlib.sha256()
    for mask in sorted((path / "masks" / kind).rglob("*.png")):
        found.update(str(mask.relative_to(path)).encode() + b"\0" + sha256_file(mask).encode())
    return found.hexdigest()


def with_masks(identities: list[dict], data: Path, real: Path, kind: str) -> list[dict]:
    """What decides repeats, with what their masks are, which no dataset's fingerprint says."""
    digests = [fingerprint(path, each) for path in (data, real)
               for each in kinds_of(read_manifest(path), kind)]
    return [{**each, "masks_sha256": " ".join(digests)} for each in identities]


def load_masks(data: Dataset, split: str, target: Target) -> tuple[np.ndarray, np.ndarray]:
    """Foreground uint8 [N, S, S], 0 or 1, and whether an image has a mask, bool [N].

    In the order of `Dataset.select`. A large split is mapped from a file, read-only, as its images
    are. Raises Fault where masks are not understood.
    """
    rows = data.select(split)
    known = np.array([data.mask_path(target.kind, row).exists() for row in rows])

    def read(row: Row, is_known: bool) -> np.ndarray:
        check_stop()
        if not is_known:
            return np.zeros((data.image_size,) * 2, np.uint8)
        name = str(data.mask_path(target.kind, row).relative_to(data.path))
        try:
            mask = data.mask(target.kind, row)
        except ValueError as error:
            raise Fault(f"{name} of {data.path} is damaged ({error}): restore it, or make the "
                        "dataset again with --overwrite") from None
        return foreground(mask, target, name).astype(np.uint8)

    shape = (len(rows), data.image_size, data.image_size)
    masks = map(read, rows, known)
    if int(np.prod(shape)) <= cache.IN_MEMORY_BYTES:
        return np.stack(list(masks)), known
    name = "-".join(["masks", split, target.kind, *map(str, target.labels)])
    return cache.map_rows(data.path, data.fingerprint, name, shape, masks,
                          version=fingerprint(data.path, target.kind),
                          what=f"decoding masks of {split}",
                          why=f"the masks of the {split} split of {data.path} are too large for "
                              "memory"), known


def load_ignored(data: Dataset, split: str, kind: str) -> np.ndarray | None:
    """uint8 [N, S, S], 1 where neither a nodule nor none is; None: all is known, or no nodules."""
    if kind != USUAL[0] or IGNORED not in data.masks:
        return None
    return load_masks(data, split, Target(IGNORED))[0]


def kinds_of(manifest: dict, kind: str) -> list[str]:
    """The kinds of masks that decide a training on a dataset for `kind`."""
    return [kind, *([IGNORED] if kind == USUAL[0] and IGNORED in manifest["masks"] else [])]


def read_truth(data: Dataset, real: Dataset, target: Target) -> dict:
    """{train, val, own, real: (dataset, split, masks, which are known)}, all checked.

    Raises Fault where masks are not understood, or a split has no foreground or nothing else.
    """
    found = {}
    for name, dataset, split in (("train", data, "train"), ("val", data, "val"),
                                 ("own", data, "test"), ("real", real, "test")):
        if name == "real" and data is real:
            found[name] = found["own"]
            continue
        masks, known = load_masks(dataset, split, target)
        there = [masks[i] for i in np.flatnonzero(known)]  # one by one: they may be mapped
        ground = ("back" if not any(map(np.any, there)) else
                  "fore" if all(map(np.all, there)) else None)
        if ground:
            why = f"all {len(there)} masks are {ground}ground only" if there else "no image has one"
            raise Fault(f"masks/{target.kind} of the {split} split of {dataset.path}: {why}: "
                        "foreground and background are needed in every split; give another "
                        "--mask, or make the dataset with more patients")
        found[name] = dataset, split, masks, known
    return found


def check_images(data: Dataset, real: Dataset, neighbours: int) -> None:
    """Raise Fault where one network cannot be shown the images of both."""
    if data.channels != real.channels:
        raise Fault(f"{data.path} has images of {data.channels} channels, {real.path} of "
                    f"{real.channels}: make them alike")
    for dataset in (data, real):
        if neighbours and not shows_slices(dataset):
            raise Fault(f"--neighbours {neighbours}: {dataset.path} does not show slices of scans "
                        "(ct_seg.py --view slice): leave it out")


# ------------------------------------------------------------------ what is scored as one

@dataclass(frozen=True)
class Item:
    """What is scored as one: an image, or the slices of a volume that the split holds.

    images: int [n], places in the order of `Dataset.select`, of a volume by slice. slices: int [n],
    their numbers in the scan; None: an image. spacing_mm: z y x of a volume, y x of an image; None:
    unknown.
    """

    name: str
    group: str
    images: tuple[int, ...]
    slices: tuple[int, ...] | None
    spacing_mm: tuple[float, ...] | None

    @property
    def has_gaps(self) -> bool:
        """Whether slices between the first and the last are not in the split."""
        return self.slices is not None and self.slices[-1] - self.slices[0] >= len(self.slices)


def shows_slices(data: Dataset) -> bool:
    """Whether the images of a dataset are whole slices of scans that it names."""
    return data.manifest.get("parameters", {}).get("view") == "slice" and all(
        row.extra.get("series") and row.extra.get("slice_index") for row in data.rows)


def items_of(data: Dataset, split: str, known: np.ndarray, *, volumes: bool = True) -> list[Item]:
    """The items of a split that have a truth, in the order of their first images.

    known: bool [N], of `load_masks`. volumes: False, images one by one whatever they show.
    """
    rows, pixel_mm = data.select(split), data.um_per_px and data.um_per_px / 1000
    plane = None if pixel_mm is None else (pixel_mm, pixel_mm)
    places = np.flatnonzero(known).tolist()
    if not (volumes and shows_slices(data)):
        return [Item(rows[i].file_name, rows[i].group or rows[i].file_name, (i,), None,
                     plane) for i in places]
    series: dict[str, list[int]] = {}
    for i in places:
        series.setdefault(rows[i].extra["series"], []).append(i)
    return [_volume(name, sorted(of, key=lambda i: int(rows[i].extra["slice_index"])), rows, plane)
            for name, of in series.items()]


def only(items: Sequence[Item], images: np.ndarray) -> list[Item]:
    """The items without what is not among `images`, places int [n]; those that keep none are left
    out."""
    kept, found = set(images.tolist()), []
    for item in items:
        at = [k for k, i in enumerate(item.images) if i in kept]
        if at:
            found.append(replace(item, images=tuple(item.images[k] for k in at),
                                 slices=item.slices and tuple(item.slices[k] for k in at)))
    return found


def _volume(name: str, places: list[int], rows: list[Row],
            plane: tuple[float, float] | None) -> Item:
    slices = [int(rows[i].extra["slice_index"]) for i in places]
    if len(set(slices)) < len(slices):
        twice = next(z for z in slices if slices.count(z) > 1)
        raise Fault(f"series {name} has slice {twice} more than once in one split: make the "
                    "dataset again")
    step_mm = _slice_step_mm([rows[i].extra for i in places], slices)
    return Item(name, rows[places[0]].group or name, tuple(places), tuple(slices),
                None if plane is None or step_mm is None else (step_mm, *plane))


def _slice_step_mm(columns: list[dict], slices: list[int]) -> float | None:
    """From one slice to the next, by `z_mm`; of one slice alone its `thickness_mm`. None: unknown.
    """
    try:
        if len(slices) == 1:
            return float(columns[0]["thickness_mm"])
        z_mm = [float(each["z_mm"]) for each in columns]
    except (KeyError, ValueError):
        return None
    return float(np.median(np.abs(np.diff(z_mm)) / np.diff(slices))) or None


def neighbours(data: Dataset, split: str, reach: int) -> np.ndarray:
    """int64 [N, 2 reach + 1]: each image with those of the slices below and above it.

    Where the split lacks a slice, the nearest one towards the image that it holds is repeated.
    reach 0: each image alone, of any dataset.
    """
    rows = data.select(split)
    index = np.repeat(np.arange(len(rows))[:, None], 2 * reach + 1, 1)
    if not reach:
        return index
    at = {(row.extra["series"], int(row.extra["slice_index"])): i for i, row in enumerate(rows)}
    for i, row in enumerate(rows):
        for step in range(1, reach + 1):
            for sign in (-1, 1):
                key = row.extra["series"], int(row.extra["slice_index"]) + sign * step
                index[i, reach + sign * step] = at.get(key, index[i, reach + sign * (step - 1)])
    return index


def warnings_of(truth: dict, items: dict[str, list[Item]]) -> list[str]:
    """What the reader must be told of the masks."""
    found = []
    for name, (dataset, split, masks, known) in truth.items():
        if not known.all():
            found.append(f"no mask: {int((~known).sum())} of {len(known)} {split} images of "
                         f"{dataset.name} have none, and are neither trained on nor scored")
        if name not in items:
            continue
        gaps = sum(item.has_gaps for item in items[name])
        if gaps:
            found.append(f"missing slices: {gaps} of {len(items[name])} volumes of the {split} "
                         f"split of {dataset.name} lack slices (ct_seg.py --all-slices writes "
                         "them): what is found on the others is not counted, nor are surfaces")
        if all(masks[i].any() for item in items[name] for i in item.images):
            found.append(f"foreground in every {split} image of {dataset.name}: false positives "
                         "where there is none are not counted")
    return list(dict.fromkeys(found))


def items_to_choose_by(data: Dataset, known: np.ndarray) -> list[Item]:
    """The items of val by which threshold and least component are chosen.

    Where volumes lack slices they are its images: components would join across what is missing. A
    component of a volume is no smaller than its largest section, so that what is kept there stays.
    """
    items = items_of(data, "val", known)
    return items_of(data, "val", known, volumes=False) if any(
        item.has_gaps for item in items) else items
