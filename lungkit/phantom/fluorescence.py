"""Take pictures of simulated tissue through a widefield fluorescence microscope.

The tissue is the one `lungkit.phantom` paints for H&E: the same nuclei, epithelium, fibres and
cells, so the same ground truth, labelled with other dyes:

  DAPI     DNA: the nuclei's chromatin, which haematoxylin shows too; nucleoli are dark
  panCK    cytokeratin: the cytoplasm of tumour epithelium; in lung without tumour the thin
           lining of the alveolar septa
  CD45     the membrane of lymphocytes; macrophages faintly
  AF       autofluorescence: collagen and elastin, red cells, lipofuscin of macrophages; some of it
           is seen in every other channel, as in real tissue

A section is SECTION_UM thick and nuclei lie at different heights in it; one whose centre is near a
face is cut, and dim. Each focal plane sees each layer through its own blur: in focus the Gaussian
equal of the widefield point spread function, sigma = 0.225 wavelength / NA (Zhang, Zerubia and
Olivo-Marin 2007, Applied Optics 46:1819), widened off focus by the cone of light the objective
gathers. The light falls unevenly on the field. The camera is EMVA Standard 1288's linear one:
photoelectrons are Poisson distributed, read noise and an offset are added, gain makes grey levels.

Files are OME-TIFF (uint16, axes CYX or ZCYX) with channel names and sizes in um.
"""

from __future__ import annotations

import io
import math
import uuid
from dataclasses import dataclass

import numpy as np

CHANNELS = ("DAPI", "panCK", "CD45", "AF")
EMISSION_NM = (461, 570, 690, 520)  # DAPI's peak; the others are those of usual dyes and filters
EXPOSURE_E = (2000, 1600, 1600, 1200)  # photoelectrons a pixel of unit dye; ours: well exposed
AF_SHARE = (0.10, 0.10, 0.05, 0.0)  # of the AF channel seen in each; ours: less at long wavelengths
STAIN_SPREAD = 0.25  # log deviation of a channel's brightness between patients; ours
BACKGROUND_E = 40.0  # stray light, photoelectrons a pixel; ours

SECTION_UM = 4.0  # routine paraffin sections are cut at 3-5 um
NUM_LAYERS = 4
PLANE_STEP_UM = 1.0  # between focal planes; near the depth of field of NA 0.75 (wavelength / NA^2)
NUMERICAL_APERTURE, REFRACTIVE_INDEX = 0.75, 1.5  # a 20x/0.75 objective; mounting medium
PSF_SIGMA = 0.225  # of wavelength / NA; Zhang et al. 2007
VIGNETTING = (0.08, 0.25)  # loss of light at the far corner, drawn per patient; ours

OFFSET_ADU, ELECTRONS_PER_ADU, READ_NOISE_E = 100.0, 0.46, 1.5  # of usual scientific CMOS cameras


@dataclass(frozen=True)
class Staining:
    """What the fluorescence pictures of one patient share."""

    brightness: np.ndarray  # float [C], factor on each channel's exposure
    loss: float  # share of light lost at the far corner
    centre: np.ndarray  # float [2] (x, y), brightest point, as a share of the side


def draw_staining(rng) -> Staining:
    return Staining(np.exp(rng.normal(0, STAIN_SPREAD, len(CHANNELS))), rng.uniform(*VIGNETTING),
                    rng.uniform(0.35, 0.65, 2))


# --- where the dyes are ---------------------------------------------------------------------------

def _ring(mask, inside, width_px):
    """What lies within width_px of a bool mask, but not in `inside`: soft, 0..1."""
    import cv2

    distance = cv2.distanceTransform(np.uint8(~mask), cv2.DIST_L2, 5)
    return np.clip(width_px + 1 - distance, 0, 1) * ~inside


def dyes(painted):
    """Dye of the whole section, float32 [C, S, S], about 1 where a channel is well stained."""
    import cv2

    from lungkit.phantom import tissue

    size = painted.labels.shape[0]
    scale = size / tissue.FIELD_UM
    nucleus = painted.labels > 0
    plasm = 1 - cv2.GaussianBlur(np.float32(nucleus), (0, 0), 0.25 * scale)
    solid = 1 - painted.air

    dapi = painted.chromatin * (1 - 0.6 * painted.nucleoli) / 1.4
    if painted.scene.epithelium.any():
        keratin = 2 * painted.eosin * painted.epithelium * solid
    else:  # pneumocytes cover the septa in a sheet too thin to see but from its edge
        inner = np.s_[tissue.PAD_PX:-tissue.PAD_PX]
        depth = cv2.resize(painted.scene.air[inner, inner], (size, size))
        keratin = 0.8 * np.exp(-((depth + 1.0) / 1.2) ** 2)
    owner = np.r_[tissue.FREE, painted.cells["owner"]][painted.labels]
    cd45 = _ring(owner == tissue.LYMPHOCYTE, nucleus, 1.2 * scale) + 0.3 * painted.foam * plasm
    collagen = painted.eosin * (1 - painted.epithelium) * solid
    af = (collagen + 0.1 * solid) * plasm + 0.9 * painted.red + 0.6 * painted.foam * plasm
    free = np.clip(1 - painted.red, 0, 1)  # red cells lie over the rest
    amount = np.stack([dapi, keratin * plasm * free, cd45 * free, af])
    return np.maximum(amount, 0).astype(np.float32)  # texture may undercut what it is laid on


