"""The packaged weights in timm's network: the same tensors, and the package's own numbers."""

from __future__ import annotations

import copy
import importlib.util

import numpy as np
import pytest
import torch

from lungkit.learn import cnns, pretrained
from lungkit.run.faults import BadOptions


def packaged() -> dict:
    return torch.load(pretrained.weights_path(), map_location="cpu", weights_only=True)


@pytest.fixture(scope="module")
def network():
    """Our network with all packaged weights, its thousand classes, too."""
    network = pretrained.build(pretrained.LITE0, num_classes=1000)
    network.load_state_dict(pretrained.in_timms_words(packaged()))
    return network.eval()


def test_every_packaged_tensor_has_its_place_and_keeps_its_values(network):
    state, renamed = packaged(), pretrained.in_timms_words(packaged())
    assert renamed.keys() == network.state_dict().keys() and len(renamed) == len(state)
    assert all(torch.equal(one, other) for one, other in zip(state.values(), renamed.values()))


def test_a_state_dict_of_timms_keeps_its_names(network):
    state = network.state_dict()
    assert pretrained.in_timms_words(state).keys() == state.keys()


def test_it_says_what_the_packages_own_network_says(network):
    """Pooled features and classes of noise and of photographs, at the side it was trained at."""
    reference = pytest.importorskip(
        "efficientnet_lite_pytorch", reason="of tests/requirements.txt, and not installed")
    from skimage import data, transform

    own = reference.EfficientNet.from_name("efficientnet-lite0")
    own.load_state_dict(packaged())
    own.eval()
    photos = [transform.resize(image, (224, 224)) for image in (data.chelsea(), data.coffee())]
    noise = np.random.default_rng(0).random((2, 224, 224, 3))
    batch = torch.tensor(np.stack([*photos, *noise]) * 255, dtype=torch.float32)
    batch = (batch.permute(0, 3, 1, 2) - 127) / 128
    with torch.inference_mode():
        features = network.forward_head(network.forward_features(batch), pre_logits=True)
        wanted = own.extract_features(batch).mean((2, 3))
        assert torch.allclose(features, wanted, atol=1e-4) and wanted.abs().mean() > 0.1
        said, logits = network(batch), own(batch)
    assert torch.allclose(said, logits, atol=1e-3) and logits.std() > 0.5
    assert said[:2].argmax(1).tolist() == [285, 967]  # ImageNet's Egyptian cat and espresso
    folded = pretrained.fold_norms(copy.deepcopy(network))
    with torch.inference_mode():
        assert torch.allclose(folded(batch), logits, atol=1e-3)
    assert not any("running_mean" in name for name in folded.state_dict())


@pytest.mark.parametrize("module", list(pretrained.PACKAGES))
def test_a_package_that_is_not_there_is_named_in_one_line(module, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name: None if name == module else find(name))
    words = f"needs the package {pretrained.PACKAGES[module]}, which is not"
    with pytest.raises(BadOptions, match=words) as said:
        pretrained.weights_path()
        pretrained.build(pretrained.LITE0, 3)
    assert "setup_env.sh" in str(said.value) and "\n" not in str(said.value)


def test_a_network_that_timm_has_not_is_refused():
    with pytest.raises(BadOptions, match="timm has no network 'resnet19'"):
        pretrained.build("resnet19", 3)


def test_a_model_starts_from_the_packaged_weights_and_has_a_new_head(network):
    torch.manual_seed(0)
    model = cnns.build_model(cnns.LITE0, 3, pretrained.weights_path())
    own, state = model.state_dict(), network.state_dict()
    assert own.keys() == state.keys() and own["classifier.weight"].shape == (3, 1280)
    assert all(torch.equal(own[key], state[key]) for key in own if "classifier" not in key)
