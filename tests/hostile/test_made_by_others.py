"""What others made is data: names are no paths, files belong to their rows, tables are checked against what they should hold."""

from __future__ import annotations

import io
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medssl.archive import Index, build_index, find_source, tables, write_volumes
from medssl.errors import ArchiveError, MedsslError, MissingInput, StoreError
from medssl.testing.dicom import made_affine, made_volume, write_series
from medssl.volumes import Channel, Incoming, Store, make_store, write_store
from medssl.volumes.store.frames import Damaged

Row = dict[str, Any]
NESTED = b"[" * 20_000 + b"]" * 20_000


def item(name: str, seed: int, shape: tuple[int, int, int] = (16, 14, 12)) -> Incoming:
    array = made_volume(shape, seed)
    labels = (array > np.median(array)).astype(np.uint8)
    return Incoming(name, "p", "s", "MR", lambda: (array, made_affine()), (Channel("MR", "MR"),), lambda: labels)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write_store([item("a", 0), item("b", 1), item("c", 2, (16, 14, 10))], tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    for number in range(2):
        write_series(tmp_path / "archive" / str(number), made_volume(seed=number), made_affine(), patient=str(number))
    build_index([tmp_path / "archive"], tmp_path / "index", workers=1)
    return tmp_path / "index"


def rewritten(file: Path, change: Callable[[list[Row]], Any]) -> None:
    """The table with its rows changed in place."""
    table = pq.read_table(file)
    rows = table.to_pylist()
    change(rows)
    names = [name for name in table.column_names if any(name in row for row in rows)]
    kinds = {field.name: field.type for field in table.schema}
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values, kinds[name])
        except (pa.ArrowException, TypeError):
            columns[name] = pa.array([str(value) for value in values])
    pq.write_table(pa.table(columns), file)


def used(folder: Path) -> None:
    """All that reads a store."""
    found = Store(folder)
    found.shapes()
    for number, _ in enumerate(found.volumes):
        found.read_whole(number)
        found.read_labels(number, (0, 0, 0), found.volume(number).shape)


NAMES = ["../../x", "/etc/x", "x/y", "", "..", ".hidden", "a\x1b[31m", "a\0b", "a\\b", 7]


@pytest.mark.parametrize("name", NAMES[:-1])
def test_a_name_in_a_store_is_no_path(name: str, store: Path, tmp_path: Path) -> None:
    shutil.copy(store / "volumes" / "a.b2nd", tmp_path / "x.b2nd")
    (part,) = (store / "table").iterdir()
    rewritten(part, lambda rows: [row.update(volume=name if row["volume"] == "a" else str(row["volume"])) for row in rows])
    with pytest.raises(StoreError, match="damaged: it calls a volume") as caught:
        used(store)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("column", ["volume", "patient", "series"])
def test_a_name_in_an_index_is_a_pseudonym(name: Any, column: str, index: Path, tmp_path: Path) -> None:
    (folder,) = index.glob("tables-*")
    rewritten(folder / "volumes-0000.parquet", lambda rows: rows[0].update({column: name}))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ArchiveError, match=r"damaged: .* Index the archive again"):
        write_volumes(Index(index), tmp_path / "out" / "deep")
    with pytest.raises(ArchiveError):
        make_store([index], tmp_path / "store")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "tables", ["../other", "/tmp", "tables-", "tables-1/..", 3, "tables-1", [], ["tables-1", "../x"], ["tables-1\n"], [["tables-1"]]]
)
def test_an_index_names_its_own_tables(tables: Any, index: Path) -> None:
    mark = json.loads((index / "index.json").read_text())
    (index / "index.json").write_text(json.dumps(mark | {"tables": tables}))
    with pytest.raises(ArchiveError, match="damaged"):
        Index(index)


def test_a_source_opens_nothing_outside(index: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    source = find_source(tmp_path / "archive")
    for key in ("../secret", str(tmp_path / "secret"), "0/../../secret"):
        with pytest.raises(OSError, match="not below"):
            source.open(key)


@pytest.mark.parametrize("kind", ["volumes", "labels"])
@pytest.mark.parametrize("pair", ["ab", "ac"])
def test_files_that_were_exchanged_are_found(kind: str, pair: str, store: Path) -> None:
    one, other = (store / kind / f"{name}.b2nd" for name in pair)
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])
    with pytest.raises(Damaged, match=r"[abc]\.b2nd is not the one that the store's table speaks of.*make the store again"):
        used(store)


