"""What decides a training of a U-Net: the two recipes, and what of them may be chosen.

Feeds unet_segment.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from lungkit.data.mask_items import Target
from lungkit.data.orientations import as_setting
from lungkit.run import cli
from lungkit.run.faults import BadOptions

OURS, PUBLISHED = "ours", "published"
LOSSES = ("dice-focal", "image-dice-focal", "tversky", "bce")
WHOLE = {OURS: {"loss": "dice-focal", "oversample": 1 / 3, "learning_rate": 2e-3, "mirror": True},
         PUBLISHED: {"loss": "bce", "epochs": 30, "learning_rate": 1e-4}}
PLANNED = "steps", "oversample", "hard_negatives", "patch_size"  # decide what ours is shown
OF_OURS, OF_PUBLISHED = ("loss", "mirror", *PLANNED, "most_false_positives"), ("epochs",)
HARD = 1 / 3  # usual share of hard negatives, of images of which patches are shown


def settle(how: dict, presets: dict, recipe: int) -> dict:
    """What decides a training, of the options. Raises BadOptions where they contradict.

    recipe: the number of the training, unet_segment.RECIPE.
    """
    method = how["recipe"]
    others = OF_PUBLISHED if method == OURS else OF_OURS
    if given := [_option(name) for name in others if how[name] is not None]:
        raise BadOptions(f"{', '.join(given)}: not of --recipe {method}, whose training is fixed "
                         "in that")
    chosen = {name: WHOLE[method].get(name) if value is None else value
              for name, value in cli.fill_preset(how, presets).items()}
    if method == OURS:
        _check_shares(chosen)
    found = {"recipe": recipe, "method": method, "mirror": False, "patch_size": None,
             **{name: chosen[name] for name in (
                 "widths", "batch_size", "learning_rate", "neighbours", "loss",
                 *(OF_OURS[1:] if method == OURS else OF_PUBLISHED))}}
    if found.get("most_false_positives", 0) is None:
        del found["most_false_positives"]
    return found


def _check_shares(chosen: dict) -> None:
    """Raise BadOptions where a share of a batch is no image, or both are more than all."""
    shares = {name: chosen[name] for name in ("oversample", "hard_negatives")
              if chosen[name] is not None}
    for name, share in shares.items():
        if 0 < chosen["batch_size"] * share <= 0.5:
            raise BadOptions(f"{_option(name)} {share:g} of --batch-size {chosen['batch_size']} "
                             "is less than an image when rounded: give more")
    if sum(shares.values()) > 1:
        raise BadOptions(f"--oversample {chosen['oversample']:g} and --hard-negatives "
                         f"{chosen['hard_negatives']:g} are more than a batch: give less")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def of_dataset(settings: dict, target: Target, manifest: dict) -> dict:
    """The settings with what a dataset's images decide."""
    size = manifest["image_size"]
    patch_size = settings["patch_size"] or size
    if patch_size > size:
        raise BadOptions(f"--patch-size {patch_size}: the images have {size} px")
    if patch_size >> (len(settings["widths"]) - 1) < 2:
        raise BadOptions(f"--widths: {len(settings['widths'])} levels are too many for "
                         f"{'images' if patch_size == size else 'patches'} of {patch_size} px")
    found = {**settings, "patch_size": patch_size, **target.setting(), "image_size": size,
             **as_setting(manifest["symmetries"])}
    if found.get("hard_negatives", HARD) is None:  # whole images show all of their background
        found["hard_negatives"] = min(HARD, 1 - found["oversample"]) if patch_size < size else 0.0
    return found
