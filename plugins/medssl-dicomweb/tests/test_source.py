"""What is asked of a PACS for what, and what becomes of answers that are not as the standard has them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from fake_pacs import Fake, Reply, Request
from medssl_dicomweb import DicomwebSource, source
from medssl_dicomweb.parts import parts_of
from pydicom.uid import RLELossless

from medssl.archive import ArchiveSource, FrameSource, HeaderSource, Index, Reason, StatSource, build_index
from medssl.testing.dicom import made_affine, made_volume, write_series

Start = Callable[..., Fake]


def compressed(folder: Path, voxels: np.ndarray, series: str) -> None:
    for file in write_series(folder, voxels, made_affine(), modality="MR", series=series, signed=False):
        dataset = pydicom.dcmread(file)
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(file)


def volumes(index: Path) -> dict[str, Any]:
    opened = Index(index)
    return {one.volume: (opened.read(one.volume).array, one.document()) for one in opened.volumes()}


def equal(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    same = [found[name][1] == row and np.array_equal(found[name][0], array) for name, (array, row) in wanted.items()]
    return found.keys() == wanted.keys() and len(same) > 0 and all(same)


def from_folder(archive: Path, index: Path) -> dict[str, Any]:
    build_index([archive], index, workers=1)
    return volumes(index)


def test_it_keeps_every_promise_of_a_source() -> None:
    made = DicomwebSource("dicomweb+http://127.0.0.1:1/dicom-web")
    assert (
        isinstance(made, ArchiveSource)
        and isinstance(made, StatSource)
        and isinstance(made, HeaderSource)
        and isinstance(made, FrameSource)
    )
    assert pickle.loads(pickle.dumps(made)).location == made.location


def test_no_pixel_moves_until_voxels_are_read_and_then_once(fake: Start, archive: Path, tmp_path: Path) -> None:
    write_series(archive / "ct", made_volume((6, 5, 4)), made_affine(), series="ct")
    compressed(archive / "mr", np.abs(made_volume((6, 5, 4), 1)), "mr")
    wanted = from_folder(archive, tmp_path / "index")
    server = fake()
    build_index([server.location], tmp_path / "index", workers=2)
    assert server.kinds() == {"series", "instances", "metadata"}
    server.requests.clear()
    assert equal(volumes(tmp_path / "index"), wanted)
    kinds = [request.kind for request in server.requests]
    # Of the compressed series one frame, which shows that it is; its objects come whole, as they are.
    assert sorted(kinds) == ["frames"] * 5 + ["object"] * 4
    assert all("transfer-syntax=*" in request.headers["Accept"] for request in server.requests)


def test_frames_of_one_object_come_together(fake: Start, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    voxels = np.abs(made_volume((6, 5, 10)))
    (file, *others) = write_series(archive, voxels, made_affine(), signed=False)
    as_frames(file, others)
    wanted = from_folder(archive, tmp_path / "index")
    assert [row["shape"] for _, row in wanted.values()] == [[6, 5, 10]]
    monkeypatch.setattr(source, "FRAMES", 4)
    server = fake()
    build_index([server.location], tmp_path / "index", workers=1)
    server.requests.clear()
    assert equal(volumes(tmp_path / "index"), wanted)
    assert [request.path.rpartition("/")[2].count(",") + 1 for request in server.requests] == [4, 4, 2]


def as_frames(file: Path, others: list[Path]) -> None:
    """One enhanced object of all of them, in the place of the first."""
    slices = [pydicom.dcmread(one) for one in (file, *others)]
    first = slices[0]
    first.SOPClassUID = first.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    first.NumberOfFrames = len(slices)
    first.PerFrameFunctionalGroupsSequence = [frame(one) for one in slices]
    first.SharedFunctionalGroupsSequence = [pydicom.Dataset()]
    first.PixelData = b"".join(one.PixelData for one in slices)
    del first.ImagePositionPatient
    for other in others:
        other.unlink()
    first.save_as(file)


def frame(one: pydicom.Dataset) -> pydicom.Dataset:
    groups, place = pydicom.Dataset(), pydicom.Dataset()
    place.ImagePositionPatient = one.ImagePositionPatient
    groups.PlanePositionSequence = [place]
    return groups


@pytest.mark.parametrize("reply", [Reply(406), Reply(400), Reply(200, b"", "text/plain")])
def test_a_server_without_frames_is_asked_for_objects(reply: Reply, fake: Start, archive: Path, tmp_path: Path) -> None:
    write_series(archive, made_volume((6, 5, 4)), made_affine())
    wanted = from_folder(archive, tmp_path / "index")
    server = fake(trouble=lambda request: reply if request.kind == "frames" else None)
    build_index([server.location], tmp_path / "index", workers=1)
    assert equal(volumes(tmp_path / "index"), wanted)
    assert sum(request.kind == "frames" for request in server.requests) == 1


def test_a_server_without_metadata_is_read_by_objects(fake: Start, archive: Path, tmp_path: Path) -> None:
    write_series(archive, made_volume((6, 5, 4)), made_affine())
    wanted = from_folder(archive, tmp_path / "index")
    server = fake(trouble=lambda request: Reply(501) if request.kind == "metadata" else None)
    build_index([server.location], tmp_path / "index", workers=1)
    assert equal(volumes(tmp_path / "index"), wanted)


@pytest.mark.parametrize("settings", [{"page": 3}, {"ignores_offset": True}, {"page": 1}])
def test_pages_are_turned_until_nothing_new_comes(settings: dict[str, Any], fake: Start, archive: Path, tmp_path: Path) -> None:
    for number in range(4):
        write_series(archive / str(number), made_volume((4, 4, 5), number), made_affine(), series=str(number))
    server = fake(**settings)
    assert len(build_index([server.location], tmp_path / "index", workers=1).volumes) == 4
    assert len(set(DicomwebSource(server.location).keys())) == 20


def test_conditions_go_into_the_search(fake: Start, archive: Path, tmp_path: Path) -> None:
    write_series(archive / "ct", made_volume((6, 5, 4)), made_affine(), series="ct")
    write_series(archive / "mr", made_volume((6, 5, 4)), made_affine(), series="mr", modality="MR")
    server = fake()
    assert [one.modality for one in build_index([f"{server.location}?Modality=MR"], tmp_path / "index", workers=1).volumes] == ["MR"]


def changed(server: Fake, change: Callable[[dict[str, Any]], None]) -> None:
    """The metadata of every instance, with a change."""
    plain = server.metadata

    def metadata(dataset: pydicom.Dataset) -> dict[str, Any]:
        found = plain(dataset)
        change(found)
        return found

    server.metadata = metadata  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "change",
    [
        lambda given: given.update({"00200032": {"vr": "DS", "Value": []}}),
        lambda given: given.update({"00080008": {"vr": "CS", "Value": ["ORIGINAL¥PRIMARY"]}}),
        lambda given: given.update({"00280010": {"vr": "US", "Value": ["many"]}}),
        lambda given: given.update({"00280010": {"Value": [1]}}),
        lambda given: given.update({"00280010": {"vr": "US", "BulkDataURI": "http://127.0.0.1:9/elsewhere"}}),
        lambda given: given.pop("00080018"),
    ],
    ids=["nothing in it", "yen", "no number", "no representation", "of another server", "nameless"],
)
def test_a_header_that_the_server_mangled_is_read_from_the_object(
    change: Callable[[dict[str, Any]], None], fake: Start, archive: Path, tmp_path: Path
) -> None:
    write_series(archive, made_volume((6, 5, 4)), made_affine())
    wanted = from_folder(archive, tmp_path / "index")
    server = fake()
    changed(server, change)
    build_index([server.location], tmp_path / "index", workers=1)
    assert "object" in server.kinds() and equal(volumes(tmp_path / "index"), wanted)


def test_values_that_stand_elsewhere_are_fetched_where_they_are_read(fake: Start, archive: Path, tmp_path: Path) -> None:
    def adjust(dataset: pydicom.Dataset, z: int) -> None:
        block = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
        block.add_new(0x10, "OB", b"only of mosaics" * 1000)
        block.add_new(0x20, "OB", b"of nobody" * 1000)

    write_series(archive, made_volume((6, 5, 4)), made_affine(), adjust=adjust)
    server = fake()

    def far(given: dict[str, Any]) -> None:
        uid = given["00080018"]["Value"][0]
        path = f"studies/{given['0020000D']['Value'][0]}/series/{given['0020000E']['Value'][0]}/instances/{uid}/bulk/00200032"
        given["00200032"] = {"vr": "DS", "BulkDataURI": f"{server.url}/{path}"}

    wanted = from_folder(archive, tmp_path / "index")
    changed(server, far)
    server.trouble = lambda request: bulk_position(server, request)
    build_index([server.location], tmp_path / "index", workers=1)
    assert {request.path[-8:] for request in server.requests if request.kind == "bulk"} == {"00200032"}
    assert equal(volumes(tmp_path / "index"), wanted)


def bulk_position(server: Fake, request: Request) -> Reply | None:
    from fake_pacs import multipart

    if request.kind != "bulk":
        return None
    position = server.objects[request.path.split("/")[-3]][0].ImagePositionPatient
    return multipart(["\\".join(map(str, position)).encode()], "application/octet-stream")


@pytest.mark.parametrize("wrong", ["../../../../secret?x=", "secret?x=", "secret#", ""])
def test_a_name_that_is_no_uid_is_unreadable_and_never_becomes_part_of_an_address(
    wrong: str, fake: Start, archive: Path, tmp_path: Path
) -> None:
    write_series(archive, made_volume((6, 5, 4)), made_affine())
    server = fake()

    def named(request: Request) -> Reply | None:
        answer = server._answer(request)
        if request.kind == "instances" and answer.body:
            uid = next(iter(server.objects))
            return Reply(body=answer.body.replace(uid.encode(), wrong.encode()))
        return None

    server.trouble = named
    summary = build_index([server.location], tmp_path / "index", workers=1)
    assert summary.rejected.get(Reason.UNREADABLE, 0) == bool(wrong) and summary.files == 3 + bool(wrong)
    assert not any("secret" in request.path for request in server.requests)


def test_who_lists_an_archive_with_its_versions_asks_for_each_series_once(fake: Start, archive: Path) -> None:
    for number in range(40):
        write_series(archive / str(number), made_volume((4, 4, 2), number), made_affine(), series=str(number))
    server = fake()
    opened = DicomwebSource(server.location)
    found = {key: opened.stat(key) for key in opened.keys()}  # noqa: SIM118 - a source is no dictionary
    assert len(found) == 80 and all(one.version for one in found.values())
    # A second page for each, since this server does not say how many there are.
    assert sum(request.kind == "instances" for request in server.requests) == 80


def test_a_version_tells_what_the_search_says_anew(fake: Start, archive: Path) -> None:
    write_series(archive, made_volume((6, 5, 4)), made_affine())
    server = fake()
    keys = list(DicomwebSource(server.location).keys())
    opened = DicomwebSource(server.location)
    first = {key: opened.stat(key) for key in keys}
    assert len(set(first.values())) == 4 and first == {key: DicomwebSource(server.location).stat(key) for key in keys}
    dataset, content = server.objects[keys[2].split("/")[2]]
    dataset.InstanceNumber = 99
    again = DicomwebSource(server.location)
    assert [key for key in keys if again.stat(key) != first[key]] == [keys[2]]
    del server.objects[keys[1].split("/")[2]]
    with pytest.raises(OSError, match="no such instance"):
        DicomwebSource(server.location).stat(keys[1])
    assert content


class Answer:
    def __init__(self, kind: str, content: bytes) -> None:
        self.headers, self.content = {"Content-Type": kind}, content


@pytest.mark.parametrize("edge", ["edge", '"edge"'])
def test_parts_are_taken_apart_with_what_each_says(edge: str) -> None:
    body = b"preamble\r\n--edge\r\nContent-Type: image/jls; transfer-syntax=1.2.3\r\n\r\nfirst\r\n--\r\n"
    body += b"\r\n--edge\r\n\r\nsecond\r\n--edge--\r\n"
    first, second = parts_of(Answer(f"multipart/related; boundary={edge}", body))  # type: ignore[arg-type]
    assert (first.content, first.syntax, first.is_image) == (b"first\r\n--\r\n", "1.2.3", True)
    assert (second.content, second.syntax, second.is_image) == (b"second", "", False)
    (whole,) = parts_of(Answer("application/dicom", b"object"))  # type: ignore[arg-type]
    assert whole.content == b"object"


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("text/html", b"Welcome"),
        ("multipart/related", b"--edge\r\n\r\nx\r\n--edge--"),
        ("multipart/related; boundary=edge", b"no part"),
        ("multipart/related; boundary=edge", b"--edge\r\n\r\ncut off"),
        ("multipart/related; boundary=edge", b"--edge\r\nno body\r\n--edge--"),
    ],
)
def test_what_cannot_be_taken_apart_is_an_error(kind: str, content: bytes) -> None:
    with pytest.raises(ValueError, match="part"):
        parts_of(Answer(kind, content))  # type: ignore[arg-type]
