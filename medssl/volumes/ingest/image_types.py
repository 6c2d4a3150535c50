"""What ImageType tells: whether an image shows others anew, was computed from them, or is the same one processed once more.

The terms are those of the standard (PS3.3 C.8.16.1, for MR C.8.13) and those that scanners write beside them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

REFORMATS = frozenset(("MPR", "REFORMATTED", "REFORMAT", "CURVED", "CPR", "MIP", "MINIP", "MNIP", "AVERAGE", "PROJECTION", "VRT", "SSD"))
_VOLUME_TERMS = frozenset(("MAX_IP", "MIN_IP", "VOLUME_RENDER", "SURFACE_RENDER", "CURVED_MPR"))
COMBINED = frozenset(("TRACEW", "TRACE", "DIFFUSION_ISO", "DIFFUSION_ATTNTD"))
"""Several images of one acquisition in one that looks like them."""
_COMBINED_IF_DERIVED = frozenset(("ADDITION", "MAXIMUM", "MEAN", "MINIMUM", "MASKED", "RESAMPLED"))
"""Likewise, where the first value says DERIVED: by themselves these words are used for other things too."""
MAPS = frozenset(
    (
        *("ADC", "EADC", "EXPADC", "FA", "COLFA", "TENSOR", "DIFFUSION_ANISO", "B0_MAP", "FIELD_MAP"),
        *("RCBF", "RCBV", "RELCBF", "RELCBV", "CBF", "CBV", "MTT", "TTP", "TMAX", "PBP", "NEI", "PEI", "KTRANS", "KEP", "IAUC", "TCS"),
        *("T1_MAP", "T2_MAP", "T2_STAR_MAP", "T2STAR_MAP", "R2_MAP", "R2_STAR_MAP", "R2STAR_MAP", "T1 MAP", "T2 MAP", "T2STAR MAP"),
        *("R2 MAP", "R2STAR MAP", "METABOLITE_MAP", "SNR_MAP", "R_COEFFICIENT", "RHO", "SCM", "FAT_FRACTION", "WATER_FRACTION"),
        *("T_TEST", "TTEST", "Z_SCORE", "STD_DEVIATION", "SUBTRACTION", "SUBTRACT", "SUBTRACTED", "SUB", "DIVISION", "MULTIPLICATION"),
    )
)
"""What was worked out voxel by voxel: numbers of another kind than the images that they come from."""
CORRECTIONS = {"NORM": 1, "DIS2D": 1, "DIS3D": 2}
"""Siemens: evened out in brightness, straightened in the plane or in space. More of them is what is read in the clinic."""
_PROCESSING = frozenset((*CORRECTIONS, "ND", "FIL", "MFSPLIT", "DRL", "DRS", "DRG", "DRB", "MOCO"))
"""Ways to process an image that leave it one of the same thing."""


def is_reformat(image_type: Sequence[str]) -> bool:
    """A reformat, projection or rendering of another volume."""
    return any(value in _VOLUME_TERMS or word in REFORMATS for value in image_type for word in re.split(r"[^A-Z]+", value))


def is_secondary(image_type: Sequence[str]) -> bool:
    """Made after the examination, of other images."""
    return tuple(image_type[:2]) == ("DERIVED", "SECONDARY")


def degree(image_type: Sequence[str]) -> int:
    """How far it is from what was taken: 0 an image of it, 1 several of them in one, 2 a map."""
    flavours = set(image_type[2:])
    if flavours & MAPS:
        return 2
    return int(bool(flavours & COMBINED) or (image_type[0] == "DERIVED" and bool(flavours & _COMBINED_IF_DERIVED))) if flavours else 0


def content(image_type: Sequence[str]) -> frozenset[str]:
    """What it shows: water, an echo of an inversion, a flow direction; not how it was processed, nor that it was."""
    return frozenset(image_type[2:]) - _PROCESSING


def processing(image_type: Sequence[str]) -> frozenset[str]:
    """How it was processed."""
    return frozenset(image_type[2:]) & _PROCESSING


def corrections(image_type: Sequence[str]) -> int:
    """How much of what a coil or gradient does to an image was taken back."""
    return sum(CORRECTIONS.get(value, 0) for value in image_type)
