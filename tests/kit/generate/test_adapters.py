"""The fine-tuning that the adapter arms share: loss, adapters, pipelines, drawing, base models."""

from __future__ import annotations

import json
import random
import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lungkit.generate.adapters import TARGET_MODULES, denoise_with, train_adapter, training_loss
from lungkit.generate.base_model import (
    BASE_MODEL_DIR,
    BaseModel,
    check_base_model,
    check_image_size,
    resolve_base_model,
)
from lungkit.generate.drawing import draw_images, pipeline
from lungkit.generate.items import require_files
from lungkit.generate.prompts import Prompts
from lungkit.run import faults

SCALE = 0.5


@pytest.fixture(scope="module")
def base() -> BaseModel:
    torch.set_num_threads(1)
    return BaseModel(BASE_MODEL_DIR, torch.device("cpu"))


# ------------------------------------------------------------------ the training loss

class FakeBase:
    """A base whose UNet answers by `answer(noisy, timesteps)` and records what it was asked."""

    device = torch.device("cpu")
    vae = SimpleNamespace(config=SimpleNamespace(scaling_factor=SCALE))

    def __init__(self, kind: str = "epsilon", answer=None, **schedule) -> None:
        from diffusers import DDPMScheduler

        self.schedule = DDPMScheduler(prediction_type=kind, **schedule)
        self.answer = answer or (lambda noisy, timesteps: torch.zeros_like(noisy))
        self.asked, self.captions = [], []

    def encode(self, captions: list[str]):
        self.captions.append(captions)
        return torch.arange(len(captions)).float().reshape(-1, 1, 1)

    def unet(self, noisy, timesteps, **more):
        self.asked.append(SimpleNamespace(noisy=noisy, timesteps=timesteps, **more))
        return SimpleNamespace(sample=self.answer(noisy, timesteps))


CLEAN = {"num_train_timesteps": 1, "beta_start": 1e-8, "beta_end": 1e-8}  # noisy is the latents


class Identity(torch.nn.Module):
    """An autoencoder whose latents are the images, with a posterior of deviation `std`."""

    def __init__(self, std: float = 0.0) -> None:
        super().__init__()
        self.std, self.some = std, torch.nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(in_channels=3)

    def encode(self, images):
        return SimpleNamespace(latent_dist=SimpleNamespace(
            mean=images, std=torch.full_like(images, self.std)))


def latents_of(images: np.ndarray, std: float = 0.0, symmetries: int = 8):
    from lungkit.generate.latents import Latents

    return Latents(Identity(std), images, symmetries=symmetries)


def pictures(number: int = 3, size: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (number, size, size, 3), np.uint8)


def generator(seed: int = 0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_loss_is_that_of_the_bases_own_prediction_type_on_scaled_latents(kind):
    """Recomputed from what the UNet saw: of one image the noise follows from the noisy latents."""
    images = pictures(1)
    images[:] = 200  # the same in every orientation
    base = FakeBase(kind)
    loss = training_loss(base, latents_of(images), lambda i, draw: "x",
                         batch_size=5)(0, generator())
    asked, = base.asked
    alpha = base.schedule.alphas_cumprod[asked.timesteps].double().reshape(-1, 1, 1, 1)
    latents = torch.full_like(asked.noisy, 200 / 127.5 - 1).half().double() * SCALE
    noise = (asked.noisy - alpha.sqrt() * latents) / (1 - alpha).sqrt()
    assert 0.8 < noise.std() < 1.2 and abs(noise.mean()) < 0.25, "latents of another scale"
    snr = (alpha / (1 - alpha)).flatten()
    if kind == "epsilon":
        target, weight = noise, snr.clamp(max=5) / snr
    elif kind == "sample":
        target, weight = latents, snr.clamp(max=5)
    else:
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        weight = snr.clamp(max=5) / (snr + 1)
    expected = (weight * target.square().mean((1, 2, 3))).mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)


