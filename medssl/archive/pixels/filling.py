"""The slices of a series, read into a volume: at the places that the index knows, two at a time where they must be decoded.

Beside the volume at most two slices are held. Whole numbers stay exact. What is scaled by fractions is computed in float64 from the slope
and intercept of its own slice and kept as float32, so the only error is that of its rounding: 6e-8 of the value at most.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from medssl.archive.decoders import FrameHeader, decoded_stream
from medssl.archive.headers.pixel_element import ITEM, UNCOMPRESSED, pixel_element
from medssl.archive.instance import Instance
from medssl.archive.pixels.values import MOVED, PixelProblem, problems, rescaled, series_values, significant
from medssl.source import ArchiveSource, FrameSource

SourceOf = Callable[[int], ArchiveSource]
THREADS = 2
"""Slices that are decoded at once: decoders let others run meanwhile, and beside the volume two slices are held."""
_PLAIN = UNCOMPRESSED[:2]


class SliceProblem(Exception):
    """One slice cannot be had: its number, and the `OSError` or `PixelProblem` that says why."""

    def __init__(self, number: int, cause: OSError | PixelProblem) -> None:
        super().__init__(number, cause)
        self.number, self.cause = number, cause


def fill(volume: NDArray[Any], slices: Sequence[Instance], source_of: SourceOf, threads: int = THREADS) -> None:
    """Read the rescaled values of each slice into `volume` (slices, rows, columns), of int16 where that holds them all, or float32.

    Raises `SliceProblem`.
    """
    numbers = range(len(slices))
    direct = [number for number in numbers if _is_direct(slices[number], source_of)]
    compressed = [number for number in direct if slices[number].syntax not in _PLAIN]
    found = set(direct)
    buffer = bytearray()
    for number in sorted(found.difference(compressed)):
        with _named(number):
            buffer = _read_plain(source_of, slices[number], volume[number], buffer)
    rest = [number for number in numbers if number not in found]
    _fill_compressed(volume, slices, compressed, source_of, threads)
    _fill_others(volume, slices, rest, source_of)


class _named:
    """Tells which slice cannot be had."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError | PixelProblem):
            raise SliceProblem(self.number, error) from error


def _is_direct(one: Instance, source_of: SourceOf) -> bool:
    """Does one stretch of the file hold the slice, and nothing else?"""
    known = one.frame_at >= 0 and not one.tile and (one.syntax in _PLAIN or one.syntax not in UNCOMPRESSED)
    return known and not isinstance(source_of(one.source), FrameSource)


def _read_plain(source_of: SourceOf, one: Instance, out: NDArray[Any], buffer: bytearray) -> bytearray:
    if len(buffer) != one.frame_length:
        buffer = bytearray(one.frame_length)
    with source_of(one.source).open(os.fsdecode(one.key)) as file, problems():
        file.seek(one.pixels_at)
        if pixel_element(file.read(12), one.syntax) is None:
            raise PixelProblem(MOVED)
        file.seek(one.frame_at)
        if _read_into(file, buffer) < len(buffer):
            raise PixelProblem("the pixels end before they should")
    raw = np.frombuffer(buffer, f"<u{one.bits_allocated // 8}").reshape(one.rows, one.columns)
    put(significant(raw, one), one, out)
    return buffer


def _read_into(file: BinaryIO, buffer: bytearray) -> int:
    readinto = getattr(file, "readinto", None)
    if readinto is not None:
        return int(readinto(buffer))
    content = file.read(len(buffer))
    buffer[: len(content)] = content
    return len(content)


