"""Lists without leaks: groups stay whole, classes are spread evenly, possible leaks are reported."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fake_shards import random_clips, write_shards
from vidshard.cli.main import main
from vidshard.sources.split import (
    SPLITS,
    SplitConfig,
    assign_groups,
    check_lists,
    signature,
    similar_pairs,
    split,
)
from vidshard.util.errors import UserError
from vidshard.util.lists import read_list

CLASSES = ("Abuse", "NormalVideos")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["split", *map(str, arguments)])


def make_folder(root: Path, videos_per_class: int = 20) -> Path:
    """Files that are videos by name: a folder is split by names, sizes and content alone."""
    for name in CLASSES:
        for number in range(videos_per_class):
            path = root / name / f"{name}{number:03d}_x264.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{name} {number}".encode() * (number + 1))
    return root


def lists_of(out: Path) -> dict[str, list[str]]:
    return {name: (out / f"{name}.txt").read_text(encoding="utf-8").splitlines() for name in SPLITS}


# ----- the lists ------------------------------------------------------------------------------------------------------


def test_every_video_is_in_one_list_and_every_class_in_its_share(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "videos")
    report = split(SplitConfig(source=source, out=tmp_path / "lists"))
    lists = lists_of(tmp_path / "lists")
    names = [name for rows in lists.values() for name in rows]
    assert sorted(names) == sorted(path.relative_to(source).as_posix() for path in source.rglob("*.mp4"))
    assert report.class_counts == {name: {"Train": 14, "Validation": 2, "Test": 4} for name in CLASSES}
    assert lists["Train"] == sorted(lists["Train"])
    assert any("no recordings are known" in warning for warning in report.warnings)


def test_the_same_seed_gives_the_same_lists(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "videos")
    found = []
    for number, seed in enumerate((0, 0, 1)):
        split(SplitConfig(source=source, out=tmp_path / str(number), seed=seed))
        found.append(lists_of(tmp_path / str(number)))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_a_source_group_is_never_cut(tmp_path: Path, suffix: str) -> None:
    source = make_folder(tmp_path / "videos", 30)
    group_of = {f"{name}/{name}{n:03d}_x264.mp4": f"tape {n // 3}" for name in CLASSES for n in range(30)}
    path = tmp_path / f"groups{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps([{"file": f"Any/{file}", "source": tape} for file, tape in group_of.items()]))
    else:
        path.write_text("file,source\n" + "".join(f"{file},{tape}\n" for file, tape in group_of.items()))
    report = split(SplitConfig(source=source, out=tmp_path / "lists", source_groups=path))
    tapes = {name: {group_of[video] for video in rows} for name, rows in report.lists.items()}
    assert not tapes["Train"] & tapes["Test"]
    assert not tapes["Train"] & tapes["Validation"]
    assert not tapes["Validation"] & tapes["Test"]
    assert report.num_groups == 10
    assert {name: len(rows) for name, rows in report.lists.items()} == {"Train": 42, "Validation": 6, "Test": 12}


def test_unclear_groups_are_refused(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "videos", 1)
    path = tmp_path / "groups.csv"
    path.write_text("file,source\nx/Abuse000_x264.mp4,one\ny/Abuse000_x264.mp4,two\n")
    with pytest.raises(UserError, match=r"two recordings to .*: one"):
        split(SplitConfig(source=source, out=tmp_path / "lists", source_groups=path))


def test_a_folder_of_splits_is_dealt_out_anew(tmp_path: Path) -> None:
    make_folder(tmp_path / "videos" / "Train" / "x", 1)
    (tmp_path / "videos/Train/x/Abuse").rename(tmp_path / "videos/Train/Abuse")
    (tmp_path / "videos/Test").mkdir()
    (tmp_path / "videos/Train/x/NormalVideos").rename(tmp_path / "videos/Test/NormalVideos")
    report = split(SplitConfig(source=tmp_path / "videos", out=tmp_path / "lists", fractions=(1, 0, 0)))
    assert report.lists["Train"] == ("Abuse/Abuse000_x264.mp4", "NormalVideos/NormalVideos000_x264.mp4")
    assert report.lists["Test"] == ()


def test_large_groups_leave_every_class_near_its_share() -> None:
    generator = np.random.default_rng(0)
    groups = [{"a": int(n), "b": int(m)} for n, m in generator.integers(1, 30, (60, 2))]
    found = [Counter[str](), Counter[str](), Counter[str]()]
    for group, number in zip(groups, assign_groups(groups, (0.7, 0.1, 0.2), seed=3), strict=True):
        found[number].update(group)
    for name in "ab":
        total = sum(group[name] for group in groups)
        shares = [found[number][name] / total for number in range(3)]
        assert np.allclose(shares, (0.7, 0.1, 0.2), atol=0.03), (name, shares)


# ----- what may leak --------------------------------------------------------------------------------------------------


def test_copies_are_named_and_stay_together(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "videos")
    copies = [source / "Abuse" / f"copy{n}.mp4" for n in range(10)]
    for copy in copies:
        copy.write_bytes((source / "Abuse" / "Abuse007_x264.mp4").read_bytes())
    report = split(SplitConfig(source=source, out=tmp_path / "lists"))
    (holder,) = (name for name, rows in report.lists.items() if "Abuse/copy0.mp4" in rows)
    assert {f"Abuse/copy{n}.mp4" for n in range(10)} | {"Abuse/Abuse007_x264.mp4"} <= set(report.lists[holder])
    (warning,) = (warning for warning in report.warnings if "same video" in warning)
    assert "Abuse/Abuse007_x264.mp4 and Abuse/copy0.mp4" in warning
    assert any("checked for exact duplicates only" in warning for warning in report.warnings)


def moving_scene(generator: np.random.Generator, background: np.ndarray) -> np.ndarray:
    """Draw a clip (16, 64, 64, 3) of a bright object that moves over a background."""
    clip = np.repeat(background[None], 16, axis=0).astype(np.float32)
    place = np.cumsum(generator.integers(-6, 7, (16, 2)), axis=0) + generator.integers(16, 32, 2)
    for frame, (y, x) in zip(clip, np.clip(place, 0, 48), strict=True):
        frame[y : y + 16, x : x + 12] += 80
    return np.clip(clip, 0, 255).astype(np.uint8)


def reencoded(clip: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Brighter, flatter, noisier."""
    return np.clip(0.85 * clip + 20 + generator.normal(0, 6, clip.shape), 0, 255).astype(np.uint8)


