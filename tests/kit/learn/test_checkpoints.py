"""The file of a checkpoint: what goes in comes out, and what is not whole is said to be torn."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from lungkit.learn import checkpoints
from lungkit.learn.checkpoints import Torn, read, write

SHARED = torch.arange(6.0)
CONTENT = {
    "text": "µ", "none": None, "yes": True, "number": 0.1 + 0.2, "whole": 2**62, "nothing": {},
    "list": [1, [2.5, "x"], []], "tuple": (0.9, 0.99), 3: "by a number", "nan": float("inf"),
    "state": {0: {"step": torch.tensor(7.0), "moment": torch.zeros(0, 3)}},
    "random": torch.get_rng_state(), "half": torch.ones(3, dtype=torch.bfloat16),
    "last": torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "turned": torch.arange(6).reshape(2, 3).T, "one": SHARED, "same": SHARED[:3]}


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.stride() == other.stride() \
            and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def test_what_goes_in_comes_out(tmp_path):
    write(tmp_path / "x", CONTENT)
    assert same(read(tmp_path / "x"), CONTENT)
    write(tmp_path / "empty", {})
    assert read(tmp_path / "empty") == {}


def test_it_is_safetensors_and_json_for_any_reader(tmp_path):
    write(tmp_path / "x", {"step": 3, "weight": torch.ones(2)})
    with safe_open(tmp_path / "x", framework="np") as file:
        assert json.loads(file.metadata()["lungkit"])["dict"][0] == ["step", 3]
        assert np.array_equal(file.get_tensor("0"), [1, 1])


def test_what_was_read_outlives_the_file(tmp_path):
    write(tmp_path / "x", {"weight": torch.ones(50000)})
    found = read(tmp_path / "x")["weight"]
    with open(tmp_path / "x", "r+b") as file:
        file.write(bytes(200000))
    found += 1
    assert float(found.sum()) == 100000


@pytest.mark.parametrize("harm", [
    lambda content: content[:-1], lambda content: content[:5], lambda content: b"",
    lambda content: bytes(len(content)), lambda content: content[:-9] + bytes(9),
    lambda content: content.replace(b'"crc32":"', b'"crc32":"9', 1)[:len(content)]],
    ids=["cut", "cut in its header", "emptied", "hollow", "hollow at its end", "altered"])
def test_a_file_that_is_not_whole_is_torn(harm, tmp_path):
    write(tmp_path / "x", {"weight": torch.ones(50)})
    (tmp_path / "x").write_bytes(harm((tmp_path / "x").read_bytes()))
    with pytest.raises(Torn):
        read(tmp_path / "x")


def test_a_file_of_torch_save_is_never_unpickled(tmp_path):
    torch.save({"schema": "x"}, tmp_path / "x")
    assert read(tmp_path / "x") is checkpoints.EARLIER


def test_what_has_no_place_in_a_file_is_refused_when_it_is_written(tmp_path):
    with pytest.raises(TypeError, match="a Path|a PosixPath"):
        write(tmp_path / "x", {"path": tmp_path})
