"""torchvision's 3D ResNets behind the interface of our own network, and weights for them.

Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition", CVPR 2018. `s3d` is not among them:
it refuses frames of 112×112.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stage1.data.transforms import TransformConfig
from stage1.model.config import TORCHVISION_BACKBONES
from vidshard.util.errors import UserError

NAMES = TORCHVISION_BACKBONES
# What the networks' own weights were trained with: RGB in [0, 1].
MEAN, STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
_GROUPS = 16
_UNUSED = ("fc.weight", "fc.bias")  # the classifier of 400 actions
_NESTED = ("model_state_dict", "state_dict", "model")  # where other programs keep the weights in their files
_PREFIXES = ("module.", "backbone.network.", "network.", "backbone.")

Confirm = Callable[[str], bool]


class TorchvisionBackbone(nn.Module):
    """Clips → features of every time step: float (B, 3, T, H, W), normalised by MEAN and STD → (B, T', 512).

    `r3d_18` and `r2plus1d_18` shrink time by 8 (16 frames → 2 steps); `mc3_18` keeps it.
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
        layers = self.network
        maps_BDTHW = layers.layer4(layers.layer3(layers.layer2(layers.layer1(layers.stem(clips_BCTHW)))))  # type: ignore[operator]
        features_BTD: torch.Tensor = maps_BDTHW.mean((3, 4)).transpose(1, 2)
        return features_BTD

    def train(self, mode: bool = True) -> TorchvisionBackbone:
        super().train(mode)
        if self.norm == "frozen":
            for module in self.modules():
                if isinstance(module, nn.BatchNorm3d):
                    module.eval()
        return self

    def attention_frame_ranges(self, num_frames: int) -> list[tuple[int, int]]:
        """The frames in the middle of what each step saw: its receptive field is wider.

        Three layers take every second time step, beginning with the first: step i of 8·i − 4 to 8·i + 3.
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
    """What became of a file of weights."""

    source: str  # path of the file
    sha256: str
    num_loaded: int  # tensors
    missing: tuple[str, ...]  # tensors of the network that the file lacks: left as they were drawn
    misfit: tuple[str, ...]  # of another shape: left out
    unexpected: tuple[str, ...]  # tensors of the file that the network does not have

    @property
    def text(self) -> str:
        """For the user; one line, and one for each kind of what did not fit."""
        lines = [f"{self.num_loaded} tensors of weights from {self.source} (SHA-256 {self.sha256})"]
        for kind, names in (("missing in the file", self.missing), ("of another shape", self.misfit)):
            if names:
                lines.append(f"  {kind}, left as drawn: {_listed(names)}")
        if self.unexpected:
            lines.append(f"  not of this network, left out: {_listed(self.unexpected)}")
        return "\n".join(lines)


def training_options(name: str, weights: str | None, *, confirm: Confirm) -> dict[str, Any]:
    """What `--backbone` and `--weights` of `stage1 train` stand for, as nested options of a TrainConfig.

    The network's own normalisation, its full resolution, and the SHA-256 of the weights, found as by `load_weights`;
    they replace what a file of options says of another network.
    """
    if name == "stage1" and not weights:
        own = {field: getattr(TransformConfig, field) for field in ("mean", "std", "train_scale")}
        return {"model": {"backbone": name, "norm": "group"}, "transform": own, "weights": "", "weights_sha256": ""}
    if name not in NAMES:
        raise UserError(f"--weights go with --backbone {', '.join(NAMES)}; our own network starts from scratch")
    options: dict[str, Any] = {
        "model": {"backbone": name, "norm": "frozen" if weights else "group"},
        "transform": {"mean": MEAN, "std": STD, "train_scale": 1.0},
        "weights": "",
        "weights_sha256": "",
    }
    if weights:
        path = find_weights(name, weights, confirm=confirm)
        options |= {"weights": str(path), "weights_sha256": _sha256(path)}
    return options


def never(question: str) -> bool:
    """For `confirm`: nobody is there to be asked."""
    return False


def load_weights(backbone: TorchvisionBackbone, source: str, *, confirm: Confirm) -> WeightsReport:
    """Load pre-trained weights into `backbone`, as found by `find_weights`.

    Raises UserError when there are none, or none of them fit.
    """
    path = find_weights(backbone.name, source, confirm=confirm)
    sha256 = _sha256(path)
    given = _read_state_dict(path)
    own = backbone.network.state_dict()
    loaded = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
    # A network without batch statistics has no place for them; that is no news.
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
            f"{path} holds no weights of {backbone.name}: none of its {len(given)} tensors fits, such as "
            f"{_listed(tuple(given))}; expected names such as {_listed(tuple(own))}"
        )
    backbone.network.load_state_dict({**own, **loaded})
    return report


def find_weights(network: str, name: str, *, confirm: Confirm) -> Path:
    """The file of weights `name`: a file (a state dict, or a checkpoint that holds one), or torchvision's name.

    Such a name, ``KINETICS400_V1``, is looked up in torch's cache, else downloaded when `confirm` says yes to a
    question that names the address. Raises UserError when there is neither.
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
            f"weights {name} are not at {path}, and were not to be downloaded; say yes, or name a file that you have"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = path.stem.rpartition("-")[2]  # the first digits of the SHA-256 stand in the name
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=digest)
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot download {url}: {error}; download it elsewhere and name the file") from error
    return path


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    try:
        held: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds on files that are not its own
        reason = str(error).split("\n")[0].split(". ")[0][:120]
        raise UserError(f"{path} cannot be read as weights ({reason}); expected a state dict saved by torch") from error
    for name in _NESTED:
        if isinstance(held, dict) and isinstance(held.get(name), dict):
            held = held[name]
    tensors = (
        {name: value for name, value in held.items() if isinstance(value, torch.Tensor)}
        if isinstance(held, dict)
        else {}
    )
    if not tensors:
        raise UserError(f"{path} holds no tensors by name, expected a state dict saved by torch")
    for prefix in _PREFIXES:
        if any(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return tensors


def _replace_batch_norms(module: nn.Module) -> None:
    """GroupNorm (Wu and He, ECCV 2018) of the same scale and shift in place of every BatchNorm3d below `module`."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm3d):
            setattr(module, name, nn.GroupNorm(_num_groups(child.num_features), child.num_features))
        else:
            _replace_batch_norms(child)


def _num_groups(channels: int) -> int:
    """The most groups up to 16 that divide `channels`; R(2+1)D has stages of 45 and 230.

    >>> _num_groups(64), _num_groups(45), _num_groups(230)
    (16, 15, 10)
    """
    return max(groups for groups in range(1, _GROUPS + 1) if channels % groups == 0)


def _is_statistic(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
