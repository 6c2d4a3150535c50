"""Images are prepared as the pretraining saw them, whatever kind they are, and what is not of that kind is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirst, EnsureChannelFirstd, LoadImage, LoadImaged, ScaleIntensityd

import medssl
from medssl.errors import ConfigError, DataError
from medssl.monai import PrepareImage, PrepareImaged
from medssl.run import Run
from medssl.train import find_checkpoint
from medssl.volumes import Store


def pipeline(*transforms: object) -> Compose:
    return Compose([LoadImaged("image"), EnsureChannelFirstd("image"), *transforms])


def test_a_ct_is_prepared_as_ct_without_saying_so(pretrained: Run, ct: Path) -> None:
    file = ct / "images" / "case0.nii.gz"
    for checkpoint in (pretrained.folder, str(pretrained.folder), pretrained):
        image = pipeline(PrepareImaged("image", checkpoint))({"image": file})["image"]
        assert isinstance(image, MetaTensor)
        assert -1 <= float(image.min()) < -0.9
        assert 0.5 < float(image.max()) <= 1
    store = Store(pretrained.config.data.store)  # type: ignore[attr-defined]
    seen = next(
        store.volume(number).lines(store.preparation)[0].value(float(store.read_whole(number).max())) for number in range(len(store))
    )
    assert abs(seen - float(image.max())) < 0.1
    whole = Compose([LoadImage(), EnsureChannelFirst(), PrepareImage(pretrained)])(file)
    assert torch.equal(whole, image)


def test_a_run_and_its_report_fit_a_line_and_a_table(pretrained: Run) -> None:
    _, report = medssl.load_pretrained(None, pretrained, out_channels=2)
    for one in (pretrained, report):
        assert len(repr(one)) < 500
        assert "\n" not in repr(one)
        assert "<table>" in one._repr_html_()
    checkpoint = find_checkpoint(pretrained)
    assert len(repr(checkpoint)) < 500
    assert f"{len(checkpoint.tensors['network'])} tensors of network" in repr(checkpoint)


def test_a_fine_tuning_prepares_as_the_pretraining_and_keeps_it(pretrained: Run, ct: Path, tmp_path: Path) -> None:
    data = {"images": str(ct / "images"), "labels": str(ct / "labels"), "size": [8, 8, 8], "batch": 2, "validation": 0}
    run = medssl.fine_tune(data=data, pretrained=pretrained.folder, out=tmp_path / "run", steps=1)
    assert run.config.data.modality == "CT"  # type: ignore[attr-defined]
    image = pipeline(PrepareImaged("image", run))({"image": ct / "images" / "case1.nii.gz"})["image"]
    expected = pipeline(PrepareImaged("image", pretrained))({"image": ct / "images" / "case1.nii.gz"})["image"]
    assert torch.equal(image, expected)
    with pytest.raises(ConfigError, match=r"data: .*'modality'.*'CTT' is no modality of DICOM's. Did you mean 'CT'|'CTT' is no modality"):
        medssl.fine_tune(data={**data, "modality": "CTT"}, pretrained=pretrained.folder, out=tmp_path / "other", steps=1)


def test_of_several_kinds_the_one_meant_is_named(pretrained_on_both: Run, ct: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"several kinds of images.*CT \(4 volumes\), MR \(3 volumes\)"):
        PrepareImaged("image", pretrained_on_both)
    image = pipeline(PrepareImaged("image", pretrained_on_both, "CT"))({"image": ct / "images" / "case0.nii.gz"})["image"]
    assert float(image.max()) <= 1
    data = {"images": str(ct / "images"), "labels": str(ct / "labels"), "size": [8, 8, 8], "batch": 2, "validation": 0}
    with pytest.raises(ConfigError, match=r"several kinds.*data\.modality"):
        medssl.fine_tune(data=data, pretrained=pretrained_on_both.folder, out=tmp_path / "run", steps=1)


@pytest.mark.parametrize(
    ("name", "says"), [("CTT", "no modality of DICOM's. Did you mean 'CT'"), ("MR", r"saw CT \(4 volumes\) and no MR")]
)
def test_a_name_that_the_pretraining_does_not_know_is_refused(pretrained: Run, name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        PrepareImaged("image", pretrained.folder, name)


def test_an_image_in_another_unit_is_refused(pretrained: Run, ct: Path) -> None:
    item = {"image": ct / "images" / "case0.nii.gz"}
    with pytest.raises(DataError, match=r"'image' .* in another unit than the CT"):
        PrepareImaged("image", pretrained)(pipeline(ScaleIntensityd("image"))(item))
    stored = pipeline()(item)["image"] + 1200
    with pytest.raises(DataError, match="rescale slope and intercept"):
        PrepareImaged("image", pretrained)({"image": stored})
    with pytest.raises(DataError, match="2 channels, and the images that the network learned on have 1: CT"):
        PrepareImage(pretrained)(np.random.default_rng(0).normal(size=(2, 4, 4, 4)))
