"""Several channels of one volume: windows, registered series, frames, the fourth axis, numbered files; in a store and in training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

import medssl
from medssl.archive import Index, build_index, read_nifti
from medssl.cli.app import app
from medssl.errors import ConfigError, DataError
from medssl.testing.dicom import write_series
from medssl.transfer import predict
from medssl.volumes import ChannelOptions, CropLoader, DataOptions, Store, make_store, statistics

Array = NDArray[Any]
Write = Callable[..., Path]
SHAPE = (20, 18, 16)
AFFINE = np.diag([1.0, 1, 2, 1])


def image(seed: int, shape: tuple[int, ...] = SHAPE) -> Array:
    stream = np.random.default_rng(seed)
    array = stream.normal(-900, 5, shape)
    array[5:15, 4:14, 4:12] += 900 + 40 * stream.standard_normal((10, 10, 8))
    return np.rint(array).astype(np.int16)


def test_windows_are_channels_of_one_array(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", image(0), AFFINE, patient="A")
    write_series(tmp_path / "mr", image(1) + 900, AFFINE, patient="B", modality="MR")
    options = ChannelOptions(windows={"ct": ((-1000, 200), (-160, 240))})
    summary = make_store([tmp_path / "ct", tmp_path / "mr"], tmp_path / "s", channels=options)
    assert summary.volumes == 1
    assert list(summary.left_out.values()) == ["no intensity window is given for modality MR"]
    store = Store(tmp_path / "s")
    assert store.channels == ("CT[-1000,200]", "CT[-160,240]")
    assert np.array_equal(store.read_whole(0), image(0)[None])
    with CropLoader(store, DataOptions(store="s", size=(8, 8, 8)), 0) as loader:
        crops = next(loader)[2]
    assert crops.channels == store.channels and crops.axis is None
    for channel, (low, high) in enumerate(((-1000, 200), (-160, 240))):
        corner = (crops.affine[0, :, -1] / crops.spacing[0]).round().int().tolist()
        raw = image(0)[tuple(slice(c, c + 8) for c in corner)].astype(float)
        np.testing.assert_allclose(crops.images[0, channel], 2 * (np.clip(raw, low, high) - low) / (high - low) - 1, atol=1e-5)


def registered(folder: Path) -> Path:
    """Patients A and B with CT and PET on one grid, B's PET twice; C with PET on another grid; D without PET."""
    for number, patient in enumerate("ABCD"):
        write_series(folder / f"{patient}ct", image(number), AFFINE, patient=patient, series="ct")
    pet = {"modality": "PT", "frame_of_reference": "frame 1"}
    write_series(folder / "Apt", image(10) + 900, AFFINE, patient="A", series="pt", **pet)
    for number in range(2):
        write_series(folder / f"Bpt{number}", image(20 + number) + 900, AFFINE, patient="B", series=f"pt {number}", **pet)
    moved = AFFINE.copy()
    moved[0, 3] = 3
    write_series(folder / "Cpt", image(30) + 900, moved, patient="C", series="pt", **pet)
    return folder


def test_registered_series_of_a_study_are_channels(tmp_path: Path) -> None:
    options = {"series": {"CT": "modality = 'CT'", "PET": "modality = 'PT'"}}
    summary = make_store([registered(tmp_path / "dicom")], tmp_path / "s", channels=options)
    assert summary.volumes == 1
    assert sorted(summary.left_out.values()) == [
        "no series in its study is channel PET",
        "several series of its study on one grid are channel PET",
        "the series of its study share no grid",
    ]
    store = Store(tmp_path / "s")
    assert store.channels == ("CT", "PET")
    assert store.column("modalities") == [["CT", "PT"]]
    assert np.array_equal(store.read_whole(0), np.stack([image(0), image(10) + 900]))
    assert store.volume(0).statistics == (statistics(image(0)), statistics(image(10) + 900))


