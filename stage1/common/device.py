"""Device selection, autocast precision, memory format, and errors of torch.compile and CUDA."""

from __future__ import annotations

import contextlib
import platform
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy.typing as npt
import torch
from torch import nn

from vidshard.util.errors import UserError
from vidshard.util.text import counted

T = TypeVar("T")


def choose_device(name: str = "auto") -> torch.device:
    """Return the device for `name`: auto (CUDA if available), cpu, cuda or cuda:N.

    Turns TF32 off, so that fp32 means fp32: torch lets cuDNN round the inputs of convolutions to 10 bits by default.
    Raises UserError if the name is unknown or this machine has no such device.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
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


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], value: T) -> T:
    """Apply `function` to every tensor in nested tuples, and keep everything else."""
    if isinstance(value, torch.Tensor):
        return function(value)  # type: ignore[return-value]
    if isinstance(value, tuple):
        parts = [map_tensors(function, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def constant(values: npt.ArrayLike, like: torch.Tensor) -> torch.Tensor:
    """Return `values` in the type of `like`, on its device, for which nothing waits (`new_tensor` waits for CUDA)."""
    return torch.as_tensor(values).to(like, non_blocking=True)


class IdleClock:
    """Time in which a device has nothing to do: from each `idle` to the next `busy`.

    On CUDA these are marks among the work that was given to the device, so that time in which it still works on that
    does not count. Nothing waits for it: `seconds` holds the gaps that are over.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = 0.0
        self._since: Any = None
        self._gaps: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def idle(self) -> None:
        """Note that all work was given to the device; has no effect if that is known."""
        if self._since is None:
            self._since = self._mark()

    def busy(self) -> None:
        """Note that the device gets work again."""
        if self._since is not None:
            now = self._mark()
            if self._device.type == "cuda":
                self._gaps.append((self._since, now))
            else:
                self._seconds += now - self._since
            self._since = None

    @property
    def seconds(self) -> float:
        """Length of all gaps that are over."""
        while self._gaps and self._gaps[0][1].query():  # type: ignore[no-untyped-call]
            start, end = self._gaps.popleft()
            self._seconds += start.elapsed_time(end) / 1000
        return self._seconds

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event


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
