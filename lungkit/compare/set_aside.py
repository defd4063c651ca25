"""Results of controls, set aside before anything is compared, and put beside others one by one.

What a comparison of arms counts, adjusts, warns of and draws is then the same as if no control had
been trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lungkit.compare.refusals import REAL


def set_aside(found) -> None:
    """Move the rows of controls out of `found`, a results.Results, into its control_rows."""
    found.control_rows = [row for row in found.rows if row.get("control")]
    found.rows = [row for row in found.rows if not row.get("control")]
    there = {row["dataset"] for row in found.rows}
    found.datasets = [name for name in found.datasets if name in there]


def controls_of(found) -> dict[str, dict]:
    """The controls by dataset: what their records say of them, {name, expected, ...}."""
    return {row["dataset"]: row["control"] for row in found.control_rows}


def beside(found, name: str, others: Sequence[str], *, own: bool = False):
    """Results of `others` and of the control `name` alone.

    own: the control's scores on its own test images stand for those on real's.
    """
    rows = [row for row in found.control_rows if row["dataset"] == name]
    if own:
        rows = [{**row, "real": row["own"], **{
            f"{key[:-4]}_real": value for key, value in row.items() if key.endswith("_own")}}
            for row in rows]
    kept = [row for row in found.rows if row["dataset"] in {REAL, *others}]  # real: the overlap's
    return replace(found, rows=[*kept, *rows], control_rows=[], datasets=[*others, name],
                   warnings=[])
