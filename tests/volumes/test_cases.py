"""Which cases a fine-tuning sees, in every form that datasets come in, and one clear message for each wrong one."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from pydantic import ValidationError

from medssl.config import check
from medssl.errors import ConfigError, DataError, MedsslError, MissingInput
from medssl.volumes import Channel, LabelledOptions, LabelValues, channels_of, find_cases, label_values_of, training_cases
from medssl.volumes.cases.datalists import from_dataset, grouped_by_case
from medssl.volumes.cases.label_values import label_values
from medssl.volumes.cases.patients import describe_patients

Paired = Callable[..., Path]
Write = Callable[..., Path]


def folders(root: Path, **changes: Any) -> LabelledOptions:
    return LabelledOptions.model_validate({"images": str(root / "images"), "labels": str(root / "labels"), "size": (8, 8, 8)} | changes)


def dataset(path: Path, **changes: Any) -> LabelledOptions:
    return LabelledOptions.model_validate({"dataset": str(path), "size": (8, 8, 8)} | changes)


def datalist(root: Path, name: str = "dataset.json", **changes: Any) -> Path:
    entries = [{"image": f"./images/case_{i:02d}.nii.gz", "label": f"./labels/case_{i:02d}.nii.gz", "fold": i % 2} for i in range(4)]
    path = root / name
    path.write_text(json.dumps({"modality": {"0": "CT"}, "training": entries} | changes))
    return path


def modality_of(options: LabelledOptions) -> str:
    (channel,) = channels_of(options, find_cases(options))
    assert channel.name == channel.modality
    return channel.modality


def names(cases: list[Any]) -> list[str]:
    return [case.name for case in cases]


ALL = ["case_00", "case_01", "case_02", "case_03"]


def test_two_folders(paired: Paired) -> None:
    cases = find_cases(folders(paired()))
    assert names(cases) == ALL
    assert all(case.label is not None and case.label.name == case.images[0].name and case.patient == case.name for case in cases)


def test_a_list_is_read_as_json_of_others_is(paired: Paired) -> None:
    path = datalist(paired())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert names(find_cases(dataset(path))) == ALL
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match="is not valid JSON: it is nested too deeply"):
        find_cases(dataset(path))


@pytest.mark.parametrize("form", ["folders", "mapping", "nnunet"])
def test_a_fold_of_what_has_none_is_refused(form: str, paired: Paired) -> None:
    root = paired()
    if form == "folders":
        with pytest.raises(ValidationError, match="fold is one of a dataset or of splits"):
            folders(root, fold=1)
    elif form == "mapping":
        (root / "splits.json").write_text(json.dumps({"train": ALL[:3], "val": ALL[3:]}))
        with pytest.raises(ConfigError, match=r"data\.fold 1: .*splits.json is no list of folds"):
            find_cases(folders(root, fold=1, splits=str(root / "splits.json")))
    else:
        (root / "images").rename(root / "imagesTr")
        (root / "labels").rename(root / "labelsTr")
        (root / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}, "labels": {"background": 0}}))
        with pytest.raises(ConfigError, match=r"data\.fold 1: .*lists no folds.*data\.splits"):
            find_cases(dataset(root, fold=1))


def test_a_modality_that_nobody_knows_is_refused(paired: Paired) -> None:
    root = paired()
    for given, found in (("mri", "MR"), ("t1w", "MR"), ("xa", "XA")):
        assert modality_of(folders(root, modality=given)) == found
    with pytest.raises(ConfigError, match=r"data\.modality 'CTT' is no modality of DICOM's. Did you mean 'CT'"):
        modality_of(folders(root, modality="CTT"))
    options = folders(root, modality="own")
    assert channels_of(options, find_cases(options), {"OWN"})[0].modality == "OWN"


def test_decathlon_folder_and_datalist_file(paired: Paired) -> None:
    root = paired()
    path = datalist(root, test=["./images/case_00.nii.gz"])
    assert names(find_cases(dataset(root))) == ALL
    assert names(find_cases(dataset(path, split="train"))) == ALL
    assert modality_of(dataset(root)) == "CT"
    assert modality_of(dataset(root, modality="pt")) == "PT"
    path.write_text(json.dumps([{"image": "images/case_01.nii.gz", "label": "labels/case_01.nii.gz"}]))
    assert names(find_cases(dataset(path))) == ["case_01"]


def test_the_fold_of_a_datalist_is_the_validation(paired: Paired) -> None:
    root = paired()
    datalist(root)
    training, validation = training_cases(dataset(root, fold=1))
    assert (names(training), names(validation)) == (["case_00", "case_02"], ["case_01", "case_03"])
    with pytest.raises(DataError, match="no entry"):
        training_cases(dataset(root, fold=7))


def test_nnunet_folder(paired: Paired) -> None:
    root = paired(2)
    (root / "imagesTr").mkdir()
    for path in (root / "images").iterdir():
        path.rename(root / "imagesTr" / path.name.replace(".nii.gz", "_0000.nii.gz"))
    (root / "labels").rename(root / "labelsTr")
    (root / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}, "labels": {"background": 0}, "numTraining": 2}))
    assert names(find_cases(dataset(root))) == ["case_00", "case_01"]
    assert modality_of(dataset(root)) == "CT"
    (root / "imagesTr" / "case_00_0001.nii.gz").write_bytes((root / "imagesTr" / "case_00_0000.nii.gz").read_bytes())
    with pytest.raises(DataError, match=r"same channels for each case \('case_0[01]' has 0000.*, others 0000"):
        find_cases(dataset(root))


def nnunet_of_two(root: Path, write_image: Write) -> Path:
    """Two cases of two channels."""
    for number in range(2):
        for channel in range(2):
            path = root / "imagesTr" / f"case_{number}_{channel:04d}.nii.gz"
            write_image(path, np.random.default_rng(2 * number + channel).integers(0, 99, (8, 9, 7)).astype(np.int16))
        write_image(root / "labelsTr" / f"case_{number}.nii.gz", np.ones((8, 9, 7), np.uint8))
    (root / "dataset.json").write_text(json.dumps({"channel_names": {"1": "T2", "0": "CT"}, "labels": {"background": 0}}))
    return root


def test_several_channels(tmp_path: Path, write_image: Write) -> None:
    options = dataset(nnunet_of_two(tmp_path, write_image))
    cases = find_cases(options)
    assert [[path.name for path in case.images] for case in cases] == [
        [f"case_{number}_0000.nii.gz", f"case_{number}_0001.nii.gz"] for number in range(2)
    ]
    assert channels_of(options, cases) == (Channel("CT", "CT", 0), Channel("T2", "MR", 1))
    assert channels_of(dataset(tmp_path, modality=["MR", "pt"]), cases) == (Channel("CT", "MR", 0), Channel("T2", "PT", 1))
    with pytest.raises(ConfigError, match=r"names 3 modalities, and the cases have 2 channel"):
        channels_of(dataset(tmp_path, modality=["MR", "PT", "CT"]), cases)
    plain = LabelledOptions(images=str(tmp_path / "imagesTr"), labels=str(tmp_path / "labelsTr"), size=(8, 8, 8))
    assert [channel.name for channel in channels_of(plain, find_cases(plain))] == ["channel 0", "channel 1"]
    write_image(tmp_path / "imagesTr" / "case_1_0001.nii.gz", np.zeros((8, 9, 6), np.int16))
    with pytest.raises(DataError, match=r"case_1.*the image's grid differs.*\[8, 9, 6\]"):
        find_cases(options)


def test_the_fourth_axis_counts_channels(tmp_path: Path, write_image: Write) -> None:
    write_image(tmp_path / "a.nii.gz", np.random.default_rng(0).integers(0, 99, (8, 9, 7, 3)).astype(np.int16))
    write_image(tmp_path / "b.nii.gz", np.ones((8, 9, 7), np.uint8))
    entries = [{"image": "a.nii.gz", "label": "b.nii.gz"}]
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "FLAIR", "1": "T1w", "2": "T2w"}, "training": entries}))
    options = dataset(tmp_path)
    (case,) = find_cases(options)
    assert [channel.name for channel in channels_of(options, [case])] == ["FLAIR", "T1w", "T2w"]
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "CT_venous", "1": "PET", "2": "odd"}, "training": entries}))
    assert [channel.modality for channel in channels_of(options, [case])] == ["CT", "PT", "MR"]
    for name in ("t1", "t2"):
        write_image(tmp_path / f"{name}.nii.gz", np.ones((8, 9, 7), np.int16))
    entries[0]["image"] = ["t1.nii.gz", "t2.nii.gz"]  # type: ignore[assignment]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": entries}))
    assert len(find_cases(options)[0].images) == 2


def pairs(root: Path, write_image: Write, images: list[str], labels: list[str]) -> Path:
    for folder, found in (("images", images), ("labels", labels)):
        for name in found:
            write_image(root / folder / f"{name}.nii.gz", np.ones((8, 9, 7), np.uint8))
    return root


@pytest.mark.parametrize("first", [0, 1, 800])
def test_a_case_number_is_no_channel(tmp_path: Path, write_image: Write, first: int) -> None:
    """In two folders, in nnU-Net's folders and in a list."""
    called = [f"genius_{number:04d}" for number in range(first, first + 3)]
    root = pairs(tmp_path, write_image, called, called)
    assert names(find_cases(folders(root))) == called
    entries = [{"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz"} for name in called]
    path = root / "list.json"
    path.write_text(json.dumps({"training": entries}))
    assert names(find_cases(dataset(path))) == called
    (root / "images").rename(root / "imagesTr")
    (root / "labels").rename(root / "labelsTr")
    (root / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}}))
    assert names(find_cases(dataset(root))) == called
    for number in range(2):
        write_image(root / "imagesTs" / f"vol_{number:04d}.nii.gz", np.ones((8, 9, 7), np.uint8))
    assert [item.name for item in from_dataset(root)["test"]] == ["vol_0000", "vol_0001"]


