"""The embedded base model: its recipe runs, and what is shipped opens, fits and knows tissue."""

from __future__ import annotations

import functools
import random
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from arms import content
from lungkit.generate.base_model import BASE_MODEL_DIR
from lungkit.run.faults import Stopped
from lungkit.tools import base_networks, base_of_tissue, pretrain_base_model, tokenizer
from lungkit.tools.tokenizer import learn_merges


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
    """Five images of each class from the same noise."""
    import torch

    from lungkit.generate.base_model import BaseModel
    from lungkit.generate.drawing import draw_images, pipeline
    from lungkit.generate.prompts import Prompts

    torch.set_num_threads(1)
    pipe = pipeline(BaseModel(BASE_MODEL_DIR, torch.device("cpu")), "dpm")
    words = Prompts()
    return {label: draw_images(pipe, [words.caption(label, random.Random(i)) for i in range(5)],
                               [""] * 5, list(range(5)), seed=0, image_size=64, steps=8,
                               guidance_scale=2.0)
            for label in ("lung_aca", "lung_n", "lung_scc")}


def test_it_draws_benign_lung_with_more_air_than_tumour(drawn):
    air = {label: float((images.min(-1) > 200).mean()) for label, images in drawn.items()}
    assert air["lung_n"] > air["lung_aca"] > 0 and air["lung_n"] > 1.5 * air["lung_scc"]


def test_it_draws_stained_tissue_with_nuclei(drawn):
    from lungkit.nuclei.detect import detect_nuclei

    for label, images in drawn.items():
        tissue = images[images.min(-1) < 200].astype(float).mean(0)
        assert tissue[1] < tissue[0] and tissue[1] < tissue[2], f"{label}: not pink to purple"
        assert np.median([len(detect_nuclei(image)) for image in images]) >= 8


# ------------------------------------------------------------------ the recipe, much smaller

NUM_TILES = 8
STEPS = {"autoencoder_steps": 2, "unet_steps": 2, "decoder_steps": 2, "controlnet_steps": 2}


@functools.cache
def _merges(texts: tuple[str, ...]) -> list:
    return learn_merges(list(texts))


def merges_of(texts: list[str]) -> list:
    """The byte pairs of the same texts, learnt once."""
    return _merges(tuple(texts))


