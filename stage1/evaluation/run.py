"""Evaluation of a checkpoint on clips, videos and frames, with calibration and threshold from validation data only.

`evaluate` reads like a table of contents; docs/EVALUATION.md explains every figure.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stage1.common import files
from stage1.common.device import choose_device
from stage1.data.loader import ClipReader
from stage1.evaluation import baselines, plots
from stage1.evaluation.config import EvaluateConfig as EvaluateConfig
from stage1.evaluation.text import METRIC_CONVENTIONS, EvaluationReport, evaluation_text
from stage1.inference.events import ClipScores, Event, EventConfig, find_events
from stage1.inference.outputs import shortest_floats
from stage1.inference.scoring import crime_probabilities
from stage1.metrics import calibration, centred_scores
from stage1.metrics import clips as metrics
from stage1.metrics import frames as frame_metrics
from stage1.metrics.annotations import VideoGroundTruth, read_annotations, refuse_overlap
from stage1.metrics.calibration import MIN_ALARM_SECONDS, Calibration, Target
from stage1.metrics.clips import Array, Interval
from stage1.metrics.events import Prediction, average_precision, best_overlaps
from stage1.metrics.frames import FrameMetrics, ScoredVideo
from stage1.metrics.ground_truth import read_ground_truth
from stage1.model.checkpoint import Checkpoint, check_clip_shape, load_checkpoint, save_checkpoint
from stage1.training.data import shared_videos
from vidshard.shards import layout
from vidshard.util import console
from vidshard.util.errors import UserError
from vidshard.util.text import counted

BASELINE_CLIPS = 8  # clips of a training video to which shortcuts are fitted
# A video's score is the mean of its highest-scoring 1/16 of clips, at least one, as in RTFM (Tian et al., ICCV 2021).
VIDEO_TOP_SHARE = 1 / 16
EVENT_IOUS = (0.1, 0.2, 0.3, 0.4, 0.5)  # of the average precision of events
GroundTruth = Mapping[int, VideoGroundTruth]  # by row of the index's videos


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredClips:
    """Labelled clips of a shard set with P(crime). Arrays are [N], sorted by video and time."""

    reader: ClipReader
    rows: npt.NDArray[np.int64]  # of the index
    labels: npt.NDArray[np.int64]
    videos: npt.NDArray[np.int64]  # rows of the index's videos
    scores: Array  # P(crime)
    first_frames: npt.NDArray[np.int64]
    last_frames: npt.NDArray[np.int64]
    seconds: Array  # (N, 2): when the first and the last frame are shown

    @property
    def groups(self) -> list[str]:
        """Recording of each clip, or its video if unknown: the unit that the bootstrap resamples."""
        return [self.reader.recording_or_video(video) for video in self.videos.tolist()]

    @property
    def has_recordings(self) -> bool:
        return any(self.reader.index.recording(video) is not None for video in np.unique(self.videos).tolist())

    def part(self, here: npt.NDArray[Any]) -> ScoredClips:
        columns = ("rows", "labels", "videos", "scores", "first_frames", "last_frames", "seconds")
        return dataclasses.replace(self, **{name: getattr(self, name)[here] for name in columns})

    def with_scores(self, scores: Array) -> ScoredClips:
        return dataclasses.replace(self, scores=scores)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoScores:
    """Labels and scores of videos, [V]."""

    numbers: list[int]  # rows of the index's videos
    labels: npt.NDArray[np.int64]
    scores: Array
    groups: list[str]


class EvaluateReport(EvaluationReport):
    """Results of `evaluate`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """Calibration and threshold on calibrated P(crime)."""

    calibration: Calibration
    threshold: float
    chosen_for: str  # target of the threshold, and where it was chosen


