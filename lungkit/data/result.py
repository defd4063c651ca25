"""The result contract: what one CNN repeat leaves behind, its metrics, and where it lies.

    <results>/<dataset>/replicate_000/repeat_0000.json   the record, written last
                                      repeat_0000.npz    probabilities of every test image
                                      .repeat_0000.partial   a long repeat's checkpoint

The record (schema lungkit.result/1) holds

    dataset, dataset_fingerprint, real_fingerprint, replicate, repeat, seed, model, settings
                          what decided it: the same values give the same record
    accuracy_own, accuracy_real, accuracy_val
                          on the dataset's own test split, on real's, on the dataset's own val
    own, real             `split_metrics` of the two test splits
    kind                  "baseline" for what is no CNN (nuclei_classify.py, with fields of its own)
    train_loss, num_train_images, num_pool_images, warnings, trained_on
    device, versions
    run                   what may differ from run to run: elapsed_sec, host, job, threads, commit,
                          finished_at

and the .npz {own,real}_{probabilities,labels,file_names} and classes.
"""

from __future__ import annotations

import io
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lungkit.run.cli import BadOptions, check_stop
from lungkit.run.files import read_json, release, try_lock, write_bytes, write_json
from lungkit.run.progress import say
from lungkit.compare.results import SCHEMA

POLL_INTERVAL_SEC = 0.5
IDENTITY = ("dataset", "dataset_fingerprint", "real_fingerprint", "replicate", "repeat", "seed",
            "model", "settings")


# ------------------------------------------------------------------ places

def replicate_dir(results_dir: Path, dataset: str, replicate: int) -> Path:
    return Path(results_dir) / dataset / f"replicate_{replicate:03d}"


def repeat_path(directory: Path, repeat: int) -> Path:
    return directory / f"repeat_{repeat:04d}.json"


def checkpoint_path(directory: Path, repeat: int) -> Path:
    return directory / f".repeat_{repeat:04d}.partial"


def read_records(directory: Path) -> dict[int, dict]:
    """The complete repeats of one dataset and replicate, by repeat."""
    records = {}
    for path in sorted(directory.glob("repeat_*.json")):
        number = re.fullmatch(r"repeat_(\d+)", path.stem)
        if number:
            records[int(number[1])] = read_json(path)
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


# ------------------------------------------------------------------ many processes, one directory

def survey(directory: Path, identities: list[dict]) -> tuple[dict, list[dict]]:
    """Look at what is there: {repeat: differences} of stale results, and the repeats missing.

    Results outside the asked range count as well: a directory holds results of one kind.
    """
    there = read_records(directory)
    base = identities[0]
    seed = base["seed"] - base["repeat"]
    stale = {}
    for repeat, record in there.items():
        wanted = {**base, "repeat": repeat, "seed": seed + repeat}
        changed = differences(record, wanted)
        if changed:
            stale[repeat] = f"repeat {repeat}: {'; '.join(changed)}"
    return stale, [each for each in identities
                   if each["repeat"] not in there or each["repeat"] in stale]


def discard(directory: Path, identities: list[dict]) -> None:
    """Remove the results of other options; --overwrite asked for it.

    Each is looked at again under its lock: another process may have redone it by now.
    """
    for repeat in survey(directory, identities)[0]:
        path = repeat_path(directory, repeat)
        held = try_lock(path)
        if held is None:
            continue
        try:
            if repeat in survey(directory, identities)[0]:
                path.unlink(missing_ok=True)
                path.with_suffix(".npz").unlink(missing_ok=True)
        finally:
            release(held, path)


def share(directory: Path, identities: list[dict], work: Callable) -> None:
    """Do every repeat that is neither complete nor with another process; then wait for those."""
    waiting = False
    while True:
        stale, pending = survey(directory, identities)
        if stale:
            raise BadOptions(f"another process writes other results to {directory} "
                             f"({stale[min(stale)]}): use another --results")
        if not pending:
            return
        check_stop()
        if not any(take(directory, identity, work) for identity in pending):
            if not waiting:
                say(f"{len(pending)} repeats are with other processes: waiting for them")
            waiting = True
            time.sleep(POLL_INTERVAL_SEC)


