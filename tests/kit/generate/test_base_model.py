"""Base models that are not whole, or of another kind: said before anything is trained."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from arms import arguments, main_of
from lungkit.generate import base_model, base_parts, model_files
from lungkit.generate.base_model import BASE_MODEL_DIR, check_base_model, resolve_base_model
from lungkit.generate.hub import needed_files
from lungkit.generate.prompts import Prompts
from lungkit.run.faults import BadOptions

UNET, VAE, TEXT = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model",
                   "text_encoder/model")
WEIGHTS, FP16 = ".safetensors", ".fp16.safetensors"
TISSUE = {"image_size": 64, "classes": ["lung_n"], "modality": "he", "channels": 3}
BETAS = {"_class_name": "DDPMScheduler", "beta_schedule": "scaled_linear"}


@pytest.fixture
def base(tmp_path) -> Path:
    """The embedded base model, of links that a test may replace."""
    folder = tmp_path / "base"
    for path in sorted(BASE_MODEL_DIR.glob("**/*")):
        if path.is_file() and path.parent.name != "controlnet":
            link = folder / path.relative_to(BASE_MODEL_DIR)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    return folder


def replace(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def edit(name: str, **values: object):
    """What changes `values` of a JSON file."""
    def change(base: Path) -> None:
        old = json.loads((base / name).read_text())
        replace(base / name, json.dumps({**old, **values}).encode())
    return change


def resave(name: str, *, drop: str = "", **shapes: tuple):
    """What writes weights anew, without one tensor or with another shape of some."""
    def change(base: Path) -> None:
        from safetensors.numpy import load_file, save_file

        tensors = load_file(base / name)
        tensors.pop(drop, None)
        for key, shape in shapes.items():
            tensors[key.replace("__", ".")] = np.zeros(shape, np.float16)
        (base / name).unlink()
        save_file(tensors, base / name)
    return change


def cut(name: str, size: int):
    return lambda base: replace(base / name, (base / name).read_bytes()[:size])


def move(name: str, to: str):
    return lambda base: (base / name).rename(base / to)


def write(name: str, content: bytes):
    return lambda base: replace(base / name, content)


def lose(*names: str):
    return lambda base: [(base / name).unlink() for name in names]


def several(*changes):
    return lambda base: [change(base) for change in changes]


NOT_WHOLE = {
    "no unet": (lose(UNET + WEIGHTS), "unet holds no diffusion_pytorch_model.safetensors"),
    "a dangling link": (several(lose(VAE + WEIGHTS), lambda base: (
        base / (VAE + WEIGHTS)).symlink_to("gone")), "vae holds no diffusion_pytorch_model"),
    "pickles only": (several(move(VAE + WEIGHTS, VAE + ".bin")),
                     "vae holds its weights as diffusion_pytorch_model.bin only.*convert it"),
    "ema only": (move(UNET + WEIGHTS, UNET + ".non_ema.safetensors"), "unet holds no"),
    "cut short": (cut(TEXT + WEIGHTS, 400_000),
                  r"text_encoder/model.safetensors is cut short \(400000 of 657944 bytes\): downl"),
    "cut in its header": (cut(UNET + WEIGHTS, 1000), "unet/.*cut short in its header"),
    "empty": (write(VAE + WEIGHTS, b""), "vae/.* is cut short in its header, at 0 bytes"),
    "longer": (lambda base: replace(base / (VAE + WEIGHTS), (base / (VAE + WEIGHTS)).read_bytes()
                                    + b"x"), "longer than its header says"),
    "a Git LFS pointer": (write(UNET + WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n"),
                          "pointer of Git LFS.*git lfs pull"),
    "a web page": (write(UNET + WEIGHTS, b"<!DOCTYPE html>" + bytes(100)), "is no safetensors"),
    "one of two parts": (move(UNET + WEIGHTS, UNET + "-00001-of-00002.safetensors"),
                         "unet holds 1 of 2 parts"),
    "parts without index": (several(
        move(UNET + WEIGHTS, UNET + "-00001-of-00001.safetensors")), "and their index"),
    "no config": (lose("vae/config.json"), "vae holds no config.json: download"),
    "half a config": (cut("unet/config.json", 300), "unet/config.json is not JSON"),
    "no schedule": (lose("scheduler/scheduler_config.json"), "scheduler holds no scheduler_config"),
    "no words": (lose("tokenizer/vocab.json"), "tokenizer holds no vocab.json and merges.txt"),
    "half of the merges": (cut("tokenizer/merges.txt", 2000), "merges.txt is cut short: it makes "),
    "no index": (lose("model_index.json"), "model_index.json is missing"),
    "several faults": (several(lose(VAE + WEIGHTS), cut(UNET + WEIGHTS, 1000)),
                       "unet/.*; vae holds no"),
    "another kind of part": (edit("vae/config.json", _class_name="VQModel"), "vae is a VQModel"),
    "quantised": (edit("unet/config.json", quantization_config={"bits": 4}), "quantised"),
    "XL": (edit("model_index.json", _class_name="StableDiffusionXLPipeline", text_encoder_2=[
        "transformers", "CLIPTextModelWithProjection"]),
        "a StableDiffusionXLPipeline with text_encoder_2: give a Stable Diffusion 1 or 2"),
    "XL's unet": (edit("unet/config.json", addition_embed_type="text_time"),
                  r"unet asks for more than text \(addition_embed_type\)"),
    "inpainting": (edit("unet/config.json", in_channels=9), "unet is of inpainting: it takes 9"),
    "edits": (edit("unet/config.json", in_channels=8), "takes 8 channels and gives 4, latents"),
    "16 channels": (edit("vae/config.json", latent_channels=16), "latents of vae have 16"),
    "grey": (edit("vae/config.json", in_channels=1), "vae takes images of 1 channels and gives 3"),
    "another text": (edit("text_encoder/config.json", hidden_size=768),
                     "unet reads text of width 96, text_encoder gives 768"),
    "more words": (edit("text_encoder/config.json", vocab_size=900), "tokenizer knows 999 words"),
}
BY_SHAPES = {
    "a tensor is missing": (resave(UNET + WEIGHTS, drop="conv_in.weight"),
                            "unet lacks conv_in.weight, which its config"),
    "another config": (edit("unet/config.json", layers_per_block=2), "unet lacks down_blocks.0.att|"
                       "unet lacks down_blocks.0.resnets.1.* tensors more"),
    "another shape": (resave(VAE + WEIGHTS, encoder__conv_in__bias=(8,)),
                      "vae has encoder.conv_in.bias of 8, its config says 16"),
    "a config of no model": (edit("unet/config.json", down_block_types=["NoBlock"] * 3),
                             "unet/config.json describes no model"),
    "a flow": (write("scheduler/scheduler_config.json", json.dumps(
        {"_class_name": "FlowMatchEulerDiscreteScheduler"}).encode()),
        "FlowMatchEulerDiscreteScheduler: give one that predicts sample, epsilon, v_prediction"),
    "flow by its target": (edit("scheduler/scheduler_config.json",
                                prediction_type="flow_prediction"), "predicts 'flow_prediction'"),
    "no schedule that is known": (edit("scheduler/scheduler_config.json", beta_schedule="mine"),
                                  "describes no schedule.*mine"),
    "more words at once": (edit("tokenizer/tokenizer_config.json", model_max_length=248),
                           "999 words and 248 of them at once, text_encoder reads 999 and 77"),
}


def check(folder: Path) -> None:
    check_base_model(folder, TISSUE, Prompts())


@pytest.mark.parametrize("case", NOT_WHOLE)
def test_a_base_that_is_not_whole_or_of_another_kind_is_refused_by_its_headers(case, base):
    change, words = NOT_WHOLE[case]
    change(base)
    with pytest.raises(BadOptions, match=f"--base-model {base}: .*{words}"):
        resolve_base_model(str(base), TISSUE)


@pytest.mark.parametrize("case", BY_SHAPES)
def test_a_base_whose_weights_are_not_those_of_its_configs_is_refused(case, base):
    change, words = BY_SHAPES[case]
    change(base)
    resolve_base_model(str(base), TISSUE)
    with pytest.raises(BadOptions, match=words):
        check(base)


@pytest.mark.parametrize("missing", base_parts.PARTS)
def test_a_folder_without_a_part_is_no_base_model(missing, base):
    (base / missing).rename(base / "away")
    with pytest.raises(BadOptions, match=f"{missing} missing"):
        resolve_base_model(str(base), TISSUE)


# ------------------------------------------------------------------ what is as good

def in_parts(base: Path) -> None:
    """The UNet's weights as two parts with their index."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(base / (UNET + WEIGHTS))
    (base / (UNET + WEIGHTS)).unlink()
    names, table = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        path = base / f"{UNET}-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, path)
        table |= dict.fromkeys(part, path.name)
    write(UNET + ".safetensors.index.json", json.dumps(
        {"metadata": {"total_size": 1}, "weight_map": table}).encode())(base)


