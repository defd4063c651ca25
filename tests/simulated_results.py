"""Results trees of a known truth: what every training would say of every test image of every group.

An image of class k is answered right where a latent normal variable of variance 1 lies above the
threshold of the arm's true accuracy. Its variance is shared out:

    group          the test group's difficulty, the same for all arms
    image          the image's, within its group
    arm_group      what the group is to the arm alone: the arm x group share
    seed           the training's, over all images
    the rest       of each training on each image

So the accuracy of an arm, over new groups and new trainings, is `accuracy` whatever the shares.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

from lungkit.compare.answer import Comparison
from lungkit.compare.conclude import conclude
from lungkit.compare.evidence import read_evidence
from lungkit.compare.pairs import compare
from lungkit.compare.rank_sum import margin_on_grid
from lungkit.compare.results import Results, _flat
from lungkit.data.controls import EXPECTED
from lungkit.data.result import repeat_path, replicate_dir

GROUP, IMAGE, SEED = 0.15, 0.35, 0.004
TRAIN_IMAGES = 3  # of real, per test image


@dataclass(frozen=True)
class Truth:
    """One arm. draw: standard deviation of a replicate's own set, in those of the seeds."""

    accuracy: float = 0.85
    arm_group: float = 0.0
    draw: float = 0.0
    collapsed: int = 0     # trainings of each replicate that say the first class of everything
    lost: int | None = None  # a class of which this arm is never right
    kind: str = "cnn"


@dataclass
class Simulated:
    """The records of a tree, and the arrays beside each by (dataset, replicate, repeat)."""

    rows: list[dict]
    arrays: dict[tuple, dict[str, np.ndarray]]

    def found(self) -> Results:
        """What `read_results` would give of the tree."""
        names = dict.fromkeys(row["dataset"] for row in self.rows)
        rows = [row | _flat(row) for row in self.rows]
        return Results(rows, sorted(names, key=lambda name: (name != "real", name)),
                       ["accuracy_real", "accuracy_own"],
                       sorted({row["replicate"] for row in rows}),
                       sorted({row["repeat"] for row in rows}))

    def read(self, path: Path) -> dict[str, np.ndarray]:
        """The arrays of an .npz that is not there."""
        replicate, repeat = (int(part.split("_")[1]) for part in (path.parts[-2], path.stem))
        return self.arrays[path.parts[-3], replicate, repeat]

    def write(self, root: Path) -> Path:
        """The tree on disk, as the classifiers leave it."""
        for row in self.rows:
            path = repeat_path(replicate_dir(root, row["dataset"], row["replicate"]),
                               row["repeat"])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(row))
            buffer = io.BytesIO()
            np.savez(buffer, **self.arrays[row["dataset"], row["replicate"], row["repeat"]])
            path.with_suffix(".npz").write_bytes(buffer.getvalue())
        return root


def simulate(truths: dict[str, Truth], *, seed: int, classes: int = 3, groups: int = 10,
             images: int = 3, repeats: int = 20, replicates: int = 1, alike: bool = False,
             collapse: float = 0) -> Simulated:
    """A run of these arms: `groups` test groups a class of `images` images, new in a replicate.

    alike: every image is as hard as any other, so that the truth of these test images is that of
    all. collapse: the chance of each training of an arm but real to collapse.
    """
    rng = np.random.default_rng(seed)
    made = Simulated([], {})
    group = np.repeat(np.arange(classes * groups), images)
    labels = group % classes
    for replicate in range(replicates):
        shared = (1 - alike) * (rng.normal(0, GROUP**0.5, classes * groups)[group]
                                + rng.normal(0, IMAGE**0.5, len(group)))
        files = {"real_labels": labels, "classes": np.array([f"class{k}" for k in range(classes)]),
                 "real_groups": np.array([f"r{replicate}g{g:03d}" for g in group]),
                 "real_file_names": np.array([f"test/{i}.png" for i in range(len(group))])}
        for name, truth in truths.items():
            rest = 1 - (1 - alike) * (GROUP + IMAGE) - SEED - truth.arm_group
            own = rng.normal(0, truth.arm_group**0.5, classes * groups)[group]
            middle = NormalDist().inv_cdf(truth.accuracy) + truth.draw * SEED**0.5 * rng.normal()
            for repeat in range(repeats):
                z = (middle + shared + own + rng.normal(0, SEED**0.5)
                     + rng.normal(0, rest**0.5, len(group)))
                if truth.lost is not None:
                    z = np.where(labels == truth.lost, -1.0, z)
                fails = truth.collapsed > repeat or (name != "real" and rng.random() < collapse)
                told = _probabilities(z, labels, classes, fails)
                made.arrays[name, replicate, repeat] = {**files, "real_probabilities": told}
                made.rows.append(_record(name, truth, replicate, repeat, told, labels, classes))
    return made