@files.holds_out
def evaluate(config: EvaluateConfig) -> EvaluateReport:
    """Evaluate, write evaluation.json and evaluation.png into ``config.out``, and return the report.

    With ``config.target``, calibration and threshold are stored in the checkpoint. Raises UserError on unusable input,
    before anything is written.
    """
    checkpoint = load_checkpoint(config.checkpoint)
    target = calibration.parse_target(config.target) if config.target is not None else None
    readers = _open_readers(config, checkpoint)
    ground_truth = _read_ground_truth(config, readers["shards"])
    _check_before_scoring(config, readers, target)
    clips = score_clips(readers["shards"], checkpoint, config)
    validation = score_clips(readers["validation"], checkpoint, config) if "validation" in readers else None
    if config.relative:
        clips = centred_clips(clips)
        validation = None if validation is None else centred_clips(validation)

    decision = decide(config, checkpoint, validation, target)
    raw_scores, threshold = clips.scores, decision.threshold
    clips = clips.with_scores(shown_scores(decision.calibration, raw_scores))
    videos = video_scores(clips)
    levels = {
        name: level_metrics(level, threshold, config, clips.has_recordings)
        for name, level in (("clips", clips), ("videos", videos))
    }
    fields: dict[str, Any] = {
        "checkpoint": str(config.checkpoint),
        "relative": config.relative,
        "shards": {"path": str(config.shards), "digest": clips.reader.digest, "split": clips.reader.manifest.split},
        "recordings": len(set(clips.groups)) if clips.has_recordings else None,
        "conventions": METRIC_CONVENTIONS,
        "threshold": {"value": threshold, "chosen_for": decision.chosen_for},
        "levels": levels,
        "frames": dataclasses.asdict(frames_of(clips, ground_truth, config)) if ground_truth else None,
        "events": events_found(clips, ground_truth, threshold, config) if ground_truth else None,
        "false_alarms": false_alarms(clips, threshold, config),
        "cameras": false_alarms_by_camera(clips, threshold, config),
        "classes": per_class(clips, videos, threshold, config),
        "calibration": _calibration_fields(decision.calibration, clips, raw_scores, validation),
        "baselines": _baselines(config, readers, clips, ground_truth),
        "warnings": _warnings(config, checkpoint, clips, levels, validation, decision.calibration),
    }
    fields["flags"] = baselines.flags(fields["baselines"], "video AUC")
    if target is not None:
        store(config.checkpoint, decision.calibration, threshold, target, relative=config.relative)
    report = EvaluateReport(text=evaluation_text(fields, config), fields=fields)
    report.write(config.out, lambda picture: plots.plot_evaluation(fields, clips, videos, picture))
    return report


def decide(
    config: EvaluateConfig, checkpoint: Checkpoint, validation: ScoredClips | None, target: Target | None
) -> Decision:
    """Choose calibration and threshold on the validation clips, or take those of the checkpoint."""
    stored, threshold = checkpoint.build_calibration(), checkpoint.threshold
    chosen_for = checkpoint.threshold_target or "the checkpoint (not chosen)"
    if config.relative:  # those of the checkpoint are for scores that are not centred
        stored, threshold, chosen_for = Calibration(), 0.5, "the median of each video (not chosen)"
        if (before := checkpoint.relative) is not None:
            stored, threshold = Calibration(**before["calibration"]), before["threshold"]
            chosen_for = before["threshold_target"]
    if validation is None:
        return Decision(calibration=stored, threshold=threshold, chosen_for=chosen_for)
    fitted = calibration.fit(validation.labels, validation.scores)
    if config.prior is not None:
        fitted = fitted.for_prior(config.prior)
    if target is not None:
        calibrated = validation.with_scores(shown_scores(fitted, validation.scores))
        threshold, chosen_for = choose_threshold(calibrated, target), f"{target} on validation"
    else:  # the same clips stay above it
        threshold = float(shown_scores(fitted, stored.invert([threshold]))[0])
    return Decision(calibration=fitted, threshold=threshold, chosen_for=chosen_for)


# --- scores -------------------------------------------------------------------------------------------------------


def score_clips(reader: ClipReader, checkpoint: Checkpoint, config: EvaluateConfig) -> ScoredClips:
    """Return uncalibrated P(crime) of every labelled clip. Raises UserError (FormatError) if a clip is damaged."""

    def probabilities(rows: npt.NDArray[np.int64]) -> Array:
        device = choose_device(config.device)
        with console.Progress("Scoring", total=len(rows), unit="clip") as progress:
            return crime_probabilities(
                checkpoint, reader, rows, batch_size=config.batch_size, device=device, advance=progress.advance
            )

    return labelled_clips(reader, probabilities)


