"""What the three generators share: ranges, orientations, latents, schedule, loss, sampler."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lungkit.data.orientations import orient
from lungkit.generate.latents import (
    Latents,
    denoising_loss,
    min_snr_weight,
    sampler,
    to_model_range,
    to_pixels,
    training_schedule,
)
from lungkit.learn.device import autocast

CPU = torch.device("cpu")


def epsilon_schedule():
    """The schedule of Stable Diffusion 1.5."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
                         prediction_type="epsilon", clip_sample=False, steps_offset=1)


def sample_schedule():
    """One of a base that predicts the clean latents, with zero terminal SNR."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(training_schedule().config, prediction_type="sample")


SCHEDULES = {"v_prediction": training_schedule, "epsilon": epsilon_schedule,
             "sample": sample_schedule}


def pictures(number: int, size: int = 4) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (number, size, size, 3), np.uint8)


class Pixels(torch.nn.Module):
    """An autoencoder whose posterior is the image itself with one deviation everywhere."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(()))
        self.deviation = deviation
        self.config = SimpleNamespace(in_channels=3)

    def encode(self, images):
        return SimpleNamespace(latent_dist=SimpleNamespace(
            mean=images, std=torch.full_like(images, self.deviation)))


# ------------------------------------------------------------------ ranges and orientations

def test_black_is_minus_one_white_is_one_and_channels_keep_their_order():
    image = np.zeros((1, 2, 2, 3), np.uint8)
    image[0, 0, 1] = 255, 0, 51
    ranged = to_model_range(image)
    assert ranged.shape == (1, 3, 2, 2) and ranged.dtype == torch.float32
    assert ranged[0, :, 0, 1].tolist() == pytest.approx([1, -1, -0.6])
    assert ranged[0, :, 1, 0].tolist() == [-1, -1, -1]


def test_pixels_survive_the_model_range():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    levels[..., 1] = levels[..., 1].T.reshape(1, 16, 16)
    assert np.array_equal(to_pixels(to_model_range(levels)), levels)


@pytest.mark.parametrize(("value", "pixel"), [
    (-1, 0), (0, 128), (1, 255), (-1.5, 0), (7, 255), (0.1, 140), (1 / 127.5 * 0.9 - 1, 1)])
def test_a_decoded_value_is_rounded_and_clamped_to_a_pixel(value, pixel):
    assert to_pixels(torch.full((1, 3, 1, 1), float(value))).tolist() == [[[[pixel] * 3]]]


def test_the_eight_orientations_are_quarter_turns_then_mirrored_ones():
    image = torch.arange(18.0).reshape(1, 2, 3, 3)
    turned = [orient(image, which) for which in range(8)]
    for which in range(8):
        expected = np.rot90(image.numpy(), which % 4, (2, 3))
        assert np.array_equal(turned[which], expected[..., ::-1] if which >= 4 else expected)
    assert len({tuple(part.flatten().tolist()) for part in turned}) == 8


# ------------------------------------------------------------------ latents

def test_a_latent_is_that_of_its_image_in_its_orientation():
    images = pictures(5)
    latents = Latents(Pixels(0.0), images, batch_size=2)
    picks = torch.arange(5).repeat_interleave(8)
    which = torch.arange(8).repeat(5)
    drawn = latents.draw(picks, which, torch.Generator().manual_seed(0))
    for latent, pick, orientation in zip(drawn, picks.tolist(), which.tolist(), strict=True):
        expected = orient(to_model_range(images[pick:pick + 1]), orientation)[0]
        assert torch.allclose(latent, expected, atol=1e-3)
    assert len(latents) == 5


def test_what_a_gpu_has_no_room_for_is_encoded_in_halves_and_in_order(monkeypatch):
    images, asked = pictures(7), []
    whole, encode = Latents(Pixels(0.5), images, symmetries=2), Pixels.encode

    def encode_few(self, batch):
        asked.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(self, batch)

    monkeypatch.setattr(Pixels, "encode", encode_few)
    latents = Latents(Pixels(0.5), images, symmetries=2)
    assert asked == [7, 3, 4, 2, 2] * 2
    assert torch.equal(latents.mean, whole.mean) and torch.equal(latents.std, whole.std)


