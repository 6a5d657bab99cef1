"""Interface of training objectives, and supervised learning from labelled clips.

The training loop only handles batches and losses. Any other objective, such as learning from bags of clips, implements
the same methods.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from stage1.common import distributed
from stage1.common.device import constant
from stage1.common.distributed import rank_zero_info, rank_zero_warn
from stage1.data import clip_random, epoch_plan
from stage1.data.epoch_plan import Rows
from stage1.data.loader import Batch, ClipLoader
from stage1.data.selection import Balance
from stage1.data.transforms import AugmentPlan, ClipTransform
from stage1.model import backbones
from stage1.model.motion_features import LinearFit, fit_linear_classifier, motion_features
from stage1.model.network import NUM_CLASSES, Stage1Model
from stage1.training import optim, splices
from stage1.training.config import TrainConfig
from stage1.training.data import EXTRA_SHARE, TrainData
from stage1.training.known_frames import UNKNOWN
from stage1.training.log import progress
from vidshard.shards.layout import NORMAL_LABEL
from vidshard.util.errors import UserError

ATTENTION_WEIGHT = 2.0  # of the loss of attention on clips with known frames, relative to that of the label
FRAME_WEIGHT = 1.0  # of the loss of the single frames
MAX_FITTED = 2048  # clips to which the motion classifier is fitted: enough for 29 features, and quick to read
# float clips (B, C, T, H, W) → logits (B, 2), attention (B, T) and, with `per_frame`, logits (B, T, 2), float32
Forward = Callable[..., tuple[torch.Tensor, ...]]
# uint8 clips (B, T, H, W, C), their rows in the index (B,), epoch → float (B, C, T, H, W), on the device
Transform = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]


class BatchLoss(NamedTuple):
    """Loss of a batch as sums, which can be added over batches and ranks. Scalars on the device."""

    loss_sum: torch.Tensor  # sum of weight × loss
    weight: torch.Tensor  # sum of the weights; padding has weight 0
    num_right: torch.Tensor  # number of correct predictions on unmixed clips
    num_known: torch.Tensor  # number of clips with a label


class Composites(NamedTuple):
    """Composites to make of some clips of a batch (see `splices`)."""

    places: torch.Tensor  # int64: of the clips in the batch
    partners: torch.Tensor  # uint8 (places, T, H, W, C)
    indices: torch.Tensor  # of the clips: by these, the partners are augmented, cropped and shaded alike
    plan: AugmentPlan | None
    weights: torch.Tensor  # float32 (places, T): share of the clip in each frame


class TrainBatch(NamedTuple):
    """Batch for training, with all that its clips draw by chance: a step then waits for no number from the device."""

    clips: torch.Tensor  # as in `Batch`
    labels: torch.Tensor
    indices: torch.Tensor
    seeds: torch.Tensor  # int64 (B,): of `clip_random`
    known: torch.Tensor  # int64: places of the clips with a label
    label: int  # of the first of them, which is that of a bag; -1 without any
    plan: AugmentPlan | None  # None: of a `transform` of the user's, or without augmentation
    shares: torch.Tensor | None  # float32 (B,): weight of each clip when pairs are mixed
    composites: Composites | None
    frames: torch.Tensor | None  # int8 (B, T): 1 in frames that show the crime, 0 in others, -1 if unknown


class Objective(Protocol):
    """Interface between the training loop and an objective."""

    def make_model(self) -> nn.Module:
        """Create the model before training, on the CPU."""
        ...

    def fit(self, model: nn.Module, data: TrainData, device: torch.device) -> None:
        """Fit the parts of `model` (on `device`) that are fitted to the training clips before the first step."""
        ...

    def make_loaders(self, data: TrainData, device: torch.device) -> tuple[ClipLoader, ClipLoader | None]:
        """Create the loaders of this rank for training and, if there are validation clips, for validation.

        Batches for validation all have the same shape.
        """
        ...

    def start(self, model: nn.Module, data: TrainData, device: torch.device) -> None:
        """Prepare for the next step of a run that begins or is resumed, with the weights that it has then."""
        ...

    def prepare(self, batch: Batch, epoch: int) -> TrainBatch:
        """Draw and read what the loss of `batch` needs, on the CPU. Called by threads that read ahead."""
        ...

    def loss(self, model: nn.Module, forward: Forward, batch: TrainBatch, epoch: int) -> BatchLoss:
        """Compute the loss of `batch`, which is on the device. `forward` calls `model`, which is in training mode."""
        ...

    def score(self, forward: Forward, batch: Batch) -> torch.Tensor:
        """Return logits (B, 2) of the clips of `batch`. Gradients are off, and the model is in evaluation mode."""
        ...

    def aggregate(
        self, logits_NK: torch.Tensor, labels_N: torch.Tensor, rows_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Aggregate the logits (N, 2) and labels (N,) of clips into those of the validation samples.

        `rows_N` are the rows of the clips in the index.
        """
        ...


