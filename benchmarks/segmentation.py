#!/usr/bin/env python
"""Measure what unet_segment.py finds, beside the published recipe and, in tissue, beside the rules.

    python benchmarks/segmentation.py msd tissue thorax --recipes ours --msd H5 [--work DIR] \\
        | tee benchmarks/segmentation.txt

thorax  nodules of simulated chests: all slices of every scan, scored as volumes
msd     tumour patches of the Medical Segmentation Decathlon, --msd val_patches.h5 of its 2 mm
        patches (130 of 13 patients, ten of each in a row; needs h5py); five folds of patients
tissue  tumour of simulated tissue by its own truth, beside the tumour map of tumor_seg.py

Each recipe (without --recipes the published one too, which of the thorax takes hours) trains on the
same images, on one thread; ours with the options of OURS. Intervals are 95 % over patients of test:
patients drawn again 2000 times, one training, so that what another training would give is not in
them. --work keeps what is made, and resumes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

from lungkit.data.writer import DatasetWriter
from lungkit.run.output import Output

DRAWS = 2000
NOTHING = "the network finds nothing"  # how a training ends that says so of val or test
RECIPES = {"ours": [], "published": ["--recipe", "published"]}
PATIENTS, CHEST = 288, ["--image-size", "320", "--num-slices", "48", "--workers", "2"]
THORAX = ["--view", "slice", "--labels", "presence", "--field-mm", "320", "--image-size", "256",
          "--slices-per-nodule", "3", "--all-slices", "train", "val", "test", "--symmetries", "2",
          "--fold", "1/10"]
# of unet_segment.py: the demo preset's are for a minute
OURS = {"thorax": ["--steps", 10000, "--widths", 16, 32, 64, 128, "--batch-size", 12,
                   "--patch-size", 64, "--neighbours", 2, "--oversample", 0.4],
        "msd": ["--steps", 6000, "--widths", 24, 48, 96, 192], "tissue": ["--steps", 2000]}
FOLDS = 5
TISSUE_PX = 64


def run(*words: object) -> float | None:
    """Run a part of the project on one thread; its processor seconds, None: it finds NOTHING."""
    before = os.times()
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True,
                          text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    if NOTHING in done.stderr:
        return None
    if done.returncode:
        sys.exit(f"{words[0]} ended with {done.returncode}: {done.stderr[-600:]}")
    return sum(os.times()[2:4]) - sum(before[2:4])


# ------------------------------------------------------------------ figures

def pooled(of: dict) -> float:
    return float(2 * of["both"].sum() / max(1, of["true"].sum() + of["said"].sum()))


def mean(of: dict) -> float:
    return float(of["dice"][of["true"] > 0].mean())


def found(of: dict) -> float:
    return float(of["found"].sum() / max(1, of["lesions"].sum()))


def vain(of: dict) -> float:
    return float(of["false_positives"].mean())


FIGURES = {"Dice": mean, "pooled": pooled, "lesions found": found, "in vain an item": vain}


def interval(items: dict, figure: Callable) -> str:
    """A figure with its interval over groups; items: arrays of `read_items`."""
    rng, names = np.random.default_rng(0), np.unique(items["groups"])
    places = {name: np.flatnonzero(items["groups"] == name) for name in names}
    again = []
    for _ in range(DRAWS):
        index = np.concatenate([places[name] for name in rng.choice(names, len(names))])
        drawn = {key: values[index] for key, values in items.items()}
        if drawn["true"].any():
            again.append(figure(drawn))
    low, high = np.percentile(again, (2.5, 97.5))
    return f"{figure(items):.3f} ({low:.3f} to {high:.3f})"


def read_items(results: list[Path]) -> dict[str, np.ndarray]:
    """What records say of the items of real's test split, of all of `results` together."""
    parts = []
    for folder in results:
        with np.load(folder / "real/replicate_000/repeat_0000.npz") as arrays:
            split = "real" if "real_true" in arrays else "own"
            parts.append({key: arrays[f"{split}_{key}"] for key in
                          ("groups", "true", "said", "both", "lesions", "found",
                           "false_positives", "dice")})
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def show(name: str, items: dict) -> None:
    figures = "  ".join(f"{words} {interval(items, figure)}" for words, figure in FIGURES.items())
    print(f"  {name:10s}{figures}", flush=True)