def old_names(base: Path) -> None:
    """The text encoder's weights as libraries wrote them before, with a buffer more."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(base / (TEXT + WEIGHTS))
    (base / (TEXT + WEIGHTS)).unlink()
    save_file({f"text_model.{name}": value for name, value in tensors.items()}
              | {"text_model.embeddings.position_ids": np.arange(77)[None]},
              base / (TEXT + WEIGHTS))


@pytest.mark.parametrize("change", [
    several(*(move(part + WEIGHTS, part + FP16) for part in (UNET, VAE, TEXT))),
    several(move(UNET + WEIGHTS, UNET + FP16)), in_parts, old_names], ids=[
    "fp16", "one of fp16", "in parts", "old names"])
def test_weights_of_another_form_are_loaded_as_they_are(change, base):
    import torch

    change(base)
    assert resolve_base_model(str(base), TISSUE) == base
    check(base)
    one, other = (base_model.BaseModel(folder, torch.device("cpu"))
                  for folder in (base, BASE_MODEL_DIR))
    for part in ("unet", "vae", "text_encoder"):
        weights = getattr(other, part).state_dict()
        assert all(value.dtype == torch.float32 for value in weights.values())
        for name, value in getattr(one, part).state_dict().items():
            assert torch.equal(value, weights[name]), name
    assert other.load_unet().dtype == torch.float32  # merged into, and copied to a ControlNet


def test_attention_of_the_oldest_autoencoders_is_known_by_its_old_names():
    names = ("query", "key", "value", "proj_attn")
    assert [model_files.today(f"encoder.mid_block.attentions.0.{name}.weight")
            for name in names] == [f"encoder.mid_block.attentions.0.{name}.weight"
                                   for name in ("to_q", "to_k", "to_v", "to_out.0")]


# ------------------------------------------------------------------ the hub

REPOSITORY = ["model_index.json", "README.md", "v1-5-pruned.safetensors", "v1-5-pruned.ckpt",
              "safety_checker/model.safetensors", "scheduler/scheduler_config.json",
              "tokenizer/vocab.json", "tokenizer/merges.txt", "text_encoder_2/config.json",
              *(f"{part}/config.json" for part in ("unet", "vae", "text_encoder")),
              *(f"{part}{end}" for part in (UNET, VAE, TEXT)
                for end in (WEIGHTS, FP16, ".bin", ".non_ema.safetensors"))]


def test_of_a_repository_one_variant_is_fetched_and_never_a_pickle():
    needed = needed_files(REPOSITORY)
    configs = sorted(name for name in REPOSITORY if name.endswith((".json", ".txt")))
    configs.remove("text_encoder_2/config.json")
    assert sorted(needed) == sorted([*configs, UNET + WEIGHTS, VAE + WEIGHTS, TEXT + WEIGHTS])
    half = needed_files([name for name in REPOSITORY if name != UNET + WEIGHTS])
    assert UNET + FP16 in half and VAE + WEIGHTS in half
    with pytest.raises(model_files.Fault, match="unet holds its weights as .*bin only"):
        needed_files([name for name in REPOSITORY if not (
            name.startswith("unet") and name.endswith(".safetensors"))])


@pytest.fixture
def hub(base, monkeypatch):
    """A hub of one model whose snapshot lies at `base`, in the cache as far as it is there."""
    calls = []

    def snapshot(name, *, allow_patterns, local_files_only=False):
        calls.append(("cache" if local_files_only else "hub", allow_patterns))
        if local_files_only and not (base / "model_index.json").exists():
            raise OSError("nothing there")
        if not local_files_only:
            for wanted in allow_patterns:
                if not (base / wanted).exists():
                    (base / wanted).symlink_to(BASE_MODEL_DIR / wanted)
        return str(base)

    names = [path.relative_to(BASE_MODEL_DIR).as_posix() for path in BASE_MODEL_DIR.glob("*/*")]
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda api, name: SimpleNamespace(
        siblings=[SimpleNamespace(rfilename=file) for file in ("model_index.json", *names)]))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_a_whole_model_in_the_cache_is_not_asked_of_the_hub(hub, base):
    assert resolve_base_model("some/model", TISSUE) == base
    assert [where for where, _ in hub] == ["cache"]


@pytest.mark.parametrize("lost", [["model_index.json"], [UNET + WEIGHTS], [VAE + WEIGHTS, TEXT
                                  + WEIGHTS], ["scheduler/scheduler_config.json"]])
def test_an_interrupted_cache_is_completed_where_there_is_a_network(hub, base, lost):
    lose(*lost)(base)
    assert resolve_base_model("some/model", TISSUE) == base and [where for where, _ in hub] == [
        "cache", "hub"]
    check(base)


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
@pytest.mark.parametrize("lost, words", [
    (UNET + WEIGHTS, r"not whole in the model cache \(unet holds no.*not reachable.*OFFLINE"),
    ("model_index.json", "not in the model cache and not reachable.*OFFLINE is set")])
def test_an_interrupted_cache_is_said_offline_and_the_hub_not_asked(hub, base, lost, words,
                                                                    variable, monkeypatch):
    monkeypatch.setenv(variable, "true")
    lose(lost)(base)
    with pytest.raises(BadOptions, match=words + ".*lungkit.tools.prefetch some/model"):
        resolve_base_model("some/model", TISSUE)
    assert [where for where, _ in hub] == ["cache"]


def test_a_hub_that_cannot_be_reached_is_one_line(hub, base, monkeypatch):
    def fail(api, name):
        raise ConnectionError("no route to host")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fail)
    lose(UNET + WEIGHTS)(base)
    with pytest.raises(BadOptions, match=r"\(unet holds no.*\(ConnectionError\): on a node with"):
        resolve_base_model("some/model", TISSUE)


def test_a_broken_copy_in_the_cache_is_to_be_fetched_anew(hub, base):
    cut(VAE + WEIGHTS, 1000)(base)
    with pytest.raises(BadOptions, match="cut short.*hf download some/model --force-download"):
        resolve_base_model("some/model", TISSUE)


# ------------------------------------------------------------------ the stages' dry runs

@pytest.mark.parametrize(("arm", "option", "change", "words"), [
    ("prompt", "--base-model", BY_SHAPES["a tensor is missing"][0], "unet lacks conv_in.weight"),
    ("context", "--base-model", NOT_WHOLE["inpainting"][0], "unet is of inpainting"),
    ("diffusion", "--autoencoder", NOT_WHOLE["pickles only"][0], "vae holds its weights as"),
    ("diffusion", "--autoencoder", cut(VAE + WEIGHTS, 5000), "cut short"),
    ("diffusion", "--autoencoder", NOT_WHOLE["another kind of part"][0], "is a VQModel"),
    ("diffusion", "--autoencoder", NOT_WHOLE["grey"][0], "takes images of 1 channels"),
    ("diffusion", "--autoencoder", BY_SHAPES["another shape"][0], "vae has encoder.conv_in.bias")])
def test_the_dry_run_says_in_one_line_what_is_wrong(arm, option, change, words, base, few_real,
                                                    tmp_path, capfd):
    change(base)
    output = tmp_path / "datasets" / arm
    status = main_of(arm)(arguments(arm, few_real, output, "--dry-run", option, str(base)))
    lines = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
    assert status == 2 and len(lines) == 1 and words in lines[0] and option in lines[0]
    assert os.listdir(tmp_path) == ["base"]


@pytest.fixture
def control(tmp_path) -> Path:
    folder = tmp_path / "control"
    folder.mkdir()
    for path in (BASE_MODEL_DIR / "controlnet").iterdir():
        (folder / path.name).symlink_to(path)
    return folder


@pytest.mark.parametrize(("change", "words"), [
    (cut("diffusion_pytorch_model.safetensors", 5000), "cut short"),
    (lose("diffusion_pytorch_model.safetensors"), "control holds no diffusion_pytorch_model"),
    (edit("config.json", cross_attention_dim=768), "cross_attention_dim is 768, the base model's"),
    (edit("config.json", conditioning_embedding_out_channels=[16, 32, 96, 256]),
     "halves its maps 3 times"), (edit("config.json", layers_per_block=2), "layers_per_block is 2"),
    (edit("config.json", _class_name="T2IAdapter"), "is a T2IAdapter"),
    (edit("config.json", conditioning_channels=1), "controlnet_cond_embedding.conv_in.weight")])
def test_a_controlnet_that_is_not_whole_or_of_another_base_is_refused(
        change, words, control, few_real, tmp_path, capfd):
    change(control)
    output = tmp_path / "datasets" / "context"
    status = main_of("context")(arguments("context", few_real, output, "--dry-run",
                                          "--controlnet", str(control)))
    lines = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
    assert status == 2 and len(lines) == 1 and words in lines[0] and "--controlnet" in lines[0]


def test_a_controlnet_of_half_precision_is_started_from(control):
    import context_seg

    move("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")(control)
    context_seg.check_control_fits(BASE_MODEL_DIR, control)
    base = type("Base", (), {"folder": BASE_MODEL_DIR, "device": "cpu"})
    one, other = (context_seg.get_controlnet(base, start) for start in (str(control), None))
    assert one.dtype == other.dtype and str(one.dtype) == "torch.float32"
    assert all((a == b).all() for a, b in zip(one.parameters(), other.parameters(), strict=True))
