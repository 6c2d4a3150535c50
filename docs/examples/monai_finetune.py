"""An existing MONAI training script that starts from medssl's weights: `load_pretrained` is the only line that is new.

python monai_finetune.py IMAGES_FOLDER LABELS_FOLDER RUN_OR_CHECKPOINT --out segmenter.pt
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from monai.data import DataLoader, Dataset
from monai.losses import DiceCELoss
from monai.networks.nets import SegResNet
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Identityd,
    LoadImaged,
    Orientationd,
    RandCropByPosNegLabeld,
    Spacingd,
    SpatialPadd,
)
from monai.utils import set_determinism

from medssl.monai import PrepareImaged, load_pretrained

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("images", type=Path, help="a folder of .nii.gz files")
parser.add_argument("labels", type=Path, help="their label maps, of the same names")
parser.add_argument("checkpoint", type=Path, help="a run of medssl pretrain, or one of its checkpoints")
parser.add_argument("--out", type=Path, default=Path("segmenter.pt"))
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--size", type=int, default=32)
parser.add_argument("--classes", type=int, default=3)


def main(arguments: list[str] | None = None) -> list[float]:
    """Fine-tune, save the network's weights, and return the mean loss of each epoch."""
    given = parser.parse_args(arguments)
    set_determinism(0)
    both, prepare = ["image", "label"], PrepareImaged("image", given.checkpoint)  # intensities as in the pretraining
    transforms = Compose(
        [
            LoadImaged(both),
            EnsureChannelFirstd(both),
            Orientationd(both, axcodes="RAS"),
            # voxels as in the pretraining, where it resampled its volumes
            Spacingd(both, prepare.spacing, mode=("bilinear", "nearest")) if prepare.spacing else Identityd(both),
            prepare,
            SpatialPadd(both, [given.size] * 3),
            RandCropByPosNegLabeld(both, "label", [given.size] * 3, num_samples=2),
        ]
    )
    files = [{"image": path, "label": given.labels / path.name} for path in sorted(given.images.glob("*.nii.gz"))]
    loader = DataLoader(Dataset(files, transforms), batch_size=1, shuffle=True)

    network, report = load_pretrained(partial(SegResNet, spatial_dims=3, init_filters=8), given.checkpoint, out_channels=given.classes)
    print(report)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True)
    means = []
    for epoch in range(given.epochs):
        losses = []
        for batch in loader:
            optimizer.zero_grad()
            loss = loss_function(network(batch["image"]), batch["label"])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        means.append(sum(losses) / len(losses))
        print(f"epoch {epoch + 1}: loss {means[-1]:.4f}")
    torch.save(network.state_dict(), given.out)
    return means


if __name__ == "__main__":
    main()