def train(folder: Path, name: str, *more: object) -> tuple[Path | None, str]:
    """Train a recipe on folder/datasets/real; where its results are, and words about it.

    None where the network finds nothing, which has no results.
    """
    real, results = folder / "datasets/real", folder / name
    held, kept = results / "real/replicate_000/repeat_0000.json", folder / f"{name}.cpu_sec"
    if not held.exists():
        spent = run("unet_segment.py", "--data", real, "--real", real, "--results", results,
                    "--repeats", 1, "--device", "cpu", *RECIPES[name], *more)
        if spent is None:
            return None, NOTHING
        kept.write_text(f"{spent:.0f}")
    record = json.loads(held.read_text())
    spent = f", {kept.read_text()} CPU s" if kept.exists() else ""  # of a resumed one unknown
    return results, (f"threshold {record['threshold']:g}, least {record['least_voxels']}, Dice of "
                     f"val {record['dice_val']:.3f}{spent}")


def given(options, name: str, part: str) -> list:
    """Options of a recipe's training; those of the command line are of ours alone."""
    if name != "ours":
        return []
    return [*OURS[part], *options.options]


# ------------------------------------------------------------------ simulated chests

def thorax(work: Path, options) -> None:
    folder = work / "thorax"
    run("-m", "lungkit.phantom.thorax", "--output", folder / "sample", "--format", "msd",
        "--num-patients", PATIENTS, "--nodules-per-patient", 3, "--seed", 11, *CHEST)
    names = [path.name.split(".")[0] for path in (folder / "sample/Task06_Lung/imagesTr").iterdir()
             if path.name.startswith("lung")]
    (folder / "patients.csv").write_text("series,patient\n" + "".join(
        f"{name},{name[:8]}\n" for name in names))  # lung_0061 is a second scan of lung_006
    run("ct_seg.py", "--input", folder / "sample/Task06_Lung", "--patients",
        folder / "patients.csv", "--output", folder / "datasets/real", *THORAX)
    manifest = json.loads((folder / "datasets/real/dataset.json").read_text())
    counts = {split: sum(row.values()) for split, row in manifest["counts"].items()}
    print(f"thorax: slices of 256 px at 1.25 mm of {PATIENTS} patients, "
          + ", ".join(f"{split} {n}" for split, n in counts.items()))
    for name in options.recipes:
        results, words = train(folder, name, *given(options, name, "thorax"))
        if results is None:
            print(f"  {name}: {words}")
            continue
        items = read_items([results])
        print(f"  {name}: {len(items['true'])} volumes of {len(set(items['groups']))} patients, "
              f"{items['lesions'].sum()} lesions; {words}")
        show(name, items)


# ------------------------------------------------------------------ patches of the Decathlon

def write_dataset(path: Path, images: np.ndarray, masks: np.ndarray, groups: list[str],
                  splits: list[str], kind: str, **more: object) -> None:
    """A dataset of uint8 [N, S, S, C] and bool [N, S, S]; its classes: whether one shows any."""
    if (path / "dataset.json").exists():
        return
    with DatasetWriter(Output(path, "dataset.json", {"images": len(images)}), stage="benchmark",
                       channels=images.shape[3], classes=["healthy", kind],
                       image_size=images.shape[1]) as writer:
        for number, (image, mask, group, split) in enumerate(zip(images, masks, groups, splits)):
            writer.add(split, writer.classes[int(mask.any())], number, image, group=group,
                       masks={kind: mask * np.uint8(255)})
        writer.publish(parents=[], seed=0, **more)