@pytest.mark.parametrize(
    ("images", "labels"),
    [(["a_0001"], ["a_0002"]), (["a_0000"], ["a_0001"]), (["a_0000", "b"], ["a", "b"]), (["a_0000", "a_0002"], ["a"])],
)
def test_image_and_label_of_other_names_never_pair(tmp_path: Path, write_image: Write, images: list[str], labels: list[str]) -> None:
    root = pairs(tmp_path, write_image, images, labels)
    with pytest.raises(DataError, match=r"1 labels in .* have no image.*same file name, or every image nnU-Net's CASE_0000"):
        find_cases(folders(root))


def test_channels_are_known_by_the_structure_of_a_whole_folder(tmp_path: Path, write_image: Write) -> None:
    whole = [f"{case}_{channel:04d}" for case in ("p_0800", "p_0801") for channel in range(2)]
    cases = find_cases(folders(pairs(tmp_path, write_image, whole, ["p_0800", "p_0801"])))
    assert [(case.name, len(case.images)) for case in cases] == [("p_0800", 2), ("p_0801", 2)]
    paths = [Path(f"{name}.nii.gz") for name in whole]
    assert sorted(grouped_by_case(paths)) == sorted(grouped_by_case(paths, 2)) == ["p_0800", "p_0801"]
    assert sorted(grouped_by_case(paths, 1)) == whole
    for files in (["vol_0000", "vol_0001", "amos_0003"], ["vol_0001", "vol_0002"], ["a_0000", "b"], ["a_0000", "b_0000", "b_0001"]):
        assert sorted(grouped_by_case([Path(f"{name}.nii.gz") for name in files])) == sorted(files)
    for twice in (["a.nii", "a.nii.gz"], ["a_0000.nii", "a_0000.nii.gz"]):
        with pytest.raises(DataError, match="both name the case"):
            grouped_by_case([Path(name) for name in twice])
    assert grouped_by_case([]) == {}


