"""Every file ends somewhere, an index is repeatable, and nothing private leaves it."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage

from medssl.archive import ArchiveSource, Index, Nifti, Reason, build_index, executors, find_source, write_nifti, write_volumes
from medssl.archive.headers.shards import Shard, read_shards
from medssl.archive.instance import SCHEMA, from_table
from medssl.archive.outcomes import ending
from medssl.archive.sources.folder import FolderSource
from medssl.archive.tables import from_parquet
from medssl.errors import ArchiveError, MissingInput, PluginError, UsageError
from medssl.plugins import Plugins
from medssl.testing.dicom import made_affine, made_volume, uid, write_secondary_capture, write_series

Indexed = Callable[..., Index]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of an index but for the number of its tables."""
    return {
        "/".join("tables" if part.startswith("tables-") else part for part in path.relative_to(folder).parts): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "index.json"
    }


def object_of(sop_class: str, folder: Path, name: str, **elements: object) -> Path:
    """A DICOM object without pixels."""
    (file,) = write_series(folder / "tmp", made_volume((4, 4, 1)), made_affine())
    dataset = pydicom.dcmread(file)
    shutil.rmtree(folder / "tmp")
    del dataset.PixelData, dataset.Rows, dataset.Columns
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.SOPInstanceUID = uid(name)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(folder / name)
    return folder / name


def test_what_is_no_image_is_counted_as_what_it_is(archive: Path, indexed: Indexed) -> None:
    storage = "1.2.840.10008.5.1.4.1.1."
    kinds = {
        "88.33": Reason.STRUCTURED_REPORT,
        "88.59": Reason.STRUCTURED_REPORT,
        "66.4": Reason.SEGMENTATION,
        "481.3": Reason.RADIOTHERAPY,
        "104.1": Reason.DOCUMENT,
        "11.1": Reason.PRESENTATION_STATE,
        "9.1.1": Reason.WAVEFORM,
        "66.1": Reason.REGISTRATION,
        "66": Reason.RAW_DATA,
        "67": Reason.VALUE_MAP,
    }
    for tail in kinds:
        object_of(storage + tail, archive, f"object {tail}")
    object_of(CTImageStorage, archive, "no pixels")
    write_secondary_capture(archive)
    index = indexed(archive)
    expected = {reason: list(kinds.values()).count(reason) for reason in kinds.values()}
    assert index.rejected() == {**expected, Reason.NO_PIXELS: 1, Reason.SECONDARY_CAPTURE: 1}
    assert {ending(Reason(reason)) for reason in index.rejected()} == {"not an image"}


def test_broken_files_are_reasons(archive: Path, indexed: Indexed) -> None:
    whole = write_series(archive / "good", made_volume(), made_affine())[0].read_bytes()
    contents = {
        "empty": (b"", Reason.EMPTY_FILE),
        "text": (b"hello " * 100, Reason.NOT_MEDICAL),
        "short": (b"\x08", Reason.NOT_MEDICAL),
        "cut pixels": (whole[:-10], Reason.TRUNCATED),
        "cut header": (whole[:700], None),
        "mark only": (b"\0" * 128 + b"DICM", None),
        "mark and noise": (b"\0" * 128 + b"DICM" + bytes(range(256)) * 4, None),
        "zip": (b"PK\x03\x04" + b"\0" * 200, Reason.COMPRESSED_ARCHIVE),
        "half.nii.gz": (b"\x1f\x8b" + b"\0" * 20, Reason.CORRUPT),
        "no.nii": (b"\0" * 600, Reason.CORRUPT),
    }
    for name, (content, _) in contents.items():
        (archive / name).write_bytes(content)
    index = indexed(archive)
    rejected = index.rejected()
    for _, reason in contents.values():
        assert reason is None or rejected[reason] >= 1
    assert sum(rejected.values()) == len(contents) and len(index.volumes()) == 1


@pytest.mark.parametrize("seed", range(4))
def test_mutated_files_never_stop_the_scan(seed: int, archive: Path, indexed: Indexed) -> None:
    draw = np.random.default_rng(seed)
    files = write_series(archive, made_volume((6, 5, 25)), made_affine())
    for file in files:
        content = bytearray(file.read_bytes())
        for _ in range(draw.integers(1, 8)):
            content[draw.integers(0, len(content))] = draw.integers(0, 256)
        file.write_bytes(content[: draw.integers(1, len(content) + 200)])
    index = indexed(archive)
    for record in index.volumes():
        try:
            index.read(record.volume)
        except ArchiveError as error:
            assert "volume" in str(error)


def test_pipes_links_and_loops_do_not_hold_the_walk_up(archive: Path, indexed: Indexed) -> None:
    write_series(archive / "a", made_volume(), made_affine())
    os.mkfifo(archive / "pipe")
    (archive / "a" / "loop").symlink_to(archive)
    (archive / "dangling").symlink_to(archive / "nowhere")
    index = indexed(archive)
    assert index.rejected() == {Reason.UNREADABLE: 1} and len(index.volumes()) == 1


