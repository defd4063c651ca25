"""A scan is held once while it is read."""

from __future__ import annotations

import os
import tracemalloc

import numpy as np
import pytest

from ct_files import write_mhd, write_nifti, write_series
from lungkit.ct.annotations import Annotations
from lungkit.ct.studies import survey_folder

HU = np.random.default_rng(0).integers(-1000, 900, (12, 320, 320)).astype(np.int16)
WRITERS = {"dicom": lambda tree: write_series(tree, HU),
           "metaimage": lambda tree: write_mhd(tree / "a.mhd", HU),
           "nifti": lambda tree: write_nifti(tree / "a.nii.gz", HU)}


@pytest.mark.parametrize("kind", WRITERS)
def test_reading_a_scan_takes_little_more_than_its_voxels(tmp_path, kind):
    """So 512 x 512 x 600, 315 MB, stay below 1 GB (benchmarks/ct_reading.txt: 490 to 658)."""
    WRITERS[kind](tmp_path)
    [scan] = survey_folder((tmp_path, os.listdir(tmp_path)), tmp_path, Annotations())
    tracemalloc.start()
    try:
        volume = scan.load()
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(volume.hu, HU)
    assert held < 1.2 * HU.nbytes and peak < 2.4 * HU.nbytes
