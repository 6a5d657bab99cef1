"""Faithfulness of attention: frames are deleted and inserted in different orders of importance.

For each clip and each number k, the k most important frames are *frozen*: each is replaced by the nearest remaining
frame, which removes its motion without adding artificial pictures. The fall of P(crime) is compared with that for
random frames in as many runs of the same lengths, because one long run affects the score differently from scattered
frames. The mean gap over k rates an order. (Deletion and insertion curves: Petsiuk et al., "RISE", BMVC
2018.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stage1.common import files
from stage1.common.device import choose_device
from stage1.data.epoch_plan import evenly_spaced
from stage1.data.loader import ClipReader
from stage1.evaluation import plots, splice_test
from stage1.evaluation.config import ExplainConfig as ExplainConfig
from stage1.evaluation.text import EvaluationReport
from stage1.inference.scoring import crime_probabilities
from stage1.metrics import clips as metrics
from stage1.metrics.annotations import VideoGroundTruth
from stage1.metrics.calibration import logits as log_odds
from stage1.metrics.clips import Array, Floats, Interval, interval_text
from stage1.metrics.ground_truth import read_ground_truth
from stage1.model.checkpoint import Checkpoint, check_clip_shape, load_checkpoint
from stage1.model.network import Ensemble
from vidshard.shards.layout import CRIME_LABEL
from vidshard.util import atomic, console
from vidshard.util.errors import UserError
from vidshard.util.hashing import file_sha256

METHODS = ("attention", "saliency", "mean pooling")
EVENT = "true event"  # an upper bound rather than a method; measured only if every clip is annotated
EXPLAIN_CONVENTIONS = {
    "clips": "crimes that the model detects (P(crime) at or above its threshold), spread evenly over the set",
    "frozen frame": "replaced by the nearest remaining frame, the earlier one if two are equally near",
    "gap": "fall of the log-odds of crime minus that for random frames in as many runs of the same lengths, mean over "
    "k",
    # Without the motion features, because their square roots are steepest where nothing moves.
    "saliency": "norm of the gradient of the network's log-odds of crime with respect to the pixels of a frame",
    "mean pooling": "evidence of each frame (classifier weights times features) with uniform attention",
    EVENT: "frames of the annotated event, the inner ones first, then the frames nearest to it",
    "effective frames": "exp of the entropy of attention: 1 for a single frame, T if uniform",
    "intervals": "95 % percentile bootstrap over source groups (recordings), else videos",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplainedClip:
    """Log-odds of one clip for each k, under deletion and insertion, of every order and of its random frames."""

    key: str
    group: str
    probability: float
    attention: Array  # [T]
    deletion: dict[str, tuple[Array, Array]]  # method → (its own, random), [K]
    insertion: dict[str, tuple[Array, Array]]
    permuted: float  # P(crime) with attention weights permuted over frames
    event_share: float | None  # of the frames; None without annotation
    attention_on_event: float | None


@files.holds_out
def explain(config: ExplainConfig) -> EvaluationReport:
    """Measure, write explanation.json and explanation.png into ``config.out``, and return the report.

    Raises UserError on unusable input, and if the model detects no crime that could be explained.
    """
    checkpoint = load_checkpoint(config.checkpoint)
    reader = ClipReader(config.shards)
    check_clip_shape(checkpoint, config.checkpoint, reader.clip_shape, where=str(config.shards))
    if not steps(checkpoint.shape.num_frames):
        raise UserError(f"clips in {config.shards} have one frame, expected at least two; pass other shards")
    events = read_ground_truth(config.annotations, reader)
    explainer = Explainer(checkpoint, torch.device(choose_device(config.device)), config)
    rows, probabilities = _detected_crimes(reader, checkpoint, explainer, config)
    clips = []
    with console.Progress("Explaining", total=len(rows), unit="clip") as progress:
        for row in rows:
            clips.append(explainer.explain(reader, row, probabilities[row], events))
            progress.advance()
    fields = {
        "checkpoint_sha256": file_sha256(config.checkpoint),
        "pooling": explainer.model.config.pooling,
        **summarise(clips, config),
    }
    test = splice_test.AttentionTest(explainer.model, explainer.transform, explainer.device)
    correlations = test.correlations(np.stack([reader[row] for row in rows]))
    fields["correlation_with_untrained"] = float(np.mean(correlations)) if correlations else None
    fields["splices"] = _splice_test(reader, test, config)
    atomic.write_json(config.out / "explanation.json", fields)
    plots.plot_explanation(fields, config.out / "explanation.png")
    return EvaluationReport(text=to_text(fields, config), fields=fields)


def _splice_test(reader: ClipReader, test: splice_test.AttentionTest, config: ExplainConfig) -> dict[str, Any] | None:
    """Test attention on composites; return None if no recording has clips of both classes."""
    rows = splice_test.chosen_rows(reader, max_crimes=config.max_clips)
    if not len(rows):
        return None
    found = test.run(reader, rows, seed=config.seed)
    return splice_test.summarise([found], num_resamples=config.num_resamples, seed=config.seed)


class Explainer:
    """Model that scores clips with some frames frozen."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, config: ExplainConfig) -> None:
        model = checkpoint.build_model().to(device)
        if isinstance(model, Ensemble):
            raise UserError(
                "the checkpoint is an ensemble, but explain looks into one network; pass one of its members as "
                "`checkpoint`, such as members/seed-0/binary_stage1_with_attention.pt next to it"
            )
        self.model = model
        self.transform, self.calibration = checkpoint.build_transform(), checkpoint.build_calibration()
        self.device, self.config = device, config

    def probability(self, log_odds_B: Array) -> Array:
        """Calibrated P(crime)."""
        return self.calibration.apply(1 / (1 + np.exp(-log_odds_B)))

    def predict(self, clips_BTHWC: torch.Tensor) -> Array:
        """Return the model's log-odds of crime, [B]."""
        found = []
        with torch.inference_mode():
            for part in torch.split(clips_BTHWC, self.config.batch_size):
                logits_BK, _ = self.model(self.transform(part.to(self.device)))
                found.append((logits_BK[:, CRIME_LABEL] - logits_BK[:, 1 - CRIME_LABEL]).double().cpu().numpy())
        return np.concatenate(found)

    def explain(
        self, reader: ClipReader, row: int, probability: float, events: Mapping[int, VideoGroundTruth]
    ) -> ExplainedClip:
        clip = torch.from_numpy(reader[row])
        orders, attention_T, permuted = self.orders(clip, seed=row)
        share, mass = None, None
        video = int(reader.videos[row])
        if video in events:
            labels = events[video].frame_labels()
            indices = np.minimum(reader.read_record(row).frame_indices, len(labels) - 1)
            inside = labels[indices] == 1
            share, mass = float(inside.mean()), float(attention_T[inside].sum())
            orders[EVENT] = np.argsort(-depth(inside), kind="stable").tolist()
        table = self.frozen_scores(clip, orders, seed=row)
        curves = [
            {name: (table[m, :, kind, 0], table[m, :, kind, 1:].mean(1)) for m, name in enumerate(orders)}
            for kind in (0, 1)
        ]
        return ExplainedClip(
            key=reader.index.key(row),
            group=reader.recording_or_video(video),
            probability=probability,
            attention=attention_T,
            deletion=curves[0],
            insertion=curves[1],
            permuted=permuted,
            event_share=share,
            attention_on_event=mass,
        )

    def frozen_scores(self, clip: torch.Tensor, orders: Mapping[str, list[int]], *, seed: int) -> Array:
        """Return the log-odds of crime with frames frozen, (methods, K, deletion and insertion, 1 + random sets)."""
        T = len(clip)
        ks = steps(T)
        jobs: list[list[int]] = []  # frozen frames of every clip to be scored
        for order in orders.values():
            for k in ks:
                chosen = sorted(order[:k])
                # Methods with equal runs get equal random frames.
                generator = np.random.default_rng((self.config.seed, seed, k))
                randoms = [matched_frames(chosen, T, generator) for _ in range(self.config.random_sets)]
                jobs += [chosen, *randoms]
                jobs += [_others(frames, T) for frames in (chosen, *randoms)]  # insertion: only these are left
        scores = self.predict(torch.stack([freeze(clip, frames) for frames in jobs]))
        return scores.reshape(len(orders), len(ks), 2, 1 + self.config.random_sets)

    def deletion_gaps(self, clip: torch.Tensor, *, seed: int) -> dict[str, float]:
        """Return the deletion gap of attention over random frames, and how far it is above that of other orders."""
        orders, _, _ = self.orders(clip, seed=seed)
        table = self.frozen_scores(clip, orders, seed=seed)[:, :, 0]
        gaps = dict(zip(orders, (table[:, :, 1:].mean(2) - table[:, :, 0]).mean(1).tolist(), strict=True))
        own = gaps["attention"]
        return {"attention": own} | {f"attention above {name}": own - gaps[name] for name in METHODS[1:]}

    def orders(self, clip: torch.Tensor, *, seed: int) -> tuple[dict[str, list[int]], Array, float]:
        """Return frames by decreasing importance for each method; attention [T]; P(crime) with permuted attention."""
        T = len(clip)
        pixels = self.transform(clip[None].to(self.device)).detach().requires_grad_(True)
        features_BTD, attention_BT = self.model.frame_features(pixels)
        network_K = self.model.classifier(self.model.pool(features_BTD, attention_BT))[0]
        margin = network_K[CRIME_LABEL] - network_K[1 - CRIME_LABEL]
        (gradient,) = torch.autograd.grad(margin, pixels)
        saliency_T = gradient[0].pow(2).sum((0, 2, 3)).sqrt().detach().cpu().numpy()
        with torch.inference_mode():
            features_TD = features_BTD[0]
            weight_KD = self.model.classifier.weight
            evidence_T = (features_TD @ (weight_KD[CRIME_LABEL] - weight_KD[1 - CRIME_LABEL])).cpu().numpy()
            places = np.random.default_rng((self.config.seed, seed, 1)).permutation(features_TD.shape[0])
            mixed_D = attention_BT[0][torch.from_numpy(places).to(self.device)] @ features_TD
            mixed_K = self.model.logits(mixed_D[None], pixels)[0]
            mixed = float(mixed_K[CRIME_LABEL] - mixed_K[1 - CRIME_LABEL])
        ranges = self.model.attention_frame_ranges(T)
        attention_T = _on_frames(attention_BT[0].detach().double().cpu().numpy(), ranges, T, shared=True)
        evidence_T = _on_frames(evidence_T, ranges, T, shared=False)
        by_method = {"attention": attention_T, "saliency": saliency_T, "mean pooling": evidence_T}
        orders = {name: np.argsort(-values, kind="stable").tolist() for name, values in by_method.items()}
        return orders, attention_T, float(self.probability(np.array([mixed]))[0])


