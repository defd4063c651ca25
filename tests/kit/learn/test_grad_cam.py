"""Grad-CAM++: its weights by brute force, its maps beside captum's, and where they lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from lungkit.learn import grad_cam
from lungkit.learn.classify_training import predict
from lungkit.learn.cnns import build_model
from lungkit.learn.feature_grid import Grid
from lungkit.run.faults import Fault


def network(name, seed=0):
    """A network of random weights whose normalisation has seen something."""
    torch.manual_seed(seed)
    model = build_model(name, 3, None)
    with torch.no_grad():
        model.train()(torch.rand(4, 3, 32, 32))
    return model.eval()


# ------------------------------------------------------------------ the weights

def brute_force(maps, score_of):
    """The weights [C] of maps [C, H, W] by the paper's equations, a derivative at a time."""
    maps = maps.clone().requires_grad_()
    y = torch.exp(score_of(maps))
    [first] = torch.autograd.grad(y, maps, create_graph=True)
    weights = torch.zeros(len(maps), dtype=maps.dtype)
    for k, i, j in np.ndindex(*maps.shape):
        second = torch.autograd.grad(first[k, i, j], maps, create_graph=True)[0][k, i, j]
        third = torch.autograd.grad(second, maps, retain_graph=True)[0][k, i, j]
        alpha = second / (2 * second + (maps[k] * third).sum())
        weights[k] += (alpha * first[k, i, j].relu()).detach()
    return weights, y.detach()


