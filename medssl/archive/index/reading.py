"""An index that has been built: what it holds, and its volumes with their voxels."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medssl.archive.index.contents import Contents
from medssl.archive.index.folder import IndexFolder
from medssl.archive.index.left_out import LeftOut, left_out_of
from medssl.archive.index.parts import instances_file
from medssl.archive.index.pseudonyms import Pseudonyms
from medssl.archive.index.query import select_volumes
from medssl.archive.index.records import IndexSummary, Volume, VolumeRecord
from medssl.archive.index.registry import Sources
from medssl.archive.index.summary import PLACE, PRIVATE, Counts, records_from
from medssl.archive.instance import SCHEMA, Instance, from_table
from medssl.archive.narrowing import narrow
from medssl.archive.nifti.files import NiftiProblem, read_stream, read_stream_channels
from medssl.archive.nifti.modality import channel_names
from medssl.archive.outcomes import Reason
from medssl.archive.pictures.files import PictureProblem, read_picture_stream
from medssl.archive.pixels.filling import SliceProblem, clear_padding, fill
from medssl.archive.pixels.images import image_values
from medssl.archive.pixels.values import PixelProblem, whole_range
from medssl.archive.tables import damaged, read_groups
from medssl.errors import ArchiveError, UsageError
from medssl.notebook import html_table
from medssl.source import ArchiveSource

if TYPE_CHECKING:
    from medssl.plugins import Plugins

_GROUPS = 4
"""Row groups of private instances that are kept: volumes that lie side by side are often read one after the other."""


class Index:
    """A finished index folder, opened for reading; `read` may be called from several threads.

    `plugins` open what no source of medssl's own does; without them the installed ones.
    Raises `MissingInput` where there is no index and `ArchiveError` where it is damaged or unfinished.
    """

    def __init__(self, folder: str | Path, plugins: Plugins | None = None) -> None:
        self._folder = IndexFolder.opened(Path(folder))
        self._contents = Contents.of(self._folder)
        with self._same():
            self._table = self._contents.volumes
        self._plugins = plugins
        self._groups: OrderedDict[tuple[int, int, int], pa.Table] = OrderedDict()
        self._lock = Lock()

    def __reduce__(self) -> tuple[Callable[..., Index], tuple[Path, tuple[str, ...]]]:
        """Opened anew where it arrives, such as a worker."""
        return _arrived, (self._folder.root.absolute(), tuple(self._contents.names))

    def __repr__(self) -> str:
        return f"Index({str(self._folder.root)!r}, {len(self._table)} volumes)"

    def _repr_html_(self) -> str:
        rows = [(one.volume, one.modality, " x ".join(map(str, one.shape)), one.instances) for one in self.volumes()]
        return html_table(repr(self), ("volume", "modality", "voxels", "files"), rows)

    def volumes(self, where: str | None = None) -> list[VolumeRecord]:
        """All volumes, or those for which the SQL condition over the volume table holds; a wrong condition raises `UsageError`."""
        chosen = self._table if where is None else self._table.filter(pc.is_in(self._table["volume"], select_volumes(self._table, where)))
        return records_from(chosen)

    def summary(self) -> IndexSummary:
        """What `build_index` returned."""
        with self._same():
            return self._contents.summary()

    def rejected(self) -> dict[str, int]:
        """Reason -> files, for all files that are in no volume."""
        counts = Counts()
        with self._same():
            for table in self._contents.instances():
                counts.add(table)
        return counts.reasons()

    def left_out(self) -> list[LeftOut]:
        """The series, or parts of series, that were rejected, with the reason and what would mend it; the largest first."""
        with self._same():
            return left_out_of(self._contents.instances())

    def read(self, volume: str, frames: Sequence[int] | None = None) -> Volume:
        """The voxels of a volume, (X, Y, Z) along the record's affine, rescaled; (C, X, Y, Z) where the record has a fourth side C.

        Of a 2D image `frames`, counted from 0, are read alone: their values follow each other, frame by frame. Raises `UsageError` for an
        unknown volume and `ArchiveError` where its files are gone, changed or cannot be decoded.
        """
        row = pc.index(self._table["volume"], volume).as_py()
        if row < 0:
            raise UsageError(f"the index has no volume '{volume}'. List them with: medssl volumes INDEX_DIR")
        (record,) = records_from(self._table.slice(row, 1))
        slices = self._slices(volume)
        if not self._agree(record, slices):
            raise damaged("the private part", f"does not hold the slices of volume {volume}")
        if record.kind == "nifti":
            return Volume(record, self._nifti(record, slices[0]))
        if record.is_image:
            return Volume(record, self._image(record, slices[0], frames))
        return Volume(record, self._stack(record, slices))

    def clear_padding(self, volume: Volume) -> Volume:
        """A volume that was read, its padding, as the headers call it, at the lowest value of the other voxels, in place.

        Scanners fill what they did not see with -2000 and the like, which would lead every statistic.
        """
        if volume.record.kind == "dicom" and volume.record.dimensions == 3:
            clear_padding(volume.array.transpose(2, 1, 0), self.slices(volume.record.volume))
        return volume

    def file(self, volume: str) -> tuple[int, str]:
        """Number of the source and name in it of a volume's first file. Private: for grouping by names, never to be shown or stored."""
        first = self._first(volume)
        return first["source"], os.fsdecode(first["key"])

    def slices(self, volume: str) -> tuple[Instance, ...]:
        """The instances that a volume is made of, in order. Private: they hold names of files and real UIDs."""
        return tuple(self._slices(volume)) if volume in self._rows else ()

    def channel_names(self, volume: str) -> dict[int, str]:
        """Channel number -> name, where the `dataset.json` of a NIfTI file's data set says so; words that are not known are left out."""
        source, key = self.file(volume)
        return channel_names(self._source(source), key)

    def left_out_for(self, *reasons: Reason) -> list[Instance]:
        """The instances in no volume for one of these reasons. Private, as `slices`."""
        found: list[Instance] = []
        wanted = pa.array([reason.value for reason in reasons])
        with self._same():
            for table in self._contents.private():
                found += from_table(table.filter(pc.is_in(table["outcome"], wanted)).select(SCHEMA.names))
        return found

    def open(self, one: Instance) -> BinaryIO:
        """The file of an instance, to be closed; raises `OSError` where it is gone."""
        return self._source(one.source).open(os.fsdecode(one.key))

    def pseudonym(self, patient: str) -> str:
        """What a patient of that name is called, by the index's key: the same whenever it is asked, and no way back."""
        return Pseudonyms.of(self._folder.key).name("patient", f"named\n{patient}")

    def moment(self, volume: str) -> tuple[tuple[float, str], ...]:
        """What orders the volumes of a dynamic series in time: to be compared within a series only."""
        first = self._first(volume)
        return tuple(_ordered(first[name]) for name in ("temporal", "trigger", "acquired", "acquisition"))

    def check_readable(self) -> None:
        """`ArchiveError` where the part of the index that leads to the files may not be read or is damaged, and so no volume of it."""
        _ = self._rows, self._sources
        for tables, part in {(row["tables"], row["part"]) for row in self._placed.select(["tables", "part"]).to_pylist()}:
            with self._same():
                read_groups(self._private(tables, part), PRIVATE, [])

    @property
    def places(self) -> list[str]:
        """The location of each source by its number. Private."""
        return self._sources.places

    @contextmanager
    def _same(self) -> Iterator[None]:
        """What cannot be read any more because its tables were replaced is not damaged."""
        try:
            yield
        except ArchiveError as error:
            now = IndexFolder.opened(self._folder.root).mark().tables or ()
            if set(self._contents.names) <= set(now):
                raise
            raise ArchiveError(
                f"the index in {self._folder.root} was built again while it was read. Run the same command again."
            ) from error

    @cached_property
    def _placed(self) -> pa.Table:
        with self._same():
            return self._contents.slices

    @cached_property
    def _rows(self) -> dict[str, int]:
        """Volume -> its row in the private volume table."""
        return {volume: row for row, volume in enumerate(self._placed["volume"].to_pylist())}

    def _first(self, volume: str) -> dict[str, Any]:
        if volume not in self._rows:
            raise damaged("the private part", f"does not hold volume {volume}")
        found: dict[str, Any] = self._placed.slice(self._rows[volume], 1).to_pylist()[0]
        return found

    def _private(self, tables: int, part: int) -> Path:
        return instances_file(self._folder.private / self._contents.names[tables], part)

    def _slices(self, volume: str) -> list[Instance]:
        """The instances of a volume in order, from the private part."""
        found = self._first(volume)
        place = found["tables"], found["part"], found["group"]
        with self._lock:
            if place not in self._groups:
                with self._same():
                    self._groups[place] = read_groups(self._private(*place[:2]), PRIVATE, [found["group"]], PLACE)
            self._groups.move_to_end(place)
            while len(self._groups) > _GROUPS:
                self._groups.popitem(last=False)
            rows = self._groups[place].slice(found["first"], found["count"])
        if rows["volume"].to_pylist() != [volume] * found["count"] or rows["slice"].to_pylist() != list(range(found["count"])):
            raise damaged("the private part", f"does not hold the slices of volume {volume}")
        return from_table(rows.select(SCHEMA.names))

    @cached_property
    def _sources(self) -> Sources:
        with self._same():
            return Sources.of(self._folder.sources, self._plugins)

    def _agree(self, record: VolumeRecord, slices: list[Instance]) -> bool:
        """Are these the slices that the volume's own row speaks of?"""
        known = all(0 <= one.source < len(self._sources.places) and one.kind == record.kind for one in slices)
        if record.kind == "nifti":
            return known and len(slices) == 1
        if record.is_image:
            return known and len(slices) == 1 and (slices[0].frames, slices[0].samples) == (record.frames, record.colours)
        sides = all((one.columns, one.rows) == record.shape[:2] and one.has_usable_bits for one in slices)
        return known and sides and len(slices) == record.shape[2]

    def _source(self, number: int) -> ArchiveSource:
        with self._lock:
            return self._sources[number]

    def _nifti(self, record: VolumeRecord, one: Instance) -> NDArray[Any]:
        several = len(record.shape) == 4
        try:
            with self._source(one.source).open(os.fsdecode(one.key)) as file:
                array, affine = read_stream_channels(file) if several else read_stream(file)
        except OSError as error:
            raise _gone(record, 0, error) from None
        except NiftiProblem as problem:
            raise ArchiveError(f"volume {record.volume} cannot be read: {problem}.") from None
        if array.shape != (record.shape[3:] + record.shape[:3]) or not np.allclose(affine, record.affine, atol=1e-6):
            raise ArchiveError(f"the file of volume {record.volume} has changed since it was indexed. Index the archive again.")
        return array

    def _image(self, record: VolumeRecord, one: Instance, frames: Sequence[int] | None) -> NDArray[Any]:
        source = self._source(one.source)
        try:
            if record.kind == "picture":
                with source.open(os.fsdecode(one.key)) as file:
                    array = read_picture_stream(file).array
            else:
                array = np.moveaxis(image_values(source, one, frames), (0, 3), (0, 1))
                array = narrow(array.reshape(-1, *array.shape[2:]).swapaxes(1, 2)[..., None])
        except OSError as error:
            raise _gone(record, 0, error) from None
        except (PixelProblem, PictureProblem) as problem:
            raise ArchiveError(f"image {record.volume} cannot be read: {problem}.") from None
        if array.shape[1:] != record.shape[:3] or len(array) % record.colours:
            raise ArchiveError(f"the file of image {record.volume} has changed since it was indexed. Index the archive again.")
        return array if len(array) > 1 else array[0]

    def _stack(self, record: VolumeRecord, slices: list[Instance]) -> NDArray[Any]:
        """Slices are written as they come, so at most two decoded slices are held beside the volume."""
        try:
            stacked = np.empty(record.shape[::-1], _target(slices))
        except MemoryError:
            raise ArchiveError(f"volume {record.volume} does not fit into memory: {record.shape}.") from None
        try:
            fill(stacked, slices, self._source)
        except SliceProblem as problem:
            if isinstance(problem.cause, OSError):
                raise _gone(record, problem.number, problem.cause) from None
            raise ArchiveError(f"slice {problem.number} of volume {record.volume}: {problem.cause}.") from None
        except OSError as error:  # the source itself is gone, such as a zip file in the archive, whose name may tell whose it is
            raise _gone(record, 0, error) from None
        return narrow(stacked.transpose(2, 1, 0))


@lru_cache(maxsize=4)
def _arrived(folder: Path, tables: tuple[str, ...]) -> Index:
    """Once in a process, not for each volume that it is asked for, as long as the tables are the same."""
    return Index(folder)


def _ordered(text: str) -> tuple[float, str]:
    """Numbers by their size, other text behind them by itself."""
    try:
        return float(text), ""
    except ValueError:
        return np.inf, text


def _target(slices: list[Instance]) -> type[np.int16] | type[np.float32]:
    """int16 at once where no value that the bits allow can leave its range."""
    ranges = [whole_range(one) for one in slices]
    fits = all(ends is not None and ends[0] >= -32768 and ends[1] <= 32767 for ends in ranges)
    return np.int16 if fits else np.float32


def _gone(record: VolumeRecord, number: int, error: OSError) -> ArchiveError:
    """Its path is not shown: it may tell whose it is."""
    why = "moved or deleted?" if error.strerror is None or isinstance(error, FileNotFoundError) else f"{error.strerror}."
    return ArchiveError(f"the file of slice {number} of volume {record.volume} cannot be opened: {why} Index the archive again.")
