"""What became of every tile, as a table and as a sheet to look at: kept, or dropped and why.

An original has `source` (name, label) and `tiles`; a tile has `box` (top, left, side) px,
`measured` (lungkit.quality.Quality) and `reason` (None: kept).
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable

from lungkit import quality

SHEET_COLUMNS = 12
SHEET_PX = 96
NO_TILE = "no tile: smaller than a tile, or no tissue in the overview"


def spread(items: list, most: int) -> list:
    """At most `most` evenly spaced ones."""
    import numpy as np

    picked = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return [items[i] for i in picked]


def count_dropped(originals: list, others: list[str]) -> list[dict]:
    """What does not reach the dataset: [{reason, count, by_class, examples}].

    others: files in the class folders that are no images, as <class>/<name>.
    """
    reasons: dict[str, list] = {}
    for original in originals:
        for reason in [t.reason for t in original.tiles if t.reason] or [NO_TILE] * (
                not original.tiles):
            reasons.setdefault(reason, []).append(original.source)
    table = [{"reason": reason, "count": len(hit), "by_class": dict(Counter(s.label for s in hit)),
              "examples": sorted({s.name for s in hit})[:10]}
             for reason, hit in sorted(reasons.items())]
    if others:
        table.append({"reason": "not an image file", "count": len(others),
                      "by_class": dict(Counter(name.split("/")[0] for name in others)),
                      "examples": others[:10]})
    return table


def table(originals: list) -> str:
    """qc.csv: a line for every tile, kept or dropped, with what was measured."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(quality.QC_COLUMNS)
    for original in originals:
        for tile in original.tiles:
            lines.writerow(quality.qc_row(original.source.name, original.source.label, tile.box,
                                          tile.measured, tile.reason))
    return text.getvalue()


def sheet(originals: list, look_at: Callable) -> bytes:
    """A PNG: a row of kept tiles for each class, then one of dropped tiles for each reason.

    look_at: (original, tile) -> uint8 [SHEET_PX, SHEET_PX, 3].
    """
    from lungkit.contact_sheet import labelled_grid
    from lungkit.dataset import encode_png

    kept: dict[str, list] = {}
    dropped: dict[str, list] = {}
    for original in originals:
        for tile in original.tiles:
            rows, name = ((kept, f"kept: {original.source.label}") if tile.reason is None else
                          (dropped, f"dropped: {tile.reason}"))
            rows.setdefault(name, []).append((original, tile))
    return encode_png(labelled_grid({
        f"{name} ({len(found)})": [look_at(*each) for each in spread(found, SHEET_COLUMNS)]
        for name, found in (kept | dict(sorted(dropped.items()))).items()}))
