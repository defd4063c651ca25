"""Where features put images, in two dimensions: by PCA and by t-SNE, with the images on them.

t-SNE: van der Maaten and Hinton 2008 (JMLR 9:2579); it shows who is near whom, not how far apart.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from lungkit.data.png import three_channels

COMPONENTS = 50       # of PCA that t-SNE is given: van der Maaten and Hinton's 30, rounded up; ours
PERPLEXITY = 30       # scikit-learn's default; less where there are fewer than 91 images
PANEL_PX = 1170       # a side of a panel, without its margins
THUMBNAIL_PX = 40     # images that would hide another are dots
# Okabe and Ito 2008, as in the report's figures; what is flagged is framed in vermilion
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#8A8200", "#555555")
FLAGGED = "#D55E00"


def place(features: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """{"PCA", "t-SNE": float [N, 2]} of features float [N, D], N three or more."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    count = min(COMPONENTS, len(features) - 1, features.shape[1])
    reduced = PCA(count, svd_solver="full").fit_transform(features)
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    placed = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
    return {"PCA": reduced[:, :2], "t-SNE": placed}


def shown_whole(at: np.ndarray, first: np.ndarray, least: float) -> list[int]:
    """Which of the places float [N, 2] are images and not dots: none is nearer than `least` in both
    directions to one before it. first: bool [N], those that are looked at first.
    """
    kept: list[int] = []
    for i in np.argsort(~first, kind="stable"):
        if not kept or np.abs(at[kept] - at[i]).max(1).min() >= least:
            kept.append(int(i))
    return kept


def picture(placed: dict[str, np.ndarray], images: Sequence[np.ndarray], labels: Sequence[int],
            classes: Sequence[str], flagged: np.ndarray) -> bytes:
    """A PNG, a panel an embedding. images: N of uint8 [S, S, 3 or 1]; labels: in `classes`.

    flagged: bool [N]; these are images where others would be dots, framed and marked.
    """
    from matplotlib.figure import Figure  # not pyplot: no window, no state, no display needed

    figure = Figure(figsize=(16, 8.4), dpi=160, layout="constrained")
    for axes, (name, at) in zip(figure.subplots(1, len(placed)), placed.items()):
        low, high = at.min(0), at.max(0)
        at = (at - low) / np.maximum(high - low, 1e-12)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xticks=[], yticks=[])
        axes.set_title(name, fontsize=11, loc="left", color="#444444")
        for label, words in enumerate(classes):
            here = np.equal(labels, label)
            axes.scatter(*at[here].T, s=12, color=COLOURS[label % len(COLOURS)], label=words)
        for i in shown_whole(at, flagged, 1.06 * (THUMBNAIL_PX + 8) / PANEL_PX):
            colour = FLAGGED if flagged[i] else COLOURS[labels[i] % len(COLOURS)]
            _draw(axes, images[i], at[i], colour, 2.4 if flagged[i] else 1.2)
        axes.spines[:].set_color("#cccccc")
    figure.axes[0].legend(frameon=False, fontsize=10, ncols=len(classes), loc="upper center",
                          bbox_to_anchor=(0.5, -0.005))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw(axes, image: np.ndarray, at: np.ndarray, colour: str, width: float) -> None:
    """An image on the axes, framed in `colour`."""
    import cv2
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    small = cv2.resize(three_channels(image), (THUMBNAIL_PX,) * 2, interpolation=cv2.INTER_AREA)
    axes.add_artist(AnnotationBbox(
        OffsetImage(small, zoom=72 / 160), at, frameon=True, pad=0.1,
        bboxprops={"edgecolor": colour, "linewidth": width}))
