"""What images a dataset of scans will hold, before a voxel is read.

Feeds ct_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lungkit.ct import truth
from lungkit.ct.nodules import Nodule
from lungkit.ct.studies import Scan
from lungkit.ct.truth import HEALTHY, NODULE, Rule
from lungkit.data.splits import SPLITS, partition, split_groups
from lungkit.run.faults import Fault
from lungkit.run.files import sha256
from lungkit.run.tables import read_table

VIEWS = ("crop", "slice")


@dataclass(frozen=True)
class Item:
    """One image: a slice around a nodule, a whole slice, or healthy lung.

    slice_index None: to be found in the lung of the scan, as far from findings as it takes.
    nodule: index among the scan's nodules that count, None: healthy.
    """

    number: int
    label: str
    slice_index: int | None
    nodule: int | None


@dataclass(frozen=True)
class Job:
    """One scan with the images to make of it."""

    scan: Scan
    split: str
    counted: tuple[Nodule, ...]      # nodules that count
    items: tuple[Item, ...]


@dataclass
class Plan:
    """Everything decided before the first image. dropped: nodules by reason."""

    jobs: list[Job]
    split_of: dict[str, str]         # by patient, all patients of the input
    stratum_of: dict[str, list[str]]
    classes: list[str]
    dropped: Counter = field(default_factory=Counter)
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)  # (scan, nodule): why not

    def items(self) -> Iterator[tuple[Job, Item]]:
        return ((job, item) for job in self.jobs for item in job.items)

    def counts(self) -> dict[str, dict[str, int]]:
        """Images planned by split and class."""
        found = Counter((job.split, item.label) for job, item in self.items())
        return {split: {label: found[split, label] for label in self.classes} for split in SPLITS}

    def drop(self, scan: Scan, nodule: Nodule, why: str) -> None:
        """Note why a nodule has no image."""
        self.dropped[why] += 1
        self.reasons[scan.name, nodule.name] = why

    def digest(self) -> str:
        """SHA-256 of all that decides the images besides the options."""
        return sha256(repr([(job.scan.name, job.split, job.items,
                             [(n.start, n.mask.shape, int(n.mask.sum())) for n in job.counted])
                            for job in self.jobs]).encode())


# ------------------------------------------------------------------ splits

def draw_splits(scans: list[Scan], seed: int, fold: tuple[int, int] | None
                ) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Split by patient, of all patients whatever the task, and what each counted for.

    Grades (else histologies) are spread evenly; one seen in fewer patients than there are parts is
    counted with the next.
    """
    items, of_patient = strata_of(scans, fold[1] if fold else len(SPLITS))
    return split_groups(items, seed, fold), of_patient


def in_half(scans: list[Scan], half: int, seed: int) -> list[Scan]:
    """The scans of one half of the patients, 1 or 2, whatever the task; strata as in a split."""
    items, _ = strata_of(scans, parts=2)
    part_of = partition(items, (0.5, 0.5), seed, parts="half")
    return [scan for scan in scans if part_of[scan.patient] == half - 1]


def strata_of(scans: list[Scan], parts: int) -> tuple[list[tuple[str, str]], dict[str, list[str]]]:
    """What is to be spread evenly over so many parts: (patient, stratum), and by patient."""
    of_patient: dict[str, list[str]] = {}
    for scan in scans:
        of_patient.setdefault(scan.patient, []).extend(
            truth.strata(list(scan.annotated.nodules)))
    of_patient = truth.join_rare(of_patient, parts)
    return [(patient, name) for patient, names in of_patient.items() for name in names], of_patient


def read_splits(path: Path, patients: set[str]) -> dict[str, str]:
    """{patient: split} of a CSV that an earlier run wrote. Raises Fault."""
    rows = [(row["patient"], row["split"])
            for _, row in read_table(path, ["patient", "split"]).rows]
    split_of = dict(rows)
    twice = [patient for patient, split in rows if split_of[patient] != split]
    wrong = sorted({split for _, split in rows} - set(SPLITS))
    missing = sorted(patients - set(split_of))
    if twice or wrong or missing:
        what = (f"{twice[0]!r} is in two splits" if twice else
                f"{wrong[0]!r} is no split" if wrong else
                f"{len(missing)} patients of the input are not in it ({missing[0]!r})")
        raise Fault(f"{path}: {what}: one line for each patient, of {', '.join(SPLITS)}")
    return {patient: split_of[patient] for patient in patients}


# ------------------------------------------------------------------ images

