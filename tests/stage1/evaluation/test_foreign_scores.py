"""Frame metrics of any model's scores: quirks of official lists, layouts of scores, and the official figures."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pictures import count_pixels, read_picture
from schemas import check
from stage1.cli.main import main
from stage1.evaluation import plots
from stage1.evaluation.foreign_scores import ScoresConfig, evaluate_scores
from stage1.metrics import annotations, frames
from stage1.metrics.frames import ScoredVideo
from vidshard.util.errors import UserError

OFFICIAL = Path(os.environ.get("VIDSHARD_TEST_DATA", ""), "data", "ucf-crime")
needs_official = pytest.mark.skipif(
    not os.environ.get("VIDSHARD_TEST_DATA") or not OFFICIAL.is_dir(),
    reason="needs data/ucf-crime below VIDSHARD_TEST_DATA",
)

# Trailing spaces, a folder or none, frame counts in a second list under another folder, two events, overruns.
LINES = """\
Abuse001_x264.mp4  Abuse  16  31  -1  -1  
Arson002_x264.mp4  Arson  0  15  64  100  
Testing_Normal_Videos_Anomaly/Normal_Videos_003_x264.mp4  Normal  -1  -1  -1  -1  
"""
COUNTS = "x/Abuse001_x264.mp4 64\ny/Arson002_x264.mp4 96\nNormal_Videos_event/Normal_Videos_003_x264.mp4 40\n"


def write_lists(folder: Path) -> dict[str, Path]:
    (folder / "annotations.txt").write_text(LINES, encoding="utf-8")
    (folder / "counts.txt").write_text(COUNTS, encoding="utf-8")
    return {"annotations": folder / "annotations.txt", "frame_counts": folder / "counts.txt"}


def config(folder: Path, **options: Any) -> ScoresConfig:
    return ScoresConfig(**write_lists(folder), out=folder / "out", **options)


def row(fields: dict[str, Any], name: str, events: str = "inclusive") -> dict[str, Any]:
    return next(r for r in fields["scores"] + fields["references"] if (r["name"], r["events"]) == (name, events))


def test_the_quirks_of_official_lists(tmp_path: Path) -> None:
    report = evaluate_scores(config(tmp_path))
    assert report.fields["annotations"] == {
        "videos": 3,
        "crime_videos": 2,
        "videos_with_two_events": 1,
        "frames": 200,
        "event_frames": 16 + 16 + 32,
        "overruns_cut": 1,
    }
    assert "1 event cut at the last frame" in report.text


def test_conventions_move_events_by_one_frame(tmp_path: Path) -> None:
    listed = annotations.read_annotations(*write_lists(tmp_path).values())
    found = {
        name: annotations.make_annotations(listed, convention=name).videos[0].events
        for name in annotations.EVENT_CONVENTIONS
    }
    assert found == {"inclusive": ((16, 31),), "half-open": ((16, 30),), "one-based": ((15, 30),)}


def test_knowing_the_videos_alone_already_gives_a_high_auc(tmp_path: Path) -> None:
    fields = evaluate_scores(config(tmp_path)).fields
    known = row(fields, "true label of the video")
    assert known["auc"]["value"] == pytest.approx(
        (40 + 96 / 2) / 136
    )  # of 136 frames without event 40 are normal videos
    assert known["auc_anomalous"]["value"] == 0.5


def test_scores_from_a_folder_and_from_tables_agree(tmp_path: Path) -> None:
    scores = {"Abuse001_x264": [0.1, 0.9, 0.2, 0.1], "Arson002_x264": [0.8, 0, 0, 0, 0.7, 0.9]}
    scores["Normal_Videos_003_x264"] = [0.0, 0.3, 0.1]
    folder = tmp_path / "scores"
    folder.mkdir()
    rows, timed = ["video,score"], ["source,confidence,start_seconds,end_seconds"]
    for i, (stem, values) in enumerate(scores.items()):
        if i == 1:
            (folder / f"{stem}.txt").write_text("\n".join(map(str, values)), encoding="utf-8")
        else:
            np.save(folder / f"{stem}.npy", np.array(values)[:, None])
        rows += [f"Some/{stem}.mp4,{value}" for value in values]
        timed += [f"{stem}.mp4,{value},{16 * n / 30},{(16 * n + 15) / 30}" for n, value in enumerate(values)]
    (tmp_path / "a.csv").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "b.csv").write_text("\n".join(timed), encoding="utf-8")
    found = [
        row(evaluate_scores(config(tmp_path, scores=path)).fields, "scores on their frames, all frames")
        for path in (folder, tmp_path / "a.csv", tmp_path / "b.csv")
    ]
    assert found[0]["auc"]["value"] == 1.0
    assert found[0] == found[1] == found[2]
    saved = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    check(saved, "evaluation_scores")
    assert {r["name"] for r in saved["scores"]} >= {"whole snippets only", "mean over 32 segments", "spread evenly"}
    picture = read_picture(tmp_path / "out" / "evaluation.png")
    assert count_pixels(picture, plots.BLUE) > 10_000  # bars of an AUC of 1
    assert count_pixels(picture, plots.RED) > 1_000


def test_scores_that_do_not_fit_the_length_are_refused(tmp_path: Path) -> None:
    rows = ["video,score", *["Abuse001_x264,0.5"] * 9, *["Arson002_x264,0.5"] * 6, *["Normal_Videos_003_x264,0.1"] * 3]
    (tmp_path / "a.csv").write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(UserError, match="Abuse001_x264 has 9 scores for 64 frames: neither one per frame"):
        evaluate_scores(config(tmp_path, scores=tmp_path / "a.csv"))


def test_a_video_without_scores_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("video,score\nAbuse001_x264,0.5\n", encoding="utf-8")
    with pytest.raises(UserError, match="lacks 2 of the 3 annotated videos"):
        evaluate_scores(config(tmp_path, scores=tmp_path / "a.csv"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,score\na,1\n", "has the columns name, score; expected video"),
        ("video,score\na,x\n", "line 2 of .* cannot be read"),
        ("video,score\na,nan\n", "line 2 of .* cannot be read: expected a finite score"),
        ("video,score,first_frame,last_frame\na,1,9,3\n", "0 ≤ first_frame ≤ last_frame"),
    ],
)
def test_unusable_tables_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        evaluate_scores(config(tmp_path, scores=tmp_path / "a.csv"))


def test_a_list_that_was_trained_on_and_names_a_test_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "stage2.txt").write_text("Abuse/Abuse001_x264.mp4 \nAbuse/Abuse009_x264.mp4\n", encoding="utf-8")
    result = CliRunner().invoke(
        main,
        ["evaluate", "--out", str(tmp_path / "out"), "--trained-on", str(tmp_path / "stage2.txt")]
        + [f"--{name.replace('_', '-')}={path}" for name, path in write_lists(tmp_path).items()],
    )
    assert result.exit_code == 1
    assert "lists 1 of the 3 test videos (Abuse/Abuse001_x264)" in result.output
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_runs_of_frames_weigh_as_many_frames() -> None:
    generator = np.random.default_rng(0)
    videos = []
    for i in range(6):
        labels = np.repeat(generator.integers(0, 2, 12), 5).astype(np.uint8) * (i % 2)
        scores = np.repeat(generator.random(20), 3)
        videos.append(ScoredVideo(group=str(i), is_crime=i % 2 == 1, labels=labels, scores=scores))
    found = frames.frame_metrics(videos, num_resamples=50)
    labels, scores = (np.concatenate([getattr(v, name) for v in videos]) for name in ("labels", "scores"))
    from sklearn.metrics import average_precision_score, roc_auc_score

    assert found.auc.value == pytest.approx(roc_auc_score(labels, scores))
    assert found.average_precision.value == pytest.approx(average_precision_score(labels, scores))
    assert found.auc.low is not None
    assert found.auc.low < found.auc.value < found.auc.high


def test_overlapping_clips_are_averaged_and_gaps_filled_from_the_nearest() -> None:
    spread = frames.spread_clips(np.array([1.0, 0.0, 0.5]), np.array([1, 2, 8]), np.array([3, 4, 20]), 10)
    assert spread.tolist() == [1.0, 1.0, 0.5, 0.5, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5]


@pytest.mark.slow
@needs_official
def test_the_official_lists_give_the_known_figures(tmp_path: Path) -> None:
    report = evaluate_scores(
        ScoresConfig(
            annotations=OFFICIAL / "Temporal_Anomaly_Annotation_for_Testing_Videos.txt",
            frame_counts=OFFICIAL / "test_frame_counts.txt",
            out=tmp_path,
        )
    )
    about = report.fields["annotations"]
    assert (about["frames"], about["videos_with_two_events"], about["overruns_cut"]) == (1_111_808, 16, 5)
    perfect = "perfect on 16-frame snippets: "
    for name, events, expected in (
        ("true label of the video", "inclusive", 0.8158),
        ("true label of the video", "half-open", 0.8157),
        (perfect + "any event frame", "inclusive", 0.9988),
        (perfect + "majority of event frames", "inclusive", 0.9956),
    ):
        assert round(row(report.fields, name, events)["auc"]["value"], 4) == expected
    assert row(report.fields, perfect + "share of event frames")["auc"]["value"] > 0.9999


@needs_official
@pytest.mark.parametrize("name", ["action_recognition_train_001.txt", "action_recognition_test_001.txt"])
def test_the_official_stage_2_split_overlaps_the_test_set(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="of the 290 test videos"):
        evaluate_scores(
            ScoresConfig(annotations=OFFICIAL / "test_frame_counts.txt", trained_on=(OFFICIAL / name,), out=tmp_path)
        )
