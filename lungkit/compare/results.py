"""The results the CNN repeats leave behind: read them, and refuse what must not be compared.

A results tree is <dataset>/replicate_000/repeat_0000.json, one JSON per repeat; a plain CSV has
the columns dataset, repeat, accuracy and, optionally, replicate. Every fault is collected and
raised once.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from lungkit.compare import refusals, scores
from lungkit.compare.rank_sum import TIE_TOLERANCE
from lungkit.compare.refusals import REAL
from lungkit.compare.set_aside import set_aside
from lungkit.data.result import (
    SPLITS,
    TUMOUR_SCORES,
    check_fraction,
    check_record,
    is_baseline,
    known_leaks,
    read_record,
)
from lungkit.run.faults import BadOptions, Fault, several
from lungkit.run.system_files import listed
from lungkit.run.tables import read_table

SHOWN_FAULTS = 4
UNNAMED = ("groups found only", "no groups given")  # warnings of real where no patients are named


@dataclass
class Results:
    """Checked rows, one per repeat, and what the reader of a comparison must be told."""

    rows: list[dict]
    datasets: list[str]     # in the order they are shown: real first
    metrics: list[str]      # what all rows have: accuracy_real first; accuracy for a CSV
    replicates: list[int]
    repeats: list[int]      # the numbers that any of them has
    settings: dict = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    control_rows: list[dict] = field(default_factory=list)  # set aside: none of them is above
    mix_rows: list[dict] = field(default_factory=list)      # nor of these

    @property
    def baselines(self) -> list[str]:
        """The datasets whose results are a classical baseline's, not a CNN's."""
        return list(dict.fromkeys(row["dataset"] for row in self.rows if is_baseline(row)))

    @property
    def splits(self) -> list[list[int]]:
        """The replicates by the split of real that they test on.

        Two that test on one split are not whole-pipeline replicates: their trainings are repeats.
        A CSV does not say: every replicate of it is taken to have a split of its own.
        """
        tested_on = {row["replicate"]: row.get("real_fingerprint", row["replicate"])
                     for row in self.rows}
        return [[replicate for replicate in self.replicates if tested_on[replicate] == split]
                for split in dict.fromkeys(tested_on[replicate] for replicate in self.replicates)]

    @property
    def unit(self) -> str:
        """What one value is: repeat, or replicate, its mean over repeats."""
        return "repeat" if len(self.splits) == 1 else "replicate"

    @property
    def overlap(self) -> float:
        """Images of real tested on / trained on; 0 where that is not known, as of a CSV."""
        rows = [row for row in self.rows if row["dataset"] == REAL and row.get("num_pool_images")]
        return max((row["real"]["num_images"] / row["num_pool_images"] for row in rows),
                   default=0.0)

    @property
    def groups_are_files(self) -> bool:
        """Whether no patients were named: a test group is then one file with its copies.

        Records of before `groups_given` was said tell it by a warning of real.
        """
        told = {str(row["groups_given"]) for row in self.rows if row.get("groups_given")}
        if told:
            return any(not {"csv", "regex"} & {*words.split("+")} for words in told)
        return any(text.startswith(UNNAMED) for text in self.warnings)

    def values(self, dataset: str, metric: str) -> list[float]:
        """One number per unit of replication, in order."""
        by_split = [[row[metric] for row in self.rows
                     if row["dataset"] == dataset and row["replicate"] in replicates]
                    for replicates in self.splits]
        if len(by_split) == 1:
            return by_split[0]
        return [math.fsum(values) / len(values) for values in by_split if values]

    @property
    def benign(self) -> str | None:
        """The class that is no tumour, where a baseline was told it."""
        return next((row["malignancy"]["benign"] for row in self.rows
                     if "benign" in (row.get("malignancy") or {})), None)

    def add_tumour_scores(self, benign: str) -> None:
        """Give every row its sensitivity and specificity for tumour: any class but `benign`.

        An image is called tumour where its most probable class is one. Raises BadOptions for a
        class that the results do not have.
        """
        for row in [*self.rows, *self.control_rows, *self.mix_rows]:
            for split in SPLITS:
                classes = row[split].get("classes") or []
                if benign not in classes:
                    raise BadOptions(f"--benign {benign} is no class of {row['dataset']}; there "
                                     f"are {', '.join(classes) or 'none named'}")
                place = classes.index(benign)
                lines = row[split]["confusion_matrix"]
                called = [[sum(line) - line[place], line[place]] for line in lines]
                tumour = [sum(column) for column in
                          zip(*(pair for k, pair in enumerate(called) if k != place))]
                row[f"sensitivity_{split}"] = tumour[0] / sum(tumour)
                row[f"specificity_{split}"] = called[place][1] / sum(called[place])
        self.metrics += [f"{name}_{split}" for name in TUMOUR_SCORES for split in SPLITS]

    def step(self, metric: str) -> float:
        """The grid the values lie on: one test image, or its share in a mean over repeats.

        A balanced accuracy is a mean of one share a class: its step is that of their common
        denominator, one test image where the classes are equal. Of other scores it is 0, and of a
        grid finer than ties. A CSV does not say its number of images: the smallest gap between
        its values, which is a whole number of steps. 0 where all values are equal.
        """
        if metric == "accuracy":
            values = sorted(value for name in self.datasets for value in self.values(name, metric))
            gaps = [high - low for low, high in zip(values, values[1:]) if high - low > 1e-9]
            return min(gaps, default=0.0)
        if not scores.on_grid(metric):
            return 0.0
        split = scores.parts(metric)[1]
        grid_of = _images if scores.is_accuracy(metric) else _images_if_balanced
        images = math.lcm(*{grid_of(row[split]) for row in self.rows})
        if self.unit == "replicate":
            images *= math.lcm(*Counter((row["dataset"], row["replicate"])
                                        for row in self.rows).values())
        return 1 / images if images * TIE_TOLERANCE < 1 else 0.0


def _images(split: dict) -> int:
    return split["num_images"]


def _images_if_balanced(split: dict) -> int:
    """The common denominator of the mean recall over the classes there."""
    there = [sum(line) for line in split["confusion_matrix"] if any(line)]
    return len(there) * math.lcm(*there)


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
                 num_repeats: int | None = None, num_replicates: int | None = None) -> Results:
    """Read and check a results tree or CSV.

    datasets: None means all. num_repeats, num_replicates: None means all; else the first so many.
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
    if num_repeats is not None:
        rows = _first_repeats(rows, num_repeats, source, of_each=not is_tree)
    repeats = sorted({row["repeat"] for row in rows})
    replicates = sorted({row["replicate"] for row in rows})
    if num_replicates is not None:
        if num_replicates > len(replicates):
            raise BadOptions(f"--replicates {num_replicates}: {source} holds {len(replicates)} "
                             "replicates")
        replicates = replicates[:num_replicates]
        rows = [row for row in rows if row["replicate"] in replicates]
    rows.sort(key=lambda row: (found.index(row["dataset"]), row["replicate"], row["repeat"]))
    metrics = _common_scores(rows) if is_tree else ["accuracy"]
    found_results = Results(rows, found, metrics, replicates, repeats)
    faults += refusals.twice(rows)
    if is_tree:
        faults += (refusals.missing(found_results) + refusals.mixed_runs(found_results)
                   + refusals.saw_test_images(rows) + refusals.leaked(rows)
                   + refusals.not_searched(rows) + refusals.unproven(rows))
    _raise(faults)
    single = [name for name in found if sum(row["dataset"] == name for row in rows) == 1]
    if single:
        which = "per dataset" if len(single) == len(found) else f"of {', '.join(single)}"
        raise Fault(f"{source} holds one value {which}: a rank-sum test needs two or more "
                    "repeats (compare_models.sh N makes them)")
    if is_tree:
        set_aside(found_results)
        if len(found_results.datasets) < 2:
            raise Fault(f"{source} holds results of {' '.join(found_results.datasets) or 'no arm'} "
                        "and of controls or mixtures only: a comparison needs two or more arms")
        refusals.note_settings_and_warnings(found_results)
    return found_results


