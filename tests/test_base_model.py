"""The embedded base model: its recipe runs, and what is shipped opens, fits and knows tissue."""

from __future__ import annotations

import random

import numpy as np
import pytest

from lungkit import base_model
from lungkit.base_model import BASE_MODEL_DIR


def test_the_recipe_makes_a_model_that_diffusers_opens(tmp_path):
    import torch
    from diffusers import ControlNetModel, StableDiffusionPipeline

    output = tmp_path / "base"
    sizes = ["--num-tiles", "6", "--autoencoder-steps", "2", "--unet-steps", "2", "--decoder-steps",
             "2", "--controlnet-steps", "2", "--batch-size", "2"]
    assert base_model.main(["--output", str(output), *sizes]) == 0
    pipe = StableDiffusionPipeline.from_pretrained(output, torch_dtype=torch.float32)
    assert pipe.vae_scale_factor == 4 and pipe.unet.config.sample_size == 16
    pipe.set_progress_bar_config(disable=True)
    assert np.isfinite(pipe("lung", num_inference_steps=1, output_type="np").images).all()
    assert ControlNetModel.from_pretrained(output / "controlnet").config.conditioning_channels == 3
    assert not list(output.glob("*.ckpt")) and not list(output.glob("tissue*"))


def test_what_is_shipped_is_at_most_16_mb_of_safetensors():
    files = [path for path in BASE_MODEL_DIR.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16e6
    assert not [path for path in files if path.suffix not in (".safetensors", ".json", ".txt")]


def test_its_tokenizer_keeps_words_whole_and_is_no_stub():
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(BASE_MODEL_DIR / "tokenizer")
    assert len(tokenizer) > 500
    for word in ("lung", "benign", "nuclei", "glands"):
        assert len(tokenizer(word).input_ids) == 3  # the word between begin and end
    assert tokenizer.model_max_length == 77


@pytest.fixture(scope="module")
def drawn() -> dict[str, np.ndarray]:
    """Eight images of each class from the same noise."""
    import torch

    from lungkit.prompts import Prompts
    from lungkit.stable_diffusion import BaseModel, draw_images, pipeline

    torch.set_num_threads(1)
    pipe = pipeline(BaseModel(BASE_MODEL_DIR, torch.device("cpu")), "dpm")
    words = Prompts()
    return {label: draw_images(pipe, [words.caption(label, random.Random(i)) for i in range(8)],
                               [""] * 8, list(range(8)), seed=0, image_size=64, steps=10,
                               guidance_scale=2.0)
            for label in ("lung_aca", "lung_n", "lung_scc")}


def test_it_draws_benign_lung_with_more_air_than_tumour(drawn):
    air = {label: float((images.min(-1) > 200).mean()) for label, images in drawn.items()}
    assert air["lung_n"] > air["lung_aca"] > 0 and air["lung_n"] > 1.5 * air["lung_scc"]


def test_it_draws_stained_tissue_with_nuclei(drawn):
    from lungkit.nuclei import detect_nuclei

    for label, images in drawn.items():
        tissue = images[images.min(-1) < 200].astype(float).mean(0)
        assert tissue[1] < tissue[0] and tissue[1] < tissue[2], f"{label}: not pink to purple"
        assert np.median([len(detect_nuclei(image)) for image in images]) >= 8
