"""How an image was taken, in words of a closed list and numbers: what helps to tell a T1 from a T2 and names nobody.

A header can hold any text under any element, a name too. So nothing is copied: a text gives a word of medssl's own, or nothing.
"""

from __future__ import annotations

import math
import re

from medssl.archive.headers.elements import Header, has, text, texts, tolerant, whole
from medssl.archive.instance import Acquisition

ELEMENTS = (
    "StudyDate SeriesNumber BodyPartExamined ScanningSequence SequenceVariant EchoTime RepetitionTime InversionTime FlipAngle "
    "ContrastBolusAgent ConvolutionKernel Manufacturer ManufacturerModelName MagneticFieldStrength KVP"
)
_CODES = "SE IR GR EP RM SK MTC SS TRSS SP MP OSP TOF NONE"
_BODY_PARTS = (
    "ABDOMEN ABDOMENPELVIS ADRENAL ANKLE AORTA ARM BLADDER BRAIN BREAST BRONCHUS CALF CAROTID CEREBELLUM CERVIX CHEST CHESTABDOMEN "
    "CHESTABDPELVIS CLAVICLE COCCYX COLON CSPINE CTSPINE ELBOW ESOPHAGUS EXTREMITY EYE FACE FEMUR FINGER FOOT FOREARM GALLBLADDER HAND "
    "HEAD HEADNECK HEART HIP HUMERUS IAC JAW KIDNEY KNEE LARYNX LEG LIVER LOWEREXTREMITY LSPINE LSSPINE LUNG MAXILLA MEDIASTINUM NECK "
    "NECKCHEST NOSE ORBIT OVARY PANCREAS PELVIS PITUITARY PROSTATE RECTUM RIB SCALP SCAPULA SHOULDER SINUS SKULL SPINE SPLEEN SSPINE "
    "STERNUM STOMACH TEMPORALBONE TESTIS THIGH THORAX THUMB THYMUS THYROID TLSPINE TMJ TONGUE TRACHEA TSPINE UPPEREXTREMITY URETER URETHRA "
    "UTERUS VAGINA WHOLEBODY WRIST"
)
_MAKERS = {
    **dict.fromkeys(("SIEMENS",), "Siemens"),
    **dict.fromkeys(("GE MEDICAL", "GE HEALTHCARE", "GENERAL ELECTRIC", "GEMS"), "GE"),
    "PHILIPS": "Philips",
    "MARCONI": "Philips",
    "TOSHIBA": "Canon",
    "CANON": "Canon",
    "HITACHI": "Hitachi",
    "FUJI": "Fujifilm",
    "UIH": "United Imaging",
    "UNITED IMAGING": "United Imaging",
    "SHIMADZU": "Shimadzu",
    "HOLOGIC": "Hologic",
    "AGFA": "Agfa",
    "CARESTREAM": "Carestream",
    "KODAK": "Carestream",
    "HYPERFINE": "Hyperfine",
    "ESAOTE": "Esaote",
    "NEUSOFT": "Neusoft",
    "BRUKER": "Bruker",
    "MEDISO": "Mediso",
    "ELEKTA": "Elekta",
    "VARIAN": "Varian",
    "ACCURAY": "Accuray",
    "SAMSUNG": "Samsung",
    "MINDRAY": "Mindray",
}
_MODELS = (
    "SOMATOM MAGNETOM Biograph Prisma PrismaFit Skyra Vida Lumina Sola Altea Aera Avanto Espree Essenza Amira Verio Trio TrioTim Allegra "
    "Symphony Sonata Harmony Concerto Terra Cima mMR mCT Vision Force Drive Flash Definition Emotion Sensation Perspective Edge NAEOTOM "
    "Alpha Symbia Discovery Optima LightSpeed BrightSpeed Revolution Signa SIGNA MR750 MR750w MR450 MR450w MR355 MR360 Premier Architect "
    "Artist Voyager Pioneer HDxt HDx EXCITE Creator Explorer GENESIS CT750 HD HiSpeed ProSpeed Advance STE Ingenia Ingenuity Achieva "
    "Intera Gyroscan Panorama Brilliance Brilliance64 iCT Elition Ambition Gemini Vereos IQon MX8000 Aquilion Titan Vantage Galan Orian "
    "Centurian Activion Asteion Celesteion Scenaria ECLOS Echelon Oasis Airis Swoop uMR uCT uMI uPMR Supria"
)
_WORDS = {word.upper(): word for word in _MODELS.split()}
_PARTS, _SEQUENCES = frozenset(_BODY_PARTS.split()), frozenset(_CODES.split())
_KERNEL = re.compile(r"[A-Z]{1,2}\d{2}[a-z]{0,2}(\\\d)?")
_RECONSTRUCTIONS = "STANDARD BONE BONEPLUS LUNG SOFT DETAIL EDGE CHEST BODY HEAD SHARP SMOOTH ULTRA A B C D E L YA YB YC"
_KERNEL_WORDS = frozenset(_RECONSTRUCTIONS.split())
_NO_CONTRAST = frozenset(("", "NONE", "NO", "N", "NO CONTRAST", "WITHOUT"))


def acquisition(dataset: Header) -> Acquisition:
    """What the header says."""
    return Acquisition(
        study_date="".join(re.findall(r"\d", text(dataset, "StudyDate")))[:8],
        series_number=whole(dataset, "SeriesNumber", -1),
        body_part=_known(re.sub(r"[^A-Z]", "", text(dataset, "BodyPartExamined").upper()), _PARTS),
        sequence=_codes(dataset, "ScanningSequence"),
        variant=_codes(dataset, "SequenceVariant"),
        echo_time=_first(dataset, "EchoTime"),
        repetition_time=_first(dataset, "RepetitionTime"),
        inversion_time=_first(dataset, "InversionTime"),
        flip_angle=_first(dataset, "FlipAngle"),
        contrast=_contrast(dataset),
        kernel=_kernel(text(dataset, "ConvolutionKernel")),
        manufacturer=_maker(text(dataset, "Manufacturer").upper()),
        model=_model(text(dataset, "ManufacturerModelName").upper()),
        field_strength=_tesla(_first(dataset, "MagneticFieldStrength")),
        kvp=_first(dataset, "KVP"),
    )


def _known(word: str, words: frozenset[str]) -> str:
    return word if word in words else ""


def _codes(dataset: Header, keyword: str) -> str:
    return "/".join(code for code in (value.upper() for value in texts(dataset, keyword)) if code in _SEQUENCES)


def _first(dataset: Header, keyword: str) -> tuple[float, ...]:
    return tuple(value for value in tolerant(dataset, keyword)[:1] if math.isfinite(value))


def _contrast(dataset: Header) -> str:
    if not has(dataset, "ContrastBolusAgent"):
        return ""
    return "no" if text(dataset, "ContrastBolusAgent").strip().upper() in _NO_CONTRAST else "yes"


def _kernel(written: str) -> str:
    return written if _KERNEL.fullmatch(written) or written.upper() in _KERNEL_WORDS else ""


def _maker(written: str) -> str:
    if written.split(" ")[0] == "GE":
        return "GE"
    return next((maker for part, maker in _MAKERS.items() if part in written), "")


def _model(written: str) -> str:
    return " ".join(_WORDS[word] for word in re.split(r"[^A-Z0-9]+", written) if word in _WORDS)


def _tesla(written: tuple[float, ...]) -> tuple[float, ...]:
    """Some write gauss."""
    return tuple(value / 10_000 if value > 100 else value for value in written)
