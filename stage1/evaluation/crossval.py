"""Grouped, stratified cross-validation, to estimate the accuracy on new recordings.

Videos cut from one recording share camera, place and people, so a random split would test the model on recordings
that it was trained on. Folds therefore consist of whole recordings. The model of the last epoch is scored; nothing is
chosen on held-out clips. The out-of-fold predictions of a seed are pooled, and recordings are resampled for
intervals. Finished runs are kept, so that the same command resumes an interrupted cross-validation.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stage1.common import files
from stage1.common.device import choose_device
from stage1.data.epoch_plan import Rows
from stage1.data.loader import ClipReader, JoinedReader
from stage1.evaluation import baselines
from stage1.evaluation.config import CrossvalConfig as CrossvalConfig
from stage1.evaluation.text import table
from stage1.inference.run import Fold, InferConfig, infer_out_of_fold
from stage1.inference.scoring import crime_probabilities
from stage1.metrics import clips as metrics
from stage1.metrics.clips import Array
from stage1.model.checkpoint import load_checkpoint
from stage1.training.config import TrainConfig, changed_options
from stage1.training.data import TrainData, shared_videos
from stage1.training.loop import train
from vidshard import __version__
from vidshard.storage.cache import CacheConfig
from vidshard.storage.urls import Location
from vidshard.util import atomic, console
from vidshard.util.errors import UserError
from vidshard.util.text import counted

logger = logging.getLogger(__name__)

RECORD_NAME, RESULT_NAME, TABLE_NAME, SCORES_NAME = "run.json", "crossval.json", "crossval.txt", "scores.npz"
OUT_OF_FOLD = "out_of_fold"  # folder of --save-attention
THRESHOLD = 0.5
SHORTCUT_CLIPS = 8  # clips of a video to which shortcuts are fitted, and on which they are evaluated
NUM_RESAMPLES = 1000
GROUPED, RANDOM, TEST = "grouped", "random", "test"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupedClips:
    """Clips of all sets, with the groups that must not be split."""

    reader: JoinedReader
    groups: npt.NDArray[np.int64]  # of each row: number of its recording, or of its video if unknown
    num_grouped: int  # rows whose recording is known
    num_groups: int

    @property
    def labels(self) -> Rows:
        return self.reader.labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """Training rows and held-out rows of one run."""

    kind: str  # grouped, random or test
    seed: int
    fold: int
    train_rows: Rows
    held_rows: Rows  # of the clips of the run, or of the test set

    @property
    def name(self) -> str:
        return f"{self.kind}-seed{self.seed}" + (f"-fold{self.fold}" if self.kind != TEST else "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutScores:
    """Scores of a run's model on its held-out clips."""

    rows: Rows
    confidences: Array  # P(crime)


@files.holds_out
def crossval(config: CrossvalConfig) -> str:
    """Train and score all splits, write crossval.json and crossval.txt to ``config.out``, and return the table.

    Raises UserError on unusable input, or if the folder contains a cross-validation with different options.
    """
    cache = CacheConfig(folder=config.training.cache_dir, limit_gb=config.training.cache_gb)
    clips = open_clips([ClipReader(place, cache=cache) for place in config.shards])
    test = None if config.test_shards is None else open_clips([ClipReader(config.test_shards, cache=cache)])
    warnings = _check(clips, test, config)
    splits = list(plan(config, clips, test))
    _note_config(config, clips, test)
    scores: dict[str, HeldOutScores] = {}
    seconds: list[float] = []  # of the runs of this call
    for number, split in enumerate(splits, 1):
        left = (len(splits) - number + 1) * math.fsum(seconds) / len(seconds) if seconds else None
        time_left = "" if left is None else f", about {console.time_text(left)} left for all"
        logger.info(f"Run {number} of {len(splits)}: {split.name}{time_left}")
        start, is_done = time.monotonic(), (config.out / split.name / SCORES_NAME).is_file()
        held = clips if split.kind != TEST else test
        assert held is not None
        scores[split.name] = run_split(config, split, clips, held)
        if not is_done:
            seconds.append(time.monotonic() - start)
    result = summarise(config, clips, test, splits, scores, warnings)
    atomic.write_json(config.out / RESULT_NAME, result)
    table = format_table(result)
    atomic.write_text(config.out / TABLE_NAME, table + "\n")
    if config.save_attention:
        save_out_of_fold(config, clips, splits)
    return table


# --- clips and splits ---------------------------------------------------------------------------------------------


