"""Effect of --precision, --channels-last and --compile on a training step, side by side in one run.

    python tools/bench_train_options.py [--batch-size 8] [--alternations 5] [--device auto]

A step is forward, loss, backward and AdamW on one resident batch of 16×112×112 clips with the default model. Every
alternation takes one step of each way in turn; the median counts. Steps before the first measured one, compilation
included, are left out. The last line is JSON: the time of a step as a share of that in fp32, as `ratio_to_fp32`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from stage1.common import device as device_module
from stage1.common.device import autocast, choose_device, device_name
from stage1.model.network import Stage1Model
from stage1.training import optim
from vidshard.util.errors import UserError

WAYS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "channels_last": {"channels_last": True},
    "compile": {"compile": True},
    "bf16": {"precision": "bf16"},
    "bf16_compile": {"precision": "bf16", "compile": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--alternations", type=int, default=5)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    print(f"{device_name(device)}, torch {torch.__version__}, batch {arguments.batch_size}")
    clips = torch.randn(arguments.batch_size, 3, 16, 112, 112, device=device)
    labels = torch.arange(arguments.batch_size, device=device) % 2
    steps = {name: make_step(clips, labels, **options) for name, options in WAYS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for name, step in list(steps.items()):
        try:
            with device_module.compile_errors():
                step()
                step()
        except UserError as error:  # no C++ compiler
            print(f"{name:14} not measured: {error}")
            del steps[name], seconds[name]
    for _ in range(arguments.alternations):
        for name, step in steps.items():
            seconds[name].append(step())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name:14} {median:.3f} s a step, {arguments.batch_size / median:.1f} clips/s")
    print(json.dumps({"ratio_to_fp32": {name: round(value / medians["fp32"], 3) for name, value in medians.items()}}))


def make_step(
    clips: torch.Tensor,
    labels: torch.Tensor,
    *,
    precision: str = "fp32",
    channels_last: bool = False,
    compile: bool = False,
) -> Callable[[], float]:
    """Return a function that runs one training step with these options and returns its seconds."""
    torch.manual_seed(0)
    model = Stage1Model().to(clips.device)
    if channels_last:
        device_module.channels_last(model)
        clips = clips.contiguous(memory_format=torch.channels_last_3d)
    forward = torch.compile(model) if compile else model
    optimizer = optim.make_optimizer(model, lr=1e-4, weight_decay=0.05)

    def step() -> float:
        wait(clips.device)
        start = time.perf_counter()
        optimizer.zero_grad()
        with autocast(clips.device, precision):
            logits, _ = forward(clips)
        functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        wait(clips.device)
        return time.perf_counter() - start

    return step


def wait(device: torch.device) -> None:
    """Return when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
