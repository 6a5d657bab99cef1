from __future__ import annotations

import csv
import importlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import vidshard
from inference_runs import write_checkpoint
from schemas import check_rows
from stage1.cli.main import main
from stage1.data.reader import ClipReader
from stage1.data.review_labels import CSV_COLUMNS, apply_review_labels, read_review_labels
from stage1.inference.outputs import Prediction
from stage1.inference.run import InferConfig, infer
from stage1.review import exchange
from stage1.review.exchange import FORMATS, LABELS, Segment, Video, Videos
from tiny_videos import make_tiny_video
from vidshard.util.errors import UserError

ANSWERS = ("true", "false", "unsure")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Score overlapping windows of three videos, two of which have the same file name."""
    folder = tmp_path_factory.mktemp("exchange")
    for seed, name in enumerate(("Fighting/a.mp4", "NormalVideos/a.mp4", "NormalVideos/b c.mp4")):
        make_tiny_video(folder / "videos" / name, 40, seed=seed)
    vidshard.build(
        folder / "videos", out=folder / "shards", sampling="dense", stride=2, clip_len=4, frame_size=16, workers=1
    )
    infer(
        InferConfig(
            shards=folder / "shards",
            checkpoint=write_checkpoint(folder / "model.pt"),
            out=folder / "run",
            threshold=0.0,
            allow_sampling_mismatch=True,
        )
    )
    return folder / "run"


def review(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["review", *map(str, arguments)])


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_marks(run: Path, path: Path, *, every: int = 1) -> list[dict[str, str]]:
    """Label the clips of a run in turn as a report would export them."""
    digest = json.loads((run / "run.json").read_text())["shards"]["digest"]
    rows = [
        {**row, "shards": digest, "mark": ANSWERS[i % 3], "note": 'dark, "far"' if i % 4 == 0 else ""}
        for i, row in enumerate(read_rows(run / "predictions.csv")[::every])
    ]
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return read_rows(path)


@pytest.mark.parametrize("name", FORMATS)
def test_a_round_trip_loses_nothing(name: str, run: Path, tmp_path: Path) -> None:
    marks = tmp_path / "marks.csv"
    rows = write_marks(run, marks)
    file, back = tmp_path / "file", tmp_path / "back.csv"
    exported = review("export", run, "--format", name, "--marks", marks, "--out", file)
    assert exported.exit_code == 0, exported.output
    assert f"✓ {len(rows)} review labels saved to: {file}" in exported.output
    imported = review("import", file, "--format", name, "--run", run, "--out", back)
    assert imported.exit_code == 0, imported.output
    check_rows(back, "marks")
    if name == "ucf-crime":  # which has no place for notes
        rows = [{**row, "note": ""} for row in rows]
    assert read_rows(back) == rows
    labels = read_review_labels([back])
    reader = ClipReader(run.parent / "shards")
    assert apply_review_labels([reader], labels, use="labels").num_found == len(labels.of_clip)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("fps", [12.5, 23.976, 25.0, 29.97, 59.94])
def test_equal_start_end_and_label_at_any_frame_rate(name: str, fps: float) -> None:
    generator = np.random.default_rng(0)
    videos = Videos(
        Video(
            source=f"Cam 1/{number}é.mkv",
            path="",
            fps=fps,
            num_frames=4000,
            duration_seconds=4000 / fps,
            split=None,
        )
        for number in range(3)
    )
    segments = []
    for video in videos.values():
        firsts = sorted(generator.choice(3900, 40, replace=False).tolist())
        for first in firsts:
            times = [(first + shift) / fps for shift in (0, int(generator.integers(1, 60)))]
            label = list(LABELS)[int(generator.integers(3))]
            segments.append(Segment(source=video.source, start_seconds=times[0], end_seconds=times[1], label=label))
    read = list(FORMATS[name].read(FORMATS[name].write(segments, videos), videos))
    clips = [
        Prediction(
            key=str(i), source=one.source, clip_index=i, class_name=None, label=-1, split=None, confidence=0.5,
            predicted=False, start_seconds=one.start_seconds, end_seconds=one.end_seconds,
        )
        for i, one in enumerate(segments)
    ]  # fmt: skip
    labelled, unmatched = exchange.match_clips(read, clips, videos)
    assert unmatched == 0
    assert [(clip.source, clip.start_seconds, clip.end_seconds, one.label) for clip, one in labelled] == [
        (one.source, one.start_seconds, one.end_seconds, one.label) for one in segments
    ]


@pytest.mark.parametrize(
    ("label", "answer"),
    [
        ("Crime", "true"),
        ("Abnormal", "true"),
        ("abnormal event", "true"),
        ("Normal", "false"),
        ("Training_Normal_Videos_Anomaly", "false"),
        ("unsure", "unsure"),
        ("Detection", None),
    ],
)
def test_a_class_is_a_crime_unless_it_is_normal(label: str, answer: str | None) -> None:
    assert Segment(source="a.mp4", start_seconds=0, end_seconds=1, label=label).answer == answer


@pytest.mark.parametrize("name", FORMATS)
def test_detections_are_no_labels_until_somebody_answers(name: str, run: Path, tmp_path: Path) -> None:
    file, back = tmp_path / "file", tmp_path / "back.csv"
    exported = review("export", run, "--format", name, "--out", file)
    assert exported.exit_code == 0, exported.output
    refused = review("import", file, "--format", name, "--run", run, "--out", back)
    assert refused.exit_code == 1
    assert "labels no clip" in refused.output
    text = file.read_text()
    if name == "label-studio":  # accepting a prediction makes it an annotation
        tasks = json.loads(text)
        tasks[0]["annotations"] = tasks[0]["predictions"][:1]
        text = json.dumps(tasks)
    file.write_text(text.replace("Detection", "Normal", 3))
    assert review("import", file, "--format", name, "--run", run, "--out", back).exit_code == 0
    assert {row["mark"] for row in read_rows(back)} == {"false"}


def test_a_drawn_event_labels_the_clips_in_it_unless_they_have_labels_of_their_own(run: Path, tmp_path: Path) -> None:
    rows = [row for row in read_rows(run / "predictions.csv") if row["source"] == "Fighting/a.mp4"]
    own = rows[3]
    annotations = [
        {"segment": [0.05, float(rows[5]["end_seconds"]) + 0.01], "label": "Fighting"},
        {"segment": [float(own["start_seconds"]), float(own["end_seconds"])], "label": "Normal"},
        {"segment": [90.0, 91.0], "label": "Fighting"},
    ]
    database = {"Fighting/a": {"annotations": annotations}, "elsewhere": {"annotations": annotations}}
    file, back = tmp_path / "file.json", tmp_path / "marks.csv"
    file.write_text(json.dumps({"version": "1.3", "taxonomy": [], "database": database}))
    result = review("import", file, "--format", "activitynet", "--run", run, "--out", back)
    assert result.exit_code == 0, result.output
    assert "note: 1 segment without a clip of the run" in result.stderr
    assert f"note: 1 video of the file not in {run}" in result.stderr
    found = {row["key"]: row["mark"] for row in read_rows(back)}
    assert found == {row["key"]: "false" if row is own else "true" for row in rows[:6]}


def test_label_studio_regions_that_are_no_answer_are_skipped() -> None:
    videos = Videos([Video(source="a.mp4", path="", fps=10.0, num_frames=50, duration_seconds=5.0, split=None)])

    def region(first: int, **labels: list[str]) -> dict[str, Any]:
        return {"type": "timelinelabels", "value": {"ranges": [{"start": first, "end": first + 9}], **labels}}

    annotations = [
        {"was_cancelled": True, "result": [region(1, timelinelabels=["Crime"])]},
        {"result": [region(11), region(21, timelinelabels=[]), region(31, timelinelabels=["Normal"])]},
    ]
    text = json.dumps([{"data": {"video": "a.mp4"}, "annotations": annotations}])
    read = [(one.start_seconds, one.label) for one in exchange.read_label_studio(text, videos)]
    assert read == [(3.0, "Normal")]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("activitynet", "[]", "cannot be read as --format activitynet"),
        ("fiftyone", '{"labels": {"Fighting/a": [{"label": 7}]}}', "cannot be read"),
        ("label-studio", "{", "cannot be read"),
        ("ucf-crime", "Fighting/a.mp4 Crime 5", "cannot be read"),
        ("ucf-crime", "a.mp4 Crime 0 3 -1 -1", "labels no clip"),  # which of the two?
        (
            "ucf-crime",
            "Fighting/a.mp4 Crime 0 3 -1 -1\nFighting/a.mp4 Normal 0 3 -1 -1",
            "is labelled Crime and Normal",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_a_sentence(
    name: str, text: str, words: str, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text(text)
    result = review("import", tmp_path / "file", "--format", name, "--run", run, "--out", tmp_path / "marks.csv")
    assert result.exit_code == 1
    assert result.output.startswith("error: ")
    assert words in result.output
    assert not (tmp_path / "marks.csv").exists()


def test_names_that_a_format_cannot_hold_are_refused() -> None:
    def videos(*names: str) -> Videos:
        facts: dict[str, Any] = {"path": "", "fps": 25.0, "num_frames": 9, "duration_seconds": 0.36, "split": None}
        return Videos(Video(source=name, **facts) for name in names)

    def segments(*names: str) -> list[Segment]:
        return [Segment(source=name, start_seconds=0.0, end_seconds=0.08, label="Crime") for name in names]

    both = ("a.mp4", "a.avi")
    assert list(FORMATS["ucf-crime"].read(exchange.write_ucf_crime(segments(*both), videos(*both)), videos(*both)))
    with pytest.raises(UserError, match="differ in their suffix alone"):
        exchange.write_fiftyone(segments(*both), videos(*both))
    with pytest.raises(UserError, match="'clip one' cannot be told"):
        exchange.write_ucf_crime(segments("clip one"), videos("clip one"))


def test_a_name_with_two_suffixes_finds_its_own_video() -> None:
    facts: dict[str, Any] = {"path": "", "fps": 25.0, "num_frames": 9, "duration_seconds": 0.36, "split": None}
    videos = Videos(Video(source=name, **facts) for name in ("x/a.mp4", "x/a.avi.mp4", "y/b.mp4", "y/b.avi.mp4"))
    segments = [Segment(source=name, start_seconds=0.0, end_seconds=0.08, label="Crime") for name in videos]
    read = exchange.read_fiftyone(exchange.write_fiftyone(segments, videos), videos)
    assert [one.source for one in read] == list(videos)
    for name, source in {"x/a": "x/a.mp4", "b.avi": "y/b.avi.mp4", "z\\b": "y/b.mp4", "x/a.mkv": "x/a.mp4"}.items():
        found = videos.find(name)
        assert found is not None
        assert found.source == source


def test_a_name_that_several_videos_have_finds_none() -> None:
    facts: dict[str, Any] = {"path": "", "fps": 25.0, "num_frames": 9, "duration_seconds": 0.36, "split": None}
    videos = Videos(Video(source=name, **facts) for name in ("x/a.mp4", "x/a.avi.mp4", "y/a.avi.mp4"))
    assert videos.find("a.avi") is None
    assert list(videos.unknown) == ["a.avi"]


def test_labels_of_another_run_are_counted_or_refused(run: Path, tmp_path: Path) -> None:
    marks = tmp_path / "marks.csv"
    rows = write_marks(run, marks)
    text = marks.read_text()
    marks.write_text(text + text.splitlines()[1].replace(rows[0]["key"], "other-000000") + "\n")
    file = tmp_path / "file.json"
    result = review("export", run, "--format", "fiftyone", "--marks", marks, "--out", file)
    assert f"note: 1 label of no clip of {run}" in result.stderr
    marks.write_text("\n".join([text.splitlines()[0], text.splitlines()[1].replace(rows[0]["key"], "other-000000")]))
    result = review("export", run, "--format", "fiftyone", "--marks", marks, "--out", file)
    assert result.exit_code == 1
    assert "has no label of a clip of" in result.stderr


def test_a_second_file_moves_the_first_aside(run: Path, tmp_path: Path) -> None:
    marks = tmp_path / "marks.csv"
    write_marks(run, marks)
    file = tmp_path / "file.json"
    for every in (1, 1, 2):
        write_marks(run, marks, every=every)
        assert review("export", run, "--format", "fiftyone", "--marks", marks, "--out", file).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file-1.json", "file.json", "marks.csv"]


# --- the real packages --------------------------------------------------------------------------------------------

DOCS = Path(__file__).parents[3] / "docs" / "OUTPUTS.md"


@pytest.mark.parametrize("with_marks", [True, False])
def test_label_studio_accepts_the_tasks(with_marks: bool, run: Path, tmp_path: Path) -> None:
    labels = pytest.importorskip("label_studio_sdk.label_interface", reason="label-studio-sdk is not installed")
    (config,) = re.findall(r"<View>.+?</View>", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    interface = labels.LabelInterface(config)
    marks = tmp_path / "marks.csv"
    write_marks(run, marks)
    file = tmp_path / "tasks.json"
    words = ["--marks", marks] if with_marks else []
    assert review("export", run, "--format", "label-studio", "--out", file, *words).exit_code == 0
    for task in json.loads(file.read_text()):
        assert interface.validate_task({"data": task["data"]}), task
        for one in task["annotations"]:
            assert interface.validate_annotation(one), one
            assert not interface.validate_annotation(json.loads(json.dumps(one).replace("Crime", "Other")))
        for one in task["predictions"]:
            assert interface.validate_prediction(one), one
        assert bool(task["annotations"]) == with_marks != bool(task["predictions"])


def test_fiftyone_reads_the_labels_and_its_export_is_read(run: Path, tmp_path: Path) -> None:
    """Check with FiftyOne's own importer and exporter; a FiftyOne dataset would need MongoDB."""
    pytest.importorskip("fiftyone", reason="fiftyone is not installed")
    data: Any = importlib.import_module("fiftyone.utils.data")
    metadata: Any = importlib.import_module("fiftyone.core.metadata")
    marks = tmp_path / "marks.csv"
    rows = write_marks(run, marks)
    file = tmp_path / "labels.json"
    assert review("export", run, "--format", "fiftyone", "--marks", marks, "--out", file).exit_code == 0
    videos = run.parent / "videos"
    importer = data.FiftyOneTemporalDetectionDatasetImporter(data_path=str(videos), labels_path=str(file))
    with importer:
        samples = [(path, labels) for path, _, labels, _ in importer]
    assert len(samples) == 3
    answers = [LABELS[one.label] for _, labels in samples for one in labels.detections]
    assert sorted(answers) == sorted(row["mark"] for row in rows)
    for use_timestamps in (False, True):
        out, back = tmp_path / f"exported-{use_timestamps}.json", tmp_path / f"back-{use_timestamps}.csv"
        exporter = data.FiftyOneTemporalDetectionDatasetExporter(
            labels_path=str(out), rel_dir=str(videos), export_media=False, use_timestamps=use_timestamps
        )
        with exporter:
            for path, labels in samples:
                exporter.export_sample(path, labels, None, metadata=metadata.VideoMetadata.build_for(path))
        result = review("import", out, "--format", "fiftyone", "--run", run, "--out", back)
        assert result.exit_code == 0, result.output
        assert read_rows(back) == rows
