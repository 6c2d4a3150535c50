"""Ingest: what is stored is what was read; bad volumes cost a reason; being killed costs nothing."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medssl.errors import DataError, MedsslError, MissingInput, StoreError, UsageError
from medssl.volumes import (
    Channel,
    CropLoader,
    CropOptions,
    DataOptions,
    Incoming,
    IntensityRule,
    Preparation,
    Store,
    crop_at,
    make_store,
    prepare_volume,
    statistics,
    write_store,
)
from medssl.volumes.store.frames import encode
from medssl.volumes.store.table import row_to_json

Make = Callable[..., list[Incoming]]


def one(array: np.ndarray, affine: np.ndarray | None = None, name: str = "v") -> Incoming:
    return Incoming(name, "p", "s", "MR", lambda: (array, np.eye(4) if affine is None else affine))


@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_values_and_facts_survive(tmp_path: Path, incoming: Make, kind: type) -> None:
    summary = write_store(incoming(3, kind=kind), tmp_path / "s")
    assert (summary.volumes, summary.added, summary.rejected) == (3, 3, {})
    assert repr(summary).endswith("s', 3 volumes, 3 added, 0 left out, 0 not chosen, 0 files unread)")
    store = Store(tmp_path / "s")
    items = {item.volume: item for item in incoming(3, kind=kind)}
    for number, volume in enumerate(store.volumes):
        array, affine = items[volume.volume].load()
        assert store.dtype(number) == kind
        assert store.read_whole(number)[0].tobytes() == np.ascontiguousarray(array).tobytes()
        assert volume.statistics == (statistics(array),)
        assert np.array_equal(volume.affine, affine)
        assert volume.spacing == (1.0, 1.0, 2.0)
        mask = volume.statistics[0].foreground(array)
        assert mask[tuple(volume.points.T)].all()
        assert len(volume.points) == 128
        lo, hi = volume.box
        assert mask[tuple(slice(a, b) for a, b in zip(lo, hi, strict=True))].sum() == mask.sum()
        assert all(mask.take(place, axis).any() for axis in range(3) for place in (lo[axis], hi[axis] - 1))
    patients = {volume.volume: volume.patient for volume in store.volumes}
    assert patients["v0"] == patients["v1"] != patients["v2"]
    assert all(0 <= number < 2**63 for volume in store.volumes for number in (volume.sample, volume.patient))
    assert len({volume.sample for volume in store.volumes}) == 3


def test_volumes_are_turned_to_ras(tmp_path: Path, make_body: Callable[..., np.ndarray]) -> None:
    array = make_body(0)
    affine = np.array([[0, 0, -2.0, 9], [1.5, 0, 0, 0], [0, -1, 0, 3], [0, 0, 0, 1]])
    write_store([one(array, affine)], tmp_path / "s")
    store = Store(tmp_path / "s")
    volume = store.volume(0)
    assert nibabel.aff2axcodes(volume.affine) == ("R", "A", "S")
    oracle = nibabel.as_closest_canonical(nibabel.Nifti1Image(array, affine))
    assert np.array_equal(store.read_whole(0)[0], np.asarray(oracle.dataobj))
    np.testing.assert_allclose(volume.affine, oracle.affine)


def test_spacing_is_applied(tmp_path: Path, incoming: Make) -> None:
    write_store(incoming(1), tmp_path / "s", spacing=2.0)
    volume = Store(tmp_path / "s").volume(0)
    assert volume.shape == (20, 18, 30)
    assert volume.spacing == pytest.approx((2, 2, 2))


def test_running_again_adds_only_what_is_new(tmp_path: Path, incoming: Make) -> None:
    folder = tmp_path / "s"
    write_store(incoming(2), folder)
    before = {path: path.stat().st_mtime_ns for path in (folder / "volumes").iterdir()}
    reports: list[tuple[int, int | None]] = []
    summary = write_store(incoming(3), folder, progress=lambda done, total: reports.append((done, total)))
    assert (summary.volumes, summary.added) == (3, 1)
    assert reports[-1] == (3, 3)
    assert len(Store(folder)) == 3
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    assert not list((folder / "rows").iterdir())


def test_an_interrupted_ingest_goes_on(tmp_path: Path, incoming: Make) -> None:
    def killed(done: int, total: int | None) -> None:
        if done == 2:
            raise KeyboardInterrupt

    folder = tmp_path / "s"
    with pytest.raises(KeyboardInterrupt):
        write_store(incoming(5), folder, progress=killed, workers=1)
    assert len(Store(folder)) >= 2
    summary = write_store(incoming(5), folder)
    assert summary.volumes == 5
    assert 1 <= summary.added <= 3
    write_store(incoming(5), tmp_path / "other")
    for one_store, other in zip(Store(folder).volumes, Store(tmp_path / "other").volumes, strict=True):
        assert (one_store.volume, one_store.statistics) == (other.volume, other.statistics)
        assert np.array_equal(one_store.points, other.points)


_SLOW_INGEST = """
import sys, time
import numpy as np
from medssl.volumes import Incoming, write_store

