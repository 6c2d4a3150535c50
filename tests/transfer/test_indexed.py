"""From an index with its label objects to a trained network and label maps on the volumes' own grids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archive.labels.made import slices_of, write_seg

from medssl.archive import Index, build_index, read_nifti
from medssl.cli import main
from medssl.errors import DataError, UsageError
from medssl.run import Run
from medssl.testing.dicom import made_affine, write_series
from medssl.train.checkpoint import find_checkpoint
from medssl.transfer import predict
from medssl.transfer.finetune import fine_tune

Config = Callable[..., dict[str, Any]]
SHAPE = (18, 14, 12)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients' CT, each with a SEG of its bright and its dark box."""
    folder = tmp_path_factory.mktemp("indexed")
    for number in range(3):
        stream = np.random.default_rng(number)
        masks = {name: np.zeros(SHAPE, bool) for name in ("Liver", "GTV")}
        for place, mask in enumerate(masks.values()):
            mask[2 + 8 * place : 8 + 8 * place, 3:10, 3:9] = True
        image = np.rint(100 + 80 * masks["Liver"] - 80 * masks["GTV"] + stream.normal(0, 8, SHAPE)).astype(np.int16)
        images = slices_of(write_series(folder / "archive" / f"{number}", image, made_affine(), patient=f"P{number}"))
        write_seg(folder / "archive" / f"seg{number}", images, masks)
    build_index([folder / "archive"], folder / "index", workers=1)
    return folder / "index"


@pytest.fixture(scope="module")
def tuned(index: Path, finetune_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = finetune_config(4)
    config["data"] = {"index": str(index), "labels": {"liver": "Liver", "tumour": "GTV"}, "size": [8, 8, 8], "batch": 2, "validation": 0.3}
    return fine_tune(config=config, out=tmp_path_factory.mktemp("run") / "seg")


def test_it_trains_validates_and_predicts(tuned: Run, index: Path, tmp_path: Path) -> None:
    state = find_checkpoint(tuned.folder, series="best").state
    assert state["label_names"] == {"1": "liver", "2": "tumour"}
    assert state["modalities"] == ["CT"] and tuned.best.dice >= 0
    written = predict(tuned.folder, [index], tmp_path / "maps")
    records = {record.volume: record for record in Index(index).volumes()}
    assert {path.name for path in written} == {f"{volume}.nii.gz" for volume in records}
    for path in written:
        found = read_nifti(path)
        np.testing.assert_allclose(found.affine, records[path.name.removesuffix(".nii.gz")].affine, atol=1e-5)
        assert set(np.unique(found.array)) <= {0, 1, 2}


def test_a_seg_refers_to_the_original_images_and_is_the_same_map(tuned: Run, index: Path, tmp_path: Path) -> None:
    """As highdicom, pydicom and our own reader read it; from an index and from the folder of DICOM itself."""
    import highdicom as hd
    import pydicom

    from medssl.archive.labels.finding import read_dicom_file
    from medssl.archive.labels.placing import Grid

    maps = {path.name.removesuffix(".nii.gz"): read_nifti(path).array for path in predict(tuned.folder, [index], tmp_path / "maps")}
    written = predict(tuned.folder, [index], tmp_path / "seg", format="dicom-seg")
    assert sorted(path.name for path in written) == sorted(f"{volume}.dcm" for volume in maps)
    opened = Index(index)
    for path in written:
        expected = maps[path.stem]
        seg = hd.seg.segread(path)
        assert [seg.get_segment_description(number).SegmentLabel for number in seg.segment_numbers] == ["liver", "tumour"]
        slices = opened.slices(path.stem)
        assert seg.PatientID == slices[0].patient and seg.StudyInstanceUID == slices[0].study
        assert {uids[2] for uids in seg.get_source_image_uids()} <= {one.uid for one in slices}
        found = read_dicom_file(path)
        record = next(record for record in opened.volumes() if record.volume == path.stem)
        for segment in found.segments:
            mask = found.mask(segment, Grid(record.shape, record.affine), False)
            np.testing.assert_array_equal(mask.inside, expected == segment.number)
            # highdicom on the slices of the original series, by their UIDs.
            theirs = seg.get_pixels_by_source_instance(
                [one.uid for one in slices], segment_numbers=[segment.number], ignore_spatial_locations=True
            )
            np.testing.assert_array_equal(theirs[..., 0].transpose(2, 1, 0), expected == segment.number)
        assert pydicom.dcmread(path).SOPInstanceUID == seg.SOPInstanceUID
    words = ["predict", str(tuned.folder), str(index.parent / "archive"), "--out", str(tmp_path / "again"), "--format", "dicom-seg"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    again = list((tmp_path / "again").iterdir())
    assert ended.value.code == 0 and {path.suffix for path in again} == {".dcm"}
    assert {pydicom.dcmread(path).SOPInstanceUID for path in again} == {pydicom.dcmread(path).SOPInstanceUID for path in written}


def test_a_seg_needs_dicom(tuned: Run, cases: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no DICOM, and a SEG refers to DICOM images"):
        predict(tuned.folder, [cases / "images" / "case0.nii.gz"], tmp_path / "seg", format="dicom-seg")
    with pytest.raises(UsageError, match="nifti or dicom-seg, not as 'png'"):
        predict(tuned.folder, [cases / "images"], tmp_path / "seg", format="png")


def test_its_configuration_runs_again_as_it_stands(tuned: Run, tmp_path: Path) -> None:
    again = fine_tune(config=tuned.folder / "config.yaml", out=tmp_path / "again", overrides=["train.steps=1"])
    assert again.state.step == 1
