"""Pretrain the embedded base model: a small Stable Diffusion that knows simulated tissue only.

Used where no --base-model is given (a laptop, CI, no network). It is data, not a branch in the
code: the result is an ordinary Stable Diffusion folder in diffusers layout (autoencoder, UNet,
CLIP text encoder, tokenizer, scheduler, and a ControlNet for structure maps), loaded by the same
from_pretrained as any other. No real image takes part.

Writes: OUTPUT/{vae,unet,text_encoder,tokenizer,scheduler,controlnet}, base_model.json last.
Method: Rombach et al. 2022 (arXiv:2112.10752); Zhang et al. 2023 (arXiv:2302.05543) for the
ControlNet; the losses and the schedule are those of lungkit/generate/latents.py.
Running the same command again resumes.
Exit status: 0 complete, 1 failed, 2 bad options, 75 stopped and resumable.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from lungkit.generate.base_model import BASE_MODEL_DIR
from lungkit.learn import device
from lungkit.run import cli, faults
from lungkit.run.files import write_json
from lungkit.run.output import Output
from lungkit.run.progress import Progress, say
from lungkit.run.provenance import provenance
from lungkit.tools.tokenizer import build_tokenizer

MANIFEST = "base_model.json"

IMAGE_SIZE = 64
TILE_SIZE = 224          # simulated tiles are drawn at this size, as LC25000 tiles are
BLOCKS = (48, 96, 128)   # ours: the widest UNet whose folder stays under 16 MB in half precision
TEXT_WIDTH = 96
MODEL_INDEX = {  # what makes the folder a Stable Diffusion in diffusers layout
    "_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"],
    "unet": ["diffusers", "UNet2DConditionModel"], "scheduler": ["diffusers", "DDPMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "safety_checker": [None, None], "feature_extractor": [None, None],
    "image_encoder": [None, None], "requires_safety_checker": False}


def draw_tissue(num_tiles: int, seed: int, work_dir: Path) -> tuple:
    """Draw simulated tiles; return uint8 [N, 224, 224, 3], label names, layouts and measures."""
    import numpy as np

    from lungkit.nuclei.layouts import Layout
    from lungkit.phantom.paint import CLASSES, draw_tile

    images_path, truth_path = work_dir / "tissue.npy", work_dir / "tissue_truth.npz"
    labels = [CLASSES[i % len(CLASSES)] for i in range(num_tiles)]
    if not truth_path.exists():
        images = np.lib.format.open_memmap(images_path, "w+", np.uint8,
                                           (num_tiles, TILE_SIZE, TILE_SIZE, 3))
        centroids, areas, owners = [], [], []
        progress = Progress("simulated tiles", num_tiles)
        for i, label in enumerate(labels):
            tile = draw_tile(label, patient=i // 12, index=i, seed=seed, image_size=TILE_SIZE)
            images[i] = tile.image
            size_px = np.bincount(tile.nuclei.ravel(), minlength=len(tile.centroids) + 1)[1:]
            centroids.append(tile.centroids)
            areas.append(size_px[size_px > 0].astype(np.float32))
            owners.append(np.full(len(tile.centroids), i))
            progress.update(i + 1)
            faults.check_stop()
        images.flush()
        np.savez(truth_path, centroids=np.concatenate(centroids), areas=np.concatenate(areas),
                 owners=np.concatenate(owners))
    with np.load(truth_path) as truth:
        centroids, areas, owners = (truth[name] for name in ("centroids", "areas", "owners"))
    bounds = np.searchsorted(owners, np.arange(num_tiles + 1))
    layouts = [Layout(centroids[a:b], areas[a:b])
               for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    return np.load(images_path, mmap_mode="r"), labels, layouts


def build_models(tokenizer) -> dict:
    """The untrained parts, in Stable Diffusion's classes at a fiftieth of its size."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    # 4 groups on the first block's 16 channels: one group a channel would be instance
    # normalisation, which erases the stain's colour
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64), layers_per_block=1, latent_channels=4,
        norm_num_groups=4, sample_size=IMAGE_SIZE, mid_block_add_attention=False)
    text_encoder = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=77,
        projection_dim=TEXT_WIDTH, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))
    unet = UNet2DConditionModel(
        sample_size=IMAGE_SIZE // 4, in_channels=4, out_channels=4, block_out_channels=BLOCKS,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1, cross_attention_dim=TEXT_WIDTH, attention_head_dim=8,
        norm_num_groups=16)
    return {"vae": vae, "text_encoder": text_encoder, "unet": unet}


