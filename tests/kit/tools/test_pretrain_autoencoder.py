"""The autoencoder that keeps fine detail: what it is shown, its loss, its recipe."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from arms import content
from lungkit.run.faults import Stopped
from lungkit.run.seeds import generator_for
from lungkit.tools import base_of_tissue, linear_start, pretrain_autoencoder


@pytest.fixture
def shrunk(monkeypatch):
    """The recipe on tiles of 80 px and images of 32 px."""
    monkeypatch.setattr(pretrain_autoencoder, "IMAGE_SIZE", 32)
    monkeypatch.setattr(base_of_tissue, "TILE_SIZE", 80)
    monkeypatch.setattr(linear_start, "FIRST", 2)


# ------------------------------------------------------------------ what it is shown

@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(60, 200, (3, 80, 80, 3), np.uint8)


def batches(images, number: int) -> list:
    """Tissue of `number` batches, each [6, 3, 32, 32], and their textures, each [2, 3, 32, 32]."""
    from lungkit.run.seeds import generator_for

    drawn = [pretrain_autoencoder.images_of(images, generator_for(0, i)) for i in range(number)]
    return [(each[:6], each[6:]) for each in drawn]


def test_stain_is_varied_in_most_images_and_in_each_its_own_way(shrunk):
    grey = np.full((2, 80, 80, 3), 128, np.uint8)
    colours = [tuple(round(float(value), 3) for value in (image[:, 0, 0] + 1) / 2)
               for tissue, _ in batches(grey, 10) for image in tissue]
    plain = [colour for colour in colours if colour == (0.502,) * 3]
    varied = set(colours) - set(plain)
    assert len(plain) + len(varied) == len(colours) == 60
    assert len(varied) / 60 == pytest.approx(pretrain_autoencoder.VARIED_SHARE, abs=0.15)
    light = np.array(sorted(varied))  # to powers of 0.6 to 1.6
    assert light.min() >= 0.5**1.6 - 0.01 and light.max() <= 0.51**0.6 + 0.01


def test_crops_are_of_every_zoom_and_orientation_and_every_other_one_is_whole(shrunk, monkeypatch):
    monkeypatch.setattr(pretrain_autoencoder, "VARIED_SHARE", 0.0)
    rows, columns = np.indices((80, 80)) * 3
    ramp = np.stack([rows, columns, rows * 0], -1).astype(np.uint8)[None]
    spans, ways = [], set()
    for tissue, _ in batches(ramp, 40):
        for image in (tissue + 1) * 127.5:
            down, right = (float(image[0, -1, 0] - image[0, 0, 0]),
                           float(image[0, 0, -1] - image[0, 0, 0]))
            spans.append(max(abs(down), abs(right)))
            across = float(image[1, 0, -1] - image[1, 0, 0])
            ways.add(tuple(int(np.sign(round(each))) for each in (down, right, across)))
    assert min(spans[1::2]) > 225 and min(spans[::2]) < 110 and max(spans[::2]) > 200
    assert len(ways) == 6  # eight orientations, of which this reading tells so many apart


def test_textures_are_sharp_and_smooth_of_many_colours_and_never_tissue(tiles, shrunk):
    shown = np.concatenate([texture for _, texture in batches(tiles, 40)])
    assert shown.shape == (80, 3, 32, 32) and -1 <= shown.min() and shown.max() <= 1
    steps = np.abs(np.diff(shown, axis=-1)).mean((1, 2, 3)) / shown.std((1, 2, 3))
    assert steps.min() < 0.2 and steps.max() > 0.7
    assert shown.mean((2, 3)).std(0).min() > 0.15
    assert np.array_equal(shown, np.concatenate([each for _, each in batches(tiles, 40)]))


# ------------------------------------------------------------------ the recipe, much smaller

def build(output, *more: str) -> int:
    return pretrain_autoencoder.main([
        "--output", str(output), "--num-tiles", "4", "--linear-steps", "2", "--steps", "2",
        "--device", "cpu", *more])


def test_stopped_in_every_part_and_run_again_it_makes_the_same_autoencoder(
        shrunk, tmp_path, monkeypatch, capfd):
    """One that diffusion_seg.py takes, whose factor brings its latents to unit deviation."""
    import cv2
    from diffusers import AutoencoderKL

    import diffusion_seg
    from lungkit.generate.latents import Latents

    def stop() -> None:
        raise Stopped("stopped by the test")
    assert build(tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr("lungkit.learn.loop.CHECKPOINT_INTERVAL_SEC", 0.0)
        patch.setattr("lungkit.run.ranks.check_stop", stop)
        assert [build(tmp_path / "parts") for _ in range(3)] == [75, 75, 0]
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {"vae", "autoencoder.json"}
    assert build(tmp_path / "whole") == 0 and "already complete" in capfd.readouterr().err
    assert build(tmp_path / "whole", "--seed", "1") == 2

    real = {"modality": "he", "channels": 3}
    part = diffusion_seg.find_autoencoder(str(tmp_path / "whole"), real)
    vae = AutoencoderKL.from_pretrained(part.folder).float()
    tiles, _, _ = base_of_tissue.draw_tissue(4, 0, tmp_path)
    small = np.stack([cv2.resize(tile, (32, 32), interpolation=cv2.INTER_AREA) for tile in tiles])
    assert Latents(vae, small).deviation() * vae.config.scaling_factor == pytest.approx(1, abs=0.02)


def test_a_dry_run_writes_nothing(tmp_path):
    assert build(tmp_path / "out", "--dry-run") == 0 and not list(tmp_path.iterdir())


def test_the_loss_is_each_images_error_and_a_tiny_divergence(shrunk, monkeypatch, tmp_path):
    class Off(torch.nn.Linear):
        """An autoencoder that gives images back off by a quarter."""

        def encode(self, images):
            return SimpleNamespace(latent_dist=SimpleNamespace(
                mean=images, std=torch.zeros_like(images), kl=lambda: torch.full((8,), 1e5)))

        def decode(self, latents):
            return SimpleNamespace(sample=latents + 0.25)

    def train(parameters, loss_at, **more):
        losses.append(float(loss_at(0, generator_for(0, 0))))
        raise Stopped("here")
    losses = []
    monkeypatch.setattr(pretrain_autoencoder, "build", lambda: Off(1, 1))
    monkeypatch.setattr("lungkit.tools.linear_start.train_start", lambda *_, **more: 0.0)
    monkeypatch.setattr("lungkit.learn.loop.train", train)
    with pytest.raises(Stopped):
        pretrain_autoencoder.pretrain(tmp_path, num_tiles=2, linear_steps=1, steps=1, seed=0,
                                      precision="fp32", device=torch.device("cpu"))
    assert losses == [pytest.approx(0.25 + 0.1, rel=1e-3)]