def test_splits_choose_cases(paired: Paired) -> None:
    root = paired()
    file = root / "splits.json"
    file.write_text(json.dumps({"seed": 3, "note": "x", "train": ALL[:2], "validation": ALL[2:3], "test": ALL[3:]}))
    options = folders(root, splits=str(file))
    training, validation = training_cases(options)
    assert (names(training), names(validation)) == (ALL[:2], ALL[2:3])
    assert names(find_cases(folders(root, splits=str(file), split="test"))) == ALL[3:]
    with pytest.raises(ConfigError, match="Did you mean 'train'"):
        find_cases(folders(root, splits=str(file), split="trian"))
    file.write_text(json.dumps([{"train": ALL[:3], "val": ALL[3:]}, {"train": ALL[1:], "val": ALL[:1]}]))
    assert [names(part) for part in training_cases(folders(root, splits=str(file), fold=1))] == [ALL[1:], ALL[:1]]
    file.write_text(json.dumps({"train": ["case_99"]}))
    with pytest.raises(DataError, match="case_99"):
        find_cases(options)


def test_fewer_labels_are_a_part_of_more(paired: Paired) -> None:
    root = paired(8)
    chosen = [set(names(find_cases(folders(root, labelled=count)))) for count in range(1, 9)]
    assert all(small < large for small, large in pairwise(chosen))
    assert set(names(find_cases(folders(root, labelled=3, labelled_seed=1)))) != chosen[2]
    with pytest.raises(ConfigError, match="labelled is 9 and there are 8"):
        find_cases(folders(root, labelled=9))


