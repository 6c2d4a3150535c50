"""What a step of fine-tuning minimises: Dice and cross-entropy of lightly changed labelled crops."""

from __future__ import annotations

import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn

from medssl.contracts import Crops, Draw
from medssl.transfer.options import AugmentOptions
from medssl.transfer.segment import full_output


class SegmentationLoss(nn.Module):
    """The plain network (`network`) and the mean of soft Dice over the foreground classes plus cross-entropy.

    Dice is taken over the whole batch (`DiceCELoss(batch=True)`), so that a crop without a class does not ask for its absence
    alone. Soft Dice: Milletari et al., "V-Net", 3DV 2016; the sum of both as in nnU-Net (Isensee et al., Nature Methods 2021).
    """

    def __init__(self, network: nn.Module, options: AugmentOptions, seed: int) -> None:
        super().__init__()
        self.network = network
        self.options, self.seed = options, seed
        self.dice_ce = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)

    def forward(self, crops: Crops, step: int) -> dict[str, Tensor]:
        """`{"loss": ()}` of labelled crops; what is random depends on (seed, step, place in the batch) alone."""
        assert crops.labels is not None
        draw = Draw(self.seed, step, crops.index, "augment", crops.images.device)
        images, labels = augment(crops.images, crops.labels, self.options, draw)
        logits = full_output(self.network(images), images)
        return {"loss": self.dice_ce(logits.float(), labels)}


def augment(images: Tensor, labels: Tensor, options: AugmentOptions, draw: Draw) -> tuple[Tensor, Tensor]:
    """Flip both, change contrast, brightness and noise of the images; each crop by its own numbers, inputs unchanged."""
    one = (-1, *[1] * (images.dim() - 1))
    for axis in options.flip:
        flips = (draw.fork(f"flip {axis}").uniform() < 0.5).view(one)
        images = torch.where(flips, images.flip(axis + 2), images)
        labels = torch.where(flips, labels.flip(axis + 2), labels)
    scale = draw.fork("scale").uniform(low=1 - options.scale, high=1 + options.scale).view(one)
    shift = draw.fork("shift").uniform(low=-options.shift, high=options.shift).view(one)
    images = images * scale + shift
    if options.noise:
        deviation = draw.fork("deviation").uniform(high=options.noise).view(one)
        images = images + draw.fork("noise").normal(*images.shape[1:]) * deviation
    return images, labels