def simulate_controls(arms: dict[str, Truth], controls: dict[str, Truth], *,
                      flagged: float | None = 1.0, **how) -> Simulated:
    """A run of these arms, and of controls by their names as datasets "c-<name>".

    Each is tested on its own images as on real's. flagged: of a photocopier. how: of `simulate`.
    """
    made = simulate({**arms, **{f"c-{name}": truth for name, truth in controls.items()}}, **how)
    for row in made.rows:
        name = row["dataset"].removeprefix("c-")
        if name != row["dataset"]:
            row["control"] = {"name": name, "expected": EXPECTED[name]}
            if name == "photocopier" and flagged is not None:
                row["control"]["flagged"] = flagged
    for arrays in made.arrays.values():
        arrays |= {f"own_{key[5:]}": value for key, value in arrays.items() if key != "classes"}
    return made


def simulate_mixtures(arms: dict[str, Truth], mixtures: dict[str, tuple[Truth, float, str, float]],
                      *, num_real: int = 300, **how) -> Simulated:
    """A run of these arms, and of mixtures by their names: (truth, real share, arm or "", dose)."""
    made = simulate({**arms, **{name: mix[0] for name, mix in mixtures.items()}}, **how)
    for row in made.rows:
        row["num_train_images"] = num_real
        if row["dataset"] in mixtures:
            _, share, arm, dose = mixtures[row["dataset"]]
            row["mix"] = {"real": share, "synthetic": arm or None, "dose": dose,
                          "num_real": share * num_real, "num_synthetic": dose * num_real}
    return made


def _probabilities(z: np.ndarray, labels: np.ndarray, classes: int,
                   collapsed: bool) -> np.ndarray:
    """float32 [N, C]: the class said gets 1/2 and more, the further z from 0 the more."""
    said = np.where(z > 0, labels, (labels + 1) % classes) * (not collapsed)
    sure = 1 - 0.5 * np.exp(-np.abs(z))
    told = np.repeat(((1 - sure) / (classes - 1))[:, None], classes, 1)
    told[np.arange(len(labels)), said] = sure
    return told.astype(np.float32)


def _record(name: str, truth: Truth, replicate: int, repeat: int, told: np.ndarray,
            labels: np.ndarray, classes: int) -> dict:
    matrix = np.zeros((classes, classes), int)
    np.add.at(matrix, (labels, told.argmax(1)), 1)
    accuracy = float(np.trace(matrix) / len(labels))
    split = {"num_images": len(labels), "classes": [f"class{k}" for k in range(classes)],
             "confusion_matrix": matrix.tolist()}
    parent = {"name": "real", "fingerprint": f"real{replicate}", "splits": ["train", "val"]}
    row = {"schema": "lungkit.result/2", "task": "classify", "dataset": name,
           "dataset_fingerprint": f"{name}{replicate}", "real_fingerprint": f"real{replicate}",
           "replicate": replicate, "repeat": repeat, "seed": repeat, "model": "small",
           "settings": {"steps": 1}, "accuracy_own": accuracy, "accuracy_real": accuracy,
           "scores": {"own": {"accuracy": accuracy}, "real": {"accuracy": accuracy}},
           "own": split, "real": split, "num_pool_images": TRAIN_IMAGES * len(labels),
           "trained_on": [parent], "warnings": [], "leaks": {"recipe": 1, "passed": True}}
    return row if truth.kind == "cnn" else row | {"kind": truth.kind}


def conclude_of(made: Simulated, *, repeats: int | None = None, margin: float = 0.02,
                plan: dict | None = None) -> Comparison:
    """What the stage decides of the tree, without writing and reading it."""
    rows = [row for row in made.rows if repeats is None or row["repeat"] < repeats]
    found = Simulated(rows, made.arrays).found()
    evidence = read_evidence(Path("results"), found, "accuracy_real", None, made.read)
    step = found.step("accuracy_real")
    tests = compare({name: found.values(name, "accuracy_real") for name in found.datasets},
                    metric="accuracy_real", unit=found.unit, alpha=0.05, margin=margin,
                    margin_tested=margin_on_grid(margin, step), grid=step)
    return conclude(found, tests, "accuracy_real", evidence, None, alpha=0.05, margin=margin,
                    plan=plan)
