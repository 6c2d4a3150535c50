"""Compressed pixels: every codec against what was encoded or another decoder; damaged streams cost a reason, not memory or time."""

from __future__ import annotations

import io
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from archive.streams import LOSSLESS, LOSSY, hold, pack, smooth_volume
from PIL import Image
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.pixels import pixel_array

from medssl.archive import Index, Reason
from medssl.archive.decoders import can_decode, decoded
from medssl.errors import ArchiveError
from medssl.testing.dicom import made_affine, write_series

Indexed = Callable[..., Index]


def dataset_of(stream: bytes, syntax: str, *, bits: int = 12, rows: int = 61, columns: int = 47, signed: bool = False) -> Dataset:
    """A grey image of 16 allocated bits with this stream."""
    dataset = Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", int(signed)
    dataset.Rows, dataset.Columns, dataset.BitsAllocated = rows, columns, 16
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelData = b""
    hold(dataset, stream)
    return dataset


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Fail instead of looping for ever; processor time, so that busy neighbours do not count."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("syntax", LOSSLESS)
def test_what_was_encoded_without_loss_comes_back(syntax: str, bits: int, signed: bool, archive: Path, indexed: Indexed) -> None:
    truth = smooth_volume() - 2**11 * signed

    def compress(dataset: Dataset, _: int) -> None:
        pack(dataset, syntax)

    write_series(archive, truth, made_affine(), signed=signed, bits_stored=bits, syntax=syntax, adjust=compress)
    index = indexed(archive)
    (record,) = index.volumes()
    assert np.array_equal(index.read(record.volume).array, truth)


def test_high_throughput_jpeg_2000() -> None:
    truth = smooth_volume()[:, :, 0].astype(np.uint16)
    stream = imagecodecs.htj2k_encode(truth, reversible=True)
    assert np.array_equal(decoded(dataset_of(stream, uid.HTJ2KLossless, bits=16)), truth)


@pytest.mark.parametrize("name", ["JPEG2000", "693_J2KI", "J2K_pixelrep_mismatch", "MR_small_RLE"])
def test_files_of_others_are_read_as_other_decoders_read_them(name: str, archive: Path, indexed: Indexed) -> None:
    """Slices that ship with pydicom, given a made place so that they are a volume of two."""
    for z in range(2):
        dataset = pydicom.dcmread(get_testdata_file(f"{name}.dcm", download=False))
        dataset.SOPInstanceUID, dataset.SeriesInstanceUID = pydicom.uid.generate_uid(), "1.2.3"
        dataset.SOPClassUID, dataset.ImageType = uid.MRImageStorage, ["ORIGINAL", "PRIMARY"]
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 2.0 * z], [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing, dataset.RescaleSlope, dataset.RescaleIntercept = [1, 1], 1, 0
        dataset.save_as(archive / str(z))
    index = indexed(archive)
    (record,) = index.volumes()
    other = pixel_array(dataset, decoding_plugin="pydicom" if "RLE" in name else "pillow")
    assert np.array_equal(index.read(record.volume).array[:, :, 1].T, other)


def test_lossy_jpeg_is_read_as_pillow_reads_it_and_12_bits_are_near_the_truth() -> None:
    truth = smooth_volume()[:, :, 0]
    target = io.BytesIO()
    Image.fromarray((truth >> 4).astype(np.uint8)).save(target, "JPEG", quality=90)
    ours = decoded(dataset_of(target.getvalue(), uid.JPEGBaseline8Bit, bits=8))
    assert np.abs(ours.astype(int) - np.asarray(Image.open(target))).max() <= 1
    stream = LOSSY[uid.JPEGExtended12Bit](truth.astype(np.uint16), bitspersample=12)
    assert np.abs(decoded(dataset_of(stream, uid.JPEGExtended12Bit)).astype(int) - truth).max() < 40


def test_a_box_of_length_0_does_not_stop_an_index() -> None:
    picture = smooth_volume()[:, :, 0].astype(np.uint16)
    stream = imagecodecs.jpeg2k_encode(picture, level=0, codecformat="jp2", reversible=True, bitspersample=12)
    at = stream.index(b"ftyp")
    with at_most(5):
        assert np.array_equal(decoded(dataset_of(stream, uid.JPEG2000Lossless)), picture)
        endless = stream[: at - 4] + bytes(4) + stream[at:]
        assert np.array_equal(decoded(dataset_of(endless, uid.JPEG2000Lossless)), picture)
        with pytest.raises(ValueError, match="no image size"):
            decoded(dataset_of(endless[: endless.index(b"jp2c")], uid.JPEG2000Lossless))


@pytest.mark.parametrize(
    ("syntax", "mark", "size"),
    [
        (uid.JPEGLosslessSV1, b"\xff\xc3", b"\xea\x60" * 2),
        (uid.JPEGLSLossless, b"\xff\xf7", b"\xea\x60" * 2),
        (uid.JPEG2000Lossless, b"\xff\x51", b"\x00\x00\xea\x60" * 2),
    ],
)
def test_a_stream_of_another_size_is_not_decoded(syntax: str, mark: bytes, size: bytes) -> None:
    stream = LOSSLESS[syntax](smooth_volume()[:, :, 0].astype(np.uint16), bitspersample=12)
    # Behind the mark: the length of its segment, and a byte or two of other things.
    at = stream.index(mark) + (6 if syntax == uid.JPEG2000Lossless else 5)
    with at_most(5), pytest.raises(RuntimeError, match="rows, columns and samples"):
        decoded(dataset_of(stream[:at] + size + stream[at + len(size) :], syntax))


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_a_stream_that_is_cut_is_no_picture_with_a_grey_rest(syntax: str) -> None:
    stream = LOSSLESS[syntax](smooth_volume()[:, :, 0].astype(np.uint16), bitspersample=12)
    for kept in (0.3, 0.7, 0.95):
        with pytest.raises(RuntimeError):
            decoded(dataset_of(stream[: int(len(stream) * kept)], syntax))


def test_a_stream_of_more_bits_than_the_header_allows_is_refused() -> None:
    dataset = dataset_of(LOSSLESS[uid.JPEGLosslessSV1](smooth_volume()[:, :, 0].astype(np.uint16), bitspersample=12), uid.JPEGLosslessSV1)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    with pytest.raises(RuntimeError, match="16 bits, not 8"):
        decoded(dataset)


def test_damage_is_named_and_what_cannot_be_decoded_is_a_reason(archive: Path, indexed: Indexed) -> None:
    def compress(dataset: Dataset, z: int) -> None:
        pack(dataset, uid.JPEGLosslessSV1)
        if z == 1:
            dataset.PixelData = dataset.PixelData.replace(b"\xff\xd9", b"\0\0")

    write_series(archive, smooth_volume(), made_affine(), signed=False, syntax=uid.JPEGLosslessSV1, adjust=compress)
    index = indexed(archive)
    (record,) = index.volumes()
    with pytest.raises(ArchiveError, match="slice 1 .*cannot be decoded"):
        index.read(record.volume)
    assert not can_decode(uid.MPEG2MPML)
    for file in archive.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.file_meta.TransferSyntaxUID = uid.MPEG2MPML
        dataset.save_as(file)
    assert indexed(archive, name="other").rejected() == {Reason.NO_DECODER: 3}
