"""Intensities as a pretraining saw them: an array transform and its dictionary form."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray

from medssl.archive.nifti.modality import checked_modality
from medssl.archive.nifti.names import is_nifti_name, is_picture_name
from medssl.config import check
from medssl.errors import ConfigError, DataError
from medssl.monai.given import image_given, item_given, one_of
from medssl.monai.reader import PHOTOMETRIC
from medssl.run import Run
from medssl.train.checkpoint import Checkpoint, find_checkpoint
from medssl.volumes import Channel, Doubts, Kind, Preparation, Seen, are_shown_raw, as_spacing, choose_kind, kinds_seen, statistics
from medssl.volumes.preparation import COLOURS, as_grey, turned_round

Photometric = Literal["MONOCHROME1", "MONOCHROME2"]
PHOTOMETRICS = (PHOTOMETRIC, "PhotometricInterpretation", "00280004", "0028|0004")
"""What readers call it in the metadata."""


class PrepareImage(Transform):  # type: ignore[misc]
    """Prepares intensities as a pretraining did, so that a network sees images as it learned on them.

    An image is a whole volume (C, *size), before it is cropped or padded, in the values of its file: its statistics are those of its
    foreground. Where the pretraining resampled its volumes, bring them to `spacing` first (`Spacing`); a MetaTensor on another grid, or
    with other axes than RAS, is refused, as is an image in another unit (scaled already, or CT without its rescale intercept). One that
    seems normalised already, and is normalised here, is warned of once.

    Args:
        checkpoint: a run, its folder or a checkpoint of medssl, pretrained or fine-tuned.
        modality: which of the kinds of images that the run saw these are: a DICOM modality such as CT, or the names of the channels.
            Needed only where it saw several that are prepared differently.
        preparation: for a run on a dataset whose transforms had made its values, of which it knows no more: a `Preparation` or a transform
            (`NormalizeIntensity()`) that makes the same of these images. Without it they have to come out of such transforms.
        photometric: "MONOCHROME1" where low values of these 2D images are meant to be bright, else "MONOCHROME2"; by default their
            metadata, or the kind of their file, says it. Needed only where the run turned such images round.
    """

    backend: ClassVar[list[TransformBackends]] = [TransformBackends.NUMPY]

    def __init__(
        self,
        checkpoint: str | Path | Run,
        modality: str | Sequence[str] | None = None,
        preparation: Preparation | Mapping[str, Any] | Callable[[Any], Any] | None = None,
        photometric: Photometric | None = None,
    ) -> None:
        if photometric is not None:
            one_of(photometric, Photometric, "photometric")
        if not (modality is None or isinstance(modality, str | Sequence)):
            raise ConfigError(f'modality is {modality!r}. Give a DICOM modality, such as "CT", or one for each channel.')
        self.photometric = photometric
        found = find_checkpoint(checkpoint)
        if found.state.get("preparation") is None:
            raise ConfigError(f"{found.path} does not say how its images were prepared. Give a run of medssl.")
        self.preparation = check(Preparation, found.state["preparation"], f"preparation in {found.path}")
        self.spacing = as_spacing(found.state.get("spacing"))
        self.kind = _kind(found, self.preparation, modality)
        told, self._transform = _told(preparation, self.kind, self.preparation, str(found.path))
        self._seen = Seen((self.kind,), self.preparation, told)
        self._doubts = Doubts()

    def __call__(self, image: Any) -> Any:
        """The prepared image, float32, one channel for each that the network reads."""
        return self.prepared(image, "the image", ("Orientation(", "Spacing("))

    def prepared(self, image: Any, what: str, remedies: tuple[str, str]) -> Any:
        """`image` prepared; `what` and `remedies` are how messages call it and the transforms that bring it to axes and spacing."""
        image_given(image, what)
        if isinstance(image, MetaTensor):
            _check_orientation(image, what, remedies[0])
            if self.spacing is not None:
                _check_spacing(image, self.spacing, what, remedies[1])
        shown = image if self._transform is None else self._transform(image)
        array = self._as_stored(convert_to_tensor(shown, track_meta=False).detach().cpu().numpy(), image, what)
        if not np.isfinite(array).all() or any(channel.min() == channel.max() for channel in array):
            raise DataError(f"{what} holds NaN, infinity, or one value alone, and cannot be prepared.")
        return convert_to_dst_type(self._values(array, what), image, dtype=np.float32)[0]

    def _as_stored(self, array: NDArray[Any], image: Any, what: str) -> NDArray[Any]:
        """A 2D image greyed and turned round as the store of the run did before its values were prepared."""
        if array.ndim == 4 and array.shape[-1] > 1:
            return array
        if self.preparation.grey and len(array) == len(COLOURS):
            array = as_grey(array)[None]
        if self.preparation.invert_monochrome1 and (self.photometric or _photometric(image, what)) == "MONOCHROME1":
            array = turned_round(array)
        return array

    def _values(self, array: NDArray[Any], what: str) -> NDArray[np.float32]:
        channels = self.kind.channels
        arrays = 1 + max(channel.array for channel in channels)
        if len(array) != arrays:
            raise DataError(f"{what} has {len(array)} channels, and the images that the network learned on have {arrays}: {self.kind}.")
        numbers = [statistics(one) for one in array]
        told = self._seen.told
        rules = told or self.preparation
        shown = np.stack([rules.apply(array[one.array], numbers[one.array], one.modality, one.name) for one in channels])
        compared = [numbers[one.array] for one in channels] if told is None else [statistics(one) for one in shown]
        self._doubts.say(self._seen.check(channels, compared, what))
        return shown


class PrepareImaged(MapTransform):  # type: ignore[misc]
    """`PrepareImage` for each of `keys`.

    Args:
        keys: the images.
        checkpoint, modality, preparation, photometric: as of `PrepareImage`.
        allow_missing_keys: leave out keys that an item lacks.
    """

    backend: ClassVar[list[TransformBackends]] = PrepareImage.backend

    def __init__(
        self,
        keys: KeysCollection,
        checkpoint: str | Path | Run,
        modality: str | Sequence[str] | None = None,
        allow_missing_keys: bool = False,
        preparation: Preparation | Mapping[str, Any] | Callable[[Any], Any] | None = None,
        photometric: Photometric | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = PrepareImage(checkpoint, modality, preparation, photometric)

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """mm to which the run resampled its volumes; None where each kept its own grid."""
        return self.transform.spacing

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with prepared images; `data` itself is left as it is."""
        item = item_given(data)
        for key in self.key_iterator(item):
            item[key] = self.transform.prepared(item[key], f"'{key}'", (f"Orientationd({key!r}, ", f"Spacingd({key!r}, "))
        return item


