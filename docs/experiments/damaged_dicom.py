"""DICOM files that are damaged where it hurts a parser, and what two ways of reading make of each."""

from __future__ import annotations

import io
import re
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

import imagecodecs
import numpy as np
from damage import Draw, Use, mutated
from pydicom import Dataset, dcmread, uid
from pydicom.encaps import encapsulate

from medssl.archive import FolderSource
from medssl.archive.headers.dicom import read_instances
from medssl.archive.headers.reader import HeaderReader, Unread
from medssl.archive.headers.scan import quiet_pydicom, scan_file
from medssl.archive.instance import Instance
from medssl.archive.limits import watched
from medssl.archive.pixels.filling import SliceProblem, fill
from medssl.testing.dicom import made_affine, made_volume, write_series


@cache
def dicom_kinds() -> list[bytes]:
    """A slice in each way of writing, of a header with private elements and sequences within sequences, and objects of many frames."""
    found: list[bytes] = []
    with tempfile.TemporaryDirectory() as folder:
        for syntax in (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian):
            found.append(_slice(folder, syntax))
        plain = found[0]
        for syntax, stream in _streams().items():
            dataset = dcmread(io.BytesIO(plain))
            dataset.PixelData = encapsulate([stream])
            dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
            found.append(_saved(dataset, syntax))
        rle = dcmread(io.BytesIO(plain))
        rle.compress(uid.RLELossless)
        found += [_saved(rle, uid.RLELossless), _saved(_enhanced(dcmread(io.BytesIO(plain))), uid.ExplicitVRLittleEndian)]
    return found


def _slice(folder: str, syntax: str) -> bytes:
    def adjust(dataset: Dataset, z: int) -> None:
        inner, outer = Dataset(), Dataset()
        inner.ReferencedSOPInstanceUID = "1.2.3"
        outer.ReferencedImageSequence = [inner, Dataset()]
        dataset.ReferencedStudySequence, dataset.ReferencedPatientSequence = [outer, outer], [inner]
        dataset["ReferencedStudySequence"].is_undefined_length = outer["ReferencedImageSequence"].is_undefined_length = True
        dataset.add_new(0x00190010, "LO", "SIEMENS MR HEADER")
        dataset.add_new(0x0019100C, "IS", "1000")
        dataset.SliceLocation, dataset.EchoTime, dataset.SpecificCharacterSet = "2.5", "30", "ISO_IR 100"

    (file,) = write_series(folder, made_volume((12, 10, 1)), made_affine(), modality="MR", adjust=adjust, syntax=syntax)
    return file.read_bytes()


def _saved(dataset: Dataset, syntax: str) -> bytes:
    target = io.BytesIO()
    dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
    dataset.save_as(target)
    return target.getvalue()


def _streams() -> dict[str, bytes]:
    picture = np.ascontiguousarray(made_volume((12, 10, 1))[:, :, 0].T.astype(np.uint16))
    return {
        uid.JPEGLosslessSV1: imagecodecs.jpeg8_encode(picture, lossless=True, predictor=1, bitspersample=16),
        uid.JPEGLSLossless: imagecodecs.jpegls_encode(picture),
        uid.JPEG2000Lossless: imagecodecs.jpeg2k_encode(picture, level=0, codecformat="j2k", reversible=True),
    }


def _enhanced(dataset: Dataset) -> Dataset:
    dataset.SOPClassUID, dataset.NumberOfFrames, dataset.PixelData = uid.EnhancedMRImageStorage, 3, dataset.PixelData * 3
    groups: list[Dataset] = []
    for z in range(3):
        place, frame = Dataset(), Dataset()
        place.ImagePositionPatient = [0, 0, 2 * z]
        frame.PlanePositionSequence = [place]
        groups.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = groups
    return dataset


def mutated_dicom(draw: Draw) -> bytes:
    """One of `dicom_kinds`: elements misstated, taken out, repeated or moved, or bytes that are not what they were."""
    kinds = dicom_kinds()
    content = kinds[int(draw.integers(0, len(kinds)))]
    return mutated(content, draw) if draw.random() < 0.3 else restructured(content, draw)


ELEMENT = re.compile(rb"[\x02\x08\x10\x18\x19\x20\x28]\0..[A-Z]{2}|\xfe\xff..|\xe0\x7f\x10\0", re.DOTALL)
"""What begins as an element does, or an item, or the pixels."""
TAGS = [b"\x08\0\x18\0", b"\x28\0\x10\0", bytes(4), b"\xfe\xff\x0d\xe0", b"\xe0\x7f\x10\0", b"\x02\0\x10\0"]
REPRESENTATIONS = [b"SQ", b"UN", b"OB", b"UT", b"US", b"FD", b"DS", b"ZZ", bytes(2)]
LENGTHS = [0, 1, 2, 7, 0xFFFE, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]
"""What a length is set to."""


def restructured(content: bytes, draw: Draw) -> bytes:
    """A few elements, found by their tags as little endian has them, with another tag, representation, length or place, or nested."""
    damaged = bytearray(content)
    for _ in range(draw.integers(1, 4)):
        places = [one.start() for one in ELEMENT.finditer(damaged)]
        if not places:
            break
        at, other = (places[int(draw.integers(0, len(places)))] for _ in range(2))
        kind = draw.integers(0, 7)
        if kind == 0:
            damaged[at : at + 4] = TAGS[int(draw.integers(0, len(TAGS)))]
        elif kind == 1:
            damaged[at + 4 : at + 6] = REPRESENTATIONS[int(draw.integers(0, len(REPRESENTATIONS)))]
        elif kind == 2:
            damaged[at + 6 : at + 8] = int(draw.choice(LENGTHS)).to_bytes(8, "little")[:2]
        elif kind == 3:
            damaged[at + 8 : at + 12] = int(draw.choice(LENGTHS)).to_bytes(8, "little")[:4]
        elif kind == 4:
            del damaged[at : at + int(draw.integers(1, 60))]
        elif kind == 5:
            damaged[at:at] = damaged[other : other + int(draw.integers(8, 200))]
        else:
            nested = b"\x08\0\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
            damaged[at:at] = nested * int(draw.choice([1, 5, 50, 3000]))
    return bytes(damaged)


class PydicomAlone(HeaderReader):
    """Reads every header by pydicom."""

    def read(self, file: BinaryIO, head: bytes, unread: Unread) -> list[Instance]:
        return read_instances(watched(file), unread.instance())


def scanned_both_ways() -> Use:
    """Scan the file as an index does, beside the one before it, and by pydicom alone: both must say the same. Then read its pixels."""
    ours, alone = HeaderReader(), PydicomAlone()

    def use(folder: Path, content: bytes) -> str:
        (folder / "x").write_bytes(content)
        source = FolderSource(str(folder))
        with quiet_pydicom():
            found, other = scan_file(source, 0, "x", ours), scan_file(source, 0, "x", alone)
            if found != other or not found:
                return "NOT THE SAME"
            sound = [one for one in found if not one.reason]
            if not sound:
                return found[0].reason
            with suppress(SliceProblem):
                fill(np.empty((len(sound), sound[0].rows, sound[0].columns), np.float32), sound[:8], lambda _: source)
                return "whole"
        return "pixels refused"

    return use
