"""2D images from files to label maps: pretrained on a store, fine-tuned on pairs of pictures or NIfTI, predicted on their own grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from archive.made_images import SKIN, US_CINE, grey, image, save
from PIL import Image

from medssl.archive.pictures.files import read_picture_labels
from medssl.errors import ConfigError, DataError
from medssl.train import pretrain
from medssl.transfer import evaluate, fine_tune, predict
from medssl.volumes import make_store

NETWORK = {"name": "UNet", "spatial_dims": 2, "in_channels": 3, "options": {"channels": [8, 16], "strides": [2], "num_res_units": 1}}
TRAIN = {"steps": 90, "validate_every": 90, "checkpoint_every": 90}
ROWS, COLUMNS = 60, 50


def lesion(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A photograph of skin with a dark disc, away from the middle, and where the disc is."""
    stream = np.random.default_rng(number)
    y, x = np.indices((ROWS + number, COLUMNS))
    disc = (y - stream.uniform(12, 20)) ** 2 + (x - stream.uniform(28, 38)) ** 2 < 90
    shown = np.array([210, 160, 140]) + stream.normal(0, 5, (*disc.shape, 3))
    shown[disc] -= [110, 90, 60]
    return shown.clip(0, 255).astype(np.uint8), disc


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs as JPEG and PNG with masks of 0 and 255, and grey NIfTI pairs of the same."""
    folder = tmp_path_factory.mktemp("pairs")
    for name in ("images", "masks", "nifti", "labels"):
        (folder / name).mkdir()
    affine = np.array([[0, 0, 4.0, 0], [-0.5, 0, 0, 0], [0, -0.7, 0, 0], [0, 0, 0, 1]])  # sagittal
    for number in range(6):
        shown, disc = lesion(number)
        Image.fromarray(shown).save(folder / "images" / f"c{number}.{'jpg' if number % 2 else 'png'}", quality=95)
        Image.fromarray((disc * 255).astype(np.uint8)).save(folder / "masks" / f"c{number}.png")
        for name, array in (("nifti", shown.mean(axis=2).astype(np.int16)), ("labels", disc.astype(np.uint8))):
            nibabel.save(nibabel.Nifti1Image(array.T[..., None], affine), folder / name / f"c{number}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def pretrained(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    make_store([pairs / "images"], folder / "store")
    config = {
        "network": NETWORK,
        "data": {"store": str(folder / "store"), "size": [32, 32], "batch": 4},
        "tasks": [{"name": "inpainting"}],
        "train": {"steps": 3, "checkpoint_every": 3},
    }
    pretrain(config=config, out=folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def tuned(pairs: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = {
        "images": str(pairs / "images"),
        "labels": str(pairs / "masks"),
        "size": [32, 32],
        "batch": 4,
        "label_values": {255: 1},
        "validation": 0.3,
    }
    run = fine_tune(config={"data": data, "train": TRAIN}, out=tmp_path_factory.mktemp("tuned") / "run", pretrained=pretrained)
    return Path(run.folder)


def test_label_maps_of_pictures_are_pictures_on_their_own_grid(tuned: Path, pairs: Path, tmp_path: Path) -> None:
    written = predict(tuned, [pairs / "images"], tmp_path / "out")
    assert [path.name for path in written] == [f"c{number}.png" for number in range(6)]
    for path in written:
        with Image.open(path) as shown, Image.open(pairs / "masks" / path.name) as mask:
            assert shown.size == mask.size and shown.mode == "L"
        assert set(np.unique(read_picture_labels(path))) <= {0, 255}
    # Only maps that are neither mirrored nor turned meet the discs at all: they lie in a corner.
    assert evaluate(tmp_path / "out", pairs / "masks").dice > 0.7


def test_a_picture_of_another_form_is_one_reason(tuned: Path, pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(grey()).save(tmp_path / "in" / "grey.png")
    Image.fromarray(lesion(9)[0]).save(tmp_path / "in" / "colour.png")
    (tmp_path / "in" / "cut.png").write_bytes((pairs / "images" / "c0.png").read_bytes()[:400])
    with pytest.raises(DataError, match="2 of 3 inputs could not be predicted") as error:
        predict(tuned, [tmp_path / "in"], tmp_path / "out")
    assert "1 channel(s), not 3 (R, G, B)" in str(error.value) and (tmp_path / "out" / "colour.png").is_file()


def test_dicom_photographs_are_predicted_as_pictures_are(tuned: Path, pairs: Path, tmp_path: Path) -> None:
    shown = np.asarray(Image.open(pairs / "images" / "c0.png"))
    save(image(shown, SKIN, "XC", PixelSpacing=[0.2, 0.3]), tmp_path / "in" / "a")
    (path,) = predict(tuned, [tmp_path / "in"], tmp_path / "dicom")
    (picture,) = predict(tuned, [pairs / "images" / "c0.png"], tmp_path / "picture")
    found = nibabel.load(path)
    assert np.array_equal(np.asarray(found.dataobj).reshape(COLUMNS, ROWS, 1), read_picture_labels(picture))
    assert found.header.get_zooms()[:2] == pytest.approx((0.3, 0.2))
    save(image(np.stack([shown, shown]), US_CINE, "US"), tmp_path / "cine" / "a")
    with pytest.raises(DataError, match="2 frames over time"):
        predict(tuned, [tmp_path / "cine"], tmp_path / "none")


def test_slices_as_nifti_are_tuned_and_predicted_on_their_grid(pairs: Path, tmp_path: Path) -> None:
    data: dict[str, Any] = {"images": str(pairs / "nifti"), "labels": str(pairs / "labels"), "size": [32, 32], "batch": 4}
    config = {"network": {**NETWORK, "in_channels": 1}, "data": data, "train": TRAIN}
    run = fine_tune(config=config, out=tmp_path / "run")
    written = predict(run.folder, [pairs / "nifti"], tmp_path / "out")
    for path in written:
        assert np.allclose(nibabel.load(path).affine, nibabel.load(pairs / "nifti" / path.name).affine)
    assert evaluate(tmp_path / "out", pairs / "labels").dice > 0.5


def test_what_does_not_belong_together_is_told(pairs: Path, tmp_path: Path) -> None:
    data: dict[str, Any] = {"images": str(pairs / "images"), "labels": str(pairs / "masks"), "size": [32, 32]}
    with pytest.raises(DataError, match=r"do not count on from 0.*data.label_values=\{0: 0, 255: 1\}"):
        fine_tune(config={"network": NETWORK, "data": data}, out=tmp_path / "a")
    with pytest.raises(ConfigError, match="network.in_channels is 1; the cases have 3"):
        fine_tune(config={"network": {**NETWORK, "in_channels": 1}, "data": {**data, "label_values": {255: 1}}}, out=tmp_path / "b")
    (tmp_path / "lossy").mkdir()
    for path in (pairs / "masks").iterdir():
        Image.open(path).save(tmp_path / "lossy" / f"{path.stem}.jpg")
    with pytest.raises(DataError, match="does not keep the values of labels"):
        fine_tune(config={"network": NETWORK, "data": {**data, "labels": str(tmp_path / "lossy")}}, out=tmp_path / "c")


def test_images_and_volumes_are_not_tuned_together(pairs: Path, tmp_path: Path) -> None:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
        nibabel.save(nibabel.Nifti1Image(np.arange(2000, dtype=np.int16).reshape(20, 20, 5) % 2, np.eye(4)), tmp_path / name / "v.nii.gz")
        nibabel.save(nibabel.Nifti1Image(np.arange(400, dtype=np.int16).reshape(20, 20, 1) % 2, np.eye(4)), tmp_path / name / "i.nii.gz")
    data = {"images": str(tmp_path / "images"), "labels": str(tmp_path / "labels"), "size": [8, 8]}
    with pytest.raises(DataError, match="'i' is a 2D image and case 'v' a volume"):
        fine_tune(config={"network": {**NETWORK, "in_channels": 1}, "data": data}, out=tmp_path / "run")
