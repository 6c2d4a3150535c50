"""Made pictures as the streams of each compressed transfer syntax."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

Encode = Callable[..., bytes]

LOSSLESS: dict[str, Encode] = {
    uid.JPEGLossless: partial(imagecodecs.jpeg8_encode, lossless=True, predictor=5),
    uid.JPEGLosslessSV1: partial(imagecodecs.jpeg8_encode, lossless=True, predictor=1),
    uid.JPEGLSLossless: lambda picture, bitspersample: imagecodecs.jpegls_encode(picture),
    uid.JPEG2000Lossless: partial(imagecodecs.jpeg2k_encode, level=0, codecformat="j2k", reversible=True),
}
LOSSY: dict[str, Encode] = {
    uid.JPEGExtended12Bit: partial(imagecodecs.jpeg8_encode, level=95),
    uid.JPEGLSNearLossless: lambda picture, bitspersample: imagecodecs.jpegls_encode(picture, level=2),
    uid.JPEG2000: partial(imagecodecs.jpeg2k_encode, level=60, codecformat="j2k"),
}


def pack(dataset: Dataset, syntax: str) -> None:
    """Compress the pixels of a made dataset."""
    picture = np.frombuffer(dataset.PixelData, f"u{dataset.BitsAllocated // 8}")[: dataset.Rows * dataset.Columns]
    # The unused bits of signed values hold copies of the sign, which a stream of so many bits cannot.
    kept = picture & picture.dtype.type(2**dataset.BitsStored - 1)
    encode = {**LOSSLESS, **LOSSY}[syntax]
    hold(dataset, encode(kept.reshape(dataset.Rows, dataset.Columns), bitspersample=dataset.BitsStored))


def hold(dataset: Dataset, stream: bytes) -> None:
    """Make a stream the pixels of a dataset."""
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True


def smooth_volume(shape: tuple[int, int, int] = (61, 47, 3)) -> NDArray[Any]:
    """(X, Y, Z) of 0 to 4095, as smooth as anatomy."""
    x, y, z = np.indices(shape)
    return ((np.sin(x / 5) + np.cos(y / 7) + 2) * 900 + 20 * z + np.random.default_rng(0).integers(0, 40, shape)).astype(np.int16)
