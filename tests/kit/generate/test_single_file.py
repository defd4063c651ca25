"""One .safetensors file as a base model: known by its header, made the folder that it came from."""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path

import pytest

from arms import arguments, fork, main_of
from lungkit.generate import single_file
from lungkit.generate.base_model import BaseModel, check_base_model, fingerprint, resolve_base_model
from lungkit.generate.items import folder_fingerprint
from lungkit.generate.model_card import folder_name
from lungkit.generate.prompts import Prompts
from lungkit.generate.single_file import MADE, as_folder, open_file, predicted
from lungkit.run.faults import BadOptions, Fault
from lungkit.run.files import sha256_file

TISSUE = {"image_size": 64, "classes": ["lung_n"], "modality": "he", "channels": 3}
UNET, VAE = "model.diffusion_model", "first_stage_model"
CLIP, OPEN_CLIP = "cond_stage_model.transformer.text_model", "cond_stage_model.model"


# ------------------------------------------------------------------ back to the names of training

def substituted(name: str, *pairs: tuple[str, str]) -> str:
    for pattern, words in pairs:
        name = re.sub(pattern, words, name)
    return name


def unet_name(name: str, depth: int = 2) -> str:
    """The original name of a UNet's tensor whose blocks have `depth` layers."""
    if match := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", name):
        side, block, kind, layer, rest = match.groups()
        number = int(block) * (depth + 1) + int(layer) + (side == "down")
        name = (f"{'in' if side == 'down' else 'out'}put_blocks.{number}."
                f"{0 if kind == 'resnets' else 1}.{rest}")
    elif match := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", name):
        name = f"input_blocks.{(int(match[1]) + 1) * (depth + 1)}.0.op.{match[2]}"
    elif match := re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.*)", name):
        after = 2 if int(match[1]) else 1  # the first block has no attention before it
        name = f"output_blocks.{int(match[1]) * (depth + 1) + depth}.{after}.conv.{match[2]}"
    resnet = () if "transformer_blocks" in name else (
        (r"\.norm1\.", ".in_layers.0."), (r"\.norm2\.", ".out_layers.0."))
    return substituted(
        name, *resnet, (r"^conv_in\.", "input_blocks.0.0."), (r"^conv_norm_out\.", "out.0."),
        (r"^conv_out\.", "out.2."), (r"^time_embedding\.linear_1", "time_embed.0"),
        (r"^time_embedding\.linear_2", "time_embed.2"),
        (r"^mid_block\.resnets\.0", "middle_block.0"),
        (r"^mid_block\.attentions\.0", "middle_block.1"),
        (r"^mid_block\.resnets\.1", "middle_block.2"),
        (r"\.conv1\.", ".in_layers.2."), (r"\.conv2\.", ".out_layers.3."),
        (r"\.time_emb_proj\.", ".emb_layers.1."), (r"\.conv_shortcut\.", ".skip_connection."))


def vae_name(name: str, blocks: int = 2) -> str:
    """The original name of an autoencoder's tensor of so many blocks."""
    name = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{blocks - 1 - int(match[1])}", name)
    return substituted(
        name, (r"down_blocks", "down"), (r"mid_block\.resnets\.0", "mid.block_1"),
        (r"mid_block\.resnets\.1", "mid.block_2"), (r"mid_block\.attentions\.0", "mid.attn_1"),
        (r"\.resnets\.", ".block."), (r"(down|up)samplers\.0", r"\1sample"),
        (r"conv_norm_out", "norm_out"), (r"conv_shortcut", "nin_shortcut"),
        (r"group_norm", "norm"), (r"to_([qkv])\.", r"\1."), (r"to_out\.0", "proj_out"))


