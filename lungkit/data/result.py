"""The result contract: what one repeat leaves behind and where it lies. In full: docs/result.md.

    <results>/<dataset>/replicate_000/repeat_0000.json   the record, written last
                                      repeat_0000.npz    per test image: probabilities, label, group
                                      .repeat_0000.partial   a long repeat's checkpoint
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lungkit.run.faults import Fault
from lungkit.run.files import read_json, write_bytes, write_json
from lungkit.run.progress import note_saved
from lungkit.run.provenance import origin

if TYPE_CHECKING:
    import numpy as np

SCHEMA, OLDER_SCHEMA = "lungkit.result/2", "lungkit.result/1"
SPLITS = ("own", "real")  # the test splits of a result: the dataset's own, and the real dataset's
# the named scores of each task: fractions in 0..1, more is better
SCORES = {"classify": ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "auroc",
                       "auprc_weighted"),
          "segment": ("dice", "dice_pooled", "lesion_sensitivity", "surface_dice")}
# further ones of ordinal classes, grades
ORDINAL_SCORES = ("kappa_quadratic", "grade_closeness")
# those of tumour against the class that is none, where a comparison is told which one that is
TUMOUR_SCORES = ("sensitivity", "specificity")
# the kind of a record: a CNN (or not said), or a classical baseline, whose settings are its own
CNN, BASELINE = "cnn", "baseline"
IDENTITY = ("dataset", "dataset_fingerprint", "real_fingerprint", "masks_sha256", "replicate",
            "repeat", "seed", "model", "settings", "draws")


# ------------------------------------------------------------------ places

def replicate_dir(results_dir: Path, dataset: str, replicate: int) -> Path:
    return Path(results_dir) / dataset / f"replicate_{replicate:03d}"


def repeat_path(directory: Path, repeat: int) -> Path:
    return directory / f"repeat_{repeat:04d}.json"


def checkpoint_path(directory: Path, repeat: int) -> Path:
    return directory / f".repeat_{repeat:04d}.partial"


def masks_dir(directory: Path, repeat: int) -> Path:
    """Where masks of scans lie that a repeat found."""
    return directory / f"repeat_{repeat:04d}_masks"


def leaks_path(results_dir: Path, fingerprint: str, real_fingerprint: str) -> Path:
    """Where it is kept what a search for copies of real's test images found in a dataset."""
    return Path(results_dir) / ".leaks" / f"{fingerprint[:16]}-{real_fingerprint[:16]}.json"


# ------------------------------------------------------------------ reading

def read_record(path: Path) -> dict:
    """One record as written now: an older one gets its task and its scores. Raises Fault.

    What lies there is not looked at otherwise: `check_record` does that.
    """
    record = read_json(path)
    if record.get("schema") != OLDER_SCHEMA:
        return record
    record |= {"schema": SCHEMA, "task": "classify", "scores": {}}
    for split in SPLITS:  # which held the scores beside what they are of
        there = record.get(split)
        if isinstance(there, dict):
            scores = {name: there.pop(name) for name in SCORES["classify"] if name in there}
            record["scores"][split] = {name: value for name, value in scores.items()
                                       if value is not None}
            if f"accuracy_{split}" in record:  # the oldest have it as a column alone
                record["scores"][split].setdefault("accuracy", record[f"accuracy_{split}"])
    return record


def read_records(directory: Path) -> dict[int, dict]:
    """The complete repeats of one dataset and replicate, by repeat."""
    records = {}
    for path in sorted(directory.glob("repeat_*.json")):
        number = re.fullmatch(r"repeat_(\d+)", path.stem)
        if number:
            records[int(number[1])] = read_record(path)
    return records


def differences(record: dict, identity: dict) -> list[str]:
    """What of `identity` the record was made with otherwise, each as one phrase."""
    there, now = _flat(record), _flat(identity)
    return [f"{name}: {_short(there.get(name))} there, {_short(now.get(name))} now"
            for name in sorted(there | now) if there.get(name) != now.get(name)]


def _flat(record: dict) -> dict:
    """The identity of a record, its settings beside the rest."""
    flat = {name: record.get(name) for name in IDENTITY if name != "settings"}
    return {**flat, **(record.get("settings") or {})}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 30 else text[:13] + "..." + text[-1]


def is_baseline(record: dict) -> bool:
    return record.get("kind", CNN) == BASELINE


