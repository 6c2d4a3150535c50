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
from medssl.faults import fault, faults_as, is_fault
from medssl.files import LOCK, Busy, holds_file, lock_folder, make_folder, others_in, read_json, take_folder, write_atomically

FORMAT = "medssl index"
VERSION = 4
"""2: instances have a frame number and the version that their source gave. 3: how they were taken, and how their position is written.
4: the series' description, in the private part."""
MARK = "index.json"
_TABLES = re.compile(r"tables-\d{1,9}")
_BUILT = re.compile(r"tables-\d{1,9}|\.new-[0-9a-f]{8}")


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
    @contextmanager
    def held(cls, root: Path) -> Iterator[IndexFolder]:
        """A new index folder, or the one that is there, for this process alone; any other content is refused with `UsageError`."""
        folder = cls(root)
        if root.exists() and not root.is_dir():
            raise UsageError(f"{root} is a file. Give a folder for the index.")
        if holds_file(root / MARK):
            folder._read_mark()
        else:
            folder._refuse_others()
            take_folder(root)
        make_folder(folder.private)
        try:
            lock = lock_folder(root, swept=("", folder.private.name))
        except Busy as error:
            raise ArchiveError(f"another process ({error}) is building the index in {root}. Wait for it, or name another folder.") from None
        try:
            if holds_file(root / MARK):
                folder._sweep(folder.tables())
            else:
                folder._write_mark(None)
            yield folder
        finally:
            lock.release()

    def _refuse_others(self) -> None:
        """What an earlier build left that came no further, because the disk was full, is ours."""
        others = others_in(self.root, lambda name: name in (LOCK, MARK, self.private.name) or _BUILT.fullmatch(name) is not None)
        others += others_in(self.private, lambda name: name == self.key.name or _BUILT.fullmatch(name) is not None)
        if others:
            raise UsageError(
                f"{self.root} holds other files ({', '.join(others[:3])}) and is no index. Give an empty folder or a new name."
            )

    @classmethod
    def opened(cls, root: Path) -> IndexFolder:
        """An existing index folder; raises `MissingInput` or `ArchiveError`."""
        folder = cls(root)
        with faults_as(ArchiveError, f"the index in {root} cannot be read"):
            if not holds_file(root / MARK):
                raise MissingInput(f"{root} is no index folder. Make one with: medssl index PATH --index {root}")
        version = folder._read_mark()["version"]
        if version != VERSION:
            raise ArchiveError(
                f"the index in {root} is of format {version}, which holds less than this medssl needs; it reads format {VERSION}. "
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
            mark = read_json(self.root / MARK)
        except (ValueError, OSError) as error:
            if is_fault(error):
                raise ArchiveError(fault(error, f"{self.root / MARK} cannot be read")) from error
            raise ArchiveError(f"{self.root / MARK} is damaged. Remove the folder and index the archive again.") from error
        if not isinstance(mark, dict) or mark.get("format") != FORMAT or "tables" not in mark:
            raise UsageError(f"{self.root} holds an {MARK} that is not medssl's. Give an empty folder or a new name.")
        version = mark.get("version")
        if type(version) is not int or version < 1 or not (mark["tables"] is None or _TABLES.fullmatch(str(mark["tables"]))):
            raise ArchiveError(f"{self.root / MARK} is damaged. Remove the folder and index the archive again.")
        if version > VERSION:
            raise ArchiveError(f"the index in {self.root} is of format {version}, this medssl reads up to {VERSION}. Update medssl.")
        return mark

    def _write_mark(self, tables: str | None) -> None:
        mark = {"format": FORMAT, "version": VERSION, "tables": tables}
        write_atomically(self.root / MARK, json.dumps(mark, indent=1).encode())

    @contextmanager
    def building(self) -> Iterator[tuple[Path, Path]]:
        """New folders for public and private tables; when the block ends well they replace the old ones in one step."""
        old = self.tables()
        name = f"tables-{int(old.rpartition('-')[2]) + 1 if old else 1}"
        public, private = self.root / f".new-{uuid4().hex[:8]}", self.private / f".new-{uuid4().hex[:8]}"
        try:
            for path in (public, private):
                make_folder(path)
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

    def _sweep(self, name: str | None) -> None:
        """Remove tables of earlier builds and what killed builds left behind."""
        for parent in (self.root, self.private):
            for path in parent.iterdir():
                if path.is_dir() and path.name.startswith(("tables-", ".new-")) and path.name != name:
                    shutil.rmtree(path, ignore_errors=True)
