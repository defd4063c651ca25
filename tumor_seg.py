#!/usr/bin/env python
"""Make the dataset "real" from original images: tissue, stain, tiles, splits by group.

Reads   INPUT/<class>/**, PNG, JPEG or TIFF, 8 or 16 bit, grey, colour or multi-channel;
        GROUPS, a CSV with columns file_name,label,group, file_name relative to the folder
        that holds the class folders. A group is what must not lie on both sides of a split:
        a patient, a slide, or an original image and its augmented copies.
Writes  OUTPUT/{train,val,test}/<class>/000000.png   square RGB tiles of one size
        OUTPUT/masks/tissue/<class>/000000.png       255 where there is tissue
        OUTPUT/metadata.csv, OUTPUT/dataset.json     the latter last: present means complete

Each image is cut into the largest squares along its long side (or --tile-size squares), never
squashed. Tiles with too little tissue are dropped and counted. H&E images are white-balanced on
their own background and stain-normalised towards a reference measured on training images only
(Macenko et al. 2009, "A method for normalizing histology slides for quantitative analysis", ISBI).
Grey and fluorescence images are denoised and stretched in contrast instead. Whole groups go to
train, val or test, near 60/20/20 in every class.

Running the same command again resumes, or finds the dataset complete.
Exit statuses: 0 complete, 1 bad data, 2 bad options, 75 stopped, run it again to resume.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lungkit import cli, sources
from lungkit.cli import BadOptions, Fault
from lungkit.files import Output, sha256, sha256_file
from lungkit.images import Unreadable, decode_image
from lungkit.progress import Progress, say
from lungkit.splits import SPLITS, Specimen, merge_identical, split_groups, warn_of_confounding
from lungkit.stain import (Stains, background_light, balance_white, enhance_grey, estimate_stains,
                           normalise_stains, optical_density, reference_stains, tissue_mask)

PRESETS = {"demo": {"image_size": 64}, "full": {"image_size": 256}}
MIN_TISSUE = 0.05  # ours: drops air alone, keeps one thin alveolar wall; LC25000's least is 0.19
WORK_SIZE = 512  # ours: larger tiles are shrunk to this side before colours are measured
STAIN_PIXELS = 10_000  # ours: pixels of an image its stains are estimated from


# ------------------------------------------------------------------ tiles

def tile_boxes(height: int, width: int, tile_size: int | None) -> list[tuple[int, int, int]]:
    """(top, left, side) of the full squares that fit, centred. tile_size None: the shorter side."""
    side = tile_size or min(height, width)
    down, across = height // side, width // side
    top, left = (height - down * side) // 2, (width - across * side) // 2
    return [(top + i * side, left + j * side, side) for i in range(down) for j in range(across)]


def shrink(image, side: int):
    """Area-average to `side` pixels where that is smaller."""
    import cv2

    scale = side / min(image.shape[:2])
    if scale >= 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


@dataclass(frozen=True)
class Original:
    """What the survey learnt of one source image."""

    source: sources.Source
    sha256: str
    look: tuple  # width, height, suffix, grey or colour: what should not give the class away
    light: object          # background colour [3], None for grey
    stains: Stains | None  # None where they cannot be told apart
    kept: tuple            # ((top, left, side), tissue share) of the tiles kept
    dropped: tuple         # reasons, one for each tile dropped


def cut_tiles(pixels, light, tile_size: int | None, image_size: int):
    """Cut a decoded image into tiles of at most WORK_SIZE pixels (image_size if that is larger).

    light: background colour of a colour image, None for grey.
    Yields (box, tile, mask): the tile uint8 [S, S, 3] or [S, S], the tissue mask bool [S, S].
    """
    bright = False
    if light is None:
        pixels, bright = enhance_grey(pixels)
    for top, left, side in tile_boxes(*pixels.shape[:2], tile_size):
        tile = shrink(pixels[top:top + side, left:left + side], max(WORK_SIZE, image_size))
        if light is None:
            mask = tissue_mask(255 - tile if bright else tile)
        else:
            mask = tissue_mask(balance_white(tile, light))
        yield (top, left, side), tile, mask


def examine(source: sources.Source, *, channel: int | None, tile_size: int | None, image_size: int,
            min_tissue: float) -> Original:
    """Decode one image and measure background, stains and tissue. Raises Unreadable."""
    content = source.path.read_bytes()
    pixels = decode_image(content, channel)
    height, width = pixels.shape[:2]
    light = stains = None
    if pixels.ndim == 3:
        small = shrink(pixels, WORK_SIZE)
        light = background_light(small)
        flat = balance_white(small, light).reshape(-1, 3)
        stains = estimate_stains(optical_density(flat[::max(1, len(flat) // STAIN_PIXELS)]))
    kept, dropped = [], []
    for box, _, mask in cut_tiles(pixels, light, tile_size, image_size):
        share = float(mask.mean())
        if share < min_tissue:
            dropped.append(f"less than {min_tissue:g} of the tile is tissue")
        else:
            kept.append((box, share))
    if not kept and not dropped:
        dropped.append(f"the image is smaller than --tile-size {tile_size}")
    look = (width, height, source.path.suffix.lower(), "grey" if light is None else "colour")
    return Original(source, sha256(content), look, light, stains, tuple(kept), tuple(dropped))


def render(tile, mask, original: Original, reference: Stains | None, normalise: bool,
           image_size: int):
    """Normalise a tile and bring it to size: uint8 RGB [S, S, 3] and its tissue mask [S, S]."""
    import cv2

    if tile.ndim == 2:
        tile = cv2.merge([tile] * 3)
    elif normalise:
        tile = balance_white(tile, original.light)
        if original.stains and reference:
            tile = normalise_stains(tile, original.stains, reference)
    way = cv2.INTER_AREA if tile.shape[0] > image_size else cv2.INTER_CUBIC
    size = (image_size, image_size)
    share = cv2.resize(mask.astype("float32"), size, interpolation=cv2.INTER_AREA)
    return cv2.resize(tile, size, interpolation=way), (share >= 0.5).astype("uint8") * 255


# ------------------------------------------------------------------ survey and report

def survey(found: list[sources.Source], **how) -> list[Original]:
    """Examine every image; raise one Fault that names the unusable ones."""
    originals, faults = [], []
    progress = Progress("examining images", len(found))
    for number, source in enumerate(found, 1):
        try:
            originals.append(examine(source, **how))
        except Unreadable as error:
            faults.append(f"{source.name} {error}")
        except OSError as error:
            faults.append(f"{source.name} cannot be read ({error.strerror})")
        cli.check_stop()
        progress.update(number)
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise Fault(f"{len(faults)} of {len(found)} images cannot be used: "
                    f"{'; '.join(faults[:5])}{more}: repair or remove them")
    return originals


def count_dropped(originals: list[Original], others: list[str]) -> list[dict]:
    """What does not reach the dataset: [{reason, count, by_class, examples}]."""
    reasons: dict[str, list] = {}
    for original in originals:
        for reason in original.dropped:
            reasons.setdefault(reason, []).append(original.source)
    table = [{"reason": reason, "count": len(hit), "by_class": dict(Counter(s.label for s in hit)),
              "examples": sorted({s.name for s in hit})[:10]}
             for reason, hit in sorted(reasons.items())]
    if others:
        table.append({"reason": "not a PNG, JPEG or TIFF file", "count": len(others),
                      "by_class": dict(Counter(name.split("/")[0] for name in others)),
                      "examples": others[:10]})
    return table


def check_paths(input_dir: Path, output_dir: Path) -> None:
    """Refuse an output that could overwrite the input, or that would be read as input."""
    if not input_dir.is_dir():
        raise Fault(f"--input {input_dir} is not a directory: give the folder of the class folders")
    inner, outer = input_dir.resolve(), output_dir.resolve()
    if inner == outer or outer.is_relative_to(inner) or inner.is_relative_to(outer):
        raise BadOptions(f"--output {output_dir} and --input {input_dir} lie one inside the other: "
                         "choose an --output beside the input")


# ------------------------------------------------------------------ the stage

@dataclass(frozen=True)
class Plan:
    """Everything decided before the first tile is written."""

    originals: list[Original]    # with at least one tile, by class and name: the order of the tiles
    group_of: dict[str, str]     # by source name
    split_of: dict[str, str]     # by group
    reference: Stains | None
    dropped: list[dict]
    warnings: list[str]

    def split(self, original: Original) -> str:
        return self.split_of[self.group_of[original.source.name]]

    def count_tiles(self) -> Counter:
        return Counter(self.split(o) for o in self.originals for _ in o.kept)

    def count_groups(self) -> dict[str, dict[str, int]]:
        """Groups by split and class."""
        found = {(self.split(o), o.source.label, self.group_of[o.source.name])
                 for o in self.originals}
        labels = sorted({label for _, label, _ in found})
        return {split: {label: sum(f[:2] == (split, label) for f in found) for label in labels}
                for split in SPLITS}


def make_plan(originals: list[Original], others: list[str], group_of: dict[str, str], *,
              groups_given: bool, seed: int, image_size: int) -> Plan:
    """Drop, group, split, and measure the reference stains. Raises Fault where that cannot be."""
    group_of, joined = merge_identical(group_of, {o.source.name: o.sha256 for o in originals})
    dropped = count_dropped(originals, others)
    kept = [original for original in originals if original.kept]
    lost = sorted({o.source.label for o in originals} - {o.source.label for o in kept})
    if lost:
        raise Fault(f"every tile of {sources.shown(lost)} was dropped ({dropped[0]['reason']}): "
                    "lower --min-tissue or --tile-size, or look at the images")
    split_of = split_groups([(group_of[o.source.name], o.source.label)
                             for o in kept for _ in o.kept], seed)
    specimens = [Specimen(o.source.label, group_of[o.source.name], o.sha256, o.look) for o in kept]
    warnings = warn_of_confounding(specimens, groups_given)
    if joined:
        warnings.append(f"{joined} groups shared a byte-identical image with another and were "
                        "joined to it.")
    small = sum(box[2] < image_size for o in kept for box, _ in o.kept)
    if small:
        warnings.append(f"{small} tiles are smaller than {image_size} pixels and were enlarged.")
    reference = reference_stains([o.stains for o in kept if o.stains
                                  and split_of[group_of[o.source.name]] == "train"])
    return Plan(kept, group_of, split_of, reference, dropped, warnings)


def write_tiles(writer, plan: Plan, original: Original, first: int, *, normalise: bool, seed: int,
                channel: int | None, tile_size: int | None) -> None:
    """Write the kept tiles of one image, numbered from `first`, that are not written yet."""
    name, label = original.source.name, original.source.label
    split, size = plan.split(original), writer.image_size
    pending = {box: (first + i, share) for i, (box, share) in enumerate(original.kept)
               if not writer.has(split, label, first + i)}
    if not pending:
        return
    pixels = decode_image(original.source.path.read_bytes(), channel)
    for box, tile, mask in cut_tiles(pixels, original.light, tile_size, size):
        if box in pending:
            number, share = pending[box]
            image, tissue = render(tile, mask, original, plan.reference, normalise, size)
            writer.add(split, label, number, image, masks={"tissue": tissue}, source=name,
                       group=plan.group_of[name], seed=seed, tissue_fraction=f"{share:.4f}")


def run(*, input: Path, output: Path, groups: Path | None, channel: int | None,
        image_size: int | None, stain_normalisation: str, min_tissue: float, tile_size: int | None,
        seed: int, preset: str, overwrite: bool, dry_run: bool) -> None:
    """Survey the images, split their groups, write the tiles, publish the dataset."""
    image_size = image_size or PRESETS[preset]["image_size"]
    check_paths(input, output)
    root = sources.find_root(input)
    found, others = sources.find_sources(root)
    options = {"channel": channel, "image_size": image_size, "min_tissue": min_tissue, "seed": seed,
               "stain_normalisation": stain_normalisation, "tile_size": tile_size,
               "input": sources.quick_fingerprint(found),
               "groups": sha256_file(groups) if groups else None}
    target = Output(output, "dataset.json", options, overwrite=overwrite)
    if target.is_complete():
        print(f"{output}: already complete")
        return
    labels = sorted({source.label for source in found})
    say(f"tumor_seg: {len(found)} images of {len(labels)} classes ({', '.join(labels)}) in {root}; "
        + ", ".join(f"{name} {value}" for name, value in options.items()))
    group_of = sources.read_groups(groups, found) if groups else {s.name: s.name for s in found}

    originals = survey(found, channel=channel, tile_size=tile_size, image_size=image_size,
                       min_tissue=min_tissue)
    plan = make_plan(originals, others, group_of, groups_given=groups is not None, seed=seed,
                     image_size=image_size)
    normalise = stain_normalisation == "macenko"
    colour = [o for o in plan.originals if o.light is not None and normalise]
    unmeasured = sum(o.stains is None or plan.reference is None for o in colour)
    notes = [f"dropped {entry['count']}: {entry['reason']}" for entry in plan.dropped]
    if unmeasured:
        notes.append(f"the stains of {unmeasured} of {len(colour)} images cannot be told apart: "
                     "they are white-balanced only")
    for note in notes + [f"warning: {warning}" for warning in plan.warnings]:
        say(f"tumor_seg: {note}")
    tiles = plan.count_tiles()
    counts = (f"{sum(tiles.values())} tiles of {image_size} px "
              f"({', '.join(f'{split} {tiles[split]}' for split in SPLITS)}), "
              f"{len(plan.split_of)} groups, {sum(each['count'] for each in plan.dropped)} dropped")
    if dry_run:
        done = 0 if overwrite else len(list(target.work_dir.glob("[tv]*/*/[0-9]*.png")))
        print(f"{output}: would write {counts}; {done} done, {sum(tiles.values()) - done} pending")
        return

    from lungkit.dataset import DatasetWriter

    with DatasetWriter(target, stage="tumor_seg", classes=labels, image_size=image_size) as writer:
        progress = Progress("writing tiles", sum(tiles.values()), done=len(writer.records),
                            jsonl_path=writer.work_dir / "progress.jsonl")
        first = 0  # numbers follow class and name, never the split
        for original in plan.originals:
            write_tiles(writer, plan, original, first, normalise=normalise, seed=seed,
                        channel=channel, tile_size=tile_size)
            first += len(original.kept)
            progress.update(len(writer.records))
            cli.check_stop()
        shown = plan.reference if colour else None
        writer.publish(
            parents=[], seed=seed, warnings=plan.warnings, dropped=plan.dropped,
            groups=plan.count_groups(),
            stain={"method": stain_normalisation, "images": len(colour),
                   "not_estimated": unmeasured,
                   "reference_matrix": shown.matrix.round(4).tolist() if shown else None,
                   "reference_strength": shown.strength.round(4).tolist() if shown else None})
    print(f"{output}: {counts}")


def build_parser():
    parser = cli.stage_parser("tumor_seg.py", __doc__)
    group = parser.add_argument_group("Main")
    group.add_argument("--input", type=cli.directory, required=True, metavar="DIR",
                       help="folder of the class folders")
    group.add_argument("--output", type=cli.directory, required=True, metavar="DIR",
                       help="dataset to make")
    group.add_argument("--groups", type=Path, metavar="CSV",
                       help="file_name,label,group of every image (default: a file is a group)")
    group = parser.add_argument_group("Hyperparameters")
    group.add_argument("--channel", type=cli.non_negative_int, metavar="N",
                       help="channel or page of a multi-channel image, counted from 0")
    group.add_argument("--image-size", type=cli.positive_int, metavar="PX",
                       help="side of a tile written (default: demo 64, full 256)")
    group.add_argument("--stain-normalisation", choices=("macenko", "none"), default="macenko",
                       help="of colour images; none leaves their pixels as they are")
    group.add_argument("--min-tissue", type=cli.fraction, default=MIN_TISSUE, metavar="FRACTION",
                       help="share of a tile that must be tissue")
    group.add_argument("--tile-size", type=cli.positive_int, metavar="PX",
                       help="side of a tile in the original image (default: its shorter side)")
    cli.add_common(parser, presets=PRESETS, device=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