def open_clip_tensors(text: dict) -> dict:
    """A text encoder's tensors as OpenCLIP has them, with a layer and a projection more."""
    import torch

    made = {}
    for name, tensor in text.items():
        name = substituted(
            name, (r"embeddings\.token_embedding", "token_embedding"),
            (r"embeddings\.position_embedding\.weight", "positional_embedding"),
            (r"final_layer_norm", "ln_final"), (r"encoder\.layers", "transformer.resblocks"),
            (r"layer_norm([12])", r"ln_\1"), (r"fc1", "c_fc"), (r"fc2", "c_proj"),
            (r"self_attn", "attn"))
        if match := re.match(r"(.*attn)\.q_proj\.(weight|bias)", name):
            three = [text[f"{prefix}.{kind}_proj.{match[2]}"] for prefix in [next(
                old.rsplit(".q_proj", 1)[0] for old in text if text[old] is tensor)]
                for kind in "qkv"]
            made[f"{match[1]}.in_proj_{match[2]}"] = torch.cat(three)
        elif not re.search(r"[kv]_proj", name):
            made[name] = tensor
    last = {name: tensor for name, tensor in made.items() if ".resblocks.1." in name}
    return made | {name.replace(".1.", ".2."): tensor.clone() for name, tensor in last.items()} | {
        "text_projection": torch.zeros(64, 64), "logit_scale": torch.ones(())}


def tiny(number: int) -> dict:
    """The configs of a release with few and narrow layers, its own kinds of layer kept."""
    family = json.loads(single_file.FAMILIES[number - 1].read_text())
    family["unet"] |= {
        "block_out_channels": [16, 16, 32], "norm_num_groups": 8,
        "down_block_types": [*2 * ["CrossAttnDownBlock2D"], "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *2 * ["CrossAttnUpBlock2D"]],
        "cross_attention_dim": 32 * number, "attention_head_dim": 4 if number == 1 else [2, 2, 4]}
    family["vae"] |= {
        "block_out_channels": [8, 16], "norm_num_groups": 4,
        "down_block_types": 2 * ["DownEncoderBlock2D"], "up_block_types": 2 * ["UpDecoderBlock2D"]}
    family["text_encoder"] |= {
        "hidden_size": 32 * number, "intermediate_size": 48, "num_attention_heads": 4,
        "num_hidden_layers": 2}
    return family


@pytest.fixture(scope="module")
def models() -> dict:
    """{release: its networks of random weights, by name}."""
    import torch

    torch.manual_seed(0)
    return {number: {name: single_file.build(name, tiny(number)[name]).eval()
                     for name in single_file.NETWORKS} for number in (1, 2)}


def original(networks: dict, number: int) -> dict:
    """The tensors of networks as a single file of the release has them."""
    states = {name: network.state_dict() for name, network in networks.items()}
    made = {f"{UNET}.{unet_name(name)}": tensor for name, tensor in states["unet"].items()}
    for name, tensor in states["vae"].items():
        is_attention = re.search(r"attentions.*(to_[qkv]|to_out\.0)\.weight", name)
        made[f"{VAE}.{vae_name(name)}"] = tensor[:, :, None, None] if is_attention else tensor
    if number == 1:
        return made | {f"{CLIP}.{name}": tensor for name, tensor in states["text_encoder"].items()}
    return made | {f"{OPEN_CLIP}.{name}": tensor
                   for name, tensor in open_clip_tensors(states["text_encoder"]).items()}


@pytest.fixture
def families(tmp_path, monkeypatch) -> None:
    """The tiny releases in the place of those shipped."""
    paths = tuple(tmp_path / f"family_{number}.json" for number in (1, 2))
    for number, path in enumerate(paths, 1):
        path.write_text(json.dumps(tiny(number)))
    monkeypatch.setattr(single_file, "FAMILIES", paths)


@pytest.fixture
def given(families, models, tmp_path) -> Path:
    """A tiny file of the first release, alone in its folder."""
    return write(tmp_path / "given" / "tiny.safetensors", original(models[1], 1))


def write(path: Path, tensors: dict, **metadata: str) -> Path:
    from safetensors.torch import save_file

    path.parent.mkdir(exist_ok=True)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path,
              metadata=metadata or None)
    return path


# ------------------------------------------------------------------ made a folder

