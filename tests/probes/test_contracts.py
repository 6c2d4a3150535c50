"""The probes keep the public contract, in 2D and 3D."""

from __future__ import annotations

from medssl.testing import ConsistencyLossContract, PretextTaskContract
from probes.alignment import Alignment
from probes.latent_targets import IJEPA, SelfDistillation
from probes.overlap import Overlap
from probes.pictures import BodyPosition, Colour, Halves, Hierarchy, Ramp, Windows


class TestIJEPA(PretextTaskContract):
    task = IJEPA


class TestSelfDistillation(PretextTaskContract):
    task = SelfDistillation


class TestOverlap(PretextTaskContract):
    task = Overlap
    random = False


class TestColour(PretextTaskContract):
    task = Colour
    channels = 3
    random = False


class TestWindows(PretextTaskContract):
    task = Windows
    channels = 2


class TestBodyPosition(PretextTaskContract):
    task = BodyPosition
    random = False


class TestHalves(PretextTaskContract):
    task = Halves


class TestHierarchy(PretextTaskContract):
    task = Hierarchy


class TestRamp(PretextTaskContract):
    task = Ramp


class TestAlignment(ConsistencyLossContract):
    loss = Alignment