def labelled_clips(reader: ClipReader, probabilities: Callable[[npt.NDArray[np.int64]], Array]) -> ScoredClips:
    """Return every labelled clip with its value of `probabilities`. Raises UserError if there is none."""
    rows = np.flatnonzero(reader.labels >= 0)
    if not len(rows):
        raise UserError(f"no clip of {reader.shard_set.folder} has a label, expected normal or crime; label the clips")
    scores = probabilities(rows)
    times = np.array([_times(reader, row) for row in rows.tolist()], np.float64)
    order = np.lexsort((times[:, 0], reader.videos[rows]))
    return ScoredClips(
        reader=reader,
        rows=rows[order],
        labels=reader.labels[rows][order],
        videos=reader.videos[rows][order].astype(np.int64),
        scores=scores[order],
        first_frames=times[order, 0].astype(np.int64),
        last_frames=times[order, 1].astype(np.int64),
        seconds=times[order, 2:],
    )


def shown_scores(chosen: Calibration, raw: Array) -> Array:
    """Return calibrated P(crime), rounded as `stage1 infer` writes it and compares it with the threshold."""
    return np.array(shortest_floats(chosen.apply(raw).astype(np.float32)))


def _times(reader: ClipReader, row: int) -> tuple[int, int, float, float]:
    """Return the first and last frame of a clip, and their times in seconds."""
    record = reader.read_record(row)
    indices, seconds = record.frame_indices, record.timestamps_seconds
    return min(indices), max(indices), seconds[0], seconds[-1]


def centred_clips(clips: ScoredClips) -> ScoredClips:
    """Centre the scores per video. Raises UserError if most videos have too few clips."""
    centred_scores.check_videos(clips.videos, where=str(clips.reader.shard_set.where))
    return clips.with_scores(centred_scores.centred_scores(calibration.logits(clips.scores), clips.videos))


def video_scores(clips: ScoredClips) -> VideoScores:
    """Score each video by the mean of its highest clips (`VIDEO_TOP_SHARE`)."""
    numbers = np.unique(clips.videos).tolist()
    return VideoScores(
        numbers=numbers,
        labels=np.array([clips.labels[clips.videos == number].max() for number in numbers]),
        scores=np.array([top_mean(clips.scores[clips.videos == number]) for number in numbers]),
        groups=[clips.reader.recording_or_video(number) for number in numbers],
    )


def top_mean(scores: Array, share: float = VIDEO_TOP_SHARE) -> float:
    """Return the mean of the highest `share` of the scores, at least one.

    >>> top_mean(np.array([0.1, 0.9, 0.5]), share=0.5)
    0.7
    """
    count = max(1, math.ceil(share * len(scores) - 1e-9))
    return float(np.sort(scores)[-count:].mean())


def choose_threshold(validation: ScoredClips, target: Target) -> float:
    """Return the threshold that meets `target` on validation data. Raises UserError if there is too little data."""
    if target.name != "false-alarms-per-hour":
        return calibration.choose_threshold(validation.labels, validation.scores, target)
    assert target.value is not None
    hours = sum(_alarm_hours_of(validation).values())
    calibration.check_support(target, num_normal=0, num_crime=0, normal_hours=hours)
    chosen = 1.0
    # From the highest down, since alarms merge as the threshold falls, until a single one fills the whole video.
    for threshold in sorted(calibration.candidate_thresholds(validation.scores).tolist(), reverse=True):
        if sum(_alarms(validation, threshold).values()) / hours > target.value:
            break
        chosen = threshold
    return chosen


# --- figures ------------------------------------------------------------------------------------------------------


