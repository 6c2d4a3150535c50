"""Modalities: DICOM's codes, and that of a NIfTI file, which its header cannot say: from its sidecar, data set or BIDS name."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import PurePath
from typing import Any

from medssl.archive.nifti.names import stem
from medssl.config import did_you_mean
from medssl.errors import ConfigError
from medssl.source import ArchiveSource

UNKNOWN = "unknown"
_CODES = (
    "AR AU BDUS BI BMD CFM CR CT CTPROTOCOL DG DMS DOC DX ECG EEG EMG EOG EPS ES FID GM HC HD IO IOL IVOCT IVUS KER KO LEN LS MG MR "
    "M3D NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS OT PA PLAN POS PR PT PX REG RESP RF RG RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD "
    "RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF STAIN TEXTUREMAP TG US VA XA XAPROTOCOL XC"
)
MODALITIES = frozenset(_CODES.split())
"""DICOM's codes."""
_USUAL = ("CR", "CT", "DX", "MG", "MR", "NM", "PT", "US", "XA")
_SIDE_FILE_LIMIT = 1 << 24
_MR_NAMES = (
    "MR MRI T1 T1W T1GD T1CE T1C T2 T2W FLAIR ADC DWI PD PDW BOLD CBV ASL T2STARW SBREF MAGNITUDE PHASEDIFF INPLANET1 INPLANET2 "
    "T1MAP T2MAP M0SCAN TOF SWI"
)
_NAMES = {
    **dict.fromkeys(("CT", "NCCT", "CTA", "CECT"), "CT"),
    **dict.fromkeys(("PT", "PET", "SUV"), "PT"),
    **dict.fromkeys(("US", "ULTRASOUND"), "US"),
    **dict.fromkeys(_MR_NAMES.split(), "MR"),
}
"""How data sets and BIDS file names call what DICOM calls CT, PT, US and MR."""
_MORE_WORDS = (
    "ARTERIAL VENOUS PORTAL DELAYED NATIVE PRE POST EARLY LATE CONTRAST NONCONTRAST FAT WATER IN OUT OPPOSED PHASE MAP MASKED NORM NONORM "
    "HBV LOW HIGH DOSE AX AXIAL SAG SAGITTAL COR CORONAL LUNG BONE SOFT TISSUE DYNAMIC DELTA SUBTRACTION"
)
_CHANNEL_WORDS = frozenset((*_NAMES, *_MORE_WORDS.split()))
"""Of what a data set calls its channels this is kept: any other text may be somebody's name."""


def modality_of(source: ArchiveSource, key: str, known: dict[str, Any]) -> str:
    """CT, MR, PT, US or "unknown". `known` remembers side files between calls on one source."""
    found = _named(_side_file(source, str(PurePath(key).with_name(stem(key) + ".json")), {}))
    if found:
        return found
    number = re.search(r"_(\d{4})$", stem(key))  # CASE_0001 is channel 1
    channel = _channels(source, key, known).get(int(number.group(1)) if number else 0, "")
    return named_modality(channel) or named_modality(stem(key).rpartition("_")[2]) or UNKNOWN


def named_modality(name: str) -> str | None:
    """CT, MR, PT or US by what data sets call it, such as "T1w" or "CT_venous"; None for other names."""
    upper = name.upper()
    return _NAMES.get(upper) or _NAMES.get(re.split(r"[^A-Z0-9]", upper)[0])


def checked_modality(name: str, known: Collection[str] = (), where: str = "modality") -> str:
    """`name` as DICOM writes it; `ConfigError` where it is neither one of DICOM's codes, nor `known`, nor what data sets call one."""
    code = name.upper()
    if code in MODALITIES or code in {one.upper() for one in known}:
        return code
    found = UNKNOWN if name.lower() == UNKNOWN else named_modality(name)
    if found is None:
        raise ConfigError(f"{where} '{name[:40]}' is no modality of DICOM's{did_you_mean(code[:40], dict.fromkeys([*known, *_USUAL]))}")
    return found


def _side_file(source: ArchiveSource, key: str, known: dict[str, Any]) -> Any:
    if key not in known:
        try:
            with source.open(key) as file:
                known[key] = json.loads(file.read(_SIDE_FILE_LIMIT))
        except (OSError, ValueError, RecursionError):
            # A side file only helps: none, or a broken one, leaves the modality unknown.
            known[key] = None
    return known[key]


def _named(content: Any) -> str | None:
    if not isinstance(content, dict):
        return None
    return named_modality(str(content.get("Modality", content.get("modality", ""))))


def _channels(source: ArchiveSource, key: str, known: dict[str, Any]) -> dict[int, str]:
    """Channel number -> what `dataset.json` beside a file calls it, or that of the folder above."""
    contents = (_side_file(source, str(folder / "dataset.json"), known) for folder in list(PurePath(key).parents)[:2])
    return next(filter(None, map(_channels_in, contents)), {})


def _channels_in(content: Any) -> dict[int, str]:
    """Decathlon's `modality` and nnU-Net's `channel_names`: channel number -> name."""
    channels = content.get("channel_names", content.get("modality")) if isinstance(content, dict) else None
    if not isinstance(channels, dict):
        return {}
    return {int(number): str(name) for number, name in channels.items() if re.fullmatch(r"[0-9]{1,4}", str(number))}


def channel_names(source: ArchiveSource, key: str) -> dict[int, str]:
    """Channel number -> what `dataset.json` beside or above a file calls it, as far as the words are known ones."""
    return {number: _known_words(name) for number, name in _channels(source, key, {}).items()}


def _known_words(name: str) -> str:
    return " ".join(word for word in re.split(r"[^A-Za-z0-9]+", name) if word.upper() in _CHANNEL_WORDS)
