from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fake_shards import random_clips, write_shards
from inference_runs import LABELS, some_clips, write_checkpoint
from stage1.cli.main import main
from stage1.evaluation.run import EvaluateConfig, evaluate
from stage1.inference.run import InferConfig, infer
from stage1.review.report import ReportConfig, line_chart, write_report
from vidshard.util.errors import FormatError, UserError


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Write a finished run over seven clips with every kind of outcome."""
    shards = write_shards(tmp_path / "shards", some_clips(), LABELS, source_groups=["a", "a", "b", "b", "c", "c", "d"])
    infer(InferConfig(shards=shards, checkpoint=write_checkpoint(tmp_path / "model.pt"), out=tmp_path / "run"))
    return tmp_path / "run"


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_every_detection_and_every_miss_is_there_with_its_frames(run_folder: Path) -> None:
    result = write_report(ReportConfig(folder=run_folder))
    detections = json.loads((run_folder / "anomalies.json").read_bytes())
    items = {item["key"]: item for item in data_of(result.path)["items"]}
    detected = {detection["key"]: detection for detection in detections}
    assert detected
    for key, item in items.items():
        assert item["image"], "a film strip of every clip"
        if key in detected:
            assert item["outcome"] == {1: "hit", 0: "alarm", -1: "unknown"}[item["label"]]
            assert item["attention"] == pytest.approx(detected[key]["attention_weights"], abs=1e-4)
        else:
            assert (item["outcome"], item["label"], item["attention"]) == ("miss", 1, None)
    missed = LABELS.count(1) - sum(item["outcome"] == "hit" for item in items.values())
    assert len(items) == len(detected) + missed == result.num_shown


def test_the_page_needs_nothing_else_and_is_the_same_again(run_folder: Path) -> None:
    page = write_report(ReportConfig(folder=run_folder)).path
    text = page.read_text("utf-8")
    assert not re.search(r'(?:src|href)="(?!#|data:)', text)
    assert "default-src 'none'" in text
    assert write_report(ReportConfig(folder=run_folder)).path.read_text("utf-8") == text


def test_figures_have_intervals_over_recordings(run_folder: Path) -> None:
    text = write_report(ReportConfig(folder=run_folder)).path.read_text("utf-8")
    assert re.search(r"95 %: [\d.]+% to [\d.]+% \(4 recordings\)", text)


def test_without_the_shards_the_detections_still_have_their_frames(run_folder: Path) -> None:
    shutil.rmtree(run_folder.parent / "shards")
    items = data_of(write_report(ReportConfig(folder=run_folder)).path)["items"]
    assert all(bool(item["image"]) == (item["outcome"] != "miss") for item in items)
    assert all("attention data contains detections only" in item["no_image"] for item in items if not item["image"])


def test_wall_clock_time_where_the_start_is_known(run_folder: Path, tmp_path: Path) -> None:
    plain = data_of(write_report(ReportConfig(folder=run_folder)).path)
    assert all(item["clock"] is None for item in plain["items"])
    source = plain["items"][0]["source"]
    times = tmp_path / "times.csv"
    times.write_text(f"video,start,camera\n{source},2026-01-31T23:59:59.9,gate\nelsewhere.mp4,2026-01-31,\n")
    result = CliRunner().invoke(main, ["report", str(run_folder), "--start-times", str(times)])
    assert result.exit_code == 0, result.output
    data = data_of(run_folder / "report.html")
    assert {item["clock"] for item in data["items"] if item["source"] == source} == {"2026-01-31 23:59:59"}
    assert {item["clock"] for item in data["items"] if item["source"] != source} == {None}
    (video,) = (video for video in data["videos"] if video["source"] == source)
    assert video["camera"] == "gate"
    assert video["clocks"] == ["2026-01-31 23:59:59", "2026-02-01 00:00:00"]
    assert all("(2026-01-31 23:59:59 to 2026-02-01 00:00:00)" in event["text"] for event in video["events"])


def test_a_small_share_is_not_rounded_to_zero(run_folder: Path) -> None:
    path = run_folder / "events.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "top_share": 0.005}))
    assert "more than 0.5 % of the seconds" in write_report(ReportConfig(folder=run_folder)).path.read_text("utf-8")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("video,start\na.mp4,yesterday\n", "line 2: expected the columns video and start"),
        ("name,start\na.mp4,2026-01-31\n", "line 2: expected the columns video and start"),
        ("video,start\nvideo-000.mp4,9999-12-31T23:59:59\n", "expected a year up to 9000, not 9999"),
        ("video,start\nelsewhere.mp4,2026-01-31\n", "names no video of this run"),
    ],
)
def test_start_times_that_cannot_be_used_are_refused(text: str, words: str, run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "times.csv").write_text(text)
    result = CliRunner().invoke(main, ["report", str(run_folder), "--start-times", str(tmp_path / "times.csv")])
    assert result.exit_code == 1
    assert "--start-times" in result.output
    assert words in result.output


def test_the_strongest_are_kept_and_the_rest_counted(run_folder: Path) -> None:
    every = data_of(write_report(ReportConfig(folder=run_folder)).path)["items"]
    result = CliRunner().invoke(main, ["report", str(run_folder), "--max-items", "2"])
    assert result.exit_code == 0, result.output
    assert f"{len(every) - 2} with lower confidence are left out; --max-items shows more" in result.output
    kept = data_of(run_folder / "report.html")["items"]
    strongest = sorted(every, key=lambda item: -item["confidence"])[:2]
    assert {item["key"] for item in kept} == {item["key"] for item in strongest}


@pytest.mark.slow
def test_an_evaluation_is_shown_where_it_is_of_the_same_shards(run_folder: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(
        checkpoint=tmp_path / "model.pt", shards=tmp_path / "shards", train_shards=tmp_path / "shards", num_resamples=20
    )
    evaluate(dataclasses.replace(config, out=tmp_path / "evaluation"))
    page = write_report(ReportConfig(folder=run_folder, evaluation=tmp_path / "evaluation")).path.read_text("utf-8")
    assert "Shortcut baselines on the same videos" in page
    assert "first frame" in page
    assert "source groups" in page
    assert "per video: P(crime)" not in page
    assert "not calibrated here: pass validation shards as --val-shards" in page
    path = tmp_path / "evaluation" / "evaluation.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "relative": True}))
    page = write_report(ReportConfig(folder=run_folder, evaluation=path.parent)).path.read_text("utf-8")
    assert "Scores are centred per video: P(crime) from the log-odds of a clip minus their median" in page
    run = run_folder / "run.json"
    run.write_text(json.dumps({**json.loads(run.read_text()), "relative": True}))
    assert ">centred per video: P(crime) from the log-odds" in write_report(
        ReportConfig(folder=run_folder)
    ).path.read_text("utf-8")

    others = write_shards(tmp_path / "others", random_clips(4), [0, 1, 1, 0])
    evaluate(dataclasses.replace(config, shards=others, out=tmp_path / "evaluation2"))
    with pytest.raises(UserError, match="evaluates different shards from those that this run scored"):
        write_report(ReportConfig(folder=run_folder, evaluation=tmp_path / "evaluation2"))
    with pytest.raises(UserError, match="run `stage1 evaluate --out"):
        write_report(ReportConfig(folder=run_folder, evaluation=tmp_path / "none"))


def test_names_cannot_leave_their_place(tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    shards = write_shards(tmp_path / "shards", random_clips(2), [1, 0], class_names=[evil, "Normal"])
    checkpoint = write_checkpoint(tmp_path / "model.pt")
    infer(InferConfig(shards=shards, checkpoint=checkpoint, out=tmp_path / "run", threshold=0.0))
    page = write_report(ReportConfig(folder=tmp_path / "run")).path
    assert "<img src=x" not in page.read_text("utf-8")
    assert any(item["class"] == evil for item in data_of(page)["items"])


def test_folders_without_a_whole_run_are_refused(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no finished run of stage1 infer"):
        write_report(ReportConfig(folder=tmp_path))
    (run_folder / "anomalies.json").write_text("[]")
    with pytest.raises(FormatError, match="come from different runs"):
        write_report(ReportConfig(folder=run_folder))


def test_curves_continue_after_the_kept_epoch(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", some_clips(), LABELS)
    history = [{"epoch": epoch, "loss": 1 / epoch, "accuracy": 0.5} for epoch in (1, 2, 3)]
    model = write_checkpoint(tmp_path / "model" / "best.pt", run_state={"history": history[:2]})
    (tmp_path / "model" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    infer(InferConfig(shards=shards, checkpoint=model, out=tmp_path / "run"))
    page = write_report(ReportConfig(folder=tmp_path / "run")).path
    assert "Loss by epoch, epochs 1 to 3" in page.read_text("utf-8")
    (tmp_path / "model" / "metrics.jsonl").write_text(json.dumps({**history[0], "loss": 7.0}))  # of another run
    page = write_report(ReportConfig(folder=tmp_path / "run")).path
    assert "Loss by epoch, epochs 1 to 2" in page.read_text("utf-8")


def test_a_chart_spans_its_values() -> None:
    chart = line_chart("Loss", [("training", [(1, 2.0), (2, 1.0)]), ("validation", [])])
    assert chart is not None
    assert [line["name"] for line in chart["lines"]] == ["training: 1.000"]
    assert chart["lines"][0]["points"] == [(44.0, 12.0), (396.0, 69.0)]
    assert line_chart("Loss", [("training", [])]) is None
