"""Messages about failed videos and incompatible libraries."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
from pathlib import PurePosixPath

from vidshard.building.fetched_video import NOT_DOWNLOADED
from vidshard.util.errors import UserError
from vidshard.video import decoders
from vidshard.video.decoders import Library
from vidshard.video.packets import DAMAGED, UNSUPPORTED

_RE_ENCODE = "re-encode it (ffmpeg -i IN -c:v libx264 OUT.mp4)"
# Reason → what to do, the end of each message.
ADVICE = {
    DAMAGED: "copy it again from its origin, or keep the readable clips, flagged, with `allow_damaged`",
    UNSUPPORTED: f"try another `decoder`, or {_RE_ENCODE}",
    NOT_DOWNLOADED: "check the store, then build with `retry_failed`",
    "unreadable": "check its permissions and its disk, then build with `retry_failed`",
    "not_a_regular_file": "replace it with the file itself, or delete it",
    "empty_file": "copy it again from its origin, or delete it",
    "not_a_video": "copy it again if it should be a video; otherwise move it out of SOURCE",
    "no_video_stream": "move it out of SOURCE",
    "unsupported_codec": _RE_ENCODE,
    "no_frames": "copy it again from its origin, or delete it",
    "too_large": "make it smaller or cut it into parts with ffmpeg",
    "no_event": "correct the file of `annotations`, or use another `sampling`",
    "timeout": "build with `retry_failed` and a larger `timeout_seconds`",
    "out_of_memory": "build with `retry_failed` and a larger `memory_mb`",
    "worker_lost": "build with `retry_failed`",
    "exited": "build with `retry_failed`",
    "unexpected_error": "report it, with the video if you can",
}
_OTHER_ADVICE = f"build with `retry_failed`; if it fails again, {_RE_ENCODE}"

# Escape sequences of terminals (colours, titles), which FFmpeg writes if it believes that its output is a terminal.
_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-_]?|\x9b[0-?]*[ -/]*[@-~]")
_CONTROL = re.compile(r"[\x00-\x20\x7f-\x9f]+")
_PATH = re.compile(
    r"""(?P<quote>['"])(?:/|[A-Za-z]:[\\/]).*?(?P=quote)|(?<![\w.:/])(?:/|[A-Za-z]:[\\/])[^\s'",;()<>|]+"""
)


def failure_message(reason: str, text: str, *, path: str, full_path: str = "") -> str:
    """Format `text` for failures.csv, with advice: one line, without escape sequences or absolute paths.

    `path`: path of the video relative to SOURCE; `full_path`: its absolute path. Other absolute paths are reduced to
    their last component; one with the suffix of the video is a temporary copy and becomes the name of the video.

    >>> failure_message("empty_file", "\\x1b[31m/tmp/xyz.mp4\\x1b[0m has 0 bytes", path="Abuse/a.mp4")
    'a.mp4 has 0 bytes; copy it again from its origin, or delete it'
    """
    video = PurePosixPath(path)

    def shortened(match: re.Match[str]) -> str:
        found = match.group().strip("'\"").rstrip(".:")
        name = re.split(r"[\\/]", found.rstrip("\\/"))[-1]
        is_video = found.startswith("/proc/self/fd/") or (video.suffix and name.endswith(video.suffix))
        return (video.name if is_video else name) + match.group().strip("'\"")[len(found) :]

    text = _CONTROL.sub(" ", _ESCAPE.sub("", text)).strip()
    if full_path:
        text = text.replace(full_path, video.name)
    text = _PATH.sub(shortened, text)
    text = text.rstrip(". ")
    has_command = re.search(r"`[^`]+ [^`]+`", text)  # it says what to do already
    return text if has_command else f"{text}; {ADVICE.get(reason, _OTHER_ADVICE)}"


def environment_error(error: Exception, trace: str, *, path: str) -> UserError | None:
    """Return an error that stops the build if a library is incompatible, or None if the video may be the cause.

    `trace`: the traceback; `path`: the path of the video.
    """
    kinds = (TypeError, ImportError, AttributeError, NameError)
    if not isinstance(error, kinds) or isinstance(error, UnboundLocalError) or "NoneType" in str(error):
        return None
    error_text = _CONTROL.sub(" ", f"{type(error).__name__}: {error}")
    library = _library(trace)
    if library is None:
        return UserError(
            f"vidshard does not work with the installed libraries: {error_text}, at {path}; build.log has more"
        )
    version = decoders.installed_version(library.distributions)
    return UserError(
        f"{library.title} {version} does not work with this vidshard: {error_text}, at {path}; {_install(library)}; "
        "if only this video causes it, move it out of SOURCE and report it"
    )


def _library(trace: str) -> Library | None:
    """Return the library that a traceback names last."""
    for line in reversed(trace.splitlines()):
        for library in decoders.LIBRARIES.values():
            if re.search(library.trace, line):
                return library
    return None


def _install(library: Library) -> str:
    """Return install instructions with the version range that the installed vidshard requires."""
    wanted = library.distributions[0]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found = [line.partition(";")[0].strip() for line in importlib.metadata.requires("vidshard") or ()]
        wanted = next((line for line in found if re.match(rf"{wanted}(-\w+|2)?\b", line)), wanted)
    return f"install a compatible version: pip install '{wanted}'"