def open_clips(readers: list[ClipReader]) -> GroupedClips:
    """Join the sets. A video of an unknown recording is its own group; recordings of the same name are one group."""
    groups: list[str] = []
    num_grouped = 0
    for number, reader in enumerate(readers):
        names = [reader.index.recording(video) for video in range(len(reader.index.videos))]
        own = [f"video {number} {video}" if name is None else f"group {name}" for video, name in enumerate(names)]
        groups += [own[video] for video in reader.videos.tolist()]
        num_grouped += sum(names[video] is not None for video in reader.videos.tolist())
    numbers = metrics.group_numbers(groups)
    return GroupedClips(
        reader=JoinedReader(readers),
        groups=numbers,
        num_grouped=num_grouped,
        num_groups=int(numbers.max(initial=-1)) + 1,
    )


def plan(config: CrossvalConfig, clips: GroupedClips, test: GroupedClips | None) -> Iterator[Split]:
    """Yield all runs, the most important ones first."""
    first = config.training.seed
    for seed in range(first, first + config.seeds):
        yield from _fold_splits(GROUPED, clips.labels, clips.groups, folds=config.folds, seed=seed)
    if test is not None:
        everything: Rows = np.arange(len(clips.labels))
        for seed in range(first, first + config.seeds):
            held: Rows = np.arange(len(test.labels))
            yield Split(kind=TEST, seed=seed, fold=0, train_rows=everything, held_rows=held)
    if config.random_split:
        yield from _fold_splits(RANDOM, clips.labels, clips.reader.videos, folds=config.folds, seed=first)


def _fold_splits(kind: str, labels: Rows, groups: Rows, *, folds: int, seed: int) -> Iterator[Split]:
    for fold, held in enumerate(stratified_folds(labels, groups, folds=folds, seed=seed)):
        train_rows = np.setdiff1d(np.arange(len(labels)), held)
        if len(np.unique(labels[train_rows])) < 2:
            raise UserError(
                f"without fold {fold} only one class remains to train on, expected both; add recordings of the "
                "other class, or use fewer `folds`"
            )
        yield Split(kind=kind, seed=seed, fold=fold, train_rows=train_rows, held_rows=held)


def stratified_folds(labels: Rows, groups: Rows, *, folds: int, seed: int) -> list[Rows]:
    """Return the rows of each fold: whole groups, stratified by class as far as the groups allow (scikit-learn).

    >>> [fold.tolist() for fold in stratified_folds(np.array([0, 0, 1, 1]), np.array([3, 3, 5, 5]), folds=2, seed=0)]
    [[0, 1], [2, 3]]
    """
    from sklearn.model_selection import StratifiedGroupKFold

    num_groups = len(np.unique(groups))
    if num_groups < folds:
        raise UserError(f"there are {num_groups} recordings, expected at least as many as `folds` ({folds})")
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    held = [np.asarray(rows, np.int64) for _, rows in splitter.split(labels, labels, groups)]
    return sorted(held, key=lambda rows: int(rows[0]))


def _check(clips: GroupedClips, test: GroupedClips | None, config: CrossvalConfig) -> list[str]:
    """Return warnings. Raises UserError if clips lack labels, or if test clips share recordings with them."""
    sets = [*zip(clips.reader.readers, config.shards, strict=True)]
    for (one, place), (other, other_place) in itertools.combinations(sets, 2):
        if one.digest == other.digest:
            raise UserError(f"`shards` {place} and {other_place} are the same set; pass it only once")
        if config.save_attention and (both := _video_ids(one) & _video_ids(other)):
            raise UserError(
                f"{place} and {other_place} both contain a video {min(both)!r}, so `save_attention` cannot distinguish "
                "them; build them from folders or files with different names"
            )
    _check_labels(clips, config.shards)
    warnings = []
    if clips.num_grouped < len(clips.labels):
        warnings.append(
            f"{len(clips.labels) - clips.num_grouped} of {len(clips.labels)} clips have no known recording, so each of "
            "their videos counts as a recording of its own: videos cut from one recording may be on both sides; build "
            "with `source_groups`"
        )
    if test is not None and config.test_shards is not None:
        _check_labels(test, [config.test_shards])
        _check_recordings(clips, test, config.test_shards)
        sets.append((test.reader.readers[0], config.test_shards))
    for (one, place), (other, other_place) in itertools.combinations(sets, 2):
        if videos := shared_videos(one, other):
            warnings.append(
                f"{len(videos)} of {len(other.index.videos)} videos of {other_place} are in {place} too (such as "
                f"{videos[0]!r}): if one copy is trained on, the score of the other is too optimistic"
            )
    return warnings


