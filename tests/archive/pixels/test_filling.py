"""Slices read at the places that the index keeps, in threads where they are compressed: the values that pydicom has them hold."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from archive.headers.both import InMemory
from archive.streams import LOSSLESS, LOSSY, hold, pack, smooth_volume
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, HTJ2KLossless

from medssl.archive import FolderSource, Index
from medssl.archive.instance import Instance
from medssl.archive.pixels import filling
from medssl.archive.pixels.filling import SliceProblem, fill, put
from medssl.archive.pixels.values import PixelProblem, rescaled, series_values, significant, whole_range
from medssl.errors import ArchiveError
from medssl.testing.dicom import made_affine, made_volume, write_series
from medssl.volumes import Store, make_store

Indexed = Callable[..., Index]


def shifted(raw: np.ndarray, bits: int, high: int, signed: bool) -> np.ndarray:
    """By the standard's words: the bits below HighBit, and their sign."""
    low = (raw.astype(np.int64) >> (high - bits + 1)) & (2**bits - 1)
    return low - 2**bits * ((low >> (bits - 1)) & int(signed))


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=20), st.integers(1, 16), st.integers(0, 15), st.booleans())
def test_stored_values_are_those_of_the_standard(words: list[int], bits: int, spare: int, signed: bool) -> None:
    raw, high = np.array([words], np.uint16), min(15, bits - 1 + spare)
    one = Instance(0, b"", rows=1, columns=len(words), bits_allocated=16, bits_stored=bits, high_bit=high, signed=int(signed))
    assert np.array_equal(significant(raw, one), shifted(raw, bits, high, signed))


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=9),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(-(2**16), 2**16),
    st.sampled_from([8, 16]),
)
def test_whole_numbers_are_exact_though_they_pass_through_16_bits(
    values: list[int], signed: bool, slope: int, intercept: int, width: int
) -> None:
    kind = np.dtype(f"{'i' if signed else 'u'}{width // 8}")
    stored = np.array([values], np.int64).astype(kind)
    one = Instance(0, b"", bits_allocated=width, bits_stored=width, signed=int(signed), slope=slope, intercept=intercept)
    truth = rescaled(stored, one)
    ends = whole_range(one)
    assert ends is not None
    narrow = ends[0] >= -(2**15) and ends[1] < 2**15
    out = np.empty(stored.shape, np.int16 if narrow else np.float32)
    put(stored, one, out)
    assert np.array_equal(out, truth)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 4095), min_size=1, max_size=9), st.floats(1e-6, 1e6), st.floats(-1e6, 1e6))
def test_a_fraction_costs_the_rounding_of_float32_and_nothing_else(values: list[int], slope: float, intercept: float) -> None:
    one = Instance(0, b"", bits_allocated=16, bits_stored=12, slope=slope, intercept=intercept)
    out = np.empty((1, len(values)), np.float32)
    put(np.array([values], np.uint16), one, out)
    truth = rescaled(np.array([values]), one)
    assert np.abs(out - truth).max() <= 6e-8 * np.abs(truth).max() + 1e-38


@pytest.mark.parametrize("slope", [1, 0.5])
@pytest.mark.parametrize(("padding", "limit"), [(-2000, None), (-2000, -1990), (63536, None)])
def test_padding_becomes_background(padding: int, limit: int | None, slope: float, archive: Path, indexed: Indexed) -> None:
    truth = slope * made_volume((12, 10, 4))
    padded = truth.copy()
    padded[:3] = -2000 * slope
    padded[3, :, 1:] = -1995 * slope if limit else -2000 * slope

    def name(dataset: Dataset, _: int) -> None:
        dataset.add_new("PixelPaddingValue", "US" if padding > 0 else "SS", padding)
        if limit is not None:
            dataset.add_new("PixelPaddingRangeLimit", "SS", limit)

    write_series(archive, padded, made_affine(), slope=slope, adjust=name)
    index = indexed(archive)
    (record,) = index.volumes()
    kept = np.ones(truth.shape, bool)
    kept[:3], kept[3, :, 1:] = False, False
    assert np.array_equal(index.read(record.volume).array, padded)
    assert np.array_equal(index.clear_padding(index.read(record.volume)).array, np.where(kept, truth, truth[kept].min()))
    make_store([archive], archive.parent / "store", workers=1)
    assert float(Store(archive.parent / "store").read_whole(0).min()) == truth[kept].min()


def test_padding_that_the_bits_cannot_hold_is_no_value_of_the_image(archive: Path, indexed: Indexed) -> None:
    """0xF830 cut to 12 bits would be 0x830, which is anatomy."""
    truth = smooth_volume()
    truth[0, 0] = 0x830
    write_series(
        archive, truth, made_affine(), signed=False, bits_stored=12, adjust=lambda one, _: one.add_new("PixelPaddingValue", "SS", -2000)
    )
    index = indexed(archive)
    assert np.array_equal(index.clear_padding(index.read(index.volumes()[0].volume)).array, truth)


