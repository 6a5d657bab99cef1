"""Evaluation of a checkpoint on clips, videos and frames, with calibration and threshold from validation data only.

Reads like a table of contents in `evaluate`. docs/EVALUATION.md says what every figure means.
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
from stage1.inference.events import Event, EventConfig, VideoClips, find_events
from stage1.inference.outputs import shortest_floats
from stage1.inference.scoring import crime_probabilities
from stage1.metrics import annotations as truths
from stage1.metrics import calibration, relative_scores
from stage1.metrics import clips as metrics
from stage1.metrics import frames as frame_metrics
from stage1.metrics.calibration import MIN_ALARM_SECONDS, Calibration, Target
from stage1.metrics.clips import Array, Interval
from stage1.metrics.frames import FrameMetrics, ScoredVideo
from stage1.metrics.ground_truth import read_ground_truth
from stage1.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from stage1.training.data import shared_videos
from vidshard.util import atomic, console
from vidshard.util.errors import UserError

BASELINE_CLIPS = 8  # clips of a training video to which shortcuts are fitted
# A video's score is the mean of its highest-scoring 1/16 of clips, at least one, as in RTFM (Tian et al., ICCV 2021).
VIDEO_TOP_SHARE = 1 / 16
METRIC_CONVENTIONS = {
    "intervals": "95 % percentile bootstrap over source groups (recordings), else videos",
    "clip labels": "the label of the video: in untrimmed video most clips of a crime video show none",
    "video score": "mean of the highest 1/16 of the clip scores of a video, at least one clip",
    "frame score": "mean of the clips over a frame; where there is none, the nearest frame with one",
    "frames": truths.EVENT_CONVENTIONS[truths.DEFAULT_CONVENTION],
    "within recording": "pairs of one crime and one normal of the same source group, all pairs counting the same",
    "events": f"as stage1 infer tells them: score a second, mean over {EventConfig().smooth_seconds:g} s, at least "
    f"{EventConfig().min_seconds:g} s long; a true event is found when one of its frames lies in a told one",
    "false alarms": f"events told of normal videos of {MIN_ALARM_SECONDS:g} s or more; interval: exact Poisson and "
    "bootstrap over recordings, the wider of both at each end",
    "relative": relative_scores.CONVENTION,
    "ece": f"{calibration.NUM_BINS} bins of equal width in P(crime)",
}


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
        return [self.group_of(video) for video in self.videos.tolist()]

    def group_of(self, video: int) -> str:
        return self.reader.index.recording(video) or f"video {self.reader.index.paths[video]}"

    @property
    def has_recordings(self) -> bool:
        return any(self.reader.index.recording(video) is not None for video in np.unique(self.videos).tolist())

    def with_scores(self, scores: Array) -> ScoredClips:
        return dataclasses.replace(self, scores=scores)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoScores:
    """Labels and scores of videos, [V]."""

    numbers: list[int]  # rows of the index's videos
    labels: npt.NDArray[np.int64]
    scores: Array
    groups: list[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateReport:
    """Results as text, and as a dictionary for JSON."""

    text: str
    fields: dict[str, Any]


def evaluate(config: EvaluateConfig) -> EvaluateReport:
    """Evaluate, write evaluation.json and evaluation.png into ``config.out``, and return the report.

    With ``config.target``, calibration and threshold are stored in the checkpoint. Raises UserError on unusable input,
    before anything is written.
    """
    files.check_out(config.out)
    checkpoint = load_checkpoint(config.checkpoint)
    target = calibration.parse_target(config.target) if config.target is not None else None
    readers = _open_readers(config, checkpoint)
    truth = _frame_truth(config, readers["shards"])
    _check_before_scoring(config, readers, target)
    clips = score_clips(readers["shards"], checkpoint, config)
    validation = score_clips(readers["validation"], checkpoint, config) if "validation" in readers else None
    if config.relative:
        clips = relative_clips(clips)
        validation = None if validation is None else relative_clips(validation)

    raw_scores = clips.scores
    stored = checkpoint.build_calibration()
    threshold, threshold_from = checkpoint.threshold, checkpoint.threshold_target or "the checkpoint (not chosen)"
    if config.relative:  # those above are of other scores
        stored, threshold, threshold_from = Calibration(), 0.5, "the median of each video (not chosen)"
        if (chosen_before := checkpoint.relative) is not None:
            stored, threshold = Calibration(**chosen_before["calibration"]), chosen_before["threshold"]
            threshold_from = chosen_before["threshold_target"]
    chosen = stored
    if validation is not None:
        chosen = calibration.fit(validation.labels, validation.scores)
        if config.prior is not None:
            chosen = chosen.for_prior(config.prior)
        validation = validation.with_scores(shown_scores(chosen, validation.scores))
        if target is not None:
            threshold, threshold_from = choose_threshold(validation, target), f"{target} on validation"
        else:  # the same clips are above it as before
            threshold = float(shown_scores(chosen, stored.invert([threshold]))[0])
    clips = clips.with_scores(shown_scores(chosen, raw_scores))
    levels = {"clips": level_metrics(clips.labels, clips.scores, clips.groups, threshold, config, clips.has_recordings)}
    videos = video_scores(clips)
    levels["videos"] = level_metrics(
        videos.labels, videos.scores, videos.groups, threshold, config, clips.has_recordings
    )
    fields: dict[str, Any] = {
        "checkpoint": str(config.checkpoint),
        "relative": config.relative,
        "shards": {"path": str(config.shards), "digest": clips.reader.digest, "split": clips.reader.manifest.split},
        "recordings": len(set(clips.groups)) if clips.has_recordings else None,
        "conventions": METRIC_CONVENTIONS,
        "threshold": {"value": threshold, "chosen_for": threshold_from},
        "levels": levels,
        "frames": None if truth is None else dataclasses.asdict(frames_of(clips, truth, config)),
        "events": None if truth is None else events_found(clips, truth, threshold, config),
        "false_alarms": false_alarms(clips, threshold, config),
        "classes": per_class(clips, videos, threshold, config),
        "calibration": _calibration_fields(chosen, clips, raw_scores, validation),
        "baselines": _baselines(config, readers, clips, truth),
        "warnings": _warnings(config, checkpoint, clips, levels, validation, chosen),
    }
    fields["flags"] = _flags(fields)
    if target is not None:
        store(config.checkpoint, chosen, threshold, target, relative=config.relative)
    atomic.write_json(config.out / "evaluation.json", fields)
    plots.plot_evaluation(
        fields, clips.labels, clips.scores, videos.labels, videos.scores, config.out / "evaluation.png"
    )
    return EvaluateReport(text=to_text(fields, config), fields=fields)


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


def relative_clips(clips: ScoredClips) -> ScoredClips:
    """Centre the scores per video. Raises UserError if most videos have too few clips."""
    relative_scores.check_videos(clips.videos, where=str(clips.reader.shard_set.where))
    return clips.with_scores(relative_scores.relative_scores(calibration.logits(clips.scores), clips.videos))


def video_scores(clips: ScoredClips) -> VideoScores:
    """Score each video by the mean of its highest clips (`VIDEO_TOP_SHARE`)."""
    numbers = np.unique(clips.videos).tolist()
    return VideoScores(
        numbers=numbers,
        labels=np.array([clips.labels[clips.videos == number].max() for number in numbers]),
        scores=np.array([top_mean(clips.scores[clips.videos == number]) for number in numbers]),
        groups=[clips.group_of(number) for number in numbers],
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
    hours = sum(_alarm_hours(validation.reader).values())
    calibration.check_support(target, num_normal=0, num_crime=0, normal_hours=hours)
    for threshold in calibration.candidate_thresholds(validation.scores):
        if sum(_alarms(validation, float(threshold)).values()) / hours <= target.value:
            return float(threshold)
    return 1.0


# --- figures ------------------------------------------------------------------------------------------------------


def level_metrics(
    labels: npt.NDArray[np.int64],
    scores: Array,
    groups: Sequence[str],
    threshold: float,
    config: EvaluateConfig,
    has_recordings: bool,
) -> dict[str, Any]:
    """Compute every metric of clips or videos, with intervals."""
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


def frames_of(clips: ScoredClips, truth: Mapping[int, truths.VideoGroundTruth], config: EvaluateConfig) -> FrameMetrics:
    """Compute frame metrics of the annotated videos."""
    return frame_metrics.frame_metrics(
        scored_videos(clips, truth), num_resamples=min(config.num_resamples, 500), seed=config.seed
    )


def scored_videos(clips: ScoredClips, truth: Mapping[int, truths.VideoGroundTruth]) -> list[ScoredVideo]:
    """Return a score for every frame of the annotated videos."""
    found = []
    for number, video in truth.items():
        own = np.flatnonzero(clips.videos == number)
        spread = frame_metrics.spread_clips(
            clips.scores[own], clips.first_frames[own], clips.last_frames[own], video.num_frames
        )
        found.append(
            ScoredVideo(
                stem=video.stem,
                group=clips.group_of(number),
                is_crime=video.is_crime,
                labels=video.frame_labels(),
                scores=spread,
            )
        )
    return found


def false_alarms(clips: ScoredClips, threshold: float, config: EvaluateConfig) -> dict[str, Any]:
    """Return false alarms per hour of normal footage, or a reason if no normal video is long enough."""
    hours = _alarm_hours(clips.reader)
    if not hours:
        return {"per_hour": None, "reason": f"no normal video of {MIN_ALARM_SECONDS:g} s or more"}
    alarms = _alarms(clips, threshold)
    total_hours, total_alarms = sum(hours.values()), sum(alarms.values())
    exact = metrics.poisson_interval(total_alarms, total_hours)
    counts_V = np.array([alarms[number] for number in hours], np.float64)
    hours_V = np.array(list(hours.values()))

    def rate(weights_V: Array) -> float | None:
        total = float(weights_V @ hours_V)
        return float(weights_V @ counts_V) / total if total else None

    drawn = _interval(rate, [clips.group_of(number) for number in hours], config)
    assert exact.low is not None
    assert exact.high is not None
    wider = dataclasses.replace(
        exact,
        low=min(exact.low, exact.low if drawn.low is None else drawn.low),
        high=max(exact.high, exact.high if drawn.high is None else drawn.high),
        num_units=len(hours),
    )
    return {
        "per_hour": dataclasses.asdict(wider),
        "alarms": total_alarms,
        "hours": total_hours,
        "videos": len(hours),
        "threshold": threshold,
    }


def _alarm_hours(reader: ClipReader) -> dict[int, float]:
    """Return the hours of each normal video that is long enough."""
    hours = {}
    for number in np.unique(reader.videos[reader.labels == 0]).tolist():
        row = reader.index.videos[number]
        seconds = float(row["num_frames"]) / float(row["fps"]) if row["fps"] > 0 else 0.0
        if seconds >= MIN_ALARM_SECONDS:
            hours[number] = seconds / 3600
    return hours


def _alarms(clips: ScoredClips, threshold: float) -> dict[int, int]:
    """Count the events that `stage1 infer` would report in each normal video that is long enough."""
    return {number: len(video_events(clips, number, threshold)) for number in _alarm_hours(clips.reader)}


def video_events(clips: ScoredClips, number: int, threshold: float) -> list[Event]:
    """Return the events that `stage1 infer` would report in a video."""
    own = np.flatnonzero(clips.videos == number)
    row = clips.reader.index.videos[number]
    video = VideoClips(
        confidences=clips.scores[own],
        first_frames=clips.first_frames[own],
        last_frames=clips.last_frames[own],
        start_seconds=clips.seconds[own, 0],
        last_seconds=clips.seconds[own, 1],
        num_frames=int(row["num_frames"]),
        fps=float(row["fps"]),
    )
    return find_events(video, threshold=threshold, config=EventConfig())[1]


def events_found(
    clips: ScoredClips, truth: Mapping[int, truths.VideoGroundTruth], threshold: float, config: EvaluateConfig
) -> dict[str, Any]:
    """Return the share of true events that overlap an event that `stage1 infer` would report."""
    hits, groups = [], []
    for number, video in truth.items():
        told = video_events(clips, number, threshold) if video.is_crime else []
        for first, last in video.events:
            hits.append(float(any(event.start_frame <= last and first <= event.end_frame for event in told)))
            groups.append(clips.group_of(number))
    return {
        "events": len(hits),
        "found": int(sum(hits)),
        "share": dataclasses.asdict(_interval(metrics.mean_statistic(hits), groups, config)),
    }


def per_class(
    clips: ScoredClips, videos: VideoScores, threshold: float, config: EvaluateConfig
) -> list[dict[str, Any]]:
    """Return, for each class, the number of videos, their accuracy, and a crime's AUC against all normal videos."""
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
    config: EvaluateConfig,
    readers: Mapping[str, ClipReader],
    clips: ScoredClips,
    truth: Mapping[int, truths.VideoGroundTruth] | None,
) -> list[dict[str, Any]]:
    """Evaluate every shortcut on the same videos, and compare the model with it on the same resamples."""
    if "train" not in readers:
        return []
    train = readers["train"]
    rows = baselines.some_rows(train, per_video=BASELINE_CLIPS)
    if len(set(train.labels[rows].tolist())) < 2:
        raise UserError(f"{config.train_shards} has clips of one class only, expected both to fit baselines")
    scores = baselines.score_shortcuts(train, rows, clips.reader, clips.rows.tolist())
    model = video_scores(clips)
    found = []
    for name, of_clips in scores.items():
        shortcut = clips.with_scores(of_clips)
        if config.relative:
            shortcut = relative_clips(shortcut)
        videos = video_scores(shortcut)
        auc = metrics.roc_auc_statistic(videos.labels, videos.scores)
        above = metrics.paired_bootstrap(
            metrics.roc_auc_statistic(model.labels, model.scores),
            auc,
            model.groups,
            num_resamples=config.num_resamples,
            seed=config.seed,
        )
        anomalous = None
        if truth is not None:
            anomalous = frame_metrics.frame_metrics(scored_videos(shortcut, truth), num_resamples=0).auc_anomalous.value
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


