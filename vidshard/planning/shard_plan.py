"""Assignment of clips to shards, made before anything is decoded.

The plan depends only on the sorted videos, their numbers of clips and the shard size, not on workers or failures. So a
failed video makes its shards smaller but moves no other clip, and an interrupted build can resume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vidshard.shards.layout import TAR_BLOCK, ClipShape, npy_header, padded

# Estimated size of a clip's record, for the check of free disk space: names and paths, plus index and time per frame.
_RECORD_BYTES = 600
_CODEC_SHARE = {"raw": 1.0, "zstd": 0.5, "jpeg": 0.2}  # stored bytes per byte of pixels, on surveillance videos
_RECORD_BYTES_PER_FRAME = 20


MAX_SHARDS = 10_000  # of a set; larger sets have larger shards


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """A chunk of work: consecutive clips of one video that go into one shard."""

    video: int  # row of the sorted list of videos
    clip_start: int
    clip_stop: int
    shard: int

    @property
    def num_clips(self) -> int:
        return self.clip_stop - self.clip_start


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All chunks, in shard order and within a shard in the order of their samples."""

    chunks: tuple[Chunk, ...]
    num_shards: int
    generations: tuple[tuple[int, ...], ...] = ()  # video numbers of the first build and of each extension
    first_shards: tuple[int, ...] = ()  # first shard of each generation

    @property
    def num_clips(self) -> int:
        return sum(chunk.num_clips for chunk in self.chunks)


