"""Pretrain an embedded base model: a small Stable Diffusion that knows simulated images only.

Used where no --base-model is given (a laptop, CI, no network). It is data, not a branch in the
code: the result is an ordinary Stable Diffusion folder in diffusers layout (autoencoder, UNet,
CLIP text encoder, tokenizer, scheduler; of tissue a ControlNet for structure maps), loaded by the
same from_pretrained as any other. No real image takes part.

--modality tissue  tiles of simulated tissue, three channels
--modality ct      crops and slices of simulated chests, one channel: the autoencoder and the UNet
                   go on from those of the base of tissue that is shipped

Writes: OUTPUT/{vae,unet,text_encoder,tokenizer,scheduler,controlnet}, base_model.json last.
Method: Rombach et al. 2022 (arXiv:2112.10752); Zhang et al. 2023 (arXiv:2302.05543) for the
ControlNet; the losses and the schedule are those of lungkit/generate/latents.py.
Running the same command again resumes.
Exit status: 0 complete, 1 failed, 2 bad options, 75 stopped and resumable.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lungkit.generate.base_model import BASE_MODEL_DIR, CT_BASE_MODEL_DIR
from lungkit.run import cli, faults
from lungkit.tools.base_networks import make

PLACES = {"tissue": BASE_MODEL_DIR, "ct": CT_BASE_MODEL_DIR}
RECIPES = {  # ours: steps after which losses fell little more
    "tissue": {"num_tiles": 4000, "autoencoder_steps": 1400, "unet_steps": 3200,
               "decoder_steps": 1500, "controlnet_steps": 600, "batch_size": 16},
    "ct": {"num_patients": 300, "autoencoder_steps": 700, "unet_steps": 400, "batch_size": 16,
           "precision": "fp32"}}


def parameters_of(modality: str, options: dict) -> dict:
    """The options of a modality's recipe, those not given filled in. Raises BadOptions."""
    recipe = RECIPES[modality]
    strange = [name for name, value in options.items() if value is not None and name not in recipe]
    if strange:
        raise faults.BadOptions(f"--{strange[0].replace('_', '-')} is not of --modality "
                                f"{modality}: leave it out")
    return {name: value if options[name] is None else options[name]
            for name, value in recipe.items()}


def run(*, modality: str, output: Path | None, seed: int, device: str, overwrite: bool,
        dry_run: bool, **options: object) -> None:
    """Draw, train the parts in turn, save in diffusers layout."""
    from lungkit.tools import base_of_ct, base_of_tissue

    output = output or PLACES[modality]
    parameters = {**parameters_of(modality, options), "seed": seed}
    told = parameters if modality == "tissue" else {"modality": modality, **parameters}
    recipe = base_of_tissue if modality == "tissue" else base_of_ct
    make("base_model", output, told,
         lambda work_dir, place: recipe.pretrain(work_dir, **parameters, device=place),
         recipe.DRAWN, device=device, overwrite=overwrite, dry_run=dry_run)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.stage_parser("python -m lungkit.tools.pretrain_base_model", __doc__)
    parser.add_argument("--modality", choices=sorted(RECIPES), default="tissue",
                        help="what the model shall know")
    parser.add_argument("--output", type=cli.directory, metavar="DIR",
                        help="model to make (default: where the one of its modality is shipped)")
    parser.add_argument("--num-tiles", type=cli.positive_int, metavar="INT",
                        help="simulated tiles of tissue to train on (default: 4000)")
    parser.add_argument("--num-patients", type=cli.positive_int, metavar="INT",
                        help="simulated chests to train on (default: 300)")
    parser.add_argument("--autoencoder-steps", type=cli.positive_int, metavar="INT",
                        help="training steps of the autoencoder (default: 1400; CT 700)")
    parser.add_argument("--unet-steps", type=cli.positive_int, metavar="INT",
                        help="training steps of the UNet (default: 3200; CT 400)")
    parser.add_argument("--decoder-steps", type=cli.positive_int, metavar="INT",
                        help="of tissue: training steps of the decoder, for sharper images "
                             "(default: 1500)")
    parser.add_argument("--controlnet-steps", type=cli.positive_int, metavar="INT",
                        help="of tissue: training steps of the ControlNet (default: 600)")
    parser.add_argument("--batch-size", type=cli.positive_int, metavar="INT",
                        help="images of a step of the UNet (default: 16)")
    parser.add_argument("--precision", choices=("fp32", "bf16"),
                        help="of CT: of products in training; bf16 is faster on a GPU and on a CPU "
                             "with AMX or AVX-512 BF16 (default: fp32)")
    cli.add_common(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
