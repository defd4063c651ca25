#!/usr/bin/env python
"""Make the dataset "real" from original images: tissue, quality, stain, tiles, splits by group.

Reads   INPUT/<class>/**, whole slides (SVS, NDPI, pyramidal and OME TIFF, ...), PNG, JPEG or
        TIFF, 8 or 16 bit, grey, colour or multi-channel, with or without a z-stack.
Writes  OUTPUT/{train,val,test}/<class>/000000.png   square RGB tiles of one size
        OUTPUT/masks/{tissue,tumour}/<class>/000000.png   255 where there is tissue, tumour
        OUTPUT/qc.csv, qc.png        every tile kept or dropped, why, and examples to look at
        OUTPUT/metadata.csv, OUTPUT/dataset.json     the latter last: present means complete

Tiles: a picture is cut into the largest squares along its long side (or --tile-size squares), a
slide into squares of --image-size pixels of --mpp micrometres where its overview shows tissue.
Tiles with too little tissue, out of focus, over-exposed, dark or under ink are dropped, and a rule
that drops much of a slide or class is named (docs/quality.md). Colour is white-balanced on the
image's own background and stain-normalised towards a reference measured on training images only;
grey and fluorescence images, those saved as colour too, are denoised and stretched in contrast.
A tumour map is drawn from the nuclei. (lungkit.histology: quality, stain, tumour_map)

Groups: what must not lie on both sides of a split: a patient, a slide, an original and its
augmented copies. They come from a CSV, from the file names, or are found; in any case images that
are rotated, flipped, rescaled or re-compressed copies of one another (lungkit.audit.copies) are one
group. Whole groups go to train, val or test, near 60/20/20 in every class, or to --fold k/K.
What besides tissue could tell the classes apart is measured and named (lungkit.audit.confounding).

Running the same command again resumes, or finds the dataset complete.
Exit statuses: 0 complete, 1 bad data, 2 bad options, 75 stopped, run it again to resume.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lungkit.audit import confounding
from lungkit.audit.copies import find_copies
from lungkit.audit.survey import Original, Plan
from lungkit.audit.warnings import confounding_warnings, describe_confounding
from lungkit.data.splits import SPLITS, merge_groups, partition, split_groups
from lungkit.data.writer import DatasetWriter
from lungkit.formats import sources
from lungkit.formats.channels import MIN_SIDE_PX
from lungkit.formats.groups import UNKNOWN_GROUPS, group_ids
from lungkit.formats.images import PAGES_ARE
from lungkit.histology import qc_report, quality, stain, tissue_grid
from lungkit.histology.originals import FIELD_UM, Cut
from lungkit.histology.tiles import Recipe, examine, look_at, measure_tiles, pending_jobs, render
from lungkit.run import cli
from lungkit.run.faults import BadOptions, Fault, check_stop, several
from lungkit.run.files import sha256_file, write_bytes, write_text
from lungkit.run.journal import ResultJournal
from lungkit.run.output import Output
from lungkit.run.progress import Progress, say
from lungkit.run.system_files import in_words as names_in_words
from lungkit.run.workers import mapper

RECIPE = 3          # raise it when tiles come out otherwise: a dataset of another is not complete
PRESETS = {"demo": {"image_size": 64}, "full": {"image_size": 256}}
LARGE_BYTES = 50_000_000  # ours: originals of more go to a process one at a time


# ------------------------------------------------------------------ the survey

def survey(found: list[sources.Source], recipe: Recipe, journal: ResultJournal,
           mapped: Callable) -> list[Original]:
    """Examine every image not in the journal; raise one Fault that names the unusable ones."""
    seen = {s.name: journal.get(s.name, stamp(s)) for s in found}
    pending = [s for s in found if seen[s.name] is None]
    if len(pending) < len(found):
        say(f"tumor_seg: {len(found) - len(pending)} of {len(found)} images were examined before")
    progress = Progress("examining images", len(found), done=len(found) - len(pending))
    large = any(s.path.stat().st_size > LARGE_BYTES for s in pending)  # slides: minutes each
    results = mapped(partial(examine, recipe=recipe), pending, chunk=1 if large else None)
    for source, result in zip(pending, results):
        seen[source.name] = result
        if isinstance(result, Original):
            journal.add(source.name, stamp(source), result)
        progress.update(progress.done + 1)
        check_stop()
    originals = [result for result in seen.values() if isinstance(result, Original)]
    faults = [result for result in seen.values() if isinstance(result, str)]
    if faults:
        raise Fault(f"{len(faults)} of {len(found)} images cannot be used: "
                    f"{several(faults)}: repair or remove them, or change the options")
    return originals


def stamp(source: sources.Source) -> tuple[str, str, int]:
    """What changes when a source image does."""
    return (str(source.path), sources.fingerprint([source]),
            source.path.stat().st_mtime_ns)


# ------------------------------------------------------------------ groups, splits, reference

def make_plan(originals: list[Original], group_of: dict[str, str], given: str, *, seed: int,
              fold: tuple[int, int] | None, trust_groups: bool, method: str, mapped: Callable,
              half: int | None = None) -> Plan:
    """Drop, group, split, and measure the reference stain. Raises Fault where that cannot be."""
    kept = [original for original in originals if original.kept]
    labels = {o.source.label for o in originals}
    lost = sorted(labels - {o.source.label for o in kept})
    if lost:
        reasons = Counter(t.reason for o in originals if o.source.label in lost for t in o.tiles)
        why = reasons.most_common(1)[0][0] if reasons else "smaller than --tile-size"
        raise Fault(f"every tile of {sources.shown(lost)} was dropped ({why}): look at the images, "
                    "or change what is asked of a tile")
    hashes = {o.source.name: o.sha256 for o in kept}
    group_of = {name: group_of[name] for name in hashes}
    links = [] if trust_groups else find_copies(kept, mapped)
    group_of, joined = merge_groups(group_of, links, hashes=hashes)
    if half is not None:
        kept = in_half(kept, group_of, half, seed)
        group_of = {o.source.name: group_of[o.source.name] for o in kept}
        links = [(one, other) for one, other in links if one in group_of]
    split_of = split_groups([(group_of[o.source.name], o.source.label)
                             for o in kept for _ in o.kept], seed, fold)
    reference = stain.METHODS[method].reference(
        [o.stains for o in kept if split_of[group_of[o.source.name]] == "train"])
    if not trust_groups and given != "auto":
        given += "+auto"
    label_of = {o.source.name: o.source.label for o in kept}
    crossed = [(one, other) for one, other in links
               if label_of[one] != label_of[other] and hashes[one] != hashes[other]]
    return Plan(kept, group_of, split_of, given, joined, crossed, reference)


def in_half(kept: list[Original], group_of: dict[str, str], half: int,
            seed: int) -> list[Original]:
    """The originals of one half of the groups, 1 or 2: copies of one another are in one half."""
    part_of = partition([(group_of[o.source.name], o.source.label) for o in kept for _ in o.kept],
                        (0.5, 0.5), seed, parts="half")
    return [o for o in kept if part_of[group_of[o.source.name]] == half - 1]


# ------------------------------------------------------------------ rendering

def write_tiles(writer: DatasetWriter, plan: Plan, recipe: Recipe, seed: int,
                mapped: Callable) -> None:
    """Render and write the tiles of the plan that the writer does not have yet."""
    jobs = pending_jobs(writer, plan)
    progress = Progress("writing tiles", sum(plan.count_tiles().values()),
                        done=len(writer.records), jsonl_path=writer.work_dir / "progress.jsonl")
    made = mapped(partial(render, recipe=recipe, reference=plan.reference), jobs,
                  chunk=None if all(len(job.tiles) == 1 for job in jobs) else 1)
    for job, rendered in zip(jobs, made):
        source = job.original.source
        for number, image, masks in rendered:
            tile = job.tiles[number]
            writer.add(plan.split(job.original), source.label, number, image, masks=masks,
                       source=source.name, group=plan.group_of[source.name], seed=seed,
                       tissue_fraction=f"{tile.measured.tissue:.4f}")
        progress.update(len(writer.records))
        check_stop()


def make_dataset(target: Output, plan: Plan, originals: list[Original], dropped: list[dict],
                 recipe: Recipe, seed: int, notes: list[str], mapped: Callable) -> None:
    """Write the tiles, look at what was written, say what it may not prove, and publish.

    originals: those of the plan and what was dropped whole; dropped: `qc_report.count_dropped`;
    notes: warnings of the groups given.
    """
    with DatasetWriter(target, stage="tumor_seg", image_size=recipe.cut.image_size,
                       classes=sorted({original.source.label for original in originals}),
                       plan=plan.digest(stain.describe(plan.reference))) as writer:
        write_tiles(writer, plan, recipe, seed, mapped)
        after = measure_tiles(writer, plan, mapped)
        report = confounding.report(plan.specimens(after), plan.split_of, plan.groups_given, mapped)
        warnings = notes + qc_report.warn(plan, report, originals, recipe.cut.image_size)
        write_text(writer.work_dir / "qc.csv", qc_report.table(originals))
        write_bytes(writer.work_dir / "qc.png",
                    qc_report.sheet(originals, partial(look_at, recipe=recipe)))
        writer.publish(parents=[], seed=seed, warnings=warnings, dropped=dropped,
                       groups=plan.count_groups(), confounding=report,
                       stain=qc_report.describe_stain(plan, recipe.stain_normalisation),
                       **qc_report.describe_scale(plan.originals, recipe.cut.image_size))
    others = [warning for warning in warnings if warning not in confounding_warnings(report)]
    for line in (*describe_confounding(report).splitlines(), *(f"warning: {w}" for w in others)):
        say(f"tumor_seg: {line}")


# ------------------------------------------------------------------ the stage

def check_options(how: dict) -> None:
    """Raise BadOptions where two options contradict each other."""
    by_csv = how["groups"] not in (None, "auto")
    if by_csv and how["group_regex"] is not None:
        raise BadOptions("--groups and --group-regex both say what belongs together: give one")
    if how["trust_groups"] and not by_csv and how["group_regex"] is None:
        raise BadOptions("--trust-groups without groups to trust: give --groups CSV or "
                         "--group-regex")
    if how["tile_size"] and how["tile_size"] < MIN_SIDE_PX:
        raise BadOptions(f"--tile-size {how['tile_size']} px shows no tissue: give at least "
                         f"{MIN_SIDE_PX}")
    if how["mpp"] and how["tile_size"]:
        raise BadOptions("--mpp and --tile-size both set a tile's size: give one")


def check_paths(input_dir: Path, output_dir: Path) -> None:
    """Refuse an output that could overwrite the input, or that would be read as input."""
    if not input_dir.is_dir():
        raise Fault(f"--input {input_dir} is not a directory: give the folder of the class folders")
    inner, outer = input_dir.resolve(), output_dir.resolve()
    if inner == outer or outer.is_relative_to(inner) or inner.is_relative_to(outer):
        raise BadOptions(f"--output {output_dir} and --input {input_dir} lie one inside the other: "
                         "choose an --output beside the input")


def make_recipe(how: dict, preset: str, labels: list[str]) -> Recipe:
    """What the options ask of a tile. Raises BadOptions of a class that is not there."""
    benign = {sources.spelt(label) for label in how["benign"] or ()}
    unknown = sorted(benign - set(labels))
    if unknown:
        raise BadOptions(f"--benign {' '.join(unknown)}: the classes are {', '.join(labels)}")
    everything = how["region"] == "all"
    cut = Cut(how["image_size"] or PRESETS[preset]["image_size"], how["tile_size"], how["mpp"],
              0 if everything else tissue_grid.MIN_TISSUE, how["tiles_per_slide"], how["seed"])
    return Recipe(cut, how["channel"], how["pages_are"], how["source_mpp"], how["region"],
                  tuple(sorted(benign)), how["stain_normalisation"],
                  quality.Limits(min_tissue=0 if everything else how["min_tissue"]),
                  how["quality_control"], how["source_bits"])


def identity(how: dict, recipe: Recipe, found: list[sources.Source]) -> dict:
    """What decides the dataset: every option but those that say how fast it is made."""
    groups, fold = how["groups"], how["fold"]
    if groups in (None, "auto"):
        groups = None if how["group_regex"] else "auto"
    else:
        groups = sha256_file(Path(groups))
    how = {name: value for name, value in how.items() if (name, value) != ("half", None)}
    return dict(sorted({**how, "benign": recipe.benign, "fold": fold and f"{fold[0]}/{fold[1]}",
                        "groups": groups, "image_size": recipe.cut.image_size,
                        "input": sources.fingerprint(found), "recipe": RECIPE}.items()))


def in_words(plan: Plan, dropped: list[dict], image_size: int) -> str:
    tiles = plan.count_tiles()
    return (f"{sum(tiles.values())} tiles of {image_size} px "
            f"({', '.join(f'{split} {tiles[split]}' for split in SPLITS)}), "
            f"{len(plan.split_of)} groups, {sum(each['count'] for each in dropped)} dropped")


def preview(target: Output, plan: Plan, originals: list[Original], image_size: int,
            notes: list[str], mapped: Callable) -> str:
    """Say what the dataset would warn of; return how much of it is made."""
    report = confounding.report(plan.specimens(), plan.split_of, plan.groups_given, mapped)
    for warning in notes + qc_report.warn(plan, report, originals, image_size):
        say(f"tumor_seg: warning: {warning}")
    done = 0 if target.overwrite else len(list(target.work_dir.glob("[tv]*/*/[0-9]*.png")))
    return f"{done} done, {sum(plan.count_tiles().values()) - done} pending"


def run(*, input: Path, output: Path, preset: str, workers: int, overwrite: bool, dry_run: bool,
        **how: object) -> None:
    """Survey the images, group and split them, write the tiles, publish the dataset.

    how: the options that decide the tiles, by name.
    """
    check_options(how)
    check_paths(input, output)
    root = sources.find_root(input)
    found, others, skipped = sources.find_sources(root)
    labels = sorted({source.label for source in found})
    recipe = make_recipe(how, preset, labels)
    options = identity(how, recipe, found)
    target = Output(output, "dataset.json", options, overwrite=overwrite)
    if target.is_complete():
        print(f"{output}: already complete")
        return
    say(f"tumor_seg: {len(found)} images of {len(labels)} classes ({', '.join(labels)}) in {root}; "
        + ", ".join(f"{name} {value}" for name, value in options.items() if value is not None))
    if skipped:
        say(f"tumor_seg: skipped {len(skipped)} files and folders of the system, or hidden: "
            f"{names_in_words(skipped)}")
    group_of, given, notes = group_ids(found, how["groups"], how["group_regex"],
                                       how["unknown_groups"])

    # beside the output: other groups or folds, or a repaired image, need no new survey of the rest
    journal = ResultJournal(target.output_dir.parent / f".{target.output_dir.name}.survey",
                            f"{RECIPE} {recipe}", keep=not dry_run)
    with mapper(workers) as mapped, journal:
        originals = survey(found, recipe, journal, mapped)
        dropped = qc_report.count_dropped(originals, others)
        for entry in dropped:
            say(f"tumor_seg: dropped {qc_report.dropped_in_words(entry)}")
        plan = make_plan(originals, group_of, given, seed=how["seed"], fold=how["fold"],
                         trust_groups=how["trust_groups"], method=recipe.stain_normalisation,
                         mapped=mapped, half=how["half"])
        if how["half"] is not None:
            originals = [o for o in originals if not o.kept or o.source.name in plan.group_of]
        counts = in_words(plan, dropped, recipe.cut.image_size)
        if dry_run:
            made = preview(target, plan, originals, recipe.cut.image_size, notes, mapped)
            print(f"{output}: would write {counts}; {made}")
            return
        make_dataset(target, plan, originals, dropped, recipe, how["seed"], notes, mapped)
        journal.discard()
    print(f"{output}: {counts}")


# long: one call an option, and what it means
def build_parser():
    parser = cli.stage_parser("tumor_seg.py", __doc__)
    group = parser.add_argument_group("Main")
    group.add_argument("--input", type=cli.directory, required=True, metavar="DIR",
                       help="folder of the class folders")
    group.add_argument("--output", type=cli.directory, required=True, metavar="DIR",
                       help="dataset to make")
    group = parser.add_argument_group("Groups and splits")
    group.add_argument("--groups", metavar="CSV",
                       help="file_name,label,group of every image; auto: copies are found, and "
                            "else a file is a group (default: auto)")
    group.add_argument("--group-regex", metavar="REGEX",
                       help="what it finds in a file's path, or its capture group, is the group: "
                            "'TCGA-..-....' is a patient")
    group.add_argument("--unknown-groups", choices=UNKNOWN_GROUPS, default="refuse",
                       help="images whose group is empty, 'nan', '-', 'unknown' or the like are "
                            "refused, or each is a group of its own (default: refuse)")
    group.add_argument("--trust-groups", action="store_true",
                       help="do not join groups that hold rotated, flipped, rescaled or "
                            "re-compressed copies of one image; identical files always are")
    group.add_argument("--fold", type=cli.fold, metavar="k/K",
                       help="cross-validation: test on fold k of K, validate on the next "
                            "(default: one split, 60/20/20)")
    group.add_argument("--half", type=int, choices=(1, 2),
                       help="one half of the groups alone, drawn by --seed: of the other half, "
                            "which nothing has used, controls_seg.py makes a control (default: "
                            "all of them)")
    group = parser.add_argument_group("Tiles")
    group.add_argument("--channel", type=cli.channel, metavar="N|NAME",
                       help="channel or page of a multi-channel or fluorescence image, counted "
                            "from 0, or its name")
    group.add_argument("--pages-are", choices=PAGES_ARE, default="channels",
                       help="what the grey pages of a TIFF are that does not say; focal planes are "
                            "projected to their maximum")
    group.add_argument("--image-size", type=cli.positive_int, metavar="PX",
                       help="side of a tile written (default: demo 64, full 256)")
    group.add_argument("--mpp", type=cli.positive_float, metavar="UM",
                       help="micrometres per pixel of the tiles written (default: slides: "
                            f"{FIELD_UM:g} um a tile; other images: as large a tile as fits)")
    group.add_argument("--source-mpp", type=cli.positive_float, metavar="UM",
                       help="micrometres per pixel of originals that do not say theirs")
    group.add_argument("--source-bits", type=int, choices=range(9, 17), metavar="N",
                       help="9 to 16, bits in use in 16-bit colour that does not say (default: 16)")
    group.add_argument("--tile-size", type=cli.positive_int, metavar="PX",
                       help="side of a tile in the original image (default: its shorter side)")
    group.add_argument("--tiles-per-slide", type=cli.positive_int, metavar="N",
                       help="at most so many tiles of a whole slide, drawn by the seed (default: "
                            "all)")
    group.add_argument("--region", choices=("tumour", "tissue", "all"), default="tissue",
                       help="tiles taken: mostly tumour by the tumour map; with enough tissue; all "
                            "that pass the quality control")
    group.add_argument("--benign", nargs="+", metavar="CLASS",
                       help="classes without tumour: --region tumour takes their tissue")
    group.add_argument("--min-tissue", type=cli.fraction, default=quality.Limits().min_tissue,
                       metavar="FRACTION", help="share of a tile that must be tissue")
    group.add_argument("--no-quality-control", action="store_false", dest="quality_control",
                       help="keep tiles that are blurred, inked, dark, over-exposed or blank")
    group.add_argument("--stain-normalisation", choices=tuple(stain.METHODS), default="macenko",
                       help="of colour images; none leaves their pixels as they are")
    group = parser.add_argument_group("Performance")
    group.add_argument("--workers", type=cli.positive_int, default=1, metavar="N",
                       help="processes; the result does not depend on it")
    cli.add_common(parser, presets=PRESETS, device=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