def _fill_compressed(volume: NDArray[Any], slices: Sequence[Instance], numbers: Sequence[int], source_of: SourceOf, threads: int) -> None:
    """In threads, in order: no more slices are begun than there are threads."""
    if not numbers:
        return

    def one(number: int) -> None:
        with _named(number):
            _read_compressed(source_of, slices[number], volume[number])

    if threads < 2 or len(numbers) < 2:
        for number in numbers:
            one(number)
        return
    with ThreadPoolExecutor(threads) as pool:
        running: deque[Future[None]] = deque()
        try:
            for number in numbers:
                if len(running) == threads:
                    running.popleft().result()
                running.append(pool.submit(one, number))
            while running:
                running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def _read_compressed(source_of: SourceOf, one: Instance, out: NDArray[Any]) -> None:
    source = source_of(one.source)
    with source.open(os.fsdecode(one.key)) as file, problems():
        file.seek(one.frame_at - 8)
        item = file.read(8)
        if item[:4] != ITEM or int.from_bytes(item[4:], "little") != one.frame_length:
            raise PixelProblem(MOVED)
        stream = file.read(one.frame_length)
        if len(stream) < one.frame_length:
            raise PixelProblem("the pixels end before they should")
        found = decoded_stream(stream, one.syntax, FrameHeader(one.rows, one.columns, one.bits_allocated, one.bits_stored, one.high_bit))
    # What stream and header do not agree on, pydicom knows how to settle.
    put(significant(found, one) if found is not None else next(series_values(lambda _: source, [one])), one, out)


def _fill_others(volume: NDArray[Any], slices: Sequence[Instance], numbers: Sequence[int], source_of: SourceOf) -> None:
    """What is not one stretch of a file: pydicom's, or a source's that has frames."""
    values: Iterator[NDArray[Any]] = series_values(source_of, (slices[number] for number in numbers))
    for number in numbers:
        with _named(number):
            put(next(values), slices[number], volume[number])


def put(stored: NDArray[Any], one: Instance, out: NDArray[Any]) -> None:
    """Stored values x RescaleSlope + RescaleIntercept of this very slice; raises `PixelProblem` where float32 cannot hold them."""
    if out.dtype == np.int16:
        # All results are whole and within int16, so the remainders of 2**16 that steps between may leave come out right.
        words = stored.view(np.int16) if stored.dtype.itemsize == 2 else stored.astype(np.int16)
        if one.slope != 1:
            words = np.multiply(words, _word(one.slope), out=out)
        np.add(words, _word(one.intercept), out=out)
    elif one.slope == 1 and one.intercept == 0:
        np.copyto(out, stored)
    else:
        out[:] = rescaled(stored, one)
        # Of what is kept: float64 holds more than float32.
        if not np.isfinite(out).all():
            raise PixelProblem("it has values beyond the range of float32")


def _word(value: float) -> np.int16:
    return np.int64(value).astype(np.int16)


def clear_padding(volume: NDArray[Any], slices: Sequence[Instance]) -> None:
    """Give voxels that are padding the lowest value of those that are not, if there are any: else they would lead every statistic."""
    padded = [(part, ends) for part, one in zip(volume, slices, strict=True) if (ends := padding_of(one)) is not None]
    if not padded:
        return
    highest = np.iinfo(np.int16).max if volume.dtype == np.int16 else np.inf
    bare = [part for part, one in zip(volume, slices, strict=True) if padding_of(one) is None]
    lowest = min((part.min() for part in bare), default=highest)
    for part, (first, last) in padded:
        lowest = min(lowest, part.min(where=(part < first) | (part > last), initial=highest))
    if lowest < highest:
        for part, (first, last) in padded:
            part[(part >= first) & (part <= last)] = lowest


def padding_of(one: Instance) -> tuple[float, float] | None:
    """Lowest and highest rescaled value that is padding; None where the header names none that the stored bits can hold."""
    words = [int(value) & (2**one.bits_allocated - 1) for value in one.padding[:2]]
    half = 2 ** (one.bits_allocated - 1)
    # Signed or not, as the pixels are: files without representations do not say which.
    stored = [word - 2 * half if one.signed and word >= half else word for word in words]
    limits = (-(2 ** (one.bits_stored - 1)), 2 ** (one.bits_stored - 1)) if one.signed else (0, 2**one.bits_stored)
    if not stored or not all(limits[0] <= value < limits[1] for value in stored):
        return None
    ends = sorted(float(np.float32(value * one.slope + one.intercept)) for value in stored)
    return ends[0], ends[-1]