def test_a_unet_that_predicts_the_noise_has_no_loss():
    images = np.full((1, 4, 4, 3), 200, np.uint8)
    base = FakeBase()

    def perfect(noisy, timesteps):
        alpha = base.schedule.alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
        latents = torch.full_like(noisy, 200 / 127.5 - 1).half().float() * SCALE
        return (noisy - alpha.sqrt() * latents) / (1 - alpha).sqrt()
    base.answer = perfect
    loss = training_loss(base, latents_of(images), lambda i, draw: "x",
                         batch_size=4)(0, generator())
    assert float(loss) < 1e-5


@pytest.mark.parametrize(("places", "known"), [(None, "01234"), ([4, 1, 3], "134")])
def test_every_image_comes_with_its_own_caption_state_and_control_in_its_orientation(places, known):
    """Latents and maps are the same pictures: what the UNet gets must match what it controls."""
    images, base = pictures(5), FakeBase(**CLEAN)
    controls = []

    def controlnet(noisy, timesteps, *, encoder_hidden_states, controlnet_cond, return_dict):
        controls.append(SimpleNamespace(noisy=noisy, states=encoder_hidden_states,
                                        map=controlnet_cond))
        return "down", "middle"
    loss_at = training_loss(base, latents_of(images), lambda i, draw: str(i), batch_size=64,
                            controlnet=controlnet, maps=images, places=places)
    loss_at(0, generator())
    asked, control, captions = base.asked[0], controls[0], base.captions[0]
    assert asked.down_block_additional_residuals == "down"
    assert asked.mid_block_additional_residual == "middle"
    assert control.map.min() >= 0 and control.map.max() <= 1
    assert torch.allclose(asked.noisy / SCALE, control.map * 2 - 1, atol=2e-2), "map of another"
    assert torch.equal(asked.noisy, control.noisy)
    assert asked.encoder_hidden_states.flatten().tolist() == list(range(64))
    assert torch.equal(asked.encoder_hidden_states, control.states)
    pixels = [sorted(image.flatten().tolist()) for image in images]
    shown = [sorted((one * 255).round().int().flatten().tolist()) for one in control.map]
    named = [(caption, str(pixels.index(one)))
             for caption, one in zip(captions, shown, strict=True)]
    assert all(caption in ("", name) for caption, name in named), "caption of another image"
    assert set(captions) - {""} == set(known), "of all images, or of those places alone"
    seen = {one.numpy().round(2).tobytes() for one in asked.noisy}
    assert len(seen) > 20, "every image in several orientations"


def test_where_there_are_several_classes_a_batch_holds_them_alike():
    base = FakeBase(**CLEAN)
    training_loss(base, latents_of(pictures(5)), lambda i, draw: str(i), batch_size=40,
                  classes=[0, 1, 1, 1, 1])(0, generator())
    assert 14 <= base.captions[0].count("0") <= 20, "a tenth of the captions is empty"


def test_images_and_maps_are_turned_as_their_dataset_allows():
    images, base, maps = pictures(1), FakeBase(**CLEAN), []

    def controlnet(noisy, timesteps, *, controlnet_cond, **more):
        maps.append(controlnet_cond)
        return "down", "middle"
    training_loss(base, latents_of(images, symmetries=2), lambda i, draw: "x", batch_size=32,
                  controlnet=controlnet, maps=images)(0, generator())
    assert torch.allclose(base.asked[0].noisy / SCALE, maps[0] * 2 - 1, atol=2e-2)
    plain = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    turned = {int(torch.equal(one, plain[0])) + 2 * int(torch.equal(one, plain[0].flip(-1)))
              for one in maps[0]}
    assert turned == {1, 2}


@pytest.mark.parametrize("kind", ["sample", "epsilon", "flow_prediction"])
def test_a_base_that_predicts_what_is_not_trained_here_is_refused_by_name(kind, tmp_path):
    shutil.copytree(BASE_MODEL_DIR, tmp_path / "base")
    config = tmp_path / "base" / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "prediction_type": kind}))
    check = partial(check_base_model, tmp_path / "base",
                    {"image_size": 64, "classes": ["lung_n"], "modality": "he"}, Prompts())
    if kind == "flow_prediction":
        with pytest.raises(faults.BadOptions, match="flow_prediction.*v_prediction"):
            check()
    else:
        check()


