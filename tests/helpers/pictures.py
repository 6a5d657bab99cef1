"""Content of PNG files, for tests of plots."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgb

Picture = npt.NDArray[np.uint8]


def read_picture(path: Path) -> Picture:
    """Decode a PNG to uint8 (H, W, 3)."""
    picture: Picture = (matplotlib.image.imread(path)[..., :3] * 255).round().astype(np.uint8)
    return picture


def panel(picture: Picture, row: int, column: int, grid: tuple[int, int]) -> Picture:
    """Cut a picture into a grid of (rows, columns) and return one cell."""
    (height, width), (rows, columns) = picture.shape[:2], grid
    return picture[height * row // rows : height * (row + 1) // rows, width * column // columns :][
        :, : width // columns
    ]


def count_pixels(picture: Picture, colour: str | tuple[int, int, int]) -> int:
    """Count the pixels of a colour, such as ``"#4c78a8"`` or (200, 0, 0)."""
    rgb = np.array(colour if isinstance(colour, tuple) else [round(255 * part) for part in to_rgb(colour)])
    return int((np.abs(picture.astype(int) - rgb).max(axis=2) <= 2).sum())
