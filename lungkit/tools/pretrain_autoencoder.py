"""Pretrain an autoencoder of tissue that keeps fine detail, for diffusion_seg.py --autoencoder DIR.

It halves an image twice, as that of the embedded base model does and at its cost, but keeps ten
numbers a place instead of four: four principal components of 4 x 4 patches give LC25000 at 64 px
back at 22 dB, eight at 28. What it is shown is simulated: crops of tissue of varied stain, and
stained texture that is no tissue. No real image takes part. It starts as a linear one
(lungkit/tools/linear_start.py).

Writes: OUTPUT/vae in diffusers layout, autoencoder.json last.
Method: Kingma & Welling 2014 (arXiv:1312.6114); Rombach et al. 2022 (arXiv:2112.10752).
Running the same command again resumes.
Exit status: 0 complete, 1 failed, 2 bad options, 75 stopped and resumable.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lungkit.run import cli
from lungkit.tools.base_networks import make

if TYPE_CHECKING:
    import torch

IMAGE_SIZE, WIDTHS, LATENT_CHANNELS = 64, (16, 32, 64), 10
BATCH, TEXTURES = 8, 2  # images of a step, and how many of them show no tissue
VARIED_SHARE = 0.6      # of tissue whose stain is varied; ours


# ------------------------------------------------------------------ what it is shown

def textures(number: int, generator) -> torch.Tensor:
    """Stained texture that is no tissue: float32 [number, 3, IMAGE_SIZE, IMAGE_SIZE], -1..1.

    Three fields of random spectrum and sharpness, each with a colour of its own that takes light
    away, over a random ground: what real slides hold and simulated tissue does not.
    """
    import torch

    size = IMAGE_SIZE
    frequency = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None])
    exponent = 0.3 + 2.2 * torch.rand((number, 3, 1, 1), generator=generator)
    white = torch.randn((number, 3, size, size), generator=generator)
    fields = torch.fft.irfft2(
        torch.fft.rfft2(white) * frequency.clamp(min=1 / size) ** -exponent, s=(size, size))
    fields = fields / fields.std((2, 3), keepdim=True)
    sharpness = torch.exp(3 * torch.rand((number, 3, 1, 1), generator=generator))
    cut = torch.randn((number, 3, 1, 1), generator=generator)
    amounts = torch.sigmoid(sharpness * (fields - cut))
    most = torch.tensor([1.6, 0.8, 0.6])[:, None]  # optical density of each field
    colours = most * torch.rand((number, 3, 3), generator=generator)
    ground = 0.15 * torch.rand((number, 3, 1, 1), generator=generator)
    return torch.exp(-torch.einsum("nkhw,nkc->nchw", amounts, colours) - ground) * 2 - 1


def images_of(tiles, generator) -> torch.Tensor:
    """A batch float32 [BATCH, 3, IMAGE_SIZE, IMAGE_SIZE], -1..1, of tiles uint8 [N, T, T, 3].

    Crops, every other one a whole tile, of varied stain more often than not, and textures; all
    turned alike.
    """
    import cv2
    import numpy as np
    import torch

    from lungkit.data.orientations import orient
    from lungkit.generate.latents import to_model_range

    def integer(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))
    number, crops, whole = BATCH - TEXTURES, [], tiles.shape[1]
    for i in range(number):
        tile = tiles[integer(len(tiles))]
        side = whole if i % 2 else IMAGE_SIZE + integer(whole - IMAGE_SIZE)
        top, left = integer(whole - side + 1), integer(whole - side + 1)
        crops.append(cv2.resize(np.ascontiguousarray(tile[top:top + side, left:left + side]),
                                (IMAGE_SIZE,) * 2, interpolation=cv2.INTER_AREA))
    light = (to_model_range(np.stack(crops)) + 1) / 2
    # light to a power per channel is optical density times it
    power = 0.6 + torch.rand((number, 3, 1, 1), generator=generator)
    varied = torch.rand((number, 1, 1, 1), generator=generator) < VARIED_SHARE
    light = light.clamp(min=1e-3) ** torch.where(varied, power, 1.0)
    return orient(torch.cat([light * 2 - 1, textures(TEXTURES, generator)]), integer(8))


# ------------------------------------------------------------------ training

def build():
    """The untrained network; two groups on its first 16 channels, for more would erase colour."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=WIDTHS, layers_per_block=1, latent_channels=LATENT_CHANNELS,
        norm_num_groups=2, sample_size=IMAGE_SIZE, mid_block_add_attention=False)


def pretrain(work_dir: Path, *, num_tiles: int, linear_steps: int, steps: int, seed: int,
             precision: str, device) -> dict[str, float]:
    """Draw tiles, train, save in work_dir/vae with the factor of its latents; the final losses."""
    import cv2
    import numpy as np
    import torch

    from lungkit.generate.latents import Latents
    from lungkit.learn.loop import train
    from lungkit.tools.base_networks import precise, save
    from lungkit.tools.base_of_tissue import draw_tissue
    from lungkit.tools.linear_start import error_of, train_start

    tiles, _, _ = draw_tissue(num_tiles, seed, work_dir)
    # channels last: half the time in bf16 on a CPU
    vae = build().to(device, memory_format=torch.channels_last)

    def images_at(generator):
        return images_of(tiles, generator).contiguous(memory_format=torch.channels_last)

    def loss_at(step, generator):
        batch = images_at(generator).to(device)
        with precise(device, precision):
            posterior = vae.encode(batch).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
            decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        return error_of(decoded, batch).mean() + 1e-6 * posterior.kl().float().mean()

    losses = {"linear": train_start(vae, images_at, steps=linear_steps, seed=seed + 3,
                                    work_dir=work_dir, precision=precision),
              "whole": train(vae.parameters(), loss_at, what="autoencoder", steps=steps, seed=seed,
                             learning_rate=1e-3, ema_decay=0.999, weight_decay=1e-4,
                             checkpoint_path=work_dir / "vae.ckpt")}
    vae.requires_grad_(False).eval()
    small = np.stack([cv2.resize(tile, (IMAGE_SIZE,) * 2, interpolation=cv2.INTER_AREA)
                      for tile in tiles])
    vae.register_to_config(scaling_factor=1 / Latents(vae, small).deviation())
    save(vae, work_dir / "vae")
    return losses


# ------------------------------------------------------------------ the command

def run(*, output: Path, seed: int, device: str, overwrite: bool, dry_run: bool,
        **parameters: object) -> None:
    """Draw, train, publish."""
    from lungkit.tools.base_of_tissue import DRAWN

    parameters = {**parameters, "seed": seed}
    make("autoencoder", output, parameters,
         lambda work_dir, place: pretrain(work_dir, **parameters, device=place),
         DRAWN, device=device, overwrite=overwrite, dry_run=dry_run)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.stage_parser("python -m lungkit.tools.pretrain_autoencoder", __doc__)
    parser.add_argument("--output", type=cli.directory, required=True, metavar="DIR",
                        help="where to make it")
    parser.add_argument("--num-tiles", type=cli.positive_int, default=4000, metavar="INT",
                        help="simulated tiles to train on")
    parser.add_argument("--linear-steps", type=cli.positive_int, default=600, metavar="INT",
                        help="training steps along the linear path")
    parser.add_argument("--steps", type=cli.positive_int, default=1500, metavar="INT",
                        help="training steps of the whole network")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32",
                        help="of products; bf16 is faster on a GPU, and on a CPU with AMX or "
                             "AVX-512 BF16")
    cli.add_common(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
