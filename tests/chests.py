"""Slices of chests that are alike but for their vessels, and what is done to copies of them."""

from __future__ import annotations

import cv2
import numpy as np

SIZE = 256


def chest(patient: int) -> np.ndarray:
    """uint8 [S, S, 1]: one body, ribs, heart and spine of all, vessels of the patient's own."""
    def oval(image, at, axes, grey, turned=0):
        cv2.ellipse(image, at, axes, turned, 0, 360, grey, -1, cv2.LINE_AA)

    image = np.zeros((SIZE, SIZE), np.uint8)
    oval(image, (128, 128), (118, 92), 150)
    for side in (-1, 1):
        oval(image, (128 + side * 55, 125), (45, 70), 20)
        for number in range(7):
            angle = np.radians(-75 + 25 * number)
            at = 128 + side * int(104 * np.cos(angle)), 128 + int(80 * np.sin(angle))
            oval(image, at, (9, 3), 250, int(np.degrees(angle)) * side + 90)
    oval(image, (128, 95), (30, 34), 160)
    oval(image, (128, 185), (15, 12), 240)
    rng = np.random.default_rng(patient)
    for side in (-1, 1):
        for _ in range(40):
            at = (128 + side * int(rng.uniform(30, 85)), int(rng.uniform(75, 175)))
            oval(image, at, (int(rng.integers(1, 5)), 1), int(rng.integers(90, 170)),
                 int(rng.integers(180)))
    noisy = cv2.GaussianBlur(image, (0, 0), 0.7) + np.random.default_rng(99).normal(
        0, 4, image.shape)
    return np.uint8(np.clip(noisy, 0, 255))[..., None]


def turned(image, degrees=10):
    matrix = cv2.getRotationMatrix2D(((SIZE - 1) / 2,) * 2, degrees, 1)
    return cv2.warpAffine(image, matrix, (SIZE, SIZE), flags=cv2.INTER_CUBIC)[..., None]


def compressed(image):
    held = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 50])[1]
    return cv2.imdecode(held, cv2.IMREAD_GRAYSCALE)[..., None]


def cropped(image):
    return cv2.resize(image[20:-20, 20:-20], (SIZE, SIZE))[..., None]


CHANGES = {
    "turned": turned, "re-encoded": compressed,
    "mirrored": lambda image: compressed(np.ascontiguousarray(image[:, ::-1])),
    "a quarter turn, mirrored": lambda image: np.ascontiguousarray(np.rot90(image)[:, ::-1]),
    "cropped": cropped,
    "darker": lambda image: np.uint8(image * 0.7),
}
