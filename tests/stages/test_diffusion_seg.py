"""Latent diffusion from scratch: what it trains on, guidance, decoding, seeds, publication."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import diffusion_seg
from adapters import write_real
from arms import arguments, main_of
from lungkit.data.dataset import open_dataset
from lungkit.data.orientations import orient
from lungkit.generate.base_model import BASE_MODEL_DIR, embedded
from lungkit.generate.items import Item
from lungkit.generate.latents import to_model_range, training_schedule
from lungkit.run.faults import BadOptions

pytestmark = pytest.mark.usefixtures("found_once")

CPU = torch.device("cpu")
TISSUE = {"modality": "he", "channels": 3}


class Pixels(torch.nn.Module):
    """An autoencoder whose latents are the pixels, with one deviation; decodes to one value."""

    def __init__(self, *, deviation: float = 0.0, decoded: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.deviation, self.value = deviation, decoded
        self.config = SimpleNamespace(scaling_factor=scale, in_channels=3)
        self.asked: list[torch.Tensor] = []

    def register_to_config(self, **values) -> None:
        vars(self.config).update(values)

    def encode(self, images):
        std = torch.full_like(images, self.deviation)
        return SimpleNamespace(latent_dist=SimpleNamespace(
            mean=images, std=std, kl=lambda: torch.full((len(images),), 2e6)))

    def decode(self, latents):
        self.asked.append(latents.detach().clone())
        return SimpleNamespace(sample=torch.full_like(latents[:, :3], self.value) + self.weight)


class Scaler(torch.nn.Module):
    """A UNet that answers `weight * noisy`, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(5.0))
        self.asked, self.weights = [], []

    def forward(self, noisy, times, class_labels):
        self.asked.append((noisy, times, class_labels))
        self.weights.append(self.weight.item())
        return SimpleNamespace(sample=self.weight * noisy)


# ------------------------------------------------------------------ training

LABELS = np.array([1, 0, 2, 1])


