"""Copy audit: which generated images repeat training images, and which ones? Calibrated on real.

An image is flagged as
  same        a training image pixel by pixel, in any orientation that the dataset allows
  registered  it registers with a training image as siblings do (lungkit.audit.copies): turned,
              cropped, shifted, re-encoded, re-stained; of CT as leaks do (lungkit.audit.leaks)
  alike       its thumbnail correlates with a training image's: blurred, drawn again; of an image
              with too few corners to register, also with one turned by a few degrees
  blend       two training images together make its thumbnail, as half of the one and half of the
              other do: their multiple correlation with it, each with a positive weight, is high,
              and higher than what either of the above found of one

Thumbnails are grey, for in tissue the stain alone makes strangers
correlate by 0.9, and so coarse that blur hardly raises a correlation. Both correlations count from
half way between what training images reach with those of other groups (patients, tiles), at the
99th percentile, and 1: Meehan et al. 2020, arXiv:2004.05675, judge by distances within real data;
thumbnails and half way are ours. The control is how many of real's val and test images are flagged,
which are of other groups. Candidates by pretrained features were tried and find fewer of the
copies: benchmarks/memorisation.py, also for all rates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np

from lungkit.audit.copies import ENOUGH_FEATURES
from lungkit.audit.leaks import is_blank, of_slices, registered_copies
from lungkit.audit.signature import Signature, describe
from lungkit.data.dataset import Dataset
from lungkit.data.orientations import orient
from lungkit.data.png import three_channels
from lungkit.run.faults import check_stop
from lungkit.run.files import sha256

RECIPE = 3               # raise it when others are flagged: `--drop-copies` draws others then
ALIKE_PX, BLEND_PX = 8, 16  # ours: sides of the thumbnails; of 16 px a blurred copy is missed
TURNS_DEG = range(-15, 16, 5)  # ours: between two a thumbnail still correlates by 0.996
PERCENTILE = 99.0        # of what training images reach with those of other groups
FIRST = 4                # ours: training images that are tried as the one part of a blend
LEAST_PART = 0.2         # ours: of the weights of a blend's two parts
LARGEST_SHARE = 0.02     # ours: above it the set carries a warning
AT_ONCE = 512            # whole slices asked about at a time: 34 MB of 256 px
MOST_IMAGES = 2000       # training images that the thresholds are set by, evenly spaced
SAME, REGISTERED, ALIKE, BLEND = KINDS = ("same", "registered", "alike", "blend")


@dataclass(frozen=True)
class Match:
    """What an image comes closest to among the training images.

    how: one of KINDS, or '', no copy. of: file names of real, two of a blend. turns: orientations
    in which these look most like the image. likeness: correlation of the thumbnails; of a blend,
    multiple. agreement: of a registration (lungkit.audit.registration), else None.
    """

    how: str
    of: tuple[str, ...]
    turns: tuple[int, ...]
    likeness: float
    agreement: float | None = None


# ------------------------------------------------------------------ thumbnails

def thumbnails(images: Iterable[np.ndarray], side_px: int) -> np.ndarray:
    """N of uint8 [S, S, 3 or 1] -> grey, float32 [N, side_px**2], each of mean 0 and length 1."""
    import cv2

    small = [cv2.resize(cv2.cvtColor(np.ascontiguousarray(three_channels(image)),
                                     cv2.COLOR_RGB2GRAY).astype(np.float32),
                        (side_px, side_px), interpolation=cv2.INTER_AREA).ravel()
             for image in images]
    flat = np.stack(small)
    flat -= flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-2)


class Known:
    """Thumbnails of N images in every orientation, and T turns; of image k % N is row k.

    upright: those of the images as they are, [N, side_px**2].
    """

    def __init__(self, images: np.ndarray, side_px: int, symmetries: int,
                 turns_deg: Iterable[float] = (0,)) -> None:
        self.upright, self.number, self.symmetries = (thumbnails(images, side_px), len(images),
                                                      symmetries)
        some = np.concatenate([thumbnails((turn(image, degrees) for image in images), side_px)
                               for degrees in turns_deg])
        squares = some.reshape(-1, side_px, side_px)
        self.flat = np.concatenate([orient(squares, which, symmetries).reshape(some.shape)
                                    for which in range(symmetries)])

    def row(self, number: int) -> tuple[int, int]:
        """The image and the orientation of a row."""
        return number % self.number, number * self.symmetries // len(self.flat)

    def correlate(self, asked: np.ndarray, apart: np.ndarray | None = None) -> np.ndarray:
        """Of thumbnails [Q, D] with all rows, float32 [Q, symmetries * T * N].

        apart: bool [Q, N], images that are left out: -1.
        """
        found = asked @ self.flat.T
        if apart is not None:
            found[np.tile(apart, len(self.flat) // self.number)] = -1
        return found


def turn(image: np.ndarray, degrees: float) -> np.ndarray:
    """uint8 [S, S, 3], [S, S, 1] or [S, S], turned about its middle and mirrored at its border."""
    import cv2

    size = len(image)
    matrix = cv2.getRotationMatrix2D(((size - 1) / 2,) * 2, degrees, 1)
    return cv2.warpAffine(np.ascontiguousarray(image), matrix, (size, size),
                          borderMode=cv2.BORDER_REFLECT_101) if degrees else image


def blend_of(correlations: np.ndarray, known: Known) -> tuple[float, int, int]:
    """The two rows of `known` that together explain a thumbnail best: (correlation, row, row).

    correlations: of the thumbnail with all rows, float32 [K]. Rows of two images, and neither has
    less than LEAST_PART of the weights; (0, -1, -1) where there are none.
    """
    best, image = (0.0, -1, -1), np.arange(len(correlations)) % known.number
    first = np.argpartition(correlations, -min(FIRST, len(correlations)))[-FIRST:]
    for row in first[np.argsort(-correlations[first])]:
        between = known.flat @ known.flat[row]
        one, other = correlations[row], correlations
        rest = np.maximum(1 - between * between, 1e-3)
        parts = one - other * between, other - one * between  # the weights, times rest
        lesser = np.minimum(*parts) >= LEAST_PART * (parts[0] + parts[1])
        allowed = lesser & (parts[0] > 0) & (image != row % known.number) & (other > -1)
        if allowed.any():
            explained = np.where(allowed, (one * parts[0] + other * parts[1]) / rest, -1)
            second = int(explained.argmax())
            found = float(np.sqrt(np.clip(explained[second], 0, 1)))
            best = max(best, (found, int(row), second))
    return best


def half_way(likeness: np.ndarray | list[float]) -> float:
    """From the 99th percentile of what other groups reach to identity, which it is without any."""
    return (float(np.percentile(likeness, PERCENTILE)) + 1) / 2 if len(likeness) else 1.0


# ------------------------------------------------------------------ the audit

class Audit:
    """What is asked of images about real's training images; these are described once.

    likeness: of training images with those of other groups, up to MOST_IMAGES; [] of one group.
    """

    def __init__(self, real: Dataset) -> None:
        self.rows, (images, _) = real.select("train"), real.load("train")
        self.real, self.names = real, [row.file_name for row in self.rows]
        self.signatures, self.same = [], {}
        for number, image in enumerate(images):
            self.signatures.append(describe(three_channels(image)))
            if not is_blank(image):
                for which in range(real.symmetries):
                    self.same.setdefault(_digest(orient(image, which, real.symmetries,
                                                        axes=(0, 1))), (number, which))
            check_stop()
        self.alike, self.blend = (Known(images, side_px, real.symmetries)
                                  for side_px in (ALIKE_PX, BLEND_PX))
        self.groups = np.array([row.group or row.file_name for row in self.rows])
        self.likeness = [found.max() for found in self.strangers(self.alike)]
        self.threshold = half_way(self.likeness)
        self.blend_threshold = half_way([blend_of(found, self.blend)[0]
                                         for found in self.strangers(self.blend)])

    def strangers(self, known: Known) -> Iterator[np.ndarray]:
        """Correlations of training images, up to MOST_IMAGES, with those of other groups."""
        for pick in np.linspace(0, len(self.groups) - 1,
                                min(len(self.groups), MOST_IMAGES)).astype(int):
            apart = (self.groups == self.groups[pick])[None]
            if apart.all():
                return
            yield known.correlate(known.upright[[pick]], apart)[0]
            check_stop()

    @cached_property
    def turned(self) -> tuple[Known, float]:
        """Training images, also turned by TURNS_DEG, and from where on a correlation counts."""
        known = Known(self.real.load("train")[0], ALIKE_PX, self.real.symmetries, TURNS_DEG)
        return known, half_way([found.max() for found in self.strangers(known)])

    def matches(self, images: Iterable[np.ndarray]) -> list[Match]:
        """What each image uint8 [S, S, C] comes closest to.

        None is kept but as a signature, and of whole slices AT_ONCE. An image's match does not
        depend on what else is asked about. Raises Stopped.
        """
        if not of_slices(self.real):
            return self._matches(images, [])
        left, found = iter(images), []
        while some := list(islice(left, AT_ONCE)):
            found += self._matches(some, some)
        return found

    def _matches(self, images: Iterable[np.ndarray], kept: list[np.ndarray]) -> list[Match]:
        signatures, found = [], []
        for image in images:
            signatures.append(describe(three_channels(image)))
            copy = self.same.get(_digest(image))
            found.append((Match(SAME, (self.names[copy[0]],), (copy[1],), 1.0),) if copy else
                         (self._alike(image, signatures[-1]), self._blend(image)))
            check_stop()
        return [one if one.how == SAME else self._best(one, *rest, copy)
                for (one, *rest), copy in zip(found, self._registered(signatures, kept),
                                              strict=True)]

    def _best(self, alike: Match, blend: Match | None, copy: tuple[int, float] | None) -> Match:
        """One training image, unless two together explain more."""
        number, agreement = copy or (None, -1)
        if blend and blend.likeness > max(alike.likeness, agreement):
            return blend
        if copy is None:
            return alike
        of = (self.names[number],)
        return Match(REGISTERED, of, alike.turns if alike.of == of else (0,), alike.likeness,
                     agreement)

    def _alike(self, image: np.ndarray, signature: Signature) -> Match:
        """The training image of the likest thumbnail; with few corners, also of a turned one."""
        thumbnail = thumbnails([image], ALIKE_PX)
        found = self._likest(thumbnail, self.alike, self.threshold)
        if not found.how and len(signature.codes) < ENOUGH_FEATURES:
            turned = self._likest(thumbnail, *self.turned)
            found = turned if turned.how else found
        return found

    def _likest(self, thumbnail: np.ndarray, known: Known, threshold: float) -> Match:
        correlations = known.correlate(thumbnail)[0]
        row = int(correlations.argmax())
        likeness, (number, which) = float(correlations[row]), known.row(row)
        return Match(ALIKE if likeness > threshold else "", (self.names[number],), (which,),
                     round(likeness, 4))

    def _blend(self, image: np.ndarray) -> Match | None:
        """The two training images that make the thumbnail, None where none do."""
        likeness, *rows = blend_of(
            self.blend.correlate(thumbnails([image], BLEND_PX))[0], self.blend)
        found = [self.blend.row(row) for row in rows]
        return Match(BLEND, tuple(self.names[number] for number, _ in found),
                     tuple(which for _, which in found), round(likeness, 4)
                     ) if likeness > self.blend_threshold else None

    def _registered(self, signatures: list[Signature], kept: list[np.ndarray]
                    ) -> list[tuple[int, float] | None]:
        """Of each the training image that it agrees with best, and how well; None: with none."""
        best: list[tuple[int, float] | None] = [None] * len(signatures)
        for i, j, agreement in registered_copies(
                signatures, self.signatures, self.real,
                lambda i, j: (kept[i], self.real.image(self.rows[j]))):
            if best[i] is None or agreement > best[i][1]:
                best[i] = j, round(agreement, 4)
        return best


def _digest(image: np.ndarray) -> str:
    return sha256(np.ascontiguousarray(image).tobytes())


# ------------------------------------------------------------------ what is said of it

def control(audit: Audit) -> dict[str, dict[str, int]]:
    """How many of real's val and test images are flagged: {class: {images, copies}}.

    No generator asks it, for none opens these: lungkit.tools.fidelity does.
    """
    rows = [*audit.real.select("val"), *audit.real.select("test")]
    return by_class([row.label for row in rows], audit.matches(map(audit.real.image, rows)),
                    audit.real.classes)


def by_class(labels: list[str], matches: list[Match], classes: list[str]
             ) -> dict[str, dict[str, int]]:
    """{class: {images, copies}} of images with these labels."""
    return {label: {"images": labels.count(label),
                    "copies": sum(match.how != "" for own, match in zip(labels, matches)
                                  if own == label)} for label in classes}


def summary(audit: Audit, labels: list[str], matches: list[Match]) -> dict:
    """What a manifest says: {images, share_near_copies, share_<kind>, by_class, ...}."""
    share = {kind: round(sum(match.how == kind for match in matches) / len(matches), 4)
             for kind in KINDS}
    return {"images": len(matches),
            "share_near_copies": round(sum(match.how != "" for match in matches)
                                       / len(matches), 4),
            **{f"share_{kind}": value for kind, value in share.items()},
            "by_class": by_class(labels, matches, audit.real.classes),
            "likeness_median": round(float(np.median([match.likeness for match in matches])), 4),
            "real_likeness_median": round(float(np.median(audit.likeness or [0])), 4),
            "threshold": round(audit.threshold, 4),
            "blend_threshold": round(audit.blend_threshold, 4)}


def warnings_of(name: str, audited: dict) -> list[str]:
    """The warning that an audit gives rise to, if any, for the final report."""
    if audited["share_near_copies"] <= LARGEST_SHARE:
        return []
    return [f"copies: {audited['share_near_copies']:.0%} of the images of {name} are copies of a "
            "training image, or far more alike to one than training images of different groups are "
            "to one another: the generator may have memorised them"]