def load(i):
    time.sleep(0.05)
    return np.random.default_rng(i).integers(-99, 99, (20, 20, 20)).astype(np.int16), np.eye(4)

write_store([Incoming(f"v{i:03d}", "p", "s", "MR", lambda i=i: load(i)) for i in range(200)], sys.argv[1])
"""


def test_killing_an_ingest_loses_nothing_that_was_stored(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    child = subprocess.Popen([sys.executable, "-c", _SLOW_INGEST, str(folder)])
    try:
        for _ in range(600):
            if len(list(folder.glob("rows/*.json"))) >= 5:
                break
            time.sleep(0.05)
    finally:
        child.kill()
        child.wait()
    before = len(Store(folder))
    assert 5 <= before < 200

    def load(number: int) -> tuple[np.ndarray, np.ndarray]:
        return np.random.default_rng(number).integers(-99, 99, (20, 20, 20)).astype(np.int16), np.eye(4)

    items = [Incoming(f"v{i:03d}", "p", "s", "MR", lambda i=i: load(i)) for i in range(before + 3)]
    assert write_store(items, folder).added <= 5
    store = Store(folder)
    assert len(store) >= before + 3
    for number, volume in enumerate(store.volumes):
        assert np.array_equal(store.read_whole(number)[0], load(int(volume.volume[1:]))[0])


_SMALL_INGEST = """
import sys
import numpy as np
from medssl.volumes import Incoming, Store, write_store

def load(i):
    return np.random.default_rng(i).integers(-99, 99, (6, 6, 6)).astype(np.int16), np.eye(4)

for turn in range(1, 9):
    write_store([Incoming(f"v{i:03d}", "p", "s", "MR", lambda i=i: load(i)) for i in range(5 * turn)], sys.argv[1])
    assert len(Store(sys.argv[1])) >= 5 * turn
