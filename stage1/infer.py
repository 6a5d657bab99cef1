"""Score every clip of a shard folder with a checkpoint, and write down what was detected.

Clips are read, scored and let go; only the detections are read once more, at the end, for the attention data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from stage1 import detections as output
from stage1 import files, metrics, videos
from stage1.checkpoint import Checkpoint, load_checkpoint
from stage1.dataloader import ClipReader
from stage1.detections import Detection, OutputFiles, Prediction
from stage1.device import choose_device, cuda_memory_errors, device_name
from vidshard import __version__, atomic, console, manifest, shard_format
from vidshard.errors import FormatError, UserError
from vidshard.manifest import Failure
from vidshard.shard_cache import CacheConfig
from vidshard.storage import Location, Url

DEFAULT_SHARDS = Path("shards/Test")
DEFAULT_OUT = Path("stage1_output")
MAX_GAP_RATIO = 2.0 * (1 + 1e-6)  # the index keeps gaps as 32-bit floats
RULE = "=" * 60
READ_CLIPS = 64  # of the detections at a time, when they are read again


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferConfig:
    """One run of inference, over the clips of `shards` or over MP4s."""

    shards: Location = DEFAULT_SHARDS
    videos: tuple[str, ...] = ()  # files, folders, globs; instead of shards
    checkpoint: Path = files.DEFAULT_CHECKPOINT
    out: Path = DEFAULT_OUT
    threshold: float | None = None  # of P(crime); None: the checkpoint's
    batch_size: int = 8
    device: str = "auto"
    video_root: Path | None = None  # where the videos are, if not where they were at build time
    allow_sampling_mismatch: bool = False
    workers: int | None = None  # processes that decode, with `videos`; None: as many as vidshard takes
    cache_dir: Path | None = None  # where shards of a URL are kept; None: the default of CacheConfig
    cache_gb: float | None = None  # how much of them

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UserError(f"--threshold is {self.threshold:g}, expected a probability from 0 to 1")
        if self.batch_size < 1:
            raise UserError(f"--batch-size is {self.batch_size}, expected at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipScores:
    """What the model said of each of N clips of T frames, in index order."""

    confidences: list[float]  # P(crime), [0, 1]; NaN where the clip could not be read
    attention: npt.NDArray[np.float32]  # (N, T), each row sums to 1
    spans: npt.NDArray[np.float64]  # (N, 2): seconds of the first and last frame
    unscored: dict[int, str]  # row → why it could not be read


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferReport:
    """What a run found and wrote."""

    files: OutputFiles
    num_clips: int
    num_detections: int
    threshold: float
    device: str
    metrics: metrics.Scores | None  # None without a labelled clip
    unscored: dict[str, str]  # key of the clip → why it could not be read
    failures: tuple[Failure, ...]  # videos brought by the user that could not be decoded
    warnings: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        return console.EXIT_PARTLY_FAILED if self.unscored or self.failures else console.EXIT_OK

    @property
    def problems(self) -> str:
        """What the user should know, one line each; empty if nothing."""
        lines = [f"warning: {warning}" for warning in self.warnings]
        lines += [f"not scored: {reason}" for reason in self.unscored.values()]
        lines += [f"not decoded: {failure.path}: {failure.message} ({failure.reason})" for failure in self.failures]
        return "\n".join(lines)

    @property
    def summary(self) -> str:
        """The end of the output: metrics, where the clips have labels, and what was written."""
        lines = _metrics_lines(self.metrics, self.threshold) if self.metrics else []
        return "\n".join(
            [
                *lines,
                RULE,
                "✓ Stage 1 Complete!",
                f"  - Detected {self.num_detections} crime clips",
                f"  - Anomaly records saved to: {shown_path(self.files.anomalies)}",
                f"  - Attention data saved to: {shown_path(self.files.attention_data)}",
                "  - Ready for Stage 2 training",
                RULE,
            ]
        )


def shown_path(path: Path) -> str:
    """A path as the output shows it: relative ones begin with a dot, so that they can be told from names.

    >>> shown_path(Path("stage1_output/anomalies.json"))
    './stage1_output/anomalies.json'
    """
    return str(path) if path.is_absolute() else f"./{path.as_posix()}"


def infer(config: InferConfig) -> InferReport:
    """Score all clips, write the outputs to ``config.out`` and return what was found.

    Raises UserError (FormatError included) before anything is written when shards and checkpoint do not fit.
    """
    files.check_out(config.out)
    checkpoint = load_checkpoint(config.checkpoint)
    if not config.videos:
        return _infer_shards(config, checkpoint, config.shards, _video_root(config), failures=())
    with videos.temporary_shards(
        config.videos, shape=checkpoint.shape, sampling=checkpoint.sampling, workers=config.workers
    ) as brought:
        return _infer_shards(config, checkpoint, brought.folder, brought.root, failures=brought.failures)


def _infer_shards(
    config: InferConfig, checkpoint: Checkpoint, shards: Location, root: Path | None, *, failures: tuple[Failure, ...]
) -> InferReport:
    device = choose_device(config.device)
    reader = ClipReader(shards, cache=CacheConfig(folder=config.cache_dir, limit_gb=config.cache_gb))
    _check_shape(reader, checkpoint, config)
    warnings = _check_sampling(reader, checkpoint, config)
    threshold = checkpoint.threshold if config.threshold is None else config.threshold

    print(f"Scoring {len(reader):,} clips on {device_name(device)}")
    scores = score_clips(reader, checkpoint, device=device, batch_size=config.batch_size)
    predictions = _predictions(reader, scores)
    detected = [row for row, prediction in enumerate(predictions) if prediction.is_crime(threshold)]
    detections = [_detection(reader, scores, row, root) for row in detected]
    warnings += _check_paths(detections, root, config)

    report = InferReport(
        files=OutputFiles(folder=config.out),
        num_clips=len(reader),
        num_detections=len(detections),
        threshold=threshold,
        device=device_name(device),
        metrics=_metrics(predictions, threshold),
        unscored={predictions[row].key: reason for row, reason in scores.unscored.items()},
        failures=failures,
        warnings=tuple(warnings),
    )
    _write(report, reader, predictions, detections, detected, config, checkpoint)
    return report


class _ReadBatch(NamedTuple):
    rows: range
    clips: npt.NDArray[np.uint8]  # (batch size, T, H, W, 3); zeros where a clip is unreadable or there is none
    spans: npt.NDArray[np.float64]  # (len(rows), 2)
    unscored: dict[int, str]


def score_clips(reader: ClipReader, checkpoint: Checkpoint, *, device: torch.device, batch_size: int) -> ClipScores:
    """P(crime) and attention of every clip. A clip that cannot be read is noted, and the others are scored.

    Every batch has the same shape, so that the score of a clip does not depend on what else can be read.
    """
    transform = checkpoint.build_transform()
    num_clips, num_frames = len(reader), reader.clip_shape.num_frames
    probabilities = np.full(num_clips, np.nan, np.float32)
    attention = np.full((num_clips, num_frames), np.nan, np.float32)
    spans = np.full((num_clips, 2), np.nan)
    unscored: dict[int, str] = {}
    with (
        console.Progress("Stage 1 Inference", total=num_clips, unit="clip") as progress,
        cuda_memory_errors(batch_size),
        torch.inference_mode(),
    ):
        model = checkpoint.build_model().to(device)
        for batch in _read_ahead(reader, min(batch_size, max(1, num_clips))):
            logits_BK, attention_BT = model(transform(torch.from_numpy(batch.clips).to(device)))
            count, rows = len(batch.rows), slice(batch.rows.start, batch.rows.stop)
            probabilities_BK = torch.softmax(logits_BK.double(), dim=1)
            probabilities[rows] = probabilities_BK[:count, shard_format.CRIME_LABEL].cpu().numpy()
            attention[rows] = attention_BT[:count].float().cpu().numpy()
            spans[rows] = batch.spans
            unscored |= batch.unscored
            progress.advance(count)
    probabilities[list(unscored)] = np.nan
    scored = [row for row in range(num_clips) if row not in unscored]
    if not (np.isfinite(probabilities[scored]).all() and np.isfinite(attention[scored]).all()):
        raise UserError("the model gives values that are not numbers: the checkpoint is unusable; train it again")
    return ClipScores(
        confidences=output.shortest_floats(probabilities), attention=attention, spans=spans, unscored=unscored
    )


def _read_ahead(reader: ClipReader, batch_size: int) -> Iterator[_ReadBatch]:
    """The clips in index order, the next batch being read while the last is scored.

    Two buffers are used in turn: a batch is valid until the next but one is asked for.
    """
    reader.fetch_ahead(np.arange(len(reader)))
    buffers = [np.zeros((batch_size, *reader.clip_shape.thwc), np.uint8) for _ in range(2)]
    batches = [range(first, min(first + batch_size, len(reader))) for first in range(0, len(reader), batch_size)]
    with ThreadPoolExecutor(1, thread_name_prefix="clip-reader") as thread:
        pending = None
        for i, rows in enumerate(batches):
            following = thread.submit(_read_batch, reader, rows, buffers[i % 2])
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


def _read_batch(reader: ClipReader, rows: range, buffer: npt.NDArray[np.uint8]) -> _ReadBatch:
    spans = np.full((len(rows), 2), np.nan)
    unscored: dict[int, str] = {}
    buffer[len(rows) :] = 0
    for i, row in enumerate(rows):
        try:
            reader.read_clips([row], buffer[i : i + 1])
            seconds = reader.read_record(row).timestamps_seconds
            spans[i] = seconds[0], seconds[-1]
        except FormatError as error:
            unscored[row] = str(error)
            buffer[i] = 0
    return _ReadBatch(rows, buffer, spans, unscored)


def _check_shape(reader: ClipReader, checkpoint: Checkpoint, config: InferConfig) -> None:
    expected = checkpoint.shape
    if reader.clip_shape != expected:
        raise UserError(
            f"clips in {reader.shard_set.where} are {reader.clip_shape} (frames×height×width), "
            f"{config.checkpoint} was trained on {expected}; build them with `vidshard build SOURCE "
            f"{_build_options(checkpoint)}`, or use another checkpoint"
        )


def _check_sampling(reader: ClipReader, checkpoint: Checkpoint, config: InferConfig) -> list[str]:
    """Refuse clips whose frames became square another way, or lie much closer or farther apart, than in training.

    MP4s brought by the user are sampled as the training clips were, and can be sampled no better: a warning for them.
    """
    subject = "the videos" if config.videos else f"clips in {reader.shard_set.where}"
    mismatches = []
    resize, expected_resize = (
        settings.get("resize", "squash") for settings in (reader.manifest.settings, checkpoint.sampling)
    )
    if resize != expected_resize:
        mismatches.append(
            f"frames of {subject} were made square by --resize {resize}, {config.checkpoint} was trained on "
            f"{expected_resize}, where shapes look different"
        )
    got, expected = reader.frame_gap_seconds(), checkpoint.frame_gap_seconds
    if min(got, expected) > 0 and max(got, expected) / min(got, expected) > MAX_GAP_RATIO:
        mismatches.append(
            f"frames of {subject} lie {got:.3g} s apart (median), {config.checkpoint} was trained on {expected:.3g} s, "
            "where motion means something else"
        )
    if not mismatches or config.videos or config.allow_sampling_mismatch:
        return [f"{mismatch}: the scores may be meaningless" for mismatch in mismatches]
    raise UserError(
        f"{'; '.join(mismatches)}; build the shards as those for training were, `vidshard build SOURCE "
        f"{_build_options(checkpoint)}`, or go on with --allow-sampling-mismatch"
    )


def _build_options(checkpoint: Checkpoint) -> str:
    """The options of `vidshard build` that cut clips as the checkpoint knows them.

    Dense in place of annotated: the events of videos to be scored are not known.
    """
    sampling, shape = checkpoint.sampling, checkpoint.shape
    mode = sampling.get("mode")
    options = {"sampling": "dense" if mode == "annotated" else mode}
    options |= {name: sampling.get(name) for name in ("clips_per_video", "stride", "frame_step", "fps")}
    options |= {"clip_len": shape.num_frames, "frame_size": shape.height}
    options |= {name: sampling.get(name) for name in ("resize", "codec")}
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in options.items() if value is not None)


def _video_root(config: InferConfig) -> Path | None:
    """Where the videos of the shards are: as the user says, else as the log of the build says, else unknown."""
    if config.video_root is not None:
        if not config.video_root.is_dir():
            raise UserError(f"--video-root {config.video_root} is no folder: expected the one the videos are in")
        return config.video_root.resolve()
    if isinstance(config.shards, Url):
        return None
    log = manifest.log_folder(Path(os.path.abspath(config.shards))) / shard_format.SOURCE_NAME
    try:
        return Path(json.loads(log.read_bytes())["root"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_paths(detections: list[Detection], root: Path | None, config: InferConfig) -> list[str]:
    """A warning where `video_path` does not open as it stands."""
    paths = {detection.video_path for detection in detections}
    if paths and root is None:
        return [
            f"where the videos of {config.shards} are is not known (its log folder is gone): video_path is relative; "
            "name their folder with --video-root"
        ]
    missing = sorted(path for path in paths if not Path(path).is_file())
    if missing:
        return [
            f"{len(missing)} of {len(paths)} detected videos are not where they were ({missing[0]}): "
            "name their folder with --video-root"
        ]
    return []


def _predictions(reader: ClipReader, scores: ClipScores) -> list[Prediction]:
    index = reader.index
    predictions = []
    for row, clip in enumerate(index.clips):
        video, scored = int(clip["video"]), row not in scores.unscored
        predictions.append(
            Prediction(
                key=index.key(row),
                source=index.paths[video],
                clip_index=int(clip["clip"]),
                class_name=index.class_name(video),
                label=int(clip["label"]),
                split=index.split(video),
                confidence=scores.confidences[row] if scored else None,
                start_seconds=float(scores.spans[row, 0]) if scored else None,
                end_seconds=float(scores.spans[row, 1]) if scored else None,
            )
        )
    return predictions


def _detection(reader: ClipReader, scores: ClipScores, row: int, root: Path | None) -> Detection:
    record = reader.read_record(row)
    return Detection(
        video_path=str(root / record.path) if root is not None else record.path,
        key=record.key,
        source=record.path,
        clip_index=record.clip_index,
        class_name=record.class_name,
        label=record.label,
        split=record.split,
        confidence=scores.confidences[row],
        attention_weights=tuple(output.shortest_floats(scores.attention[row])),
        frame_indices=record.frame_indices,
        seconds=record.timestamps_seconds,
    )


def _metrics(predictions: list[Prediction], threshold: float) -> metrics.Scores | None:
    """Metrics over the scored clips of known label; None where there are none."""
    scored = [(row.label, row.confidence) for row in predictions if row.confidence is not None]
    scores = metrics.score([label for label, _ in scored], [value for _, value in scored], threshold=threshold)
    return scores if scores.num_clips else None


def _metrics_lines(scores: metrics.Scores, threshold: float) -> list[str]:
    """Metrics as people read them."""
    auc = "not defined: the clips are of one class only" if scores.auc is None else f"{scores.auc:.3f}"
    normal, crime = scores.confusion
    return [
        f"On {scores.num_clips} labelled clips, crime from a confidence of {threshold:g}:",
        f"  Accuracy: {100 * (scores.accuracy or 0.0):.2f}%",
        f"  ROC-AUC:  {auc}",
        "  Confusion matrix   predicted normal   predicted crime",
        f"    actual normal  {normal[0]:>18,}{normal[1]:>18,}",
        f"    actual crime   {crime[0]:>18,}{crime[1]:>18,}",
    ]


def _write(
    report: InferReport,
    reader: ClipReader,
    predictions: list[Prediction],
    detections: list[Detection],
    detected: list[int],
    config: InferConfig,
    checkpoint: Checkpoint,
) -> None:
    """Write the outputs; run.json last, so that a folder with one holds the files of one run."""
    written = report.files
    checkpoint_sha256 = _sha256(config.checkpoint)
    written.remove_old()
    output.write_predictions(written.predictions, predictions, threshold=report.threshold)
    output.write_anomalies(written.anomalies, detections)
    output.check_clip_bytes(len(detections), reader.clip_shape, threshold=report.threshold)
    output.write_attention_data(
        written.attention_data,
        detections,
        _read_clips(reader, detected),
        checkpoint_sha256=checkpoint_sha256,
        shards_digest=reader.manifest.digest,
    )
    atomic.write_json(
        written.run,
        {
            "schema_version": output.SCHEMA_VERSION,
            "stage1_version": __version__,
            "shards": {"path": None if config.videos else str(config.shards), "digest": reader.manifest.digest},
            "videos": list(config.videos),
            "checkpoint": {
                "path": str(config.checkpoint),
                "sha256": checkpoint_sha256,
                "epoch": checkpoint.epoch,
                "warnings": list(checkpoint.warnings),
            },
            "threshold": report.threshold,
            "batch_size": config.batch_size,
            "device": report.device,
            "clips": {
                "found": report.num_clips,
                "scored": report.num_clips - len(report.unscored),
                "unscored": len(report.unscored),
                "detected": report.num_detections,
            },
            "unscored": report.unscored,
            "failures": [dataclasses.asdict(failure) for failure in report.failures],
            "metrics": None if report.metrics is None else dataclasses.asdict(report.metrics),
            "warnings": list(report.warnings),
        },
    )


def _read_clips(reader: ClipReader, rows: list[int]) -> torch.Tensor:
    """The clips of these index rows as one tensor, uint8 [N, T, H, W, 3]."""
    clips = np.empty((len(rows), *reader.clip_shape.thwc), np.uint8)
    for first in range(0, len(rows), READ_CLIPS):
        reader.read_clips(rows[first : first + READ_CLIPS], clips[first : first + READ_CLIPS])
    return torch.from_numpy(clips)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
