"""Labels of every form beside their images: turned, placed or refused, and the same classes in the store whatever they came as."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from archive.labels.made import ball, contour, slices_of, write_rtstruct, write_seg
from archive.labels.test_nrrd import write_slicer
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from pydantic import ValidationError

from medssl.archive import Index, build_index
from medssl.errors import DataError
from medssl.testing.dicom import made_affine, made_volume, write_series
from medssl.volumes import LabelledOptions, Store, case_labels, channels_of, find_cases, label_values_of, store_cases
from medssl.volumes.cases.label_values import LabelValues

Write = Callable[..., Path]
SHAPE = (20, 16, 12)
AFFINE = made_affine()
LIVER, TUMOUR = ball(SHAPE, (8, 7, 5), 4), ball(SHAPE, (15, 10, 8), 2)
CLASSES = {"liver": ["Liver", "hepar*"], "tumour": "GTV"}
TRUTH = LIVER + 2 * TUMOUR.astype(np.uint8)


def options(**given: Any) -> LabelledOptions:
    return LabelledOptions.model_validate({"size": (8, 8, 8)} | {k: str(v) if isinstance(v, Path) else v for k, v in given.items()})


def stored(chosen: LabelledOptions, folder: Path) -> Store:
    cases = find_cases(chosen)
    return store_cases(cases, folder, channels_of(chosen, cases), values=label_values_of(chosen))


def labels_in(chosen: LabelledOptions) -> dict[str, np.ndarray]:
    """Case -> classes on its image's own grid."""
    return {case.name: case_labels(case, label_values_of(chosen)) for case in find_cases(chosen)}


@pytest.fixture
def folders(tmp_path: Path, write_image: Write) -> Path:
    """One image, and no label yet."""
    write_image(tmp_path / "images" / "a.nii.gz", made_volume(SHAPE), AFFINE)
    (tmp_path / "labels").mkdir()
    return tmp_path


def test_a_label_in_another_order_and_direction_is_turned_exactly(folders: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)
    straight = nibabel.Nifti1Image(values, AFFINE)
    chosen = options(images=folders / "images", labels=folders / "labels")
    for number, code in enumerate(("LAS", "SPL", "AIR", "RPI")):
        turned = straight.as_reoriented(ornt_transform(io_orientation(AFFINE), axcodes2ornt(code)))
        nibabel.save(turned, folders / "labels" / "a.nii.gz")
        np.testing.assert_array_equal(labels_in(chosen)["a"], values)
        store = stored(chosen, tmp_path / f"store {number}")
        # A store is RAS+: against nibabel's own canonical form.
        expected = np.asarray(nibabel.as_closest_canonical(straight).dataobj)
        np.testing.assert_array_equal(store.read_labels(0, (0, 0, 0), SHAPE)[0], expected)


def test_another_grid_is_an_error_with_the_way_out(folders: Path, write_image: Write, tmp_path: Path) -> None:
    finer = AFFINE @ np.diag([0.5, 0.5, 1, 1])
    write_image(folders / "labels" / "a.nii.gz", np.kron(TRUTH, np.ones((2, 2, 1), np.uint8)), finer)
    chosen = options(images=folders / "images", labels=folders / "labels")
    with pytest.raises(DataError, match=r"case 'a'.*the label's grid differs from the image's.*data\.resample_labels=true"):
        find_cases(chosen)
    chosen = options(images=folders / "images", labels=folders / "labels", resample_labels=True)
    got = labels_in(chosen)["a"]
    # The finer voxels lie a quarter of a voxel off: each coarse one is the nearest of four alike.
    assert (got != TRUTH).mean() < 0.05 and set(np.unique(got)) == {0, 1, 2}
    assert stored(chosen, tmp_path / "store").volume(0).classes == (0, 1, 2)


