"""Outliers among training images, and where a CNN looks: what the two stages left, on the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lungkit.compare.tables import UNKNOWN, Table
from lungkit.run.faults import Fault
from lungkit.run.files import read_json

SCHEMAS = {"outliers.json": "lungkit.outliers/1", "explain.json": "lungkit.explain/1"}
PICTURES = {
    "outliers.json": {
        "outliers.png": "The strangest training images of every class, beneath each row the "
                        "nearest of another group or, where the label is doubtful, of another "
                        "class. Framed in red: flagged.",
        "embedding.png": "Where pretrained features put the training images: who is near whom."},
    "explain.json": {
        "explain.png": "Test images as they are, with the map of the trained CNN, and with that of "
                       "the same network with shuffled weights. Green: what was outlined."}}
HEADS = ["Of the maps", "Map", "95 % interval", "Shuffled weights", "Map - shuffled",
         "Blob in the middle", "Map - blob", "At most", "By area"]
NAMES = {"points": "maximum inside, %", "energy": "of the sum inside, %"}


@dataclass
class Explained:
    """outliers, explain: the manifests, or None. pictures: by manifest, {caption: PNG}."""

    outliers: dict | None = None
    explain: dict | None = None
    pictures: dict[str, dict[str, bytes]] = field(default_factory=dict)


def paths(folders: Sequence[Path]) -> list[Path]:
    """All files in the folders that the page depends on."""
    return [path for folder in folders for name in SCHEMAS
            for path in (folder / name, *(folder / each for each in PICTURES[name]))
            if (folder / name).is_file() and path.is_file()]


def read(folders: Sequence[Path], found) -> Explained:
    """What lies in the folders, of the datasets of `found`, the results of one run.

    Raises Fault where a folder holds neither stage's output, or one of other images.
    """
    said, rows = Explained(), [row for row in found.rows if row.get("replicate", 0) == 0]
    for folder in folders:
        name = next((name for name in SCHEMAS if (folder / name).is_file()), None)
        if name is None:
            raise Fault(f"--explained {folder} holds neither {' nor '.join(SCHEMAS)}: give folders "
                        "that outliers.py or cnn_explain.py wrote")
        content = read_json(folder / name)
        if content.get("schema") != SCHEMAS[name]:
            raise Fault(f"{folder / name} has schema {content.get('schema')!r}, expected "
                        f"{SCHEMAS[name]!r}: make it again")
        known = {row.get("real_fingerprint") for row in rows} if name == "explain.json" else {
            row.get("dataset_fingerprint") for row in rows if row["dataset"] == content["dataset"]}
        of = content["real_fingerprint" if name == "explain.json" else "dataset_fingerprint"]
        if of not in known:
            raise Fault(f"{folder / name} is of other images than the results: make it again of "
                        "this run's")
        setattr(said, name.partition(".")[0], content)
        said.pictures[name] = {caption: (folder / picture).read_bytes()
                               for picture, caption in PICTURES[name].items()
                               if (folder / picture).is_file()}
    return said


def outlier_table(said: Explained) -> Table | None:
    """How many training images of every class are flagged, and are expected to be."""
    if said.outliers is None:
        return None
    lines = [[label, str(about["images"]), str(about["groups"]),
              *((UNKNOWN, UNKNOWN) if "too_few" in about else
                (str(about["flagged"]), f"{about['expected']:.1f}"))]
             for label, about in said.outliers["classes"].items()]
    return Table(f"Training images of {said.outliers['dataset']}",
                 ["Class", "Images", "Groups", "Flagged", "Expected of ordinary ones"], lines)


def map_table(said: Explained) -> Table | None:
    """Where the maps point, beside shuffled weights, a blob and what is possible."""
    if said.explain is None or said.explain["scores"] is None:
        return None
    lines = [[NAMES[name], _percent(of["map"]["value"]), _interval(of["map"]),
              _percent(of["shuffled"]["value"]), _difference(of["above_shuffled"]),
              _percent(of["blob"]["value"]), _difference(of["above_blob"]),
              _percent(of["ceiling"]["value"]), _percent(of["by_area"])]
             for name, of in said.explain["scores"].items()]
    about = said.explain
    return Table(f"{about['model']} trained on {about['dataset']}, repeat {about['repeat']}: "
                 f"{about['num_scored']} test images of {about['num_groups']} groups by masks of "
                 f"{about['mask']}", HEADS, lines)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _interval(mean: dict) -> str:
    return UNKNOWN if mean["low"] is None else \
        f"{_percent(mean['low'])} to {_percent(mean['high'])}"


def _difference(mean: dict) -> str:
    ends = "" if mean["low"] is None else \
        f" ({100 * mean['low']:+.1f} to {100 * mean['high']:+.1f})"
    return f"{100 * mean['value']:+.1f}{ends}"
