"""What the generators promise beyond the contract: seeds, adapters, prompts, layouts, pools."""

from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pytest

from arms import arguments, main_of
from lungkit.data.dataset import open_dataset
from lungkit.generate.base_model import BASE_MODEL_DIR
from lungkit.histology.background import tissue_mask
from lungkit.nuclei.layouts import Layout, measurements, structure_map
from lungkit.run.seeds import stream

pytestmark = pytest.mark.usefixtures("found_once")


@pytest.fixture(scope="module")
def base():
    import torch

    from lungkit.generate.base_model import BaseModel

    torch.set_num_threads(1)
    return BaseModel(BASE_MODEL_DIR, torch.device("cpu"))


@pytest.fixture(scope="module")
def prompt_run(few_real, tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    output = root / "datasets" / "prompt"
    # a high rate: adapters that do nothing could not be told from one another
    assert main_of("prompt")(arguments("prompt", few_real, output, "--pool", "2",
                                       "--learning-rate", "0.1", "--batch-size", "2")) == 0
    return root


# ------------------------------------------------------------------ adapters

@pytest.mark.parametrize(("kind", "target"), [("lora", "attention"), ("dora", "all")])
def test_an_adapter_draws_the_same_from_its_file_and_leaves_the_base_untouched(
        base, kind, target, tmp_path):
    import torch
    from safetensors.torch import load_file

    from lungkit.generate.adapters import train_adapter, training_loss
    from lungkit.generate.drawing import draw_images, pipeline
    from lungkit.generate.latents import Latents

    draw = {"prompts": ["lung"] * 2, "negatives": [""] * 2, "indices": [0, 1], "seed": 0,
            "image_size": 32, "steps": 2, "guidance_scale": 2.0}
    pipe = pipeline(base, "dpm")
    plain = draw_images(pipe, **draw)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    loss_at = training_loss(base, Latents(base.vae, images), lambda i, d: "lung", batch_size=2)
    drawn_while_on = {}
    unload = base.unet.unload_lora

    def watch():  # the images the adapter gives in memory, just before it is taken off
        drawn_while_on["images"] = draw_images(pipe, **draw)
        unload()

    base.unet.unload_lora = watch
    try:
        train_adapter(base, loss_at, kind=kind, rank=2, target=target, steps=3, learning_rate=0.05,
                      seed=0, what="test", output_dir=tmp_path, checkpoint_path=tmp_path / "x.ckpt",
                      jsonl_path=tmp_path / "p.jsonl")
    finally:
        base.unet.unload_lora = unload
    assert np.array_equal(draw_images(pipe, **draw), plain), "the base draws otherwise than before"
    weights = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    assert any("magnitude" in key for key in weights) == (kind == "dora")
    pipe.load_lora_weights(tmp_path, adapter_name="class")
    loaded = draw_images(pipe, **draw)
    pipe.unload_lora_weights()
    assert np.array_equal(loaded, drawn_while_on["images"]), \
        "the file gives other images than memory"
    fused = draw_images(pipeline(base, "dpm", adapter_dir=tmp_path), **draw)
    assert np.abs(fused.astype(int) - loaded).max() <= 2, "fused gives other images than loaded"
    assert np.array_equal(draw_images(pipe, **draw), plain), "fusing touched the base"
    assert not np.array_equal(loaded, plain), "the adapter does nothing"
    assert torch.isfinite(torch.cat([w.flatten() for w in weights.values()])).all()


def test_each_class_is_drawn_with_its_own_adapter_alone(prompt_run, few_real, base, monkeypatch):
    from lungkit.generate.autoencoder import open_autoencoder
    from lungkit.generate.drawing import draw_images, pipeline
    from lungkit.generate.prompts import Prompts

    dataset = open_dataset(prompt_run / "datasets" / "prompt")
    parameters = dataset.manifest["parameters"]
    words = Prompts()
    monkeypatch.setattr(base, "vae", open_autoencoder(prompt_run / "models" / "prompt" / "vae",
                                                      base.device))
    for label in dataset.classes:
        rows = dataset.select("train", label)
        rows += dataset.select("val", label) + dataset.select("test", label)
        assert len(rows) == 6  # one whole batch: the same composition gives the same bytes
        pipe = pipeline(base, "dpm", adapter_dir=prompt_run / "models" / "prompt" / label)
        images = draw_images(pipe, [row.prompt for row in rows], [words.negative(label)] * 6,
                             [int(row.seed.split(":")[1]) for row in rows],
                             seed=stream("prompt_seg", 0), image_size=64,
                             steps=parameters["sampling_steps"],
                             guidance_scale=parameters["guidance_scale"])
        assert np.array_equal(images, np.stack([dataset.image(row) for row in rows])), label


def test_adapters_of_the_classes_differ(prompt_run):
    from safetensors.torch import load_file

    files = sorted((prompt_run / "models" / "prompt").glob("*/pytorch_lora_weights.safetensors"))
    assert len(files) == 3
    first = [next(iter(load_file(file).values())) for file in files]
    assert not (first[0] == first[1]).all() and not (first[1] == first[2]).all()


def test_a_pool_multiplies_training_images_only(prompt_run, few_real):
    real, dataset = open_dataset(few_real), open_dataset(prompt_run / "datasets" / "prompt")
    for label in real.classes:
        assert dataset.counts["train"][label] == 2 * real.counts["train"][label]
        assert dataset.counts["test"][label] == real.counts["test"][label]
    assert len({row.sha256 for row in dataset.rows}) == len(dataset.rows), "two items drawn alike"


# ------------------------------------------------------------------ prompts

@pytest.mark.parametrize("context", [False, True])
def test_the_shipped_prompts_fit_the_embedded_text_encoder(base, context):
    from lungkit.generate.prompts import Prompts

    labels = ["lung_aca", "lung_n", "lung_scc", "malignant_nodule"]
    Prompts().check_token_limit(base.tokenizer, labels, context=context)


def test_prompts_are_of_the_class_and_recorded(prompt_run):
    dataset = open_dataset(prompt_run / "datasets" / "prompt")
    names = {"lung_aca": "adenocarcinoma", "lung_n": "benign lung tissue", "lung_scc": "squamous"}
    for row in dataset.rows:
        assert names[row.label] in row.prompt


def test_a_prompt_over_the_token_limit_is_refused_before_training(few_real, tmp_path, capfd):
    from lungkit.generate.prompts import PROMPTS_PATH

    data = json.loads(PROMPTS_PATH.read_text())
    data["classes"]["lung_n"]["nuclei"].append("very " * 100 + "long")
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps(data))
    output = tmp_path / "datasets" / "prompt"
    call = arguments("prompt", few_real, output, "--prompts", str(prompts))
    assert main_of("prompt")(call) == 1
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert "lung_n" in error and "77" in error
    assert not (tmp_path / "models").exists() and not output.exists()


