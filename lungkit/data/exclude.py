"""Training images to be left out, as a table names them: `outliers.csv`, or any with `file_name`.

Where the table has a column `flagged`, the rows that say yes there; else all of its rows. Only
images of train: to leave out test images by how they look would be to choose what is tested.
"""

from __future__ import annotations

from pathlib import Path

from lungkit.data.dataset import Dataset
from lungkit.run.faults import Fault, several
from lungkit.run.tables import read_table

YES, NO = {"yes", "true", "1"}, {"", "no", "false", "0"}


def read_exclusions(path: Path, data: Dataset) -> list[str]:
    """File names of `data`'s train split that the table at `path` leaves out, sorted.

    Raises Fault where it names what is not an image of the dataset or not of train, where
    `flagged` is neither yes nor no, and where it leaves out nothing or a whole class.
    """
    table = read_table(path, ["file_name"])
    names, unclear = set(), []
    for line, cells in table.rows:
        flagged = cells.get("flagged", "yes").strip().lower()
        if flagged not in YES | NO:
            unclear.append(f"line {line}: flagged is {cells['flagged']!r}")
        elif flagged in YES:
            names.add(cells["file_name"].strip())
    if unclear:
        raise Fault(f"{path}: {several(unclear)}: write yes, or nothing")
    splits = {row.file_name: row.split for row in data.rows}
    if unknown := sorted(names - splits.keys()):
        raise Fault(f"{path} names {len(unknown)} images that {data.path} does not have "
                    f"({several(unknown, 3)}): it is of another dataset, or of one made anew")
    if others := sorted(name for name in names if splits[name] != "train"):
        raise Fault(f"{path} names {len(others)} images that are not of train "
                    f"({several(others, 3)}): what is tested is not chosen by how it looks; take "
                    "these lines out")
    if not names:
        raise Fault(f"{path} leaves out nothing: no line says yes in its column flagged")
    for label in data.classes:
        if all(row.file_name in names for row in data.select("train", label)):
            raise Fault(f"{path} leaves out all training images of {label}: a class needs some")
    return sorted(names)
