"""What became of scans and nodules: tables, a sheet to look at, and what may confound."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from lungkit.audit import confounding
from lungkit.audit.warnings import RULER, confounding_warnings
from lungkit.ct.images import Made, describe
from lungkit.ct.plan import Job, Plan
from lungkit.ct.studies import Scan
from lungkit.ct.truth import HEALTHY, Rule, class_of
from lungkit.run.files import sha256

SHEET_COLUMNS, SHEET_PX = 12, 96
NODULE_COLUMNS = ("series", "patient", "split", "nodule_id", "label", "reason", "truth",
                  "diameter_mm", "z", "row", "column", "x_mm", "y_mm", "z_mm", "voxels",
                  "grade_median", "grade_min", "grade_max", "num_readers", "texture", "agreement",
                  "histology", "pathology")
TABLE_READERS = 3       # ours: fewer than so many patients a class and split say little


# ------------------------------------------------------------------ tables

def nodule_table(scans: list[Scan], plan: Plan, rule: Rule) -> str:
    """nodules.csv: a line of every nodule of the scans kept, with its class or why it has none."""
    text = io.StringIO()
    lines = csv.DictWriter(text, NODULE_COLUMNS, lineterminator="\n")
    lines.writeheader()
    for scan in scans:
        for nodule in scan.annotated.nodules:
            reason = plan.reasons.get((scan.name, nodule.name), "")
            at = scan.geometry.to_world(nodule.centre)
            lines.writerow({
                "series": scan.name, "patient": scan.patient,
                "split": plan.split_of[scan.patient],
                "label": "" if reason else class_of(nodule, rule)[0], "reason": reason,
                "truth": nodule.truth, **describe(nodule),
                **{name: f"{value:.2f}" for name, value in
                   zip(("z", "row", "column"), nodule.centre)},
                **{f"{axis}_mm": f"{value:.3f}" for axis, value in zip("xyz", at)},
                "voxels": int(nodule.mask.sum()), "histology": nodule.label,
                "agreement": "" if nodule.agreement is None else f"{nodule.agreement:.4f}"})
    return text.getvalue()


def split_table(plan: Plan) -> str:
    """split.csv: of every patient its split, and what it counted for when that was drawn."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("patient", "split", "strata"))
    for patient in sorted(plan.split_of):
        counts = Counter(plan.stratum_of.get(patient, ()))
        lines.writerow((patient, plan.split_of[patient],
                        "; ".join(f"{name} x {n}" for name, n in sorted(counts.items()))))
    return text.getvalue()


def sheet(rows: dict[str, list[np.ndarray]]) -> bytes:
    """A PNG of examples uint8 [S, S, 3] by class."""
    from lungkit.compare.contact_sheet import labelled_grid
    from lungkit.data.png import encode_png

    return encode_png(labelled_grid(rows))


def example(grey: np.ndarray, layout: np.ndarray, nodule: np.ndarray) -> np.ndarray:
    """uint8 [SHEET_PX, SHEET_PX, 3]: the image with outlines of lung (blue) and nodule (red)."""
    import cv2

    side = (SHEET_PX, SHEET_PX)
    shown = cv2.cvtColor(cv2.resize(grey, side, interpolation=cv2.INTER_LINEAR),
                         cv2.COLOR_GRAY2RGB)
    for mask, colour in ((np.isin(layout, (2, 4, 5)), (70, 130, 255)), (nodule > 0, (255, 40, 40))):
        large = cv2.resize(mask.astype(np.uint8), side, interpolation=cv2.INTER_NEAREST)
        outlines, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(shown, outlines, -1, colour, 1)
    return shown


# ------------------------------------------------------------------ confounding

def specimen(job: Job, made: Made, makers: list[str], kernels: list[str]
             ) -> confounding.Specimen:
    """One image with what could give its class away."""
    scan = job.scan
    depth, rows, columns = scan.geometry.shape
    step, spacing, _ = scan.geometry.spacing_mm
    traits = {
        "scanner": [float(scan.manufacturer == name) for name in makers],
        "kernel": [float(scan.kernel == name) for name in kernels],
        "slice thickness": (scan.thickness_mm or step, step), "pixel spacing": (spacing,),
        "contrast agent": (float(scan.contrast),), "length of the scan": (depth * step,)}
    if made.item.nodule is not None:
        nodule = job.counted[made.item.nodule]
        area = nodule.mask[made.item.slice_index - nodule.start[0]].sum() * spacing ** 2
        traits[RULER] = (float(np.log(nodule.diameter_mm)), float(np.log(max(area, 0.1))))
    return confounding.Specimen(
        made.item.label, scan.patient, f"{made.item.label}/{scan.name}/{made.item.number}",
        sha256(made.image), (columns, rows, scan.kind, "grey"), scan.file_bytes // depth, None,
        made.brightness, made.contrast, traits={k: tuple(v) for k, v in traits.items()},
        named={"manufacturer": scan.manufacturer or "unknown", "kernel": scan.kernel or "unknown",
               "contrast": "with contrast agent" if scan.contrast else "without"})


def confounding_report(jobs: list[tuple[Job, Made]], plan: Plan, groups_given: str,
                       mapped: Callable) -> dict:
    """`confounding.report` of the images made; the ruler only where every image has a nodule."""
    makers, kernels = (sorted({getattr(job.scan, name) for job, _ in jobs})
                       for name in ("manufacturer", "kernel"))
    found = [specimen(job, made, makers, kernels) for job, made in jobs]
    if any(RULER not in each.traits for each in found):
        found = [replace(each, traits={k: v for k, v in each.traits.items() if k != RULER})
                 for each in found]
    return confounding.report(found, plan.split_of, groups_given, mapped)


def warn(report: dict, plan: Plan, scans: list[Scan], rule: Rule) -> list[str]:
    """What the reader of every later result must know, as 'name: sentence'."""
    found = confounding_warnings(report)
    own = sum(scan.patient == scan.name and scan.kind != "dicom"
              and scan.annotated.source != "labels" for scan in scans)
    if own:
        found.append(f"patients unknown: {own} of {len(scans)} scans do not say whose they are and "
                     "count as a patient each; name them with --patients.")
    labels: dict[str, set] = {}
    for job, item in plan.items():
        labels.setdefault(job.scan.patient, set()).add(item.label)
    mixed = sum(len(each) > 1 for each in labels.values())
    if mixed and rule.labels != "presence":
        found.append(f"patients of several classes: {mixed} of {len(labels)} patients have nodules "
                     "of more than one class: a patient's other images do not tell its class.")
    spheres = sum(n.truth == "sphere" for s in scans for n in s.annotated.nodules)
    if spheres:
        found.append(f"nodules are spheres: {spheres} nodules have a diameter and no outline; "
                     "their masks are balls.")
    if HEALTHY in plan.classes:
        found.append("healthy lung is drawn at random: images without a nodule are of places far "
                     "from every finding, which are easier to tell than what a reader would doubt.")
    return found
