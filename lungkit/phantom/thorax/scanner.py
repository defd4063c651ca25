"""Take the picture: a scanner's sharpness, its noise and its grid.

Sharpness is a modulation transfer function (MTF): a Gaussian of the kernel's width, raised at
middle frequencies where the kernel enhances edges. Noise has the spectrum of filtered back
projection, a ramp times the MTF (Riederer, Pelc and Chesler 1978, Phys Med Biol 23:446), its
deviation stated for the scanner's own pixels. Larger pixels show the part of it that they resolve.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

EDGE_PER_MM = 0.42  # where edge enhancement is strongest, in periods a mm
OUTSIDE_HU = -1024  # where no ray was measured


@dataclass(frozen=True)
class Scanner:
    """A scanner with its protocol. spacing_mm: of a 512-pixel image, that is, its field / 512."""

    manufacturer: str
    model: str
    kernel: str
    blur_mm: float  # width at half height of the point spread
    edges: float  # 0 none; 1 doubles the MTF at EDGE_PER_MM
    noise_hu: float  # deviation in its slices of 512 pixels
    thickness_mm: float
    step_mm: float
    spacing_mm: float
    circle_hu: int | None  # what lies outside the round field; None: the field is square
    share: float  # of patients


# shares and thicknesses are near LIDC's (GE two thirds, thickness above 2.5 mm in an eighth)
SCANNERS = (
    Scanner("GE MEDICAL SYSTEMS", "LightSpeed Plus", "BONE", 0.75, 0.9, 52, 1.25, 1.25, 0.66,
            -3024, 0.2),
    Scanner("GE MEDICAL SYSTEMS", "LightSpeed VCT", "STANDARD", 1.4, 0.15, 26, 1.25, 1.25, 0.72,
            -3024, 0.25),
    Scanner("GE MEDICAL SYSTEMS", "LightSpeed16", "LUNG", 0.8, 0.7, 50, 2.5, 2.5, 0.7, -3024, 0.17),
    Scanner("SIEMENS", "Sensation 16", "B70f", 0.65, 0.8, 60, 2.0, 1.5, 0.62, None, 0.1),
    Scanner("SIEMENS", "Sensation 64", "B30f", 1.7, 0.05, 21, 1.0, 1.0, 0.68, None, 0.1),
    Scanner("TOSHIBA", "Aquilion", "FC51", 0.85, 0.5, 42, 2.0, 2.0, 0.76, None, 0.06),
    Scanner("Philips", "Brilliance 40", "B", 2.0, 0.1, 24, 3.0, 3.0, 0.82, -1024, 0.06),
    Scanner("Philips", "Brilliance16", "C", 1.5, 0.3, 33, 5.0, 5.0, 0.8, -1024, 0.06),
)


def transfer(freq_per_mm: np.ndarray, blur_mm: float, edges: float) -> np.ndarray:
    """The MTF at frequencies in periods a mm; 1 at 0."""
    sigma = blur_mm / 2.355
    raised = (freq_per_mm / EDGE_PER_MM) ** 2
    return np.exp(-2 * (np.pi * sigma * freq_per_mm) ** 2) * (1 + edges * raised
                                                              * np.exp(1 - raised))


@functools.lru_cache(maxsize=8)
def _filters(size: int, spacing_mm: float, own_mm: float, blur_mm: float, edges: float
             ) -> tuple[np.ndarray, np.ndarray]:
    """(MTF, noise amplitude) over rfft2's frequencies, float32.

    The amplitude gives white noise of unit deviation the spectrum that has unit deviation in pixels
    of `own_mm`.
    """
    own = np.fft.fftfreq(256, own_mm)
    own = np.hypot(own[:, None], own[None])
    power = np.mean(own * transfer(own, blur_mm, edges) ** 2) / own_mm ** 2
    freq = np.hypot(np.fft.fftfreq(size, spacing_mm)[:, None],
                    np.fft.rfftfreq(size, spacing_mm)[None])
    mtf = transfer(freq, blur_mm, edges)
    noise = mtf * np.sqrt(freq / power) / spacing_mm
    return mtf.astype(np.float32), noise.astype(np.float32)


def expose(hu: np.ndarray, scanner: Scanner, spacing_mm: float, rng: np.random.Generator,
           *, whole: bool = True) -> np.ndarray:
    """The scanner's image int16 [N, N] of one slice's attenuation float32 [N, N], in HU.

    rng decides the noise alone. whole: the image is the scanner's whole field, not a part of it.
    Values end at 3071, as 12 bits do; the least is -1024 but outside a round field.
    """
    from scipy import fft

    size = len(hu)
    mtf, noise = _filters(size, float(spacing_mm), scanner.spacing_mm, scanner.blur_mm,
                          scanner.edges)
    white = rng.standard_normal((size, size), np.float32)
    both = fft.rfft2(hu) * mtf + fft.rfft2(white) * (noise * np.float32(scanner.noise_hu))
    image = fft.irfft2(both, (size, size))
    image = np.clip(np.rint(image), OUTSIDE_HU, 3071).astype(np.int16)
    if whole and scanner.circle_hu is not None:
        away = np.arange(size) - (size - 1) / 2
        image[np.hypot(away[:, None], away[None]) > size / 2] = scanner.circle_hu
    return image