@pytest.mark.parametrize("form", ["seg.nrrd", "seg", "rtstruct", "nrrd"])
def test_labels_of_every_form_in_a_folder(folders: Path, tmp_path: Path, form: str) -> None:
    images = slices_of(write_series(tmp_path / "ct", made_volume(SHAPE), AFFINE))
    truth, named = TRUTH, CLASSES
    if form == "seg.nrrd":
        segments = [{"Name": name, "LabelValue": value, "Layer": 0} for value, name in ((1, "Hepar left"), (2, "GTV"), (3, "Doe^Jane"))]
        write_slicer(folders / "labels" / "a.seg.nrrd", [np.where(ball(SHAPE, (2, 2, 2), 1), 3, TRUTH).astype(np.uint8)], AFFINE, segments)
    elif form == "seg":
        write_seg(folders / "labels" / "a.dcm", images, {"GTV": TUMOUR, "other": ball(SHAPE, (2, 2, 2), 1), "liver": LIVER})
    elif form == "rtstruct":
        square = np.array([[3.5, 3.5], [9.5, 3.5], [9.5, 8.5], [3.5, 8.5]])
        contours = [contour(np.c_[square, np.full(4, z)], AFFINE) for z in (3, 4)]
        write_rtstruct(folders / "labels" / "a.dcm", {"GTV": contours}, images)
        truth = np.zeros(SHAPE, np.uint8)
        truth[4:10, 4:9, 3:5] = 2
    else:
        write_slicer(folders / "labels" / "a.nrrd", [TRUTH.astype(np.uint8)], AFFINE, [])
        named = {"liver": 1, "tumour": 2}  # type: ignore[dict-item]
    chosen = options(images=folders / "images", labels=folders / "labels", classes=named)
    (case,) = find_cases(chosen)
    assert case.name == "a"
    np.testing.assert_array_equal(labels_in(chosen)["a"], truth)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if form == "rtstruct" else "error")
        store = stored(chosen, tmp_path / "store")
    assert store.volume(0).classes == tuple(np.unique(truth).tolist())
    assert not any(b"Doe" in file.read_bytes() for file in (tmp_path / "store").rglob("*") if file.is_file())


def test_segments_that_nobody_names_are_no_labels(folders: Path, tmp_path: Path) -> None:
    write_slicer(folders / "labels" / "a.seg.nrrd", [LIVER.astype(np.uint8)], AFFINE, [{"Name": "Doe^Jane", "LabelValue": 1}])
    for classes, said in ((None, r"named segments.*data\.classes"), (CLASSES, r"none of the label's 1 segments.*liver, tumour")):
        chosen = options(images=folders / "images", labels=folders / "labels", classes=classes)
        with pytest.raises(DataError, match=said) as caught:
            stored(chosen, tmp_path / f"store {classes is None}")
        assert "Doe" not in str(caught.value)


@pytest.mark.parametrize("which", ["label", "image", "both"])
def test_a_file_without_a_place_takes_that_of_its_partner(folders: Path, write_image: Write, tmp_path: Path, which: str) -> None:
    write_image(folders / "labels" / "a.nii.gz", TRUTH, AFFINE)
    for name in ("label", "image") if which == "both" else (which,):
        path = folders / f"{name}s" / "a.nii.gz"
        image = nibabel.load(path)
        bare = nibabel.Nifti1Image(np.asarray(image.dataobj), None)
        bare.set_sform(None, code=0)
        bare.set_qform(None, code=0)
        nibabel.save(bare, path)
    chosen = options(images=folders / "images", labels=folders / "labels")
    if which == "both":
        with pytest.raises(DataError, match=r"case 'a'.*qform and sform codes are 0"):
            find_cases(chosen)
        return
    with pytest.warns(UserWarning, match=r"1 file\(s\) say not where they lie"):
        store = stored(chosen, tmp_path / "store")
    assert np.linalg.norm(store.volume(0).affine[:3, :3], axis=0) == pytest.approx([0.8, 0.9, 2.0])
    np.testing.assert_array_equal(store.read_labels(0, (0, 0, 0), SHAPE)[0], TRUTH[::-1, ::-1])