def known_leaks(results_dir: Path, record: dict) -> dict | None:
    """What is known of real's test images among those that a record was trained on.

    The record says it or, where it was made before that was asked, a search made since of the same
    datasets, by their fingerprints (a baseline is fitted to real). None: nobody has looked.
    """
    if record.get("leaks") is not None:
        return record["leaks"]
    real = record["real_fingerprint"]
    trained = real if is_baseline(record) else record["dataset_fingerprint"]
    with contextlib.suppress(Fault):
        found = read_json(leaks_path(results_dir, trained, real))
        if {"dataset_fingerprint": trained, "real_fingerprint": real}.items() <= found.items():
            return found
    return None


# ------------------------------------------------------------------ checking

def check_record(record: dict, place: Path) -> None:
    """Raise Fault unless `record` is one whole result that agrees with itself and its place.

    place: <dataset>/replicate_000/repeat_0000.json.
    """
    wanted = {"schema": str, "task": str, "dataset": str, "dataset_fingerprint": str,
              "real_fingerprint": str, "replicate": int, "repeat": int, "seed": int,
              "scores": dict, **dict.fromkeys(SPLITS, dict)}
    bad = [name for name, kind in wanted.items()
           if not isinstance(record.get(name), kind) or isinstance(record.get(name), bool)]
    if bad:
        raise Fault(f"{place} lacks {', '.join(bad)} (or of another type): it is no {SCHEMA} "
                    "result")
    if record["schema"] != SCHEMA:
        raise Fault(f"{place} has schema {record['schema']!r}, expected {SCHEMA!r}")
    if record.get("kind", CNN) not in (CNN, BASELINE):
        raise Fault(f"{place} is of kind {record['kind']!r}, expected {CNN} or {BASELINE}")
    numbers = [re.search(r"\d+$", part) for part in (place.parts[-2], place.stem)]
    there = (place.parts[-3], *(int(number[0]) if number else None for number in numbers))
    if there != (record["dataset"], record["replicate"], record["repeat"]):
        raise Fault(f"{place} holds dataset {record['dataset']}, replicate {record['replicate']}, "
                    f"repeat {record['repeat']}: a file in the wrong place")
    for split in SPLITS:
        if record["task"] == "classify":
            _check_accuracy(record, split, place)
        scores = record["scores"].get(split)
        if not isinstance(scores, dict) or not scores:
            raise Fault(f"{place}: scores.{split} holds no scores")
        if record["task"] == "classify" and "accuracy" not in scores:
            raise Fault(f"{place}: scores.{split} holds no accuracy")
        for name, value in scores.items():
            check_fraction(value, f"{place}: scores.{split}.{name}")
            if record.get(f"{name}_{split}", value) != value:
                raise Fault(f"{place}: {name}_{split} is {record[f'{name}_{split}']:.4f}, "
                            f"scores.{split}.{name} says {value:.4f}")


def _check_accuracy(record: dict, split: str, place: Path) -> None:
    """Raise Fault unless the accuracy of a split is that of its confusion matrix."""
    accuracy, matrix = record.get(f"accuracy_{split}"), record[split].get("confusion_matrix")
    check_fraction(accuracy, f"{place}: accuracy_{split}")
    if not isinstance(matrix, list) or not all(
            isinstance(line, list) and len(line) == len(matrix)
            and all(type(count) is int and count >= 0 for count in line) for line in matrix):
        raise Fault(f"{place}: {split}.confusion_matrix is not a square of counts")
    total, num_images = sum(map(sum, matrix)), record[split].get("num_images")
    right = sum(matrix[i][i] for i in range(len(matrix)))
    if not total or total != num_images:
        raise Fault(f"{place}: {split}.confusion_matrix counts {total} images, "
                    f"num_images says {num_images}")
    if abs(right / total - accuracy) > 1e-4:
        raise Fault(f"{place}: accuracy_{split} is {accuracy:.4f}, its confusion matrix says "
                    f"{right / total:.4f}")


def check_fraction(value: object, what: str) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        hint = " (percent? divide by 100)" if isinstance(value, (int, float)) and value > 1 else ""
        raise Fault(f"{what} is {value!r}, not a fraction between 0 and 1{hint}")


# ------------------------------------------------------------------ writing

def write_record(directory: Path, record: dict, arrays: dict[str, np.ndarray],
                 run: dict) -> None:
    """Write the .npz, then the JSON: where the JSON is, both are whole."""
    import numpy as np

    path = repeat_path(directory, record["repeat"])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # its members carry no date: the same bytes every time
    write_bytes(path.with_suffix(".npz"), buffer.getvalue())
    finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_json(path, {"schema": SCHEMA, **record,
                      "run": {**run, **origin(), "host": platform.node(), "finished_at": finished,
                              "job": os.environ.get("SLURM_JOB_ID")}})
    note_saved()

