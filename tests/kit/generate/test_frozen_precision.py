"""The precision of a GPU, taken on the CPU: frozen weights and products in bfloat16.

What is trained stays in float32, and what comes out is what float32 gives, up to the rounding.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lungkit.generate.adapters import train_adapter, training_loss
from lungkit.generate.base_model import BASE_MODEL_DIR, BaseModel
from lungkit.generate.drawing import draw_images, pipeline
from lungkit.generate.latents import Latents
from lungkit.learn import device
from lungkit.phantom.paint import CLASSES, draw_tile

CPU = torch.device("cpu")


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """A switch: from its call on, precision is a GPU's."""
    def switch() -> None:
        monkeypatch.setattr(device, "frozen_dtype", lambda where: torch.bfloat16)
        monkeypatch.setattr(device, "autocast",
                            lambda where, **tiles: torch.autocast(where.type, torch.bfloat16))
        monkeypatch.setattr("lungkit.generate.latents.autocast", device.autocast)
    torch.set_num_threads(1)
    return switch


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)


def test_what_is_frozen_is_rounded_once_and_on_a_cpu_not_at_all(as_on_a_gpu):
    plain = BaseModel(BASE_MODEL_DIR, CPU).unet
    assert {weight.dtype for weight in plain.parameters()} == {torch.float32}
    assert plain.conv_in.weight.is_contiguous()
    as_on_a_gpu()
    unet = BaseModel(BASE_MODEL_DIR, CPU).unet
    assert {weight.dtype for weight in unet.parameters()} == {torch.bfloat16}
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert not any(weight.requires_grad for weight in unet.parameters()) and not unet.training


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_on_a_rounded_base_is_trained_in_float32(kind, as_on_a_gpu, images, tmp_path):
    from safetensors.torch import load_file

    found = {}
    for name in ("cpu", "gpu"):
        if name == "gpu":
            as_on_a_gpu()
        base = BaseModel(BASE_MODEL_DIR, CPU)
        latents = Latents(base.vae, images)
        loss_at = training_loss(base, latents, lambda i, draw: "tumour", batch_size=2)
        seen, in_one_pass = set(), []

        def watched(step, generator, base=base, seen=seen, loss_at=loss_at, fast=in_one_pass):
            fast.append(sum("forward" in vars(layer) for layer in base.unet.modules()))
            seen |= {(weight.dtype, weight.requires_grad) for weight in base.unet.parameters()}
            return loss_at(step, generator)
        loss = train_adapter(base, watched, kind=kind, rank=2, target="all", steps=2, seed=0,
                             learning_rate=1e-4, what="a", output_dir=tmp_path / name,
                             checkpoint_path=tmp_path / "c", jsonl_path=tmp_path / "j")
        weights = load_file(tmp_path / name / "pytorch_lora_weights.safetensors")
        assert {weight.dtype for weight in weights.values()} == {torch.float32}
        (tmp_path / "c").unlink()
        found[name] = loss, seen, weights
        assert all(in_one_pass) is (name == "cpu" or kind == "dora")
        assert not any("forward" in vars(layer) for layer in base.unet.modules())
    (loss, _, weights), (rounded, seen, others) = found["cpu"], found["gpu"]
    assert seen == {(torch.float32, True), (torch.bfloat16, False)}
    assert rounded == pytest.approx(loss, rel=0.05) and rounded != loss
    assert weights.keys() == others.keys()


def test_a_merged_adapter_is_rounded_after_it_was_added(as_on_a_gpu, tmp_path):
    """A hundredth of a weight's last bit of bfloat16 is lost, a hundred of them are not."""
    from safetensors.torch import save_file

    as_on_a_gpu()
    base = BaseModel(BASE_MODEL_DIR, CPU)
    layer = "mid_block.attentions.0.proj_in"
    weight = base.load_unet().get_submodule(layer).weight.flatten(1)
    up, down = torch.randn((len(weight), 1)) * 1e-2, torch.randn((1, weight.shape[1])) * 1e-2
    save_file({f"unet.{layer}.lora_A.weight": down[..., None, None],
               f"unet.{layer}.lora_B.weight": up[..., None, None]},
              tmp_path / "pytorch_lora_weights.safetensors")
    merged = pipeline(base, "dpm", adapter_dir=tmp_path).unet.get_submodule(layer).weight
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged.flatten(1), (weight + up @ down).bfloat16())


def test_images_and_latents_are_those_of_float32_up_to_the_rounding(as_on_a_gpu):
    tiles = np.stack([draw_tile(CLASSES[0], patient=0, index=index, image_size=64).image
                      for index in range(2)])
    drawn, encoded = [], []
    for name in ("cpu", "gpu"):
        if name == "gpu":
            as_on_a_gpu()
        base = BaseModel(BASE_MODEL_DIR, CPU)
        latents = Latents(base.vae, tiles)
        encoded.append(latents.mean.float())
        drawn.append(draw_images(pipeline(base, "dpm"), ["tumour"] * 2, [""] * 2, [0, 1], seed=0,
                                 image_size=64, steps=3, guidance_scale=2.0).astype(int))
    assert (encoded[0] - encoded[1]).std() < 0.02 * encoded[0].std()
    difference = np.abs(drawn[0] - drawn[1])
    assert 0 < difference.mean() < 3
