"""Draw simulated chest CT with lung nodules, with exact truth, in four published formats.

One chest is an analytic scene in millimetres (lungkit.phantom.thorax.anatomy, .vessels, .nodules),
put on a scanner's grid with partial volume (.scene), pictured with its sharpness and noise
(.scanner) and read by four simulated radiologists who disagree as LIDC's do (.readers).

Writes <output>/
  LIDC-IDRI/        DICOM series with the readers' XML beside them          --format lidc
  LUNA16/           MetaImage, annotations.csv, candidates, lung masks      --format luna16
  Task06_Lung/      NIfTI with labels, dataset.json, and `._` files         --format msd
  Lung-PET-CT-Dx/   DICOM in two kernels, PASCAL VOC boxes, metadata.csv    --format petct
  truth/scans.csv   patient, scanner, grid and series of every scan
  truth/nodules.csv every nodule: grade, diameter, place, looks, what its readers said
  truth/labels/     NIfTI: the readers' consensus, numbered as in nodules.csv
  sample.json       options and every file with its SHA-256
All formats show the same voxels in HU and the same consensus of the readers.

A patient's scanner is drawn without regard to the grades of the nodules; grades are equally
frequent. What looks like a class is size (LIDC's medians by grade: 5.7, 5.3, 6.1, 10.5, 17.7 mm)
and, given the size, spiculation, lobulation, margin, texture and calcification. The controls:
--size-matched  diameters of all grades have one distribution: only looks are left
--size-only     looks do not depend on the grade: only size is left
--confounded    each patient is benign or malignant, and the maker of the scanner tells which
--round-nodules nodules are balls that all readers outline alike: what a centre and a diameter say

The directory appears complete or not at all. Running the same command again finds it complete or
makes the scans that a killed run has not. The bytes do not depend on --workers. More, and how far
this is from patients: docs/simulated_thorax.md.

Exit status: 0 complete, 1 bad data or failed run, 2 bad options, 75 stopped.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from lungkit.run import cli, faults, files
from lungkit.run.output import Output
from lungkit.run.workers import mapper

FORMATS = ("lidc", "luna16", "msd", "petct")  # modules of this folder
RECORDS = ".scans"  # in the directory in the making: what each finished scan has written
SCAN_COLUMNS = ("scan,patient,group,series_uid,study_uid,manufacturer,model,kernel,thickness_mm,"
                "step_mm,spacing_mm,size,num_slices,contrast")
NODULE_COLUMNS = ("scan,patient,nodule,grade,diameter_mm,x_mm,y_mm,z_mm,attached,texture,"
                  "calcified,spiculation,lobulation,softness,cavity,histology,num_readers,"
                  "grade_median,consensus_mm")


def format_module(name: str):
    """The module that writes a format."""
    import importlib

    return importlib.import_module(f"lungkit.phantom.thorax.{name}")


def truth_rows(scan) -> dict[str, list[str]]:
    """Lines of truth/scans.csv and truth/nodules.csv."""
    device, grid = scan.scanner, scan.grid
    about = [scan.name, scan.patient + 1, f"thorax{scan.patient + 1:04d}", scan.series_uid,
             scan.study_uid, device.manufacturer, device.model, device.kernel, device.thickness_mm,
             device.step_mm, grid.spacing_mm, grid.size, grid.num_slices, int(scan.contrast)]
    agreed = {each.nodule: each for each in scan.consensus}
    lines = []
    for number, nodule in enumerate(scan.nodules):
        read = agreed.get(number)
        lines.append([
            scan.name, scan.patient + 1, number + 1, nodule.grade, f"{nodule.diameter_mm:.4f}",
            *(f"{each:.4f}" for each in nodule.centre_mm), nodule.attached, nodule.texture,
            nodule.calcified, *(f"{each:.4f}" for each in (
                nodule.spiculation, nodule.lobulation, nodule.softness, nodule.cavity)),
            nodule.histology, read.num_readers if read else 0,
            read.grade_median if read else "", f"{read.diameter_mm:.4f}" if read else ""])
    return {"truth/scans.csv": [",".join(map(str, about))],
            "truth/nodules.csv": [",".join(map(str, line)) for line in lines]}


def truth_labels(scan):
    """uint8 [Z, Y, X]: the consensus of every nodule that a reader outlined, by its number."""
    import numpy as np

    found = np.zeros(scan.hu.shape, np.uint8)
    for nodule in scan.consensus:
        part = tuple(slice(at, at + size) for at, size in zip(nodule.corner, nodule.mask.shape))
        found[part][nodule.mask] = nodule.nodule + 1
    return found


def _write_scan(item, *, work_dir: Path, plan, formats) -> None:
    """Make and write one scan, then the record of what was written, unless it is there already."""
    from lungkit.phantom.thorax import msd, scans

    record = work_dir / RECORDS / "{:04d}_{}.json".format(*item)
    if record.exists() and all((work_dir / path).exists()
                               and files.sha256_file(work_dir / path) == digest
                               for path, digest in files.read_json(record)["hashes"].items()):
        return
    scan = scans.make_scan(plan, *item, with_twin="petct" in formats)
    hashes, rows, names = {}, truth_rows(scan), {}

    def put(path: str, content: bytes) -> None:
        files.write_bytes(work_dir / path, content, flush=False)
        hashes[path] = files.sha256(content)

    for name in formats:
        module = format_module(name)
        for path, content in module.files(scan):
            put(f"{module.FOLDER}/{path}", content)
        rows |= {f"{module.FOLDER}/{table}": lines for table, lines in module.rows(scan).items()}
        names[name] = module.case(scan) if name == "msd" else scan.name
    put(f"truth/labels/{scan.name}.nii.gz", msd.encode(scan, truth_labels(scan)))
    files.write_json(record, {"hashes": hashes, "rows": rows, "names": names})


def write_sample(output_dir: Path, *, formats: Sequence[str] = ("lidc",), num_patients: int = 24,
                 nodules_per_patient: int = 4, image_size: int = 256, num_slices: int = 64,
                 field_mm: float | None = None, seed: int = 0, size_matched: bool = False,
                 size_only: bool = False, confounded: bool = False,
                 round_nodules: bool = False, workers: int = 1) -> None:
    """Write a sample to output_dir (see the module's text), or find it complete.

    Raises faults.BadOptions where options exclude each other or output_dir was made with others.
    """
    if size_matched and size_only:
        raise faults.BadOptions("--size-matched leaves looks alone, --size-only size alone: "
                                "together they leave nothing; give one of them")
    formats = sorted(set(formats), key=FORMATS.index)
    options = {"formats": formats, "num_patients": num_patients,
               "nodules_per_patient": nodules_per_patient, "image_size": image_size,
               "num_slices": num_slices, "field_mm": field_mm, "seed": seed,
               "size_matched": size_matched, "size_only": size_only, "confounded": confounded,
               "round_nodules": round_nodules}
    output = Output(output_dir, "sample.json", options)
    if output.is_complete():
        print(f"{output_dir}: already complete", file=sys.stderr)
        return
    from lungkit.phantom.thorax.nodules import Law
    from lungkit.phantom.thorax.scans import Plan

    plan = Plan(seed, num_patients, nodules_per_patient, image_size, num_slices, field_mm,
                Law(size=not size_matched, looks=not size_only), confounded, round_nodules)
    todo = plan.scans()
    with output.writing() as work_dir:
        write_scan = functools.partial(_write_scan, work_dir=work_dir, plan=plan, formats=formats)
        with mapper(workers) as mapped:
            for _ in mapped(write_scan, todo, chunk=1):
                faults.check_stop()
        hashes = _close(work_dir, todo, formats)
        shutil.rmtree(work_dir / RECORDS)
        output.publish({"name": "thorax", "num_scans": len(todo), "files": hashes})
    print(f"{output_dir}: {len(todo)} scans of {num_patients} patients", file=sys.stderr)


def _close(work_dir: Path, todo: list, formats: list[str]) -> dict[str, str]:
    """Write the tables and what else a format holds once; the hashes of all files by path."""
    records = [files.read_json(work_dir / RECORDS / "{:04d}_{}.json".format(*item))
               for item in todo]
    hashes: dict[str, str] = {}
    for record in records:
        hashes |= record["hashes"]
    headers = {"truth/scans.csv": SCAN_COLUMNS, "truth/nodules.csv": NODULE_COLUMNS}
    contents = {}
    for name in formats:
        module = format_module(name)
        headers |= {f"{module.FOLDER}/{table}": header for table, header in module.TABLES.items()}
        contents |= {f"{module.FOLDER}/{path}": content for path, content in
                     module.closing([record["names"][name] for record in records])}
    for path, header in headers.items():
        lines = [line for record in records for line in record["rows"][path]]
        contents[path] = "".join(line + "\n" for line in (header, *lines)).encode()
    for path, content in contents.items():
        files.write_bytes(work_dir / path, content)
        hashes[path] = files.sha256(content)
    return hashes


def build_parser() -> argparse.ArgumentParser:
    parser = cli.stage_parser("lungkit.phantom.thorax", __doc__)
    parser.add_argument("--output", type=cli.directory, required=True, metavar="DIR",
                        dest="output_dir", help="directory to make")
    parser.add_argument("--format", choices=FORMATS, nargs="+", default=["lidc"],
                        dest="formats",
                        help="as which data sets the scans are written (default lidc)")
    parser.add_argument("--num-patients", type=cli.positive_int, default=24, metavar="INT",
                        help="patients; the sixth and every eighth after it has two scans")
    parser.add_argument("--nodules-per-patient", type=cli.positive_int, default=4, metavar="INT",
                        help="nodules of 3 mm or more of each; up to two smaller ones are added")
    parser.add_argument("--image-size", type=_image_size, default=256, metavar="PX",
                        help="side of a slice")
    parser.add_argument("--num-slices", type=_num_slices, default=64, metavar="INT",
                        help="slices of a scan, 1 to 5 mm apart as its scanner has them")
    parser.add_argument("--field-mm", type=cli.positive_float, default=None, metavar="MM",
                        help="side of the field: a part of one lung, finer than a whole chest of "
                             "so many pixels (default: the scanner's, 317 to 420 mm)")
    parser.add_argument("--seed", type=cli.non_negative_int, default=0, metavar="INT",
                        help="seed of every random draw")
    controls = parser.add_argument_group("Controls")
    controls.add_argument("--size-matched", action=argparse.BooleanOptionalAction, default=False,
                          help="draw diameters of all grades alike")
    controls.add_argument("--size-only", action=argparse.BooleanOptionalAction, default=False,
                          help="draw the looks of all grades alike")
    controls.add_argument("--confounded", action=argparse.BooleanOptionalAction, default=False,
                          help="tie the scanner to the grade")
    controls.add_argument("--round-nodules", action=argparse.BooleanOptionalAction, default=False,
                          help="draw nodules as balls, and let all readers outline them alike")
    parser.add_argument("--workers", type=cli.positive_int, default=1, metavar="INT",
                        help="processes that draw (default 1); no byte depends on it")
    return parser


def _image_size(text: str) -> int:
    return _at_least(text, 32)


def _num_slices(text: str) -> int:
    return _at_least(text, 4)


def _at_least(text: str, least: int) -> int:
    value = cli.positive_int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"{text} is not at least {least}")
    return value


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), write_sample, argv)


if __name__ == "__main__":
    sys.exit(main())
