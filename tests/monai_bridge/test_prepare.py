"""Intensities in a MONAI pipeline are those that the pretraining saw."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from archive.made_images import DX, image, save, smooth_colour
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.networks.nets import SegResNet
from monai.transforms import Compose, EnsureChannelFirstd, LoadImage, LoadImaged, Orientation, Orientationd
from PIL import Image

import medssl
from medssl.errors import ConfigError, DataError, MissingInput, UsageError
from medssl.monai import MedsslReader, PrepareImage, PrepareImageD, PrepareImaged, PrepareImageDict, Store
from medssl.run import Run
from medssl.train.checkpoint import find_checkpoint, save_checkpoint
from medssl.volumes import Channel, IntensityRule, Preparation, kinds_document, kinds_of, load_case, make_store, statistics

SMALL = partial(SegResNet, spatial_dims=3, in_channels=1, init_filters=8, blocks_down=(1, 1), blocks_up=(1,))
PREPARATION = Preparation(modalities={"CT": IntensityRule(kind="window", low=-100, high=300)})


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    state = {"kind": "pretrain", "preparation": PREPARATION.model_dump(mode="json"), "spacing": [1.0, 1.0, 2.0]}
    return save_checkpoint(tmp_path / "run", 1, {"network": {"weight": torch.ones(1)}}, state)


@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_same_values_as_fine_tuning_and_prediction(checkpoint: Path, tmp_path: Path, modality: str) -> None:
    image = np.random.default_rng(0).normal(100, 90, (9, 8, 7)).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.diag([1.0, 1.0, 2.0, 1.0])), tmp_path / "a.nii.gz")
    pipeline = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), PrepareImaged("image", checkpoint, modality)])
    result = pipeline({"image": tmp_path / "a.nii.gz"})["image"]
    assert isinstance(result, MetaTensor)
    assert result.dtype == torch.float32
    expected = load_case(tmp_path / "a.nii.gz", PREPARATION, None, [Channel(modality, modality)]).array
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)
    torch.testing.assert_close(result.affine, torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0], dtype=torch.float64)))


def test_follows_monai_conventions(checkpoint: Path) -> None:
    assert PrepareImageD is PrepareImaged
    assert PrepareImageDict is PrepareImaged
    transform = PrepareImaged(["a", "b"], checkpoint, "MR", allow_missing_keys=True)
    array = np.arange(64.0).reshape(1, 4, 4, 4)
    result = transform({"a": array, "other": 1})
    assert isinstance(result["a"], np.ndarray)
    assert abs(result["a"].mean()) < 0.5
    assert array[0, 0, 0, 1] == 1.0


def test_each_channel_has_its_own_rule(tmp_path: Path) -> None:
    preparation = Preparation(channels={"lung": IntensityRule(kind="window", low=-1000, high=0)})
    state = {"kind": "pretrain", "preparation": preparation.model_dump(mode="json"), "channel_names": ["lung", "T1", "CT"]}
    path = save_checkpoint(tmp_path / "run", 1, {"network": {"weight": torch.ones(1)}}, state)
    image = np.random.default_rng(0).normal(0, 300, (3, 6, 6, 6)).astype(np.float32)
    result = PrepareImaged("image", path, ["CT", "MR", "CT"])({"image": image})["image"]
    expected = [
        preparation.apply(channel, statistics(channel), modality, name)
        for channel, modality, name in zip(image, ("CT", "MR", "CT"), ("lung", "T1", "CT"), strict=True)
    ]
    assert np.array_equal(result, np.stack(expected))
    assert not np.array_equal(expected[0], preparation.apply(image[0], statistics(image[0]), "CT"))
    with pytest.raises(ConfigError, match="modality names 2 channels, and .* has 3"):
        PrepareImaged("image", path, ["CT", "MR"])
    with pytest.raises(DataError, match="'image' has 2 channels, and the images that the network learned on have 3: lung"):
        PrepareImaged("image", path, ["CT", "MR", "CT"])({"image": image[:2]})


def test_what_cannot_be_prepared_is_one_message(checkpoint: Path, tmp_path: Path) -> None:
    transform = PrepareImaged("image", checkpoint, "MR")
    with pytest.raises(DataError, match=r"Spacingd\('image'"):
        transform({"image": MetaTensor(torch.rand(1, 4, 4, 4), affine=torch.eye(4))})
    with pytest.raises(DataError, match="one value alone"):
        transform({"image": np.zeros((1, 4, 4, 4))})
    with pytest.raises(MissingInput):
        PrepareImaged("image", tmp_path / "nowhere")
    bare = save_checkpoint(tmp_path / "bare", 1, {"network": {"weight": torch.ones(1)}}, {"kind": "pretrain"})
    with pytest.raises(ConfigError, match="how its images were prepared"):
        PrepareImaged("image", bare)


@pytest.mark.parametrize("codes", ["LPS", "RSA", "LAS"])
def test_an_image_in_another_orientation_is_refused_with_the_remedy(checkpoint: Path, codes: str) -> None:
    ras = MetaTensor(torch.rand(1, 4, 5, 6), affine=torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0])))
    turned = Orientationd("image", axcodes=codes)({"image": ras})
    with pytest.raises(DataError, match=rf"axes along {codes}.*Orientationd\('image', axcodes='RAS'\)"):
        PrepareImaged("image", checkpoint, "MR")(turned)
    mended = Compose([Orientationd("image", axcodes="RAS"), PrepareImaged("image", checkpoint, "MR")])(turned)["image"]
    torch.testing.assert_close(mended, PrepareImaged("image", checkpoint, "MR")({"image": ras})["image"])


def test_paths_in_a_mapping_and_what_says_nothing_of_images(ct: Path, pretrained: Run, tmp_path: Path) -> None:
    data = {"images": ct / "images", "labels": ct / "labels", "size": (8, 8, 8), "batch": 1}
    checkpoint = find_checkpoint(pretrained)
    run = medssl.fine_tune(partial(SMALL, out_channels=2), data, checkpoint, tmp_path / "run", steps=1, verbose=False)
    assert run.report.coverage == 1
    with pytest.raises(UsageError, match=r"not from SegResNet. Give its state_dict\(\)"):
        medssl.fine_tune(SMALL, data, pretrained.network, tmp_path / "other")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a state dict is no run.*how its images were prepared.*Give the run"):
        PrepareImaged("image", pretrained.network.state_dict())  # type: ignore[arg-type]


def test_two_dimensional_images_are_greyed_and_turned_round_as_in_the_store(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (24, 32)).astype(np.uint16)
    save(image(values, DX, "DX", PhotometricInterpretation="MONOCHROME1"), tmp_path / "dx" / "a.dcm")
    folder = tmp_path / "colour"
    folder.mkdir()
    Image.fromarray(smooth_colour()).save(folder / "b.png")
    stores = {}
    for name in ("dx", "colour"):
        make_store([tmp_path / name], tmp_path / f"{name}-store", grey=True, invert_monochrome1=True, workers=1)
        stores[name] = Store(tmp_path / f"{name}-store")

    def prepared(name: str, **given: Any) -> PrepareImage:
        state = {"preparation": stores[name].preparation.model_dump(mode="json"), "kinds": kinds_document(kinds_of(stores[name]))}
        return PrepareImage(save_checkpoint(tmp_path / f"{name}-run", 1, {}, state), **given)

    load = Compose([LoadImage(reader="medssl.monai.MedsslReader", ensure_channel_first=True), Orientation("RAS")])
    loaded = load(tmp_path / "dx")
    assert loaded.meta["photometric_interpretation"] == "MONOCHROME1"
    expected = stores["dx"][0]["image"].as_tensor()
    torch.testing.assert_close(prepared("dx")(loaded).as_tensor()[..., 0], expected)
    plain = loaded.as_tensor()[..., 0]
    with pytest.raises(DataError, match=r"does not say whether it is one.*reader='medssl.monai.MedsslReader'"):
        prepared("dx")(plain)
    torch.testing.assert_close(prepared("dx", photometric="MONOCHROME1")(plain), expected)
    assert not torch.allclose(prepared("dx", photometric="MONOCHROME2")(plain), expected)
    with pytest.raises(ConfigError, match="photometric is 'RGB'. Known"):
        prepared("dx", photometric="RGB")

    picture = LoadImage(reader="PILReader", ensure_channel_first=True)(folder / "b.png")
    assert picture.shape == (3, 64, 48)
    seen = prepared("colour")(picture).as_tensor().flip(1, 2)  # a store's axes are those nearest to RAS+
    torch.testing.assert_close(seen, stores["colour"][0]["image"].as_tensor())


def test_a_reader_is_named_as_monai_names_readers(ct: Path) -> None:
    file = next((ct / "images").glob("*.nii.gz"))
    images = [LoadImage(reader=reader)(file) for reader in ("medssl.monai.MedsslReader", MedsslReader, MedsslReader())]
    bundled = ConfigParser({"load": {"_target_": "LoadImaged", "keys": "image", "reader": "medssl.monai.MedsslReader"}})
    images.append(bundled.get_parsed_content("load")({"image": file})["image"])
    assert all(torch.equal(one, images[0]) for one in images)
