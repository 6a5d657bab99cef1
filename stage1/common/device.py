"""Where and how the model runs: the CPU or a CUDA device, chosen by itself or by name; precision and memory order."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator

import torch
from torch import nn

from vidshard.util.errors import UserError


def choose_device(name: str = "auto") -> torch.device:
    """The device for `name`: auto (CUDA where there is one), cpu, cuda or cuda:N. Raises UserError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device is {name!r}, expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"--device {name} was asked for, but this torch ({torch.__version__}) finds no CUDA device; "
            "use --device cpu, or install a CUDA build of torch and its driver"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name} was asked for, but there are {torch.cuda.device_count()} CUDA devices")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device is {name!r}, expected auto, cpu, cuda or cuda:N")
    return device


def device_name(device: torch.device) -> str:
    """What to tell the user the model runs on: the name of the GPU, or of the processor and its threads."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Where the block runs what gains from it (convolutions, matrix products) in bf16 or fp16; fp32 changes nothing."""
    return torch.autocast(device.type, dtype=DTYPES.get(precision), enabled=precision in DTYPES)


def channels_last(module: nn.Module) -> None:
    """Put the weights of 2D and 3D convolutions into channels-last memory, in place."""
    for parameter in module.parameters():
        if parameter.ndim in (4, 5):
            order = torch.channels_last if parameter.ndim == 4 else torch.channels_last_3d
            parameter.data = parameter.data.contiguous(memory_format=order)


@contextlib.contextmanager
def compile_errors() -> Iterator[None]:
    """Turn a failure of torch.compile, such as for want of a C++ compiler, into a UserError of one line."""
    try:
        yield
    except RuntimeError as error:
        if not any(kind.__module__ == "torch._dynamo.exc" for kind in type(error).__mro__):  # a second to import
            raise
        first, *others = str(error).strip().splitlines()
        why = " ".join([first, *others[:1]]) if first.endswith(":") else first
        raise UserError(
            f"torch.compile failed: {why}; on a CPU it needs a C++ compiler such as g++: install one, or go on without "
            "--compile"
        ) from error


@contextlib.contextmanager
def cuda_memory_errors(batch_size: int) -> Iterator[None]:
    """Turn CUDA running out of memory into a UserError that names the batch size to try."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "CUDA error: out of memory" not in str(error):
            raise  # the second is what CUDA itself says, where torch's allocator was not asked
        hint = (
            f"try --batch-size {batch_size // 2}" if batch_size > 1 else "the smallest batch does not fit: --device cpu"
        )
        raise UserError(f"CUDA is out of memory with --batch-size {batch_size}; {hint}") from error
