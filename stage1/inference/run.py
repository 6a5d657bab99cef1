"""Inference: score every clip of a shard folder with a checkpoint, and write the detections.

Clips are read, scored and released. Their scores go to a log on disk, from which a killed run resumes. At the end the
outputs are written from the log row by row, so that memory grows only by a few numbers per clip (its row of the index,
label, score and position).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stage1.common import distributed, files
from stage1.common.device import choose_device, device_name
from stage1.common.distributed import rank_zero_warn
from stage1.data import from_videos
from stage1.data.epoch_plan import Rows, rows_by_video
from stage1.data.loader import ClipReader
from stage1.inference import attention_data
from stage1.inference import outputs as output
from stage1.inference.attention_data import AttentionSource
from stage1.inference.config import InferConfig as InferConfig
from stage1.inference.events import ClipScores, find_events
from stage1.inference.outputs import Detection, OutputFiles, Prediction, VideoScore
from stage1.inference.score_log import ScoreLog
from stage1.inference.scoring import BatchPlan, CheckpointClips, ScoringConfig, score
from stage1.metrics import centred_scores
from stage1.metrics import clips as metrics
from stage1.metrics.calibration import Calibration
from stage1.metrics.ground_truth import read_ground_truth
from stage1.model import released
from stage1.model.checkpoint import Checkpoint, build_options, check_clip_shape, load_checkpoint
from vidshard import __version__
from vidshard.shards import layout, manifest
from vidshard.shards.manifest import Failure
from vidshard.storage.cache import CacheConfig
from vidshard.storage.urls import Location, Url, redact_credentials
from vidshard.util import atomic, console
from vidshard.util.errors import UserError
from vidshard.util.hashing import file_sha256
from vidshard.util.text import counted

logger = logging.getLogger(__name__)

MAX_GAP_RATIO = 2.0 * (1 + 1e-6)  # with a tolerance, because the index stores gaps as 32-bit floats
RULE = "=" * 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fold:
    """A checkpoint and the index rows of the clips that it scores."""

    checkpoint: Path
    rows: Rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedFold(CheckpointClips):
    """A fold with its checkpoint in memory."""

    path: Path
    sha256: str
    train_videos: frozenset[str]  # empty if unknown


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossvalHint:
    """Options of the cross-validation that gives stage 2 its training data, and how long it takes."""

    words: tuple[str, ...]
    note: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferReport:
    """Result of a run: counts, metrics, problems, and the files written."""

    files: OutputFiles
    attention: Path  # the file of tensors, or the folder of shards
    num_clips: int
    num_detections: int
    missed_crimes: int  # clips labelled crime with a score below the threshold
    num_videos: int
    num_events: int
    threshold: float
    device: str
    metrics: metrics.BinaryMetrics | None  # None without a labelled clip
    unscored: dict[str, str]  # key of the clip → why it could not be read
    failures: tuple[Failure, ...]  # videos passed by the user that could not be decoded
    warnings: tuple[str, ...]
    not_for_training: str | None = None  # why stage 2 must not be trained on the detections
    crossval: CrossvalHint | None = None  # what gives training data instead, if the model was trained on these videos

    @functools.cached_property
    def detections(self) -> list[Detection]:
        """The detected clips, in the order of the index, read from anomalies.json."""
        return output.read_anomalies(self.files.anomalies)

    @functools.cached_property
    def videos(self) -> list[dict[str, Any]]:
        """Scores per second and events of every video: the entries of events.json (docs/OUTPUTS.md)."""
        videos: list[dict[str, Any]] = json.loads(self.files.events.read_bytes())["videos"]
        return videos

    @property
    def exit_code(self) -> int:
        return console.EXIT_PARTLY_FAILED if self.unscored or self.failures else console.EXIT_OK

    @property
    def problems(self) -> str:
        """Warnings and failures, one per line; "" if there are none."""
        lines = [f"warning: {warning}" for warning in self.warnings]
        lines += [f"not scored: {reason}" for reason in self.unscored.values()]
        lines += [f"not decoded: {failure.path}: {failure.message} ({failure.reason})" for failure in self.failures]
        return "\n".join(map(console.shown_line, lines))

    @property
    def summary(self) -> str:
        """Last lines of the output: metrics, if clips have labels, and the files written."""
        lines = _metrics_lines(self.metrics, self.threshold) if self.metrics else []
        lines.append(
            f"Videos: {counted(self.num_events, 'event')} in {counted(self.num_videos, 'video')}, see "
            f"{shown_path(self.files.events)} and videos.csv"
        )
        return "\n".join(
            [
                *lines,
                RULE,
                "✓ Stage 1 Complete!",
                f"  - Detected {self.num_detections} crime clips",
                f"  - Anomaly records saved to: {shown_path(self.files.anomalies)}",
                f"  - Attention data saved to: {shown_path(self.attention)}",
                "  - Ready for Stage 2 training"
                if self.not_for_training is None
                else f"  - Stage 2: for evaluation only ({self.not_for_training})",
                RULE,
            ]
        )


def shown_path(path: Path) -> str:
    """Format a path for the output. Relative paths begin with a dot, which distinguishes them from names.

    >>> shown_path(Path("stage1_output/anomalies.json"))
    './stage1_output/anomalies.json'
    """
    return str(path) if path.is_absolute() else f"./{path.as_posix()}"


@files.holds_out
def infer(config: InferConfig) -> InferReport | None:
    """Score all clips, write the outputs to ``config.out``, and return the report; None on ranks other than 0.

    `videos` are scored with the released model while there is no trained one at the default place. Raises UserError
    (which includes FormatError) before anything is written if the clips do not fit the checkpoint.
    """
    if config.videos and config.checkpoint == files.DEFAULT_CHECKPOINT and not config.checkpoint.exists():
        rank_zero_warn(f"no {config.checkpoint} yet; scoring with {released.PATH}: {released.WARNING}")
        config = dataclasses.replace(config, checkpoint=released.PATH)
    fold = _load(Fold(checkpoint=config.checkpoint, rows=np.zeros(0, np.int64)))  # it scores all rows
    if not config.videos:
        return _on_all_ranks(config, [fold])
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "`videos` runs in one process, but WORLD_SIZE is above 1; build shards first and pass them as `shards`"
        )
    shape, settings = fold.checkpoint.shape, fold.checkpoint.sampling
    gap_seconds = fold.checkpoint.frame_gap_seconds
    sampling = from_videos.sampling_config(settings, shape=shape, gap_seconds=gap_seconds, stride=config.stride)
    with from_videos.temporary_shards(
        config.videos, shape=shape, sampling=sampling, settings=settings, workers=config.workers
    ) as built:
        config = dataclasses.replace(config, shards=built.folder)
        return _InferenceRun(config, [fold], root=built.root, failures=built.failures).execute()


@files.holds_out
def infer_out_of_fold(config: InferConfig, folds: Sequence[Fold]) -> InferReport | None:
    """Score each clip with the checkpoint that was not trained on it, and write one set of outputs, for stage 2.

    ``config.checkpoint`` is ignored, and so are clips in no fold. Raises UserError if a clip is in two folds, if a
    checkpoint was trained on a video that it would score, or if the clips do not fit a checkpoint.
    """
    if config.relative:
        raise UserError("relative scores need the threshold of a single checkpoint; score the folds without `relative`")
    if not folds:
        raise UserError("there are no folds to score, expected at least one checkpoint with its clips")
    return _on_all_ranks(config, list(map(_load, folds)), out_of_fold=True)


def _load(fold: Fold) -> LoadedFold:
    checkpoint = load_checkpoint(fold.checkpoint)
    return LoadedFold(
        checkpoint=checkpoint,
        rows=np.asarray(fold.rows, np.int64),
        path=fold.checkpoint,
        sha256=file_sha256(fold.checkpoint),
        train_videos=frozenset(checkpoint.train_videos),
    )


def _on_all_ranks(config: InferConfig, folds: list[LoadedFold], *, out_of_fold: bool = False) -> InferReport | None:
    device = distributed.device_of_rank(choose_device(config.device))
    with distributed.joined_ranks(device):
        return _InferenceRun(config, folds, root=_video_root(config), out_of_fold=out_of_fold).execute()


class _InferenceRun:
    """One run: its inputs, and the steps of `execute`."""

    def __init__(
        self,
        config: InferConfig,
        folds: list[LoadedFold],
        *,
        root: Location | None,
        failures: tuple[Failure, ...] = (),
        out_of_fold: bool = False,
    ) -> None:
        self.config, self.root = config, root
        self.failures, self.out_of_fold = failures, out_of_fold
        self.device = distributed.device_of_rank(choose_device(config.device))
        cache = CacheConfig(folder=config.cache_dir, limit_gb=config.cache_gb)
        self.reader = reader = ClipReader(config.shards, cache=cache)
        warnings: dict[str, None] = {}
        for fold in folds:
            check_clip_shape(fold.checkpoint, fold.path, reader.clip_shape, where=reader.shard_set.where)
            warnings |= dict.fromkeys(_check_sampling(reader, fold, config))
        self.warnings = list(warnings)
        self.folds = folds if out_of_fold else [dataclasses.replace(folds[0], rows=np.arange(len(reader)))]
        self.threshold = _threshold(config, self.folds)
        self._centred: npt.NDArray[np.float32] | None = None  # confidence of every row, with config.relative
        self._repeats = False  # a run that may have finished before
        if config.relative:
            centred_scores.check_videos(reader.videos, where=reader.shard_set.where)
        if out_of_fold:
            _check_folds(reader, self.folds)
        batch_size = min(config.batch_size, max(1, *(len(fold.rows) for fold in self.folds)))
        self.plan = BatchPlan(self.folds, num_rows=len(reader), batch_size=batch_size)
        self.scoring = ScoringConfig(
            device=self.device,
            batch_size=batch_size,
            precision=config.precision,
            log_odds=config.relative,
            threads=config.threads,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )
        self.rows = self.plan.rows
        self.files = OutputFiles(folder=config.out)
        self.ground_truth = read_ground_truth(config.annotations, reader)
        self.score_log = ScoreLog(
            self.files.score_log,
            plan=self._facts(),
            num_batches=self.plan.num_batches,
            num_frames=reader.clip_shape.num_frames,
        )
        self._fold_of_row = np.zeros(len(reader), np.int32)
        for number, fold in enumerate(self.folds):
            self._fold_of_row[fold.rows] = number

    @property
    def _sha256(self) -> str:
        """SHA-256 of all checkpoints."""
        return "+".join(fold.sha256 for fold in self.folds)

    def _facts(self) -> dict[str, Any]:
        """Return everything that determines the scores; a run that resumes another must have the same."""
        return {
            "shards": self.reader.digest,
            "checkpoint": self._sha256,
            "rows": "+".join(hash_of_rows(fold.rows) for fold in self.folds) if self.out_of_fold else "",
            "batch size": self.scoring.batch_size,
            "precision": self.config.precision,
            "device": self.device.type,
            "relative": self.config.relative,
        }

    def execute(self) -> InferReport | None:
        """Score on all ranks, and write the outputs on rank 0."""
        try:
            return self._execute()
        except (KeyboardInterrupt, OSError) as error:
            if self.score_log.has_scores:
                error.add_note("run the same command with `resume` to continue")
            raise

    def _execute(self) -> InferReport | None:
        distributed.check_agreement(self._facts())
        is_first = distributed.rank() == 0
        if is_first:
            logger.info(f"Scoring {counted(len(self.rows), 'clip')} on {device_name(self.device)}")
            # A score log is of a run that was killed. Nobody resumes the scoring of folds: its command is repeated.
            self._repeats = self.config.resume or self.out_of_fold or self.score_log.folder.exists()
            self.score_log.start(resume=self.config.resume)
        distributed.wait_for_all()  # until the score log is ready
        self.score_log.load()
        done = self.plan.num_batches - len(self.score_log.missing)
        # The ranks divide the missing batches, so none may append to the log before all have read it.
        distributed.check_agreement({"batches on disk": done})
        if is_first and done:
            logger.info(f"Resumed: {done:,} of {self.plan.num_batches:,} batches were already scored")
        score(self.reader, self.plan, self.score_log, self.scoring, row_seconds=self._row_seconds())
        distributed.wait_for_all()  # until all batches are scored
        if not is_first:
            self.score_log.close()
            return None
        self.score_log.load()
        if len(self.score_log.missing):
            raise UserError(
                f"the scores of {len(self.score_log.missing):,} batches are not in {self.score_log.folder}: `out` must "
                "be a folder that all processes of the run share; run again with `resume`"
            )
        if self.config.relative:
            self._centred = self._centred_confidences()
        report = self._write()
        self.score_log.remove()
        return report

    def _row_seconds(self) -> npt.NDArray[np.float64] | None:
        """Return the seconds of video that each index row stands for in the progress of `videos`, or None."""
        if not self.config.videos:
            return None
        table, videos = self.reader.index.videos, self.reader.videos
        seconds = table["num_frames"] / np.where(table["fps"] > 0, table["fps"], np.inf)
        of_row: npt.NDArray[np.float64] = (seconds / np.bincount(videos, minlength=len(table)).clip(1))[videos]
        return of_row

    # --- results

    def _score_of(self, row: int) -> tuple[np.void, str | None]:
        """Return the scores of an index row, and the reason if it could not be scored (else None)."""
        batch, position = int(self.plan.batch_of_row[row]), int(self.plan.position_of_row[row])
        scored = self.score_log.read(batch)
        scores, reason = scored.rows[position], scored.reasons.get(position)
        if self._centred is not None:
            scores = scores.copy()
            scores["confidence"] = self._centred[row]
        return scores, reason

    def _centred_confidences(self) -> npt.NDArray[np.float32]:
        """Return calibrated P(crime) of every index row, centred per video; NaN where there is no score."""
        log_odds = np.full(len(self.reader), np.nan)
        for row in self.rows.tolist():
            log_odds[row] = self._score_of(row)[0]["confidence"]
        chosen = self.folds[0].checkpoint.relative or {"calibration": {}}
        centred = centred_scores.centred_scores(log_odds, self.reader.videos)
        return Calibration(**chosen["calibration"]).apply(centred).astype(np.float32)

    def _predictions(self) -> Iterator[Prediction]:
        index = self.reader.index
        for row in self.rows.tolist():
            scores, reason = self._score_of(row)
            clip, scored = index.clips[row], reason is None
            video = int(clip["video"])
            confidence = output.shortest_float(scores["confidence"]) if scored else None
            yield Prediction(
                key=index.key(row),
                source=index.paths[video],
                clip_index=int(clip["clip"]),
                class_name=index.class_name(video),
                label=int(clip["label"]),
                split=index.split(video),
                confidence=confidence,
                predicted=None if confidence is None else confidence >= self.threshold,
                start_seconds=float(scores["start_seconds"]) if scored else None,
                end_seconds=float(scores["last_seconds"]) if scored else None,
            )

    def _detection(self, row: int) -> Detection:
        record = self.reader.read_record(row)
        scores, _ = self._score_of(row)
        return Detection.of_record(
            record,
            video_path=self._video_path(record.path),
            confidence=output.shortest_float(scores["confidence"]),
            attention_weights=tuple(output.shortest_floats(scores["attention"])),
            fps=output.shortest_float(np.float32(record.fps)),
        )

    def _video_score(self, rows: Rows) -> VideoScore:
        index, video = self.reader.index, int(self.reader.videos[rows[0]])
        scored = [scores for scores, reason in map(self._score_of, rows.tolist()) if reason is None]
        facts = index.videos[video]
        clips = ClipScores(
            confidences=np.array([scores["confidence"] for scores in scored], np.float64),
            first_frames=np.array([scores["first_frame"] for scores in scored], np.int64),
            last_frames=np.array([scores["last_frame"] for scores in scored], np.int64),
            start_seconds=np.array([scores["start_seconds"] for scores in scored], np.float64),
            last_seconds=np.array([scores["last_seconds"] for scores in scored], np.float64),
            num_frames=int(facts["num_frames"]),
            fps=float(facts["fps"]),
            gap_seconds=1 / fps if (fps := self.reader.settings.get("fps")) else 0.0,
        )
        seconds, events = find_events(clips, threshold=self.threshold, config=self.config.events)
        path = index.paths[video]
        return VideoScore(
            source=path,
            video_path=self._video_path(path),
            class_name=index.class_name(video),
            label=int(index.clips["label"][rows[0]]),
            split=index.split(video),
            num_frames=clips.num_frames,
            fps=output.shortest_float(facts["fps"]),
            duration_seconds=round(clips.duration_seconds, 6),
            num_clips=len(rows),
            num_unscored=len(rows) - len(scored),
            scores=tuple(None if math.isnan(score) else score for score in seconds.tolist()),
            events=tuple(events),
            true_events=self.ground_truth[video].events if video in self.ground_truth else None,
        )

    def _video_path(self, source: str) -> str:
        return str(self.root / source) if self.root is not None else source

    def _trained_on(self, row: int) -> int:
        """Return 1 if the model that scored this clip was trained on its video, 0 if not, and -1 if unknown."""
        seen = self.folds[self._fold_of_row[row]].train_videos
        if not seen:
            return attention_data.TRAINED_ON["unknown"]
        return int(self.reader.video_id(int(self.reader.videos[row])) in seen)

    # --- writing

    def _write(self) -> InferReport:
        """Write the outputs, and run.json last, so that a folder with run.json has the files of a single run."""
        written, config, reader = self.files, self.config, self.reader
        if self._repeats and self._is_finished():
            written.run.unlink()  # the same run is no second one: it writes the same bytes again
        else:
            written.set_old_aside()
        confidences = np.full(len(self.rows), np.nan, np.float32)
        unscored: dict[str, str] = {}
        for i, row in enumerate(self.rows.tolist()):
            scores, reason = self._score_of(row)
            confidences[i] = scores["confidence"]
            if reason is not None:
                unscored[reader.index.key(row)] = reason
        labels = reader.labels[self.rows]
        is_detected = output.decided(confidences, self.threshold)
        detected = self.rows[is_detected]
        missed = int(((labels == layout.CRIME_LABEL) & ~is_detected & ~np.isnan(confidences)).sum())
        self.warnings += _check_paths(
            {self._video_path(reader.index.paths[video]) for video in np.unique(reader.videos[detected]).tolist()},
            self.root,
            config,
        )

        output.write_predictions(written.predictions, self._predictions())
        output.write_anomalies(written.anomalies, map(self._detection, detected.tolist()))
        counts = {"videos": 0, "events": 0, "with_events": 0}
        videos = sorted(rows_by_video(self.rows, reader.videos), key=lambda rows: int(rows[0]))  # by their first clip
        output.write_videos(
            written.videos,
            written.events,
            _counted(map(self._video_score, videos), counts),
            threshold=self.threshold,
            settings=dataclasses.asdict(config.events),
        )
        trained_on = [self._trained_on(row) for row in detected.tolist()]
        attention = self._write_attention(detected, trained_on, missed)
        splits = [reader.index.split(video) for video in reader.videos[detected].tolist()]
        report = InferReport(
            files=written,
            attention=attention,
            num_clips=len(self.rows),
            num_detections=len(detected),
            missed_crimes=missed,
            num_videos=counts["videos"],
            num_events=counts["events"],
            threshold=self.threshold,
            device=device_name(self.device),
            metrics=_metrics(labels, confidences, self.threshold),
            unscored=unscored,
            failures=self.failures,
            warnings=tuple(self.warnings),
            not_for_training=(reason := attention_data.why_not_for_training(splits, trained_on)),
            crossval=_crossval_hint(self.folds[0].checkpoint) if reason and "Test" not in splits else None,
        )
        num_trained_on = sum(self._trained_on(row) == 1 for row in self.rows.tolist())
        atomic.write_json(written.run, self._run_json(report, counts, num_trained_on))
        return report

    def _write_attention(self, detected: Rows, trained_on: Sequence[int], missed: int) -> Path:
        reader, written = self.reader, self.files
        source = AttentionSource(
            clip_shape=reader.clip_shape,
            checkpoint_sha256=self._sha256,
            shards_digest=reader.manifest.digest,
            threshold=self.threshold,
            out_of_fold=self.out_of_fold,
            missed_crimes=missed,
        )

        def read_clips(numbers: range, out: npt.NDArray[np.uint8]) -> None:
            reader.read_clips(detected[numbers.start : numbers.stop], out)

        detections = map(self._detection, detected.tolist())
        if self.config.attention_format == "shards":
            attention_data.write_shards(written.attention_shards, detections, trained_on, read_clips, source)
            return written.attention_shards
        attention_data.check_clip_bytes(len(detected), reader.clip_shape, threshold=self.threshold)
        attention_data.write_file(written.attention_data, detections, trained_on, read_clips, source)
        return written.attention_data

    def _is_finished(self) -> bool:
        """Return True if the output folder has the finished run of the same inputs and options."""
        inputs = json.loads(json.dumps(self._inputs()))
        try:
            run = json.loads(self.files.run.read_bytes())
            return bool({name: run[name] for name in inputs} == inputs)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _inputs(self) -> dict[str, Any]:
        """Return the part of run.json that is known before the results."""
        config = self.config
        models = [
            {
                "path": str(fold.path),
                "sha256": fold.sha256,
                "epoch": fold.checkpoint.epoch,
                "warnings": list(fold.checkpoint.warnings),
                "clips": len(fold.rows),
            }
            for fold in self.folds
        ]
        return {
            "schema_version": output.SCHEMA_VERSION,
            "stage1_version": __version__,
            "shards": {"path": None if config.videos else str(config.shards), "digest": self.reader.manifest.digest},
            "videos": list(map(redact_credentials, config.videos)),
            "checkpoint": None if self.out_of_fold else models[0],
            "folds": models if self.out_of_fold else None,
            "threshold": self.threshold,
            "relative": config.relative,
            "batch_size": config.batch_size,
            "precision": config.precision,
            "device": device_name(self.device),
            "attention_format": config.attention_format,
            "annotations": None if config.annotations is None else str(config.annotations),
            "events": dataclasses.asdict(config.events),
        }

    def _run_json(self, report: InferReport, counts: dict[str, int], trained_on: int) -> dict[str, Any]:
        return {
            **self._inputs(),
            "clips": {
                "found": report.num_clips,
                "scored": report.num_clips - len(report.unscored),
                "unscored": len(report.unscored),
                "detected": report.num_detections,
                "missed_crimes": report.missed_crimes,
                "trained_on": trained_on,
            },
            "video_counts": counts,
            "unscored": report.unscored,
            "failures": [dataclasses.asdict(failure) for failure in report.failures],
            "metrics": None if report.metrics is None else dataclasses.asdict(report.metrics),
            "warnings": list(report.warnings),
        }


def _crossval_hint(checkpoint: Checkpoint) -> CrossvalHint | None:
    """Return the hint for the training data of a checkpoint; None if it does not name its shards."""
    shards = (checkpoint.train_config or {}).get("shards")
    if not shards:
        return None
    sets = [shards] if isinstance(shards, str) else list(shards)
    seconds = [row["seconds"] for row in checkpoint.run_state.get("history", ()) if "seconds" in row]
    # By default 20 epochs for each of 5 folds, on 4/5 of the clips, by 3 seeds, by recording and at random.
    estimate = 20 * 5 * 0.8 * 3 * 2 * math.fsum(seconds) / len(seconds) if seconds else None
    time = f", about {max(1, round(estimate / 60)):,} min" if estimate is not None else ""
    words = tuple(word for place in sets for word in ("--shards", str(place)))
    return CrossvalHint(words=words, note=f"out-of-fold detections, to train stage 2 on{time}")


def _counted(scores: Iterator[VideoScore], counts: dict[str, int]) -> Iterator[VideoScore]:
    """Yield the videos, and update `counts`."""
    for video in scores:
        counts["videos"] += 1
        counts["events"] += len(video.events)
        counts["with_events"] += bool(video.events)
        yield video


def hash_of_rows(rows: Rows) -> str:
    """Return a short hash of rows and their order."""
    return hashlib.sha256(np.ascontiguousarray(rows, "<i8").tobytes()).hexdigest()[:16]


def _threshold(config: InferConfig, folds: Sequence[LoadedFold]) -> float:
    """Return the threshold of the options, or that of the checkpoint, or the mean over several checkpoints."""
    if config.threshold is not None:
        return config.threshold
    if config.relative:
        if (chosen := folds[0].checkpoint.relative) is None:
            raise UserError(
                f"{config.checkpoint} has no threshold for scores centred per video; choose one with `stage1 evaluate "
                "--relative --val-shards PLACE --target TARGET`, or pass `threshold`"
            )
        return float(chosen["threshold"])
    return math.fsum(fold.checkpoint.threshold for fold in folds) / len(folds)


def _check_folds(reader: ClipReader, folds: Sequence[LoadedFold]) -> None:
    """Raise UserError if folds share clips, or if a checkpoint was trained on a video of its fold."""
    counts = np.bincount(np.concatenate([fold.rows for fold in folds]), minlength=len(reader))
    if (counts > 1).any():
        raise UserError(f"clip {reader.index.key(int(counts.argmax()))!r} is in two folds, expected at most one")
    for fold in folds:
        held_out = {reader.video_id(video) for video in np.unique(reader.videos[fold.rows]).tolist()}
        if seen := held_out & fold.train_videos:
            raise UserError(
                f"{fold.path} was trained on {len(seen)} of the videos of its fold (such as {min(seen)!r}), so its "
                "predictions would not be out of fold; score these videos with a different checkpoint"
            )


def _check_sampling(reader: ClipReader, fold: LoadedFold, config: InferConfig) -> list[str]:
    """Raise UserError if frames were resized differently than in training, or are spaced very differently in time.

    For videos passed by the user, return warnings instead, because they were already sampled like the training clips.
    """
    checkpoint, path = fold.checkpoint, fold.path
    subject = "the videos" if config.videos else f"clips in {reader.shard_set.where}"
    mismatches = []
    resize, expected_resize = (
        settings.get("resize", "squash") for settings in (reader.manifest.settings, checkpoint.sampling)
    )
    if resize != expected_resize:
        mismatches.append(
            f"frames of {subject} were made square by `resize` {resize}, but {path} was trained on {expected_resize}, "
            "which changes shapes"
        )
    got, expected = reader.frame_gap_seconds(), checkpoint.frame_gap_seconds
    if min(got, expected) > 0 and max(got, expected) / min(got, expected) > MAX_GAP_RATIO:
        mismatches.append(
            f"frames of {subject} are {got:.3g} s apart (median), but {path} was trained on {expected:.3g} s, "
            "which changes motion"
        )
    if not mismatches or config.videos or config.allow_sampling_mismatch:
        return [f"{mismatch}: the scores may be meaningless" for mismatch in mismatches]
    raise UserError(
        f"{'; '.join(mismatches)}; build the shards like the training shards, with `vidshard build SOURCE "
        f"{build_options(checkpoint)}`, or continue with `allow_sampling_mismatch`"
    )


def _video_root(config: InferConfig) -> Path | None:
    """Return the folder of the videos: that of the options, or that in the log of the build, or None."""
    if config.video_root is not None:
        if not config.video_root.is_dir():
            raise UserError(f"`video_root` {config.video_root} is not a folder; expected the folder of the videos")
        return config.video_root.resolve()
    if isinstance(config.shards, Url):
        return None
    log = manifest.log_folder(Path(os.path.abspath(config.shards))) / layout.SOURCE_NAME
    try:
        return Path(json.loads(log.read_bytes())["root"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_paths(paths: set[str], root: Location | None, config: InferConfig) -> list[str]:
    """Return a warning if the `video_path` of a detection is not a file."""
    if isinstance(root, Url):
        return []
    if paths and root is None:
        return [
            f"the folder of the videos of {config.shards} is unknown (its log folder is missing), so video_path is "
            "relative; pass the folder as `video_root`"
        ]
    missing = sorted(path for path in paths if not Path(path).is_file())
    if missing:
        return [
            f"{len(missing)} of {len(paths)} detected videos are missing, such as {missing[0]}; "
            "pass their folder as `video_root`"
        ]
    return []


def _metrics(
    labels: npt.NDArray[np.int64], confidences: npt.NDArray[np.float32], threshold: float
) -> metrics.BinaryMetrics | None:
    """Compute metrics over the scored clips with a known label; return None if there are none."""
    scored = ~np.isnan(confidences)
    scores = metrics.score(labels[scored], output.shortest_floats(confidences[scored]), threshold=threshold)
    return scores if scores.num_clips else None


def _metrics_lines(scores: metrics.BinaryMetrics, threshold: float) -> list[str]:
    """Format the metrics as lines of text."""
    auc = "undefined, as the clips have only one class" if scores.auc is None else f"{scores.auc:.3f}"
    normal, crime = scores.confusion
    return [
        f"On {scores.num_clips} labelled clips, with a threshold of {threshold:g}:",
        f"  Accuracy: {100 * (scores.accuracy or 0.0):.2f}%",
        f"  ROC-AUC:  {auc}",
        "  Confusion matrix   predicted normal   predicted crime",
        f"    actual normal  {normal[0]:>18,}{normal[1]:>18,}",
        f"    actual crime   {crime[0]:>18,}{crime[1]:>18,}",
    ]
