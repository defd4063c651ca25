"""Start an autoencoder as a linear one, which is trained in seconds, before it is trained whole.

Without its residual branches and its two last activations an AutoencoderKL is a few convolutions.
The encoder begins as the principal components of 4 x 4 patches; both halves are then trained as
they are, at a fifth of a whole step's cost; `join` writes the result into the whole network without
a change: each branch starts at zero (Goyal et al. 2017, arXiv:1706.02677, section 5.1), and before
the last activation each value stands beside its negative, for SiLU(x) - SiLU(-x) = x. A large
constant beside them keeps the normalisation from erasing an image's contrast.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from lungkit.tools.base_networks import precise

PATCH = 4              # pixels of a latent's side: two halvings
NOISE = 0.03           # deviation of a latent's noise over that of the latents; ours
CONSTANT = 16.0        # its square over the sum of the squares of the values beside it; ours
LEARNING_RATE = 2e-3
FIRST, JOINED = 60, 8   # batches that the components and the constants are of; ours
FLOOR = 1e-5           # of a squared error, 56 dB: no gradient is divided by nothing


def error_of(decoded: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Root mean square error of each image [B, C, S, S], float32 [B]: PSNR's, hence the loss."""
    return ((decoded.float() - images).square().mean((1, 2, 3)) + FLOOR).sqrt()


# ------------------------------------------------------------------ the linear path

