"""Segmentation as a term: the network's own head answers, labels are the target, and other terms may train beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor
from torch.nn import functional as F

from medssl.augment import Look, invert, resample, view_of
from medssl.config import BaseOptions
from medssl.contracts import Compares, Crops, Draw, NetworkHead, PretextBatch, PretextTask
from medssl.errors import DataError
from medssl.learn.ops import gather, masked_mean

if TYPE_CHECKING:
    from typing import Self

AS_IT_IS = Look(flip=0, rotate=0, scale=1, shift=0, contrast=0, gamma=1, noise=0, blur=0)
"""A look that changes nothing."""
SMOOTH = 1e-5
"""Added to both sides of soft Dice, as in MONAI: a class that is nowhere costs nothing."""


class AugmentOptions(BaseOptions):
    """The `augment:` key: light changes of the training crops, on prepared intensities."""

    flip: tuple[int, ...] = ()
    """Axes (0: left-right, 1: back-front, 2: down-up) along which crops may be flipped. None by default: a flip along axis 0
    would swap left and right organs while their labels stay."""
    scale: float = Field(0.2, ge=0, lt=1)
    """Contrast is multiplied by 1 - scale .. 1 + scale."""
    shift: float = Field(0.2, ge=0)
    """Brightness is shifted by up to this, in units of prepared intensity."""
    noise: float = Field(0.1, ge=0)
    """Largest standard deviation of added noise, in units of prepared intensity."""
    look: Look = AS_IT_IS
    """Further changes, by the keys of `views:`, each off unless it is named, such as `{rotate: 15, scale: 1.2, elastic: 6, chance: 0.2}`.
    Labels go where the voxels go, by nearest voxel on the same grid; what was outside the crop has no label. What moves voxels is refused
    beside `tasks:` and `consistency:`, where `views:` do it."""

    @field_validator("look", mode="before")
    @classmethod
    def _over_none(cls, look: Any) -> Any:
        return {**AS_IT_IS.model_dump(), **look} if isinstance(look, Mapping) else look

    @model_validator(mode="after")
    def _labels_can_follow(self) -> Self:
        if self.look.transforms and not self.look.is_affine:
            raise ValueError("look.transforms move voxels in a way no affine describes, and labels cannot follow: take look.elastic")
        return self

    @property
    def moves(self) -> bool:
        """Whether `look` moves voxels."""
        look = self.look
        still = {"flip": 0, "rotate": 0, "scale": 1, "stretch": 1, "shear": 0, "shift": 0, "elastic": 0, "transforms": ()}
        return any(getattr(look, name) != value for name, value in still.items())


class Segmentation(PretextTask):
    """Soft Dice over the foreground classes plus cross-entropy of lightly changed labelled crops, by the network's own head.

    Dice is taken over all labelled crops of a batch, on every rank, so that a crop without a class does not ask for its absence
    alone. Crops and voxels without a label (-1) count for nothing. Soft Dice: Milletari et al., "V-Net", 3DV 2016; the sum of both
    as in nnU-Net (Isensee et al., Nature Methods 2021).
    """

    name: ClassVar[str] = "segmentation"
    answer: ClassVar[Literal["values", "logits"]] = "logits"
    same_for_views: ClassVar[bool] = True
    compares: ClassVar[Compares] = "batch"
    citation: ClassVar[str] = "Isensee et al., nnU-Net: a self-configuring method for biomedical image segmentation, Nature Methods 2021"

    class Options(BaseOptions):
        """How crops are changed and Dice is taken."""

        augment: AugmentOptions = AugmentOptions()
        """Light changes of the training crops."""
        batch_dice: bool = True
        """Dice over all crops of a batch; false: the mean over the crops, each by itself."""

    options: Options

    def head(self) -> NetworkHead:
        """The network's own."""
        return NetworkHead()

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        """Changed crops; the target is their labels (B, 1, *size)."""
        if crops.labels is None:
            raise DataError(
                "segmentation needs crops with labels. Train on labelled cases: `data.dataset`, or `data.images` and `data.labels`."
            )
        options = self.options.augment
        affine = None
        if options.look != AS_IT_IS:
            crops, affine = view_of(replace(crops, body=None), options.look, draw.fork("look"))
        assert crops.labels is not None
        flips = draw_flips(options, draw, crops.spatial_dims)
        images = change_intensities(flip(crops.images, flips), options, draw)
        labels = flip(crops.labels, flips)

        def restore(answer: Tensor) -> Tensor:
            unflipped = flip(answer, flips)
            return unflipped if affine is None else resample(unflipped, invert(affine))

        moved = options.flip or affine is not None
        return PretextBatch(images, labels, answerable=(labels >= 0).flatten(1).any(dim=1), restore=restore if moved else None)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """(B,) cross-entropy of each crop, plus one minus soft Dice."""
        known = batch.target >= 0
        target = batch.target.clamp_min(0)[:, 0]
        entropy = F.cross_entropy(prediction, target, reduction="none").unsqueeze(1)
        return masked_mean(entropy, known) + self._dice(prediction, target, known)

    def _dice(self, prediction: Tensor, target: Tensor, known: Tensor) -> Tensor:
        """(B,) or () mean over the foreground classes of one minus soft Dice over the voxels that have a label."""
        classes = prediction.shape[1]
        chance = prediction.softmax(dim=1)[:, 1:] * known
        truth = F.one_hot(target, classes)[..., 1:].movedim(-1, 1) * known
        sums = torch.stack([(part.flatten(2)).sum(dim=2) for part in (chance * truth, chance, truth.to(chance.dtype))])
        if self.options.batch_dice:
            sums = gather(sums.sum(dim=1)[None]).sum(dim=0)
        common, ours, theirs = sums
        overlap: Tensor = (2 * common + SMOOTH) / (ours + theirs + SMOOTH)
        return 1 - overlap.mean(dim=-1)

    def picture(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """The crop, the classes that were answered, and the labels."""
        assert batch.inputs is not None
        return {"input": batch.inputs, "prediction": prediction.argmax(dim=1, keepdim=True).float(), "label": batch.target.float()}


def draw_flips(options: AugmentOptions, draw: Draw, dims: int) -> Tensor:
    """(B, D) bool: the axes along which each crop is flipped."""
    chosen = [draw.fork(f"flip {axis}").uniform() < 0.5 if axis in options.flip else None for axis in range(dims)]
    never = torch.zeros(len(draw), dtype=torch.bool, device=draw.device)
    return torch.stack([never if flips is None else flips for flips in chosen], dim=1)


def flip(images: Tensor, flips: Tensor) -> Tensor:
    """Each of (B, C, *size) flipped along the axes that `flips` (B, D) names; its own inverse."""
    for axis in range(flips.shape[1]):
        chosen = flips[:, axis].view(-1, *[1] * (images.dim() - 1))
        images = torch.where(chosen, images.flip(axis + 2), images)
    return images


def change_intensities(images: Tensor, options: AugmentOptions, draw: Draw) -> Tensor:
    """Other contrast, brightness and noise; each crop by its own numbers, inputs unchanged."""
    one = (-1, *[1] * (images.dim() - 1))
    scale = draw.fork("scale").uniform(low=1 - options.scale, high=1 + options.scale).view(one)
    shift = draw.fork("shift").uniform(low=-options.shift, high=options.shift).view(one)
    images = images * scale + shift
    if options.noise:
        deviation = draw.fork("deviation").uniform(high=options.noise).view(one)
        images = images + draw.fork("noise").normal(*images.shape[1:]) * deviation
    return images
