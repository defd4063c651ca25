"""The embedded base model of CT: its chests, its recipe, and that what is shipped knows CT."""

from __future__ import annotations

import json
import random
from contextlib import contextmanager

import numpy as np
import pytest
from test_pretrain_base_model import merges_of

from arms import content
from lungkit.generate.base_model import BASE_MODEL_DIR, CT_BASE_MODEL_DIR
from lungkit.generate.prompts import CT_PROMPTS_PATH, Prompts
from lungkit.phantom.thorax import scans
from lungkit.phantom.thorax.nodules import Law
from lungkit.run.faults import Stopped
from lungkit.run.seeds import generator_for, stream
from lungkit.tools import base_networks, base_of_ct, pretrain_base_model, tokenizer

HELD_OUT = 10_000  # of patients of the same stream that the recipe does not reach


@pytest.fixture(scope="module")
def unseen() -> base_of_ct.Chests:
    return base_of_ct.draw_patient(HELD_OUT, 0)


# ------------------------------------------------------------------ what is shipped

def test_what_is_shipped_is_at_most_16_mb_of_safetensors():
    files = [path for path in CT_BASE_MODEL_DIR.rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) <= 16e6
    assert not [path for path in files if path.suffix not in (".safetensors", ".json", ".txt")]


def test_what_is_shipped_is_made_by_the_tool_s_own_recipe():
    made = json.loads((CT_BASE_MODEL_DIR / "base_model.json").read_text())["parameters"]
    assert {**made, "precision": "fp32"} == {"modality": "ct", "seed": 0,
                                             **pretrain_base_model.RECIPES["ct"]}


@pytest.mark.parametrize(("kind", "least_db", "most_hu"), [("crops", 33, 22), ("slices", 28, 32)])
def test_its_autoencoder_gives_chests_back_that_it_has_not_seen(unseen, kind, least_db, most_hu):
    import torch
    from diffusers import AutoencoderKL

    from lungkit.generate.latents import to_model_range

    torch.set_num_threads(1)
    vae = AutoencoderKL.from_pretrained(CT_BASE_MODEL_DIR / "vae").float()
    images = to_model_range(getattr(unseen, kind), vae.config.in_channels)
    with torch.no_grad():
        error = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1, 1) - images
    decibels = 10 * torch.log10(4 / error.square().mean((1, 2, 3)))
    assert decibels.mean() >= least_db and error.abs().mean() * 700 <= most_hu


def test_its_tokenizer_cuts_no_prompt_and_keeps_words_whole():
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(CT_BASE_MODEL_DIR / "tokenizer")
    for view in ("crop", "slice"):
        words = Prompts(CT_PROMPTS_PATH, view=view)
        words.check_token_limit(tokenizer, [*words.data["classes"], "A", "other_nodule"])
    for word in ("lung", "nodule", "spiculated", "benign"):
        assert len(tokenizer(word).input_ids) == 3  # the word between begin and end


def test_it_draws_air_and_soft_tissue_in_the_window_of_ct():
    import torch

    from lungkit.generate.base_model import BaseModel
    from lungkit.generate.drawing import draw_images, pipeline

    torch.set_num_threads(1)
    pipe = pipeline(BaseModel(CT_BASE_MODEL_DIR, torch.device("cpu")), "dpm")
    words = Prompts(CT_PROMPTS_PATH)
    images = draw_images(pipe, [words.caption("malignant", random.Random(i)) for i in range(8)],
                         [words.negative("malignant")] * 8, list(range(8)), seed=0, image_size=64,
                         steps=8, guidance_scale=2.0)
    assert images.shape == (8, 64, 64, 1)
    hu = images / 255 * 1400 - 1000
    assert 0.4 < (hu < -700).mean() < 0.95, "lung"
    assert 0.03 < ((hu > -50) & (hu < 200)).mean() < 0.5, "soft tissue and vessels"


# ------------------------------------------------------------------ chests

def test_a_patient_is_cut_at_its_nodules_and_at_places_without(unseen):
    labels = unseen.crop_labels
    nodules = [i for i, each in enumerate(labels) if "nodule" in each]
    clear = [i for i, each in enumerate(labels) if each == ["no_nodule"]]
    assert sorted(nodules + clear) == list(range(len(labels))) and len(clear) == base_of_ct.HEALTHY
    solid = [i for i in nodules if "grade_5" in labels[i]]
    middle = unseen.crops[:, 28:36, 28:36, 0].mean((1, 2))
    assert solid and middle[solid].mean() > 2 * middle[clear].mean()
    assert unseen.crops.shape[1:] == (64, 64, 1) and unseen.slices.shape[1:] == (128, 128, 1)
    assert len(unseen.slices) == len(unseen.slice_labels) == base_of_ct.SLICES


def test_clear_places_show_no_nodule():
    patient = base_of_ct.Patient(1, 0)
    found = patient.healthy_points(50, 32.0)
    assert len(found) > 10
    for x, y, z in found:
        for each in patient.scene.nodules:
            away = np.abs(np.subtract(each.centre_mm, (x, y, z))) - each.diameter_mm / 2
            assert away[2] >= 10 or away[:2].max() >= 32


@pytest.mark.parametrize(("grade", "expected"), [
    (1, ["benign", "grade_1", "nodule"]), (3, ["grade_3", "nodule"]),
    (5, ["malignant", "adenocarcinoma", "grade_5", "nodule"])])
def test_a_nodule_is_of_every_class_that_ct_seg_gives_it(grade, expected):
    from types import SimpleNamespace

    assert base_of_ct.classes_of(SimpleNamespace(grade=grade, histology="A")) == expected


