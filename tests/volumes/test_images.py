"""2D images in a store: which become one, on which grid, with which channels and values, and crops of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from archive.made_images import DX, SKIN, US_CINE, colour, grey, image, save, smooth_colour
from PIL import Image

from medssl.errors import ConfigError, UsageError
from medssl.testing.dicom import made_affine, made_volume, write_series
from medssl.volumes import CropLoader, CropOptions, DataOptions, Preparation, Store, StoreOptions, estimate_store, make_store
from medssl.volumes.crops import crop_at
from medssl.volumes.preparation import usual_preparation
from medssl.volumes.showing import kinds, write_sheet


def pictures(folder: Path, *arrays: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"image {number}.png")
    return folder


def radiograph(rows: int = 90, columns: int = 120, seed: int = 0) -> np.ndarray:
    """Black surroundings, a bright body with noise."""
    y, x = np.indices((rows, columns))
    body = ((y - rows / 2) / rows * 2.5) ** 2 + ((x - columns / 2) / columns * 2.5) ** 2 < 1
    return np.where(body, 2000 + np.random.default_rng(seed).integers(0, 1000, (rows, columns)), 0).astype(np.uint16)


def test_a_folder_of_pictures_becomes_a_store_of_images(tmp_path: Path) -> None:
    arrays = [radiograph(90 + number, 120, number) for number in range(3)]
    summary = make_store([pictures(tmp_path / "in", *arrays)], tmp_path / "s", modality="DX")
    store = Store(tmp_path / "s")
    assert summary.volumes == len(store) == 3 and store.spatial_dims == store.manifest.dimensions == 2
    by_shape = {volume.shape: number for number, volume in enumerate(store.volumes)}
    for array in arrays:
        number = by_shape[array.shape[::-1]]
        volume = store.volume(number)
        # As an axial slice lies: columns to the left, rows to the back.
        assert np.array_equal(store.read_whole(number)[0], array.T[::-1, ::-1])
        assert volume.spacing == () and volume.steps == (1.0, 1.0) and volume.modality == "DX"
        (x0, y0), (x1, y1) = volume.box
        assert 5 < x0 < 20 and 5 < y0 < 20 and 100 < x1 < 115 and 75 < y1 < 88
        prepared = volume.lines(store.preparation)[0].value
        assert prepared(volume.statistics[0].low) == pytest.approx(-1) and prepared(1e9) == pytest.approx(1)
    assert store.preparation == usual_preparation(2)
    assert kinds(store)[0].spacing == ("unknown",) and write_sheet(store, tmp_path / "sheet.png").is_file()
    assert "of unknown spacing" not in repr(store) and store._repr_html_()


def test_radiographs_keep_their_spacing_and_can_be_resampled(tmp_path: Path) -> None:
    save(image(radiograph(), DX, "DX", PixelSpacing=[0.2, 0.3]), tmp_path / "in" / "a")
    save(image(radiograph(seed=1), DX, "DX"), tmp_path / "in" / "b")
    make_store([tmp_path / "in"], tmp_path / "s")
    assert {volume.spacing for volume in Store(tmp_path / "s").volumes} == {(0.3, 0.2), ()}
    summary = make_store([tmp_path / "in"], tmp_path / "coarse", spacing=0.6)
    (volume,) = Store(tmp_path / "coarse").volumes
    assert volume.shape == (60, 30) and volume.spacing == pytest.approx((0.6, 0.6))
    assert list(summary.left_out.values()) == ["its pixel spacing is unknown, so it cannot be resampled"]


def test_low_values_that_are_bright_are_turned_round_by_option(tmp_path: Path) -> None:
    values = radiograph()
    save(image(values, DX, "DX", PhotometricInterpretation="MONOCHROME1"), tmp_path / "in" / "a")
    make_store([tmp_path / "in"], tmp_path / "as stored")
    make_store([tmp_path / "in"], tmp_path / "turned", invert_monochrome1=True)
    plain, turned = Store(tmp_path / "as stored"), Store(tmp_path / "turned")
    assert np.array_equal(turned.read_whole(0), values.max() + values.min() - plain.read_whole(0))
    assert turned.preparation.invert_monochrome1 and not plain.preparation.invert_monochrome1
    with pytest.raises(UsageError, match="another preparation"):
        make_store([tmp_path / "in"], tmp_path / "turned")


def test_colours_are_three_channels_of_their_whole_range(tmp_path: Path) -> None:
    save(image(smooth_colour(), SKIN, "XC"), tmp_path / "in" / "a")
    make_store([tmp_path / "in"], tmp_path / "s")
    store = Store(tmp_path / "s")
    assert store.channels == ("R", "G", "B")
    with CropLoader(store, DataOptions(store="", size=(64, 48), batch=1), 0) as loader:
        _, _, crops = next(loader)
    expected = smooth_colour()[::-1, ::-1].astype(np.float32).transpose(2, 1, 0) / 127.5 - 1
    assert np.allclose(crops.images[0], expected, atol=1e-5) and crops.axis is None
    assert crops.spacing.shape == (1, 2) and crops.extent[0].tolist() == [64, 48, 0]


def test_colours_can_be_grey(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in", smooth_colour(), (grey() // 16).astype(np.uint8))
    with pytest.raises(UsageError, match=r"1 of 1 channel, 1 of 3 channels.*--grey"):
        make_store([folder], tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()
    make_store([folder], tmp_path / "s", grey=True)
    store = Store(tmp_path / "s")
    number = next(number for number, volume in enumerate(store.volumes) if volume.shape == (64, 48))
    weighted = smooth_colour() @ np.array([0.299, 0.587, 0.114])
    assert np.abs(store.read_whole(number)[0, ::-1, ::-1].T - weighted).max() <= 0.51


def test_images_and_volumes_do_not_share_a_store(tmp_path: Path) -> None:
    source = tmp_path / "in"
    write_series(source / "ct", made_volume((20, 16, 12)), made_affine())
    save(image(radiograph(), DX, "DX"), source / "dx")
    summary = make_store([source], tmp_path / "volumes")
    assert Store(tmp_path / "volumes").spatial_dims == 3 and list(summary.not_chosen.values()) == ["a 2D image, beside volumes"]
    summary = make_store([source], tmp_path / "images", dimensions=2)
    assert Store(tmp_path / "images").spatial_dims == 2 and list(summary.not_chosen.values()) == ["a volume, beside 2D images"]
    # What a store holds it goes on with.
    assert make_store([source], tmp_path / "images").volumes == 1
    with pytest.raises(UsageError, match="holds 2D images and is asked for volumes"):
        make_store([source], tmp_path / "images", dimensions=3)


def test_a_cine_is_left_out_until_its_frames_are_channels(tmp_path: Path) -> None:
    frames = np.stack([radiograph(seed=number) for number in range(5)])
    save(image(frames, US_CINE, "US"), tmp_path / "in" / "grey")
    save(image(np.stack([colour(40, 50, number) for number in range(3)]), US_CINE, "US"), tmp_path / "in" / "colour")
    summary = make_store([tmp_path / "in"], tmp_path / "stills", dimensions=2)
    assert summary.volumes == 0 and all("frames over time" in reason for reason in summary.left_out.values())
    summary = make_store([tmp_path / "in"], tmp_path / "s", channels={"frames": 3})
    (volume,) = Store(tmp_path / "s").volumes
    assert [channel.name for channel in volume.channels] == ["frame 0", "frame 1", "frame 2"]
    assert np.array_equal(Store(tmp_path / "s").read_whole(0), frames[[0, 2, 4]].transpose(0, 2, 1)[:, ::-1, ::-1])
    assert "must be grey" in next(iter(summary.left_out.values()))
    with CropLoader(Store(tmp_path / "s"), DataOptions(store="", size=(32, 32), batch=1), 0) as loader:
        assert next(loader)[2].axis == "time"
    assert make_store([tmp_path / "in"], tmp_path / "both", channels={"frames": 3}, grey=True).volumes == 2


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.full((30, 40), 7, np.uint8), "constant"),
        (np.array([[5]], np.uint8), "one row or column of pixels"),
        (np.arange(40, dtype=np.uint8)[None], "one row or column of pixels"),
    ],
)
def test_what_teaches_nothing_is_a_reason(array: np.ndarray, reason: str, tmp_path: Path) -> None:
    summary = make_store([pictures(tmp_path / "in", radiograph(), array)], tmp_path / "s")
    assert summary.volumes == 1 and reason in next(iter(summary.left_out.values()))


def test_a_slice_as_nifti_lies_as_it_did(tmp_path: Path) -> None:
    """A sagittal slice: its two axes stay the first two, turned towards RAS."""
    from medssl.archive import write_nifti
    from medssl.archive.nifti.files import Nifti

    array = np.random.default_rng(0).integers(0, 999, (30, 20, 1)).astype(np.int16)
    affine = np.array([[0, 0, 5.0, 0], [-0.7, 0, 0, 0], [0, -0.5, 0, 0], [0, 0, 0, 1]])
    (tmp_path / "in").mkdir()
    write_nifti(Nifti(array, affine), tmp_path / "in" / "a.nii.gz")
    make_store([tmp_path / "in"], tmp_path / "s")
    store = Store(tmp_path / "s")
    assert store.volume(0).spacing == pytest.approx((0.7, 0.5))
    assert np.array_equal(store.read_whole(0)[0], array[::-1, ::-1, 0])


def test_crops_are_a_part_of_the_image(tmp_path: Path) -> None:
    make_store([pictures(tmp_path / "in", radiograph(700, 900))], tmp_path / "s", preparation=Preparation(other={"kind": "raw"}))
    store = Store(tmp_path / "s")
    whole = store.read_whole(0)[0]
    for sample in range(5):
        crop = crop_at(store, CropOptions(size=(64, 48), foreground=1.0), 3, sample)
        x, y = crop.place.corner
        assert np.array_equal(crop.image[0], whole[x : x + 64, y : y + 48]) and crop.inside > 0.1
    with pytest.raises(ConfigError, match="holds 2D images"):
        crop_at(store, CropOptions(size=(64, 48, 8)), 3, 0)


def test_previews_beside_scans_are_no_images_of_a_store(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", radiograph())
    save(image(radiograph(seed=1), DX, "DX"), source / "dx")
    summary = make_store([source], tmp_path / "s")
    assert summary.volumes == 1 and Store(tmp_path / "s").volume(0).modality == "DX"
    assert list(summary.not_chosen.values()) == ["a picture beside DICOM or NIfTI"]
    assert make_store([source], tmp_path / "pictures", where="kind = 'picture'").volumes == 1


def test_what_a_store_of_images_will_cost_is_estimated(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in", *(radiograph(seed=number) for number in range(3)))
    found = estimate_store([folder], tmp_path / "s", StoreOptions(modality="DX"))
    assert found.volumes == 3 and not found.left_out and not (tmp_path / "s").exists()
    make_store([folder], tmp_path / "s", modality="DX")
    stored = sum(path.stat().st_size for path in (tmp_path / "s" / "volumes").iterdir())
    assert 0.7 * stored < found.bytes < 1.3 * stored
