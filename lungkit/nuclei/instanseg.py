"""Detect nuclei with an InstanSeg model, where its weights are at hand.

InstanSeg (Goldsborough et al. 2024, arXiv:2408.15954) publishes its models as TorchScript files,
`instanseg.pt`, that hold network and post-processing: nothing but torch is needed to run them.
"brightfield_nuclei" is for H&E, the fluorescence models for dark images; which of them is given
decides what can be found. What is taken from InstanSeg's own inference code:

  input     float32 [1, 3, H, W], RGB, resampled to the model's `pixel_size` in um (bilinear, left
            alone within 1 %), each channel scaled from its 0.1 and 99.9 percentiles to 0 and 1
  call      model(input, target_segmentation=[1, 0]) for nuclei where the model's
            `cells_and_nuclei` says that it has cells too, else [1, 1]
  output    float32 [1, C, H, W], labels of nuclei in the first channel, 0 background

Loading TorchScript runs the code within the file: use weights only from a source that you trust.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from lungkit.learn import device
from lungkit.nuclei.detect import FIELD_UM, SOLIDITY, Nuclei, detect_nuclei, settle
from lungkit.run import faults

PIXEL_SIZE_UM = 0.5  # of brightfield_nuclei; for a model that does not tell its own
SAME_SIZE = 0.01  # InstanSeg resamples from this relative difference on
PERCENTILE = 0.1  # and 100 less it: InstanSeg's percentile_normalize
LEAST_SPREAD = 1e-3  # the same function's guard against even images
LEAST_SIDE_PX = 128  # of the input, from the models' bioimage.io description


def check_file(weights: Path | None) -> None:
    """Raise Fault unless a file of weights is a whole TorchScript archive; nothing of it is run.

    None: there is nothing to check.
    """
    if weights is None:
        return
    try:
        with zipfile.ZipFile(weights) as archive:
            whole = any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):  # its list of contents stands at its end
        whole = False
    if not whole:
        raise faults.Fault(f"{weights}: not a TorchScript file, or cut short; give the "
                           "instanseg.pt of an InstanSeg release")


def load_detector(weights: Path | None = None, device: str = "auto") -> Callable[..., Nuclei]:
    """Return a function with the signature of `nuclei.detect_nuclei`.

    weights: an InstanSeg TorchScript file; None: `nuclei.detect_nuclei` itself.
    device: "auto", "cpu", "cuda" or "cuda:N".
    Raises Fault where the file is no TorchScript; that shows here, not at the first image.
    """
    return detect_nuclei if weights is None else InstanSeg(weights, device)


@lru_cache(maxsize=1)
def _load_once(weights: Path, device: str) -> InstanSeg:
    """A worker is sent the detector with every chunk of images, and loads its model once."""
    return InstanSeg(weights, device)


class InstanSeg:
    """`detect_nuclei` by an InstanSeg model; pickles as its path, for processes to share it."""

    def __init__(self, weights: Path, device: str = "auto") -> None:
        self.weights, self.device_name = Path(weights), device
        self._load()

    def __reduce__(self) -> tuple:
        return _load_once, (self.weights, self.device_name)

    def _load(self) -> None:
        import torch

        self.device = device.use_device(self.device_name)
        if not self.weights.is_file():
            raise faults.Fault(f"{self.weights}: no such file; give the instanseg.pt of an "
                               "InstanSeg release")
        try:
            with warnings.catch_warnings():  # torch.export is to follow; the models are TorchScript
                warnings.simplefilter("ignore", DeprecationWarning)
                self.model = torch.jit.load(str(self.weights), map_location=self.device).eval()
        except (RuntimeError, ValueError) as error:
            raise faults.Fault(f"{self.weights}: not a TorchScript file ({_lines(error)[0]}); give "
                            "the instanseg.pt of an InstanSeg release") from error
        self.pixel_size_um = float(getattr(self.model, "pixel_size", PIXEL_SIZE_UM))
        if not self.pixel_size_um > 0:  # nan: the model was trained at several
            self.pixel_size_um = PIXEL_SIZE_UM
        wanted = [1, 0] if getattr(self.model, "cells_and_nuclei", False) else [1, 1]
        self.target = torch.tensor(wanted)

    def __call__(self, image: np.ndarray, *, modality: str = "auto", solidity: float = SOLIDITY,
                 field_um: float = FIELD_UM) -> Nuclei:
        """Find the nuclei of a uint8 [S, S, 3] RGB image of field_um a side.

        solidity: as in `nuclei.detect_nuclei`. modality is taken for the signature's sake: the
        weights decide what is found. The image is looked at at the model's pixel size; labels
        come back at the image's.
        """
        labels = self._segment(prepare(image, field_um, self.pixel_size_um))
        return settle(labels, len(labels) / field_um, solidity, len(image))

    def _segment(self, prepared: np.ndarray) -> np.ndarray:
        """Labels int32 [S, S], numbered from 1, of a float32 [3, S, S]."""
        import torch

        side = prepared.shape[1]
        padding = max(LEAST_SIDE_PX - side, 0)
        if padding:
            prepared = np.pad(prepared, ((0, 0), (0, padding), (0, padding)), mode="reflect")
        batch = torch.from_numpy(np.ascontiguousarray(prepared)[None]).to(self.device)
        try:
            with torch.no_grad():
                output = self.model(batch, target_segmentation=self.target)
        except (RuntimeError, torch.jit.Error) as error:
            raise faults.Fault(f"{self.weights}: fails on an input of {list(batch.shape)} "
                            f"({_lines(error)[-1]}); is it an InstanSeg model for RGB images?"
                            ) from error
        return self._read(output, prepared.shape[1:])[:side, :side]

    def _read(self, output: object, shape: tuple) -> np.ndarray:
        """Check the model's output and number its labels from 1, int32 `shape`."""
        import torch

        expected = f"{self.weights}: expected labels [1, C, {shape[0]}, {shape[1]}] from the model"
        advice = "; is it an InstanSeg model?"
        if not isinstance(output, torch.Tensor):
            raise faults.Fault(f"{expected}, got {type(output).__name__}{advice}")
        if output.ndim != 4 or len(output) != 1 or output.shape[2:] != shape or not output.shape[1]:
            raise faults.Fault(f"{expected}, got {list(output.shape)}{advice}")
        labels = output[0, 0].float().cpu().numpy()
        if not (np.isfinite(labels).all() and (labels == np.round(labels)).all()
                and labels.min() >= 0):
            raise faults.Fault(f"{expected}, got numbers that are not whole or below 0{advice}")
        found, numbered = np.unique(labels, return_inverse=True)
        numbered = numbered.reshape(shape).astype(np.int32)
        return numbered if found[0] == 0 else numbered + 1


def prepare(image: np.ndarray, field_um: float, pixel_size_um: float) -> np.ndarray:
    """Resample and scale uint8 [S, S, 3] as InstanSeg does, float32 [3, S', S']."""
    import torch
    from torch.nn.functional import interpolate

    planes = torch.from_numpy(np.ascontiguousarray(image)).float().permute(2, 0, 1)
    scale = field_um / len(image) / pixel_size_um
    if abs(scale - 1) > SAME_SIZE:
        planes = interpolate(planes[None], scale_factor=scale, mode="bilinear")[0]
    values = planes.numpy()
    low, high = np.percentile(values, (PERCENTILE, 100 - PERCENTILE), axis=(1, 2))
    spread = np.maximum(high - low, LEAST_SPREAD)
    return ((values - low[:, None, None]) / spread[:, None, None]).astype(np.float32)


def _lines(error: Exception) -> list[str]:
    """Lines of a message: PyTorch's loader says why in the first, its interpreter in the last."""
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
