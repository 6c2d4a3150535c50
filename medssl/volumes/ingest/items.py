"""A store from the items of a MONAI pipeline: a datalist with or without transforms, or any dataset that gives dictionaries."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medssl.archive import read_single, single_modality
from medssl.archive.nifti.modality import UNKNOWN, checked_modality
from medssl.errors import DataError, UsageError
from medssl.volumes.ingest.describing import described, refuse_random, transforms_of
from medssl.volumes.ingest.writing import Incoming, Progress, StoreSummary, Unusable, write_store
from medssl.volumes.preparation import IntensityRule, Preparation, statistics, usual_preparation
from medssl.volumes.store.frames import Codec
from medssl.volumes.store.reading import Store
from medssl.volumes.store.values import RESCALED

Values = NDArray[Any]
AS_THEY_ARE = Preparation(modalities={}, other=IntensityRule(kind="raw"))
"""What transforms have made of the values is what a network sees."""
PATIENT_KEYS = ("patient", "patient_id", "subject", "subject_id")
MOST_CHANNELS = 64
WIDE = 100.0
"""Values that span more than this were not normalised for a network."""


def are_items(data: Any) -> bool:
    """Whether `data` gives dictionaries by their number: a list of them, or a dataset as MONAI and torch have them."""
    if isinstance(data, list | tuple):
        return bool(data) and all(isinstance(one, Mapping) for one in data)
    plain = isinstance(data, str | bytes | Path | Mapping | Store)
    return not plain and hasattr(data, "__getitem__") and hasattr(data, "__len__")


def store_items(
    data: Any,
    out: str | Path,
    *,
    transform: Any = None,
    image_key: str = "image",
    label_key: str | None = "label",
    modality: str | None = None,
    preparation: Preparation | None = None,
    spacing: float | Sequence[float] | None = None,
    dimensions: Literal[2, 3] | None = None,
    codec: Codec = "lz4hc",
    workers: int = 2,
    progress: Progress | None = None,
) -> StoreSummary:
    """Make or complete the store `out` from a MONAI datalist, with `transform` or without, or from a dataset of dictionaries.

    An image is a path (a NIfTI file, or a folder, zip or tar of DICOM) or a tensor (C, X, Y[, Z]), of which a MetaTensor knows where it
    lies. What transforms have made is stored as it is, and is what a network sees; paths are prepared by their modality, as those of any
    store. An item says its modality under the key `modality`, else its file does, else it is `modality`; with `modality` or `preparation`
    what transforms have made is prepared too. Transforms that draw at random are refused: an item is made once. Whose an item is
    stands under its key `patient`; without one each item counts as a patient. `dimensions` says whether these are volumes or 2D images;
    without it the first item that can be read does.

    Raises `UsageError` and `DataError` with what to do; an item that cannot be used costs a recorded reason and nothing else.
    """
    if not are_items(data) or not len(data):
        raise UsageError("the data holds no item. Give a list of dictionaries, such as [{'image': 'a.nii.gz'}], or a dataset of them.")
    transforms = [*transforms_of(data), *([] if transform is None else [transform])]
    refuse_random(transforms)
    items = _Items(data, transform, image_key, label_key, None if modality is None else checked_modality(modality), described(transforms))
    as_they_are = preparation is None and modality is None and (bool(transforms) or not items.are_paths)
    if not as_they_are:
        items.refuse_normalised(preparation)
    done = write_store(
        [items.incoming(number) for number in range(len(data))],
        out,
        spacing=spacing,
        preparation=AS_THEY_ARE if as_they_are else preparation,
        dimensions=dimensions or items.dimensions,
        codec=codec,
        workers=workers,
        progress=progress,
    )
    if not done.volumes:
        raise DataError(f"none of the {len(data)} items can be used: {'; '.join(list(dict.fromkeys(done.left_out.values()))[:3])}.")
    if as_they_are:
        _warn_of_wide_values(Store(out))
    return done


class _Items:
    """Items by their number, as they come out of the transforms, made one at a time: datasets need not be made for threads."""

    def __init__(
        self, data: Any, transform: Any, image_key: str, label_key: str | None, modality: str | None, transforms: Sequence[Any]
    ) -> None:
        self._data, self._transform, self._modality, self._transforms = data, transform, modality, transforms
        self._image_key, self._label_key = image_key, label_key
        self._lock, self._last = threading.Lock(), threading.local()

    def incoming(self, number: int) -> Incoming:
        """The item on its way into a store."""
        known = self._known(number)
        patient = next((str(known[key]) for key in PATIENT_KEYS if key in known), f"item {number}")
        labelled = self._label_key is not None and self._label_key in known
        source = repr([self._transforms, [(str(key), _fingerprint(value)) for key, value in known.items()]])
        return Incoming(
            volume=f"item-{number:06d}",
            patient=blake2b(patient.encode(), digest_size=8).hexdigest(),
            series=f"item-{number:06d}",
            modality=self._modality_of(known),
            load=partial(self._image, number),
            labels=partial(self._label, number) if labelled else None,
            fingerprint=blake2b(source.encode(), digest_size=16).hexdigest(),
        )

    @property
    def are_paths(self) -> bool:
        """Whether images are named rather than there."""
        return isinstance(self._known(0).get(self._image_key), str | Path)

    @property
    def dimensions(self) -> Literal[2, 3]:
        """Of the first item that can be read: 2 of an image of one slice."""
        found = self._first()
        return 2 if found is not None and found[1].shape[-1] == 1 else 3

    def refuse_normalised(self, preparation: Preparation | None) -> None:
        """Raise `DataError` where the first item that can be read is normalised already, so that a window would leave nothing of it."""
        found = self._first()
        if found is None:
            return
        number, image = found
        channels = image if image.ndim == 4 else image[None]
        rule = (preparation or usual_preparation(2 if channels.shape[-1] == 1 else 3)).rule(self._modality_of(self._known(number)))
        numbers = statistics(channels[0])
        if rule.kind == "window" and numbers.high - numbers.low < RESCALED * (rule.high - rule.low):
            raise DataError(
                f"the values of item {number} lie between {numbers.low:.4g} and {numbers.high:.4g}, and are to be prepared by the window "
                f"[{rule.low:g}, {rule.high:g}], which leaves nothing of them: they seem to be normalised already. Leave modality and "
                "preparation out, so that they are taken as they are (items may say their modality themselves), or give them as stored."
            )

    def _first(self) -> tuple[int, Values] | None:
        """Number and image of the first item that can be read."""
        for number in range(len(self._data)):
            with suppress(DataError):
                return number, self._image(number)[0]
        return None

    def _known(self, number: int) -> Mapping[Any, Any]:
        """The item before the transforms, where the dataset has it, else as it is made; {} where it cannot be."""
        listed = self._listed(number)
        if listed:
            return listed
        try:
            return self._made(number)
        except DataError:
            return {}  # the ingest meets it again and records why

    def _listed(self, number: int) -> Mapping[Any, Any]:
        """As the datalist has it; {} where a dataset does not show one."""
        listed = self._data if isinstance(self._data, Sequence) else getattr(self._data, "data", None)
        if not isinstance(listed, Sequence) or len(listed) != len(self._data):
            return {}
        item = listed[number]
        return item if isinstance(item, Mapping) else {}

    def _made(self, number: int) -> Mapping[Any, Any]:
        if getattr(self._last, "number", None) == number:  # an image and its label are loaded one after the other
            last: Mapping[Any, Any] = self._last.item
            return last
        try:
            with self._lock:
                item = self._data[number]
                item = item if self._transform is None else self._transform(item)
        except Exception as error:
            raise Unusable(f"item {number} cannot be made: {_innermost(error, self._listed(number))}") from error
        if not isinstance(item, Mapping):
            raise Unusable(f"item {number} is a {type(item).__name__}, not a dictionary with '{self._image_key}'")
        self._last.number, self._last.item = number, item
        return item

    def _modality_of(self, known: Mapping[Any, Any]) -> str:
        said, image = known.get("modality"), known.get(self._image_key)
        if isinstance(said, str):
            return checked_modality(said, where="the modality of an item")
        of_file = single_modality(image) if isinstance(image, str | Path) else UNKNOWN
        return self._modality or UNKNOWN if of_file == UNKNOWN else of_file

    def _image(self, number: int) -> tuple[Values, Values]:
        item = self._made(number)
        if self._image_key not in item:
            raise Unusable(f"item {number} has no '{self._image_key}', only {', '.join(map(str, item))}")
        return _loaded(item[self._image_key], f"item {number}")

    def _label(self, number: int) -> Values:
        values, _ = _loaded(self._made(number)[self._label_key], f"the label of item {number}")
        values = values[0] if values.ndim == 4 and len(values) == 1 else values
        classes = np.rint(values)
        if values.ndim != 3 or not np.array_equal(classes, values) or np.abs(classes).max(initial=0) > np.iinfo(np.int16).max:
            raise Unusable(f"the label of item {number} is no map of classes: whole numbers, one channel. Leave it out: label_key=None")
        return classes.astype(np.int16)


def _innermost(error: BaseException, item: Mapping[Any, Any]) -> str:
    """MONAI wraps what a transform raised, often twice; what began it says most. Names of files, which may be a patient's, stay out."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = f"{type(error).__name__}: {error}"
    for named in [str(value) for value in item.values() if isinstance(value, str | Path)]:
        said = said.replace(named, "FILE") if named else said
    return said


