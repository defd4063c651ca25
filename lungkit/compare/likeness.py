"""How like real images each arm's are: what lungkit.tools.fidelity left, read and shown."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lungkit.compare.tables import UNKNOWN, Table, percent
from lungkit.run.faults import Fault
from lungkit.run.files import read_json

SCHEMA, FILE = "lungkit.fidelity/1", "fidelity.json"
# those on the page and how they are printed; fidelity.csv has all
NUMBERS = {"kid": "KID x 1000", "fid": "FID", "precision": "Precision", "coverage": "Coverage"}


def paths(datasets_dir: Path | None, names: Iterable[str]) -> list[Path]:
    """The files that are there of the datasets named; None: none are wanted."""
    if datasets_dir is None:
        return []
    return [path for name in names if (path := datasets_dir / name / FILE).is_file()]


def read(datasets_dir: Path | None, found) -> list[dict]:
    """A line a dataset, class and number of `found`, results of one run: {dataset, class, n, score,
    value, low, high, floor, floor_low, floor_high, ceiling}; `label` has real's own as its floor.

    Raises Fault where a file is of other images than the results.
    """
    made = {row["dataset"]: row["dataset_fingerprint"] for row in found.rows
            if row.get("replicate", 0) == 0 and "dataset_fingerprint" in row}
    lines = []
    for path in paths(datasets_dir, found.datasets):
        content, name = read_json(path), path.parent.name
        if content.get("schema") != SCHEMA:
            raise Fault(f"{path} has schema {content.get('schema')!r}, expected {SCHEMA!r}: "
                        "measure again by python -m lungkit.tools.fidelity")
        if content["dataset_fingerprint"] != made.get(name):
            raise Fault(f"{path} is of other images than the results of {name}: measure again by "
                        "python -m lungkit.tools.fidelity")
        for label, each in content["classes"].items():
            of = {"dataset": name, "class": label, "n": each["n"]}
            lines += [{**of, "score": score, **numbers}
                      for score, numbers in each.get("scores", {}).items()]
            arm, real = each["label"]["arm"], each["label"]["real"]
            lines.append({**of, "n": arm["n"], "score": "label", "value": arm["value"],
                          "low": arm["low"], "high": arm["high"], "floor": real["value"],
                          "floor_low": real["low"], "floor_high": real["high"]})
    return lines


def table(lines: list[dict]) -> Table | None:
    """All numbers of each arm and class; None without any."""
    by_class: dict[tuple, dict] = {}
    for line in lines:
        by_class.setdefault((line["dataset"], line["class"]), {})[line["score"]] = line
    printed = []
    for (dataset, label), scores in by_class.items():
        some, said = next(iter(scores.values())), scores["label"]
        printed.append([dataset, label, str(some["n"]),
                        *(_placed(scores.get(name), name) for name in NUMBERS),
                        f"{percent(said['value'])} ({percent(said['floor'])})"])
    heads = ["Arm", "Class", "Images", *NUMBERS.values(), "Label, %"]
    caption = ("By class, with 95 % intervals over groups; in brackets the floor, real's own train "
               "images, and the ceiling, noise")
    return Table(caption, heads, printed, named=2) if printed else None


def _placed(line: dict | None, name: str) -> str:
    """A number as it is printed: 0.62, 0.55 to 0.70 (0.80, 0.00)."""
    if line is None:
        return UNKNOWN
    scale = 1000 if name == "kid" else 1
    value, low, high, floor, ceiling = (
        None if line[key] is None else f"{scale * line[key]:.3g}"
        for key in ("value", "low", "high", "floor", "ceiling"))
    interval = f", {low} to {high}" if low is not None else ""
    return f"{value}{interval} ({floor}, {ceiling})"
