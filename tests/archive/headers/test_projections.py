"""Radiographs, ultrasound and photographs are 2D images with what is known of their pixels; slices of volumes are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from archive.conftest import Indexed
from archive.made_images import CR, CT, DX, EYE, MG, SKIN, US, US_CINE, XA, colour, grey, image, save, smooth_colour
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import convert_color_space
from pydicom.sequence import Sequence

from medssl.archive import Index, Reason, VolumeRecord
from medssl.testing.dicom import made_affine, made_volume, write_localizer, write_series


def only(index: Index) -> tuple[VolumeRecord, NDArray[Any]]:
    (record,) = index.volumes()
    return record, index.read(record.volume).array


@pytest.mark.parametrize(("sop_class", "modality"), [(CR, "CR"), (DX, "DX"), (MG, "MG"), (US, "US"), (XA, "XA"), (EYE, "OP")])
def test_a_projection_is_an_image(sop_class: str, modality: str, archive: Path, indexed: Indexed) -> None:
    values = grey()
    save(image(values, sop_class, modality, PixelSpacing=[0.2, 0.3]), archive / "a")
    record, array = only(indexed(archive))
    assert (record.modality, record.dimensions, record.shape, record.spacing) == (modality, 2, (30, 20, 1), (0.3, 0.2))
    assert (record.frames, record.colours, record.inverted) == (1, 1, False)
    assert np.array_equal(array[..., 0], values.T) and array.dtype == np.int16


def test_many_images_of_one_series_are_many_images(archive: Path, indexed: Indexed) -> None:
    for number in range(3):
        save(image(grey(seed=number), US, "US"), archive / str(number))
    assert [one.shape for one in indexed(archive).volumes()] == [(30, 20, 1)] * 3


def _region(x: float, y: float, unit: int = 3, kind: int = 1) -> Dataset:
    region = Dataset()
    region.RegionSpatialFormat, region.PhysicalUnitsXDirection, region.PhysicalUnitsYDirection = kind, unit, unit
    region.PhysicalDeltaX, region.PhysicalDeltaY = x, y
    return region


@pytest.mark.parametrize(
    ("elements", "spacing", "said"),
    [
        ({"PixelSpacing": [0.2, 0.3], "ImagerPixelSpacing": [0.5, 0.5]}, (0.3, 0.2), None),
        ({"ImagerPixelSpacing": [0.14, 0.15]}, (0.15, 0.14), "detector"),
        ({"ImagerPixelSpacing": [0.2, 0.2], "EstimatedRadiographicMagnificationFactor": 1.25}, (0.16, 0.16), "magnification"),
        ({"SequenceOfUltrasoundRegions": Sequence([_region(0.02, 0.03), _region(9, 9, unit=4, kind=3)])}, (0.2, 0.3), "ultrasound"),
        ({"SequenceOfUltrasoundRegions": Sequence([_region(0.02, 0.03), _region(0.05, 0.05)])}, (), "no pixel spacing"),
        ({"PixelSpacing": [0, 0]}, (), "no pixel spacing"),
        ({}, (), "no pixel spacing"),
    ],
)
def test_spacing_is_what_the_header_knows_of_it(
    elements: dict[str, Any], spacing: tuple[float, ...], said: str | None, archive: Path, indexed: Indexed
) -> None:
    save(image(grey(), DX, "DX", **elements), archive / "a")
    record, _ = only(indexed(archive))
    assert record.spacing == pytest.approx(spacing) and np.isfinite(record.affine).all()
    assert any(said in text for text in record.warnings) if said else not any("spacing" in text for text in record.warnings)


@pytest.mark.parametrize(
    ("modality", "elements", "warned"),
    [
        ("US", {}, True),
        ("US", {"BurnedInAnnotation": "NO"}, False),
        ("DX", {"BurnedInAnnotation": "YES"}, True),
        ("DX", {}, False),
        ("DX", {"ImageType": ["DERIVED", "SECONDARY"]}, True),
    ],
)
def test_burned_in_text_is_warned_of(modality: str, elements: dict[str, Any], warned: bool, archive: Path, indexed: Indexed) -> None:
    save(image(grey(), US if modality == "US" else DX, modality, **elements), archive / "a")
    record, _ = only(indexed(archive))
    assert any("burned into" in text for text in record.warnings) == warned


def test_inverted_and_rescaled_radiographs(archive: Path, indexed: Indexed) -> None:
    values = grey()
    save(
        image(values, PhotometricInterpretation="MONOCHROME1", RescaleSlope=0.5, RescaleIntercept=-3, BitsStored=12, HighBit=11),
        archive / "a",
    )
    record, array = only(indexed(archive))
    assert record.inverted and np.allclose(array[..., 0], values.T * 0.5 - 3)


def test_a_slice_of_a_volume_is_no_image(archive: Path, indexed: Indexed) -> None:
    def strip(dataset: Dataset, _: int) -> None:
        del dataset.ImagePositionPatient

    def unnamed(dataset: Dataset, _: int) -> None:
        strip(dataset, 0)
        dataset.SOPClassUID = "1.2.3.4"

    write_series(archive / "one", made_volume((6, 5, 1)), made_affine(), series="one")
    write_series(archive / "lost", made_volume((6, 5, 1)), made_affine(), series="lost", adjust=strip)
    write_series(archive / "unnamed", made_volume((6, 5, 1)), made_affine(), series="unnamed", adjust=unnamed)
    write_localizer(archive / "scout", series="scout")
    index = indexed(archive)
    assert not index.volumes() and index.rejected() == {
        Reason.SINGLE_SLICE: 1,
        Reason.NO_POSITION: 1,
        Reason.PROJECTION: 1,
        Reason.LOCALIZER: 1,
    }


def _planar(array: NDArray[np.uint8]) -> Dataset:
    planes = np.ascontiguousarray(np.moveaxis(array, 2, 0))
    return image(array, SKIN, "XC", PlanarConfiguration=1, PixelData=planes.tobytes())


def _ybr(array: NDArray[np.uint8]) -> Dataset:
    return image(convert_color_space(array, "RGB", "YBR_FULL"), SKIN, "XC", PhotometricInterpretation="YBR_FULL")


def _halved(array: NDArray[np.uint8]) -> Dataset:
    """Two pixels share their colour differences: Y Y Cb Cr."""
    ybr = convert_color_space(array, "RGB", "YBR_FULL")
    pairs = np.concatenate([ybr[..., 0].reshape(-1, 2), ybr[:, ::2, 1:].reshape(-1, 2)], axis=1)
    return image(array, US, "US", PhotometricInterpretation="YBR_FULL_422", PixelData=pairs.astype(np.uint8).tobytes())


def _palette(array: NDArray[np.uint8]) -> Dataset:
    """One entry a pixel."""
    flat = array.reshape(-1, 3)
    indices = np.arange(len(flat), dtype=np.uint16).reshape(array.shape[:2])
    dataset = image(indices, US, "US", PhotometricInterpretation="PALETTE COLOR")
    for number, name in enumerate(("Red", "Green", "Blue")):
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [len(flat), 0, 16])
        setattr(dataset, f"{name}PaletteColorLookupTableData", (flat[:, number].astype("<u2") * 257).tobytes())
    return dataset


@pytest.mark.parametrize("make", [lambda array: image(array, SKIN, "XC"), _planar, _ybr, _halved, _palette])
def test_colours_become_red_green_and_blue(make: Any, archive: Path, indexed: Indexed) -> None:
    values = smooth_colour()
    save(make(values), archive / "a")
    record, array = only(indexed(archive))
    assert (record.shape, record.colours) == ((64, 48, 1, 3), 3)
    off = np.abs(np.moveaxis(array[..., 0], 0, 2).swapaxes(0, 1) - values.astype(int))
    assert off.max() <= (12 if make is _halved else 2 if make is _ybr else 0)


def _jpeg(array: NDArray[np.uint8], **options: Any) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(array, level=95, **options))


STREAMS: dict[str, tuple[str, str, Any]] = {
    "baseline, transformed": (uid.JPEGBaseline8Bit, "YBR_FULL_422", _jpeg),
    "baseline, as RGB": (uid.JPEGBaseline8Bit, "RGB", lambda array: _jpeg(array, colorspace="RGB", outcolorspace="RGB")),
    "lossless": (uid.JPEGLosslessSV1, "RGB", lambda array: imagecodecs.jpeg8_encode(array, lossless=True, predictor=1)),
    "JPEG-LS": (uid.JPEGLSLossless, "RGB", imagecodecs.jpegls_encode),
    "JPEG 2000": (
        uid.JPEG2000Lossless,
        "YBR_RCT",
        lambda array: imagecodecs.jpeg2k_encode(array, level=0, codecformat="j2k", reversible=True, mct=True),
    ),
}


@pytest.mark.parametrize("name", STREAMS)
def test_compressed_colours_and_cines(name: str, archive: Path, indexed: Indexed) -> None:
    syntax, photometric, encode = STREAMS[name]
    frames = np.stack([smooth_colour(), smooth_colour()[::-1]])
    dataset = image(frames, US_CINE, "US", PhotometricInterpretation=photometric)
    dataset.PixelData = encapsulate([bytes(encode(np.ascontiguousarray(frame))) for frame in frames])
    dataset["PixelData"].is_undefined_length = True
    save(dataset, archive / "a", syntax)
    index = indexed(archive)
    record, array = only(index)
    assert (record.shape, record.frames, record.colours) == ((64, 48, 1, 6), 2, 3)
    off = np.abs(array[..., 0].reshape(2, 3, 64, 48).transpose(0, 3, 2, 1) - frames.astype(int))
    assert off.max() <= (24 if syntax == uid.JPEGBaseline8Bit else 0) and off.mean() < 3
    assert np.array_equal(index.read(record.volume, frames=[1]).array, array[3:])


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian, uid.RLELossless])
def test_a_grey_cine_is_one_record_over_time(syntax: str, archive: Path, indexed: Indexed) -> None:
    frames = np.stack([grey(seed=number) for number in range(4)])
    dataset = image(frames, US_CINE, "US")
    if syntax == uid.RLELossless:
        dataset.file_meta = Dataset()
        dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        dataset.compress(uid.RLELossless, generate_instance_uid=False)
    save(dataset, archive / "a", syntax)
    index = indexed(archive)
    record, array = only(index)
    assert (record.shape, record.frames) == ((30, 20, 1, 4), 4) and np.array_equal(array[..., 0].swapaxes(1, 2), frames)
    assert np.array_equal(index.read(record.volume, frames=[2, 0]).array, array[[2, 0]])


def test_what_cannot_be_read_is_a_reason(archive: Path, indexed: Indexed) -> None:
    save(image(grey(), Rows=60000, Columns=60000), archive / "promised")
    whole = save(image(colour(), SKIN, "XC"), archive / "cut")
    whole.write_bytes(whole.read_bytes()[:-100])
    save(image(colour(), SKIN, "XC", PhotometricInterpretation="YBR_PARTIAL_422"), archive / "partial")
    save(image(grey(), SKIN, "XC", PhotometricInterpretation="PALETTE COLOR"), archive / "no palette")
    save(image(colour(), "1.2.840.10008.5.1.4.1.1.77.1.6", "SM"), archive / "slide")
    save(image(colour(), CT, "CT"), archive / "coloured CT")
    endless = image(grey(), US_CINE, "US")
    endless.add_new("NumberOfFrames", "LO", "1e30")
    save(endless, archive / "endless")
    assert indexed(archive).rejected() == {
        Reason.COLOUR_SPACE: 2,
        Reason.TOO_MANY_PIXELS: 1,
        Reason.TRUNCATED: 1,
        Reason.WHOLE_SLIDE: 1,
        Reason.COLOUR: 1,
        Reason.CORRUPT: 1,
    }


def test_a_copy_of_an_image_is_a_duplicate(archive: Path, indexed: Indexed) -> None:
    dataset = image(colour(), SKIN, "XC")
    save(dataset, archive / "a")
    dataset.PatientName = "written^again"
    save(dataset, archive / "b")
    dataset.PixelData = bytes(len(dataset.PixelData))
    save(dataset, archive / "sub" / "c")
    index = indexed(archive)
    assert index.rejected() == {Reason.CONFLICT: 3}
    (archive / "sub" / "c").unlink()
    assert indexed(archive, name="again").rejected() == {Reason.DUPLICATE: 1}