def level_metrics(
    level: ScoredClips | VideoScores, threshold: float, config: EvaluateConfig, has_recordings: bool
) -> dict[str, Any]:
    """Compute every metric of clips or videos, with intervals."""
    labels, scores, groups = level.labels, level.scores, level.groups
    statistics = {
        "accuracy": metrics.accuracy_statistic(labels, scores, threshold=threshold),
        "auc": metrics.roc_auc_statistic(labels, scores),
        "average_precision": metrics.average_precision_statistic(labels, scores),
        "f1": metrics.f1_statistic(labels, scores, threshold=threshold),
    }
    if has_recordings:
        statistics["auc_within_recording"] = metrics.within_group_auc_statistic(labels, scores, groups)
    return {
        "num": len(labels),
        "num_crime": int(labels.sum()),
        "confusion": [list(row) for row in metrics.score(labels, scores, threshold=threshold).confusion],
        "pairs_within_recording": metrics.num_within_group_pairs(labels, groups) if has_recordings else 0,
        **{name: dataclasses.asdict(_interval(statistic, groups, config)) for name, statistic in statistics.items()},
    }


def frames_of(clips: ScoredClips, ground_truth: GroundTruth, config: EvaluateConfig) -> FrameMetrics:
    """Compute frame metrics of the annotated videos."""
    return frame_metrics.frame_metrics(
        scored_videos(clips, ground_truth), num_resamples=min(config.num_resamples, 500), seed=config.seed
    )


def scored_videos(clips: ScoredClips, ground_truth: GroundTruth) -> list[ScoredVideo]:
    """Return a score for every frame of the annotated videos."""
    found = []
    for number, video in ground_truth.items():
        own = np.flatnonzero(clips.videos == number)
        scores = frame_metrics.spread_clips(
            clips.scores[own], clips.first_frames[own], clips.last_frames[own], video.num_frames
        )
        group = clips.reader.recording_or_video(number)
        found.append(ScoredVideo(group=group, is_crime=video.is_crime, labels=video.frame_labels(), scores=scores))
    return found


def false_alarms_by_camera(clips: ScoredClips, threshold: float, config: EvaluateConfig) -> dict[str, dict[str, Any]]:
    """Return `false_alarms_of` the normal clips of each camera: a recording or, if unknown, a video."""
    normal = clips.part(clips.labels == layout.NORMAL_LABEL)
    names, camera_of_clip = np.unique(np.array(normal.groups, object), return_inverse=True)
    order = np.argsort(camera_of_clip, kind="stable")  # once, as there may be thousands of cameras
    parts = np.split(order, np.flatnonzero(np.diff(camera_of_clip[order])) + 1)
    return {
        str(name): false_alarms_of(normal.part(rows), threshold, config)
        for name, rows in zip(names, parts, strict=False)
    }


def false_alarms_of(clips: ScoredClips, threshold: float, config: EvaluateConfig) -> dict[str, Any]:
    """Return how many of these normal clips are detected as crime, and their false alarms per hour.

    The interval of the share takes clips for independent. Those of one camera are not, so the true one is wider.
    """
    called = int((clips.scores >= threshold).sum())
    return {
        "clips": len(clips.rows),
        "called_crime": called,
        "share": dataclasses.asdict(metrics.share_interval(called, len(clips.rows))),
        "false_alarms": false_alarms(clips, threshold, config),
    }


def false_alarms(clips: ScoredClips, threshold: float, config: EvaluateConfig) -> dict[str, Any]:
    """Return false alarms per hour of normal footage, or a reason if no normal video is long enough."""
    hours = _alarm_hours_of(clips)
    if not hours:
        return {"per_hour": None, "reason": f"no normal video of {MIN_ALARM_SECONDS:g} s or more"}
    alarms = _alarms(clips, threshold)
    total_hours, total_alarms = sum(hours.values()), sum(alarms.values())
    exact = metrics.poisson_interval(total_alarms, total_hours)
    rate = metrics.ratio_statistic([alarms[number] for number in hours], list(hours.values()))
    drawn = _interval(rate, [clips.reader.recording_or_video(number) for number in hours], config)
    lows, highs = [exact.low, drawn.low], [exact.high, drawn.high]
    wider = dataclasses.replace(
        exact,
        low=min(low for low in lows if low is not None),
        high=max(high for high in highs if high is not None),
        num_units=len(hours),
    )
    return {
        "per_hour": dataclasses.asdict(wider),
        "alarms": total_alarms,
        "hours": total_hours,
        "videos": len(hours),
        "threshold": threshold,
    }


