"""The autoencoder under every latent: one trained here, or one whose decoder goes on with real.

A decoder that has not seen the stain, light and sharpness of these slides gives them back in its
own. The encoder is left alone: latents stay what they were, and so UNets, adapters and ControlNets
of the base fit as before. Whether what is drawn is better for it is another matter: a UNet that
knows latents of other images means them as their decoder did (docs/training.md, with figures).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lungkit.run import cli, faults, ranks
from lungkit.run.files import write_text
from lungkit.run.seeds import stream

if TYPE_CHECKING:
    from lungkit.generate.items import Arm

LEARNING_RATE, EMA_DECAY = 5e-4, 0.999  # ours, chosen on simulated tissue
SETTINGS = "decoder_steps", "decoder_batch_size"
HIDDEN = ".vae"  # until it is whole


def add_decoder_options(hyperparameters) -> None:
    """Add --decoder-steps and --decoder-batch-size."""
    hyperparameters.add_argument(
        "--decoder-steps", type=cli.non_negative_int, metavar="INT",
        help="optimiser steps by which a pretrained autoencoder's decoder learns to give back "
             "REAL's training images; 0: it stays as it is")
    hyperparameters.add_argument(
        "--decoder-batch-size", type=cli.positive_int, metavar="IMAGES",
        help="images of a step of the decoder")


def settings_of(options: dict) -> dict[str, int]:
    """What of the options decides the decoder: nothing where it stays as it is."""
    return {name: options[name] for name in SETTINGS} if options["decoder_steps"] else {}


def files_of(options: dict) -> list[str]:
    """What a finished model holds of it."""
    return ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"] \
        if options["decoder_steps"] else []


def train_autoencoder(autoencoder, images, *, steps: int, batch_size: int, seed: int,
                      work_dir: Path, device, symmetries: int = 8, watched: Callable | None = None,
                      decoder_alone: bool = False) -> float:
    """Train on uint8 images [N, S, S, C]: L1 on pixels and their differences, KL weight 1e-6.

    decoder_alone: the encoder stays as it is, and there is no KL. watched: as `Arm.watched`; None:
    all images are learnt from. Returns the final loss; the table of losses goes into work_dir/vae,
    of the decoder alone into work_dir/.vae.
    """
    import torch

    from lungkit.data.orientations import orient
    from lungkit.generate.latents import to_model_range
    from lungkit.learn.device import autocast
    from lungkit.learn.loop import train
    from lungkit.learn.shares import share_of

    def loss_over(places):
        places = torch.tensor(places)

        def loss_at(step, generator):
            own, weight = share_of(batch_size)
            picks = places[torch.randint(len(places), (batch_size,), generator=generator)][own]
            which = int(torch.randint(symmetries, (1,), generator=generator))
            batch = orient(to_model_range(images[picks.numpy()], autoencoder.config.in_channels),
                           which, symmetries).to(device)
            with autocast(device, on_cpu=True):
                posterior = autoencoder.encode(batch).latent_dist
                noise = torch.randn((batch_size, *posterior.mean.shape[1:]), generator=generator)
                noise = noise[own].to(device)
                decoded = autoencoder.decode(posterior.mean + posterior.std * noise).sample.float()
            edges = sum((decoded.diff(dim=axis) - batch.diff(dim=axis)).abs().mean()
                        for axis in (2, 3))
            found = (decoded - batch).abs().mean() + edges
            if not decoder_alone:
                found = found + 1e-6 * posterior.kl().float().mean()
            return weight * found
        return loss_at

    trained = [autoencoder.decoder, autoencoder.post_quant_conv] if decoder_alone \
        else [autoencoder]
    trained = [part for part in trained if part is not None]  # some have no convolution between
    autoencoder.requires_grad_(False)  # what is not trained is gone through without a graph
    for part in trained:
        part.requires_grad_(True)
    loss_at, validation = (watched or unwatched(images))(loss_over, steps=steps)
    name, folder = ("decoder", HIDDEN) if decoder_alone else ("autoencoder", "vae")
    loss = train([each for part in trained for each in part.parameters()], loss_at, what=name,
                 steps=steps, seed=seed, learning_rate=LEARNING_RATE, ema_decay=EMA_DECAY,
                 checkpoint_path=work_dir / f"{name}.ckpt", jsonl_path=work_dir / "progress.jsonl",
                 curve_path=work_dir / folder / "loss.csv", validation=validation)
    autoencoder.requires_grad_(False)
    return loss


def unwatched(images) -> Callable:
    """In place of `Arm.watched` where all images are learnt from and none are held out."""
    return lambda loss_over, *, steps: (loss_over(range(len(images))), None)


def fit_decoder(arm: Arm, autoencoder, *, decoder_steps: int = 0, decoder_batch_size: int = 0
                ) -> dict[str, float]:
    """Go on with the decoder on real's training images, in place; save it in the model's vae.

    Done once: what a stopped run has saved is taken. Nothing is done at 0 steps. Returns its loss
    by name, as `publish_model` takes losses.
    """
    if not decoder_steps:
        return {}
    work_dir = arm.weights.work_dir
    made, hidden = work_dir / "vae", work_dir / HIDDEN
    if not ranks.by_first((made / "config.json").exists):
        with faults.cured_by("lower --decoder-batch-size"):
            loss = train_autoencoder(
                autoencoder, arm.data.load("train")[0], steps=decoder_steps,
                batch_size=decoder_batch_size, seed=stream(f"{arm.stage} decoder", arm.seed),
                work_dir=work_dir, device=arm.device, symmetries=arm.data.symmetries,
                watched=arm.watched, decoder_alone=True)
        if ranks.is_first():
            autoencoder.save_pretrained(hidden)
            write_text(hidden / "loss.txt", repr(loss))
            hidden.rename(made)
        ranks.check_stop()
    ranks.see(made / "config.json")
    autoencoder.load_state_dict(open_autoencoder(made, arm.device).state_dict())
    return {"decoder": ranks.by_first(partial(_loss_of, made))}


def _loss_of(folder: Path) -> float:
    return float((folder / "loss.txt").read_text())


def open_autoencoder(folder: Path, device):
    """A finished model's autoencoder in float32, to draw with."""
    import torch
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(folder, use_safetensors=True, torch_dtype=torch.float32
                                         ).to(device).requires_grad_(False).eval()


def draw_by_fitted(arm: Arm, base, settings: dict[str, int]) -> None:
    """Have `base`, a BaseModel, draw by what `fit_decoder` left in the finished model, if it did.

    settings: of `settings_of`.
    """
    if settings:
        base.vae = open_autoencoder(arm.weights.output_dir / "vae", arm.device)
