"""medssl inside an existing MONAI pipeline: pretext tasks as dictionary transforms, their losses, and pretrained weights.

    transforms = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), ..., PretextTaskd("image", task="inpainting", ratio=0.6)])
    loss = PretextLoss("inpainting", ratio=0.6)                                  # loss(network(batch["image"]), batch)

    transforms = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), PrepareImaged("image", "runs/pretrained"), ...])
    network, report = load_pretrained(partial(SegResNet, ...), "runs/pretrained", out_channels=3)

The transforms follow MONAI's conventions: they compose, are seeded by `set_random_state` (and so by MONAI's `DataLoader` in each
worker), keep `MetaTensor`s and honour `allow_missing_keys`. Names are loaded when first used. docs/for-monai-users.md shows them at work.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medssl.learn.teacher import EMATeacher
    from medssl.monai.answering import PretextNetwork
    from medssl.monai.consistency import AgreementLoss, ConsistencyOnTensors, DenseAgreementLoss
    from medssl.monai.losses import DeepSupervisionLoss, PretextLoss, prepare_pretext_batch
    from medssl.monai.prepare import PrepareImage, PrepareImageD, PrepareImaged, PrepareImageDict
    from medssl.monai.questions import PretextTaskD, PretextTaskd, PretextTaskDict, PretextTaskTransform
    from medssl.monai.reader import MedsslReader
    from medssl.networks import decoder_parameters, encoder, encoder_parameters
    from medssl.transfer import load_into, load_pretrained
    from medssl.volumes import Store, store_items

_WHERE = {
    "AgreementLoss": "medssl.monai.consistency",
    "ConsistencyOnTensors": "medssl.monai.consistency",
    "DeepSupervisionLoss": "medssl.monai.losses",
    "DenseAgreementLoss": "medssl.monai.consistency",
    "EMATeacher": "medssl.learn.teacher",
    "MedsslReader": "medssl.monai.reader",
    "PrepareImage": "medssl.monai.prepare",
    "PrepareImageD": "medssl.monai.prepare",
    "PrepareImageDict": "medssl.monai.prepare",
    "PrepareImaged": "medssl.monai.prepare",
    "PretextLoss": "medssl.monai.losses",
    "PretextNetwork": "medssl.monai.answering",
    "PretextTaskD": "medssl.monai.questions",
    "PretextTaskDict": "medssl.monai.questions",
    "PretextTaskTransform": "medssl.monai.questions",
    "PretextTaskd": "medssl.monai.questions",
    "Store": "medssl.volumes",
    "decoder_parameters": "medssl.networks",
    "encoder": "medssl.networks",
    "encoder_parameters": "medssl.networks",
    "load_into": "medssl.transfer",
    "load_pretrained": "medssl.transfer",
    "prepare_pretext_batch": "medssl.monai.losses",
    "store_items": "medssl.volumes",
}

__all__ = [
    "AgreementLoss",
    "ConsistencyOnTensors",
    "DeepSupervisionLoss",
    "DenseAgreementLoss",
    "EMATeacher",
    "MedsslReader",
    "PrepareImage",
    "PrepareImageD",
    "PrepareImageDict",
    "PrepareImaged",
    "PretextLoss",
    "PretextNetwork",
    "PretextTaskD",
    "PretextTaskDict",
    "PretextTaskTransform",
    "PretextTaskd",
    "Store",
    "decoder_parameters",
    "encoder",
    "encoder_parameters",
    "load_into",
    "load_pretrained",
    "prepare_pretext_batch",
    "store_items",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'medssl.monai' has no attribute '{name}'")


def __dir__() -> list[str]:
    return list(__all__)
