"""nnU-Net's raw layout of the scans of a dataset, so that the reference can be run beside.

    <output>/imagesTr/<case>_0000.nii.gz   labelsTr/<case>.nii.gz     patients of train and val
             imagesTs/<case>_0000.nii.gz   labelsTs/<case>.nii.gz     of test
             splits_final.json             train and val, as the one fold that nnU-Net shall use
             cases.csv                     case, series, patient, split
             dataset.json                  last: present means complete

Images are int16 HU on the scan's own grid; labels are 1 where a nodule counts and, where the scans
have such, 2 where a finding is neither that nor healthy, which nnU-Net ignores. Isensee et al. 2021
(Nature Methods 18:203), the layout of nnU-Net's version 2.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from lungkit.ct.images import ignored_of
from lungkit.ct.plan import Job
from lungkit.data.segment_scores import IGNORED
from lungkit.formats.nifti import encode_nifti
from lungkit.run.faults import check_stop
from lungkit.run.files import write_bytes, write_json, write_text
from lungkit.run.output import Output
from lungkit.run.progress import Progress

FOLDER = {"train": "Tr", "val": "Tr", "test": "Ts"}


def export(target: Output, jobs: list[Job], mapped: Callable) -> None:
    """Write the scans of `jobs` with their nodules; a killed export writes what is missing.

    Raises Fault where a scan cannot be read, Stopped after a signal.
    """
    cases = {f"scan_{number:04d}": job for number, job in enumerate(jobs)}
    with target.writing() as folder:
        progress = Progress("writing scans for nnU-Net", len(cases))
        pending = [item for item in cases.items() if not all(
            path.exists() for path in case_paths(folder, *item))]
        done = len(cases) - len(pending)
        for _ in mapped(partial(write_case, folder=folder), pending, chunk=1, ahead=1):
            done += 1
            progress.update(done)
            check_stop()
        of_split = {split: [case for case, job in cases.items() if job.split == split]
                    for split in FOLDER}
        write_json(folder / "splits_final.json",
                   [{split: of_split[split] for split in ("train", "val")}])
        write_text(folder / "cases.csv", _table(cases))
        doubtful = {"ignore": IGNORED} if any(map(ignored_of, jobs)) else {}
        target.publish({"channel_names": {"0": "CT"},
                        "labels": {"background": 0, "nodule": 1, **doubtful},
                        "numTraining": len(of_split["train"]) + len(of_split["val"]),
                        "file_ending": ".nii.gz", "name": target.output_dir.name})


def case_paths(folder: Path, case: str, job: Job) -> tuple[Path, Path]:
    """Of its image and of its labels."""
    side = FOLDER[job.split]
    return (folder / f"images{side}" / f"{case}_0000.nii.gz",
            folder / f"labels{side}" / f"{case}.nii.gz")


def write_case(item: tuple[str, Job], folder: Path) -> None:
    """Write one scan and its labels, each whole or not at all. Raises Fault."""
    _, job = item
    volume = job.scan.load()
    labels = np.zeros(volume.hu.shape, np.uint8)
    for value, nodules in ((IGNORED, ignored_of(job)), (1, job.counted)):  # the latter on top
        for nodule in nodules:
            part = tuple(slice(at, at + size) for at, size in zip(nodule.start, nodule.mask.shape))
            labels[part][nodule.mask] = value
    for path, values in zip(case_paths(folder, *item), (volume.hu, labels)):
        write_bytes(path, encode_nifti(values, volume.geometry), flush=False)


def _table(cases: dict[str, Job]) -> str:
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("case", "series", "patient", "split"))
    lines.writerows((case, job.scan.name, job.scan.patient, job.split)
                    for case, job in cases.items())
    return text.getvalue()
