"""The size bands of nodules: within one, a CNN that has learnt no more than size is found out.

Edges are those at which guidelines change what they advise: 6 and 8 mm (Fleischner Society:
MacMahon et al. 2017, Radiology 284:228), and 15 mm (Lung-RADS 2022 of the American College of
Radiology). A band holds its lower edge and not its upper: 6.0 mm is of "6 to 8 mm".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from lungkit.data.dataset import Row

COLUMN = "diameter_mm"  # of metadata.csv
EDGES_MM = (6.0, 8.0, 15.0)
BANDS = ("below 6 mm", "6 to 8 mm", "8 to 15 mm", "from 15 mm")


def diameters_mm(rows: Sequence[Row]) -> np.ndarray | None:
    """float32 [N], NaN where an image shows no nodule of known size; None: none of them does."""
    import numpy as np

    cells = [row.extra.get(COLUMN) or "nan" for row in rows]
    found = np.array(cells, np.float32)
    return None if np.isnan(found).all() else found


def band_of(diameters: np.ndarray) -> np.ndarray:
    """int [N], an index into BANDS; -1 where the diameter in mm is NaN."""
    import numpy as np

    return np.where(np.isnan(diameters), -1, np.searchsorted(EDGES_MM, diameters, side="right"))


def column(name: str, band: str) -> str:
    """The name of a score of a band as a column: accuracy_6_to_8_mm."""
    return f"{name}_{band.replace(' ', '_')}"
