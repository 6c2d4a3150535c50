"""Labelled crops and the way of a prediction: image and label stay together, and labels come back to the input's grid."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.errors import ConfigError, DataError, MissingInput
from medssl.volumes import (
    Case,
    Incoming,
    IntensityRule,
    LabelledCrops,
    LabelledOptions,
    Preparation,
    Store,
    find_cases,
    load_case,
    prepare_volume,
    restore_labels,
    write_store,
)

Paired = Callable[..., Path]
AXES = list(itertools.permutations(range(3)))


def options(root: Path, **changes: Any) -> LabelledOptions:
    values = {"images": str(root / "images"), "labels": str(root / "labels"), "size": (8, 8, 8), "batch": 3}
    return LabelledOptions.model_validate(values | changes)


def loader(root: Path, seed: int = 5, first_step: int = 0, **changes: Any) -> LabelledCrops:
    chosen = options(root, **changes)
    return LabelledCrops(find_cases(chosen), chosen, Preparation(), seed, out_channels=3, first_step=first_step)


def affine_of(order: tuple[int, ...], signs: tuple[int, ...], spacing: tuple[float, ...]) -> np.ndarray:
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis in range(3):
        affine[order[axis], axis] = signs[axis] * spacing[axis]
    return affine


@settings(max_examples=60, deadline=None)
@given(
    order=st.sampled_from(AXES),
    signs=st.tuples(*[st.sampled_from((1, -1))] * 3),
    spacing=st.tuples(*[st.floats(0.6, 4)] * 3),
    shape=st.tuples(*[st.integers(5, 16)] * 3),
    fineness=st.one_of(st.none(), st.floats(0.3, 0.99)),
)
def test_labels_come_back_exactly(
    order: tuple[int, ...], signs: tuple[int, ...], spacing: tuple[float, ...], shape: tuple[int, ...], fineness: float | None
) -> None:
    """On the native grid, and on any that is finer everywhere, nearest neighbour there and back is the identity."""
    from medssl.volumes.grid import resample_labels, spacing_of

    stream = np.random.default_rng(0)
    labels = stream.integers(0, 5, shape).astype(np.uint8)
    affine = affine_of(order, signs, spacing)
    target = None if fineness is None else min(spacing) * fineness
    prepared = prepare_volume(stream.normal(size=shape).astype(np.float32), affine, Preparation(), target)
    turned = prepared.flips.apply(labels)
    if target is not None:
        turned = resample_labels(turned, spacing_of(prepared.flips.affine(affine, shape)), prepared.spacing)
    assert turned.shape == prepared.array.shape[1:]
    restored = restore_labels(turned, prepared)
    assert restored.dtype == labels.dtype
    assert np.array_equal(restored, labels)


def test_restored_labels_lie_where_the_prediction_was() -> None:
    """Each restored voxel's label is that of the prepared voxel nearest to it in the patient's millimetres."""
    affine = affine_of((2, 0, 1), (-1, 1, -1), (1.0, 2.0, 1.5))
    affine[:3, 3] = (40, -10, 5)
    shape = (14, 9, 11)
    prepared = prepare_volume(np.random.default_rng(0).normal(size=shape), affine, Preparation(), 1.7)
    labels = np.random.default_rng(1).integers(0, 9, prepared.array.shape[1:])
    restored = restore_labels(labels, prepared)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    back = np.linalg.inv(prepared.affine)
    where = np.clip(np.rint(world @ back[:3, :3].T + back[:3, 3] + 1e-9), 0, np.asarray(labels.shape) - 1).astype(int)
    assert (restored == labels[tuple(np.moveaxis(where, -1, 0))]).mean() > 0.99
    with pytest.raises(ValueError, match="not on the prepared grid"):
        restore_labels(labels[1:], prepared)


def test_prediction_sees_what_the_store_holds(tmp_path: Path, write_image: Callable[..., Path], make_body: Callable[..., Any]) -> None:
    affine = affine_of((1, 2, 0), (-1, 1, -1), (1.0, 2.0, 3.0))
    array = make_body(3)
    path = write_image(tmp_path / "a.nii.gz", array, affine)
    for spacing in (None, 1.5):
        folder = tmp_path / f"s{spacing}"
        write_store([Incoming("v", "p", "s", "MR", lambda: (array, affine))], folder, spacing=spacing)
        store = Store(folder)
        stored = store.preparation.apply(store.read_whole(0), store.volume(0).statistics, "MR")
        prepared = load_case(path, store.preparation, store.manifest.spacing)
        assert np.array_equal(prepared.array, stored)
        np.testing.assert_allclose(prepared.affine, store.volume(0).affine)
        assert nibabel.aff2axcodes(prepared.affine) == ("R", "A", "S")
        assert prepared.original_shape == array.shape


def test_crops_hold_image_and_label_together(paired: Paired) -> None:
    with loader(paired()) as crops:
        for step, images, labels, names in islice(crops, 20):
            assert images.shape == labels.shape == (3, 1, 8, 8, 8)
            assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
            for index in range(3):
                name, image, label = crops.crop(step, index)
                assert name == names[index]
                assert np.array_equal(image, images[index])
                whole = crops.case(name)
                found = np.lib.stride_tricks.sliding_window_view(whole.image[0], (8, 8, 8)) == image[0]
                corner = tuple(np.argwhere(found.all(axis=(3, 4, 5)))[0])
                box = tuple(slice(c, c + 8) for c in corner)
                assert np.array_equal(whole.labels[box], label[0])


def test_the_same_batches_for_any_threads_and_restart(paired: Paired) -> None:
    root = paired()

    def batches(count: int, **changes: Any) -> list[Any]:
        with loader(root, **changes) as crops:
            return list(islice(crops, count))

    one, many, later = batches(6, threads=1), batches(6, threads=4), batches(2, first_step=4)
    for a, b in zip(one + one[4:], many + later, strict=True):
        assert a[0] == b[0]
        assert a[3] == b[3]
        assert torch.equal(a[1], b[1])
        assert torch.equal(a[2], b[2])


def test_every_case_comes_once_before_any_comes_again(paired: Paired) -> None:
    with loader(paired(), batch=2) as crops:
        names = [name for batch in islice(crops, 6) for name in batch[3]]
    assert all(len(set(names[turn : turn + 4])) == 4 for turn in range(0, 12, 4))


def test_classes_are_met_alike(paired: Paired, write_image: Callable[..., Path]) -> None:
    root = paired(1)
    labels = np.zeros((24, 20, 18), np.uint8)
    labels[2:22, 2:18, 2:16], labels[20, 3, 3] = 1, 2
    write_image(root / "labels" / "case_00.nii.gz", labels)
    met: Counter[int] = Counter()
    with loader(root, foreground=1, size=(4, 4, 4)) as crops:
        for _, _, label, _ in islice(crops, 60):
            met.update(value for sample in label for value in sample.unique().tolist())
    assert met[2] > 0.4 * 180
    with loader(root, foreground=0, size=(4, 4, 4)) as crops:
        rare = sum(int((label == 2).any()) for _, _, label, _ in islice(crops, 60))
    assert rare < 12


def test_cases_smaller_than_the_crop_are_padded_dark(paired: Paired, write_image: Callable[..., Path]) -> None:
    root = paired(2)
    rng = np.random.default_rng(0)
    write_image(root / "images" / "case_01.nii.gz", rng.integers(10, 90, (6, 20, 18)).astype(np.int16))
    write_image(root / "labels" / "case_01.nii.gz", np.ones((6, 20, 18), np.uint8))
    with loader(root, size=(12, 8, 8), batch=2) as crops:
        _, images, labels, names = next(crops)
    slot = names.index("case_01")
    assert not labels[slot, 0, :3].any()
    assert not labels[slot, 0, 9:].any()
    assert labels[slot, 0, 3:9].all()
    assert (images[slot, 0, :3] == images[slot].min()).all()


def test_spacing_and_slices(paired: Paired) -> None:
    root = paired()
    with loader(root, spacing=2.0, size=(6, 6, 6)) as crops:
        case = crops.case("case_00")
        assert case.image.shape == (1, 12, 10, 9)
        assert case.labels.shape == (12, 10, 9)
        assert next(crops)[1].shape == (3, 1, 6, 6, 6)
    with loader(root, size=(6, 6)) as crops:
        _, images, labels, _ = next(crops)
        assert images.shape == labels.shape == (3, 1, 6, 6)


@pytest.mark.parametrize("spacing", [None, 1.0])
def test_label_and_image_are_turned_alike(tmp_path: Path, write_image: Callable[..., Path], spacing: float | None) -> None:
    stream = np.random.default_rng(0)
    labels = np.zeros((18, 22, 14), np.uint8)
    labels[2:9, 3:8, 1:6], labels[10:17, 12:20, 7:13] = 1, 2
    image = (labels * 100 + stream.integers(0, 5, labels.shape)).astype(np.int16)
    affine = affine_of((2, 0, 1), (-1, 1, -1), (2.0, 2.0, 2.0))
    write_image(tmp_path / "images" / "a.nii.gz", image, affine)
    path = write_image(tmp_path / "labels" / "a.nii.gz", labels, affine)
    chosen = options(tmp_path, spacing=spacing)
    with LabelledCrops(find_cases(chosen), chosen, Preparation(other=IntensityRule(kind="raw")), 0) as crops:
        case = crops.case("a")
    if spacing is None:
        oracle = nibabel.as_closest_canonical(nibabel.load(path))
        assert np.array_equal(case.labels, np.asarray(oracle.dataobj))
    for value in range(3):
        found = case.image[0][case.labels == value]
        assert abs(np.median(found) - 100 * value) < 5
        assert found.std() < (2 if spacing is None else 40)


def test_wrong_input_is_one_message(tmp_path: Path, paired: Paired, write_image: Callable[..., Path]) -> None:
    root = paired()
    with pytest.raises(ConfigError, match=r"larger than every image: the longest sides are \[24, 20, 18\].*size=\[8, 20, 8\]"):
        loader(root, size=(8, 64, 8))
    with pytest.raises(DataError, match="no labelled cases"):
        LabelledCrops([], options(root), Preparation(), 0)
    chosen = options(root)
    with pytest.raises(DataError, match="value 2"):
        LabelledCrops(find_cases(chosen), chosen, Preparation(), 0, out_channels=2)
    with pytest.raises(MissingInput):
        load_case(tmp_path / "none.nii.gz", Preparation())
    path = write_image(tmp_path / "flat.nii.gz", np.full((5, 5, 5), 3, np.int16))
    with pytest.raises(DataError, match=r"flat\.nii\.gz cannot be used: constant"):
        load_case(path, Preparation())
    four = write_image(tmp_path / "four.nii.gz", np.zeros((5, 5, 5, 2), np.int16))
    with pytest.raises(DataError, match=r"four\.nii\.gz"):
        load_case(four, Preparation())


def test_a_case_that_breaks_on_a_thread_surfaces(paired: Paired) -> None:
    root = paired()
    chosen = options(root)
    cases = find_cases(chosen)
    crops = LabelledCrops(cases, chosen, Preparation(), 0)
    for case in cases:
        case.image.unlink()
    with pytest.raises(MissingInput):
        list(islice(crops, 10))
    bare = Case("x", cases[0].image, None, "x")
    with pytest.raises((DataError, MissingInput)):
        LabelledCrops([bare], chosen, Preparation(), 0)