def every_way(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """The volume is that of one thread, and of pydicom decoding slice after slice."""
    (record,) = index.volumes()
    found = index.read(record.volume).array
    monkeypatch.setattr(filling, "decoded_stream", lambda *_: None)
    assert np.array_equal(index.read(record.volume).array, found)
    monkeypatch.setattr(filling, "_is_direct", lambda *_: False)
    assert np.array_equal(index.read(record.volume).array, found)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", [*LOSSLESS, *LOSSY])
def test_compressed_slices_are_those_of_pydicom(
    syntax: str, signed: bool, archive: Path, indexed: Indexed, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = smooth_volume() - 2**11 * signed
    write_series(archive, truth, made_affine(), signed=signed, bits_stored=12, syntax=syntax, adjust=lambda one, _: pack(one, syntax))
    every_way(indexed(archive), monkeypatch)


def test_high_throughput_streams_of_more_bits_than_are_stored(archive: Path, indexed: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
    def compress(dataset: Dataset, _: int) -> None:
        picture = np.frombuffer(dataset.PixelData, np.uint16)[: dataset.Rows * dataset.Columns].reshape(dataset.Rows, dataset.Columns)
        hold(dataset, imagecodecs.htj2k_encode(picture, reversible=True))

    write_series(archive, smooth_volume(), made_affine(), signed=False, bits_stored=12, syntax=HTJ2KLossless, adjust=compress)
    index = indexed(archive)
    every_way(index, monkeypatch)
    assert np.array_equal(index.read(index.volumes()[0].volume).array, smooth_volume())


def test_overlays_in_the_high_bits_do_not_count(archive: Path, indexed: Indexed) -> None:
    def draw(dataset: Dataset, z: int) -> None:
        words = np.frombuffer(dataset.PixelData, np.uint16).copy()
        words[z::7] |= 0xF000
        dataset.PixelData = words.tobytes()

    write_series(archive, smooth_volume(), made_affine(), signed=False, bits_stored=12, intercept=0, adjust=draw)
    index = indexed(archive)
    assert np.array_equal(index.read(index.volumes()[0].volume).array, smooth_volume())


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, next(iter(LOSSLESS))])
def test_a_slice_that_is_not_where_it_was_is_told_by_its_number(syntax: str, archive: Path, indexed: Indexed) -> None:
    adjust = None if syntax == ExplicitVRLittleEndian else (lambda one, _: pack(one, syntax))
    files = write_series(archive, smooth_volume(), made_affine(), signed=False, bits_stored=12, syntax=syntax, adjust=adjust)
    index = indexed(archive)
    content = files[1].read_bytes()
    files[1].write_bytes(content[:200] + b"\0\0" + content[200:])
    with pytest.raises(ArchiveError, match=r"slice 1 of volume v\w+: the pixels are not where they were"):
        index.read(index.volumes()[0].volume)
    files[1].unlink()
    with pytest.raises(ArchiveError, match="slice 1 of volume .* cannot be opened"):
        index.read(index.volumes()[0].volume)


def test_of_several_failures_in_threads_the_first_is_told(tmp_path: Path) -> None:
    one = Instance(0, b"x", syntax=next(iter(LOSSLESS)), rows=4, columns=4, bits_allocated=16, frame_at=8, frame_length=5)
    source = InMemory({"x": bytes(20)})
    with pytest.raises(SliceProblem) as found:
        fill(np.empty((4, 4, 4), np.int16), [replace(one, frame=number) for number in range(4)], lambda _: source)
    assert found.value.number == 0 and isinstance(found.value.cause, PixelProblem)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, next(iter(LOSSLESS))])
def test_the_volume_and_two_slices_are_held(syntax: str, archive: Path, indexed: Indexed) -> None:
    adjust = None if syntax == ExplicitVRLittleEndian else (lambda one, _: pack(one, syntax))
    volume = np.tile(smooth_volume((256, 256, 1)), (1, 1, 12)) - 1024
    write_series(archive, volume, made_affine(), signed=False, bits_stored=12, intercept=-1024, syntax=syntax, adjust=adjust)
    index = indexed(archive)
    (record,) = index.volumes()
    index.read(record.volume)
    tracemalloc.start()
    found = index.read(record.volume).array
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Compressed slices lie beside their streams.
    assert peak <= found.nbytes * (1 + (2.5 if adjust is None else 4) / 12)


def test_frames_of_a_source_of_frames_are_asked_for(archive: Path) -> None:
    """Places are of no use where only frames can be had."""
    files = write_series(archive, made_volume((8, 6, 1)), made_affine())

    class Frames(FolderSource):
        def frames(self, key: str, numbers: object) -> list[bytes]:
            return [pydicom.dcmread(Path(self.location) / key).PixelData]

    one = Instance(0, files[0].name.encode(), syntax=ExplicitVRLittleEndian, rows=6, columns=8, bits_allocated=16, bits_stored=16)
    one = replace(one, high_bit=15, signed=1, frame_at=10**9, frame_length=96)
    out = np.empty((1, 6, 8), np.int16)
    fill(out, [one], lambda _: Frames(str(archive)))
    assert np.array_equal(out[0].T, made_volume((8, 6, 1))[:, :, 0])
    assert np.array_equal(next(series_values(lambda _: Frames(str(archive)), [one])), out[0])


def test_bytes_can_be_read_from_a_stream_that_knows_only_read() -> None:
    class Plain:
        def __init__(self, content: bytes) -> None:
            self.read = BytesIO(content).read

    buffer = bytearray(4)
    assert filling._read_into(Plain(b"abc"), buffer) == 3 and bytes(buffer[:3]) == b"abc"
