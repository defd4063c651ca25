"""One dataset that was set aside, a control or a mixture, beside one of the comparison."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lungkit.compare.answer import ArmAnswer, Estimate
from lungkit.compare.conclude import conclude
from lungkit.compare.evidence import IMAGES, ITEMS, Evidence, NoEvidence, not_whole, read_evidence
from lungkit.compare.pairs import compare
from lungkit.compare.results import Results
from lungkit.compare.set_aside import beside


@dataclass
class Beside:
    """What was found of one dataset beside another."""

    rows: list[dict]            # of the dataset set aside
    arm: ArmAnswer              # the dataset set aside, by itself
    estimate: Estimate | None   # its difference from the other at the highest level; None: no level
    evidence: Evidence | None   # of both


def against(source: Path, found: Results, name: str, other: str, metric: str, *,
            benign: str | None, alpha: float, margin: float, own: bool = False,
            read: Callable[[Path], dict[str, np.ndarray]]) -> Beside:
    """The dataset `name`, set aside, less `other`, at the highest level that the two reach.

    own: `name` is tested on its own test images, which are made of real's. read: gives the arrays
    of an .npz, as `read_arrays`.
    """
    def read_own(path: Path) -> dict[str, np.ndarray]:
        arrays = read(path)
        if own and path.parts[-3] == name:
            arrays = arrays | {f"real_{key[4:]}": value for key, value in arrays.items()
                               if key.startswith("own_")}
        return arrays

    pair, evidence, missing = beside(found, name, [other], own=own), None, None
    try:
        evidence = read_evidence(source, pair, metric, benign, read_own)
    except NoEvidence as reason:
        missing = str(reason)
    # named first, so that the difference is name - other: of real it would be so in any case
    tests = compare({each: pair.values(each, metric) for each in (name, other)}, metric=metric,
                    unit=pair.unit, alpha=alpha, margin=margin)
    said = conclude(pair, tests, metric, evidence, missing, alpha=alpha, margin=margin)
    [told], [arm] = said.pairs, [each for each in said.arms if each.dataset == name]
    return Beside([row for row in pair.rows if row["dataset"] == name], arm,
                  told.estimates[told.level] if told.level else None, evidence)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz. Raises NoEvidence where it lacks what is needed, Fault if torn."""
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise NoEvidence(f"{path} is not there") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise not_whole(path, error) from None
    wanted = ITEMS if "real_true" in arrays else IMAGES
    if missing := [name for name in wanted if name not in arrays]:
        raise NoEvidence(f"{path} lacks {', '.join(missing)}")
    return arrays