def clips_per_shard(shape: ClipShape, shard_mb: int) -> int:
    """Return how many clips fill a shard of `shard_mb` MiB of pixels; at least one.

    >>> clips_per_shard(ClipShape(num_frames=16, height=112, width=112), 64)
    111
    """
    return max(1, (shard_mb << 20) // shape.num_bytes)


def grown(shard_clips: int, num_clips: int) -> int:
    """Double the size of shards until a set of `num_clips` clips has at most MAX_SHARDS, which file systems can list.

    >>> grown(111, 1_110_000), grown(111, 1_110_001)
    (111, 222)
    """
    while num_clips > shard_clips * MAX_SHARDS:
        shard_clips *= 2
    return shard_clips


def plan_chunks(num_clips: Sequence[int], *, shard_clips: int) -> Plan:
    """Cut the clips of all videos, in order, into shards of `shard_clips` clips each.

    `num_clips`: clips of each video, in sorted order; 0 for unreadable videos. The plan has one entry per chunk, not
    per clip, so millions of clips are cheap.

    >>> for chunk in plan_chunks([3, 0, 4], shard_clips=5).chunks:
    ...     print(chunk.video, (chunk.clip_start, chunk.clip_stop), chunk.shard)
    0 (0, 3) 0
    2 (0, 2) 0
    2 (2, 4) 1
    """
    if shard_clips < 1:
        raise ValueError(f"shard_clips must be at least 1, got {shard_clips}")
    chunks: list[Chunk] = []
    position = 0  # number of the clip in the whole set
    for video, count in enumerate(num_clips):
        start = 0
        while start < count:
            shard, filled = divmod(position, shard_clips)
            stop = min(count, start + shard_clips - filled)
            chunks.append(Chunk(video=video, clip_start=start, clip_stop=stop, shard=shard))
            position += stop - start
            start = stop
    return Plan(chunks=tuple(chunks), num_shards=-(-position // shard_clips))


def plan_generations(
    num_clips: Sequence[int],
    generations: Sequence[Sequence[int]],
    *,
    shard_clips: int,
    finished_shards: Sequence[int] = (),
) -> Plan:
    """Plan a set to which videos were added: each generation starts a new shard, and large sets have larger shards.

    `generations`: the videos of each one, in sorted order. `finished_shards`: numbers of shards of the first
    generations, which are finished and not planned again.

    >>> for chunk in plan_generations([3, 1, 2], [[0, 2], [1]], shard_clips=4).chunks:
    ...     print(chunk.video, (chunk.clip_start, chunk.clip_stop), chunk.shard)
    0 (0, 3) 0
    2 (0, 1) 0
    2 (1, 2) 1
    1 (0, 1) 2
    """
    chunks: list[Chunk] = []
    first_shards: list[int] = []
    num_shards = total_clips = 0
    for number, videos in enumerate(generations):
        total_clips += sum(num_clips[video] for video in videos)
        first_shards.append(num_shards)
        if number < len(finished_shards):
            num_shards += finished_shards[number]
            continue
        size = grown(shard_clips, total_clips)
        plan = plan_chunks([num_clips[video] for video in videos], shard_clips=size)
        chunks += [replace(chunk, video=videos[chunk.video], shard=chunk.shard + num_shards) for chunk in plan.chunks]
        num_shards += plan.num_shards
    return Plan(
        chunks=tuple(chunks),
        num_shards=num_shards,
        generations=tuple(tuple(videos) for videos in generations),
        first_shards=tuple(first_shards),
    )


def group_chunks(chunks: Mapping[int, Chunk], *, max_clips: int) -> list[tuple[int, ...]]:
    """Group consecutive chunks of one video, up to `max_clips` clips, so that one decoder reads them in one pass.

    `chunks`: number in the plan → chunk. A single chunk may be larger. The grouping does not affect the shards.

    >>> chunks = dict(enumerate(plan_chunks([7, 2], shard_clips=2).chunks))
    >>> group_chunks(chunks, max_clips=4)
    [(0, 1), (2, 3), (4, 5)]
    """
    groups: list[list[int]] = []
    filled = 0
    for number, chunk in chunks.items():
        before = chunks[groups[-1][-1]] if groups else None
        continues = before is not None and (before.video, before.clip_stop) == (chunk.video, chunk.clip_start)
        if continues and filled + chunk.num_clips <= max_clips:
            groups[-1].append(number)
            filled += chunk.num_clips
        else:
            groups.append([number])
            filled = chunk.num_clips
    return [tuple(group) for group in groups]


def sample_bytes(shape: ClipShape, *, codec: str = "raw", label_member: bool = False) -> int:
    """Estimate the bytes of a sample in its shard: exact for a raw clip, approximate for the rest."""
    clip = TAR_BLOCK + padded(len(npy_header(shape)) + int(shape.num_bytes * _CODEC_SHARE[codec]))
    label = 2 * TAR_BLOCK if label_member else 0
    return clip + TAR_BLOCK + padded(_RECORD_BYTES + _RECORD_BYTES_PER_FRAME * shape.num_frames) + label


def needed_bytes(chunks: Sequence[Chunk], *, shard_clips: int, sample_bytes: int) -> int:
    """Return the peak disk space in bytes that decoding these chunks needs.

    Decoded fragments exist next to the shards until they are joined, and one shard at a time exists twice.
    """
    return (sum(chunk.num_clips for chunk in chunks) + shard_clips) * sample_bytes if chunks else 0


def share_shards(costs: Sequence[int], num_tasks: int) -> list[range]:
    """Divide shards among tasks in runs of consecutive shards, minimising the largest sum of `costs`.

    Runs are consecutive because a video may span shards: it is then read by one task, or by two at the border. `costs`:
    an integer per shard, such as milliseconds of video. Tasks beyond the number of shards get none.

    >>> share_shards([3, 1, 1, 1, 3, 3], 3)
    [range(0, 3), range(3, 5), range(5, 6)]
    >>> share_shards([5, 5], 3)
    [range(0, 1), range(1, 2), range(2, 2)]
    """
    low, high = max(costs, default=0), sum(costs)
    while low < high:  # find the smallest limit that `num_tasks` runs can keep
        middle = (low + high) // 2
        if len(_runs_below(costs, middle, num_tasks)) <= num_tasks:
            high = middle
        else:
            low = middle + 1
    runs = _runs_below(costs, high, num_tasks)
    return runs + [range(len(costs), len(costs))] * (num_tasks - len(runs))


def _runs_below(costs: Sequence[int], limit: int, num_tasks: int) -> list[range]:
    """Cut into runs whose sum is at most `limit`; earlier if a task would otherwise get nothing."""
    starts: list[int] = []
    filled = 0
    for shard, cost in enumerate(costs):
        if not starts or filled + cost > limit or len(costs) - shard <= num_tasks - len(starts):
            starts.append(shard)
            filled = 0
        filled += cost
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(costs)], strict=True)]


def shard_costs(plan: Plan, video_seconds: Sequence[float]) -> list[int]:
    """Estimate the cost of each shard: the milliseconds of video from which its clips are cut.

    `video_seconds`: one per video. A video with clips in several shards counts in each in proportion to its clips.

    >>> shard_costs(plan_chunks([3, 1], shard_clips=2), [6.0, 1.0])
    [4000, 3000]
    """
    clips_of_video: dict[int, int] = {}
    for chunk in plan.chunks:
        clips_of_video[chunk.video] = clips_of_video.get(chunk.video, 0) + chunk.num_clips
    costs = [0.0] * plan.num_shards
    for chunk in plan.chunks:
        costs[chunk.shard] += 1000 * video_seconds[chunk.video] * chunk.num_clips / clips_of_video[chunk.video]
    return [round(cost) for cost in costs]