def _check_labels(clips: GroupedClips, places: Sequence[Location]) -> None:
    unlabelled = int((clips.labels < 0).sum())
    if unlabelled or not len(clips.labels):
        raise UserError(
            f"{' and '.join(map(str, places))}: {unlabelled} of {len(clips.labels)} clips have no label, expected "
            "normal or crime for each, and at least one clip"
        )


def _check_recordings(clips: GroupedClips, test: GroupedClips, place: Location) -> None:
    shared = set.intersection(*(set().union(*(r.recordings for r in part.reader.readers)) for part in (clips, test)))
    if shared:
        raise UserError(
            f"{len(shared)} recordings of {place} are also trained on (such as {min(shared)!r}), so the test would say "
            "nothing about new recordings; build the test set from different recordings"
        )


def _video_ids(reader: ClipReader) -> set[str]:
    return {reader.video_id(video) for video in range(len(reader.index.videos))}


def _note_config(config: CrossvalConfig, clips: GroupedClips, test: GroupedClips | None) -> None:
    """Record the options of the folder. Raises UserError if it contains a run with different options."""
    training = config.training.to_dict()
    not_recorded = ("shards", "val_shards", "out", "device", "workers", "resume", "cache_dir", "cache_gb")
    for name in (*not_recorded, "logger", "tensorboard"):
        training.pop(name, None)
    now = {
        "stage1_version": __version__,
        "training": training,
        "folds": config.folds,
        "shards": clips.reader.digest,
        "test_shards": None if test is None else test.reader.digest,
    }
    now = json.loads(json.dumps(now))  # tuples become lists, as in the file
    path = config.out / RECORD_NAME
    if path.is_file():
        before = json.loads(path.read_bytes())
        # A later call may add seeds and a test set.
        now["test_shards"] = now["test_shards"] or before["test_shards"]
        before["test_shards"] = before["test_shards"] or now["test_shards"]
        if before != now:
            changes = changed_options(before.pop("training"), now.pop("training")) + changed_options(before, now)
            raise UserError(
                f"{config.out} contains a cross-validation with different options or data "
                f"({next(iter(changes), 'a different version')}); choose another `out`, or remove it"
            )
    atomic.write_json(path, now)


# --- a run --------------------------------------------------------------------------------------------------------


def run_split(config: CrossvalConfig, split: Split, clips: GroupedClips, held: GroupedClips) -> HeldOutScores:
    """Train on the split's rows and score its held-out rows, or read the results of an earlier call."""
    folder = config.out / split.name
    path = folder / SCORES_NAME
    keeps = _keeps_checkpoint(split, config)
    if path.is_file() and keeps and not (folder / files.BEST_NAME).is_file():
        raise UserError(f"{folder} was run without `save_attention` and has no checkpoint; choose another `out`")
    if path.is_file():
        with np.load(path) as saved:
            return HeldOutScores(rows=saved["rows"], confidences=saved["confidences"])
    training = dataclasses.replace(
        config.training,
        shards=config.shards,  # for display only; the clips come from `data`
        seed=split.seed,
        out=folder,
        val_shards=None,
        resume="auto",
        patience=0,
    )
    data = TrainData(
        train=clips.reader,
        train_rows=split.train_rows,
        validation=None,
        validation_rows=np.zeros(0, np.int64),
        notes=(),
        warnings=(),
    )
    train(training, data=data)
    scores = score_clips(folder / files.BEST_NAME, held.reader, split.held_rows, config.training)
    with atomic.atomic_open(path) as file:
        np.savez(file, rows=scores.rows, confidences=scores.confidences)
    for name in (files.LAST_NAME, files.PREVIOUS_NAME, *(() if keeps else (files.BEST_NAME,))):
        (folder / name).unlink(missing_ok=True)  # large
    return scores


def score_clips(checkpoint_path: Path, reader: JoinedReader, rows: Rows, config: TrainConfig) -> HeldOutScores:
    """Score the clips of `rows` with a checkpoint."""
    checkpoint, device = load_checkpoint(checkpoint_path), choose_device(config.device)
    confidences = crime_probabilities(checkpoint, reader, rows, batch_size=config.batch_size, device=device)
    return HeldOutScores(rows=rows, confidences=confidences)


