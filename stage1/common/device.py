"""Device selection, autocast precision, memory format, and errors of torch.compile and CUDA."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator

import torch
from torch import nn

from vidshard.util.errors import UserError
from vidshard.util.text import counted


def choose_device(name: str = "auto") -> torch.device:
    """Return the device for `name`: auto (CUDA if available), cpu, cuda or cuda:N.

    Raises UserError if the name is unknown or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device is {name!r}, expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"`device` is {name}, but this torch ({torch.__version__}) finds no CUDA device; "
            "use `device` cpu, or install a CUDA build of torch and its driver"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"`device` is {name}, expected a number below {count}: CUDA devices are numbered from 0")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device is {name!r}, expected auto, cpu, cuda or cuda:N")
    return device


def device_name(device: torch.device) -> str:
    """Return the device's name for display: the GPU model, or the CPU architecture and number of threads."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"CPU ({platform.machine()}, {counted(threads, 'thread')})"


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which convolutions and matrix products run in bf16 or fp16; fp32 changes nothing."""
    return torch.autocast(device.type, dtype=DTYPES.get(precision), enabled=precision in DTYPES)


def channels_last(module: nn.Module) -> None:
    """Convert the weights of 2D and 3D convolutions to channels-last memory format, in place."""
    for parameter in module.parameters():
        if parameter.ndim in (4, 5):
            order = torch.channels_last if parameter.ndim == 4 else torch.channels_last_3d
            parameter.data = parameter.data.contiguous(memory_format=order)


@contextlib.contextmanager
def compile_errors() -> Iterator[None]:
    """Raise a one-line UserError if torch.compile fails in the block, for example without a C++ compiler."""
    try:
        yield
    except RuntimeError as error:
        # Compare names: importing torch._dynamo takes a second.
        if not any(kind.__module__ == "torch._dynamo.exc" for kind in type(error).__mro__):
            raise
        first, *others = str(error).strip().splitlines()
        why = " ".join([first, *others[:1]]) if first.endswith(":") else first
        raise UserError(
            f"torch.compile failed: {why}; on a CPU it needs a C++ compiler such as g++: install one, or run without "
            "`compile`"
        ) from error


@contextlib.contextmanager
def cuda_memory_errors(batch_size: int) -> Iterator[None]:
    """Raise a UserError that names the batch size to try if CUDA runs out of memory in the block."""
    try:
        yield
    except RuntimeError as error:
        # CUDA reports the second form for allocations that do not go through torch's allocator.
        if not isinstance(error, torch.OutOfMemoryError) and "CUDA error: out of memory" not in str(error):
            raise
        smaller = f"try `batch_size` {batch_size // 2}"
        hint = smaller if batch_size > 1 else "the smallest batch does not fit: use `device` cpu"
        raise UserError(f"CUDA is out of memory with `batch_size` {batch_size}; {hint}") from error
