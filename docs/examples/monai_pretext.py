"""Pretraining inside an existing MONAI training script: one transform and one loss come from medssl, all else is MONAI's own.

python monai_pretext.py IMAGES_FOLDER --out inpainting.pt
"""

import argparse
from pathlib import Path

import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.handlers import MetricLogger, StatsHandler
from monai.networks.nets import SegResNet
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, NormalizeIntensityd, RandSpatialCropd, SpatialPadd
from monai.utils import set_determinism

from medssl.monai import PretextLoss, PretextTaskd

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("images", type=Path, help="a folder of .nii.gz files")
parser.add_argument("--out", type=Path, default=Path("inpainting.pt"))
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--size", type=int, default=32)
parser.add_argument("--workers", type=int, default=2)


def main(arguments: list[str] | None = None) -> list[float]:
    """Train, save the network's weights, and return the loss of each step."""
    given = parser.parse_args(arguments)
    set_determinism(0)
    transforms = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            NormalizeIntensityd("image"),
            SpatialPadd("image", [given.size] * 3),
            RandSpatialCropd("image", [given.size] * 3, random_size=False),
            PretextTaskd("image", task="inpainting", ratio=0.6),
        ]
    )
    dataset = Dataset([{"image": path} for path in sorted(given.images.glob("*.nii.gz"))], transforms)
    loader = DataLoader(dataset, batch_size=2, shuffle=True, num_workers=given.workers)

    loss = PretextLoss("inpainting", ratio=0.6)
    network = SegResNet(spatial_dims=3, init_filters=8, in_channels=1, out_channels=loss.outputs)
    losses = MetricLogger(loss_transform=lambda output: output[0]["loss"])
    trainer = SupervisedTrainer(
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        max_epochs=given.epochs,
        train_data_loader=loader,
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), 1e-3),
        loss_function=loss,
        prepare_batch=question_and_batch,
        train_handlers=[losses, StatsHandler(output_transform=lambda output: output[0]["loss"])],
    )
    trainer.run()
    torch.save(network.state_dict(), given.out)
    return [float(value) for _, value in losses.loss]


def question_and_batch(batch, device, non_blocking, **_):
    """What the network is shown, and the batch, in which the loss finds target, weight and whatever else its task needs."""
    moved = {key: value.to(device, non_blocking=non_blocking) for key, value in batch.items() if isinstance(value, torch.Tensor)}
    return moved["image"], moved


if __name__ == "__main__":
    main()
