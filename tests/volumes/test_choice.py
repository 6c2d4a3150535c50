"""Which volumes a store takes: one of each acquisition, rules before that, and a reason for every other one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from medssl.archive import Index, VolumeRecord, build_index
from medssl.cli.app import main
from medssl.config import check
from medssl.errors import ConfigError, UsageError
from medssl.testing.dicom import made_affine, made_volume, write_series
from medssl.volumes import ChoiceOptions, Store, StoreOptions, estimate_store, make_store, store_as
from medssl.volumes.ingest import reconstructions
from medssl.volumes.ingest.choice import DERIVED, EVERYTHING, REFORMAT, SECOND, UNCORRECTED, choose, modalities_of
from medssl.volumes.ingest.reconstructions import Candidate

Said = Callable[..., tuple[str, str]]
DEFAULT = ChoiceOptions()


def candidate(name: str, **changes: Any) -> Candidate:
    """A CT of 40 slices; `changes` go to the record where it has such a field, else to the candidate."""
    spacing = changes.pop("spacing", (1.0, 1.0, 2.0))
    shape = changes.pop("shape", (64, 64, 40))
    affine = changes.pop("affine", np.diag([*spacing, 1.0]))
    record = VolumeRecord(name, "p", "study", name, "CT", "dicom", shape, spacing, affine, shape[2], None, ())
    of_record = {key: changes.pop(key) for key in list(changes) if hasattr(record, key)}
    known = {"acquisition": "1", "first": "20200101120000", "last": "20200101120010"}
    return Candidate(replace(record, **of_record), of_record.get("modality", "CT"), **{**known, **changes})


def names(*candidates: Candidate, options: ChoiceOptions = DEFAULT) -> set[str]:
    return {record.volume for record in choose(candidates, options).chosen}


def test_of_five_reconstructions_the_thin_soft_axial_one_is_taken() -> None:
    thick = candidate("thick", spacing=(1.0, 1.0, 2.0), thickness=5.0, kernel="B30f")
    bone = candidate("bone", spacing=(1.0, 1.0, 1.0), shape=(64, 64, 80), kernel="B70f")
    soft = candidate("soft", spacing=(1.0, 1.0, 1.1), shape=(64, 64, 73), kernel="B30f")
    turned = np.array([[1.0, 0, 0, 0], [0, 0, 1.0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]])
    coronal = candidate("coronal", affine=turned, spacing=(1.0, 1.0, 1.0), shape=(64, 80, 64), kernel="B20f")
    magnified = candidate("magnified", spacing=(0.2, 0.2, 0.5), shape=(64, 64, 100))
    every = [thick, bone, soft, coronal, magnified]
    chosen = choose(every, DEFAULT)
    assert [record.volume for record in chosen.chosen] == ["soft"]
    assert set(chosen.left_out.values()) == {SECOND} and len(chosen.left_out) == 4
    assert names(*every, options=ChoiceOptions(reconstructions="all")) == {"thick", "bone", "soft", "coronal", "magnified"}
    assert names(thick, bone) == {"bone"}


@pytest.mark.parametrize(
    "other",
    [
        {"study": "another"},
        {"acquisition": "2"},
        {"first": "20200101120030", "last": "20200101120040"},
        {"frame_of_reference": "1.2.3"},
        {"kvp": 140.0},
        {"modality": "MR"},
        {"affine": np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 2, 200], [0, 0, 0, 1]])},
        {"first": "", "last": "", "acquisition": ""},
        {"first": "", "last": "", "contrast": "yes"},
        {"kind": "nifti"},
    ],
    ids=lambda other: " ".join(other),
)
def test_what_another_acquisition_is(other: dict[str, Any]) -> None:
    assert names(candidate("one"), candidate("other")) == {"one"}
    assert names(candidate("one"), candidate("other", **other)) == {"one", "other"}


def mr(name: str, *flavours: str, **changes: Any) -> Candidate:
    """An MR volume of ImageType ORIGINAL, PRIMARY and what follows; DERIVED where the first of it says so."""
    first = ("DERIVED", "PRIMARY") if flavours[:1] == ("DERIVED",) else ("ORIGINAL", "PRIMARY")
    rest = flavours[1:] if flavours[:1] == ("DERIVED",) else flavours
    return candidate(name, modality="MR", image_type=(*first, *rest), **changes)


def test_of_a_pet_acquisition_the_one_with_attenuation_corrected_is_taken() -> None:
    """Thinner or not; another time point, gate or bed is another image."""
    pet = {"modality": "PT", "corrected": ("DECY", "ATTN", "SCAT")}
    corrected = candidate("corrected", **pet)
    bare = candidate("bare", modality="PT", corrected=("DECY",), spacing=(1.0, 1.0, 1.0), shape=(64, 64, 80))
    thick = candidate("thick", **pet, spacing=(1.0, 1.0, 4.0), shape=(64, 64, 30), affine=np.diag([1.0, 1, 2.7, 1]))
    chosen = choose([bare, corrected, thick], DEFAULT)
    assert [record.volume for record in chosen.chosen] == ["corrected"]
    assert chosen.left_out == {"bare": UNCORRECTED, "thick": SECOND}
    assert names(bare) == {"bare"}, "there is no other"
    later = candidate("later", **pet, first="20200101130000", last="20200101130010")
    gate = candidate("gate", **pet, image=("", "", "", "", "", "", "300"))
    assert names(corrected, later, gate) == {"corrected", "later", "gate"}
    assert names(bare, corrected, options=ChoiceOptions(reconstructions="all")) == {"bare", "corrected"}


def test_volumes_of_one_pet_series_are_different_images_whatever_their_times() -> None:
    """Frames of which only the number tells when they were taken, reconstructed twice: which belongs to which nobody knows."""
    frames = [candidate(f"{series} {frame}", modality="PT", series=series) for series in ("corrected", "bare") for frame in range(3)]
    assert names(*frames) == {one.record.volume for one in frames}


def test_of_mr_images_the_one_that_was_corrected_most_is_taken() -> None:
    """By ImageType alone: these are of a Siemens scanner."""
    plain, even = mr("plain", "M", "ND"), mr("even", "M", "NORM", "DIS2D", "MFSPLIT")
    assert choose([plain, even, mr("more", "M", "NORM", "DIS3D")], DEFAULT).left_out == {"plain": SECOND, "even": SECOND}
    assert names(plain, mr("moved", "DERIVED", "M", "ND", "MOCO")) == {"plain"}, "rather as it was taken"
    for other in (
        {"image": ("P", "1/2.46", "", "", "", "", "")},
        {"image": ("", "2/4.92", "", "", "", "", "")},
        {"image": ("", "", "", "", "1000", "", "")},
        {"image": ("", "", "", "", "", "2", "")},
        {"first": "20200101130000", "last": "20200101130010"},
        {"repetition_time": 3000.0},
        {"frame_of_reference": "1.2.3"},
        {"study": "another"},
    ):
        assert names(plain, mr("even", "M", "NORM", **other)) == {"plain", "even"}, other


def test_mr_images_of_one_time_are_different_images_unless_the_header_says_otherwise() -> None:
    assert names(candidate("water", modality="MR"), candidate("fat", modality="MR")) == {"water", "fat"}
    assert names(mr("water", "M", "DIXON", "WATER", "NORM"), mr("fat", "M", "DIXON", "FAT", "ND")) == {"water", "fat"}
    assert names(mr("one", "M", "ND"), mr("other", "M", "ND")) == {"one", "other"}, "nothing says what was done to which"
    first, second = ({"first": f"2020010112000{second}", "last": f"2020010112000{second}"} for second in (1, 2))
    series = [mr(f"{way} {number}", "M", way, series=way, **time) for way in ("ND", "NORM") for number, time in enumerate((first, second))]
    assert names(*series) == {"NORM 0", "NORM 1"}
    frames = [mr(f"{way} {number}", "M", way, series=way) for way in ("ND", "NORM") for number in (1, 2)]
    assert names(*frames) == {one.record.volume for one in frames}, "two series of two volumes, which is which?"


@pytest.mark.parametrize(
    "flavours",
    [
        ("DERIVED", "DIFFUSION", "ADC", "MB", "ND", "MFSPLIT"),
        ("ADC", "ADC", "UNSPECIFIED"),
        ("DERIVED", "DIFFUSION", "TRACEW", "ND", "NORM"),
        ("DERIVED", "DIFFUSION", "FA"),
        ("DERIVED", "M", "SUB"),
        ("DERIVED", "T2", "T2_MAP"),
        ("DERIVED", "PERFUSION", "RCBV"),
        ("DERIVED", "VOLUME", "MEAN"),
    ],
    ids="/".join,
)
def test_what_is_worked_out_of_images_that_are_here(flavours: tuple[str, ...]) -> None:
    """In the place and time of the whole series: its volumes count through acquisitions and times."""
    images = [
        mr(
            f"b{number}",
            "DIFFUSION",
            "NONE",
            "ND",
            acquisition=str(number),
            first=f"202001011200{number:02d}",
            last=f"202001011200{number:02d}",
        )
        for number in range(3)
    ]
    images = [replace(one, record=replace(one.record, series="dwi")) for one in images]
    derived = mr("derived", *flavours, acquisition="7", first="20200101120001", last="20200101120001")
    assert choose([*images, derived], DEFAULT).left_out == {"derived": DERIVED}
    assert names(derived) == {"derived"}, "of what it was made is gone"
    elsewhere = replace(derived, first="20200101140000", last="20200101140000")
    assert names(*images, elsewhere) == {"b0", "b1", "b2", "derived"}, "made of another acquisition"


def test_maps_are_looked_for_within_a_study(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not among all volumes of an archive, of which there may be a hundred thousand."""
    compared: list[bool] = []

    def noted(one: Candidate, other: Candidate, real: Callable[..., bool] = reconstructions._made_of) -> bool:
        compared.append(one.record.study == other.record.study)
        return real(one, other)

    monkeypatch.setattr(reconstructions, "_made_of", noted)
    studies = [(mr(f"plain {name}", "M", study=name), mr(f"map {name}", "DERIVED", "ADC", study=name)) for name in "abcde"]
    assert names(*(one for pair in studies for one in pair)) == {f"plain {name}" for name in "abcde"}
    assert all(compared) and 5 <= len(compared) <= 10


