"""The index folder: what lies where, made private, grown shard by shard, and never mistaken for another folder.

index.json                       format, version, which tables count, and what was asked when they were made
tables-N/volumes-NNNN.parquet    one row a volume        (pseudonyms only)
tables-N/instances-NNNN.parquet  one row an instance: a file, or a frame of it (pseudonyms only)
tables-N/changes.parquet         files and volumes of earlier tables that no longer count
tables-N/studies.parquet         the order of each patient's studies; those of the newest tables count
private/key                      the secret of the pseudonyms
private/tables-N/                paths and real UIDs, and which rows of them are which volume
private/sources.parquet          the location of each source
private/archives.parquet         zip and tar files as they were when they were read
private/scan/                    headers that were read since the newest tables
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from uuid import uuid4

from medssl.errors import ArchiveError, MissingInput, UsageError
from medssl.faults import fault, faults_as, is_fault
from medssl.files import LOCK, Busy, holds_file, lock_folder, make_folder, others_in, read_json, take_folder, write_atomically

FORMAT = "medssl index"
VERSION = 5
"""2: instances have a frame number and the version that their source gave. 3: how they were taken, and how their position is written.
4: the series' description, in the private part. 5: shards that later ones add to, take from and change."""
MARK = "index.json"
_TABLES = re.compile(r"tables-\d{1,9}")
_BUILT = re.compile(r"tables-\d{1,9}|\.new-[0-9a-f]{8}")
_PRIVATE = frozenset({"key", "scan", "sources.parquet", "archives.parquet", "forgotten.parquet", "revealed.log"})


@dataclass(frozen=True)
class Asked:
    """What an index was made with: where it differs, what is kept may not be what would be made now."""

    slice_location: bool = False
    """SliceLocation stands in for positions that were removed."""
    read: str = ""
    """Which columns are read of a file, and of which studies."""
    key: str = ""
    """A name that only one key gives."""


@dataclass(frozen=True)
class Mark:
    """What `index.json` says."""

    tables: tuple[str, ...] | None = None
    """Those that count, oldest first; None before the first build is finished."""
    asked: Asked = Asked()


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

    @property
    def scan(self) -> Path:
        """Shards of headers that no tables hold yet."""
        return self.private / "scan"

    @property
    def sources(self) -> Path:
        """Where each source is."""
        return self.private / "sources.parquet"

    @property
    def forgotten(self) -> Path:
        """Names of patients who are not to be indexed any more."""
        return self.private / "forgotten.parquet"

    @property
    def revealed(self) -> Path:
        """Who asked which files a volume is made of."""
        return self.private / "revealed.log"

    @property
    def archives(self) -> Path:
        """Zip and tar files as they were read."""
        return self.private / "archives.parquet"

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
            lock = lock_folder(root, swept=("", folder.private.name, f"{folder.private.name}/{folder.scan.name}"))
        except Busy as error:
            raise ArchiveError(f"another process ({error}) is building the index in {root}. Wait for it, or name another folder.") from None
        try:
            if holds_file(root / MARK):
                folder._sweep(folder.mark().tables or ())
            else:
                folder._write_mark(Mark())
            yield folder
        finally:
            lock.release()

    def _refuse_others(self) -> None:
        """What an earlier build left that came no further, because the disk was full, is ours."""
        others = others_in(self.root, lambda name: name in (LOCK, MARK, self.private.name) or _BUILT.fullmatch(name) is not None)
        others += others_in(self.private, lambda name: name in _PRIVATE or _BUILT.fullmatch(name) is not None)
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
        if folder.mark().tables is None:
            raise ArchiveError(f"the index in {root} was never finished. Run medssl index again with the same folder.")
        return folder

    def mark(self) -> Mark:
        """Which tables count, and what they were made with; of an older format none do."""
        found = self._read_mark()
        if found["version"] != VERSION or found["tables"] is None:
            return Mark()
        assert isinstance(found["tables"], list) and isinstance(found["asked"], dict)
        return Mark(tuple(found["tables"]), Asked(**found["asked"]))

    def _read_mark(self) -> dict[str, object]:
        """Of this format version or an older one: an older index can be replaced, though not read."""
        try:
            mark = read_json(self.root / MARK)
        except (ValueError, OSError) as error:
            if is_fault(error):
                raise ArchiveError(fault(error, f"{self.root / MARK} cannot be read")) from error
            raise self._damaged() from error
        if not isinstance(mark, dict) or mark.get("format") != FORMAT or "tables" not in mark:
            raise UsageError(f"{self.root} holds an {MARK} that is not medssl's. Give an empty folder or a new name.")
        version = mark.get("version")
        if type(version) is not int or version < 1:
            raise self._damaged()
        if version > VERSION:
            raise ArchiveError(f"the index in {self.root} is of format {version}, this medssl reads up to {VERSION}. Update medssl.")
        if version == VERSION and not (_are_tables(mark["tables"]) and _is_asked(mark.get("asked"))):
            raise self._damaged()
        return mark

    def _damaged(self) -> ArchiveError:
        return ArchiveError(f"{self.root / MARK} is damaged. Remove the folder and index the archive again.")

    def _write_mark(self, mark: Mark) -> None:
        content = {"format": FORMAT, "version": VERSION, "tables": mark.tables, "asked": asdict(mark.asked)}
        write_atomically(self.root / MARK, json.dumps(content, indent=1).encode())

    @contextmanager
    def building(self) -> Iterator[New]:
        """New folders for public and private tables, and for what is needed on the way; what of it is not taken over goes."""
        public, private = self.root / f".new-{uuid4().hex[:8]}", self.private / f".new-{uuid4().hex[:8]}"
        try:
            yield New(make_folder(public), make_folder(private), make_folder(private / "work"))
        finally:
            for path in (public, private):
                shutil.rmtree(path, ignore_errors=True)

    def take_over(self, new: New, earlier: Sequence[str], asked: Asked) -> None:
        """The new tables count beside those of `earlier` from now on, in one step."""
        shutil.rmtree(new.work)
        last = max((int(name.rpartition("-")[2]) for name in self.mark().tables or ()), default=0)
        name = f"tables-{last + 1}"
        for path, final in ((new.private, self.private / name), (new.public, self.root / name)):
            if final.exists():
                shutil.rmtree(final)
            path.rename(final)
        self._write_mark(Mark((*earlier, name), asked))
        self._sweep((*earlier, name))

    def _sweep(self, names: Sequence[str]) -> None:
        """Remove tables that no longer count and what killed builds left behind."""
        for parent in (self.root, self.private):
            for path in parent.iterdir():
                if path.is_dir() and path.name.startswith(("tables-", ".new-")) and path.name not in names:
                    shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class New:
    """Folders of tables that do not count yet."""

    public: Path
    private: Path
    work: Path
    """Private too, and gone when the tables are taken over."""


def _are_tables(names: object) -> bool:
    if names is None:
        return True
    return isinstance(names, list) and bool(names) and all(isinstance(name, str) and _TABLES.fullmatch(name) for name in names)


def _is_asked(asked: object) -> bool:
    return isinstance(asked, dict) and set(asked) == {field.name for field in fields(Asked)}
