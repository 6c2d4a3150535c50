"""A store: one folder of volumes ready to be cropped, self-describing and versioned.

    store.json            version, preparation, spacing, axes
    table/*.parquet       one row a volume, or a volume's name and the reason why it was left out
    rows/*.json           rows of an ingest that is under way or was cut off
    volumes/*.b2nd        one file a volume (`medssl.volumes.store.frames`): its arrays, of which its channels are made when read
    labels/*.b2nd         its classes on the same grid, where it is labelled

Names of patients, volumes and series are pseudonyms. A row counts once its volume's file is in place.
"""

from __future__ import annotations

import base64
import io
import math
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass, field, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError, field_validator

from medssl.archive.geometry import usable_spacing
from medssl.config import BaseOptions
from medssl.errors import MissingInput, StoreError
from medssl.faults import fault, faults_as, is_fault
from medssl.files import holds_file, html_table, read_json, write_atomically
from medssl.volumes.grid import as_spacing
from medssl.volumes.preparation import Channel, Line, Preparation, Statistics
from medssl.volumes.store.frames import Damaged, FrameCache, FrameFile
from medssl.volumes.store.identity import Numbers, numbered
from medssl.volumes.store.table import ROW_ERRORS, check_columns, damaged_table, read_table
from medssl.volumes.store.unfinished import missing
from medssl.volumes.unusable import LONGEST

VERSION = 3
MANIFEST = "store.json"
_OLDER = {1: "holds one channel a volume", 2: "does not keep what its volumes are called by their data"}
"""What a store of an older version is or lacks."""


