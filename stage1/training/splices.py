"""Composite clips that teach attention which frames show a crime.

The label of a whole clip does not show where the crime is, and attention trained only on such labels may look
anywhere. In a composite it is known: some frames come from a crime, the others from a normal clip, of the same
recording if possible, so that only the action distinguishes them. Normal frames are put into normal clips
as well, so that the seam does not reveal the label. (Splicing follows CutMix, Yun et al., ICCV 2019, along time.)

Of a long crime video that nobody annotated, the clips with the highest scores of the motion features are taken for the
crime, and those with the lowest for normal. Most of the former need not show it: their composites teach attention
nevertheless (docs/EXPERIMENTS.md).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from stage1.data import clip_random, epoch_plan
from stage1.data.epoch_plan import Rows
from stage1.data.reader import ClipReader, JoinedReader
from stage1.training.config import TrainConfig
from stage1.training.data import TrainData
from stage1.training.known_frames import UNKNOWN, FrameLabels
from vidshard.shards.layout import CRIME_LABEL, NORMAL_LABEL
from vidshard.util.errors import FormatError

MIN_FRAMES = 8  # of a clip; shorter clips are not spliced
SHORTEST, LONGEST = 1 / 4, 1 / 2  # of the clip, that the inserted frames take
SCORED_CLIPS = 64  # of a long video
STRETCH_SHARE = 1 / 5  # of these clips, at either end of the scores


class SplicePlan(NamedTuple):
    """Plan of a composite: frames `first` to `last` - 1 of one clip are inserted into another."""

    place: int  # of the clip in its batch
    partner: int  # row of the normal clip in the index
    first: int
    last: int
    is_inserted: bool  # the clip of the batch gives the inserted frames, and the partner all others
    blended: bool  # the frames at the seams are the mean of both clips
    is_crime: bool = True  # the clip of the batch; the partner is normal
    instead: int | None = None  # row of the clip that takes the place of the one in the batch


class Stretches(NamedTuple):
    """Rows of the clips of a long video that probably show the crime, and of those that probably do not."""

    crime: Rows
    quiet: Rows


@dataclasses.dataclass(frozen=True)
class Splicer:
    """Maker of composites from the clips of a batch and normal clips of the same set."""

    reader: ClipReader | JoinedReader
    rows: dict[str, Rows]  # recording → its normal clips
    recordings: list[str]  # of every video of the set
    every_normal: Rows
    frames: FrameLabels  # of every row of the set
    has_crimes: bool  # some training clips are known to show the crime in all frames
    knows_all: bool  # of every training clip it is known which frames show the crime
    to_score: Rows  # clips of long crime videos of which nothing is known
    share: float  # of the clips of a batch
    seed: int
    skip_damaged: bool
    keeps_time: bool  # the augmentation leaves every frame at its place
    stretches: dict[int, Stretches] = dataclasses.field(default_factory=dict)  # video → its clips

    @classmethod
    def of_data(cls, data: TrainData, config: TrainConfig) -> Splicer:
        """Create a splicer for the training clips."""
        reader, rows, labels = data.train, data.train_rows, data.labels
        normal = rows[labels[rows] == NORMAL_LABEL]
        videos = reader.videos
        names = [reader.recording_or_video(video) for video in range(int(videos.max()) + 1)]
        found: dict[str, list[int]] = {}
        for row in normal.tolist():
            found.setdefault(names[videos[row]], []).append(row)
        groups = {name: np.array(group) for name, group in found.items()}
        frames = data.frame_labels(trimmed_seconds=config.trimmed_seconds)
        return cls(
            reader=reader,
            rows=groups,
            recordings=names,
            every_normal=normal,
            frames=frames,
            has_crimes=bool((frames[rows] == 1).all(1).any()),
            knows_all=bool((frames[rows[labels[rows] >= 0]] >= 0).all()),
            to_score=_to_score(rows[(labels[rows] == CRIME_LABEL) & (frames[rows] < 0).all(1)], videos),
            share=config.splices,
            seed=config.seed,
            skip_damaged=config.max_bad_clips > 0,
            keeps_time=not (config.transform.time_shift or config.transform.time_stretch),
        )

    def partner(self, row: int, drawn: float) -> int | None:
        """Choose a normal clip to splice the clip of `row` with, by a number in [0, 1).

        It is of the same recording or, without any there, of all; None if there is no other one.
        """
        for rows in (self.rows.get(self.recordings[self.reader.videos[row]], self.every_normal), self.every_normal):
            place = int(np.searchsorted(rows, row))
            is_there = place < len(rows) and int(rows[place]) == row
            if count := len(rows) - is_there:
                chosen = int(drawn * count)
                return int(rows[chosen + (is_there and chosen >= place)])
        return None

    def with_scores(self, rows: Rows, scores: npt.NDArray[np.float32]) -> Splicer:
        """Return a splicer that takes the clips of `rows` for crime or normal by their scores within their videos."""
        videos = self.reader.videos[rows]
        found = {}
        for video in np.unique(videos).tolist():
            own = rows[videos == video][np.argsort(scores[videos == video], kind="stable")]
            if count := int(STRETCH_SHARE * len(own)):
                found[video] = Stretches(crime=own[-count:], quiet=own[:count])
        return dataclasses.replace(self, stretches=found)

    def shows_crime_only(self, row: int) -> bool:
        """Return True if all frames of a clip are known to show the crime."""
        return bool((self.frames[row] == 1).all())

    def known_frames(self, indices_B: torch.Tensor) -> torch.Tensor:
        """Return which frames of clips show the crime, int8 (B, T), as in `TrainBatch`."""
        frames_BT = self.frames[indices_B.numpy()]
        is_whole_B = frames_BT.min(1) == frames_BT.max(1)
        if not self.keeps_time:  # what is true of some frames may be shown in others
            frames_BT[~is_whole_B] = UNKNOWN
        if not self.knows_all:  # frames of normal clips would outnumber those of crimes
            frames_BT[is_whole_B] = UNKNOWN
        return torch.from_numpy(frames_BT)

    def plan(self, labels_B: torch.Tensor, indices_B: torch.Tensor, *, num_frames: int, epoch: int) -> list[SplicePlan]:
        """Draw the composites of a batch (on the CPU); they depend only on the seed, the epoch and each row."""
        if num_frames < MIN_FRAMES or not (self.has_crimes or self.stretches):
            return []  # without crimes, composites would teach nothing
        seeds_B = clip_random.clip_seeds(indices_B, seed=self.seed, epoch=epoch)
        drawn_BN = clip_random.uniform(seeds_B, 6, stream=clip_random.SPLICES).double().numpy()
        plans = []
        for place, (row, label) in enumerate(zip(indices_B.tolist(), labels_B.tolist(), strict=True)):
            chosen, partner, length, first, side, blend = drawn_BN[place].tolist()
            if chosen >= self.share or label < 0:
                continue
            instead = None
            if label == CRIME_LABEL and not self.shows_crime_only(row):
                stretches = self.stretches.get(int(self.reader.videos[row]))
                if stretches is None:
                    continue
                instead = int(stretches.crime[int(chosen / self.share * len(stretches.crime))])
                other: int | None = int(stretches.quiet[int(partner * len(stretches.quiet))])
            else:
                other = self.partner(row, partner)
            if other is None:
                continue
            frames = round(num_frames * (SHORTEST + (LONGEST - SHORTEST) * length))
            begin = int(first * (num_frames - frames + 1))
            plans.append(
                SplicePlan(
                    place=place,
                    partner=other,
                    first=begin,
                    last=begin + frames,
                    is_inserted=side < 0.5,
                    blended=blend < 0.5,
                    is_crime=label == CRIME_LABEL,
                    instead=instead,
                )
            )
        return plans

    def read(self, plans: list[SplicePlan]) -> tuple[list[SplicePlan], torch.Tensor, torch.Tensor]:
        """Read the clips of composites that are not in the batch.

        Returns the plans, their partners, uint8 (B', T, H, W, C), and the clips of the plans that have `instead`.
        With `skip_damaged`, composites of damaged clips are left out; otherwise FormatError is raised.
        """
        shape = self.reader.clip_shape.thwc
        partners, clips = np.empty((len(plans), *shape), np.uint8), np.empty((len(plans), *shape), np.uint8)
        kept: list[SplicePlan] = []
        replaced = 0
        for plan in plans:
            try:
                self.reader.read_clips([plan.partner], partners[len(kept) : len(kept) + 1])
                if plan.instead is not None:
                    self.reader.read_clips([plan.instead], clips[replaced : replaced + 1])
            except FormatError:  # training itself reports it, when it comes to that clip
                if not self.skip_damaged:
                    raise
            else:
                kept.append(plan)
                replaced += plan.instead is not None
        return kept, torch.from_numpy(partners[: len(kept)]), torch.from_numpy(clips[:replaced])

    def note(self, rows: Rows, labels: Rows) -> str:
        """Say how many of the crimes among `rows` teach attention, and how."""
        crimes = rows[labels[rows] == CRIME_LABEL]
        whole = crimes[(self.frames[crimes] == 1).all(1)]
        partly = crimes[(self.frames[crimes] == 0).any(1)]
        unknown = np.unique(self.reader.videos[crimes[(self.frames[crimes] < 0).all(1)]])
        scored = sum(video in self.stretches for video in unknown.tolist())
        own = sum(self.recordings[video] in self.rows for video in self.reader.videos[whole].tolist())
        parts = [
            f"composites of {len(whole)} crime clips with normal clips of their recording ({own}) or of any camera "
            f"({len(whole) - own})"
        ] * bool(len(whole))
        parts += [f"the annotated frames of {len(partly)} clips"] * bool(len(partly) and self.keeps_time)
        parts += [
            f"composites of the highest- and lowest-scoring clips of {scored} videos that are not annotated"
        ] * bool(scored)
        text = f"attention is taught by {' and by '.join(parts)}" if parts else "attention is learnt from labels alone"
        if left := len(unknown) - scored:
            text += f"; nothing is known of the frames of {left} crime videos (`trimmed_seconds` or longer)"
        return text


def _to_score(rows: Rows, videos: Rows) -> Rows:
    """Return at most SCORED_CLIPS of the clips of each video, evenly spaced, if there are enough to compare."""
    parts = [own[epoch_plan.evenly_spaced(len(own), SCORED_CLIPS)] for own in epoch_plan.rows_by_video(rows, videos)]
    return np.concatenate([np.zeros(0, np.int64), *(own for own in parts if STRETCH_SHARE * len(own) >= 1)])


def splice(
    clips_BCTHW: torch.Tensor, partners_BCTHW: torch.Tensor, places: torch.Tensor, weights_BT: torch.Tensor
) -> None:
    """Replace the clips at `places` by their composites, in place; `weights_BT` are the `own_frames` of each."""
    shares = weights_BT[:, None, :, None, None]
    clips_BCTHW[places] = clips_BCTHW[places] * shares + partners_BCTHW * (1 - shares)


def own_frames(plan: SplicePlan, num_frames: int) -> npt.NDArray[np.float32]:
    """Return the share of the clip of the batch in each frame of its composite, [T].

    >>> own_frames(SplicePlan(0, 0, 2, 4, is_inserted=True, blended=True), 6).tolist()
    [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    """
    inserted_T = np.zeros(num_frames, np.float32)
    inserted_T[plan.first : plan.last] = 1
    if plan.blended:
        inserted_T[max(0, plan.first - 1) : plan.first] = 0.5
        inserted_T[plan.last : plan.last + 1] = 0.5
    return inserted_T if plan.is_inserted else 1 - inserted_T
