"""The index folder: what lies where, made private, replaced as a whole, and never mistaken for another folder.

index.json                  format, version, which tables count
tables-N/volumes.parquet    one row a volume        (pseudonyms only)
tables-N/instances.parquet  one row an instance: a file, or a frame of it (pseudonyms only)
private/key                 the secret of the pseudonyms
private/tables-N/           paths and real UIDs
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from medssl.errors import ArchiveError, MissingInput, UsageError
from medssl.files import read_json, write_atomically

FORMAT = "medssl index"
VERSION = 2
"""2: instances have a frame number and the version that their source gave."""
_MARK = "index.json"
_TABLES = re.compile(r"tables-\d{1,9}")


@dataclass(frozen=True)
class IndexFolder:
    """Paths within one index folder."""

    root: Path

    @property
    def private(self) -> Path:
        """Where paths, real UIDs and the key are."""
        return self.root / "private"

    @property
    def key(self) -> Path:
        """The secret of the pseudonyms."""
        return self.private / "key"

    @classmethod
    def prepared(cls, root: Path) -> IndexFolder:
        """A new index folder, or the one that is there; any other content is refused with `UsageError`."""
        folder = cls(root)
        if root.exists() and not root.is_dir():
            raise UsageError(f"{root} is a file. Give a folder for the index.")
        if root.is_dir() and any(root.iterdir()) and not (root / _MARK).is_file():
            raise UsageError(f"{root} holds other files and is no index. Give an empty folder or a new name.")
        known = (root / _MARK).is_file()
        if known:
            folder._read_mark()
        for path in (root, folder.private):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
        if not known:
            folder._write_mark(None)
        return folder

    @classmethod
    def opened(cls, root: Path) -> IndexFolder:
        """An existing index folder; raises `MissingInput` or `ArchiveError`."""
        folder = cls(root)
        if not (root / _MARK).is_file():
            raise MissingInput(f"{root} is no index folder. Make one with: medssl index PATH --index {root}")
        version = folder._read_mark()["version"]
        if version != VERSION:
            raise ArchiveError(
                f"the index in {root} is of format {version}, from before instances had frame numbers; this medssl reads format {VERSION}. "
                f"Make it again, with the same names: medssl index PATH --index {root}"
            )
        if folder.tables() is None:
            raise ArchiveError(f"the index in {root} was never finished. Run medssl index again with the same folder.")
        return folder

    def tables(self) -> str | None:
        """The name of the tables that count; None before the first build is finished."""
        name = self._read_mark()["tables"]
        return None if name is None else str(name)

    def _read_mark(self) -> dict[str, object]:
        """Of this format version or an older one: an older index can be replaced, though not read."""
        try:
            mark = read_json(self.root / _MARK)
        except (ValueError, OSError) as error:
            raise ArchiveError(f"{self.root / _MARK} is damaged. Remove the folder and index the archive again.") from error
        if not isinstance(mark, dict) or mark.get("format") != FORMAT or "tables" not in mark:
            raise UsageError(f"{self.root} holds an {_MARK} that is not medssl's. Give an empty folder or a new name.")
        version = mark.get("version")
        if type(version) is not int or version < 1 or not (mark["tables"] is None or _TABLES.fullmatch(str(mark["tables"]))):
            raise ArchiveError(f"{self.root / _MARK} is damaged. Remove the folder and index the archive again.")
        if version > VERSION:
            raise ArchiveError(f"the index in {self.root} is of format {version}, this medssl reads up to {VERSION}. Update medssl.")
        return mark

    def _write_mark(self, tables: str | None) -> None:
        mark = {"format": FORMAT, "version": VERSION, "tables": tables}
        write_atomically(self.root / _MARK, json.dumps(mark, indent=1).encode(), private=True)

    @contextmanager
    def building(self) -> Iterator[tuple[Path, Path]]:
        """New folders for public and private tables; when the block ends well they replace the old ones in one step."""
        old = self.tables()
        name = f"tables-{int(old.rpartition('-')[2]) + 1 if old else 1}"
        public, private = self.root / f".new-{uuid4().hex[:8]}", self.private / f".new-{uuid4().hex[:8]}"
        try:
            for path in (public, private):
                path.mkdir(mode=0o700)
            yield public, private
            for path, final in ((public, self.root / name), (private, self.private / name)):
                if final.exists():
                    shutil.rmtree(final)
                path.rename(final)
            self._write_mark(name)
        finally:
            for path in (public, private):
                shutil.rmtree(path, ignore_errors=True)
        self._sweep(name)

    def _sweep(self, name: str) -> None:
        """Remove tables of earlier builds and what killed builds left behind."""
        for parent in (self.root, self.private):
            for path in parent.iterdir():
                if path.is_dir() and path.name.startswith(("tables-", ".new-")) and path.name != name:
                    shutil.rmtree(path, ignore_errors=True)
