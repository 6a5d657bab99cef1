"""The exported model compared with the checkpoint: differences, and speed on the CPU.

    python tools/bench_export.py [--checkpoint PT --shards DIR] [--clips 200] [--alternations 3]

Without a checkpoint an untrained default model is taken, without shards noise. Both in turns in one process, batches
of 8, all cores. The last line is JSON:
{"probability_difference": x, "attention_difference": x, "onnxruntime_over_torch": x}.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from bench_infer import SHAPE, save_model
from stage1.model.checkpoint import load_checkpoint
from stage1.model.network import ModelConfig
from stage1.model.onnx import WholeModel, export

BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--shards", type=Path)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--alternations", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-export-") as name:
        path = options.checkpoint or Path(name) / "model.pt"
        if options.checkpoint is None:
            save_model(path, ModelConfig(), SHAPE)
        report = export(path, Path(name) / "model.onnx", shards=options.shards, num_checked=options.clips)
        print(report.summary, flush=True)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = cores
        session = onnxruntime.InferenceSession(str(report.path), settings, providers=["CPUExecutionProvider"])
        checkpoint = load_checkpoint(path)
        model = WholeModel(checkpoint).eval()
        clips = np.random.default_rng(0).integers(0, 256, (BATCH, *checkpoint.shape.thwc), np.uint8)
        torch.set_num_threads(cores)

        def by_torch() -> None:
            with torch.inference_mode():
                model(torch.from_numpy(clips))

        def by_onnxruntime() -> None:
            session.run(None, {"clips": clips})

        ratios = []
        for turn in range(options.alternations):
            seconds = []
            for function in (by_torch, by_onnxruntime):
                function()
                start = time.perf_counter()
                for _ in range(4):
                    function()
                seconds.append(time.perf_counter() - start)
            ratios.append(seconds[0] / seconds[1])
            rates = [4 * BATCH / value for value in seconds]
            print(f"turn {turn + 1}: torch {rates[0]:.1f} clips/s, onnxruntime {rates[1]:.1f} clips/s", flush=True)
    result = {
        "probability_difference": report.probability_difference,
        "attention_difference": report.attention_difference,
        "onnxruntime_over_torch": round(statistics.median(ratios), 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
