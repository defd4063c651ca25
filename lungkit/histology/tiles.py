"""How originals become tiles: examine, judge and render one original.

Feeds tumor_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lungkit.audit.survey import Original, Plan, Tile
from lungkit.data.writer import DatasetWriter, item_name
from lungkit.formats import sources
from lungkit.formats.channels import Unreadable
from lungkit.histology import background, qc_report, quality, stain
from lungkit.histology.originals import FIELD_UM, Cut, Picture, WholeSlide, open_original, shrink
from lungkit.histology.tumour_map import (
    reason_to_drop,
    tumour_mask,
    tumour_share as share_of_tissue,
)
from lungkit.run import faults

WORK_PX = 512       # ours: larger tiles are shrunk to this side before anything is measured
MAP_PX = 224        # ours: the tumour map's working size, 0.8 um a pixel of an LC25000 tile
STAIN_TILES = 48    # ours: a slide's stain is measured on those of so many tiles that are kept
AFTER_TILES = 8     # ours: tiles of an original that are measured as written
JOB_TILES = 32      # ours: tiles of a slide that go to a process at a time


@dataclass(frozen=True)
class Recipe:
    """How originals become tiles: what examining and rendering must agree on."""

    cut: Cut
    channel: int | str | None = None
    pages_are: str = "channels"      # of a TIFF of grey pages that does not say
    source_mpp: float | None = None  # micrometres per pixel of originals that do not say theirs
    region: str = "tissue"
    benign: tuple[str, ...] = ()
    stain_normalisation: str = "macenko"
    limits: quality.Limits = quality.Limits()
    quality_control: bool = True     # False: only the share of tissue counts
    source_bits: int | None = None   # in use in 16-bit colour that does not say

    @property
    def reading(self) -> dict[str, object]:
        """Options of `open_original`."""
        return {"channel": self.channel, "pages_are": self.pages_are, "um_per_px": self.source_mpp,
                "source_bits": self.source_bits}


def examine(source: sources.Source, recipe: Recipe) -> Original | str:
    """Measure one original: background, stain, quality of its tiles; or say why it is unusable."""
    from lungkit.audit import signature

    try:
        with open_original(source.path, **recipe.reading) as picture:
            overview = picture.overview()
            light = background.background_light(overview) if picture.colour else None
            tiles, boxes = [], picture.boxes(recipe.cut)
            stained, samples = set(qc_report.spread(boxes, STAIN_TILES)), []
            for box in boxes:
                faults.check_stop()
                pixels = picture.read(box, max(WORK_PX, recipe.cut.image_size))
                tile = judge(pixels, box, light, picture, source.label, recipe)
                tiles.append(tile)
                if box in stained and tile.reason is None:
                    samples.append(shrink(pixels, MAP_PX))
            stains = None
            if picture.colour:
                seen = samples if picture.is_slide else [overview]
                flat = [background.balance_white(part, light).reshape(-1, 3) for part in seen]
                if flat:
                    stains = stain.METHODS[recipe.stain_normalisation].estimate(
                        np.concatenate(flat))
            height, width = picture.size
            look = (width, height, source.path.suffix.lower(),
                    "colour" if picture.colour else "grey")
            return Original(source, picture.sha256, picture.file_bytes, look,
                            statistics(overview), picture.um_per_px, light, stains, picture.bright,
                            tuple(tiles), signature.describe(overview))
    except Unreadable as error:
        return f"{source.name} {error}"
    except OSError as error:
        return f"{source.name} cannot be read ({error.strerror})"


def judge(pixels: np.ndarray, box: tuple[int, int, int], light: np.ndarray | None,
          picture: Picture | WholeSlide, label: str, recipe: Recipe) -> Tile:
    """Measure the quality of a tile as read, and say whether it is kept."""
    flat, mask = balanced(pixels, light, picture.bright)
    um_per_px = picture.um_per_px and picture.um_per_px * box[2] / len(pixels)
    measured = quality.measure(flat, mask, scale=um_per_px)
    if recipe.quality_control:
        reason = quality.reason(measured, recipe.limits)
    else:
        reason = "too little tissue" if measured.tissue < recipe.limits.min_tissue else None
    if reason is None and recipe.region == "tumour":
        share = tumour_share(flat, mask, um_per_px)
        reason = reason_to_drop(recipe.region, share, label, recipe.benign)
    return Tile(box, measured, reason)


def balanced(pixels, light, bright: bool):
    """A tile as read -> the tile white-balanced, and its tissue mask bool [S, S]."""
    if pixels.ndim == 2:
        return pixels, background.tissue_mask(255 - pixels if bright else pixels)
    flat = background.balance_white(pixels, light)
    return flat, background.tissue_mask(flat)


def tumour_map(flat, um_per_px: float | None):
    """The tumour map of a white-balanced colour tile, bool [M, M], M at most MAP_PX."""
    small = shrink(flat, MAP_PX)
    return tumour_mask(small, field_um=um_per_px * len(flat) if um_per_px else FIELD_UM)


def tumour_share(flat, mask, um_per_px: float | None) -> float:
    """Share of a tile's tissue that is tumour; 0 without tissue, and of grey tiles."""
    import cv2

    if flat.ndim == 2:
        return 0.0
    found = tumour_map(flat, um_per_px)
    tissue = cv2.resize(mask.astype(np.uint8), found.shape[::-1], interpolation=cv2.INTER_NEAREST)
    return share_of_tissue(found, tissue > 0)