"""


def test_several_processes_fill_one_store(tmp_path: Path) -> None:
    """Each moves rows into the table while others read them."""
    folder = tmp_path / "s"
    children = [subprocess.Popen([sys.executable, "-c", _SMALL_INGEST, str(folder)], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for child in children:
        _, said = child.communicate(timeout=120)
        assert child.returncode == 0, said
    assert len(Store(folder)) == 40
    assert not list((folder / "rows").iterdir())


def test_a_row_without_its_file_is_made_again(tmp_path: Path, incoming: Make) -> None:
    folder = tmp_path / "s"
    write_store(incoming(2), folder)
    (folder / "volumes" / "v1.b2nd").unlink()
    assert write_store(incoming(2), folder).added == 1
    store = Store(folder)
    assert store.read_whole(store.column("volume").index("v1")).shape == (1, 43, 36, 30)


def unusable() -> dict[str, tuple[Incoming, str]]:
    good = np.random.default_rng(0).normal(size=(6, 6, 6)).astype(np.float32)
    nan, infinite = good.copy(), good.copy()
    nan[1, 2, 3], infinite[1, 2, 3] = np.nan, -np.inf
    nearly = np.full((5, 5, 5), 100, np.float32)
    nearly[2, 2, 2] = np.nextafter(np.float32(100), np.float32(200))

    def broken() -> tuple[np.ndarray, np.ndarray]:
        raise DataError("/home/x/JOHN_DOE.nii.gz: truncated")

    def spaced() -> tuple[np.ndarray, np.ndarray]:
        raise DataError("/home/x/JOHN DOE/JOHN DOE.nii.gz: NIfTI with NaN and/or worse")

    def quoted() -> tuple[np.ndarray, np.ndarray]:
        raise FileNotFoundError(2, "No such file", "/home/x/JOHN DOE/JOHN DOE.nii.gz")

    return {
        "nan": (one(nan), "NaN"),
        "infinite": (one(infinite), "infinite"),
        "constant": (one(np.full((5, 5, 5), 7, np.int16)), "constant"),
        "nearly constant": (one(nearly), "without contrast: every voxel is between 100 and 100.000008"),
        "constant as float32": (one(1e9 + good.astype(np.float64)), "without contrast"),
        "one slice": (one(good[:, :, :1]), "one slice"),
        "one channel constant": (one(np.stack([good, good * 0])), "constant: every voxel is 0 (channel MR 1)"),
        "5D": (one(good[..., None, None]), "5 dimensions"),
        "singular": (one(good, np.diag([1.0, 1.0, 0.0, 1.0])), "spacing"),
        "flat": (one(good, np.array([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]])), "singular"),
        "affine nan": (one(good, np.full((4, 4), np.nan)), "not finite"),
        "huge spacing": (one(good, np.diag([1e6, 1, 1, 1.0])), "spacing"),
        "complex": (one(good.astype(np.complex64)), "complex64"),
        "too large": (one(good.astype(np.float64) * 1e39), "float32"),
        "unreadable": (Incoming("v", "p", "s", "MR", broken), "cannot be read: FILE: truncated"),
        "unreadable, with spaces": (Incoming("v", "p", "s", "MR", spaced), "cannot be read: FILE: NIfTI with NaN"),
        "unreadable, in quotes": (Incoming("v", "p", "s", "MR", quoted), "No such file: FILE"),
    }


@pytest.mark.parametrize("kind", list(unusable()))
def test_a_bad_volume_costs_a_reason(tmp_path: Path, incoming: Make, kind: str) -> None:
    bad, words = unusable()[kind]
    summary = write_store([bad, *incoming(1)], tmp_path / "s")
    assert (summary.volumes, summary.added) == (1, 1)
    assert words in summary.left_out["v"]
    assert "JOHN" not in summary.left_out["v"]
    assert sum(summary.rejected.values()) == 1
    store = Store(tmp_path / "s")
    assert [volume.volume for volume in store.volumes] == ["v0"]
    assert store.left_out() == summary.left_out


def test_types_become_int16_or_float32(tmp_path: Path) -> None:
    stream = np.random.default_rng(0)
    arrays = {
        "a64": stream.integers(-2000, 2000, (6, 6, 6)).astype(np.float64),
        "b32": stream.integers(0, 90000, (6, 6, 6)).astype(np.int32),
        "c8": stream.integers(0, 255, (6, 6, 6)).astype(np.uint8),
        "d16": stream.integers(0, 65535, (6, 6, 6)).astype(np.uint16),
    }
    write_store([one(array, name=name) for name, array in arrays.items()], tmp_path / "s")
    store = Store(tmp_path / "s")
    for (name, array), kind in zip(arrays.items(), (np.int16, np.float32, np.int16, np.float32), strict=True):
        number = store.column("volume").index(name)
        assert store.dtype(number) == kind
        assert np.array_equal(store.read_whole(number)[0], array)


def test_a_store_is_not_mixed(tmp_path: Path, incoming: Make) -> None:
    write_store(incoming(1), tmp_path / "s", spacing=2.0)
    with pytest.raises(UsageError, match=r"made with spacing \[2.0, 2.0, 2.0\] mm and is asked for native"):
        write_store(incoming(2), tmp_path / "s")
    with pytest.raises(UsageError, match="another preparation"):
        write_store(incoming(2), tmp_path / "s", spacing=2.0, preparation=Preparation(other=IntensityRule(kind="raw")))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.doc").write_text("x")
    with pytest.raises(UsageError, match="is no store"):
        write_store(incoming(1), tmp_path / "mine")


def test_stores_that_cannot_be_opened(tmp_path: Path, incoming: Make) -> None:
    with pytest.raises(MissingInput, match="medssl store SOURCE"):
        Store(tmp_path / "none")
    folder = tmp_path / "s"
    write_store(incoming(1), folder)
    manifest = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps(manifest | {"version": 99}))
    with pytest.raises(StoreError, match="Install a newer medssl"):
        Store(folder)
    with pytest.raises(StoreError, match="newer"):
        write_store(incoming(2), folder)
    (folder / "store.json").write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        Store(folder)
    (folder / "store.json").write_text(json.dumps(manifest))
    part = next((folder / "table").iterdir())
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(StoreError, match="table"):
        Store(folder)
    write_store([one(np.zeros((4, 4, 4), np.int16))], tmp_path / "empty")
    with pytest.raises(StoreError, match="holds no volumes"):
        Store(tmp_path / "empty")


@pytest.mark.parametrize(("version", "why"), [(1, "one channel a volume"), (2, "what its volumes are called by their data")])
def test_a_store_of_an_older_version_names_the_command_that_makes_it_again(tmp_path: Path, incoming: Make, version: int, why: str) -> None:
    folder = tmp_path / "s"
    write_store(incoming(1), folder, spacing=1.5)
    manifest = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps(manifest | {"version": version, "preparation": {"version": 1, "modalities": {}}}))
    for use in (lambda: Store(folder), lambda: write_store(incoming(1), folder, spacing=1.5)):
        with pytest.raises(StoreError, match=rf"{why}.*medssl store SOURCE --out {folder}-v3 --spacing 1\.5$"):
            use()
    (tmp_path / "s.index").mkdir()
    with pytest.raises(StoreError, match=rf"medssl store {folder}\.index --out"):
        Store(folder)


def test_channels_of_a_volume_have_statistics_of_their_own(tmp_path: Path, make_body: Callable[..., np.ndarray]) -> None:
    values = np.stack([make_body(0), 3 * make_body(1)])
    write_store([one(values)], tmp_path / "s")
    store = Store(tmp_path / "s")
    volume = store.volume(0)
    assert store.channels == ("MR 0", "MR 1")
    assert volume.statistics == tuple(statistics(channel) for channel in values)
    assert np.array_equal(store.read_whole(0), values)
    assert volume.body(values).any()
    assert np.array_equal(volume.body(values), np.logical_or(*(statistics(channel).foreground(channel) for channel in values)))


def test_two_windows_show_one_array(tmp_path: Path, make_body: Callable[..., np.ndarray]) -> None:
    array = make_body(0)
    windows = {"lung": IntensityRule(kind="window", low=-50, high=100), "bone": IntensityRule(kind="window", low=300, high=900)}
    channels = tuple(Channel(name, "CT", 0) for name in windows)
    item = Incoming("v", "p", "s", "CT", lambda: (array, np.eye(4)), channels)
    write_store([item], tmp_path / "s", preparation=Preparation(channels=windows))
    store = Store(tmp_path / "s")
    assert store.read_whole(0).shape == (1, *array.shape)
    crop = crop_at(store, CropOptions(size=(8, 8, 8)), 0, 0)
    raw = store.read(0, crop.place.corner, (8, 8, 8))[0]
    for image, rule in zip(crop.image, windows.values(), strict=True):
        width = rule.high - rule.low
        np.testing.assert_allclose(image, 2 * (np.clip(raw, rule.low, rule.high) - rule.low) / width - 1, atol=1e-5)
    prepared = prepare_volume(array, np.eye(4), store.preparation, None, channels)
    corner = tuple(slice(c, c + 8) for c in crop.place.corner)
    assert np.array_equal(prepared.array[(slice(None), *corner)], crop.image)


def test_the_store_can_hold_images_of_two_sides(tmp_path: Path) -> None:
    """Nothing ingests them yet; the format and the way to crops are there."""
    folder = tmp_path / "s"
    write_store([one(np.zeros((4, 4, 4), np.int16))], folder)
    colour = np.random.default_rng(0).integers(0, 255, (3, 30, 20)).astype(np.int16)
    numbers = [statistics(channel) for channel in colour]
    (folder / "volumes" / "image.b2nd").write_bytes(encode(colour))
    row = {
        "volume": "image",
        "patient": "p",
        "series": "s",
        "modality": "ES",
        "channels": ["R", "G", "B"],
        "modalities": ["ES"] * 3,
        "arrays": [0, 1, 2],
        "shape": [30, 20],
        "spacing": [0.5, 0.25],
        "affine": np.diag([0.5, 0.25, 1, 1]).reshape(-1).tolist(),
        "statistics": [number for one in numbers for number in astuple(one)],
        "box": [0, 0, 30, 20],
        "points": np.array([[5, 5]], "<u2").tobytes(),
        "class_points": None,
        "content": "0" * 32,
    }
    (folder / "rows" / "image.json").write_bytes(row_to_json(row))
    store = Store(folder)
    assert (store.spatial_dims, store.channels) == (2, ("R", "G", "B"))
    with CropLoader(store, DataOptions(store=str(folder), size=(8, 6), batch=2), 0) as loader:
        crops = next(loader)[2]
    assert crops.images.shape == (2, 3, 8, 6)
    assert crops.spacing.tolist() == [[0.5, 0.25]] * 2
    assert crops.extent.tolist() == [[15.0, 5.0, 0.0]] * 2
    assert not crops.affine[:, 2].any()
    corner = (crops.affine[0, :2, -1] / crops.spacing[0]).round().int().tolist()
    true = crops.images[0] * crops.rescale[0, :, 0].view(3, 1, 1) + crops.rescale[0, :, 1].view(3, 1, 1)
    low, high = ([[[getattr(number, end)]] for number in numbers] for end in ("low", "high"))
    expected = np.clip(colour[:, corner[0] : corner[0] + 8, corner[1] : corner[1] + 6], low, high)
    np.testing.assert_allclose(true, expected, atol=0.01)


def test_a_full_disk_is_one_message_and_leaves_nothing_half(tmp_path: Path, incoming: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "s"
    write_store(incoming(1), folder)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(StoreError, match="No space left on device"):
            write_store(incoming(3), folder)
    assert len(Store(folder)) == 1
    assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
    assert write_store(incoming(3), folder).volumes == 3


def test_a_store_travels_to_worker_processes(store_folder: Path) -> None:
    store = Store(store_folder)
    store.read_whole(0)
    assert np.array_equal(pickle.loads(pickle.dumps(store)).read_whole(0), store.read_whole(0))


def test_a_folder_of_nifti_becomes_a_store(tmp_path: Path, paired: Callable[..., Path], make_body: Callable[..., np.ndarray]) -> None:
    source = paired(3)
    (source / "images" / "torn.nii.gz").write_bytes((source / "images" / "case_00.nii.gz").read_bytes()[:200])
    summary = make_store([source / "images"], tmp_path / "s", modality="ct")
    assert summary.volumes == 3
    assert sum(summary.rejected.values()) == 1
    store = Store(tmp_path / "s")
    assert {volume.modality for volume in store.volumes} == {"CT"}
    assert sorted(store.read_whole(i).sum() for i in range(3)) == sorted(make_body(i, (24, 20, 18)).sum() for i in range(3))
    again = make_store([source / "images"], tmp_path / "s", modality="ct")
    assert (again.volumes, again.added) == (3, 0)
    names = " ".join(path.name for path in (tmp_path / "s").rglob("*")) + (tmp_path / "s" / "store.json").read_text()
    assert "case_0" not in names


def test_nothing_to_store_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for sources in ([], [tmp_path / "empty"], [tmp_path / "none"]):
        with pytest.raises(MedsslError):
            make_store(sources, tmp_path / "s")


def test_real_images(tmp_path: Path, shared_data: Path) -> None:
    source = tmp_path / "few"
    source.mkdir()
    for path in sorted((shared_data / "hippocampus" / "imagesTr").glob("*.nii.gz"))[:4]:
        (source / path.name).symlink_to(path)
    assert make_store([source], tmp_path / "s").volumes == 4
    dicom = make_store([shared_data / "dicom2nifti"], tmp_path / "d")
    assert dicom.volumes >= 5
    for folder in ("s", "d"):
        store = Store(tmp_path / folder)
        for number, volume in enumerate(store.volumes):
            image = store.preparation.apply(store.read_whole(number), volume.statistics[0], volume.modality)
            assert np.isfinite(image).all()
            assert 0.05 < image.std() < 5
