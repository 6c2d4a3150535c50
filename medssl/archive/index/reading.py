"""An index that has been built: what it holds, and its volumes with their voxels."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medssl.archive.index.folder import IndexFolder
from medssl.archive.index.left_out import LeftOut, left_out_of
from medssl.archive.index.query import select_volumes
from medssl.archive.index.records import IndexSummary, Volume, VolumeRecord
from medssl.archive.index.summary import INSTANCES, PLACE, PRIVATE, UNKNOWN, VOLUMES, count_reasons, records_from, summarize
from medssl.archive.instance import SCHEMA, Instance, from_table
from medssl.archive.narrowing import narrow
from medssl.archive.nifti.files import NiftiProblem, read_stream, read_stream_channels
from medssl.archive.outcomes import Reason
from medssl.archive.pixels.filling import SliceProblem, fill
from medssl.archive.pixels.values import whole_range
from medssl.archive.sources.locations import find_source
from medssl.archive.tables import damaged, read_table
from medssl.errors import ArchiveError, UsageError
from medssl.faults import fault, is_fault
from medssl.files import read_json
from medssl.notebook import html_table
from medssl.source import ArchiveSource

if TYPE_CHECKING:
    from medssl.plugins import Plugins


class Index:
    """A finished index folder, opened for reading; `read` may be called from several threads.

    `plugins` open what no source of medssl's own does; without them the installed ones.
    Raises `MissingInput` where there is no index and `ArchiveError` where it is damaged or unfinished.
    """

    def __init__(self, folder: str | Path, plugins: Plugins | None = None) -> None:
        self._folder = IndexFolder.opened(Path(folder))
        self._tables = str(self._folder.tables())
        with self._same():
            self._table = read_table(self._folder.root / self._tables / "volumes.parquet", VOLUMES, UNKNOWN)
        self._records = {record.volume: record for record in records_from(self._table)}
        self._plugins = plugins
        self._opened: dict[int, ArchiveSource] = {}
        self._lock = Lock()

    def __reduce__(self) -> tuple[type[Index], tuple[Path]]:
        """Opened anew where it arrives, such as a spawned worker."""
        return Index, (self._folder.root,)

    def __repr__(self) -> str:
        return f"Index({str(self._folder.root)!r}, {len(self._records)} volumes)"

    def _repr_html_(self) -> str:
        rows = [(one.volume, one.modality, " x ".join(map(str, one.shape)), one.instances) for one in self.volumes()]
        return html_table(repr(self), ("volume", "modality", "voxels", "files"), rows)

    def volumes(self, where: str | None = None) -> list[VolumeRecord]:
        """All volumes, or those for which the SQL condition over the volume table holds; a wrong condition raises `UsageError`."""
        if where is None:
            return list(self._records.values())
        chosen = select_volumes(self._table, where)
        return [record for name, record in self._records.items() if name in chosen]

    def summary(self) -> IndexSummary:
        """What `build_index` returned."""
        return summarize(self._instances, self.volumes())

    def rejected(self) -> dict[str, int]:
        """Reason -> files, for all files that are in no volume."""
        return count_reasons(self._instances)

    def left_out(self) -> list[LeftOut]:
        """The series, or parts of series, that were rejected, with the reason and what would mend it; the largest first."""
        return left_out_of(self._instances)

    def read(self, volume: str) -> Volume:
        """The voxels of a volume, (X, Y, Z) along the record's affine, rescaled; (C, X, Y, Z) where the record has a fourth side C.

        Raises `UsageError` for an unknown volume and `ArchiveError` where its files are gone, changed or cannot be decoded.
        """
        record = self._records.get(volume)
        if record is None:
            raise UsageError(f"the index has no volume '{volume}'. List them with: medssl volumes INDEX_DIR")
        slices = self._slices.get(volume, [])
        if not self._agree(record, slices):
            raise damaged("instances.parquet", f"does not hold the slices of volume {volume}")
        if record.kind == "nifti":
            return Volume(record, self._nifti(record, slices[0]))
        return Volume(record, self._stack(record, slices))

    def file(self, volume: str) -> tuple[int, str]:
        """Number of the source and name in it of a volume's first file. Private: for grouping by names, never to be shown or stored."""
        first = self._slices[volume][0]
        return first.source, os.fsdecode(first.key)

    def slices(self, volume: str) -> tuple[Instance, ...]:
        """The instances that a volume is made of, in order. Private: they hold names of files and real UIDs."""
        return tuple(self._slices.get(volume, ()))

    def left_out_for(self, reason: Reason) -> list[Instance]:
        """The instances in no volume for that reason. Private, as `slices`."""
        table = self._private
        return from_table(table.filter(pa.compute.equal(table["reason"], reason.value)).select(SCHEMA.names))

    def open(self, one: Instance) -> BinaryIO:
        """The file of an instance, to be closed; raises `OSError` where it is gone."""
        return self._source(one.source).open(os.fsdecode(one.key))

    def moment(self, volume: str) -> tuple[tuple[float, str], ...]:
        """What orders the volumes of a dynamic series in time: to be compared within a series only."""
        first = self._slices[volume][0]
        return tuple(_ordered(text) for text in (first.temporal, first.trigger, first.acquired, first.acquisition))

    def check_readable(self) -> None:
        """`ArchiveError` where the part of the index that leads to the files may not be read or is damaged, and so no volume of it."""
        _ = self._slices, self._places

    @contextmanager
    def _same(self) -> Iterator[None]:
        """What cannot be read any more because the index was built again is not damaged."""
        try:
            yield
        except ArchiveError as error:
            if IndexFolder.opened(self._folder.root).tables() == self._tables:
                raise
            raise ArchiveError(
                f"the index in {self._folder.root} was built again while it was read. Run the same command again."
            ) from error

    @cached_property
    def _instances(self) -> pa.Table:
        with self._same():
            return read_table(self._folder.root / self._tables / "instances.parquet", INSTANCES, PLACE)

    @cached_property
    def _private(self) -> pa.Table:
        with self._same():
            return read_table(self._folder.private / self._tables / "instances.parquet", PRIVATE, PLACE)

    @cached_property
    def _slices(self) -> dict[str, list[Instance]]:
        """Volume -> its instances in order, from the private part."""
        table = self._private
        table = table.filter(pa.compute.is_valid(table["volume"])).sort_by([("volume", "ascending"), ("slice", "ascending")])
        found: dict[str, list[Instance]] = defaultdict(list)
        for name, one in zip(table["volume"].to_pylist(), from_table(table.select(SCHEMA.names)), strict=True):
            found[name].append(one)
        return found

    @cached_property
    def _places(self) -> list[str]:
        with self._same():
            try:
                places = read_json(self._folder.private / self._tables / "sources.json")
            except (OSError, ValueError) as error:
                if is_fault(error) and not isinstance(error, FileNotFoundError):
                    raise ArchiveError(fault(error, "sources.json of the index cannot be read")) from error
                raise damaged("sources.json", "cannot be read") from error
        if not (isinstance(places, list) and all(isinstance(place, str) for place in places)):
            raise damaged("sources.json", "is no list of places")
        return places

    def _agree(self, record: VolumeRecord, slices: list[Instance]) -> bool:
        """Are these the slices that the volume's own row speaks of?"""
        known = all(0 <= one.source < len(self._places) and one.kind == record.kind for one in slices)
        if record.kind == "nifti":
            return known and len(slices) == 1
        sides = all((one.columns, one.rows) == record.shape[:2] and one.has_usable_bits for one in slices)
        return known and sides and len(slices) == record.shape[2]

    def _source(self, number: int) -> ArchiveSource:
        with self._lock:
            if number not in self._opened:
                self._opened[number] = find_source(self._places[number], self._plugins)
            return self._opened[number]

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
        return narrow(stacked.transpose(2, 1, 0))


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
