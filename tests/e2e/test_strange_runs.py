"""Output folders of `stage1 infer` made by others, read by `stage1 report` and `stage1 visualize`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inference_runs import place as place
from inference_runs import stage1
from vidshard.storage import urls

Change = Callable[[Any], object]


@pytest.fixture
def run(place: Path) -> Path:
    assert stage1("infer", "--device", "cpu").exit_code == 0
    return place / "stage1_output"


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("run.json", lambda run: run.pop("clips"), ": lacks clips"),
        ("run.json", lambda run: run.update(threshold="high"), ": threshold: is 'high', expected type 'number'"),
        ("run.json", lambda run: run.update(shards=None), ": shards: is None, expected type 'object'"),
        ("run.json", lambda run: run["metrics"].update(accuracy=7), ": metrics: accuracy: is 7, expected maximum 1"),
        (
            "events.json",
            lambda events: events["videos"][0].update(duration_seconds=-1),
            "duration_seconds: is -1, expected minimum 0",
        ),
        ("events.json", lambda events: events["videos"].append(3), ": videos: 7: is 3, expected type 'object'"),
        ("anomalies.json", lambda found: found[0].update(confidence=float("nan")), "NaN is not a JSON number"),
        (
            "anomalies.json",
            lambda found: found[0].update(attention_weights=[]),
            "attention_weights: is [], expected minItems 1",
        ),
        ("run.json", lambda run: run.update(speed=1), ": speed is unknown"),
        (
            "events.json",
            lambda events: events["videos"][0].update(duration_seconds=1e300),
            "duration_seconds: is 1e+300",
        ),
        ("anomalies.json", lambda found: found[0].update(seconds=[3, 2, 1, 0]), "contradict each other"),
    ],
)
def test_a_value_that_cannot_be_is_one_line(run: Path, name: str, change: Change, why: str) -> None:
    fields = json.loads((run / name).read_text())
    change(fields)
    (run / name).write_text(json.dumps(fields))
    done = stage1("report")
    assert isinstance(done.exception, SystemExit), done.exception
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1), done.output
    assert done.stderr.startswith(f"error: stage1_output/{name}")
    assert why in done.stderr


@pytest.mark.parametrize(
    ("old", "new"), [(",Fighting,1,", ",Fighting,5,"), ("NormalVideos__", "../"), (",0.0,", ",9.0,")]
)
def test_a_row_of_predictions_that_cannot_be_is_one_line(run: Path, old: str, new: str) -> None:
    path = run / "predictions.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    done = stage1("report")
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 1
    assert done.stderr.startswith("error: stage1_output/predictions.csv is not a table of predictions")


def test_the_report_opens_no_url_that_only_the_run_names(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(urls, "read_bytes", lambda url: asked.append(url) or pytest.fail(f"{url} was opened"))
    fields = json.loads((run / "run.json").read_text())
    fields["shards"]["path"] = "http://127.0.0.1:9/shards"
    (run / "run.json").write_text(json.dumps(fields))
    assert stage1("report").exit_code == 0
    assert not asked
    done = stage1("report", "--shards", "shards/Test")
    assert done.exit_code == 0, done.output
