"""Composites: which frames come from which clip, which clips are partners, and what attention learns."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fake_shards import write_shards
from stage1.data.config import TransformConfig
from stage1.data.loader import Batch
from stage1.data.reader import ClipReader
from stage1.training.clip_objective import ATTENTION_WEIGHT, FRAME_WEIGHT, ClipObjective, attention_loss
from stage1.training.config import TrainConfig
from stage1.training.data import TrainData, open_data
from stage1.training.splices import SCORED_CLIPS, SplicePlan, Splicer, own_frames, splice
from vidshard.util.errors import FormatError, UserError

LABELS = [1, 0, 0, 1, 0, 0, 1, 0]
RECORDINGS = ["A", "A", "A", "B", "B", "B", "C", None]  # C has no normal clip
SHAPE = (8, 4, 4)


@pytest.fixture
def reader(tmp_path: Path) -> ClipReader:
    """Clips whose pixels all have ten times the number of their row."""
    clips = np.repeat(np.arange(8, dtype=np.uint8) * 10, np.prod((*SHAPE, 3))).reshape(8, *SHAPE, 3)
    return ClipReader(write_shards(tmp_path / "s", clips, LABELS, source_groups=RECORDINGS))


def splicer(reader: ClipReader, share: float = 1.0, **options: Any) -> Splicer:
    data = TrainData(
        train=reader,
        train_rows=np.arange(len(reader)),
        validation=None,
        validation_rows=np.arange(0),
        notes=(),
        warnings=(),
    )
    return Splicer.of_data(data, TrainConfig(shards=(Path("s"),), splices=share, **options))


def test_partners_are_normal_clips_of_the_recording_or_else_of_the_set(reader: ClipReader) -> None:
    def partners(row: int) -> list[int]:
        return sorted({splicer(reader).partner(row, drawn) or 0 for drawn in np.linspace(0, 0.999, 50)})

    assert partners(0) == [1, 2]
    assert partners(4) == [5]  # never itself
    assert partners(6) == [1, 2, 4, 5, 7]
    assert partners(7) == [1, 2, 4, 5]


def test_composites_depend_on_seed_epoch_and_row_alone(reader: ClipReader) -> None:
    def plan(rows: list[int], epoch: int = 0) -> list[SplicePlan]:
        indices = torch.tensor(rows)
        return splicer(reader).plan(torch.tensor([LABELS[row] for row in rows]), indices, num_frames=8, epoch=epoch)

    (alone,), together = plan([3]), plan([5, 3, 1])
    assert together[1] == alone._replace(place=1)
    assert plan([3], epoch=1) != [alone]
    assert plan(list(range(8))) == plan(list(range(8)))


def test_a_share_of_the_clips_is_spliced_and_no_clip_without_label(reader: ClipReader) -> None:
    rows = torch.arange(8)
    plans = [splicer(reader, 0.25).plan(torch.tensor(LABELS), rows, num_frames=8, epoch=epoch) for epoch in range(200)]
    assert sum(map(len, plans)) / 1600 == pytest.approx(0.25, abs=0.04)
    assert splicer(reader).plan(torch.full((8,), -1), rows, num_frames=8, epoch=0) == []
    assert splicer(reader).plan(torch.tensor(LABELS), rows, num_frames=4, epoch=0) == []  # too short
    lengths = {plan.last - plan.first for epoch in plans for plan in epoch}
    assert lengths == {2, 3, 4}
    assert {plan.is_inserted for epoch in plans for plan in epoch} == {False, True}


def test_frames_come_from_the_clip_that_the_plan_says() -> None:
    clips = torch.full((1, 1, 6, 1, 1), 8.0)
    weights = own_frames(SplicePlan(0, 0, 2, 4, is_inserted=True, blended=True), 6)
    splice(clips, torch.zeros(1, 1, 6, 1, 1), torch.tensor([0]), torch.from_numpy(weights)[None])
    assert clips.flatten().tolist() == [0, 4, 8, 8, 4, 0]
    outside = SplicePlan(0, 0, 0, 2, is_inserted=False, blended=False)
    assert own_frames(outside, 4).tolist() == [0, 0, 1, 1]


def test_attention_is_taught_the_frames_of_the_crime(reader: ClipReader) -> None:
    """The loss grows by the divergence of attention from the crime's frames, found here from the pixels."""
    config = TrainConfig(shards=Path("s"), splices=1.0)
    seen = []

    def forward(clips: torch.Tensor, **_: bool) -> tuple[torch.Tensor, ...]:
        seen.append(clips[:, 0, :, 0, 0].clone())
        return torch.zeros(len(clips), 2), torch.full((len(clips), 8), 1 / 8), torch.zeros(len(clips), 8, 2)

    def loss(splicing: Splicer | None) -> float:
        objective = ClipObjective(
            config=config, transform=lambda clips, _rows, _epoch: clips.permute(0, 4, 1, 2, 3).float()
        )
        objective.splicer = splicing
        clips = torch.from_numpy(np.stack([reader[0], reader[1]]))
        batch = Batch(clips, torch.tensor([1, 0]), torch.tensor([0, 1]))
        return float(objective.loss(torch.nn.Identity(), forward, objective.prepare(batch, 0), 0).loss_sum)

    plain, taught = loss(None), loss(splicer(reader))
    crime, normal = seen[-1]
    num_crime = int((crime == 0).sum())  # row 0 is black, and its partner is not
    assert 0 < num_crime < 8
    assert set(normal.tolist()) <= {10, 15, 20}  # a normal clip keeps normal frames
    of_frames = FRAME_WEIGHT * 2 * np.log(2)  # of both clips
    assert taught - plain == pytest.approx(ATTENTION_WEIGHT * np.log(8 / num_crime) + of_frames, rel=1e-5)