def test_a_map_gives_way_to_the_combined_image_where_the_directions_are_gone() -> None:
    assert names(mr("trace", "DERIVED", "DIFFUSION", "TRACEW"), mr("adc", "DERIVED", "DIFFUSION", "ADC")) == {"trace"}
    assert names(mr("maximum", "M", "MAXIMUM"), mr("plain", "M", "NORM")) == {"maximum", "plain"}, "it was taken so"
    assert choose([mr("plain", "M"), mr("mip", "DERIVED", "MAX_IP")], DEFAULT).left_out == {"mip": REFORMAT}


def test_reformats_and_what_is_derived_of_images_that_are_here() -> None:
    original = candidate("original")
    mpr = candidate("mpr", modality="MR", image_type=("DERIVED", "PRIMARY", "MPR", "ND"))
    som = candidate("som", image_type=("ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 MPR"))
    derived = candidate("derived", image_type=("DERIVED", "SECONDARY", "AXIAL"), acquisition="7")
    chosen = choose([original, mpr, som, derived], DEFAULT)
    assert chosen.left_out == {"mpr": REFORMAT, "som": REFORMAT, "derived": DERIVED}
    assert names(derived) == {"derived"}, "of what it was made is gone"
    assert names(candidate("plain", image_type=("DERIVED", "PRIMARY", "M", "COMPRESSED"))) == {"plain"}


