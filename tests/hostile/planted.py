"""An archive of which every text, number, date, UID, file name and folder name can be found again: none may be anywhere else."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
from pydicom import dcmread
from pydicom.datadict import dictionary_VR, keyword_dict, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from medssl.testing.dicom import made_affine, made_volume, write_secondary_capture, write_series

MARK = "zqsecret"
"""Part of every planted text and name; compared without regard to capitals."""
_TEXTS = (
    "PatientName PatientID OtherPatientNames PatientBirthName PatientMotherBirthName PatientAddress PatientTelephoneNumbers "
    "PatientComments PatientReligiousPreference MilitaryRank BranchOfService CountryOfResidence RegionOfResidence EthnicGroup "
    "Occupation AdditionalPatientHistory MedicalRecordLocator IssuerOfPatientID StudyID AccessionNumber InstitutionName "
    "InstitutionAddress InstitutionalDepartmentName StationName ReferringPhysicianName ReferringPhysicianAddress "
    "PhysiciansOfRecord PerformingPhysicianName NameOfPhysiciansReadingStudy OperatorsName StudyDescription SeriesDescription "
    "ProtocolName RequestedProcedureDescription RequestedProcedureID PerformedProcedureStepDescription PerformedProcedureStepID "
    "DeviceSerialNumber ManufacturerModelName Manufacturer SoftwareVersions BodyPartExamined ConvolutionKernel ContrastBolusAgent "
    "ImageComments DerivationDescription AdmissionID CurrentPatientLocation RequestingPhysician RequestingService "
    "PlacerOrderNumberImagingServiceRequest FillerOrderNumberImagingServiceRequest PatientState ResponsiblePerson "
    "ResponsibleOrganization SpecialNeeds Allergies MedicalAlerts ScanningSequence SequenceVariant SequenceName StackID "
    "TemporalPositionIdentifier FilterType ReceiveCoilName TransmitCoilName PatientTransportArrangements VisitComments "
    "StudyComments AcquisitionDeviceProcessingDescription BurnedInAnnotation LongitudinalTemporalEventType"
)
_DATES = (
    "PatientBirthDate StudyDate SeriesDate AcquisitionDate ContentDate PerformedProcedureStepStartDate InstanceCreationDate "
    "AdmittingDate DateOfLastCalibration LastMenstrualDate"
)
_TIMES = "StudyTime SeriesTime AcquisitionTime ContentTime InstanceCreationTime PatientBirthTime"
_UIDS = "StudyInstanceUID SeriesInstanceUID SOPInstanceUID FrameOfReferenceUID DeviceUID IrradiationEventUID"
_NUMBERS = {"PatientWeight": "77.340421", "PatientSize": "1.7734043", "EntranceDoseInmGy": "7734.0465"}
PLANTED = len([*f"{_TEXTS} {_DATES} {_TIMES} {_UIDS}".split(), *_NUMBERS])


def _date(number: int) -> str:
    return f"19{31 + number}0417"


def _time(number: int) -> str:
    return f"03141{number}.7734"


def secrets() -> list[str]:
    """What must not be found, in small letters."""
    years = [_date(number)[:4] for number in range(len(_DATES.split()))]
    dates = [text for year in years for text in (f"{year}0417", f"{year}-04-17", f"17.04.{year}")]
    times = [_time(number) for number in range(len(_TIMES.split()))]
    return [MARK, *dates, *times, "1.2.826.9977.", *_NUMBERS.values(), "1934-05-06"]


def plant(dataset: Dataset, z: int, patient: int = 0) -> None:
    """Fill the header with what identifies somebody; a patient's slices stay one series."""
    for number, keyword in enumerate(_TEXTS.split()):
        if keyword in keyword_dict:
            vr = dictionary_VR(tag_for_keyword(keyword) or 0)
            text = f"{MARK}{number:02d}p{patient}"
            dataset.add_new(keyword, vr, {"PN": f"{text}^Zebulon", "CS": text.upper(), "IS": None, "DS": None}.get(vr, text))
    for number, keyword in enumerate(_DATES.split()):
        setattr(dataset, keyword, _date(number))
    for number, keyword in enumerate(_TIMES.split()):
        setattr(dataset, keyword, _time(number))
    for number, keyword in enumerate(_UIDS.split()):
        setattr(dataset, keyword, f"1.2.826.9977.{patient}.{number}" + (f".{z}" if keyword == "SOPInstanceUID" else ""))
    for keyword, value in _NUMBERS.items():
        setattr(dataset, keyword, value)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", f"{MARK}TYPE".upper()]
    for keyword in ("RequestAttributesSequence", "OtherPatientIDsSequence", "ReferencedStudySequence"):
        inner = Dataset()
        inner.PatientID, inner.ReferencedSOPInstanceUID = f"{MARK}inner", "1.2.826.9977.99"
        setattr(dataset, keyword, Items([inner]))
    for group in (0x0009, 0x0011, 0x0019, 0x0029, 0x0051):
        dataset.add_new((group << 16) + 0x10, "LO", f"{MARK}creator")
        dataset.add_new((group << 16) + 0x1001, "LO", f"{MARK}private")
        dataset.add_new((group << 16) + 0x1002, "UN", f"{MARK}bytes".encode())


