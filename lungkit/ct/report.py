"""What became of scans and nodules: tables, a sheet to look at, and what may confound."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from lungkit.audit import confounding
from lungkit.audit.warnings import RULER, confounding_warnings
from lungkit.ct.images import describe
from lungkit.ct.plan import Item, Job, Plan
from lungkit.ct.studies import Scan
from lungkit.ct.truth import HEALTHY, Rule
from lungkit.data.mask_items import IGNORED
from lungkit.data.writer import MASKS, DatasetWriter, item_name

SHEET_COLUMNS, SHEET_PX = 12, 96
NODULE_COLUMNS = ("series", "patient", "split", "nodule_id", "label", "reason", "truth",
                  "diameter_mm", "z", "row", "column", "x_mm", "y_mm", "z_mm", "voxels",
                  "grade", "grade_median", "grade_min", "grade_max", "num_readers", "texture",
                  "agreement", "histology", "pathology")


# ------------------------------------------------------------------ tables

def nodule_table(scans: list[Scan], plan: Plan) -> str:
    """nodules.csv: a line of every nodule of the scans kept, with its class or why it has none."""
    text = io.StringIO()
    lines = csv.DictWriter(text, NODULE_COLUMNS, lineterminator="\n")
    lines.writeheader()
    named: dict[str, dict[str, str]] = {}
    for job, item in plan.items():
        if item.nodule is not None:
            named.setdefault(job.scan.name, {})[job.counted[item.nodule].name] = item.label
    for scan in scans:
        for nodule in scan.annotated.nodules:
            reason = plan.reasons.get((scan.name, nodule.name), "")
            at = scan.geometry.to_world(nodule.centre)
            lines.writerow({
                "series": scan.name, "patient": scan.patient,
                "split": plan.split_of.get(scan.patient, ""),
                "label": "" if reason else named.get(scan.name, {}).get(nodule.name, ""),
                "reason": reason,
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


def sheet(writer: DatasetWriter, classes: list[str]) -> bytes:
    """qc.png: evenly spaced examples of every class, with outlines of lung and nodule."""
    from lungkit.compare.contact_sheet import labelled_grid
    from lungkit.data.png import decode_png, encode_png

    rows = {}
    for label in classes:
        found = sorted(name for name, each in writer.records.items() if each["label"] == label)
        picked = np.linspace(0, len(found) - 1, min(SHEET_COLUMNS, len(found))).round()
        examples = []
        for name in (found[int(at)] for at in picked):
            masks = {kind: writer.work_dir / "masks" / kind / label / Path(name).name
                     for kind in ("layout", "nodule")}
            grey = decode_png((writer.work_dir / name).read_bytes())
            examples.append(example(grey.reshape(grey.shape[:2]), {
                kind: decode_png(path.read_bytes()) for kind, path in masks.items()
                if path.exists()}))
        if examples:
            rows[f"{label} ({len(found)})"] = examples
    return encode_png(labelled_grid(rows))


def example(grey: np.ndarray, masks: dict[str, np.ndarray]) -> np.ndarray:
    """uint8 [SHEET_PX, SHEET_PX, 3]: the image with outlines of lung (blue) and nodule (red)."""
    import cv2

    found = [(np.isin(masks["layout"], (2, 4, 5)), (70, 130, 255))] if "layout" in masks else []
    found += [(masks["nodule"] > 0, (255, 40, 40))] if "nodule" in masks else []

    side = (SHEET_PX, SHEET_PX)
    shown = cv2.cvtColor(cv2.resize(grey, side, interpolation=cv2.INTER_LINEAR),
                         cv2.COLOR_GRAY2RGB)
    for mask, colour in found:
        large = cv2.resize(mask.astype(np.uint8), side, interpolation=cv2.INTER_NEAREST)
        outlines, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(shown, outlines, -1, colour, 1)
    return shown


# ------------------------------------------------------------------ confounding

def scanners_of(plan: Plan) -> tuple[list[str], list[str]]:
    """The makers and the kernels of the scans of a plan."""
    makers, kernels = (sorted({getattr(job.scan, name) for job in plan.jobs})
                       for name in ("manufacturer", "kernel"))
    return makers, kernels


def specimens(plan: Plan, writer: DatasetWriter) -> list[confounding.Specimen]:
    """Every image that was written, with what could give its class away."""
    scanners = scanners_of(plan)
    return [specimen(job, item, record, scanners) for job, item in plan.items()
            if (record := writer.records.get(item_name(job.split, item.label, item.number)))]


def specimen(job: Job, item: Item, record: dict, scanners: tuple[list[str], list[str]]
             ) -> confounding.Specimen:
    """One image; record: what was written of it; scanners: `scanners_of` the plan."""
    scan, (makers, kernels) = job.scan, scanners
    depth, rows, columns = scan.geometry.shape
    step, spacing, _ = scan.geometry.spacing_mm
    traits = {
        "scanner": [float(scan.manufacturer == name) for name in makers],
        "kernel": [float(scan.kernel == name) for name in kernels],
        "slice thickness": (scan.thickness_mm or step, step), "pixel spacing": (spacing,),
        "contrast agent": (float(scan.contrast),), "length of the scan": (depth * step,)}
    if item.nodule is not None and job.counted[item.nodule].diameter_mm:
        nodule = job.counted[item.nodule]
        area = nodule.mask[item.slice_index - nodule.start[0]].sum() * spacing ** 2
        traits[RULER] = (float(np.log(nodule.diameter_mm)), float(np.log(max(area, 0.1))))
    return confounding.Specimen(
        item.label, scan.patient, f"{item.label}/{scan.name}/{item.number}",
        record["sha256"], (columns, rows, scan.kind, "grey"), scan.file_bytes // depth, None,
        float(record["brightness"]), float(record["contrast"]),
        traits={name: tuple(values) for name, values in traits.items()},
        named={"manufacturer": scan.manufacturer or "unknown", "kernel": scan.kernel or "unknown",
               "contrast": "with contrast agent" if scan.contrast else "without"})


def confounding_report(found: list[confounding.Specimen], plan: Plan, groups_given: str,
                       mapped: Callable) -> dict:
    """`confounding.report` of the images made; the ruler only where every image has a nodule."""
    if any(RULER not in each.traits for each in found):
        found = [replace(each, traits={k: v for k, v in each.traits.items() if k != RULER})
                 for each in found]
    return confounding.report(found, plan.split_of, groups_given, mapped)


def is_own_patient(scan: Scan) -> bool:
    """Whether nothing says whose a scan is: it counts as a patient."""
    return (scan.patient == scan.name and scan.kind != "dicom"
            and scan.annotated.source != "labels")


def patients_known(scans: list[Scan]) -> str:
    """How groups came about, for the confounding report: named by headers or tables, or not."""
    return "none" if any(map(is_own_patient, scans)) else "csv"


def num_doubtful(writer: DatasetWriter) -> int:
    """Images without a nodule that counts which show what is neither that nor healthy."""
    return sum(each["label"] == HEALTHY and IGNORED in each[MASKS]
               for each in writer.records.values())


def warn(report: dict, plan: Plan, scans: list[Scan], rule: Rule, *, in_hu: bool,
         at_random: bool, doubtful: int = 0) -> list[str]:
    """What the reader of every later result must know, as 'name: sentence'.

    doubtful: of `num_doubtful`.
    """
    found = confounding_warnings(report)
    own = sum(is_own_patient(scan) for scan in scans)
    if own:
        found.append(f"patients unknown: {own} of {len(scans)} scans do not say whose they are and "
                     "count as a patient each; name them with --patients.")
    if any(not scan.spacing_known for scan in scans):
        found.append("field unknown: pictures without a pixel spacing show as many millimetres as "
                     "they happen to; size may be lost, or come in with the picture's own size.")
    if not in_hu:
        found.append("HU unknown: the window of these pictures was not given, and may be another "
                     "for each: brightness means nothing across them.")
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
    if HEALTHY in plan.classes and at_random:
        found.append("healthy lung is drawn at random: images without a nodule are of places far "
                     "from every finding, which are easier to tell than what a reader would doubt.")
    if doubtful:
        found.append(f"doubtful images: {doubtful} images of class {HEALTHY} show a finding that "
                     "is neither a nodule that counts nor healthy (masks/ignored): they are there "
                     "so that volumes are whole; to call them a nodule is no error.")
    return found
