"""Fixtures of several test files: a small simulated sample and the real dataset made from it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# before any library reads them: one thread gives the same bytes everywhere, and no test asks a hub
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENCV_FOR_THREADS_NUM"] = "1"  # a forked test would wait for threads it has not got
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # the stages are scripts in the root, not an installed package
    sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def sample_dir(tmp_path_factory) -> Path:
    """Simulated tissue, 12 images a class of 12 patients: images/<class>/, groups.csv, truth/.

    Read only: tests that change it copy it first.
    """
    from lungkit.phantom.sample import write_sample

    path = tmp_path_factory.mktemp("sample") / "sample"
    write_sample(path, num_patients=12, tiles_per_patient=3, image_size=112, seed=3)
    return path


@pytest.fixture(scope="session")
def real_dataset(tmp_path_factory, sample_dir) -> Path:
    """The dataset "real" of `sample_dir`: 3 classes, 64 px, 8 + 2 + 2 images a class. Read only."""
    import tumor_seg

    path = tmp_path_factory.mktemp("datasets") / "real"
    assert tumor_seg.main(["--input", str(sample_dir / "images"), "--output", str(path),
                           "--groups", str(sample_dir / "groups.csv"), "--image-size", "64"]) == 0
    return path