def test_one_slice_proposes_two_sides(tmp_path: Path, write_image: Write) -> None:
    write_image(tmp_path / "images" / "a.nii.gz", made_volume((20, 16, 1)), AFFINE)
    write_image(tmp_path / "labels" / "a.nii.gz", np.ones((20, 16, 1), np.uint8), AFFINE)
    with pytest.raises(DataError, match=r"case 'a' is one slice.*data\.size=\[8, 8\] and network\.spatial_dims=2"):
        find_cases(options(images=tmp_path / "images", labels=tmp_path / "labels"))


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """Two patients: SEG on the one's CT, a structure set on the other's; a third series has no labels."""
    for number in range(3):
        series = write_series(tmp_path / "archive" / f"{number}", made_volume(SHAPE, number), AFFINE, patient=f"P{number}")
        images = slices_of(series)
        if number == 0:
            write_seg(tmp_path / "archive" / "x", images, {"Liver": LIVER, "GTV": TUMOUR})
        elif number == 1:
            square = np.array([[3.5, 3.5], [9.5, 3.5], [9.5, 8.5], [3.5, 8.5]])
            write_rtstruct(tmp_path / "archive" / "y", {"GTV": [contour(np.c_[square, np.full(4, 4)], AFFINE)]}, images)
    build_index([tmp_path / "archive"], tmp_path / "index", workers=1)
    return tmp_path / "index"


def test_the_labelled_volumes_of_an_index(index: Path, tmp_path: Path) -> None:
    for given in ({"classes": CLASSES}, {"labels": CLASSES}):
        chosen = options(index=index, **given)
        cases = find_cases(chosen)
        assert len(cases) == 2 and len({case.patient for case in cases}) == 2
        opened = Index(index)
        # The pseudonyms give no order: the one with two classes is P0's.
        labels = labels_in(chosen)
        by_classes = {len(np.unique(array)): name for name, array in labels.items()}
        np.testing.assert_array_equal(labels[by_classes[3]], TRUTH)
        np.testing.assert_array_equal(opened.read(by_classes[3]).array, made_volume(SHAPE, 0))
        assert np.argwhere(labels[by_classes[2]] == 2)[:, 2].tolist() == [4] * 30
    with pytest.warns(UserWarning, match=r"such as those of .*liver"):
        store = stored(chosen, tmp_path / "store")
    assert len(store.volumes) == 2 and store.channels == ("CT",)


def test_an_index_without_labels_or_names_is_one_message(index: Path) -> None:
    with pytest.raises(ValidationError, match=r"an index has named segments"):
        options(index=index)
    with pytest.raises(DataError, match=r"no volume of the index .* where modality = 'MR' has a label object"):
        find_cases(options(index=index, classes=CLASSES, where="modality = 'MR'"))
    with pytest.raises(ValidationError, match="give one of dataset, images with labels, and index"):
        options(index=index, classes=CLASSES, images="x")


def test_an_index_of_an_index_is_split_by_patient_and_named(index: Path, tmp_path: Path) -> None:
    names = sorted(case.name for case in find_cases(options(index=index, classes=CLASSES)))
    (tmp_path / "splits.json").write_text(json.dumps({"train": names[:1], "val": names[1:]}))
    chosen = options(index=index, classes=CLASSES, splits=tmp_path / "splits.json")
    assert [case.name for case in find_cases(chosen)] == names[:1]


