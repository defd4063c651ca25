"""Leaks by content: does an arm train on real's test images, or on copies of them?

What a manifest says of an arm's origin can be wrong, and was never said of a folder that others
made. So the images themselves are asked: no image of the arm's train and val splits may be a test
image of real

- by the hash of its file;
- by its pixels, in any of the eight orientations of a square;
- as a copy: turned, cropped, shifted, re-encoded or re-stained, found by the search that keeps
  copies in one split when real is made (lungkit.audit.copies). Two chests are alike enough to
  register: of CT a copy has to agree by CT_AGREEMENT. Of whole slices so do strangers, seldom but
  among thousands: a copy agrees by SLICE_AGREEMENT, and in its vessels by SLICE_DETAIL
  (lungkit.audit.detail).

One is too many: the accuracy on real's test split would be a memory in part. An image of one
colour is nobody's copy, for it equals every other one. Rates, false alarms and seconds:
benchmarks/leaks.py.

The outcome of a pair of datasets lies in RESULTS/.leaks/, by both fingerprints, so that of all
repeats and processes one pays for it; each record holds what `require` returns.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from lungkit.audit.copies import registered_among
from lungkit.audit.detail import detail_agreement
from lungkit.audit.registration import LEAST_AGREEMENT
from lungkit.audit.signature import Signature, describe
from lungkit.data.dataset import Dataset, Row
from lungkit.data.mask_items import shows_slices
from lungkit.data.orientations import orient
from lungkit.data.png import three_channels
from lungkit.data.result import known_leaks, leaks_path
from lungkit.run.faults import Fault, check_stop, several
from lungkit.run.files import read_json, sha256, write_json
from lungkit.run.output import lock, release, try_lock
from lungkit.run.progress import say

SCHEMA = "lungkit.leaks/1"
RECIPE = 1    # raise it when other pairs are found: outcomes of another one are not believed
# ours, on 666 LIDC crops of 367 patients at 64 px: two strangers of one rib and lung had 0.86 (the
# next 0.66); of 60 turned, cropped, shifted or re-encoded ones 95 % had 0.97 or more
CT_AGREEMENT = 0.95
# ours, of whole slices, on a simulated thorax at 256 px: of 366 pairs of strangers with 0.90 the
# details of none agreed by more than 0.65, of 360 turned, cropped, re-encoded, windowed, noisy or
# smaller ones all by 0.94 or more, and all had 0.98 (benchmarks/leaks.py --slices)
SLICE_AGREEMENT, SLICE_DETAIL = 0.97, 0.85
TRAINING = ("train", "val")
FILE, PIXELS, COPY = "the same file", "the same pixels", "a copy"
RECORDED = ("recipe", "passed", "num_training_images", "num_test_images")


# ------------------------------------------------------------------ what is asked of the images

def find_leaks(data: Dataset, real: Dataset) -> dict[str, tuple[str, str]]:
    """The test images of real that an arm trains on: {test image: (its image, FILE/PIXELS/COPY)}.

    Images are decoded one by one and none is kept. Raises Stopped after a signal.
    """
    trained = training_rows(data)
    by_file = {row.sha256: row.file_name for row in trained}
    by_pixels, signatures = {}, []
    for row in trained:
        image = three_channels(data.image(row))
        by_pixels.setdefault(sha256(image.tobytes()), row.file_name)
        signatures.append(describe(image))
        check_stop()
    found, asked = {}, {}
    for row in real.select("test"):
        image = three_channels(real.image(row))
        if is_blank(image):
            continue
        turned = (sha256(np.ascontiguousarray(orient(image, which, axes=(0, 1))).tobytes())
                  for which in range(8))
        if row.sha256 in by_file:
            found[row.file_name] = by_file[row.sha256], FILE
        elif same := [by_pixels[digest] for digest in turned if digest in by_pixels]:
            found[row.file_name] = same[0], PIXELS
        else:
            asked[row.file_name] = describe(image)
        check_stop()
    names, tested = list(asked), {row.file_name: row for row in real.select("test")}
    for i, j, _ in registered_copies(
            list(asked.values()), signatures, real,
            lambda i, j: (real.image(tested[names[i]]), data.image(trained[j]))):
        found.setdefault(names[i], (trained[j].file_name, COPY))
    return dict(sorted(found.items()))


def registered_copies(asked: list[Signature], others: list[Signature], real: Dataset,
                      images_of: Callable[[int, int], tuple[np.ndarray, np.ndarray]],
                      ) -> Iterator[tuple[int, int, float]]:
    """What of `registered_among` are copies in a dataset such as real: (i, j, agreement).

    images_of: the two images of a pair, uint8 [S, S, C], where details decide.
    """
    for i, j, agreement in registered_among(asked, others, least_agreement=agreement_of(real)):
        if not of_slices(real) or detail_agreement(
                *map(three_channels, images_of(i, j))) >= SLICE_DETAIL:
            yield i, j, agreement


def agreement_of(real: Dataset) -> float:
    """How well a copy of a test image of real agrees with it, at least."""
    if of_slices(real):
        return SLICE_AGREEMENT
    return CT_AGREEMENT if real.modality == "ct" else LEAST_AGREEMENT


def of_slices(real: Dataset) -> bool:
    return real.modality == "ct" and shows_slices(real)


def is_blank(image: np.ndarray) -> bool:
    return bool((image == image[0, 0]).all())


def training_rows(data: Dataset) -> list[Row]:
    return [row for row in data.rows if row.split in TRAINING]


def same_files(data: Dataset, real: Dataset) -> dict[str, tuple[str, str]]:
    """Those of `find_leaks` that the hashes in both tables give away: no other image is opened."""
    by_file = {row.sha256: row.file_name for row in training_rows(data)}
    return {row.file_name: (by_file[row.sha256], FILE) for row in real.select("test")
            if row.sha256 in by_file and not is_blank(real.image(row))}


# ------------------------------------------------------------------ what follows

def require(pairs: list[tuple[Dataset, Dataset]], results: Path, *, dry_run: bool = False
            ) -> list[dict]:
    """Raise Fault unless no arm of `pairs` (arm, real) trains on test images of its real.

    Each pair is searched once for all processes that share `results`: one that another searches is
    waited for last. dry_run writes nothing, so that it goes by what was found before, or else by
    the hashes of files alone. Returns what a record holds of each pair: {recipe, passed,
    num_training_images, num_test_images}; {} where a dry run found nothing written.
    """
    known = {}
    for waits in (False, True):
        for number, pair in enumerate(pairs):
            if known.get(number) is None:
                known[number] = read_outcome(outcome_path(*pair, results), *pair) if dry_run \
                    else search(*pair, results, waits=waits)
    faults = [fault(each["images"] if each else same_files(*pair), *pair)
              for pair, each in zip(pairs, known.values())]
    if any(faults):
        raise Fault("; ".join(filter(None, faults)))
    return [{name: each[name] for name in RECORDED} if each else {} for each in known.values()]


def are_lacking(records: list[dict], results: Path) -> bool:
    """Whether of some of these records nobody has looked for leaks, as before that was asked."""
    return any(known_leaks(results, record) is None for record in records)


def search(data: Dataset, real: Dataset, results: Path, *, waits: bool) -> dict | None:
    """The outcome of a pair, searched for unless it is known; None: another process is at it."""
    path = outcome_path(data, real, results)
    if known := read_outcome(path, data, real):
        return known
    if not waits:
        if (held := try_lock(path)) is None:
            return None
        try:
            return read_outcome(path, data, real) or write_outcome(path, data, real)
        finally:
            release(held, path)
    with lock(path):
        return read_outcome(path, data, real) or write_outcome(path, data, real)


def write_outcome(path: Path, data: Dataset, real: Dataset) -> dict:
    made = outcome(data, real)
    write_json(path, made)
    return made


def outcome(data: Dataset, real: Dataset) -> dict:
    """Search, and say what was found."""
    trained, test = training_rows(data), real.select("test")
    say(f"{data.name}: looking among {len(trained)} training images for copies of "
        f"{len(test)} test images of {real.name}")
    found = find_leaks(data, real)
    kinds = Counter(how for _, how in found.values())
    return {"schema": SCHEMA, "recipe": RECIPE, "passed": not found,
            "dataset": data.name, "dataset_fingerprint": data.fingerprint,
            "real_fingerprint": real.fingerprint, "num_training_images": len(trained),
            "num_test_images": len(test), "least_agreement": agreement_of(real), "images": found,
            "found": {how: kinds[how] for how in (FILE, PIXELS, COPY)}}


def fault(found: dict[str, tuple[str, str]], data: Dataset, real: Dataset) -> str:
    """What was found in one line, and what to do; '' where nothing was."""
    if not found:
        return ""
    shown = several([f"{image} is {how} {'of' if how == COPY else 'as'} {test}"
                     for test, (image, how) in found.items()], 2)
    todo = ("make it again by --groups with the patient or slide of every image, and without "
            "--trust-groups" if data.fingerprint == real.fingerprint else
            "make it again without them and what was made from them")
    return (f"{data.path} trains on {len(found)} of the {len(real.select('test'))} test images of "
            f"{real.path}, or on copies of them ({shown}): its accuracy there would be a memory; "
            f"{todo}")


def outcome_path(data: Dataset, real: Dataset, results: Path) -> Path:
    return leaks_path(results, data.fingerprint, real.fingerprint)


def read_outcome(path: Path, data: Dataset, real: Dataset) -> dict | None:
    """The outcome of this search of these datasets, None where there is none to be believed."""
    wanted = {"schema": SCHEMA, "recipe": RECIPE, "dataset_fingerprint": data.fingerprint,
              "real_fingerprint": real.fingerprint, "least_agreement": agreement_of(real)}
    with contextlib.suppress(Fault):
        there = read_json(path)
        there.setdefault("least_agreement", LEAST_AGREEMENT)  # of before CT had another
        if wanted.items() <= there.items() and isinstance(there.get("images"), dict):
            return there
    return None