@pytest.mark.parametrize("seed", range(3))
def test_the_weights_are_those_of_the_third_derivatives(seed):
    """Of a network that is linear from the map on, up to the factor exp(S) that all share."""
    rng = torch.Generator().manual_seed(seed)
    maps = torch.rand(4, 3, 3, generator=rng, dtype=torch.float64)
    head = torch.randn(4, 3, 3, generator=rng, dtype=torch.float64)
    slope = torch.randn(4, generator=rng, dtype=torch.float64)

    def score_of(maps):
        pooled = (maps * head).sum((1, 2))
        return (slope * functional.leaky_relu(pooled, 0.1)).sum()

    wanted, y = brute_force(maps, score_of)
    shown = maps.clone().requires_grad_()
    [gradients] = torch.autograd.grad(score_of(shown), shown)
    found = grad_cam.weigh(maps[None], gradients[None])[0]
    torch.testing.assert_close(found * y, wanted, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(found, gradients.mean((1, 2)), rtol=0.1), "Grad-CAM's are others"


@pytest.mark.parametrize(("name", "layer"), [("small", "14"), ("resnet18", "layer4")])
def test_map_gradient_and_layer_are_captums(name, layer):
    captum = pytest.importorskip("captum.attr", reason="tests/requirements.txt has it")
    model, inputs = network(name), torch.rand(2, 3, 64, 64)
    asked = torch.tensor([0, 2])
    theirs = captum.LayerGradCam(model, getattr(model, layer)).attribute(
        inputs, asked, relu_attributions=False)
    maps, scores, _ = grad_cam.feature_maps(model, inputs)
    [gradients] = torch.autograd.grad(scores.gather(1, asked[:, None]).sum(), maps)
    ours = (gradients.mean((2, 3), keepdim=True) * maps).sum(1)
    torch.testing.assert_close(ours, theirs[:, 0].detach(), rtol=1e-4, atol=1e-6)


def test_what_is_explained_is_the_class_asked_for_and_else_the_one_said():
    model, inputs = network("small"), torch.rand(4, 3, 64, 64)
    maps, scores, _ = grad_cam.grad_cam_pp(model, inputs)
    said, _, _ = grad_cam.grad_cam_pp(model, inputs, scores.argmax(1))
    other, _, _ = grad_cam.grad_cam_pp(model, inputs, scores.argmin(1))
    assert torch.equal(maps, said) and not torch.allclose(maps, other)
    assert maps.shape == (4, 4, 4) and (maps >= 0).all()


def test_a_finer_map_is_of_an_earlier_layer_and_none_is_said():
    model, inputs = network("small"), torch.rand(1, 3, 64, 64)
    assert grad_cam.feature_maps(model, inputs, 5)[0].shape[1:] == (64, 8, 8)
    with pytest.raises(Fault, match="no feature map of 65 x 65 places of images of 64 px"):
        grad_cam.feature_maps(model, inputs, 65)


# ------------------------------------------------------------------ where its places lie

class Same(nn.Conv2d):
    """A convolution that pads as TensorFlow does: the odd pixel at the end."""

    def forward(self, inputs):
        size, kernel, stride = inputs.shape[-1], self.kernel_size[0], self.stride[0]
        pad = max(0, (-(-size // stride) - 1) * stride + kernel - size)
        return super().forward(functional.pad(inputs, [pad // 2, pad - pad // 2] * 2))


def enlarged(model):
    model.register_forward_pre_hook(lambda _, inputs: (functional.interpolate(
        inputs[0], size=(192, 192), mode="bicubic"),))
    return model


WAYS = {
    "stride 2, padded both sides": lambda: nn.Sequential(
        nn.Conv2d(3, 2, 3, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 3, 2, 1), nn.Conv2d(2, 2, 3, 1, 1)),
    "patches": lambda: nn.Sequential(nn.Conv2d(3, 2, 4, 4), nn.Conv2d(2, 2, 7, 1, 3)),
    "pools": lambda: nn.Sequential(nn.Conv2d(3, 2, 7, 2, 3), nn.AvgPool2d(3, 2, 1),
                                   nn.AvgPool2d(2, 2)),
    "padded at the end": lambda: nn.Sequential(Same(3, 2, 3, 2), Same(2, 2, 5, 2)),
    "not padded, dilated": lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.Conv2d(2, 2, 3, 2,
                                                                                dilation=2)),
    "enlarged first": lambda: enlarged(nn.Sequential(nn.Conv2d(3, 2, 3, 2, 1),
                                                     nn.Conv2d(2, 2, 3, 4, 1))),
    "small": lambda: build_model("small", 2, None)[:15]}


@pytest.mark.parametrize("way", WAYS)
def test_a_place_lies_in_the_middle_of_what_it_sees(way):
    model = WAYS[way]().eval()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.1)
    inputs = torch.rand(1, 3, 96, 96).requires_grad_()
    maps, _, grid = grad_cam.feature_maps(model, inputs)
    place = grid.side // 2
    [seen] = torch.autograd.grad(maps[0, :, place, place].sum(), inputs)
    weights = seen[0].sum((0, 1))
    middle = float((weights * torch.arange(96)).sum() / weights.sum())
    assert grid.start + place * grid.step == pytest.approx(middle, abs=0.02)


def test_a_map_is_enlarged_so_that_its_places_stay_where_they_are():
    maps = torch.rand(2, 4, 4)
    large = Grid(0.0, 16.0, 4).enlarge(maps, 64)
    torch.testing.assert_close(large[:, ::16, ::16], maps)
    torch.testing.assert_close(large[:, 8, 0], (maps[:, 0, 0] + maps[:, 1, 0]) / 2)
    assert torch.equal(large[:, 63, 63], large[:, 48, 48])


# ------------------------------------------------------------------ many images

@pytest.mark.parametrize("channels", [1, 3])
def test_maps_are_from_0_to_1_and_the_probabilities_those_of_testing(channels):
    model = network("small").train()
    images = torch.randint(0, 256, (5, 64, 64, channels), dtype=torch.uint8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    maps, probabilities, grid = grad_cam.explain(model, images)
    assert maps.shape == (5, 64, 64) and grid.side == 4
    assert maps.min() >= 0 and maps.max((1, 2)).tolist() == pytest.approx([1] * 5, abs=0.3)
    np.testing.assert_allclose(probabilities, predict(model, images), atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_map_of_nothing_stays_nothing():
    model = network("small")
    nn.init.constant_(model[-1].weight, -1.0)
    images = torch.randint(0, 256, (2, 64, 64, 1), dtype=torch.uint8)
    assert not grad_cam.explain(model, images)[0].any()


def test_shuffled_weights_are_the_same_in_another_order_and_nothing_is_learnt_of_them():
    model = network("small")
    images = torch.randint(0, 256, (40, 32, 32, 1), dtype=torch.uint8)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    one, again, two = (grad_cam.shuffle_weights(model, images, seed) for seed in (0, 0, 1))
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter.flatten().sort().values, kept[name].flatten().sort().values)
        assert torch.equal(parameter, dict(again.named_parameters())[name])
    assert not torch.equal(one[0].weight, model[0].weight)
    assert not torch.equal(one[0].weight, two[0].weight)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    made = one[:2](images.float().permute(0, 3, 1, 2).expand(-1, 3, -1, -1) / 255)
    assert not one.training and torch.isfinite(made).all()
    assert not torch.equal(one[1].running_mean, model[1].running_mean)
