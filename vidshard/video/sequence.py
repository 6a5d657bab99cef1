"""Sequential decoding of a whole video, to resolve doubts about its packets.

A message, a gap in the timestamps or an inconsistent table only raises suspicion. FFmpeg resolves it here: the frames
that it decodes in sequence are the frames of the video, and any error that it logs meanwhile means damage to the frames
that depend on the data. The rule is that of `ffmpeg -v error`: a video decoded without a message is intact.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vidshard.video import containers, damage
from vidshard.video.containers import UNSUPPORTED, VideoError

ZEROS = "one of its pictures contains a run of zeros"
ZERO_RUN = bytes(64)  # H.264 and HEVC never contain three zero bytes in a row


@dataclasses.dataclass
class SequentialDecoding:
    """Result of sequential decoding: N frames in presentation order."""

    times: list[int | None] = dataclasses.field(default_factory=list)  # [N] in units of the stream's time base
    keyframes: list[int] = dataclasses.field(default_factory=list)  # frame indices
    # Frame index → FFmpeg's message about that frame or one it depends on.
    damage: dict[int, str] = dataclasses.field(default_factory=dict)
    num_packets: int = 0
    num_lost: int = 0  # packets that could not be decoded
    loss: str = ""  # FFmpeg's message about the first of them, or why reading ended early

    @property
    def num_frames(self) -> int:
        return len(self.times)


def decode_in_sequence(
    path: Path, container_format: str, stream_index: int, *, max_packets: int | None = None, edit_list: bool = True
) -> SequentialDecoding:
    """Decode all packets of a stream, or the first `max_packets`; without `edit_list`, hidden frames as well.

    Raises VideoError `unsupported_by_decoder` if FFmpeg has no decoder for the codec.
    """
    import av

    with (
        containers.openable_name(path) as name,
        containers.open_container(name, container_format, edit_list=edit_list) as container,
        damage.ffmpeg_messages() as messages,
    ):
        stream = container.streams[stream_index]
        stream.codec_context.thread_count = 1
        recorder = _Recorder(stream, messages)
        try:
            for packet in _packets(container, stream, recorder):
                if packet.size:
                    recorder.found.num_packets += 1
                recorder.decode(packet)
                if max_packets is not None and recorder.found.num_packets >= max_packets:
                    break
        except av.error.DecoderNotFoundError as error:
            raise VideoError(UNSUPPORTED, f"FFmpeg has no decoder for {recorder.codec}") from error
        return recorder.found


def _packets(container: Any, stream: Any, recorder: _Recorder) -> Iterator[Any]:
    import av

    try:
        yield from container.demux(stream)
    except av.error.DecoderNotFoundError:
        raise
    except (av.error.FFmpegError, OSError, ValueError) as error:
        recorder.lose(f"reading it ended early: {containers.plain_text(error)}")


def length_bytes(stream: Any) -> int:
    """Return the size in bytes of the length fields in an H.264 or HEVC stream; 0 if it uses start codes."""
    extradata = stream.codec_context.extradata or b""
    place = {"h264": 4, "hevc": 21}.get(stream.codec_context.name, len(extradata))
    return (extradata[place] & 3) + 1 if len(extradata) > place and extradata[0] == 1 else 0


def holds_zeros(codec: str, data: bytes, length_bytes: int) -> bool:
    """Return True if an H.264 or HEVC packet contains a run of zeros, which no encoder writes but decoders accept.

    Zeros at the end of a unit are padding. `length_bytes`: the result of `length_bytes`.

    >>> holds_zeros("h264", bytes.fromhex("00000060 65") + bytes(90) + bytes(range(1, 6)), 4)
    True
    >>> holds_zeros("h264", bytes.fromhex("00000060 65") + bytes(95) + bytes.fromhex("00000002 0910"), 4)
    False
    >>> holds_zeros("h264", bytes.fromhex("00000001 65") + bytes(95) + bytes.fromhex("00000001 0910"), 0)
    False
    """
    if codec not in ("h264", "hevc") or ZERO_RUN not in data:
        return False
    if not length_bytes:
        return re.search(ZERO_RUN + rb"\0*[^\0\1]", data) is not None
    place = 0
    while place + length_bytes < len(data):
        start = place + length_bytes
        place = start + int.from_bytes(data[place:start], "big")
        if ZERO_RUN in data[start:place].rstrip(b"\0"):
            return True
    return False


class _Recorder:
    """Recorder that decodes packets one by one and notes the frames and the messages about them."""

    def __init__(self, stream: Any, messages: damage.Messages) -> None:
        self.codec: str = stream.codec_context.codec.canonical_name
        self._length_bytes = length_bytes(stream)
        self.found = SequentialDecoding()
        self._messages = messages
        # The last message. It taints all following frames up to the first keyframe after the packet it was about, since
        # a decoder returns frames later than it receives their packets.
        self._fault: str | None = None
        self._fault_time: int | None = None

    def lose(self, why: str) -> None:
        self.found.num_lost += 1
        self.found.loss = self.found.loss or why

    def decode(self, packet: Any) -> None:
        import av

        frames = []
        try:
            frames = packet.decode()
        except av.error.DecoderNotFoundError:
            raise
        except (av.error.FFmpegError, ValueError) as error:
            self.lose(containers.plain_text(error))
            self._suspect(self.found.loss, packet)
        error_text = self._messages.first_error(self.codec)
        self._messages.forget()
        if error_text is not None:
            self._suspect(error_text, packet)
        elif holds_zeros(self.codec, bytes(packet), self._length_bytes):
            self._suspect(ZEROS, packet)
        for frame in frames:
            self._note(frame)

    def _suspect(self, fault: str, packet: Any) -> None:
        self._fault = fault
        self._fault_time = packet.pts if packet.pts is not None else packet.dts

    def _note(self, frame: Any) -> None:
        index, time = self.found.num_frames, frame.pts
        if frame.key_frame:
            self.found.keyframes.append(index)
            if self._fault_time is not None and time is not None and time > self._fault_time:
                self._fault = None
        if self._fault is not None:
            self.found.damage[index] = self._fault
        elif frame.is_corrupt:
            self.found.damage[index] = "FFmpeg marks it as corrupt"
        self.found.times.append(time)