PrepareImageD = PrepareImageDict = PrepareImaged


def _kind(found: Checkpoint, preparation: Preparation, modality: str | Sequence[str] | None) -> Kind:
    kinds = kinds_seen(found.state)
    if kinds:
        return choose_kind(kinds, preparation, modality, str(found.path), 'modality="CT".')
    if modality is None:
        raise ConfigError(f'{found.path} does not say what images it saw. Say what yours are: modality="CT", or "MR".')
    names: list[str] = found.state.get("channel_names") or [""]
    given = [modality] * len(names) if isinstance(modality, str) else list(modality)
    if len(given) != len(names):
        raise ConfigError(f"modality names {len(given)} channels, and {found.path} has {len(names)}: {', '.join(names)}.")
    known = list(preparation.modalities)
    return Kind(tuple(map(Channel, names, (checked_modality(name, known) for name in given), range(len(names)))), 0)


def _told(preparation: Any, kind: Kind, theirs: Preparation, origin: str) -> tuple[Preparation | None, Callable[[Any], Any] | None]:
    """What the user says makes images like those of the run: rules, or a transform."""
    told = check(Preparation, dict(preparation), "preparation") if isinstance(preparation, Mapping) else preparation
    if told is None or told == theirs:
        return None, None
    if kind.values and not are_shown_raw([kind], theirs):
        raise ConfigError(f"{origin} says itself how its images were prepared. Leave preparation out, or PrepareImage.")
    if isinstance(told, Preparation):
        return told, None
    if not callable(told):
        raise ConfigError(f"preparation is a {type(told).__name__}. Give a Preparation, its options, or a transform of the image alone.")
    return None, told


def _photometric(image: Any, what: str) -> str:
    """What the metadata of an image says, by any of the names that readers give it; files of other formats are never turned round."""
    meta = image.meta if isinstance(image, MetaTensor) else {}
    found = next((meta[name] for name in PHOTOMETRICS if meta.get(name)), None)
    said = str((found.get("Value") or [""])[0] if isinstance(found, Mapping) else found or "").strip().upper()
    file = Path(str(meta.get("filename_or_obj", ""))).name
    if said:
        return said
    if is_nifti_name(file) or is_picture_name(file):
        return "MONOCHROME2"
    raise DataError(
        f"the network learned on images of which MONOCHROME1 were turned round, and {what} does not say whether it is one: MONAI's DICOM "
        "reader drops that. Load it with reader='medssl.monai.MedsslReader', or give PrepareImage photometric='MONOCHROME1', or "
        "'MONOCHROME2'."
    )


def _check_orientation(image: MetaTensor, what: str, remedy: str) -> None:
    if image.dim() != 4:
        return
    codes = "".join(aff2axcodes(image.affine.cpu().numpy()))
    if codes != "RAS":
        raise DataError(
            f"{what} has its axes along {codes}, and the network learned on images along RAS. "
            f"Put {remedy}axcodes='RAS') before it is prepared."
        )


def _check_spacing(image: MetaTensor, pretrained: tuple[float, float, float], what: str, remedy: str) -> None:
    spacing = tuple(float(side) for side in image.pixdim[: image.dim() - 1])
    wanted = pretrained[: len(spacing)]
    if not np.allclose(spacing, wanted, rtol=1e-2):
        raise DataError(
            f"{what} has a spacing of {spacing} mm, the network was pretrained at {wanted}. "
            f"Put {remedy}pixdim={wanted}) before it is prepared."
        )
