"""Changes to a finished set: retrying failed videos and adding new ones, both safe in a crash."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tiny_videos import damage_pictures, make_broken_video, make_tiny_video, make_tiny_videos
from vidshard import SamplingConfig
from vidshard.building import finish
from vidshard.building import join as shard_joiner
from vidshard.building.run import BuildConfig, build
from vidshard.planning import settings
from vidshard.shards import manifest, writer
from vidshard.util.errors import UserError

# 8×64×64: 98,304 bytes a clip, so 10 clips a shard of 1 MiB.
SMALL: dict[str, Any] = {
    "sampling": SamplingConfig(mode="dense", clip_len=8, stride=4),
    "frame_size": 64,
    "shard_mb": 1,
    "workers": 1,
}
VIDEOS = {"Abuse/a.mp4": 60, "Abuse/b.mp4": 30, "NormalVideos/m.mp4": 50, "NormalVideos/n.mp4": 30}


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def identity(path: Path) -> tuple[int, int]:
    """Differs when a file was written or replaced."""
    return path.stat().st_ino, path.stat().st_mtime_ns


def repair(source: Path, path: str) -> None:
    make_tiny_video(source / path, VIDEOS[path], seed=list(VIDEOS).index(path))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the set that results if no video fails."""
    root = tmp_path_factory.mktemp("whole")
    source = make_tiny_videos(root / "source", VIDEOS)
    build(BuildConfig(source=source, out=root / "out", **SMALL))
    return root / "out"