@pytest.mark.parametrize(("change", "words"), [
    (lambda data: data["classes"]["lung_n"]["templates"].append("{nuclei"), "lung_n"),
    (lambda data: data["classes"]["lung_n"]["templates"].append("{colour}"), "colour"),
    (lambda data: data["classes"]["lung_n"].update(nuclei="few small nuclei"), "list of texts"),
    (lambda data: data["classes"]["lung_n"].update(templates="lung"), "list of templates"),
    (lambda data: data.pop("context"), "context"),
    (lambda data: data["context"]["count"].pop(), "4 texts"),
    (lambda data: data.update(classes=[]), "classes"),
    (lambda data: data.pop("other_classes"), "other_classes"),
])
def test_a_prompt_file_of_the_wrong_form_is_one_line(change, words, tmp_path):
    from lungkit.generate.prompts import PROMPTS_PATH, Prompts
    from lungkit.run.faults import Fault

    data = json.loads(PROMPTS_PATH.read_text())
    change(data)
    (tmp_path / "p.json").write_text(json.dumps(data))
    with pytest.raises(Fault, match=words):
        Prompts(tmp_path / "p.json")


def test_no_two_stages_or_seeds_share_a_random_number():
    seeds = [stream(stage, seed) for stage in ("diffusion_seg", "prompt_seg", "context_seg")
             for seed in range(50)]
    assert len(set(seeds)) == 150


