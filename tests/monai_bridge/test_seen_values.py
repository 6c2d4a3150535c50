"""A run knows what it was shown, so that images of another kind do not pass for those, in a pipeline, a fine-tuning or a prediction."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensity,
    NormalizeIntensityd,
    ScaleIntensityd,
    ScaleIntensityRange,
    ScaleIntensityRanged,
)

import medssl
from medssl.errors import ConfigError, DataError, UsageError
from medssl.monai import PrepareImage, PrepareImaged, store_items
from medssl.run import Run
from medssl.transfer.crops import check_unlabelled
from medssl.volumes import IntensityRule, Preparation, Store

from .conftest import SMALL, make_ct, make_mr

LOAD = (LoadImaged("image"), EnsureChannelFirstd("image"))
WINDOW = ScaleIntensityRanged("image", -1000, 1000, -1, 1, clip=True)
TASK: dict[str, Any] = {"name": "inpainting", "block": 4}
KEYS: dict[str, Any] = {"size": [8, 8, 8], "batch": 2, "steps": 1, "verbose": False}


def listed(folder: Path, **more: Any) -> list[dict[str, Any]]:
    return [{"image": str(path), **more} for path in sorted(folder.glob("*.nii.gz"))]


def loaded(file: Path) -> Any:
    return Compose(LOAD)({"image": file})


@pytest.fixture(scope="module")
def on_transformed(ct: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Pretrainings on datasets whose transforms had made the values."""
    pytest.importorskip("medssl_inpainting")
    folder = tmp_path_factory.mktemp("transformed")
    made = {"z-scored": NormalizeIntensityd("image"), "windowed": WINDOW}
    return {
        name: medssl.pretrain(SMALL, Dataset(listed(ct / "images"), Compose([*LOAD, last])), [TASK], out=folder / name, **KEYS)
        for name, last in made.items()
    }


