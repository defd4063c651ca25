"""An autoencoder that starts as a linear one: principal components, then the whole network."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lungkit.run.seeds import generator_for
from lungkit.tools import linear_start
from lungkit.tools.pretrain_autoencoder import LATENT_CHANNELS, build


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Smooth fields with three levels of detail, float32 [12, 3, 32, 32]."""
    draw = partial(torch.randn, generator=generator_for(3))
    fields = sum(F.interpolate(draw((12, 3, side, side)), size=32, mode="bicubic") * side**-0.4
                 for side in (4, 8, 32))
    return fields / 4


@torch.no_grad()
def test_it_begins_as_the_principal_components_of_patches(images):
    vae = build()
    linear_start.begin(vae, images)
    found = linear_start.encode(vae, images).movedim(1, -1).flatten(0, 2)
    patches = np.stack([image[:, row:row + 4, column:column + 4].ravel()
                        for image in images.numpy() for row in range(0, 32, 4)
                        for column in range(0, 32, 4)]).astype(float)
    patches -= patches.mean(0)
    powers, vectors = np.linalg.eigh(patches.T @ patches / (len(patches) - 1))
    kept = vectors[:, ::-1][:, :LATENT_CHANNELS]
    expected = patches @ kept / np.sqrt(powers[::-1][:kept.shape[1]].mean())
    signs = np.sign((found.numpy() * expected).sum(0))
    assert np.allclose(found, expected * signs, atol=1e-3)
    assert found.square().mean() == pytest.approx(1, abs=0.01)


@torch.no_grad()
@pytest.mark.parametrize("contrast", [1.0, 0.5])  # of images, over those that it is joined by
def test_joining_changes_nothing_of_what_the_linear_path_gives(contrast, images):
    vae = build()
    linear_start.begin(vae, images)
    deviation = linear_start.encode(vae, images).std()
    fainter = images * contrast
    latents = linear_start.encode(vae, fainter)
    linear = linear_start.decode(vae, latents)
    linear_start.join(vae, images)
    posterior = vae.encode(fainter).latent_dist
    whole = vae.decode(latents).sample
    for one, other in ((posterior.mean, latents), (whole, linear)):
        assert (one - other).square().mean() < 0.005 * other.var()
    assert torch.allclose(posterior.std,
                          (linear_start.NOISE * deviation).expand_as(posterior.std), rtol=1e-3)


def test_every_weight_learns_once_it_is_joined(images):
    vae = build()
    linear_start.begin(vae, images)
    linear_start.join(vae, images)
    for _ in range(2):  # branches that begin at zero let their inner layers learn from then on
        posterior = vae.encode(images).latent_dist
        loss = linear_start.error_of(vae.decode(posterior.mean + posterior.std).sample, images)
        loss.mean().backward()
        with torch.no_grad():
            for parameter in vae.parameters():
                parameter -= 1e-3 * parameter.grad.sign()
    assert not [name for name, parameter in vae.named_parameters()
                if not parameter.grad.abs().max() > 0]


def test_the_error_is_the_root_mean_square_of_each_image_and_has_a_gradient_at_none():
    images = torch.zeros(2, 3, 8, 8, requires_grad=True)
    off = torch.tensor([0.0, 0.5])[:, None, None, None]
    found = linear_start.error_of(images + off, torch.zeros(2, 3, 8, 8))
    assert found.tolist() == pytest.approx([1e-5**0.5, 0.5], rel=1e-4)
    found.sum().backward()
    assert images.grad.isfinite().all()


def test_training_along_the_linear_path_gives_images_back_better(images, tmp_path, monkeypatch):
    monkeypatch.setattr(linear_start, "FIRST", 1)
    monkeypatch.setattr(linear_start, "JOINED", 1)
    errors = []
    for steps in (1, 30):
        vae = build()
        (tmp_path / str(steps)).mkdir()
        linear_start.train_start(vae, lambda generator: images, steps=steps, seed=0,
                                 work_dir=tmp_path / str(steps), precision="fp32")
        with torch.no_grad():
            decoded = vae.decode(vae.encode(images).latent_dist.mean).sample
        errors.append(float(linear_start.error_of(decoded, images).mean()))
    assert errors[1] < 0.7 * errors[0] < 0.7 * float(images.std()) * 1.5
