"""How well the tumour map finds simulated tumour, beside doing nothing and haematoxylin alone.

Truth is that of `lungkit.phantom`; patients and seeds of the scores are none of those that weights
and thresholds were chosen on. Dice is pooled over the pixels of a class. Because most tissue of a
tumour tile is tumour, calling all tissue tumour has a high Dice there and tells nothing: so the
balanced accuracy of tissue pixels (0.5 for any constant answer) and the Dice over all three classes
stand beside it.

    python benchmarks/tumour_map.py [--patients 30] [--fit] [--overlays DIR [--lc25000 DIR]]

--fit repeats the logistic regression behind the rule (needs scikit-learn). --overlays writes
pictures to look at: the map green, the truth yellow.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lungkit.histology import tumour_map
from lungkit.histology.background import background_light, balance_white, otsu, tissue_mask
from lungkit.nuclei.detect import detect_nuclei
from lungkit.phantom.paint import CLASSES, draw_tile
from lungkit.phantom.tissue import FIELD_UM
from lungkit.run.system_files import listed

FIT_SEEDS, SCORE_SEEDS = (500, 501), (900,)
TUMOUR = ("lung_aca", "lung_scc")


def draw_tiles(num_patients: int, seeds: tuple[int, ...], per_patient: int = 2):
    """(class, Tile, nuclei) of every patient, its disease and its tissue without tumour."""
    for seed in seeds:
        for patient in range(num_patients):
            for label in (TUMOUR[patient % 2], "lung_n"):
                for index in range(per_patient):
                    tile = draw_tile(label, patient=patient, index=index, seed=seed)
                    yield label, tile, detect_nuclei(tile.image, field_um=FIELD_UM)


def all_tissue(image, nuclei):
    return tissue_mask(balance_white(image, background_light(image)))


def haematoxylin_only(image, nuclei):
    """Otsu's threshold of smoothed haematoxylin in the tissue of this tile."""
    image = balance_white(image, background_light(image))
    tissue = tissue_mask(image)
    px_per_um = image.shape[0] / FIELD_UM
    stain = tumour_map._blur(tumour_map._haematoxylin(image), tumour_map.CROWD_UM * px_per_um)
    if not tissue.any():
        return tissue
    top = stain[tissue].max()
    return tissue & (stain > otsu((stain[tissue] / top * 255).astype(np.uint8)) / 255 * top)


def the_map(image, nuclei):
    return tumour_map.tumour_mask(image, nuclei, field_um=FIELD_UM)


def nuclei_only(image, nuclei):
    """The rule without the haematoxylin of the cytoplasm: its mean, 0.20, everywhere."""
    measured, tissue, px_per_um = tumour_map.measure(image, nuclei, field_um=FIELD_UM)
    weights = tumour_map.WEIGHTS
    score = (weights["size"] * measured["size"] + weights["crowd"] * measured["crowd"]
             + weights["cytoplasm"] * 0.20 + tumour_map.OFFSET)
    return tumour_map.tidy((score > 0) & tissue, tissue, px_per_um)


METHODS = {"all tissue": all_tissue, "haematoxylin only": haematoxylin_only,
           "nuclei only": nuclei_only, "the map": the_map}


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    return 2 * np.count_nonzero(found & truth) / max(1, found.sum() + truth.sum())


def score(tiles: list, method) -> dict[str, float]:
    """Dice per tumour class and over all; balanced accuracy; false share of benign tissue."""
    masks = [(label, method(tile.image, nuclei), tile) for label, tile, nuclei in tiles]
    row = {}
    for name, labels in [(label, (label,)) for label in TUMOUR] + [("all classes", CLASSES)]:
        chosen = [(mask, tile) for label, mask, tile in masks if label in labels]
        found, truth, tissue = (np.stack(values) for values in zip(
            *((mask, tile.tumour, tile.tissue) for mask, tile in chosen)))
        row[f"Dice {name}"] = dice(found, truth)
        if len(labels) == 1:
            row[f"balanced {name}"] = (found[truth].mean() + 1 - found[tissue & ~truth].mean()) / 2
    benign = [(mask, tile.tissue) for label, mask, tile in masks if label == "lung_n"]
    row["false in benign"] = (sum((mask & tissue).sum() for mask, tissue in benign)
                              / sum(tissue.sum() for _, tissue in benign))
    return row