def test_names_in_any_encoding(archive: Path, indexed: Indexed) -> None:
    files = write_series(archive, made_volume(), made_affine())
    files[0].rename(archive / os.fsdecode(b"\xff\xfe\xe4 name"))
    index = indexed(archive)
    assert np.array_equal(index.read(index.volumes()[0].volume).array, made_volume())


def test_copies_are_duplicates_and_unequal_ones_are_quarantined(archive: Path, indexed: Indexed) -> None:
    files = write_series(archive / "a", made_volume(), made_affine())
    shutil.copytree(archive / "a", archive / "b")
    index = indexed(archive)
    assert index.rejected() == {Reason.DUPLICATE: 12} and index.volumes()[0].instances == 12
    # Another encoding of the same image is a duplicate too, another image under the same UID is not.
    dataset = pydicom.dcmread(archive / "b" / files[0].name)
    dataset.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    dataset.save_as(archive / "b" / files[0].name)
    assert indexed(archive).rejected() == {Reason.DUPLICATE: 12}
    other = pydicom.dcmread(archive / "b" / files[11].name)
    other.PixelData = bytes(len(other.PixelData))
    other.save_as(archive / "b" / files[11].name)
    index = indexed(archive)
    assert index.rejected() == {Reason.DUPLICATE: 11, Reason.CONFLICT: 2}
    assert index.volumes()[0].shape[2] == 11


def test_series_are_grouped_over_folders_and_sources(tmp_path: Path, archive: Path, indexed: Indexed) -> None:
    files = write_series(archive / "a", made_volume(), made_affine())
    for file in files[::2]:
        (tmp_path / "other" / file.name).mkdir(parents=True)
        file.rename(tmp_path / "other" / file.name / "x")
    (record,) = indexed(archive, tmp_path / "other").volumes()
    assert record.shape == made_volume().shape


def test_one_series_uid_of_two_patients_is_two_series(archive: Path, indexed: Indexed) -> None:
    for patient in ("A", "B"):

        def change(dataset: Dataset, _: int) -> None:
            dataset.SeriesInstanceUID = uid("one for all")

        write_series(archive / patient, made_volume(), made_affine(), patient=patient, adjust=change)
    records = indexed(archive).volumes()
    assert len(records) == 2 and len({record.patient for record in records}) == 2


def test_zip_and_tar_are_as_the_folder(tmp_path: Path, archive: Path, indexed: Indexed) -> None:
    write_series(archive / "a", made_volume(), made_affine())
    shutil.make_archive(str(tmp_path / "packed"), "zip", archive)
    shutil.make_archive(str(tmp_path / "packed"), "gztar", archive)
    for name in ("packed.zip", "packed.tar.gz"):
        index = indexed(tmp_path / name, name=name + " index")
        (record,) = index.volumes()
        assert np.array_equal(index.read(record.volume).array, made_volume())
    (tmp_path / "cut.zip").write_bytes((tmp_path / "packed.zip").read_bytes()[:-30])
    with pytest.raises(ArchiveError, match="zip file given as source cannot be opened: it is damaged"):
        build_index([tmp_path / "cut.zip"], tmp_path / "no")
    assert zipfile.is_zipfile(tmp_path / "packed.zip") and tarfile.is_tarfile(tmp_path / "packed.tar.gz")


def test_a_second_run_gives_the_same_index(tmp_path: Path, archive: Path, indexed: Indexed) -> None:
    write_series(archive / "a", made_volume(), made_affine())
    write_nifti(Nifti(made_volume(), made_affine()), archive / "sub-01_T1w.nii.gz")
    first = indexed(archive).summary()
    before = snapshot(tmp_path / "index")
    assert indexed(archive).summary() == first
    assert snapshot(tmp_path / "index") == before
    build_index([archive], tmp_path / "index", workers=2)
    assert snapshot(tmp_path / "index") == before


def test_an_index_inside_the_archive_does_not_index_itself(archive: Path) -> None:
    write_series(archive / "a", made_volume(), made_affine())
    first = build_index([archive], archive / "index", workers=1)
    assert build_index([archive], archive / "index", workers=1) == first and first.files == 12


def test_workers_give_what_one_process_gives(tmp_path: Path, archive: Path) -> None:
    for number in range(3):
        write_series(archive / str(number), made_volume((4, 4, 90), number), made_affine(), patient=str(number))
    seen: list[tuple[int, int | None]] = []
    one = build_index([archive], tmp_path / "one", workers=1, progress=lambda done, total: seen.append((done, total)))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert build_index([archive], tmp_path / "two", workers=2) == one
    assert seen[0] == (0, 270) and seen[-1] == (270, 270)


