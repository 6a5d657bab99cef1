"""Test of attention on composite clips, in which the frames of the crime are known.

A few consecutive frames of a crime are inserted into a normal clip of the same recording, and vice versa. A
model that finds the crime attends to the crime's frames in both; one that merely looks at changes attends to the
inserted frames in both. Everything is compared with the frames' own motion, since most crimes move more than their
surroundings, and with the attention of the same model before training.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stage1.data.epoch_plan import Rows, evenly_spaced
from stage1.data.reader import ClipReader, JoinedReader
from stage1.data.transforms import ClipTransform
from stage1.inference.scoring import attention_of_frames
from stage1.metrics import clips as metrics
from stage1.metrics.clips import Array, interval_text
from stage1.model.network import Stage1Model, relative_motion
from vidshard.shards.layout import CRIME_LABEL, NORMAL_LABEL
from vidshard.util import console

MAX_NORMALS = 8  # of a recording
PER_CLIP = 4  # composites of each kind for each crime
CRIME_INSERTED, NORMAL_INSERTED = "crime frames in a normal clip", "normal frames in a crime"
KINDS = (CRIME_INSERTED, NORMAL_INSERTED)
SPLICE_CONVENTIONS = {
    "composite": "a quarter to half of the frames come from the other clip, of the same recording and at the same "
    "places",
    "frame AUC": "of the inserted frames in each composite, mean over composites: 1 if all attention is on them, 0.5 "
    "for chance; high for crime frames and low for normal frames if attention follows the crime",
    "motion": "mean change of a frame's pixels from the frame before",
    "matched": "the normal clip of the recording whose motion is nearest to that of the crime",
    "intervals": "95 % percentile bootstrap over recordings",
}


@dataclasses.dataclass(frozen=True)
class Composite:
    """Composite of two clips of a recording, by their index rows."""

    kind: str  # of KINDS
    recording: str
    base: int
    inserted: int
    first: int  # frame
    last: int  # frame after the inserted ones


def composites(
    reader: ClipReader | JoinedReader, rows: Rows, *, seed: int, motion_N: Array | None = None
) -> list[Composite]:
    """Draw PER_CLIP composites of each kind for every crime of `rows` whose recording also has normal clips.

    With `motion_N`, the motion of each row, the partner is the normal clip with the most similar motion, not a random
    one.
    """
    T = reader.clip_shape.num_frames
    recordings = {row: reader.recording_or_video(int(reader.videos[row])) for row in rows.tolist()}
    normals: dict[str, list[int]] = {}
    for row in rows[reader.labels[rows] == NORMAL_LABEL].tolist():
        normals.setdefault(recordings[row], []).append(row)
    found = []
    for row in rows[reader.labels[rows] == CRIME_LABEL].tolist():
        partners = normals.get(recordings[row], [])
        generator = np.random.default_rng((seed, row))
        for _ in range(PER_CLIP if partners else 0):
            partner = partners[int(generator.integers(len(partners)))]
            if motion_N is not None:
                partner = min(partners, key=lambda other: abs(motion_N[other] - motion_N[row]))
            length = int(generator.integers(max(1, T // 4), max(1, T // 2) + 1))
            first = int(generator.integers(0, T - length + 1))
            for kind, base, inserted in ((CRIME_INSERTED, partner, row), (NORMAL_INSERTED, row, partner)):
                found.append(Composite(kind, recordings[row], base, inserted, first, first + length))
    return found


class AttentionTest:
    """Test of a model's attention, compared with motion and with the same model before training."""

    def __init__(self, model: Stage1Model, transform: ClipTransform, device: torch.device) -> None:
        self.model, self.transform, self.device = model.eval(), transform, device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.untrained = Stage1Model(model.config).eval().to(device)

    def attention(self, clips_BTHWC: torch.Tensor) -> tuple[Array, Array, Array]:
        """Return attention, attention before training, and motion of every frame, each (B, T)."""
        with torch.inference_mode():
            clips_BCTHW = self.transform(clips_BTHWC.to(self.device))
            T = clips_BCTHW.shape[2]
            found = [
                attention_of_frames(model, model.pooled(clips_BCTHW)[1], T).astype(np.float64)
                for model in (self.model, self.untrained)
            ]
            return found[0], found[1], relative_motion(clips_BCTHW).double().cpu().numpy()

    def correlations(self, clips_BTHWC: npt.NDArray[np.uint8]) -> list[float]:
        """Return the correlation of attention with that before training, of each clip where neither is constant."""
        found = []
        for clip in clips_BTHWC:
            trained, untrained, _ = self.attention(torch.from_numpy(clip)[None])
            if trained.std() > 0 and untrained.std() > 0:
                found.append(float(np.corrcoef(trained[0], untrained[0])[0, 1]))
        return found

    def run(self, reader: ClipReader | JoinedReader, rows: Rows, *, seed: int = 0) -> dict[str, Any]:
        """Return the results for the clips of `rows`, one row for each composite and each crime (see `summarise`)."""
        clips = np.empty((len(rows), *reader.clip_shape.thwc), np.uint8)
        reader.read_clips(rows, clips)
        place = {row: i for i, row in enumerate(rows.tolist())}
        motion_N = np.zeros(len(reader))
        motion_N[rows] = [np.abs(np.diff(clip.astype(np.int16), axis=0)).mean() for clip in clips]
        crimes = [row for row in rows.tolist() if reader.labels[row] == CRIME_LABEL]
        correlations = self.correlations(clips[[place[row] for row in crimes]])
        rows_found = []
        made = [
            (matched, composite)
            for matched in (False, True)
            for composite in composites(reader, rows, seed=seed, motion_N=motion_N if matched else None)
        ]
        with console.Progress("Composites", total=len(made), unit="composite") as progress:
            for matched, composite in made:
                clip = clips[place[composite.base]].copy()
                inside = slice(composite.first, composite.last)
                clip[inside] = clips[place[composite.inserted]][inside]
                attention, _, motion = self.attention(torch.from_numpy(clip)[None])
                labels = np.zeros(len(clip), np.int64)
                labels[inside] = 1
                progress.advance()
                rows_found.append(
                    {
                        "kind": composite.kind,
                        "matched": matched,
                        "recording": composite.recording,
                        "attention": metrics.roc_auc(labels, attention[0]),
                        "motion": metrics.roc_auc(labels, motion[0]),
                    }
                )
        return {"composites": rows_found, "correlation_with_untrained": correlations}


