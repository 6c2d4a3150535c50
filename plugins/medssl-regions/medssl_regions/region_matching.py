"""The task `region-matching`: find a region of one view again in another view of the same crop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from medssl.augment import Look, invert, make_view, resample, shown_by
from medssl.config import BaseOptions
from medssl.contracts import Crops, Draw, ModuleHead, NetworkInfo, PretextBatch, PretextTask
from medssl.errors import ConfigError, DataError
from medssl.learn.ops import by_part, masked_mean, onto_grid
from medssl_regions.makers import masks_of, near_and_alike, of_label_maps, supervoxels

Voxels = Annotated[float, Field(gt=0, le=512)]
Spreads = Annotated[float, Field(gt=0, le=10)]
LOOK = Look(flip=0.0, rotate=15.0, scale=1.13, shift=0.1, contrast=0.25, gamma=2.0, noise=0.2, blur=0.7, invert=0.15)
LEAST = 4.0
"""Voxels of the answer's grid that a region must have in the query to be asked for."""


class Matcher(nn.Module):
    """Prototypes of the regions in the reference, and how well each voxel of the query fits them."""

    def __init__(self, network: NetworkInfo, width: int, scale: float, offset: float) -> None:
        super().__init__()
        conv = nn.Conv2d if network.spatial_dims == 2 else nn.Conv3d
        self.embed = conv(max(network.feature_width, 1), width, 1)
        self.scale, self.offset = scale, offset

    def forward(self, feature_map: Tensor, batch: PretextBatch) -> Tensor:
        """(B, K, *grid) logits, from the feature maps (B * 2, F, *grid) of reference and query."""
        embedded = F.normalize(self.embed(feature_map), dim=1)
        reference, query = embedded[0::2], embedded[1::2]
        regions = onto_grid(batch.extra["regions"].to(reference.dtype), reference.shape[2:]).flatten(2)
        prototypes = F.normalize(regions @ reference.flatten(2).mT, dim=2)
        cosine = prototypes @ query.flatten(2)
        return (self.scale * (cosine - self.offset)).view(*cosine.shape[:2], *query.shape[2:])


