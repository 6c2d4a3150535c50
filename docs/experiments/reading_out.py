"""What a frozen network holds: a linear head on its feature maps, the rank of its embeddings, and whether it finds things again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medssl.augment import ViewOptions
from medssl.contracts import Crops
from medssl.learn.ops import pool, read_at
from medssl.learn.views import make_views
from medssl.networks import NetworkSpec, Trunk
from medssl.plugins import Plugins

SHIFTS = torch.linspace(-2, 6, 17)
"""What is tried as an offset of the background."""
MOST = 8000
"""Voxels that the linear head is trained on, at most."""
Case = tuple[Tensor, Tensor]
"""The features (voxels, F) and classes (voxels,) of an image."""


class Frozen:
    """A network whose maps are read."""

    def __init__(self, network: nn.Module, spec: NetworkSpec, crop: Sequence[int], plugins: Plugins) -> None:
        self.network, self.crop = network.eval(), tuple(crop)
        self.trunk = Trunk(network, spec, plugins)
        self.maps = [name for name in self.trunk.features if name == "feature_map" or name.startswith("level")]

    @torch.no_grad()
    def features(self, image: Tensor) -> Tensor:
        """(voxels, F): at each voxel the maps of every level and the one before the head, beside the image itself and blurred."""
        sides = [max(side, own) for side, own in zip(image.shape[1:], self.crop, strict=True)]
        padding = [room for side, own in zip(reversed(sides), reversed(image.shape[1:]), strict=True) for room in (0, side - own)]
        padded = F.pad(image[None], padding, mode="replicate")
        found: Tensor | None = None
        for box in _windows(sides, self.crop):
            maps = self._maps(padded[(slice(None), slice(None), *box)])
            if found is None:
                found = maps.new_zeros(maps.shape[1], *sides)
            found[(slice(None), *box)] = maps[0]
        assert found is not None
        kept = found[(slice(None), *[slice(side) for side in image.shape[1:]])]
        return kept.flatten(1).mT

    @torch.no_grad()
    def embeddings(self, batches: Sequence[Crops], inputs: Any) -> Tensor:
        """(crops, E) of the crops as they are; `inputs(crops)` is what the network is shown of them."""
        return torch.cat([pool(self.trunk(inputs(crops), {"encoder_end"})["encoder_end"]) for crops in batches])

    def _maps(self, window: Tensor) -> Tensor:
        read = self.trunk(window, self.maps)
        mode = "bilinear" if window.dim() == 4 else "trilinear"
        resized = [F.interpolate(read[name], size=window.shape[2:], mode=mode, align_corners=False) for name in self.maps]
        blurred = (F.avg_pool2d if window.dim() == 4 else F.avg_pool3d)(window, 3, 1, 1)
        return torch.cat([*resized, window, blurred], dim=1)


def _windows(size: Sequence[int], crop: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """As few boxes of `crop` as cover `size`, evenly spread."""
    starts = []
    for side, own in zip(size, crop, strict=True):
        count = -(-side // own)
        starts.append(np.linspace(0, side - own, count).round().astype(int).tolist())
    for corner in product(*starts):
        yield tuple(slice(first, first + own) for first, own in zip(corner, crop, strict=True))


def linear_head(labelled: Sequence[Case], tests: Sequence[Case], seed: int) -> float:
    """Mean Dice, over test cases and classes, of logistic regression on the features.

    Trained on voxels of which three in four are background, at most `MOST`. The offset of the background is then chosen on the labelled
    cases, whole.
    """
    x = torch.cat([features for features, _ in labelled])
    y = torch.cat([classes for _, classes in labelled])
    mean, spread = x.mean(dim=0), x.std(dim=0) + 1e-6
    x = (x - mean) / spread
    some, none = (y > 0).nonzero()[:, 0], (y == 0).nonzero()[:, 0]
    draw = torch.Generator().manual_seed(seed)
    some, none = (places[torch.randperm(len(places), generator=draw)] for places in (some, none))
    count = min(len(some), MOST // 4)
    kept = torch.cat([some[:count], none[: 3 * count]])
    head = _logistic(x[kept], y[kept])
    with torch.no_grad():
        scores = head(x)
        tried = [_dice(_shifted(scores, shift).argmax(dim=1), y) for shift in SHIFTS]
        shift = SHIFTS[int(np.argmax(tried))]
        found = [_dice(_shifted(head((features - mean) / spread), shift).argmax(dim=1), classes) for features, classes in tests]
    return float(np.mean(found))


def _logistic(x: Tensor, y: Tensor, decay: float = 1e-4) -> nn.Linear:
    """Multinomial logistic regression, a little held back."""
    head = nn.Linear(x.shape[1], int(y.max()) + 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=40, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(x), y) + decay * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return head


def _shifted(scores: Tensor, shift: Tensor) -> Tensor:
    return torch.cat([scores[:, :1] + shift, scores[:, 1:]], dim=1)


def _dice(found: Tensor, wanted: Tensor) -> float:
    """Mean over the classes that are no background; of a class that is nowhere, 1."""
    shares = []
    for label in range(1, int(wanted.max()) + 1):
        one, other = found == label, wanted == label
        both = int(one.sum() + other.sum())
        shares.append(2 * int((one & other).sum()) / both if both else 1.0)
    return float(np.mean(shares))


def effective_rank(embeddings: Tensor) -> float:
    """exp of the entropy of the shares of the singular values of centred embeddings (Roy and Vetterli, EUSIPCO 2007)."""
    values = torch.linalg.svdvals((embeddings - embeddings.mean(dim=0)).double())
    shares = values / values.sum().clamp_min(1e-12)
    return float(torch.exp(-(shares * shares.clamp_min(1e-12).log()).sum()))


@torch.no_grad()
def crops_found_again(frozen: Frozen, crops: Crops, views: ViewOptions, seed: int, step: int) -> float:
    """Share of the crops whose second view is nearer to their first than those of all others, by the cosine of centred embeddings."""
    first, second = (view.crops.images for view in list(make_views(crops, views, seed, step, compared=True))[:2])
    one, other = (frozen.embeddings([crops.with_images(images)], lambda shown: shown.images) for images in (first, second))
    middle = torch.cat([one, other]).mean(dim=0)
    likeness = F.normalize(other - middle, dim=1) @ F.normalize(one - middle, dim=1).mT
    return float((likeness.argmax(dim=1) == torch.arange(len(one))).float().mean())


@torch.no_grad()
def voxels_found_again(frozen: Frozen, crops: Crops, views: ViewOptions, seed: int, step: int, points: int = 64) -> float:
    """Share of the points of a crop whose place in the first view is found among all of them, from their features in the second."""
    first, second = list(make_views(crops, views, seed, step, compared=True))[:2]
    right, counted = 0.0, 0
    draw = torch.Generator().manual_seed(seed * 1000 + step)
    places = torch.rand(len(crops), points, crops.spatial_dims, generator=draw) * torch.tensor(crops.size)
    features = []
    inside = torch.ones(places.shape[:2], dtype=torch.bool)
    for view in (first, second):
        matrix, shift = view.affine[..., :-1], view.affine[..., -1]
        # From a voxel of the crop to that of the view.
        at = torch.linalg.solve(matrix, (places - shift[:, None]).mT).mT
        inside &= ((at >= 0) & (at <= torch.tensor(crops.size) - 1)).all(dim=2)
        features.append(read_at(frozen.trunk(view.crops.images, {"feature_map"})["feature_map"], at, crops.size))
    for one, other, seen in zip(*features, inside, strict=True):
        middle = one[seen].mean(dim=0)
        likeness = F.normalize(other[seen] - middle, dim=1) @ F.normalize(one[seen] - middle, dim=1).mT
        right += float((likeness.argmax(dim=1) == torch.arange(int(seen.sum()))).float().sum())
        counted += int(seen.sum())
    return right / max(counted, 1)