def _alarm_hours_of(clips: ScoredClips) -> dict[int, float]:
    """Return the hours of each normal video that is long enough."""
    return _alarm_hours(clips.reader, clips.videos[clips.labels == layout.NORMAL_LABEL])


def _alarm_hours(reader: ClipReader, videos: npt.NDArray[np.integer]) -> dict[int, float]:
    """Return the hours of each of these videos that is long enough."""
    seconds = reader.index.seconds
    return {n: float(seconds[n]) / 3600 for n in np.unique(videos).tolist() if seconds[n] >= MIN_ALARM_SECONDS}


def _alarms(clips: ScoredClips, threshold: float) -> dict[int, int]:
    """Count the events that `stage1 infer` would report in each normal video that is long enough, by started minute."""
    return {
        number: sum(
            math.ceil((event.end_seconds - event.start_seconds) / 60)
            for event in video_events(clips, number, threshold)
        )
        for number in _alarm_hours_of(clips)
    }


def video_events(clips: ScoredClips, number: int, threshold: float) -> list[Event]:
    """Return the events that `stage1 infer` would report in a video."""
    own = np.flatnonzero(clips.videos == number)
    row = clips.reader.index.videos[number]
    video = ClipScores(
        confidences=clips.scores[own],
        first_frames=clips.first_frames[own],
        last_frames=clips.last_frames[own],
        start_seconds=clips.seconds[own, 0],
        last_seconds=clips.seconds[own, 1],
        num_frames=int(row["num_frames"]),
        fps=float(row["fps"]),
        gap_seconds=1 / fps if (fps := clips.reader.settings.get("fps")) else 0.0,
    )
    return find_events(video, threshold=threshold, config=EventConfig())[1]


def events_found(
    clips: ScoredClips, ground_truth: GroundTruth, threshold: float, config: EvaluateConfig
) -> dict[str, Any]:
    """Compare the true events with those that `stage1 infer` would report.

    Return the share that overlaps one, the mean temporal IoU with the best one, and the average precision by IoU.
    """
    hits, overlaps, groups = [], [], []
    predictions, true = [], []
    for number, video in ground_truth.items():
        reported = video_events(clips, number, threshold)
        segments = [(event.start_frame, event.end_frame) for event in reported]
        confidences = [event.peak_confidence for event in reported]
        predictions += [Prediction(number, *one) for one in zip(segments, confidences, strict=True)]
        true += [(number, event) for event in video.events]
        best = best_overlaps(video.events, segments)
        hits += [float(overlap > 0) for overlap in best]
        overlaps += best
        groups += [clips.reader.recording_or_video(number)] * len(best)
    return {
        "events": len(hits),
        "found": int(sum(hits)),
        "share": dataclasses.asdict(_interval(metrics.mean_statistic(hits), groups, config)),
        "mean_iou": dataclasses.asdict(_interval(metrics.mean_statistic(overlaps), groups, config)),
        "average_precision": {f"{iou:.1f}": average_precision(predictions, true, min_iou=iou) for iou in EVENT_IOUS},
    }


def per_class(
    clips: ScoredClips, videos: VideoScores, threshold: float, config: EvaluateConfig
) -> list[dict[str, Any]]:
    """Return, for each class, the number of videos, their accuracy and, for crimes, the AUC against all normal
    videos."""
    index = clips.reader.index
    names = [index.class_name(number) or "" for number in videos.numbers]
    rows = []
    for name in sorted(set(names)):
        own = np.array([other == name for other in names])
        label = int(videos.labels[own].max())
        right = (videos.scores[own] >= threshold) == label
        groups = [group for group, is_own in zip(videos.groups, own, strict=True) if is_own]
        against = own | (videos.labels == 0)
        rows.append(
            {
                "class": name,
                "label": label,
                "videos": int(own.sum()),
                "recordings": len(set(groups)),
                "right": dataclasses.asdict(_interval(metrics.mean_statistic(right), groups, config)),
                "auc_against_normal": metrics.roc_auc(videos.labels[against], videos.scores[against])
                if label
                else None,
            }
        )
    return rows