def train_autoencoder(vae, images, *, steps: int, seed: int, work_dir: Path,
                      decoder_only: bool = False) -> float:
    """KL autoencoder on crops of every zoom: L1 on pixels and on their differences, tiny KL.

    decoder_only: go on with the decoder alone, which leaves the latents as they are, on crops
    whose stain is varied: the base shall draw stains that the simulated patients do not have.
    """
    import numpy as np
    import torch
    import torch.nn.functional as F

    from lungkit.data.orientations import orient
    from lungkit.generate.latents import to_model_range
    from lungkit.learn.loop import train

    def crops_at(generator):
        def integer(high):
            return int(torch.randint(high, (1,), generator=generator))
        picks = torch.randint(len(images), (8,), generator=generator).tolist()
        zoomed = IMAGE_SIZE + integer(TILE_SIZE - IMAGE_SIZE)
        side = TILE_SIZE if decoder_only and integer(2) else zoomed
        top, left = integer(TILE_SIZE - side + 1), integer(TILE_SIZE - side + 1)
        crops = np.stack([images[i, top:top + side, left:left + side] for i in picks])
        crops = F.interpolate(to_model_range(crops), size=(IMAGE_SIZE,) * 2, mode="area")
        if decoder_only:  # light to a power per channel is optical density times it
            power = 0.7 + 0.8 * torch.rand((8, 3, 1, 1), generator=generator)
            crops = ((crops + 1) / 2).clamp(min=1e-3) ** power * 2 - 1
        return orient(crops, integer(8))

    def loss_at(step, generator):
        crops = crops_at(generator)
        with torch.set_grad_enabled(not decoder_only):
            posterior = vae.encode(crops).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator)
            latents = posterior.mean + posterior.std * noise
        decoded = vae.decode(latents).sample
        edges = sum((decoded.diff(dim=axis) - crops.diff(dim=axis)).abs().mean() for axis in (2, 3))
        divergence = 0.0 if decoder_only else 1e-6 * posterior.kl().mean()
        return (decoded - crops).abs().mean() + edges + divergence

    part = "decoder" if decoder_only else "vae"
    trained = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()] if decoder_only \
        else vae.parameters()
    return train(trained, loss_at, what=f"base {part}", steps=steps, seed=seed, learning_rate=1e-3,
                 ema_decay=0.999, weight_decay=1e-4, checkpoint_path=work_dir / f"{part}.ckpt")


def run(*, output: Path, num_tiles: int, autoencoder_steps: int, unet_steps: int,
        decoder_steps: int, controlnet_steps: int, batch_size: int, seed: int,
        overwrite: bool, dry_run: bool) -> None:
    """Draw, train the four parts in turn, save in diffusers layout."""
    parameters = {"num_tiles": num_tiles, "autoencoder_steps": autoencoder_steps,
                  "unet_steps": unet_steps, "decoder_steps": decoder_steps,
                  "controlnet_steps": controlnet_steps,
                  "batch_size": batch_size, "seed": seed}
    target = Output(output, MANIFEST, parameters, overwrite=overwrite)
    if target.is_complete():
        say(f"base_model: {output} is already complete")
        return
    if dry_run:
        say(f"base_model: would pretrain with {parameters}")
        return
    with target.writing() as work_dir:
        losses = pretrain(work_dir, **parameters)
        for part in work_dir.glob("tissue*"):
            part.unlink()
        for part in work_dir.glob("*.ckpt"):
            part.unlink()
        target.publish({"schema": "lungkit.base_model/1", "losses": losses, **provenance()})
    print(f"{output}: base model, final losses {losses}")