class RegionMatching(PretextTask):
    """Find class-agnostic regions of a crop again in another view of it: in-context segmentation as a pretext task.

    The mean of the normalised embeddings in a region of the reference is its prototype; in the query, which was moved and looks
    different, each voxel's logit is `scale * (cosine - offset)`, and cross entropy and Dice compare it with the moved region.
    So it teaches what is where without a label, and its map is read by a prototype of one labelled case with no training at all.

    MASS (Gao et al., CVPR 2026) takes its regions from SAM 2 and Ouyang et al. from superpixels: both can be had here (`regions`);
    the default needs neither. Voxels of the query that lie outside the crop are not counted.
    """

    name: ClassVar[str] = "region-matching"
    answer: ClassVar[Literal["values", "logits"]] = "logits"
    citation: ClassVar[str] = (
        "Gao et al., MASS, CVPR 2026; Ouyang et al., Self-supervision with superpixels: training few-shot medical image segmentation "
        "without annotation, ECCV 2020"
    )

    class Options(BaseOptions):
        """Which regions, how the two views differ, and what a match is."""

        regions: Literal["near-and-alike", "supervoxels", "masks"] = "near-and-alike"
        """near-and-alike: near a random seed and like it in intensity; supervoxels: pieces by SLIC (pip install
        'medssl-regions[supervoxels]'; some 100 times slower); masks: values of the channel `masks`, such as SAM 2's."""
        count: int = Field(default=8, ge=1, le=64)
        """Regions a crop."""
        radius: tuple[Voxels, Voxels] = (4.0, 14.0)
        """near-and-alike: smallest and largest distance from the seed, in voxels."""
        likeness: tuple[Spreads, Spreads] = (0.25, 0.85)
        """near-and-alike: smallest and largest difference from the seed, in standard deviations of the crop, after smoothing."""
        piece: float = Field(default=600.0, ge=8, le=1e6)
        """supervoxels: voxels of a piece, about."""
        masks: str | None = None
        """masks: the channel with a number for each region and 0 between them; the network is not shown it."""
        look: Look = LOOK
        """How the views differ, by the keys of `views:`; the reference keeps its place, the query is moved too. What is not given stays
        as it is: no flips, rotate 15, scale 1.13, shift 0.1, gamma 2, noise 0.2, invert 0.15."""
        width: int = Field(default=16, ge=2, le=1024)
        """Channels of the embedding that is compared."""
        scale: float = Field(default=10.0, gt=0, le=100)
        """Logits a unit of cosine."""
        offset: float = Field(default=0.6, ge=-1, le=1)
        """The cosine from which on a voxel belongs to a region rather than not."""
        region_weight: float = Field(default=3.0, gt=0, le=100)
        """What a voxel of the region counts in the cross entropy beside one outside it: regions are small."""

        @field_validator("look", mode="before")
        @classmethod
        def _over_the_defaults(cls, look: Any) -> Any:
            return {**LOOK.model_dump(), **look} if isinstance(look, Mapping) else look

        @model_validator(mode="after")
        def _fits(self) -> Self:
            for what in ("radius", "likeness"):
                low, high = getattr(self, what)
                if low > high:
                    raise ValueError(f"{what} is [smallest, largest]; {low} is more than {high}")
            if (self.regions == "masks") != (self.masks is not None):
                raise ValueError("`regions: masks` and the name of the channel, `masks: NAME`, belong together")
            if self.look.transforms or not self.look.is_affine:
                key = "transforms" if self.look.transforms else "elastic"
                raise ValueError(f"`look.{key}` is not supported here: say by the other keys of `look` how the views differ")
            return self

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        if self.options.regions == "masks" and network.channels < 2:
            raise ConfigError("region-matching: `regions: masks` needs a channel beside that of the masks, and the images have one.")
        self.matcher = Matcher(network, self.options.width, self.options.scale, self.options.offset)

    def input_channels(self, channels: int) -> int:
        """Without the channel of masks."""
        return channels - (self.options.masks is not None)

    def clean(self, crops: Crops) -> Tensor:
        """Without the channel of masks."""
        if self.options.masks is None:
            return crops.images
        if self.options.masks not in crops.channels:
            raise DataError(f"region-matching: no channel is called '{self.options.masks}'; there are {', '.join(crops.channels)}.")
        place = crops.channels.index(self.options.masks)
        return torch.cat([crops.images[:, :place], crops.images[:, place + 1 :]], dim=1)

    def head(self) -> ModuleHead:
        """Logits of every region at every voxel of the query's feature map."""
        return ModuleHead(self.matcher, "feature_map", parts=2, sees_batch=True)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        """Reference and query; the target is where the reference's regions lie in the query."""
        images, look = self.clean(crops), self.options.look
        regions = self._regions(crops, images, draw.fork("regions")).to(images.dtype)
        still = look.model_copy(update={"flip": 0.0, "rotate": 0.0, "scale": 1.0, "shift": 0.0})
        reference, _ = make_view(images, still, draw.fork("reference"), crops.spacing)
        query, affine = make_view(images, look, draw.fork("query"), crops.spacing)
        # Where the query shows the crop: the crop, seen as a view of the query.
        real = shown_by(invert(affine), crops.size)
        target = resample(regions, affine) * real
        answerable = (target.flatten(2).sum(dim=2) > 0).any(dim=1)
        shown = torch.stack([reference, query], dim=1).flatten(0, 1)
        return PretextBatch(shown, target, real.to(images.dtype), answerable, extra={"regions": regions})

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """(B,) cross entropy and Dice, mean over the regions that the query shows."""
        target, weight, counted = self._asked(prediction, batch)
        heavier = prediction.new_tensor(self.options.region_weight)
        cost = F.binary_cross_entropy_with_logits(prediction, target, reduction="none", pos_weight=heavier)
        share = prediction.sigmoid()
        common, both = ((share * target * weight).flatten(2).sum(dim=2), ((share + target) * weight).flatten(2).sum(dim=2))
        entropy = (cost * weight).flatten(2).sum(dim=2) / weight.flatten(2).sum(dim=2).clamp_min(1)
        return masked_mean(entropy + 1 - (2 * common + 1) / (both + 1), counted)

    def trivial(self, batch: PretextBatch) -> Tensor:
        """Every voxel alike, as likely as the region is large."""
        assert batch.weight is not None
        share = (batch.target.flatten(2).sum(dim=2) / batch.weight.flatten(2).sum(dim=2).clamp_min(1)).clamp(1e-4, 1 - 1e-4)
        return share.logit().view(*share.shape, *[1] * (batch.target.dim() - 2)).expand_as(batch.target)

    def measure(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """Dice of what is found, at the threshold."""
        target, weight, counted = self._asked(prediction, batch)
        found, wanted = (prediction > 0) * weight, (target > 0.5) * weight
        both = (found + wanted).flatten(2).sum(dim=2)
        return {"dice": masked_mean(2 * (found * wanted).flatten(2).sum(dim=2) / both.clamp_min(1), counted)}

    def picture(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """Both views, the first region in each, and where it was found."""
        assert batch.inputs is not None
        reference, query = by_part(batch.inputs.flatten(1), 2).unbind(1)
        size, channels = batch.inputs.shape[2:], batch.inputs.shape[1]
        found = F.interpolate(prediction[:, :1].sigmoid(), size=size)
        both = {"reference": reference.view(-1, channels, *size), "query": query.view(-1, channels, *size)}
        return {**both, "region": batch.extra["regions"][:, :1], "found": found, "target": batch.target[:, :1]}

    def _asked(self, prediction: Tensor, batch: PretextBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Target and weight on the prediction's grid, and (B, K) which regions are asked for."""
        assert batch.weight is not None
        grid = prediction.shape[2:]
        target, weight = onto_grid(batch.target, grid), onto_grid(batch.weight, grid)
        target = torch.where(weight > 0, target / weight.clamp_min(1e-6), target)
        return target, weight, ((target * weight).flatten(2).sum(dim=2) > LEAST).to(prediction.dtype)

    def _regions(self, crops: Crops, images: Tensor, draw: Draw) -> Tensor:
        options = self.options
        if options.regions == "near-and-alike":
            return near_and_alike(images, options.count, options.radius, options.likeness, draw)
        maps = masks_of(crops, options.masks) if options.masks is not None else supervoxels(images, options.piece)
        return of_label_maps(maps, options.count, draw)