def test_without_a_controlnet_nothing_is_added_to_the_unet():
    base = FakeBase(**CLEAN)
    training_loss(base, latents_of(pictures()), lambda i, draw: "x", batch_size=2)(0, generator())
    assert set(vars(base.asked[0])) == {"noisy", "timesteps", "encoder_hidden_states"}


def test_a_tenth_of_the_captions_is_empty_each_by_itself():
    base = FakeBase(**CLEAN)
    loss_at = training_loss(base, latents_of(pictures()), lambda i, draw: "x", batch_size=40)
    for step in range(50):
        loss_at(step, generator(step))
    empty = np.array([[caption == "" for caption in captions] for captions in base.captions])
    assert empty.mean() == pytest.approx(0.1, abs=0.025)
    assert ((empty.mean(1) > 0) & (empty.mean(1) < 0.5)).mean() > 0.9, "whole batches at once"


def test_captions_and_images_are_drawn_anew_at_each_step_from_its_generator_alone():
    base = FakeBase(**CLEAN)
    loss_at = training_loss(base, latents_of(pictures()), lambda i, draw: str(draw.random()),
                            batch_size=6)
    for seed in (1, 2, 1):
        random.seed(len(base.captions))
        torch.manual_seed(len(base.captions))
        loss_at(0, generator(seed))
    first, second, again = base.captions
    assert first == again and not set(first) & set(second) - {""}
    assert torch.equal(base.asked[0].noisy, base.asked[2].noisy)


def test_latents_are_samples_of_the_posterior_and_not_its_mean():
    base = FakeBase(**CLEAN)
    images = np.full((1, 8, 8, 3), 128, np.uint8)
    training_loss(base, latents_of(images, std=2.0), lambda i, draw: "x",
                  batch_size=8)(0, generator())
    noisy = base.asked[0].noisy
    assert noisy.std() == pytest.approx(2 * SCALE, rel=0.1)
    assert not torch.allclose(noisy[0], noisy[1])


# ------------------------------------------------------------------ adapters

def shell(kind: str = "lora", **more) -> dict:
    return {"kind": kind, "rank": 3, "target": "attention", "steps": 2, "learning_rate": 0.01,
            "seed": 1, "what": "test", **more}


@pytest.fixture
def small():
    """A base of which train_adapter needs the UNet alone: a small one like Stable Diffusion's."""
    from diffusers import UNet2DConditionModel

    torch.set_num_threads(1)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=4, block_out_channels=(8, 16), cross_attention_dim=8, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), layers_per_block=1,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), norm_num_groups=4)
    unet.requires_grad_(False).eval()
    small = SimpleNamespace(unet=unet, steps=[], learning=set())
    small.fingerprint = lambda: BaseModel.fingerprint(small)

    def loss_at(step, generator):
        small.steps.append(step)
        small.learning = {name for name, p in unet.named_parameters() if p.requires_grad}
        noisy = torch.randn((1, 4, 4, 4), generator=generator)
        words = torch.randn((1, 3, 8), generator=generator)
        return unet(noisy, 5, encoder_hidden_states=words).sample.square().mean()
    small.loss_at = loss_at
    return small


def trained(small, folder, loss_at=None, **options) -> dict:
    from safetensors.torch import load_file

    train_adapter(small, loss_at or small.loss_at, **shell(**options), output_dir=folder,
                  checkpoint_path=folder.with_suffix(".ckpt"),
                  jsonl_path=folder.with_suffix(".jsonl"))
    return load_file(folder / "pytorch_lora_weights.safetensors")


