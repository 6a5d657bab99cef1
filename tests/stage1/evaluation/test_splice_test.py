"""The test of attention on composites, with models whose attention is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fake_shards import write_shards
from stage1.data.config import TransformConfig
from stage1.data.reader import ClipReader
from stage1.data.transforms import ClipTransform
from stage1.evaluation import splice_test
from stage1.evaluation.splice_test import CRIME_INSERTED, NORMAL_INSERTED, AttentionTest
from stage1.model.network import ModelConfig, Stage1Model

T = 8


class BrightAttention(Stage1Model):
    """Attention on bright frames (1), dark frames (-1) or all alike (0)."""

    def __init__(self, sign: float) -> None:
        super().__init__(ModelConfig(channels=(8,), temporal_stages=()))
        self.sign = sign

    def pooled(
        self, clips_BCTHW: torch.Tensor, frames_BT: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        bright_BT = self.sign * clips_BCTHW.mean((1, 3, 4))
        return torch.zeros(len(clips_BCTHW), 16), bright_BT.softmax(1)


@pytest.fixture
def reader(tmp_path: Path) -> ClipReader:
    """Two recordings with bright crimes and dark normal clips, and a crime alone in its recording."""
    generator = np.random.default_rng(0)
    labels, recordings = [1, 0, 0, 1, 0, 1], ["A", "A", "A", "B", "B", "C"]
    clips = generator.integers(0, 40, (6, T, 8, 8, 3)) + 150 * np.array(labels).reshape(6, 1, 1, 1, 1)
    return ClipReader(write_shards(tmp_path / "s", clips.astype(np.uint8), labels, source_groups=recordings))


def aucs(reader: ClipReader, sign: float) -> dict[str, float]:
    test = AttentionTest(BrightAttention(sign), ClipTransform(TransformConfig()), torch.device("cpu"))
    fields = splice_test.summarise([test.run(reader, np.arange(6))], num_resamples=100)
    assert [one["recordings"] for one in fields["frame_auc"]] == [2] * 4
    return {one["inserted"]: one["attention"]["value"] for one in fields["frame_auc"]}


def test_attention_on_the_crime_is_found_in_both_directions(reader: ClipReader) -> None:
    assert aucs(reader, 1) == {CRIME_INSERTED: 1, NORMAL_INSERTED: 0}
    assert aucs(reader, -1) == {CRIME_INSERTED: 0, NORMAL_INSERTED: 1}
    assert aucs(reader, 0) == {CRIME_INSERTED: 0.5, NORMAL_INSERTED: 0.5}


def test_partners_of_the_nearest_motion(reader: ClipReader) -> None:
    motion = np.array([5.0, 1, 6, 0, 0, 0])
    found = splice_test.composites(reader, np.arange(6), seed=0, motion_N=motion)
    assert {(one.base, one.inserted) for one in found if one.kind == CRIME_INSERTED} == {(2, 0), (4, 3)}
    drawn = splice_test.composites(reader, np.arange(6), seed=0)
    assert {one.base for one in drawn if one.kind == CRIME_INSERTED} == {1, 2, 4}
    assert {one.last - one.first for one in drawn} <= {2, 3, 4}


def test_correlation_is_one_for_a_model_that_has_learnt_nothing(reader: ClipReader) -> None:
    torch.manual_seed(0)
    test = AttentionTest(Stage1Model(), ClipTransform(TransformConfig()), torch.device("cpu"))
    assert test.run(reader, np.arange(6))["correlation_with_untrained"] == pytest.approx([1, 1, 1])


def test_rows_are_crimes_with_normal_clips_of_their_recording(reader: ClipReader) -> None:
    assert splice_test.chosen_rows(reader, max_crimes=10).tolist() == [0, 1, 2, 3, 4]
    assert splice_test.chosen_rows(reader, max_crimes=1).tolist() == [0, 1, 2]
