"""Base models in the cache: fetched where there is a network, and proved to be whole."""

from __future__ import annotations

import json
import shutil

import pytest

from lungkit.generate.base_model import BASE_MODEL_DIR, STABLE_DIFFUSION_15
from lungkit.run.faults import BadOptions
from lungkit.run.files import sha256_file
from lungkit.tools import prefetch

WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A snapshot of one model as the hub's cache has it: links to files by their SHA-256."""
    folder = tmp_path / "models--some--model/snapshots/0a1b"
    shutil.copytree(BASE_MODEL_DIR, folder, copy_function=lambda source, place: (
        shutil.copy if place.endswith(".json") else link)(source, place))
    monkeypatch.setattr(prefetch, "from_hub", lambda name: folder)
    return folder


def link(source, place) -> None:
    from pathlib import Path

    blobs = next(parent for parent in Path(place).parents if parent.name == "snapshots")
    blob = blobs.with_name("blobs") / sha256_file(Path(source))
    blob.parent.mkdir(exist_ok=True)
    shutil.copy(source, blob)
    Path(place).symlink_to(blob)


def test_a_model_that_is_whole_is_said_with_its_place(cache, capsys):
    assert prefetch.main(["some/model"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("some/model: whole, ") and str(cache) in told


def altered(cache) -> None:
    """A byte of the last tensor, which no header tells of."""
    with open(cache / WEIGHTS, "r+b") as file:
        file.seek(-3, 2)
        byte = file.read(1)
        file.seek(-3, 2)
        file.write(bytes([byte[0] ^ 1]))


def of_another(cache) -> None:
    config = json.loads((cache / "vae/config.json").read_text())
    config["block_out_channels"] = [2 * width for width in config["block_out_channels"]]
    (cache / "vae/config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(("harm", "words"), [
    (altered, "vae/diffusion_pytorch_model.safetensors is not what the hub has: fetch it anew"),
    (lambda cache: (cache / WEIGHTS).unlink(), "vae holds no diffusion_pytorch_model"),
    (of_another, "the two are not of one model")])
def test_what_is_not_whole_is_one_line(harm, words, cache, capsys):
    harm(cache)
    assert prefetch.main(["some/model"]) == 1
    said = capsys.readouterr()
    assert not said.out
    line, = said.err.strip().splitlines()
    assert "some/model: " in line and words in line


def test_without_a_name_it_is_the_base_of_the_full_preset(monkeypatch, capsys):
    def offline(name):
        raise BadOptions(f"--base-model {name} is not a folder, and not reachable")

    monkeypatch.setattr(prefetch, "from_hub", offline)
    assert prefetch.main([]) == 2 and STABLE_DIFFUSION_15 in capsys.readouterr().err
