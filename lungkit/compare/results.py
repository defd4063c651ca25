"""The results the CNN repeats leave behind: read them, and refuse what must not be compared.

A results tree is <dataset>/replicate_000/repeat_0000.json, one JSON per repeat; a plain CSV has
the columns dataset, repeat, accuracy and, optionally, replicate. Every fault is collected and
raised once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from lungkit.compare import scores
from lungkit.compare.rank_sum import TIE_TOLERANCE
from lungkit.data.result import BASELINE, CNN, SPLITS, check_fraction, check_record, read_record
from lungkit.run.faults import BadOptions, Fault, several
from lungkit.run.system_files import listed
from lungkit.run.tables import read_table

REAL = "real"
# what must be one and the same in all results of a comparison, or the arms were not treated alike
SETTINGS = ("model", "steps", "settings")
SHOWN_FAULTS = 4


@dataclass
class Results:
    """Checked rows, one per repeat, and what the reader of a comparison must be told."""

    rows: list[dict]
    datasets: list[str]     # in the order they are shown: real first
    metrics: list[str]      # what all rows have: accuracy_real first; accuracy for a CSV
    replicates: list[int]
    repeats: list[int]
    settings: dict = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def baselines(self) -> list[str]:
        """The datasets whose results are a classical baseline's, not a CNN's."""
        return list(dict.fromkeys(row["dataset"] for row in self.rows if is_baseline(row)))

    def values(self, dataset: str, metric: str) -> list[float]:
        """One number per unit of replication, in order."""
        rows = [row for row in self.rows if row["dataset"] == dataset]
        if len(self.replicates) == 1:
            return [row[metric] for row in rows]
        return [math.fsum(row[metric] for row in rows if row["replicate"] == replicate)
                / len(self.repeats) for replicate in self.replicates]

    def step(self, metric: str) -> float:
        """The grid the values lie on: one test image, or its share in a mean over repeats.

        A balanced accuracy is a mean of one share a class: its step is that of their common
        denominator, one test image where the classes are equal. Of other scores it is 0, and of a
        grid finer than ties. A CSV does not say its number of images: the smallest gap between
        its values, which is a whole number of steps. 1 where all values are equal.
        """
        if metric == "accuracy":
            values = sorted(value for name in self.datasets for value in self.values(name, metric))
            gaps = [high - low for low, high in zip(values, values[1:]) if high - low > 1e-9]
            return min(gaps, default=1.0)
        if not scores.on_grid(metric):
            return 0.0
        split = scores.parts(metric)[1]
        grid_of = _images if scores.is_accuracy(metric) else _images_if_balanced
        images = math.lcm(*{grid_of(row[split]) for row in self.rows})
        images *= 1 if len(self.replicates) == 1 else len(self.repeats)
        return 1 / images if images * TIE_TOLERANCE < 1 else 0.0


def _images(split: dict) -> int:
    return split["num_images"]


def _images_if_balanced(split: dict) -> int:
    """The common denominator of the mean recall over the classes there."""
    there = [sum(line) for line in split["confusion_matrix"] if any(line)]
    return len(there) * math.lcm(*there)


def is_baseline(row: dict) -> bool:
    return row.get("kind", CNN) == BASELINE


def record_paths(source: Path) -> list[Path]:
    """The records of a results tree, sorted."""
    return sorted(source.glob("[!.]*/replicate_*/repeat_*.json"))


def result_paths(source: Path) -> list[Path]:
    """The files that hold the results, sorted; the whole input of a comparison."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise Fault(f"{source} is not there: expected a results tree made by cnn_classify.py, "
                    "or a CSV with columns dataset,repeat,accuracy")
    paths = record_paths(source)
    if not paths:
        hint = f"; did you mean {source / 'results'}?" if (source / "results").is_dir() else ""
        raise Fault(f"{source} holds no results: expected "
                    f"<dataset>/replicate_000/repeat_0000.json made by cnn_classify.py{hint}")
    return paths


