"""Which nodules count, and what class they are of: the truthing rule, on record.

Published selections of LIDC differ so much by this rule that they do not compare (Baltatzis et al.
2021, "The Pitfalls of Sample Selection: A Case Study on Lung Nodule Classification", arXiv
2108.05386).

Feeds ct_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass

from lungkit.ct.nodules import Nodule

LABELS = ("binary", "grade", "presence", "histology")
BENIGN, MALIGNANT, NODULE, HEALTHY = "benign", "malignant", "nodule", "no_nodule"
GRADES = tuple(f"grade_{n}" for n in range(1, 6))


@dataclass(frozen=True)
class Rule:
    """The truthing rule. Grades are medians of readers: 1 benign to 5 malignant.

    benign_max, malignant_min: grades between them are dropped from binary. min_readers: who marked
    it; min_diameter_mm; max_thickness_mm of a scan's slices, None: any.
    """

    labels: str = "binary"
    benign_max: float = 2.0
    malignant_min: float = 4.0
    min_readers: int = 3
    min_diameter_mm: float = 3.0
    max_thickness_mm: float | None = None

    def describe(self) -> dict:
        """For the manifest."""
        words = {"binary": f"benign: median grade <= {self.benign_max:g}; malignant: >= "
                           f"{self.malignant_min:g}; between: dropped",
                 "grade": "median grade, halves rounded up",
                 "presence": "a nodule, or lung without any finding",
                 "histology": "as the source names it"}
        return {**asdict(self), "words": words[self.labels]}


def dropped(nodule: Nodule, rule: Rule) -> str | None:
    """Why a nodule does not count, whatever its class; None: it does."""
    if nodule.readers is not None and nodule.readers < rule.min_readers:
        return f"fewer than {rule.min_readers} readers"
    if nodule.diameter_mm < rule.min_diameter_mm:
        return f"below {rule.min_diameter_mm:g} mm"
    return None


def class_of(nodule: Nodule, rule: Rule) -> tuple[str | None, str]:
    """The class of a nodule that counts, or None and why it has none."""
    if rule.labels == "presence":
        return NODULE, ""
    if rule.labels == "histology":
        return (nodule.label, "") if nodule.label else (None, "no histology")
    grade = nodule.grade
    if grade is None:
        return None, "not graded"
    if rule.labels == "grade":
        return GRADES[round_grade(grade) - 1], ""
    if grade <= rule.benign_max:
        return BENIGN, ""
    if grade >= rule.malignant_min:
        return MALIGNANT, ""
    return None, f"grade between {rule.benign_max:g} and {rule.malignant_min:g}"


def round_grade(grade: float) -> int:
    """1-5: the nearest grade, halves up."""
    return min(5, max(1, math.floor(grade + 0.5)))


def strata(nodules: list[Nodule]) -> list[str]:
    """What a patient counts for in a split, of each nodule: its grade, else its histology.

    The truthing rule has no say, so that one split serves all tasks.
    """
    return [f"grade {round_grade(n.grade)}" if n.grade is not None else n.label or NODULE
            for n in nodules] or ["none"]


def join_rare(of_patient: dict[str, list[str]], least: int) -> dict[str, list[str]]:
    """The same strata, those of fewer patients than `least` joined to the next, in sorted order.

    All of them are one where there is no other way.
    """
    merged = {name: name for names in of_patient.values() for name in names}
    while True:
        counts = Counter(name for names in of_patient.values()
                         for name in {merged[each] for each in names})
        rare = [name for name in sorted(counts) if counts[name] < least]
        order = sorted(counts)
        if not rare or len(order) == 1:
            return {patient: [merged[each] for each in names]
                    for patient, names in of_patient.items()}
        at = order.index(rare[0])
        other = order[at + 1] if at + 1 < len(order) else order[at - 1]
        merged = {name: other if now == rare[0] else now for name, now in merged.items()}
