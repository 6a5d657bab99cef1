"""The steps of training, inference, evaluation and explanation with tensors on a CUDA device that does not exist.

torch's FakeTensorMode computes types, shapes and devices of all tensors, but no numbers. It raises an error where
tensors of two devices meet, and where a number would have to be read from the device, for which a step would wait. Not
checked: kernels, numbers, speed, and streams; tools/check_cuda.py does that where there is a GPU.

A backward pass needs a real CUDA context. So a training step runs twice: with CUDA tensors and gradients of zeros in
place of a backward pass, and with one on fake tensors of the CPU. An optimizer step in fp16 is left out, whose scaler
reads whether gradients overflowed. `numpy` of a tensor that was copied to the CPU returns zeros here.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from stage1.common.device import IdleClock, map_tensors
from stage1.data.loader import Batch
from stage1.data.transforms import ClipTransform, TransformConfig
from stage1.evaluation.config import ExplainConfig
from stage1.evaluation.explain import Explainer
from stage1.evaluation.splice_test import AttentionTest
from stage1.inference.config import SCORING_PRECISIONS
from stage1.inference.scoring import Scorer, ScoringConfig
from stage1.metrics.calibration import Calibration
from stage1.model.config import BACKBONES, POOLINGS, ModelConfig
from stage1.model.network import Stage1Model
from stage1.training import loop
from stage1.training.bag_objective import BagObjective
from stage1.training.clip_objective import ClipObjective, TrainBatch
from stage1.training.config import TrainConfig
from stage1.training.splices import SplicePlan

pytestmark = pytest.mark.skipif(torch.__version__ < (2, 7), reason="torch 2.6 asks the driver even for fake tensors")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
B, SHAPE = 4, (16, 32, 32)
MODELS = [*(("stage1", pooling) for pooling in POOLINGS), *((name, "attention") for name in BACKBONES[1:])]
EVERY_AUGMENTATION = TransformConfig(
    augment=True,
    grey_probability=1,
    low_resolution_probability=1,
    compression_probability=1,
    border_probability=1,
    overlay_probability=1,
    erase_probability=1,
    time_shift=2,
)


class NoWaiting(TorchDispatchMode):
    """Refuses copies between the CPU and the device for which the CPU waits."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if str(function) == "aten._to_copy.default" and kwargs.get("device") is not None:
            ends = {args[0].device.type, torch.device(kwargs["device"]).type}
            assert ends != {"cpu", "cuda"} or kwargs.get("non_blocking"), f"a copy that waits: {ends}"
        return function(*args, **kwargs)


