"""Which process of a run this is; the only user of `torch.distributed`.

A run of one process needs nothing of this: rank 0 of world size 1.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist

from vidshard.errors import UserError


def rank() -> int:
    """Number of this process among those of the run, from 0."""
    return dist.get_rank() if _is_active() else 0


def world_size() -> int:
    """How many processes the run has."""
    return dist.get_world_size() if _is_active() else 1


def set_up(device: torch.device) -> None:
    """Join the processes that `torchrun` started, if it did (WORLD_SIZE > 1). Raises UserError without them."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not _is_active():
        if not dist.is_available():
            raise UserError("WORLD_SIZE is above 1, but this torch has no torch.distributed; run one process")
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def tear_down() -> None:
    """Leave the other processes."""
    if _is_active():
        dist.destroy_process_group()


def sum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """`value` added up over all processes, in place."""
    if _is_active():
        dist.all_reduce(value)
    return value


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Add up the gradients over all processes, so that a sum loss gives the gradient of the whole global batch."""
    if _is_active():
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = sum_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _is_active() -> bool:
    return dist.is_available() and dist.is_initialized()
