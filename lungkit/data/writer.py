"""Write a dataset item by item; an interrupted one goes on where it stopped."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np

from lungkit.data.dataset import COLUMNS, SPLITS, Dataset, Row, count, fingerprint
from lungkit.data.manifest import DEFAULTS, SCHEMA
from lungkit.data.png import GREY, RGB, encode_png, read_header
from lungkit.run.faults import Fault
from lungkit.run.files import sha256, write_bytes, write_text
from lungkit.run.journal import Journal
from lungkit.run.output import Output
from lungkit.run.provenance import provenance

MASKS = "_masks"  # kinds of masks of a record; not a column of metadata.csv


class DatasetWriter:
    """Write a dataset item by item; an interrupted one goes on where it stopped.

    Use: `with DatasetWriter(...) as writer:` then `add` what `missing` names, then `publish`.
    Items are keyed by their file name; the record of each is appended after its files are whole.
    Files are flushed to disk all together, before the manifest: one by one that took most of the
    time. So an interrupted writer's files are checked, for a power cut may have torn them.
    """

    def __init__(self, output: Output, *, stage: str, classes: list[str], image_size: int,
                 channels: int = 3, mask_forms: dict[str, str] | None = None,
                 targets: dict[str, dict] | None = None, plan: str = "") -> None:
        """channels: 3, RGB, or 1, grey. mask_forms: of the kinds of masks that are not binary.

        targets: {column of `add`: {kind, values}}, further labels than the class.
        plan: what else decides every item; an interrupted writer with another is begun anew.
        """
        self.output, self.stage, self.plan = output, stage, plan
        self.classes, self.image_size, self.channels = list(classes), image_size, channels
        self.mask_forms, self.targets = mask_forms or {}, targets or {}
        self.records: dict[str, dict] = {}

    def __enter__(self) -> DatasetWriter:
        self._writing = self.output.writing()
        self.work_dir = self._writing.__enter__()
        path, plan = self.work_dir / ".records.jsonl", self.work_dir / ".plan"
        if path.exists() and (plan.read_text() if plan.exists() else "") != self.plan:
            for left in self.work_dir.iterdir():  # of another plan: mixed they would be a leak
                if left.name != ".options.json":
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
        write_text(plan, self.plan)
        self._journal = Journal(path).__enter__()
        found = {name: self._journal.get(name) for name in self._journal}
        self.records = {name: record for name, record in found.items() if self._is_whole(record)}
        return self

    def _is_whole(self, record: dict) -> bool:
        """Whether the image is the one recorded, and all its masks are whole."""
        name = Path(record["file_name"])
        try:
            masks = [(self.work_dir / "masks" / kind / record["label"] / name.name).read_bytes()
                     for kind in record[MASKS]]
            image = (self.work_dir / name).read_bytes()
        except OSError:
            return False
        return sha256(image) == record["sha256"] and None not in map(read_header, masks)

    def __exit__(self, *error: object) -> None:
        self._journal.__exit__(*error)
        self._writing.__exit__(*error)

    def has(self, split: str, label: str, index: int) -> bool:
        return item_name(split, label, index) in self.records

    def add(self, split: str, label: str, index: int, image: np.ndarray | bytes, *,
            masks: dict[str, np.ndarray | bytes] | None = None, **columns: object) -> None:
        """Write uint8 [S, S, channels] as item `index` with its masks {kind: uint8 [S, S]}.

        Either may be a PNG already, encoded by a worker. columns: group, source, prompt, seed, and
        any further column of metadata.csv; None: an empty cell.
        """
        name = item_name(split, label, index)
        for kind, mask in (masks or {}).items():
            write_bytes(self.work_dir / "masks" / kind / label / Path(name).name,
                        self._png(mask, GREY), flush=False)
        content = self._png(image, GREY if self.channels == 1 else RGB)
        write_bytes(self.work_dir / name, content, flush=False)
        record = {"file_name": name, "label": label, "split": split, MASKS: sorted(masks or ()),
                  **{key: "" if value is None else str(value) for key, value in columns.items()},
                  "sha256": sha256(content)}
        self.records[name] = record
        self._journal.add(name, record)

    def _png(self, image: np.ndarray | bytes, colour_type: int) -> bytes:
        content = image if isinstance(image, bytes) else encode_png(image)
        header = read_header(content)
        assert header == (self.image_size, self.image_size, 8, colour_type), header
        return content

    def publish(self, *, parents: list[dict], seed: int, warnings: list[str] | None = None,
                **more: object) -> Dataset:
        """Write metadata.csv, then the manifest, then give the dataset its name.

        Raises Fault when a class of a split holds nothing: an empty class is no dataset.
        """
        records = [self.records[name] for name in sorted(self.records)]
        extra = sorted({key for record in records for key in record} - {*COLUMNS, MASKS})
        table = io.StringIO()
        writer = csv.DictWriter(table, [*COLUMNS, *extra], restval="", extrasaction="ignore",
                                lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        rows = [Row(**{key: record.get(key, "") for key in COLUMNS}) for record in records]
        counts = count(rows, self.classes)
        empty = [f"{split}/{label}" for split in SPLITS
                 for label, number in counts[split].items() if number == 0]
        if empty:
            raise Fault(f"nothing was produced for {', '.join(empty)}: every class needs an image "
                        "in every split")
        write_text(self.work_dir / "metadata.csv", table.getvalue())
        mask_counts = Counter(kind for record in records for kind in record[MASKS])
        manifest = {**DEFAULTS, "schema": SCHEMA, "name": self.output.output_dir.name,
                    "stage": self.stage, "classes": self.classes, "image_size": self.image_size,
                    "channels": self.channels, "counts": counts, "seed": seed, "parents": parents,
                    "fingerprint": fingerprint(rows), "warnings": warnings or [],
                    "masks": {kind: self.mask_forms.get(kind, "binary") for kind in mask_counts},
                    "mask_counts": dict(mask_counts), "targets": self.targets,
                    **more, **provenance()}
        os.sync()  # everything added, before what says that it is complete
        self.output.publish(manifest)
        for name in (".records.jsonl", ".plan"):
            (self.output.output_dir / name).unlink(missing_ok=True)
        return Dataset(self.output.output_dir, manifest, rows)


def item_name(split: str, label: str, index: int) -> str:
    return f"{split}/{label}/{index:06d}.png"