def test_the_loss_of_attention_is_smallest_where_attention_is_right() -> None:
    events = torch.tensor([[0, 1, 1, 0]])
    right = attention_loss(torch.tensor([[0, 0.5, 0.5, 0]]), events)
    assert float(right) == pytest.approx(0, abs=1e-6)
    blocks = torch.tensor([[1.0, 0]])  # of two frames each
    assert float(attention_loss(blocks, torch.tensor([[1, 1, 0, 0]]))) == pytest.approx(0, abs=1e-6)
    for other in ([0.25, 0.25, 0.25, 0.25], [0, 0.9, 0.1, 0], [0.5, 0, 0, 0.5]):
        assert float(attention_loss(torch.tensor([other]), events)) > 0.1


def test_a_damaged_partner_is_an_error_or_is_left_out_where_damage_is_tolerated(
    reader: ClipReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ClipReader.read_clips

    def damaged(self: ClipReader, rows: Any, out: Any) -> None:
        if 1 in rows:
            raise FormatError("clip 1 is damaged")
        read(self, rows, out)

    monkeypatch.setattr(ClipReader, "read_clips", damaged)
    plans = [SplicePlan(0, 1, 0, 2, is_inserted=True, blended=False), SplicePlan(1, 2, 0, 2, True, False)]
    plans.append(SplicePlan(2, 2, 0, 2, True, False, instead=3))
    kept, partners, others = splicer(reader, max_bad_clips=1).read(plans)
    assert kept == plans[1:]
    assert partners.unique().tolist() == [20]
    assert (len(others), others.unique().tolist()) == (1, [30])
    with pytest.raises(FormatError, match="clip 1"):
        splicer(reader).read(plans)


def test_training_logs_the_source_of_the_partners(reader: ClipReader) -> None:
    note = splicer(reader).note(np.arange(8), reader.labels)
    assert "3 crime clips with normal clips of their recording (2) or of any camera (1)" in note
    assert "nothing is known" not in note


def test_long_videos_of_few_clips_are_not_spliced(reader: ClipReader) -> None:
    """The videos last 0.8 seconds."""
    assert splicer(reader, trimmed_seconds=0.9).plan(torch.tensor(LABELS), torch.arange(8), num_frames=8, epoch=0)
    long = splicer(reader, trimmed_seconds=0.7)
    assert long.plan(torch.tensor(LABELS), torch.arange(8), num_frames=8, epoch=0) == []
    assert len(long.to_score) == 0
    assert "labels alone; nothing is known of the frames of 3 crime videos" in long.note(np.arange(8), reader.labels)


def test_of_a_long_video_the_highest_scoring_clips_are_spliced_with_the_lowest_scoring(tmp_path: Path) -> None:
    clips = np.zeros((130, *SHAPE, 3), np.uint8)
    reader = ClipReader(write_shards(tmp_path / "s", clips, [1] * 100 + [0] * 30, clips_per_video=100))
    splicing = splicer(reader, trimmed_seconds=0.1)
    rows = splicing.to_score
    assert (len(rows), rows.min(), rows.max()) == (SCORED_CLIPS, 0, 99)  # of the crime video, evenly spaced
    scores = np.where(rows % 2, 1.0, -1.0) * rows
    splicing = splicing.with_scores(rows, scores.astype(np.float32))
    order, count = rows[np.argsort(scores)].tolist(), SCORED_CLIPS // 5
    assert splicing.stretches[0].crime.tolist() == order[-count:]
    assert splicing.stretches[0].quiet.tolist() == order[:count]
    plans = [splicing.plan(torch.tensor([1]), torch.tensor([7]), num_frames=8, epoch=epoch)[0] for epoch in range(200)]
    assert {plan.instead for plan in plans} == set(order[-count:])
    assert {plan.partner for plan in plans} == set(order[:count])
    assert "highest- and lowest-scoring clips of 1 videos" in splicing.note(np.arange(130), reader.labels)


def test_a_composite_of_a_long_video_takes_the_place_of_the_clip_in_the_batch(tmp_path: Path) -> None:
    clips = np.repeat(np.arange(40, dtype=np.uint8), np.prod((*SHAPE, 3))).reshape(40, *SHAPE, 3)
    reader = ClipReader(write_shards(tmp_path / "s", clips, [1] * 20 + [0] * 20, clips_per_video=20))
    splicing = splicer(reader, trimmed_seconds=0.1)
    splicing = splicing.with_scores(splicing.to_score, splicing.to_score.astype(np.float32))
    seen = []

    def forward(clips: torch.Tensor, **_: bool) -> tuple[torch.Tensor, ...]:
        seen.append(clips[0, 0, :, 0, 0].clone())
        return torch.zeros(len(clips), 2), torch.full((len(clips), 8), 1 / 8), torch.zeros(len(clips), 8, 2)

    def floats(clips: torch.Tensor, _rows: torch.Tensor, _epoch: int) -> torch.Tensor:
        return clips.permute(0, 4, 1, 2, 3).float()

    objective = ClipObjective(config=TrainConfig(shards=(Path("s"),)), transform=floats)
    objective.splicer = splicing
    batch = Batch(torch.from_numpy(reader[10][None]), torch.tensor([1]), torch.tensor([10]))
    loss = float(objective.loss(torch.nn.Identity(), forward, objective.prepare(batch, 0), 0).loss_sum)
    frames = seen[-1]
    crime = np.isin(frames, [16, 17, 18, 19])  # the highest scores
    attention = ATTENTION_WEIGHT * np.log(8 / crime.sum())
    assert loss == pytest.approx((1 + FRAME_WEIGHT) * np.log(2) + attention, rel=1e-5)
    assert min(frames.tolist()) < 4  # the lowest ones
    assert 10 not in frames.tolist()


# --- annotated videos ---------------------------------------------------------------------------------------------


@pytest.fixture
def annotated(tmp_path: Path) -> TrainConfig:
    """Three videos of four clips of 8 frames. In the first one, frames 8 to 13, 16 to 23 and 31 are in events."""
    folder = write_shards(
        tmp_path / "s",
        np.zeros((12, *SHAPE, 3), np.uint8),
        [1] * 8 + [0] * 4,
        clips_per_video=4,
        consecutive=True,
    )
    path = tmp_path / "annotations.txt"
    path.write_text("video-000.mp4 Fighting 8 13 16 23 31 31\n")
    return TrainConfig(shards=(folder,), val_fraction=0, annotations=path, trimmed_seconds=0.1)


def test_annotated_clips_are_crimes_where_they_show_the_event(annotated: TrainConfig) -> None:
    data = open_data(annotated)
    assert data.train_rows.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11]  # 1 of 8 frames is neither
    assert data.labels[:3].tolist() == [0, 1, 1]
    assert data.labels[4:].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]  # the second video is not listed
    frames = data.frame_labels(trimmed_seconds=0.1)
    assert frames[:3].tolist() == [[0] * 8, [1] * 6 + [0] * 2, [1] * 8]
    assert (frames[4:8] == -1).all()
    assert (frames[8:] == 0).all()
    assert any("4 clips of crimes: 1 show no event" in note for note in data.notes)