def _interval(statistic: metrics.Statistic, groups: Sequence[str], config: EvaluateConfig) -> Interval:
    return metrics.bootstrap(statistic, groups, num_resamples=config.num_resamples, seed=config.seed)


def _calibration_fields(
    chosen: Calibration, clips: ScoredClips, raw: Array, validation: ScoredClips | None
) -> dict[str, Any]:
    """Return ECE before and after calibration on the evaluated clips; with another prior it is undefined on them."""
    curves = {
        name: dataclasses.asdict(calibration.reliability(clips.labels, scores))
        for name, scores in (("before", raw), ("after", clips.scores))
    }
    return {
        **chosen.to_dict(),
        "fitted_on_validation_clips": None if validation is None else len(validation.labels),
        "prior_of_evaluated_clips": float(clips.labels.mean()),
        **curves,
    }


# --- shortcut baselines -------------------------------------------------------------------------------------------


def _baselines(
    config: EvaluateConfig, readers: Mapping[str, ClipReader], clips: ScoredClips, ground_truth: GroundTruth
) -> list[dict[str, Any]]:
    """Evaluate every shortcut on the same videos, and compare the model with it on the same resamples."""
    if "train" not in readers:
        return []
    train = readers["train"]
    rows = baselines.some_rows(train, per_video=BASELINE_CLIPS)
    if len(set(train.labels[rows].tolist())) < 2:
        raise UserError(f"{config.train_shards} contains clips of only one class, but baselines need both")
    model = video_scores(clips)
    model_auc = metrics.roc_auc_statistic(model.labels, model.scores)
    found = []
    for name, scores in baselines.score_shortcuts(train, rows, clips.reader, clips.rows.tolist()).items():
        shortcut = clips.with_scores(scores)
        if config.relative:
            shortcut = centred_clips(shortcut)
        videos = video_scores(shortcut)
        auc = metrics.roc_auc_statistic(videos.labels, videos.scores)
        above = metrics.paired_bootstrap(
            model_auc, auc, model.groups, num_resamples=config.num_resamples, seed=config.seed
        )
        anomalous = None
        if ground_truth:
            frames = frame_metrics.frame_metrics(scored_videos(shortcut, ground_truth), num_resamples=0)
            anomalous = frames.auc_anomalous.value
        found.append(
            {
                "name": name,
                "accuracy": metrics.accuracy(videos.labels, videos.scores >= 0.5),
                "auc": dataclasses.asdict(_interval(auc, videos.groups, config)),
                "model_above": dataclasses.asdict(above),
                "frame_auc_anomalous": anomalous,
            }
        )
    return found


# --- input --------------------------------------------------------------------------------------------------------


def _open_readers(config: EvaluateConfig, checkpoint: Checkpoint) -> dict[str, ClipReader]:
    """Open the sets by role. Raises UserError if one does not fit the checkpoint, or must not be used for choosing."""
    places = {"shards": config.shards, "validation": config.val_shards, "train": config.train_shards}
    readers = {role: ClipReader(place) for role, place in places.items() if place is not None}
    for reader in readers.values():
        check_clip_shape(checkpoint, config.checkpoint, reader.clip_shape, where=reader.shard_set.where)
    if "validation" in readers:
        if "Test" in readers["validation"].splits:
            raise UserError(
                f"`val_shards` {config.val_shards} is marked Test: calibration and threshold must not be chosen on it; "
                "pass a Validation split"
            )
        if readers["validation"].digest == readers["shards"].digest:
            raise UserError(
                f"`shards` and `val_shards` are the same set ({config.shards}): a threshold must not be evaluated on "
                "the clips that it was chosen on; pass a different set"
            )
    return readers


def _check_before_scoring(config: EvaluateConfig, readers: Mapping[str, ClipReader], target: Target | None) -> None:
    """Raise UserError before scoring if the labels cannot support the requested results."""
    if config.relative:
        for reader in (readers[name] for name in ("shards", "validation") if name in readers):
            centred_scores.check_videos(reader.videos[reader.labels >= 0], where=str(reader.shard_set.where))
    if "validation" in readers:
        validation = readers["validation"]
        num_normal, num_crime = (int((validation.labels == label).sum()) for label in (0, 1))
        calibration.check_classes(num_normal=num_normal, num_crime=num_crime)
        if target is not None:
            hours = sum(_alarm_hours(validation, validation.videos[validation.labels == layout.NORMAL_LABEL]).values())
            calibration.check_support(target, num_normal=num_normal, num_crime=num_crime, normal_hours=hours)


