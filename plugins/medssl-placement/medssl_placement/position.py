"""The task `position`: where in its volume does each voxel, or the crop, lie?"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from medssl.config import BaseOptions
from medssl.contracts import Crops, DenseHead, Draw, PooledHead, PretextBatch, PretextTask
from medssl.learn.ops import masked_mean


class Position(PretextTask):
    """Each voxel's, or the crop's, place in its volume, from the middle of the volume and in mm (in the manner of Lei et al., 2021).

    A cheap second task: it shows nothing of its own and rides on what another shows, such as inpainting. A flipped view looks like
    anatomy on the other side, so it asks about the crop itself alone. Crops that are as large as their volume, or volumes cut
    anywhere, hold no answer but the crop's border; take volumes of a similar field of view.
    """

    name: ClassVar[str] = "position"
    answer: ClassVar[Literal["values", "logits"]] = "values"
    citation: ClassVar[str] = (
        "Lei et al., Contrastive learning of relative position regression for one-shot object localization in 3D medical images, "
        "MICCAI 2021"
    )
    suite: ClassVar[dict[str, Any]] = {"random": False}

    class Options(BaseOptions):
        """Whose place, and in which unit."""

        of: Literal["voxel", "crop"] = "voxel"
        """voxel: the place of every voxel; crop: that of the crop's middle, from its pooled embedding."""
        unit: Literal["mm", "share"] = "mm"
        """mm: in units of `scale` mm; share: of half of the volume's side, from -1 to 1, for volumes that show the same anatomy."""
        scale: float = Field(default=50.0, gt=0, le=10_000)
        """mm that count as 1 in the answer."""

    options: Options

    def head(self) -> DenseHead | PooledHead:
        """x, y and z of every voxel or of the crop."""
        return DenseHead(3) if self.options.of == "voxel" else PooledHead(3)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        """A target alone."""
        device, size = crops.images.device, crops.size
        if self.options.of == "voxel":
            steps = torch.meshgrid(*[torch.arange(side, device=device) for side in size], indexing="ij")
            voxels = torch.stack([*steps, torch.ones_like(steps[0])]).flatten(1).float()
        else:
            voxels = torch.tensor([*((side - 1) / 2 for side in size), 1.0], device=device).unsqueeze(1)
        # Voxel centres count from 0, the volume's border lies half a voxel before.
        middle = (crops.extent - self._thickness(crops)) / 2
        unit = (crops.extent / 2).clamp_min(1e-3) if self.options.unit == "share" else crops.extent.new_tensor(self.options.scale)
        place = (crops.affine @ voxels - middle.unsqueeze(2)) / (unit.unsqueeze(-1) if unit.dim() else unit)
        return PretextBatch(None, place.view(len(crops), 3, *size) if self.options.of == "voxel" else place.squeeze(2))

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """(B,) mean squared error."""
        return masked_mean((prediction - batch.target).square())

    def trivial(self, batch: PretextBatch) -> Tensor:
        """The middle of the volume, always."""
        return torch.zeros_like(batch.target)

    def measure(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """Mean distance from the right place, in mm or in half sides."""
        distance = (prediction - batch.target).square().sum(dim=1, keepdim=True).sqrt()
        return {"distance": masked_mean(distance) * (self.options.scale if self.options.unit == "mm" else 1.0)}

    def picture(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """Of every voxel, x, y and z as colours."""
        return {"target": batch.target, "prediction": prediction} if self.options.of == "voxel" else {}

    def _thickness(self, crops: Crops) -> Tensor:
        """(B, 3) mm of a voxel along the volume's axes; of a slice's own axis nothing is known."""
        return crops.affine[..., :-1].abs().amax(dim=2)