@pytest.fixture(scope="module")
def on_mr(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A pretraining on a datalist of MR, prepared by medssl."""
    pytest.importorskip("medssl_inpainting")
    folder = tmp_path_factory.mktemp("mr")
    return medssl.pretrain(SMALL, listed(make_mr(folder / "mr")), [TASK], out=folder / "run", modality="MR", **KEYS)


def labelled(ct: Path, **more: Any) -> dict[str, Any]:
    return {"images": str(ct / "images"), "labels": str(ct / "labels"), "size": [8, 8, 8], "batch": 2, "validation": 0.25, **more}


@pytest.mark.parametrize("name", ["z-scored", "windowed"])
def test_raw_values_do_not_pass_for_what_transforms_had_made(on_transformed: dict[str, Run], ct: Path, tmp_path: Path, name: str) -> None:
    run, file = on_transformed[name], ct / "images" / "case0.nii.gz"
    with pytest.raises(DataError, match=r"'image' lie between .* in another unit than the images .* preparation"):
        PrepareImaged("image", run)(loaded(file))
    with pytest.raises(DataError, match=r"4 of 4 .* such as: the values of case 'case\d' .* in another unit"):
        medssl.fine_tune(data=labelled(ct), pretrained=run.folder, out=tmp_path / "tuned", steps=1, verbose=False)
    with pytest.raises(DataError, match="4 of 4 .* in another unit"), pytest.warns(UserWarning, match="taken as they are"):
        medssl.pretrain(SMALL, Dataset(listed(ct / "images"), Compose(LOAD)), [TASK], out=tmp_path / "round", from_=run, **KEYS)


def test_what_makes_files_like_them_may_be_told(on_transformed: dict[str, Run], ct: Path, tmp_path: Path) -> None:
    run, file = on_transformed["windowed"], ct / "images" / "case0.nii.gz"
    wanted = Compose([*LOAD, WINDOW])({"image": file})["image"]
    told = Preparation(other=IntensityRule(kind="window", low=-1000, high=1000))
    for way in (told, told.model_dump(), ScaleIntensityRange(-1000, 1000, -1, 1, clip=True)):
        image = Compose([*LOAD, PrepareImaged("image", run, preparation=way)])({"image": file})["image"]
        torch.testing.assert_close(image.as_tensor(), wanted.as_tensor(), atol=1e-5, rtol=0)
    for wrong in (Preparation(other=IntensityRule(kind="window", low=0, high=1e6)), lambda image: image * 5):
        with pytest.raises(DataError, match="in another unit"):
            PrepareImaged("image", run, preparation=wrong)(loaded(file))
    with pytest.raises(ConfigError, match="preparation is a int"):
        PrepareImage(run, preparation=3)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*unit.*")
        tuned = medssl.fine_tune(data=labelled(ct), pretrained=run, out=tmp_path / "run", preparation=told, steps=1, verbose=False)
    store = Store(tmp_path / "run" / "labelled")
    assert min(float(item["image"].min()) for item in store) == -1
    assert medssl.predict(tuned, [file], tmp_path / "maps")
    for number, other in enumerate(("0..1", "z-scored")):
        changed = Compose([*LOAD, ScaleIntensityd("image") if other == "0..1" else NormalizeIntensityd("image")])({"image": file})["image"]
        nib.save(nib.Nifti1Image(changed.numpy()[0], np.eye(4)), tmp_path / f"{number}.nii.gz")
        with pytest.raises(DataError, match="in another unit"):
            medssl.predict(tuned, [tmp_path / f"{number}.nii.gz"], tmp_path / "maps")
    wrong_told = Preparation(other=IntensityRule(kind="window", low=0, high=1e6))
    with pytest.raises(DataError, match="in another unit.*Say another preparation"):
        medssl.fine_tune(data=labelled(ct), pretrained=run, out=tmp_path / "no", preparation=wrong_told, steps=1, verbose=False)


def test_unlabelled_volumes_are_in_the_unit_of_the_labelled_ones(on_transformed: dict[str, Run], ct: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="taken as they are"):
        store_items(listed(ct / "images"), tmp_path / "raw", transform=Compose(LOAD))
    normal, raw = Store(on_transformed["z-scored"].folder / "volumes"), Store(tmp_path / "raw")
    check_unlabelled(raw, raw)
    with pytest.raises(DataError, match="4 of 4 .* in another unit"):
        check_unlabelled(raw, normal)


def test_a_run_that_knows_its_preparation_takes_no_other(pretrained: Run, ct: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="says itself how its images were prepared"):
        PrepareImage(pretrained, preparation=NormalizeIntensity())
    with pytest.raises(ConfigError, match="preparation is .* was pretrained with"):
        raw = {"other": {"kind": "raw"}}
        medssl.fine_tune(data=labelled(ct), pretrained=pretrained, out=tmp_path / "run", preparation=raw, steps=1, verbose=False)


@pytest.mark.parametrize("twice", [NormalizeIntensityd("image"), ScaleIntensityd("image")], ids=["z-scored", "0..1"])
def test_what_is_normalised_twice_is_said_once(on_mr: Run, tmp_path: Path, twice: Callable[[Any], Any]) -> None:
    files = listed(make_mr(tmp_path / "mr", 4))
    with pytest.warns(UserWarning, match=r"'image' lie between .* seem to be normalised already .*, unlike the MR") as said:
        loader = DataLoader(Dataset(files, Compose([*LOAD, twice, PrepareImaged("image", on_mr)])), num_workers=0)
        assert len(list(loader)) == 4
    assert len([one for one in said if "normalised already" in str(one.message)]) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*normalised already.*")
        list(Dataset(files, Compose([*LOAD, PrepareImaged("image", on_mr)])))


def test_a_modality_that_nobody_saw_is_refused_unless_it_is_meant(pretrained: Run, ct: Path, tmp_path: Path) -> None:
    mr = tmp_path / "mr"
    make_ct(mr)
    for path in (mr / "images").glob("*.nii.gz"):
        image = nib.load(path)
        nib.save(nib.Nifti1Image((np.asarray(image.dataobj) + 1050).astype(np.int16), image.affine), path)
    data = labelled(mr, modality="MR")
    with pytest.raises(ConfigError, match=r"the cases are MR, and .* saw CT \(4 volumes\).*unseen_modality: true"):
        medssl.fine_tune(data=data, pretrained=pretrained, out=tmp_path / "no", steps=1, verbose=False)
    run = medssl.fine_tune(data=data, pretrained=pretrained, out=tmp_path / "run", steps=1, unseen_modality=True, verbose=False)
    assert run.config.data.modality == "MR"  # type: ignore[attr-defined]
    assert abs(np.mean([float(item["image"].mean()) for item in Store(tmp_path / "run" / "labelled")])) < 1


def test_items_say_their_modality_as_those_of_a_store(ct: Path, tmp_path: Path) -> None:
    pytest.importorskip("medssl_inpainting")
    files = listed(ct / "images")
    run = medssl.pretrain(SMALL, files, [TASK], out=tmp_path / "by keyword", modality="CT", **KEYS)
    own = medssl.pretrain(SMALL, listed(ct / "images", modality="CT"), [TASK], out=tmp_path / "by item", modality="MR", **KEYS)
    for one in (run, own):
        store = Store(one.folder / "volumes")
        assert {store.volume(number).modality for number in range(len(store))} == {"CT"}
        assert PrepareImage(one).kind.modalities == ("CT",)
        assert min(float(item["image"].min()) for item in store) == -1
    told = Preparation(modalities={"CT": IntensityRule(kind="window", low=-100, high=100)})
    narrow = medssl.pretrain(SMALL, files, [TASK], out=tmp_path / "told", modality="CT", preparation=told.model_dump(), **KEYS)
    assert PrepareImage(narrow).preparation == told
    with pytest.raises(ConfigError, match="'CTT' is no modality"):
        medssl.pretrain(SMALL, files, [TASK], out=tmp_path / "none", modality="CTT", **KEYS)
    with pytest.raises(UsageError, match="preparation is of NormalizeIntensity.*into the dataset"):
        medssl.pretrain(SMALL, files, [TASK], out=tmp_path / "wrong", preparation=NormalizeIntensity(), **KEYS)
    with pytest.raises(UsageError, match="A store knows it of its volumes"):
        medssl.pretrain(SMALL, run.folder / "volumes", [TASK], out=tmp_path / "store", modality="CT", **KEYS)
    scaled = Dataset(files, Compose([*LOAD, ScaleIntensityd("image")]))
    with pytest.raises(DataError, match="normalised already"):
        medssl.pretrain(SMALL, scaled, [TASK], out=tmp_path / "twice", modality="CT", **KEYS)
    as_they_are = Dataset(listed(ct / "images", modality="CT"), Compose([*LOAD, WINDOW]))
    kept = medssl.pretrain(SMALL, as_they_are, [TASK], out=tmp_path / "kept", **KEYS)
    assert PrepareImage(kept).kind.modalities == ("CT",)


def test_several_channels_on_weights_of_one(on_mr: Run, tmp_path: Path) -> None:
    """What a single channel saw holds for each of several."""
    folder = make_ct(tmp_path / "four")
    rng = np.random.default_rng(0)
    for path in (folder / "images").glob("*.nii.gz"):
        label = np.asarray(nib.load(folder / "labels" / path.name).dataobj)
        image = np.abs(rng.normal(300 + 200.0 * label[..., None], 30, (*label.shape, 4)))
        nib.save(nib.Nifti1Image(image.astype(np.int16), np.eye(4)), path)
    four = partial(SMALL, in_channels=4, out_channels=2)
    options: dict[str, Any] = {"pretrained": on_mr, "stem": "repeat", "steps": 1, "verbose": False}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*normalised already.*")
        assert medssl.fine_tune(four, labelled(folder), out=tmp_path / "run", **options).state.step == 1