def base_layers(keys) -> set[str]:
    return {key.removeprefix("unet.").partition(".lora_")[0] for key in keys}


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
MORE = ("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "conv_shortcut")


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize(("target", "endings"), [
    ("attention", ATTENTION), ("all", ATTENTION + MORE)])
def test_an_adapter_file_holds_the_layers_of_its_target_at_its_rank(small, kind, target, endings,
                                                                   tmp_path):
    layers = {name: layer for name, layer in small.unet.named_modules() if name.endswith(
        tuple(f".{ending}" for ending in endings))}
    weights = trained(small, tmp_path / "a", kind=kind, target=target)
    assert base_layers(weights) == set(layers) and len(layers) >= 8 * len(endings) // 4
    for name, layer in layers.items():
        down = weights[f"unet.{name}.lora_A.weight"]
        up = weights[f"unet.{name}.lora_B.weight"]
        assert down.shape[0] == up.shape[1] == 3, "the rank"
        magnitude = weights.get(f"unet.{name}.lora_magnitude_vector")
        assert (magnitude is not None) == (kind == "dora")
        if magnitude is not None:
            assert magnitude.numel() == layer.weight.shape[0]
    assert set(TARGET_MODULES) == {"attention", "all"}


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_base_is_bitwise_the_same_after_training_an_adapter(small, kind, tmp_path):
    before = {name: weight.clone() for name, weight in small.unet.state_dict().items()}
    trained(small, tmp_path / "a", kind=kind, target="all")
    after = small.unet.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(p.requires_grad for p in small.unet.parameters())


def test_only_the_adapter_learns_and_for_as_many_steps_as_asked(small, tmp_path):
    trained(small, tmp_path / "a", kind="dora", steps=4)
    assert small.steps == [0, 1, 2, 3]
    assert small.learning and all("lora_" in name for name in small.learning)


def test_a_training_that_changes_the_base_is_found_out(small, tmp_path):
    def loss_at(step, generator):
        with torch.no_grad():
            small.unet.conv_in.weight[0, 0, 0, 0] += 1
        return small.loss_at(step, generator)
    with pytest.raises(faults.Fault, match="changed the base model"):
        trained(small, tmp_path / "a", loss_at=loss_at)


def test_an_adapter_depends_on_its_seed_alone_and_not_on_the_one_before_it(small, tmp_path):
    first = trained(small, tmp_path / "a", seed=1)
    other = trained(small, tmp_path / "b", seed=2)
    again = trained(small, tmp_path / "c", seed=1)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert all(not torch.equal(first[key], other[key]) for key in first if "lora_A" in key)


def test_an_adapter_begins_as_no_change_and_its_learning_rate_counts(small, tmp_path):
    still = trained(small, tmp_path / "a", learning_rate=1e-12)
    assert all(weight.abs().max() < 1e-6 for key, weight in still.items() if "lora_B" in key)
    moved = trained(small, tmp_path / "b", learning_rate=0.1)
    assert all(weight.abs().max() > 1e-3 for key, weight in moved.items() if "lora_B" in key)


def test_an_adapter_is_loaded_at_full_strength(small, tmp_path):
    """The change of a layer is up times down, scaled by alpha over rank, which must be 1."""
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    noted = {}

    def loss_at(step, generator):
        noted["scaling"] = small.unet.get_submodule(layer).scaling["class"]
        return small.loss_at(step, generator)
    weights = trained(small, tmp_path / "a", loss_at=loss_at, learning_rate=0.1)
    assert noted["scaling"] == 1.0
    before = small.unet.get_submodule(layer).weight.clone()
    small.unet.load_lora_adapter(weights, prefix="unet", adapter_name="class")
    small.unet.fuse_lora()
    change = small.unet.get_submodule(layer).base_layer.weight - before
    expected = weights[f"unet.{layer}.lora_B.weight"] @ weights[f"unet.{layer}.lora_A.weight"]
    assert torch.allclose(change, expected, atol=1e-6) and expected.abs().max() > 1e-3


# ------------------------------------------------------------------ pipelines and drawing

def write_adapter(base, folder, seed: int) -> None:
    """An adapter on one layer of the embedded UNet, as if trained."""
    from safetensors.torch import save_file

    folder.mkdir()
    layer = "mid_block.attentions.0.proj_in"
    width, inputs = base.unet.get_submodule(layer).weight.shape[:2]
    draw = generator(seed)
    save_file({f"unet.{layer}.lora_A.weight": torch.randn((2, inputs, 1, 1), generator=draw),
               f"unet.{layer}.lora_B.weight": torch.randn((width, 2, 1, 1), generator=draw)},
              folder / "pytorch_lora_weights.safetensors")


def test_a_pipeline_carries_its_own_adapter_alone_on_a_copy_of_the_base(base, tmp_path):
    layer = "mid_block.attentions.0.proj_in"
    plain = base.unet.get_submodule(layer).weight.clone()
    before = base.fingerprint()
    pipes = []
    for seed in (1, 2):
        write_adapter(base, tmp_path / str(seed), seed)
        pipes.append(pipeline(base, "dpm", adapter_dir=tmp_path / str(seed)))
    from safetensors.torch import load_file

    for seed, pipe in zip((1, 2), pipes, strict=True):
        weights = load_file(tmp_path / str(seed) / "pytorch_lora_weights.safetensors")
        change = pipe.unet.get_submodule(layer).weight - plain
        up, down = (weights[f"unet.{layer}.lora_{side}.weight"].flatten(1) for side in "BA")
        assert torch.allclose(change.flatten(1), up @ down, atol=1e-4)
        assert not [name for name, _ in pipe.unet.named_modules() if "lora" in name]
        assert pipe.unet is not base.unet
    assert base.fingerprint() == before
    assert pipeline(base, "dpm").unet is base.unet


@pytest.mark.parametrize(("name", "kind"), [("dpm", "DPMSolverMultistepScheduler"),
                                            ("ddim", "DDIMScheduler")])
def test_a_pipeline_samples_by_the_bases_own_schedule(base, name, kind):
    scheduler = pipeline(base, name).scheduler
    assert type(scheduler).__name__ == kind
    assert scheduler.config.prediction_type == base.schedule.config.prediction_type
    assert torch.allclose(scheduler.alphas_cumprod, base.schedule.alphas_cumprod, atol=1e-6)


class FakePipe:
    """Records what it was called with; answers with images of a known value."""

    def __init__(self, value: float = 0.5, zero_snr: bool = False) -> None:
        self.unet = SimpleNamespace(device="cpu")
        self.scheduler = SimpleNamespace(config={"rescale_betas_zero_snr": zero_snr})
        self.value = value

    def __call__(self, **options):
        self.options = options
        return SimpleNamespace(images=np.full((len(options["prompt"]), 2, 2, 3), self.value))


def drawn(pipe, indices=(4, 7), **options) -> dict:
    call = {"seed": 3, "image_size": 64, "steps": 9, "guidance_scale": 2.5, **options}
    images = draw_images(pipe, [f"p{i}" for i in indices], [f"n{i}" for i in indices],
                         list(indices), **call)
    return {**pipe.options, "result": images}


def test_prompts_negatives_guidance_steps_and_size_reach_the_pipeline():
    asked = drawn(FakePipe())
    assert asked["prompt"] == ["p4", "p7"] and asked["negative_prompt"] == ["n4", "n7"]
    assert asked["guidance_scale"] == 2.5 and asked["num_inference_steps"] == 9
    assert asked["height"] == asked["width"] == 64


def noises(asked: dict) -> list[list[float]]:
    return [torch.randn(4, generator=g).tolist() for g in asked["generator"]]


def test_noise_depends_on_the_seed_and_the_item_and_not_on_the_place_in_the_batch():
    together, alone = noises(drawn(FakePipe(), (4, 7, 9))), noises(drawn(FakePipe(), (9,)))
    assert together[2] == alone[0]
    assert len({tuple(noise) for noise in together}) == 3
    assert noises(drawn(FakePipe(), (9,), seed=4)) != alone


@pytest.mark.parametrize(("value", "pixel"), [
    (0.5, 128), (1.3, 255), (-0.2, 0), (0.002, 1), (1, 255)])
def test_pixels_are_rounded_and_clipped(value, pixel):
    result = drawn(FakePipe(value))["result"]
    assert result.dtype == np.uint8 and (result == pixel).all()


def test_a_map_is_given_whole_in_its_orientation_and_with_its_weight():
    maps = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), np.uint8)
    asked = drawn(FakePipe(zero_snr=True), maps=maps, control_scale=0.75)
    assert np.allclose(asked["image"].permute(0, 2, 3, 1).numpy() * 255, maps)
    assert asked["controlnet_conditioning_scale"] == 0.75 and "guidance_rescale" not in asked
    assert drawn(FakePipe(), maps=maps)["controlnet_conditioning_scale"] == 1.0
    assert "image" not in drawn(FakePipe())


