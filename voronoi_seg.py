"""Make the dataset "voronoi": each real image as the Voronoi diagram of its nuclei.

Nuclei are found by colour deconvolution (H&E) or intensity (fluorescence), distance transform,
watershed and a solidity filter; each pixel goes to the nucleus whose centre is nearest; the cells
are drawn at native resolution, clipped to the image, borders one pixel wide. Splits, labels,
groups and file names are those of the real dataset. No image is dropped: with one to three nuclei
the cells are those of what there is, with none the whole image is one cell; both are counted in
the manifest.

Reads   --real    a dataset made by tumor_seg.py
Writes  --output  a dataset with masks/nuclei/<class>/<name>.png (255: nucleus); metadata.csv has
                  num_nuclei, dataset.json the counts of nuclei per class;
                  features.csv: size, shape, stain, cell and neighbours of every nucleus;
                  image_features.csv: number, density, spacing, clustering and summaries per image
                  (columns, units and borders: lungkit/nuclei/features.py)

Sources: Ruifrok and Johnston, Anal Quant Cytol Histol 23(4), 2001 (colour deconvolution);
Voronoi, J reine angew Math 134, 1908.

Running the same command again resumes; a complete output is left as it is.
Exit status: 0 complete, 1 bad data or failed run, 2 bad options, 75 stopped and resumable.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from lungkit.data.dataset import (
    MANIFEST,
    SPLITS,
    Dataset,
    Row,
    open_dataset,
    parent_of,
    read_manifest,
)
from lungkit.data.manifest import side_um
from lungkit.data.png import decode_png, encode_png, three_channels
from lungkit.data.writer import DatasetWriter
from lungkit.nuclei.detect import (
    FIELD_UM,
    METHODS,
    RECIPE as NUCLEI_RECIPE,
    SOLIDITY,
    Nuclei,
    detect_nuclei,
    guess_modality,
)
from lungkit.nuclei.features import (
    feature_record,
    measure_nuclei,
    nucleus_lines,
    summarise,
    write_tables,
)
from lungkit.nuclei.instanseg import check_file
from lungkit.nuclei.voronoi import borders, voronoi_labels
from lungkit.run import cli, faults
from lungkit.run.journal import Journal
from lungkit.run.output import Output, check_apart
from lungkit.run.progress import Progress, say
from lungkit.run.workers import mapper

PRESETS = {"demo": {}, "full": {}}  # nothing here depends on the size of the machine
FEW_NUCLEI = 4  # fewer points than this span no diagram with a bounded cell
WARN_SHARE = 0.1  # ours: above it a class's diagrams say little about its tissue
MODALITY_IMAGES = 60
RECIPE = 3  # raise it when the drawing or measuring changes: a dataset of another is not complete
LOG = ".features.jsonl"
BORDER = (0, 0, 0)
PAPER = 255
UNKNOWN = 128  # grey, which viridis does not hold
# what --render feature:NAME shows: column, and the values of viridis's two ends; fixed, so that
# images compare. Ours: the 1 % and 99 % quantiles of LC25000's nuclei, rounded.
COLOURED = {
    "area": ("area_um2", 0, 250),
    "eccentricity": ("eccentricity", 0.3, 1),
    "solidity": ("solidity", 0.8, 1),
    "haematoxylin": ("haematoxylin_od", 0.6, 2),
    "cell-area": ("cell_area_um2", 0, 2000),
    "neighbours": ("num_neighbours", 2, 9),
    "nearest-neighbour": ("nearest_neighbour_um", 4, 30),
}


# ------------------------------------------------------------------ the drawing

def fill(colours: np.ndarray, cells: np.ndarray, line: np.ndarray | None = None) -> np.ndarray:
    """Each of `cells` int32 [S, S] in its colour, uint8 [N, 3], and BORDER on `line` bool [S, S].

    Returns uint8 [S, S, 3]; line None: no borders.
    """
    import cv2

    palette = np.zeros((len(colours) + 1, 4), np.uint8)  # a word a colour: faster than three bytes
    palette[:-1, :3], palette[-1, :3] = colours, BORDER
    at = cells if line is None else np.where(line, np.int32(len(colours)), cells)
    filled = np.take(palette.view(np.uint32), at).view(np.uint8).reshape(*cells.shape, 4)
    return cv2.cvtColor(filled, cv2.COLOR_RGBA2RGB)


def cell_means(image: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """The mean colour of `image` uint8 [S, S, 3] in each of `cells` int32 [S, S]: uint8 [N, 3].

    A row crosses a cell once: sums over such runs, from the running sum of the whole image, are
    twice as fast as sums over pixels.
    """
    import cv2

    flat = cells.ravel()
    ends = np.flatnonzero(np.r_[flat[1:] != flat[:-1], True])  # the last pixels of the runs
    of_run = flat[ends]
    total = cv2.integral(image.reshape(1, -1, 3))[1, 1:].take(ends, axis=0)
    sizes, runs = np.diff(ends, prepend=-1), np.empty((3, len(ends)))
    runs[:, 0] = total[0]
    runs[:, 1:] = (total[1:] - total[:-1]).T  # a wrapped sum has the right differences
    sums = [np.bincount(of_run, run) for run in runs]
    return np.round(np.stack(sums, axis=1) / np.maximum(np.bincount(of_run, sizes), 1)[:, None]
                    ).astype(np.uint8)


def feature_colours(name: str, features: dict[str, np.ndarray]) -> np.ndarray:
    """The colour of each nucleus by one of COLOURED, uint8 [max(N, 1), 3]; UNKNOWN where NaN."""
    import cv2

    column, low, high = COLOURED[name]
    values = features[column]
    if len(values) == 0:  # the one cell of an image without nuclei
        return np.full((1, 3), UNKNOWN, np.uint8)
    level = np.round(np.clip((np.nan_to_num(values) - low) / (high - low), 0, 1) * 255)
    bgr = cv2.applyColorMap(level.astype(np.uint8)[:, None], cv2.COLORMAP_VIRIDIS)[:, 0]
    return np.where(np.isnan(values)[:, None], UNKNOWN, bgr[:, ::-1]).astype(np.uint8)


def rule(cells: np.ndarray) -> np.ndarray:
    """Borders on paper, uint8 [S, S, 3]."""
    return fill(np.array([[PAPER] * 3, BORDER], np.uint8), borders(cells).astype(np.int32))


def dot(picture: np.ndarray, features: dict[str, np.ndarray]) -> np.ndarray:
    """`picture` with a black pixel at each centroid; in place."""
    at = np.stack([features["centroid_x_px"], features["centroid_y_px"]])
    x, y = np.clip(np.round(at).astype(int), 0, len(picture) - 1)
    picture[y, x] = BORDER
    return picture


# name: (image, cells, features) -> picture uint8 [S, S, 3]
RENDERS = {
    "mean": lambda image, cells, features: fill(cell_means(image, cells), cells),
    "borders": lambda image, cells, features: rule(cells),
    "mean-borders":
        lambda image, cells, features: fill(cell_means(image, cells), cells, borders(cells)),
    "centroids": lambda image, cells, features: dot(np.full_like(image, PAPER), features),
    "borders-centroids": lambda image, cells, features: dot(rule(cells), features),
    **{f"feature:{name}": partial(lambda image, cells, features, name: fill(
        feature_colours(name, features), cells, borders(cells)), name=name) for name in COLOURED},
}


@dataclass(frozen=True)
class Drawing:
    """One image's diagram: picture uint8 [S, S, 3], nuclei mask uint8 [S, S] (0 or 255), and the
    features of nuclear_features.measure_nuclei and summarise."""

    picture: np.ndarray
    mask: np.ndarray
    features: dict[str, np.ndarray]
    summary: dict[str, float]


def draw(image: np.ndarray, *, render: str, modality: str, solidity: float, field_um: float,
         detect: Callable[..., Nuclei] = detect_nuclei) -> Drawing:
    """Draw the diagram of a uint8 [S, S, 3] image, and measure its nuclei."""
    size = image.shape[0]
    nuclei = detect(image, modality=modality, solidity=solidity, field_um=field_um)
    cells = voronoi_labels(nuclei.centroids, size)
    features = measure_nuclei(nuclei, cells, image if modality == "he" else None,
                              um_per_px=field_um / size)
    return Drawing(RENDERS[render](image, cells, features),
                   np.where(nuclei.labels > 0, 255, 0).astype(np.uint8), features,
                   summarise(features, field_um=field_um))


# ------------------------------------------------------------------ reading and working

def choose_modality(real: Dataset, asked: str) -> str:
    """One modality for all images: as asked, as `real` records, or as most of its images look."""
    if asked != "auto":
        return asked
    if real.modality in METHODS:
        return real.modality
    rows = real.select("train")
    picked = np.unique(np.linspace(0, len(rows) - 1, MODALITY_IMAGES).astype(int))
    votes = [guess_modality(real.image(rows[i])) for i in picked]
    return max(sorted(METHODS, reverse=True), key=votes.count)  # a tie is H&E


def draw_row(row: Row, *, real_dir: Path, **how: object) -> tuple[bytes, bytes, list, dict]:
    """`draw` the image of a row of the dataset in `real_dir`, ready to be written.

    Returns picture and mask as PNG, the lines of its nuclei, and its summary.
    """
    image = decode_png((real_dir / row.file_name).read_bytes())
    drawing = draw(three_channels(image), **how)
    return (encode_png(drawing.picture), encode_png(drawing.mask),
            nucleus_lines(drawing.features), drawing.summary)


# ------------------------------------------------------------------ reporting

def count_nuclei(records: Iterable[dict], classes: list[str]) -> dict[str, dict]:
    """Per class: images, least, median and most nuclei, and images with fewer than FEW_NUCLEI."""
    found: dict[str, list[int]] = {label: [] for label in classes}
    for record in records:
        found[record["label"]].append(int(record["num_nuclei"]))
    return {label: {"images": len(counts), "min_count": min(counts), "median_count": median(counts),
                    "max_count": max(counts),
                    "fewer_than_four": sum(n < FEW_NUCLEI for n in counts),
                    "without_nuclei": counts.count(0)}
            for label, counts in found.items() if counts}


def warn(nuclei: dict[str, dict]) -> list[str]:
    """A warning for each class with too many images of fewer than FEW_NUCLEI nuclei."""
    return [f"{label}: {seen['fewer_than_four']} of {seen['images']} images have fewer than "
            f"{FEW_NUCLEI} nuclei; their Voronoi diagrams hold next to nothing of the tissue"
            for label, seen in nuclei.items()
            if seen["fewer_than_four"] > WARN_SHARE * seen["images"]]


# ------------------------------------------------------------------ the stage

def report(made: Dataset, nuclei: dict[str, dict], warnings: list[str]) -> None:
    for warning in warnings:
        say(f"warning: {warning}")
    shown = ", ".join(f"{label} {seen['median_count']:g} ({seen['fewer_than_four']} images with "
                      f"fewer than {FEW_NUCLEI})" for label, seen in nuclei.items())
    print(f"{made.path}: {len(made.rows)} images; median nuclei per image: {shown}")


def run(*, real: Path, output: Path, render: str, modality: str, solidity: float,
        field_um: float | None, nuclei_weights: Path | None, device: str, workers: int, preset: str,
        overwrite: bool, dry_run: bool) -> None:
    check_apart(real, output)
    real_dir, output_dir = Path(real).resolve(), Path(output).resolve()
    manifest = read_manifest(real_dir)
    field_um = field_um or side_um(manifest) or FIELD_UM
    options = {"real": manifest["fingerprint"], "render": render, "modality": modality,
               "solidity": solidity, "field_um": field_um, "recipe": RECIPE,
               "nuclei_recipe": NUCLEI_RECIPE,
               "nuclei_weights": cli.file_sha256(nuclei_weights, "--nuclei-weights")}
    target = Output(output_dir, MANIFEST, options, overwrite=overwrite)
    if target.is_complete():
        print(f"{output_dir}: already complete")
        return

    check_file(nuclei_weights)
    data = open_dataset(real_dir)
    how = {"render": render, "modality": choose_modality(data, modality), "solidity": solidity,
           "field_um": field_um}
    if dry_run:
        done = 0 if overwrite else sum((target.work_dir / row.file_name).exists()
                                       for row in data.rows)
        print(f"configuration: {how}, workers {workers}, preset {preset}")
        print(f"plan: found {len(data.rows)} images in {len(data.classes)} classes, "
              f"pending {len(data.rows) - done}, would write {output_dir}")
        return

    with DatasetWriter(target, stage="voronoi_seg", classes=data.classes,
                       image_size=data.image_size, targets=data.targets) as writer, \
            Journal(writer.work_dir / LOG) as log:
        pending = [row for row in data.rows if row.file_name not in log
                   or not writer.has(row.split, row.label, int(row.stem))]
        done = len(data.rows) - len(pending)
        say(f"found {len(data.rows)} images, processing {len(pending)} ({how['modality']})")
        progress = Progress("voronoi", len(data.rows), done=done,
                            jsonl_path=writer.work_dir / "progress.jsonl")
        if nuclei_weights:
            from lungkit.nuclei.instanseg import load_detector
            how["detect"] = load_detector(nuclei_weights, device)
        with mapper(workers) as mapped:
            drawn = mapped(partial(draw_row, real_dir=real_dir, **how), pending)
            for row, (picture, mask, lines, summary) in zip(pending, drawn):
                log.add(row.file_name, feature_record(lines, summary))
                writer.add(row.split, row.label, int(row.stem), picture, masks={"nuclei": mask},
                           group=row.group, source=row.file_name, num_nuclei=len(lines),
                           **{name: row.extra[name] for name in data.targets})
                done += 1
                progress.update(done)
                faults.check_stop()
        nuclei = count_nuclei(writer.records.values(), data.classes)
        warnings = warn(nuclei)
        tables = write_tables(log, writer.work_dir, list(writer.records))
        made = writer.publish(parents=[parent_of(data, {split: [split] for split in SPLITS})],
                              seed=data.manifest.get("seed", 0), warnings=warnings, nuclei=nuclei,
                              features=tables, modality=how["modality"],
                              um_per_px=field_um / data.image_size, symmetries=data.symmetries)
        (made.path / LOG).unlink(missing_ok=True)
    report(made, nuclei, warnings)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.stage_parser("voronoi_seg.py", __doc__)
    group = parser.add_argument_group("Main")
    group.add_argument("--real", type=cli.directory, required=True, metavar="DIR",
                       help="the real dataset")
    group.add_argument("--output", type=cli.directory, required=True, metavar="DIR",
                       help="the dataset to make")
    group = parser.add_argument_group("Hyperparameters")
    group.add_argument("--render", choices=list(RENDERS), default="mean-borders",
                       help="mean: each cell in its mean colour; borders: black lines on white; "
                            "centroids: a black pixel per nucleus on white; feature: each cell "
                            "by a feature of its nucleus in viridis, from "
                            + ", ".join(f"{low:g} to {high:g} for {column}"
                                        for column, low, high in COLOURED.values()))
    group.add_argument("--modality", choices=["auto", *METHODS], default="auto",
                       help="auto: as the real dataset says, else as its training images look")
    group.add_argument("--solidity", type=cli.fraction, default=SOLIDITY, metavar="FRACTION",
                       help="least share of its convex hull that a nucleus fills")
    group.add_argument("--field-um", type=cli.positive_float, metavar="UM",
                       help="side of an image in micrometres, which sets the sizes searched for "
                            f"(default: as the real dataset says, else {FIELD_UM:g}, an LC25000 "
                            "tile's)")
    group.add_argument("--nuclei-weights", type=Path, metavar="FILE",
                       help="find nuclei by this InstanSeg model (TorchScript: loading it runs its "
                            "code) and not by the rules of lungkit/nuclei/detect.py")
    group.add_argument("--device", default="auto", metavar="NAME",
                       help="where that model runs: auto, cpu, cuda or cuda:N")
    group = parser.add_argument_group("Workers")
    group.add_argument("--workers", type=cli.positive_int, default=1, metavar="N",
                       help="processes; the result does not depend on it")
    cli.add_common(parser, presets=PRESETS, seed=False, device=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