def test_a_latent_is_drawn_from_the_posterior_anew_each_time():
    latents = Latents(Pixels(0.5), pictures(1, 32))
    place = torch.zeros(1, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    first, second = (latents.draw(place, place, generator) for _ in range(2))
    mean = to_model_range(pictures(1, 32))
    assert float((first - mean).std()) == pytest.approx(0.5, rel=0.05)
    assert float((first - second).std()) == pytest.approx(0.5 * 2 ** 0.5, rel=0.05)
    again = latents.draw(place, place, torch.Generator().manual_seed(0))
    assert torch.equal(again, first)


def test_the_deviation_counts_the_posterior_and_the_spread_of_the_means():
    images = np.zeros((2, 32, 32, 3), np.uint8)
    images[1] = 255  # means of -1 and 1: variance 1
    assert Latents(Pixels(0.0), images).deviation() == pytest.approx(1, abs=1e-3)
    assert Latents(Pixels(0.75), images).deviation() == pytest.approx(1.25, abs=1e-3)


@pytest.mark.parametrize("symmetries", [2, 1])
def test_latents_are_of_the_orientations_that_the_dataset_allows(symmetries):
    images = pictures(3)
    latents = Latents(Pixels(0.0), images, symmetries=symmetries)
    assert latents.mean.shape[:2] == (symmetries, 3)
    assert latents.subset([1]).symmetries == symmetries
    plain = to_model_range(images)
    expected = [plain, plain.flip(-1)][:symmetries]
    assert torch.allclose(latents.mean.float(), torch.stack(expected), atol=1e-3)


def test_nothing_is_said_of_images_that_may_not_be_written_to():
    images = pictures(2)
    images.flags.writeable = False
    torch.set_warn_always(True)  # else once a process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(to_model_range(images), to_model_range(pictures(2)))
    finally:
        torch.set_warn_always(False)


def test_grey_images_are_seen_in_three_channels():
    grey = pictures(2)[..., :1]
    assert torch.equal(to_model_range(grey), to_model_range(grey.repeat(3, axis=-1)))


def test_a_subset_holds_the_asked_images_in_their_order():
    images = pictures(4)
    latents = Latents(Pixels(0.0), images)
    part = latents.subset([3, 1])
    zeros = torch.zeros(2, dtype=torch.int64)
    drawn = part.draw(torch.tensor([0, 1]), zeros, torch.Generator().manual_seed(0))
    assert torch.allclose(drawn, to_model_range(images[[3, 1]]), atol=1e-3)
    assert len(part) == 2 and len(latents) == 4


# ------------------------------------------------------------------ schedule and loss

def test_the_last_step_of_the_training_schedule_is_pure_noise():
    schedule = training_schedule()
    alphas = schedule.alphas_cumprod
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    root = (1 - betas).cumprod(0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])  # Lin et al. 2023, algorithm 1
    assert alphas.tolist() == pytest.approx(root.square().tolist(), abs=1e-5) and alphas[-1] == 0
    noise = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    noisiest = schedule.add_noise(torch.full_like(noise, 9), noise, torch.tensor([999]))
    assert torch.equal(noisiest, noise)


@pytest.mark.parametrize(("kind", "weight"), [
    ("v_prediction", lambda snr: min(snr, 5) / (snr + 1)),
    ("epsilon", lambda snr: min(snr, 5) / snr), ("sample", lambda snr: min(snr, 5))])
def test_a_timestep_weighs_as_in_the_paper(kind, weight):
    schedule = SCHEDULES[kind]()
    times = torch.tensor([0, 100, 400, 700, 998])
    alphas = schedule.alphas_cumprod[times].double()
    snr = (alphas / (1 - alphas)).tolist()
    assert snr[0] > 5 > snr[-1]  # on both sides of gamma
    assert min_snr_weight(schedule, times, 5.0).tolist() == pytest.approx(
        [weight(value) for value in snr], rel=1e-4)


def exact_target(schedule, kind: str, clean: torch.Tensor, noisy: torch.Tensor, times):
    """What a perfect model answers, from the forward process alone (Salimans & Ho 2022)."""
    alpha = schedule.alphas_cumprod[times].reshape(-1, 1, 1, 1)
    noise = (noisy - alpha.sqrt() * clean) / (1 - alpha).sqrt()
    if kind == "sample":
        return clean.expand_as(noisy)
    return noise if kind == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * clean


