"""OpenCV, imported on first use."""

from __future__ import annotations

from typing import Any

from vidshard.util.errors import UserError


def load_cv2() -> Any:
    """Import OpenCV on first use. Raises UserError with install instructions if the import fails."""
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            f"OpenCV cannot be imported ({error}); on a machine without a screen: "
            "pip uninstall opencv-python && pip install opencv-python-headless"
        ) from error
    cv2.setNumThreads(1)  # there is one process per core: more threads would compete for them
    return cv2
