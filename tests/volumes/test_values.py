"""What a network saw tells images of another kind, and takes every ordinary one of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medssl.volumes import IntensityRule, statistics
from medssl.volumes.store.values import Values, doubtful, unlike

Image = NDArray[Any]
SHAPE = (24, 24, 20)
WINDOW, RAW, Z, PERCENTILE = (IntensityRule(kind=kind) for kind in ("window", "raw", "z-score", "percentile"))


def inside(shape: tuple[int, int, int], share: float) -> NDArray[np.bool_]:
    """An ellipsoid that fills about so much of the image."""
    grid = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    return np.asarray(sum(axis**2 for axis in grid) < (share * 6 / np.pi) ** (2 / 3))


def mr(seed: int, scale: float = 600.0, share: float = 0.4) -> Image:
    """A head: several tissues under a coil's shading with Rician noise, in air, in no unit; whole numbers where there are some."""
    rng = np.random.default_rng(seed)
    body = inside(SHAPE, share)
    tissue = rng.choice([0.25, 0.6, 0.8, 1.0], size=SHAPE) * (1 + 0.3 * np.linspace(-1, 1, SHAPE[0])[:, None, None])
    signal = np.where(body, tissue, 0) * scale
    noisy = np.hypot(signal + rng.normal(0, 0.03 * scale, SHAPE), rng.normal(0, 0.03 * scale, SHAPE))
    return noisy.round() if scale > 20 else noisy


def ct(seed: int, share: float = 0.4, pad: float = -1024.0, metal: bool = False) -> Image:
    """Fat, water, contrast and bone in air, in HU."""
    rng = np.random.default_rng(seed)
    tissue = rng.choice([-90.0, 40.0, 150.0, 700.0], p=[0.3, 0.5, 0.15, 0.05], size=SHAPE)
    image = np.where(inside(SHAPE, share), tissue, -1000.0) + rng.normal(0, 15, SHAPE)
    image[:2, :2] = pad
    if metal:
        image[10:12, 10, 10] = 12_000
    return image.round()


def unit(image: Image) -> Image:
    """ScaleIntensity."""
    return (image - image.min()) / (image.max() - image.min())


def both(image: Image) -> Image:
    """ScaleIntensityRange to -1..1."""
    low, high = np.percentile(image, (0.5, 99.5))
    return (np.clip(image, low, high) - low) / (high - low) * 2 - 1


def hounsfield(image: Image) -> Image:
    """ScaleIntensityRange of CT."""
    return np.clip((image + 1000) / 2000, 0, 1)


def normal(image: Image) -> Image:
    """NormalizeIntensity."""
    return (image - image.mean()) / image.std()


def nonzero(image: Image) -> Image:
    """NormalizeIntensity(nonzero=True) after the background was set to zero."""
    body = image > np.percentile(image, 60)
    return np.where(body, (image - image[body].mean()) / image[body].std(), 0)


def eight_bits(image: Image) -> Image:
    """What a converter to pictures makes of it."""
    return (unit(image) * 255).round()


def unscaled(image: Image) -> Image:
    """CT without its rescale intercept."""
    return np.maximum(image + 1024, 0)


def seen(make: Callable[[int], Image], count: int = 6) -> Values:
    return Values.of(statistics(make(seed)) for seed in range(count))


def verdict(image: Image, of: Values, rule: IntensityRule) -> str:
    numbers = statistics(image)
    if unlike(numbers, [of], rule):
        return "unlike"
    return "doubtful" if rule.kind == "raw" and doubtful(numbers, [of]) else "alike"


