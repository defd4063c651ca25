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
from lungkit.images import Unreadable, decode_image
from lungkit.progress import Progress, say

PRESETS = {"demo": {"image_size": 64}, "full": {"image_size": 256}}
# ours: a tile of air alone is dropped, one thin alveolar wall is kept; LC25000 loses none
MIN_TISSUE = 0.05
FEW_GROUPS = 10   # ours: below it a test split holds one or two patients, no sample of patients
CONFOUNDED = 0.2  # ours: how far above guessing a file's format may predict its class
WORK_SIZE = 512   # ours: larger tiles are shrunk to this side before colours are measured

# Background of transmitted light: bright, and green not the weakest channel, because
# haematoxylin and eosin both absorb green most. Ours, chosen by eye on LC25000.
LIGHT_MIN, LIGHT_RANGE, LIGHT_GREEN_LACK = 165, 85, 16
LIGHT_MIN_SHARE = 0.01  # less background than this is not measured: white is taken as 255
# Tissue: Otsu's thresholds are kept within these ranges, because a tile that is all tissue, or
# all air, has no two modes to part. Ours, chosen by eye on LC25000.
TISSUE_DENSITY, TISSUE_COLOUR = (0.10, 0.20), (0.06, 0.14)

OD_BETA = 0.15              # optical density (natural log) of background; Macenko 2009
ANGLE_PERCENTILE = 1        # robust extremes of the stain angle; Macenko 2009
STRENGTH_PERCENTILE = 99    # robust maximum of a stain's concentration; Macenko 2009
MIN_STAINED = 0.02          # ours: share of stained pixels below which stains are not estimated
MIN_STAIN_ANGLE_DEG = 12    # ours: closer directions are one stain and noise; Ruifrok's are 37 apart
MAX_STRENGTH_RATIO = 1.6    # ours: stronger amplification turns pale eosin into ink
STAIN_PIXELS = 10_000       # ours: pixels of an image its stains are estimated from


# ------------------------------------------------------------------ tissue, contrast, stain

def otsu(values) -> float:
    """Otsu's threshold (1979) of float values in 0..1."""
    import cv2
    import numpy as np

    return cv2.threshold((np.clip(values, 0, 1) * 255).astype(np.uint8), 0, 255,
                         cv2.THRESH_BINARY | cv2.THRESH_OTSU)[0] / 255


def background_light(image):
    """Colour of unstained background in uint8 [H, W, 3], float64 [3]; 255 where there is none."""
    import cv2
    import numpy as np

    pixels = cv2.GaussianBlur(image, (0, 0), 1.5).reshape(-1, 3)[::3].astype(np.int16)
    low, high = pixels.min(1), pixels.max(1)
    background = pixels[(low > LIGHT_MIN) & (high - low < LIGHT_RANGE)
                        & (pixels[:, 1] > np.minimum(pixels[:, 0], pixels[:, 2]) - LIGHT_GREEN_LACK)]
    if len(background) < LIGHT_MIN_SHARE * len(pixels):
        return np.full(3, 255.0)
    light = background.mean(1)
    return np.median(background[light >= np.percentile(light, 70)], axis=0).astype(np.float64)


def balance_white(image, light):
    """Divide uint8 [H, W, 3] by the background light."""
    import cv2
    import numpy as np

    table = np.clip(np.arange(256)[:, None] * (255 / light) + 0.5, 0, 255).astype(np.uint8)
    return cv2.LUT(image, table[:, None, :])


def tissue_mask(image):
    """Mark tissue: bool [H, W] of uint8 [H, W, 3] RGB on white, or of [H, W] bright on dark."""
    import cv2
    import numpy as np

    smooth = cv2.GaussianBlur(image, (0, 0), max(0.8, min(image.shape[:2]) / 150))
    if image.ndim == 2:
        mask = smooth > max(otsu(smooth / 255) * 255, 1)
    else:
        parts = cv2.split(smooth)
        grey = sum(part.astype(np.float32) for part in parts) / 3
        density = -np.log(np.maximum(grey, 1) / 255)
        low, high = cv2.min(cv2.min(*parts[:2]), parts[2]), cv2.max(cv2.max(*parts[:2]), parts[2])
        colour = (high - low).astype(np.float32) / 255
        mask = ((density > np.clip(otsu(density), *TISSUE_DENSITY))
                | (colour > np.clip(otsu(colour), *TISSUE_COLOUR)))
    speck = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, speck) > 0


