"""torchvision's 3D ResNets with the interface of our own network, and their pre-trained weights.

The networks are from Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition", CVPR 2018.
`s3d` is not included because it rejects frames of 112×112.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stage1.data.transforms import TransformConfig
from stage1.model.config import TORCHVISION_BACKBONES
from vidshard.util.errors import UserError
from vidshard.util.hashing import file_sha256

NAMES = TORCHVISION_BACKBONES
# Normalisation with which the published weights were trained: of RGB in [0, 1].
MEAN, STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
_GROUPS = 16
_UNUSED = ("fc.weight", "fc.bias")  # the classifier of Kinetics' 400 actions
_NESTED = ("model_state_dict", "state_dict", "model")  # keys under which checkpoint files store a state dict
_PREFIXES = ("module.", "backbone.network.", "network.", "backbone.")

Confirm = Callable[[str], bool]


class TorchvisionBackbone(nn.Module):
    """Features of every time step of clips: float (B, 3, T, H, W), normalised by MEAN and STD → (B, T', 512).

    `r3d_18` and `r2plus1d_18` downsample time by 8 (16 frames → 2 steps); `mc3_18` keeps it.
    """

    features = 512

    def __init__(self, name: str, *, norm: str = "group") -> None:
        super().__init__()
        from torchvision.models import video  # takes seconds to import

        self.name, self.norm = name, norm
        self.network: nn.Module = getattr(video, name)()
        self.network.fc = nn.Identity()
        if norm == "group":
            _replace_batch_norms(self.network)

    def forward(self, clips_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return features (B, T', 512) of clips (B, 3, T, H, W)."""
        layers = self.network
        maps_BDTHW = layers.layer4(layers.layer3(layers.layer2(layers.layer1(layers.stem(clips_BCTHW)))))  # type: ignore[operator]
        features_BTD: torch.Tensor = maps_BDTHW.mean((3, 4)).transpose(1, 2)
        return features_BTD

    def train(self, mode: bool = True) -> TorchvisionBackbone:
        """Set the training mode, but keep batch normalisation in evaluation mode with the norm "frozen"."""
        super().train(mode)
        if self.norm == "frozen":
            for module in self.modules():
                if isinstance(module, nn.BatchNorm3d):
                    module.eval()
        return self

    def attention_frame_ranges(self, num_frames: int) -> list[tuple[int, int]]:
        """Return the (first, last) frame of each time step's centre; its receptive field is wider.

        Three layers have a temporal stride of 2, so step i is centred on the frames 8·i − 4 to 8·i + 3.
        """
        if self.name == "mc3_18":
            return [(frame, frame) for frame in range(num_frames)]
        steps = num_frames
        for _ in range(3):
            steps = (steps + 1) // 2
        starts = [0, *(8 * step - 4 for step in range(1, steps))]
        return list(zip(starts, [start - 1 for start in starts[1:]] + [num_frames - 1], strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsReport:
    """Result of loading a file of weights."""

    source: str  # path of the file
    sha256: str
    num_loaded: int  # number of tensors that were loaded
    missing: tuple[str, ...]  # tensors of the network that the file lacks; they keep their initial values
    misfit: tuple[str, ...]  # tensors of a different shape in the file; they keep their initial values
    unexpected: tuple[str, ...]  # tensors of the file that the network lacks

    @property
    def text(self) -> str:
        """The report as text: one line, and one more for each kind of tensor that was not loaded."""
        lines = [f"{self.num_loaded} tensors of weights from {self.source} (SHA-256 {self.sha256})"]
        for kind, names in (("missing in the file", self.missing), ("of a different shape", self.misfit)):
            if names:
                lines.append(f"  {kind}, kept at their initial values: {_listed(names)}")
        if self.unexpected:
            lines.append(f"  not in this network, ignored: {_listed(self.unexpected)}")
        return "\n".join(lines)


def training_options(name: str, weights: str | None, *, confirm: Confirm) -> dict[str, Any]:
    """Return the options of a TrainConfig, nested, that `--backbone` and `--weights` of `stage1 train` stand for.

    They are the network's normalisation, its full resolution, and the path and SHA-256 of the weights, which are found
    by `find_weights`. They override the options of a file that was written for a different network. Raises UserError if
    the weights do not fit the network or cannot be found.
    """
    if name == "stage1" and not weights:
        own = {field: getattr(TransformConfig, field) for field in ("mean", "std", "train_scale")}
        return {"model": {"backbone": name, "norm": "group"}, "transform": own, "weights": "", "weights_sha256": ""}
    if name not in NAMES:
        raise UserError(
            f"`weights` needs `backbone` {', '.join(NAMES)}, but `backbone` is {name}, which is trained from scratch; "
            "choose another backbone, or omit `weights`"
        )
    options: dict[str, Any] = {
        "model": {"backbone": name, "norm": "frozen" if weights else "group"},
        "transform": {"mean": MEAN, "std": STD, "train_scale": 1.0},
        "weights": "",
        "weights_sha256": "",
    }
    if weights:
        path = find_weights(name, weights, confirm=confirm)
        options |= {"weights": str(path), "weights_sha256": file_sha256(path)}
    return options


def never(question: str) -> bool:
    """Refuse every download: a `confirm` for runs without a user to ask."""
    return False


def load_weights(backbone: TorchvisionBackbone, source: str, *, confirm: Confirm) -> WeightsReport:
    """Load the pre-trained weights `source` (see `find_weights`) into `backbone`.

    Raises UserError if they cannot be found, or if no tensor fits.
    """
    path = find_weights(backbone.name, source, confirm=confirm)
    sha256 = file_sha256(path)
    given = _read_state_dict(path)
    own = backbone.network.state_dict()
    loaded = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
    # Tensors without a counterpart by design: the classifier, and batch statistics if the network has none.
    expected = {name for name in given if name in _UNUSED or (backbone.norm == "group" and _is_statistic(name))}
    report = WeightsReport(
        source=str(path),
        sha256=sha256,
        num_loaded=len(loaded),
        missing=tuple(name for name in own if name not in given),
        misfit=tuple(name for name in given if name in own and name not in loaded),
        unexpected=tuple(name for name in given if name not in own and name not in expected),
    )
    if not any(value.ndim > 1 for value in loaded.values()):
        raise UserError(
            f"{path} contains no weights for {backbone.name}: none of its {len(given)} tensors fits, such as "
            f"{_listed(tuple(given))}; expected names such as {_listed(tuple(own))}"
        )
    backbone.network.load_state_dict({**own, **loaded})
    return report


def find_weights(network: str, name: str, *, confirm: Confirm) -> Path:
    """Return the file of the weights `name`: a file with a state dict, or a torchvision name.

    Weights with a name, such as ``KINETICS400_V1``, are taken from torch's cache, or downloaded if `confirm` returns
    True for a question that contains the URL. Raises UserError if the weights cannot be found or downloaded.
    """
    if Path(name).is_file():
        return Path(name)
    from torchvision.models import get_model_weights

    known = get_model_weights(network)
    short = name.rpartition(".")[2]
    if short not in known.__members__:
        raise UserError(
            f"weights are {name!r}: no such file, and {network} has no weights of that name; expected a file or one of "
            f"{', '.join(known.__members__)}"
        )
    url = str(known[short].url)
    path: Path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    size = known[short].meta.get("_file_size", 0)
    if not confirm(f"Download {size:.0f} MB of weights from {url} to {path}?"):
        raise UserError(
            f"weights {name} are not at {path}, and the download was declined; confirm it, or pass a weights file"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = path.stem.rpartition("-")[2]  # the file name contains the first digits of the SHA-256
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=digest)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{url} cannot be downloaded ({error}); download it on another machine and pass the path of the file"
        ) from error
    return path


def _read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    try:
        held: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types on other files
        reason = str(error).split("\n")[0].split(". ")[0][:120]
        raise UserError(f"{path} cannot be read as weights ({reason}); expected a state dict saved by torch") from error
    for name in _NESTED:
        if isinstance(held, dict) and isinstance(held.get(name), dict):
            held = held[name]
    entries = held.items() if isinstance(held, dict) else ()
    tensors = {name: value for name, value in entries if isinstance(value, torch.Tensor)}
    if not tensors:
        raise UserError(f"{path} contains no named tensors, expected a state dict saved by torch")
    for prefix in _PREFIXES:
        if any(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return tensors


def _replace_batch_norms(module: nn.Module) -> None:
    """Replace every BatchNorm3d below `module` by a GroupNorm (Wu and He, ECCV 2018)."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm3d):
            setattr(module, name, nn.GroupNorm(_num_groups(child.num_features), child.num_features))
        else:
            _replace_batch_norms(child)


def _num_groups(channels: int) -> int:
    """Return the largest number of groups up to 16 that divides `channels`; R(2+1)D has stages of 45 and 230.

    >>> _num_groups(64), _num_groups(45), _num_groups(230)
    (16, 15, 10)
    """
    return max(groups for groups in range(1, _GROUPS + 1) if channels % groups == 0)


def _is_statistic(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