def _flags(fields: Mapping[str, Any]) -> list[str]:
    """Flag shortcuts that the model does not beat: by video AUC, paired, at 95 %."""
    flags = []
    for row in fields["baselines"]:
        above = Interval(**row["model_above"])
        if above.value is not None and not (above.low is not None and above.low > 0):
            flags.append(f"not above the shortcut '{row['name']}': video AUC higher by {above.text()}")
    return flags


# --- input --------------------------------------------------------------------------------------------------------


def _open_readers(config: EvaluateConfig, checkpoint: Checkpoint) -> dict[str, ClipReader]:
    readers = {"shards": ClipReader(config.shards)}
    if config.val_shards is not None:
        readers["validation"] = ClipReader(config.val_shards)
    if config.train_shards is not None:
        readers["train"] = ClipReader(config.train_shards)
    for reader in readers.values():
        if reader.clip_shape != checkpoint.shape:
            raise UserError(
                f"clips in {reader.shard_set.folder} are {reader.clip_shape}, {config.checkpoint} was trained on "
                f"{checkpoint.shape}; build them with the same `clip_len` and `frame_size`"
            )
    if "validation" in readers:
        validation = readers["validation"]
        splits = {validation.manifest.split, *(validation.index.split(v) for v in range(len(validation.index.videos)))}
        if "Test" in splits:
            raise UserError(
                f"`val_shards` {config.val_shards} is marked Test: calibration and threshold must not be chosen on it; "
                "name a Validation split"
            )
        if validation.digest == readers["shards"].digest:
            raise UserError(
                f"`shards` and `val_shards` are the same set ({config.shards}): what is chosen on it cannot be judged "
                "on it; name another one"
            )
    return readers


