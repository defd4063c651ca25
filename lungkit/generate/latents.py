"""Latent diffusion, as the three generators share it: latents, schedule, loss, sampler.

Rombach et al. 2022, arXiv:2112.10752 (latent diffusion); Ho & Salimans 2022, arXiv:2207.12598
(classifier-free guidance); Hang et al. 2023, arXiv:2303.09556 (min-SNR weighting);
Lin et al. 2023, arXiv:2305.08891 (zero terminal SNR, v-prediction, trailing steps);
Lu et al. 2022, arXiv:2211.01095 (DPM-Solver++).
"""

from __future__ import annotations

import copy
from functools import partial
from itertools import product

import numpy as np
import torch

from lungkit.data.orientations import orient
from lungkit.learn.device import autocast, by_halves
from lungkit.learn.pixels import as_tensor, hold
from lungkit.learn.shares import ALL, Share
from lungkit.run import ranks


def to_model_range(images: np.ndarray, channels: int = 3, device="cpu") -> torch.Tensor:
    """uint8 [N, S, S, 3], or grey [N, S, S, 1], 0-255 -> float32 [N, channels, S, S], -1..1.

    channels: those that an autoencoder sees; grey is repeated. device: where the floats are made.
    """
    ranged = as_tensor(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    return ranged.expand(-1, channels, -1, -1)


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """float [N, C, S, S], -1..1 -> uint8 [N, S, S, C]."""
    scaled = ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).cpu().numpy()


class Latents:
    """The autoencoder's posterior of every image in every orientation, to draw latents from.

    The mean and deviation are kept, not one sample: a fixed sample would freeze its noise, and
    one orientation would freeze the flips. Held as float16 [symmetries, N, C, h, w], on the
    autoencoder's device where half of its free memory takes them. Several ranks encode a batch each
    in turn, and all hold all.
    """

    def __init__(self, autoencoder, images: np.ndarray, *, symmetries: int = 8,
                 batch_size: int = 32) -> None:
        self.symmetries = symmetries
        device = next(autoencoder.parameters()).device
        channels = autoencoder.config.in_channels

        def encode(which: int, some: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
            batch = to_model_range(some, channels, device)
            with autocast(device, on_cpu=True):
                posterior = autoencoder.encode(orient(batch, which, symmetries)).latent_dist
            return posterior.mean.half().cpu(), posterior.std.half().cpu()

        def work(job: tuple[int, int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
            which, first = job
            return by_halves(partial(encode, which), images[first:first + batch_size])

        jobs = list(product(range(symmetries), range(0, len(images), batch_size)))
        with torch.no_grad():
            parts = [part for batch in ranks.dealt(work, jobs) for part in batch]
        self.mean, self.std = (
            hold(torch.cat(each).unflatten(0, (symmetries, len(images))).numpy(), device)
            for each in zip(*parts, strict=True))

    def __len__(self) -> int:
        return self.mean.shape[1]

    def subset(self, indices: list[int]) -> Latents:
        """The latents of the images `indices`, in that order."""
        part = copy.copy(self)
        part.mean, part.std = self.mean[:, indices], self.std[:, indices]
        return part

    def deviation(self) -> float:
        """Standard deviation of the latents over all images, positions and channels."""
        mean, std = self.mean.float(), self.std.float()
        return float((mean.var() + std.square().mean()).sqrt())

    def draw(self, indices: torch.Tensor, orientations: torch.Tensor,
             generator: torch.Generator) -> torch.Tensor:
        """One posterior sample for each (image, orientation): float32 [B, C, h, w], unscaled.

        orientations: int64 [B], each below `symmetries`. generator: of the CPU, so that the noise
        is the same on every device.
        """
        which = orientations.to(self.mean.device), indices.to(self.mean.device)
        mean, std = self.mean[which].float(), self.std[which].float()
        return mean + std * torch.randn(mean.shape, generator=generator).to(mean.device)


def pick_images(classes: torch.Tensor, batch_size: int,
                generator: torch.Generator) -> torch.Tensor:
    """A batch of images, each class in it as often as any other: their places, int64 [batch_size].

    classes: int64 [N], of every image. What a batch cannot share out evenly goes to classes drawn
    anew at each step, so that over a training all are seen equally often, however many images
    they have. Of one class every image is as likely at each draw.
    """
    known = classes.unique()
    order = torch.randperm(len(known), generator=generator)
    wanted = known[order.repeat(-(-batch_size // len(known)))[:batch_size]]
    chances = torch.rand(batch_size, generator=generator, dtype=torch.float64)
    picks = torch.empty(batch_size, dtype=torch.int64)
    for label in known:
        own, there = (classes == label).nonzero()[:, 0], wanted == label
        picks[there] = own[(chances[there] * len(own)).long()]
    return picks


# what a base may predict, by what divides min(SNR, gamma): an error of the clean latents weighs
# that much, one of the noise SNR times less, one of v SNR + 1 times less (Hang et al. 2023)
PREDICTIONS = {"sample": torch.ones_like, "epsilon": lambda snr: snr.clamp(min=1e-8),
               "v_prediction": lambda snr: snr + 1}


def min_snr_weight(scheduler, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
    """Loss weight of each timestep, float32 [B] (Hang et al. 2023, section 3.4).

    Where the SNR is 0 (the last step, with zero terminal SNR) the weight is 1: sampling starts
    there, and a weight of 0 would leave its first step untrained.
    """
    alphas = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    snr = alphas / (1 - alphas)
    weights = snr.clamp(max=gamma) / PREDICTIONS[scheduler.config.prediction_type](snr)
    return torch.where(snr > 0, weights, torch.ones_like(snr))


def denoising_loss(predict, scheduler, latents: torch.Tensor, generator: torch.Generator,
                   share: Share = ALL, *, gamma: float = 5.0) -> torch.Tensor:
    """Min-SNR weighted error of `predict(noisy, timesteps)` on scaled latents [B, C, h, w].

    share: of the batch that is predicted; noise and times are drawn for all of it.
    """
    noise = torch.randn(latents.shape, generator=generator)[share.own].to(latents.device)
    timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),),
                              generator=generator)[share.own].to(latents.device)
    latents = latents[share.own]
    noisy = scheduler.add_noise(latents, noise, timesteps)
    target = {"sample": lambda: latents, "epsilon": lambda: noise,
              "v_prediction": lambda: scheduler.get_velocity(latents, noise, timesteps),
              }[scheduler.config.prediction_type]()
    error = (predict(noisy, timesteps).float() - target).square().mean((1, 2, 3))
    return share.weight * (min_snr_weight(scheduler, timesteps, gamma) * error).mean()


def training_schedule():
    """The noise schedule of models trained here: v-prediction with zero terminal SNR."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
                         prediction_type="v_prediction", rescale_betas_zero_snr=True,
                         timestep_spacing="trailing", clip_sample=False,
                         steps_offset=1)


def sampler(name: str, config):
    """The sampler `name` (dpm or ddim) for a schedule's config; latents are never clipped."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    zero_snr = bool(config.get("rescale_betas_zero_snr", False))
    if name == "ddim":
        return DDIMScheduler.from_config(config, clip_sample=False,
                                         timestep_spacing="trailing" if zero_snr else "leading")
    return DPMSolverMultistepScheduler.from_config(
        config, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero",
        use_karras_sigmas=False, thresholding=False,
        timestep_spacing="trailing" if zero_snr else "linspace")