def test_the_sample_shows_no_patient_the_base_model_has_seen(sample_dir):
    """The base model's tissue has seeds below SAMPLE_STREAM, the sample's start there."""
    from lungkit.phantom.paint import draw_tile
    from lungkit.phantom.sample import SAMPLE_STREAM

    manifest = json.loads((BASE_MODEL_DIR / "base_model.json").read_text())
    assert manifest["parameters"]["seed"] < SAMPLE_STREAM
    import cv2
    drawn = {path.read_bytes() for path in sample_dir.glob("images/*/*.png")}
    seen = draw_tile("lung_aca", patient=0, index=0, seed=3, image_size=112).image
    images = [cv2.imdecode(np.frombuffer(content, np.uint8), 1)[..., ::-1] for content in drawn]
    assert not any(np.array_equal(image, seen) for image in images)


@pytest.mark.parametrize("arm", ["diffusion", "prompt", "context"])
def test_an_image_size_the_model_cannot_halve_is_refused_at_once(
        arm, few_real, tmp_path, capfd):
    real = tmp_path / "real"
    shutil.copytree(few_real, real)
    manifest = json.loads((real / "dataset.json").read_text())
    (real / "dataset.json").write_text(json.dumps({**manifest, "image_size": 50}))
    assert main_of(arm)(arguments(arm, real, tmp_path / "datasets" / arm, "--dry-run")) == 2
    assert "50 px" in capfd.readouterr().err.splitlines()[-1]


def test_classes_the_file_does_not_know_get_prompts_of_their_own_name():
    from lungkit.generate.prompts import Prompts

    assert "malignant nodule" in Prompts().caption("malignant_nodule", random.Random(0))


def test_context_words_follow_the_levels():
    from lungkit.generate.prompts import Prompts

    caption = Prompts().context_caption("lung_n", random.Random(0),
                                        {"count": 0, "size": 3, "spacing": 2})
    assert caption.endswith("very few large nuclei, loosely spaced")


@pytest.mark.parametrize("arm", ["prompt", "context"])
@pytest.mark.parametrize("name", ["no-such-folder", "no-such/hub-model"])
def test_a_base_model_that_is_not_there_is_refused(arm, name, few_real, tmp_path, capfd):
    output = tmp_path / "datasets" / arm
    assert main_of(arm)(arguments(arm, few_real, output, "--base-model", name)) == 2
    error = capfd.readouterr().err.strip().splitlines()
    assert name in error[-1] and len([line for line in error if "error" in line]) == 1
    assert ("lungkit.tools.prefetch" in error[-1]) == (name == "no-such/hub-model")
    assert not list(tmp_path.iterdir())


def test_an_autoencoder_that_is_not_there_is_refused(few_real, tmp_path, capfd):
    output = tmp_path / "datasets" / "diffusion"
    call = arguments("diffusion", few_real, output, "--autoencoder", "nowhere")
    assert main_of("diffusion")(call) == 2
    assert "nowhere" in capfd.readouterr().err and not list(tmp_path.iterdir())


# ------------------------------------------------------------------ diffusion

