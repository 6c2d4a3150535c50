"""The task `rotation`: how was the crop turned?"""

from __future__ import annotations

from itertools import permutations, product
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from medssl.config import BaseOptions
from medssl.contracts import Crops, Draw, NetworkInfo, PooledHead, PretextBatch, PretextTask
from medssl.errors import NetworkError
from medssl.learn.ops import accuracy, cut

ISOTROPIC = 1.1
"""How much longer than wide a voxel may be: slices thicker than that would tell how they were turned."""


class Rotation(PretextTask):
    """Which rotation by right angles was it? 4 in 2D, 10 or 24 in 3D (Gidaris, Singh and Komodakis, ICLR 2018; Taleb et al., NeurIPS 2020).

    A cube is cut anywhere in the crop, so no padding tells how it was turned. Crops with too little body (air and table tell it)
    and with voxels that are no cubes carry no answer; their share is a metric. Rotations about one axis or none are 10, as in
    Taleb et al.; all orientations of a cube are 24.
    """

    name: ClassVar[str] = "rotation"
    answer: ClassVar[Literal["values", "logits"]] = "logits"
    citation: ClassVar[str] = (
        "Gidaris, Singh and Komodakis, Unsupervised representation learning by predicting image rotations, ICLR 2018; "
        "Taleb et al., 3D self-supervised methods for medical imaging, NeurIPS 2020"
    )

    class Options(BaseOptions):
        """Which rotations, and which crops count."""

        rotations: Literal[10, 24] = 10
        """Of a 3D crop: 10 (a quarter, half or three quarters about one axis, or none) or all 24. In 2D there are 4."""
        inside: float = Field(default=0.5, ge=0, le=1)
        """Least share of the crop that is body; crops with less are not asked about."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        self.register_buffer("matrices", rotations(network.spatial_dims, self.options.rotations), persistent=False)

    matrices: Tensor
    """(classes, D, D) int64 of -1, 0, 1; the first is the identity."""

    def head(self) -> PooledHead:
        """One class a rotation."""
        return PooledHead(len(self.matrices))

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        """A cube of the crop, turned; the target is the number of the rotation."""
        stride = max(self.network.strides)
        side = min(crops.size) // stride * stride
        if side < 2 * stride:
            raise NetworkError(
                f"rotation: a crop of {crops.size} leaves cubes of {side}. Take a crop of at least {2 * stride} along each axis."
            )
        target = draw.integers(0, len(self.matrices))
        free = torch.tensor(crops.size, device=target.device) - side + 1
        corner = (draw.uniform(crops.spatial_dims) * free).long()
        cubes = cut(crops.images, corner, (side,) * crops.spatial_dims)
        spacing = crops.spacing
        cubic = spacing.amax(dim=1) <= ISOTROPIC * spacing.amin(dim=1)
        answerable = cubic & (crops.inside >= self.options.inside)
        return PretextBatch(turned(cubes, self.matrices.to(target.device)[target]), target, answerable=answerable)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """(B,) cross entropy."""
        return F.cross_entropy(prediction, batch.target, reduction="none")

    def trivial(self, batch: PretextBatch) -> Tensor:
        """Every rotation equally likely."""
        return torch.zeros(len(batch.target), len(self.matrices), device=batch.target.device)

    def measure(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """Share of right answers; ties count by chance."""
        return {"accuracy": accuracy(prediction, batch.target)}

    def picture(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """The turned cube."""
        assert batch.inputs is not None
        return {"turned": batch.inputs}


def rotations(dims: int, count: int) -> Tensor:
    """(classes, D, D) rotations by right angles: 4 in 2D; in 3D all 24, or the `count` = 10 about one axis."""
    found = []
    for order in permutations(range(dims)):
        for signs in product((1, -1), repeat=dims):
            matrix = torch.zeros(dims, dims, dtype=torch.int64, device="cpu")
            for row, (axis, sign) in enumerate(zip(order, signs, strict=True)):
                matrix[row, axis] = sign
            about_one_axis = any(matrix[axis, axis] == 1 for axis in range(dims))
            if round(float(torch.linalg.det(matrix.double()))) == 1 and (dims == 2 or count == 24 or about_one_axis):
                found.append(matrix)
    return torch.stack(found)


def turned(cubes: Tensor, matrices: Tensor) -> Tensor:
    """(B, C, *cube): voxel v of the result, from the middle, is voxel `matrix @ v` of the cube."""
    if cubes.device.type == "cpu":
        return torch.stack([_turned_one(cube, matrix) for cube, matrix in zip(cubes, matrices.tolist(), strict=True)])
    # On a device reading the matrices would wait for it: gather instead.
    side, dims = cubes.shape[-1], cubes.dim() - 2
    steps = torch.arange(side, device=cubes.device) * 2 - (side - 1)
    voxels = torch.stack(torch.meshgrid(*[steps] * dims, indexing="ij")).flatten(1)
    source = (matrices.unsqueeze(3) * voxels).sum(dim=2)
    place = torch.zeros_like(source[:, 0])
    for axis in range(dims):
        place = place * side + (source[:, axis] + side - 1) // 2
    flat = cubes.flatten(2)
    return flat.gather(2, place.unsqueeze(1).expand_as(flat)).view(cubes.shape)


def _turned_one(cube: Tensor, matrix: list[list[int]]) -> Tensor:
    """One sample (C, *cube): its axes put in another order, then flipped."""
    dims = len(matrix)
    along = [next(axis for axis in range(dims) if matrix[source][axis]) for source in range(dims)]
    ordered = cube.permute(0, *(along.index(axis) + 1 for axis in range(dims)))
    flips = [along[source] + 1 for source in range(dims) if matrix[source][along[source]] < 0]
    return ordered.flip(flips) if flips else ordered
