"""What became of every file: failures.csv, the index, and last the manifest."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidshard import atomic, manifest, shard_format
from vidshard.decode_task import Rejected, VideoFacts
from vidshard.manifest import Failure, Manifest
from vidshard.shard_format import ClipShape
from vidshard.sources import Source
from vidshard.work_folder import ShardRecord


def write_ledger(
    out: Path,
    source: Source,
    *,
    clip_shape: ClipShape,
    settings: dict[str, Any],
    packages: dict[str, str],
    facts: Sequence[VideoFacts | Rejected],
    records: Sequence[ShardRecord],
) -> Manifest:
    """Write failures.csv, the index and, last, the manifest into `out`: the set is finished then.

    `facts`: one for each video of `source`; `records`: one for each shard. Some video must have become clips.
    """
    failures = all_failures(source, facts, records)
    index = make_index(source, facts, records)
    index_data = index.to_bytes()
    about = Manifest(
        split=source.split,
        clip_shape=clip_shape,
        codec="raw",
        settings=settings,
        packages=packages,
        classes=_class_counts(source, index),
        videos_found=len(source.videos) + len(source.skipped),
        videos_ok=len(index.videos),
        failures=failures,
        shards=tuple(
            manifest.Shard(name=shard_format.shard_name(n), bytes=r.bytes, samples=len(r.rows), sha256=r.sha256)
            for n, r in enumerate(records)
        ),
        index_bytes=len(index_data),
        index_sha256=hashlib.sha256(index_data).hexdigest(),
    )
    found, *ended = about.videos.values()
    assert found == sum(ended), f"the ledger does not close: {about.videos}"
    write_failures(out / shard_format.FAILURES_NAME, failures)
    manifest.write_index_and_manifest(out, about, index_data)
    return about


def all_failures(
    source: Source, facts: Sequence[VideoFacts | Rejected], records: Sequence[ShardRecord]
) -> tuple[Failure, ...]:
    """Every file found that became no sample, sorted by path."""
    failed = {n: (fact.reason, fact.message) for n, fact in enumerate(facts) if isinstance(fact, Rejected)}
    for record in records:
        failed.update(record.failures)
    rows = [
        Failure(path=source.videos[n].path, outcome="failed", reason=reason, message=message)
        for n, (reason, message) in failed.items()
    ]
    return tuple(sorted([*rows, *source.skipped], key=lambda failure: path_bytes(failure.path)))


def make_index(
    source: Source, facts: Sequence[VideoFacts | Rejected], records: Sequence[ShardRecord]
) -> manifest.Index:
    rows = np.concatenate([record.rows for record in records])
    decoder_of = {video: name for record in records for video, name in record.decoders.items()}
    numbers = sorted(decoder_of)  # of the videos that became clips
    rows["video"] = np.searchsorted(np.array(numbers), rows["video"])
    videos = [source.videos[number] for number in numbers]
    classes, groups, used = (
        sorted({name for name in names if name is not None}, key=path_bytes)
        for names in (
            [video.class_name for video in videos],
            [video.source_group for video in videos],
            list(decoder_of.values()),
        )
    )
    splits = [source.split] if source.split is not None else []
    tables = [{name: row for row, name in enumerate(names)} for names in (classes, splits, groups, used)]
    table = np.zeros(len(videos), manifest.VIDEO_ROW)
    for row, (number, video) in enumerate(zip(numbers, videos, strict=True)):
        fact = facts[number]
        assert isinstance(fact, VideoFacts)
        names = (video.class_name, source.split, video.source_group, decoder_of[number])
        columns = [-1 if name is None else of[name] for of, name in zip(tables, names, strict=True)]
        table[row] = (*columns, fact.num_frames, fact.width, fact.height, fact.fps)
    return manifest.Index(
        clips=rows,
        videos=table,
        paths=[video.path for video in videos],
        classes=classes,
        splits=splits,
        source_groups=groups,
        decoders=used,
    )


def _class_counts(source: Source, index: manifest.Index) -> tuple[manifest.ClassCount, ...]:
    labels = {video.class_name: video.label for video in source.videos}
    class_of = [index.class_name(row) for row in range(len(index.videos))]
    num_videos = Counter(class_of)
    clips_of_video = np.bincount(index.clips["video"], minlength=len(class_of))
    num_clips: Counter[str | None] = Counter()
    for name, count in zip(class_of, clips_of_video.tolist(), strict=True):
        num_clips[name] += count
    return tuple(
        manifest.ClassCount(name=name, label=labels[name], videos=num_videos[name], clips=num_clips[name])
        for name in sorted(num_videos, key=lambda name: path_bytes(name or ""))
    )


def write_failures(path: Path, failures: Sequence[Failure]) -> None:
    """Write failures.csv: one line for each file found that became no sample."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in dataclasses.fields(Failure)])
    writer.writerows(dataclasses.astuple(failure) for failure in failures)
    atomic.write_text(path, text.getvalue())


def path_bytes(path: str) -> bytes:
    """What paths are sorted by: the same order on every system."""
    return path.encode("utf-8", "surrogateescape")