def print_scores(tiles: list) -> None:
    print(f"\n{len(tiles)} tiles of 224 px, 180 um, seeds {SCORE_SEEDS}")
    for name, method in METHODS.items():
        row = score(tiles, method)
        print(f"{name:18s} " + "  ".join(f"{key} {value:.3f}" for key, value in row.items()))
    share = {label: [tumour_map.tumour_share(the_map(tile.image, nuclei), tile.tissue)
                     for own, tile, nuclei in tiles if own == label] for label in CLASSES}
    for label, values in share.items():
        kept = np.mean([value >= tumour_map.MIN_TUMOUR for value in values])
        print(f"{label:9s} tumour share of tissue, median {statistics.median(values):.2f}; "
              f"tiles with at least {tumour_map.MIN_TUMOUR:g}: {kept:.0%}")
    start = time.perf_counter()
    for _, tile, nuclei in tiles[:40]:
        the_map(tile.image, nuclei)
    print(f"{(time.perf_counter() - start) / len(tiles[:40]) * 1e3:.1f} ms a tile, nuclei given")


def print_fit(tiles: list) -> None:
    """The logistic regression whose rounded weights are the rule, every fifth pixel each way."""
    from sklearn.linear_model import LogisticRegression

    values, truth = [], []
    for _, tile, nuclei in tiles:
        measured, tissue, _ = tumour_map.measure(tile.image, nuclei, field_um=FIELD_UM)
        chosen = tissue[::5, ::5]
        values.append(np.stack([v[::5, ::5][chosen] for v in measured.values()], axis=1))
        truth.append(tile.tumour[::5, ::5][chosen])
    fit = LogisticRegression(C=100, max_iter=1000).fit(np.concatenate(values),
                                                       np.concatenate(truth))
    weights = dict(zip(tumour_map.WEIGHTS, (round(float(w), 2) for w in fit.coef_[0])))
    print(f"fit on {len(tiles)} tiles, seeds {FIT_SEEDS}: {weights}, offset "
          f"{fit.intercept_[0]:.2f}; the rule: {tumour_map.WEIGHTS}, {tumour_map.OFFSET}")


def overlay(image, mask, truth=None):
    picture = image.copy()
    for region, colour in ((truth, (255, 230, 0)), (mask, (0, 220, 0))):
        if region is not None:
            outline, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_LIST,
                                          cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(picture, outline, -1, colour, 2)
    return picture


def write_overlays(tiles: list, output_dir: Path, lc25000: Path | None) -> None:
    """Sheets of eight tiles a class; of LC25000, also the map's share of tissue by class."""
    output_dir.mkdir(parents=True, exist_ok=True)
    rows = []
    for label in CLASSES:
        own = [(tile, nuclei) for other, tile, nuclei in tiles if other == label]
        rows.append(np.hstack([overlay(tile.image, the_map(tile.image, nuclei), tile.tumour)
                               for tile, nuclei in own[::max(1, len(own) // 8)][:8]]))
    cv2.imwrite(str(output_dir / "simulated.png"), np.vstack(rows)[..., ::-1])
    if lc25000 is None:
        return
    rows = []
    print()
    for label in CLASSES:
        paths = listed(lc25000 / "lung_image_sets" / label)[7::25][:30]
        images = [cv2.imread(str(path))[..., ::-1].copy() for path in paths]
        masks = [tumour_map.tumour_mask(image, field_um=FIELD_UM) for image in images]
        shares = [tumour_map.tumour_share(mask, all_tissue(image, None))
                  for image, mask in zip(images, masks)]
        quantiles = np.percentile(shares, [10, 50, 90])
        enough = np.mean(np.array(shares) >= tumour_map.MIN_TUMOUR)
        print(f"LC25000 {label:9s} {len(shares)} images, tumour share of tissue: 10 % "
              f"{quantiles[0]:.2f}, median {quantiles[1]:.2f}, 90 % {quantiles[2]:.2f}; at least "
              f"{tumour_map.MIN_TUMOUR:g}: {enough:.0%}")
        rows.append(np.hstack([overlay(i, m) for i, m in zip(images[::4], masks[::4])][:8]))
    cv2.imwrite(str(output_dir / "lc25000.png"), np.vstack(rows)[..., ::-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=30)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--overlays", type=Path)
    parser.add_argument("--lc25000", type=Path)
    options = parser.parse_args()
    if options.fit:
        print_fit(list(draw_tiles(options.patients, FIT_SEEDS)))
    tiles = list(draw_tiles(options.patients, SCORE_SEEDS))
    print_scores(tiles)
    if options.overlays:
        write_overlays(tiles, options.overlays, options.lc25000)


if __name__ == "__main__":
    main()
