"""Training and validation clips of a run, with notes and warnings about them.

Only the shards that the user names are opened.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from typing import Any

import numpy as np

from stage1.data.epoch_plan import Rows
from stage1.data.reader import ClipReader, JoinedReader
from stage1.data.review_labels import apply_review_labels, read_review_labels
from stage1.data.selection import Quota
from stage1.metrics.ground_truth import read_ground_truths
from stage1.training.config import TrainConfig
from stage1.training.known_frames import UNKNOWN, FrameLabels, annotated_frames, frames_of_trimmed
from vidshard.shards.layout import CRIME_LABEL, NORMAL_LABEL
from vidshard.shards.remote_set import check_room
from vidshard.storage.cache import CacheConfig
from vidshard.util.errors import UserError
from vidshard.util.text import counted

MAX_MOTION_GAP_SECONDS = 0.5
# Build settings that do not affect the pixels of a video's clips.
SETTINGS_WITHOUT_PIXELS = ("sources_sha256", "limit", "normal", "seed", "shard_mb")
EXTRA_SHARE = 0.25  # extra normal clips in an epoch, relative to the other normal ones
CLASS_NAMES = ("normal", "crime")
Clips = ClipReader | JoinedReader


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainData:
    """Clips of a run, as rows of the readers' indexes."""

    train: Clips
    train_rows: Rows
    validation: Clips | None
    validation_rows: Rows
    notes: tuple[str, ...]  # logged only
    warnings: tuple[str, ...]  # logged, and kept in the checkpoint
    reviewed_labels: Rows | None = None  # of every row of `train`, if a reviewer changed some
    known_frames: FrameLabels | None = None  # of every row of `train`, from review and annotations
    extra_cameras: Rows | None = None  # of every row of `train`: its camera if it is extra normal footage, else -1

    @property
    def labels(self) -> Rows:
        """Label of every row of `train`, after review."""
        return self.train.labels if self.reviewed_labels is None else self.reviewed_labels

    @property
    def digests(self) -> dict[str, str]:
        """Digest of each shard set, by its role."""
        digests = {"train": self.train.digest}
        if self.extra_cameras is not None:
            digests["extra"] = str(int((self.extra_cameras >= 0).sum()))
        if self.known_frames is not None:
            digests["labels"] = hashlib.sha256(self.labels.tobytes() + self.known_frames.tobytes()).hexdigest()
        if self.validation is not None:
            digests["validation"] = self.validation.digest
        return digests

    @property
    def train_videos(self) -> list[str]:
        """Training videos. Stage 2 must not learn from the model's predictions on them."""
        return sorted({self.train.video_id(video) for video in np.unique(self.train.videos[self.train_rows]).tolist()})

    def frame_gap_seconds(self) -> float:
        """Return the median time between consecutive frames of the clips, without those of extra normal footage."""
        if self.extra_cameras is None or not isinstance(self.train, JoinedReader):
            return self.train.frame_gap_seconds()
        own = np.unique(self.train.sets[self.extra_cameras < 0]).tolist()
        return JoinedReader([self.train.readers[number] for number in own]).frame_gap_seconds()

    def frame_labels(self, *, trimmed_seconds: float) -> FrameLabels:
        """Return what is known of the frames of every row of `train`, also from `frames_of_trimmed`."""
        readers = self.train.readers if isinstance(self.train, JoinedReader) else (self.train,)
        frames = frames_of_trimmed(readers, self.labels, trimmed_seconds=trimmed_seconds)
        known = self.known_frames
        return frames if known is None else np.where(known == UNKNOWN, frames, known)

    @property
    def own_rows(self) -> Rows:
        """Rows to train on without those of extra normal footage."""
        return (
            self.train_rows if self.extra_cameras is None else self.train_rows[self.extra_cameras[self.train_rows] < 0]
        )

    @property
    def extra_rows(self) -> Rows:
        """Rows of extra normal footage."""
        return self.train_rows[len(self.own_rows) :]

    def quota(self, clips_per_video: int) -> Quota | None:
        """Return how many clips of each video, and of each camera of extra normal footage, an epoch has; None without
        such footage.

        Every camera gives as many, so that none dominates, and all together EXTRA_SHARE of the other normal clips.
        """
        if self.extra_cameras is None:
            return None
        is_extra = self.extra_cameras >= 0
        num_videos = int(self.train.videos.max()) + 1
        groups = np.where(is_extra, num_videos + self.extra_cameras, self.train.videos)
        own = self.own_rows
        clips = np.bincount(self.train.videos[own[self.labels[own] == NORMAL_LABEL]], minlength=num_videos)
        most = clips_per_video or len(self.train)
        cameras = int(self.extra_cameras.max()) + 1
        each = max(1, round(EXTRA_SHARE * int(np.minimum(clips, most).sum()) / cameras))
        return Quota(groups=groups, counts=np.array([most] * num_videos + [each] * cameras))

    @property
    def train_labels(self) -> Rows:
        return self.labels[self.train_rows]

    @property
    def validation_labels(self) -> Rows | None:
        """Label of every row of `validation`."""
        if self.validation is None:
            return None
        return self.labels if self.validation is self.train else self.validation.labels