def enhance_grey(values):
    """Denoise a grey image [H, W] of uint8, uint16 or float32 and stretch its contrast to uint8.

    Returns the image and whether its background is bright. A dark one (fluorescence) is evened
    out by subtracting a wide opening, in the spirit of Sternberg's rolling ball (1983).
    """
    import cv2
    import numpy as np

    smooth = cv2.medianBlur(values, 3).astype(np.float32)
    low, high = np.percentile(smooth[::2, ::2], [0.5, 99.8])
    bright = bool(np.median(smooth) > (low + high) / 2)
    if not bright:
        side = 96
        small = cv2.resize(smooth, (side, side), interpolation=cv2.INTER_AREA)
        ball = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side // 3, side // 3))
        ground = cv2.GaussianBlur(cv2.morphologyEx(small, cv2.MORPH_OPEN, ball), (0, 0), side / 12)
        smooth -= cv2.resize(ground, smooth.shape[::-1], interpolation=cv2.INTER_LINEAR)
        low, high = np.percentile(smooth[::2, ::2], [0.5, 99.8])
    if high <= low:
        return np.full(values.shape, 255 * bright, np.uint8), bright
    return (np.clip((smooth - low) / (high - low), 0, 1) * 255 + 0.5).astype(np.uint8), bright


@dataclass(frozen=True)
class Stains:
    """Optical densities [3, 2] of haematoxylin and eosin (unit columns), robust maxima [2]."""

    matrix: object
    strength: object


def optical_density(pixels):
    """uint8 [..., 3] -> float32 [..., 3], natural logarithm (Beer-Lambert)."""
    import numpy as np

    return (-np.log(np.maximum(np.arange(256), 1) / 255)).astype(np.float32)[pixels]


def estimate_stains(density) -> Stains | None:
    """Estimate stains from optical densities [N, 3]; None where it cannot be done.

    Macenko et al. 2009: the plane of the two largest principal components through the origin,
    and in it the robust extremes of the angle.
    """
    import numpy as np

    stained = density[(density > OD_BETA).all(1)].astype(np.float64)
    if len(stained) < max(100, MIN_STAINED * len(density)):
        return None
    _, vectors = np.linalg.eigh(np.cov(stained.T))
    plane = vectors[:, [2, 1]] * np.where(vectors[0, [2, 1]] < 0, -1, 1)
    angle = np.arctan2(stained @ plane[:, 1], stained @ plane[:, 0])
    ends = np.percentile(angle, [ANGLE_PERCENTILE, 100 - ANGLE_PERCENTILE])
    if not MIN_STAIN_ANGLE_DEG < np.degrees(ends[1] - ends[0]) < 90:
        return None
    pair = plane @ np.stack([np.cos(ends), np.sin(ends)])
    if (pair < -0.1).any():
        return None  # a stain does not emit light
    pair = np.maximum(pair[:, np.argsort(-pair[0])], 0)  # haematoxylin absorbs more red than eosin
    pair /= np.linalg.norm(pair, axis=0)
    strength = np.percentile(stained @ np.linalg.pinv(pair).T, STRENGTH_PERCENTILE, axis=0)
    return Stains(pair, strength) if (strength > OD_BETA).all() else None


def reference_stains(found: list[Stains]) -> Stains | None:
    """The median stains of several images; None of none.

    The median, not one estimate from pooled pixels: pooled extremes are red cells and ink.
    """
    import numpy as np

    if not found:
        return None
    matrix = np.median([stains.matrix for stains in found], axis=0)
    return Stains(matrix / np.linalg.norm(matrix, axis=0),
                  np.median([stains.strength for stains in found], axis=0))


