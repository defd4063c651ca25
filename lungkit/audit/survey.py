"""What the survey learnt of the originals, and what is decided before a tile is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from lungkit.audit import confounding
from lungkit.data.splits import SPLITS
from lungkit.run.files import sha256


@dataclass(frozen=True)
class Tile:
    """One square of an original, kept or dropped."""

    box: tuple[int, int, int]    # top, left, side in pixels of the original
    measured: object             # histology.quality.Quality
    reason: str | None           # why it is dropped; None: kept


@dataclass(frozen=True)
class Original:
    """What the survey learnt of one source image."""

    source: object               # formats.sources.Source
    sha256: str
    file_bytes: int
    look: tuple                  # width, height, suffix, grey or colour, before any change
    statistics: tuple            # mean red, green, blue, brightness, contrast, 0..255
    um_per_px: float | None
    light: object                # background colour [3]; None for grey
    stains: object               # what the stain method measured, or None
    bright: bool                 # grey on a bright background
    tiles: tuple[Tile, ...]
    signature: object            # for finding copies

    @property
    def kept(self) -> list[Tile]:
        return [tile for tile in self.tiles if tile.reason is None]


@dataclass(frozen=True)
class Plan:
    """Everything decided before the first tile is written."""

    originals: list[Original]    # with at least one tile, by class and name: the order of the tiles
    group_of: dict[str, str]     # by source name
    split_of: dict[str, str]     # by group
    groups_given: str            # csv, regex or auto, and +auto where copies were looked for too
    joined: int                  # groups that copies joined
    crossed: list[tuple[str, str]]  # copies, but not the same bytes, with different labels
    reference: object            # of the stain method, or None

    def split(self, original: Original) -> str:
        return self.split_of[self.group_of[original.source.name]]

    def numbered(self) -> Iterator[tuple[Original, dict[int, Tile]]]:
        """Each original and its kept tiles by number: by class and name, never by split."""
        number = 0
        for original in self.originals:
            yield original, dict(enumerate(original.kept, number))
            number += len(original.kept)

    def count_tiles(self) -> Counter:
        return Counter(self.split(o) for o in self.originals for _ in o.kept)

    def count_groups(self) -> dict[str, dict[str, int]]:
        """Groups by split and class."""
        found = {(self.split(o), o.source.label, self.group_of[o.source.name])
                 for o in self.originals}
        labels = sorted({label for _, label, _ in found})
        return {split: {label: sum(f[:2] == (split, label) for f in found) for label in labels}
                for split in SPLITS}

    def specimens(self, after: dict[str, tuple] | None = None) -> list[confounding.Specimen]:
        """What could give a class away; after: statistics by source name, of the tiles written."""
        return [confounding.Specimen(
            o.source.label, self.group_of[o.source.name], o.source.name, o.sha256, o.look,
            o.file_bytes, o.statistics[:3], *o.statistics[3:],
            after=(after or {}).get(o.source.name), tiles=len(o.kept)) for o in self.originals]

    def digest(self, reference: object) -> str:
        """SHA-256 of all that decides the tiles: numbers, splits, boxes, groups, reference.

        reference: `self.reference` as numbers, for the manifest.
        """
        text = repr([(o.source.name, o.sha256, self.group_of[o.source.name], self.split(o),
                      [tile.box for tile in o.kept]) for o in self.originals])
        return sha256(f"{text} {reference}".encode())
