"""Final steps of a build: failures.csv, the index and, last, the manifest."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidshard.planning.build_state import BuildState, ShardRecord
from vidshard.planning.settings import SOURCES, clip_shape, source_digests
from vidshard.planning.shard_plan import Plan
from vidshard.planning.video_metadata import Probe, VideoFailure, VideoMetadata
from vidshard.shards import card, layout, manifest, set_writer
from vidshard.shards.manifest import Failure, Manifest
from vidshard.shards.set_writer import VideoEntry
from vidshard.shards.writer import Rows
from vidshard.sources.folders import Source
from vidshard.util import atomic
from vidshard.util.errors import UserError
from vidshard.util.text import path_bytes


@dataclass(frozen=True, kw_only=True)
class CompleteBuild:
    """A build with all of its shards."""

    source: Source
    fingerprint: dict[str, Any]
    probes: Sequence[Probe]  # one per video of `source`
    plan: Plan
    records: Sequence[ShardRecord]  # one per shard
    read_rows: Callable[[int], Rows]  # of a shard; the column `video` is a number in `source.videos`


def finish_set(state: BuildState, built: CompleteBuild) -> Manifest:
    """Make a complete build a finished set, and delete the build state. Raises UserError if no video has clips."""
    if not any(record.num_clips for record in built.records):
        raise _refuse_empty(state, built)
    about = write_index(state.commit_path if state.staged else state.out, built)
    finish(state, about)
    state.remove_all_but_lock()
    return about


def write_index(folder: Path, built: CompleteBuild) -> Manifest:
    """Write the index of a build; return the manifest. At least one video must have clips."""
    source, probes, plan = built.source, built.probes, built.plan
    settings = built.fingerprint["settings"]
    failures = all_failures(built)
    failed = {failure.path for failure in failures if failure.outcome == "failed"}
    video_bytes = {path: num_bytes for path, num_bytes, *_ in built.fingerprint["videos"]}
    numbers, videos = _videos_with_clips(built)
    breaks = {source.videos[n].path: probe.breaks for n, probe in enumerate(probes) if isinstance(probe, VideoMetadata)}
    index = set_writer.write_index(
        folder / layout.index_name(len(plan.generations)),
        _row_blocks(built, numbers),
        sum(record.num_clips for record in built.records),
        videos,
    )
    return set_writer.make_manifest(
        index,
        videos,
        (
            manifest.Shard(name=layout.shard_name(n), bytes=r.bytes, samples=r.num_clips, sha256=r.sha256)
            for n, r in enumerate(built.records)
        ),
        split=source.split,
        clip_shape=clip_shape(settings),
        codec=settings["codec"],
        settings={**settings, SOURCES: source_digests(source, failed, video_bytes)},
        packages=built.fingerprint["packages"],
        failures=failures,
        videos_found=len(source.videos) + len(source.skipped),
        breaks={video.path: breaks[video.path] for video in videos if breaks[video.path]},
        extended=tuple(
            manifest.Extension(
                first_shard=first, failed=tuple(path for n in videos if (path := source.videos[n].path) in failed)
            )
            for first, videos in zip(plan.first_shards[1:], plan.generations[1:], strict=True)
        ),
    )


def _refuse_empty(state: BuildState, built: CompleteBuild) -> UserError:
    """Delete the shards of a build without clips; return the error. The log folder keeps the reasons."""
    failures = all_failures(built)
    path = manifest.log_folder(state.out) / layout.FAILURES_NAME
    write_failures(path, failures)
    for shard in range(len(built.records)):
        state.shard_path(shard).unlink()
    state.remove_all_but_lock()
    failed = [failure for failure in failures if failure.outcome == "failed"]
    reason, count = Counter(failure.reason for failure in failed).most_common(1)[0]
    message = next(failure.message for failure in failed if failure.reason == reason)
    return UserError(
        f"none of the {len(built.source.videos):,} videos of {built.source.root} could be decoded; most often "
        f"({count:,} times) the reason is {reason}: {message}; all reasons are in {path}"
    )


def finish(state: BuildState, about: Manifest) -> None:
    """Write failures.csv, the card and, last, the manifest, which finishes the set; the index is there."""
    if state.staged:
        before = manifest.read_manifest(state.out)
        if about == before:
            return  # nothing has changed
        for shard in set(about.shards) & set(before.shards):
            (state.commit_path / shard.name).unlink(missing_ok=True)
        card.write_card(state.commit_path, about)
        manifest.write_manifest(state.commit_path, about)
        commit(state)
    else:
        write_failures(state.out / layout.FAILURES_NAME, about.failures)
        card.write_card(state.out, about)
        manifest.write_manifest(state.out, about)


def commit(state: BuildState) -> None:
    """Apply a complete staged change to a finished set, or resume an interrupted one.

    If shards are only added, the old manifest describes a valid set until the new one replaces it. If some are
    replaced, there is no manifest in the meantime.
    """
    if not (state.commit_path / layout.MANIFEST_NAME).exists():
        return
    about = manifest.read_manifest(state.commit_path)
    if not card.is_replaceable(state.out):
        (state.commit_path / layout.CARD_NAME).unlink(missing_ok=True)
    staged = [path for path in sorted(state.commit_path.iterdir()) if path.name != layout.MANIFEST_NAME]
    if any((state.out / path.name).exists() for path in staged if path.name != layout.CARD_NAME):
        (state.out / layout.MANIFEST_NAME).unlink(missing_ok=True)
        atomic.sync_folder(state.out)
    for path in staged:
        os.replace(path, state.out / path.name)
    atomic.sync_folder(state.out)
    os.replace(state.commit_path / layout.MANIFEST_NAME, state.out / layout.MANIFEST_NAME)
    atomic.sync_folder(state.out)
    tidy(state.out, about)


def tidy(out: Path, about: Manifest) -> None:
    """Sync failures.csv with the manifest and delete files of the previous set."""
    failures = failures_csv(about.failures)
    path = out / layout.FAILURES_NAME
    if not path.exists() or path.read_bytes() != failures.encode("utf-8", "surrogateescape"):
        atomic.write_text(path, failures)
    named = {about.index_name, *(shard.name for shard in about.shards)}
    for entry in sorted(out.iterdir()):
        if layout.is_data_name(entry.name) and entry.name not in named:
            entry.unlink()


def all_failures(built: CompleteBuild) -> tuple[Failure, ...]:
    """Return every file found that has no samples, sorted by path."""
    failed = {n: probe for n, probe in enumerate(built.probes) if isinstance(probe, VideoFailure)}
    for record in built.records:
        failed.update(record.failures)
    rows = [failed_video(built.source.videos[n].path, failure) for n, failure in failed.items()]
    return tuple(sorted([*rows, *built.source.skipped], key=lambda failure: path_bytes(failure.path)))


def failed_video(path: str, failure: VideoFailure) -> Failure:
    return Failure(path=path, outcome="failed", reason=failure.reason, message=failure.message)


def _row_blocks(built: CompleteBuild, numbers: Sequence[int]) -> Iterator[Rows]:
    """Yield the rows of each shard; their videos are positions in `numbers`."""
    of_videos = np.array(numbers)
    for shard in range(len(built.records)):
        rows = built.read_rows(shard)
        rows["video"] = np.searchsorted(of_videos, rows["video"])
        yield rows


def _videos_with_clips(built: CompleteBuild) -> tuple[list[int], list[VideoEntry]]:
    """Return the videos with clips: their numbers, and their entries in the index."""
    decoder_of = {video: name for record in built.records for video, name in record.decoders.items()}
    numbers = sorted(decoder_of)
    entries = []
    for number in numbers:
        video, probe = built.source.videos[number], built.probes[number]
        assert isinstance(probe, VideoMetadata)
        entries.append(
            VideoEntry(
                path=video.path,
                class_name=video.class_name,
                label=video.label,
                split=built.source.split,
                recording=video.recording,
                decoder=decoder_of[number],
                num_frames=probe.num_frames,
                width=probe.width,
                height=probe.height,
                fps=probe.fps,
            )
        )
    return numbers, entries


def write_failures(path: Path, failures: Sequence[Failure]) -> None:
    """Write failures.csv: one row per file found that has no samples."""
    atomic.write_text(path, failures_csv(failures))


def failures_csv(failures: Sequence[Failure]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in dataclasses.fields(Failure)])
    in_quotes = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for failure in failures:
        row = dataclasses.astuple(failure)
        # A carriage return ends a line for every reader, but csv quotes only the end of line it writes itself.
        (in_quotes if any("\r" in field for field in row) else writer).writerow(row)
    return text.getvalue()
