"""What an archive is to medssl: named instances that can be opened. A plugin brings another kind by subclassing `ArchiveSource`.

`keys` and `open` are all that a source must have. It may also keep one of the promises below them, which need no base class:
a source that has the method is used by it.

    StatSource     `stat(key)`             size and version of an instance without opening it
    StartSource    `start(key, count)`     the same, and its first bytes, in one step
    HeaderSource   `headers(keys)`         DICOM headers without the pixels: the index is made without moving pixels
    FrameSource    `frames(key, numbers)`  the pixels of single frames without the rest of their object
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from pydicom import Dataset


class ArchiveSource(ABC):
    """Read-only access to the instances of one archive.

    `open` and the optional methods may be called by several threads at once. A source reaches a worker process by pickle, as its
    class and location, and is made anew there; it may override `__reduce__` to hand over more.
    """

    name: ClassVar[str]
    """How the source is called in messages and in `medssl plugins list`."""
    schemes: ClassVar[tuple[str, ...]]
    """What may stand before the colon of a location: `dicomweb` also opens `dicomweb+https://...`."""

    def __init__(self, location: str) -> None:
        self.location = location

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.location,)

    @abstractmethod
    def keys(self) -> Iterator[str]:
        """The name of every instance, each once, in the order that the source reads best; a name is whatever `open` understands.

        What is made of an archive does not depend on the order. Neighbours are asked for together: a source that fetches a whole
        series at once yields its instances one after the other.
        """

    @abstractmethod
    def open(self, key: str) -> BinaryIO:
        """A seekable binary stream of one instance; raises `OSError` where it cannot be read."""


class Stat(NamedTuple):
    """What is known of an instance without opening it."""

    size: int
    """Bytes of what `open` gives; 0 where the archive does not say."""
    version: str
    """Another text whenever the content is another: a time of change, an ETag, a checksum. Only ever compared."""


@runtime_checkable
class StatSource(Protocol):
    """A source that knows instances without opening them. The index keeps the version, so that a later scan can tell what changed."""

    def stat(self, key: str) -> Stat:
        """Size and version; raises `OSError` where there is no such instance."""


@runtime_checkable
class StartSource(Protocol):
    """A source of which the first bytes of an instance cost less than a stream: most instances are known by their first 16 KiB."""

    def start(self, key: str, count: int) -> tuple[Stat, bytes]:
        """Size and version, and the first `count` bytes or all that there are; raises `OSError` where it cannot be read."""


@runtime_checkable
class HeaderSource(Protocol):
    """A source that has DICOM headers without the pixels: a PACS over DICOMweb, a database beside the files."""

    def headers(self, keys: Sequence[str]) -> Iterator[tuple[str, Dataset]]:
        """(key, header) for those of `keys` (some hundreds, in the order of `keys()`) that have one, in any order, each once.

        A header is a pydicom `Dataset` as read from a file up to the pixels, or as made from DICOM JSON. Its
        `file_meta.TransferSyntaxUID`, if there, is the one in which `open` and `frames` give the pixels; without it
        AvailableTransferSyntaxUID counts, else explicit VR little endian. Elements are in the units of the standard (mm, ms);
        `medssl.archive.wanted_elements(header)` says which of them are read.

        What is left out, say because it is no DICOM, is opened and read whole. `OSError` says that the archive cannot be asked:
        whatever was not yielded before ends as unreadable.
        """


@runtime_checkable
class FrameSource(Protocol):
    """A source that hands over single frames. Where a source has this, it is asked for DICOM pixels before `open` is."""

    def frames(self, key: str, numbers: Sequence[int]) -> Iterator[bytes]:
        """The pixels of the frames of an instance, counted from 0, in the order of `numbers`; an object of one image has frame 0.

        A frame is as PixelData holds it in the transfer syntax of the header: rows x columns x BitsAllocated / 8 bytes where that is
        native, the frame's compressed stream without item tags where it is encapsulated. An object of which no frame is yielded is
        opened instead. Raises `OSError` where it cannot be read.
        """
