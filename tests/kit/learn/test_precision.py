"""A CPU that multiplies bfloat16 in tiles does so where that is faster, any other nowhere."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import diffusion_seg
from lungkit.generate.adapters import training_loss
from lungkit.generate.base_model import BASE_MODEL_DIR, BaseModel
from lungkit.generate.drawing import draw_images, pipeline
from lungkit.generate.latents import Latents, training_schedule
from lungkit.learn import classify_training, device, segment_training, unet
from lungkit.run.faults import BadOptions

CPU = torch.device("cpu")
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)


def seen(net) -> set:
    """Fills, as `net` is used, with the dtypes that its convolutions and linear layers give."""
    found: set = set()
    for layer in net.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            layer.register_forward_hook(lambda *call: found.add(call[-1].dtype))
    return found


def cnn():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
                               torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
                               torch.nn.Linear(4, 2))


def train_cnn(base):
    net, labels = cnn(), torch.tensor([0, 1, 0, 1])
    found = seen(net)
    plan = classify_training.plan_batches(np.arange(4), 2, 4, np.random.default_rng(0))
    classify_training.train(net, torch.from_numpy(IMAGES), labels, plan, learning_rate=1e-3,
                            what="c", checkpoint_path=None, identity={}, jsonl_path=None)
    return found


def train_head(base):
    head = torch.nn.Linear(8, 2)
    found = seen(head)
    features, labels = torch.randn(4, 8), torch.tensor([0, 1, 0, 1])
    plan = classify_training.plan_batches(np.arange(4), 2, 4, np.random.default_rng(0))
    classify_training.train(head, features, labels, plan, learning_rate=1e-3, what="h",
                            checkpoint_path=None, identity={}, jsonl_path=None)
    classify_training.predict(head, features)
    return found


def ask_cnn(base):
    net = cnn()
    found = seen(net)
    said = classify_training.predict(net, torch.from_numpy(IMAGES))
    assert said.dtype == np.float32
    return found


def train_unet(base):
    model = unet.UNet(1, [4, 8])
    found = seen(model)
    segment_training.train(model, lambda step: (torch.rand(2, 1, 8, 8), torch.ones(2, 1, 8, 8)),
                           unet.dice_focal_loss, steps=1, learning_rate=1e-3, what="u",
                           checkpoint_path=None, identity={}, jsonl_path=None)
    return found


def ask_unet(base):
    model = unet.UNet(1, [4, 8])
    found = seen(model)
    said = segment_training.probabilities(model.eval(), torch.rand(2, 1, 8, 8), 8)
    assert said.dtype == torch.float32
    return found


def encode(base):
    found = seen(base.vae.encoder)
    assert Latents(base.vae, IMAGES, symmetries=1).mean.dtype == torch.float16
    return found


def draw(base):
    pipe = pipeline(base, "dpm")
    found = seen(pipe.unet)
    draw_images(pipe, ["tumour"], [""], [0], seed=0, image_size=16, steps=1, guidance_scale=2.0)
    return found


def train_adapter(base):
    found = seen(base.unet)
    latents = Latents(base.vae, IMAGES, symmetries=1)
    training_loss(base, latents, lambda i, draw: "tumour", batch_size=2)(
        0, torch.Generator().manual_seed(0))
    return found


def draw_from_scratch(base):
    drawer = diffusion_seg.build_unet(4, 4, [32], 1)
    found = seen(drawer)
    diffusion_seg.sample_images(drawer, base.vae, training_schedule(),
                                [SimpleNamespace(label="a", index=0)], classes=["a"],
                                sampler_name="dpm", steps=1, guidance_scale=1.5, seed=0, device=CPU)
    return found


def train_from_scratch(base, folder):
    drawer = diffusion_seg.build_unet(4, 4, [32], 1)
    found = seen(drawer)
    diffusion_seg.train_unet(
        drawer, base.vae, training_schedule(), IMAGES, np.zeros(4, np.int64), num_classes=1,
        steps=1, batch_size=2, learning_rate=1e-4, seed=0, work_dir=folder, device=CPU,
        symmetries=1)
    return found


def train_autoencoder(base, folder):
    torch.manual_seed(0)
    autoencoder = diffusion_seg.build_autoencoder("demo", 16)
    found = seen(autoencoder.decoder)
    diffusion_seg.train_autoencoder(autoencoder, IMAGES, steps=1, batch_size=2, seed=0,
                                    work_dir=folder, device=CPU, symmetries=1)
    return found


@pytest.fixture
def base():
    torch.set_num_threads(1)
    return BaseModel(BASE_MODEL_DIR, CPU)


FASTER = [train_cnn, ask_cnn, train_unet, ask_unet, encode, draw, draw_from_scratch]
IN_A_FOLDER = [train_from_scratch, train_autoencoder]


@pytest.mark.parametrize("work", [*FASTER, train_head, train_adapter], ids=lambda w: w.__name__)
def test_products_are_in_bfloat16_where_they_are_faster(work, base, monkeypatch):
    for there in (False, True):
        monkeypatch.setattr(device, "has_bfloat16", lambda there=there: there)
        assert work(base) == {torch.bfloat16 if there and work in FASTER else torch.float32}


@pytest.mark.parametrize("work", IN_A_FOLDER, ids=lambda w: w.__name__)
def test_the_model_from_scratch_is_trained_so_too(work, base, monkeypatch, tmp_path):
    for there in (False, True):
        monkeypatch.setattr(device, "has_bfloat16", lambda there=there: there)
        (tmp_path / str(there)).mkdir()
        assert work(base, tmp_path / str(there)) == {torch.bfloat16 if there else torch.float32}


def test_a_result_says_what_its_products_were_in(monkeypatch):
    named = []
    for there in (False, True):
        monkeypatch.setattr(device, "has_bfloat16", lambda there=there: there)
        named.append(device.device_name(CPU))
    assert named == ["cpu", "cpu, products in bfloat16"]


@pytest.mark.parametrize(("asked", "there", "used"), [
    ("", ["amx_tile", "avx512_bf16"], True), ("", ["avx512_bf16"], True), ("", ["amx_tile"], True),
    ("", [], False), ("float32", ["amx_tile", "avx512_bf16"], False)])
def test_bfloat16_is_used_where_a_cpu_has_it_unless_float32_is_asked_for(asked, there, used,
                                                                        monkeypatch):
    monkeypatch.setenv("LUNGKIT_PRECISION", asked)
    for name in ("amx_tile", "avx512_bf16"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda name=name: name in there,
                            raising=False)
    assert device.has_bfloat16.__wrapped__() is used


@pytest.mark.parametrize("name", ["_is_amx_tile_supported", "_is_avx512_bf16_supported"])
def test_pytorch_still_says_what_a_cpu_has(name):
    assert getattr(torch.cpu, name)() in (True, False)


def test_a_precision_that_is_none_is_one_line(monkeypatch):
    monkeypatch.setenv("LUNGKIT_PRECISION", "half")
    with pytest.raises(BadOptions, match="LUNGKIT_PRECISION is 'half': expected float32"):
        device.has_bfloat16.__wrapped__()