def _read_ground_truth(config: EvaluateConfig, reader: ClipReader) -> GroundTruth:
    """Return the ground truth of labelled videos; {} without annotations. Raises UserError if none is annotated."""
    if config.annotations is None:
        return {}
    refuse_overlap(read_annotations(config.annotations), config.trained_on)
    known = read_ground_truth(config.annotations, reader)
    found = {n: known[n] for n in np.unique(reader.videos[reader.labels >= 0]).tolist() if n in known}
    if not found:
        raise UserError(f"`annotations` {config.annotations} lists no labelled video of {config.shards}")
    return found


def _warnings(
    config: EvaluateConfig,
    checkpoint: Checkpoint,
    clips: ScoredClips,
    levels: Mapping[str, Any],
    validation: ScoredClips | None,
    chosen: Calibration,
) -> list[str]:
    warnings = [f"from the training: {text}" for text in checkpoint.warnings]
    trained = {digest for role, digest in checkpoint.data_digests.items() if role == "train"}
    if clips.reader.digest in trained:
        warnings.append(
            f"{config.shards} is the training set of the checkpoint, so these metrics say nothing about new videos"
        )
    elif clips.reader.digest in set(checkpoint.data_digests.values()):
        warnings.append(f"the checkpoint was chosen on {config.shards}, so these metrics are too optimistic")
    else:
        warnings += _trained_on(checkpoint, clips.reader, "these metrics are too optimistic")
    if validation is not None:
        warnings += _trained_on(checkpoint, validation.reader, "what was chosen on them is overconfident")
        if both := shared_videos(validation.reader, clips.reader):
            warnings.append(
                f"{len(both)} of {len(clips.reader.index.videos)} videos of {config.shards} are in {config.val_shards} "
                f"too (such as {both[0]!r}): their calibration and threshold were chosen on them"
            )
    if not clips.has_recordings:
        warnings.append(
            "recordings are unknown: intervals treat videos as independent, and are too narrow if several videos were "
            "cut from one recording; build with `source_groups`"
        )
    elif levels["clips"]["auc"]["num_units"] < 10:
        warnings.append(
            f"only {counted(levels['clips']['auc']['num_units'], 'recording')}: intervals are rough with so few"
        )
    if config.train_shards is None:
        warnings.append("there are no shortcut baselines; pass the training shards as `train_shards`")
    if config.val_shards is None:
        warnings.append("not calibrated here: pass validation shards as `val_shards`")
    elif chosen.temperature == 1:
        warnings.append(
            f"no temperature was fitted: the model classifies every clip of {config.val_shards} correctly, so its "
            "confidence cannot be estimated; its probabilities are not changed"
        )
    return warnings


def _trained_on(checkpoint: Checkpoint, reader: ClipReader, why: str) -> list[str]:
    """Return a warning if videos have the split and path of training videos, which may be sampled differently."""
    seen = sorted({reader.video_id(n) for n in np.unique(reader.videos).tolist()} & set(checkpoint.train_videos))
    if not seen:
        return []
    return [
        f"{len(seen)} of {len(reader.index.videos)} videos of {reader.shard_set.where} have the name of one that the "
        f"checkpoint was trained on (such as {seen[0]!r}): where they are the same, {why}"
    ]


def store(path: Path, chosen: Calibration, threshold: float, target: Target, *, relative: bool = False) -> None:
    """Store calibration and threshold (of `relative` scores) in the checkpoint, which is replaced atomically."""
    fields = {"calibration": chosen.to_dict(), "threshold": threshold, "threshold_target": str(target)}
    changes: dict[str, Any] = {"relative": fields} if relative else fields
    with files.hold_out(path.parent, name=f".{path.name}.lock"):
        save_checkpoint(path, dataclasses.replace(load_checkpoint(path), **changes))
