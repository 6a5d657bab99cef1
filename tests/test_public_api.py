"""The public API of `vidshard` and `stage1`: names, keyword options, transforms, and the code in docs."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import transforms

import stage1
import vidshard
from fake_shards import moving_clips, write_shards
from pictures import count_pixels, read_picture
from stage1.data.transforms import ClipTransform
from stage1.review.film_strip import TOP_COLOUR
from stage1.training import loop
from vidshard.util import console

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (vidshard, stage1)

IMPORT_ALL = """
import importlib, inspect, json, pkgutil, sys, warnings
warnings.simplefilter("ignore")  # the modules of the old names do
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
kinds = {name: type(getattr(package, name)).__name__ for name in package.__all__ if name != "__version__"}
print(json.dumps({"kinds": kinds, "dir": dir(package)}))
"""


def run_python(*arguments: str, cwd: Path = ROOT) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("package", ["vidshard", "stage1"])
def test_every_public_name_is_still_its_function_or_class_after_importing_every_submodule(package: str) -> None:
    found = json.loads(run_python("-c", IMPORT_ALL, package))
    assert found["kinds"]
    assert [name for name, kind in found["kinds"].items() if kind == "module"] == []
    assert set(found["kinds"]) <= set(found["dir"])


@pytest.mark.parametrize("package", ["vidshard", "stage1"])
def test_the_package_runs_as_a_module(package: str) -> None:
    assert run_python("-m", package, "--version").strip().endswith(vidshard.__version__)


def test_both_packages_have_one_version() -> None:
    assert stage1.__version__ == vidshard.__version__


def public(kind: Any) -> list[tuple[str, Any]]:
    return [
        (f"{package.__name__}.{name}", getattr(package, name))
        for package in PACKAGES
        for name in package.__all__
        if kind(getattr(package, name))
    ]


@pytest.mark.parametrize(("name", "function"), public(inspect.isfunction))
def test_every_public_function_documents_its_result_and_errors(name: str, function: Any) -> None:
    text = inspect.getdoc(function) or ""
    assert "Raises" in text
    missing = [parameter for parameter in inspect.signature(function).parameters if parameter not in text]
    assert not missing, f"{name} does not mention {missing}"


@pytest.mark.parametrize(("name", "kind"), public(inspect.isclass))
def test_every_public_class_is_documented(name: str, kind: type) -> None:
    own = kind.__doc__ or ""
    assert own, f"{name} has no docstring"
    assert not own.startswith(f"{kind.__name__}("), f"{name} has only the signature that dataclass makes"


def test_unknown_names_are_attribute_errors() -> None:
    for package in PACKAGES:
        with pytest.raises(AttributeError, match="has no attribute 'trian'"):
            _ = package.trian


# ---- options


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vidshard.build("Train", fsp=7.5), "build has no option 'fsp'; did you mean 'fps'"),
        (lambda: vidshard.build("Train", sampling="dens"), "mode is 'dens', expected one of uniform, dense"),
        (
            lambda: vidshard.build(vidshard.BuildConfig(source="a"), out="b"),
            "build with a BuildConfig takes no options",
        ),
        (
            lambda: vidshard.build("a", sampling=vidshard.SamplingConfig(), clip_len=8),
            "sampling is a SamplingConfig: pass it clip_len, not build",
        ),
        (lambda: stage1.train(shards="a", epocs=2), "train has no option 'epocs'; did you mean 'epochs'"),
        (lambda: stage1.train(shards="a", preset="fast"), "preset is 'fast', expected one of default, notebook"),
        (lambda: stage1.train(shards="a", model_size="xl"), "model_size is 'xl', expected one of small, base, large"),
        (lambda: stage1.infer(shard="a"), "infer has no option 'shard'; did you mean 'shards'"),
        (lambda: stage1.infer(shards="a", videos="b.mp4"), "shards and videos cannot be combined"),
        (lambda: stage1.evaluate(scores="a.csv"), "scores need annotations"),
        (lambda: stage1.evaluate(checkpont="a"), "evaluate has no option 'checkpont'; did you mean 'checkpoint'"),
        (lambda: vidshard.split("videos", "lists", fractions=[0.5, 0.5, 0.5]), "fractions are 0.5,0.5,0.5"),
        (lambda: vidshard.open_shards("nowhere"), "nowhere"),
        (lambda: stage1.load_checkpoint("nowhere.pt"), "no checkpoint nowhere.pt"),
    ],
)
def test_wrong_use_is_a_user_error_that_states_what_was_expected(call: Any, message: str, tmp_path: Path) -> None:
    os.chdir(tmp_path)
    with pytest.raises(vidshard.UserError, match=re.escape(message)):
        call()


@pytest.fixture(autouse=True)
def stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path.cwd())


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clips, labels = moving_clips(8, shape=(4, 16, 16))
    return write_shards(tmp_path_factory.mktemp("data") / "shards", clips, labels)


def test_text_and_dotted_options_become_the_config_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[stage1.TrainConfig] = []
    monkeypatch.setattr(loop, "train", lambda config, **_options: configs.append(config))
    stage1.train(shards="s3://bucket/Train", out="runs/a", preset="notebook", lr=0.01, model={"dropout": 0.3})
    stage1.train(shards="shards/Train", transform={"mean": [0.1, 0.2, 0.3]}, model_size="small")
    first, second = configs
    assert [str(place) for place in first.shards] == ["s3://bucket/Train"]
    assert (first.out, first.batch_size, first.lr) == (Path("runs/a"), 4, 0.01)
    assert first.model.dropout == 0.3
    assert second.shards == (Path("shards/Train"),)
    assert (second.transform.mean, second.transform.augment) == ((0.1, 0.2, 0.3), True)
    assert second.model.channels == (16, 32, 64)


# ---- a transform of one's own


def small_run(shards: Path, out: Path, **options: Any) -> Path:
    return stage1.train(
        shards=str(shards), out=str(out), epochs=1, batch_size=4, device="cpu", val_fraction=0, **options
    )


def test_a_transform_gets_float_batches_and_its_result_is_normalised(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    inputs: list[torch.Tensor] = []
    forward = stage1.Stage1Model.forward

    def keep_input(model: Any, clips: torch.Tensor, *rest: Any, **options: bool) -> Any:
        inputs.append(clips.detach().clone())
        return forward(model, clips, *rest, **options)

    def halve(clips: torch.Tensor) -> torch.Tensor:
        seen.append(clips)
        return clips / 2

    monkeypatch.setattr(stage1.Stage1Model, "forward", keep_input)
    path = small_run(shards, tmp_path / "out", transform=halve)
    assert {(clips.dtype, tuple(clips.shape)) for clips in seen} == {(torch.float32, (4, 3, 4, 16, 16))}
    assert all(clips.min() >= 0 and 0.3 < clips.max() <= 1 for clips in seen)
    config = stage1.TransformConfig()
    mean, std = (torch.tensor(value).view(1, 3, 1, 1, 1) for value in (config.mean, config.std))
    torch.testing.assert_close(inputs[0], (seen[0] / 2 - mean) / std)
    assert isinstance(stage1.load_checkpoint(str(path)).build_transform(), ClipTransform)


def test_the_guides_compose_is_refused_with_what_to_write(shards: Path, tmp_path: Path) -> None:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    guide = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    with pytest.raises(vidshard.UserError, match=r"contains ToTensor and Normalize, .* normalised after") as refused:
        small_run(shards, tmp_path / "refused", transform=guide)
    (written,) = re.findall(r"transform=(\{.*\})", str(refused.value))
    assert json.loads(written) == {"mean": mean, "std": std}
    assert not (tmp_path / "refused").exists()
    assert small_run(shards, tmp_path / "out", transform=json.loads(written)).is_file()


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (lambda clips: clips[:, :2], r"\(4, 2, 4, 16, 16\)"),
        (lambda clips: clips[0], r"torch.float32 \(3, 4, 16, 16\)"),
        (lambda clips: (clips * 255).byte(), "torch.uint8"),
        (lambda clips: clips.numpy(), "ndarray"),
    ],
)
def test_a_transform_that_returns_no_batch_of_clips_is_refused(
    shards: Path, tmp_path: Path, function: Any, got: str
) -> None:
    with pytest.raises(vidshard.UserError, match=rf"returned {got}.*expected a float tensor \(4, 3, 4, 'H', 'W'\)"):
        small_run(shards, tmp_path / "out", transform=function)


# ---- what runs


def test_train_infer_evaluate_and_visualize_with_text_as_paths(shards: Path, tmp_path: Path) -> None:
    checkpoint = small_run(shards, tmp_path / "run")
    assert checkpoint == tmp_path / "run" / "binary_stage1_with_attention.pt"
    result = stage1.infer(
        shards=str(shards), checkpoint=str(checkpoint), out=str(tmp_path / "out"), threshold=0, event_min_seconds=0
    )
    assert result is not None
    assert result.exit_code == console.EXIT_OK
    assert len(result.detections) == result.num_detections == 8
    assert json.loads(result.files.anomalies.read_text()) == [one.to_json() for one in result.detections]
    assert [video["source"] for video in result.videos] == [one.source for one in result.detections]
    assert result.metrics is not None
    data = stage1.load_attention_data(str(tmp_path / "out"))
    assert data.attention_weights.shape == (8, 4)
    assert stage1.visualize(str(tmp_path / "out")).is_file()
    report = stage1.evaluate(
        shards=str(shards), checkpoint=str(checkpoint), out=str(tmp_path / "evaluation"), num_resamples=20
    )
    assert report.fields.keys() == json.loads((tmp_path / "evaluation" / "evaluation.json").read_text()).keys()
    clips = stage1.ClipReader(str(shards))[0]
    model, prepare = (getattr(stage1.load_checkpoint(checkpoint), f"build_{name}")() for name in ("model", "transform"))
    logits, attention = model(prepare(torch.from_numpy(clips[None])))
    assert (logits.shape, attention.shape) == ((1, 2), (1, 4))


def test_inspect_describes_a_set_given_as_text(shards: Path) -> None:
    assert vidshard.inspect(str(shards))["clips"] == 8
    assert vidshard.open_shards(str(shards)).manifest.num_clips == 8


# ---- docs


def code_blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def make_videos(folder: Path, *splits: str) -> None:
    wanted = [argument for split in splits for argument in ("--videos", split)]
    run_python(str(ROOT / "tools" / "synthetic_videos.py"), str(folder), *wanted)


def test_the_first_page_of_code_in_the_docs_runs(tmp_path: Path) -> None:
    first, _ = code_blocks(ROOT / "docs" / "API.md")
    make_videos(tmp_path, "Train=8", "Test=4")
    (tmp_path / "page.py").write_text(first, encoding="utf-8")
    shown = run_python("page.py", cwd=tmp_path)
    assert "Epoch 2 | Loss: " in shown
    assert "✓ Stage 1 Complete!" in shown
    assert len(stage1.load_attention_data(tmp_path / "stage1_output")) == shown.count("frame of highest attention:")


def test_the_second_page_of_code_in_the_docs_runs(tmp_path: Path) -> None:
    _, second = code_blocks(ROOT / "docs" / "API.md")
    (tmp_path / "page.py").write_text(second, encoding="utf-8")
    shown = run_python("page.py", cwd=tmp_path)
    assert "6 clips of 16×112×112" in shown
    assert vidshard.verify(tmp_path / "shards" / "mine", deep=True).faults == ()


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads((ROOT / "docs" / "tour.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    sources = ["".join(cell["source"]) for cell in cells]
    body = "".join(f"    exec(compile({source!r}, 'cell {n}', 'exec'), names)\n" for n, source in enumerate(sources))
    script = f"if __name__ == '__main__':  # a build starts worker processes\n    names = {{}}\n{body}"
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "tour.py").write_text(script, encoding="utf-8")
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    shown = run_python("tour.py", cwd=tmp_path / "docs")
    assert re.search(r"^Epoch 5 \| Loss: [\d.]+ \| Accuracy: [\d.]+% \| LR: ", shown, re.MULTILINE)
    assert "✓ Model checkpoint saved to: " in shown
    assert "✓ Stage 1 Complete!" in shown
    picture = read_picture(tmp_path / "docs" / "tour" / "stage1_output" / "attention_visualization.png")
    assert count_pixels(picture, TOP_COLOUR) > 500  # the frames of highest attention