# --- frames -------------------------------------------------------------------------------------------------------


def steps(num_frames: int) -> list[int]:
    """Return the numbers of frames to delete: few, then more, but never all.

    >>> steps(16), steps(3)
    ([1, 2, 3, 4, 6, 8, 12], [1, 2])
    """
    return [k for k in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32) if k < num_frames]


def freeze(clip: torch.Tensor, frames: Sequence[int]) -> torch.Tensor:
    """Replace each of `frames` of `clip` (T, …) by the nearest other frame, the earlier one if two are equally near.

    >>> freeze(torch.tensor([10, 11, 12, 13, 14]), [0, 2, 3]).tolist()
    [11, 11, 11, 14, 14]
    """
    left = np.array(_others(frames, len(clip)))
    distance = np.abs(np.arange(len(clip))[:, None] - left[None, :])
    return clip[torch.from_numpy(left[distance.argmin(1)])]


def depth(inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return the depth of each frame within an event, or minus its distance from the nearest event.

    >>> depth(np.array([False, False, True, True, True, False])).tolist()
    [-2, -1, 1, 2, 1, -1]
    """
    places = np.arange(len(inside))
    far = len(inside)  # for an event that reaches the end of the clip
    distance = np.abs(places[:, None] - places[None, :])
    to_event = np.where(inside[None, :], distance, far).min(1)
    to_rest = np.where(inside[None, :], far, distance).min(1)
    depths: npt.NDArray[np.int64] = to_rest - to_event
    return depths


def run_lengths(frames: Sequence[int]) -> list[int]:
    """Return the lengths of the runs of consecutive numbers in `frames`, which must be ascending.

    >>> run_lengths([0, 1, 4, 6, 7, 8])
    [2, 1, 3]
    """
    if not len(frames):
        return []
    breaks = np.flatnonzero(np.diff(frames) > 1) + 1
    return [len(run) for run in np.split(np.asarray(frames), breaks)]


def matched_frames(frames: Sequence[int], num_frames: int, generator: np.random.Generator) -> list[int]:
    """Return as many frames in runs of the same lengths, at random places, with a gap between runs.

    >>> drawn = matched_frames([0, 1, 2, 7], 16, np.random.default_rng(0))
    >>> len(drawn), sorted(run_lengths(drawn))
    (4, [1, 3])
    """
    lengths = generator.permutation(sorted(run_lengths(frames))).tolist()
    free = num_frames - sum(lengths) - (len(lengths) - 1)  # frames that lie in no run and in no needed gap
    # The starts of the runs among the free frames; every distribution of the gaps is equally likely.
    slots = np.sort(generator.choice(free + len(lengths), size=len(lengths), replace=False)) - np.arange(len(lengths))
    drawn: list[int] = []
    start = 0
    for slot, length in zip(slots.tolist(), lengths, strict=True):
        first = start + slot
        drawn += range(first, first + length)
        start += length + 1
    return drawn


def effective_frames(attention: Array) -> float:
    """Return the number of frames over which uniform attention would have the same entropy.

    >>> effective_frames(np.array([0.5, 0.5, 0.0, 0.0]))
    2.0
    """
    known = attention[attention > 0]
    return float(np.exp(-(known * np.log(known)).sum()).round(9))


def _others(frames: Sequence[int], num_frames: int) -> list[int]:
    taken = set(frames)
    return [frame for frame in range(num_frames) if frame not in taken]


def _on_frames(values: npt.NDArray[Any], ranges: Sequence[tuple[int, int]], num_frames: int, *, shared: bool) -> Array:
    """Map values of time steps to their frames; with `shared`, divide each value equally among its frames."""
    found = np.zeros(num_frames)
    for value, (first, last) in zip(values.tolist(), ranges, strict=True):
        found[first : last + 1] += value / (last + 1 - first) if shared else value
    return found


# --- input --------------------------------------------------------------------------------------------------------


def _detected_crimes(
    reader: ClipReader, checkpoint: Checkpoint, explainer: Explainer, config: ExplainConfig
) -> tuple[list[int], dict[int, float]]:
    """Return index rows of at most `max_clips` detected crimes, evenly spaced, and P(crime) of each."""
    crimes = np.flatnonzero(reader.labels == CRIME_LABEL).tolist()
    if not crimes:
        raise UserError(f"no clip of {config.shards} is labelled crime, expected at least one; pass other shards")
    with console.Progress("Scoring", total=len(crimes), unit="clip") as progress:
        raw = crime_probabilities(
            checkpoint,
            reader,
            np.array(crimes),
            batch_size=config.batch_size,
            device=explainer.device,
            advance=progress.advance,
        )
    scores = explainer.calibration.apply(raw)
    found = {row: score for row, score in zip(crimes, scores.tolist(), strict=True) if score >= checkpoint.threshold}
    if not found:
        raise UserError(
            f"the model detects none of the {len(crimes)} crimes in {config.shards}, so there is nothing to explain"
        )
    rows = sorted(found)
    return [rows[i] for i in evenly_spaced(len(rows), config.max_clips).tolist()], found


# --- summary ------------------------------------------------------------------------------------------------------


def summarise(clips: Sequence[ExplainedClip], config: ExplainConfig) -> dict[str, Any]:
    """Compute means over clips with intervals, and the claims that they support."""
    groups = [clip.group for clip in clips]
    has_event = all(EVENT in clip.deletion for clip in clips)
    names = (*METHODS, EVENT) if has_event else METHODS

    def interval(values: Floats, own: Sequence[str] | None = None) -> dict[str, Any]:
        found = metrics.bootstrap(
            metrics.mean_statistic(values),
            groups if own is None else own,
            num_resamples=config.num_resamples,
            seed=config.seed,
        )
        return dataclasses.asdict(found)

    fields: dict[str, Any] = {
        "conventions": EXPLAIN_CONVENTIONS,
        "clips": len(clips),
        "recordings_or_videos": len(set(groups)),
        "frames": steps(len(clips[0].attention)),
        "effective_frames": interval([effective_frames(clip.attention) for clip in clips]),
        "of_frames": len(clips[0].attention),
        "permuted_attention_fall": interval(
            [float(np.subtract(*log_odds(np.array([clip.probability, clip.permuted])))) for clip in clips]
        ),
    }
    for kind, sign in (("deletion", 1), ("insertion", -1)):
        # (own, random) of every clip, (clips, 2, K), and the gap of each clip
        curves = {name: np.array([getattr(clip, kind)[name] for clip in clips]) for name in names}
        gaps = {name: sign * (pairs[:, 1] - pairs[:, 0]).mean(1) for name, pairs in curves.items()}

        def above(name: str, others: Sequence[str], gaps: Mapping[str, Array] = gaps) -> dict[str, Any]:
            return {other: interval(gaps[name] - gaps[other]) for other in others}

        fields[kind] = {
            "gap": {name: interval(values) for name, values in gaps.items()},
            "attention_above": above("attention", METHODS[1:]),
            "event_above": above(EVENT, METHODS) if has_event else None,
            "curves": {
                name: dict(zip(("own", "random"), pairs.mean(0).tolist(), strict=True))
                for name, pairs in curves.items()
            },
        }
    on_event = [
        clip for clip in clips if clip.event_share is not None and 0.1 <= clip.event_share <= config.max_event_share
    ]
    fields["attention_on_event"] = None
    if on_event:
        fields["attention_on_event"] = {
            "clips": len(on_event),
            "event_share": [0.1, config.max_event_share],
            "mass": interval([clip.attention_on_event or 0.0 for clip in on_event], [c.group for c in on_event]),
            "even_attention": float(np.mean([clip.event_share for clip in on_event])),
        }
    fields["claims"] = _claims(fields)
    return fields


def _claims(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Check that the gap of attention is above 0 and above both other orders, each at 95 %."""
    checks = {"above matched random frames": fields["deletion"]["gap"]["attention"]}
    checks |= {f"above {name}": fields["deletion"]["attention_above"][name] for name in METHODS[1:]}
    met = {name: Interval(**found).above_zero for name, found in checks.items()}
    return {"attention_explains": all(met.values()), "checks": met}


def to_text(fields: Mapping[str, Any], config: ExplainConfig) -> str:
    """Format the report as text."""
    lines = [
        f"{config.checkpoint} on {fields['clips']} detected crimes of {config.shards}, from "
        f"{fields['recordings_or_videos']} recordings or videos",
        f"Intervals: {EXPLAIN_CONVENTIONS['intervals']}. Gap: {EXPLAIN_CONVENTIONS['gap']}.",
        "",
    ]
    for kind in ("deletion", "insertion"):
        lines.append(f"{kind.capitalize()} gap over matched random frames:")
        lines += [f"  {name:<13} {interval_text(found)}" for name, found in fields[kind]["gap"].items()]
        for subject, differences in (("attention", "attention_above"), (EVENT, "event_above")):
            compared = (fields[kind][differences] or {}).items()
            lines += [f"  {subject} above {name}: {interval_text(found)}" for name, found in compared]
    lines += [
        f"Effective number of frames attended to: {interval_text(fields['effective_frames'])} of {fields['of_frames']}",
        f"Permuting attention over the frames lowers the log-odds of crime by "
        f"{interval_text(fields['permuted_attention_fall'])}",
    ]
    event = fields["attention_on_event"]
    if event is not None:
        low, high = event["event_share"]
        lines.append(
            f"Attention on the event, if it fills {low:.0%} to {high:.0%} of the frames ({event['clips']} clips): "
            f"{interval_text(event['mass'])}; uniform attention: {event['even_attention']:.3f}"
        )
    if fields["splices"] is not None:
        lines += splice_test.to_lines(fields["splices"])
    else:
        lines.append("No recording has clips of both classes, so attention cannot be tested on composites")
        lines += splice_test.correlation_lines(fields)
    claims = fields["claims"]
    if fields["pooling"] in ("mean", "max"):
        lines.append(
            f"This model pools frames by their {fields['pooling']}: what is called attention here was not learnt"
        )
    lines += ["", *(f"  {'yes' if met else 'no ':<3} deletion gap {name}" for name, met in claims["checks"].items())]
    lines.append(
        "Attention marks the frames that matter better than saliency and mean pooling do."
        if claims["attention_explains"]
        else "No claim is made for attention: it does not exceed all of these with 95 % confidence."
    )
    lines += ["", f"✓ {config.out / 'explanation.json'} and {config.out / 'explanation.png'}"]
    return "\n".join(lines)