def msd(work: Path, options) -> None:
    import h5py

    with h5py.File(options.msd) as held:
        images = np.rint(held["images"][:, 0] * 255).astype(np.uint8)[..., None]
        masks = held["labels"][:, 0] > 0.5
    patients = np.arange(len(images)) // 10
    print(f"msd: {len(images)} patches of 48 px at 2 mm of {patients[-1] + 1} patients, "
          f"{masks.any((1, 2)).sum()} with tumour; {FOLDS} folds by patient")
    order = np.random.default_rng(0).permutation(patients[-1] + 1)
    for name in options.recipes:
        results, spent = [], []
        for fold in range(FOLDS):
            folder, tested = work / f"msd{fold}", order[fold::FOLDS]
            chosen = order[(fold + 1) % FOLDS::FOLDS]
            write_dataset(folder / "datasets/real", images, masks,
                          [f"p{each}" for each in patients],
                          ["test" if each in tested else "val" if each in chosen else "train"
                           for each in patients], "tumour", modality="ct", um_per_px=2000.0)
            where, words = train(folder, name, *given(options, name, "msd"))
            results.append(where)
            spent.append(words)
        print(f"  {name}: {'; '.join(spent)}")
        if found := list(filter(None, results)):
            show(name, read_items(found))


# ------------------------------------------------------------------ tissue

def tissue(work: Path, options) -> None:
    import cv2

    from lungkit.histology import tumour_map
    from lungkit.nuclei.detect import detect_nuclei
    from lungkit.phantom.paint import draw_tile
    from lungkit.phantom.tissue import FIELD_UM

    def small(mask):
        return cv2.resize(mask.astype(np.float32), (TISSUE_PX,) * 2,
                          interpolation=cv2.INTER_AREA) >= 0.5

    folder = work / "tissue"
    images, masks, ruled, groups, splits = [], [], [], [], []
    for seed, split, number in ((500, "train", 40), (501, "val", 10), (900, "test", 30)):
        for patient in range(number):
            for label in (("lung_aca", "lung_scc")[patient % 2], "lung_n"):
                tile = draw_tile(label, patient=patient, index=0, seed=seed)
                images.append(cv2.resize(tile.image, (TISSUE_PX,) * 2,
                                         interpolation=cv2.INTER_AREA))
                masks.append(small(tile.tumour))
                groups.append(f"{seed}-{patient}")
                splits.append(split)
                if split == "test":
                    nuclei = detect_nuclei(tile.image, field_um=FIELD_UM)
                    ruled.append(small(tumour_map.tumour_mask(tile.image, nuclei,
                                                             field_um=FIELD_UM)))
    masks = np.array(masks)
    write_dataset(folder / "datasets/real", np.array(images), masks, groups, splits, "tumour",
                  modality="he", um_per_px=FIELD_UM / TISSUE_PX)
    print(f"tissue: tiles of 64 px of {FIELD_UM:g} um, " + ", ".join(
        f"{split} {splits.count(split)}" for split in ("train", "val", "test")))
    from lungkit.data.segment_scores import score_item

    tested = [number for number, split in enumerate(splits) if split == "test"]
    scored = [score_item(said, masks[number], None) for said, number in zip(ruled, tested)]
    show("rules", {"groups": np.array([groups[number] for number in tested]),
                   **{key: np.array([each[key] for each in scored]) for key in scored[0]}})
    for name in options.recipes:
        results, words = train(folder, name, *given(options, name, "tissue"))
        print(f"  {name}: {words}")
        if results is not None:
            show(name, read_items([results]))


PARTS = {"thorax": thorax, "msd": msd, "tissue": tissue}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=list(PARTS))
    parser.add_argument("--work", type=Path, metavar="DIR")
    parser.add_argument("--msd", type=Path, metavar="H5", help="val_patches.h5")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], metavar="OPTION",
                        help="the last: options of unet_segment.py, of ours, after those of OURS")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        work = options.work or Path(made)
        for part in options.parts:
            PARTS[part](work, options)


if __name__ == "__main__":
    main()