# --- results ---------------------------------------------------------------------------------------------------


def summarise(
    config: CrossvalConfig,
    clips: GroupedClips,
    test: GroupedClips | None,
    splits: list[Split],
    scores: dict[str, HeldOutScores],
    warnings: list[str],
) -> dict[str, Any]:
    """Return all results, for crossval.json."""
    rows: list[dict[str, Any]] = []
    shortcuts: list[dict[str, Any]] = []
    flags: list[str] = []
    for kind, held in ((GROUPED, clips), (TEST, test), (RANDOM, clips)):
        seeds = sorted({split.seed for split in splits if split.kind == kind})
        if held is None or not seeds:
            continue
        by_seed = []
        for seed in seeds:
            pooled = np.full(len(held.labels), np.nan)
            for split in splits:
                if (split.kind, split.seed) == (kind, seed):
                    pooled[scores[split.name].rows] = scores[split.name].confidences
            by_seed.append(pooled)
            rows.append({"split": kind, "seed": seed, **measure(held.labels, held.groups, [pooled])})
        if len(seeds) > 1:
            rows.append({"split": kind, "seed": None, **measure(held.labels, held.groups, by_seed)})
        if config.shortcuts and kind != RANDOM:
            first = [split for split in splits if (split.kind, split.seed) == (kind, seeds[0])]
            found = compare_with_shortcuts(clips, held, first, by_seed[0])
            shortcuts += [{"split": kind, **row} for row in found]
            flags += baselines.flags(found, f"AUC ({kind}, first seed)")
    return {
        "stage1_version": __version__,
        "shards": [str(place) for place in config.shards],
        "test_shards": None if config.test_shards is None else str(config.test_shards),
        "num_clips": len(clips.labels),
        "num_groups": clips.num_groups,
        "num_test_clips": None if test is None else len(test.labels),
        "num_test_groups": None if test is None else test.num_groups,
        "folds": config.folds,
        "epochs": config.training.epochs,
        "conventions": "clips; out-of-fold predictions pooled, after the last epoch; threshold 0.5; intervals of 95 % "
        "by resampling source groups (else videos); within recording: pairs of a crime and a normal clip of a group",
        "warnings": warnings,
        "flags": flags,
        "rows": rows,
        "shortcuts": shortcuts,
    }


def compare_with_shortcuts(
    clips: GroupedClips, held: GroupedClips, splits: list[Split], confidences: Array
) -> list[dict[str, Any]]:
    """Evaluate every shortcut in the splits of one seed, and compare the model's AUC with it.

    Shortcuts are fitted to at most SHORTCUT_CLIPS of each video. Both the shortcuts and the
    model, whose P(crime) is `confidences`, are evaluated on at most that many clips of a video.
    """
    train_rows, train_features = _shortcut_features(clips.reader)
    rows, features = (train_rows, train_features) if held is clips else _shortcut_features(held.reader)
    scores = {name: np.full(len(held.labels), np.nan) for name in (baselines.MAJORITY, *features)}
    # The same for all folds: holding out more crimes lowers the share of crime left, which would rank the folds.
    scores[baselines.MAJORITY][:] = clips.labels[train_rows].mean()
    for split in splits:
        is_fitted, is_held_out = np.isin(train_rows, split.train_rows), np.isin(rows, split.held_rows)
        known = np.asarray(clips.labels[train_rows[is_fitted]], np.int64)
        for name, seen in train_features.items():
            scores[name][rows[is_held_out]] = baselines.fit_and_score(
                seen[is_fitted], known, features[name][is_held_out]
            )
    labels, groups = held.labels[rows], held.groups[rows]
    model = metrics.roc_auc_statistic(labels, confidences[rows])
    found = []
    for name, values in scores.items():
        shortcut = metrics.roc_auc_statistic(labels, values[rows])
        above = metrics.paired_bootstrap(model, shortcut, groups, num_resamples=NUM_RESAMPLES)
        measured = measure(labels, groups, [values[rows]])
        found.append({"name": name, **measured, "model_above": dataclasses.asdict(above)})
    return found


def _shortcut_features(reader: JoinedReader) -> tuple[Rows, dict[str, baselines.Features]]:
    """Return rows of the joined sets, and the features that each shortcut sees of them."""
    parts = [(part, baselines.some_rows(part, per_video=SHORTCUT_CLIPS)) for part in reader.readers]
    firsts = np.cumsum([0, *(len(part) for part, _ in parts)])
    rows = np.concatenate([np.asarray(own, np.int64) + first for (_, own), first in zip(parts, firsts, strict=False)])
    features = [baselines.all_features(part, own) for part, own in parts]
    return rows, {name: np.concatenate([part[name] for part in features]) for name in features[0]}