def pretrain(work_dir: Path, *, num_tiles: int, autoencoder_steps: int, unet_steps: int,
             decoder_steps: int, controlnet_steps: int, batch_size: int,
             seed: int) -> dict[str, float]:
    """Train autoencoder, UNet with text encoder, and ControlNet; save each in `work_dir`."""
    import cv2
    import numpy as np

    from lungkit.generate.latents import Latents, training_schedule
    from lungkit.nuclei.layouts import Levels

    device.use_device("cpu")
    images, labels, layouts = draw_tissue(num_tiles, seed, work_dir)
    tokenizer = build_tokenizer(work_dir / "tokenizer")
    models = build_models(tokenizer)
    vae, text_encoder, unet = models["vae"], models["text_encoder"], models["unet"]
    say("parameters: " + ", ".join(f"{name} {sum(p.numel() for p in model.parameters()):,}"
                                   for name, model in models.items()))
    losses = {"vae": train_autoencoder(vae, images, steps=autoencoder_steps, seed=seed,
                                       work_dir=work_dir)}
    vae.requires_grad_(False).eval()
    small = np.stack([cv2.resize(image, (IMAGE_SIZE,) * 2, interpolation=cv2.INTER_AREA)
                      for image in images])
    latents = Latents(vae, small)
    scale = 1 / latents.deviation()
    vae.register_to_config(scaling_factor=scale)
    save(vae, work_dir / "vae")

    measure = Levels(layouts, TILE_SIZE)
    batch_at = captioned_batches(latents, scale, tokenizer, labels,
                                 [measure.of(layout) for layout in layouts], batch_size)
    schedule = training_schedule()
    schedule.save_pretrained(work_dir / "scheduler")
    losses["unet"] = train_unet(unet, text_encoder, schedule, batch_at, steps=unet_steps,
                                seed=seed + 1, work_dir=work_dir)
    save(unet, work_dir / "unet")
    save(text_encoder, work_dir / "text_encoder")
    vae.decoder.requires_grad_(True)
    vae.post_quant_conv.requires_grad_(True)
    losses["decoder"] = train_autoencoder(vae, images, steps=decoder_steps, seed=seed + 3,
                                          work_dir=work_dir, decoder_only=True)
    save(vae.requires_grad_(False), work_dir / "vae")
    losses["controlnet"] = train_controlnet(
        unet.requires_grad_(False), text_encoder.requires_grad_(False), schedule, layouts,
        batch_at, steps=controlnet_steps, seed=seed, work_dir=work_dir)
    write_json(work_dir / "model_index.json", MODEL_INDEX)
    return losses


def captioned_batches(latents, scale: float, tokenizer, labels: list[str], levels: list[dict],
                      batch_size: int) -> Callable:
    """batch_at(generator): indices and orientations [B], scaled latents [B, C, h, w], tokens.

    A tenth of the captions is empty, two in five are words, the rest is measured too.
    """
    import torch

    from lungkit.generate.prompts import Prompts

    prompts = Prompts()

    def batch_at(generator):
        indices = torch.randint(len(latents), (batch_size,), generator=generator)
        orientations = torch.randint(latents.symmetries, (batch_size,), generator=generator)
        scaled = latents.draw(indices, orientations, generator) * scale
        draw = random.Random(int(torch.randint(2**62, (1,), generator=generator)))
        captions = []
        for i in indices.tolist():
            fate = draw.random()
            captions.append("" if fate < 0.1 else prompts.caption(labels[i], draw) if fate < 0.5
                            else prompts.context_caption(labels[i], draw, levels[i]))
        tokens = tokenizer(captions, padding="max_length", max_length=77, truncation=True,
                           return_tensors="pt").input_ids
        return indices, orientations, scaled, tokens
    return batch_at


