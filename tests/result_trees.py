"""Results trees for the tests of the comparison: records of three classes, written by hand."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lungkit.data import result

OTHERS = [{"name": "others", "fingerprint": "others", "splits": ["train"]}]  # seen in training
ARMS = {"real": 0.90, "voronoi": 0.34, "prompt": 0.89}  # chance of a right answer


def split_of(matrix: list[list[int]], **changed) -> dict:
    """What a record says of one test split."""
    return {"num_images": sum(map(sum, matrix)), "auprc_baseline": 1 / 3,
            "confusion_matrix": matrix, **changed}


def scores_of(split: dict, **changed) -> dict:
    """The scores of a test split."""
    matrix = split["confusion_matrix"]
    accuracy = sum(matrix[i][i] for i in range(len(matrix))) / split["num_images"]
    return {"accuracy": accuracy, "macro_f1": accuracy, "balanced_accuracy": accuracy,
            "auroc": (1 + accuracy) / 2, "auprc_weighted": 0.9, **changed}


def right(count: int, num_images: int = 60) -> list[list[int]]:
    """A confusion matrix of three equal classes with `count` right answers."""
    matrix = [[0] * 3 for _ in range(3)]
    for i in range(num_images):
        matrix[i % 3][i % 3 if i < count else (i + 1) % 3] += 1
    return matrix


def record(dataset: str, repeat: int, own: dict, real: dict, *, replicate: int = 0,
           **changed) -> dict:
    """One result, in which nothing is wrong."""
    made_from_real = [] if dataset == "real" else [
        {"name": "real", "fingerprint": f"real{replicate}", "splits": ["train"]}]
    scores = {"own": scores_of(own), "real": scores_of(real)}
    return {"schema": "lungkit.result/2", "task": "classify", "dataset": dataset,
            "replicate": replicate, "repeat": repeat, "seed": 100 + repeat, "model": "small",
            "settings": {"steps": 50, "batch_size": 16},
            "dataset_fingerprint": f"{dataset}{replicate}", "real_fingerprint": f"real{replicate}",
            **{f"accuracy_{split}": scores[split]["accuracy"] for split in scores},
            "scores": scores, "own": own, "real": real, "device": "cpu",
            "versions": {"torch": "2.11.0"}, "warnings": [],
            "leaks": {"recipe": 1, "passed": True, "num_training_images": 90,
                      "num_test_images": 60},
            "trained_on": [{"name": dataset, "fingerprint": f"{dataset}{replicate}",
                            "splits": ["train", "val"]}, *made_from_real], **changed}


def write(root: Path, row: dict) -> Path:
    directory = root / row["dataset"] / f"replicate_{row['replicate']:03d}"
    path = directory / f"repeat_{row['repeat']:04d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row))
    return path


def write_counts(root: Path, counts: dict[str, list[int]], *, num_images: int = 60,
                 own: int = 57, **changed) -> Path:
    """A tree whose repeats have the given numbers of right answers on the real test images."""
    for name, rights in counts.items():
        for repeat, count in enumerate(rights):
            write(root, record(name, repeat, split_of(right(own, num_images)),
                               split_of(right(count, num_images)), **changed))
    return root


def make_results(root: Path, *, arms: dict[str, float] = ARMS, repeats: int = 6,
                 replicates: int = 1, num_images: int = 60,
                 edit: Callable[[dict], None] | None = None) -> Path:
    """A tree of random answers; `edit(row)` may change a result in place."""
    for name, level in arms.items():
        for replicate, repeat in itertools.product(range(replicates), range(repeats)):
            rng = random.Random(f"{name} {replicate} {repeat}")

            def answers(share):
                matrix = [[0] * 3 for _ in range(3)]
                for i in range(num_images):
                    is_right = rng.random() < share
                    matrix[i % 3][(i + (0 if is_right else rng.choice([1, 2]))) % 3] += 1
                return split_of(matrix)

            real, own = answers(level), answers(0.95)
            row = record(name, repeat, own, real, replicate=replicate)
            if name == "real":
                row["warnings"] = ["confounding: class a comes from one group"]
            place = dict(row)
            if edit:
                edit(row)
            write(root, place).write_text(json.dumps(row))
    return root


# ------------------------------------------------------------------ repeats of no content

def identity(repeat: int = 0, **changed) -> dict:
    """What decides a repeat, of a made-up CNN."""
    return {"dataset": "pool", "dataset_fingerprint": "d1", "real_fingerprint": "r1",
            "replicate": 0, "repeat": repeat, "seed": 10 + repeat, "model": "small",
            "settings": {"steps": 6, "recipe": 2, "weights_sha256": None}, **changed}


def write_repeat(directory, repeat: int = 0, *, accuracy: float = 0.5, **changed) -> None:
    """A record of `identity`, and as little else as a process that shares repeats looks at."""
    result.write_record(directory, {**identity(repeat, **changed), "accuracy_real": accuracy,
                                    "accuracy_own": accuracy / 2},
                        {"x": np.arange(3)}, {"elapsed_sec": 1})


# ------------------------------------------------------------------ docs/result.md

PAGE = Path(__file__).resolve().parent.parent / "docs/result.md"


def keys_on_page(heading: str) -> set[str]:
    """The names in the first column of the tables below a heading of docs/result.md."""
    text = re.split(r"(?m)^##+ ", PAGE.read_text(encoding="utf-8").split(f"# {heading}\n")[1])[0]
    return {name for row in re.findall(r"(?m)^\| (`[^|]*`) \|", text)
            for name in re.findall(r"`([^`]+)`", row)}


def keys_of(row: dict) -> set[str]:
    """The keys of a record as the page writes them: run.host, <split>.classes."""
    deep = {f"{name}.{key}" for name in ("settings", "run", "own", "real") for key in row[name]}
    return set(row) | {re.sub(r"^(own|real)\.", "<split>.", name) for name in deep}


def arrays_of(path: Path) -> set[str]:
    """The arrays beside a record as the page writes them."""
    with np.load(path.with_suffix(".npz")) as arrays:
        return {re.sub(r"^(own|real)_", "<split>_", name) for name in arrays.files}
