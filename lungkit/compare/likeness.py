"""How like real images each arm's are: what lungkit.tools.fidelity left, read and shown."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lungkit.compare.tables import UNKNOWN, Table, percent
from lungkit.run.faults import Fault
from lungkit.run.files import read_json

SCHEMA, FILE = "lungkit.fidelity/1", "fidelity.json"
HEADS = ["Arm", "Class", "Images", "KID x 1000", "95 % interval", "Floor", "Noise", "FID", "Floor",
         "Coverage", "95 % interval", "Floor", "Label, %", "of real, %"]


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
    """KID, FID, coverage and labels of each arm and class; None without any."""
    by_class: dict[tuple, dict] = {}
    for line in lines:
        by_class.setdefault((line["dataset"], line["class"]), {})[line["score"]] = line
    printed = []
    for (dataset, label), scores in by_class.items():
        some, said = next(iter(scores.values())), scores["label"]
        kid, fid, coverage = (scores.get(name, {}) for name in ("kid", "fid", "coverage"))
        printed.append([
            dataset, label, str(some["n"]), _shown(kid, "value"), _interval(kid),
            _shown(kid, "floor"), _shown(kid, "ceiling"), _shown(fid, "value", "{:.3g}"),
            _shown(fid, "floor", "{:.3g}"), _shown(coverage, "value", "{:.2f}"),
            _interval(coverage, "{:.2f}"), _shown(coverage, "floor", "{:.2f}"),
            percent(said["value"]), percent(said["floor"])])
    caption = ("By class; the floor is of real's own train images, intervals are over groups. All "
               "six numbers: fidelity.csv")
    return Table(caption, HEADS, printed, named=2) if printed else None


def _interval(line: dict, form: str = "") -> str:
    low, high = (_shown(line, key, form) for key in ("low", "high"))
    return UNKNOWN if UNKNOWN in (low, high) else f"{low} to {high}"


def _shown(line: dict, key: str, form: str = "") -> str:
    """A number of `line` as it is printed by `form`; by default in thousandths."""
    value = line.get(key)
    return UNKNOWN if value is None else form.format(value) if form else f"{1000 * value:.1f}"
