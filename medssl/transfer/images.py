"""The form in which a fine-tuned network takes images: the same in training, validation and prediction, and kept in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from medssl.config import check
from medssl.errors import ConfigError
from medssl.volumes import Case, Channel, Doubts, Preparation, Prepared, Seen, as_spacing, kinds_seen, load_case, prepare_volume

Spacing = tuple[float, float, float] | None


@dataclass(frozen=True)
class ImageForm:
    """Everything that turns files into the network's input."""

    preparation: Preparation
    spacing: Spacing
    """mm; None: each image's own grid."""
    channels: tuple[Channel, ...]
    """What the network reads."""
    flat: bool = False
    """Does it see 2D images, and slices of volumes?"""
    seen: Seen | None = None
    """The training's images, where others are held against them."""
    unseen_modality: bool = False
    """Are images taken whose modality the training had none of?"""
    doubts: Doubts = field(default_factory=Doubts, compare=False)

    def document(self) -> dict[str, Any]:
        """As a checkpoint's state holds it."""
        return {
            "preparation": self.preparation.model_dump(mode="json"),
            "spacing": self.spacing,
            "channels": len(self.channels),
            "channel_names": [channel.name for channel in self.channels],
            "modalities": [channel.modality for channel in self.channels],
            "arrays": [channel.array for channel in self.channels],
        }

    @classmethod
    def of_document(cls, state: Mapping[str, Any]) -> ImageForm:
        """Back from a checkpoint's state; `ConfigError` where it has none."""
        if "preparation" not in state:
            raise ConfigError("the checkpoint does not say how its images were prepared. Give the folder of a fine-tuning run.")
        preparation = check(Preparation, state["preparation"], "preparation in the checkpoint")
        channels = tuple(map(Channel, state["channel_names"], state["modalities"], state["arrays"]))
        seen = Seen(kinds_seen(state), preparation)
        return cls(preparation, as_spacing(state["spacing"]), channels, len(state["size"]) == 2, seen)

    def checked(self, prepared: Prepared, name: str) -> Prepared:
        """`prepared` itself; raises `DataError` where its values were plainly of another kind than those of the training."""
        if self.seen is not None:
            self.doubts.say(self.seen.check(self.channels, prepared.statistics, name))
        return prepared


def load_image(images: Path | Sequence[Path], form: ImageForm) -> Prepared:
    """The files of a case in that form; raises `MissingInput` or `DataError`."""
    name = ", ".join(map(str, [images] if isinstance(images, Path) else images))
    return form.checked(load_case(images, form.preparation, form.spacing, form.channels, flat=form.flat), name)


def load_images_of(case: Case, form: ImageForm) -> Prepared:
    """The images of a case in that form; raises `MissingInput`, `DataError`, or `ArchiveError` for volumes of an index."""
    return load_case(case.images, form.preparation, form.spacing, form.channels, case.placed_by, flat=form.flat)


def prepare_image(array: NDArray[Any], affine: NDArray[Any], form: ImageForm, name: str, scaled: bool = True) -> Prepared:
    """(X, Y, Z) or (A, X, Y, Z) values and their affine, in mm where `scaled`, in that form; raises `DataError`."""
    prepared = prepare_volume(array, affine, form.preparation, form.spacing, form.channels, name, flat=form.flat, scaled=scaled)
    return form.checked(prepared, name)