def make_plan(scans: list[Scan], rule: Rule, view: str, split_of: dict[str, str],
              stratum_of: dict[str, list[str]], *, slices_per_nodule: int = 1,
              all_slices: Sequence[str] = ()) -> Plan:
    """The images of every scan; all_slices: splits that are to hold every slice of their scans.

    Raises Fault where a class would be empty.
    """
    plan = Plan([], split_of, stratum_of, [])
    number = 0
    for scan in scans:
        thickness = scan.thickness_mm or scan.geometry.spacing_mm[0]
        thick = rule.max_thickness_mm is not None and thickness > rule.max_thickness_mm + 1e-6
        counted = []
        for nodule in scan.annotated.nodules:
            why = (f"slices thicker than {rule.max_thickness_mm:g} mm" if thick
                   else truth.dropped(nodule, rule))
            if why is None:
                counted.append(nodule)
            else:
                plan.drop(scan, nodule, why)
        if thick or not scan.annotated.source:
            continue
        split = split_of[scan.patient]
        wanted = list(_images_of(plan, scan, counted, rule, view, slices_per_nodule,
                                 split in all_slices))
        items = tuple(Item(number + i, *each) for i, each in enumerate(wanted))
        number += len(items)
        if items:
            plan.jobs.append(Job(scan, split, tuple(counted), items))
    plan.classes = classes_of(plan, rule)
    return plan


def classes_of(plan: Plan, rule: Rule) -> list[str]:
    """The classes there are, in the order of what they mean.

    Raises Fault of one or none, and of one that a split would lack.
    """
    order = [truth.BENIGN, truth.MALIGNANT, *truth.GRADES, HEALTHY, NODULE]
    found = {item.label for _, item in plan.items()}
    if len(found) < 2:
        why = "; ".join(f"{n} {reason}" for reason, n in plan.dropped.most_common(4))
        raise Fault(f"--labels {rule.labels}: {len(found)} class{'es'[:2 * (len(found) != 1)]} "
                    f"({', '.join(sorted(found)) or 'none'}) where two are needed"
                    + (f"; nodules dropped: {why}" if why else ""))
    empty = [f"{label} in {split}" for label in sorted(found) for split in SPLITS
             if not any(job.split == split and item.label == label for job, item in plan.items())]
    if empty:
        raise Fault(f"no image for {', '.join(empty)}: every class needs patients in every split; "
                    "add scans, or draw the classes wider")
    return sorted(found, key=lambda name: (order.index(name) if name in order else -1, name))


def _images_of(plan: Plan, scan: Scan, counted: list[Nodule], rule: Rule, view: str,
               per_nodule: int, every_slice: bool) -> Iterator[tuple[str, int | None, int | None]]:
    """(label, slice, nodule) of the images of one scan."""
    graded = []
    for index, nodule in enumerate(counted):
        label, why = truth.class_of(nodule, rule)
        if label is None:
            plan.drop(scan, nodule, why)
        else:
            graded.append((index, nodule, label))
    if view == "crop":
        for index, nodule, label in graded:
            for z in spread_slices(nodule, per_nodule):
                yield label, z, index
        if rule.labels == "presence":
            for _ in range(max(1, len(graded))):
                yield HEALTHY, None, None
        return
    shown: dict[int, tuple[int, str]] = {}  # of the largest nodule on each slice
    for index, nodule, label in sorted(graded, key=lambda each: each[1].diameter_mm):
        slices = nodule.slices() if every_slice else spread_slices(nodule, per_nodule)
        shown |= {int(z): (index, label) for z in slices}
    if every_slice and rule.labels == "presence":
        for z in range(scan.geometry.shape[0]):
            index, label = shown.get(z, (None, HEALTHY))
            yield label, z, index
        return
    for z in sorted(shown):
        yield shown[z][1], z, shown[z][0]
    if rule.labels == "presence":
        for _ in range(max(1, len(shown))):
            yield HEALTHY, None, None


def spread_slices(nodule: Nodule, count: int) -> list[int]:
    """Up to `count` slices of a nodule: the largest, then evenly over the rest."""
    slices = nodule.slices()
    if count <= 1 or len(slices) == 1:
        return [nodule.largest_slice()]
    picked = np.linspace(0, len(slices) - 1, min(count, len(slices)) + 2).round().astype(int)[1:-1]
    found = {int(slices[i]) for i in picked}
    nearest = min(found, key=lambda z: abs(z - nodule.largest_slice()))
    return sorted(found - {nearest} | {nodule.largest_slice()})