def normalise_stains(image, stains: Stains, reference: Stains):
    """Give uint8 [H, W, 3] the reference's stain colours and strengths."""
    import cv2
    import numpy as np

    ratio = np.clip(reference.strength / stains.strength, 1 / MAX_STRENGTH_RATIO, MAX_STRENGTH_RATIO)
    change = reference.matrix @ np.diag(ratio) @ np.linalg.pinv(stains.matrix)  # of densities, 3 x 3
    density = cv2.transform(optical_density(image), change.astype(np.float32))
    return np.clip(255 * cv2.exp(-density) + 0.5, 0, 255).astype(np.uint8)


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


@dataclass
class Original:
    """What the survey learnt of one source image."""

    source: sources.Source
    sha256: str
    look: tuple  # width, height, suffix, grey or colour: what should not give the class away
    light: object = None           # background colour [3], None for grey
    stains: Stains | None = None
    kept: tuple = ()               # ((top, left, side), tissue share) of the tiles kept
    dropped: tuple = ()            # reasons, one for each tile dropped


def load_tiles(content: bytes, channel: int | None, tile_size: int | None, image_size: int,
               light=None):
    """Decode an image and cut it. Yields (box, tile, tissue mask); the tile uint8 [S, S, 3] or [S, S]."""
    pixels = decode_image(content, channel)
    bright = False
    if pixels.ndim == 2:
        pixels, bright = enhance_grey(pixels)
    for top, left, side in tile_boxes(*pixels.shape[:2], tile_size):
        tile = shrink(pixels[top:top + side, left:left + side], max(WORK_SIZE, image_size))
        if tile.ndim == 3:
            mask = tissue_mask(balance_white(tile, light))
        else:
            mask = tissue_mask(255 - tile if bright else tile)
        yield (top, left, side), tile, mask


