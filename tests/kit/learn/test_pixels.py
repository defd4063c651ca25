"""Images stay where they fit: on the device, or mapped from their file, without a copy."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lungkit.data.orientations import square_symmetries
from lungkit.learn.pixels import bring, hold

CPU = torch.device("cpu")


def test_on_the_cpu_a_map_stays_a_map_and_nothing_is_said_of_it(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        held = hold(mapped, CPU)
    assert held.data_ptr() == mapped.ctypes.data and held.dtype == torch.uint8
    assert bring(held, CPU) is held


@pytest.mark.parametrize(("free_bytes", "moved"), [(96, True), (95, False)])
def test_what_does_not_fit_on_a_gpu_stays_on_the_host(free_bytes, moved, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free_bytes, 10**6))
    calls = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: calls.append(device) or self)
    images = np.zeros((1, 4, 4, 3), np.uint8)
    assert hold(images, SimpleNamespace(type="cuda")).data_ptr() == images.ctypes.data
    assert bool(calls) == moved


@pytest.mark.parametrize(("count", "wanted"), [
    (1, ["0123"]), (2, ["0123", "1032"]),
    (8, ["0123", "2301", "1032", "3210", "0213", "1302", "2031", "3120"])])
def test_an_image_is_turned_only_as_its_dataset_allows(count, wanted):
    found = ["".join(map(str, order.tolist())) for order in square_symmetries(2, count)]
    assert sorted(found) == sorted(wanted) and found[0] == "0123"