def open_data(config: TrainConfig) -> TrainData:
    """Open the shards of the config, split them, and collect notes and warnings. Raises UserError on unusable data."""
    cache = CacheConfig(folder=config.cache_dir, limit_gb=config.cache_gb)
    readers, extra = (
        [ClipReader(place, checksums=config.checksums, cache=cache) for place in places]
        for places in (config.shards, config.extra_normal)
    )
    for one in (*readers, *extra):
        check_room(one.shard_set, block_shards=config.block_shards)
    reader: Clips = readers[0] if len(readers) == 1 else JoinedReader(readers)
    rows: Rows = np.arange(len(reader))
    labels: Rows = reader.labels
    frames: FrameLabels | None = None
    kept = np.ones(len(reader), np.bool_)
    notes, warnings = [], [text for other in readers[1:] for text in sampling_warnings(readers[0], other)]
    if config.marks:
        review = read_review_labels(config.marks)
        reviewed = apply_review_labels(readers, review, use=config.marks_as)
        labels, kept = reviewed.labels, reviewed.kept
        frames = np.full((len(reader), reader.clip_shape.num_frames), UNKNOWN, np.int8)
        frames[(labels == CRIME_LABEL) & (reviewed.seconds < config.trimmed_seconds)] = 1  # the reviewer saw it there
        notes.append(reviewed.note(review, config.marks_as))
    else:
        _check_labels(reader, labels)
    if config.annotations is not None:
        truths = read_ground_truths(config.annotations, readers)
        annotated = annotated_frames(readers, truths, labels, skip_damaged=config.max_bad_clips > 0)
        labels, kept = annotated.labels, kept & annotated.kept
        frames = annotated.frames if frames is None else np.where(annotated.frames < 0, frames, annotated.frames)
        notes.append(annotated.note)
    validation: Clips | None
    if config.val_shards is not None:
        validation = ClipReader(config.val_shards, checksums=config.checksums, cache=cache)
        validation_rows: Rows = np.arange(len(validation))
        _check_validation(readers[0], validation)
        warnings += [text for one in (*readers, *extra) for text in validation_warnings(one, validation)]
    else:
        rows, held = hold_out(reader, fraction=config.val_fraction, seed=config.seed)
        validation_rows = held[kept[held]]
        validation = reader if len(validation_rows) else None
        notes.append(_describe_hold_out(reader, held, config.val_fraction))
        if len(held) and validation is None:
            where = ", ".join(map(str, config.marks))
            warnings.append(f"{where} excludes all clips held out for validation, so the last epoch is kept")
    rows = rows[kept[rows]]
    _check_both_classes(reader, labels[rows])
    warnings += [
        f"{one.where} is marked Test: a model trained on it must not be evaluated on it"
        for one in (*readers, *extra)
        if one.manifest.split == "Test"
    ]
    gap = reader.frame_gap_seconds()
    if gap > MAX_MOTION_GAP_SECONDS:
        notes.append(
            f"the frames of a clip are {gap:.1f} s apart (median); above {MAX_MOTION_GAP_SECONDS} s motion input is of "
            "little use; dense sampling (see `vidshard build --help`) keeps frames close"
        )
    data = TrainData(
        train=reader,
        train_rows=rows,
        validation=validation,
        validation_rows=validation_rows,
        notes=tuple(notes),
        warnings=tuple(warnings),
        reviewed_labels=labels,
        known_frames=frames,
    )
    return _with_extra_normal(data, config, readers, extra) if extra else data


