"""Whether a store is what was written: every byte of every file against its checksums, every volume against its row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from medssl.errors import MissingInput, StoreError
from medssl.volumes.store.identity import content_of
from medssl.volumes.store.reading import Store
from medssl.volumes.store.table import read_table
from medssl.volumes.store.unfinished import missing


@dataclass(frozen=True)
class Verified:
    """What a look at every byte found."""

    volumes: int
    """Volumes that were looked at."""
    bad: dict[str, str]
    """Volume -> what is wrong with it."""
    unfinished: int
    """Volumes that an ingest has still to bring."""
    strangers: tuple[str, ...]
    """Files that no row speaks of: left behind by an ingest that was killed, and never read."""

    @property
    def sound(self) -> bool:
        """Is every volume there and what was written?"""
        return not self.bad and not self.unfinished

    def document(self) -> dict[str, Any]:
        """The JSON of `medssl verify`."""
        return {
            "sound": self.sound,
            "volumes": self.volumes,
            "bad": self.bad,
            "unfinished": self.unfinished,
            "strangers": list(self.strangers),
        }


def verify(store: Store, *, workers: int = 2, progress: Callable[[int, int | None], None] | None = None) -> Verified:
    """Read every volume and label whole; one volume a worker is in memory. What is damaged is named, and nothing is changed."""
    bad: dict[str, str] = {}
    names, contents = store.column("volume"), store.column("content")
    with ThreadPoolExecutor(workers, "medssl-verify") as pool:
        for number, why in enumerate(pool.map(lambda number: _why_bad(store, number, contents[number]), range(len(store)))):
            if why is not None:
                bad[names[number]] = why
            if progress is not None:
                progress(number + 1, len(store))
    known = set(read_table(store.folder)["volume"].to_pylist())
    return Verified(len(store), bad, len(missing(store.folder)), tuple(_strangers(store, known)))


def _why_bad(store: Store, number: int, content: str) -> str | None:
    try:
        volume = store.volume(number)
        values = store.read_whole(number)
        labels = store.read_labels(number, (0,) * len(volume.shape), volume.shape)[0] if volume.classes is not None else None
    except (StoreError, MissingInput) as error:
        return str(error)
    if content_of(values, volume.affine, volume.channels, labels) != content:
        return "its voxels or its grid are not those of its row. Delete its file and make the store again with `medssl store`."
    return None


def _strangers(store: Store, known: set[str]) -> Iterator[str]:
    for kind in ("volumes", "labels"):
        for path in sorted((store.folder / kind).glob("*")):
            if path.name.partition(".")[0] not in known:
                yield f"{kind}/{path.name}"