def statistics(image) -> tuple[float, ...]:
    """Mean red, green and blue, mean and standard deviation of grey: what needs no shape."""
    import cv2

    grey = image if image.ndim == 2 else cv2.transform(image, np.full((1, 3), 1 / 3, np.float32))
    means = cv2.mean(image)[:3] if image.ndim == 3 else cv2.mean(image)[:1] * 3
    brightness, contrast = cv2.meanStdDev(grey)
    return (*means, float(brightness[0, 0]), float(contrast[0, 0]))


def bring_to(tile, size: int):
    """A tile as uint8 RGB [size, size, 3]."""
    import cv2

    way = cv2.INTER_AREA if tile.shape[0] > size else cv2.INTER_CUBIC
    tile = cv2.resize(tile, (size, size), interpolation=way)
    return cv2.merge([tile] * 3) if tile.ndim == 2 else tile


def look_at(original: Original, tiles: list[Tile], recipe: Recipe) -> list:
    """Tiles for the sheet of kept and dropped ones, white-balanced: uint8 [P, P, 3] each."""
    with open_original(original.source.path, **recipe.reading) as picture:
        read = [picture.read(tile.box, WORK_PX) for tile in tiles]
    return [bring_to(balanced(tile, original.light, original.bright)[0], qc_report.SHEET_PX)
            for tile in read]


@dataclass(frozen=True)
class Job:
    """Tiles of one original still to be written, by number."""

    original: Original
    tiles: dict[int, Tile]


def pending_jobs(writer: DatasetWriter, plan: Plan) -> list[Job]:
    """The tiles of the plan that are not written yet."""
    jobs = []
    for original, tiles in plan.numbered():
        split, label = plan.split(original), original.source.label
        numbers = [number for number in tiles if not writer.has(split, label, number)]
        light = replace(original, tiles=(), signature=None)  # what goes to a worker must be small
        jobs += [Job(light, {n: tiles[n] for n in numbers[i:i + JOB_TILES]})
                 for i in range(0, len(numbers), JOB_TILES)]
    return jobs


def render(job: Job, recipe: Recipe, reference: object) -> list[tuple]:
    """Normalise tiles and bring them to size: (number, image PNG, {mask kind: PNG}) of each."""
    from lungkit.data.png import encode_png

    original, size, rendered = job.original, recipe.cut.image_size, []
    method = stain.METHODS[recipe.stain_normalisation]
    with open_original(original.source.path, **recipe.reading) as picture:
        for number, tile in job.tiles.items():
            pixels = picture.read(tile.box, max(WORK_PX, size))
            flat, tissue = balanced(pixels, original.light, original.bright)
            masks = {"tissue": tissue}
            image = pixels
            if pixels.ndim == 3:
                um_per_px = original.um_per_px and original.um_per_px * tile.box[2] / len(pixels)
                masks["tumour"] = tumour_map(flat, um_per_px)
                if recipe.stain_normalisation != "none":
                    image = method.normalise(flat, original.stains, reference)
            rendered.append((number, encode_png(bring_to(image, size)),
                             {kind: encode_png(mask_to(mask, size))
                              for kind, mask in masks.items()}))
    return rendered


def mask_to(mask, size: int):
    """A bool mask as uint8 [size, size], 255 where half of a pixel or more is set."""
    import cv2

    share = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    return (share >= 0.5).astype(np.uint8) * 255


def statistics_of_files(paths: list[Path]) -> tuple[float, ...]:
    """Mean `statistics` of some of the tiles that one original gave to the dataset."""
    from lungkit.data.png import decode_png

    some = qc_report.spread(paths, AFTER_TILES)
    return tuple(np.mean([statistics(decode_png(path.read_bytes())) for path in some], axis=0)
                 .tolist())


def measure_tiles(writer: DatasetWriter, plan: Plan, mapped: Callable
                  ) -> dict[str, tuple[float, ...]]:
    """{source name: mean `statistics` of some of the tiles as written}."""
    paths = {o.source.name: [writer.work_dir / item_name(plan.split(o), o.source.label, number)
                             for number in tiles] for o, tiles in plan.numbered()}
    return dict(zip(paths, mapped(statistics_of_files, paths.values())))
