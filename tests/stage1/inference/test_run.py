from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import inference_runs
from fake_shards import random_clips, write_shards
from inference_runs import LABELS, damage, some_clips, stage1, write_checkpoint
from pictures import count_pixels, read_picture
from stage1.inference.attention_data import load_attention_data
from stage1.inference.run import InferConfig, infer
from stage1.model import checkpoint as checkpoints
from stage1.model.network import Stage1Model
from stage1.review.film_strip import TOP_COLOUR
from vidshard.util.errors import UserError

place = inference_runs.place  # the fixture of the tests below


def anomalies(folder: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((folder / "stage1_output" / "anomalies.json").read_bytes())
    return entries


def predictions(folder: Path) -> list[dict[str, str]]:
    with open(folder / "stage1_output" / "predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_end_of_the_output_is_as_promised(place: Path) -> None:
    result = stage1("infer")
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("Stage 1 Inference: 7/7 clips")
    count = len(anomalies(place))
    assert 0 < count < len(LABELS)
    assert result.stdout.endswith(
        f"""\
============================================================
✓ Stage 1 Complete!
  - Detected {count} crime clips
  - Anomaly records saved to: ./stage1_output/anomalies.json
  - Attention data saved to: ./stage1_output/attention_data/stage1_attention_data.pt
  - Stage 2: for evaluation only ({count} of {count} detections belong to the split Test)
============================================================
"""
    )


@pytest.mark.parametrize(
    ("split", "train_videos", "line"),
    [
        ("Validation", ["Train/other.mp4"], "  - Ready for Stage 2 training"),
        ("Train", [], "  - Stage 2: for evaluation only (the model may have been trained on the videos of"),
    ],
)
def test_the_last_line_states_the_effect_of_loading_for_training(
    tmp_path: Path, split: str, train_videos: list[str], line: str
) -> None:
    shards = write_shards(tmp_path / "shards", some_clips(), LABELS, split=split)
    model = write_checkpoint(tmp_path / "model.pt", train_videos=train_videos)
    result = stage1("infer", "--shards", str(shards), "--checkpoint", str(model), "--out", str(tmp_path / "out"))
    assert result.stdout.splitlines()[-2].startswith(line)
    try:
        load_attention_data(tmp_path / "out", for_training=True)
    except UserError:
        assert "Ready" not in line
    else:
        assert "Ready" in line


def test_with_labels_it_prints_metrics_of_the_labelled_clips(place: Path) -> None:
    output = stage1("infer").stdout
    rows = [row for row in predictions(place) if row["label"] != "-1"]
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert "On 6 labelled clips" in output
    assert f"Accuracy: {100 * right / 6:.2f}%" in output
    assert "ROC-AUC:  0." in output or "ROC-AUC:  1." in output
    assert "Confusion matrix" in output
    metrics = json.loads((place / "stage1_output" / "run.json").read_bytes())["metrics"]
    assert sum(map(sum, metrics["confusion"])) == 6


def test_anomaly_records_say_what_stage_2_needs(place: Path) -> None:
    stage1("infer")
    entries = anomalies(place)
    rows = predictions(place)
    assert [entry["key"] for entry in entries] == [row["key"] for row in rows if row["predicted"] == "1"]
    for entry in entries:
        weights = entry["attention_weights"]
        assert entry["confidence"] >= 0.5
        assert sum(weights) == pytest.approx(1, abs=1e-6)
        assert [weights[i] for i in entry["top_attention_indices"]] == sorted(weights, reverse=True)[:5]
        assert Path(entry["video_path"]).is_file()
        assert entry["video_path"].endswith(entry["source"].replace("/", os.sep))
        assert max(entry["frame_importance"]) == 1
        assert entry["frame_indices"] == [0, 1, 2, 3]
        assert entry["seconds"] == pytest.approx([0, 0.1, 0.2, 0.3])
        assert entry["split"] == "Test"
    assert (rows[0]["start_seconds"], float(rows[0]["end_seconds"])) == ("0.0", pytest.approx(0.3))


def test_attention_data_holds_the_clips_of_the_detections(place: Path) -> None:
    stage1("infer")
    entries = anomalies(place)
    data = load_attention_data(place / "stage1_output" / "attention_data" / "stage1_attention_data.pt")
    assert data.keys == [entry["key"] for entry in entries]
    assert data.confidences.tolist() == pytest.approx([entry["confidence"] for entry in entries])
    rows = [int(row) for row, values in enumerate(predictions(place)) if values["predicted"] == "1"]
    assert np.array_equal(data.clips.numpy(), some_clips()[rows])


def test_confidence_is_the_probability_of_crime_whatever_the_batch(place: Path) -> None:
    stage1("infer", "--batch-size", "1")
    alone = [float(row["confidence"]) for row in predictions(place)]
    stage1("infer", "--batch-size", "3")
    assert [float(row["confidence"]) for row in predictions(place)] == pytest.approx(alone, abs=1e-5)
    checkpoint = checkpoints.load_checkpoint(place / "checkpoints" / "binary_stage1_with_attention.pt")
    with torch.inference_mode():
        logits_BK, _ = checkpoint.build_model()(checkpoint.build_transform()(torch.from_numpy(some_clips())))
    assert alone == pytest.approx(logits_BK.softmax(1)[:, 1].tolist(), abs=1e-5)


def test_nothing_detected_still_writes_everything(place: Path) -> None:
    result = stage1("infer", "--threshold", "1.0")
    assert result.exit_code == 0
    assert "Detected 0 crime clips" in result.stdout
    assert anomalies(place) == []
    data = load_attention_data(place / "stage1_output" / "attention_data" / "stage1_attention_data.pt")
    assert data.clips.shape == (0, 4, 16, 16, 3)
    shown = stage1("visualize")
    assert (shown.exit_code, "No clip was detected" in shown.stdout) == (0, True)
    picture = read_picture(place / "stage1_output" / "attention_visualization.png")
    assert 0.5 < (picture == 255).all(axis=2).mean() < 1  # a sentence on white
    assert count_pixels(picture, TOP_COLOUR) == 0


def test_the_threshold_comes_from_the_checkpoint_unless_given(place: Path) -> None:
    write_checkpoint(place / "checkpoints" / "binary_stage1_with_attention.pt", threshold=0.0)
    stage1("infer")
    assert len(anomalies(place)) == len(LABELS)
    stage1("infer", "--threshold", "0.5")
    assert len(anomalies(place)) < len(LABELS)


def test_a_damaged_clip_is_named_and_the_others_are_scored_the_same(place: Path) -> None:
    stage1("infer")
    sound = predictions(place)
    key = damage(place, 2)
    result = stage1("infer")
    assert result.exit_code == 2
    assert f"not scored: clip '{key}' at byte" in result.stderr
    rows = predictions(place)
    assert [row["key"] for row in rows if not row["confidence"]] == [key]
    assert rows[:2] + rows[3:] == sound[:2] + sound[3:]
    run = json.loads((place / "stage1_output" / "run.json").read_bytes())
    assert (run["clips"]["found"], run["clips"]["scored"], list(run["unscored"])) == (7, 6, [key])


def test_a_second_run_leaves_nothing_of_the_first_but_foreign_files(place: Path) -> None:
    stage1("infer", "--threshold", "0")
    stage1("visualize")
    (place / "stage1_output" / "notes.txt").write_text("mine")
    stage1("infer", "--threshold", "1.0")
    left = {path.name for path in (place / "stage1_output").iterdir()}
    written = {"anomalies.json", "predictions.csv", "attention_data", "videos.csv", "events.json", "run.json"}
    assert left == written | {"notes.txt", "earlier-1"}
    earlier = {path.name for path in (place / "stage1_output" / "earlier-1").iterdir()}
    assert earlier == written | {"attention_visualization.png"}


def test_a_finished_run_that_is_resumed_is_no_second_run(place: Path) -> None:
    stage1("infer")
    stage1("visualize")
    folder = place / "stage1_output"
    first = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    stage1("infer", "--resume")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == first
    (folder / ".unfinished").mkdir()  # killed before it removed its scores
    stage1("infer")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == first
    stage1("infer", "--resume", "--threshold", "1.0")
    assert (folder / "earlier-1" / "run.json").read_bytes() == first[folder / "run.json"]


def test_the_same_run_gives_the_same_bytes(place: Path) -> None:
    def written() -> dict[str, bytes]:
        stage1("infer")
        return {path.name: path.read_bytes() for path in (place / "stage1_output").rglob("*") if path.is_file()}

    assert written() == written()


def test_video_root_and_missing_videos(place: Path) -> None:
    (place / "videos").rename(place / "moved")
    result = stage1("infer")
    assert result.exit_code == 0
    assert "detected videos are missing" in result.stderr
    result = stage1("infer", "--video-root", "moved")
    assert "warning" not in result.stderr
    assert all(Path(entry["video_path"]).is_file() for entry in anomalies(place))
    (place / "shards" / "Test.log" / "source.json").unlink()
    result = stage1("infer")
    assert "video_path is relative; pass the folder as --video-root" in result.stderr
    assert anomalies(place)[0]["video_path"] == anomalies(place)[0]["source"]
    result = stage1("infer", "--video-root", "nowhere")
    assert (result.exit_code, "--video-root nowhere is not a folder" in result.stderr) == (1, True)


def test_clips_sampled_unlike_the_training_clips_are_refused(place: Path) -> None:
    write_checkpoint(place / "checkpoints" / "binary_stage1_with_attention.pt", frame_gap_seconds=5.0)
    result = stage1("infer")
    assert result.exit_code == 1
    build = "vidshard build SOURCE --sampling uniform --clips-per-video 1 --clip-len 4 --frame-size 16"
    for part in ("0.1 s apart", "trained on 5 s", build, "--allow-sampling-mismatch"):
        assert part in result.stderr
    assert not (place / "stage1_output").exists()
    result = stage1("infer", "--allow-sampling-mismatch")
    assert result.exit_code == 0
    assert "warning: frames of clips in" in result.stderr


def test_clips_made_square_another_way_are_refused(place: Path) -> None:
    sampling = {"mode": "annotated", "clip_len": 4, "stride": 8, "fps": 5.0, "resize": "letterbox", "codec": "jpeg"}
    write_checkpoint(place / "checkpoints" / "binary_stage1_with_attention.pt", sampling=sampling)
    result = stage1("infer")
    assert result.exit_code == 1
    build = "--sampling dense --stride 8 --fps 5.0 --clip-len 4 --frame-size 16 --resize letterbox --codec jpeg"
    for part in ("by --resize squash", "trained on letterbox", build, "--allow-sampling-mismatch"):
        assert part in result.stderr
    assert not (place / "stage1_output").exists()
    result = stage1("infer", "--allow-sampling-mismatch")
    assert (result.exit_code, "warning: frames of clips in" in result.stderr) == (0, True)


@pytest.mark.parametrize("gap", [0.05, 0.2, 0.0])
def test_clips_sampled_nearly_alike_or_of_unknown_gap_are_not_refused(place: Path, gap: float) -> None:
    write_checkpoint(place / "checkpoints" / "binary_stage1_with_attention.pt", frame_gap_seconds=gap)
    assert stage1("infer").exit_code == 0


def test_bad_use_is_one_clear_line_and_exit_code_1(place: Path) -> None:
    write_checkpoint(place / "other.pt", shape=(8, 16, 16))
    (place / "text.pt").write_text("no checkpoint")
    cases = {
        ("--shards", "none"): "no shard folder none: build it first with `vidshard build",
        ("--checkpoint", "none.pt"): "no checkpoint none.pt",
        ("--checkpoint", "text.pt"): "text.pt is not a stage1 checkpoint",
        ("--checkpoint", "other.pt"): "are 4×16×16 (frames×height×width), other.pt was trained on 8×16×16",
        ("--threshold", "1.5"): "threshold is 1.5, expected 0 to 1",
        ("--batch-size", "0"): "batch_size is 0, expected at least 1",
        ("--device", "tpu"): "device is 'tpu', expected auto, cpu, cuda or cuda:N",
        ("a.mp4",): "name MP4s with --videos",
        ("--videos", "a.mp4", "--shards", "shards/Test"): "cannot be combined",
        ("--videos", "a.mp4", "--video-root", "."): "--video-root and --videos cannot be combined",
        ("--workers", "2"): "--workers needs --videos",
        ("--out", "text.pt"): "--out text.pt is a file, expected a folder",
        ("--out", "text.pt/a/b"): "--out text.pt/a/b is below the file",
    }
    for args, text in cases.items():
        result = stage1("infer", *args)
        assert (result.exit_code, text in result.stderr) == (1, True), (args, result.stderr)
        assert "Traceback" not in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_asked_for_and_absent(place: Path) -> None:
    result = stage1("infer", "--device", "cuda")
    assert result.exit_code == 1
    assert "finds no CUDA device; use --device cpu" in result.stderr


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(28, "No space left on device")])
def test_an_output_folder_that_cannot_be_written_to_is_found_first(
    place: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def refuse(**_: object) -> None:
        raise error

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("stage1.inference.run.load_checkpoint", lambda *_: pytest.fail("went on"))
    result = stage1("infer")
    assert result.exit_code == 1
    assert f"error: --out stage1_output cannot be written to ({error.strerror}: " in result.stderr


def test_a_full_disk_is_one_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "anomalies.json")

    monkeypatch.setattr("stage1.inference.outputs.write_anomalies", full)
    result = stage1("infer")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "error: No space left on device: anomalies.json; free some space and run the same command with --resume to "
        "continue"
    )
    assert not (place / "stage1_output" / "run.json").exists()


def test_too_little_cuda_memory_for_the_model_is_reported_alike(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def to(*_: object) -> None:
        raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported")

    monkeypatch.setattr(Stage1Model, "to", to)
    with pytest.raises(UserError, match="out of memory with `batch_size` 6; try `batch_size` 3"):
        infer(InferConfig(batch_size=6))


def test_cuda_out_of_memory_names_the_batch_size_to_try(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Stage1Model, "forward", forward)
    with pytest.raises(UserError, match="out of memory with `batch_size` 6; try `batch_size` 3"):
        infer(InferConfig(batch_size=6))


def test_a_model_that_gives_no_numbers_is_refused(place: Path) -> None:
    path = place / "checkpoints" / "binary_stage1_with_attention.pt"
    state = checkpoints.load_checkpoint(path).model_state_dict
    state["classifier.weight"][:] = 3e38  # finite, but not the logits
    write_checkpoint(path, model_state_dict=state)
    with pytest.raises(UserError, match="not finite numbers"):
        infer(InferConfig())


def test_shards_without_a_clip_are_scored(place: Path) -> None:
    write_shards(place / "empty", random_clips(0), [])
    result = stage1("infer", "--shards", "empty")
    assert result.exit_code == 0, result.output
    assert anomalies(place) == []