def chosen_rows(reader: ClipReader, *, max_crimes: int) -> Rows:
    """Return rows to test on: crimes of recordings that also have normal clips, evenly spaced, and those clips."""
    recordings = [reader.recording_or_video(video) for video in reader.videos.tolist()]
    normals: dict[str, list[int]] = {}
    for row in np.flatnonzero(reader.labels == NORMAL_LABEL).tolist():
        normals.setdefault(recordings[row], []).append(row)
    crimes = [row for row in np.flatnonzero(reader.labels == CRIME_LABEL).tolist() if recordings[row] in normals]
    chosen = [crimes[i] for i in evenly_spaced(len(crimes), max_crimes).tolist()]
    rows = set(chosen)
    for recording in {recordings[row] for row in chosen}:
        here = normals[recording]
        rows.update(here[i] for i in evenly_spaced(len(here), MAX_NORMALS).tolist())
    return np.array(sorted(rows), np.int64)


def summarise(found: Sequence[dict[str, Any]], *, num_resamples: int, seed: int = 0) -> dict[str, Any]:
    """Return means and intervals of the results of `AttentionTest.run`, of one or several sets of clips."""
    rows = [row for one in found for row in one["composites"]]
    correlations = [value for one in found for value in one["correlation_with_untrained"]]

    def interval(values: list[float], groups: list[str]) -> dict[str, Any]:
        statistic = metrics.mean_statistic(values)
        return dataclasses.asdict(metrics.bootstrap(statistic, groups, num_resamples=num_resamples, seed=seed))

    tests = []
    for kind, matched in itertools.product(KINDS, (False, True)):
        here = [row for row in rows if row["kind"] == kind and row["matched"] == matched]
        groups = [row["recording"] for row in here]
        tests.append(
            {
                "inserted": kind,
                "matched_in_motion": matched,
                "composites": len(here),
                "recordings": len(set(groups)),
                "attention": interval([row["attention"] for row in here], groups),
                "motion": interval([row["motion"] for row in here], groups),
                "attention_above_motion": interval([row["attention"] - row["motion"] for row in here], groups),
            }
        )
    return {
        "conventions": SPLICE_CONVENTIONS,
        "frame_auc": tests,
        "correlation_with_untrained": float(np.mean(correlations)) if correlations else None,
    }


def to_lines(fields: Mapping[str, Any]) -> list[str]:
    """Format the fields of `summarise` as lines of text."""
    lines = ["AUC of the inserted frames in composites of two clips of one recording:"]
    for test in fields["frame_auc"]:
        name = test["inserted"] + (", matched in motion" if test["matched_in_motion"] else "")
        lines.append(
            f"  {name}: attention {interval_text(test['attention'])}, motion {interval_text(test['motion'])} "
            f"({test['composites']} composites, {test['recordings']} recordings)"
        )
    return lines + correlation_lines(fields)


def correlation_lines(fields: Mapping[str, Any]) -> list[str]:
    """Format the correlation with attention before training, if it is known."""
    correlation = fields["correlation_with_untrained"]
    if correlation is None:
        return []
    return [f"Correlation of attention with that of the model before training: {correlation:.2f}"]