def train_unet(unet, text_encoder, schedule, batch_at: Callable, *, steps: int, seed: int,
               work_dir: Path) -> float:
    """Train the UNet with the text encoder that it hears; return the final loss."""
    from lungkit.generate.adapters import denoise_with
    from lungkit.generate.latents import denoising_loss
    from lungkit.learn.loop import train

    def loss_at(step, generator):
        _, _, scaled, tokens = batch_at(generator)
        states = text_encoder(tokens)[0]
        return denoising_loss(denoise_with(unet, states), schedule, scaled, generator)

    return train([*unet.parameters(), *text_encoder.parameters()], loss_at,
                 what="base UNet and text encoder", steps=steps, seed=seed, learning_rate=6e-4,
                 ema_decay=0.9995, checkpoint_path=work_dir / "unet.ckpt",
                 jsonl_path=work_dir / "progress.jsonl")


def train_controlnet(unet, text_encoder, schedule, layouts: list, batch_at: Callable, *,
                     steps: int, seed: int, work_dir: Path) -> float:
    """Train a ControlNet for structure maps of the layouts and save it; return the final loss."""
    import numpy as np
    import torch
    from diffusers import ControlNetModel

    from lungkit.data.orientations import orient
    from lungkit.generate.adapters import denoise_with
    from lungkit.generate.latents import denoising_loss
    from lungkit.learn.loop import train
    from lungkit.nuclei.layouts import Layout, structure_map

    torch.manual_seed(seed)
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 64))
    scale = IMAGE_SIZE / TILE_SIZE
    maps = np.stack([structure_map(Layout((layout.centroids + 0.5) * scale - 0.5,
                                          layout.areas_px * scale**2), IMAGE_SIZE)
                     for layout in layouts])
    maps = torch.from_numpy(maps).permute(0, 3, 1, 2)

    def loss_at(step, generator):
        indices, orientations, scaled, tokens = batch_at(generator)
        states = text_encoder(tokens)[0]
        turned = [orient(maps[i:i + 1], which) for i, which in
                  zip(indices.tolist(), orientations.tolist(), strict=True)]
        control = torch.cat(turned).float() / 255

        return denoising_loss(denoise_with(unet, states, controlnet, control), schedule, scaled,
                              generator)

    loss = train(controlnet.parameters(), loss_at, what="base ControlNet", steps=steps,
                 seed=seed + 2, learning_rate=4e-4, ema_decay=0.999,
                 checkpoint_path=work_dir / "controlnet.ckpt")
    save(controlnet, work_dir / "controlnet")
    return loss


def save(model, directory: Path) -> None:
    """Save in half precision, in the library's own format."""
    import copy

    shutil.rmtree(directory, ignore_errors=True)
    copy.deepcopy(model).half().save_pretrained(directory, safe_serialization=True)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.stage_parser("python -m lungkit.tools.pretrain_base_model", __doc__)
    parser.add_argument("--output", type=cli.directory, default=BASE_MODEL_DIR, metavar="DIR",
                        help="model to make")
    parser.add_argument("--num-tiles", type=cli.positive_int, default=4000, metavar="INT",
                        help="simulated tiles to train on")
    parser.add_argument("--autoencoder-steps", type=cli.positive_int, default=1400, metavar="INT",
                        help="training steps of the autoencoder")
    parser.add_argument("--unet-steps", type=cli.positive_int, default=3200, metavar="INT",
                        help="training steps of the UNet")
    parser.add_argument("--decoder-steps", type=cli.positive_int, default=1500, metavar="INT",
                        help="training steps of the decoder, for sharper images")
    parser.add_argument("--controlnet-steps", type=cli.positive_int, default=600, metavar="INT",
                        help="training steps of the ControlNet")
    parser.add_argument("--batch-size", type=cli.positive_int, default=16, metavar="INT",
                        help="images of a step")
    cli.add_common(parser, device=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