def signed(norm) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of a normalisation's channels: those of values, those of their negatives, and which are free.

    Two of int64 [K], each group's first half and its second; bool [K]: not the group's constant.
    """
    size = norm.num_channels // norm.num_groups
    places = torch.arange(norm.num_channels).view(norm.num_groups, 2, size // 2)
    free = torch.ones(norm.num_groups, size // 2, dtype=torch.bool)
    free[:, -1] = False
    return places[:, 0].flatten(), places[:, 1].flatten(), free.flatten()


def along_shortcuts(part, hidden: torch.Tensor, blocks) -> torch.Tensor:
    """What an encoder or decoder would pass to its last normalisation without branches."""
    hidden = part.conv_in(hidden)
    for block in blocks:
        for resnet in block.resnets:
            if resnet.conv_shortcut is not None:
                hidden = resnet.conv_shortcut(hidden)
        for change in getattr(block, "downsamplers", None) or getattr(block, "upsamplers", None) \
                or ():
            hidden = change(hidden)
    return hidden


def last_weights(part) -> tuple[torch.Tensor, torch.Tensor]:
    """What the last convolution does to values, [O, K, 3, 3], and which channels they are in."""
    values, negatives, free = signed(part.conv_norm_out)
    weight = part.conv_out.weight
    return (weight[:, values] - weight[:, negatives]) * free[:, None, None].to(weight.device), \
        values


def last_layer(part, hidden: torch.Tensor) -> torch.Tensor:
    weights, values = last_weights(part)
    return F.conv2d(hidden[:, values], weights, part.conv_out.bias, padding=1)


def encode(vae, images: torch.Tensor) -> torch.Tensor:
    """Latents [B, C, S/4, S/4] of images [B, 3, S, S] along the linear path."""
    encoder = vae.encoder
    hidden = along_shortcuts(encoder, images, encoder.down_blocks)
    return vae.quant_conv(last_layer(encoder, hidden))[:, :vae.config.latent_channels]


def decode(vae, latents: torch.Tensor) -> torch.Tensor:
    decoder = vae.decoder
    hidden = along_shortcuts(decoder, vae.post_quant_conv(latents), decoder.up_blocks)
    return last_layer(decoder, hidden)


# ------------------------------------------------------------------ begin, train, join

@torch.no_grad()
def begin(vae, images: torch.Tensor) -> None:
    """Make the encoder the principal components of 4 x 4 patches of images [N, C, S, S]."""
    channels, kept = images.shape[1], vae.config.latent_channels
    patches = F.pixel_unshuffle(images, PATCH).movedim(1, -1).flatten(0, 2).double()
    mean = patches.mean(0)
    powers, vectors = torch.linalg.eigh(torch.cov(patches.T))
    vectors = vectors.flip(1)[:, :kept].T.float()  # [kept, channels * 16]
    scale = float(powers[-kept:].mean().sqrt())

    encoder = vae.encoder
    first, second, third = encoder.down_blocks
    halves = first.downsamplers[0].conv, second.downsamplers[0].conv
    values = signed(encoder.conv_norm_out)[0][:kept]
    steps = ((encoder.conv_in, channels), (halves[0], 4 * channels),
             (second.resnets[0].conv_shortcut, 4 * channels), (halves[1], kept))
    for conv, count in steps:
        conv.weight[:count] = 0
        conv.bias[:count] = 0
    for i in range(channels):
        encoder.conv_in.weight[i, i, 1, 1] = 1
        for row in range(2):
            for column in range(2):
                halves[0].weight[4 * i + 2 * row + column, i, row, column] = 1
    for i in range(4 * channels):
        second.resnets[0].conv_shortcut.weight[i, i] = 1
    parts = vectors.view(kept, channels, 2, 2, 2, 2)  # component, channel, row, row in it, column
    halves[1].weight[:kept, :4 * channels, :2, :2] = parts.permute(0, 1, 3, 5, 2, 4).reshape(
        kept, 4 * channels, 2, 2)
    third.resnets[0].conv_shortcut.weight[values] = 0
    third.resnets[0].conv_shortcut.bias[values] = 0
    third.resnets[0].conv_shortcut.weight[values, torch.arange(kept)] = 1
    for conv in (encoder.conv_out, vae.quant_conv):
        conv.weight.zero_()
        conv.bias.zero_()
    encoder.conv_out.weight[torch.arange(kept), values, 1, 1] = 1 / scale
    encoder.conv_out.bias[:kept] = -(vectors @ mean.float()) / scale
    vae.quant_conv.weight[range(2 * kept), range(2 * kept)] = 1


def train_start(vae, images_at: Callable, *, steps: int, seed: int, work_dir: Path,
                precision: str) -> float:
    """Begin, train along the linear path, and join; return the final loss.

    images_at(generator): a batch float32 [B, C, S, S], -1..1.
    """
    from lungkit.learn.loop import train
    from lungkit.run.seeds import generator_for

    device = next(vae.parameters()).device

    def several(count: int, first: int) -> torch.Tensor:
        return torch.cat([images_at(generator_for(seed, steps + first + i)) for i in range(count)])

    def loss_at(step, generator):
        images = images_at(generator).to(device)
        with precise(device, precision):
            latents = encode(vae, images).float()
            noise = torch.randn(latents.shape, generator=generator).to(device)
            decoded = decode(vae, latents + NOISE * latents.detach().std() * noise)
        return error_of(decoded, images).mean() + 1e-4 * latents.square().mean()

    begin(vae, several(FIRST, 0))
    loss = train(vae.parameters(), loss_at, what="linear autoencoder", steps=steps, seed=seed,
                 learning_rate=LEARNING_RATE, weight_decay=0.0,
                 checkpoint_path=work_dir / "linear.ckpt")
    join(vae, several(JOINED, FIRST).to(device))
    return loss


@torch.no_grad()
def join(vae, images: torch.Tensor) -> None:
    """Make the whole network give what the linear path gives of images [N, C, S, S]."""
    encoder, decoder, kept = vae.encoder, vae.decoder, vae.config.latent_channels
    latents = encode(vae, images)
    seen = (along_shortcuts(encoder, images, encoder.down_blocks),
            along_shortcuts(decoder, vae.post_quant_conv(latents), decoder.up_blocks))
    befores = (encoder.down_blocks[-1].resnets[0].conv_shortcut,
               decoder.up_blocks[-1].resnets[0].conv_shortcut)
    for part, before, hidden in zip((encoder, decoder), befores, seen, strict=True):
        stand_signed(part, before, hidden)
    vae.quant_conv.weight[kept:] = 0
    vae.quant_conv.bias[kept:] = 2 * (NOISE * latents.std()).log()
    for name, parameter in vae.named_parameters():
        if ".conv2." in name:
            parameter.zero_()


def stand_signed(part, before, hidden: torch.Tensor) -> None:
    """Make `part`'s last activation pass on what it is given.

    before: the convolution whose output, `hidden` [B, W, h, w], is normalised.
    """
    norm, last = part.conv_norm_out, part.conv_out
    values, negatives, free = signed(norm)
    weights, _ = last_weights(part)
    powers = hidden[:, values].square().mean((0, 2, 3)) * free.to(hidden.device)
    groups = powers.view(norm.num_groups, -1)
    constants = (CONSTANT * groups.sum(1)).sqrt()
    deviation = ((groups.sum(1) + constants.square()) / groups.shape[1]).sqrt()
    before.weight[values[~free]] = 0
    before.bias[values[~free]] = constants
    before.weight[negatives] = -before.weight[values]
    before.bias[negatives] = -before.bias[values]
    weights = weights * deviation.repeat_interleave(groups.shape[1])[:, None, None]
    last.weight[:, values], last.weight[:, negatives] = weights, -weights
