"""Are copies of training images found, named, and fresh images left alone? Three searches compared.

  python benchmarks/memorisation.py                       simulated tissue
  LC25000=DIR python benchmarks/memorisation.py           real tissue, too (DIR holds groups.csv)
  CT_DATA=DIR python benchmarks/memorisation.py           crops of CT, too (DIR/lidc_crops)

before    colour thumbnails of 8 px, half way from the 99th percentile of other groups to identity,
          and registration with the 4 training images that share most corner features
features  the 4 nearest by EfficientNet-Lite0 (cosine of standardised features, all classes),
          verified by the same registration; as many candidates at as many registrations
audit     lungkit.audit.memorised as it is
named     of the audit: every original that the image is made of
Half of the images are the training images, N of them changed; fresh images are of other groups.
Every rate with its 95 % Wilson interval. With --membership instead: the AUROC by which the N
training images are told from fresh ones, of lungkit.audit.fidelity, with its 95 % interval.
The last output of both: benchmarks/memorisation.txt.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from leaks import CHANGES, rate, read_lc25000, simulate  # noqa: E402

from controls_seg import photocopy  # noqa: E402
from lungkit.audit import fidelity  # noqa: E402
from lungkit.audit.leaks import agreement_of  # noqa: E402
from lungkit.audit.memorised import PERCENTILE, Audit, half_way  # noqa: E402
from lungkit.audit.registration import register  # noqa: E402
from lungkit.audit.signature import describe  # noqa: E402
from lungkit.data.orientations import orient  # noqa: E402
from lungkit.data.png import three_channels  # noqa: E402
from lungkit.learn.features import Extractor  # noqa: E402

SIZE = 64
TISSUE = 600      # simulated tiles
CANDIDATES = 4    # as many as lungkit.audit.copies registers


def read_lidc(root: Path) -> list[np.ndarray]:
    """A crop of every patient, of SIZE px."""
    first: dict[str, str] = {}
    with open(root / "manifest.csv", encoding="utf-8") as table:
        for row in csv.DictReader(table):
            first.setdefault(row["patient_id"], row["file"])
    crops = (cv2.imread(str(root / "images" / name), cv2.IMREAD_GRAYSCALE)
             for name in first.values())
    return [cv2.resize(crop, (SIZE, SIZE), interpolation=cv2.INTER_AREA)[..., None]
            for crop in crops]



# ------------------------------------------------------------------ changes of n images of `train`

def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), sigma).reshape(image.shape)


def blends(train: list[np.ndarray], others: list[np.ndarray], n: int, share: float
           ) -> list[np.ndarray]:
    return [np.uint8(np.rint(share * train[i] + (1 - share) * others[i].astype(float)))
            for i in range(n)]


def changed(train: list[np.ndarray], fresh: list[np.ndarray], n: int, symmetries: int
            ) -> dict[str, tuple[list[np.ndarray], Callable[[int], set[int]]]]:
    """{what: (images, numbers of the training images that image i is made of)}."""
    rng, grey = np.random.default_rng(0), train[0].shape[2] == 1
    known = CHANGES if not grey else {
        what: change for what, change in CHANGES.items()
        if what not in ("hue + 10", "re-stained", "quarter turn, mirrored")}
    one: dict[str, Callable] = {"as it is": lambda image: image, **known,
                                "photocopy": lambda image: photocopy(image, rng, symmetries),
                                "blur of 1.5 px": lambda image: blur(image, 1.5),
                                "blur of 2.5 px": lambda image: blur(image, 2.5)}
    made = {what: ([as_image(change(image), image.shape) for image in train[:n]],
                   lambda i: {i}) for what, change in one.items()}
    partner = [(i + len(train) // 2) % len(train) for i in range(n)]
    others = [train[j] for j in partner]
    for share in (0.5, 0.7):
        made[f"blend {100 * share:.0f}/{100 - 100 * share:.0f} of two"] = (
            blends(train, others, n, share), lambda i: {i, partner[i]})
    made["blend 50/50 with a fresh one"] = blends(train, fresh, n, 0.5), lambda i: {i}
    return made


def as_image(changed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.ascontiguousarray(changed if changed.shape == shape else changed.reshape(shape)
                                if changed.ndim == 2 else changed[..., :1])


# ------------------------------------------------------------------ the searches

class Before:
    """What the audit was: colour thumbnails, and the registration that it still has."""

    def __init__(self, train: list[np.ndarray], symmetries: int) -> None:
        self.turned = [self.thumbnails(orient(np.stack(train), which, symmetries, axes=(1, 2)))
                       for which in range(symmetries)]
        likeness = self.correlate(train, np.eye(len(train), dtype=bool))
        self.threshold = (np.percentile(likeness, PERCENTILE) + 1) / 2

    def thumbnails(self, images) -> np.ndarray:
        flat = np.stack([cv2.resize(image, (8, 8), interpolation=cv2.INTER_AREA).ravel()
                         for image in images]).astype(np.float32)
        flat -= flat.mean(1, keepdims=True)
        return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)

    def correlate(self, images: list[np.ndarray], apart: np.ndarray | None = None) -> np.ndarray:
        asked, best = self.thumbnails(images), np.full(len(images), -1.0)
        for turned in self.turned:
            found = asked @ turned.T
            if apart is not None:
                found[apart] = -1
            best = np.maximum(best, found.max(1))
        return best


class ByFeatures:
    """The nearest by features, and which of them register."""

    def __init__(self, train: list[np.ndarray], signatures: list, least: float) -> None:
        self.extractor = Extractor()
        found = self.extractor.features(train)
        self.mean, self.deviation = found.mean(0), found.std(0) + 1e-6
        self.train, self.signatures, self.least = self.standard(found), signatures, least
        between = self.train @ self.train.T
        np.fill_diagonal(between, -1)
        self.threshold = half_way(between.max(1))

    def standard(self, features: np.ndarray) -> np.ndarray:
        even = (features - self.mean) / self.deviation
        return even / np.linalg.norm(even, axis=1, keepdims=True)

    def flags(self, images: list[np.ndarray]) -> np.ndarray:
        likeness = self.standard(self.extractor.features(images)) @ self.train.T
        found = []
        for image, row in zip(images, likeness, strict=True):
            signature = describe(three_channels(image))
            fits = [register(signature, self.signatures[j])
                    for j in np.argsort(-row)[:CANDIDATES]]
            found.append(row.max() > self.threshold or any(
                fit.are_copies and fit.agreement >= self.least for fit in fits))
        return np.array(found)


def dataset_of(train: list[np.ndarray], symmetries: int, modality: str) -> SimpleNamespace:
    """What the audit reads of a dataset, of training images without groups."""
    rows = [SimpleNamespace(group="", file_name=str(i)) for i in range(len(train))]
    return SimpleNamespace(load=lambda split: (np.stack(train), None), symmetries=symmetries,
                           select=lambda split: rows, modality=modality, manifest={})


def measure(name: str, images: list[np.ndarray], n: int, *, symmetries: int = 8,
            modality: str = "he") -> None:
    half = len(images) // 2
    train, fresh, n = images[:half], images[half:2 * half], min(n, half)
    real = dataset_of(train, symmetries, modality)
    audit, before = Audit(real), Before(train, symmetries)
    features = ByFeatures(train, audit.signatures, agreement_of(real))
    print(f"\n{name}: {half} training images, {n} of each kind\n"
          f"{'%':29}{'before':>20}{'features':>20}{'audit':>20}{'named':>20}", flush=True)

    def line(what: str, asked: list[np.ndarray],
             made_of: Callable[[int], set[int]] | None = None) -> None:
        registered = np.array([each is not None for each in
                               audit._registered([describe(three_channels(i)) for i in asked])])
        matches = audit.matches(asked)
        columns = [(before.correlate(asked) > before.threshold) | registered,
                   features.flags(asked), [match.how != "" for match in matches]]
        if made_of:
            columns.append([match.how != "" and {*map(int, match.of)} >= made_of(i)
                            for i, match in enumerate(matches)])
        print(f"{what:29}" + "".join(f"{rate(int(np.sum(each)), len(asked)):>20}"
                                     for each in columns), flush=True)

    for what, (asked, made_of) in changed(train, fresh, n, symmetries).items():
        line(what, asked, made_of)
    line("fresh", fresh)
    line("fresh, blurred by 2.5 px", [blur(image, 2.5) for image in fresh[:n]])
    found = [match.of for match in audit.matches(fresh[1:] + [train[0]]) if match.how]
    print(f"one exact copy among {half}: {'named' if ('0',) in found else 'MISSED'}, "
          f"{len(found) - 1} others flagged")
    start = time.process_time()
    audit.matches(fresh[:n])
    print(f"{(time.process_time() - start) / n:.3f} s of one core an image", flush=True)


def measure_membership(name: str, images: list[np.ndarray], n: int, *, symmetries: int = 8,
                       modality: str = "he") -> None:
    """All as one class, every image a group of its own."""
    half, extractor = len(images) // 2, Extractor()
    train, fresh, n = images[:half], images[half:2 * half], min(n, half)
    made = changed(train, fresh, n, symmetries)
    features, groups = extractor.features(train + fresh), np.arange(2 * half).astype(str)
    print(f"\n{name}: {n} training images, fresh ones; nearest of {n}", flush=True)

    def told(generated: np.ndarray, members: slice, others: slice) -> str:
        said = fidelity.membership(*({"all": (fidelity.nearest(generated, features[side]),
                                              groups[side])} for side in (members, others)))
        return f"{said['auroc']:.3f} ({said['low']:.3f}-{said['high']:.3f})"

    for what in ("as it is", "photocopy", "blend 50/50 of two"):
        print(f"{what:29}{told(extractor.features(made[what][0]), slice(n), slice(half, None))}",
              flush=True)
    print(f"{'independent draw':29}"
          f"{told(features[half:half + n], slice(n), slice(half + n, None))}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100, metavar="IMAGES", help="of each kind")
    parser.add_argument("--membership", action="store_true", help="the membership test alone")
    args = parser.parse_args()
    measure_one = measure_membership if args.membership else measure
    cv2.setNumThreads(1)
    if os.environ.get("LC25000"):
        measure_one(f"LC25000, one image a source tile, {SIZE} px",
                    read_lc25000(Path(os.environ["LC25000"]), SIZE), args.n)
    measure_one(f"Simulated tissue, {SIZE} px",
                [simulate(number, SIZE) for number in range(TISSUE)], args.n)
    if os.environ.get("CT_DATA"):
        measure_one(f"Crops of LIDC, one a patient, {SIZE} px",
                    read_lidc(Path(os.environ["CT_DATA"]) / "lidc_crops"), args.n, symmetries=2,
                    modality="ct")


if __name__ == "__main__":
    main()
