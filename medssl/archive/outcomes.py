"""How a file of the archive ends: in a volume, or with exactly one of these reasons."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal

Ending = Literal["volume", "duplicate", "not an image", "rejected", "not listed"]


class Reason(StrEnum):
    """Why a file is in no volume. The value is what a person reads and what counts are keyed by."""

    DUPLICATE = "duplicate"

    NOT_LISTED = "of a study that is not in the list"

    EMPTY_FILE = "empty file"
    NOT_MEDICAL = "neither DICOM nor NIfTI"
    COMPRESSED_ARCHIVE = "compressed file that is no zip or tar, or archive inside an archive: unpack it"
    DICOMDIR = "DICOMDIR"
    STRUCTURED_REPORT = "structured report"
    SEGMENTATION = "segmentation object"
    RADIOTHERAPY = "radiotherapy object"
    DOCUMENT = "encapsulated document"
    PRESENTATION_STATE = "presentation state"
    WAVEFORM = "waveform"
    REGISTRATION = "registration or fiducials"
    RAW_DATA = "raw data or spectroscopy"
    VALUE_MAP = "real world value map"
    NO_PIXELS = "DICOM object without pixels"
    SECONDARY_CAPTURE = "secondary capture"
    COLOUR = "colour image"
    LOCALIZER = "localizer"
    PROJECTION = "image without a position in space"
    LABEL_MAP = "label map"
    WHOLE_SLIDE = "whole-slide image"

    UNREADABLE = "unreadable: cannot be opened"
    CORRUPT = "corrupt: not valid DICOM or NIfTI"
    KILLED = "reading it killed the worker process"
    TOO_LONG = "reading it took too long"
    TOO_LARGE = "it unpacks to more than is read"
    DAMAGED_ARCHIVE = "damaged part of a zip or tar file: what lay there is lost"
    TRUNCATED = "truncated: the pixels end before they should"
    NO_UID = "no SOPInstanceUID or SeriesInstanceUID"
    CONFLICT = "SOPInstanceUID used twice with different content"
    MULTIFRAME = "multi-frame image whose frames have no position of their own"
    MOSAIC = "mosaic whose header does not say how many slices it holds and which way they run"
    MODALITY_TABLE = "modality lookup table is not applied yet"
    NO_DECODER = "no decoder for this transfer syntax"
    BAD_PIXELS = "bits or scaling that make no sense"
    TOO_MANY_PIXELS = "more pixels than are read"
    COLOUR_SPACE = "colours in a form that is not read"
    PAGES = "picture of several pages"
    DAMAGED_PICTURE = "picture that cannot be decoded"
    BAD_GEOMETRY = "position, orientation or spacing that make no sense"
    NO_POSITION = "no position in the header"
    SINGLE_SLICE = "single slice"
    FAR_APART = "two slices that lie too far apart to be neighbours"
    IRREGULAR = "irregular slice distances"
    REPEATED_POSITION = "several slices at one position that nothing tells apart"
    NIFTI_ORIENTATION = "NIfTI without a usable affine"
    NIFTI_DIMENSIONS = "NIfTI that is not one 3D volume is not read yet"
    NIFTI_VALUES = "NIfTI whose values are complex, colour or of unknown type"
    NIFTI_NOT_FINITE = "NIfTI with NaN or infinite values"


_NOT_IMAGES = frozenset(
    {
        Reason.EMPTY_FILE,
        Reason.NOT_MEDICAL,
        Reason.COMPRESSED_ARCHIVE,
        Reason.DICOMDIR,
        Reason.STRUCTURED_REPORT,
        Reason.SEGMENTATION,
        Reason.RADIOTHERAPY,
        Reason.DOCUMENT,
        Reason.PRESENTATION_STATE,
        Reason.WAVEFORM,
        Reason.REGISTRATION,
        Reason.RAW_DATA,
        Reason.VALUE_MAP,
        Reason.NO_PIXELS,
        Reason.SECONDARY_CAPTURE,
        Reason.COLOUR,
        Reason.LOCALIZER,
        Reason.PROJECTION,
        Reason.LABEL_MAP,
        Reason.WHOLE_SLIDE,
    }
)


def ending(reason: Reason | None) -> Ending:
    """The kind of end that a reason means; no reason means that the file is in a volume."""
    if reason is None:
        return "volume"
    if reason is Reason.DUPLICATE:
        return "duplicate"
    if reason is Reason.NOT_LISTED:
        return "not listed"
    return "not an image" if reason in _NOT_IMAGES else "rejected"


_REMEDIES: dict[Reason, str] = {
    Reason.UNREADABLE: "give the user of this command the right to read the files",
    Reason.CORRUPT: "send the series again from the PACS, or from the scanner",
    Reason.KILLED: "send the file again; it breaks the program that reads it",
    Reason.TOO_LONG: "send the file again; it is not what it says",
    Reason.TOO_LARGE: "unpack the file, or send it again",
    Reason.DAMAGED_ARCHIVE: "copy the zip or tar file again",
    Reason.TRUNCATED: "copy or send the series again: the transfer was cut",
    Reason.NO_UID: "export with the UIDs kept, or replaced instead of emptied",
    Reason.CONFLICT: "find out which of the two is right and take the other out of the archive",
    Reason.MULTIFRAME: "export as enhanced objects with plane positions, or as single slices",
    Reason.MOSAIC: "export with the private elements kept, or as single slices",
    Reason.MODALITY_TABLE: "export with RescaleSlope and RescaleIntercept instead of a table",
    Reason.NO_DECODER: "install the decoder, or export without compression",
    Reason.BAD_PIXELS: "export again as 8 or 16 bit grey values",
    Reason.TOO_MANY_PIXELS: "nothing, or cut it into smaller images",
    Reason.COLOUR_SPACE: "export as RGB",
    Reason.PAGES: "write each page as a picture of its own",
    Reason.DAMAGED_PICTURE: "copy the picture again, or write it as PNG",
    Reason.BAD_GEOMETRY: "export again with position, orientation and spacing as the scanner wrote them",
    Reason.NO_POSITION: "export with positions, or index with --slice-location where a mirrored volume does no harm",
    Reason.SINGLE_SLICE: "nothing: one slice is no volume; look whether the rest of the series is missing",
    Reason.FAR_APART: "nothing: these are separate images; look whether slices between them are missing",
    Reason.IRREGULAR: "look whether slices are missing, or export without merging reconstructions",
    Reason.REPEATED_POSITION: "export with the elements that tell repetitions apart (time, b-value, instance number)",
    Reason.NIFTI_ORIENTATION: "convert again with a program that writes the affine",
    Reason.NIFTI_DIMENSIONS: "split the file into its volumes",
    Reason.NIFTI_VALUES: "convert to real grey values",
    Reason.NIFTI_NOT_FINITE: "replace NaN and infinite values",
}


def remedy(reason: Reason) -> str:
    """What would make volumes of files that were rejected for this reason; empty for what nobody misses."""
    return _REMEDIES.get(reason, "")


def counted(reasons: Mapping[str, int]) -> str:
    """Such as "1 DICOMDIR, 3 single slice"."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