def test_frames_of_a_dynamic_series_come_in_the_order_of_time(tmp_path: Path) -> None:
    for frame in range(5):

        def numbered(dataset: Dataset, z: int, frame: int = frame) -> None:
            dataset.TemporalPositionIdentifier = 10 - 2 * frame
            dataset.SOPInstanceUID = f"{dataset.SOPInstanceUID[:60]}.{frame}"

        write_series(tmp_path / "dicom" / str(frame), image(frame) + 900, AFFINE, modality="MR", series="dynamic", adjust=numbered)
    make_store([tmp_path / "dicom"], tmp_path / "s", channels={"frames": 3})
    store = Store(tmp_path / "s")
    assert store.channels == ("frame 0", "frame 1", "frame 2")
    assert store.manifest.axis == "time"
    assert np.array_equal(store.read_whole(0), np.stack([image(frame) + 900 for frame in (4, 2, 0)]))
    with CropLoader(store, DataOptions(store="s", size=(8, 8, 8)), 0) as loader:
        assert next(loader)[2].axis == "time"
    assert list(make_store([tmp_path / "dicom"], tmp_path / "t", channels={"frames": 6}).left_out.values()) == ["fewer than 6 frames: 5"]


def test_the_fourth_axis_is_channels_or_frames_or_a_reason(tmp_path: Path, write_image: Write) -> None:
    array = np.stack([image(number) + 900 for number in range(4)], axis=3)
    write_image(tmp_path / "images" / "one.nii.gz", array, AFFINE)
    (record,) = build_and_list(tmp_path)
    assert record.shape == (*SHAPE, 4)
    refused = make_store([tmp_path / "images"], tmp_path / "plain")
    assert "channels.fourth_axis" in next(iter(refused.left_out.values()))
    make_store([tmp_path / "images"], tmp_path / "c", channels={"fourth_axis": True}, modality="MR")
    store = Store(tmp_path / "c")
    assert store.channels == ("MR 0", "MR 1", "MR 2", "MR 3") and store.manifest.axis is None
    assert np.array_equal(store.read_whole(0), np.moveaxis(array, 3, 0))
    make_store([tmp_path / "images"], tmp_path / "f", channels={"frames": 2})
    frames = Store(tmp_path / "f")
    assert frames.channels == ("frame 0", "frame 1") and frames.manifest.axis == "time"
    assert np.array_equal(frames.read_whole(0), np.moveaxis(array, 3, 0)[[0, 3]])


def build_and_list(folder: Path) -> list[Any]:
    build_index([folder / "images"], folder / "index", workers=1)
    return Index(folder / "index").volumes()


def nnunet(folder: Path, write_image: Write) -> Path:
    """Three labelled cases of CT and PET as nnU-Net has them."""
    for case in range(3):
        write_image(folder / "imagesTr" / f"case_{case}_0000.nii.gz", image(case), AFFINE)
        write_image(folder / "imagesTr" / f"case_{case}_0001.nii.gz", image(10 + case) + 900, AFFINE)
        labels = np.zeros(SHAPE, np.uint8)
        labels[5:15, 4:14, 4:12] = 1
        write_image(folder / "labelsTr" / f"case_{case}.nii.gz", labels, AFFINE)
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT", "1": "PET"}, "labels": {"background": 0, "a": 1}}))
    return folder


