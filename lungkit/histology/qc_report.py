"""What became of the originals: a table and a sheet of tiles kept and dropped, and warnings."""

from __future__ import annotations

import csv
import io
import itertools
from collections import Counter
from collections.abc import Callable

from lungkit.audit.survey import Original, Plan, Tile
from lungkit.audit.warnings import confounding_warnings
from lungkit.formats.sources import Source
from lungkit.histology import quality, stain
from lungkit.histology.originals import FIELD_UM
from lungkit.run.progress import say

UNEVEN = 0.1  # ours: difference between classes in the share of tiles dropped
MUCH = 0.03   # ours: share that one rule drops; three times what it may drop of good tissue
SLIDE_TILES = 20  # ours: an original of fewer has no share worth naming
MOST_SLIDES = 3   # ours: named in one warning
SHEET_COLUMNS = 12
SHEET_PX = 96
LETTER_PX = 8  # of the sheet's rows' names, at the most
NO_TILE = "no tile: smaller than a tile, or no tissue in the overview"


def spread(items: list, most: int) -> list:
    """At most `most` evenly spaced ones."""
    import numpy as np

    picked = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return [items[i] for i in picked]


def count_dropped(originals: list[Original], others: list[str]) -> list[dict]:
    """What does not reach the dataset: [{reason, count, by_class, examples}].

    others: files in the class folders that are no images, as <class>/<name>.
    """
    reasons: dict[str, list[Source]] = {}
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


def dropped_in_words(entry: dict) -> str:
    """An entry of `count_dropped` on one line."""
    by_class = ", ".join(f"{label} {n}" for label, n in entry["by_class"].items())
    return f"{entry['count']}: {entry['reason']} ({by_class})"