def test_no_patient_is_on_both_sides(paired: Paired, write_image: Write) -> None:
    root = paired(0)
    for subject in range(5):
        for session in range(3):
            for folder in ("images", "labels"):
                write_image(root / folder / f"sub-{subject}_ses-{session}.nii.gz", np.zeros((10, 10, 10), np.uint8))
    training, validation = training_cases(folders(root, validation=0.4))
    assert len(training) == 9
    assert len(validation) == 6
    assert not {case.patient for case in training} & {case.patient for case in validation}
    assert training_cases(folders(root, validation=0.4)) == (training, validation)
    assert names(training_cases(folders(root, validation=0.4, labelled=2))[1]) == names(validation)


def visits(root: Path, write_image: Write, called: list[str]) -> Path:
    for name in called:
        for folder in ("images", "labels"):
            write_image(root / folder / f"{name}.nii.gz", np.zeros((10, 10, 10), np.uint8))
    return root


@pytest.mark.parametrize("form", ["patient{}_frame{:02d}", "Subject-{}_{}", "sub-{}_ses-{}", "TCGA-02-{}-{}", "BraTS-GLI-0{}-00{}"])
def test_patients_are_known_from_usual_names(tmp_path: Path, write_image: Write, form: str) -> None:
    called = [form.format(patient, visit) for patient in range(1001, 1006) for visit in (1, 2)]
    training, validation = training_cases(folders(visits(tmp_path, write_image, called), validation=0.4))
    assert (len(training), len(validation)) == (6, 4)
    assert not {case.patient for case in training} & {case.patient for case in validation}
    said = describe_patients(training, validation)
    assert said.startswith("6 cases of 3 patients to train on, 4 cases of 2 patients to validate with; patients are known by ")


@pytest.mark.parametrize("by", ["pattern", "named group", "table"])
def test_patients_that_are_told(tmp_path: Path, write_image: Write, by: str) -> None:
    called = [f"Case_{patient}_{image}" for patient in range(12, 17) for image in ("T1", "T2")]
    root = visits(tmp_path, write_image, called)
    bare = training_cases(folders(root, validation=0.4))
    assert "each counts as a patient of its own (data.patient says otherwise)" in describe_patients(*bare)
    assert "'Case_12_T1' and 'Case_12_T2' begin alike" in describe_patients(*bare)
    table = root / "patients.csv"
    table.write_text("case,age,patient\n" + "".join(f"{name},3,P{name[5:7]}\n" for name in [*called, "other"]))
    told = {
        "pattern": {"patient": "Case_([0-9]+)"},
        "named group": {"patient": "(Case)_(?P<patient>[0-9]+)"},
        "table": {"patients": str(table)},
    }
    training, validation = training_cases(folders(root, validation=0.4, **told[by]))
    assert (len(training), len(validation)) == (6, 4)
    assert not {case.patient for case in training} & {case.patient for case in validation}
    assert ("patients.csv" if by == "table" else "data.patient") in describe_patients(training, validation)


def test_patients_that_are_told_wrongly(tmp_path: Path, write_image: Write) -> None:
    root = visits(tmp_path, write_image, ["a_1", "a_2", "b_1"])
    table = root / "patients.csv"
    for values, message in (
        ({"patient": "(a)"}, r"finds no patient in 1 of 3 cases, such as 'b_1'"),
        ({"patients": str(table)}, "there is no file"),
    ):
        with pytest.raises(MedsslError, match=message):
            training_cases(folders(root, **values))
    for content, message in (
        ("name,patient\na_1,x\n", "columns name, patient"),
        ("case,patient\na_1,x\na_2,x\n", "no patient of 1 of 3 cases, such as 'b_1'"),
        ("case,patient\na_1,x\na_1,y\n", "two patients of the case 'a_1'"),
        ("", "no patient of 3 of 3"),
    ):
        table.write_text(content)
        with pytest.raises(DataError, match=message):
            training_cases(folders(root, patients=str(table)))
    values = {"size": [8, 8, 8], "dataset": "d"}
    for wrong, message in (
        ({"patient": "("}, "no regular expression"),
        ({"patient": "a"}, "no group"),
        ({"patient": "(a)", "patients": "b"}, "not both"),
    ):
        with pytest.raises(ConfigError, match=message):
            check(LabelledOptions, values | wrong)


