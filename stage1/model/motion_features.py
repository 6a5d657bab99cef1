"""29 hand-crafted motion features per clip, and a linear classifier on them.

The features describe how sudden the motion is, where it occurs and in which directions. With few recordings, a linear
classifier on them is better than our network (docs/EXPERIMENTS.md). They are independent of the brightness and contrast
of the scene, because grey pixels are standardised over the clip. Each clip is processed independently, and all
operations can be exported to ONNX.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

ORDER = 4  # of the differences over time: uniform motion cancels out, sudden motion remains
CELL = 8  # side in pixels of the cells over which differences are averaged
FLOW_SCALE = 4  # downscaling of the frames for optical flow
FLOW_WINDOW, FLOW_CELL = 7, 2  # sides in pixels of the downscaled frames
QUANTILES = (0.5, 0.75, 0.9, 0.97, 1.0)  # over the cells of a frame
MIN_FRAMES = ORDER + 2
COUNT = 3 * len(QUANTILES) + 2 * len(QUANTILES) + 4
RIDGE = 0.5  # C of scikit-learn's LogisticRegression
LIMIT = 4.0  # standard deviations at which features are clipped, for clips unlike those of training
STILL = 1e-9  # above the rounding error of the root's floor, so that no cell of a still clip exceeds the mean
MIN_SCALE = 0.02  # smallest scale of a feature, for features that hardly vary in training
# Fit of a linear classifier: standardised features (N, COUNT) and labels (N,) → weights (COUNT,) and a bias.
LinearFit = Callable[[npt.NDArray[np.float64], npt.NDArray[np.int64]], tuple[npt.NDArray[np.float64], float]]
_OCTANTS_MIRRORED = (3, 2, 1, 0, 7, 6, 5, 4)  # the octant of each direction after a left-right flip


def motion_features(clips_BCTHW: torch.Tensor) -> torch.Tensor:
    """Compute the features (B, COUNT) of clips, float (B, C, T, H, W), on any affine scale of pixel values.

    The features are, in order:

    - of the square root of absolute fourth differences over time, averaged over cells: its mean over time, its
      deviation, and the share of frames in which it exceeds the mean of the clip, each as QUANTILES over the cells;
    - of optical flow, minus its median (the motion of the camera): how constant its direction is over time, and how
      similar it is within a cell;
    - of the distribution of flow directions: entropy, its deviation, left-right symmetric entropy, and change over
      time.

    A clip of fewer than MIN_FRAMES frames is extended by repeating its last frame.
    """
    grey_BTHW = clips_BCTHW.float().mean(1)
    missing = MIN_FRAMES - grey_BTHW.shape[1]
    if missing > 0:
        grey_BTHW = torch.cat([grey_BTHW, grey_BTHW[:, -1:].expand(-1, missing, -1, -1)], 1)
    grey_BTHW = grey_BTHW - grey_BTHW.mean((1, 2, 3), keepdim=True)
    grey_BTHW = grey_BTHW / (_root(grey_BTHW.square().mean((1, 2, 3), keepdim=True)) + 1e-6)
    return torch.cat([_suddenness(grey_BTHW), *_directions(optical_flow(_pooled(grey_BTHW, FLOW_SCALE)))], 1)


def optical_flow(frames_BTHW: torch.Tensor, *, damping: float = 0.01) -> torch.Tensor:
    """Estimate the displacement in pixels from each frame to the next, (B, T - 1, 2, H, W): x to the right, y down.

    The method is one step of least squares over a window (Lucas and Kanade, IJCAI 1981), accurate for displacements up
    to about a pixel. `damping` pulls the flow to 0 where the window is flat.

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
    """Return the features of fourth differences: quantiles over cells of mean, deviation and share above the mean."""
    differences = grey_BTHW
    for _ in range(ORDER):
        differences = differences[:, 1:] - differences[:, :-1]
    cells_BTN = _pooled(_root(differences.abs()), CELL).flatten(2)
    mean_BN = cells_BTN.mean(1)
    deviation_BN = _root((cells_BTN - mean_BN[:, None]).square().mean(1))
    share_BN = (cells_BTN > cells_BTN.mean((1, 2), keepdim=True) + STILL).float().mean(1)
    return torch.cat([_quantiles(values) for values in (mean_BN, deviation_BN, share_BN)], 1)


def _directions(flow: torch.Tensor) -> list[torch.Tensor]:
    """Return the features of optical flow (B, T, 2, H, W): its steadiness, and the distribution of its directions."""
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
    """Return the square root, with a finite slope at 0, which saliency maps need."""
    return (values + 1e-8).sqrt()


def _entropy(shares: torch.Tensor) -> torch.Tensor:
    return -(shares * (shares + 1e-6).log()).sum(-1)


def _quantiles(values_BN: torch.Tensor) -> torch.Tensor:
    """Return QUANTILES of (B, N) by linear interpolation, (B, len(QUANTILES)); ONNX has no torch.quantile."""
    ordered_BN = values_BN.sort(1).values
    last = values_BN.shape[1] - 1
    columns = []
    for quantile in QUANTILES:
        place = quantile * last
        below, above = int(place), min(int(place) + 1, last)
        columns.append(torch.lerp(ordered_BN[:, below], ordered_BN[:, above], place - below))
    return torch.stack(columns, 1)


class MotionClassifier(nn.Module):
    """Linear classifier on the motion features, fitted to the training clips before training.

    Its parameters are buffers, which the optimizer does not change. Before `fit` its log-odds are 0.
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
        """Return the log-odds of crime (B,) of clips, float (B, C, T, H, W)."""
        return self.log_odds(motion_features(clips_BCTHW))

    @property
    def is_fitted(self) -> bool:
        return bool(self.weight.any())

    def log_odds(self, features_BF: torch.Tensor) -> torch.Tensor:
        """Return the log-odds of crime (B,) of clips with these motion features (B, COUNT)."""
        standard_BF = (features_BF - self.center) / self.scale
        # A matrix product would be rounded to bf16 by autocast; this sum stays float32 in any precision.
        return (standard_BF.clamp(-LIMIT, LIMIT) * self.weight).sum(1) + self.bias

    def fit(
        self, features_NF: npt.NDArray[np.float32], labels_N: npt.NDArray[np.int64], linear_fit: LinearFit | None = None
    ) -> None:
        """Standardise the features (N, COUNT), and fit weights to them by `linear_fit` (default: logistic regression).

        `labels_N` are 0 and 1, and both must be present.
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
    """Fit a ridge-regularised logistic regression in which both classes have the same total weight."""
    from sklearn.linear_model import LogisticRegression

    found = LogisticRegression(C=RIDGE, class_weight="balanced", max_iter=1000).fit(standard_NF, labels_N)
    return found.coef_[0], float(found.intercept_[0])
