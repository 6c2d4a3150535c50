"""What an archive is to medssl: named instances that can be opened. A plugin brings another kind by subclassing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO, ClassVar


class ArchiveSource(ABC):
    """Read-only access to the instances of one archive. Made anew from `location` in each worker process."""

    name: ClassVar[str]
    """How the source is called in messages and in `medssl plugins list`."""
    schemes: ClassVar[tuple[str, ...]]
    """What may stand before the colon of a location: `dicomweb` also opens `dicomweb+https://...`."""

    def __init__(self, location: str) -> None:
        self.location = location

    @abstractmethod
    def keys(self) -> Iterator[str]:
        """The name of every instance, sorted, each once; a name is whatever `open` understands."""

    @abstractmethod
    def open(self, key: str) -> BinaryIO:
        """A seekable binary stream of one instance; raises `OSError` where it cannot be read."""

    def instances(self) -> Iterator[tuple[str, Callable[[], BinaryIO]]]:
        """Pairs of name and opener, sorted by name."""
        for key in self.keys():
            yield key, partial(self.open, key)