def test_attention_is_taught_annotated_frames_as_they_are_and_whole_clips_by_composites(
    annotated: TrainConfig,
) -> None:
    data = open_data(annotated)
    splicing = Splicer.of_data(data, dataclasses.replace(annotated, splices=1.0))
    rows = torch.tensor([1, 2, 4, 8])
    assert splicing.known_frames(rows).tolist() == [
        [1] * 6 + [0] * 2,
        [-1] * 8,  # nothing is known of the crime in row 4, so whole clips teach no frames
        [-1] * 8,
        [-1] * 8,
    ]
    plans = splicing.plan(torch.tensor([1, 1, 1, 0]), rows, num_frames=8, epoch=0)
    assert [plan.place for plan in plans] == [1, 3]  # row 2 shows the crime only; row 8 is normal
    assert plans[0].partner == 0  # the only normal clip of its video
    note = splicing.note(data.train_rows, data.labels)
    assert "composites of 1 crime clips with normal clips of their recording (1)" in note
    assert "the annotated frames of 1 clips; nothing is known of the frames of 1 crime videos" in note


def test_whole_clips_teach_their_frames_where_every_crime_is_known(reader: ClipReader) -> None:
    rows = torch.tensor([0, 1])
    assert splicer(reader).known_frames(rows).tolist() == [[1] * 8, [0] * 8]
    assert (splicer(reader, trimmed_seconds=0.1).known_frames(rows) == -1).all()