def test_short_volumes_are_left_out_of_dicom_alone() -> None:
    short = candidate("short", shape=(64, 64, 29))
    nifti = candidate("nifti", shape=(64, 64, 5), kind="nifti", study="n")
    single = candidate("single", shape=(64, 64, 1), study="s", modality="CR")
    assert choose([short, nifti, single], DEFAULT).left_out == {"short": "fewer than 30 slices"}
    fewer = ChoiceOptions(min_slices=6)
    assert choose([short, nifti, single], fewer).left_out == {"nifti": "fewer than 6 slices"}


def test_the_first_rule_that_is_true_decides() -> None:
    options = check(
        ChoiceOptions,
        {
            "rules": [
                {"leave_out": {"description": "scout|topo"}},
                {"include": {"modality": "MR", "slices": [10, None], "manufacturer": ["siemens", "GE"]}},
                {"leave_out": {"spacing": [None, 0.5]}},
                {"leave_out": {"size": [None, 16], "body_part": "HEAD"}},
            ]
        },
        "choice",
    )
    chosen = choose(
        [
            candidate("topogram", description="Topogram 0.6", study="a"),
            candidate("short mr", modality="MR", shape=(64, 64, 12), manufacturer="GE"),
            candidate("shorter mr", modality="MR", shape=(64, 64, 9), manufacturer="GE"),
            candidate("other mr", modality="MR", shape=(64, 64, 12), manufacturer="Philips"),
            candidate("fine", spacing=(0.5, 0.5, 0.5), study="b"),
            candidate("partly fine", spacing=(0.5, 0.5, 0.6), study="c"),
            candidate("small head", shape=(16, 16, 16), body_part="HEAD"),
        ],
        options,
    )
    assert {record.volume for record in chosen.chosen} == {"short mr", "partly fine"}
    rule = "rule {} of the configuration leaves it out".format
    short = "fewer than 30 slices"
    expected = {"topogram": rule(1), "fine": rule(3), "small head": rule(4), "shorter mr": short, "other mr": short}
    assert chosen.left_out == expected
    assert names(candidate("file", kind="nifti"), options=ChoiceOptions.model_validate({"rules": [{"leave_out": {"description": ""}}]}))


