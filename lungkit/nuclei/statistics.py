"""What is counted of an image's nuclei: how many, how large, how far apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np

from lungkit.data.cache import map_rows
from lungkit.data.dataset import Dataset, Row
from lungkit.data.manifest import side_um
from lungkit.data.png import three_channels
from lungkit.nuclei.detect import FIELD_UM, METHODS, RECIPE, Nuclei, detect_nuclei
from lungkit.nuclei.features import nearest_neighbours

# of an image: their number, the median of their areas, and of the distances from centre to centre
QUANTITIES = ("num_nuclei", "area_um2", "spacing_um")


def measure(nuclei: Nuclei, um_per_px: float) -> tuple[float, float, float]:
    """QUANTITIES of an image; NaN what it has too few nuclei for."""
    apart = nearest_neighbours(nuclei.centroids.astype(np.float64).reshape(-1, 2))
    return (float(len(nuclei)),
            float(np.median(nuclei.areas_px)) * um_per_px**2 if len(nuclei) else np.nan,
            float(np.median(apart)) * um_per_px if len(nuclei) > 1 else np.nan)


def of_rows(dataset: Dataset, rows: list[Row], name: str) -> np.ndarray:
    """QUANTITIES of each image, float32 [N, 3]; kept beside the dataset, `name` says which images.

    Raises Fault where no place for the file is found, Stopped after a signal.
    """
    field_um = side_um(dataset.manifest) or FIELD_UM
    find = partial(detect_nuclei, field_um=field_um,
                   modality=dataset.modality if dataset.modality in METHODS else "auto")

    def measured(images: Iterable[np.ndarray]) -> Iterator[tuple[float, float, float]]:
        for image in images:
            yield measure(find(three_channels(image)), field_um / dataset.image_size)

    return map_rows(dataset.path, dataset.fingerprint, f"nuclei-{RECIPE}-{field_um:g}-{name}",
                    (len(rows), len(QUANTITIES)), measured(map(dataset.image, rows)),
                    dtype=np.float32, what=f"nuclei of {dataset.name}",
                    why=f"nuclei of {dataset.path} are counted once,")