def test_diffusion_trains_its_own_autoencoder_and_all_parts_open_in_diffusers(
        few_real, tmp_path):
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DModel

    output = tmp_path / "datasets" / "diffusion"
    assert main_of("diffusion")(arguments(
        "diffusion", few_real, output, "--autoencoder", "train", "--autoencoder-steps", "2",
        "--autoencoder-batch-size", "2", "--batch-size", "2", "--sampler", "ddim")) == 0
    models = tmp_path / "models" / "diffusion"
    autoencoder = AutoencoderKL.from_pretrained(models / "vae")
    unet = UNet2DModel.from_pretrained(models / "unet")
    schedule = DDPMScheduler.from_pretrained(models / "scheduler")
    assert unet.config.num_class_embeds == 4 and schedule.config.rescale_betas_zero_snr
    # scaled by the measured deviation: training latents have unit deviation
    import torch

    from lungkit.generate.latents import Latents
    torch.set_num_threads(1)
    with torch.no_grad():
        latents = Latents(autoencoder, open_dataset(few_real).load("train")[0])
    assert latents.deviation() * autoencoder.config.scaling_factor == pytest.approx(1, abs=1e-3)
    # the images are those that the published parts draw from the seeds recorded
    from diffusion_seg import sample_images
    from lungkit.generate.items import Item

    dataset = open_dataset(output)
    rows = [row for split in ("train", "val", "test") for row in dataset.select(split, "lung_n")]
    assert len(rows) <= 32  # one whole batch: the same composition gives the same bytes
    again = sample_images(unet.eval(), autoencoder.eval(), schedule,
                          [Item(int(row.seed.split(":")[1]), row.split, row.label) for row in rows],
                          classes=dataset.classes, sampler_name="ddim", steps=2,
                          seed=int(rows[0].seed.split(":")[0]), device=torch.device("cpu"),
                          guidance_scale=dataset.manifest["parameters"]["guidance_scale"])
    assert np.array_equal(again, np.stack([dataset.image(row) for row in rows]))


def test_an_item_is_drawn_from_its_seed_not_from_its_place():
    import torch

    from diffusion_seg import build_unet, sample_images
    from lungkit.generate.base_model import BaseModel
    from lungkit.generate.items import Item
    from lungkit.generate.latents import training_schedule

    torch.set_num_threads(1)
    torch.manual_seed(0)
    unet = build_unet(16, 4, [32, 32, 32], 2).eval()
    vae = BaseModel(BASE_MODEL_DIR, torch.device("cpu")).vae
    items = [Item(i, "train", "ab"[i % 2]) for i in range(5)]
    options = {"classes": ["a", "b"], "sampler_name": "dpm", "steps": 3, "guidance_scale": 2.0,
               "seed": 7, "device": torch.device("cpu")}
    together = sample_images(unet, vae, training_schedule(), items, **options)
    alone = sample_images(unet, vae, training_schedule(), items[3:4], **options)
    assert np.abs(together[3].astype(int) - alone[0]).max() <= 1  # rounding of another batch shape
    assert np.abs(together[1].astype(int) - alone[0]).max() > 8


def test_min_snr_weights_are_those_of_the_paper():
    import torch

    from lungkit.generate.latents import min_snr_weight, training_schedule

    schedule = training_schedule()
    times = torch.tensor([0, 300, 999])
    alphas = schedule.alphas_cumprod[times].double()
    snr = alphas / (1 - alphas)
    expected = torch.minimum(snr, torch.tensor(5.0)) / (snr + 1)
    assert torch.allclose(min_snr_weight(schedule, times, 5.0).double()[:2], expected[:2])
    assert snr[2] == 0 and min_snr_weight(schedule, times, 5.0)[2] == 1  # where sampling starts


def test_latents_are_redrawn_and_turned(base):
    import torch

    from lungkit.data.orientations import orient
    from lungkit.generate.latents import Latents
    from lungkit.run.seeds import generator_for

    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    latents = Latents(base.vae, images)
    one = latents.draw(torch.tensor([0]), torch.tensor([0]), generator_for(1))
    other = latents.draw(torch.tensor([0]), torch.tensor([0]), generator_for(2))
    assert not torch.equal(one, other), "a posterior is drawn from, not kept as one sample"
    turned = Latents(base.vae, np.ascontiguousarray(np.rot90(images, 1, (1, 2))))
    assert torch.allclose(latents.mean[1].float(), turned.mean[0].float(), atol=1e-2)
    square = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert len({tuple(orient(square, k).flatten().tolist()) for k in range(8)}) == 8


# ------------------------------------------------------------------ context

def test_layouts_are_measured_on_training_images_only(few_real, tmp_path):
    """With every val and test image blackened, the arm must come out the same."""
    from lungkit.nuclei import layouts

    data = open_dataset(few_real)
    find = layouts.finder(data, tissue_mask)
    whole = layouts.measure_layouts(data, tmp_path / "a.npz", find)
    copy = tmp_path / "real"
    shutil.copytree(few_real, copy)
    for path in [*copy.glob("val/*/*.png"), *copy.glob("test/*/*.png")]:
        path.unlink()
    blind = type(data)(copy, data.manifest, data.rows)
    again = layouts.measure_layouts(blind, tmp_path / "b.npz", find)
    assert len(whole) == sum(data.counts["train"].values()) == len(again)
    assert all(np.array_equal(a.centroids, b.centroids) for a, b in zip(whole, again, strict=True))