@pytest.mark.parametrize("zero_snr", [True, False])
def test_guidance_is_rescaled_under_zero_terminal_snr_alone(zero_snr):
    assert drawn(FakePipe(zero_snr=zero_snr)).get("guidance_rescale") == (0.7 if zero_snr else None)


def test_the_negative_prompt_and_the_guidance_change_the_image(base):
    pipe = pipeline(base, "dpm")

    def image(negative: str, guidance_scale: float) -> np.ndarray:
        return draw_images(pipe, ["lung adenocarcinoma"], [negative], [0], seed=0, image_size=64,
                           steps=2, guidance_scale=guidance_scale)
    plain = image("", 3.0)
    assert not np.array_equal(plain, image("thin alveolar septa, blank", 3.0))
    assert not np.array_equal(plain, image("", 5.0))


# ------------------------------------------------------------------ the base

def test_every_part_of_the_base_is_frozen_and_in_evaluation(base):
    for part in (base.vae, base.unet, base.text_encoder):
        assert not part.training and not any(p.requires_grad for p in part.parameters())
        assert {p.dtype for p in part.parameters()} == {torch.float32}


def test_captions_are_encoded_in_training_as_in_drawing(base):
    captions = ["lung adenocarcinoma", "", "benign lung tissue", "lung adenocarcinoma"]
    states = base.encode(captions)
    expected = pipeline(base, "dpm").encode_prompt(captions, base.device, 1, False)[0]
    assert torch.allclose(states, expected, atol=1e-6)
    assert torch.equal(base.encode(captions[2:3]), states[2:3])
    assert not states.requires_grad