def read_results(source: Path, *, datasets: list[str] | None = None,
                 num_repeats: int | None = None) -> Results:
    """Read and check a results tree or CSV.

    datasets: None means all. num_repeats: None means all; else the first so many repeats.
    Raises Fault with every fault found, BadOptions for a choice the results cannot satisfy.
    """
    is_tree = source.is_dir()
    by_dataset = _tree_datasets(source) if is_tree else _csv_datasets(source)
    found = sorted(by_dataset, key=lambda name: (name != REAL, name))
    unknown = [name for name in datasets or [] if name not in found]
    if unknown:
        raise BadOptions(f"--datasets: no results for {', '.join(unknown)}; "
                         f"there are {', '.join(found)}")
    if datasets:  # the others may be broken or unfinished
        found = sorted(dict.fromkeys(datasets), key=lambda name: name != REAL)
    faults: list[str] = []
    rows = [row for name in found for row in
            (_read_tree if is_tree else _read_csv)(source, by_dataset[name], faults)]
    faults += [f"{source / name} holds no results: run cnn_classify.py, leave it out by "
               "--datasets, or remove it" for name in found if not by_dataset[name]]
    _raise(faults)
    if len(found) < 2:
        raise Fault(f"{source} holds results of one dataset only ({found[0]}): "
                    "a comparison needs two or more")
    repeats = sorted({row["repeat"] for row in rows})
    if num_repeats is not None:
        if num_repeats > len(repeats):
            raise BadOptions(f"--repeats {num_repeats}: {source} holds {len(repeats)} repeats")
        repeats = repeats[:num_repeats]
        rows = [row for row in rows if row["repeat"] in repeats]
    replicates = sorted({row["replicate"] for row in rows})
    rows.sort(key=lambda row: (found.index(row["dataset"]), row["replicate"], row["repeat"]))
    metrics = _common_scores(rows) if is_tree else ["accuracy"]
    found_results = Results(rows, found, metrics, replicates, repeats)
    faults += _missing_or_twice(found_results)
    if is_tree:
        faults += _mixed_runs(found_results) + _saw_test_images(rows)
    _raise(faults)
    if len(repeats) == 1 and len(replicates) == 1:
        raise Fault(f"{source} holds one value per dataset: a rank-sum test needs two or more "
                    "repeats (compare_models.sh N makes them)")
    if is_tree:
        _note_settings_and_warnings(found_results)
    return found_results


def _raise(faults: list[str]) -> None:
    if faults:
        raise Fault(several(faults, SHOWN_FAULTS))


# ------------------------------------------------------------------ one file at a time

def _tree_datasets(source: Path) -> dict[str, list[Path]]:
    """Every dataset directory with its result files, which may be none."""
    by_dataset = {path.name: [] for path in listed(source)
                  if path.is_dir() and not path.name.startswith(".")}
    for path in result_paths(source):
        by_dataset[path.parts[-3]].append(path)
    return by_dataset


def _read_tree(source: Path, paths: list[Path], faults: list[str]) -> list[dict]:
    rows = []
    for path in paths:
        try:
            row = read_record(path)
            check_record(row, path.relative_to(source))
            rows.append(row | _flat(row))
        except Fault as fault:
            faults.append(str(fault))
    return rows


def _flat(row: dict) -> dict[str, float]:
    """The scores of both test splits, and the numbers these are of, as <name>_<split>."""
    return {f"{name}_{split}": value for split in SPLITS
            for name, value in sorted({**row[split], **row["scores"][split]}.items())
            if isinstance(value, (int, float))}


def _common_scores(rows: list[dict]) -> list[str]:
    """The scores that every row has on both test splits."""
    return scores.known(set.intersection(*(set(row["scores"][split]) for row in rows
                                           for split in SPLITS)))


def _csv_datasets(source: Path) -> dict[str, list[tuple[int, dict]]]:
    """Every dataset named in the CSV with its numbered lines."""
    lines = read_table(source, ("dataset", "repeat", "accuracy")).rows
    if not lines:
        raise Fault(f"{source} has a header and no lines")
    by_dataset = defaultdict(list)
    for number, line in lines:
        name = line["dataset"].strip()
        if not name:
            raise Fault(f"{source} line {number}: the dataset is empty")
        by_dataset[name].append((number, line))
    return by_dataset


def _read_csv(source: Path, lines: list[tuple[int, dict]], faults: list[str]) -> list[dict]:
    rows = []
    for number, line in lines:
        where = f"{source} line {number}"
        try:
            row = {"dataset": line["dataset"].strip(),
                   "replicate": _whole(line.get("replicate", "0"), f"{where}: replicate"),
                   "repeat": _whole(line["repeat"], f"{where}: repeat"),
                   "accuracy": _number(line["accuracy"].replace(",", "."), f"{where}: accuracy")}
            check_fraction(row["accuracy"], f"{where}: accuracy")
            rows.append(row)
        except Fault as fault:
            faults.append(str(fault))
    return rows


def _number(text: str | None, what: str) -> float:
    try:
        return float(text or "")
    except ValueError:
        raise Fault(f"{what} is {text!r}, not a number") from None


def _whole(text: str | None, what: str) -> int:
    value = _number(text, what)
    if not math.isfinite(value) or value != int(value) or value < 0:
        raise Fault(f"{what} is {text!r}, not a whole number from 0")
    return int(value)


# ------------------------------------------------------------------ all of them together

