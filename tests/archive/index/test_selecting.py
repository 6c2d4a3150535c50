"""Studies of a list alone, and patients who have withdrawn: what is not wanted is in no table and in no store."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pydicom.dataset import Dataset

from medssl.archive import Index, Reason, build_index, write_volumes
from medssl.archive.index.selecting import read_list
from medssl.cli import main
from medssl.errors import StoreError, UsageError
from medssl.files import lock_folder
from medssl.testing.dicom import made_affine, made_volume, write_series
from medssl.train.forgetting import forget
from medssl.train.setup import store_fingerprint
from medssl.volumes import Store, make_store


def command(*words: object, ends: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == ends


@pytest.fixture
def hospital(archive: Path) -> Path:
    for number in range(3):

        def named(dataset: Dataset, _: int, number: int = number) -> None:
            dataset.AccessionNumber = f"ACC{number}"
            dataset.IssuerOfPatientID = "HOSPITAL" if number == 1 else ""

        voxels, name = made_volume((16, 14, 12), number), str(number)
        write_series(archive / name, voxels, made_affine(), patient=f"PID{name}", study=name, series=name, adjust=named)
    (archive / "notes.txt").write_text("no image " * 50)
    return archive


def private_rows(index: Path) -> list[dict[str, object]]:
    return [row for file in (index / "private").rglob("*.parquet") for row in pq.read_table(file).to_pylist()]


LISTS = [
    "ACC1\n",
    "PID1\n",
    "AccessionNumber\nACC1\n",
    "PatientID;name\nPID1;Muster\n",
    "name,Accession Number\nx,ACC1\n",
    "\ufeffACC1\r\n\r\n",
    "StudyInstanceUID\nSTUDY\n",
]


@pytest.mark.parametrize("content", LISTS, ids=repr)
def test_a_list_takes_its_studies_and_counts_the_others(content: str, hospital: Path, tmp_path: Path) -> None:
    full = build_index([hospital], tmp_path / "all", workers=1)
    uids = {str(row["study"]) for row in private_rows(tmp_path / "all") if row.get("accession") == "ACC1"}
    (tmp_path / "list.csv").write_text(content.replace("STUDY\n", f"{uids.pop()}\n"))
    summary = build_index([hospital], tmp_path / "index", workers=1, studies=tmp_path / "list.csv")
    assert len(full.volumes) == 3 and len(summary.volumes) == 1 and summary.files == 37
    assert summary.rejected == {Reason.NOT_LISTED: 24, Reason.NOT_MEDICAL: 1}
    said = str(private_rows(tmp_path / "index"))
    assert "PID1" in said and "PID2" not in said
    assert Index(tmp_path / "index").left_out() == []
    assert len(build_index([hospital], tmp_path / "index", workers=1).volumes) == 3


def test_a_column_that_is_named_counts_alone(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("PatientID,AccessionNumber\n1,2\n")
    found = read_list(tmp_path / "list")
    assert (found.columns, found.values) == (("accession",), {"2"})
    for content, said in (("", "names no study"), ("a,b\nc,d\n", "several columns"), ("PatientID\n", "names no study")):
        (tmp_path / "list").write_text(content)
        with pytest.raises(UsageError, match=said):
            read_list(tmp_path / "list")
    with pytest.raises(UsageError, match="there is no list"):
        read_list(tmp_path / "nowhere")


def test_revealing_leads_to_the_files_and_is_written_down(hospital: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_index([hospital], tmp_path / "index", workers=1)
    volume = Index(tmp_path / "index").volumes()[0].volume
    log = tmp_path / "index" / "private" / "revealed.log"
    capsys.readouterr()
    for number in range(2):
        command("volumes", tmp_path / "index", "--reveal", volume, "--json")
        found = json.loads(capsys.readouterr().out)
        assert len(found["files"]) == 12 and all(Path(file).is_file() for file in found["files"])
        assert found["accession"] == found["patient"][:4].replace("PID", "ACC")
        entries = [json.loads(line) for line in log.read_text().splitlines()]
        assert len(entries) == number + 1 and entries[-1]["volume"] == volume and str(os.getuid()) in entries[-1]["user"]
        assert log.stat().st_mode & 0o777 == 0o600
    command("volumes", tmp_path / "index", "--reveal", "v" * 21, ends=2)
    assert len(log.read_text().splitlines()) == 2
    # Where it cannot be written down nothing is shown.
    log.unlink()
    log.mkdir()
    capsys.readouterr()
    command("volumes", tmp_path / "index", "--reveal", volume, ends=2)
    assert "PID" not in capsys.readouterr().out


@pytest.mark.parametrize("number", [0, 1])
def test_who_has_withdrawn_is_in_no_index_and_no_store_and_does_not_come_back(
    number: int, hospital: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index, store = tmp_path / "index", tmp_path / "store"
    build_index([hospital], index, workers=1)
    make_store([index], store)
    write_volumes(Index(index), tmp_path / "nifti")
    (index / "private" / "scan" / "left.parquet").write_bytes(b"PID0 PID1")
    (tmp_path / "list").write_text(f"PID{number}\nPID-UNKNOWN\n")
    words = ("forget", index, "--patients", tmp_path / "list", "--store", store, "--folder", tmp_path / "nifti", "--json")
    capsys.readouterr()
    command(*words)
    done = json.loads(capsys.readouterr().out)
    assert (done["patients"], done["unknown"], done["files"], len(done["volumes"]), done["removed"]) == (1, 1, 12, 1, 2)
    assert done["stores"] == {str(store): 1}
    for _ in range(2):
        assert f"PID{number}" not in str(private_rows(index)) and not list((index / "private" / "scan").iterdir())
        assert len(Index(index).volumes()) == 2 and len(Store(store)) == 2
        assert not [path for path in tmp_path.rglob("*") if done["volumes"][0] in path.name]
        build_index([hospital], index, workers=1)
    for record in Index(index).volumes():
        assert Index(index).read(record.volume).array.shape == (16, 14, 12)
    for place in range(2):
        Store(store).read_whole(place)
    command(*words)
    assert json.loads(capsys.readouterr().out)["files"] == 0


def test_runs_that_saw_a_withdrawn_patient_are_named(hospital: Path, tmp_path: Path) -> None:
    build_index([hospital], tmp_path / "index", workers=1)
    make_store([tmp_path / "index"], tmp_path / "store")
    for name, state in (("saw", {"data": store_fingerprint(Store(tmp_path / "store"))}), ("other", {"data": "x"})):
        checkpoint = tmp_path / name / "checkpoints" / "step-000000001"
        checkpoint.mkdir(parents=True)
        (checkpoint / "state.json").write_text(json.dumps(state))
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "config.yaml").write_text(f"data:\n  store: {tmp_path / 'store'}\n")
    runs = [tmp_path / name for name in ("saw", "other", "names")]
    done = forget(["PID2"], tmp_path / "index", stores=[tmp_path / "store"], runs=runs)
    assert set(done.runs) == {str(tmp_path / "saw"), str(tmp_path / "names")}
    assert "trained on" in done.runs[str(tmp_path / "saw")] and "may have" in done.runs[str(tmp_path / "names")]


def test_what_is_interrupted_goes_on_when_it_is_called_again(hospital: Path, tmp_path: Path) -> None:
    build_index([hospital], tmp_path / "index", workers=1)
    make_store([tmp_path / "index"], tmp_path / "store")
    held = lock_folder(tmp_path / "store", alone=False)
    with pytest.raises(StoreError, match="another process"):
        forget(["PID2"], tmp_path / "index", stores=[tmp_path / "store"])
    held.release()
    assert forget(["PID2"], tmp_path / "index", stores=[tmp_path / "store"]).stores == {str(tmp_path / "store"): 1}