def _first_repeats(rows: list[dict], num_repeats: int, source: Path, *,
                   of_each: bool) -> list[dict]:
    """The first so many repeats by number; of_each: of each dataset and replicate its own first.

    The repeats of a run are numbered alike; in a CSV every dataset may have numbers of its own.
    """
    numbers = defaultdict(set)
    for row in rows:
        numbers[(row["dataset"], row["replicate"]) if of_each else None].add(row["repeat"])
    fewest = min(map(len, numbers.values()))
    if num_repeats > fewest:
        raise BadOptions(f"--repeats {num_repeats}: {source} holds {fewest} repeats")
    first = {key: sorted(each)[:num_repeats] for key, each in numbers.items()}
    return [row for row in rows if row["repeat"] in
            first[(row["dataset"], row["replicate"]) if of_each else None]]


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
            rows.append(row | _flat(row) | {"leaks": known_leaks(source, row)})
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
                   "accuracy": _number(line["accuracy"], f"{where}: accuracy")}
            check_fraction(row["accuracy"], f"{where}: accuracy")
            rows.append(row)
        except Fault as fault:
            faults.append(str(fault))
    return rows


def _number(text: str | None, what: str) -> float:
    try:
        return float(text or "")
    except ValueError:
        hint = " (percent? divide by 100)" if (text or "").strip().endswith("%") else ""
        if re.fullmatch(r"\s*\d+,\d+\s*", text or ""):
            hint = " (a decimal comma? write a point)"
        raise Fault(f"{what} is {text!r}, not a number{hint}") from None


def _whole(text: str | None, what: str) -> int:
    value = _number(text, what)
    if not math.isfinite(value) or value != int(value) or value < 0:
        raise Fault(f"{what} is {text!r}, not a whole number from 0")
    return int(value)