def _missing_or_twice(found: Results) -> list[str]:
    faults, seen, seeds = [], set(), {}
    for row in found.rows:
        key = (row["dataset"], row["replicate"], row["repeat"])
        if key in seen:
            faults.append(f"{_place(*key)} is given twice")
        seen.add(key)
        if "seed" in row:  # one training counted twice would shrink every p-value
            seed_key = (row["dataset"], row["replicate"], row["seed"])
            if seeds.setdefault(seed_key, row["repeat"]) != row["repeat"]:
                faults.append(f"{_place(*key)} has the seed of repeat {seeds[seed_key]}: "
                              "one training given twice")
    for dataset in found.datasets:
        for replicate in found.replicates:
            missing = [str(repeat) for repeat in found.repeats
                       if (dataset, replicate, repeat) not in seen]
            if missing:
                listed = ", ".join(missing[:6]) + (", ..." if len(missing) > 6 else "")
                faults.append(
                    f"{dataset} replicate {replicate} lacks repeat {listed} "
                    f"({len(found.repeats) - len(missing)} of {len(found.repeats)} there): run the "
                    "missing ones, or trim all datasets with --repeats")
    return faults


def _mixed_runs(found: Results) -> list[str]:
    """Faults where one comparison would hold two runs, or arms that were treated differently."""
    faults = []
    groups: dict[tuple, dict] = defaultdict(dict)
    for row in found.rows:
        where = _place(row["dataset"], row["replicate"], row["repeat"])
        checks = {("real_fingerprint", f"replicate {row['replicate']}"): row["real_fingerprint"],
                  ("dataset_fingerprint", f"{row['dataset']} replicate {row['replicate']}"):
                      row["dataset_fingerprint"],
                  ("kind", row["dataset"]): row.get("kind", CNN),
                  ("task", "all results"): row["task"]}
        scope = f"all results of {row['dataset']}" if is_baseline(row) else "all results"
        checks |= {(name, scope): repr(row.get(name)) for name in SETTINGS}
        for key, value in checks.items():
            groups[key].setdefault(value, where)
    for (name, scope), places in groups.items():
        if len(places) > 1:
            listed = " but ".join(f"{str(value)[:40]} in {where}"
                                  for value, where in list(places.items())[:2])
            faults.append(f"results of two runs are mixed: {name} is not one in {scope} ({listed})")
    return faults


def _saw_test_images(rows: list[dict]) -> list[str]:
    """Faults where what made a dataset was trained on real test images, or on another real."""
    faults = set()
    for row in rows:
        for parent in row.get("trained_on") or []:
            if parent.get("name") != REAL and parent.get("fingerprint") != row["real_fingerprint"]:
                continue
            if "test" in parent.get("splits", ["test"]):  # not said: the worst is assumed
                faults.add(f"{row['dataset']} replicate {row['replicate']} was trained on the real "
                           "test split: its accuracy on real images means nothing")
            if parent.get("fingerprint") != row["real_fingerprint"]:
                faults.add(f"{row['dataset']} replicate {row['replicate']} was trained on another "
                           "real dataset than it is tested on: test images may be among them")
    return sorted(faults)


def _note_settings_and_warnings(found: Results) -> None:
    cnns = [row for row in found.rows if not is_baseline(row)]
    first = (cnns or found.rows)[0]
    found.settings = {name: first[name] for name in ("model", "steps") if name in first}
    found.settings |= first.get("settings") or {}
    said_by: dict[str, set] = defaultdict(set)
    for row in found.rows:
        for text in row.get("warnings") or []:
            said_by[str(text)].add(row["dataset"])
    for text, names in said_by.items():
        prefix = "" if names == set(found.datasets) else \
            ", ".join(name for name in found.datasets if name in names) + ": "
        found.warnings.append(prefix + text)
    for name in ("device", "versions"):
        kinds = {repr(row.get(name)) for row in cnns}  # a baseline has other libraries, no GPU
        if len(kinds) > 1:
            found.warnings.append(f"mixed {name}: the results come from {len(kinds)} different "
                                  f"{name}; equal seeds need not give equal trainings there")
    first_split = {}
    for row in found.rows:
        same = first_split.setdefault(row["real_fingerprint"], row["replicate"])
        if same != row["replicate"]:
            found.warnings.append(f"same split: replicates {same} and {row['replicate']} test on "
                                  "the same real split; they are not whole-pipeline replicates")
            break
    copies: dict[str, str] = {}
    for row in found.rows:
        same = copies.setdefault(row["dataset_fingerprint"], row["dataset"])
        if same != row["dataset"]:
            found.warnings.append(f"same images: {same} and {row['dataset']} are one dataset under "
                                  "two names")
            break


def _place(dataset: str, replicate: int, repeat: int) -> str:
    return f"{dataset} replicate {replicate} repeat {repeat}"
