"""The form in which a fine-tuned network takes images: the same in training, validation and prediction, and kept in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from medssl.config import check
from medssl.errors import ConfigError, DataError
from medssl.volumes import Preparation, Prepared, load_case, prepare_volume

Spacing = float | tuple[float, float, float] | None


@dataclass(frozen=True)
class ImageForm:
    """Everything that turns a file into the network's input."""

    preparation: Preparation
    spacing: Spacing
    """mm; None: each image's own grid."""
    modality: str
    """DICOM modality whose rule prepares the images."""
    channels: int
    """Channels that the network reads."""

    def document(self) -> dict[str, Any]:
        """As a checkpoint's state holds it."""
        return {
            "preparation": self.preparation.model_dump(mode="json"),
            "spacing": self.spacing,
            "modality": self.modality,
            "channels": self.channels,
        }

    @classmethod
    def of_document(cls, state: Mapping[str, Any]) -> ImageForm:
        """Back from a checkpoint's state; `ConfigError` where it has none."""
        if "preparation" not in state or "modality" not in state:
            raise ConfigError("the checkpoint does not say how its images were prepared. Give the folder of a fine-tuning run.")
        preparation = check(Preparation, state["preparation"], "preparation in the checkpoint")
        return cls(preparation, as_spacing(state["spacing"]), state["modality"], state["channels"])


def as_spacing(value: Any) -> Spacing:
    """A spacing as JSON holds it (a number, three, null) as options hold it; three equal sides are one number."""
    if value is None or isinstance(value, int | float):
        return None if value is None else float(value)
    sides = tuple(float(side) for side in value)
    return sides[0] if len(set(sides)) == 1 else sides  # type: ignore[return-value]


def load_image(path: Path, form: ImageForm) -> Prepared:
    """A NIfTI file in that form; raises `MissingInput` or `DataError`."""
    return _with_channels(load_case(path, form.preparation, form.spacing, form.modality), form, str(path))


def prepare_image(array: NDArray[Any], affine: NDArray[Any], form: ImageForm, name: str) -> Prepared:
    """(X, Y, Z) values and their affine in that form; raises `DataError`."""
    return _with_channels(prepare_volume(array, affine, form.preparation, form.spacing, form.modality, name), form, name)


def _with_channels(prepared: Prepared, form: ImageForm, name: str) -> Prepared:
    if len(prepared.array) != form.channels:
        raise DataError(
            f"{name} has {len(prepared.array)} channel(s) and the network takes {form.channels}. "
            "Give images with as many channels as the network was trained on."
        )
    return prepared