@pytest.mark.parametrize(
    "wrong",
    [{"rules": [{}]}, {"rules": [{"include": {}, "leave_out": {}}]}, {"rules": [{"include": {"description": "("}}]}, {"min_slices": 0}],
)
def test_choices_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        check(ChoiceOptions, wrong, "choice")


# Few values of each, so that many are reconstructions of one acquisition.
few = {
    "study": st.sampled_from("ab"),
    "modality": st.sampled_from(["CT", "MR", "PT"]),
    "kind": st.sampled_from(["dicom", "dicom", "nifti"]),
    "shape": st.sampled_from([(32, 32, 20), (64, 64, 40), (64, 64, 80)]),
    "spacing": st.sampled_from([(1.0, 1.0, 1.0), (1.0, 1.0, 2.0), (0.5, 0.5, 0.6)]),
    "kernel": st.sampled_from([None, "B30f", "B70f", "FC13"]),
    "acquisition": st.sampled_from(["", "1", "2"]),
    "first": st.sampled_from(["", "20200101120000", "20200101120005"]),
    "last": st.just("20200101120007"),
    "image_type": st.sampled_from(
        [
            ("ORIGINAL", "PRIMARY"),
            ("DERIVED", "SECONDARY"),
            ("DERIVED", "SECONDARY", "MPR"),
            ("ORIGINAL", "PRIMARY", "M", "NORM"),
            ("DERIVED", "PRIMARY", "ADC"),
        ]
    ),
    "series": st.sampled_from("xyz"),
    "corrected": st.sampled_from([(), ("ATTN",)]),
    "description": st.sampled_from(["", "scout"]),
}
candidates = st.lists(st.fixed_dictionaries(few), max_size=8).map(
    lambda rows: [candidate(f"v{number}", **row) for number, row in enumerate(rows)]
)
choices = st.sampled_from(
    [
        DEFAULT,
        ChoiceOptions(min_slices=1),
        ChoiceOptions(reconstructions="all"),
        ChoiceOptions.model_validate({"rules": [{"leave_out": {"description": "scout"}}, {"include": {"slices": [None, 25]}}]}),
    ]
)


