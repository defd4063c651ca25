"""What of a set drawn by a generator repeats training images: listed, shown, drawn anew if asked.

  copies.csv    every flagged image and the training image, or two, that it is a copy of
  closest.png   the images that come closest to training images, each above what it comes close to

Both lie in the dataset's folder. What is flagged, and how: lungkit/audit/memorised.py.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lungkit.audit import memorised
from lungkit.audit.memorised import Audit, Match
from lungkit.compare.contact_sheet import grid
from lungkit.data.dataset import Dataset
from lungkit.data.orientations import orient
from lungkit.data.png import decode_png, encode_png, three_channels
from lungkit.data.writer import DatasetWriter
from lungkit.run import faults
from lungkit.run.files import write_bytes, write_text
from lungkit.run.progress import say

TABLE, PICTURE = "copies.csv", "closest.png"
COLUMNS = ("file_name", "label", "how", "of", "and_of", "likeness", "agreement")
SHOWN = 8                  # pairs of the picture
SHOWN_PX = 96              # at least, of an image in it
MOST_DRAWS = 10            # ours: of one image, all of them copies, until the stage gives up
SEEDS_APART = 10_000_000   # of the draws of one image: no set has as many


def audit(writer: DatasetWriter, real: Dataset, draw_of: Callable[[str], Callable] | None = None
          ) -> dict:
    """Look for copies among the images written, write TABLE and PICTURE; return the `copy_audit`.

    draw_of(label): draw(split, index) of a class, an image uint8 [S, S, C] and its columns; with
    it what is a copy is drawn anew, from other seeds, until nothing is. Raises Fault where
    MOST_DRAWS do not do, Stopped.
    """
    asked = Audit(real)
    found = dict(zip(sorted(writer.records), look(asked, writer, sorted(writer.records)),
                     strict=True))
    if draw_of is not None:
        found |= draw_anew(writer, asked, found, draw_of)
    labels = [writer.records[name]["label"] for name in found]
    summary = memorised.summary(asked, labels, list(found.values()))
    if draw_of is not None:
        summary["dropped"] = sum(int(record.get("redrawn") or 0)
                                 for record in writer.records.values())
    write_text(writer.work_dir / TABLE, table(writer, found))
    write_bytes(writer.work_dir / PICTURE, encode_png(picture(writer, real, found)))
    return summary


def look(asked: Audit, writer: DatasetWriter, names: list[str]) -> list[Match]:
    return asked.matches(written(writer, name) for name in names)


def written(writer: DatasetWriter, name: str) -> np.ndarray:
    return decode_png((writer.work_dir / name).read_bytes())


def draw_anew(writer: DatasetWriter, asked: Audit, found: dict[str, Match],
              draw_of: Callable[[str], Callable]) -> dict[str, Match]:
    """Replace every flagged image by another draw of the same class; return the new matches.

    Each is drawn by itself and is written once it is no copy, so that a run that is stopped and
    resumed ends with the same images. Columns `redrawn` and `copied` of metadata.csv say how many
    draws were dropped, and which training image the first was a copy of.
    """
    copies = {name: match for name, match in found.items() if match.how}
    if copies:
        say(f"{writer.stage}: {len(copies)} of {len(found)} images are copies of training images "
            "and are drawn anew")
    made = {}
    for label in writer.classes:
        left = [name for name in copies if writer.records[name]["label"] == label]
        draw = draw_of(label) if left else None
        for turn in range(1, MOST_DRAWS + 1):
            if not left:
                break
            drawn = [one_more(draw, writer.records[name], turn) for name in left]
            for name, (image, columns), match in zip(
                    list(left), drawn, asked.matches(image for image, _ in drawn), strict=True):
                if match.how:
                    continue
                split, _, stem = Path(name).with_suffix("").parts
                writer.add(split, label, int(stem), image, redrawn=turn,
                           copied=copies[name].of[0], **columns)
                made[name] = match
                left.remove(name)
                faults.check_stop()
        if left:
            raise faults.Fault(
                f"{writer.output.output_dir}: {MOST_DRAWS} more draws of each of {len(left)} "
                f"images of {label} ({faults.several(left, 2)}) are copies of training images, "
                "too: the generator has memorised them; train it for fewer steps or on more "
                "images, or leave --drop-copies out")
    return made


def one_more(draw: Callable, record: dict, turn: int) -> tuple[np.ndarray, dict]:
    """The image and the columns of draw number `turn` of what a record is of."""
    faults.check_stop()
    split, _, stem = Path(record["file_name"]).with_suffix("").parts
    return draw(split, int(stem) + turn * SEEDS_APART)


# ------------------------------------------------------------------ what is left beside the images

def table(writer: DatasetWriter, found: dict[str, Match]) -> str:
    """Every flagged image as CSV text, sorted by file name."""
    buffer = io.StringIO()
    lines = csv.writer(buffer, lineterminator="\n")
    lines.writerow(COLUMNS)
    for name in sorted(name for name, match in found.items() if match.how):
        match = found[name]
        lines.writerow([name, writer.records[name]["label"], match.how, *match.of,
                        *[""] * (2 - len(match.of)), match.likeness,
                        "" if match.agreement is None else match.agreement])
    return buffer.getvalue()


def picture(writer: DatasetWriter, real: Dataset, found: dict[str, Match]) -> np.ndarray:
    """The closest pairs, uint8 [H, W, 3]: images above their training images, copies first.

    A training image is turned as it looks most like the image; a third row holds second parts.
    """
    names = sorted(found, key=lambda name: (not found[name].how, -max(
        found[name].likeness, found[name].agreement or -1), name))[:SHOWN]
    rows_of = {row.file_name: row for row in real.select("train")}
    white = np.full((real.image_size, real.image_size, 3), 255, np.uint8)
    rows = [[three_channels(written(writer, name)) for name in names]]
    for part in range(max(len(found[name].of) for name in names)):
        rows.append([three_channels(orient(
            real.image(rows_of[found[name].of[part]]), found[name].turns[part], real.symmetries,
            axes=(0, 1))) if part < len(found[name].of) else white for name in names])
    return grid([np.stack(row) for row in rows], scale=max(1, round(SHOWN_PX / real.image_size)))
