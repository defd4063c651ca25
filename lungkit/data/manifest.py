"""The manifest of a dataset, dataset.json, and how it is read; its keys: docs/dataset.md.

A manifest of version 1 is read as one of version 2; only version 2 is written.
"""

from __future__ import annotations

import os
import unicodedata
from functools import partial
from pathlib import Path

from lungkit.run.faults import Fault
from lungkit.run.files import read_json
from lungkit.run.system_files import listed

SCHEMA, SCHEMA_1 = "lungkit.dataset/2", "lungkit.dataset/1"
MANIFEST = "dataset.json"
SPLITS = ("train", "val", "test")
COLUMNS = ("file_name", "label", "split", "group", "source", "prompt", "seed", "sha256")
REQUIRED = ("schema", "name", "classes", "image_size", "counts", "parents", "fingerprint")
# what a manifest without the key means; all of version 1 lack most of them
DEFAULTS = {"channels": 3, "bits": 8, "modality": None, "um_per_px": None, "intensity": None,
            "symmetries": 8, "masks": {}, "mask_counts": {}, "targets": {}, "warnings": []}
ALLOWED = {"channels": (1, 3), "bits": (8,), "symmetries": (8, 2, 1),
           "modality": ("he", "fluorescence", "ct", None)}
MASK_FORMS = ("binary", "labels")            # 0 and 255; label values 0..255
TARGET_KINDS = ("class", "ordinal", "number")


def read_manifest(path: Path) -> dict:
    """The manifest of a complete dataset, every key of version 2 filled in.

    Raises Fault if there is none, or if it is one of version 2 of a dataset of another name.
    """
    path = Path(path)
    if not path.is_dir():
        raise Fault(f"dataset {path} is not a directory: make it with its stage first")
    if not (path / MANIFEST).exists():
        raise Fault(f"{path} has no {MANIFEST}, so it is not a complete dataset: "
                    "run the stage that makes it (again)")
    manifest = read_json(path / MANIFEST)
    missing = [key for key in REQUIRED if key not in manifest]
    if manifest.get("schema") not in (SCHEMA, SCHEMA_1) or missing:
        raise Fault(f"{path / MANIFEST} is not a {SCHEMA} manifest"
                    + (f" (no {', '.join(missing)})" if missing else ""))
    if manifest["schema"] == SCHEMA_1:
        manifest = from_version_1(manifest, path)
    manifest = DEFAULTS | manifest
    faults = [f"{key} {manifest[key]!r}" for key, allowed in ALLOWED.items()
              if manifest[key] not in allowed]
    faults += [f"mask {kind!r} {form!r}" for kind, form in manifest["masks"].items()
               if form not in MASK_FORMS]
    faults += [f"target {name!r} {target!r}" for name, target in manifest["targets"].items()
               if name in COLUMNS or target.get("kind") not in TARGET_KINDS
               or not isinstance(target.get("values"), list)]
    if faults:
        raise Fault(f"{path / MANIFEST} has what this version cannot read: {'; '.join(faults)}")
    composed = partial(unicodedata.normalize, "NFC")  # some file systems exchange the spellings
    names = set(map(composed, (Path(os.path.abspath(path)).name, path.resolve().name)))  # of a link
    if manifest["schema"] == SCHEMA and composed(manifest["name"]) not in names:
        raise Fault(f"{path} was renamed after it was made: its {MANIFEST} says "
                    f"{manifest['name']!r}, by which its results and the datasets made from it "
                    f"know it: rename the folder to {manifest['name']}")
    return manifest


def side_um(manifest: dict) -> float | None:
    """The side of a dataset's images in micrometres, None where it does not say its resolution."""
    um_per_px = manifest["um_per_px"]
    return um_per_px and round(um_per_px * manifest["image_size"], 6)  # as it was before division


def from_version_1(manifest: dict, path: Path) -> dict:
    """A version 1 manifest with the keys of version 2; its masks are those that are found."""
    um_per_px, side = manifest.get("um_per_px"), manifest.pop("field_um", None)
    found = {kind.name: len(listed(kind, "*/*.png")) for kind in listed(path / "masks")
             if kind.is_dir()}
    return manifest | {"um_per_px": um_per_px or (side and side / manifest["image_size"]),
                       "masks": dict.fromkeys(sorted(found), "binary"), "mask_counts": found}