@pytest.fixture(autouse=True)
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch believe in a GPU as far as Python asks for it."""

    def zeros(tensor: torch.Tensor, **_: Any) -> Any:
        assert tensor.device.type == "cpu", f"numpy of a tensor on {tensor.device}"
        return np.zeros(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    def to(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        """Move parameters and buffers, and nothing else, as the real method does; that one cannot swap fake tensors."""
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                part.register_parameter(name, torch.nn.Parameter(parameter.to(device), parameter.requires_grad))
            for name, buffer in part.named_buffers(recurse=False):
                part.register_buffer(name, buffer.to(device))
        return module

    event = SimpleNamespace(synchronize=lambda: None, record=lambda _stream: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: SimpleNamespace(record_event=lambda: event))
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: event)
    monkeypatch.setattr(torch.nn.Module, "to", to)
    monkeypatch.setattr(torch.autograd, "grad", lambda _of, to: (torch.zeros_like(to),))
    monkeypatch.setattr(FakeTensor, "numpy", zeros, raising=False)


@contextlib.contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        warnings.simplefilter("ignore")
        yield mode


def make_run(config: TrainConfig, objective: ClipObjective, device: torch.device) -> loop.TrainingRun:
    """Create a run without data; only `train_step` uses it."""
    model = objective.make_model().to(device).train()
    optimizer = loop.optim.make_optimizer(model, lr=1e-3, weight_decay=0.1)
    return loop.TrainingRun(
        config=config,
        data=None,  # type: ignore[arg-type]
        device=device,
        objective=objective,
        model=model,
        averaged=objective.make_model().to(device),
        optimizer=optimizer,
        scheduler=loop.optim.make_scheduler(optimizer, num_steps=10, warmup_fraction=0.1),
        scaler=torch.amp.GradScaler(device.type, enabled=False),
        loader=None,  # type: ignore[arg-type]
        validation_loader=None,
        log=None,  # type: ignore[arg-type]
        stop=SimpleNamespace(received=None),  # type: ignore[arg-type]
        clock=IdleClock(device),
    )


def a_batch(objective: ClipObjective, *, bag: bool = False) -> TrainBatch:
    """Prepare a batch of noise on the CPU, as the reading thread does."""
    clips = torch.randint(0, 256, (B, *SHAPE, 3), dtype=torch.uint8)
    labels = torch.ones(B, dtype=torch.int64) if bag else torch.tensor([0, 1, 1, -1])
    return objective.prepare(Batch(clips, labels, torch.arange(B)), 0)


def check_step(config: TrainConfig, objective: ClipObjective, batch: TrainBatch) -> None:
    for device in (CPU, CUDA):
        with fake_cuda(), pytest.MonkeyPatch.context() as patch:
            run = make_run(config, objective, device)
            parameters = [parameter for parameter in run.model.parameters() if parameter.requires_grad]

            def no_backward(loss: torch.Tensor) -> None:
                assert (loss.device.type, loss.numel(), loss.requires_grad) == ("cuda", 1, True)
                for parameter in parameters:  # noqa: B023
                    parameter.grad = torch.zeros_like(parameter)

            if device == CUDA:
                patch.setattr(torch.Tensor, "backward", no_backward)
            with NoWaiting():
                record = loop.train_step(run, [batch], 0)
            assert all(parameter.grad is not None for parameter in parameters)
            assert (tuple(record.values.shape), record.values.device.type) == ((7,), "cpu")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("backbone", "pooling"), MODELS)
def test_a_training_step_waits_for_nothing(backbone: str, pooling: str, precision: str) -> None:
    model = ModelConfig(backbone=backbone, pooling=pooling)
    config = TrainConfig(shards=(Path(),), model=model, precision=precision, transform=EVERY_AUGMENTATION)
    objective = ClipObjective(config=config)
    check_step(config, objective, a_batch(objective))


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_a_training_step_with_mixed_pairs_or_composites_waits_for_nothing(mixup: float) -> None:
    config = TrainConfig(shards=(Path(),), transform=EVERY_AUGMENTATION, mixup=mixup)
    objective = ClipObjective(config=config)
    if not mixup:
        plans = [SplicePlan(1, 7, 2, 6, is_inserted=True, blended=True, instead=9)]
        clips = torch.zeros(1, *SHAPE, 3, dtype=torch.uint8)
        objective.splicer = SimpleNamespace(  # type: ignore[assignment]
            plan=lambda *_, **__: plans,
            read=lambda plans: (plans, clips, clips),
            known_frames=lambda indices: torch.zeros(len(indices), SHAPE[0], dtype=torch.int8),
        )
    batch = a_batch(objective)
    assert (batch.shares is None, batch.composites is None) == (not mixup, bool(mixup))
    check_step(config, objective, batch)


@pytest.mark.parametrize("bags", ["topk", "attention"])
def test_a_training_step_on_a_bag_waits_for_nothing(bags: str) -> None:
    config = TrainConfig(shards=(Path(),), bags=bags)
    objective = BagObjective(config=config)
    check_step(config, objective, a_batch(objective, bag=True))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_loss_in_fp16_waits_for_nothing(backbone: str) -> None:
    model = ModelConfig(backbone=backbone)
    config = TrainConfig(shards=(Path(),), precision="fp16", model=model)
    objective = ClipObjective(config=config)
    prepared = a_batch(objective)
    with fake_cuda():
        run = make_run(config, objective, CUDA)
        with NoWaiting():
            batch = map_tensors(lambda tensor: tensor.to(CUDA, non_blocking=True), prepared)
            loss = objective.loss(run.model, run.forward, batch, 0).loss_sum
        assert loss.device.type == "cuda"


def test_a_step_that_waits_is_found() -> None:
    """The checks of this file would notice: a number that is read, and a copy without `non_blocking`."""
    with fake_cuda(), NoWaiting():
        values = torch.ones(3, device=CUDA)
        with pytest.raises(DataDependentOutputException):
            values.sum().item()
        with pytest.raises(AssertionError, match="a copy that waits"):
            torch.ones(3).to(CUDA)
        with pytest.raises((RuntimeError, AssertionError), match="device"):
            values + torch.ones(3)


def a_checkpoint(config: ModelConfig) -> Any:
    return SimpleNamespace(
        build_model=lambda: Stage1Model(config).eval(),
        build_transform=lambda: ClipTransform(TransformConfig()),
        build_calibration=lambda: Calibration(),
    )


@pytest.mark.parametrize("precision", SCORING_PRECISIONS)
@pytest.mark.parametrize(("backbone", "pooling"), MODELS)
def test_scoring(backbone: str, pooling: str, precision: str) -> None:
    """Inference and evaluation score clips by this function."""
    record = SimpleNamespace(frame_indices=[0, 15], timestamps_seconds=[0.0, 1.0])
    reader: Any = SimpleNamespace(clip_shape=SimpleNamespace(num_frames=SHAPE[0]), read_record=lambda _row: record)
    loader: Any = SimpleNamespace(bad_clips={})
    with fake_cuda(), torch.inference_mode():
        clips = torch.zeros(B, *SHAPE, 3, dtype=torch.uint8, device=CUDA)
        scorer = Scorer(
            a_checkpoint(ModelConfig(backbone=backbone, pooling=pooling)),
            reader,
            loader,
            ScoringConfig(device=CUDA, precision=precision),
        )
        batch = Batch(clips, torch.zeros(B, dtype=torch.int64), torch.arange(B))
        scored = scorer(np.arange(3), batch)
    assert scored.rows["attention"].shape == (3, SHAPE[0])


@pytest.mark.parametrize(("backbone", "pooling"), MODELS)
def test_explanation(backbone: str, pooling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads numbers as it goes, which are 0 here."""
    monkeypatch.setattr(FakeTensor, "__float__", lambda _number: 0.0, raising=False)
    with fake_cuda():
        clip = torch.zeros(*SHAPE, 3, dtype=torch.uint8)
        config = ExplainConfig(checkpoint=Path(), shards=Path(), out=Path())
        explainer = Explainer(a_checkpoint(ModelConfig(backbone=backbone, pooling=pooling)), CUDA, config)
        orders, attention, _ = explainer.orders(clip, seed=0)
        assert attention.shape == (SHAPE[0],)
        assert explainer.frozen_scores(clip, orders, seed=0).shape[0] == len(orders)
        test = AttentionTest(explainer.model, explainer.transform, CUDA)
        assert [found.shape for found in test.attention(clip[None])] == [(1, SHAPE[0])] * 3


def test_a_validation_batch() -> None:
    config = TrainConfig(shards=(Path(),))
    objective = ClipObjective(config=config)
    with fake_cuda(), torch.no_grad():
        model = objective.make_model().to(CUDA).eval()
        batch = Batch(torch.zeros(B, *SHAPE, 3, dtype=torch.uint8, device=CUDA), torch.arange(B), torch.arange(B))
        logits = objective.score(model, batch)
    assert (tuple(logits.shape), logits.device.type) == ((B, 2), "cuda")