class Deadly(FolderSource):
    """Dies of one of its files."""

    def open(self, key: str):
        if key == "IM00002":
            os._exit(9)
        return super().open(key)


def test_a_file_that_kills_its_worker_costs_only_itself(tmp_path: Path, archive: Path) -> None:
    write_series(archive, made_volume((4, 4, 8)), made_affine())
    keys = list(FolderSource(str(archive)).keys())
    source = Deadly(str(archive))
    tasks = [(Shard(0, tuple(keys[:4])), source), (Shard(0, tuple(keys[4:])), source)]
    found = {shard: from_table(from_parquet(rows, SCHEMA)) for shard, rows in read_shards(tasks, executors.local(2))}
    instances = [one for shard, _ in tasks for one in found[shard]]
    assert [os.fsdecode(one.key) for one in instances] == keys
    assert [one.reason for one in instances] == [Reason.KILLED if key == "IM00002" else "" for key in keys]


def test_other_folders_are_refused_and_unfinished_ones_go_on(tmp_path: Path, archive: Path) -> None:
    write_series(archive, made_volume(), made_affine())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="holds other files"):
        build_index([archive], tmp_path / "mine")
    (tmp_path / "mine" / "index.json").write_text('{"pages": 3}')
    with pytest.raises(UsageError, match="not medssl's"):
        build_index([archive], tmp_path / "mine")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["index.json", "thesis.txt"]

    def stop(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index([archive], tmp_path / "index", workers=1, progress=stop)
    with pytest.raises(ArchiveError, match="never finished"):
        Index(tmp_path / "index")
    assert len(build_index([archive], tmp_path / "index", workers=1).volumes) == 1
    assert not list(tmp_path.glob("index/**/.new-*"))


def test_messages_for_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no archive given"):
        build_index([], tmp_path / "index")
    with pytest.raises(MissingInput, match="there is no folder"):
        build_index([tmp_path / "nothing"], tmp_path / "index")
    with pytest.raises(PluginError, match="'dicomweb:' archives. Install it with: pip install medssl-dicomweb"):
        find_source("dicomweb+http://127.0.0.1/dicom-web", Plugins())
    with pytest.raises(PluginError, match="'bucket:' archives. Known: .*Is the plugin installed"):
        find_source("bucket:scans", Plugins())
    with pytest.raises(MissingInput, match="no index folder"):
        Index(tmp_path)
    assert not (tmp_path / "index").exists()
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArchiveError, match="cannot be written"):
        build_index([tmp_path / "empty"], tmp_path / "file" / "index")


def test_an_empty_folder_says_what_to_name(archive: Path, indexed: Indexed) -> None:
    with pytest.raises(ArchiveError, match="there is no file in"):
        indexed(archive)


def test_frames_that_nothing_places_are_a_reason(archive: Path, indexed: Indexed) -> None:
    def change(dataset: Dataset, _: int) -> None:
        dataset.SOPClassUID = EnhancedMRImageStorage
        dataset.NumberOfFrames = 2

    write_series(archive, made_volume((4, 4, 1)), made_affine(), adjust=change)
    assert indexed(archive).rejected() == {Reason.MULTIFRAME: 1}


def test_where_chooses_and_can_do_nothing_else(tmp_path: Path, archive: Path, indexed: Indexed) -> None:
    write_series(archive / "a", made_volume(), made_affine())
    write_series(archive / "b", np.abs(made_volume((6, 6, 5))), made_affine(), modality="MR", series="mr")
    index = indexed(archive)
    assert [record.modality for record in index.volumes("modality = 'CT' AND shape[3] >= 12")] == ["CT"]
    assert len(index.volumes("spacing[1] < 1 -- a comment")) == 2
    for wrong in (
        "modalty = 'CT'",
        "1 = 1); DROP TABLE volumes; SELECT (1",
        "volume IN (SELECT content FROM read_text('/etc/hostname'))",
        "(",
        "",
        "volume IN (SELECT 1); COPY volumes TO 'x'",
    ):
        with pytest.raises(UsageError, match="--where"):
            index.volumes(wrong)
    assert index.volumes() == indexed(archive).volumes()
    assert [path.name for path in tmp_path.iterdir() if path.suffix] == []


def test_the_document_has_what_other_tools_rely_on(archive: Path, indexed: Indexed) -> None:
    write_series(archive, made_volume(), made_affine())
    document = json.loads(json.dumps(indexed(archive).summary().document()))
    assert document["files"] == document["instances"] == 12 and document["rejected"] == {}
    (volume,) = document["volumes"]
    keys = {"volume", "modality", "shape", "spacing", "affine", "instances", "split_by", "warnings"}
    assert keys <= set(volume) and volume["shape"] == [20, 16, 12]
    assert volume["affine"] == made_affine().tolist() and volume["spacing"] == pytest.approx([0.8, 0.9, 2.0])


