"""`medssl verify` finds every damage and changes nothing; `medssl show` says and pictures what a store holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medssl.cli.app import main
from medssl.volumes import Channel, Incoming, Store, write_store
from medssl.volumes.showing import CELL, kinds, write_sheet
from medssl.volumes.store.table import read_table
from medssl.volumes.store.unfinished import missing
from medssl.volumes.store.verifying import verify

Body = Callable[..., np.ndarray]


@pytest.fixture
def labelled(tmp_path: Path, make_body: Body) -> Path:
    """Three volumes, the first with a label."""
    labels = np.zeros((40, 36, 30), np.uint8)
    labels[12:20, 10:20, 10:20] = 1
    items = [
        Incoming(f"v{i}", f"p{i}", "s", "MR", lambda i=i: (make_body(i), np.diag([1.0, 1, 2, 1])), (Channel("MR", "MR"),))
        for i in range(1, 3)
    ]
    first = Incoming("v0", "p0", "s", "MR", lambda: (make_body(0), np.diag([1.0, 1, 2, 1])), (Channel("MR", "MR"),), lambda: labels)
    write_store([first, *items], tmp_path / "store")
    return tmp_path / "store"


def code_of(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return int(ended.value.code or 0)


def test_a_sound_store_is_sound(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, int | None]] = []
    found = verify(Store(labelled), progress=lambda done, total: seen.append((done, total)))
    assert found.sound and found.volumes == 3 and seen[-1] == (3, 3)
    assert code_of("verify", str(labelled)) == 0
    assert "all as they were written" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["volumes", "labels"])
def test_every_flipped_byte_is_found(labelled: Path, kind: str) -> None:
    path = labelled / kind / "v0.b2nd"
    whole = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 25).tolist():
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert list(verify(Store(labelled)).bad) == ["v0"]
    path.write_bytes(whole)
    assert verify(Store(labelled)).sound


def test_what_is_wrong_is_named(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (labelled / "volumes" / "v1.b2nd").unlink()
    (labelled / "volumes" / "v9.b2nd").write_bytes(b"left behind")
    assert code_of("verify", str(labelled), "--json") == 1
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert list(document["bad"]) == ["v1"] and "is gone" in document["bad"]["v1"]
    assert document["strangers"] == ["volumes/v9.b2nd"] and not document["sound"]
    assert "1 of 3 volumes are damaged" in said.err and "Delete their files" in said.err


def test_what_verify_says_mends_a_store(labelled: Path, make_body: Body, capsys: pytest.CaptureFixture[str]) -> None:
    path = labelled / "volumes" / "v1.b2nd"
    whole = path.read_bytes()
    path.write_bytes(whole[:-200] + bytes(100) + whole[-100:])
    again = Incoming("v1", "p1", "s", "MR", lambda: (make_body(1), np.diag([1.0, 1, 2, 1])), (Channel("MR", "MR"),))
    assert write_store([again], labelled).added == 0
    assert code_of("verify", str(labelled)) == 1
    assert "Delete their files where they are there still, then run the same `medssl store` again." in " ".join(
        capsys.readouterr().err.split()
    )
    path.unlink()
    assert write_store([again], labelled).added == 1
    assert path.read_bytes() == whole and verify(Store(labelled)).sound


def test_a_row_of_another_volume_is_found(labelled: Path) -> None:
    """The digest of the file and the type agree, and the content does not: voxels and row are not of one volume."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (part,) = (labelled / "table").iterdir()
    table = pq.read_table(part)
    rows = table.to_pylist()
    rows[2]["affine"] = [2.0 * number for number in rows[2]["affine"]]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), part)
    assert list(verify(Store(labelled)).bad) == ["v2"]


def test_an_ingest_that_ends_while_somebody_looks_leaves_nothing_missing(
    labelled: Path, make_body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = Incoming("v7", "p7", "s", "MR", lambda: (make_body(7), np.eye(4)))
    (labelled / "unfinished" / "killed.json").write_text(json.dumps({"v7": ""}))
    assert missing(labelled) == ["v7"]

    def just_stored(folder: Path) -> object:
        monkeypatch.undo()
        write_store([last], folder)
        return read_table(folder)

    monkeypatch.setattr("medssl.volumes.store.unfinished.read_table", just_stored)
    assert missing(labelled) == []
    # Without a mark nothing is missing, whatever the table says; so it is not read.
    monkeypatch.setattr("medssl.volumes.store.unfinished.read_table", lambda folder: pytest.fail(f"{folder} is read"))
    assert missing(labelled) == []


def test_show_says_and_pictures_what_is_there(labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kind,) = kinds(Store(labelled))
    assert (kind.modality, kind.volumes, kind.patients, kind.shape[0]) == ("MR", 3, 3, "40 40 40")
    assert code_of("show", str(labelled), "--picture", str(tmp_path / "s.png"), "--rows", "2") == 0
    assert "MR" in capsys.readouterr().out
    sheet = np.asarray(Image.open(tmp_path / "s.png"))
    assert sheet.shape[1] > 4 * CELL and sheet.shape[0] > 2 * CELL
    # The box of the foreground, the middle half of each side, is drawn where it is.
    store = Store(labelled)
    whole = np.asarray(Image.open(write_sheet(store, tmp_path / "one.png", 1)))
    axial = whole[16 : 16 + CELL, 6 : 6 + CELL]
    orange = np.argwhere((axial == (255, 160, 0)).all(-1))
    (lo, hi), shape = store.volume(0).box, store.volume(0).shape
    width = orange[:, 1].max() - orange[:, 1].min()
    assert abs(width - CELL * (hi[0] - lo[0]) / shape[0]) <= 2
    assert code_of("show", str(labelled), "--json") == 0
    assert json.loads(capsys.readouterr().out)["kinds"][0]["volumes"] == 3