def test_a_split_that_divides_a_patient_is_refused(tmp_path: Path, write_image: Write) -> None:
    root = visits(tmp_path, write_image, ["patient1_a", "patient1_b", "patient2_a"])
    file = root / "splits.json"
    file.write_text(json.dumps({"train": ["patient1_a", "patient2_a"], "validation": ["patient1_b"]}))
    with pytest.raises(ConfigError, match=r"divides 1 patient, such as patient1 .*'patient1_a' is trained on and 'patient1_b' validates"):
        training_cases(folders(root, splits=str(file)))
    training, validation = training_cases(folders(root, splits=str(file), patient="(.*)"))
    assert (len(training), len(validation)) == (2, 1)
    one, none = training_cases(folders(root, patient="(p)"))
    assert (len(one), none) == (3, [])
    assert "nothing is validated, since all cases are of one patient" in describe_patients(one, none)


def test_a_label_without_image(paired: Paired) -> None:
    root = paired()
    (root / "images" / "case_02.nii.gz").unlink()
    with pytest.raises(DataError, match=r"1 labels in .* have no image.*case_02\.nii\.gz"):
        find_cases(folders(root))


def test_an_image_without_label(paired: Paired) -> None:
    root = paired()
    (root / "labels" / "case_02.nii.gz").unlink()
    with pytest.raises(DataError, match=r"1 of 4 images in .* have no label, such as case_02\.nii\.gz.*data\.splits"):
        find_cases(folders(root))
    file = root / "splits.json"
    file.write_text(json.dumps({"train": ["case_00", "case_03"]}))
    assert len(find_cases(folders(root, splits=str(file)))) == 2
    for number in (0, 1, 3):
        (root / "labels" / f"case_0{number}.nii.gz").unlink()
    (root / "labels" / "case_00.nii").touch()
    (root / "labels" / "case_00.nii").unlink()
    with pytest.raises(DataError, match="4 of 4 images in"):
        training_cases(folders(root))


def test_a_split_without_a_case_says_where_the_cases_are(paired: Paired) -> None:
    root = paired()
    file = root / "splits.json"
    file.write_text(json.dumps({"train": [], "test": ["case_00", "case_03"]}))
    for find in (find_cases, training_cases):
        with pytest.raises(DataError, match=r"split 'train' of .*splits\.json has no case; of the others 'test' has 2"):
            find(folders(root, splits=str(file)))


def test_channels_are_the_same_in_training_and_validation(paired: Paired, write_image: Write) -> None:
    root = paired()
    write_image(root / "images" / "case_03.nii.gz", np.random.default_rng(0).normal(size=(24, 20, 18, 2)).astype(np.float32))
    file = root / "splits.json"
    file.write_text(json.dumps({"train": ["case_00"], "val": ["case_03"]}))
    with pytest.raises(DataError, match="case 'case_03' has 2 channel"):
        training_cases(folders(root, splits=str(file)))


def test_grids_that_differ(paired: Paired, write_image: Write) -> None:
    root = paired()
    path = root / "labels" / "case_01.nii.gz"
    write_image(path, np.zeros((24, 20, 17), np.uint8))
    with pytest.raises(DataError, match=r"case_01.*has shape \[24, 20, 18\].*has shape \[24, 20, 17\].*Resample"):
        find_cases(folders(root))
    write_image(path, np.zeros((24, 20, 18), np.uint8), np.diag([-1.0, 1.0, 1.0, 1.0]))
    with pytest.raises(DataError, match=r"axes RAS.*axes LAS"):
        find_cases(folders(root))


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        ({"0": "background", "1": "liver", "2": "tumour"}, {0: "background", 1: "liver", 2: "tumour"}),
        ({"background": 0, "liver": 1, "tumour": 2}, {0: "background", 1: "liver", 2: "tumour"}),
        ({"background": 0, "whole": [1, 2], "core": 2}, {0: "background", 2: "core"}),
        (["background"], {}),
    ],
)
def test_names_of_labels_in_dataset_json(paired: Paired, labels: Any, named: dict[int, str]) -> None:
    found = label_values_of(dataset(datalist(paired(1), labels=labels, training=[])))
    assert (found.names, found.classes) == (named, None)
    assert found.declared == (frozenset({0, 1, 2}) if isinstance(labels, dict) else frozenset())