def examine(source: sources.Source, channel: int | None, tile_size: int | None, image_size: int,
            min_tissue: float) -> Original:
    """Decode one image and measure background, stains and tissue. Raises Unreadable."""
    from lungkit.files import sha256

    content = source.path.read_bytes()
    pixels = decode_image(content, channel)
    height, width = pixels.shape[:2]
    found = Original(source, sha256(content), (width, height, source.path.suffix.lower(),
                                               "grey" if pixels.ndim == 2 else "colour"))
    if pixels.ndim == 3:
        small = shrink(pixels, WORK_SIZE)
        found.light = background_light(small)
        flat = balance_white(small, found.light).reshape(-1, 3)
        found.stains = estimate_stains(optical_density(flat[::max(1, len(flat) // STAIN_PIXELS)]))
    kept, dropped = [], []
    for box, _, mask in load_tiles(content, channel, tile_size, image_size, found.light):
        share = float(mask.mean())
        if share < min_tissue:
            dropped.append(f"less than {min_tissue:g} of the tile is tissue")
        else:
            kept.append((box, share))
    if not kept and not dropped:
        dropped.append(f"the image is smaller than --tile-size {tile_size}")
    found.kept, found.dropped = tuple(kept), tuple(dropped)
    return found


def render(tile, mask, original: Original, reference: Stains | None, normalise: bool, image_size: int):
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
        raise Fault(f"{len(faults)} of {len(found)} images cannot be used: {'; '.join(faults[:5])}{more}: "
                    "repair or remove them")
    return originals


def count_dropped(originals: list[Original], others: list[str]) -> list[dict]:
    """What does not reach the dataset: [{reason, count, by_class, examples}]."""
    reasons: dict[str, list] = {}
    for original in originals:
        for reason in original.dropped:
            reasons.setdefault(reason, []).append(original.source)
    table = [{"reason": reason, "count": len(hit), "by_class": dict(Counter(s.label for s in hit)),
              "examples": sorted({s.name for s in hit})[:10]} for reason, hit in sorted(reasons.items())]
    if others:
        table.append({"reason": "not a PNG, JPEG or TIFF file", "count": len(others),
                      "by_class": dict(Counter(name.split("/")[0] for name in others)),
                      "examples": others[:10]})
    return table


def warn_of_confounding(originals: list[Original], groups: dict[str, str], given: bool) -> list[str]:
    """What in the data could make an accuracy mean less than it seems, as sentences."""
    warnings = []
    if not given:
        warnings.append("No group ids were given, so each file is its own group: images of one patient, or "
                        "augmented copies, may lie on both sides of a split and inflate every accuracy.")
    labels = Counter(o.source.label for o in originals)
    for label, total in sorted(labels.items()):
        sizes = Counter(groups[o.source.name] for o in originals if o.source.label == label)
        group, most = sizes.most_common(1)[0]
        if most > total / 2:
            warnings.append(f"{most} of {total} images of {label!r} come from one group ({group!r}): "
                            "telling this class may mean telling this specimen.")
        if len(sizes) < FEW_GROUPS:
            warnings.append(f"{label!r} has {len(sizes)} groups only: its test split says little about "
                            "the next patient.")
    # leave one out: the class most frequent among the other images of the same look
    looks: dict[tuple, Counter] = {}
    for o in originals:
        looks.setdefault(o.look, Counter())[o.source.label] += 1
    right = 0
    for o in originals:
        rest = looks[o.look] - Counter([o.source.label])
        right += bool(rest) and max(sorted(rest), key=rest.__getitem__) == o.source.label
    guess = max(labels.values()) / len(originals)
    if right / len(originals) > guess + CONFOUNDED:
        warnings.append(f"Width, height, file type and colour mode alone tell the class of "
                        f"{right / len(originals):.0%} of the files (guessing: {guess:.0%}): the classes "
                        "were acquired differently, and a network may learn that instead of tissue.")
    return warnings


def check_paths(input_dir: Path, output_dir: Path) -> None:
    """Refuse an output that could overwrite the input, or that would be read as input."""
    if not input_dir.is_dir():
        raise Fault(f"--input {input_dir} is not a directory: give the folder of the class folders")
    inner, outer = input_dir.resolve(), output_dir.resolve()
    if inner == outer or outer.is_relative_to(inner) or inner.is_relative_to(outer):
        raise BadOptions(f"--output {output_dir} and --input {input_dir} lie one inside the other: "
                         "choose an --output beside the input")


# ------------------------------------------------------------------ the stage

def run(*, input: Path, output: Path, groups: Path | None, channel: int | None,
        image_size: int | None, stain_normalisation: str, min_tissue: float, tile_size: int | None,
        seed: int, preset: str, overwrite: bool, dry_run: bool) -> None:
    """Survey the images, split their groups, write the tiles, publish the dataset."""
    from lungkit.files import Output, sha256_file

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
        say(f"tumor_seg: {output} is already complete")
        print(output)
        return
    say(f"tumor_seg: {len(found)} images of {len({s.label for s in found})} classes in {root}; "
        + ", ".join(f"{name} {value}" for name, value in options.items() if name != "input"))
    group_of = sources.read_groups(groups, found) if groups else {s.name: s.name for s in found}

    originals = survey(found, channel=channel, tile_size=tile_size, image_size=image_size,
                       min_tissue=min_tissue)
    group_of, joined = sources.merge_identical(group_of, {o.source.name: o.sha256 for o in originals})
    dropped = count_dropped(originals, others)
    for entry in dropped:
        say(f"tumor_seg: dropped {entry['count']}: {entry['reason']}")
    kept = [original for original in originals if original.kept]
    lost = sorted({s.label for s in found} - {o.source.label for o in kept})
    if lost:
        raise Fault(f"every tile of {sources.shown(lost)} was dropped ({dropped[0]['reason']}): "
                    "lower --min-tissue or --tile-size, or look at the images")
    split_of = sources.split_groups([(group_of[o.source.name], o.source.label)
                                     for o in kept for _ in o.kept], seed)
    warnings = warn_of_confounding(kept, group_of, groups is not None)
    if joined:
        warnings.append(f"{joined} groups shared byte-identical images with another and were joined.")
    small = sum(box[2] < image_size for o in kept for box, _ in o.kept)
    if small:
        warnings.append(f"{small} tiles are smaller than {image_size} pixels and were enlarged.")

    normalise = stain_normalisation == "macenko"
    colour = [o for o in kept if o.light is not None] if normalise else []
    reference = reference_stains([o.stains for o in colour
                                  if o.stains and split_of[group_of[o.source.name]] == "train"])
    unmeasured = sum(o.stains is None for o in colour)
    if unmeasured:
        say(f"tumor_seg: the stains of {unmeasured} of {len(colour)} images cannot be told apart: "
            "white-balanced only")
    for warning in warnings:
        say(f"tumor_seg: warning: {warning}")

    plan, index = [], 0  # (original, split, number of its first tile): numbers never depend on the split
    for original in kept:
        plan.append((original, split_of[group_of[original.source.name]], index))
        index += len(original.kept)
    by_split = Counter(split for original, split, _ in plan for _ in original.kept)
    counts = ", ".join(f"{split} {by_split[split]}" for split in sources.SPLITS)
    if dry_run:
        begun = target.work_dir
        done = 0 if overwrite else sum(1 for split in sources.SPLITS for _ in begun.glob(f"{split}/*/[0-9]*.png"))
        print(f"would write {output}: {index} tiles of {image_size} px ({counts}), "
              f"{len(split_of)} groups; {done} done, {index - done} pending")
        return

    from lungkit.dataset import DatasetWriter

    labels = sorted({s.label for s in found})
    with DatasetWriter(target, stage="tumor_seg", classes=labels, image_size=image_size) as writer:
        progress = Progress("writing tiles", index, done=len(writer.records),
                            jsonl_path=writer.work_dir / "progress.jsonl")
        for original, split, first in plan:
            write_tiles(writer, original, split, first, reference, normalise, seed=seed,
                        group=group_of[original.source.name], channel=channel, tile_size=tile_size)
            progress.update(len(writer.records))
            cli.check_stop()
        group_counts = {split: {label: len({group_of[o.source.name] for o, s, _ in plan
                                            if s == split and o.source.label == label})
                                for label in labels} for split in sources.SPLITS}
        writer.publish(
            parents=[], seed=seed, warnings=warnings, groups=group_counts, dropped=dropped,
            stain={"method": stain_normalisation, "images": len(colour), "not_estimated": unmeasured,
                   "reference_matrix": reference.matrix.round(4).tolist() if reference else None,
                   "reference_strength": reference.strength.round(4).tolist() if reference else None})
    print(f"{output}: {index} tiles of {image_size} px ({counts}), {len(split_of)} groups, "
          f"{sum(entry['count'] for entry in dropped)} dropped")


def write_tiles(writer, original: Original, split: str, first: int, reference: Stains | None,
                normalise: bool, *, seed: int, group: str, channel: int | None,
                tile_size: int | None) -> None:
    """Write the kept tiles of one image that are not written yet."""
    label, size = original.source.label, writer.image_size
    if all(writer.has(split, label, first + i) for i in range(len(original.kept))):
        return
    numbers = {box: (first + i, share) for i, (box, share) in enumerate(original.kept)}
    content = original.source.path.read_bytes()
    for box, tile, mask in load_tiles(content, channel, tile_size, size, original.light):
        if box not in numbers or writer.has(split, label, numbers[box][0]):
            continue
        image, tissue = render(tile, mask, original, reference, normalise, size)
        writer.add(split, label, numbers[box][0], image, masks={"tissue": tissue}, group=group,
                   source=original.source.name, seed=seed, tissue_fraction=f"{numbers[box][1]:.4f}")


def build_parser():
    parser = cli.stage_parser("tumor_seg.py", __doc__)
    group = parser.add_argument_group("Main")
    group.add_argument("--input", type=cli.directory, required=True, metavar="DIR",
                       help="folder of the class folders")
    group.add_argument("--output", type=cli.directory, required=True, metavar="DIR",
                       help="dataset to make")
    group.add_argument("--groups", type=Path, metavar="CSV",
                       help="file_name,label,group of every image (default: each file its own group)")
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