@pytest.mark.parametrize("kind", list(SCHEDULES))
def test_the_loss_is_the_weighted_squared_error_of_what_the_schedule_predicts(kind):
    schedule = SCHEDULES[kind]()
    clean = torch.randn(64, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    off = torch.linspace(0.5, 3, 64)
    asked = {}

    def predict(noisy, times):
        asked["times"] = times
        return exact_target(schedule, kind, clean, noisy, times) + off.reshape(-1, 1, 1, 1)

    def draws():
        return torch.Generator().manual_seed(2)

    loss = denoising_loss(predict, schedule, clean, draws())
    weights = min_snr_weight(schedule, asked["times"], 5.0)
    assert float(loss) == pytest.approx(float((weights * off.square()).mean()), rel=1e-3)
    off = torch.zeros(64)
    assert float(denoising_loss(predict, schedule, clean, draws())) == pytest.approx(0, abs=1e-4)


def test_training_times_cover_the_whole_schedule_and_differ_within_a_batch():
    asked = []
    latents = torch.zeros(20000, 1, 1, 1)
    denoising_loss(lambda noisy, times: asked.append(times) or noisy, training_schedule(), latents,
                   torch.Generator().manual_seed(0))
    counts = torch.bincount(asked[0], minlength=1000)
    assert len(counts) == 1000 and counts.min() > 0 and counts.max() < 60


def test_noise_is_drawn_anew_for_every_latent():
    seen = []
    denoising_loss(lambda noisy, times: seen.append((noisy, times)) or noisy, training_schedule(),
                   torch.zeros(64, 4, 4, 4), torch.Generator().manual_seed(0))
    noisy, times = seen[0]
    alphas = training_schedule().alphas_cumprod[times].reshape(-1, 1, 1, 1)
    noise = noisy / (1 - alphas).sqrt()
    assert float(noise.std()) == pytest.approx(1, rel=0.05)
    assert not torch.allclose(noise[0], noise[1])


# ------------------------------------------------------------------ sampling

@pytest.mark.parametrize(("name", "kind", "first"), [
    ("dpm", "v_prediction", 999), ("ddim", "v_prediction", 999),
    ("dpm", "epsilon", 999), ("ddim", "epsilon", 901)])  # leading steps, as SD 1.5 was released
def test_sampling_starts_where_the_schedule_ends(name, kind, first):
    solver = sampler(name, SCHEDULES[kind]().config)
    solver.set_timesteps(10)
    times = solver.timesteps.tolist()
    assert times[0] == first and len(times) == 10 and times == sorted(times, reverse=True)


# DDIM may end at step 0
@pytest.mark.parametrize(("name", "rest"), [("dpm", 1e-3), ("ddim", 0.06)])
@pytest.mark.parametrize("kind", list(SCHEDULES))
@pytest.mark.parametrize("steps", [2, 7])
def test_a_perfect_model_is_sampled_to_its_image_however_large_its_latents(name, rest, kind, steps):
    schedule = SCHEDULES[kind]()
    solver = sampler(name, schedule.config)
    solver.set_timesteps(steps)
    clean = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(1)) * 6
    latents = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    for t in solver.timesteps:
        answer = exact_target(schedule, kind, clean, latents, t[None])
        latents = solver.step(answer, t, latents).prev_sample
    assert float((latents - clean).abs().max()) < rest, "clipped, or taken for another prediction"


def test_the_cpu_computes_in_float32():
    with autocast(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


# ------------------------------------------------------------------ batches

def picks_of(classes: list[int], batch_size: int, *keys: int) -> list[list[int]]:
    from lungkit.generate.latents import pick_images
    from lungkit.run.seeds import generator_for

    return [pick_images(torch.tensor(classes), batch_size, generator_for(0, key)).tolist()
            for key in keys]


@pytest.mark.parametrize("batch_size", [2, 3, 7, 16])
def test_each_class_is_picked_equally_often_and_each_image_of_it(batch_size):
    classes = [0, 1, 1, 1, 1, 2, 2, 0, 2, 2, 2, 2]
    batches = picks_of(classes, batch_size, *range(2000 // batch_size))
    for batch in batches:
        counts = torch.bincount(torch.tensor([classes[i] for i in batch]), minlength=3)
        assert len(batch) == batch_size and counts.max() - counts.min() <= 1
    seen = torch.bincount(torch.tensor(batches).flatten(), minlength=12) / (
        batch_size * len(batches))
    expected = [1 / 3 / classes.count(label) for label in classes]
    assert seen.tolist() == pytest.approx(expected, abs=0.03)


def test_a_batch_depends_on_its_generator_alone():
    one, other, again = picks_of([0, 0, 1, 1, 1], 8, 3, 4, 3)
    assert one == again != other