def fit(images, work_dir, *, steps: int, symmetries: int = 8, watched=None) -> tuple:
    """UNet and autoencoder after `steps`, and (image, orientation, class) of what was asked."""
    unet, autoencoder, schedule = Scaler(), Pixels(), training_schedule()
    diffusion_seg.train_unet(unet, autoencoder, schedule, images, LABELS, num_classes=3,
                             steps=steps, batch_size=16, learning_rate=0.02, seed=0, device=CPU,
                             work_dir=work_dir, symmetries=symmetries, watched=watched)
    known = torch.stack([orient(to_model_range(images), which) for which in range(8)])
    known *= autoencoder.config.scaling_factor
    seen = []  # at little noise
    for noisy, times, classes in unet.asked:
        alphas = schedule.alphas_cumprod[times].reshape(-1, 1, 1, 1)
        clean = (noisy / alphas.sqrt()).flatten(1)
        nearest = torch.cdist(clean, known.flatten(0, 1).flatten(1)).argmin(1)
        seen += [(place % 4, place // 4, label) for place, label, alpha in
                 zip(nearest.tolist(), classes.tolist(), alphas.flatten().tolist(), strict=True)
                 if alpha > 0.7]
    return unet, autoencoder, seen


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A UNet and an autoencoder after 60 steps on four images of three classes."""
    images = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3), np.uint8)
    unet, autoencoder, seen = fit(images, tmp_path_factory.mktemp("fitted"), steps=60)
    return SimpleNamespace(unet=unet, autoencoder=autoencoder, images=images, seen=seen)


def test_every_image_is_trained_on_as_of_its_own_class_or_none(fitted):
    pairs = {(image, label) for image, _, label in fitted.seen}
    assert pairs == {(image, label) for image in range(4) for label in (LABELS[image], 3)}


def test_what_is_held_out_is_not_learnt_from(fitted, tmp_path):
    def watched(loss_over, *, steps):
        return loss_over([3, 1]), None

    _, _, seen = fit(fitted.images, tmp_path, steps=4, watched=watched)
    assert {image for image, _, _ in seen} == {1, 3}
    pictures = np.zeros((4, 8, 8, 3), np.uint8)
    pictures[[1, 3]] = 255
    white = diffusion_seg.train_autoencoder(Pixels(deviation=0.5), pictures, steps=1, batch_size=8,
                                            seed=0, work_dir=tmp_path, device=CPU, watched=watched)
    assert white == pytest.approx(3), "an image of another level was in the batch"


def test_both_parts_are_watched_over_all_their_steps(fitted, tmp_path, monkeypatch):
    asked = []

    def train(*_, steps: int, validation, **__) -> float:
        asked.append((steps, validation))
        return 0.5

    def watched(loss_over, *, steps):
        return loss_over([0]), f"watch over {steps}"

    monkeypatch.setattr("lungkit.learn.loop.train", train)
    fit(fitted.images, tmp_path, steps=60, watched=watched)
    diffusion_seg.train_autoencoder(Pixels(), fitted.images, steps=30, batch_size=8, seed=0,
                                    work_dir=tmp_path, device=CPU, watched=watched)
    assert asked == [(60, "watch over 60"), (30, "watch over 30")]


def test_every_batch_holds_all_classes_alike_however_many_images_they_have(fitted):
    """Of 16 images 5 or 6 a class, though one class has two of four images."""
    for _, _, classes in fitted.unet.asked:
        counts = torch.bincount(classes, minlength=4)
        assert counts[:3].max() <= 6, "some of a class may have been dropped for guidance"
    seen = torch.cat([classes for _, _, classes in fitted.unet.asked])
    shares = torch.bincount(seen, minlength=4)[:3] / (seen < 3).sum()
    assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=0.03)


@pytest.mark.parametrize(("symmetries", "allowed"), [(2, {0, 4}), (1, {0})])
def test_images_are_turned_as_their_dataset_allows(symmetries, allowed, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3), np.uint8)
    assert {which for _, which, _ in fit(images, tmp_path, steps=10, symmetries=symmetries)[2]} \
        == allowed


def test_the_dataset_says_how_autoencoder_and_unet_turn_images(tmp_path, monkeypatch):
    asked = []
    for name in ("train_autoencoder", "train_unet"):
        monkeypatch.setattr(diffusion_seg, name, lambda *_, symmetries, **__: asked.append(
            symmetries) or 0.5)
    real = write_real(tmp_path / "real", symmetries=2)
    calls = watch(real, tmp_path, 0, "--autoencoder", "train")
    assert calls.code == 0 and asked == [2, 2]


def test_a_tenth_of_the_classes_is_dropped_for_guidance(fitted):
    classes = torch.cat([classes for _, _, classes in fitted.unet.asked])
    assert float((classes == 3).float().mean()) == pytest.approx(0.1, abs=0.03)


def test_images_are_trained_on_in_all_eight_orientations(fitted):
    assert {which for _, which, _ in fitted.seen} == set(range(8))


def test_the_unet_left_is_the_moving_average(fitted):
    weights = fitted.unet.weights
    assert weights == sorted(weights, reverse=True), "else the average could not be told"
    assert weights[0] > fitted.unet.weight.item() > weights[-1]


def test_latents_are_scaled_to_unit_deviation_and_the_scale_is_kept(tmp_path):
    images = np.full((6, 8, 8, 3), 255, np.uint8)
    images[::2] = 0  # means of -1 and 1, and a posterior of deviation 0.75
    unet, autoencoder, schedule = Scaler(), Pixels(deviation=0.75), training_schedule()
    diffusion_seg.train_unet(unet, autoencoder, schedule, images, np.zeros(6, np.int64),
                             num_classes=1, steps=20, batch_size=16, learning_rate=1e-3, seed=0,
                             work_dir=tmp_path, device=CPU)
    assert autoencoder.config.scaling_factor == pytest.approx(0.8, rel=1e-3)
    noisy = torch.cat([noisy for noisy, _, _ in unet.asked])
    assert float(noisy.std()) == pytest.approx(1, rel=0.03)  # at every time, for variance is kept


def test_the_class_beyond_the_last_means_no_class():
    unet = diffusion_seg.build_unet(8, 4, [32, 32], 3)
    assert unet.config.num_class_embeds == 4
    noisy = torch.zeros(4, 4, 8, 8)
    with torch.no_grad():
        answers = unet(noisy, torch.tensor(3), class_labels=torch.arange(4)).sample
    assert len({tuple(answer.flatten().tolist()) for answer in answers}) == 4
    assert answers.shape == noisy.shape


# L1 of 1 to a decoded 0, and a KL of 2e6 at 1e-6
@pytest.mark.parametrize(("image", "loss"), [
    ("white", 1 + 2), ("rows", 1 + 2 + 2), ("columns", 1 + 2 + 2)])
def test_the_autoencoder_loss_is_pixels_their_differences_and_a_little_kl(image, loss, tmp_path):
    images = np.full((2, 8, 8, 3), 255, np.uint8)
    if image == "rows":
        images[:, ::2] = 0  # differences of 2 along one axis
    if image == "columns":
        images[:, :, ::2] = 0
    autoencoder = Pixels(deviation=0.5)
    found = diffusion_seg.train_autoencoder(autoencoder, images, steps=1, batch_size=2, seed=0,
                                            work_dir=tmp_path, device=CPU)
    assert found == pytest.approx(loss)
    if image == "white":
        assert float(autoencoder.asked[0].std()) == pytest.approx(0.5, rel=0.2), \
            "no posterior sample"


# ------------------------------------------------------------------ sampling

LEVELS = {0: 0.8, 1: -1.5, 2: 3.0, 3: 0.2}  # 3: no class


class Oracle:
    """A UNet that knows the latents of each class: all of one level; unclipped they reach 3."""

    config = SimpleNamespace(sample_size=4, in_channels=4)

    def __init__(self) -> None:
        self.asked = []

    def __call__(self, noisy, t, class_labels):
        self.asked.append((noisy.clone(), int(t), class_labels.tolist()))
        clean = torch.tensor([LEVELS[label]
                              for label in class_labels.tolist()]).reshape(-1, 1, 1, 1)
        alpha = training_schedule().alphas_cumprod[t]
        noise = (noisy - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        return SimpleNamespace(sample=alpha.sqrt() * noise - (1 - alpha).sqrt() * clean)


def sample(labels: str, *, guidance_scale: float = 1.0, scale: float = 1.0, decoded: float = 0.0,
           seed: int = 0, name: str = "dpm", indices=(5, 9, 2)):
    oracle, autoencoder = Oracle(), Pixels(scale=scale, decoded=decoded)
    items = [Item(index, "train", label) for index, label in zip(indices, labels, strict=True)]
    images = diffusion_seg.sample_images(
        oracle, autoencoder, training_schedule(), items, classes=["a", "b", "c"], sampler_name=name,
        steps=4, guidance_scale=guidance_scale, seed=seed, device=CPU)
    return oracle, autoencoder.asked[0], images


@pytest.mark.parametrize("name", ["dpm", "ddim"])
@pytest.mark.parametrize("guidance_scale", [1.0, 0.5, 2.0])
def test_guidance_goes_from_no_class_through_the_class_by_its_scale(name, guidance_scale):
    _, latents, _ = sample("cbc", guidance_scale=guidance_scale, name=name)
    levels = [LEVELS[3] + guidance_scale * (LEVELS[label] - LEVELS[3]) for label in (2, 1, 2)]
    assert latents.mean((1, 2, 3)).tolist() == pytest.approx(levels, abs=0.05)
    assert float(latents.std((1, 2, 3)).max()) < 0.05


def test_no_guidance_asks_for_the_class_alone():
    assert {tuple(labels) for _, _, labels in sample("bca")[0].asked} == {(1, 2, 0)}
    guided = {tuple(labels) for _, _, labels in sample("bca", guidance_scale=2)[0].asked}
    assert guided == {(1, 2, 0, 3, 3, 3)}


def test_latents_are_decoded_at_the_scale_of_the_autoencoder():
    _, latents, _ = sample("aaa", scale=0.4)
    assert latents.mean().item() == pytest.approx(LEVELS[0] / 0.4, rel=0.02)


@pytest.mark.parametrize(("decoded", "pixel"), [(-1.0, 0), (0.2, 153), (1.0, 255), (1.7, 255)])
def test_what_is_decoded_from_minus_one_to_one_becomes_pixels(decoded, pixel):
    images = sample("aaa", decoded=decoded)[2]
    assert images.dtype == np.uint8 and images.shape == (3, 4, 4, 3) and (images == pixel).all()


def test_drawing_starts_at_the_last_step_from_unit_noise_of_the_seed_and_the_index():
    noise, t, _ = sample("abc")[0].asked[0]
    assert t == 999 and float(noise.std()) == pytest.approx(1, rel=0.15)
    other_place = sample("abc", indices=(2, 5, 9))[0].asked[0][0]
    assert torch.equal(other_place[1], noise[0]) and torch.equal(other_place[0], noise[2])
    other_seed = sample("abc", seed=1)[0].asked[0][0]
    assert len({tuple(part.flatten().tolist()) for part in (*noise, *other_seed)}) == 6


# ------------------------------------------------------------------ the stage

def watch(real, root, seed: int, *more: str, chosen: dict | None = None) -> SimpleNamespace:
    """Run the stage without training and with images of one grey a class; what it asked for.

    chosen: what a stand-in of `choose` says to draw with.
    """
    calls = SimpleNamespace(trained=[], drawn=[], output=root / "datasets" / "diffusion",
                            model=root / "models" / "diffusion")

    def train(parameters, loss_at, *, what, **options):
        calls.trained.append({"what": what, **options})
        return 0.5

    def sample_images(unet, autoencoder, schedule, items, *, classes, **options):
        calls.drawn.append({"items": items, "scale": autoencoder.config.scaling_factor, **options})
        grey = [60 * classes.index(item.label) + 10 for item in items]
        shape = (len(items), 64, 64, 3)
        return np.broadcast_to(np.array(grey, np.uint8)[:, None, None, None], shape).copy()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lungkit.learn.loop.train", train)
        patch.setattr("diffusion_seg.sample_images", sample_images)
        if chosen:
            patch.setattr("diffusion_seg.choose", lambda *_: (chosen, {"choice": chosen}))
        calls.code = main_of("diffusion")(arguments(
            "diffusion", real, calls.output, "--seed", str(seed), *more))
    return calls


CHOSEN = {"steps": 3, "guidance_scale": 7.0}


@pytest.fixture(scope="module")
def watched(few_real, tmp_path_factory):
    return [watch(few_real, tmp_path_factory.mktemp(f"seed{seed}"), seed,
                  "--autoencoder", "train", "--pool", "2", "--validation-share", "0.5",
                  "--learning-rate", "0.003", "--guidance-scale", "1.25", chosen=chosen)
            for seed, chosen in ((0, None), (1, CHOSEN))]


def test_no_training_or_drawing_of_any_seed_shares_random_numbers(watched):
    seeds = []
    for calls in watched:
        assert calls.code == 0
        assert [call["what"] for call in calls.trained] == ["autoencoder", "diffusion UNet"]
        drawn = {call["seed"] for call in calls.drawn}
        recorded = {row.seed.split(":")[0] for row in open_dataset(calls.output).rows}
        assert recorded == {str(seed) for seed in drawn} and len(drawn) == 1
        seeds += [*(call["seed"] for call in calls.trained), *drawn]
        for call in calls.trained:  # one of two images a class is held out
            assert call["validation"].patience == 10
            seeds.append(call["validation"].seed)
    assert len(set(seeds)) == 6 + 2


def test_the_options_given_are_those_trained_and_drawn_with(watched):
    autoencoder, unet = watched[0].trained
    assert [call["curve_path"].parts[-2:] for call in (autoencoder, unet)] == [
        ("vae", "loss.csv"), ("unet", "loss.csv")]
    assert unet["learning_rate"] == 0.003 and unet["steps"] == 3 and unet["ema_decay"] > 0.99
    assert autoencoder["steps"] == 600 and autoencoder["ema_decay"] > 0.99
    assert {(call["steps"], call["guidance_scale"], call["sampler_name"])
            for call in watched[0].drawn} == {(2, 1.25, "dpm")}


def test_a_set_is_drawn_with_what_was_chosen_and_says_so(watched):
    usual, chosen = watched
    assert {(call["steps"], call["guidance_scale"]) for call in chosen.drawn} == {(3, 7.0)}
    assert open_dataset(chosen.output).manifest["choice"] == CHOSEN
    assert "choice" not in open_dataset(usual.output).manifest


def test_each_image_is_filed_under_the_class_it_was_drawn_for(watched, few_real):
    dataset, real = open_dataset(watched[0].output), open_dataset(few_real)
    for split in ("train", "val", "test"):
        images, labels = dataset.load(split)
        assert ((images == (60 * labels + 10)[:, None, None, None]).all())
        assert np.bincount(labels).tolist() == [
            real.counts[split][label] * (2 if split == "train" else 1) for label in real.classes]
    indices = [item.index for call in watched[0].drawn for item in call["items"]]
    assert sorted(indices) == list(range(len(dataset.rows)))
    assert all(row.seed.split(":")[1] == str(int(row.stem)) for row in dataset.rows)


def test_the_images_are_decoded_by_the_autoencoder_and_scale_that_were_trained(watched):
    from diffusers import AutoencoderKL

    saved = AutoencoderKL.from_pretrained(watched[0].model / "vae").config.scaling_factor
    assert {call["scale"] for call in watched[0].drawn} == {saved} and saved != 0.18215


def test_the_model_records_that_it_saw_the_train_split_alone(watched, few_real):
    manifest = json.loads((watched[0].model / "model.json").read_text())
    assert manifest["parents"] == [{
        "name": "real", "fingerprint": open_dataset(few_real).fingerprint,
        "splits": {split: ["train"] for split in ("train", "val", "test")}}]


def test_a_model_that_is_there_is_not_trained_again(few_real, watched, tmp_path):
    shutil.copytree(watched[0].model, tmp_path / "models" / "diffusion")
    calls = watch(few_real, tmp_path, 0, "--autoencoder", "train", "--learning-rate", "0.003",
                  "--guidance-scale", "3", "--sampler", "ddim", "--validation-share", "0.5")
    assert calls.code == 0 and not calls.trained
    assert {(call["guidance_scale"], call["sampler_name"]) for call in calls.drawn} == {(3, "ddim")}


@pytest.mark.parametrize(("more", "name"), [
    (["--autoencoder", "base", "--learning-rate", "0.003"], "autoencoder"),
    (["--autoencoder", "train", "--learning-rate", "0.004"], "learning_rate"),
    (["--autoencoder", "train", "--learning-rate", "0.003", "--autoencoder-steps", "2"],
     "autoencoder_steps"),
    (["--autoencoder", "train", "--learning-rate", "0.003", "--seed", "1"], "seed"),
    (["--autoencoder", "train", "--learning-rate", "0.003", "--pool", "1"], "pool")])
def test_an_image_of_another_model_or_draw_is_not_taken_for_this_one(
        more, name, watched, few_real, capfd):
    options = ["--guidance-scale", "1.25", *(["--pool", "2"] if name != "pool" else []), *more]
    call = arguments("diffusion", few_real, watched[0].output, *options)
    assert main_of("diffusion")(call) == 2
    assert f"{name}: " in capfd.readouterr().err.splitlines()[-1]


def test_the_decoder_of_what_is_not_trained_here_is_fitted_first(few_real, tmp_path):
    calls = watch(few_real, tmp_path, 0, "--decoder-steps", "5", "--decoder-batch-size", "3")
    decoder, unet = calls.trained
    assert [decoder["what"], unet["what"]] == ["decoder", "diffusion UNet"]
    assert decoder["steps"] == 5 and decoder["seed"] != unet["seed"]
    manifest = json.loads((calls.model / "model.json").read_text())
    assert manifest["losses"] == {"decoder": 0.5, "unet": 0.5}
    parameters = manifest["parameters"]
    assert (parameters["decoder_steps"], parameters["decoder_batch_size"]) == (5, 3)
    trained = watch(few_real, tmp_path / "train", 0, "--autoencoder", "train",
                    "--decoder-steps", "5")
    assert [call["what"] for call in trained.trained] == ["autoencoder", "diffusion UNet"]


def test_a_fitted_autoencoder_is_not_written_over(few_real, tmp_path, monkeypatch):
    """What a second save left torn would be taken for whole by the next run."""
    from diffusers import AutoencoderKL

    save, folders = AutoencoderKL.save_pretrained, []
    monkeypatch.setattr(AutoencoderKL, "save_pretrained", lambda self, folder, *args, **more: (
        folders.append(folder.name), save(self, folder, *args, **more)))
    calls = watch(few_real, tmp_path, 0, "--decoder-steps", "5")
    assert calls.code == 0 and folders == [".vae"]
    left = watch(few_real, tmp_path / "none", 0, "--decoder-steps", "0")
    assert left.code == 0 and folders == [".vae", "vae"]
    scale = calls.drawn[0]["scale"]  # of real's latents, known only after the fit
    assert scale == left.drawn[0]["scale"]
    assert scale != AutoencoderKL.load_config(BASE_MODEL_DIR / "vae")["scaling_factor"]


def test_the_embedded_autoencoder_is_used_as_it_is(few_real, tmp_path):
    from diffusers import AutoencoderKL

    calls = watch(few_real, tmp_path, 0, "--decoder-steps", "0")
    assert [call["what"] for call in calls.trained] == ["diffusion UNet"]
    used = AutoencoderKL.from_pretrained(calls.model / "vae").state_dict()
    base = AutoencoderKL.from_pretrained(BASE_MODEL_DIR / "vae").state_dict()
    assert used.keys() == base.keys() and all(torch.equal(used[name], base[name]) for name in base)


@pytest.mark.parametrize(("image_size", "autoencoder", "preset", "widths", "words"), [
    (64, "train", "demo", [32, 48], "multiples of 32"),
    (72, "train", "demo", [32, 32, 32], "16 px"),       # halved twice, then twice
    (80, "train", "full", [32, 32, 32], "32 px"),       # thrice, then twice
    (72, "base", "full", [32, 32, 32], "16 px")])       # the embedded autoencoder halves twice
def test_sizes_the_model_cannot_halve_are_refused(image_size, autoencoder, preset, widths, words):
    with pytest.raises(BadOptions, match=words):
        diffusion_seg.check_sizes({**TISSUE, "image_size": image_size}, autoencoder, preset, widths)
    diffusion_seg.check_sizes({**TISSUE, "image_size": 96}, autoencoder, preset, [32, 32, 32])


@pytest.mark.parametrize(("modality", "channels"), [("ct", 1), ("he", 3)])
def test_the_embedded_autoencoder_is_that_of_the_images_modality(tmp_path, modality, channels):
    from diffusers import AutoencoderKL

    calls = watch(write_real(tmp_path / "real", modality=modality, channels=channels), tmp_path, 0,
                  "--decoder-steps", "0")
    assert calls.code == 0 and [call["what"] for call in calls.trained] == ["diffusion UNet"]
    used = AutoencoderKL.from_pretrained(calls.model / "vae")
    assert used.config.in_channels == used.config.out_channels == channels
    other = AutoencoderKL.from_pretrained(embedded({"modality": modality}) / "vae").state_dict()
    assert all(torch.equal(weight, other[name]) for name, weight in used.state_dict().items())
    made = open_dataset(calls.output)
    assert (made.channels, made.modality) == (channels, modality)


def test_an_autoencoder_trained_on_grey_images_has_one_channel(tmp_path):
    from diffusers import AutoencoderKL

    real = write_real(tmp_path / "real", modality="ct", channels=1)
    calls = watch(real, tmp_path, 0, "--autoencoder", "train")
    assert calls.code == 0 and [call["what"] for call in calls.trained] == [
        "autoencoder", "diffusion UNet"]
    assert AutoencoderKL.from_pretrained(calls.model / "vae").config.in_channels == 1
