"""What a DICOM object is, where it is none of one patient's slices."""

from __future__ import annotations

from medssl.archive.headers.elements import Header, has, number, texts
from medssl.archive.instance import Instance
from medssl.archive.outcomes import Reason

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_KINDS: tuple[tuple[str, Reason], ...] = (
    ("1.2.840.10008.1.3.10", Reason.DICOMDIR),
    (_STORAGE + "88.", Reason.STRUCTURED_REPORT),
    (_STORAGE + "66.4", Reason.SEGMENTATION),
    (_STORAGE + "66.5", Reason.SEGMENTATION),
    (_STORAGE + "66.7", Reason.SEGMENTATION),
    (_STORAGE + "66.6", Reason.RAW_DATA),
    (_STORAGE + "66.", Reason.REGISTRATION),
    (_STORAGE + "66", Reason.RAW_DATA),
    (_STORAGE + "4.2", Reason.RAW_DATA),
    (_STORAGE + "481.", Reason.RADIOTHERAPY),
    (_STORAGE + "104.", Reason.DOCUMENT),
    (_STORAGE + "11.", Reason.PRESENTATION_STATE),
    (_STORAGE + "9.", Reason.WAVEFORM),
    (_STORAGE + "67", Reason.VALUE_MAP),
    (_STORAGE + "77.1.6", Reason.WHOLE_SLIDE),
    (_STORAGE + "7", Reason.SECONDARY_CAPTURE),
)
"""What is no image of a patient, by the start of the SOP class; the first that fits counts."""
_PLANAR = tuple(_STORAGE + tail for tail in ("2", "4", "128"))
"""CT, MR and PET images: a slice each, which must say where it lies."""


def kind_of(found: Instance, dataset: Header) -> Reason | None:
    """What the object is, if it is none of one patient's slices."""
    for start, reason in _KINDS:
        # A class of the standard ends here or goes on with a dot: 1.1.7 is no start of 1.1.77.
        if found.sop_class == start or found.sop_class.startswith(start if start.endswith(".") else start + "."):
            return reason
    if not found.uid or not found.series:
        return Reason.NO_UID
    if not has(dataset, "Rows") or not has(dataset, "Columns"):
        return Reason.NO_PIXELS
    types = [value.upper() for value in texts(dataset, "ImageType")]
    if "LOCALIZER" in types or "SCOUT" in types:
        return Reason.LOCALIZER
    return None


def is_coloured(dataset: Header) -> bool:
    """More than one value a pixel."""
    return int(number(dataset, "SamplesPerPixel", 1)) != 1


def is_unplaced(found: Instance, dataset: Header) -> bool:
    """A plane of its own that says not where it lies, and need not."""
    return not has(dataset, "ImagePositionPatient") and found.sop_class not in _PLANAR