KINDS: dict[str, Callable[[int], Image]] = {
    "CT in HU": ct,
    "CT unscaled": lambda seed: unscaled(ct(seed)),
    "CT 0..1": lambda seed: hounsfield(ct(seed)),
    "CT -1..1": lambda seed: hounsfield(ct(seed)) * 2 - 1,
    "CT z-scored": lambda seed: normal(ct(seed)),
    "MR": lambda seed: mr(seed, 300.0 + 150 * (seed % 6)),
    "MR 0..1": lambda seed: unit(mr(seed)),
    "MR -1..1": lambda seed: both(mr(seed)),
    "MR z-scored": lambda seed: normal(mr(seed)),
    "MR z-scored by its body": lambda seed: nonzero(mr(seed)),
    "8 bits": lambda seed: eight_bits(mr(seed)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", [WINDOW, RAW, Z, PERCENTILE], ids=lambda rule: rule.kind)
def test_others_of_the_same_kind_are_taken(kind: str, rule: IntensityRule) -> None:
    known = seen(KINDS[kind])
    assert {verdict(KINDS[kind](seed), known, rule) for seed in range(6, 30)} == {"alike"}


@pytest.mark.parametrize(
    ("known", "other", "expected"),
    [
        *[("CT in HU", other, "unlike") for other in KINDS if other != "CT in HU"],
        *[("MR z-scored", other, "unlike") for other in ("CT in HU", "CT unscaled", "MR", "8 bits", "MR 0..1", "CT 0..1")],
        *[("MR z-scored by its body", other, "unlike") for other in ("CT in HU", "MR", "8 bits", "MR 0..1")],
        *[("CT z-scored", other, "unlike") for other in ("CT in HU", "CT unscaled", "CT 0..1", "MR", "8 bits")],
        *[("MR 0..1", other, "unlike") for other in ("CT in HU", "MR", "8 bits", "MR -1..1", "MR z-scored", "MR z-scored by its body")],
        *[("CT -1..1", other, "unlike") for other in ("CT in HU", "CT unscaled", "CT 0..1", "MR", "8 bits")],
        *[("MR", other, "unlike") for other in ("CT in HU", "MR 0..1", "MR -1..1", "MR z-scored")],
        *[("8 bits", other, "unlike") for other in ("CT in HU", "MR 0..1", "MR z-scored", "CT -1..1")],
        ("MR -1..1", "MR z-scored by its body", "doubtful"),
        ("CT 0..1", "8 bits", "unlike"),
    ],
)
def test_what_was_shown_as_it_is_tells_every_other_unit(known: str, other: str, expected: str) -> None:
    """A run on a dataset whose transforms had made its values."""
    assert {verdict(KINDS[other](seed), seen(KINDS[known]), RAW) for seed in range(6)} == {expected}


@pytest.mark.parametrize("other", ["CT unscaled", "CT 0..1", "CT -1..1", "CT z-scored", "MR", "MR z-scored", "8 bits"])
def test_a_window_reads_values_in_their_unit(other: str) -> None:
    assert {verdict(KINDS[other](seed), seen(ct), WINDOW) for seed in range(6)} == {"unlike"}


@pytest.mark.parametrize("rule", [Z, PERCENTILE], ids=lambda rule: rule.kind)
@pytest.mark.parametrize("other", ["MR 0..1", "MR -1..1", "MR z-scored", "MR z-scored by its body", "CT in HU"])
def test_normalised_twice_is_noticed(other: str, rule: IntensityRule) -> None:
    assert {verdict(KINDS[other](seed), seen(KINDS["MR"]), rule) for seed in range(6)} == {"unlike"}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    scale=st.floats(0.5, 1e6),
    share=st.floats(0.08, 0.9),
    rule=st.sampled_from([Z, PERCENTILE]),
)
def test_scale_and_offset_of_mr_are_no_reason(seed: int, scale: float, share: float, rule: IntensityRule) -> None:
    """Vendors scale as they like, from fractions to millions; only what lies within 0 and 1 looks normalised."""
    image = mr(seed, max(scale, 2.0), share)
    assert verdict(image, seen(KINDS["MR"]), rule) == "alike"


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), share=st.floats(0.08, 0.95), pad=st.sampled_from([-3024.0, -2000.0, -1024.0, -1000.0]), metal=st.booleans()
)
def test_padding_metal_and_field_of_view_of_ct_are_no_reason(seed: int, share: float, pad: float, metal: bool) -> None:
    assert verdict(ct(seed, share, pad, metal), seen(ct), WINDOW) == "alike"


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    share=st.floats(0.15, 0.8),
    scale=st.floats(20, 5000),
    make=st.sampled_from([unit, normal, both, eight_bits]),
)
def test_normalised_images_vary_with_what_they_show(seed: int, share: float, scale: float, make: Callable[[Image], Image]) -> None:
    known = Values.of(statistics(make(mr(number, 300.0 + 100 * number, 0.25 + 0.08 * number))) for number in range(6))
    assert verdict(make(mr(seed, scale, share)), known, RAW) != "unlike"


@pytest.mark.parametrize(
    ("folder", "usual", "makes"),
    [("hippocampus/imagesTr", Z, [unit, normal, eight_bits]), ("openkbp/images", WINDOW, [unit, normal, hounsfield, unscaled])],
    ids=["MR", "CT"],
)
def test_real_images_are_told_as_the_made_ones(
    shared_data: Path, folder: str, usual: IntensityRule, makes: list[Callable[[Image], Image]]
) -> None:
    """MR whose largest value runs from 99 to 1.7 million, partly in 8 bits; CT of heads and necks cut out of their air."""
    files = sorted((shared_data / folder).glob("[a-z]*.nii.gz"))
    images = [np.asarray(nib.load(file).dataobj, np.float32) for file in files[:33]]
    few, others = images[: len(images) // 3], images[len(images) // 3 :]
    stored = Values.of(map(statistics, few))
    assert {verdict(image, stored, usual) for image in others} == {"alike"}
    for make in makes:
        known = Values.of(statistics(make(image)) for image in few)
        assert {verdict(make(image), known, RAW) for image in others} == {"alike"}
        if make is not eight_bits:
            assert {verdict(make(image), stored, usual) for image in others} == {"unlike"}
        if make is not unscaled and make is not eight_bits:
            assert {verdict(image, known, RAW) for image in others} == {"unlike"}