SECRETS = ("Muster", "Zebulon", "19340506", "PID-77-SECRET", "Sankt-Secret-Hospital", "ACC-SECRET-1", "1.2.3.4.5.6.7")


def plant(dataset: Dataset, _: int) -> None:
    for keyword in ("PatientName", "OtherPatientNames", "ReferringPhysicianName", "OperatorsName", "PerformingPhysicianName"):
        setattr(dataset, keyword, "Muster^Zebulon")
    for keyword in ("PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"):
        setattr(dataset, keyword, "19340506")
    for keyword in (
        "InstitutionName",
        "SeriesDescription",
        "StudyDescription",
        "ProtocolName",
        "PatientComments",
        "ImageComments",
    ):
        setattr(dataset, keyword, "Muster Sankt-Secret-Hospital")
    dataset.PatientID, dataset.AccessionNumber, dataset.StudyID = "PID-77-SECRET", "ACC-SECRET-1", "Zebulon"
    dataset.Modality = "MUSTER"
    dataset.ConvolutionKernel = "Muster"
    dataset.StudyInstanceUID = "1.2.3.4.5.6.7.1"
    dataset.SeriesInstanceUID = "1.2.3.4.5.6.7.2"
    dataset.SOPInstanceUID = f"1.2.3.4.5.6.7.3.{dataset.InstanceNumber}"
    dataset.FrameOfReferenceUID = "1.2.3.4.5.6.7.4"
    dataset.add_new(0x00110010, "LO", "Zebulon")
    dataset.add_new(0x00111001, "LO", "Muster^Zebulon")


def test_planted_names_stay_in_the_private_part(
    tmp_path: Path,
    archive: Path,
    indexed: Indexed,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    folder = archive / "Muster^Zebulon 19340506"
    files = write_series(folder / "PID-77-SECRET", made_volume((5, 4, 6)), made_affine(), skip=[2], adjust=plant)
    files[0].rename(files[0].with_name("Muster, Zebulon"))
    # A UID that is none: pydicom would quote it in its warning and in its log.
    files[3].write_bytes(files[3].read_bytes().replace(b"1.2.3.4.5.6.7.4", b"Muster.Zebulon1"))
    caplog.clear()
    capfd.readouterr()
    (folder / "Zebulon.dcm").write_bytes(files[1].read_bytes()[:900])
    write_nifti(Nifti(made_volume(), made_affine()), folder / "sub-Muster_T1w.nii.gz")
    index = indexed(archive)
    written = write_volumes(index, tmp_path / "nifti")
    shutil.rmtree(folder)
    messages = [json.dumps(index.summary().document()), *map(str, written)]
    for record in index.volumes():
        with pytest.raises(ArchiveError) as caught:
            index.read(record.volume)
        messages += [str(caught.value), repr(caught.value.__cause__), repr(record)]
    captured = capfd.readouterr()
    messages += [caplog.text, *(str(warning.message) for warning in recwarn)]
    public = [path for place in ("index", "nifti") for path in (tmp_path / place).rglob("*") if "private" not in path.parts]
    texts = [captured.out, captured.err, *messages, *map(str, public)]
    contents = b"\n".join([*(text.encode() for text in texts), *(path.read_bytes() for path in public if path.is_file())]).lower()
    for secret in SECRETS:
        assert secret.lower().encode() not in contents, secret
    private = b"\n".join(path.read_bytes() for path in (tmp_path / "index" / "private").rglob("*") if path.is_file())
    assert str(archive).encode() in private


def test_folders_and_files_are_for_their_owner_alone(tmp_path: Path, archive: Path, indexed: Indexed) -> None:
    write_series(archive, made_volume(), made_affine())
    write_volumes(indexed(archive), tmp_path / "nifti")
    for place in ("index", "nifti"):
        for path in [tmp_path / place, *(tmp_path / place).rglob("*")]:
            assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_pseudonyms_need_the_key(tmp_path: Path, archive: Path, indexed: Indexed) -> None:
    write_series(archive, made_volume(), made_affine())
    first, other = indexed(archive), indexed(archive, name="other")
    assert first.volumes()[0].volume != other.volumes()[0].volume
    (tmp_path / "index" / "private" / "key").write_bytes(b"short")
    with pytest.raises(ArchiveError, match="key file is damaged"):
        indexed(archive)


def test_a_plugin_source_is_used(tmp_path: Path, archive: Path) -> None:
    assert issubclass(FolderSource, ArchiveSource)
    source = find_source(archive)
    (archive / "b").write_bytes(b"2")
    (archive / "a").write_bytes(b"1")
    assert {key: source.open(key).read() for key in list(source.keys())} == {"a": b"1", "b": b"2"}
    assert find_source(f"folder:{archive}").location == str(archive)
