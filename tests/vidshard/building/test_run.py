"""The builder on tiny videos: what it writes, that the result is reproducible, and that it resumes after any
interruption."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builds import SameProcess
from tiny_videos import damage_pictures, make_broken_video, make_tiny_video, make_tiny_videos
from vidshard import SamplingConfig
from vidshard.building import join as shard_joiner
from vidshard.building import run as builder
from vidshard.building import worker
from vidshard.building.run import BuildConfig, build
from vidshard.execution.base import Task, TaskResult
from vidshard.shards import layout, manifest, writer
from vidshard.util.errors import FormatError, UserError
from vidshard.util.lock import hold_lock
from vidshard.video import sampling as clips
from vidshard.video.decoders.decord_decoder import DecordDecoder
from vidshard.video.packets import VideoError

VIDEOS = {
    "Abuse/Abuse001.mp4": 70,
    "Abuse/Abuse002.mp4": 33,
    "Fighting/odd name, 'é'.mp4": 16,
    "NormalVideos/n1.mp4": 40,
    "NormalVideos/short.mp4": 5,
}
# 8×64×64: 98,304 bytes a clip, so 10 clips a shard of 1 MiB.
SMALL: dict[str, Any] = {
    "sampling": SamplingConfig(mode="dense", clip_len=8, stride=4),
    "frame_size": 64,
    "shard_mb": 1,
    "workers": 1,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_tiny_videos(tmp_path_factory.mktemp("source"), VIDEOS)
    make_broken_video(root / "NormalVideos" / "broken.mp4")
    (root / "Abuse" / "notes.txt").write_text("no video")
    return root


@pytest.fixture(scope="module")
def finished(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the set without interruption."""
    out = tmp_path_factory.mktemp("out") / "Train"
    build(BuildConfig(source=source, out=out, **SMALL))
    return out


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_every_file_found_is_ok_failed_or_skipped(finished: Path) -> None:
    about = manifest.read_manifest(finished)
    assert about.videos == {"found": 7, "ok": 5, "failed": 1, "skipped": 1}
    assert {(f.path, f.outcome, f.reason) for f in about.failures} == {
        ("Abuse/notes.txt", "skipped", "not_a_video_name"),
        ("NormalVideos/broken.mp4", "failed", "not_a_video"),
    }
    lines = (finished / "failures.csv").read_text().splitlines()
    assert lines[0] == "path,outcome,reason,message"
    assert len(lines) == 3


def test_the_finished_folder_holds_the_set_and_nothing_else(finished: Path) -> None:
    names = [path.name for path in sorted(finished.iterdir())]
    shards = [shard.name for shard in manifest.read_manifest(finished).shards]
    assert names == sorted(["README.md", "failures.csv", "index.npz", "manifest.json", *shards])
    assert len(shards) > 3
    log = finished.with_name("Train.log")
    assert "finished in" in (log / "build.log").read_text()


def test_the_log_folder_remembers_where_the_videos_are(finished: Path, source: Path) -> None:
    about = json.loads((finished.with_name("Train.log") / "source.json").read_text())
    opened = manifest.open_shards(finished)
    assert Path(about["root"]) == source
    assert all((Path(about["root"]) / path).is_file() for path in opened.index.paths)
    assert set(about["seconds_per_video"]) == set(VIDEOS)


def test_records_and_index_agree(finished: Path) -> None:
    opened = manifest.open_shards(finished)
    index, row = opened.index, 0
    for number, shard in enumerate(opened.manifest.shards):
        data = opened.shard_path(number).read_bytes()
        assert hashlib.sha256(data).hexdigest() == shard.sha256
        with open(opened.shard_path(number), "rb") as file:
            for key, payload, record, offset in layout.read_shard(file):
                clip, video = index.clips[row], int(index.clips[row]["video"])
                assert key == index.key(row)
                assert (clip["shard"], clip["offset"], clip["size"]) == (number, offset, len(payload))
                assert (record.path, record.clip_index) == (index.paths[video], clip["clip"])
                assert (record.class_name, record.label) == (index.class_name(video), clip["label"])
                assert record.num_frames == index.videos[video]["num_frames"] == VIDEOS[record.path]
                assert record.decoder == index.decoder(video) == DecordDecoder().name
                assert record.timestamps_seconds == pytest.approx([i / 10 for i in record.frame_indices])
                assert ("repeated" in record.flags) == (record.repeated_frames > 0) == (record.num_frames < 8)
                row += 1
    assert row == len(index) == opened.manifest.num_clips
    assert {(c.name, c.label, c.videos) for c in opened.manifest.classes} == {
        ("Abuse", 1, 2), ("Fighting", 1, 1), ("NormalVideos", 0, 2),
    }  # fmt: skip
    assert sum(c.clips for c in opened.manifest.classes) == row