@dataclasses.dataclass(kw_only=True)
class ClipObjective:
    """Classification of single clips with weighted cross-entropy. Its methods are those of `Objective`."""

    config: TrainConfig
    transform: Transform | None = None  # replaces the augmentation of the config, in training only
    class_weights: tuple[float, float] = (1.0, 1.0)
    splicer: splices.Splicer | None = None

    def __post_init__(self) -> None:
        self._train_transform = self.transform or ClipTransform(self.config.transform, seed=self.config.seed)
        own = self._train_transform  # whose draws can be made ahead, unless the user's own class makes them
        self._planned = own if type(own) is ClipTransform and own.config.augment else None
        self._evaluation_transform = ClipTransform(self.config.transform.for_evaluation)

    def make_model(self) -> Stage1Model:
        model = Stage1Model(self.config.model)
        if self.config.weights:
            self._load_weights(model)
        return model

    def _load_weights(self, model: Stage1Model) -> None:
        if not isinstance(model.backbone, backbones.TorchvisionBackbone):
            raise UserError(
                f"weights are {self.config.weights}, but the backbone {self.config.model.backbone} takes none; "
                "pass a torchvision `backbone`, or omit `weights`"
            )
        report = backbones.load_weights(model.backbone, self.config.weights, confirm=backbones.never)
        if self.config.weights_sha256 not in ("", report.sha256):
            raise UserError(
                f"{report.source} has the SHA-256 {report.sha256}, expected {self.config.weights_sha256}; restore the "
                "file that this run began with"
            )
        rank_zero_info(report.text)

    def fit(self, model: nn.Module, data: TrainData, device: torch.device) -> None:
        """Fit the classifier on motion features, from clips preprocessed as in inference; the same on every rank."""
        if not isinstance(model, Stage1Model) or model.motion_classifier is None:
            return
        rows = fitted_rows(data.own_rows, data.labels, data.train.videos)
        if (quota := data.quota(self.config.clips_per_video_per_epoch)) is not None:
            cameras = quota.groups[data.extra_rows]
            drawn = epoch_plan.clips_of_epoch(cameras, per_video=quota.counts[cameras], seed=0, epoch=0)
            most = max(1, round(EXTRA_SHARE * int((data.labels[rows] == NORMAL_LABEL).sum())))
            extra = data.extra_rows[drawn][np.argsort(turns(cameras[drawn]), kind="stable")][:most]
            rows = np.concatenate([rows, np.sort(extra)])
        features_NF, labels_N, rows_N = self._motion_features(data, rows, device, "Motion features")
        if len(np.unique(labels_N)) < NUM_CLASSES:
            rank_zero_warn(
                f"motion features are not used: the {len(labels_N)} clips for their classifier (the undamaged ones of "
                f"{len(rows)} drawn from the training clips) are not of both classes"
            )
            return
        model.motion_classifier.fit(features_NF, labels_N, self.linear_fit(data, rows_N))

    def _motion_features(
        self, data: TrainData, rows: Rows, device: torch.device, title: str
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], Rows]:
        """Return the features (N, COUNT), labels and rows of the clips of `rows` that have a label and no damage."""
        loader = ClipLoader(
            data.train,
            rows=rows,
            labels=data.labels,
            shuffle=False,
            batch_size=self.config.batch_size,
            max_bad_clips=None,  # training itself reports damaged clips
            num_threads=self.config.workers,
            device=device,
        )
        features, labels, rows_read = [], [], []
        with torch.inference_mode(), progress(title, total=len(rows), unit="clip") as shown:
            for batch in loader:
                shown.advance(len(batch.labels))
                there = batch.labels >= 0
                features.append(motion_features(self._evaluation_transform(batch.clips))[there].cpu().numpy())
                labels.append(batch.labels[there].cpu().numpy())
                rows_read.append(batch.indices[there].cpu().numpy())
        return np.concatenate(features), np.concatenate(labels), np.concatenate(rows_read)

    def linear_fit(self, data: TrainData, rows_N: Rows) -> LinearFit:
        """Return the fit of the classifier on motion features of the clips of these index rows."""
        return fit_linear_classifier

    def start(self, model: nn.Module, data: TrainData, device: torch.device) -> None:
        """Score the clips of long videos by their motion, from which composites are made."""
        if self.splicer is None:
            return
        classifier = model.motion_classifier if isinstance(model, Stage1Model) else None
        if classifier is not None and classifier.is_fitted and len(self.splicer.to_score):
            features_NF, _, rows_N = self._motion_features(data, self.splicer.to_score, device, "Clips of long videos")
            with torch.inference_mode():
                scores_N = classifier.log_odds(torch.from_numpy(features_NF).to(device)).cpu().numpy()
            self.splicer = self.splicer.with_scores(rows_N, scores_N)
        rank_zero_info(f"Note: {self.splicer.note(data.train_rows, data.labels)}")

    def make_loaders(self, data: TrainData, device: torch.device) -> tuple[ClipLoader, ClipLoader | None]:
        loader = self.training_loader(data, device)
        config = self.config
        if config.splices and not (config.mixup or config.bags) and config.model.pooling in ("attention", "gated"):
            self.splicer = splices.Splicer.of_data(data, config)
            if self.transform is not None:  # it may move frames
                self.splicer = dataclasses.replace(self.splicer, keeps_time=False)
        self.class_weights = optim.class_weights(data.labels[loader.order()].astype(np.int64))
        return loader, self.validation_loader(data, device)

    def training_loader(self, data: TrainData, device: torch.device) -> ClipLoader:
        """Create the loader of the training clips."""
        config = self.config
        return ClipLoader(
            data.train,
            rows=data.train_rows,
            labels=data.labels,
            batch_size=config.batch_size,
            shuffle=True,
            clips_per_video=config.clips_per_video_per_epoch,
            quota=data.quota(config.clips_per_video_per_epoch),
            balance=Balance(groups=data.labels, weights=(1.0, 1.0)) if config.balanced else None,
            block_shards=config.block_shards,
            prepare=self.prepare,
            **self.loader_options(device),
        )

    def validation_loader(self, data: TrainData, device: torch.device) -> ClipLoader | None:
        """Create the loader of the validation clips, each once over all ranks; return None if there are none."""
        if data.validation is None:
            return None
        return ClipLoader(
            data.validation,
            rows=data.validation_rows,
            labels=data.validation_labels,
            batch_size=self.config.batch_size,
            shuffle=False,
            pad=True,
            **self.loader_options(device),
        )

    def loader_options(self, device: torch.device) -> dict[str, Any]:
        """Return the options that all loaders of a run share."""
        return {
            "seed": self.config.seed,
            "rank": distributed.rank(),
            "world_size": distributed.world_size(),
            "max_bad_clips": self.config.max_bad_clips,
            "num_threads": self.config.workers,
            "device": device,
        }

    def prepare(self, batch: Batch, epoch: int) -> TrainBatch:
        seeds_B = clip_random.clip_seeds(batch.indices, seed=self.config.seed, epoch=epoch)
        known_B = batch.labels >= 0
        known = known_B.nonzero()[:, 0]
        mixup = self.config.mixup
        composites, frames_BT = self._composites(batch, epoch)
        return TrainBatch(
            *batch,
            seeds=seeds_B,
            known=known,
            label=int(batch.labels[known[0]]) if len(known) else -1,
            plan=self._plan(batch.clips, batch.indices, epoch),
            shares=shares_of_pairs(seeds_B, known_B, alpha=mixup) if mixup else None,
            composites=composites,
            frames=frames_BT,
        )

    def loss(self, model: nn.Module, forward: Forward, batch: TrainBatch, epoch: int) -> BatchLoss:
        clip_random.seed_dropout(model, batch.seeds)
        clips_BCTHW = self._transformed(batch.clips, batch.indices, epoch, batch.plan)
        known_B = batch.labels >= 0
        share_B, composites = batch.shares, batch.composites
        if share_B is None:
            if composites is not None:
                partners_BCTHW = self._transformed(composites.partners, composites.indices, epoch, composites.plan)
                splices.splice(clips_BCTHW, partners_BCTHW, composites.places, composites.weights)
            logits_BK, *details = (
                forward(clips_BCTHW, per_frame=True) if batch.frames is not None else forward(clips_BCTHW)
            )
            loss_B, weight_B = self._cross_entropy(logits_BK, batch.labels)
            if batch.frames is not None:
                attention_BT, frame_logits_BTK = details
                attention_loss_B = attention_loss(attention_BT, batch.frames)
                frame_loss_B = frame_loss(frame_logits_BTK, batch.frames)
                loss_B = loss_B + weight_B * (ATTENTION_WEIGHT * attention_loss_B + FRAME_WEIGHT * frame_loss_B)
        else:
            mixed_BK = forward(mix_pairs(clips_BCTHW, share_B))[0]
            loss_B, weight_B = torch.zeros_like(share_B), torch.zeros_like(share_B)
            for labels_B, part_B in ((batch.labels, share_B), (swap_pairs(batch.labels), 1 - share_B)):
                for total, own in zip((loss_B, weight_B), self._cross_entropy(mixed_BK, labels_B), strict=True):
                    total += part_B * own
            with torch.no_grad():
                logits_BK = forward(clips_BCTHW)[0]
        right_B = (logits_BK.argmax(1) == batch.labels) & known_B
        return BatchLoss(loss_B.sum(), weight_B.sum(), right_B.sum(), known_B.sum())

    def _plan(self, clips_BTHWC: torch.Tensor, indices_B: torch.Tensor, epoch: int) -> AugmentPlan | None:
        return None if self._planned is None else self._planned.plan(indices_B, epoch, clips_BTHWC.shape[1:4])

    def _transformed(
        self, clips_BTHWC: torch.Tensor, indices_B: torch.Tensor, epoch: int, plan: AugmentPlan | None
    ) -> torch.Tensor:
        if plan is None or self._planned is None:
            return self._train_transform(clips_BTHWC, indices_B, epoch)
        return self._planned(clips_BTHWC, plan=plan)

    def _composites(self, batch: Batch, epoch: int) -> tuple[Composites | None, torch.Tensor | None]:
        """Draw the composites of a batch, and read the clips that they need; None without any.

        The second value, (B, T), is 1 in the frames that are known to show the crime, 0 in those that are known not to,
        and -1 in all others; None if none are looked for.
        """
        if self.splicer is None:
            return None, None
        T = batch.clips.shape[1]
        plans = self.splicer.plan(batch.labels, batch.indices, num_frames=T, epoch=epoch)
        plans, partners, others = self.splicer.read(plans)
        frames_BT = self.splicer.known_frames(batch.indices)
        if not plans:
            return None, frames_BT
        if len(others):
            batch.clips[[plan.place for plan in plans if plan.instead is not None]] = others
        places = torch.tensor([plan.place for plan in plans])
        weights = torch.from_numpy(np.stack([splices.own_frames(plan, T) for plan in plans]))
        is_crime = torch.tensor([plan.is_crime for plan in plans])[:, None]
        frames_BT[places] = torch.where(is_crime & (weights > 0), torch.where(weights == 1, 1, UNKNOWN), 0).to(
            torch.int8
        )
        indices = batch.indices[places]
        return Composites(places, partners, indices, self._plan(partners, indices, epoch), weights), frames_BT

    def score(self, forward: Forward, batch: Batch) -> torch.Tensor:
        return forward(self._evaluation_transform(batch.clips))[0]

    def aggregate(
        self, logits_NK: torch.Tensor, labels_N: torch.Tensor, rows_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return logits_NK, labels_N

    def _cross_entropy(self, logits_BK: torch.Tensor, labels_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weighted loss and the weight of each clip, (B,); both are 0 if the clip has no label."""
        weights_K = constant(self.class_weights, logits_BK)
        loss_B = functional.cross_entropy(
            logits_BK,
            labels_B,
            weight=weights_K,
            ignore_index=-1,
            reduction="none",
            label_smoothing=self.config.label_smoothing,
        )
        return loss_B, torch.where(labels_B >= 0, weights_K[labels_B.clamp(min=0)], 0.0)


def attention_loss(attention_BT: torch.Tensor, frames_BT: torch.Tensor) -> torch.Tensor:
    """Return the divergence (KL) of attention (B, T') from an even weight on the frames of the crime, (B,).

    `frames_BT` (B, T) are the known frames of `TrainBatch`. The loss of a clip is 0 unless some frames show the crime
    and others do not. A backbone that downsamples time has attention for T' blocks of frames.

    >>> frames = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    >>> attention_loss(torch.tensor([[0.25, 0.25, 0.25, 0.25], [1, 0, 0, 0], [1, 0, 0, 0]]), frames).tolist()
    [0.6931471824645996, -0.0, -0.0]
    """
    events_BT = ((frames_BT == 1) & (frames_BT == 0).any(1, keepdim=True)).to(attention_BT)
    steps_BT = functional.adaptive_avg_pool1d(events_BT[:, None], attention_BT.shape[1])[:, 0]
    share_BT = steps_BT / steps_BT.sum(1, keepdim=True).clamp(min=1e-6)
    cross_B = (share_BT * attention_BT.clamp(min=1e-6).log()).sum(1)
    divergence_B: torch.Tensor = -torch.special.entr(share_BT).sum(1) - cross_B
    return divergence_B


def frame_loss(logits_BTK: torch.Tensor, frames_BT: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of the logits of single frames (B, T', 2), (B,); 0 for a clip without a known frame.

    `frames_BT` (B, T) are the known frames of `TrainBatch`. Frames with and without the crime have the same weight in
    sum, however many there are of each.

    >>> right = torch.tensor([[[9.0, -9.0], [9.0, -9.0], [9.0, -9.0], [-9.0, 9.0]]])
    >>> [round(float(frame_loss(right, torch.tensor([frames]))), 3) for frames in ([0, 0, 0, 1], [1, -1, -1, -1])]
    [0.0, 18.0]
    """
    is_label_BKT = torch.stack([frames_BT == label for label in range(NUM_CLASSES)], 1).to(logits_BTK)
    share_BKT = functional.adaptive_avg_pool1d(is_label_BKT, logits_BTK.shape[1])
    sum_BK = share_BKT.sum(2)
    loss_BK = -(share_BKT * logits_BTK.log_softmax(2).transpose(1, 2)).sum(2) / sum_BK.clamp(min=1e-6)
    loss_B: torch.Tensor = loss_BK.sum(1) / (sum_BK > 0).sum(1).clamp(min=1)
    return loss_B


def fitted_rows(rows: Rows, labels: Rows, videos: Rows) -> Rows:
    """Select at most MAX_FITTED of `rows`, rising, to which the classifier on motion features is fitted.

    Clips are taken from both classes in turn, and within a class from its videos in turn, so that neither rare crimes
    nor short videos are missed. `labels` and `videos` are those of every row of the index.
    """
    if len(rows) <= MAX_FITTED:
        return rows
    shuffled = np.random.default_rng(0).permutation(rows)
    shuffled = shuffled[np.argsort(turns(videos[shuffled]), kind="stable")]
    return np.sort(shuffled[np.argsort(turns(labels[shuffled]), kind="stable")][:MAX_FITTED])


def turns(values: Rows) -> Rows:
    """Count, for each value, the equal values before it.

    >>> turns(np.array([7, 7, 3, 7, 3])).tolist()
    [0, 1, 0, 2, 1]
    """
    order = np.argsort(values, kind="stable")
    _, firsts, counts = np.unique(values[order], return_index=True, return_counts=True)
    found = np.empty(len(values), np.int64)
    found[order] = np.arange(len(values)) - np.repeat(firsts, counts)
    return found


# --- mixup (Zhang et al., ICLR 2018) ------------------------------------------------------------------------------


def shares_of_pairs(seeds_B: torch.Tensor, known_B: torch.Tensor, *, alpha: float) -> torch.Tensor:
    """Draw the weight of each clip when neighbours (0 and 1, 2 and 3, …) are mixed, float32 (B,).

    Each pair draws from Beta(alpha, alpha) with the seed of its first clip, so that the result does not depend on the
    number of ranks if batch sizes are even. The weight is 1 for the last clip of an odd batch, and next to padding.
    """
    pairs = len(seeds_B) // 2
    draws = [
        np.random.default_rng((seed % (1 << 64), clip_random.MIXUP)).beta(alpha, alpha)
        for seed in seeds_B[: 2 * pairs : 2].tolist()
    ]
    share_B = torch.ones(len(seeds_B))
    share_B[: 2 * pairs] = torch.tensor(draws, dtype=torch.float32).repeat_interleave(2)
    return torch.where(known_B & swap_pairs(known_B), share_B.to(seeds_B.device), 1.0)


def mix_pairs(clips: torch.Tensor, share_B: torch.Tensor) -> torch.Tensor:
    """Mix each clip with its neighbour, with the weight `share_B` for the clip itself."""
    shares = share_B.view(-1, *[1] * (clips.ndim - 1))
    return clips * shares + swap_pairs(clips) * (1 - shares)


def swap_pairs(rows: torch.Tensor) -> torch.Tensor:
    """Swap the rows of each pair; the last row of an odd number stays.

    >>> swap_pairs(torch.tensor([1, 2, 3, 4, 5])).tolist()
    [2, 1, 4, 3, 5]
    """
    order = torch.arange(len(rows), device=rows.device)
    partner = order ^ 1
    return rows[torch.where(partner < len(rows), partner, order)]