def make_archive(folder: Path) -> Path:
    """A folder of series, a zip, a tar, NIfTI with side files, and damaged files of each kind."""
    root = folder / f"{MARK}-klinik"
    for patient in range(3):
        place = root / f"{MARK}^Zebulon 1934-05-06 {patient}" / f"{MARK} thorax"
        array = made_volume((24, 24, 32), patient)
        files = write_series(place, array, made_affine(), modality="MR", adjust=lambda data, z, p=patient: plant(data, z, p))  # type: ignore[misc]
        for file in files:
            file.rename(file.with_name(f"{MARK} {file.name}"))
    damaged = next(root.rglob(f"{MARK} IM*")).read_bytes()
    (root / f"{MARK} thorax").mkdir()
    for name, content in _damaged(damaged):
        (root / name).write_bytes(content)
    _packed(root)
    _files(root / f"{MARK}-nifti")
    write_secondary_capture(root / f"{MARK} capture", patient=f"{MARK}capture")
    return root


def _damaged(whole: bytes) -> Iterator[tuple[str, bytes]]:
    yield f"{MARK}-cut.dcm", whole[:900]
    yield f"{MARK}-short.dcm", whole[:-99]
    yield f"{MARK}-uid.dcm", whole.replace(b"1.2.826.9977.0.3", MARK.encode() * 2)
    yield f"{MARK}-bits.dcm", whole.replace(b"\x28\x00\x00\x01US\x02\x00\x10\x00", b"\x28\x00\x00\x01US\x02\x00\x07\x00")
    yield f"{MARK}-vr.dcm", whole.replace(b"\x10\x00\x10\x00PN", b"\x10\x00\x10\x00DS")
    yield f"{MARK}.txt", MARK.encode()
    yield f"{MARK}.zip", b"PK\x03\x04" + MARK.encode() * 40
    yield f"{MARK}.tar.gz", gzip.compress(MARK.encode() * 400)[:-6]
    # Below a folder: what `medssl predict` finds beside one another it names as it is named.
    yield f"{MARK} thorax/{MARK}-cut.nii.gz", gzip.compress(MARK.encode() * 400)[:-6]


def _packed(root: Path) -> None:
    first = sorted(root.rglob(f"{MARK} IM*"))[:32]
    with zipfile.ZipFile(root / f"{MARK}-export.zip", "w") as packed, tarfile.open(root / f"{MARK}-export.tar", "w") as tar:
        packed.comment = MARK.encode()
        for number, file in enumerate(first):
            packed.writestr(f"{MARK}/{MARK}{number}", _again(file, 7))
            member = tarfile.TarInfo(f"{MARK}/{MARK}{number}")
            content = _again(file, 8)
            member.size, member.uname = len(content), MARK
            tar.addfile(member, io.BytesIO(content))


def _again(file: Path, patient: int) -> bytes:
    """The slice as one of another patient."""
    dataset = dcmread(file)
    plant(dataset, int(dataset.InstanceNumber), patient)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    target = io.BytesIO()
    dataset.save_as(target)
    return target.getvalue()


def _files(folder: Path) -> None:
    folder.mkdir()
    for number in range(3):
        image = nibabel.Nifti1Image(made_volume((24, 24, 20), 50 + number), np.diag([1.0, 1, 2, 1]))
        image.header["descrip"], image.header["aux_file"], image.header["db_name"] = MARK, MARK, MARK
        image.header["intent_name"] = MARK
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", MARK.encode()))
        nibabel.save(image, folder / f"sub-{MARK}{number}_T1w.nii.gz")
        (folder / f"sub-{MARK}{number}_T1w.json").write_text(json.dumps({"PatientName": MARK, "Modality": MARK}))
    named = {"name": MARK, "description": MARK, "channel_names": {"0": f"T1 {MARK}"}, "modality": {"0": MARK}}
    (folder / "dataset.json").write_text(json.dumps(named))