def test_a_smaller_shape_in_a_row_crops_nothing(store: Path) -> None:
    (part,) = (store / "table").iterdir()
    rewritten(part, lambda rows: rows[0].update(shape=[12, 12, 12], box=[0, 0, 0, 12, 12, 12], points=b"", class_points=[b"", b""]))
    with pytest.raises(Damaged, match="another content, shape or type"):
        used(store)


@pytest.mark.parametrize("column", ["dtype", "digest", "labels_digest"])
def test_each_of_what_a_row_holds_of_its_file_counts(column: str, store: Path) -> None:
    (part,) = (store / "table").iterdir()
    rewritten(part, lambda rows: rows[0].update({column: "f4"}))
    with pytest.raises(Damaged, match="another content, shape or type"):
        used(store)


def test_a_store_from_before_digests_is_read(store: Path) -> None:
    (part,) = (store / "table").iterdir()
    rewritten(part, lambda rows: [row.pop(name) for row in rows for name in ("dtype", "digest", "labels_digest")])
    used(store)


ROWS: list[Row] = [
    {"shape": [16, 14]},
    {"shape": [-1, 14, 12]},
    {"shape": [0, 14, 12]},
    {"shape": None},
    {"shape": []},
    {"shape": "16"},
    {"shape": [2**31 - 1] * 3},
    {"spacing": [-1.0, 1.0, 1.0]},
    {"spacing": [float("nan"), 1.0, 1.0]},
    {"spacing": [1.0]},
    {"affine": [1.0]},
    {"affine": [float("inf")] * 16},
    {"statistics": [1.0] * 5},
    {"statistics": [1.0] * 12},
    {"statistics": [float("nan")] * 6},
    {"statistics": "none"},
    {"box": [0, 0, 0]},
    {"box": [0, 0, 0, 99, 14, 12]},
    {"box": [5, 5, 5, 5, 5, 5]},
    {"points": b"\xff" * 6},
    {"points": b"\0" * 5},
    {"points": None},
    {"class_points": [b"\xff" * 6]},
    {"channels": []},
    {"channels": ["a", "b"]},
    {"channels": None},
    {"arrays": [-1]},
    {"arrays": [7]},
    {"modalities": [None]},
    {"patient": None},
    {"modality": None},
    {"volume": None},
]


@pytest.mark.parametrize("values", ROWS, ids=lambda values: str(values)[:40])
def test_a_row_that_describes_no_volume_is_one_clear_error(values: Row, store: Path) -> None:
    (part,) = (store / "table").iterdir()
    rewritten(part, lambda rows: rows[0].update(values))
    with pytest.raises(StoreError, match=r"(damaged|another content).*ake the store again"):
        used(store)


@pytest.mark.parametrize("name", ["volume", "shape", "points", "statistics", "reason"])
def test_a_column_that_is_missing_is_one_clear_error(name: str, store: Path) -> None:
    (part,) = (store / "table").iterdir()
    rewritten(part, lambda rows: [row.pop(name) for row in rows])
    if name == "reason":
        used(store)
        return
    with pytest.raises(StoreError, match=r"damaged.*ake the store again"):
        used(store)


@pytest.mark.parametrize(
    "change",
    [
        {"axes": "LPS"},
        {"version": -1},
        {"version": 0},
        {"version": "2"},
        {"version": True},
        {"version": None},
        {"version": 2.0},
        {"spacing": [-1, -1, -1]},
        {"spacing": [1, 1]},
        {"spacing": "x"},
        {"spacing": [{}], "version": 1},
        {"format": "other"},
        {"format": ["medssl-store"]},
        {"format": "\x1b[31m"},
        {"axis": "up"},
        {"preparation": 3},
        {"more": 1},
    ],
    ids=str,
)
def test_a_manifest_that_is_none_is_one_clear_error(change: Row, store: Path) -> None:
    file = store / "store.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(StoreError) as caught:
        used(store)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