def table(originals: list[Original]) -> str:
    """qc.csv: a line for every tile, kept or dropped, with what was measured."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(quality.QC_COLUMNS)
    for original in originals:
        for tile in original.tiles:
            lines.writerow(quality.qc_row(original.source.name, original.source.label, tile.box,
                                          tile.measured, tile.reason))
    return text.getvalue()


def sheet(originals: list[Original], look_at: Callable[[Original, list[Tile]], list]) -> bytes:
    """A PNG: a row of kept tiles for each class, then one of dropped tiles for each reason.

    look_at: gives uint8 [SHEET_PX, SHEET_PX, 3] of each tile; it is asked once for an original.
    """
    from lungkit.compare.contact_sheet import labelled_grid
    from lungkit.data.png import encode_png

    kept: dict[str, list[tuple[Original, Tile]]] = {}
    dropped: dict[str, list[tuple[Original, Tile]]] = {}
    for original in originals:
        for tile in original.tiles:
            rows, name = ((kept, f"kept: {original.source.label}") if tile.reason is None else
                          (dropped, f"dropped: {tile.reason}"))
            rows.setdefault(name, []).append((original, tile))
    named = {f"{name} ({len(found)})": found for name, found in kept.items()}
    for name, found in sorted(dropped.items()):
        share, label, *_ = lost_to([original for original, _ in found], originals, label_of)[0]
        named[f"{name} ({len(found)}; {share:.0%} of {label})"] = found
    shown = {name: spread(found, SHEET_COLUMNS) for name, found in named.items()}
    wanted: dict[int, tuple[Original, list[Tile]]] = {}
    for original, tile in itertools.chain(*shown.values()):
        wanted.setdefault(id(original), (original, []))[1].append(tile)
    pictures = {(id(original), id(tile)): picture for original, tiles in wanted.values()
                for tile, picture in zip(tiles, look_at(original, tiles))}
    return encode_png(labelled_grid({name: [pictures[id(original), id(tile)]
                                            for original, tile in found]
                                     for name, found in shown.items()},
                                    margin_px=LETTER_PX * max(map(len, named))))


# ------------------------------------------------------------------ in words

def warn(plan: Plan, report: dict, originals: list[Original], image_size: int) -> list[str]:
    """What the reader of every later result must know, as 'name: sentence'.

    report: `confounding.report`; originals: those of `plan` and what was dropped whole.
    """
    dropped = shares_dropped(originals)
    found = confounding_warnings(report)
    if plan.joined and plan.groups_given != "auto":
        found.append(f"groups joined: {plan.joined} groups held a copy (identical, rotated, "
                     "flipped, rescaled or re-compressed) of an image of another and were joined "
                     "to it; if these are no copies, --trust-groups keeps the groups as given.")
    if plan.crossed:
        found.append(f"copies with different labels: {len(plan.crossed)} images are copies of one "
                     f"in another class folder ({' = '.join(map(repr, plan.crossed[0]))}): one of "
                     "their labels is wrong.")
    cut = sum(len(o.tiles) > 1 for o in plan.originals)
    if cut and plan.groups_given == "auto":
        found.append(f"parts not compared: copies are looked for among whole images; {cut} were "
                     "cut into tiles, and an image that shows a part of another is not found. "
                     "Name the groups if that may be.")
    least, most = (pick(dropped, key=dropped.__getitem__) for pick in (min, max))
    if dropped[most] - dropped[least] > UNEVEN:
        found.append(f"dropped unevenly: {dropped[most]:.0%} of the tiles of {most!r} but "
                     f"{dropped[least]:.0%} of {least!r}: what is left may not be like the class; "
                     "look at qc.png.")
    found += _warn_of_rules(originals)
    kinds = Counter(modality(o) or "grey" for o in plan.originals)
    if len(kinds) > 1:
        found.append("mixed modalities: " + ", ".join(f"{n} images are {kind}" for kind, n in
                                                      kinds.most_common())
                     + ": telling them apart is no histology; make a dataset of each.")
    small = sum(t.box[2] < image_size for o in plan.originals for t in o.kept)
    if small:
        found.append(f"tiles enlarged: {small} tiles are smaller than "
                     f"{image_size} pixels and were enlarged.")
    sides = sorted(s for s in fields_um(plan.originals))
    if len(sides) < sum(len(o.kept) for o in plan.originals):
        unknown = sum(not o.um_per_px for o in plan.originals)
        found.append(f"resolution unknown: {unknown} images do not say their micrometres per "
                     f"pixel; their tiles are taken to be {FIELD_UM:g} um a side wherever nuclei "
                     "are measured; give --source-mpp.")
    if sides and sides[-1] > 1.1 * sides[0]:
        found.append(f"mixed magnification: tiles cover {sides[0]:.0f} to {sides[-1]:.0f} um a "
                     "side; give --mpp to cut them all alike.")
    return found


def _warn_of_rules(originals: list[Original]):
    """A sentence for each rule that drops more than MUCH of a class or of a slide."""
    slides = [o for o in originals if len(o.tiles) >= SLIDE_TILES]
    for rule in sorted({t.reason for o in originals for t in o.tiles} & set(quality.REASONS)):
        hits = [o for o in originals for t in o.tiles if t.reason == rule]
        worst = []
        for kind, among, name in (("class", originals, label_of), ("slide", slides, name_of)):
            much = [each for each in lost_to(hits, among, name) if each[0] > MUCH]
            worst += [f"{share:.0%} of the {kind} {of!r} ({lost} of {tiles} tiles)"
                      for share, of, lost, tiles in much[:MOST_SLIDES if kind == "slide" else None]]
            if kind == "slide" and len(much) > MOST_SLIDES:
                worst.append(f"more than {MUCH:.0%} of {len(much) - MOST_SLIDES} other slides")
        if worst:
            yield (f"one rule drops much: {rule!r} drops {', '.join(worst)}: that can move the "
                   "balance of the classes, and what they hold; look at qc.png and qc.csv whether "
                   "these tiles are what it says (--no-quality-control and --min-tissue keep "
                   "them).")


def label_of(original: Original) -> str:
    return original.source.label


def name_of(original: Original) -> str:
    return original.source.name


def lost_to(hits: list[Original], among: list[Original],
            name: Callable[[Original], str]) -> list[tuple[float, str, int, int]]:
    """What is hit, by name, most first: (share of its tiles, name, tiles hit, tiles).

    hits: an original for each of its tiles that is hit; those not `among` do not count.
    """
    tiles = Counter()
    for original in among:
        tiles[name(original)] += len(original.tiles)
    known = {id(original) for original in among}
    lost = Counter(name(original) for original in hits if id(original) in known)
    return sorted(((n / tiles[of], of, n, tiles[of]) for of, n in lost.items()),
                  key=lambda each: (-each[0], each[1]))


def shares_dropped(originals: list[Original]) -> dict[str, float]:
    """Share of the tiles that were dropped, by class."""
    tiles, lost = Counter(), Counter()
    for original in originals:
        tiles[original.source.label] += len(original.tiles)
        lost[original.source.label] += len(original.tiles) - len(original.kept)
    return {label: lost[label] / max(1, tiles[label]) for label in tiles}


def fields_um(originals: list[Original]) -> list[float]:
    """Sides of the kept tiles in micrometres, of the originals that say their resolution."""
    return [t.box[2] * o.um_per_px for o in originals if o.um_per_px for t in o.kept]


# ------------------------------------------------------------------ for the manifest

def describe_stain(plan: Plan, method: str) -> dict:
    """For the manifest: the reference, and how many images fall short of it, and why."""
    colour = [o for o in plan.originals if o.light is not None]
    if method == "none" or not colour:
        return {"method": method, "images": 0, "short": {}, "reference": None}
    short = Counter(filter(None, (stain.shortfall(o.stains, plan.reference) for o in colour)))
    for why, count in sorted(short.items()):
        say(f"tumor_seg: {count} of {len(colour)} images: {why}")
    return {"method": method, "images": len(colour),
            "short": dict(sorted(short.items())), "reference": stain.describe(plan.reference)}


def modality(original: Original) -> str | None:
    """What an original shows; None: grey on a bright ground, which may be anything."""
    if original.light is not None:
        return "he"
    return None if original.bright else "fluorescence"


def describe_scale(originals: list[Original], image_size: int) -> dict:
    """For the manifest: what the images are, and micrometres per pixel of a tile, where known."""
    fields = sorted(fields_um(originals))
    known = len(fields) == sum(len(o.kept) for o in originals)
    kinds = {modality(o) for o in originals}
    return {"um_per_px": round(fields[len(fields) // 2], 3) / image_size if known else None,
            "modality": kinds.pop() if len(kinds) == 1 else None}