def test_sampled_layouts_keep_the_measured_statistics():
    from lungkit.nuclei import point_process

    rng = np.random.default_rng(0)

    def hard_core(number: int) -> np.ndarray:  # no two nuclei closer than 6 px
        points: list = []
        while len(points) < number:
            point = rng.uniform(0, 63, 2)
            if all(np.hypot(*(point - other)) >= 6 for other in points):
                points.append(point)
        return np.array(points)
    regular = [Layout(hard_core(30), np.full(30, 9.0)) for _ in range(20)]
    centres, around = rng.uniform(8, 56, (20, 5, 1, 2)), rng.normal(0, 2, (20, 5, 6, 2))
    clustered = [Layout(points.reshape(-1, 2), np.full(30, 4.0)) for points in centres + around]

    def spacing(layouts) -> float:
        return float(np.mean([measurements(layout, 64)["spacing"] for layout in layouts]))
    for layouts in (regular, clustered):
        statistics = point_process.PointStatistics(layouts, 64)
        drawn = [statistics.sample(np.random.default_rng(i)) for i in range(20)]
        assert {len(layout.areas_px) for layout in drawn} == {30}
        assert spacing(drawn) == pytest.approx(spacing(layouts), rel=0.35)
        assert {float(a) for layout in drawn for a in layout.areas_px} == {
            float(layouts[0].areas_px[0])}
    uniform = [Layout(rng.uniform(-0.5, 63.5, (60, 2)), np.ones(60)) for _ in range(60)]
    correlation = point_process.PointStatistics(uniform, 64).pair_correlation
    assert correlation[3:] == pytest.approx(1, abs=0.15)


def test_no_nuclei_at_all_is_a_layout_too():
    from lungkit.nuclei import point_process

    empty = Layout(np.zeros((0, 2), np.float32), np.zeros(0, np.float32))
    drawn = point_process.PointStatistics([empty], 64).sample(np.random.default_rng(0))
    assert len(drawn.areas_px) == 0
    assert structure_map(drawn, 64)[..., :2].max() == 0


def test_the_structure_map_shows_nuclei_borders_and_distance():

    image = structure_map(Layout(np.array([[16.0, 32.0], [48.0, 32.0]]),
                                 np.array([50.0, 50.0])), 64)
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    assert red[32, 16] == 255 and red[32, 32] == 0
    assert (red > 127).sum() == pytest.approx(100, abs=12)
    assert green[:, 31:34].max(1).min() > 50 and green[32, 16] == 0
    assert blue[32, 16] < 30 and blue[0, 0] == 255


def test_control_passes_through_to_the_image(base):
    """Two layouts, the same noise and words: the images must differ, for the map is looked at."""
    import context_seg
    from lungkit.generate.drawing import draw_images, pipeline

    pipe = pipeline(base, "dpm", controlnet=context_seg.get_controlnet(base, None).eval())
    rng = np.random.default_rng(0)
    maps = np.stack([structure_map(Layout(rng.uniform(0, 63, (n, 2)), np.full(n, 12.0)), 64)
                     for n in (5, 90)])
    images = draw_images(pipe, ["lung"] * 2, [""] * 2, [3, 3], seed=0, image_size=64, steps=6,
                         guidance_scale=1.5, maps=maps)
    assert np.abs(images[0].astype(int) - images[1]).mean() > 8


def test_a_controlnet_is_made_where_the_base_has_none(base, tmp_path, monkeypatch):
    import context_seg

    unet = base.load_unet()
    monkeypatch.setattr(base, "load_unet", lambda: unet)
    monkeypatch.setattr(base, "folder", tmp_path)
    made = context_seg.get_controlnet(base, None)
    assert made.config.block_out_channels == base.unet.config.block_out_channels
