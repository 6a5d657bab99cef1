"""What 29 numbers say of the motion in a clip: how sudden it is, where, and in which directions.

A linear classifier on them is better than our network where recordings are few (docs/EXPERIMENTS.md). They know nothing
of the scene: grey pixels, less the mean of the clip and over its deviation. Every clip counts alone, and
all is made of operations that ONNX has.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

ORDER = 4  # of the differences over time: what moves evenly vanishes, what jerks stays
CELL = 8  # pixels of a side, over which differences are averaged
FLOW_SCALE = 4  # optical flow is estimated on frames this many times smaller
FLOW_WINDOW, FLOW_CELL = 7, 2  # of these pixels
QUANTILES = (0.5, 0.75, 0.9, 0.97, 1.0)  # over the cells of the frame
MIN_FRAMES = ORDER + 2
COUNT = 3 * len(QUANTILES) + 2 * len(QUANTILES) + 4
RIDGE = 0.5  # C of scikit-learn
LIMIT = 4.0  # deviations: what is further out, on clips unlike those of training, counts as this
STILL = 1e-9  # above rounding of the root's floor: in a clip where nothing moves, no cell is above the mean of all
MIN_SCALE = 0.02  # of what hardly varies in training
# Standardised statistics (N, COUNT) and labels (N,) → weights (COUNT,) and a bias.
LinearFit = Callable[[npt.NDArray[np.float64], npt.NDArray[np.int64]], tuple[npt.NDArray[np.float64], float]]
_OCTANTS_MIRRORED = (3, 2, 1, 0, 7, 6, 5, 4)  # each octant of directions, with left and right exchanged


def motion_features(clips_BCTHW: torch.Tensor) -> torch.Tensor:
    """`clips_BCTHW`: float (B, C, T, H, W), up to a shift and a scale of all pixels. Returns (B, COUNT).

    In order: of the root of fourth differences, its mean over time, its deviation, and the share of the frames in which
    it is above the mean of the clip, quantiles of each over cells; of optical flow, less its median (the camera), how
    steady its direction is over time and over neighbours; of the directions in a frame, how many there are and how
    they change. Clips of fewer than MIN_FRAMES frames go on with their last one.
    """
    grey_BTHW = clips_BCTHW.float().mean(1)
    missing = MIN_FRAMES - grey_BTHW.shape[1]
    if missing > 0:
        grey_BTHW = torch.cat([grey_BTHW, grey_BTHW[:, -1:].expand(-1, missing, -1, -1)], 1)
    grey_BTHW = grey_BTHW - grey_BTHW.mean((1, 2, 3), keepdim=True)
    grey_BTHW = grey_BTHW / (_root(grey_BTHW.square().mean((1, 2, 3), keepdim=True)) + 1e-6)
    return torch.cat([_suddenness(grey_BTHW), *_directions(optical_flow(_pooled(grey_BTHW, FLOW_SCALE)))], 1)


def optical_flow(frames_BTHW: torch.Tensor, *, damping: float = 0.01) -> torch.Tensor:
    """Displacement in pixels from each frame to the next, (B, T - 1, 2, H, W): x to the right, y down.

    Least squares over a window (Lucas and Kanade, IJCAI 1981) in one step, right for about a pixel; `damping` pulls it
    to 0 where the window is flat.

    >>> ramp = torch.arange(20.0).expand(1, 1, 20, 20)
    >>> flow = optical_flow(torch.cat([ramp, ramp - 0.5], 1))
    >>> [abs(round(float(value), 2)) for value in flow[0, 0, :, 10, 10]]
    [0.5, 0.0]
    """
    padded = functional.pad(frames_BTHW, (1, 1, 1, 1), mode="replicate")
    x = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    y = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    x, y = (x[:, 1:] + x[:, :-1]) / 2, (y[:, 1:] + y[:, :-1]) / 2
    t = frames_BTHW[:, 1:] - frames_BTHW[:, :-1]
    products = torch.stack([x * x, y * y, x * y, x * t, y * t], 2)
    sums = functional.avg_pool2d(
        products.flatten(0, 2), FLOW_WINDOW, stride=1, padding=FLOW_WINDOW // 2, count_include_pad=False
    )
    xx, yy, xy, xt, yt = sums.view(products.shape).unbind(2)
    xx, yy = xx + damping, yy + damping
    determinant = xx * yy - xy * xy
    return torch.stack([(xy * yt - yy * xt) / determinant, (xy * xt - xx * yt) / determinant], 2)


def _suddenness(grey_BTHW: torch.Tensor) -> torch.Tensor:
    differences = grey_BTHW
    for _ in range(ORDER):
        differences = differences[:, 1:] - differences[:, :-1]
    cells_BTN = _pooled(_root(differences.abs()), CELL).flatten(2)
    mean_BN = cells_BTN.mean(1)
    deviation_BN = _root((cells_BTN - mean_BN[:, None]).square().mean(1))
    share_BN = (cells_BTN > cells_BTN.mean((1, 2), keepdim=True) + STILL).float().mean(1)
    return torch.cat([_quantiles(values) for values in (mean_BN, deviation_BN, share_BN)], 1)


def _directions(flow: torch.Tensor) -> list[torch.Tensor]:
    """`flow`: (B, T, 2, H, W)."""
    places = flow.flatten(3)
    middle = places.sort(3).values[..., (places.shape[3] - 1) // 2]
    flow = flow - middle[..., None, None]
    length_BTHW = _root(flow.square().sum(2))
    lengths_BTN = _pooled(length_BTHW, FLOW_CELL).flatten(2)
    cells = _pooled(flow.flatten(1, 2), FLOW_CELL).view(*flow.shape[:3], -1)  # (B, T, 2, N)
    mean_length_BN = lengths_BTN.mean(1)
    over_time_BN = _root(cells.mean(1).square().sum(1)) / (mean_length_BN + 1e-3)
    near_length_BTN = _root(cells.square().sum(2))
    over_neighbours = (near_length_BTN / (lengths_BTN + 1e-3)).flatten(1)
    steady_B = (over_time_BN * mean_length_BN).sum(1) / (mean_length_BN.sum(1) + 1e-6)
    alike_B = (over_neighbours * lengths_BTN.flatten(1)).sum(1) / (lengths_BTN.sum((1, 2)) + 1e-6)

    x, y = flow.detach().unbind(2)
    mirrored = (x < 0) != (y < 0)
    octant_BTHW = 4 * (y < 0).int() + 2 * mirrored.int() + ((x.abs() < y.abs()) != mirrored).int()
    weights_BTK = torch.stack([(length_BTHW * (octant_BTHW == k)).sum((2, 3)) for k in range(8)], 2)
    shares_BTK = weights_BTK / (weights_BTK.sum(2, keepdim=True) + 1e-6)
    entropy_BT = _entropy(shares_BTK)
    share_BK = shares_BTK.mean(1)
    both_ways_BK = (share_BK + share_BK[:, list(_OCTANTS_MIRRORED)]) / 2
    changes_B = (shares_BTK[:, 1:] - shares_BTK[:, :-1]).abs().sum(2).mean(1)
    deviation_B = _root((entropy_BT - entropy_BT.mean(1, keepdim=True)).square().mean(1))
    columns = [entropy_BT.mean(1), deviation_B, _entropy(both_ways_BK), changes_B]
    return [
        _quantiles(over_time_BN)[:, :-1],
        steady_B[:, None],
        _quantiles(over_neighbours)[:, :-1],
        alike_B[:, None],
        torch.stack(columns, 1),
    ]


def _pooled(frames_BTHW: torch.Tensor, side: int) -> torch.Tensor:
    return functional.avg_pool2d(frames_BTHW, [min(side, length) for length in frames_BTHW.shape[2:]])


def _root(values: torch.Tensor) -> torch.Tensor:
    """The square root, with a slope at 0: saliency asks for one."""
    return (values + 1e-8).sqrt()


def _entropy(shares: torch.Tensor) -> torch.Tensor:
    return -(shares * (shares + 1e-6).log()).sum(-1)


def _quantiles(values_BN: torch.Tensor) -> torch.Tensor:
    """(B, N) → (B, len(QUANTILES)), by linear interpolation; torch.quantile has no ONNX."""
    ordered_BN = values_BN.sort(1).values
    last = values_BN.shape[1] - 1
    columns = []
    for quantile in QUANTILES:
        place = quantile * last
        below, above = int(place), min(int(place) + 1, last)
        columns.append(torch.lerp(ordered_BN[:, below], ordered_BN[:, above], place - below))
    return torch.stack(columns, 1)


class MotionClassifier(nn.Module):
    """Log-odds of crime from the motion features alone: a linear classifier, fitted to the training clips at once.

    Its numbers are buffers, which no step of the optimizer changes. Until `fit` was called it is undecided.
    """

    center: torch.Tensor
    scale: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("center", "weight"):
            self.register_buffer(name, torch.zeros(COUNT))
        self.register_buffer("scale", torch.ones(COUNT))
        self.register_buffer("bias", torch.zeros(()))

    def forward(self, clips_BCTHW: torch.Tensor) -> torch.Tensor:
        """Float (B, C, T, H, W) → log-odds (B,)."""
        standard_BF = (motion_features(clips_BCTHW) - self.center) / self.scale
        # Not as a matrix product, which autocast would round to bf16: the classifier stays float32 in any precision.
        return (standard_BF.clamp(-LIMIT, LIMIT) * self.weight).sum(1) + self.bias

    def fit(
        self, features_NF: npt.NDArray[np.float32], labels_N: npt.NDArray[np.int64], linear_fit: LinearFit | None = None
    ) -> None:
        """Standardise the statistics and take the weights that `linear_fit` (logistic regression) finds on them.

        Both classes must be there.
        """
        center, deviation = features_NF.mean(0, dtype=np.float64), features_NF.std(0, dtype=np.float64)
        scale = np.maximum(deviation, MIN_SCALE)
        standard_NF = np.clip((features_NF - center) / scale, -LIMIT, LIMIT)
        weight, bias = (linear_fit or fit_linear_classifier)(standard_NF, labels_N)
        for name, value in {"center": center, "scale": scale, "weight": weight, "bias": bias}.items():
            getattr(self, name).copy_(torch.as_tensor(value))


def fit_linear_classifier(
    standard_NF: npt.NDArray[np.float64], labels_N: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], float]:
    """Logistic regression with a ridge, both classes counting the same in sum."""
    from sklearn.linear_model import LogisticRegression

    found = LogisticRegression(C=RIDGE, class_weight="balanced", max_iter=1000).fit(standard_NF, labels_N)
    return found.coef_[0], float(found.intercept_[0])
