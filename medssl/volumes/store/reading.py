"""A store: one folder of volumes ready to be cropped, self-describing and versioned.

    store.json            version, preparation, spacing, axes (`medssl.volumes.store.manifest`)
    table/*.parquet       one row a volume, or a volume's name and the reason why it was left out
    rows/*.json           rows of an ingest that is under way or was cut off
    volumes/*.b2nd        one file a volume (`medssl.volumes.store.frames`): its arrays, of which its channels are made when read
    labels/*.b2nd         its classes on the same grid, where it is labelled

Names of patients, volumes and series are pseudonyms. A row counts once its volume's file is in place.
"""

from __future__ import annotations

import base64
import io
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from medssl.errors import StoreError
from medssl.notebook import html_table
from medssl.volumes.store.frames import Damaged, FrameCache, FrameFile
from medssl.volumes.store.identity import Numbers, numbered
from medssl.volumes.store.manifest import read_manifest
from medssl.volumes.store.rows import StoredVolume, volume_of_row, why_unsound
from medssl.volumes.store.table import ROW_ERRORS, check_columns, damaged_table, read_table
from medssl.volumes.store.unfinished import missing

if TYPE_CHECKING:
    from torch.utils.data import Subset


class Store:
    """A store opened for reading, by any number of threads and processes.

    It is a sequence too, of the items that MONAI's datasets and torch's loaders take: `store[0]["image"]`.
    """

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

    @overload
    def __getitem__(self, place: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, place: slice | Sequence[int]) -> Subset[dict[str, Any]]: ...

    def __getitem__(self, place: int | slice | Sequence[int]) -> Any:
        """The volume in that place of the order as the item of a MONAI pipeline; of several places a `Subset`, as MONAI's datasets give.

        `image` is a MetaTensor (C, *shape) of the values that a network sees, with the affine to RAS+ mm; `label` (1, *shape), its
        classes, is there where the volume has one. What they are is in their `meta`: volume, patient, modality, channels.
        """
        if isinstance(place, slice | Sequence):
            from torch.utils.data import Subset

            return Subset(self, range(len(self))[place] if isinstance(place, slice) else place)  # type: ignore[arg-type]
        from medssl.volumes.store.items import item_of

        number = index(place)
        if not -len(self) <= number < len(self):
            raise IndexError(f"the store {self.folder} holds {len(self)} volumes, and there is no number {number}.")
        number %= len(self)
        volume = self.volume(number)
        origin = (0,) * len(volume.shape)
        classes = None if volume.classes is None else self.read_labels(number, origin, volume.shape)
        return item_of(volume, self.preparation, self.read_whole(number), classes)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[number] for number in range(len(self)))

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r}, {len(self)} volumes)"

    def _repr_html_(self) -> str:
        columns = ("volume", "modality", "shape", "spacing")
        rows = list(zip(*(self.column(name) for name in columns), strict=True))
        return html_table(repr(self), ("volume", "modality", "voxels", "spacing mm"), rows) + self._picture()

    def _picture(self) -> str:
        """The middle slice of the first volume's first channel, as a picture of a notebook."""
        volume = self.volume(0)
        across, along = volume.shape[:2], volume.shape[2:]
        channel, line = volume.channels[0], volume.lines(self.preparation)[0]
        slab = self.read(0, (0, 0, *(side // 2 for side in along)), (*across, *(1 for _ in along)))
        middle = slab[channel.array].reshape(across)
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
            volume = volume_of_row(row, int(self._samples[number]), int(self.patients[number]))
            why = why_unsound(volume)
        except ROW_ERRORS as error:
            why = f"{type(error).__name__}"
        if why is not None:
            raise damaged_table(self.folder, f"what it says of volume {row['volume']} cannot be ({why})")
        return volume

    def shapes(self) -> NDArray[np.int64]:
        """(N, D) sides of all volumes."""
        return np.asarray(self._columns["shape"].to_pylist(), np.int64)[self._order]

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the table's columns, those of voxels aside."""
        return tuple(field.name for field in self._columns.schema if "points" not in field.name and field.name != "reason")

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


def volume_path(folder: Path, volume: str) -> Path:
    """Where a volume's file lies."""
    return folder / "volumes" / f"{volume}.b2nd"


def labels_path(folder: Path, volume: str) -> Path:
    """Where a labelled volume's classes lie."""
    return folder / "labels" / f"{volume}.b2nd"
