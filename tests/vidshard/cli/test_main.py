"""The `vidshard` command from the user's side: output, exit codes, and one clear line for incorrect use."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import vidshard.building.join
import vidshard.building.run
import vidshard.video.sampling
from tiny_videos import make_broken_video, make_tiny_video, make_tiny_videos
from vidshard.cli.main import main
from vidshard.video.decoders.decord_decoder import DecordDecoder

GOOD = {"Abuse/a.mp4": 20, "Fighting/f.mp4": 20, "NormalVideos/n.mp4": 20}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_tiny_videos(tmp_path / "Train", GOOD)


def check_error(result: Result, *expected: str) -> None:
    """Check for exit code 1 and an error with all of these words, without a traceback."""
    assert result.exit_code == 1, result.output
    for text in expected:
        assert text in result.stderr
    assert result.stderr.count("error: ") == 1
    assert "Traceback" not in result.output


# ----- all well -------------------------------------------------------------------------------------------------------


def test_build_inspect_and_build_again(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("build", "Train/", "--workers", 1)
    assert result.exit_code == 0, result.output
    assert "NormalVideos  0 normal" in result.stdout
    assert "Fighting      1 crime" in result.stdout
    assert f"✓ {Path('shards', 'Train')}" in result.stdout
    assert "videos: 3 found, 3 ok" in result.stdout
    assert "clips:  3 of 16×112×112 in 1 shard" in result.stdout

    about = json.loads(run("inspect", "shards/Train", "--json").stdout)
    assert about["videos"] == {"found": 3, "ok": 3, "failed": 0, "skipped": 0}
    assert about["clips"] == 3
    assert about["split"] == "Train"
    shown = run("inspect", "shards/Train")
    assert shown.exit_code == 0
    decoders = f"{DecordDecoder().name} (3)"
    for text in ("3 found, 3 ok", "Fighting", "64×48 (3)", decoders, "10 to 10 frames/s", "failures     none"):
        assert text in shown.stdout

    again = run("build", "Train")
    assert again.exit_code == 0
    assert "finished before, nothing to do" in again.stdout


def test_breaks_in_time_are_reported(source: Path, tmp_path: Path) -> None:
    make_tiny_video(source / "Abuse" / "a.mp4", 30, break_before=10)
    dense = run("build", source, "--out", tmp_path / "dense", "--sampling", "dense")
    assert "breaks: 1 video has long gaps, or jumps of the clock; no clip crosses one" in dense.stdout
    assert "breaks       1 in 1 video:" in run("inspect", tmp_path / "dense").stdout
    about = json.loads(run("inspect", tmp_path / "dense", "--json").stdout)
    assert (about["videos_with_breaks"], about["breaks"], about["clips"]) == (1, 1, 2 + 1 + 2 * 2)
    uniform = run("build", source, "--out", tmp_path / "uniform")
    assert "breaks: 1 video has long gaps, or jumps of the clock; uniform counts frames and" in uniform.stdout


def test_failed_videos_are_named_and_give_exit_code_2(source: Path, tmp_path: Path) -> None:
    make_broken_video(source / "Abuse" / "b.mp4")
    result = run("build", source, "--out", tmp_path / "out", "--workers", 1)
    assert result.exit_code == 2
    assert "videos: 4 found, 3 ok, 1 failed" in result.stdout
    assert "failed: Abuse/b.mp4: not_a_video: " in result.stdout
    assert f"all in {tmp_path / 'out' / 'failures.csv'}" in result.stdout
    assert "failed(not_a_video) (1)" in run("inspect", tmp_path / "out").stdout
    assert run("build", source, "--out", tmp_path / "out").exit_code == 2


def test_a_class_folder_is_asked_about_before_decoding(source: Path, tmp_path: Path) -> None:
    arguments = ("build", source / "Fighting", "--out", tmp_path / "out", "--workers", 1)
    check_error(run(*arguments), f"did you mean {source}?", "pass --yes")
    assert not (tmp_path / "out").exists()
    assert run(*arguments, "--yes").exit_code == 0


def test_shards_as_a_source_and_recordings_are_reported(source: Path, tmp_path: Path) -> None:
    rows = [{"file": f"Train/{path}", "source": "recording 1"} for path in GOOD]
    (tmp_path / "sources.json").write_text(json.dumps(rows))
    result = run("build", source, "--out", tmp_path / "out" / "Train", "--workers", 1)
    assert "sources.json was read: 3 of 3 videos are cut from 1 recording" in result.stdout
    check_error(run("build", tmp_path / "out"), "no video in", f"but finished shards ({tmp_path / 'out' / 'Train'})")
    check_error(run("inspect", tmp_path / "out"), f"but {tmp_path / 'out' / 'Train'} does: did you mean it?")
    (tmp_path / "sources.json").write_text('{"about": "something else"}')
    result = run("build", source, "--out", tmp_path / "again", "--workers", 1)
    assert result.exit_code == 0
    assert "WARNING: videos are not grouped by recording: " in result.stdout


def test_a_skipped_file_is_not_a_failure(source: Path, tmp_path: Path) -> None:
    (source / "Abuse" / "readme.txt").touch()
    result = run("build", source, "--out", tmp_path / "out", "--workers", 1)
    assert result.exit_code == 0
    assert "4 found, 3 ok, 1 skipped" in result.stdout


def test_skipped_files_are_counted_and_those_that_may_hide_videos_give_exit_code_2(
    source: Path, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    try:
        (source / "Arson").symlink_to(tmp_path / "outside", target_is_directory=True)
    except OSError as error:
        pytest.skip(f"no links here: {error.strerror}")
    (source / "Abuse" / "readme.txt").touch()
    result = run("build", source, "--out", tmp_path / "out", "--workers", 1)
    assert result.exit_code == 2, result.output
    assert "skipped: 1 link_outside_source, 1 not_a_video_name" in result.stdout


def test_dry_run(source: Path, tmp_path: Path) -> None:
    result = run("build", source, "--out", tmp_path / "out", "--workers", 1, "--dry-run")
    assert result.exit_code == 0, result.output
    for text in (
        "nothing written",
        "videos: 3, 0.00 hours",
        "clips:  3 in 1 shard, about 1.8 MB",
        "with 1 worker",
    ):
        assert text in result.stdout
    assert not (tmp_path / "out").exists()


def test_version() -> None:
    assert run("--version").stdout.strip().endswith(vidshard.__version__)


# ----- bad use --------------------------------------------------------------------------------------------------------


def test_a_missing_folder(tmp_path: Path) -> None:
    check_error(run("build", tmp_path / "nowhere"), "no folder or file", "nowhere", "expected SOURCE/<Class>/*.mp4")


def test_no_video_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "Abuse").mkdir()
    check_error(run("build", tmp_path), str(tmp_path), ".mp4")


def test_a_folder_of_frames(tmp_path: Path) -> None:
    (tmp_path / "Abuse").mkdir()
    (tmp_path / "Abuse" / "frame_0001.png").touch()
    check_error(run("build", tmp_path), "picture")


@pytest.mark.parametrize(
    ("videos", "expected"),
    [
        ({"Abuse/a.mp4": 9}, "no class is normal"),
        ({"NormalVideos/a.mp4": 9}, "no class is a crime"),
        ({"NormalVideos/a.mp4": 9, "Juggling/a.mp4": 9}, "not a class name of UCF-Crime: Juggling"),
    ],
)
def test_doubtful_labels_stop_with_the_table(videos: dict[str, int], expected: str, tmp_path: Path) -> None:
    source = make_tiny_videos(tmp_path / "source", videos)
    check_error(run("build", source, "--out", tmp_path / "out"), expected, "--yes", "--normal", "class", "videos")
    assert not (tmp_path / "out").exists()
    assert run("build", source, "--out", tmp_path / "out", "--yes", "--workers", 1).exit_code == 0


def test_normal_names_the_normal_class(tmp_path: Path) -> None:
    source = make_tiny_videos(tmp_path / "source", {"Quiet/a.mp4": 9, "Abuse/a.mp4": 9})
    out = tmp_path / "out"
    check_error(run("build", source, "--out", out, "--normal", "Silent"), "--normal Silent", "Abuse, Quiet")
    result = run("build", source, "--out", out, "--normal", "Quiet", "--workers", 1)
    assert result.exit_code == 0
    assert "Quiet  0 normal" in result.stdout


def test_an_output_that_holds_another_build(source: Path, tmp_path: Path) -> None:
    assert run("build", source, "--out", tmp_path / "out", "--workers", 1).exit_code == 0
    result = run("build", source, "--out", tmp_path / "out", "--clip-len", 8)
    check_error(result, "contains a different build", "clip_len 16, now 8", "choose another --out, or delete")


def test_a_full_disk_in_the_middle(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"

    def full(path: Path, *arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(vidshard.building.join.writer, "join_fragments", full)
        result = run("build", source, "--out", out, "--workers", 1)
    check_error(result, "No space left on device", "shard-000000.tar", "free some space and run the same command again")
    assert not (out / "manifest.json").exists()
    assert run("build", source, "--out", out, "--workers", 1).exit_code == 0


def test_every_video_bad(tmp_path: Path) -> None:
    make_broken_video(tmp_path / "source" / "a.mp4")
    result = run("build", tmp_path / "source", "--out", tmp_path / "out")
    check_error(result, "none of the 1 videos", "not_a_video", "failures.csv")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--workers", "0"], "workers is 0, expected more than 0"),
        (["--clip-len", "0"], "clip_len is 0, expected at least 1"),
        (["--stride", "4"], "stride and frame_step apply to dense sampling"),
        (["--fps", "5"], "fps applies to dense and annotated sampling"),
        (["--annotations", "x.txt"], "annotations need annotated sampling"),
        (["--sampling", "annotated"], "annotated sampling needs a list of events"),
        (["--split-list", "no-such.txt"], "no-such.txt cannot be read"),
        (["--sampling", "dense", "--clips-per-video", "2"], "clips_per_video applies to uniform sampling"),
    ],
)
def test_options_that_make_no_sense(arguments: list[str], expected: str, source: Path) -> None:
    check_error(run("build", source, *arguments), expected)


def test_outputs_that_cannot_be(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file.txt").touch()
    check_error(run("build", source, "--out", tmp_path / "file.txt" / "sub" / "set"), "file.txt, which is a file")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert run("build", source, "--out", ".", "--workers", 1).exit_code == 0
    assert (tmp_path / "empty.log" / "build.log").is_file()
    assert run("preview", ".").exit_code == 0
    assert (tmp_path / "empty.log" / "preview.html").is_file()
    check_error(run("preview", ".", "--out", tmp_path), "is a folder, expected a file name")
    check_error(run("preview", ".", "--out", tmp_path / "file.txt" / "page.html"), "file.txt")


def test_an_unknown_option_is_exit_code_1() -> None:
    result = run("build", ".", "--no-such-option")
    assert result.exit_code == 1
    assert "--no-such-option" in result.stderr


def test_inspect_without_a_shard_folder(tmp_path: Path) -> None:
    check_error(run("inspect", tmp_path / "nowhere"), "no shard folder", "vidshard build")
    check_error(run("inspect", tmp_path), "has no manifest.json")


@pytest.mark.parametrize("command", [["preview"], ["finalize"], ["split", "--out", "lists"], ["build", "--staging"]])
def test_a_url_is_not_a_local_path(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_error(run(*command, "s3://bucket/Train"), "is a URL, expected a local path")
    assert not list(tmp_path.iterdir())