JSON = [NESTED, b"", b"null", b"[]", b"7", b'"x"', b"{}", b"\xff\xfe", b'{"version": ' + b"9" * 5_000 + b"}", b"NaN", b'{"a": NaN}']


@pytest.mark.parametrize("content", JSON, ids=lambda content: repr(content[:12]))
def test_json_that_is_none_of_ours_is_one_clear_error(content: bytes, store: Path, index: Path, tmp_path: Path) -> None:
    (store / "rows" / "x.json").write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        used(store)
    (store / "store.json").write_bytes(content)
    with pytest.raises(StoreError):
        used(store)
    for name in ("sources.parquet", "tables-1/volumes-0000.parquet", "tables-1/instances-0000.parquet"):
        (index / "private" / name).write_bytes(content)
        with pytest.raises(ArchiveError, match="damaged"):
            Index(index).read(Index(index).volumes()[0].volume)
    (index / "index.json").write_bytes(content)
    with pytest.raises(MedsslError):
        Index(index)
    with pytest.raises(MedsslError):
        build_index([tmp_path / "archive"], index)


@pytest.fixture
def alarm() -> Iterator[None]:
    """What hangs ends the test."""
    import signal

    def ring(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("place", ["store.json", "volumes/a.b2nd", "labels/a.b2nd", "table/part-9.parquet", "rows/x.json"])
def test_a_pipe_in_a_store_is_an_error_at_once(place: str, store: Path, alarm: None) -> None:
    (store / place).unlink(missing_ok=True)
    os.mkfifo(store / place)
    with pytest.raises((StoreError, MissingInput), match=r"."):
        used(store)


@pytest.mark.parametrize(
    "place",
    [
        "index.json",
        "tables-*/volumes-0000.parquet",
        "private/tables-*/instances-0000.parquet",
        "private/tables-*/volumes-0000.parquet",
        "private/sources.parquet",
    ],
)
def test_a_pipe_in_an_index_is_an_error_at_once(place: str, index: Path, alarm: None) -> None:
    (file,) = index.glob(place)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises((ArchiveError, MissingInput)):
        Index(index).read(Index(index).volumes()[0].volume)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("volumes", {"shape": [16, 14]}),
        ("volumes", {"shape": [0, 1, 1]}),
        ("volumes", {"shape": [2**40, 2**40, 12]}),
        ("volumes", {"spacing": [1e300, 1.0, 1.0]}),
        ("volumes", {"affine": [0.0]}),
        ("volumes", {"affine": None}),
        ("volumes", {"kind": "other"}),
        ("volumes", {"modality": "\x1b[31m"}),
        ("volumes", {"warnings": [None]}),
        ("volumes", {"instances": "many"}),
        ("private", {"source": 7}),
        ("private", {"source": -1}),
        ("private", {"rows": 65535}),
        ("private", {"bits_stored": 2**40}),
        ("private", {"slice": None, "volume": None}),
        ("private", {"pixels_at": 2**62}),
        ("private", {"key": None}),
        ("private", {"key": b"../0/x"}),
        ("private", {"kind": "nifti"}),
        ("private", {"frame": "x"}),
        ("instances", {"frame": None}),
        ("instances", {"kind": None}),
    ],
    ids=str,
)
def test_a_row_that_is_none_of_an_index_is_one_clear_error(file: str, values: Row, index: Path) -> None:
    where = {"volumes": "tables-*/volumes-0000.parquet", "private": "private/tables-*/instances-0000.parquet"}
    (path,) = index.glob(where.get(file, "tables-*/instances-0000.parquet"))
    rewritten(path, lambda rows: rows[0].update(values))
    with pytest.raises(ArchiveError):
        opened = Index(index)
        opened.summary()
        for record in opened.volumes():
            opened.read(record.volume)


def test_a_table_of_an_index_is_read_by_no_other_thread(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that still held the stream when Python ended would abort a command that had done its work."""
    readers: set[int] = set()

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            readers.add(threading.get_ident())
            return super().read(size)

    monkeypatch.setattr(tables, "open_regular", lambda path: Watched(path.read_bytes()))
    assert Index(index).volumes()
    assert readers == {threading.get_ident()}