def test_breaks_are_known_of_videos_that_were_there_before(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    make_tiny_videos(source, {"NormalVideos/n.mp4": 30})
    make_tiny_video(source / "Abuse" / "a.mp4", 30, break_before=16)
    assert build(BuildConfig(source=source, out=out, **SMALL)).sets[0].manifest.breaks == {"Abuse/a.mp4": 1}
    make_tiny_video(source / "Abuse" / "b.mp4", 30, break_before=8)
    about = build(BuildConfig(source=source, out=out, extend=True, **SMALL)).sets[0].manifest
    assert about.breaks == {"Abuse/a.mp4": 1, "Abuse/b.mp4": 1}
    assert manifest.read_manifest(out) == about


# ----- retry ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [damage_pictures, make_broken_video])
def test_what_was_repaired_gives_the_set_as_if_it_never_failed(how: Any, whole: Path, tmp_path: Path) -> None:
    source = make_tiny_videos(tmp_path / "source", VIDEOS)
    how(source / "NormalVideos" / "m.mp4")
    config = BuildConfig(source=source, out=tmp_path / "out", **SMALL)
    assert build(config).videos["failed"] == 1
    kept = identity(tmp_path / "out" / "shard-000000.tar")
    repair(source, "NormalVideos/m.mp4")
    if how is make_broken_video:  # its size shows it
        with pytest.raises(UserError, match="other files where videos failed; try those again with `retry_failed`"):
            build(config)
    report = build(BuildConfig(source=source, out=tmp_path / "out", retry_failed=True, **SMALL))
    assert report.sets[0].decoded_clips == 12  # m.mp4 and nothing else
    assert digests(tmp_path / "out") == digests(whole)
    assert identity(tmp_path / "out" / "shard-000000.tar") == kept  # Abuse/a.mp4: not touched
    assert build(BuildConfig(source=source, out=tmp_path / "out", retry_failed=True, **SMALL)).sets[0].already_finished


def test_what_fails_again_changes_nothing(tmp_path: Path) -> None:
    source = make_tiny_videos(tmp_path / "source", VIDEOS)
    damage_pictures(source / "NormalVideos" / "m.mp4")
    build(BuildConfig(source=source, out=tmp_path / "out", **SMALL))
    before = {path: identity(path) for path in (tmp_path / "out").iterdir()}
    report = build(BuildConfig(source=source, out=tmp_path / "out", retry_failed=True, **SMALL))
    assert report.videos["failed"] == 1
    assert {path: identity(path) for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("how", [damage_pictures, make_broken_video])
def test_retry_in_an_unfinished_set(how: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_tiny_videos(tmp_path / "source", VIDEOS)
    how(source / "Abuse" / "b.mp4")
    config = BuildConfig(source=source, out=tmp_path / "out", **SMALL)
    with monkeypatch.context() as patch:
        fail_join(patch, "shard-000003.tar" if how is damage_pictures else "shard-000002.tar")
        with pytest.raises(OSError, match="broken"):
            build(config)
    repair(source, "Abuse/b.mp4")
    with pytest.raises(UserError, match=r"unfinished build with different videos \(1 changed: Abuse/b.mp4\)"):
        build(config)
    build(BuildConfig(source=source, out=tmp_path / "out", retry_failed=True, **SMALL))
    assert digests(tmp_path / "out") == digests(whole)


def test_retry_stops_for_good_videos_that_changed(tmp_path: Path) -> None:
    source = make_tiny_videos(tmp_path / "source", VIDEOS)
    damage_pictures(source / "NormalVideos" / "m.mp4")
    build(BuildConfig(source=source, out=tmp_path / "out", **SMALL))
    make_tiny_video(source / "Abuse" / "a.mp4", 61)
    with pytest.raises(UserError, match="other videos"):
        build(BuildConfig(source=source, out=tmp_path / "out", retry_failed=True, **SMALL))


# ----- extend ---------------------------------------------------------------------------------------------------------


def test_new_videos_go_into_new_shards(whole: Path, tmp_path: Path) -> None:
    source = make_tiny_videos(tmp_path / "source", VIDEOS)
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    before = {path.name: identity(path) for path in out.glob("shard-*")}
    extend = BuildConfig(source=source, out=out, extend=True, **SMALL)
    assert build(extend).sets[0].already_finished  # nothing new yet

    make_tiny_video(source / "Abuse" / "0.mp4", 40)  # the first one in the order of names
    make_tiny_video(source / "NormalVideos" / "0.mp4", 40)
    damage_pictures(source / "NormalVideos" / "0.mp4")
    with pytest.raises(UserError, match=r"2 new: .*; add the new ones with `extend`"):
        build(BuildConfig(source=source, out=out, **SMALL))
    report = build(extend)
    about = report.sets[0].manifest
    assert about.generation == 2
    assert about.extended == (manifest.Extension(first_shard=len(before), failed=("NormalVideos/0.mp4",)),)
    assert report.videos == {"found": 6, "ok": 5, "failed": 1, "skipped": 0}
    assert report.sets[0].decoded_clips == 9
    assert {name: identity(out / name) for name in before} == before
    opened = manifest.open_shards(out)
    assert opened.index.paths == sorted([*VIDEOS, "Abuse/0.mp4"])
    assert sorted({opened.index.key(row) for row in range(len(opened.index))}) == sorted(
        opened.index.key(row) for row in range(len(opened.index))
    )
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["README.md", "failures.csv", "index-000002.npz", "manifest.json", *(shard.name for shard in about.shards)]
    )
    assert build(BuildConfig(source=source, out=out, **SMALL)).sets[0].already_finished
    again = Path(shutil.copytree(whole, tmp_path / "again"))
    build(BuildConfig(source=source, out=again, extend=True, **{**SMALL, "workers": 2}))
    assert digests(again) == digests(out)

    # What failed in it can be tried again, and then all is as if it had not failed.
    make_tiny_video(source / "NormalVideos" / "0.mp4", 40)
    build(BuildConfig(source=source, out=out, retry_failed=True, **SMALL))
    shutil.rmtree(again)
    shutil.copytree(whole, again)
    build(BuildConfig(source=source, out=again, extend=True, **SMALL))
    assert digests(again) == digests(out)


def test_extend_refuses_anything_but_additions(whole: Path, tmp_path: Path) -> None:
    source = make_tiny_videos(tmp_path / "source", {**VIDEOS, "Abuse/c.mp4": 9})
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    with pytest.raises(UserError, match=r"clip_len 8, now 4"):
        build(BuildConfig(source=source, out=out, extend=True, frame_size=64, sampling=SamplingConfig(clip_len=4)))
    with pytest.raises(UserError, match="contains no finished set"):
        build(BuildConfig(source=source, out=tmp_path / "new", extend=True, **SMALL))
    with pytest.raises(UserError, match="extend cannot be combined with"):
        BuildConfig(source=source, extend=True, limit=3)
    (source / "Abuse" / "b.mp4").unlink()
    with pytest.raises(UserError, match=r"videos that are gone \(1 gone: Abuse/b.mp4\)"):
        build(BuildConfig(source=source, out=out, extend=True, **SMALL))
    make_tiny_video(source / "Abuse" / "b.mp4", 31)
    with pytest.raises(UserError, match="other videos"):
        build(BuildConfig(source=source, out=out, extend=True, **SMALL))
    assert digests(out) == digests(whole)


def test_other_packages_are_refused(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_tiny_videos(tmp_path / "source", {**VIDEOS, "Abuse/c.mp4": 9})
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    versions = settings.package_versions("raw")
    monkeypatch.setattr(settings, "package_versions", lambda codec: {**versions, "decord": "9"})
    with pytest.raises(UserError, match=r"built with different packages \(decord .*, now 9\)"):
        build(BuildConfig(source=source, out=out, extend=True, **SMALL))
    assert digests(out) == digests(whole)


@pytest.mark.parametrize(
    ("decoder", "before", "now", "is_refused"),
    [
        ("auto", {"decord": "0.6.0"}, {"decord2": "3.4.0"}, True),
        ("decord", {"decord2": "3.4.0"}, {"decord": "0.6.0"}, True),
        ("auto", {"decord": "3.4.0"}, {"decord2": "3.4.0"}, False),  # as manifests once named decord2
        ("opencv", {"decord": "0.6.0"}, {"decord2": "3.4.0"}, False),  # neither of them decoded it
    ],
)
def test_one_set_never_mixes_decord_and_decord2(
    decoder: str, before: Any, now: Any, is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_tiny_videos(tmp_path / "source", VIDEOS)
    options: dict[str, Any] = {"source": source, "out": tmp_path / "out", "decoder": decoder, **SMALL}
    monkeypatch.setattr(settings, "package_versions", lambda codec: before)
    build(BuildConfig(**options))
    make_tiny_video(source / "Abuse" / "c.mp4", 20)
    monkeypatch.setattr(settings, "package_versions", lambda codec: now)
    if is_refused:
        ((name, version),) = before.items()
        with pytest.raises(UserError, match=f"`pip uninstall decord decord2`, then `pip install {name}=={version}`"):
            build(BuildConfig(extend=True, **options))
    else:
        assert build(BuildConfig(extend=True, **options)).videos["ok"] == 5


# ----- crashes while it takes effect ----------------------------------------------------------------------------------


def fail_join(patch: pytest.MonkeyPatch, shard: str) -> None:
    join = writer.join_fragments

    def fail(path: Path, parts: Any, **options: Any) -> Any:
        if path.name == shard:
            raise OSError(errno.EIO, "broken")
        return join(path, parts, **options)

    patch.setattr(shard_joiner.writer, "join_fragments", fail)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["extend", "retry_failed"])
def test_a_crash_at_any_step_of_taking_effect(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_tiny_videos(tmp_path / "source", VIDEOS)
    damage_pictures(source / "NormalVideos" / "m.mp4")
    base = tmp_path / "base"
    build(BuildConfig(source=source, out=base, **SMALL))
    if change == "extend":
        make_tiny_video(source / "Abuse" / "c.mp4", 60)
    else:
        repair(source, "NormalVideos/m.mp4")
    options: dict[str, Any] = {"source": source, change: True, **SMALL}
    build(BuildConfig(out=Path(shutil.copytree(base, tmp_path / "expected")), **options))
    replace = os.replace
    step = 0
    while True:
        step += 1
        out = Path(shutil.copytree(base, tmp_path / f"out{step}"))
        moved = 0

        def crash(old: Any, new: Any, *, out: Path = out, step: int = step) -> None:
            nonlocal moved
            moved += Path(new).parent == out
            if moved == step:
                raise OSError(errno.EIO, "broken")
            replace(old, new)

        with monkeypatch.context() as patch:
            patch.setattr(finish.os, "replace", crash)
            try:
                build(BuildConfig(out=out, **options))
            except OSError:
                pass
            else:
                break
        if change == "extend":
            assert manifest.open_shards(out).manifest.generation in (1, 2)  # a valid set at every moment
        build(BuildConfig(out=out, **options))
        assert digests(out) == digests(tmp_path / "expected")
        assert not (out / ".work").exists()
    assert step > 3