def test_numbered_files_of_nnunet_are_channels_by_themselves(tmp_path: Path, write_image: Write) -> None:
    make_store([nnunet(tmp_path / "data", write_image)], tmp_path / "s")
    store = Store(tmp_path / "s")
    assert len(store) == 3 and len(set(store.patients.tolist())) == 3
    assert [channel.modality for channel in store.volume(0).channels] == ["CT", "PT"] and store.channels == ("CT", "PET")
    found = {store.read_whole(number).tobytes() for number in range(3)}
    assert found == {np.stack([image(case), image(10 + case) + 900]).tobytes() for case in range(3)}
    # Files that count something else are images of their own.
    for number in range(3):
        write_image(tmp_path / "plain" / f"scan_{800 + number:04d}.nii.gz", image(number), AFFINE)
    make_store([tmp_path / "plain"], tmp_path / "p")
    assert len(Store(tmp_path / "p")) == 3 and Store(tmp_path / "p").channels == ("unknown",)


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ({"channel_names": {"0": "T1", "1": "T2 FLAIR"}}, ("T1", "T2 FLAIR")),
        ({"modality": {"0": "T1w", "1": "t2w"}}, ("T1w", "t2w")),
        ({"channel_names": {"0": "T1_Muster", "1": "T1ce contrast Zebulon"}}, ("T1", "T1ce contrast")),
        ({"channel_names": {"0": "T1 pre", "1": "T1 post"}}, ("T1 pre", "T1 post")),
        ({"channel_names": {"0": "T1", "1": "T1"}}, ("MR 0", "MR 1")),
        ({"channel_names": {"0": "Muster", "1": "T2"}}, ("unknown", "MR")),
        ({"channel_names": {"0": "T1", "1": "T2", "2": "FLAIR"}}, ("MR 0", "MR 1")),
        ({"channel_names": ["T1", "T2"]}, ("unknown 0", "unknown 1")),
    ],
)
def test_channels_are_named_as_the_data_set_names_them(
    tmp_path: Path, write_image: Write, listed: dict[str, Any], names: tuple[str, ...]
) -> None:
    """As far as the words are known ones: any other may be somebody's name."""
    data = nnunet(tmp_path / "data", write_image)
    (data / "dataset.json").write_text(json.dumps(listed))
    make_store([data], tmp_path / "s")
    assert Store(tmp_path / "s").channels == names


def test_a_fourth_axis_is_named_as_the_data_set_names_it(tmp_path: Path, write_image: Write) -> None:
    array = np.stack([image(number) + 900 for number in range(2)], axis=3)
    write_image(tmp_path / "four" / "imagesTr" / "one.nii.gz", array, AFFINE)
    (tmp_path / "four" / "dataset.json").write_text(json.dumps({"modality": {"0": "FLAIR", "1": "CT"}}))
    make_store([tmp_path / "four"], tmp_path / "f", channels={"fourth_axis": True})
    found = Store(tmp_path / "f")
    assert found.channels == ("FLAIR", "CT") and found.column("modalities") == [["MR", "CT"]]


def test_channels_on_different_grids_are_left_out(tmp_path: Path, write_image: Write) -> None:
    data = nnunet(tmp_path / "data", write_image)
    moved = AFFINE.copy()
    moved[0, 3] = 5
    write_image(data / "imagesTr" / "case_1_0001.nii.gz", image(11) + 900, moved)
    summary = make_store([data], tmp_path / "s")
    assert list(summary.left_out.values()) == ["the images of its channels lie on different grids"]
    assert len(Store(tmp_path / "s")) == 2