def test_reencoded_copies_are_found_and_other_videos_of_one_camera_are_not() -> None:
    generator = np.random.default_rng(0)
    backgrounds = [np.kron(generator.integers(30, 160, (8, 8, 3)), np.ones((8, 8, 1))) for _ in range(4)]
    clips = [moving_scene(generator, backgrounds[n % 4]) for n in range(12)]  # three of each camera
    clips += [reencoded(clips[n], generator) for n in (2, 5)]
    pairs = similar_pairs(np.stack([signature(clip) for clip in clips]))
    assert pairs == [(2, 12), (5, 13)]
    assert similar_pairs(np.zeros((0, 8, 16, 16), np.float32)) == []


def test_copies_in_shards_are_said(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    scene = np.kron(generator.integers(30, 160, (8, 8, 3)), np.ones((8, 8, 1)))
    clips = [*random_clips(8, shape=(16, 64, 64)), moving_scene(generator, scene)]
    clips += [clips[0]] + [reencoded(clips[8], generator) for _ in range(6)]  # 9: exact; 10 and on: encoded again
    folder = write_shards(tmp_path / "set", np.stack(clips), [1] * len(clips))
    report = split(SplitConfig(source=folder, out=tmp_path / "lists", fractions=(0.5, 0.0, 0.5)))
    exact = [warning for warning in report.warnings if "same video" in warning]
    assert exact == [warning for warning in exact if "video-000.mp4 and Fighting/video-009.mp4" in warning] != []
    alike = [warning for warning in report.warnings if "encoded twice" in warning]
    assert alike
    copies = {f"Fighting/video-{n:03d}.mp4" for n in (8, *range(10, 16))}
    for warning in alike:
        assert sum(name in warning for name in copies) == 2, warning
        assert "(Train)" in warning
        assert "(Test)" in warning


def test_a_class_that_a_split_lacks_is_said(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "videos", 2)
    report = split(SplitConfig(source=source, out=tmp_path / "lists"))
    assert any("class Abuse has no video in Validation" in warning for warning in report.warnings)


# ----- lists of others ------------------------------------------------------------------------------------------------


def test_overlaps_are_found_whatever_the_layout_of_the_list(tmp_path: Path) -> None:
    official = tmp_path / "official.txt"
    official.write_text("Abuse/Abuse001_x264.mp4 \nTesting_Normal/Normal_Videos_003_x264.mp4\n\n")
    annotations = tmp_path / "annotations.txt"
    annotations.write_text(
        "Normal_Videos_003_x264.mp4  Normal  -1  -1  -1  -1\nArson011_x264.mp4  Arson  150  420  -1  -1\n"
    )
    other = tmp_path / "other.txt"
    other.write_text("Abuse/a b.mp4\n")
    (overlap,) = check_lists([official, annotations, other])
    assert overlap.names == ("Testing_Normal/Normal_Videos_003_x264",)
    assert read_list(other) == {"a b": "Abuse/a b"}
    result = run("--check", official, annotations)
    assert result.exit_code == 1
    assert "share 1:" in result.stdout
    assert "  Testing_Normal/Normal_Videos_003_x264\n" in result.stdout
    assert run("--check", official, other).exit_code == 0


def test_a_file_that_is_not_a_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n")
    with pytest.raises(UserError, match="lists no video"):
        read_list(path)
    with pytest.raises(UserError, match="cannot be read"):
        check_lists([tmp_path / "b.txt", path])


# ----- the command ----------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "videos")
    result = run(source, "--out", tmp_path / "lists", "--fractions", "0.5,0,0.5")
    assert result.exit_code == 0, result.output
    assert "Abuse            10           0    10" in result.stdout
    assert "warning: no recordings are known" in result.stderr
    result = run(source, "--out", tmp_path / "again", "--check", tmp_path / "lists" / "Test.txt")
    assert result.exit_code == 1
    assert f"{tmp_path / 'lists' / 'Test.txt'} (20 videos) and {tmp_path / 'again' / 'Train.txt'}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["videos"], "pass SOURCE and --out DIR"),
        (["videos", "--out", "lists", "--fractions", "0.7,0.2"], "expected three numbers"),
        (["videos", "--out", "lists", "--fractions", "0.7,0.2,0.2"], "sum to 1"),
        (["--check", "a.txt"], "two or more lists"),
        (["nowhere", "--out", "lists"], "no folder or file nowhere"),
    ],
)
def test_wrong_use_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], text: str
) -> None:
    make_folder(tmp_path / "videos", 1)
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 1
    assert text in result.stderr
    assert "Traceback" not in result.output
