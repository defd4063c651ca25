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
                          dirty (the tree differed from the commit), command, finished_at

and the .npz {own,real}_{probabilities,labels,file_names} and classes.
"""

from __future__ import annotations

import io
import os
import platform
import re
import time
from pathlib import Path

import numpy as np

from lungkit.run.files import read_json, write_bytes, write_json
from lungkit.run.provenance import origin

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
                      "run": {**run, **origin(), "host": platform.node(), "finished_at": finished,
                              "job": os.environ.get("SLURM_JOB_ID")}})


SCHEMA = "lungkit.result/1"
# the kind of a record: a CNN (or not said), or a classical baseline, whose settings are its own
CNN, BASELINE = "cnn", "baseline"