def test_the_ignore_label_of_nnunet(paired: Paired) -> None:
    path = datalist(paired(1), labels={"background": 0, "liver": 1, "ignore": 2}, training=[])
    found = label_values_of(dataset(path))
    assert found.classes_in(np.array([0, 1, 2, 1])).tolist() == [0, 1, -1, 1]
    assert found.declared == {0, 1}
    with pytest.raises(DataError, match=r"holds the value 3, 9, to which dataset\.json gives no class"):
        found.classes_in(np.array([0, 1, 3, 9]))
    told = label_values_of(dataset(path, label_values={1: 1, 2: 1}))
    assert told.classes_in(np.array([0, 1, 2], np.float32)).tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("given", "values", "classes", "back"),
    [
        ({0: 0, 63: 1, 126: 2}, [0, 63, 126], [0, 1, 2], [0, 63, 126]),
        ({1: 1, 2: 1, 3: 0, 255: "ignore"}, [0, 1, 2, 3, 255], [0, 1, 1, 0, -1], [0, 1, 1, 0]),
        ({-1: "ignore", 40000: 1}, [-1, 0, 40000], [-1, 0, 1], [0, 40000]),
        ({0: "ignore", 1: 0, 2: 1}, [0, 1, 2], [-1, 0, 1], [1, 2]),
        ({**{n: n for n in range(300)}, 5: 300}, [5, 7], [300, 7], [5, 7]),
    ],
)
def test_values_become_classes_and_come_back(
    given: dict[int, int | Literal["ignore"]], values: list[int], classes: list[int], back: list[int]
) -> None:
    found = label_values(given, None)
    made = found.classes_in(np.array(values))
    assert made.tolist() == classes
    assert made.dtype == (np.int16 if min(classes) < 0 or max(classes) > 255 else np.uint8)
    assert found.values_of(made[made >= 0]).tolist() == back
    assert LabelValues.of_document(json.loads(json.dumps(found.document()))).classes == found.classes
    assert LabelValues.of_document(LabelValues().document()).values_of(made) is made


def test_classes_that_do_not_count_on_are_refused() -> None:
    for wrong in ({63: 2}, {1: 1, 2: 3}, {1: -1}):
        with pytest.raises(ConfigError, match="do not count on from 0"):
            check(LabelledOptions, {"size": [8, 8, 8], "dataset": "d", "label_values": wrong})


def test_what_is_not_there(tmp_path: Path, paired: Paired) -> None:
    root = paired()
    for options in (
        dataset(root / "none"),
        dataset(root),
        folders(root / "none"),
        folders(root, splits=str(root / "none.json")),
    ):
        with pytest.raises(MissingInput):
            find_cases(options)
    path = datalist(root, training=[{"image": "images/none.nii.gz", "label": "labels/case_00.nii.gz"}])
    with pytest.raises(MissingInput, match=r"training\[0\] names images/none"):
        find_cases(dataset(path))
    for content in ("{", "7", '{"training": [3]}', '{"training": [{"label": "x"}]}', '{"training": []}', "{}"):
        path.write_text(content)
        with pytest.raises(MedsslError):
            find_cases(dataset(path))
    (root / "empty").mkdir()
    with pytest.raises(DataError, match="no cases"):
        find_cases(LabelledOptions(images=str(root / "empty"), labels=str(root / "empty"), size=(8, 8, 8)))
    path.write_text(json.dumps({"test": ["images/case_00.nii.gz"]}))
    with pytest.raises(ConfigError, match="'train' is none of the splits"):
        training_cases(dataset(path))


def test_a_torn_image_is_named(paired: Paired) -> None:
    root = paired()
    path = root / "images" / "case_01.nii.gz"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"case_01\.nii\.gz cannot be read as NIfTI"):
        find_cases(folders(root))


def test_options_that_contradict_each_other() -> None:
    for values in ({}, {"dataset": "d", "images": "i"}, {"dataset": "d", "size": [0, 1, 1]}, {"dataset": "d", "label": "x"}):
        with pytest.raises(ConfigError):
            check(LabelledOptions, {"size": [8, 8, 8]} | values)


def test_real_cases(shared_data: Path) -> None:
    hippocampus = shared_data / "hippocampus"
    options = dataset(hippocampus, splits=str(hippocampus / "splits.json"), labelled=8)
    training, validation = training_cases(options)
    assert (len(training), len(validation)) == (8, 20)
    assert modality_of(options) == "MR"
    kbp = shared_data / "openkbp"
    options = folders(kbp, splits=str(kbp / "splits.json"))
    assert [len(part) for part in training_cases(options)] == [17, 5]
