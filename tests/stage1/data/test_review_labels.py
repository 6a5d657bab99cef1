from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fake_shards import random_clips, write_shards
from stage1.data.reader import ClipReader
from stage1.data.review_labels import apply_review_labels, read_review_labels
from stage1.training.clip_objective import ClipObjective
from stage1.training.config import TrainConfig
from stage1.training.data import open_data
from vidshard.util.errors import UserError

HEAD = "key,mark,source,clip_index,start_seconds,end_seconds,confidence,class,label\n"
# Clips of 4 frames, 0.1 s apart.
FALSE_FIGHT = "Fighting__video-001-000000,false,Fighting/video-001.mp4,0,0,0.3,0.9,Fighting,1\n"
TRUE_FIGHT = "Fighting__video-002-000000,true,Fighting/video-002.mp4,0,0,0.3,0.8,Fighting,1\n"


@pytest.fixture
def reader(tmp_path: Path) -> ClipReader:
    return ClipReader(write_shards(tmp_path / "shards", random_clips(4), [0, 1, 1, 0]))


def review_file(folder: Path, *rows: str, name: str = "marks.csv") -> Path:
    path = folder / name
    path.write_text(HEAD + "".join(rows))
    return path


def labelled(reader: ClipReader, row: int, answer: str) -> str:
    """Return a line of a file with the column `shards`, as a report exports it."""
    record = reader.read_record(row)
    start, end = record.timestamps_seconds[0], record.timestamps_seconds[-1]
    return f"{reader.digest},{record.key},{answer},{record.path},0,{start},{end},0.9,,{record.label}\n"


def set_file(folder: Path, *rows: str, name: str = "marks.csv") -> Path:
    path = folder / name
    path.write_text("shards," + HEAD + "".join(rows))
    return path


def test_review_labels_replace_labels(tmp_path: Path, reader: ClipReader) -> None:
    path = review_file(tmp_path, FALSE_FIGHT, TRUE_FIGHT)
    marked = apply_review_labels([reader], read_review_labels([path]), use="labels")
    assert marked.labels.tolist() == [0, 0, 1, 0]
    assert marked.kept.all()
    assert marked.note(read_review_labels([path]), "labels") == (
        f"1 of 2 marked clips contradict their label and are relabelled: {path}"
    )
    assert reader.labels.tolist() == [0, 1, 1, 0]