def test_the_fingerprint_tells_any_changed_weight(base):
    before = base.fingerprint()
    weight = base.unet.conv_out.bias
    kept = weight.clone()
    weight[0] += 1e-3
    changed = base.fingerprint()
    weight.copy_(kept)
    assert changed != before == base.fingerprint()


def test_embedded_is_the_folder_shipped():
    assert resolve_base_model("embedded", {"modality": "he"}) == BASE_MODEL_DIR


@pytest.mark.parametrize(("image_size", "fits"), [(64, True), (48, True), (72, False), (56, False)])
def test_an_image_must_halve_as_often_as_autoencoder_and_unet_do(image_size, fits):
    if fits:
        check_image_size(BASE_MODEL_DIR, image_size)
    else:
        with pytest.raises(faults.BadOptions, match="multiple of 16"):
            check_image_size(BASE_MODEL_DIR, image_size)


def test_every_missing_file_of_a_finished_model_is_named(tmp_path):
    (tmp_path / "a").write_text("")
    require_files(tmp_path, "a")
    (tmp_path / "w.safetensors").write_bytes(bytes(4))
    with pytest.raises(faults.Fault, match="w.safetensors is cut short.*train it again"):
        require_files(tmp_path, "a", "w.safetensors")
    with pytest.raises(faults.Fault, match="b, c/d now"):
        require_files(tmp_path, "a", "b", "c/d")


def test_the_control_is_added_to_the_unet_by_down_and_middle_residuals():
    asked = []

    def controlnet(noisy, timesteps, **more):
        asked.append(more)
        return ["down"], "middle"

    def unet(*inputs, **more):
        return SimpleNamespace(sample=more)

    given = denoise_with(unet, "states", controlnet, "map")("noisy", 1)
    assert given == {"encoder_hidden_states": "states", "down_block_additional_residuals": ["down"],
                     "mid_block_additional_residual": "middle"}
    assert asked == [{"encoder_hidden_states": "states", "controlnet_cond": "map",
                      "return_dict": False}]
