"""How like real images each arm's are: what lungkit.tools.fidelity left, read and shown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from lungkit.compare.tables import UNKNOWN, Table, percent
from lungkit.run.faults import Fault
from lungkit.run.files import read_json

SCHEMA, FILE = "lungkit.fidelity/1", "fidelity.json"
HEADS = ["Arm", "Class", "Images", "KID x 1000", "95 % interval", "Floor", "Noise", "FID", "Floor",
         "Coverage", "95 % interval", "Floor", "Label, %", "of real, %"]
NUCLEI = {"num_nuclei": "Nuclei", "area_um2": "Area, um2", "spacing_um": "Spacing, um"}
ENDS = ("low", "high", "floor_low", "floor_high")


def paths(dirs: Sequence[Path], names: Iterable[str]) -> list[tuple[int, Path]]:
    """(replicate, file) of the datasets named that are there; dirs: of replicate 0, 1, ..."""
    names = list(names)
    return [(replicate, path) for replicate, folder in enumerate(dirs) for name in names
            if (path := folder / name / FILE).is_file()]


def fingerprints(found) -> dict[tuple[str, int], str]:
    """{(dataset, replicate): fingerprint} of what the results are of."""
    return {(row["dataset"], row.get("replicate", 0)): row["dataset_fingerprint"]
            for row in found.rows if "dataset_fingerprint" in row}


def read(dirs: Sequence[Path], found) -> list[dict]:
    """A line a dataset, replicate, class and number of `found`, results of one run.

    {dataset, replicate, class, n, score, value, low, high, floor, floor_low, floor_high, ceiling};
    of `label` and of nuclei the floor is real's own. dirs: the datasets of replicate 0, 1, ...
    Raises Fault where a file is of other images than the results.
    """
    made = fingerprints(found)
    lines = []
    for replicate, path in paths(dirs, found.datasets):
        content, name = read_json(path), path.parent.name
        if content.get("schema") != SCHEMA:
            raise Fault(f"{path} has schema {content.get('schema')!r}, expected {SCHEMA!r}: "
                        "measure again by python -m lungkit.tools.fidelity")
        if (name, replicate) not in made:
            continue
        if content["dataset_fingerprint"] != made[name, replicate]:
            raise Fault(f"{path} is of other images than the results of {name}: measure again by "
                        "python -m lungkit.tools.fidelity")
        for label, each in content["classes"].items():
            of = {"dataset": name, "replicate": replicate, "class": label, "n": each["n"]}
            lines += [{**of, "score": score, **numbers}
                      for score, numbers in each.get("scores", {}).items()]
            lines.append({**of, "n": each["label"]["arm"]["n"], "score": "label",
                          **_beside(each["label"])})
            lines += [{**of, "score": score, **_beside(sides)}
                      for score, sides in each.get("nuclei", {}).items()]
    return lines


def _beside(sides: dict[str, dict]) -> dict:
    """The arm's value and ends, and real's as its floor."""
    return {prefix + key: sides[side][name] for side, prefix in (("arm", ""), ("real", "floor_"))
            for key, name in (("value", "value"), ("low", "low"), ("high", "high"))
            } | {"floor": sides["real"]["value"]}


def over_replicates(lines: list[dict]) -> dict[tuple, dict[str, dict]]:
    """{(dataset, class): {score: line}}, of several replicates the means, and least and most."""
    apart: dict[tuple, list[dict]] = {}
    for line in lines:
        apart.setdefault((line["dataset"], line["class"], line["score"]), []).append(line)
    by_class: dict[tuple, dict[str, dict]] = {}
    for (dataset, label, score), each in apart.items():
        line = dict(each[0])
        if len(each) > 1:
            for key in ("value", "floor", "ceiling"):
                known = [one[key] for one in each if one.get(key) is not None]
                line[key] = statistics.fmean(known) if known else None
            known = [one["value"] for one in each if one.get("value") is not None]
            line |= {"n": min(one["n"] for one in each), "low": min(known, default=None),
                     "high": max(known, default=None)}
        by_class.setdefault((dataset, label), {})[score] = line
    return by_class


def table(lines: list[dict]) -> Table | None:
    """KID, FID, coverage and labels of each arm and class; None without any."""
    printed = []
    for (dataset, label), scores in over_replicates(lines).items():
        some, said = next(iter(scores.values())), scores["label"]
        kid, fid, coverage = (scores.get(name, {}) for name in ("kid", "fid", "coverage"))
        printed.append([
            dataset, label, str(some["n"]), _shown(kid, "value"), _interval(kid),
            _shown(kid, "floor"), _shown(kid, "ceiling"), _shown(fid, "value", "{:.3g}"),
            _shown(fid, "floor", "{:.3g}"), _shown(coverage, "value", "{:.2f}"),
            _interval(coverage, "{:.2f}"), _shown(coverage, "floor", "{:.2f}"),
            percent(said["value"]), percent(said["floor"])])
    caption = f"By class; the floor is of real's own train images, {_ends(lines)}. " \
              "All six numbers: fidelity.csv"
    return Table(caption, HEADS, printed, named=2) if printed else None


def nuclei_table(lines: list[dict]) -> Table | None:
    """Number, size and spacing of the nuclei of each arm and class beside real's; None of CT."""
    lines = [line for line in lines if line["score"] in NUCLEI]
    printed = [[dataset, label, *(cell for name in NUCLEI for cell in (
        _shown(scores.get(name, {}), "value", "{:.1f}"), _interval(scores.get(name, {}), "{:.1f}"),
        _shown(scores.get(name, {}), "floor", "{:.1f}")))]
        for (dataset, label), scores in over_replicates(lines).items()]
    heads = ["Arm", "Class", *(head for name in NUCLEI.values()
                               for head in (name, "95 % interval", "of real"))]
    caption = f"Nuclei an image, their area and the distance to the nearest; {_ends(lines)}"
    return Table(caption, heads, printed, named=2) if printed else None


def _ends(lines: list[dict]) -> str:
    several = len({line.get("replicate", 0) for line in lines})
    return "intervals are over groups" if several < 2 else (
        f"means of {several} replicates, and the least and the most of them for intervals")


def _interval(line: dict, form: str = "") -> str:
    low, high = (_shown(line, key, form) for key in ("low", "high"))
    return UNKNOWN if UNKNOWN in (low, high) else f"{low} to {high}"


def _shown(line: dict, key: str, form: str = "") -> str:
    """A number of `line` as it is printed by `form`; by default in thousandths."""
    value = line.get(key)
    return UNKNOWN if value is None else form.format(value) if form else f"{1000 * value:.1f}"
