"""2D images by their nature, radiographs, ultrasound and photographs: which objects they are, and what their headers say.

One slice of a CT, MR or PET series is none of them, whatever else is missing: it is a part of a volume.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from medssl.archive.geometry import usable_spacing
from medssl.archive.headers.elements import Header, count, has, number, numbers, text, texts, tolerant, values
from medssl.archive.headers.flaws import flaw_of_pixels
from medssl.archive.headers.frames import MOST_FRAMES, frame_count
from medssl.archive.headers.nuclear import is_reconstruction
from medssl.archive.instance import PALETTE, Instance
from medssl.archive.limits import PIXELS
from medssl.archive.outcomes import Reason

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_RADIOGRAPHS = "1 1.1 1.1.1 1.2 1.2.1 1.3 1.3.1 12.1 12.1.1 12.2 12.2.1 12.3"
_ULTRASOUND = "3 3.1 6 6.1"
_PHOTOGRAPHS = "77.1.1 77.1.1.1 77.1.2 77.1.2.1 77.1.3 77.1.4 77.1.4.1 77.1.5.1 77.1.5.2 77.1.5.5 77.1.5.6 77.1.5.7 77.1.7"
_CLASSES = frozenset(_STORAGE + tail for part in (_RADIOGRAPHS, _ULTRASOUND, _PHOTOGRAPHS) for tail in part.split())
_MODALITIES = frozenset(("CR", "DX", "ES", "GM", "IO", "IVUS", "MG", "NM", "OP", "OPM", "PX", "RF", "RG", "US", "XA", "XC"))
"""Of which an object of another class is an image too, where it is one plane without a position."""
_ELSEWHERE = "PerFrameFunctionalGroupsSequence"

ELEMENTS = (
    "ImagerPixelSpacing NominalScannedPixelSpacing EstimatedRadiographicMagnificationFactor SequenceOfUltrasoundRegions "
    "BurnedInAnnotation RedPaletteColorLookupTableDescriptor"
)
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_SCREENS = frozenset({"US", "IVUS", "XA", "RF", "ES", "GM"})
"""Modalities whose machines write names into the picture."""
_TWO_DIMENSIONS, _CENTIMETRES = 1, 3
"""Of an ultrasound region: what it shows, and the unit of its axes."""


def is_projection(found: Instance, dataset: Header) -> bool:
    """Is the object a 2D image by itself?"""
    if found.sop_class in _CLASSES:
        return True
    # A reconstructed slice of nuclear medicine has its place at its detector.
    plain = not has(dataset, "ImagePositionPatient") and not has(dataset, _ELSEWHERE) and not is_reconstruction(dataset)
    return plain and found.modality in _MODALITIES and frame_count(dataset) == 1


def as_image(filled: Instance, dataset: Header) -> Instance:
    """An instance with its pixels described, as a 2D image, or with the reason why it is none."""
    spacing, notes = _spacing(dataset)
    one = replace(
        filled,
        samples=3 if filled.photometric == PALETTE else count(dataset, "SamplesPerPixel", 1),
        frames=max(1, frame_count(dataset)),
        position=(),
        orientation=(),
        pixel_spacing=spacing,
        warnings=(*filled.warnings, *notes, *_warnings(filled, dataset)),
    )
    reason = _flaw(one, dataset)
    return replace(one, reason=reason.value if reason else "")


def _flaw(one: Instance, dataset: Header) -> Reason | None:
    reason = flaw_of_pixels(one, dataset)
    if reason is not None:
        return reason
    if one.frames > MOST_FRAMES:
        return Reason.BAD_PIXELS
    if one.rows * one.columns > PIXELS:
        return Reason.TOO_MANY_PIXELS
    if one.is_grey and one.samples == 1:
        return None
    if one.photometric == PALETTE:
        return None if has(dataset, "RedPaletteColorLookupTableDescriptor") and not one.signed else Reason.COLOUR_SPACE
    eight = one.bits_allocated == one.bits_stored == 8 and not one.signed
    return None if one.photometric in _COLOURS and one.samples == 3 and eight else Reason.COLOUR_SPACE


def _spacing(dataset: Header) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Millimetres between rows and between columns, () where the header does not say, and what a person should know of them."""
    found = numbers(dataset, "PixelSpacing")
    if _usable(found):
        return found, ()
    found = numbers(dataset, "ImagerPixelSpacing")
    if _usable(found):
        factor = number(dataset, "EstimatedRadiographicMagnificationFactor", 1.0)
        if factor > 1 and _usable(magnified := tuple(side / factor for side in found)):
            return magnified, ("pixel spacing of the detector, divided by the estimated magnification",)
        return found, ("pixel spacing of the detector: what lies before it is smaller than it measures",)
    found = _calibrated(dataset)
    if _usable(found):
        return found, ("pixel spacing by the calibration of the ultrasound's regions",)
    found = numbers(dataset, "NominalScannedPixelSpacing")
    if _usable(found):
        return found, ("pixel spacing of the scanned film",)
    return (), ("no pixel spacing is known: distances count pixels",)


def _usable(spacing: tuple[float, ...]) -> bool:
    return len(spacing) == 2 and usable_spacing(spacing)


def _calibrated(dataset: Header) -> tuple[float, ...]:
    """Of the regions that show tissue in centimetres, where they agree."""
    sides = {
        (round(abs(number(region, "PhysicalDeltaY", 0.0)) * 10, 6), round(abs(number(region, "PhysicalDeltaX", 0.0)) * 10, 6))
        for region in values(dataset, "SequenceOfUltrasoundRegions")
        if count(region, "RegionSpatialFormat", 0) == _TWO_DIMENSIONS
        and count(region, "PhysicalUnitsXDirection", 0) == count(region, "PhysicalUnitsYDirection", 0) == _CENTIMETRES
    }
    return sides.pop() if len(sides) == 1 else ()


def _warnings(filled: Instance, dataset: Header) -> Iterator[str]:
    said = text(dataset, "BurnedInAnnotation").upper()
    types = [value.upper() for value in texts(dataset, "ImageType")]
    if said == "YES":
        yield "text may be burned into the image: BurnedInAnnotation is YES"
    elif said != "NO" and filled.modality in _SCREENS:
        yield f"text may be burned into the image: it is {filled.modality}, and BurnedInAnnotation does not say NO"
    elif said != "NO" and ("SCREEN SAVE" in types or "SECONDARY" in types[1:2]):
        yield "text may be burned into the image: it is a secondary image, and BurnedInAnnotation does not say NO"
    if filled.is_inverted:
        yield "MONOCHROME1: low values are meant to be bright"
    padded = tolerant(dataset, "PixelPaddingValue")
    if padded:
        yield f"pixel padding value {padded[0]:g} (stored) marks pixels without data"