def _with_extra_normal(
    data: TrainData, config: TrainConfig, own: list[ClipReader], extra: list[ClipReader]
) -> TrainData:
    """Add normal footage of other cameras to the training clips. A recording, or else a video, counts as a camera."""
    for one in extra:
        crimes = int((one.labels == CRIME_LABEL).sum())
        if crimes:
            raise UserError(
                f"`extra_normal` {one.where} has {crimes} crime clips, expected normal ones only; pass it as `shards`"
            )
    reader = JoinedReader([*own, *extra])
    num_own = len(data.train)
    names = [reader.recording_or_video(video) for video in reader.videos[num_own:].tolist()]
    cameras, camera_of_row = np.unique(names, return_inverse=True)
    warnings = [text for one in extra for text in sampling_warnings(own[0], one)]
    held: set[str] = set()
    if data.validation is not None:
        videos = np.unique(data.validation.videos[data.validation_rows]).tolist()
        held = {data.validation.recording_or_video(video) for video in videos}
    rows = np.arange(num_own, len(reader))
    left = np.array([name not in held for name in names])
    frames = data.known_frames
    if frames is not None:
        frames = np.concatenate([frames, np.full((len(camera_of_row), frames.shape[1]), UNKNOWN, np.int8)])
    more = dataclasses.replace(
        data,
        train=reader,
        train_rows=np.concatenate([data.train_rows, rows[left]]),
        validation=reader if data.validation is data.train else data.validation,
        warnings=(*data.warnings, *warnings),
        reviewed_labels=np.concatenate([data.labels, np.full(len(camera_of_row), NORMAL_LABEL)]),
        known_frames=frames,
        extra_cameras=np.concatenate([np.full(num_own, -1), camera_of_row]),
    )
    quota = more.quota(config.clips_per_video_per_epoch)
    assert quota is not None
    note = (
        f"{counted(len(camera_of_row), 'clip')} of {counted(len(cameras), 'camera')} are extra normal footage; an "
        f"epoch uses up to {quota.counts[-1]} of each camera"
    )
    if not left.all():
        note += f"; {(~left).sum()} clips of recordings that are held out for validation are left out"
    return dataclasses.replace(more, notes=(*more.notes, note))