@given(candidates, choices, st.sampled_from([(), ("CT",)]), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_each_ends_once_whatever_the_order(every: list[Candidate], options: ChoiceOptions, wanted: tuple[str, ...], random: Any) -> None:
    found = choose(every, options, wanted)
    chosen = [record.volume for record in found.chosen]
    assert sorted([*chosen, *found.left_out]) == sorted(one.record.volume for one in every)
    assert all(found.left_out.values())
    shuffled = random.sample(every, len(every))
    again = choose(shuffled, options, wanted)
    assert {record.volume for record in again.chosen} == set(chosen) and dict(again.left_out) == dict(found.left_out)


@given(candidates, st.fixed_dictionaries({**few, "modality": st.just("CT"), "kind": st.just("dicom")}))
@settings(max_examples=200, deadline=None)
def test_one_more_reconstruction_of_what_is_taken_adds_no_volume(every: list[Candidate], other: dict[str, Any]) -> None:
    before = choose(every, DEFAULT)
    taken = [one for one in every if one.record in before.chosen and one.modality == "CT" and one.record.kind == "dicom"]
    for one in taken:
        if not one.first and not one.acquisition:
            continue
        alike = {"study": one.record.study, "acquisition": one.acquisition, "first": one.first, "shape": (64, 64, 80)}
        more = candidate("more", **{**other, **alike, "spacing": one.record.spacing})
        sized = replace(more, record=replace(more.record, affine=one.record.affine))
        assert len(choose([*every, sized], DEFAULT).chosen) <= len(before.chosen)


def test_modalities_are_read_as_people_write_them() -> None:
    assert modalities_of(None) == () and modalities_of("ct") == ("CT",) and modalities_of(["ct,PET", "CT"]) == ("CT", "PT")
    with pytest.raises(ConfigError, match="no modality"):
        modalities_of(["CT", "XYZZY"])


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Patient A: a thin soft and a thick bone reconstruction, an MPR and a short MR. Patient B: a PET."""
    folder = tmp_path / "archive"

    def taken(kernel: str, description: str = "") -> Callable[[Dataset, int], None]:
        def adjust(dataset: Dataset, z: int) -> None:
            dataset.ConvolutionKernel, dataset.SeriesDescription = kernel, description
            dataset.AcquisitionDate, dataset.AcquisitionTime = "20200101", f"1200{z:02d}"

        return adjust

    fine, coarse = made_affine((2.0, 2.0, 1.0)), made_affine((2.0, 2.0, 1.25))
    write_series(folder / "1", made_volume((8, 8, 40), 1), fine, patient="A", series="thin", adjust=taken("B30f", "Thorax weich"))
    write_series(folder / "2", made_volume((8, 8, 32), 2), coarse, patient="A", series="thick", adjust=taken("B70f"))
    mpr = ("DERIVED", "SECONDARY", "MPR")
    write_series(folder / "3", made_volume((8, 8, 40), 3), fine, patient="A", series="mpr", image_type=mpr, adjust=taken("B30f"))
    write_series(folder / "4", made_volume((8, 8, 9), 4), fine, patient="A", series="mr", modality="MR")
    write_series(folder / "5", made_volume((8, 8, 31), 5), fine, patient="B", series="pet", modality="PT")
    build_index([folder], tmp_path / "index", workers=1)
    return folder


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    def run(*words: object, code: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        assert ended.value.code == code, captured.err
        return captured.out, captured.err

    return run


def sides(store: Path) -> list[tuple[str, int]]:
    return sorted((volume.modality, volume.shape[2]) for volume in Store(store).volumes)


def test_the_command_says_what_it_leaves_out_and_takes_it_when_asked(archive: Path, tmp_path: Path, said: Said) -> None:
    index = tmp_path / "index"
    _, told = said("store", index, "--out", tmp_path / "s")
    assert sides(tmp_path / "s") == [("CT", 40), ("PT", 31)]
    for line in (f"left out: 1 {SECOND}", f"left out: 1 {REFORMAT}", "left out: 1 fewer than 30 slices"):
        assert line in told.splitlines()
    said("store", index, "--out", tmp_path / "every", "--all-reconstructions", "--min-slices", 9)
    assert len(Store(tmp_path / "every")) == len(Index(index).volumes()) == 5
    out, _ = said("store", index, "--out", tmp_path / "ct", "--modality", "ct", "--json")
    assert sides(tmp_path / "ct") == [("CT", 40)]
    assert sorted(json.loads(out)["not_chosen"].values()) == sorted([SECOND, REFORMAT, "of modality MR", "of modality PT"])
    _, told = said("store", index, "--out", tmp_path / "none", "--modality", "MR", code=2)
    assert "1 fewer than 30 slices (--min-slices N takes shorter ones)" in told and "--modality says which" in told
    assert not (tmp_path / "none").exists()


def test_rules_are_part_of_the_configuration(archive: Path, tmp_path: Path, said: Said) -> None:
    rules = "choice:\n  min_slices: 20\n  rules:\n  - leave_out: {description: THORAX}\n  - include: {modality: MR}\n"
    (tmp_path / "store.yaml").write_text(rules)
    said("store", tmp_path / "index", "--out", tmp_path / "s", "--config", tmp_path / "store.yaml", "--all-reconstructions")
    assert sides(tmp_path / "s") == [("CT", 32), ("CT", 40), ("MR", 9), ("PT", 31)]


def test_python_takes_all_unless_it_is_told_to_choose(archive: Path, tmp_path: Path) -> None:
    assert make_store([tmp_path / "index"], tmp_path / "all").volumes == 5
    chosen = make_store([tmp_path / "index"], tmp_path / "s", choice={"min_slices": 30})
    assert (chosen.volumes, len(chosen.not_chosen), chosen.left_out) == (2, 3, {})
    with pytest.raises(UsageError, match="3 of modality CT, 1 of modality MR, 1 of modality PT"):
        make_store([tmp_path / "index"], tmp_path / "none", modality="US")


def test_a_channel_rule_says_itself_which_volumes_belong_together(archive: Path, tmp_path: Path) -> None:
    channels = {"series": {"soft": "kernel = 'B30f' AND shape[3] = 40", "thick": "kernel = 'B70f'"}}
    done = make_store([tmp_path / "index"], tmp_path / "s", channels=channels, choice=ChoiceOptions())
    assert not any(reason in (SECOND, REFORMAT) for reason in done.not_chosen.values())


def test_a_dry_run_tells_and_writes_nothing(archive: Path, tmp_path: Path, said: Said) -> None:
    before = sorted(tmp_path.rglob("*"))
    out, _ = said("store", tmp_path / "index", "--out", tmp_path / "s", "--dry-run", "--json")
    found = json.loads(out)
    assert (found["volumes"], found["there"], found["measured"], len(found["not_chosen"])) == (2, 0, 2, 3)
    _, told = said("store", archive, "--out", tmp_path / "s", "--dry-run")
    assert "2 volumes would be in" in told and f"left out: 1 {SECOND}" in told
    assert sorted(tmp_path.rglob("*")) == before
    make_store([tmp_path / "index"], tmp_path / "s", choice=ChoiceOptions())
    real = sum(path.stat().st_size for path in (tmp_path / "s" / "volumes").iterdir())
    assert found["bytes"] == real
    again = estimate_store([tmp_path / "index"], tmp_path / "s", StoreOptions(choice=EVERYTHING))
    assert (again.volumes, again.there) == (5, 2)


def test_an_estimate_is_near_what_is_made(tmp_path: Path) -> None:
    for number in range(7):
        write_series(tmp_path / "a" / str(number), made_volume((16, 16, 8 + 4 * number), number), made_affine(), patient=str(number))
    write_series(tmp_path / "a" / "flat", np.zeros((16, 16, 12), np.int16), made_affine(), patient="flat", modality="MR")
    for spacing in (None, 1.3):
        store, options = tmp_path / f"s{spacing}", StoreOptions(spacing=spacing, choice=EVERYTHING)
        found = estimate_store([tmp_path / "a"], store, options)
        done = store_as([tmp_path / "a"], store, options)
        real = sum(path.stat().st_size for path in (store / "volumes").iterdir())
        assert found.bytes == pytest.approx(real, rel=0.25) and found.seconds > 0
        assert (found.volumes, list(found.left_out.values())) == (done.volumes, list(done.left_out.values()))
        assert found.measured == 4
        again = estimate_store([tmp_path / "a"], store, options)
        assert (again.there, again.bytes, again.left_out) == (7, 0, done.left_out)


def test_what_headers_say_of_corrections_decides(tmp_path: Path, said: Said) -> None:
    """A PET with and without attenuation corrected, an MR with and without its brightness evened out, and its map."""

    def taken(**elements: object) -> Callable[[Dataset, int], None]:
        def adjust(dataset: Dataset, z: int) -> None:
            dataset.AcquisitionDate, dataset.AcquisitionTime = "20200101", "120000"
            for name, value in elements.items():
                setattr(dataset, name, value)

        return adjust

    def write(name: str, modality: str, slices: int, *flavours: str, **elements: object) -> None:
        image_type = ("DERIVED" if "ADC" in flavours else "ORIGINAL", "PRIMARY", *flavours)
        given = {"modality": modality, "series": name, "image_type": image_type, "adjust": taken(**elements)}
        write_series(tmp_path / "a" / name, made_volume((8, 8, slices), slices), made_affine(), study=modality, **given)

    write("bare", "PT", 31, CorrectedImage=["DECY", "RADL"])
    write("corrected", "PT", 32, CorrectedImage=["DECY", "ATTN", "SCAT"])
    write("uneven", "MR", 33, "M", "ND", EchoTime=2.4)
    write("even", "MR", 34, "M", "NORM", "DIS2D", EchoTime=2.4)
    write("second echo", "MR", 36, "M", "ND", EchoTime=4.9)
    write("map", "MR", 35, "DIFFUSION", "ADC", EchoTime=70)
    build_index([tmp_path / "a"], tmp_path / "index", workers=1)
    _, told = said("store", tmp_path / "index", "--out", tmp_path / "s")
    assert sides(tmp_path / "s") == [("MR", 34), ("MR", 36), ("PT", 32)]
    for reason in (UNCORRECTED, SECOND, DERIVED):
        assert f"left out: 1 {reason}" in told.splitlines()
    said("store", tmp_path / "index", "--out", tmp_path / "every", "--all-reconstructions")
    assert len(Store(tmp_path / "every")) == 6


def test_of_a_real_study_the_corrected_t1_is_taken(tmp_path: Path, shared_data: Path) -> None:
    done = make_store([shared_data / "mr-brain-study"], tmp_path / "s", choice=ChoiceOptions())
    assert list(done.not_chosen.values()).count(SECOND) == 1 and not done.left_out
    shapes = sorted(volume.shape for volume in Store(tmp_path / "s").volumes)
    assert shapes.count((96, 128, 128)) == 1, "one of two T1 of the same acquisition"