def test_clips_whose_review_label_contradicts_their_label_are_left_out(tmp_path: Path, reader: ClipReader) -> None:
    path = review_file(tmp_path, FALSE_FIGHT, TRUE_FIGHT, FALSE_FIGHT.replace("video-001", "video-777"))
    marked = apply_review_labels([reader], read_review_labels([path]), use="exclusions")
    assert marked.labels.tolist() == [0, 1, 1, 0]
    assert np.flatnonzero(~marked.kept).tolist() == [1]
    assert (marked.num_found, marked.num_missing) == (2, 1)
    assert "left out" in marked.note(read_review_labels([path]), "exclusions")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((FALSE_FIGHT.replace("false", "maybe"),), "line 2: expected key, mark (true, false or unsure)"),
        ((FALSE_FIGHT.replace(",0,0.3", ",0,"),), "line 2: expected key, mark"),
        (
            (FALSE_FIGHT, FALSE_FIGHT.replace("false", "true")),
            "has two contradictory marks",
        ),
        ((), "contains no marks"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path: Path, rows: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as error:
        read_review_labels([review_file(tmp_path, *rows)])
    assert message in str(error.value)


def test_review_labels_may_exclude_all_clips_held_out(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "more", random_clips(12), [0, 1] * 6)
    held = open_data(TrainConfig(shards=shards, val_fraction=0.2)).validation_rows
    reader = ClipReader(shards)
    rows = []
    for row in held.tolist():
        record = reader.read_record(row)
        answer = "false" if record.label else "true"
        start, end = record.timestamps_seconds[0], record.timestamps_seconds[-1]
        rows.append(f"{record.key},{answer},{record.path},0,{start},{end},0.9,,{record.label}\n")
    path = review_file(tmp_path, *rows)
    data = open_data(TrainConfig(shards=shards, val_fraction=0.2, marks=path, marks_as="exclusions"))
    assert data.validation is None
    assert f"{path} excludes all clips held out for validation, so the last epoch is kept" in data.warnings


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_review_labels([tmp_path / "none.csv"])


def test_review_labels_of_other_shards_are_refused(tmp_path: Path, reader: ClipReader) -> None:
    path = review_file(tmp_path, FALSE_FIGHT.replace(",0,0.3", ",1,1.3"))
    with pytest.raises(UserError, match=r"was marked from 1 to 1\.3 s, but in .*shards it runs from 0 to 0\.3 s"):
        apply_review_labels([reader], read_review_labels([path]), use="labels")
    path = review_file(tmp_path, FALSE_FIGHT.replace("video-001", "video-777"))
    with pytest.raises(UserError, match="none of the 1 marked clips is in"):
        apply_review_labels([reader], read_review_labels([path]), use="labels")


def train_config(folder: Path, **changes: Any) -> TrainConfig:
    fields: dict[str, Any] = {"shards": folder / "shards", "marks": folder / "marks.csv", "val_fraction": 0.0}
    return TrainConfig(**{**fields, **changes})


@pytest.mark.usefixtures("reader")
def test_training_takes_review_labels_or_leaves_clips_out(tmp_path: Path) -> None:
    review_file(tmp_path, FALSE_FIGHT)
    relabelled = open_data(train_config(tmp_path))
    assert relabelled.train_labels.tolist() == [0, 0, 1, 0]
    assert "1 of 1 marked clips contradict their label and are relabelled" in relabelled.notes[0]
    loader, _ = ClipObjective(config=train_config(tmp_path, batch_size=4)).make_loaders(relabelled, torch.device("cpu"))
    (batch,) = loader
    assert batch.labels[batch.indices.argsort()].tolist() == [0, 0, 1, 0]

    left_out = open_data(train_config(tmp_path, marks_as="exclusions"))
    assert left_out.train_rows.tolist() == [0, 2, 3]
    assert left_out.train_labels.tolist() == [0, 1, 0]


@pytest.mark.usefixtures("reader")
def test_a_crime_that_a_reviewer_confirmed_shows_in_all_frames_of_its_clip(tmp_path: Path) -> None:
    review_file(tmp_path, FALSE_FIGHT, TRUE_FIGHT)
    frames = open_data(train_config(tmp_path)).frame_labels(trimmed_seconds=0)  # no video is short enough by itself
    assert frames[:, 0].tolist() == [0, 0, 1, 0]
    assert (frames == frames[:, :1]).all()
    unseen = open_data(train_config(tmp_path, trimmed_seconds=0.2)).frame_labels(trimmed_seconds=0)
    assert unseen[:, 0].tolist() == [0, 0, -1, 0]  # the clip lasts 0.3 s


@pytest.mark.usefixtures("reader")
def test_review_labels_that_leave_one_class_are_refused(tmp_path: Path) -> None:
    review_file(tmp_path, FALSE_FIGHT, TRUE_FIGHT.replace("true", "false"))
    with pytest.raises(UserError, match="has 4 normal clips to train on and no crime one"):
        open_data(train_config(tmp_path))


def test_labels_of_unlabelled_footage_add_to_the_training(tmp_path: Path) -> None:
    labelled_set = write_shards(tmp_path / "a", random_clips(4), [0, 1, 1, 0])
    new = write_shards(tmp_path / "b", random_clips(3), [-1, -1, -1], prefix="new-")
    path = set_file(tmp_path, labelled(ClipReader(new), 0, "true"), labelled(ClipReader(new), 1, "false"))
    config = TrainConfig(shards=(labelled_set, new), marks=path, val_fraction=0.0, batch_size=6)
    data = open_data(config)
    assert data.train_rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert data.train_labels.tolist() == [0, 1, 1, 0, 1, 0]
    assert data.notes[0] == (
        f"0 of 2 marked clips contradict their label and are relabelled, 2 had none: {path}; 1 clips without a label "
        "are left out"
    )
    loader, _ = ClipObjective(config=config).make_loaders(data, torch.device("cpu"))
    (batch,) = loader
    assert sorted(zip(batch.indices.tolist(), batch.labels.tolist(), strict=True))[4:] == [(4, 1), (5, 0)]


def test_a_label_goes_to_the_set_that_it_names(tmp_path: Path) -> None:
    noise = random_clips(8)
    sets = [
        ClipReader(write_shards(tmp_path / name, clips, [0, 1, 1, 0]))
        for name, clips in (("a", noise[:4]), ("b", noise[4:]))
    ]
    assert sets[0].index.key(1) == sets[1].index.key(1)
    review = read_review_labels([set_file(tmp_path, labelled(sets[1], 1, "false"))])
    assert apply_review_labels(sets, review, use="labels").labels.tolist() == [0, 1, 1, 0, 0, 0, 1, 0]
    assert apply_review_labels(sets[::-1], review, use="labels").labels.tolist() == [0, 0, 1, 0, 0, 1, 1, 0]
    # Of a set that is not among them, as it was extended since, the clip of the same key and time is taken.
    assert apply_review_labels(sets[:1], review, use="labels").labels.tolist() == [0, 0, 1, 0]


def test_labels_of_several_reviewers_merge_and_contradictions_are_listed(tmp_path: Path, reader: ClipReader) -> None:
    one = set_file(tmp_path, labelled(reader, 0, "true"), labelled(reader, 1, "false"), name="one.csv")
    two = set_file(
        tmp_path,
        labelled(reader, 1, "true"),
        labelled(reader, 2, "false"),
        labelled(reader, 3, "unsure"),
        name="two.csv",
    )
    review = read_review_labels([one, two])
    reviewed = apply_review_labels([reader], review, use="labels")
    assert reviewed.labels.tolist() == [1, 1, 0, 0]
    note = reviewed.note(review, "labels")
    assert note.endswith(
        f"1 clips were marked differently by several reviewers, and these marks are ignored: {reader.index.key(1)}"
    )
    assert f"{one}, {two}" in note


@pytest.mark.parametrize("times", ["nan,1.0", "0.0,nan", "2.0,1.0", "0.0,inf"])
def test_times_that_cannot_be_are_refused(tmp_path: Path, times: str) -> None:
    (tmp_path / "marks.csv").write_text(f"key,mark,start_seconds,end_seconds\na-000000,true,{times}\n")
    with pytest.raises(UserError, match=r"marks\.csv, line 2: expected key, mark"):
        read_review_labels([tmp_path / "marks.csv"])