def measure(labels: Rows, groups: npt.NDArray[np.int64], confidences: list[Array]) -> dict[str, Any]:
    """Return accuracy, AUC and AUC within recording with intervals, averaged over predictions of the same clips."""
    makers: dict[str, Callable[[Rows, Array], metrics.Statistic]] = {
        "accuracy": metrics.accuracy_statistic,
        "auc": metrics.roc_auc_statistic,
        "auc_within_group": lambda labels, values: metrics.within_group_auc_statistic(labels, values, groups),
    }
    measured = {}
    for name, make in makers.items():
        statistic = _mean([make(labels, values) for values in confidences])
        measured[name] = dataclasses.asdict(metrics.bootstrap(statistic, groups, num_resamples=NUM_RESAMPLES))
    return measured


def _mean(statistics: list[metrics.Statistic]) -> metrics.Statistic:
    def statistic(weights_N: Array) -> float | None:
        values = [value for part in statistics if (value := part(weights_N)) is not None]
        return float(np.mean(values)) if len(values) == len(statistics) else None

    return statistic


def format_table(result: dict[str, Any]) -> str:
    """Format the results as text: one row per seed, their mean, and last the leaking split."""
    titles = {
        GROUPED: f"{result['folds']} folds, {result['num_clips']} clips, {counted(result['num_groups'], 'recording')}",
        TEST: f"trained on all of these → {result['num_test_clips']} test clips, {result['num_test_groups']} groups",
        RANDOM: "RANDOM SPLIT: the same recordings on both sides. It leaks; never report it",
    }
    lines = [f"{counted(result['epochs'], 'epoch')} each. Conventions: {result['conventions']}."]
    lines += [f"WARNING: {warning}" for warning in result["warnings"]]
    lines += [f"FLAG: {flag}" for flag in result["flags"]]
    columns = {"accuracy": "accuracy", "auc": "AUC", "auc_within_group": "AUC within recording"}
    for kind, rows in itertools.groupby(result["rows"], key=lambda row: row["split"]):
        named = {"mean" if row["seed"] is None else f"seed {row['seed']}": row for row in rows}
        lines += ["", titles[kind], *_table(named, columns)]
    columns = {"accuracy": "accuracy", "auc": "AUC", "model_above": "AUC of the model minus the shortcut's"}
    for kind, rows in itertools.groupby(result["shortcuts"], key=lambda row: row["split"]):
        lines += ["", f"Shortcuts, first seed of: {titles[kind]}", *_table({row["name"]: row for row in rows}, columns)]
    return "\n".join(lines)


def _table(rows: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str]) -> list[str]:
    cells = [[name, *(metrics.interval_text(row[column]) for column in columns)] for name, row in rows.items()]
    return table([["", *columns.values()], *cells])


# --- training data for stage 2 ------------------------------------------------------------------------------------


def save_out_of_fold(config: CrossvalConfig, clips: GroupedClips, splits: list[Split]) -> None:
    """Write the out-of-fold predictions and attention of the first seed as `stage1 infer` would: docs/OUTPUTS.md.

    Each shard set has its own folder. Attention on training clips looks better than on new clips, so stage 2 should
    learn from out-of-fold predictions.
    """
    for number, place in enumerate(config.shards):
        own = np.flatnonzero(clips.reader.sets == number)
        folds = [
            Fold(checkpoint=config.out / split.name / files.BEST_NAME, rows=rows - own[0])
            for split in splits
            if _keeps_checkpoint(split, config) and len(rows := np.intersect1d(split.held_rows, own))
        ]
        infer_out_of_fold(
            InferConfig(
                shards=place,
                out=config.out / OUT_OF_FOLD / f"{number}-{str(place).rstrip('/').rpartition('/')[2]}",
                threshold=THRESHOLD,
                batch_size=config.training.batch_size,
                device=config.training.device,
                cache_dir=config.training.cache_dir,
                cache_gb=config.training.cache_gb,
            ),
            folds,
        )


def _keeps_checkpoint(split: Split, config: CrossvalConfig) -> bool:
    return config.save_attention and split.kind == GROUPED and split.seed == config.training.seed
