"""Event clips: each event of a run of inference, cut out of its video as an MP4."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stage1.common.files import holds
from stage1.data.from_videos import VideoCutter
from stage1.inference.outputs import OutputFiles
from stage1.review.config import ClipsConfig as ClipsConfig
from vidshard.shards import layout
from vidshard.util import console
from vidshard.util.errors import FormatError, UserError
from vidshard.util.text import counted


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipsResult:
    """Result: the files that were written, and why others were not."""

    folder: Path
    paths: tuple[Path, ...]
    failures: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        return console.EXIT_PARTLY_FAILED if self.failures else console.EXIT_OK

    @property
    def summary(self) -> str:
        return f"✓ {counted(len(self.paths), 'event clip')} saved to: {self.folder}"


def clip_name(source: str, number: int) -> str:
    """Return the file name of the clip of an event, by its number in its video.

    >>> clip_name("Fighting/a.mp4", 0)
    'Fighting__a-event-001.mp4'
    """
    return f"{layout.video_key(source)}-event-{number + 1:03d}.mp4"


@holds(lambda config: config.folder)
def write_clips(config: ClipsConfig) -> ClipsResult:
    """Cut every event of the run in ``config.folder``, with ``config.seconds`` before and after it.

    Raises UserError if the folder contains no finished run.
    """
    files = OutputFiles(folder=config.folder)
    files.check_finished()
    try:
        videos = json.loads(files.events.read_bytes())["videos"]
    except (OSError, ValueError, KeyError) as error:
        raise FormatError(f"{files.events} cannot be read ({error!r}); run `stage1 infer` again") from error
    paths: list[Path] = []
    failures: list[str] = []
    with console.Progress("Cutting", total=sum(len(video["events"]) for video in videos), unit="event") as progress:
        for video in videos:
            if not video["events"]:
                continue
            try:
                cutter = VideoCutter(Path(video["video_path"]))
            except UserError as error:
                failures.append(str(error))
                progress.advance(len(video["events"]))
                continue
            for number, event in enumerate(video["events"]):
                target = files.clips / clip_name(video["source"], number)
                try:
                    cutter.cut(
                        target,
                        max(0.0, event["start_seconds"] - config.seconds),
                        event["end_seconds"] + config.seconds,
                        draw=functools.partial(burn_in, video) if config.burn_in else None,
                    )
                    paths.append(target)
                except UserError as error:
                    failures.append(str(error))
                progress.advance()
    return ClipsResult(folder=files.clips, paths=tuple(paths), failures=tuple(failures))


def burn_in(video: Mapping[str, Any], frame: npt.NDArray[np.uint8], seconds: float) -> npt.NDArray[np.uint8]:
    """Draw the time and the score of its second into the bottom left corner of a frame, uint8 (H, W, 3)."""
    from PIL import Image, ImageDraw, ImageFont

    scores = video["scores"]
    score = scores[min(int(seconds), len(scores) - 1)]
    text = f"{console.time_text(seconds)}   {'no score' if score is None else f'{100 * score:.0f} %'}"
    image = Image.fromarray(frame)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=max(10, frame.shape[0] // 14))
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    margin = max(2, frame.shape[0] // 80)
    y = frame.shape[0] - (bottom - top) - 3 * margin
    draw.rectangle((0, y - margin, right - left + 4 * margin, frame.shape[0]), fill=(0, 0, 0))
    draw.text((2 * margin - left, y - top), text, fill=(255, 255, 255), font=font)
    return np.asarray(image)