def test_augmentation_in_time_leaves_no_annotated_frame(annotated: TrainConfig) -> None:
    moving = dataclasses.replace(annotated, transform=TransformConfig(augment=True, time_shift=2))
    splicing = Splicer.of_data(open_data(moving), moving)
    assert (splicing.known_frames(torch.tensor([1])) == -1).all()


def test_clips_of_annotated_sampling_show_the_crime_only(tmp_path: Path) -> None:
    folder = write_shards(
        tmp_path / "s",
        np.zeros((4, *SHAPE, 3), np.uint8),
        [1, 1, 0, 0],
        clips_per_video=2,
        settings={"mode": "annotated"},
    )
    config = TrainConfig(shards=(folder,), val_fraction=0, trimmed_seconds=0.1)
    assert open_data(config).frame_labels(trimmed_seconds=0.1)[:, 0].tolist() == [1, 1, 0, 0]


def test_annotations_of_a_short_video_say_more_than_its_length(annotated: TrainConfig) -> None:
    short = dataclasses.replace(annotated, trimmed_seconds=100)
    frames = open_data(short).frame_labels(trimmed_seconds=100)
    assert frames[1].tolist() == [1] * 6 + [0] * 2
    assert (frames[4:8] == 1).all()  # the second video is short, too, and not annotated


def test_annotations_of_no_video_and_bags_are_refused(annotated: TrainConfig) -> None:
    assert annotated.annotations is not None
    annotated.annotations.write_text("other.mp4 Fighting 8 13 -1 -1\n")
    with pytest.raises(UserError, match="lists none"):
        open_data(annotated)
    with pytest.raises(UserError, match="cannot be combined"):
        dataclasses.replace(annotated, bags="topk")
