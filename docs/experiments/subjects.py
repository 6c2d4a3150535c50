"""What is tried: every installed task and loss, and several tasks at once; each with the set, the network and the options it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from medssl.plugins import Plugins

Terms = tuple[dict[str, Any], ...]
CROPS: dict[str, tuple[int, ...]] = {"hippocampus": (24, 48, 24), "channels": (24, 48, 24), "colour": (64, 64), "frames": (64, 64)}
"""Sides of the crops of each set."""
RANDOM = "random weights"
"""What a row is called whose network is not trained."""
CHANNELS = {"hippocampus": 1, "channels": 2, "colour": 3, "frames": 4}


@dataclass(frozen=True)
class Subject:
    """One thing to pretrain with."""

    name: str
    tasks: Terms = ()
    losses: Terms = ()
    set: str = "hippocampus"
    network: str = "UNet"
    combine: str = "sum"
    rate: float = 3e-3

    @property
    def kind(self) -> str:
        """In which table it stands."""
        if self.name.startswith(RANDOM):
            return RANDOM
        return "loss" if self.losses else "task" if len(self.tasks) == 1 else "several tasks"

    @property
    def crop(self) -> tuple[int, ...]:
        """Sides of its crops."""
        return CROPS[self.set]

    @property
    def batch(self) -> int:
        """Crops a step: losses compare those of a batch, and images of two dimensions are small."""
        return 16 if len(self.crop) == 2 else 8 if self.losses else 4

    def spec(self) -> dict[str, Any]:
        """The network, as a configuration has it."""
        found: dict[str, Any] = {"name": self.network, "spatial_dims": len(self.crop), "in_channels": CHANNELS[self.set]}
        if self.network == "ViT":
            sides = {"img_size": list(self.crop), "patch_size": [4, 8, 4]}
            return {**found, "options": {**sides, "hidden_size": 48, "mlp_dim": 96, "num_layers": 4, "num_heads": 4}}
        return {**found, "options": {"channels": [8, 16, 32, 64], "strides": [2, 2, 1], "num_res_units": 1}}


INPAINTING, JIGSAW = {"name": "inpainting"}, {"name": "jigsaw"}
# Every volume shows the same, and is some 40 mm long.
POSITION = {"name": "position", "unit": "share"}
COLOURS = {"name": "colorization", "brightest": 1.0, "bin": 40}
OWN = {
    "position": Subject("position", (POSITION,)),
    # A narrower decoder than the default: it is three quarters of the time otherwise.
    "autoencoder": Subject("autoencoder", ({"name": "autoencoder", "width": 8},)),
    "colorization": Subject("colorization", (COLOURS,), set="colour"),
    "cross-modality": Subject("cross-modality", ({"name": "cross-modality"},), set="channels"),
    "frame-order": Subject("frame-order", ({"name": "frame-order"},), set="frames"),
    "masked-autoencoder": Subject("masked-autoencoder", ({"name": "masked-autoencoder"},), network="ViT", rate=1e-3),
    # The long side of the crop: along the others there is no room for so many slabs.
    "slice-order": Subject("slice-order", ({"name": "slice-order", "axis": "y"},)),
    "order-verification": Subject("order-verification", ({"name": "order-verification", "axis": "y"},)),
    "ibot": Subject("ibot", ({"name": "ibot", "prototypes": 64, "hidden": 64, "bottleneck": 32},)),
    # Losses on what tasks answer or show.
    "agreement": Subject("agreement", (INPAINTING,), ({"name": "agreement"},)),
    "uda": Subject("uda", (COLOURS,), ({"name": "uda"},), set="colour"),
    "pirl": Subject("pirl", (JIGSAW,), ({"name": "pirl"},)),
}
"""Those that need something else than the defaults on hippocampus."""
THREE = ({"name": "region-matching"}, {"name": "inpainting"}, POSITION)
SEVERAL = [
    Subject("next-slice of frames", ({"name": "next-slice", "of": "frames", "ahead": 1},), set="frames"),
    *[Subject(f"region-matching + inpainting + position, {combine}", THREE, combine=combine) for combine in ("sum", "balanced", "turns")],
]


def subjects(plugins: Plugins) -> list[Subject]:
    """Random weights of each network and set, then every installed task, every loss, and what is tried beside."""
    tasks = [OWN.get(name, Subject(name, ({"name": name},))) for name in sorted(plugins.tasks())]
    losses = [OWN.get(name, Subject(name, (), ({"name": name},))) for name in sorted(plugins.losses())]
    found = [*tasks, *losses, *SEVERAL]
    places = sorted({(one.set, one.network, _grey(one)) for one in found})
    return [*[Subject(_random(*place), COLOURS_ALONE if place[2] else (), set=place[0], network=place[1]) for place in places], *found]


def random_of(subject: Subject) -> str:
    """The name of the row of the same network without training."""
    return _random(subject.set, subject.network, _grey(subject))


COLOURS_ALONE = (COLOURS,)


def _grey(subject: Subject) -> bool:
    """Whether the network is shown brightness alone."""
    return any(term["name"] == "colorization" for term in subject.tasks)


def _random(kind: str, network: str, grey: bool) -> str:
    return f"{RANDOM}: {network}, {kind}{' in grey' if grey else ''}"
