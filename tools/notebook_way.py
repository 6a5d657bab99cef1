"""Video reading as in the notebook: the baseline of the benchmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt


def read_clip(path: Path, *, num_frames: int, frame_size: int) -> npt.NDArray[np.uint8]:
    """Read the whole video with OpenCV, keep every frame, then take and resize a few: uint8 (T, H, W, 3), RGB."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        there, frame = capture.read()
        if not there:
            break
        frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    capture.release()
    chosen = np.linspace(0, len(frames) - 1, num_frames).astype(int)
    return np.stack([cv2.resize(frames[i], (frame_size, frame_size)) for i in chosen])
