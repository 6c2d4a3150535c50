"""The values of a 2D image, a still or some of its frames: grey as they are rescaled, colours as red, green and blue of 8 bits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels.processing import apply_color_lut

from medssl.archive.decoders import decoded
from medssl.archive.headers.dicom import read_dataset, transfer_syntax
from medssl.archive.instance import PALETTE, WHOLE, Instance
from medssl.archive.pixels.values import PixelProblem, problems, rescaled, stored_values
from medssl.source import ArchiveSource

_WANTED = (
    "Rows Columns SamplesPerPixel PhotometricInterpretation PlanarConfiguration BitsAllocated BitsStored HighBit PixelRepresentation "
    "NumberOfFrames PixelData "
    "RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor BluePaletteColorLookupTableDescriptor "
    "RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData "
    "SegmentedRedPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData"
)


def image_values(source: ArchiveSource, instance: Instance, frames: Sequence[int] | None = None) -> NDArray[np.generic]:
    """(F, rows, columns, samples) of all its frames, or of `frames`, counted from 0; grey ones are rescaled.

    Raises `PixelProblem`, or `OSError` from the source.
    """
    chosen = range(instance.frames) if frames is None else frames
    with source.open(os.fsdecode(instance.key)) as file:
        if instance.samples == 1:
            # A file of one image has no number of a frame.
            single, parsed = instance.frames == 1, dict[str, pydicom.Dataset]()
            each = (stored_values(file, replace(instance, frame=WHOLE if single else number), parsed) for number in chosen)
            return np.stack([stored if _is_plain(instance) else rescaled(stored, instance) for stored in each])[..., None]
        with problems():
            dataset = read_dataset(file, _WANTED.split(), pixels=True)
            return np.stack([_coloured(dataset, instance, number) for number in chosen])


def _is_plain(one: Instance) -> bool:
    return one.slope == 1 and one.intercept == 0


def _coloured(dataset: pydicom.Dataset, instance: Instance, frame: int) -> NDArray[np.uint8]:
    dataset.file_meta = getattr(dataset, "file_meta", pydicom.dataset.FileMetaDataset())
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(transfer_syntax(dataset))
    image = decoded(dataset, frame)
    if instance.photometric == PALETTE:
        wide = apply_color_lut(image, dataset)
        # The tables hold 8 or 16 bits an entry, whatever the indices have.
        image = (wide >> 8 if wide.dtype.itemsize == 2 else wide).astype(np.uint8)
    if image.shape != (instance.rows, instance.columns, 3) or image.dtype != np.uint8:
        raise PixelProblem("the decoded image has not the size that the header says")
    return image
