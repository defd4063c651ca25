#!/usr/bin/env python
"""Make the dataset "real" from chest CT: scans, annotations, images of a fixed field, by patient.

Reads   INPUT/**, DICOM series, MetaImage or NIfTI, with what is written about them: LIDC-IDRI's
        XML, LUNA16's tables, labels (labelsTr/), PASCAL VOC boxes, or --nodules CSV.
Writes  OUTPUT/{train,val,test}/<class>/000000.png    square grey images of one field and window
        OUTPUT/masks/{nodule,lung,layout,ignored}/<class>/000000.png
        OUTPUT/studies.csv   every series: kept, or why not     OUTPUT/nodules.csv   every nodule
        OUTPUT/split.csv     every patient's split              OUTPUT/qc.png        examples
        OUTPUT/scans.json    where each scan's voxels lie, so that a mask can be put back into it
        OUTPUT/metadata.csv, OUTPUT/dataset.json     the latter last: present means complete
        NNUNET/**            with --nnunet, the scans and their nodules in nnU-Net's raw layout

Series: of several of one scan one is kept, by a stated rule (lungkit.ct.studies). A series that is
broken ends the run, unless --skip-broken; what is no chest CT is left out. Nodules: those of enough
readers and large enough count; LIDC's are the consensus of its readers (lungkit.ct.lidc).

Images: --view crop, a field of --field-mm around each nodule; slice, whole slices. The window in HU
and the field are the same for all images, never an image's own (lungkit.ct.crops). Classes:
--labels binary, benign or malignant by the readers' median grade; grade, 1 to 5; presence, nodule
or healthy lung; histology, as the source names it.

Splits are by patient, near 60/20/20, of all patients whatever the task: several tasks with one
input and seed have one split. What besides the nodule could tell the classes apart is measured:
scanner, kernel, thickness, spacing, and size alone (lungkit.audit.confounding).

Running the same command again resumes, or finds the dataset complete.
Exit statuses: 0 complete, 1 bad data, 2 bad options, 75 stopped, run it again to resume.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path

from lungkit.run import cli
from lungkit.run.faults import BadOptions, Fault, check_stop
from lungkit.run.progress import Progress, say

RECIPE = 4          # raise it when images come out otherwise: a dataset of another is not complete
PRESETS = {"demo": {"crop": (64, 64.0), "slice": (128, 384.0)},     # pixels, field in mm
           "full": {"crop": (128, 64.0), "slice": (384, 384.0)}}
WINDOW = (-1000.0, 400.0)
SYMMETRIES = {"crop": 8, "slice": 1}  # the table, gravity and the heart have their sides


# ------------------------------------------------------------------ scans

def find_scans(input_dir: Path, how: dict, journal, mapped: Callable) -> tuple[list, str]:
    """The scans that are used, and studies.csv."""
    from lungkit.ct import studies
    from lungkit.ct.annotations import find_annotations
    from lungkit.ct.tables import read_diagnoses

    annotations = find_annotations(input_dir, how["nodules"], how["patients"])
    scans, left = studies.choose(studies.survey(input_dir, annotations, journal, mapped),
                                 skip_broken=how["skip_broken"])
    studies.check_tables(scans, annotations, patients_given=how["patients"] is not None)
    scans = studies.check_patients(scans)
    say_what_is_left(left, annotations.others, scans)
    if how["healthy"] == "candidates" and not annotations.candidates:
        raise Fault(f"--healthy candidates: no candidates*.csv of LUNA16's in {input_dir}")
    if how["diagnoses"] is not None:
        scans = studies.with_diagnoses(scans, read_diagnoses(how["diagnoses"]))
    return scans, studies.table(scans, left, annotations.others)


def say_what_is_left(left: list, others: list, scans: list) -> None:
    reasons = Counter(each.reason.split(": ")[0] for each in left)
    reasons += Counter(why for _, why in others)
    for reason, count in sorted(reasons.items()):
        say(f"ct_seg: left out {count}: {reason}")
    for scan in scans:
        for note in scan.notes:
            say(f"ct_seg: {scan.name}: {note}")


# ------------------------------------------------------------------ images

def write_images(writer, plan, recipe, mapped: Callable) -> Counter:
    """Make and write the images of scans that lack one; return how many cannot be made, by reason.

    Such a scan is done whole again, for its places of healthy lung depend on each other.
    """
    from lungkit.ct.images import make_images

    pending = [job for job in plan.jobs
               if not all(writer.has(job.split, item.label, item.number) for item in job.items)]
    missed, total = Counter(), sum(len(job.items) for job in plan.jobs)
    done = total - sum(len(job.items) for job in pending)
    progress = Progress("making images", total, done=done,
                        jsonl_path=writer.work_dir / "progress.jsonl")
    for job, images in zip(pending, mapped(partial(make_images, recipe=recipe), pending, chunk=1,
                                           ahead=1)):
        for each in images:
            if each.reason is not None:
                missed[each.reason] += 1
                continue
            if not writer.has(job.split, each.item.label, each.item.number):
                writer.add(job.split, each.item.label, each.item.number, each.image,
                           masks=each.masks, group=job.scan.patient, source=job.scan.name,
                           seed=recipe.seed, **each.columns)
        done += len(job.items)
        progress.update(done)
        check_stop()
    return missed


def make_dataset(target, scans: list, studies_csv: str, plan, recipe, rule, how: dict,
                 mapped: Callable) -> None:
    """Write the images, say what they may not prove, and publish."""
    from lungkit.audit.warnings import describe_confounding
    from lungkit.ct import report
    from lungkit.ct.crops import LAYOUT
    from lungkit.ct.scan_masks import write_grids
    from lungkit.ct.studies import RULE
    from lungkit.data.writer import DatasetWriter
    from lungkit.run.files import write_bytes, write_text

    with DatasetWriter(target, stage="ct_seg", image_size=recipe.field.image_size, channels=1,
                       classes=plan.classes, mask_forms={"layout": "labels"},
                       targets=targets(), plan=plan.digest()) as writer:
        missed = write_images(writer, plan, recipe, mapped)
        confounded = report.confounding_report(report.specimens(plan, writer), plan,
                                               report.patients_known(scans), mapped)
        warnings = report.warn(confounded, plan, scans, rule, in_hu=in_hu(how),
                               at_random=how["healthy"] == "lung",
                               doubtful=report.num_doubtful(writer))
        write_text(writer.work_dir / "studies.csv", studies_csv)
        write_text(writer.work_dir / "nodules.csv", report.nodule_table(scans, plan))
        write_text(writer.work_dir / "split.csv", report.split_table(plan))
        if how["images"] is None:
            write_grids(writer.work_dir, (job.scan for job in plan.jobs))
        write_bytes(writer.work_dir / "qc.png", report.sheet(writer, plan.classes))
        field = recipe.field
        writer.publish(
            parents=[], seed=recipe.seed, warnings=warnings, modality="ct",
            um_per_px=field.mm_per_px * 1000 if all(s.spacing_known for s in scans) else None,
            symmetries=how["symmetries"],
            intensity={"unit": "HU", "window": list(field.window)} if in_hu(how) else None,
            truth=rule.describe(),
            series_rule=RULE, dropped=[{"reason": why, "count": n} for why, n in
                                       sorted((plan.dropped + missed).items())],
            layout=list(LAYOUT), confounding=confounded)
    for line in describe_confounding(confounded).splitlines():
        if not line.startswith("warning: "):
            say(f"ct_seg: {line}")
    for warning in warnings:
        say(f"ct_seg: warning: {warning}")


def in_hu(how: dict) -> bool:
    """Whether the grey of the images is known in HU."""
    return how["images"] is None or how["input_window"] is not None


def targets() -> dict[str, dict]:
    """Further labels than the class; those of healthy images and unknown ones are empty."""
    return {"diameter_mm": {"kind": "number", "values": []},
            "grade": {"kind": "ordinal", "values": [1, 2, 3, 4, 5]}}


# ------------------------------------------------------------------ the stage

def check_options(how: dict) -> None:
    """Raise BadOptions where options contradict each other."""
    low, high = how["window"]
    if low >= high:
        raise BadOptions(f"--window {low:g} {high:g}: the first must be below the second")
    if how["benign_max"] >= how["malignant_min"]:
        raise BadOptions(f"--benign-max {how['benign_max']:g} is not below --malignant-min "
                         f"{how['malignant_min']:g}")
    if how["symmetries"] == 8 and how["view"] == "slice":
        raise BadOptions("--symmetries 8 with --view slice: a chest has sides; give 1 or 2")
    if how["all_slices"] and how["view"] != "slice":
        raise BadOptions("--all-slices is of --view slice")
    if how["images"] and how["view"] == "slice":
        raise BadOptions("--images with --view slice: pictures are cut already; leave out --view")
    if how["images"] and not how["input_window"] and tuple(how["window"]) != WINDOW:
        raise BadOptions("--window of pictures whose own is unknown: give --input-window")
    if how["healthy"] == "candidates" and (how["view"], how["labels"]) != ("crop", "presence"):
        raise BadOptions("--healthy candidates is of --view crop --labels presence")
    if how["nnunet"] and how["images"]:
        raise BadOptions("--nnunet is of scans, not of --images")
    if how["split_from"] and how["fold"]:
        raise BadOptions("--split-from and --fold both say what is in test: give one")


def check_paths(input_dir: Path, outputs: dict[str, Path | None]) -> None:
    """Refuse an output that could overwrite the input or another, or that would be read as input.

    outputs: by option; None: not asked for.
    """
    if not input_dir.is_dir():
        raise Fault(f"--input {input_dir} is not a directory: give the folder of the scans")
    given = [(option, path) for option, path in outputs.items() if path]
    for (option, path), (other, there) in combinations([*given, ("--input", input_dir)], 2):
        inner, outer = path.resolve(), there.resolve()
        if inner == outer or outer.is_relative_to(inner) or inner.is_relative_to(outer):
            raise BadOptions(f"{option} {path} and {other} {there} lie one inside the other: "
                             f"choose an {option} beside the {other.lstrip('-')}")


def settle(how: dict, preset: str) -> dict:
    """The options with those of the view filled in."""
    size, field_mm = PRESETS[preset][how["view"]]
    return {**how, "image_size": how["image_size"] or size,
            "field_mm": how["field_mm"] or field_mm,
            "symmetries": how["symmetries"] or SYMMETRIES[how["view"]]}


def identity(how: dict, input_dir: Path) -> dict:
    """What decides the dataset: every option but those that say how fast it is made."""
    from lungkit.ct.folders import walk
    from lungkit.run.files import quick_fingerprint

    files = (folder / name for folder, names in walk(input_dir) for name in names)
    return dict(sorted({
        **{name: sorted({*value}) if name == "all_slices" else value for name, value in how.items()
           if name != "fold" and (name, value) != ("half", None)},
        **{name: cli.file_sha256(how[name], "--" + name.replace("_", "-"))
           for name in ("diagnoses", "images", "nodules", "patients", "split_from")},
        "fold": how["fold"] and "{}/{}".format(*how["fold"]), "recipe": RECIPE,
        "input": quick_fingerprint(((path.relative_to(input_dir).as_posix(), path)
                                    for path in files), sample_bytes=1024)}.items()))


def in_words(plan) -> str:
    counts = {split: sum(row.values()) for split, row in plan.counts().items()}
    patients = len({job.scan.patient for job in plan.jobs})
    return (f"{sum(counts.values())} images of {patients} patients ("
            + ", ".join(f"{split} {n}" for split, n in counts.items())
            + f"), classes {', '.join(plan.classes)}, {sum(plan.dropped.values())} nodules dropped")


def run(*, input: Path, output: Path, nnunet: Path | None, preset: str, workers: int,
        overwrite: bool, dry_run: bool, seed: int, **how: object) -> None:
    """Look at the series, choose, plan by patient, write the images, publish the dataset."""
    how = settle(how, preset)
    check_options({**how, "nnunet": nnunet})
    check_paths(input, {"--output": output, "--nnunet": nnunet})
    from lungkit.ct import pictures, plan as planning, studies
    from lungkit.ct.crops import Field
    from lungkit.ct.images import Recipe
    from lungkit.ct.nnunet import export
    from lungkit.ct.truth import Rule
    from lungkit.run.journal import ResultJournal
    from lungkit.run.output import Output
    from lungkit.run.workers import mapper

    decided = {**identity(how, input), "seed": seed}
    target = Output(output, "dataset.json", decided, overwrite=overwrite)
    beside = nnunet and Output(nnunet, "dataset.json", {**decided, "layout": "nnU-Net"},
                               overwrite=overwrite)
    pending = [each for each in (target, beside) if each and not each.is_complete()]
    if not pending:
        print(f"{output}: already complete")
        return
    rule = Rule(how["labels"], how["benign_max"], how["malignant_min"], how["min_readers"],
                how["min_diameter_mm"], how["max_thickness_mm"])
    recipe = Recipe(how["view"], Field(how["field_mm"], how["image_size"], tuple(how["window"])),
                    seed, how["healthy"])
    # beside the output: a killed run, other options or a mended scan need no new survey of the rest
    journal = ResultJournal(output.parent / f".{output.name}.survey", f"ct_seg {RECIPE}",
                            keep=not dry_run)
    with mapper(workers) as mapped, journal:
        if how["images"] is None:
            scans, studies_csv = find_scans(input, how, journal, mapped)
        else:
            window = how["input_window"] or how["window"]
            scans = pictures.group(*pictures.read_pictures(how["images"], input, tuple(window),
                                                           mapped))
            studies_csv = studies.table(scans, [], [])
        if how["half"] is not None:
            scans = planning.in_half(scans, how["half"], seed)
        split_of, stratum_of = planning.draw_splits(scans, seed, how["fold"]) \
            if how["split_from"] is None else (planning.read_splits(
                how["split_from"], {scan.patient for scan in scans}), {})
        if how["images"] is None:
            plan = planning.make_plan(scans, rule, how["view"], split_of, stratum_of,
                                      slices_per_nodule=how["slices_per_nodule"],
                                      all_slices=how["all_slices"])
        else:
            plan = pictures.plan_pictures(scans, rule, split_of, stratum_of)
        say(f"ct_seg: {len(scans)} scans, {sum(len(s.annotated.nodules) for s in scans)} nodules; "
            f"{in_words(plan)}")
        if dry_run:
            print(f"{output}: would write {in_words(plan)}")
            return
        if target in pending:
            make_dataset(target, scans, studies_csv, plan, recipe, rule, how, mapped)
        if beside in pending:
            export(beside, plan.jobs, mapped)
        journal.discard()
    print(f"{output}: {in_words(plan)}")


# long: one call an option, and what it means
def build_parser():
    parser = cli.stage_parser("ct_seg.py", __doc__)
    group = parser.add_argument_group("Main")
    group.add_argument("--input", type=cli.directory, required=True, metavar="DIR",
                       help="folder of the scans and of what is written about them")
    group.add_argument("--output", type=cli.directory, required=True, metavar="DIR",
                       help="dataset to make")
    group.add_argument("--view", choices=("crop", "slice"), default="crop",
                       help="a field around each nodule, or whole slices")
    group.add_argument("--labels", choices=("binary", "grade", "presence", "histology"),
                       default="binary", help="what the classes are")
    group = parser.add_argument_group("Truth")
    group.add_argument("--nodules", type=Path, metavar="CSV",
                       help="series,x,y,z,diameter_mm (LPS mm) of every nodule, and grade or label")
    group.add_argument("--benign-max", type=cli.positive_float, default=2.0, metavar="GRADE",
                       help="median grade up to which a nodule is benign")
    group.add_argument("--malignant-min", type=cli.positive_float, default=4.0, metavar="GRADE",
                       help="median grade from which it is malignant; between: dropped")
    group.add_argument("--min-readers", type=cli.positive_int, default=3, metavar="N",
                       help="readers who marked a nodule, where that is known")
    group.add_argument("--min-diameter-mm", type=cli.non_negative_float, default=3.0, metavar="MM",
                       help="smaller nodules do not count")
    group.add_argument("--healthy", choices=("lung", "candidates"), default="lung",
                       help="healthy crops are of any place in the lung, or of those among "
                            "LUNA16's candidates that are no nodule")
    group.add_argument("--max-thickness-mm", type=cli.positive_float, metavar="MM",
                       help="scans of thicker slices are not used (LUNA16: 2.5; default: any)")
    group.add_argument("--diagnoses", type=Path, metavar="CSV",
                       help="patient_id,diagnosis (0 unknown, 1 benign, 2 primary cancer, 3 "
                            "metastasis): the column pathology, never the class")
    group.add_argument("--images", type=Path, metavar="CSV",
                       help="INPUT holds pictures cut from scans: file, label or grade, and "
                            "patient, parent, spacing_mm, diameter_mm where known")
    group.add_argument("--input-window", type=float, nargs=2, metavar=("HU", "HU"),
                       help="what grey 0 and 255 of those pictures are")
    group = parser.add_argument_group("Patients and splits")
    group.add_argument("--patients", type=Path, metavar="CSV",
                       help="series,patient, where the files do not say whose scans are")
    group.add_argument("--split-from", type=Path, metavar="CSV",
                       help="patient,split: the split.csv of another task of this run")
    group.add_argument("--fold", type=cli.fold, metavar="k/K",
                       help="cross-validation: test on fold k of K (default: one split, 60/20/20)")
    group.add_argument("--half", type=int, choices=(1, 2),
                       help="one half of the patients alone, drawn by --seed: of the other half, "
                            "which nothing has used, controls_seg.py makes a control")
    group.add_argument("--skip-broken", action="store_true",
                       help="leave out series that cannot be read, instead of ending the run")
    group = parser.add_argument_group("Images")
    group.add_argument("--image-size", type=cli.positive_int, metavar="PX",
                       help="side in pixels (default: demo 64, slices 128; full 128, slices 384)")
    group.add_argument("--field-mm", type=cli.positive_float, metavar="MM",
                       help="side in millimetres (default: crops 64, slices 384)")
    group.add_argument("--window", type=float, nargs=2, default=list(WINDOW),
                       metavar=("HU", "HU"), help="shown black, shown white (default: -1000 400)")
    group.add_argument("--slices-per-nodule", type=cli.positive_int, default=1, metavar="N",
                       help="images of each nodule: that of its largest box and others")
    group.add_argument("--all-slices", nargs="+", choices=("train", "val", "test"), default=[],
                       metavar="SPLIT", help="write every slice of the scans in these splits: for "
                       "figures by volume, and for a U-Net that must leave them alone")
    group.add_argument("--all-test-slices", dest="all_slices", action="store_const",
                       const=["test"], help="the same as --all-slices test")
    group.add_argument("--symmetries", type=int, choices=(1, 2, 8),
                       help="turns and flips that an image stays valid by (default: crops 8, "
                            "slices 1)")
    group.add_argument("--nnunet", type=cli.directory, metavar="DIR",
                       help="also write the scans with their nodules in nnU-Net's raw layout")
    group = parser.add_argument_group("Performance")
    group.add_argument("--workers", type=cli.positive_int, default=1, metavar="N",
                       help="processes; the result does not depend on it")
    cli.add_common(parser, presets=PRESETS, device=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