def stable_id(name: str) -> int:
    """A non-negative int64 that is the same on every machine and in every run."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little") >> 1


class Manifest(BaseOptions):
    """What `store.json` says."""

    format: Literal["medssl-store"] = "medssl-store"
    """Marks the folder as a store."""
    version: int = VERSION
    """Version of the layout; a store of a newer one is refused."""
    axes: Literal["RAS"] = "RAS"
    """Where the array's axes point to."""
    axis: Literal["slice", "time"] | None = None
    """What the channels count, when they are slices of a slab or frames."""
    spacing: tuple[float, ...] | None = None
    """mm that every volume was resampled to; none: each keeps its own grid."""
    preparation: Preparation = Preparation()
    """Applied when a crop is read."""

    @field_validator("spacing")
    @classmethod
    def _possible(cls, spacing: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return as_spacing(spacing)


@dataclass(frozen=True, eq=False)
class StoredVolume:
    """One volume of a store, without its voxels."""

    volume: str
    sample: int
    """int64 of the volume's content: the same for the same data, whatever their pseudonyms."""
    patient: int
    """int64 of the smallest content among the patient's volumes."""
    modality: str
    channels: tuple[Channel, ...]
    statistics: tuple[Statistics, ...]
    """Of each channel."""
    shape: tuple[int, ...]
    """The D spatial sides: 2 of an image, 3 of a volume."""
    spacing: tuple[float, ...]
    affine: NDArray[np.float64]
    """(4, 4) voxel -> RAS+ mm."""
    box: tuple[tuple[int, ...], tuple[int, ...]]
    """First and one past the last corner of the foreground."""
    points: NDArray[np.int32] = field(repr=False)
    """(P, D) voxels of the foreground, evenly drawn."""
    classes: tuple[int, ...] | None
    """Values that its label file holds; None where it has no label."""
    class_points: tuple[NDArray[np.int32], ...] = field(repr=False)
    """(P, D) voxels of each class, evenly drawn; background and classes without a voxel on this grid are left out."""
    series: str
    patient_name: str
    """The patient's pseudonym."""
    dtype: str | None
    """"i2" or "f4", the type of its file; None where the store does not know."""
    digest: str | None
    """Of its file."""
    labels_digest: str | None
    """Of the file of its label."""

    def lines(self, preparation: Preparation) -> tuple[Line, ...]:
        """What prepares each channel."""
        pairs = zip(self.channels, self.statistics, strict=True)
        return tuple(preparation.line(numbers, channel.modality, channel.name) for channel, numbers in pairs)

    def body(self, arrays: NDArray[Any]) -> NDArray[np.bool_]:
        """Where any channel of raw `arrays` (A, ...) is above its own threshold."""
        return body_of(arrays, self.channels, self.statistics)


def body_of(arrays: NDArray[Any], channels: Sequence[Channel], statistics: Sequence[Statistics]) -> NDArray[np.bool_]:
    """Where any channel of raw `arrays` (A, ...) is above its own threshold; of one that several channels show the first counts."""
    thresholds = {channel.array: numbers for channel, numbers in zip(reversed(channels), reversed(statistics), strict=True)}
    masks = [numbers.foreground(arrays[array]) for array, numbers in sorted(thresholds.items())]
    return masks[0] if len(masks) == 1 else np.logical_or.reduce(masks)


class Store:
    """A store opened for reading, by any number of threads."""

    def __init__(self, folder: str | Path, native: bool = True, only: Collection[str] | None = None) -> None:
        """Raises `MissingInput` where there is none and `StoreError` where it is empty, damaged or of another version.

        `native=False` reads through blosc2's Python class instead of libblosc2. `only` names the volumes that count.
        """
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.preparation = self.manifest.preparation
        table = read_table(self.folder)
        self._columns = table.filter(pc.is_null(table["reason"])) if table["reason"].null_count < len(table) else table
        self._only = only
        self.patients: NDArray[np.int64]
        """(N,) the patient's number of each volume, in the order of the volumes."""
        if only is not None:
            self._columns = self._columns.filter(pc.is_in(self._columns["volume"], pa.array(sorted(only), pa.string())))
        if not self._columns.num_rows:
            which = "no volumes" if only is None else "none of the volumes asked for"
            raise StoreError(f"the store {self.folder} holds {which}. Its table says why they were left out; see `medssl store`.")
        check_columns(self.folder, self._columns)
        numbers = _numbers(self.folder, self._columns)
        self._order, self._samples, self.patients = numbers.order, numbers.samples, numbers.patients
        self._native = native
        self._files = FrameCache(native)
        self._volumes: OrderedDict[int, StoredVolume] = OrderedDict()

    def __len__(self) -> int:
        return int(self._columns.num_rows)

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r}, {len(self)} volumes)"

    def _repr_html_(self) -> str:
        columns = ("volume", "modality", "shape", "spacing")
        rows = list(zip(*(self.column(name) for name in columns), strict=True))
        return html_table(repr(self), ("volume", "modality", "voxels", "spacing mm"), rows) + self._picture()

    def _picture(self) -> str:
        """The middle slice of the first volume's first channel, as a picture of a notebook."""
        volume = self.volume(0)
        middle, line = self.read_whole(0)[volume.channels[0].array], volume.lines(self.preparation)[0]
        middle = middle[..., middle.shape[2] // 2] if middle.ndim == 3 else middle
        seen = np.empty(middle.shape, np.float32)
        line.into(middle, seen)
        low, high = float(seen.min()), float(seen.max())
        grey = ((seen - low) / max(high - low, 1e-6) * 255).astype(np.uint8).T[::-1]
        file = io.BytesIO()
        Image.fromarray(grey).save(file, "PNG")
        return f'<img src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}" alt="{volume.volume}"/>'

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.folder, self._native, self._only)

    def check_finished(self, told: str) -> None:
        """`StoreError` where an ingest was cut off or is still under way; `told` is how to train on what is there all the same."""
        left = missing(self.folder)
        if left:
            raise StoreError(
                f"the store {self.folder} was not finished: {len(left)} of its volumes are not there yet. Wait for the `medssl store` that "
                f"is running, or run the same command again; {told} trains on the {len(self)} that are there."
            )

    @property
    def volumes(self) -> tuple[StoredVolume, ...]:
        """Every volume, in the order of their contents."""
        return tuple(self.volume(i) for i in range(len(self)))

    def volume(self, number: int) -> StoredVolume:
        """The volume in that place of the order."""
        found = self._volumes.get(number)
        if found is None:
            found = self._volumes[number] = self._checked(number)
            if len(self._volumes) > 4096:
                self._volumes.popitem(last=False)
        return found

    def _checked(self, number: int) -> StoredVolume:
        row = self._columns.slice(int(self._order[number]), 1).to_pylist()[0]
        try:
            volume = _volume(row, int(self._samples[number]), int(self.patients[number]))
            why = _why_unsound(volume)
        except ROW_ERRORS as error:
            why = f"{type(error).__name__}"
        if why is not None:
            raise damaged_table(self.folder, f"what it says of volume {row['volume']} cannot be ({why})")
        return volume

    def shapes(self) -> NDArray[np.int64]:
        """(N, D) sides of all volumes."""
        return np.asarray(self._columns["shape"].to_pylist(), np.int64)[self._order]

    def column(self, name: str) -> list[Any]:
        """One column of the table, in the order of the volumes."""
        values: list[Any] = self._columns[name].take(pa.array(self._order)).to_pylist()
        return values

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return len(self.volume(0).shape)

    @property
    def channels(self) -> tuple[str, ...]:
        """The channel names, where all volumes agree in their number; otherwise raises `StoreError`."""
        names = self.column("channels")
        if len({len(item) for item in names}) != 1:
            raise StoreError(f"the volumes of {self.folder} have different numbers of channels. Make one store for each.")
        shared = {tuple(item) for item in names}
        return tuple(names[0]) if len(shared) == 1 else tuple(f"channel {i}" for i in range(len(names[0])))

    @property
    def labelled(self) -> bool:
        """Whether any of its volumes has a label."""
        return bool(self._columns["classes"].null_count < len(self))

    def path(self, number: int) -> Path:
        """The file of a volume."""
        return volume_path(self.folder, self.volume(number).volume)

    def dtype(self, number: int) -> np.dtype[Any]:
        """int16 or float32."""
        kind: np.dtype[Any] = self._file(number).dtype
        return kind

    def arrays(self, number: int) -> int:
        """How many arrays the file of a volume holds."""
        return self._file(number).shape[0]

    def read(self, number: int, corner: Sequence[int], size: Sequence[int], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """(A, *size) raw values of the box at `corner`, which must lie inside the volume; into `out` where given.

        Raises `Damaged` where a chunk does not match its checksum and `MissingInput` where the file is gone.
        """
        return _read(self._file(number), corner, size, out)

    def read_labels(self, number: int, corner: Sequence[int], size: Sequence[int], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """(1, *size) classes of that box of a labelled volume, uint8 or int16; as `read`."""
        return _read(self._labels_file(number), corner, size, out)

    def labels_dtype(self, number: int) -> np.dtype[Any]:
        """uint8 or int16."""
        kind: np.dtype[Any] = self._labels_file(number).dtype
        return kind

    def _file(self, number: int) -> FrameFile:
        """The file of a volume, if it is the one that the row was written for: another one has other statistics."""
        volume, file = self.volume(number), self._files.open(self.path(number))
        same = file.digest == volume.digest or volume.digest is None
        kind = file.dtype.str[1:] == volume.dtype if volume.dtype else file.dtype.kind in "if"
        if not (same and kind and file.shape[1:] == volume.shape and file.shape[0] > max(one.array for one in volume.channels)):
            raise _not_its_own(file.path)
        return file

    def _labels_file(self, number: int) -> FrameFile:
        volume = self.volume(number)
        file = self._files.open(labels_path(self.folder, volume.volume))
        same = file.digest == volume.labels_digest or volume.labels_digest is None
        if not (same and file.dtype.kind in "iu" and file.shape == (1, *volume.shape)):
            raise _not_its_own(file.path)
        return file

    def read_whole(self, number: int) -> NDArray[Any]:
        """(A, *shape) raw values of a volume."""
        shape = self.volume(number).shape
        return self.read(number, (0,) * len(shape), shape)

    def left_out(self) -> dict[str, str]:
        """Volume -> why it is not in the store."""
        table = read_table(self.folder)
        bad = table.filter(pc.is_valid(table["reason"]))
        return dict(zip(bad["volume"].to_pylist(), bad["reason"].to_pylist(), strict=True))


def _read(file: FrameFile, corner: Sequence[int], size: Sequence[int], out: NDArray[Any] | None) -> NDArray[Any]:
    if out is None:
        out = np.empty((file.shape[0], *size), file.dtype)
    stop = (file.shape[0], *(c + s for c, s in zip(corner, size, strict=True)))
    file.read((0, *corner), stop, out)
    return out


def _not_its_own(path: Path) -> Damaged:
    return Damaged(
        f"the volume file {path} is not the one that the store's table speaks of: it has another content, shape or type. "
        "Delete it and make the store again with `medssl store`."
    )


def _numbers(folder: Path, table: pa.Table) -> Numbers:
    """The order of the rows by their contents, with the number of each volume and of its patient."""
    try:
        return numbered(table["content"], table["patient"])
    except ValueError as error:
        raise damaged_table(folder, f"it holds contents that cannot be ({error})") from error


def _volume(row: dict[str, Any], sample: int, patient: int) -> StoredVolume:
    dims = len(row["shape"])
    box = row["box"]
    return StoredVolume(
        volume=row["volume"],
        sample=sample,
        patient=patient,
        modality=row["modality"],
        channels=tuple(Channel(*one) for one in zip(row["channels"], row["modalities"], row["arrays"], strict=True)),
        statistics=statistics_of_row(row["statistics"]),
        shape=tuple(row["shape"]),
        spacing=tuple(row["spacing"]),
        affine=np.asarray(row["affine"], np.float64).reshape(4, 4),
        box=(tuple(box[:dims]), tuple(box[dims:])),
        points=_points(row["points"], dims),
        classes=None if row["classes"] is None else tuple(row["classes"]),
        class_points=tuple(_points(content, dims) for content in row["class_points"] or () if content),
        series=row["series"],
        patient_name=row["patient"],
        dtype=row["dtype"],
        digest=row["digest"],
        labels_digest=row["labels_digest"],
    )


def _why_unsound(one: StoredVolume) -> str | None:
    """What in a row cannot be; None where it describes a volume."""
    dims = len(one.shape)
    numbers = [number for statistics in one.statistics for number in astuple(statistics)]
    lo, hi = one.box
    inside = all(0 <= a < b <= side for a, b, side in zip(lo, hi, one.shape, strict=True))
    points = [one.points, *one.class_points]
    checks = {
        "shape": dims in (2, 3) and all(0 < side <= LONGEST for side in one.shape),
        "spacing": len(one.spacing) in (dims, 3) and usable_spacing(one.spacing),
        "affine": bool(np.isfinite(one.affine).all()),
        "channels": bool(one.channels) and all(channel.array in range(2**15) for channel in one.channels),
        "names": all(isinstance(name, str) for channel in one.channels for name in (channel.name, channel.modality)),
        "statistics": len(one.statistics) == len(one.channels) and all(map(math.isfinite, numbers)),
        "box": len(lo) == len(hi) == dims and inside,
        "points": all((part < one.shape).all() for part in points),
        "classes": one.classes is None or len(one.class_points) <= len(one.classes),
    }
    return next((name for name, sound in checks.items() if not sound), None)


def statistics_of_row(numbers: Sequence[float]) -> tuple[Statistics, ...]:
    """Those of each channel, of the numbers that the table holds."""
    width = len(fields(Statistics))
    return tuple(Statistics(*numbers[start : start + width]) for start in range(0, len(numbers), width))


def _points(content: bytes, dims: int) -> NDArray[np.int32]:
    return np.frombuffer(content, "<u2").reshape(-1, dims).astype(np.int32)


def volume_path(folder: Path, volume: str) -> Path:
    """Where a volume's file lies."""
    return folder / "volumes" / f"{volume}.b2nd"


def labels_path(folder: Path, volume: str) -> Path:
    """Where a labelled volume's classes lie."""
    return folder / "labels" / f"{volume}.b2nd"


def read_manifest(folder: Path) -> Manifest:
    """The checked content of `store.json`; raises `MissingInput` or `StoreError`."""
    path = folder / MANIFEST
    with faults_as(StoreError, f"the store {folder} cannot be read"):
        if not holds_file(path):
            raise MissingInput(f"no store at {folder}. Make one with: medssl store SOURCE --out {folder}")
    try:
        content = read_json(path)
    except (ValueError, OSError) as error:
        if is_fault(error):
            raise StoreError(fault(error, f"{path} cannot be read")) from error
        raise StoreError(f"{path} cannot be read: {error}. Make the store again in an empty folder.") from error
    version = content.get("version") if isinstance(content, dict) else None
    if type(version) is not int or version < 1:
        raise StoreError(f"{path} cannot be read: it states no version of a store. Make the store again in an empty folder.")
    if content.get("format") != "medssl-store":
        kind = ascii(content.get("format"))[:80]
        raise StoreError(f"{path} is not a medssl store but {kind}. Give the folder that `medssl store --out` wrote.")
    if version > VERSION:
        raise StoreError(f"the store {folder} is of version {version}, this medssl reads up to {VERSION}. Install a newer medssl.")
    if version < VERSION:
        raise StoreError(
            f"the store {folder} is of version {version} and {_OLDER[version]}; this medssl reads version {VERSION}. "
            f"Make it again: {_remake(folder, content)}"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise StoreError(f"{path} cannot be understood: {where}: {first['msg']}. Make the store again in an empty folder.") from error


def _remake(folder: Path, manifest: dict[str, Any]) -> str:
    """The command that made a store, as far as it can be known; what it was made from may lie beside it."""
    beside = folder.with_name(folder.name + ".index")
    stated = manifest.get("spacing")
    sides = {side for side in stated if isinstance(side, float)} if isinstance(stated, list) else set()
    spacing = f" --spacing {sides.pop()}" if len(sides) == 1 else ""
    return f"medssl store {beside if beside.is_dir() else 'SOURCE'} --out {folder}-v{VERSION}{spacing}"


def write_file(path: Path, content: bytes) -> None:
    """All of `content` under `path` or nothing; raises `StoreError`."""
    with faults_as(StoreError, f"{path} cannot be written", "What is stored already is good: run the same command again."):
        write_atomically(path, content)