def _loaded(image: Any, what: str) -> tuple[Values, Values]:
    """Values (C, X, Y, Z) or (X, Y, Z) and their affine to RAS+ mm; a 2D image has a third axis of one voxel."""
    if isinstance(image, str | Path):
        return read_single(image)[:2]
    from monai.data import MetaTensor
    from monai.data.utils import to_affine_nd
    from monai.utils import SpaceKeys
    from torch import Tensor

    affine = np.eye(4)
    if isinstance(image, MetaTensor):
        affine = np.asarray(to_affine_nd(3, image.affine.detach().cpu().numpy()), np.float64)
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine if image.meta.get("space") == SpaceKeys.LPS else affine
    values = image.detach().cpu().float().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if values.dtype.kind not in "biuf" or values.ndim not in (3, 4) or len(values) > MOST_CHANNELS:
        raise Unusable(
            f"{what} is {values.dtype} of shape {list(values.shape)}, not an image with its channels first, (C, X, Y, Z) or (C, X, Y): "
            "LoadImaged, EnsureChannelFirstd"
        )
    values = values.astype(np.uint8) if values.dtype.kind == "b" else values
    return (values[..., None] if values.ndim == 3 else values), affine


def _fingerprint(value: Any) -> Any:
    """What tells a value of an item from a changed one."""
    if isinstance(value, str | Path):
        path = Path(value)
        try:
            found = path.stat()
        except (OSError, ValueError):
            return str(value)
        return str(value), found.st_size, found.st_mtime_ns
    if hasattr(value, "__array__"):
        array = np.ascontiguousarray(np.asarray(value))
        return array.shape, array.dtype.str, blake2b(array.tobytes(), digest_size=16).hexdigest()
    return repr(value)


def _warn_of_wide_values(store: Store) -> None:
    spans = [numbers.high - numbers.low for numbers in store.volume(0).statistics]
    if max(spans) > WIDE:
        warnings.warn(
            f"the images are taken as they are, and their values span {max(spans):.4g}: a network learns badly on them. Normalise them in "
            "the transforms (NormalizeIntensityd, ScaleIntensityRanged), or let medssl prepare them: "
            "store_items(data, FOLDER, modality='CT'), and pretrain on that folder.",
            stacklevel=3,
        )
