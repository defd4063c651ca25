"""The numbers behind simulated tissue: what is drawn for a patient, a slide, a tile and a cell.

`lungkit.phantom.tissue` and `.paint` draw from these parameters and from no others of their kind;
`docs/simulated_tissue.md` shows them as one table, which `markdown_table` makes; a test compares.
Changing a number changes every simulated image.

What a class looks like follows the literature in SOURCES. Where a source gives a number, the
meaning says how ours relates to it; "ours" are degrees that no paper states, set by eye beside
LC25000 (Borkowski et al. 2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

SOURCES = {
    "WHO": "WHO Classification of Tumours Editorial Board. Thoracic Tumours, 5th ed. "
           "(WHO Classification of Tumours, vol. 5). Lyon: IARC, 2021",
    "IASLC": "Moreira et al. A grading system for invasive pulmonary adenocarcinoma: a proposal "
             "from the IASLC Pathology Committee. J Thorac Oncol 15:1599-1610, 2020",
    "ND": "Overlap of nuclear diameters in lung cancer cells. Anal Quant Cytol Histol 12:275-278, "
          "1990 (in sections, non-small cell carcinoma: 12.8 +- 2.2 um, 31 patients)",
    "Kadota": "Kadota et al. Comprehensive pathological analyses in lung squamous cell carcinoma: "
              "single cell invasion, nuclear diameter, and tumor budding are independent "
              "prognostic factors for worse outcomes. J Thorac Oncol 9:1126-1139, 2014, "
              "doi 10.1097/JTO.0000000000000253",
    "Crapo": "Crapo et al. Cell number and cell characteristics of the normal human lung. Am Rev "
             "Respir Dis 126:332-337, 1982 (mean caliper diameter of nuclei: endothelium 8.8 um, "
             "macrophages 8.3 um)",
    "Ochs": "Ochs et al. The number of alveoli in the human lung. Am J Respir Crit Care Med "
            "169:120-124, 2004 (mean alveolar volume 4.2e6 um3: a sphere of 200 um)",
    "RJ": "Ruifrok and Johnston. Quantification of histochemical staining by color deconvolution. "
          "Anal Quant Cytol Histol 23:291-299, 2001 (haematoxylin 0.650 0.704 0.286, eosin 0.072 "
          "0.990 0.105)",
    "ours": "set by eye beside LC25000 (Borkowski et al. 2019, arXiv:1912.12142)",
}


@dataclass(frozen=True)
class Parameter:
    """A fixed number, or the distribution it is drawn from; unit, meaning and source for readers.

    kind and numbers: "fixed" (value), "uniform" (low, high), "normal" (mean, deviation),
    "log-normal" (median, deviation of the logarithm), "beta" (alpha, beta, in 0..1).
    """

    kind: str
    numbers: tuple[float, ...]
    unit: str
    meaning: str
    source: str

    def draw(self, rng, size=None):
        """Draw a float, or an array of `size`; a fixed number draws nothing from `rng`."""
        import numpy as np

        if self.kind == "fixed":
            return self.numbers[0]
        if self.kind == "log-normal":
            median, deviation = self.numbers
            value = np.exp(rng.normal(0, deviation, size))
            return value if median == 1 else median * value
        return getattr(rng, self.kind)(*self.numbers, size)

    @property
    def value(self) -> float:
        """The number of a fixed parameter."""
        if self.kind != "fixed":
            raise TypeError(f"a {self.kind} parameter has no one value: draw it")
        return self.numbers[0]

    def in_words(self) -> str:
        """What the table shows: "2 to 14", "normal 1, sd 0.03" ..."""
        first, second = f"{self.numbers[0]:g}", f"{self.numbers[-1]:g}"
        return {"fixed": first, "uniform": f"{first} to {second}",
                "normal": f"normal {first}, sd {second}",
                "log-normal": f"log-normal {first}, log sd {second}",
                "beta": f"beta({first}, {second})"}[self.kind]


def _kind(kind):
    def parameter(*numbers_and_words):
        *numbers, unit, meaning, source = numbers_and_words
        return Parameter(kind, tuple(numbers), unit, meaning, source)
    return parameter


_fixed, _uniform, _normal, _lognormal, _beta = map(
    _kind, ("fixed", "uniform", "normal", "log-normal", "beta"))


# --- what the tiles of a patient share ------------------------------------------------------------

PATIENT = SimpleNamespace(
    nuclear_size=_lognormal(1.0, 0.13, "factor", "size of tumour nuclei; patients of one type "
                            "differ by 17 % in ND (2.2 of 12.8 um)", "ND"),
    pleomorphism=_uniform(0.08, 0.3, "log sd", "spread of nuclear size within a tumour", "ours"),
    nucleoli=_beta(1.5, 2, "degree", "how many tumour nuclei show a nucleolus", "ours"),
    vesicular=_uniform(0.1, 0.9, "degree", "0 evenly dark nuclei, 1 pale with a dark rim", "ours"),
    keratin=_beta(1.2, 1.6, "degree", "keratinising to non-keratinising squamous carcinoma", "WHO"),
    differentiation=_beta(1.6, 1.2, "degree", "low: solid pattern, which IASLC grades high",
                          "IASLC"),
    inflammation=_beta(1.2, 4, "degree", "lymphocytes in the stroma of a tumour", "ours"),
)

SLIDE = SimpleNamespace(
    haematoxylin_red=_uniform(0.55, 0.69, "of unit vector", "red part of haematoxylin's stain "
                              "vector, around 0.650; green follows", "RJ"),
    haematoxylin_blue=_uniform(0.10, 0.28, "of unit vector", "its blue part, up to 0.286", "RJ"),
    eosin_red=_uniform(0.04, 0.24, "of unit vector", "red part of eosin's, from 0.072 up", "RJ"),
    eosin_blue=_uniform(0.06, 0.28, "of unit vector", "its blue part, from 0.105 up", "RJ"),
    light=_uniform(0.86, 0.99, "of white", "bare glass", "ours"),
    light_tint=_normal(1, 0.03, "factor", "of each of red, green and blue, within 0.92-1.01",
                       "ours"),
    haematoxylin_strength=_lognormal(1.0, 0.25, "factor", "staining strength", "ours"),
    eosin_strength=_lognormal(1.0, 0.30, "factor", "the same", "ours"),
    red_cell_strength=_lognormal(1.0, 0.15, "factor", "the same", "ours"),
    thickness=_normal(0, 0.07, "log factor", "of each tile's stains: sections differ", "ours"),
    blur_um=_uniform(0.25, 0.8, "um", "focus: deviation of a Gaussian", "ours"),
    grain=_uniform(0.004, 0.015, "of white", "deviation of camera noise", "ours"),
    mottle=_uniform(0.02, 0.12, "of density", "uneven staining across a tile", "ours"),
)


# --- cells and fluids of all classes --------------------------------------------------------------

CELLS = SimpleNamespace(
    spread=_fixed(0.12, "log sd", "size of a kind's nuclei, where nothing else is said", "ours"),
    elongation_spread=_fixed(0.15, "log sd", "length over width of nuclei of one kind", "ours"),
    density_spread=_fixed(0.14, "log sd", "haematoxylin of nuclei of one kind", "ours"),
    lymphocyte_radius_um=_fixed(2.9, "um", "nucleus of a small lymphocyte, the ruler by which "
                                "tumour nuclei are graded in Kadota", "Kadota"),
    lymphocyte_spacing_um=_fixed(7.4, "um", "lattice of a dense infiltrate", "ours"),
    fibroblast_radius_um=_fixed(2.6, "um", "of a circle as large as the spindle", "ours"),
    fibroblast_elongation=_fixed(3.2, "length / width", "spindle nuclei along the fibres", "ours"),
    fibroblast_spacing_um=_fixed(15, "um", "half of these places are taken", "ours"),
    red_cell_radius_um=_fixed(2.75, "um", "about 6 um across in fixed tissue; the scale of a tile "
                              "was set by them", "ours"),
    red_cell_spacing_um=_fixed(6.6, "um", "in a pool of blood", "ours"),
    macrophage_radius_um=_fixed(3.6, "um", "nucleus; 7.2 um across, Crapo has 8.3", "Crapo"),
    macrophage_elongation=_fixed(1.2, "length / width", "of the nucleus", "ours"),
    macrophage_body=_fixed(2.1, "factor", "cell over nucleus", "ours"),
    torn_share=_fixed(0.3, "share", "of tumour tiles, with the specimen's edge or a cleft", "ours"),
)


# --- lung without tumour --------------------------------------------------------------------------

BENIGN = SimpleNamespace(
    share={"aerated": _fixed(0.45, "share", "open alveoli with thin septa", "ours"),
           "scarred": _fixed(0.18, "share", "septa widened by collagen", "ours"),
           "inflamed": _fixed(0.19, "share", "septa with lymphocytes", "ours"),
           "collapsed": _fixed(0.18, "share", "small alveoli: a biopsy out of air", "ours")},
    alveolus_um={"collapsed": _uniform(28, 46, "um", "distance of alveolar centres", "ours"),
                 "other": _uniform(55, 105, "um", "the same; half of Ochs's 200 um, so that a tile "
                                   "holds several", "Ochs")},
    alveolus_warp_um=_uniform(5, 12, "um", "how far walls leave straight lines", "ours"),
    alveolus_merged=_uniform(0.15, 0.5, "share", "of alveoli open into a neighbour", "ours"),
    septum_um={"aerated": _uniform(3, 7.5, "um", "half the thickness of a septum", "ours"),
               "scarred": _uniform(10, 30, "um", "the same", "ours"),
               "inflamed": _uniform(5, 14, "um", "the same", "ours"),
               "collapsed": _uniform(5, 9, "um", "the same", "ours")},
    nucleus_radius_um=_fixed(2.8, "um", "of a circle as large; thin slices of septal nuclei, so "
                             "below Crapo's caliper diameters", "Crapo"),
    nucleus_spacing_um=_fixed(8.4, "um", "lattice of septal nuclei", "ours"),
    nucleus_taken={"scarred": _fixed(0.3, "share", "of the lattice's places", "ours"),
                   "other": _fixed(0.45, "share", "the same", "ours")},
    nucleus_elongation=_fixed(1.6, "length / width", "of septal nuclei", "ours"),
    nucleus_spread=_fixed(0.2, "log sd", "size of septal nuclei", "ours"),
    pneumocyte_radius_um=_uniform(3.2, 4.6, "um", "type II pneumocytes on septa", "Crapo"),
    pneumocyte_spacing_um=_uniform(8, 30, "um", "along the septa", "ours"),
    pneumocyte_reactive=_beta(0.6, 2.2, "share", "of their places taken: crowded where reactive",
                              "WHO"),
    pneumocyte_nucleolus=_fixed(0.25, "share", "of them show a nucleolus", "ours"),
    lymphocytes={"inflamed": _uniform(0.35, 0.7, "share", "of the septa infiltrated", "ours"),
                 "other": _fixed(0.15, "share", "the same; none where aerated", "ours")},
    macrophage_spacing_um=_fixed(26, "um", "lattice in the air spaces", "ours"),
    macrophages=_beta(0.7, 5, "share", "of its places taken", "ours"),
    blood_in_air=_beta(1, 4, "share", "of air spaces with red cells", "ours"),
    capillaries=_uniform(0.2, 0.65, "share", "of septa with red cells", "ours"),
    capillary_spacing_um=_fixed(5.8, "um", "red cells in septa", "ours"),
    stroma_eosin=_uniform(0.35, 0.7, "optical density", "of connective tissue", "ours"),
    debris=_beta(1, 5, "degree", "protein in air spaces", "ours"),
)


# --- adenocarcinoma -------------------------------------------------------------------------------

ADENOCARCINOMA = SimpleNamespace(
    weight={"acinar": _fixed(1.0, "weight", "glands", "WHO"),
            "lepidic": _fixed(0.6, "weight", "along alveolar walls; also stands for papillary",
                              "WHO"),
            "solid": _fixed(1.1, "weight", "times (1.1 - differentiation)", "IASLC")},
    nucleus_radius_um=_fixed(5.3, "um", "times nuclear_size: 10.6 um across, within one deviation "
                             "of ND's 12.8 +- 2.2", "ND"),
    nucleus_size_of_tile=_lognormal(1.0, 0.07, "factor", "tiles of one tumour differ", "ours"),
    nucleus_elongation=_uniform(1.05, 1.7, "length / width", "of a tile's tumour nuclei, upright "
                                "in glands", "ours"),
    nucleus_density=_fixed(1.35, "optical density", "haematoxylin of tumour nuclei", "ours"),
    nucleolus_least=_fixed(0.15, "share", "of nuclei with a nucleolus, plus ...", "WHO"),
    nucleolus_more=_fixed(0.7, "share", "... times nucleoli: prominent nucleoli are usual", "WHO"),
    gland_um={"acinar": _uniform(55, 100, "um", "distance of centres", "ours"),
              "lepidic": _uniform(60, 120, "um", "the same", "ours"),
              "solid": _uniform(80, 190, "um", "the same, of nests", "ours")},
    stroma_um={"acinar": _uniform(2, 14, "um", "half the thickness of stroma between", "ours"),
               "lepidic": _uniform(2, 7, "um", "the same: thin as septa", "ours"),
               "solid": _uniform(2, 12, "um", "the same", "ours")},
    height={"acinar": _uniform(2.3, 3.8, "nuclear radii", "of the epithelium", "ours"),
            "lepidic": _uniform(1.6, 2.8, "nuclear radii", "the same: lower", "ours")},
    warp_um=_uniform(4, 10, "um", "how far walls leave straight lines", "ours"),
    merged=_uniform(0.05, 0.4, "share", "of glands that open into a neighbour", "ours"),
    row_spacing=_fixed(1.85, "nuclear radii", "of nuclei along the basement membrane: density of "
                       "glands", "ours"),
    row_taken={"first": _fixed(0.95, "share", "of places in the lowest row", "ours"),
               "other": _fixed(0.7, "share", "in the rows above: pseudostratified", "ours")},
    solid_spacing=_uniform(2.3, 3.1, "nuclear radii", "distance of nuclei in solid nests", "ours"),
    small_lumen=_uniform(1.6, 3.5, "threshold", "of lumina in solid nests, above noise of unit "
                         "deviation", "ours"),
    stroma_eosin=_uniform(0.35, 0.7, "optical density", "of connective tissue", "ours"),
    cytoplasm_eosin=_uniform(0.25, 0.55, "optical density", "of tumour cells", "ours"),
    cytoplasm_haematoxylin=_uniform(0.12, 0.38, "optical density", "of tumour cells", "ours"),
    border_eosin=_normal(-0.02, 0.05, "optical density", "at cell borders, at most 0.04", "ours"),
    keratinised=_fixed(0.02, "share", "of single dense pink cells", "ours"),
    vacuoles=_beta(1.2, 3, "degree", "mucin in the cytoplasm", "WHO"),
    debris=_beta(1, 3, "degree", "mucus and debris in lumina", "WHO"),
)


# --- squamous cell carcinoma ----------------------------------------------------------------------

SQUAMOUS = SimpleNamespace(
    nucleus_radius_um=_fixed(5.1, "um", "times nuclear_size: 10.2 um across, see adenocarcinoma",
                             "ND"),
    nucleus_size_of_tile=_lognormal(1.0, 0.07, "factor", "tiles of one tumour differ", "ours"),
    nucleus_elongation=_uniform(1.05, 1.8, "length / width", "polygonal to spindle cells", "WHO"),
    nucleus_density=_fixed(1.35, "optical density", "haematoxylin of tumour nuclei", "ours"),
    nucleolus_least=_fixed(0.1, "share", "of nuclei with a nucleolus, plus ...", "WHO"),
    nucleolus_more=_fixed(0.6, "share", "... times nucleoli: fewer than in adenocarcinoma", "WHO"),
    nucleus_spacing=_uniform(2.4, 3.7, "nuclear radii", "distance of nuclei: density of nests",
                             "ours"),
    nest_um=_uniform(70, 190, "um", "distance of the centres of nests", "ours"),
    warp_um=_uniform(5, 12, "um", "how far walls leave straight lines", "ours"),
    merged=_uniform(0.1, 0.5, "share", "of nests joined to a neighbour", "ours"),
    stroma_um=_uniform(2, 14, "um", "half the thickness of stroma between nests", "ours"),
    necrosis=_uniform(1.7, 4.0, "threshold", "of holes in nests, above noise of unit deviation",
                      "ours"),
    cleft_share=_fixed(0.35, "share", "of tiles with retraction clefts around nests", "ours"),
    cleft_um=_uniform(1, 5, "um", "half the width of a cleft", "ours"),
    keratin_of_tile=_uniform(0.3, 1.6, "factor", "on the patient's keratin", "ours"),
    pearl_spacing_um=_uniform(55, 95, "um", "lattice of keratin pearls, taken at keratin's share",
                              "WHO"),
    pearl_radius_um=_uniform(9, 26, "um", "of a pearl; nuclei flatten around it and vanish inside",
                             "WHO"),
    stroma_eosin=_uniform(0.35, 0.7, "optical density", "of connective tissue", "ours"),
    cytoplasm_eosin=_uniform(0.28, 0.62, "optical density", "of tumour cells", "ours"),
    cytoplasm_haematoxylin=_uniform(0.12, 0.38, "optical density", "of tumour cells", "ours"),
    border_eosin=_normal(-0.05, 0.06, "optical density", "at most 0.04; pale borders stand for "
                         "intercellular bridges", "WHO"),
    keratinised_least=_fixed(0.02, "share", "of single keratinised cells, plus ...", "WHO"),
    keratinised_more=_fixed(0.15, "share", "... times keratin", "WHO"),
    vacuoles=_beta(1, 4, "degree", "in the cytoplasm", "ours"),
    debris=_beta(1, 3, "degree", "in holes and clefts", "ours"),
)

GROUPS = {"patient": PATIENT, "slide": SLIDE, "cells": CELLS, "lung_n": BENIGN,
          "lung_aca": ADENOCARCINOMA, "lung_scc": SQUAMOUS}


def named_parameters() -> list[tuple[str, str, Parameter]]:
    """Every parameter with its group and its name: ("lung_n", "septum_um: aerated", ...)."""
    found = []
    for group, parameters in GROUPS.items():
        for name, entry in vars(parameters).items():
            kinds = entry.items() if isinstance(entry, dict) else [("", entry)]
            found += [(group, f"{name}: {kind}" if kind else name, one) for kind, one in kinds]
    return found


def markdown_table() -> str:
    """The parameters as one Markdown table, as docs/simulated_tissue.md shows it."""
    rows = ["| of | parameter | drawn | unit | meaning | source |",
            "| --- | --- | --- | --- | --- | --- |"]
    rows += [f"| {group} | `{name}` | {one.in_words()} | {one.unit} | {one.meaning} "
             f"| {one.source} |" for group, name, one in named_parameters()]
    return "\n".join(rows) + "\n"
