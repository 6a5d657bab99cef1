"""Ensembles: networks trained from successive seeds, whose logits and attention are averaged.

Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles", NeurIPS 2017.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from stage1.common import distributed, files
from stage1.common.distributed import rank_zero_info
from stage1.common.earlier_results import set_aside
from stage1.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from stage1.training.config import TrainConfig, to_toml
from vidshard.util import atomic
from vidshard.util.errors import UserError


def train_members(config: TrainConfig, train_one: Callable[[TrainConfig], Path]) -> Path:
    """Train the members in turn, by `train_one`, and write a checkpoint with all of them. Return its path.

    Each member is a run of its own in a folder of ``config.out``, which `resume` continues.
    """
    distributed.expect_one_process("train with `ensemble`")
    if config.resume is True and not (config.out / files.MEMBERS_NAME).is_dir():
        raise UserError(f"nothing to resume: no {config.out / files.MEMBERS_NAME}; start the run without `resume`")
    if not config.resume:
        set_aside(config.out, files.RUN_NAMES, needed=(files.BEST_NAME, files.MEMBERS_NAME))
    atomic.write_text(config.out / files.CONFIG_NAME, to_toml(config))
    members = []
    for number in range(config.ensemble):
        seed = config.seed + number
        rank_zero_info(f"Network {number + 1} of {config.ensemble}, seed {seed}")
        out = config.out / files.MEMBERS_NAME / f"seed-{seed}"
        resume: Literal["auto", False] = "auto" if config.resume else False
        members.append(
            load_checkpoint(train_one(dataclasses.replace(config, ensemble=1, seed=seed, out=out, resume=resume)))
        )
    path = config.out / files.BEST_NAME
    whole = joined(members, config)
    if not path.is_file() or not _same_weights(load_checkpoint(path), whole):  # else it may hold a chosen threshold
        save_checkpoint(path, whole)
    rank_zero_info(f"✓ Model checkpoint saved to: {path}")
    return path


def _same_weights(one: Checkpoint, other: Checkpoint) -> bool:
    weights = other.model_state_dict
    return one.model_state_dict.keys() == weights.keys() and all(
        torch.equal(weight, weights[name]) for name, weight in one.model_state_dict.items()
    )


def joined(members: list[Checkpoint], config: TrainConfig) -> Checkpoint:
    """Return the checkpoint of the ensemble, which has no state to resume from."""
    weights = {
        f"members.{number}.{name}": weight
        for number, member in enumerate(members)
        for name, weight in member.model_state_dict.items()
    }
    return dataclasses.replace(
        members[0],
        model_state_dict=weights,
        optimizer_state_dict={},
        scheduler_state_dict={},
        metrics={},
        train_config=config.to_dict(),
        run_state={},
    )
