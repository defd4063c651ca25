"""Draw simulated H&E lung tissue in three classes, with exact ground truth.

Used as the embedded sample where no images are at hand, to pretrain the embedded base model, and
to test what measures nuclei. `lungkit.phantom.tissue` lays a tile out, `.paint` gives it stain
concentrations, and those become light by the Beer-Lambert law, I = I0 exp(-(H h + E e + R r)),
with stain vectors, staining strength, light, focus and noise of the patient's slide (Ruifrok and
Johnston 2001, Anal Quant Cytol Histol 23:291). So colour deconvolution means on these tiles what
it means on slides.

Writes <output>/
  images/<class>/<patient>_<number>.png     RGB
  groups.csv                                file_name, label, group (the patient)
  truth/nuclei/<class>/<same>.png           uint16 labels, 0 background
  truth/tissue/<class>/<same>.png           0 air, 255 tissue
  truth/tumour/<class>/<same>.png           255 tumour epithelium
  truth/centroids.csv                       file_name, centroid_x_px, centroid_y_px
  sample.json                               options and every file with its SHA-256
--fluorescence adds
  images_fluorescence/<class>/<same>.ome.tif   the same tissue and truth in DAPI, panCK, CD45 and
                                            autofluorescence, uint16 (lungkit.phantom.fluorescence)
--siblings adds
  images/<class>/<same>_s1.jpeg ...         augmented copies (see lungkit.phantom.augment), also in
                                            groups.csv; they have no truth of their own
  truth/siblings.csv                        file_name, sibling_of (an original names itself),
                                            turn_deg, flip_x, flip_y, scale, jpeg_quality

The parameters are in lungkit.phantom.morphology and, as a table, in docs/simulated_tissue.md.

A patient has one disease and gives tiles of it and of lung without tumour, as a resection does, so
patients span classes and the stain of a patient tells nothing about the class. The directory
appears complete or not at all. Running the same command again finds it complete, or begins a killed
run anew: a tile takes about 0.1 s. The bytes do not depend on the number of processes (--workers).

Exit status: 0 complete, 1 bad data or failed run, 2 bad options, 75 stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from pathlib import Path

import numpy as np  # OpenCV is imported where it is used: --help must not wait for it

from lungkit.phantom.paint import CLASSES, SIBLING, draw_painted, photograph
from lungkit.run import cli, faults, files
from lungkit.run.output import Output
from lungkit.run.workers import mapper

SAMPLE_STREAM = 1_000_000  # seeds of samples start here: the base model has seen lower ones
# ours: a test split of a fifth holds 12 or 13 patients of each disease and 25 without, enough to
# speak of new patients, and a class has as many tiles as any other
PATIENTS, TILES_PER_PATIENT = 126, 3


def plan_sample(num_patients, tiles_per_patient):
    """List (label, patient, index) of a sample: a third of a patient's tiles are without tumour."""
    without = max(1, tiles_per_patient // 3)
    plan = []
    for patient in range(num_patients):
        disease = "lung_scc" if patient % 2 else "lung_aca"
        plan += [("lung_n", patient, index) for index in range(without)]
        plan += [(disease, patient, index) for index in range(tiles_per_patient - without)]
    return plan


def _write_tile(item, *, work_dir: Path, seed: int, image_size: int, fluorescence: bool,
                z_planes: int, siblings: int) -> dict:
    """Write all files of one tile of the plan: hashes by path, and lines of the tables."""
    import cv2

    label, patient, index = item
    group = f"patient{patient:03d}"
    stem = f"{label}/{group}_{index:04d}"
    name = f"{stem}.png"
    tile, painted = draw_painted(label, patient, index, seed, image_size)
    contents = {path: cv2.imencode(".png", pixels)[1].tobytes() for path, pixels in (
        (f"images/{name}", tile.image[..., ::-1]),
        (f"truth/nuclei/{name}", tile.nuclei.astype(np.uint16)),
        (f"truth/tissue/{name}", tile.tissue.astype(np.uint8) * 255),
        (f"truth/tumour/{name}", tile.tumour.astype(np.uint8) * 255))}
    if fluorescence:
        from lungkit.phantom.fluorescence import encode_ome_tiff
        from lungkit.phantom.tissue import FIELD_UM

        planes = photograph(painted, label, patient, index, seed, image_size, z_planes)
        contents[f"images_fluorescence/{stem}.ome.tif"] = encode_ome_tiff(
            planes, f"{seed}/{stem}", FIELD_UM)
    groups = [f"{name},{label},{group}"]
    related = [f"{name},{name},0,False,False,1,"]
    for number in range(1, siblings + 1):
        from lungkit.phantom.augment import draw_change, make_sibling

        rng = np.random.default_rng(
            [seed, patient, CLASSES.index(label), index, SIBLING, number])
        change, sibling = draw_change(rng), f"{stem}_s{number}.jpeg"
        contents[f"images/{sibling}"] = make_sibling(tile.image, change)
        groups.append(f"{sibling},{label},{group}")
        related.append(",".join(map(str, (sibling, name, *vars(change).values()))))
    for path, content in contents.items():
        files.write_bytes(work_dir / path, content)
    return {"hashes": {path: files.sha256(content) for path, content in contents.items()},
            "groups.csv": groups, "truth/siblings.csv": related,
            "truth/centroids.csv": [f"{name},{x:.3f},{y:.3f}" for x, y in tile.centroids]}


def write_sample(output_dir: Path, *, num_patients: int = PATIENTS,
                 tiles_per_patient: int = TILES_PER_PATIENT,
                 image_size: int = 224, seed: int = 0, fluorescence: bool = False,
                 z_planes: int = 1, siblings: int = 0, workers: int = 1) -> None:
    """Write a sample to output_dir (see the module's text), or find it complete.

    Raises faults.BadOptions if output_dir was made with other options.
    """
    if z_planes > 1 and not fluorescence:
        raise faults.BadOptions("--z-planes are focal planes of a fluorescence stack: give "
                             "--fluorescence too")
    options = {"num_patients": num_patients, "tiles_per_patient": tiles_per_patient,
               "image_size": image_size, "seed": seed}
    if fluorescence:  # what is not asked for is not named, so that older samples stay complete
        options |= {"fluorescence": True, "z_planes": z_planes}
    if siblings:
        options["siblings"] = siblings
    output = Output(output_dir, "sample.json", options)
    if output.is_complete():
        print(f"{output_dir}: already complete", file=sys.stderr)
        return
    plan = plan_sample(num_patients, tiles_per_patient)
    headers = {"groups.csv": "file_name,label,group",
               "truth/centroids.csv": "file_name,centroid_x_px,centroid_y_px"}
    if siblings:
        headers["truth/siblings.csv"] = ("file_name,sibling_of,turn_deg,flip_x,flip_y,scale,"
                                         "jpeg_quality")
    with output.writing() as work_dir, contextlib.ExitStack() as tables:
        write_tile = functools.partial(
            _write_tile, work_dir=work_dir, seed=SAMPLE_STREAM + seed, image_size=image_size,
            fluorescence=fluorescence, z_planes=z_planes, siblings=siblings)
        hashes, opened = {}, {}
        for path, header in headers.items():
            hidden = tables.enter_context(files.atomic_path(work_dir / path))
            opened[path] = tables.enter_context(open(hidden, "w", encoding="utf-8"))
            opened[path].write(header + "\n")
        with mapper(workers) as mapped:
            for written in mapped(write_tile, plan):
                faults.check_stop()
                hashes |= written["hashes"]
                for path, table in opened.items():
                    table.writelines(line + "\n" for line in written[path])
        tables.close()
        hashes |= {path: files.sha256_file(work_dir / path) for path in headers}
        output.publish({"name": "phantom", "num_images": len(plan) * (1 + siblings),
                        "files": hashes})
    print(f"{output_dir}: {len(plan)} tiles of {num_patients} patients", file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.stage_parser("lungkit.phantom", __doc__)
    parser.add_argument("--output", type=cli.directory, required=True, metavar="DIR",
                        dest="output_dir", help="directory to make")
    parser.add_argument("--num-patients", type=cli.positive_int, default=PATIENTS, metavar="INT",
                        help="patients; even numbers have adenocarcinoma, odd ones squamous")
    parser.add_argument("--tiles-per-patient", type=cli.positive_int, default=TILES_PER_PATIENT,
                        metavar="INT", help="tiles of each, a third of them without tumour")
    parser.add_argument("--image-size", type=cli.positive_int, default=224, metavar="PX",
                        help="side of a tile, which always covers 180 um")
    parser.add_argument("--seed", type=cli.non_negative_int, default=0, metavar="INT",
                        help="seed of every random draw")
    parser.add_argument("--fluorescence", action=argparse.BooleanOptionalAction, default=False,
                        help="also write each tile as a multi-channel fluorescence OME-TIFF")
    parser.add_argument("--z-planes", type=cli.positive_int, default=1, metavar="INT",
                        help="focal planes of a fluorescence image, 1 um apart (default 1)")
    parser.add_argument("--siblings", type=cli.non_negative_int, default=0, metavar="INT",
                        help="augmented copies of each tile (default 0)")
    parser.add_argument("--workers", type=cli.positive_int, default=1, metavar="INT",
                        help="processes that draw (default 1); no byte depends on it")
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), write_sample, argv)


if __name__ == "__main__":
    sys.exit(main())
