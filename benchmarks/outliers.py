#!/usr/bin/env python
"""How often ordinary images of LC25000 are flagged as outliers, and which planted ones are found.

Reads   IMAGES, a folder of lung_aca, lung_n and lung_scc, and GROUPS, file_name,label,group
Prints  of images of groups that the calibration has not seen the share with p below 0.01 and 0.05,
        by measure; of images planted one at a time into a class the share flagged, by kind

One image of each of NUM_GROUPS source tiles a class, made smaller to --size first.

    OMP_NUM_THREADS=1 python benchmarks/outliers.py IMAGES GROUPS > benchmarks/outliers.txt
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import cv2
import numpy as np
from features_lc25000 import read

from lungkit.audit import outliers
from lungkit.learn.features import Extractor

NUM_GROUPS, PLANTED, HALVES, SHARE = 150, 20, 20, 0.01
ANY = "any, adjusted"


def spoilt(image: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What an image became by accident, of each kind."""
    size = len(image)
    return {"noise": rng.integers(0, 256, image.shape, np.uint8),
            "blurred (sigma 2 of 64 px)": cv2.GaussianBlur(image, (0, 0), size / 32),
            "inverted": 255 - image,
            "red and blue exchanged": image[..., ::-1].copy(),
            "at 0.6 of its light": (0.6 * image).astype(np.uint8),
            "half of it blank": np.where(np.arange(size)[:, None, None] < size // 2, image, 240)
            .astype(np.uint8)}


def images_of(extractor: Extractor, images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return extractor.features(images), np.stack([outliers.levels(image) for image in images])


def fresh_shares(classes: dict[str, outliers.Images]) -> dict[str, list[float]]:
    """Shares of fresh images with p below 0.01 and 0.05, calibrated on the other half's groups."""
    found = {name: [] for name in (*outliers.MEASURES, ANY)}
    for seed in range(HALVES):
        rng = np.random.default_rng(seed)
        halves = {label: rng.permutation(len(each.groups)) for label, each in classes.items()}
        known = {label: take(each, halves[label][::2]) for label, each in classes.items()}
        for label, each in classes.items():
            new = take(each, halves[label][1::2])
            p_of = {name: outliers.usual(of_known).p(of_new)
                    for name, (of_known, of_new) in measured(label, known, new).items()}
            p_of[ANY] = len(p_of) * np.min(list(p_of.values()), axis=0)
            for name, p in p_of.items():
                found[name].append([(p < 0.01).mean(), (p < 0.05).mean()])
    return {name: np.mean(each, 0).tolist() for name, each in found.items()}


def measured(label: str, known: dict[str, outliers.Images], new: outliers.Images) -> dict:
    """{measure: (numbers of the known images, of the new ones)}."""
    own, others = known[label], [each for name, each in known.items() if name != label]
    spread = np.maximum(own.levels.std(0), 1.0)
    found = {}
    for place, images in enumerate((own, new)):
        away = outliers.apart_from(images.features, images.groups, own.features, own.groups)
        nearer = np.min([outliers.apart_from(images.features, images.groups, each.features,
                                             each.groups).distance for each in others], axis=0)
        light = outliers.apart_from(images.levels / spread, images.groups, own.levels / spread,
                                    own.groups)
        for name, values in zip(outliers.MEASURES, (away.distance, light.distance,
                                                    away.distance / nearer)):
            found.setdefault(name, [None, None])[place] = values
    return found


def take(images: outliers.Images, places) -> outliers.Images:
    return outliers.Images(*(each[places] for each in vars(images).values()))


def with_one_more(images: outliers.Images, features, levels) -> outliers.Images:
    return outliers.Images(np.r_[images.features, features[None]],
                           np.r_[images.levels, levels[None]],
                           np.append(images.groups, "planted"))


def found_share(label: str, classes: dict, features: np.ndarray, levels: np.ndarray) -> float:
    """The share flagged of images planted one at a time among those of a class."""
    return float(np.mean([
        outliers.judge(label, {**classes, label: with_one_more(classes[label], *each)}).p[-1]
        < SHARE for each in zip(features, levels)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("groups", type=Path)
    parser.add_argument("--size", type=int, default=224, metavar="PX")
    options = parser.parse_args()
    images, labels, groups = read(options.images, options.groups, 1, options.size)
    extractor, rng, classes, planted = Extractor(), np.random.default_rng(0), {}, {}
    for label in np.unique(labels):
        places = rng.permutation(np.flatnonzero(labels == label))
        held, places = places[:PLANTED], places[PLANTED:PLANTED + NUM_GROUPS]
        classes[label] = outliers.Images(*images_of(extractor, list(images[places])),
                                         groups[places])
        kinds: dict[str, list] = {"as it is": [images[i] for i in held]}
        for i in held:
            for kind, image in spoilt(images[i], rng).items():
                kinds.setdefault(kind, []).append(image)
        planted[label] = {kind: images_of(extractor, each) for kind, each in kinds.items()}
    print(f"{NUM_GROUPS} images of as many groups a class, {options.size} px, "
          f"{len(classes)} classes; {HALVES} halves; planted one at a time, {PLANTED} of a kind "
          "and class")
    print("\nfresh ordinary images with     p < 0.01  p < 0.05")
    for name, (one, five) in fresh_shares(classes).items():
        print(f"  {name:<28} {one:8.4f}  {five:8.4f}")
    print(f"\nplanted, flagged at {SHARE:g} (share)  " + "  ".join(classes))
    for kind in planted[label]:
        row = [found_share(label, classes, *planted[label][kind]) for label in classes]
        print(f"  {kind:<28} " + "  ".join(f"{each:8.2f}" for each in row))
    for other in classes:
        row = [found_share(label, classes, *planted[other]["as it is"]) if other != label
               else float("nan") for label in classes]
        print(f"  {'of ' + other:<28} " + "  ".join(f"{each:8.2f}" for each in row))


if __name__ == "__main__":
    main()