def _check_before_scoring(config: EvaluateConfig, readers: Mapping[str, ClipReader], target: Target | None) -> None:
    """Raise UserError before scoring if the labels cannot support the requested results."""
    if config.relative:
        for reader in (readers[name] for name in ("shards", "validation") if name in readers):
            relative_scores.check_videos(reader.videos[reader.labels >= 0], where=str(reader.shard_set.where))
    if "validation" in readers:
        validation = readers["validation"]
        num_normal, num_crime = (int((validation.labels == label).sum()) for label in (0, 1))
        calibration.check_classes(num_normal=num_normal, num_crime=num_crime)
        if target is not None:
            hours = sum(_alarm_hours(validation).values())
            calibration.check_support(target, num_normal=num_normal, num_crime=num_crime, normal_hours=hours)


def _frame_truth(config: EvaluateConfig, reader: ClipReader) -> dict[int, truths.VideoGroundTruth] | None:
    """Return the events of videos, by number of the video; None without annotations. Raises UserError if none fits."""
    if config.annotations is None:
        return None
    truths.refuse_overlap(truths.read_annotations(config.annotations), config.trained_on)
    known, paths = read_ground_truth(config.annotations, reader), reader.index.paths
    found = {n: known[paths[n]] for n in np.unique(reader.videos[reader.labels >= 0]).tolist() if paths[n] in known}
    if not found:
        raise UserError(f"`annotations` {config.annotations} names no video of {config.shards} that has a label")
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
        warnings.append(f"the checkpoint was chosen on {config.shards}, so these metrics are too good")
    else:
        warnings += _trained_on(checkpoint, clips.reader, "these metrics are too good")
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
        warnings.append(f"only {levels['clips']['auc']['num_units']} recordings: intervals are rough with so few")
    if config.train_shards is None:
        warnings.append("no shortcut baselines: name the training shards by `train_shards`")
    if config.val_shards is None:
        warnings.append("not calibrated here: name validation shards by `val_shards`")
    elif chosen.temperature == 1:
        warnings.append(
            f"no temperature was fitted: the model classifies correctly every clip of {config.val_shards}, so its "
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
    save_checkpoint(path, dataclasses.replace(load_checkpoint(path), **changes))


# --- text ---------------------------------------------------------------------------------------------------------


def to_text(fields: Mapping[str, Any], config: EvaluateConfig) -> str:
    """Format the report as text: every metric with its interval, and the conventions."""
    lines = [
        f"{fields['checkpoint']} on {fields['shards']['path']}",
        f"Intervals: {METRIC_CONVENTIONS['intervals']}.",
        "",
    ]
    if fields["relative"]:
        lines[1:1] = [f"Scores are relative: {METRIC_CONVENTIONS['relative']}."]
    names = ["accuracy", "auc", "average_precision", "f1"]
    cells = [["", "n", "crime", "accuracy", "AUC", "AP", "F1"]]
    if fields["recordings"] is not None:
        names.append("auc_within_recording")
        cells[0].append("AUC within recording")
    for level, row in fields["levels"].items():
        cells.append([level, f"{row['num']:,}", f"{row['num_crime']:,}", *(_text(row.get(name)) for name in names)])
    lines += _aligned(cells)
    frames = fields["frames"]
    if frames is not None:
        lines += [
            "",
            f"Frames: {frames['num_frames']:,} of {frames['num_videos']} videos, "
            f"{frames['num_event_frames']:,} of an event",
            f"  all videos:             AUC {_text(frames['auc'])}, AP {_text(frames['average_precision'])}",
            f"  anomalous videos alone: AUC {_text(frames['auc_anomalous'])}, "
            f"AP {_text(frames['average_precision_anomalous'])}, "
            f"mean AUC of single videos {_text(frames['mean_auc_of_anomalous_videos'])}",
        ]
    events = fields["events"]
    if events is not None:
        lines.append(f"Events found: {events['found']} of {events['events']}, a share of {_text(events['share'])}")
    alarms = fields["false_alarms"]
    if alarms["per_hour"] is None:
        lines.append(f"False alarms per hour of normal footage: none stated, {alarms['reason']}")
    else:
        lines.append(
            f"False alarms per hour of normal footage: {_text(alarms['per_hour'], 1)}, {alarms['alarms']} in "
            f"{alarms['hours']:.2f} hours of {alarms['videos']} videos"
        )
    threshold = fields["threshold"]
    lines += ["", f"Threshold on P(crime): {threshold['value']:.4f}, from {threshold['chosen_for']}"]
    if config.target is not None:
        what = ", for `stage1 infer --relative`" if config.relative else ""
        lines[-1] += f"; stored in the checkpoint, with the calibration{what}"
    about = fields["calibration"]
    before, after = about["before"]["ece"], about["after"]["ece"]
    share = f"evaluated clips: {_share(about['prior_of_evaluated_clips'])}"
    lines.append(
        f"Never calibrated; ECE {after:.3f} (share of crime of the {share})"
        if about["prior"] is None
        else f"Calibration: temperature {about['temperature']:.3f}, for a share of crime of {_share(about['prior'])} "
        f"({share}); ECE {before:.3f} before, {after:.3f} after"
    )
    lines += ["", "By class:"]
    has_recordings = fields["recordings"] is not None
    lines += _aligned(
        [["", "videos", *["recordings"] * has_recordings, "on the right side", "AUC against normal"]]
        + [
            [
                row["class"] or "(no class)",
                str(row["videos"]),
                *[str(row["recordings"])] * has_recordings,
                _text(row["right"]),
                "" if row["auc_against_normal"] is None else f"{row['auc_against_normal']:.3f}",
            ]
            for row in fields["classes"]
        ]
    )
    if fields["baselines"]:
        lines += ["", "Shortcut baselines, on the same videos (fitted on the training shards):"]
        cells = [["", "accuracy", "video AUC", "model is above it by"]]
        cells += [
            [row["name"], f"{row['accuracy']:.3f}", _text(row["auc"]), _text(row["model_above"])]
            for row in fields["baselines"]
        ]
        if frames is not None:
            cells[0].append("frame AUC, anomalous videos")
            for cell, row in zip(cells[1:], fields["baselines"], strict=True):
                anomalous = row["frame_auc_anomalous"]
                cell.append("" if anomalous is None else f"{anomalous:.3f}")
        lines += _aligned(cells)
    lines += ["", *(f"FLAG: {flag}" for flag in fields["flags"])]
    lines += [f"WARNING: {warning}" for warning in fields["warnings"]]
    unused = set() if frames is not None else {"frame score", "frames", "events"}
    unused |= set() if fields["relative"] else {"relative"}
    unused |= set() if fields["recordings"] else {"within recording"}
    shown = {name: what for name, what in METRIC_CONVENTIONS.items() if name not in unused}
    lines += ["", "Conventions:", *(f"  {name}: {what}" for name, what in shown.items())]
    lines += ["", f"✓ {config.out / 'evaluation.json'} and {config.out / 'evaluation.png'}"]
    return "\n".join(lines)


def _text(interval: Mapping[str, Any] | None, digits: int = 3) -> str:
    return "" if interval is None else Interval(**interval).text(digits)


def _share(value: float) -> str:
    return f"{value:.2f}" if value in (0, 1) or 0.01 <= value <= 0.99 else f"{value:.3g}"


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells]
