"""A LightningModule trains on torch's own loader with workers, which seeds no transforms: every item has a question of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks.nets import SegResNet
from torch import Tensor

from medssl.monai import PretextLoss, PretextTaskd, prepare_pretext_batch

lightning: Any = pytest.importorskip("lightning", reason="Lightning is not installed; pip install 'medssl[test]' brings it")
pytest.importorskip("medssl_inpainting")


class Images(torch.utils.data.Dataset[Any]):
    def __init__(self) -> None:
        self.transform = PretextTaskd("image", "inpainting", block=4)

    def __len__(self) -> int:
        return 16

    def __getitem__(self, number: int) -> Any:
        return self.transform({"image": torch.full((1, 16, 16, 16), float(number)) + torch.arange(16.0)})


class Pretraining(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.loss = PretextLoss("inpainting", block=4)
        self.network = SegResNet(3, 8, 1, self.loss.outputs, blocks_down=(1, 1), blocks_up=(1,))
        self.masks: list[bytes] = []

    def training_step(self, batch: Any) -> Tensor:
        self.masks += [one.numpy().tobytes() for one in batch["weight"]]
        image, label = prepare_pretext_batch(batch, self.device)
        loss: Tensor = self.loss(self.network(image), label)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.network.parameters(), 1e-3)


@pytest.mark.parametrize("workers", [0, 2])
def test_sixteen_items_have_sixteen_masks_in_every_epoch(workers: int, tmp_path: Any) -> None:
    module = Pretraining()
    before = [parameter.clone() for parameter in module.network.parameters()]
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    trainer.fit(module, torch.utils.data.DataLoader(Images(), batch_size=4, num_workers=workers))
    assert len(module.masks) == 32
    assert len(set(module.masks)) == 32
    assert any(not torch.equal(was, now) for was, now in zip(before, module.network.parameters(), strict=True))