def hold_out(reader: Clips, *, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Split rows into training and held-out rows: `fraction` of the videos of each class, whole recordings at a time.

    A video whose recording is unknown counts as a recording. The last recording of a class stays in training, even if
    it contains other classes too.
    """
    groups: dict[str, list[int]] = {}  # recording → its videos
    for video in np.unique(reader.videos).tolist():
        groups.setdefault(reader.recording_or_video(video), []).append(video)
    names = sorted(groups)
    order = [names[i] for i in np.random.default_rng((seed, 1)).permutation(len(names))]

    videos_of_class = {group: Counter(reader.class_name(video) or "" for video in groups[group]) for group in order}
    groups_left = Counter(name for counts in videos_of_class.values() for name in counts)  # class → groups in training
    held: set[str] = set()
    for class_name in sorted(groups_left):
        sizes = {group: counts[class_name] for group, counts in videos_of_class.items() if class_name in counts}
        wanted = max(1, round(fraction * sum(sizes.values()))) if fraction else 0
        wanted -= sum(size for group, size in sizes.items() if group in held)
        while wanted > 0:
            free = {
                group: size
                for group, size in sizes.items()
                if group not in held and all(groups_left[name] > 1 for name in videos_of_class[group])
            }
            if not free:
                break
            fitting = [group for group, size in free.items() if size <= wanted]
            group = fitting[0] if fitting else min(free, key=lambda name: free[name])
            if not fitting and free[group] > 2 * wanted and groups_left[class_name] < len(sizes):
                break  # without this group the share is closer to `fraction`
            held.add(group)
            groups_left.subtract(videos_of_class[group].keys())
            wanted -= free[group]
    is_held = np.isin(reader.videos, sorted(video for group in held for video in groups[group]))
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def validation_warnings(train: ClipReader, validation: ClipReader) -> list[str]:
    """Return warnings if the validation set is unfit to choose a checkpoint, such as a Test set or training videos."""
    warnings = []
    folder = validation.shard_set.where
    if "Test" in validation.splits:
        warnings.append(
            f"{folder} is marked Test: the checkpoint is chosen on it, so its accuracy there says nothing about new "
            "videos; use a Validation split"
        )
    shared = shared_videos(train, validation)
    if shared:
        warnings.append(
            f"{len(shared)} of {len(validation.index.videos)} videos of {folder} are also trained on (such as "
            f"{shared[0]!r}): validation accuracy will look better than it is"
        )
    groups = train.recordings & validation.recordings
    if groups:
        warnings.append(
            f"{len(groups)} recordings of {folder} are also trained on (such as {min(groups)!r}): videos of one "
            "recording look alike, so validation accuracy will look better than it is"
        )
    return warnings + sampling_warnings(train, validation)


def sampling_warnings(train: ClipReader, other: ClipReader) -> list[str]:
    """Return warnings if the clips of two sets look different because they were built differently."""
    warnings = []
    folder = other.where
    resizes = [reader.manifest.settings.get("resize", "squash") for reader in (train, other)]
    if resizes[0] != resizes[1]:
        warnings.append(
            f"frames were made square by `resize` {resizes[1]} in {folder}, but by {resizes[0]} in training; build "
            "both with the same `resize`"
        )
    gaps = train.frame_gap_seconds(), other.frame_gap_seconds()
    if max(gaps) > 2 * min(gaps) and min(gaps) > 0:
        warnings.append(
            f"frames are {gaps[1]:.2g} s apart in {folder}, but {gaps[0]:.2g} s in training; build both with the "
            "same sampling"
        )
    return warnings


def shared_videos(train: ClipReader, validation: ClipReader) -> list[str]:
    """Return the paths (in `validation`) of the videos that are in both sets.

    If both sets have the same sampling, videos are compared by the pixels of their clips; otherwise by name, length,
    size and frame rate.
    """

    def sampling(reader: ClipReader) -> dict[str, Any]:
        settings = reader.manifest.settings.items()
        return {name: value for name, value in settings if name not in SETTINGS_WITHOUT_PIXELS}

    def pixels(reader: ClipReader, row: int) -> tuple[int, int]:
        clip = reader.index.clips[row]
        return int(clip["crc32"]), int(reader.index.videos["num_frames"][clip["video"]])

    def identity(reader: ClipReader, video: int) -> tuple[Any, ...]:
        row = reader.index.videos[video]
        return reader.index.paths[video], *(row[name].item() for name in ("num_frames", "width", "height", "fps"))

    if sampling(train) == sampling(validation):
        known = {pixels(train, row) for row in range(len(train))}
        rows = [row for row in range(len(validation)) if pixels(validation, row) in known]
        videos = sorted({int(validation.index.clips["video"][row]) for row in rows})
    else:
        names = {identity(train, video) for video in range(len(train.index.videos))}
        videos = [v for v in range(len(validation.index.videos)) if identity(validation, v) in names]
    return [validation.index.paths[video] for video in videos]


def _check_labels(reader: Clips, labels: Rows) -> None:
    folder = reader.where
    if not len(labels):
        raise UserError(f"{folder} contains no clips; list the failures with `vidshard inspect {folder}`")
    unknown = int((labels < 0).sum())
    if unknown:
        raise UserError(
            f"{unknown} of {len(labels)} clips of {folder} have no label, expected normal or crime; build from "
            "SOURCE/<Class>/*.mp4, where the folder names the class, or label them in a report and pass its `marks`"
        )


def _check_both_classes(reader: Clips, labels: Rows) -> None:
    counts = np.bincount(labels, minlength=2)
    if not counts.all():
        there, lacking = (CLASS_NAMES[i] for i in (int(counts.argmax()), int(counts.argmin())))
        raise UserError(
            f"{reader.where} has {counts.max()} {there} clips to train on and no {lacking} one, expected "
            f"both; add {lacking} videos and build again"
        )


def _check_validation(train: ClipReader, validation: ClipReader) -> None:
    _check_labels(validation, validation.labels)
    if validation.clip_shape != train.clip_shape:
        raise UserError(
            f"{validation.shard_set.where} has clips of {validation.clip_shape}, expected {train.clip_shape} as in "
            f"{train.shard_set.where}; build both with the same `clip_len` and `frame_size`"
        )


def _describe_hold_out(reader: Clips, rows: Rows, fraction: float) -> str:
    if not len(rows):
        reason = "`val_fraction` 0" if not fraction else "too few videos to hold any out"
        return f"no validation ({reason}): the last epoch is kept"
    videos = np.unique(reader.videos[rows])
    note = (
        f"no `val_shards`: {len(videos)} of {len(np.unique(reader.videos))} videos ({len(rows)} clips) of "
        f"{reader.where} are held out for validation, by recording and class"
    )
    if not reader.recordings:
        note += "; its recordings are unknown, so videos of one recording may be on both sides"
    return note