def test_every_class_has_prompts_of_its_own():
    known = Prompts(CT_PROMPTS_PATH).data["classes"]
    from types import SimpleNamespace

    for grade in range(1, 6):
        for letter in "ABEG":
            labels = base_of_ct.classes_of(SimpleNamespace(grade=grade, histology=letter))
            assert set(labels) <= set(known)


def test_no_sample_shows_a_patient_of_the_base_model():
    """A chest depends on the stream of its plan's seed, which no --seed of a sample reaches."""
    seen = base_of_ct.Patient(0, 0).scene.chest
    for seed in (0, 1):
        plan = scans.Plan(seed, 1, 4, 64, 8, None, Law(), False)
        assert scans.draw_scene(plan, 0)[0].chest != seen
    assert stream("base model of ct", 0) > 2**40


# ------------------------------------------------------------------ captions

def test_a_caption_is_of_one_of_the_image_s_classes_and_of_its_view():
    caption = base_of_ct.captions_of([["benign", "nodule"], ["no_nodule"], ["malignant"]], 2)
    words = json.loads(CT_PROMPTS_PATH.read_text())
    drawn = [[caption(i, random.Random(draw)) for draw in range(300)] for i in range(3)]
    for texts, names, view in zip(drawn, (("benign lung nodule", "lung with a nodule"),
                                          ("clear lung",), ("malignant lung nodule",)),
                                  ("crop", "crop", "slice"), strict=True):
        said = [text for text in texts if text]
        assert len(said) / len(texts) == pytest.approx(0.9, abs=0.06)
        assert all(any(name in text for name in names) for text in said)
        assert all(any(name in text for text in said) for name in names)
        assert all(any(each in text for each in words["view"][view]) for text in said)


def test_slices_stay_upright_and_crops_are_turned():
    ramp = np.broadcast_to(np.arange(128, dtype=np.uint8)[:, None, None], (40, 128, 128, 1))
    ramp = np.ascontiguousarray(ramp)
    chests = base_of_ct.Chests(ramp[:, :64, :64], [], ramp, [], ramp[:0])
    images = base_of_ct.images_of(chests, 0)
    assert images.shape == (80, 64, 64, 1)
    down = [int(image[-1, 0, 0]) - int(image[0, 0, 0]) for image in images]
    assert min(down[40:]) > 100 and {np.sign(each) for each in down[:40]} == {-1, 0, 1}


# ------------------------------------------------------------------ the recipe, much smaller

@contextmanager
def small_sizes():
    """The recipe with a patient of two nodules, and of 8 images; the networks are the shipped."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("NODULES", 2), ("HEALTHY", 2), ("SLICES", 2), ("ZOOMED", 1),
                            ("AUTOENCODER_BATCH", 4), ("SLICES_OF_BATCH", 1)):
            patch.setattr(base_of_ct, name, value)
        patch.setattr(tokenizer, "learn_merges", merges_of)
        yield patch


def build(output, *more: str) -> int:
    return pretrain_base_model.main([
        "--modality", "ct", "--output", str(output), "--num-patients", "1", "--device", "cpu",
        "--autoencoder-steps", "2", "--unet-steps", "2", "--batch-size", "2", *more])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    output = tmp_path_factory.mktemp("built") / "base"
    with small_sizes():
        assert build(output) == 0
    return output


def test_the_recipe_makes_a_grey_model_that_diffusers_opens(built):
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(built, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    images = pipe("lung", num_inference_steps=1, output_type="np").images
    assert images.shape == (1, 64, 64, 1) and np.isfinite(images).all()
    assert not list(built.glob("*.ckpt")) and not list(built.glob("chests*"))


def test_stopped_in_each_part_and_run_again_gives_the_same_bytes(built, tmp_path, monkeypatch):
    def stop() -> None:
        raise Stopped("stopped by the test")
    monkeypatch.setattr("lungkit.learn.loop.CHECKPOINT_INTERVAL_SEC", 0.0)
    monkeypatch.setattr("lungkit.run.ranks.check_stop", stop)
    with small_sizes():
        assert [build(tmp_path / "base") for _ in range(3)] == [75, 75, 0]
    assert content(tmp_path / "base") == content(built)


@pytest.mark.parametrize(("more", "said"), [
    (["--num-tiles", "3"], "--num-tiles is not of --modality ct"),
    (["--controlnet-steps", "3"], "--controlnet-steps is not of --modality ct"),
    (["--modality", "tissue", "--precision", "bf16"], "--num-patients is not of --modality tissue"),
    (["--precision", "bf16"], "precision: 'fp32' there, 'bf16' now")])
def test_options_of_the_other_recipe_and_of_another_training_are_refused(built, more, said, capfd):
    assert build(built, *more) == 2 and said in capfd.readouterr().err


def test_it_starts_as_the_autoencoder_of_tissue_on_grey():
    import torch
    from diffusers import AutoencoderKL

    tissue = AutoencoderKL.from_pretrained(BASE_MODEL_DIR / "vae").float()
    tokenizer = type("Words", (), {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
                                   "__len__": lambda self: 9})()
    models = base_networks.build_models(tokenizer, channels=1)
    base_of_ct.start_from_tissue(models)
    grey = torch.rand(1, 1, 64, 64, generator=generator_for(0)) * 2 - 1
    with torch.no_grad():
        thrice = tissue.decode(tissue.encode(grey.expand(-1, 3, -1, -1)).latent_dist.mean).sample
        once = models["vae"].decode(models["vae"].encode(grey).latent_dist.mean).sample
    assert torch.allclose(once, thrice.mean(1, keepdim=True), atol=1e-4)