def test_the_command_reads_a_configuration(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", image(0), AFFINE)
    (tmp_path / "store.yaml").write_text("channels: {windows: {CT: [[-1000, 200], [-160, 240]]}}\nspacing: 2.0\nchoice: {min_slices: 1}\n")
    with pytest.raises(SystemExit) as ended:
        app(["store", str(tmp_path / "ct"), "--out", str(tmp_path / "s"), "--config", str(tmp_path / "store.yaml")])
    assert ended.value.code == 0
    store = Store(tmp_path / "s")
    assert store.channels == ("CT[-1000,200]", "CT[-160,240]") and store.manifest.spacing == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"series": {"a": "true", "b": "true"}, "frames": 3},
        {"windows": {"CT": [[3, 2]]}},
        {"series": {"a": "true"}},
        {"frames": 1},
        {"slab": 1},
    ],
)
def test_rules_that_cannot_be(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        make_store([tmp_path], tmp_path / "s", channels=wrong)


@pytest.mark.parametrize("windows", [False, True])
def test_pretraining_fine_tuning_and_prediction_see_the_same_channels(tmp_path: Path, write_image: Write, windows: bool) -> None:
    data = nnunet(tmp_path / "data", write_image)
    rule = {"windows": {"CT": [[-1000, 200], [-160, 240]]}} if windows else {}
    make_store([data], tmp_path / "s", channels=rule)
    names = ("CT[-1000,200]", "CT[-160,240]", "PET") if windows else ("CT", "PET")
    assert Store(tmp_path / "s").channels == names
    network = {"name": "SegResNet", "spatial_dims": 3, "in_channels": len(names), "options": {"init_filters": 8}}
    train = {"steps": 1, "checkpoint_every": 1, "picture_every": 0, "precision": "fp32"}
    tasks = [{"name": "inpainting"}]
    first = medssl.pretrain(
        config={"network": network, "data": {"store": str(tmp_path / "s"), "size": [16, 16, 16]}, "tasks": tasks, "train": train},
        out=tmp_path / "ssl",
    )
    config = {"data": {"dataset": str(data), "size": [16, 16, 16], "validation": 0.3}, "train": {"steps": 1, "validate_every": 1}}
    run = medssl.fine_tune(config=config, pretrained=first.folder, out=tmp_path / "seg")
    cases = Store(run.folder / "labelled")
    assert cases.preparation == Store(tmp_path / "s").preparation
    assert [channel.array for channel in cases.volume(0).channels] == ([0, 0, 1] if windows else [0, 1])
    assert len(predict(run.folder, [data / "imagesTr"], tmp_path / "maps")) == 3


def test_registered_series_of_an_index_are_predicted_by_the_rule(
    tmp_path: Path, write_image: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    data = nnunet(tmp_path / "data", write_image)
    network = {"name": "SegResNet", "spatial_dims": 3, "in_channels": 2, "out_channels": 2, "options": {"init_filters": 8}}
    options = {"dataset": str(data), "size": [16, 16, 16], "validation": 0.3}
    run = medssl.fine_tune(config={"network": network, "data": options, "train": {"steps": 1, "precision": "fp32"}}, out=tmp_path / "seg")
    ct, pet = image(0), image(10) + 900
    write_series(tmp_path / "dicom" / "ct", ct, AFFINE, series="ct")
    write_series(tmp_path / "dicom" / "pt", pet, AFFINE, series="pt", modality="PT")
    build_index([tmp_path / "dicom"], tmp_path / "index", workers=1)
    # The network's own order counts, not that of the rule.
    rule = "channels: {series: {PET: \"modality = 'PT'\", CT: \"modality = 'CT'\"}}\n"
    (tmp_path / "store.yaml").write_text(rule)
    words = ["predict", str(run.folder), str(tmp_path / "index"), "--out", str(tmp_path / "maps")]
    with pytest.raises(SystemExit) as ended:
        app([*words, "--config", str(tmp_path / "store.yaml")])
    assert ended.value.code == 0
    (found,) = (tmp_path / "maps").glob("*.nii.gz")
    assert found.name.removesuffix(".nii.gz") in {record.volume for record in Index(tmp_path / "index").volumes("modality = 'CT'")}
    write_image(tmp_path / "nifti" / "case_0000.nii.gz", ct, AFFINE)
    write_image(tmp_path / "nifti" / "case_0001.nii.gz", pet, AFFINE)
    (expected,) = predict(run.folder, [tmp_path / "nifti"], tmp_path / "expected")
    assert np.array_equal(read_nifti(found).array, read_nifti(expected).array) and read_nifti(found).array.any()
    with pytest.raises(DataError, match=r"1 channel\(s\), the network reads 2 \(CT, PET\). Say by `channels"):
        predict(run.folder, [tmp_path / "index"], tmp_path / "none")
    with pytest.raises(DataError, match="no series in its study is channel MR"):
        predict(
            run.folder, [tmp_path / "index"], tmp_path / "none", channels={"series": {"CT": "modality = 'CT'", "MR": "modality = 'MR'"}}
        )
    swapped = {"series": {"a": "modality = 'PT'", "b": "modality = 'CT'"}}
    with pytest.raises(DataError, match="is PT, the network was fine-tuned on CT, PT images"):
        predict(run.folder, [tmp_path / "index"], tmp_path / "none", channels=swapped)
