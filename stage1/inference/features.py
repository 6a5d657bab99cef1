"""Features of every clip, one array per video, for multiple-instance learning."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stage1.common import files
from stage1.common.device import choose_device, cuda_memory_errors, device_name
from stage1.data.epoch_plan import Rows, rows_by_video
from stage1.data.loader import Batch, ClipReader
from stage1.data.transforms import ClipTransform, TransformConfig
from stage1.inference.config import FeaturesConfig as FeaturesConfig
from stage1.inference.scoring import ScoringConfig, clip_loader, for_each_batch
from stage1.metrics.annotations import VideoGroundTruth
from stage1.metrics.ground_truth import read_ground_truth
from stage1.model import backbones
from stage1.model.backbones import TorchvisionBackbone
from stage1.model.checkpoint import check_clip_shape, load_checkpoint
from vidshard.shards import layout
from vidshard.util import atomic, console
from vidshard.util.errors import FormatError, UserError
from vidshard.util.hashing import file_sha256
from vidshard.util.text import counted

logger = logging.getLogger(__name__)

FEATURES_SCHEMA_VERSION = 1
SUMMARY_NAME, PLAN_NAME = "features.json", "plan.json"

Extract = Callable[[torch.Tensor], torch.Tensor]  # uint8 (B, T, H, W, 3) on the device → float (B, D)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeaturesReport:
    """Result of a run."""

    folder: Path
    num_videos: int
    num_clips: int
    dimensions: int
    unscored: dict[str, str]  # key of the clip → why it could not be read
    notes: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        return console.EXIT_PARTLY_FAILED if self.unscored else console.EXIT_OK

    @property
    def summary(self) -> str:
        return (
            f"✓ Features of {counted(self.num_clips, 'clip')} of {counted(self.num_videos, 'video')}, "
            f"{self.dimensions} numbers per clip, in {self.folder} (see {SUMMARY_NAME})"
        )


@files.holds_out
def features(config: FeaturesConfig, *, confirm: backbones.Confirm = lambda _: False) -> FeaturesReport:
    """Write the features of every video of the shards to ``config.out``, and skip videos that are already there.

    `confirm` is called with a question before weights are downloaded, and returns True to allow it. Raises UserError if
    the clips do not fit the model, or if the folder contains features of a different model or set.
    """
    device = choose_device(config.device)
    reader = ClipReader(config.shards)
    extract, facts, notes = _extractor(config, reader, device, confirm)
    known = read_ground_truth(config.annotations, reader)
    facts |= {
        "schema_version": FEATURES_SCHEMA_VERSION,
        "shards_digest": reader.digest,
        "batch_size": config.batch_size,
    }
    _start(config.out, facts)
    run = _FeaturesRun(config, reader, device, extract, known)
    logger.info(f"Features of {counted(len(reader), 'clip')} on {device_name(device)}")
    run.compute()
    # Read all arrays again for the summary, which also counts the videos of earlier runs.
    return run.finish(facts, notes)


def _extractor(
    config: FeaturesConfig, reader: ClipReader, device: torch.device, confirm: backbones.Confirm
) -> tuple[Extract, dict[str, Any], tuple[str, ...]]:
    """Return the function that computes features, the facts that identify it, and notes for the user."""
    if config.checkpoint is not None:
        return *_of_checkpoint(config.checkpoint, reader, device), ()
    assert config.backbone is not None
    if config.backbone in backbones.NAMES:
        backbone = TorchvisionBackbone(config.backbone, norm="frozen")
        report = backbones.load_weights(backbone, config.weights, confirm=confirm)
        network = backbone.eval().to(device)
        transform = ClipTransform(TransformConfig(mean=backbones.MEAN, std=backbones.STD))
        facts = {"backbone": config.backbone, "weights_sha256": report.sha256}
        return lambda clips: network(transform(clips)).mean(1), facts, (report.text,)
    path = Path(config.backbone)
    if not path.is_file():
        raise UserError(
            f"`backbone` {config.backbone} is neither a file nor one of {', '.join(backbones.NAMES)}; expected one of "
            "these, or a file by torch.export.save whose program maps uint8 clips (B, T, H, W, 3) to features (B, D)"
        )
    return load_program(path, device), {"backbone": path.name, "weights_sha256": file_sha256(path)}, ()


def load_program(path: Path, device: torch.device) -> Extract:
    """Load a file written by torch.export.save, and move it to `device` with its constants. Raises UserError."""
    from torch.export.passes import move_to_device_pass

    try:
        # `to(device)` of the module would leave constants, and the devices that the program names, where they are.
        return move_to_device_pass(torch.export.load(path), str(device)).module()
    except Exception as error:  # torch and zipfile raise a dozen types on other files
        reason = str(error).strip().partition("\n")[0][:120]
        raise UserError(
            f"`backbone` {path} cannot be loaded ({reason}); expected a file written by torch.export.save"
        ) from error


def _of_checkpoint(path: Path, reader: ClipReader, device: torch.device) -> tuple[Extract, dict[str, Any]]:
    """Return a function that computes the attention-weighted features of a checkpoint, and facts that identify it."""
    checkpoint = load_checkpoint(path)
    check_clip_shape(checkpoint, path, reader.clip_shape, where=reader.shard_set.where)
    model, transform = checkpoint.build_model().to(device), checkpoint.build_transform()

    def extract(clips: torch.Tensor) -> torch.Tensor:
        return model.pooled(transform(clips))[0]

    return extract, {"checkpoint": str(path), "checkpoint_sha256": file_sha256(path)}


def _start(out: Path, facts: dict[str, Any]) -> None:
    """Prepare the folder `out`, and keep the finished videos of an earlier run with the same plan."""
    plan = out / PLAN_NAME
    wanted = {name: value for name, value in facts.items() if name != "checkpoint"}
    if plan.is_file():
        if json.loads(plan.read_bytes()) != wanted:
            raise UserError(
                f"{out} contains features of a different model or of different shards; choose another `out`"
            )
        (out / SUMMARY_NAME).unlink(missing_ok=True)
        return
    if any(out.glob("*.npy")):
        raise UserError(f"{out} contains arrays that this command did not write; choose another `out`")
    atomic.write_json(plan, wanted)


class _FeaturesRun:
    """One run, which processes one video at a time and keeps one batch and one video in memory."""

    def __init__(
        self,
        config: FeaturesConfig,
        reader: ClipReader,
        device: torch.device,
        extract: Extract,
        known: dict[int, VideoGroundTruth],
    ) -> None:
        self.config, self.reader, self.device, self.extract, self.known = config, reader, device, extract, known
        self.rows_of_video = rows_by_video(np.arange(len(reader)), reader.videos)
        self.unscored: dict[str, str] = {}

    def file(self, video: int, suffix: str = ".npy") -> Path:
        """Return the path of an array of a video."""
        return self.config.out / (layout.video_key(self.reader.index.paths[video]) + suffix)

    def compute(self) -> None:
        """Compute and write the features of all videos that lack them."""
        left = deque(rows for rows in self.rows_of_video if not self.file(int(self.reader.videos[rows[0]])).is_file())
        if not left:
            return
        rows = np.concatenate(left)
        scoring = ScoringConfig(device=self.device, batch_size=self.config.batch_size)
        loader = clip_loader(self.reader, rows, scoring, max_bad_clips=None)
        waiting: list[npt.NDArray[np.float32]] = []  # features of clips of the first video in `left`
        progress = console.Progress("Stage 1 Features", total=len(rows), unit="clip")

        def compute(rows: Rows, batch: Batch) -> npt.NDArray[np.float32]:
            features_BD: npt.NDArray[np.float32] = self.extract(batch.clips)[: len(rows)].float().cpu().numpy()
            for feature, row in zip(features_BD, rows.tolist(), strict=True):
                if row in loader.bad_clips:
                    self.unscored[self.reader.index.key(row)] = loader.bad_clips[row]
                    feature[:] = np.nan
            return features_BD

        def take(rows: Rows, features_BD: npt.NDArray[np.float32]) -> None:
            waiting.extend(features_BD)
            while left and len(waiting) >= len(left[0]):
                video = left.popleft()
                self._write(video, np.stack(waiting[: len(video)]))
                del waiting[: len(video)]
            progress.advance(len(rows))

        with progress, cuda_memory_errors(scoring.batch_size):
            for_each_batch(loader, compute, take, scoring)

    def _write(self, rows: Rows, values: npt.NDArray[np.float32]) -> None:
        """Write the arrays of a video, and its features last, so that their presence proves that all are complete."""
        video = int(self.reader.videos[rows[0]])
        frames = np.full((len(rows), self.reader.clip_shape.num_frames), -1, np.int64)
        for i, row in enumerate(rows.tolist()):
            try:
                frames[i] = self.reader.read_record(row).frame_indices
            except FormatError as error:
                self.unscored[self.reader.index.key(row)] = str(error)
                values[i] = np.nan
        _save(self.file(video, ".frames.npy"), frames)
        of_video = self.known.get(video)
        if of_video is not None:
            _save(self.file(video, ".truth.npy"), of_video.frame_labels())
        _save(self.file(video), values.astype(np.float32))

    def finish(self, facts: dict[str, Any], notes: tuple[str, ...]) -> FeaturesReport:
        """Write the summary of all videos, and return the report."""
        index = self.reader.index
        videos, dimensions, lost = [], 0, dict(self.unscored)
        for rows in self.rows_of_video:
            video = int(self.reader.videos[rows[0]])
            values = np.load(self.file(video), mmap_mode="r")
            dimensions = values.shape[1]
            for i in np.flatnonzero(np.isnan(values[:, 0])).tolist():
                lost.setdefault(index.key(int(rows[i])), "could not be read in an earlier run")
            has_truth = self.file(video, ".truth.npy").is_file()
            videos.append(
                {
                    "source": index.paths[video],
                    "features": self.file(video).name,
                    "frames": self.file(video, ".frames.npy").name,
                    "truth": self.file(video, ".truth.npy").name if has_truth else None,
                    "class": index.class_name(video),
                    "label": int(index.clips["label"][rows[0]]),
                    "split": index.split(video),
                    "num_clips": len(rows),
                    "num_frames": int(index.videos["num_frames"][video]),
                    "fps": float(str(index.videos["fps"][video])),
                }
            )
        summary = {**facts, "dimensions": dimensions, "clips": len(self.reader), "unscored": lost, "videos": videos}
        atomic.write_json(self.config.out / SUMMARY_NAME, summary)
        return FeaturesReport(
            folder=self.config.out,
            num_videos=len(videos),
            num_clips=len(self.reader),
            dimensions=dimensions,
            unscored=lost,
            notes=notes,
        )


def _save(path: Path, values: npt.NDArray[Any]) -> None:
    with atomic.atomic_open(path) as file:
        np.save(file, values)
