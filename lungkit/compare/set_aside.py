"""Results of controls and of mixtures, set aside before arms are compared, and put beside one arm.

What a comparison of arms counts, adjusts, warns of and draws is then the same as if none of these
had been trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lungkit.compare.refusals import REAL


def set_aside(found) -> None:
    """Move rows out of `found`, a results.Results, into its control_rows and mix_rows."""
    found.control_rows = [row for row in found.rows if row.get("control")]
    found.mix_rows = [row for row in found.rows if row.get("mix")]
    found.rows = [row for row in found.rows if not row.get("control") and not row.get("mix")]
    there = {row["dataset"] for row in found.rows}
    found.datasets = [name for name in found.datasets if name in there]


def controls_of(found) -> dict[str, dict]:
    """The controls by dataset: what their records say of them, {name, expected, ...}."""
    return {row["dataset"]: row["control"] for row in found.control_rows}


def joint(found, others: Sequence[str], names: Sequence[str]):
    """Results of `others` and of the datasets `names`, which were set aside, in one."""
    kept = [row for row in found.rows if row["dataset"] in {REAL, *others}]  # real: the overlap's
    rows = [row for name in names for row in [*found.control_rows, *found.mix_rows]
            if row["dataset"] == name]
    return replace(found, rows=[*kept, *rows], control_rows=[], mix_rows=[],
                   datasets=[*others, *names], warnings=[])


def beside(found, name: str, others: Sequence[str], *, own: bool = False):
    """Results of `others` and of `name`, which was set aside.

    own: its scores on its own test images stand for those on real's.
    """
    both = joint(found, others, [name])
    if own:
        both.rows = [row if row["dataset"] != name else {**row, "real": row["own"], **{
            f"{key[:-4]}_real": value for key, value in row.items() if key.endswith("_own")}}
            for row in both.rows]
    return both
