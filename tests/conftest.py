"""Fixtures of several test files: a small simulated sample and the real dataset made from it."""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import os
import shutil
import sys
from pathlib import Path

# before any library reads them: one thread gives the same bytes everywhere, and no test asks a hub
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["LUNGKIT_PRECISION"] = "float32"  # and the same on CPUs of two kinds (test_precision.py)
os.environ["OPENCV_FOR_THREADS_NUM"] = "1"  # a forked test would wait for threads it has not got
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # of the connections that tests of ranks break

import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # the stages are scripts in the root, not an installed package
    sys.path.insert(0, str(ROOT))


def pytest_xdist_auto_num_workers(config) -> int | None:
    """One process more than cores: the job scripts' tests often wait for what they started."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    return len(os.sched_getaffinity(0)) + 1


def pytest_collection_finish(session):
    """What is imported by now stays: the garbage collector need not look it through ever again.

    Every twentieth second of the tests went into that.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


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
def ct_dataset(tmp_path_factory) -> Path:
    """A dataset "real" as ct_seg.py makes them: nodules of two sizes, 64 px, 4 + 2 + 2 a class.

    Left and right alone may be exchanged in it. Read only.
    """
    import numpy as np

    from lungkit.ct.crops import LAYOUT
    from lungkit.data.writer import DatasetWriter
    from lungkit.run.output import Output

    path = tmp_path_factory.mktemp("ct") / "real"
    rng, at = np.random.default_rng(0), np.hypot(*(np.indices((64, 64)) - 31.5))
    with DatasetWriter(Output(path, "dataset.json", {"seed": 0, "view": "slice"}), stage="ct_seg",
                       classes=["benign", "malignant"], image_size=64, channels=1,
                       mask_forms={"layout": "labels"}) as writer:
        for index in range(16):
            radius = (4, 12)[index // 8]
            layout = np.where(at < radius, 5, np.where(at < 30, 2, 1)).astype(np.uint8)
            image = np.array([0, 190, 30, 0, 0, 190])[layout] + rng.integers(-15, 16, (64, 64))
            writer.add(("train", "train", "val", "test")[index % 4], writer.classes[index // 8],
                       index, np.clip(image, 0, 255).astype(np.uint8)[..., None],
                       group=f"patient {index}", masks={"layout": layout})
        writer.publish(parents=[], seed=0, modality="ct", um_per_px=1000.0, symmetries=2,
                       intensity={"unit": "HU", "window": [-1000, 400]}, layout=list(LAYOUT),
                       warnings=["one scanner"])
    return path


@pytest.fixture
def forked_workers(monkeypatch):
    """The processes of `mapper` are forked off: cheap, and patched as this one is.

    For rules that hold whatever the processes are; tests/kit/run/test_workers.py has spawned ones.
    """
    import multiprocessing

    context = multiprocessing.get_context
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: context("fork"))


def once(function):
    """`function(image, **options)`, called once for the same pixels and options; read only."""
    known = {}

    @functools.wraps(function)
    def call(image, **options):
        pixels = hashlib.sha256(image.tobytes()).digest()
        key = pixels, image.shape, image.dtype.str, *sorted(options.items())
        if key not in known:
            known[key] = found = function(image, **options)
            for value in (found, *getattr(found, "__dict__", {}).values()):
                if hasattr(value, "setflags"):
                    value.setflags(write=False)
        return known[key]

    return call


def once_a_pair(function):
    """`function(one, other)`, called once for the same two objects."""
    known = {}

    def call(one, other):
        if (id(one), id(other)) not in known:  # which are kept: no other object has their ids
            known[id(one), id(other)] = one, other, function(one, other)
        return known[id(one), id(other)][-1]

    return call


@pytest.fixture(scope="session")
def finders() -> dict:
    """What finds nuclei, tumour, signatures and how two of these agree: once, whoever asks."""
    from lungkit.audit import registration, signature
    from lungkit.histology import tumour_map
    from lungkit.nuclei import detect

    return {"describe": once(signature.describe), "detect_nuclei": once(detect.detect_nuclei),
            "register": once_a_pair(registration.register),
            "tumour_mask": once(tumour_map.tumour_mask)}


@contextlib.contextmanager
def finding(finders: dict):
    """The stages find by `finders`."""
    from lungkit.audit import leaks, memorised, registration, signature
    from lungkit.histology import tiles
    from lungkit.nuclei import detect, instanseg

    with pytest.MonkeyPatch.context() as patch:
        for module in (detect, instanseg, leaks, memorised, registration, signature, tiles):
            for name, finder in finders.items():
                if hasattr(module, name):
                    patch.setattr(module, name, finder)
        yield


@pytest.fixture(scope="module")
def found_once(finders):
    """Nuclei, tumour and signatures: of each image found once in the modules that use this.

    For tests that run a stage over the same images again and again. That all depend on the image
    alone is held where they are tested.
    """
    with finding(finders):
        yield


@pytest.fixture(scope="session")
def real_dataset(tmp_path_factory, sample_dir, finders) -> Path:
    """The dataset "real" of `sample_dir`: 3 classes, 64 px, 8 + 2 + 2 images a class. Read only."""
    import tumor_seg

    path = tmp_path_factory.mktemp("datasets") / "real"
    with finding(finders):
        assert tumor_seg.main(["--input", str(sample_dir / "images"), "--output", str(path),
                               "--groups", str(sample_dir / "groups.csv"),
                               "--image-size", "64"]) == 0
    return path


@pytest.fixture(scope="session")
def few_real(tmp_path_factory, sample_dir, finders) -> Path:
    """The dataset "real" of 12 images of `sample_dir`: 3 classes, 64 px, 2 + 1 + 1. Read only."""
    import tumor_seg

    root = tmp_path_factory.mktemp("few")
    for folder in (sample_dir / "images").iterdir():
        (root / "images" / folder.name).mkdir(parents=True)
        for image in sorted(folder.iterdir())[:4]:
            shutil.copy(image, root / "images" / folder.name)
    with finding(finders):
        assert tumor_seg.main(["--input", str(root / "images"), "--output", str(root / "real"),
                               "--image-size", "64"]) == 0
    return root / "real"