def take(directory: Path, identity: dict, work: Callable) -> bool:
    """Do a repeat unless another process has done it meanwhile; False if one holds it."""
    path = repeat_path(directory, identity["repeat"])
    held = try_lock(path)
    if held is None:
        return False
    try:
        if path.exists():
            return True
        for left_over in directory.glob(f".*{path.stem}.*.tmp*"):  # by a kill while writing
            left_over.unlink()
        work(identity)
        return True
    finally:
        release(held, path)


def report(directory: Path, identities: list[dict], state: str) -> None:
    """Print mean, standard deviation and number of the accuracies of the repeats asked for."""
    there = read_records(directory)
    asked = [there[each["repeat"]] for each in identities]
    parts = []
    for name in ("accuracy_real", "accuracy_own"):
        values = [record[name] for record in asked]
        sd = f"{statistics.stdev(values):.4f}" if len(values) > 1 else "-"
        parts.append(f"{name} mean {statistics.fmean(values):.4f} sd {sd}")
    print(f"{identities[0]['dataset']} {state}: {'  '.join(parts)}  n {len(asked)}  {directory}")


# ------------------------------------------------------------------ metrics

def split_metrics(probabilities: np.ndarray, labels: np.ndarray, classes: list[str]) -> dict:
    """Metrics of class probabilities float [N, C] against labels int [N].

    auroc: unweighted mean over classes of one against the rest. auprc_weighted: average
    precision of each class weighted by its share of images; auprc_baseline is what guessing by
    that share would give. macro_f1 and balanced_accuracy are means over classes.
    """
    num_classes = len(classes)
    confusion = confusion_matrix(labels, probabilities.argmax(1), num_classes)
    right, true, said = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    present = true > 0
    share = true / true.sum()
    one_hot = labels[:, None] == np.arange(num_classes)
    aucs = [auroc(probabilities[:, k], one_hot[:, k]) for k in np.flatnonzero(present)]
    precisions = [average_precision(probabilities[:, k], one_hot[:, k])
                  for k in np.flatnonzero(present)]
    return {"num_images": int(true.sum()),
            "accuracy": float(right.sum() / true.sum()),
            "balanced_accuracy": float((right[present] / true[present]).mean()),
            "macro_f1": float((2 * right / np.maximum(true + said, 1)).mean()),
            "auroc": float(np.mean(aucs)),
            "auprc_weighted": float(np.dot(share[present], precisions)),
            "auprc_baseline": float((share**2).sum()),
            "confusion_matrix": confusion.tolist(),
            "classes": list(classes)}


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts int [C, C]: rows are the true class, columns the predicted one."""
    flat = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """P(a positive scores above a negative), ties counted half (Hanley and McNeil 1982)."""
    _, group, size = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(size)
    midranks = (last - (size - 1) / 2)[group]
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if not num_positive or not num_negative:
        return 0.5  # one class only: nothing to rank
    u = midranks[positive].sum() - num_positive * (num_positive + 1) / 2
    return float(u / (num_positive * num_negative))


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Sum of precision x gain in recall over the thresholds, as scikit-learn defines it."""
    _, group = np.unique(-scores, return_inverse=True)
    hits = np.bincount(group, weights=positive)
    precision = np.cumsum(hits) / np.cumsum(np.bincount(group))
    return float((precision * hits).sum() / positive.sum())


# ------------------------------------------------------------------ writing

def write_record(directory: Path, record: dict, arrays: dict[str, np.ndarray],
                 run: dict) -> None:
    """Write the .npz, then the JSON: where the JSON is, both are whole."""
    path = repeat_path(directory, record["repeat"])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # its members carry no date: the same bytes every time
    write_bytes(path.with_suffix(".npz"), buffer.getvalue())
    finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_json(path, {"schema": SCHEMA, **record,
                      "run": {**run, "host": platform.node(), "finished_at": finished,
                              "job": os.environ.get("SLURM_JOB_ID")}})
