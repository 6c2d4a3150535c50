"""Labelled crops and the way of a prediction: image and label stay together, and labels come back to the input's grid."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.archive.geometry import voxel_spacing
from medssl.contracts import Crops
from medssl.errors import DataError, MissingInput
from medssl.volumes import (
    Case,
    CropLoader,
    DataOptions,
    Incoming,
    LabelledOptions,
    Preparation,
    Store,
    channels_of,
    crop_at,
    find_cases,
    load_case,
    load_labels,
    prepare_volume,
    restore_labels,
    statistics,
    store_cases,
    write_store,
)
from medssl.volumes.cases.label_values import label_values

Paired = Callable[..., Path]
AXES = list(itertools.permutations(range(3)))


def options(root: Path, **changes: Any) -> LabelledOptions:
    values = {"images": str(root / "images"), "labels": str(root / "labels"), "size": (8, 8, 8), "batch": 3}
    return LabelledOptions.model_validate(values | changes)


def stored(root: Path, chosen: LabelledOptions, **keys: Any) -> Store:
    cases = find_cases(chosen)
    folder = root / f"store {chosen.spacing}"
    return store_cases(cases, folder, channels_of(chosen, cases), spacing=chosen.spacing, **keys)


def loader(root: Path, seed: int = 5, first_step: int = 0, **changes: Any) -> CropLoader:
    chosen = options(root, **changes)
    return CropLoader(stored(root, chosen), chosen, seed, first_step=first_step)


def labels_of(crops: Crops) -> torch.Tensor:
    assert crops.labels is not None
    return crops.labels


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
    from medssl.volumes.grid import resample_labels

    stream = np.random.default_rng(0)
    labels = stream.integers(0, 5, shape).astype(np.uint8)
    affine = affine_of(order, signs, spacing)
    target = None if fineness is None else min(spacing) * fineness
    prepared = prepare_volume(stream.normal(size=shape).astype(np.float32), affine, Preparation(), target)
    turned = prepared.flips.apply(labels)
    if target is not None:
        turned = resample_labels(turned, voxel_spacing(prepared.flips.affine(affine, shape)), prepared.spacing)
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
        stored = store.preparation.apply(store.read_whole(0), store.volume(0).statistics[0], "MR")
        prepared = load_case(path, store.preparation, store.manifest.spacing)
        assert np.array_equal(prepared.array, stored)
        np.testing.assert_allclose(prepared.affine, store.volume(0).affine)
        assert nibabel.aff2axcodes(prepared.affine) == ("R", "A", "S")
        assert prepared.original_shape == array.shape


def test_crops_hold_image_and_label_together(paired: Paired) -> None:
    with loader(paired()) as crops:
        numbers = {volume.sample: number for number, volume in enumerate(crops.store.volumes)}
        for step, _, batch in islice(crops, 20):
            labels = labels_of(batch)
            assert batch.images.shape == labels.shape == (3, 1, 8, 8, 8)
            assert (batch.images.dtype, labels.dtype) == (torch.float32, torch.int64)
            for slot in range(3):
                number = numbers[int(batch.sample[slot])]
                volume = crops.store.volume(number)
                corner = (batch.affine[slot, :, -1] / batch.spacing[slot]).round().int().tolist()
                whole = crops.store.preparation.apply(crops.store.read(number, corner, (8, 8, 8)), volume.statistics[0], "MR")
                assert np.array_equal(batch.images[slot], whole)
                assert np.array_equal(labels[slot], crops.store.read_labels(number, corner, (8, 8, 8)))
                alone = crop_at(crops.store, crops.options, 5, 3 * step + slot)
                assert alone.labels is not None
                assert np.array_equal(alone.labels, labels[slot])


def test_a_store_holds_what_the_files_hold(paired: Paired) -> None:
    root = paired(2)
    store = stored(root, options(root))
    for case in find_cases(options(root)):
        number = store.column("volume").index(case.volume)
        volume = store.volume(number)
        assert np.array_equal(store.read_whole(number)[0], np.asarray(nibabel.load(case.images[0]).dataobj))
        labels = np.asarray(nibabel.load(case.label).dataobj)
        assert np.array_equal(store.read_labels(number, (0, 0, 0), volume.shape)[0], labels)
        assert volume.classes == (0, 1, 2)
        assert [set(labels[tuple(points.T)]) for points in volume.class_points] == [{1}, {2}]
    told = [*(path.name for path in store.folder.rglob("*")), *store.column("patient"), *store.column("series")]
    assert not [name for name in told if "case" in name]


def test_the_same_batches_for_any_threads_and_restart(paired: Paired) -> None:
    root = paired()

    def batches(count: int, **changes: Any) -> list[Any]:
        with loader(root, **changes) as crops:
            return list(islice(crops, count))

    one, many, later = batches(6, threads=1), batches(6, threads=4), batches(2, first_step=4)
    for (step, _, a), (other, _, b) in zip(one + one[4:], many + later, strict=True):
        assert step == other
        assert torch.equal(a.sample, b.sample)
        assert torch.equal(a.images, b.images)
        assert torch.equal(labels_of(a), labels_of(b))


def test_every_case_comes_once_before_any_comes_again(paired: Paired) -> None:
    with loader(paired(), batch=2) as crops:
        numbers = [number for _, _, batch in islice(crops, 6) for number in batch.sample.tolist()]
    assert all(len(set(numbers[turn : turn + 4])) == 4 for turn in range(0, 12, 4))


def test_classes_are_met_alike(paired: Paired, write_image: Callable[..., Path]) -> None:
    root = paired(1)
    labels = np.zeros((24, 20, 18), np.uint8)
    labels[2:22, 2:18, 2:16], labels[20, 3, 3] = 1, 2
    write_image(root / "labels" / "case_00.nii.gz", labels)
    met: Counter[int] = Counter()
    with loader(root, foreground=1, size=(4, 4, 4)) as crops:
        for _, _, batch in islice(crops, 60):
            met.update(value for sample in labels_of(batch) for value in sample.unique().tolist())
    assert met[2] > 0.4 * 180
    with loader(root, foreground=0, size=(4, 4, 4)) as crops:
        rare = sum(int((labels_of(batch) == 2).any()) for _, _, batch in islice(crops, 60))
    assert rare < 12


def test_cases_smaller_than_the_crop_are_padded_dark(paired: Paired, write_image: Callable[..., Path]) -> None:
    root = paired(2)
    rng = np.random.default_rng(0)
    write_image(root / "images" / "case_01.nii.gz", rng.integers(10, 90, (6, 20, 18)).astype(np.int16))
    write_image(root / "labels" / "case_01.nii.gz", np.ones((6, 20, 18), np.uint8))
    small = next(case for case in find_cases(options(root)) if case.name == "case_01")
    with loader(root, size=(12, 8, 8), batch=2) as crops:
        batch = next(crops)[2]
        sample = next(volume.sample for volume in crops.store.volumes if volume.volume == small.volume)
    slot = batch.sample.tolist().index(sample)
    labels = labels_of(batch)[slot, 0]
    assert not labels[:3].any()
    assert not labels[9:].any()
    assert labels[3:9].all()
    assert (batch.images[slot, 0, :3] == batch.images[slot].min()).all()


def test_spacing_and_slices(paired: Paired) -> None:
    root = paired()
    with loader(root, spacing=2.0, size=(6, 6, 6)) as crops:
        assert crops.store.volume(0).shape == (12, 10, 9)
        assert next(crops)[2].images.shape == (3, 1, 6, 6, 6)
    with loader(root, size=(6, 6)) as crops:
        batch = next(crops)[2]
        assert batch.images.shape == labels_of(batch).shape == (3, 1, 6, 6)


@pytest.mark.parametrize("spacing", [None, 1.0])
def test_label_and_image_are_turned_alike(tmp_path: Path, write_image: Callable[..., Path], spacing: float | None) -> None:
    stream = np.random.default_rng(0)
    labels = np.zeros((18, 22, 14), np.uint8)
    labels[2:9, 3:8, 1:6], labels[10:17, 12:20, 7:13] = 1, 2
    image = (labels * 100 + stream.integers(0, 5, labels.shape)).astype(np.int16)
    affine = affine_of((2, 0, 1), (-1, 1, -1), (2.0, 2.0, 2.0))
    write_image(tmp_path / "images" / "a.nii.gz", image, affine)
    path = write_image(tmp_path / "labels" / "a.nii.gz", labels, affine)
    store = stored(tmp_path, options(tmp_path, spacing=spacing))
    values, found = store.read_whole(0)[0], store.read_labels(0, (0, 0, 0), store.volume(0).shape)[0]
    if spacing is None:
        oracle = nibabel.as_closest_canonical(nibabel.load(path))
        assert np.array_equal(found, np.asarray(oracle.dataobj))
    for value in range(3):
        inside = values[found == value]
        assert abs(np.median(inside) - 100 * value) < 5
        assert inside.std() < (2 if spacing is None else 40)


def several(root: Path, write_image: Callable[..., Path], form: str) -> dict[str, np.ndarray]:
    """Two cases of three channels, as files (nnU-Net) or as a fourth axis (Decathlon); a dataset.json; name -> (3, X, Y, Z)."""
    arrays = {}
    entries = []
    for number in range(2):
        stream = np.random.default_rng(number)
        array = np.stack([stream.integers(0, 90 + 400 * channel, (14, 12, 10)) for channel in range(3)]).astype(np.int16)
        arrays[f"case_{number}"] = array
        label = np.zeros(array.shape[1:], np.uint8)
        label[3:9, 3:9, 3:9] = 1
        write_image(root / "labelsTr" / f"case_{number}.nii.gz", label)
        if form == "files":
            for channel in range(3):
                write_image(root / "imagesTr" / f"case_{number}_{channel:04d}.nii.gz", array[channel])
        else:
            write_image(root / "imagesTr" / f"case_{number}.nii.gz", np.moveaxis(array, 0, 3))
            entries.append({"image": f"imagesTr/case_{number}.nii.gz", "label": f"labelsTr/case_{number}.nii.gz"})
    names = {"0": "CT", "1": "T1", "2": "T2"}
    content = {"channel_names": names} if form == "files" else {"modality": names, "training": entries}
    (root / "dataset.json").write_text(json.dumps(content))
    return arrays


@pytest.mark.parametrize("spacing", [None, 1.5])
@pytest.mark.parametrize("form", ["files", "fourth axis"])
def test_several_images_of_a_case_are_channels(tmp_path: Path, write_image: Callable[..., Path], form: str, spacing: float | None) -> None:
    """In training as in prediction, each channel by its own rule and statistics."""
    arrays = several(tmp_path, write_image, form)
    chosen = LabelledOptions(dataset=str(tmp_path), size=(6, 6, 6), spacing=spacing)
    store = stored(tmp_path, chosen)
    assert store.channels == ("CT", "T1", "T2")
    cases = find_cases(chosen)
    for case in cases:
        number = store.column("volume").index(case.volume)
        volume = store.volume(number)
        if spacing is None:
            assert np.array_equal(store.read_whole(number), arrays[case.name])
            assert volume.statistics == tuple(statistics(channel) for channel in arrays[case.name])
        prepared = load_case(case.images, store.preparation, spacing, channels_of(chosen, cases))
        for place, (channel, numbers) in enumerate(zip(volume.channels, volume.statistics, strict=True)):
            expected = store.preparation.apply(store.read_whole(number)[place], numbers, channel.modality)
            assert np.array_equal(prepared.array[place], expected)
    assert prepared.array[0].min() >= -1
    with CropLoader(store, chosen, 0, body=True) as crops:
        batch = next(crops)[2]
    assert batch.images.shape == (2, 3, 6, 6, 6)
    assert batch.rescale.shape == (2, 3, 2)
    corner = (batch.affine[0, :, -1] / batch.spacing[0]).round().int().tolist()
    shown = {volume.sample: number for number, volume in enumerate(store.volumes)}[int(batch.sample[0])]
    raw = store.read(shown, corner, (6, 6, 6))
    true = batch.images[0] * batch.rescale[0, :, 0].view(3, 1, 1, 1) + batch.rescale[0, :, 1].view(3, 1, 1, 1)
    lines = store.volume(shown).lines(store.preparation)
    for place, line in enumerate(lines):
        np.testing.assert_allclose(true[place], np.clip(raw[place], line.low, line.high), atol=0.05)
    with pytest.raises(DataError, match=r"it has 3 channel\(s\), not 1 \(MR\)"):
        load_case(cases[0].images, Preparation())


def test_what_is_stored_is_kept_until_its_files_change(paired: Paired, write_image: Callable[..., Path]) -> None:
    root = paired()
    chosen = options(root)
    before = {path: path.stat().st_mtime_ns for path in stored(root, chosen).folder.glob("*/*.b2nd")}
    assert len(before) == 8
    labels = np.zeros((24, 20, 18), np.uint8)
    labels[2:5, 2:5, 2:5] = 3
    write_image(root / "labels" / "case_01.nii.gz", labels)
    store = stored(root, chosen)
    changed = {path for path, time in before.items() if path.stat().st_mtime_ns != time}
    (case,) = (case for case in find_cases(chosen) if case.name == "case_01")
    assert {path.stem for path in changed} == {case.volume}
    assert store.volume(store.column("volume").index(case.volume)).classes == (0, 3)
    few = stored(root, options(root, labelled=2))
    assert len(few) == 2
    assert few.folder == store.folder


def test_labelled_and_unlabelled_crops_of_two_loaders_are_one_batch(paired: Paired, store_folder: Path) -> None:
    root = paired()
    chosen = options(root)
    data = DataOptions(store=str(store_folder), size=(8, 8, 8), batch=2)
    with CropLoader(stored(root, chosen), chosen, 0) as labelled, CropLoader(Store(store_folder), data, 0) as bare:
        joined = Crops.join([next(labelled)[2], next(bare)[2]])
    labels = labels_of(joined)
    assert (labels[:3] >= 0).all()
    assert (labels[3:] == -1).all()
    assert not set(joined.group[:3].tolist()) & set(joined.group[3:].tolist())


def test_wrong_input_is_one_message(tmp_path: Path, paired: Paired, write_image: Callable[..., Path]) -> None:
    root = paired()
    with pytest.warns(UserWarning, match=r"larger than every volume.*the longest sides are \[24, 20, 18\]"):
        loader(root, size=(8, 64, 8))
    with pytest.raises(DataError, match="no labelled cases"):
        store_cases([], tmp_path / "none")
    with pytest.raises(MissingInput):
        load_case(tmp_path / "none.nii.gz", Preparation())
    path = write_image(tmp_path / "flat.nii.gz", np.full((5, 5, 5), 3, np.int16))
    with pytest.raises(DataError, match=r"flat\.nii\.gz cannot be used: constant"):
        load_case(path, Preparation())
    five = write_image(tmp_path / "five.nii.gz", np.zeros((5, 5, 5, 2, 2), np.int16))
    with pytest.raises(DataError, match=r"five\.nii\.gz"):
        load_case(five, Preparation())


def test_cases_that_cannot_be_stored_are_named(paired: Paired, write_image: Callable[..., Path]) -> None:
    root = paired()
    chosen = options(root)
    cases = find_cases(chosen)
    with pytest.raises(DataError, match="'x' has no label"):
        store_cases([Case("x", cases[0].images, None, "x")], root / "s")
    write_image(root / "labels" / "case_01.nii.gz", np.full((24, 20, 18), 0.5, np.float32))
    with pytest.raises(
        DataError,
        match=r"'case_01' \(.*images/case_01.*labels/case_01.*its label holds values that are no whole numbers, such as 0\.5",
    ):
        stored(root, chosen)
    cases[2].images[0].write_bytes(b"x" * 400)
    with pytest.raises(DataError, match=r"2 of 4 cases cannot be used, such as case 'case_01'"):
        store_cases(cases, root / "store None")
    write_image(root / "labels" / "case_01.nii.gz", np.zeros((24, 20, 17), np.uint8))
    with pytest.raises(DataError, match=r"the label's grid differs from the image's: .*has shape \[24, 20, 18\].*has shape \[24, 20, 17\]"):
        store_cases(cases[:2], root / "store None")


def test_stored_labels_are_classes(paired: Paired) -> None:
    """Renumbered, merged and ignored as the option says; with other values the store is made again."""
    root = paired(1)
    chosen = options(root)
    (case,) = find_cases(chosen)
    raw = np.asarray(nibabel.load(case.label).dataobj)
    maps: list[dict[int, int | Literal["ignore"]]] = [{1: 0, 2: 1}, {1: 1, 2: 1}, {1: 1, 2: "ignore"}]
    for one in maps:
        values = label_values(one, None)
        store = stored(root, chosen, values=values)
        assert np.array_equal(store.read_labels(0, (0, 0, 0), raw.shape)[0], values.classes_in(raw))
        assert store.volume(0).classes == tuple(sorted({0, *values.classes_in(raw).ravel().tolist()}))
        assert [set(values.classes_in(raw)[tuple(points.T)]) for points in store.volume(0).class_points] == [{1}]
    with pytest.raises(DataError, match=r"its label holds the value 2, to which data\.label_values gives no class"):
        stored(root, chosen, values=label_values({1: 1}, None))


def test_a_class_without_a_voxel_on_the_grid_is_known(paired: Paired, write_image: Callable[..., Path]) -> None:
    root = paired(1)
    labels = np.zeros((24, 20, 18), np.uint8)
    labels[4:12, 4:12, 4:12], labels[20, 15, 15] = 1, 7
    write_image(root / "labels" / "case_00.nii.gz", labels)
    volume = stored(root, options(root, spacing=4.0)).volume(0)
    assert volume.classes == (0, 1, 7)
    assert len(volume.class_points) == 1


def test_a_large_label_value_is_kept(paired: Paired, write_image: Callable[..., Path]) -> None:
    root = paired(1)
    labels = np.zeros((24, 20, 18), np.int16)
    labels[4:9, 4:9, 4:9] = 300
    write_image(root / "labels" / "case_00.nii.gz", labels)
    with loader(root, foreground=1, batch=1) as crops:
        assert crops.store.labels_dtype(0) == np.int16
        assert labels_of(next(crops)[2]).max() == 300


@pytest.mark.parametrize(
    ("value", "kind", "says"),
    [
        (-1, np.int16, r"holds the value -1; labels start at 0\. Correct the label, or name its class by data\.label_values"),
        (40000, np.uint16, r"holds the value 40000, and labels go from 0 to 32767"),
        (1.0000001, np.float64, r"no whole numbers, such as 1\.0000001"),
    ],
)
def test_a_wrong_label_is_named_as_it_is(tmp_path: Path, value: float, kind: type, says: str) -> None:
    array = np.ones((3, 3, 3), kind)
    array[0, 0, 0] = value
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "label.nii.gz")
    with pytest.raises(DataError, match=says):
        load_labels(tmp_path / "label.nii.gz")