def _layers(painted, rng):
    """Share of each nucleus in each layer of the section, as maps float32 [NUM_LAYERS, S, S].

    A nucleus is a body as deep as it is wide around a centre within the section.
    """
    height = rng.uniform(0, SECTION_UM, len(painted.cells))
    middle = (np.arange(NUM_LAYERS) + 0.5) * SECTION_UM / NUM_LAYERS
    filled = np.abs(middle[:, None] - height) < np.maximum(painted.cells["b"], 0.5)
    share = np.concatenate([np.zeros((NUM_LAYERS, 1)), filled / NUM_LAYERS], 1)
    return share.astype(np.float32)[:, painted.labels]


# --- the microscope -------------------------------------------------------------------------------

def blur_sigma_um(emission_nm: float, defocus_um: float) -> float:
    """Deviation of the blur of a layer `defocus_um` off the focal plane."""
    focused = PSF_SIGMA * emission_nm / 1000 / NUMERICAL_APERTURE
    cone = abs(defocus_um) * math.tan(math.asin(NUMERICAL_APERTURE / REFRACTIVE_INDEX))
    return math.hypot(focused, cone / 2)  # a disc of radius r has the deviation r / 2 on each axis


def plane_heights_um(num_planes: int) -> np.ndarray:
    """Height of each focal plane in the section, around its middle."""
    return SECTION_UM / 2 + (np.arange(num_planes) - (num_planes - 1) / 2) * PLANE_STEP_UM


def focus(dye, layers, num_planes: int, scale: float) -> np.ndarray:
    """Blur dyes [C, S, S] into focal planes float32 [Z, C, S, S]; scale is px per um.

    DAPI lies in `layers`, the other dyes fill the section evenly.
    """
    import cv2

    heights = (np.arange(NUM_LAYERS) + 0.5) * SECTION_UM / NUM_LAYERS
    planes = np.zeros((num_planes, *dye.shape), np.float32)
    for channel, emission_nm in enumerate(EMISSION_NM):
        even = {}
        for plane, plane_height in zip(planes, plane_heights_um(num_planes)):
            for layer, height in enumerate(heights):
                sigma = blur_sigma_um(emission_nm, plane_height - height) * scale
                if channel == CHANNELS.index("DAPI"):
                    plane[channel] += cv2.GaussianBlur(dye[channel] * layers[layer], (0, 0), sigma)
                    continue
                if sigma not in even:
                    even[sigma] = cv2.GaussianBlur(dye[channel] / NUM_LAYERS, (0, 0), sigma)
                plane[channel] += even[sigma]
    return planes


def illumination(staining: Staining, image_size: int) -> np.ndarray:
    """Light on the field, float32 [S, S]: 1 at the brightest point, falling with the square."""
    y, x = (np.mgrid[:image_size, :image_size] + 0.5) / image_size
    square = (x - staining.centre[0]) ** 2 + (y - staining.centre[1]) ** 2
    return (1 - staining.loss * square / square.max()).astype(np.float32)


def camera(electrons, rng) -> np.ndarray:
    """Expected photoelectrons to grey levels, uint16: shot noise, read noise, gain, offset."""
    seen = rng.poisson(electrons) + rng.normal(0, READ_NOISE_E, electrons.shape)
    return np.uint16(np.clip(np.round(seen / ELECTRONS_PER_ADU + OFFSET_ADU), 0, 65535))


def draw_channels(painted, staining: Staining, rng, *, image_size: int,
                  num_planes: int = 1) -> np.ndarray:
    """Photograph painted tissue: uint16 [Z, C, H, W], H = W = image_size."""
    import cv2

    from lungkit.phantom import tissue

    scale = painted.labels.shape[0] / tissue.FIELD_UM
    planes = focus(dyes(painted), _layers(painted, rng), num_planes, scale)
    if planes.shape[-1] != image_size:  # a pixel gathers the light that falls on its area
        planes = np.stack([[cv2.resize(one, (image_size, image_size), interpolation=cv2.INTER_AREA)
                            for one in plane] for plane in planes])
    planes += np.array(AF_SHARE, np.float32)[:, None, None] * planes[:, -1:]
    exposure = np.array(EXPOSURE_E) * staining.brightness
    light = illumination(staining, image_size)
    return camera(planes * exposure[:, None, None] * light + BACKGROUND_E, rng)


# --- the file -------------------------------------------------------------------------------------

def encode_ome_tiff(planes: np.ndarray, name: str, field_um: float) -> bytes:
    """Encode uint16 [Z, C, H, W] as OME-TIFF, CYX where there is one plane, else ZCYX.

    The file's UUID comes of its name: the same tissue gives the same bytes.
    """
    import tifffile

    pixel_um = field_um / planes.shape[-1]
    metadata = {
        "axes": "ZCYX" if len(planes) > 1 else "CYX", "Name": name,
        "UUID": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, name)}",
        "PhysicalSizeX": pixel_um, "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": pixel_um, "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": list(CHANNELS), "EmissionWavelength": list(EMISSION_NM),
                    "EmissionWavelengthUnit": ["nm"] * len(CHANNELS)}}
    if len(planes) > 1:
        metadata |= {"PhysicalSizeZ": PLANE_STEP_UM, "PhysicalSizeZUnit": "µm"}
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, planes if len(planes) > 1 else planes[0], ome=True, metadata=metadata,
                     photometric="minisblack", resolutionunit="CENTIMETER",
                     resolution=(1e4 / pixel_um, 1e4 / pixel_um))
    return buffer.getvalue()