@pytest.mark.parametrize("number", [1, 2])
def test_the_folder_computes_what_the_model_does_that_the_file_was_made_from(
        number, families, models, tmp_path):
    import torch

    path = write(tmp_path / "one" / "v.safetensors", original(models[number], number))
    file = resolve_base_model(str(path), TISSUE, "v_prediction")
    check_base_model(file, TISSUE, Prompts())
    folder = as_folder(file, tmp_path / "models")
    base, was = BaseModel(folder, torch.device("cpu")), models[number]
    assert folder.parent == path.parent / ".v.safetensors.cache"
    assert base.schedule.config.prediction_type == "v_prediction"
    assert base.tokenizer.pad_token == ("<|endoftext|>", "!")[number - 1]
    images, noisy, times = torch.rand(1, 3, 16, 16), torch.randn(1, 4, 8, 8), torch.tensor([500])
    tokens = base.tokenizer(["lung tissue"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        states = base.encode(["lung tissue"])
        assert torch.equal(states, was["text_encoder"](tokens)[0])
        assert torch.equal(base.vae.encode(images).latent_dist.mean,
                           was["vae"].encode(images).latent_dist.mean)
        assert torch.equal(base.vae.decode(noisy).sample, was["vae"].decode(noisy).sample)
        found, wanted = (unet(noisy, times, encoder_hidden_states=states).sample
                         for unet in (base.load_unet(), was["unet"]))
        assert torch.equal(found, wanted)


def test_names_are_those_of_the_releases(models):
    """A few names of the releases, so that the two maps are not wrong alike."""
    names = original(models[1], 1)
    for name, shape in {
            "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": 2,
            "model.diffusion_model.middle_block.2.out_layers.3.weight": 4,
            "model.diffusion_model.output_blocks.2.1.conv.weight": 4,
            "model.diffusion_model.output_blocks.5.2.conv.weight": 4,
            "model.diffusion_model.time_embed.2.bias": 1,
            "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight": 4,
            "first_stage_model.encoder.mid.attn_1.proj_out.weight": 4,
            "first_stage_model.quant_conv.weight": 4}.items():
        assert names[name].ndim == shape, name


def test_a_file_is_made_a_folder_once_and_keeps_its_precision(given, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    write(given, {name: tensor.half() for name, tensor in load_file(given).items()})
    before = folder_fingerprint(given.parent)
    folder = as_folder(open_file(given), tmp_path / "models")
    assert folder_fingerprint(given.parent) == before
    assert {str(tensor.dtype) for tensor in load_file(
        folder / "unet/diffusion_pytorch_model.safetensors").values()} == {"torch.float16"}
    assert len({path.stat().st_mode for path in folder.glob("*/*")}) == 1  # a group's to read
    monkeypatch.setattr(single_file, "write_network", None)
    assert as_folder(open_file(given), tmp_path / "other") == folder
    assert not (tmp_path / "models").exists()
    assert [path.name for path in sorted(folder.parent.iterdir())] == [folder.name]


def test_killed_in_the_middle_the_same_command_finishes(given, tmp_path, monkeypatch):
    write_network = single_file.write_network

    def until_the_text_encoder(base, name, folder):
        if name == "text_encoder":
            monkeypatch.setattr("safetensors.torch.save_file",
                                lambda tensors, path, **_: (path.write_bytes(b"half"), os._exit(9)))
        write_network(base, name, folder)

    def make():
        monkeypatch.setattr(single_file, "write_network", until_the_text_encoder)
        as_folder(open_file(given), tmp_path)
        return 0

    _, status = os.waitpid(fork(make), 0)
    assert os.waitstatus_to_exitcode(status) == 9
    work, = (given.parent / ".tiny.safetensors.cache").glob(".*.partial")
    kept = work / "unet/diffusion_pytorch_model.safetensors"
    before = kept.stat().st_mtime_ns
    folder = as_folder(open_file(given), tmp_path)
    assert (folder / "unet" / kept.name).stat().st_mtime_ns == before
    assert not list(folder.rglob(".*")) and single_file.open_parts(folder)


def test_where_nothing_may_be_written_beside_the_file_the_run_takes_it(
        given, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != given.parent)
    folder = as_folder(open_file(given), tmp_path / "models")
    assert folder.parents[1] == tmp_path / "models" and (folder / MADE).is_file()
    assert [path.name for path in given.parent.iterdir()] == [given.name]


def test_another_content_or_prediction_is_another_folder(given, models, tmp_path):
    first = open_file(given)
    other = open_file(given, "v_prediction")
    assert fingerprint(first) != fingerprint(other) and sha256_file(given) in fingerprint(first)
    assert as_folder(first, tmp_path) != as_folder(other, tmp_path)
    tensors = original(models[1], 1)
    tensors[f"{UNET}.out.2.bias"] = tensors[f"{UNET}.out.2.bias"] + 1
    assert fingerprint(open_file(write(given, tensors))) != fingerprint(first)


def test_a_folder_that_was_harmed_is_said_and_not_trained_from(given, tmp_path):
    folder = as_folder(open_file(given), tmp_path)
    (folder / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"")
    with pytest.raises(Fault, match=r"not whole any more \(vae/.*\): delete it"):
        as_folder(open_file(given), tmp_path)


def test_the_card_names_the_file_and_not_the_cache(given, tmp_path):
    folder = as_folder(open_file(given), tmp_path)
    assert folder_name(folder) == f"`tiny.safetensors` (SHA-256 `{sha256_file(given)}`)"


def test_averaged_weights_are_taken_where_all_are_there(given, models, tmp_path):
    import torch
    from safetensors.torch import load_file

    tensors = original(models[1], 1)
    averaged = {"model_ema." + name.removeprefix("model.").replace(".", ""): tensor + 1
                for name, tensor in tensors.items() if name.startswith(UNET)}
    folder = as_folder(open_file(write(given, tensors | averaged)), tmp_path)
    made = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    for name, tensor in models[1]["unet"].state_dict().items():
        assert torch.equal(made[name], tensor + 1), name
    averaged.pop("model_ema.diffusion_modelout2bias")
    with pytest.raises(Fault, match="lacks model_ema.diffusion_modelout2bias"):
        open_file(write(given, tensors | averaged)).parts()


@pytest.mark.parametrize(("lost", "words"), [
    (f"{UNET}.middle_block.0.in_layers.0.weight", "unet lacks mid_block.resnets.0.norm1.weight"),
    (f"{UNET}.output_blocks.2.1.conv.bias", "unet lacks up_blocks.0.upsamplers.0.conv.bias|"
     "unet lacks 'output_blocks.2.1.conv.bias'"),
    (f"{VAE}.encoder.mid.attn_1.q.bias", "vae lacks encoder.mid_block.attentions.0.to_q.bias"),
    (f"{CLIP}.final_layer_norm.bias", "text_encoder lacks final_layer_norm.bias")])
def test_a_tensor_that_is_missing_is_said_before_anything_is_made(lost, words, given, models):
    tensors = original(models[1], 1)
    del tensors[lost]
    file = resolve_base_model(str(write(given, tensors)), TISSUE)
    with pytest.raises(BadOptions, match=f"--base-model {given}: .*{words}"):
        check_base_model(file, TISSUE, Prompts())


@pytest.mark.parametrize("arm", ["prompt", "context"])
def test_an_arm_is_trained_from_the_folder(arm, given, few_real, tmp_path, monkeypatch, capfd):
    opened = []

    def open_base(folder, device):
        opened.append(folder)
        raise Fault("enough")

    monkeypatch.setattr(f"{arm}_seg.BaseModel", open_base)
    call = arguments(arm, few_real, tmp_path / "datasets" / arm, "--base-model", str(given))
    assert main_of(arm)([*call, "--dry-run"]) == 0
    assert sha256_file(given) in capfd.readouterr().err and not opened
    assert [path.name for path in given.parent.iterdir()] == [given.name]
    assert main_of(arm)(call) == 1
    assert opened == [as_folder(open_file(given), tmp_path)]


def test_prefetch_makes_the_folder_beforehand_and_says_the_files_sum(given, tmp_path, capsys):
    from lungkit.tools import prefetch

    assert prefetch.main([str(given)]) == 0
    folder = as_folder(open_file(given), tmp_path / "models")
    told = capsys.readouterr().out
    assert sha256_file(given) in told and "whole, " in told and str(folder) in told
    assert not (tmp_path / "models").exists()
    assert prefetch.main([str(header_file(given, OTHERS["XL"][0]))]) == 1
    line, = (line for line in capsys.readouterr().err.splitlines() if "error" in line)
    assert f"{given}: it holds a Stable Diffusion XL" in line


# ------------------------------------------------------------------ known by the header

def header_file(path: Path, shapes: dict, *, dtype: str = "F16", length_from: int = 0,
                **metadata: str) -> Path:
    """A safetensors file of these shapes, as long as it should be and without content.

    length_from: the least byte of its header's length, 0: as it comes.
    """
    end, entries = 0, {"__metadata__": metadata} if metadata else {}
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(entries).encode()
    text += b" " * ((length_from - len(text)) % 256 if length_from else 0)
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + end)
    return path


IN = f"{UNET}.input_blocks.0.0.weight"
READS = f"{UNET}.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
WHOLE = {IN: (320, 4, 3, 3), READS: (320, 768), f"{VAE}.quant_conv.weight": (8, 8, 1, 1),
         f"{CLIP}.embeddings.position_embedding.weight": (77, 768)}
TWO = {IN: (320, 4, 3, 3), READS: (320, 1024), f"{VAE}.quant_conv.weight": (8, 8, 1, 1),
       f"{OPEN_CLIP}.positional_embedding": (77, 1024)}
OTHERS = {
    "XL": ({**WHOLE, "conditioner.embedders.1.model.positional_embedding": (77, 1280)},
           "it holds a Stable Diffusion XL: give a Stable Diffusion 1 or 2"),
    "XL's UNet alone": ({IN: (320, 4, 3, 3), f"{UNET}.label_emb.0.0.weight": (8, 8)},
                        r"asks for more than text \(label_emb\)"),
    "3": ({f"{UNET}.joint_blocks.0.context_block.attn.qkv.weight": (8, 8)}, "a Stable Diffusion 3"),
    "Flux": ({"double_blocks.0.img_attn.norm.key_norm.scale": (8,)}, "a Flux"),
    "inpainting": ({**WHOLE, IN: (320, 9, 3, 3)}, "of inpainting: it takes 9 channels"),
    "edits": ({**WHOLE, IN: (320, 8, 3, 3)}, "of editing images: it takes 8 channels"),
    "depth": ({**TWO, IN: (320, 5, 3, 3)}, "guided by depth: it takes 5 channels"),
    "16 channels": ({**WHOLE, IN: (320, 16, 3, 3)}, "of another kind: it takes 16 channels"),
    "LoRA": ({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (8, 8)}, "an adapter"),
    "LoRA of peft": ({"unet.mid_block.attentions.0.proj_in.lora_A.weight": (8, 8)}, "an adapter"),
    "LoHa": ({"lora_unet_mid_block.hada_w1_a": (8, 8)}, "an adapter"),
    "ControlNet": ({"control_model.input_blocks.0.0.weight": (8, 4, 3, 3)}, "a ControlNet"),
    "embedding": ({"emb_params": (4, 768)}, "a textual inversion"),
    "autoencoder": ({"encoder.down.0.block.0.conv1.weight": (8, 8, 3, 3)}, "an autoencoder alone"),
    "first stage": ({f"{VAE}.quant_conv.weight": (8, 8, 1, 1)}, "an autoencoder alone"),
    "text": ({"text_model.embeddings.position_embedding.weight": (77, 768)}, "a text encoder"),
    "UNet alone": ({IN: (320, 4, 3, 3), READS: (320, 768)}, "a UNet without its autoencoder"),
    "no text": ({name: shape for name, shape in WHOLE.items() if "cond_stage" not in name},
                "a UNet without its text encoder"),
    "a part of a folder": ({"down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3)},
                           "in diffusers layout .give the folder"),
    "a CNN": ({"conv1.weight": (64, 3, 7, 7), "fc.bias": (9,)}, r"here \(2 tensors: conv1.we"),
    "another width": ({**WHOLE, READS: (320, 640)}, "reads text of width 640 .768 by cond_stage"),
    "text of the other": ({**WHOLE, READS: (320, 1024)}, "reads text of width 1024"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_no_stable_diffusion_is_refused_by_its_header(case, tmp_path):
    shapes, words = OTHERS[case]
    path = header_file(tmp_path / "a.safetensors", shapes)
    with pytest.raises(BadOptions, match=f"--base-model {path}: .*{words}"):
        resolve_base_model(str(path), TISSUE)


def test_weights_of_eight_bits_are_refused(tmp_path):
    path = header_file(tmp_path / "a.safetensors", WHOLE, dtype="F8_E4M3")
    with pytest.raises(BadOptions, match="weights of F8_E4M3, not of full or half precision"):
        resolve_base_model(str(path), TISSUE)


@pytest.mark.parametrize(("name", "content", "words"), [
    ("a.ckpt", b"PK\x03\x04", "a pickle, which can run code"),
    ("a.safetensors", b"\x80\x02}q", "a pickle, which can run code"),
    ("a.pt", b"", "a pickle"),
    ("a.safetensors", b"version https://git-lfs", "pointer of Git LFS.*download it again"),
    ("a.safetensors", b"GGUF", "cut short in its header"),
    ("a.gguf", b"GGUF" + bytes(60), "no safetensors file|cut short"),
    ("gone.safetensors", None, "no such file"), ("gone.ckpt", None, "no such file")])
def test_what_is_no_safetensors_file_is_refused(name, content, words, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadOptions, match=f"--base-model .*{name}: .*{words}"):
        resolve_base_model(str(tmp_path / name), TISSUE)


def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path):
    path = header_file(tmp_path / "a.safetensors", WHOLE, length_from=0x80)
    assert path.read_bytes()[:1] == b"\x80" and open_file(path).family["name"].endswith(" 1")


def test_the_dry_run_says_it_in_one_line_and_writes_nothing(few_real, tmp_path, capfd):
    path = header_file(tmp_path / "a.safetensors", OTHERS["inpainting"][0])
    for arm in ("prompt", "context"):
        call = arguments(arm, few_real, tmp_path / "datasets" / arm, "--dry-run",
                         "--base-model", str(path))
        assert main_of(arm)(call) == 2
        line, = (line for line in capfd.readouterr().err.splitlines() if "error" in line)
        assert f"--base-model {path}: it holds a model of inpainting" in line
    assert list(tmp_path.iterdir()) == [path]


ONE, SECOND = (json.loads(path.read_text()) for path in single_file.FAMILIES)


@pytest.mark.parametrize(("family", "told", "asked", "wanted"), [
    (ONE, None, None, "epsilon"), (ONE, None, "v_prediction", "v_prediction"),
    (ONE, "v", None, "v_prediction"), (SECOND, "epsilon", None, "epsilon"),
    (SECOND, "v", None, "v_prediction"), (SECOND, None, "epsilon", "epsilon"),
    (SECOND, "v", "v_prediction", "v_prediction"),
    (SECOND, None, None, "is a Stable Diffusion 2 and does not say .*--base-prediction epsilon"),
    (SECOND, "v", "epsilon", "say that it predicts v_prediction, --base-prediction says epsilon"),
    (ONE, "epsilon", "v_prediction", "say that it predicts epsilon"),
    (ONE, "flow", None, "predicts 'flow': give one")])
def test_what_a_file_predicts_is_said_and_never_guessed_of_2(family, told, asked, wanted, capfd):
    metadata = {"modelspec.prediction_type": told} if told else {}
    if wanted in single_file.PREDICTIONS:
        assert predicted(Path("a.safetensors"), metadata, family, asked) == wanted
        said = capfd.readouterr().err
        assert ("taken to predict epsilon" in said) == (not told and not asked)
    else:
        with pytest.raises(Fault, match=wanted):
            predicted(Path("a.safetensors"), metadata, family, asked)


def test_a_file_of_2_is_known_and_asked_what_it_predicts(tmp_path):
    path = header_file(tmp_path / "a.safetensors", TWO)
    with pytest.raises(BadOptions, match="does not say what it predicts"):
        resolve_base_model(str(path), TISSUE)
    assert resolve_base_model(str(path), TISSUE, "epsilon").family["name"] == "Stable Diffusion 2"
    header_file(path, TWO, **{"modelspec.prediction_type": "v"})
    assert resolve_base_model(str(path), TISSUE).prediction == "v_prediction"


@pytest.mark.parametrize("base", ["embedded", "some/model", "assets/base_model"])
def test_a_folder_says_itself_what_it_predicts(base):
    with pytest.raises(BadOptions, match="--base-prediction epsilon is for a single file"):
        resolve_base_model(base, TISSUE, "epsilon")


# ------------------------------------------------------------------ what is shipped for them

@pytest.mark.parametrize(("path", "numbers"), list(zip(single_file.FAMILIES, [
    {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840}], strict=True)))
def test_the_configs_are_of_as_many_numbers_as_the_releases(path, numbers):
    """The counts that the releases' cards and users of them report."""
    import math
    from functools import partial

    family = json.loads(path.read_text())
    for name, number in numbers.items():
        shapes = single_file.shapes_of(partial(single_file.build, name, family[name]))
        assert sum(map(math.prod, shapes.values())) == number, name


def test_the_tokenizer_is_clips():
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(single_file.TOKENIZER)
    assert len(tokenizer) == 49408
    assert tokenizer(["a photo of a cat"]).input_ids == [[49406, 320, 1125, 539, 320, 2368, 49407]]
    assert tokenizer.convert_tokens_to_ids("!") == 0