def test_values_by_name(paired: Callable[..., Path], tmp_path: Path, write_image: Write) -> None:
    """`{lesion: 255}`, merged values, names of dataset.json, and what is left out."""
    root = paired(1)
    write_image(root / "labels" / "case_00.nii.gz", np.kron(np.array([[[0, 255], [128, 7]]]), np.ones((24, 10, 9))).astype(np.uint8))
    chosen = options(images=root / "images", labels=root / "labels", classes={"lesion": 255, "rest": [128, 7]})
    found = label_values_of(chosen)
    assert found.class_names() == {1: "lesion", 2: "rest"}
    got = labels_in(chosen)["case_00"]
    assert [int(got[0, y, z]) for y, z in ((0, 0), (0, 10), (12, 0), (12, 10))] == [0, 1, 2, 2]
    assert found.values_of(np.array([0, 1, 2])).tolist() == [0, 255, 7]
    chosen = options(images=root / "images", labels=root / "labels", classes={"lesion": 255, "background": 128, "ignore": 7})
    assert set(np.unique(labels_in(chosen)["case_00"]).tolist()) == {-1, 0, 1}
    chosen = options(images=root / "images", labels=root / "labels", classes={"lesion": 255})
    with pytest.raises(DataError, match=r"holds the value 7, 128, to which data\.classes gives no class"):
        labels_in(chosen)
    (root / "dataset.json").write_text(
        json.dumps(
            {
                "labels": {"background": 0, "edema": 7, "core": 128, "lesion": 255},
                "training": [{"image": "images/case_00.nii.gz", "label": "labels/case_00.nii.gz"}],
            }
        )
    )
    chosen = options(dataset=root, labels={"tumour": ["Core", "lesion"], "edema": "edema"})
    assert label_values_of(chosen).classes == {0: 0, 128: 1, 255: 1, 7: 2}


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ({"a": 1, "b": [2, 1]}, "1 is named for 'a' and for 'b'"),
        ({"a": []}, "neither values nor names"),
        ({"background": 0}, "no class is left"),
    ],
)
def test_classes_that_make_no_sense(classes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        options(images="x", labels="y", classes=classes)


def test_predictions_of_segments_without_a_value_have_numbers_of_their_own() -> None:
    chosen = options(images="x", labels="y", classes={"a": [2], "b": "Name", "c": 1})
    found = label_values_of(chosen)
    assert found.values_of(np.array([0, 1, 2, 3])).tolist() == [0, 2, 3, 1]
    back = LabelValues.of_document(found.document())
    assert back.values_of(np.array([0, 1, 2, 3])).tolist() == [0, 2, 3, 1]
    assert back.classes_in(np.array([0, 2, 3, 1])).tolist() == [0, 1, 2, 3]


def test_padding_of_an_index_is_background_as_in_the_pretraining(tmp_path: Path) -> None:
    truth = made_volume(SHAPE)
    padded = truth.copy()
    padded[:3] = -2000
    images = write_series(tmp_path / "archive", padded, AFFINE, adjust=lambda one, _: one.add_new("PixelPaddingValue", "SS", -2000))
    write_seg(tmp_path / "archive" / "seg", slices_of(images), {"Liver": LIVER})
    build_index([tmp_path / "archive"], tmp_path / "index", workers=1)
    store = stored(options(index=tmp_path / "index", classes={"liver": "Liver"}), tmp_path / "store")
    assert store.read_whole(0).min() == truth[3:].min()


def test_real_images_of_an_index(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "dcmqi" / "segmentations"
    shutil.copytree(folder / "ct-3slice", tmp_path / "archive")
    shutil.copy(folder / "liver.dcm", tmp_path / "archive")
    shutil.copy(folder / "partial_overlaps.dcm", tmp_path / "archive")
    build_index([tmp_path / "archive"], tmp_path / "index", workers=1)
    chosen = options(index=tmp_path / "index", labels={"liver": "Liver"}, where="shape[3] = 3")
    ((_, labels),) = labels_in(chosen).items()
    assert np.count_nonzero(labels) == 107098
    with pytest.raises(DataError, match=r"'green' and 'orange' share"):
        labels_in(options(index=tmp_path / "index", labels={"green": "GREEN", "orange": "ORANGE"}))