@contextmanager
def small_sizes():
    """The recipe on tiles of 80 px, images of 32 px and networks of the least width."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in ((base_of_tissue, "TILE_SIZE", 80),
                                    (base_of_tissue, "IMAGE_SIZE", 32),
                                    (base_networks, "IMAGE_SIZE", 32),
                                    (base_networks, "BLOCKS", (16, 16, 16)),
                                    (base_networks, "TEXT_WIDTH", 16),
                                    (tokenizer, "learn_merges", merges_of)):
            patch.setattr(module, name, value)
        yield patch


@pytest.fixture
def shrunk():
    with small_sizes():
        yield


def build(output, *more: str) -> int:
    steps = [part for name, number in STEPS.items()
             for part in (f"--{name.replace('_', '-')}", str(number))]
    return pretrain_base_model.main(["--output", str(output), "--num-tiles", str(NUM_TILES),
                                     "--batch-size", "2", "--device", "cpu", *steps, *more])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    output = tmp_path_factory.mktemp("built") / "base"
    with small_sizes():
        assert build(output) == 0
    return output


def test_the_recipe_makes_a_model_that_diffusers_opens(built):
    import torch
    from diffusers import ControlNetModel, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(built, dtype=torch.float32)
    assert pipe.vae_scale_factor == 4 and pipe.unet.config.sample_size == 8
    pipe.set_progress_bar_config(disable=True)
    assert np.isfinite(pipe("lung", num_inference_steps=1, output_type="np").images).all()
    assert ControlNetModel.from_pretrained(built / "controlnet").config.conditioning_channels == 3
    assert not list(built.glob("*.ckpt")) and not list(built.glob("tissue*"))


def test_the_recipe_builds_networks_like_those_shipped():
    import json

    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(BASE_MODEL_DIR / "tokenizer")
    for part, model in base_networks.build_models(tokenizer).items():
        shipped = json.loads((BASE_MODEL_DIR / part / "config.json").read_text())
        made = json.loads(json.dumps(model.config.to_dict() if part == "text_encoder"
                                     else dict(model.config)))
        varying = ("scaling_factor", "dtype", "architectures", "transformers_version")
        assert not {key: (value, made.get(key)) for key, value in shipped.items()
                    if key in made and key not in varying and made[key] != value}, part


def test_stopped_in_every_part_and_run_again_gives_the_same_bytes(
        built, shrunk, tmp_path, monkeypatch):
    def stop() -> None:
        raise Stopped("stopped by the test")
    monkeypatch.setattr("lungkit.learn.loop.CHECKPOINT_INTERVAL_SEC", 0.0)
    monkeypatch.setattr("lungkit.run.ranks.check_stop", stop)  # asked after all steps but the last
    statuses = [build(tmp_path / "base") for _ in range(5)]
    assert statuses == [75] * 4 + [0]
    assert content(tmp_path / "base") == content(built)


def test_another_seed_makes_another_model_and_the_same_command_again_none(built, shrunk, capfd):
    before = content(built)
    assert build(built) == 0 and "already complete" in capfd.readouterr().err
    assert build(built, "--seed", "1") == 2
    assert content(built) == before


def test_a_dry_run_of_the_recipe_writes_nothing(shrunk, tmp_path):
    assert build(tmp_path / "base", "--dry-run") == 0 and not list(tmp_path.iterdir())


def test_latents_are_scaled_to_unit_deviation_by_the_factor_kept(built, shrunk, tmp_path):
    import cv2
    from diffusers import AutoencoderKL

    from lungkit.generate.latents import Latents

    images, _, _ = base_of_tissue.draw_tissue(NUM_TILES, 0, tmp_path)
    small = np.stack([cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA)
                      for image in images])
    vae = AutoencoderKL.from_pretrained(built / "vae").float()
    assert Latents(vae, small).deviation() * vae.config.scaling_factor == pytest.approx(1, abs=0.02)


def test_the_schedule_kept_is_that_of_the_loss(built):
    from diffusers import DDPMScheduler

    from lungkit.generate.latents import training_schedule

    expected = {key: value for key, value in training_schedule().config.items() if key[0] != "_"}
    for folder in (built, BASE_MODEL_DIR):
        kept = DDPMScheduler.from_pretrained(folder / "scheduler").config
        assert {key: value for key, value in kept.items() if key[0] != "_"} == expected


def test_simulated_tiles_go_round_the_classes_with_their_own_layouts(shrunk, tmp_path):
    from lungkit.phantom.paint import CLASSES, draw_tile

    images, labels, layouts = base_of_tissue.draw_tissue(5, 9, tmp_path)
    assert labels == [*CLASSES, *CLASSES][:5]
    for i, layout in enumerate(layouts):
        tile = draw_tile(labels[i], patient=0, index=i, seed=9, image_size=80)
        assert np.array_equal(images[i], tile.image)
        assert np.array_equal(layout.centroids, tile.centroids)
        expected = [(tile.nuclei == k + 1).sum() for k in range(len(tile.centroids))]
        assert layout.areas_px.tolist() == expected
    again = base_of_tissue.draw_tissue(5, 9, tmp_path)
    assert np.array_equal(again[0], images) and len(again[2]) == 5


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """What one loss of each part was made of, in batches of 100."""
    import torch
    from diffusers import ControlNetModel

    from lungkit.generate.latents import Latents
    from lungkit.run.seeds import generator_for

    record = SimpleNamespace(parts={}, draws=[], captions=[], controls=[])
    build_tokenizer, draw = base_of_tissue.build_tokenizer, Latents.draw
    control_forward = ControlNetModel.forward

    class Recording:
        def __init__(self, tokenizer) -> None:
            self.tokenizer = tokenizer

        def __getattr__(self, name: str):
            return getattr(self.tokenizer, name)

        def __len__(self) -> int:
            return len(self.tokenizer)

        def __call__(self, captions, **options):
            record.captions.append(captions)
            return self.tokenizer(captions, **options)

    def train(parameters, loss_at, *, what, seed, **options):
        parameters = list(parameters)
        loss_at(0, generator_for(seed, 0))
        record.parts[what] = SimpleNamespace(
            seed=seed, number=sum(p.numel() for p in parameters if p.requires_grad),
            parameters=parameters, **options)
        return 0.0

    def drawing(self, indices, orientations, generator):
        record.draws.append((indices.tolist(), orientations.tolist()))
        return draw(self, indices, orientations, generator)

    def controlling(self, *inputs, **more):
        record.controls.append(more["controlnet_cond"])
        return control_forward(self, *inputs, **more)
    work_dir = tmp_path_factory.mktemp("asked")
    with small_sizes() as patch:
        patch.setattr("lungkit.learn.loop.train", train)
        patch.setattr(base_of_tissue, "build_tokenizer",
                      lambda path: Recording(build_tokenizer(path)))
        patch.setattr(Latents, "draw", drawing)
        patch.setattr(ControlNetModel, "forward", controlling)
        base_of_tissue.pretrain(work_dir, num_tiles=NUM_TILES, batch_size=100, seed=4,
                                device=torch.device("cpu"), **STEPS)
        _, record.labels, record.layouts = base_of_tissue.draw_tissue(NUM_TILES, 4, work_dir)
    record.work_dir = work_dir
    return record


def test_every_part_learns_in_turn_from_its_own_random_numbers(asked):
    assert list(asked.parts) == ["base vae", "base UNet and text encoder", "base decoder",
                                 "base ControlNet"]
    assert len({part.seed for part in asked.parts.values()}) == 4
    assert not [what for what, part in asked.parts.items() if not part.number]


def test_each_part_learns_alone(asked):
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
    from transformers import CLIPTextModel

    def number(kind, name: str) -> int:
        return sum(p.numel() for p in kind.from_pretrained(asked.work_dir / name).parameters())
    vae = AutoencoderKL.from_pretrained(asked.work_dir / "vae")
    decoder = sum(p.numel() for part in (vae.decoder, vae.post_quant_conv)
                  for p in part.parameters())
    assert [part.number for part in asked.parts.values()] == [
        number(AutoencoderKL, "vae"),
        number(UNet2DConditionModel, "unet") + number(CLIPTextModel, "text_encoder"),
        decoder, number(ControlNetModel, "controlnet")]
    owned = [{id(p) for p in part.parameters} for part in asked.parts.values()]
    assert owned[2] < owned[0] and not owned[3] & (owned[0] | owned[1])


def test_captions_are_empty_or_words_or_measured_and_of_their_own_tile(asked):
    from lungkit.generate.prompts import Prompts
    from lungkit.nuclei.layouts import Levels

    words, levels = Prompts(), Levels(asked.layouts, 80)
    context = words.data["context"]
    kinds = []
    for (indices, _), captions in zip(asked.draws, asked.captions, strict=True):
        for i, caption in zip(indices, captions, strict=True):
            level = levels.of(asked.layouts[i])
            count, size, spacing = (context[name][level[name]]
                                    for name in ("count", "size", "spacing"))
            ending = f", {count} {size} nuclei, {spacing}"
            kinds.append("empty" if not caption else "measured" if caption.endswith(ending)
                         else "words")
            assert not caption or words.data["classes"][asked.labels[i]]["name"] in caption
            if kinds[-1] == "words":
                assert not caption.endswith(tuple(context["spacing"])), "measured on another tile"
    shares = [kinds.count(kind) / len(kinds) for kind in ("empty", "words", "measured")]
    assert len(kinds) == 200 and shares == pytest.approx([0.1, 0.4, 0.5], abs=0.08)


def test_a_control_is_its_own_tiles_map_in_its_own_orientation(asked):
    import torch

    from lungkit.data.orientations import orient
    from lungkit.nuclei.layouts import Layout, structure_map

    indices, orientations = asked.draws[-1]
    assert len(set(indices)) == NUM_TILES and len(set(orientations)) == 8
    for i, which, control in zip(indices, orientations, asked.controls[-1], strict=True):
        layout = asked.layouts[i]
        # pixel centres are at whole numbers: (x + 1/2) scales, not x
        small = Layout(layout.centroids * 0.4 - 0.3, layout.areas_px * 0.16)
        plain = torch.from_numpy(structure_map(small, 32)).permute(2, 0, 1)[None]
        assert torch.allclose(control, orient(plain, which)[0].float() / 255)


# ------------------------------------------------------------------ the autoencoder's loss

class Flat:
    """An autoencoder that gives back crops off by `off`; records what it was shown."""

    def __init__(self, off: float = 0.0, slope: float = 0.0) -> None:
        import torch

        self.off, self.slope, self.shown = off, slope, []
        self.decoder, self.post_quant_conv = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)

    def parameters(self) -> list:
        return [*self.decoder.parameters(), *self.post_quant_conv.parameters()]

    def encode(self, crops):
        import torch

        self.shown.append(crops)
        return SimpleNamespace(latent_dist=SimpleNamespace(
            mean=crops, std=torch.zeros_like(crops), kl=lambda: torch.full((8,), 1e5)))

    def decode(self, latents):
        import torch

        ramp = torch.arange(latents.shape[-1]) * self.slope
        return SimpleNamespace(sample=latents + self.off + ramp)


def losses_of(vae, images, monkeypatch, number: int = 1, **options) -> list[float]:
    from lungkit.run.seeds import generator_for

    values = []

    def train(parameters, loss_at, **more):
        values.extend(float(loss_at(step, generator_for(step))) for step in range(number))
        return 0.0
    monkeypatch.setattr("lungkit.learn.loop.train", train)
    base_of_tissue.train_autoencoder(vae, images, steps=1, seed=0,
                                          work_dir=BASE_MODEL_DIR, **options)
    return values


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(60, 200, (3, 80, 80, 3), np.uint8)


@pytest.mark.parametrize(("off", "slope", "expected"), [
    (0.25, 0.0, 0.25 + 0.1), (0.0, 0.01, 0.01 * 15.5 + 0.01 + 0.1)])
def test_the_autoencoders_loss_is_that_of_pixels_edges_and_a_tiny_divergence(
        off, slope, expected, tiles, shrunk, monkeypatch):
    assert losses_of(Flat(off, slope), tiles, monkeypatch) == [pytest.approx(expected, rel=1e-3)]
    without = losses_of(Flat(off, slope), tiles, monkeypatch, decoder_only=True)
    assert without == [pytest.approx(expected - 0.1, rel=1e-3)]


def test_only_the_decoder_is_shown_varied_stain_and_each_image_its_own(shrunk, monkeypatch):
    grey = np.full((2, 80, 80, 3), 128, np.uint8)
    for varied in (False, True):
        vae = Flat()
        losses_of(vae, grey, monkeypatch, number=5, decoder_only=varied)
        values = [{round(float(value), 3) for value in crops[:, :, 0, 0].flatten()}
                  for crops in vae.shown]
        assert {crops.shape for crops in vae.shown} == {(8, 3, 32, 32)}
        assert all(len(seen) > 12 if varied else len(seen) == 1 for seen in values)
        light = (np.array(sorted(set().union(*values))) + 1) / 2
        if varied:  # to powers of 0.7 to 1.5
            assert light.min() >= 0.5**1.5 - 0.01 and light.max() <= 0.51**0.7 + 0.01


def test_crops_are_of_every_zoom_and_orientation(shrunk, monkeypatch):
    rows, columns = np.indices((80, 80)) * 3
    ramp = np.stack([rows, columns, rows * 0], -1).astype(np.uint8)[None]
    vae = Flat()
    losses_of(vae, ramp, monkeypatch, number=60)
    spans, ways = [], set()
    for crops in vae.shown:
        first = (crops[0] + 1) * 127.5
        down = float(first[0, -1, 0] - first[0, 0, 0])
        right = float(first[0, 0, -1] - first[0, 0, 0])
        across = float(first[1, 0, -1] - first[1, 0, 0])
        spans.append(max(abs(down), abs(right)))
        ways.add((round(np.sign(round(down))), round(np.sign(round(right))),
                  round(np.sign(round(across)))))
    assert min(spans) < 100 and max(spans) > 190
    assert len(ways) >= 6


def test_saving_keeps_half_precision_on_disk_and_full_in_memory(tmp_path):
    import torch
    from diffusers import AutoencoderKL
    from safetensors.torch import load_file

    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, down_block_types=(
        "DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",), mid_block_add_attention=False)
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "left").write_text("of an earlier run")
    base_networks.save(vae, tmp_path / "vae")
    weights = load_file(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    assert {p.dtype for p in vae.parameters()} == {torch.float32}
    assert not (tmp_path / "vae" / "left").exists()
