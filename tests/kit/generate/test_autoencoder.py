"""A decoder that goes on with real's images: what it learns, what stays, what a stop changes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lungkit.generate import autoencoder
from lungkit.generate.base_model import BASE_MODEL_DIR
from lungkit.generate.latents import to_model_range, to_pixels
from lungkit.run import faults

CPU = torch.device("cpu")
STEPS = {"decoder_steps": 30, "decoder_batch_size": 4}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def base():
    return autoencoder.open_autoencoder(BASE_MODEL_DIR / "vae", CPU)


def pictures(number=6, size=32):
    """Stripes in a stain that the embedded decoder has not seen, uint8 [N, S, S, 3]."""
    rng = np.random.default_rng(0)
    rows = np.indices((size, size))[0] // 4 % 2
    return np.stack([np.clip(np.stack([60 + 90 * rows, 160 - 60 * rows, 90 + 30 * rows], -1)
                             + rng.normal(0, 4, (size, size, 3)), 0, 255)
                     for _ in range(number)]).astype(np.uint8)


def arm_of(folder, images, *, seen=None, symmetries=8, seed=0):
    """What `fit_decoder` takes of an Arm; seen: places of the images learnt from."""
    def watched(loss_over, *, steps):
        return loss_over(list(range(len(images))) if seen is None else seen), None

    (folder / "work").mkdir(parents=True, exist_ok=True)
    return SimpleNamespace(
        stage="prompt_seg", seed=seed, device=CPU, watched=watched,
        data=SimpleNamespace(load=lambda split: {"train": (images, None)}[split],
                             symmetries=symmetries),
        weights=SimpleNamespace(work_dir=folder / "work", output_dir=folder / "work"))


def error_of(vae, images) -> float:
    batch = to_model_range(images)
    with torch.no_grad():
        back = to_pixels(vae.decode(vae.encode(batch).latent_dist.mean).sample)
    return float(np.abs(back.astype(float) - images).mean())


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(),
                                                 strict=True))


def test_the_decoder_learns_to_give_back_and_the_latents_stay(tmp_path):
    vae, untouched, images = base(), base(), pictures()
    arm = arm_of(tmp_path, images)
    losses = autoencoder.fit_decoder(arm, vae, **STEPS)
    assert losses.keys() == {"decoder"} and 0 < losses["decoder"] < 1
    assert error_of(vae, images) < 0.7 * error_of(untouched, images)
    assert same(vae.encoder, untouched.encoder) and same(vae.quant_conv, untouched.quant_conv)
    assert not same(vae.decoder, untouched.decoder)
    assert not same(vae.post_quant_conv, untouched.post_quant_conv)
    assert not any(each.requires_grad for each in vae.parameters())


def test_what_is_saved_is_what_is_drawn_by(tmp_path):
    vae, arm = base(), arm_of(tmp_path, pictures())
    autoencoder.fit_decoder(arm, vae, **STEPS)
    assert (tmp_path / "work/vae/loss.csv").exists()
    drawer = SimpleNamespace(vae=None)
    autoencoder.draw_by_fitted(arm, drawer, STEPS)
    assert same(drawer.vae, vae) and not drawer.vae.training
    autoencoder.draw_by_fitted(arm, other := SimpleNamespace(vae="base"), {})
    assert other.vae == "base"
    files = autoencoder.files_of(STEPS)
    assert len(files) == 2 and all((tmp_path / "work" / name).is_file() for name in files)
    assert autoencoder.files_of({"decoder_steps": 0}) == []


def test_nothing_is_done_at_no_steps(tmp_path):
    vae, untouched = base(), base()
    assert autoencoder.fit_decoder(arm_of(tmp_path, pictures()), vae) == {}
    assert same(vae, untouched) and not list((tmp_path / "work").iterdir())
    assert autoencoder.settings_of({"decoder_steps": 0, "decoder_batch_size": 4}) == {}
    assert autoencoder.settings_of({**STEPS, "rank": 3}) == STEPS


def test_what_is_held_out_is_not_learnt_from(tmp_path):
    images = pictures(4)
    images[2:] = 255 - images[2:]
    found = []
    for number, seen in enumerate(([0, 1], [2, 3])):
        vae = base()
        autoencoder.fit_decoder(arm_of(tmp_path / str(number), images, seen=seen), vae, **STEPS)
        found.append([error_of(vae, images[:2]), error_of(vae, images[2:])])
    assert found[0][0] < 0.8 * found[1][0] and found[1][1] < 0.8 * found[0][1]


@pytest.mark.parametrize(("symmetries", "number"), [(8, 8), (2, 2), (1, 1)])
def test_images_are_turned_as_their_dataset_allows(symmetries, number, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("lungkit.data.orientations.orient",
                        lambda batch, which, of: seen.append((which, of)) or batch)
    arm = arm_of(tmp_path, pictures(2), symmetries=symmetries)
    autoencoder.fit_decoder(arm, base(), decoder_steps=40, decoder_batch_size=1)
    assert len({which for which, _ in seen}) == number and {of for _, of in seen} == {symmetries}


def test_a_stopped_fit_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    from lungkit.learn import loop

    autoencoder.fit_decoder(arm_of(tmp_path / "whole", pictures()), base(), **STEPS)
    steps, update = [], loop.update

    def stop_at_seven(*given):
        steps.append(1)
        if len(steps) == 7:
            faults.note_signal(15, None)
        update(*given)

    monkeypatch.setattr(loop, "SYNC_STEPS", 1)
    monkeypatch.setattr(loop, "update", stop_at_seven)
    with pytest.raises(faults.Stopped):
        autoencoder.fit_decoder(arm_of(tmp_path / "parts", pictures()), base(), **STEPS)
    faults.forget_signals()
    assert not (tmp_path / "parts/work/vae").exists()
    vae = base()
    autoencoder.fit_decoder(arm_of(tmp_path / "parts", pictures()), vae, **STEPS)
    assert len(steps) == 30
    files = [{path.name: path.read_bytes() for path in (tmp_path / name / "work/vae").iterdir()}
             for name in ("whole", "parts")]
    assert files[0] == files[1] and "diffusion_pytorch_model.safetensors" in files[0]
    again = base()  # a run that is stopped later finds it fitted
    assert autoencoder.fit_decoder(arm_of(tmp_path / "parts", pictures()), again, **STEPS).keys() \
        == {"decoder"}
    assert len(steps) == 30 and same(again, vae)


def test_seeds_of_arms_differ(tmp_path):
    loss = [autoencoder.fit_decoder(arm_of(tmp_path / str(seed), pictures(), seed=seed), base(),
                                    decoder_steps=1, decoder_batch_size=4)["decoder"]
            for seed in (0, 1, 0)]
    assert loss[0] != loss[1]
    assert loss[0] != autoencoder.fit_decoder(SimpleNamespace(
        **{**vars(arm_of(tmp_path / "other", pictures())), "stage": "context_seg"}), base(),
        decoder_steps=1, decoder_batch_size=4)["decoder"]


def test_grey_images_are_given_back_by_an_autoencoder_of_colour(tmp_path):
    images = pictures().mean(-1, keepdims=True).astype(np.uint8)
    vae, untouched = base(), base()
    autoencoder.fit_decoder(arm_of(tmp_path, images), vae, **STEPS)
    three = np.repeat(images, 3, -1)
    assert error_of(vae, three) < 0.8 * error_of(untouched, three)


def test_a_decoder_without_a_convolution_before_it_is_fitted_too(tmp_path):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, mid_block_add_attention=False,
                        down_block_types=("DownEncoderBlock2D",),
                        up_block_types=("UpDecoderBlock2D",), use_quant_conv=False,
                        use_post_quant_conv=False)
    before = vae.decoder.conv_in.weight.detach().clone()
    assert autoencoder.fit_decoder(arm_of(tmp_path, pictures()), vae, **STEPS).keys() == {"decoder"}
    assert not torch.equal(vae.decoder.conv_in.weight, before)
