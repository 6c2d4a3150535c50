"""Consistency losses for medssl: on answers, on embeddings, and on the voxels of feature maps."""

from __future__ import annotations

from medssl import hookimpl
from medssl.contracts import ConsistencyLoss, PretextTask
from medssl_consistency.agreement import Agreement
from medssl_consistency.byol import BYOL
from medssl_consistency.dense_agreement import DenseAgreement
from medssl_consistency.dino import DINO
from medssl_consistency.ibot import IBOT
from medssl_consistency.moco import MoCo, MoCoV3
from medssl_consistency.pirl import PIRL
from medssl_consistency.redundancy import BarlowTwins, VICReg
from medssl_consistency.simclr import SimCLR
from medssl_consistency.simsiam import SimSiam
from medssl_consistency.uda import UDA
from medssl_consistency.voxel_contrast import VoxelContrast

__all__ = [
    "BYOL",
    "DINO",
    "IBOT",
    "PIRL",
    "UDA",
    "Agreement",
    "BarlowTwins",
    "DenseAgreement",
    "MoCo",
    "MoCoV3",
    "SimCLR",
    "SimSiam",
    "VICReg",
    "VoxelContrast",
    "medssl_consistency_losses",
    "medssl_pretext_tasks",
]


@hookimpl
def medssl_consistency_losses() -> list[type[ConsistencyLoss]]:
    """What this package brings."""
    return [Agreement, BarlowTwins, BYOL, DenseAgreement, DINO, MoCo, MoCoV3, PIRL, SimCLR, SimSiam, UDA, VICReg, VoxelContrast]


@hookimpl
def medssl_pretext_tasks() -> list[type[PretextTask]]:
    """Self-distillation of hidden cells is a task: it hides them itself."""
    return [IBOT]
