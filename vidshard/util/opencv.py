"""OpenCV, imported on first use."""

from __future__ import annotations

from typing import Any

from vidshard.util.errors import UserError


def load_cv2() -> Any:
    """OpenCV, imported on first use. Raises UserError that says what to install when it cannot be."""
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            f"OpenCV cannot be imported ({error}); on a machine without a screen: "
            "pip uninstall opencv-python && pip install opencv-python-headless"
        ) from error
    cv2.setNumThreads(1)  # one process a core: more threads only get in each other's way
    return cv2
