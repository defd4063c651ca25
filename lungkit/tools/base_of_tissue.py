"""The embedded base model of tissue: what it learns from simulated tiles, and in which order."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from lungkit.run import faults
from lungkit.run.files import write_json
from lungkit.run.progress import Progress, say
from lungkit.tools.base_networks import (
    IMAGE_SIZE,
    MODEL_INDEX,
    build_models,
    captioned_batches,
    save,
    train_unet,
)
from lungkit.tools.tokenizer import build_tokenizer

TILE_SIZE = 224          # simulated tiles are drawn at this size, as LC25000 tiles are
DRAWN = ("tissue*",)     # files that only the making needs


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

    device = next(iter(vae.parameters())).device

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
        crops = crops_at(generator).to(device)
        with torch.set_grad_enabled(not decoder_only):
            posterior = vae.encode(crops).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
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


def pretrain(work_dir: Path, *, num_tiles: int, autoencoder_steps: int, unet_steps: int,
             decoder_steps: int, controlnet_steps: int, batch_size: int, seed: int,
             device) -> dict[str, float]:
    """Train autoencoder, UNet with text encoder, and ControlNet on `device`; save each in work_dir.
    """
    import cv2
    import numpy as np

    from lungkit.generate.latents import Latents, training_schedule
    from lungkit.nuclei.layouts import Levels

    images, labels, layouts = draw_tissue(num_tiles, seed, work_dir)
    tokenizer = build_tokenizer(work_dir / "tokenizer")
    models = {name: model.to(device) for name, model in build_models(tokenizer).items()}
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
    caption = captions_of(labels, [measure.of(layout) for layout in layouts])
    batch_at = captioned_batches(latents, scale, tokenizer, caption, batch_size)
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


def captions_of(labels: list[str], levels: list[dict]) -> Callable:
    """caption(tile, draw): a tenth are empty, two in five are words, the rest is measured too."""
    from lungkit.generate.prompts import Prompts

    prompts = Prompts()

    def caption(i: int, draw: random.Random) -> str:
        fate = draw.random()
        return "" if fate < 0.1 else prompts.caption(labels[i], draw) if fate < 0.5 \
            else prompts.context_caption(labels[i], draw, levels[i])
    return caption


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
    device = unet.device
    controlnet = ControlNetModel.from_unet(
        unet, conditioning_embedding_out_channels=(16, 32, 64)).to(device)
    scale = IMAGE_SIZE / TILE_SIZE
    maps = np.stack([structure_map(Layout((layout.centroids + 0.5) * scale - 0.5,
                                          layout.areas_px * scale**2), IMAGE_SIZE)
                     for layout in layouts])
    maps = torch.from_numpy(maps).permute(0, 3, 1, 2)

    def loss_at(step, generator):
        indices, orientations, scaled, tokens = batch_at(generator)
        states = text_encoder(tokens.to(device))[0]
        turned = [orient(maps[i:i + 1], which) for i, which in
                  zip(indices.tolist(), orientations.tolist(), strict=True)]
        control = torch.cat(turned).to(device).float() / 255

        return denoising_loss(denoise_with(unet, states, controlnet, control), schedule,
                              scaled.to(device), generator)

    loss = train(controlnet.parameters(), loss_at, what="base ControlNet", steps=steps,
                 seed=seed + 2, learning_rate=4e-4, ema_decay=0.999,
                 checkpoint_path=work_dir / "controlnet.ckpt")
    save(controlnet, work_dir / "controlnet")
    return loss
