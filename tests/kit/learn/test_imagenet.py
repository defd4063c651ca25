"""ImageNet's weights of torchvision's networks: from torch's cache, fetched, or refused."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from lungkit.learn import cnns, imagenet
from lungkit.learn.features import Extractor
from lungkit.run.faults import BadOptions


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Torch's cache and a server, two empty folders; models a and b are known there."""
    for name in ("cache", "server"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(imagenet, "folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(imagenet, "WEIGHTS", {"a": "A.V1", "b": "B.V1"})
    files = {model: f"{model}-{hashlib.sha256(content).hexdigest()[:8]}.pth"
             for model, content in (("a", b"of a"), ("b", b"there already"))}
    monkeypatch.setattr(imagenet, "url_of",
                        lambda model: (tmp_path / "server" / files[model]).as_uri())
    return tmp_path, files


def test_what_is_in_the_cache_is_taken_and_what_is_not_is_fetched_once(hub, monkeypatch):
    root, files = hub
    fetched, fetch = [], imagenet.fetch
    monkeypatch.setattr(imagenet, "fetch",
                        lambda url, path: fetched.append(path.name) or fetch(url, path))
    (root / "cache" / files["b"]).write_bytes(b"there already")
    (root / "server" / files["a"]).write_bytes(b"of a")
    for _ in range(2):
        found = imagenet.weights_paths(["a", "b"])
        assert {model: path.read_bytes() for model, path in found.items()} == {
            "a": b"of a", "b": b"there already"}
    assert fetched == [files["a"]]


def test_a_file_in_the_cache_that_is_not_what_its_name_says_is_not_taken(hub):
    root, files = hub
    (root / "cache" / files["b"]).write_bytes(b"cut sho")
    with pytest.raises(BadOptions, match="has another hash than its name says: remove it"):
        imagenet.weights_paths(["b"])


@pytest.mark.parametrize("broken", ["nobody answers", "another file comes"])
def test_weights_that_cannot_be_had_are_told_together_with_how_to_get_them(hub, broken):
    root, files = hub
    if broken == "another file comes":
        (root / "server" / files["a"]).write_bytes(b"a page that says log in")
    with pytest.raises(BadOptions) as fault:
        imagenet.weights_paths(["a", "b"])
    said = str(fault.value)
    assert "those of a, b are not in" in said and f"copy {files['a']}, {files['b']} there" in said
    assert "get_weight('A.V1').get_state_dict(), m.get_weight('B.V1')" in said
    assert list((root / "cache").iterdir()) == [] and "\n" not in said


def test_every_network_of_the_table_is_one_that_torchvision_has_weights_of():
    for model in imagenet.WEIGHTS:
        assert imagenet.url_of(model).endswith(".pth") and model in cnns.MODELS


def test_a_network_without_its_head_gives_what_its_head_is_shown(tmp_path):
    torch.manual_seed(0)
    model = cnns.build_model("mobilenet_v3_large", 1000, None).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    extractor = Extractor(cnns.extractor_name("mobilenet_v3_large"), tmp_path / "weights.pth")
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    seen = []
    model.classifier[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model(extractor.inputs(images))
    found = extractor.features(images)
    assert found.shape == (1, extractor.width) == (1, 1280)
    assert np.allclose(found, seen[0].numpy(), atol=1e-5)


def test_densenets_weights_of_2017_are_read_under_todays_names():
    old = {"features.denseblock1.denselayer2.norm.1.weight": 1, "classifier.weight": 2,
           "features.norm5.weight": 3}
    assert imagenet.in_todays_words(old) == {
        "features.denseblock1.denselayer2.norm1.weight": 1, "classifier.weight": 2,
        "features.norm5.weight": 3}


def test_imagenets_weights_need_a_network_of_which_there_are_some():
    with pytest.raises(BadOptions, match="none of small, but of efficientnet_lite0, resnet18"):
        cnns.imagenet_weights(["efficientnet_lite0", "small"])
    with pytest.raises(BadOptions, match="needs the --model"):
        cnns.resolve(None, imagenet.IMAGENET, frozen=False)