def test_overlapping_windows_hold_the_same_frames(finished: Path) -> None:
    """Clips that share frames get them from one pass over the video."""
    with open(finished / "shard-000000.tar", "rb") as file:
        found = {
            record.clip_index: layout.decode_clip(
                payload, layout.ClipShape(num_frames=8, height=64, width=64), where=key
            )
            for key, payload, record, _ in layout.read_shard(file)
        }
    assert np.array_equal(found[0][4:], found[1][:4])
    assert not np.array_equal(found[0][0], found[1][0])


@pytest.mark.parametrize("workers", [2, 4])
def test_the_bytes_do_not_depend_on_workers_order_or_place(
    workers: int, source: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in sorted((path for path in source.rglob("*") if path.is_file()), reverse=True):  # another folder order
        copy = tmp_path / "copy" / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    build(BuildConfig(source=Path("copy"), out=tmp_path / "elsewhere", **{**SMALL, "workers": workers}))
    assert digests(tmp_path / "elsewhere") == digests(finished)


def test_uniform_clips_of_another_shape(source: Path, tmp_path: Path) -> None:
    sampling = SamplingConfig(mode="uniform", clip_len=4, clips_per_video=3)
    report = build(BuildConfig(source=source, out=tmp_path / "out", sampling=sampling, frame_size=32, workers=2))
    assert report.num_clips == 15
    assert report.sets[0].manifest.clip_shape.thwc == (4, 32, 32, 3)
    assert report.sets[0].manifest.settings["clips_per_video"] == 3


def test_a_root_of_splits_gives_a_folder_for_each(tmp_path: Path) -> None:
    classes = ("Abuse", "NormalVideos")
    make_tiny_videos(tmp_path / "s", {f"{split}/{c}/a.mp4": 9 for split in ("Train", "Test") for c in classes})
    report = build(BuildConfig(source=tmp_path / "s", out=tmp_path / "shards", workers=1))
    assert [(one.folder, one.manifest.split) for one in report.sets] == [
        (tmp_path / "shards" / "Test", "Test"),
        (tmp_path / "shards" / "Train", "Train"),
    ]
    assert report.videos == {"found": 4, "ok": 4, "failed": 0, "skipped": 0}


@pytest.mark.parametrize("given", [".", "./", "../Train", "../Train/"])
def test_the_default_output_is_named_after_the_source(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny_videos(tmp_path / "Train", {"Abuse/a.mp4": 9, "NormalVideos/a.mp4": 9})
    monkeypatch.chdir(tmp_path / "Train")
    config = BuildConfig(source=Path(given))
    assert builder.output_folders(config, builder.folders.find_sources(config.source)) == [Path("shards/Train")]


def test_a_single_file_has_no_label(tmp_path: Path) -> None:
    make_tiny_video(tmp_path / "one.mp4", 20)
    report = build(BuildConfig(source=tmp_path / "one.mp4", out=tmp_path / "out"))
    assert manifest.open_shards(tmp_path / "out").index.clips["label"].tolist() == [-1]
    assert report.sets[0].manifest.classes[0].name is None


def test_limit_takes_the_classes_in_turn_and_lists_the_rest(source: Path, tmp_path: Path) -> None:
    report = build(BuildConfig(source=source, out=tmp_path / "out", limit=3, **SMALL))
    assert {c.name for c in report.sets[0].manifest.classes} == {"Abuse", "Fighting", "NormalVideos"}
    assert report.videos == {"found": 7, "ok": 3, "failed": 0, "skipped": 4}


# ----- going on -------------------------------------------------------------------------------------------------------


def test_a_finished_build_is_unchanged(source: Path, finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    report = build(BuildConfig(source=source, out=finished, **SMALL))
    assert report.sets[0].already_finished
    assert report.sets[0].decoded_clips == 0
    assert {path: path.stat().st_mtime_ns for path in finished.iterdir()} == before


@contextlib.contextmanager
def failing_join(monkeypatch: pytest.MonkeyPatch, shard: int, error: BaseException) -> Iterator[None]:
    """While the block runs, writing this shard raises `error`."""
    join = writer.join_fragments

    def fail(path: Path, parts: Any, **options: Any) -> Any:
        if path.name == layout.shard_name(shard):
            raise error
        return join(path, parts, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shard_joiner.writer, "join_fragments", fail)
        yield


def test_a_full_disk_stops_the_build_and_the_next_one_resumes(
    caplog: pytest.LogCaptureFixture, source: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = BuildConfig(source=source, out=tmp_path / "out", **SMALL)
    full = OSError(errno.ENOSPC, "No space left on device", "shard-000002.tar")
    with failing_join(monkeypatch, 2, full), pytest.raises(OSError, match="No space left"):
        build(config)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not (tmp_path / "out" / "shard-000002.tar").exists()
    with pytest.raises(UserError, match="its build did not finish: run the same build command again"):
        manifest.open_shards(tmp_path / "out")
    with caplog.at_level("INFO", logger="vidshard"):
        report = build(config)
    assert any(line.startswith("resuming:") for line in caplog.messages)
    assert report.sets[0].decoded_clips < report.num_clips
    assert digests(tmp_path / "out") == digests(finished)


def test_a_video_that_spans_shards_is_ok_or_failed_never_half(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Abuse001 fills shard 0 and reaches into shard 1. It becomes damaged after shard 0 was committed."""
    copy = make_tiny_videos(tmp_path / "source", VIDEOS)
    config = BuildConfig(source=copy, out=tmp_path / "out", **SMALL)
    with failing_join(monkeypatch, 1, OSError(errno.EIO, "broken")), pytest.raises(OSError, match="broken"):
        build(config)
    assert (tmp_path / "out" / ".work" / "shard-000000.json").exists()
    video = copy / "Abuse" / "Abuse001.mp4"
    status, data = video.stat(), bytearray(video.read_bytes())
    start = data.index(b"mdat") + 4
    data[start:] = bytes(len(data) - start)
    video.write_bytes(data)
    os.utime(video, ns=(status.st_atime_ns, status.st_mtime_ns))
    report = build(config)
    about = report.sets[0].manifest
    assert [failure.path for failure in about.failures] == ["Abuse/Abuse001.mp4"]
    assert about.shards[0].samples == 0
    opened = manifest.open_shards(tmp_path / "out")
    assert "Abuse/Abuse001.mp4" not in opened.index.paths
    counts = [len(clips.VideoClips(VIDEOS[path], config.sampling)) for path in sorted(VIDEOS)]
    whole = builder.shard_plan.plan_chunks(counts, shard_clips=10)  # of the others nothing moved
    assert [s.samples for s in about.shards] == [
        sum(u.num_clips for u in whole.chunks if u.shard == n and u.video != 0) for n in range(whole.num_shards)
    ]


RUN = """
import sys
from pathlib import Path
from vidshard import BuildConfig, SamplingConfig, build
if __name__ == "__main__":
    sampling = SamplingConfig(mode="dense", clip_len=8, stride=4)
    places = dict(source=Path({source!r}), out=Path({out!r}))
    build(BuildConfig(**places, sampling=sampling, frame_size=64, shard_mb=1, workers=1))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_killed_build_resumes_to_the_same_bytes(name: str, source: Path, finished: Path, tmp_path: Path) -> None:
    out, script = tmp_path / "out", tmp_path / "run.py"
    script.write_text(RUN.format(source=str(source), out=str(out)))
    process = subprocess.Popen([sys.executable, script], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (out / "shard-000000.tar").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(getattr(signal, name))
    assert process.wait(timeout=60) != 0 or (out / "manifest.json").exists()
    build(BuildConfig(source=source, out=out, **SMALL))
    assert digests(out) == digests(finished)


# ----- bad use --------------------------------------------------------------------------------------------------------


def test_another_build_in_the_output_is_refused_with_the_difference(source: Path, finished: Path) -> None:
    other = {**SMALL, "sampling": SamplingConfig(mode="dense", clip_len=4, stride=4), "frame_size": 32}
    with pytest.raises(UserError, match=r"settings \(clip_len 8, now 4; frame_size 64, now 32\); choose another `out`"):
        build(BuildConfig(source=source, out=finished, **other))


def test_new_and_deleted_videos_are_refused_by_name(tmp_path: Path) -> None:
    source = make_tiny_videos(tmp_path / "source", {"Abuse/a.mp4": 9, "NormalVideos/a.mp4": 9})
    config = BuildConfig(source=source, out=tmp_path / "out", workers=1)
    build(config)
    (source / "Abuse" / "a.mp4").rename(source / "Abuse" / "b.mp4")
    with pytest.raises(UserError, match=r"other videos \(1 new: Abuse/b.mp4; 1 gone: Abuse/a.mp4\)"):
        build(config)


def test_an_unfinished_build_with_other_settings_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with failing_join(monkeypatch, 0, OSError(errno.EIO, "broken")), pytest.raises(OSError, match="broken"):
        build(BuildConfig(source=source, out=out, **SMALL))
    with pytest.raises(UserError, match=r"unfinished build with different settings \(shard_mb 1, now 2\)"):
        build(BuildConfig(source=source, out=out, **{**SMALL, "shard_mb": 2}))


def test_a_folder_with_other_files_is_refused_as_output(source: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").touch()
    with pytest.raises(UserError, match=r"contains other files \(thesis.docx\); choose another `out`"):
        build(BuildConfig(source=source, out=tmp_path, **SMALL))


def test_a_second_builder_learns_who_holds_the_folder(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / ".work").mkdir(parents=True)
    told = f"is being built by process {os.getpid()} on .*; wait for it"
    with hold_lock(tmp_path / "out" / ".work" / "lock", what="out"), pytest.raises(UserError, match=told):
        build(BuildConfig(source=source, out=tmp_path / "out", **SMALL))
    assert not (tmp_path / "out" / ".work" / "lock").exists()


def test_too_little_disk_is_reported_before_decoding(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1_000_000

    monkeypatch.setattr(builder.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(UserError, match=r"not enough free disk space for .*: 38 clips need 4.* MB, 1.0 MB are free"):
        build(BuildConfig(source=source, out=tmp_path / "out", **SMALL))


def test_a_build_that_gives_no_clip_is_an_error_with_its_reason(tmp_path: Path) -> None:
    make_broken_video(tmp_path / "source" / "Abuse" / "a.mp4")
    make_broken_video(tmp_path / "source" / "NormalVideos" / "a.mp4")
    with pytest.raises(UserError, match=r"none of the 2 videos .* \(2 times\) the reason is not_a_video: "):
        build(BuildConfig(source=tmp_path / "source", out=tmp_path / "out", workers=1))
    assert not (tmp_path / "out").exists()
    assert len((tmp_path / "out.log" / "failures.csv").read_text().splitlines()) == 3


def test_a_video_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    source = make_tiny_videos(tmp_path / "source", {"a.mp4": 9})
    with pytest.raises(UserError, match=r"\(1 times\) the reason is timeout: not done within 0 seconds"):
        build(BuildConfig(source=source, out=tmp_path / "out", timeout_seconds=1e-6))


def test_an_unknown_format_version_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text(json.dumps({"format": "vidshard", "format_version": 99}))
    with pytest.raises(FormatError, match="has format version 99, but this vidshard reads only versions 1 and 2"):
        build(BuildConfig(source=source, out=tmp_path / "out", **SMALL))


@pytest.mark.parametrize("name", ["workers", "frame_size", "limit", "shard_mb", "timeout_seconds"])
def test_options_are_checked_at_birth(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is 0, expected more than 0"):
        BuildConfig(source=Path("x"), **{name: 0})


def test_max_failures_stops_and_the_same_command_resumes(tmp_path: Path) -> None:
    source = make_tiny_videos(tmp_path / "source", {"Abuse/a.mp4": 40, "NormalVideos/a.mp4": 40})
    for name in "bcd":
        make_tiny_video(source / "Abuse" / f"{name}.mp4", 40)
        damage_pictures(source / "Abuse" / f"{name}.mp4")
    config = BuildConfig(source=source, out=tmp_path / "out", max_failures=1, **SMALL)
    with pytest.raises(UserError, match=r"2 videos of .* failed, more than `max_failures` 1 allows, .* of damaged"):
        build(config)
    assert len((tmp_path / "out.log" / "failures.csv").read_text().splitlines()) == 3
    assert build(config).videos == {"found": 5, "ok": 2, "failed": 3, "skipped": 0}  # only one more failed
    build(BuildConfig(source=source, out=tmp_path / "all", **SMALL))
    assert digests(tmp_path / "out") == digests(tmp_path / "all")


def test_max_failures_counts_files_that_are_not_videos(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 video of .* more than `max_failures` 0 .* of not_a_video"):
        build(BuildConfig(source=source, out=tmp_path / "out", max_failures=0, **SMALL))


def test_fps_annotations_and_resize_reach_the_shards(tmp_path: Path) -> None:
    source = make_tiny_videos(tmp_path / "source", {"Abuse/a.mp4": 40, "Abuse/b.mp4": 40, "NormalVideos/n.mp4": 16})
    (tmp_path / "events.txt").write_text("a.mp4 Abuse 10 25 -1 -1\nb.mp4 Abuse 50 60 -1 -1\n")
    sampling = SamplingConfig(mode="annotated", clip_len=4, fps=5)
    places: dict[str, Any] = {"source": source, "workers": 1, "sampling": sampling, "frame_size": 32}
    with pytest.raises(UserError, match="annotated sampling needs a list of events: pass `annotations` FILE"):
        build(BuildConfig(out=tmp_path / "out", **places))
    places["annotations"] = tmp_path / "events.txt"
    report = build(BuildConfig(out=tmp_path / "out", resize="letterbox", **places))
    assert [(f.path, f.reason) for f in report.sets[0].manifest.failures] == [("Abuse/b.mp4", "no_event")]
    with open(tmp_path / "out" / "shard-000000.tar", "rb") as file:
        samples = list(layout.read_shard(file))
    assert [(record.path, record.frame_indices) for _, _, record, _ in samples] == [
        ("Abuse/a.mp4", (10, 12, 14, 16)),
        ("Abuse/a.mp4", (18, 20, 22, 24)),
        ("NormalVideos/n.mp4", (0, 2, 4, 6)),
        ("NormalVideos/n.mp4", (8, 10, 12, 14)),
    ]
    assert {record.frame_gap_seconds for _, _, record, _ in samples} == {0.2}
    clip = layout.decode_clip(samples[0][1], report.sets[0].manifest.clip_shape, where="")
    assert not clip[:, :4].any()  # 64×48 is 32×24 with borders
    assert not clip[:, 28:].any()
    assert clip[:, 4:28].mean() > 50


@pytest.mark.parametrize("decoder", ["decord", "opencv", "pyav"])
def test_crop_is_the_middle_of_every_decoder(decoder: str, tmp_path: Path) -> None:
    make_tiny_video(tmp_path / "a.mp4", 8, size=(80, 40))
    common: dict[str, Any] = {"source": tmp_path / "a.mp4", "workers": 1, "decoder": decoder}
    common["sampling"] = SamplingConfig(clip_len=2)
    build(BuildConfig(out=tmp_path / "crop", resize="crop", frame_size=40, **common))
    build(BuildConfig(out=tmp_path / "big", frame_size=80, **common))
    crop, big = (
        next(layout.read_shard(open(tmp_path / name / "shard-000000.tar", "rb")))[1]  # noqa: SIM115
        for name in ("crop", "big")
    )
    middle = np.frombuffer(big[-2 * 80 * 80 * 3 :], np.uint8).reshape(2, 40, 2, 80, 3).mean(2)[:, :, 20:60]
    assert np.abs(np.frombuffer(crop[-2 * 40 * 40 * 3 :], np.uint8).reshape(2, 40, 40, 3) - middle).mean() < 8


def test_a_dry_run_predicts_the_build_and_writes_nothing(
    source: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "_SAMPLE_SECONDS", 0.5)
    (one,) = builder.dry_run(BuildConfig(source=source, out=tmp_path / "out", **SMALL))
    built = manifest.read_manifest(finished)
    assert (one.videos, one.unreadable, one.clips, one.shards) == (6, 1, built.num_clips, len(built.shards))
    assert one.hours == pytest.approx(sum(VIDEOS.values()) / 10 / 3600)
    assert one.bytes == pytest.approx(sum(shard.bytes for shard in built.shards), rel=0.02)
    assert one.seconds is not None
    assert one.seconds > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", [None, Path("sets"), Path("Abuse/sets")])
def test_an_output_inside_the_source_is_not_a_part_of_it(
    out: Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_tiny_videos(tmp_path / "Train", {"Abuse/a.mp4": 9, "NormalVideos/n.mp4": 9})
    monkeypatch.chdir(source)
    first = build(BuildConfig(source=Path("."), out=out, **SMALL))
    assert first.folders == [out or Path("shards/Train")]
    assert first.videos == {"found": 2, "ok": 2, "failed": 0, "skipped": 0}
    again = build(BuildConfig(source=Path("."), out=out, **SMALL))
    assert again.sets[0].already_finished


@pytest.mark.parametrize("out", [None, Path("sets"), Path("Train/sets")])
def test_an_output_inside_a_root_of_splits(out: Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = {f"{split}/{name}": 9 for split in ("Train", "Test") for name in ("Abuse/a.mp4", "NormalVideos/n.mp4")}
    root = make_tiny_videos(tmp_path / "data", videos)
    monkeypatch.chdir(root)
    first = build(BuildConfig(source=Path("."), out=out, **SMALL))
    assert first.videos == {"found": 4, "ok": 4, "failed": 0, "skipped": 0}
    again = build(BuildConfig(source=Path("."), out=out, **SMALL))
    assert all(one.already_finished for one in again.sets)
    with pytest.raises(UserError, match=r"the output Test contains other files \(Abuse, NormalVideos\)"):
        build(BuildConfig(source=Path("."), out=Path("."), **SMALL))


def test_one_long_video_may_use_all_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_tiny_videos(tmp_path / "source", {"a.mp4": 60})
    monkeypatch.setattr(builder.execution, "available_cpus", lambda: 7)
    config = BuildConfig(source=source, out=tmp_path / "out", **{**SMALL, "workers": None})
    (estimate,) = builder.dry_run(config)
    assert estimate.workers == 7


def test_a_video_that_fails_in_several_tasks_is_one_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_tasks: list[int] = []
    decode = DecordDecoder.frames

    class AllAtOnce(SameProcess):
        """As several workers do: the next task of a video has begun before the first has failed."""

        def run(self, function: Callable[[Any], Any], tasks: Iterable[Task]) -> Iterator[TaskResult]:
            tasks = list(tasks)
            num_tasks.append(len(tasks))
            yield from super().run(function, tasks)

    def frames(self: DecordDecoder, path: Path, *args: Any, **options: Any) -> Iterator[Any]:
        if path.name == "good.mp4":
            return decode(self, path, *args, **options)
        raise VideoError("damaged", "no picture")

    monkeypatch.setattr("vidshard.execution.local.Supervisor", AllAtOnce)
    monkeypatch.setattr(DecordDecoder, "frames", frames)
    source = make_tiny_videos(tmp_path / "source", {"a.mp4": 70, "good.mp4": 8})
    config = BuildConfig(source=source, out=tmp_path / "one", max_failures=1, decoder="decord", **SMALL)
    assert [failure.path for failure in build(config).sets[0].manifest.failures] == ["a.mp4"]
    assert num_tasks == [2, 3]  # probes, then a.mp4 in two tasks
    make_tiny_video(source / "b.mp4", 70, seed=1)
    with pytest.raises(UserError, match=r"2 videos of .* failed"):
        build(dataclasses.replace(config, out=tmp_path / "two"))


def test_paths_may_be_given_as_text(tmp_path: Path) -> None:
    source: Any = str(make_tiny_videos(tmp_path / "source", {"a.mp4": 9}))
    out: Any = str(tmp_path / "out")
    assert build(BuildConfig(source=source, out=out, **SMALL)).folders == [tmp_path / "out"]


def test_a_run_stopped_while_reading_packets_resumes_there(
    source: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = BuildConfig(source=source, out=tmp_path / "Train", **SMALL)
    monkeypatch.setattr(builder, "_SAVE_SECONDS", 0.0)
    asked: list[int] = []
    stop_after = 3

    class Stopped(SameProcess):
        def run(self, function: Callable[[Any], Any], tasks: Iterable[Task]) -> Iterator[TaskResult]:
            return super().run(function, self.until_stopped(tasks) if function is worker.probe_video else tasks)

        def until_stopped(self, tasks: Iterable[Task]) -> Iterator[Task]:
            for task in tasks:
                if len(asked) == stop_after:
                    raise KeyboardInterrupt
                asked.append(int(task.argument.table_path.stem))
                yield task

    monkeypatch.setattr("vidshard.execution.local.Supervisor", Stopped)
    with pytest.raises(KeyboardInterrupt):
        build(config)
    kept = json.loads((config.out / ".work" / "some-probes.json").read_text())  # type: ignore[operator]
    first, asked, stop_after = asked, [], 99
    build(config)
    assert kept
    assert set(asked).isdisjoint(int(number) for number in kept)
    assert set(asked) | set(first) == set(range(6))
    assert digests(config.out) == digests(finished)  # type: ignore[arg-type]
