"""The same data are the same whatever they are called: order, numbers, places of crops and a whole training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

import medssl
from medssl.archive import Index, build_index
from medssl.testing.dicom import write_series
from medssl.train.setup import store_fingerprint
from medssl.volumes import CropOptions, CropPlan, Incoming, Store, make_store, write_store
from medssl.volumes.preparation import Channel
from medssl.volumes.store.identity import content_of, numbered

Array = NDArray[np.int16]
SHAPE = (20, 18, 16)


def image(seed: int) -> Array:
    stream = np.random.default_rng(seed)
    array = stream.normal(0, 5, SHAPE)
    array[5:15, 4:14, 4:12] += 400 + 40 * stream.standard_normal((10, 10, 8))
    return np.rint(array).astype(np.int16)


@pytest.fixture(scope="module")
def two_indexes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Stores of the same DICOM: six volumes of three patients, indexed twice, each time with a key of its own."""
    folder = tmp_path_factory.mktemp("twice")
    for number in range(6):
        named = {"patient": f"P-{number // 2}", "study": f"study {number}", "series": "one"}
        write_series(folder / "dicom" / str(number), image(number), np.diag([1.0, 1, 2, 1]), modality="MR", **named)
    for name in ("first", "second"):
        build_index([folder / "dicom"], folder / f"{name}.index", workers=1)
        make_store([folder / f"{name}.index"], folder / name)
    names = [[record.volume for record in Index(folder / f"{name}.index").volumes()] for name in ("first", "second")]
    assert not set(names[0]) & set(names[1])
    return folder / "first", folder / "second"


def test_two_keys_give_one_order_and_one_set_of_numbers(two_indexes: tuple[Path, Path]) -> None:
    one, other = (Store(folder) for folder in two_indexes)
    for number, (a, b) in enumerate(zip(one.volumes, other.volumes, strict=True)):
        assert a.volume != b.volume
        assert (a.sample, a.patient, a.statistics, a.box) == (b.sample, b.patient, b.statistics, b.box)
        assert np.array_equal(a.points, b.points)
        assert np.array_equal(one.read_whole(number), other.read_whole(number))
    assert sorted(np.unique(one.patients, return_counts=True)[1].tolist()) == [2, 2, 2]
    for balance in ("volume", "patient", "modality"):
        plans = [CropPlan(store, CropOptions.model_validate({"size": (8, 8, 8), "balance": balance})) for store in (one, other)]
        assert [plans[0].place(3, sample) for sample in range(30)] == [plans[1].place(3, sample) for sample in range(30)]


def test_two_keys_give_one_training(two_indexes: tuple[Path, Path], tmp_path: Path) -> None:
    runs = []
    for folder in two_indexes:
        config = {
            "network": {"name": "SegResNet", "spatial_dims": 3, "in_channels": 1, "options": {"init_filters": 8}},
            "data": {"store": str(folder), "size": [16, 16, 16], "batch": 2, "balance": "patient"},
            "tasks": [{"name": "inpainting"}],
            "consistency": [{"name": "simsiam", "weight": 0.1}],
            "train": {"steps": 3, "checkpoint_every": 3, "picture_every": 0, "precision": "fp32"},
            "seed": 3,
        }
        runs.append(medssl.pretrain(config=config, out=tmp_path / folder.name).folder)
    rows = [(run / "metrics.jsonl").read_bytes() for run in runs]
    assert rows[0] == rows[1] and rows[0].count(b"\n") >= 3
    weights = [sorted(run.rglob("*.safetensors")) for run in runs]
    assert weights[0] and [path.read_bytes() for path in weights[0]] == [path.read_bytes() for path in weights[1]]
    # A run may be resumed on the other store: it is the same data.
    assert store_fingerprint(Store(two_indexes[0])) == store_fingerprint(Store(two_indexes[1]))


def test_labelled_volumes_have_the_same_points_under_another_name(tmp_path: Path) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[6:12, 5:10, 5:10] = 1
    for name in ("a", "b"):
        item = Incoming(name, name, name, "MR", lambda: (image(0), np.eye(4)), (Channel("MR", "MR"),), lambda: labels)
        write_store([item], tmp_path / name)
    one, other = (Store(tmp_path / name).volume(0) for name in ("a", "b"))
    assert np.array_equal(one.class_points[0], other.class_points[0])
    assert (one.sample, one.patient) == (other.sample, other.patient)


def test_a_content_is_of_voxels_grid_channels_and_labels() -> None:
    values, affine, channels = image(0)[None], np.diag([1.0, 1, 2, 1]), (Channel("MR", "MR"),)
    labels = np.zeros(SHAPE, np.uint8)
    other = values.copy()
    other[0, 3, 3, 3] += 1
    contents = {
        content_of(values, affine, channels),
        content_of(other, affine, channels),
        content_of(values.astype(np.float32), affine, channels),
        content_of(values.reshape(1, 18, 20, 16), affine, channels),
        content_of(values, np.diag([1.0, 1, 2.1, 1]), channels),
        content_of(values, affine, (Channel("T1", "MR"),)),
        content_of(values, affine, channels, labels),
        content_of(values, affine, channels, labels + np.uint8(1)),
    }
    assert len(contents) == 8
    turned = np.ascontiguousarray(values[:, ::-1])[:, ::-1]
    assert content_of(turned, affine + 1e-9, channels) == content_of(values, affine, channels)


def test_equal_contents_come_in_an_order_that_no_name_decides() -> None:
    """A and B are of one patient, A and C of another, A alone is of a third: whatever they are called."""
    a, b, c = (digit * 32 for digit in "5a3")
    stored = [("first", a), ("first", b), ("second", a), ("second", c), ("third", a)]
    reference = None
    for names, places in (("pqr", (3, 4, 1, 2, 0)), ("prq", (0, 1, 2, 3, 4)), ("qpr", (4, 3, 2, 1, 0)), ("rqp", (2, 4, 0, 3, 1))):
        named = dict(zip(("first", "second", "third"), names, strict=True))
        whose, contents = zip(*(stored[place] for place in places), strict=True)
        found = numbered(pa.chunked_array([contents]), pa.chunked_array([[named[one] for one in whose]]))
        rows = [whose[row] for row in found.order]
        shown = (rows, [contents[row] for row in found.order], found.samples.tolist(), found.patients.tolist())
        reference = reference or shown
        assert shown == reference
        assert len(set(shown[2])) == 5 and len(set(shown[3])) == 3


def test_a_content_that_cannot_be_is_refused() -> None:
    for wrong in ("0" * 31, "0" * 31 + "x"):
        with pytest.raises(ValueError, match="content|hexadecimal"):
            numbered(pa.chunked_array([[wrong]]), pa.chunked_array([["p"]]))
