"""The encoder of a network that somebody else has built, as a module, and its share of the weights."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from monai.networks.nets import BasicUNet, DynUNet, SegResNet, SwinUNETR, UNet, ViT, resnet10
from torch import nn

import medssl
from medssl.errors import NetworkError

NETWORKS = {
    "SegResNet": (lambda: SegResNet(spatial_dims=3, in_channels=2, init_filters=8), (2, 32, 32, 32), 64),
    "UNet": (lambda: UNet(2, 1, 2, channels=(4, 8, 16), strides=(2, 2), num_res_units=1), (1, 32, 32), 16),
    "BasicUNet": (lambda: BasicUNet(2, 1, 2, features=(4, 4, 8, 8, 16, 4)), (1, 32, 32), 16),
    "DynUNet": (lambda: DynUNet(2, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 16]), (1, 32, 32), 16),
    "ViT": (lambda: ViT(1, (32, 32), (16, 16), hidden_size=24, mlp_dim=24, num_layers=1, num_heads=2, spatial_dims=2), (1, 32, 32), 24),
    "resnet10": (lambda: resnet10(spatial_dims=2, n_input_channels=1, num_classes=2), (1, 64, 64), 512),
    "SwinUNETR": (lambda: SwinUNETR(in_channels=1, out_channels=2, feature_size=12, spatial_dims=2), (1, 64, 64), 192),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_embeds_and_splits_the_weights(name: str) -> None:
    make, shape, width = NETWORKS[name]
    network = make()
    encoder = medssl.encoder(network)
    images = torch.randn(2, *shape)
    embedding = encoder(images)
    assert embedding.shape == (2, width)
    maps = encoder.maps(images)
    assert torch.allclose(maps[-1].flatten(2).mean(2), encoder.end(images).flatten(2).mean(2), atol=1e-5) or network.training
    assert all(one.shape[2] >= other.shape[2] for one, other in pairwise(maps))
    ours, others = medssl.encoder_parameters(network), medssl.decoder_parameters(network)
    assert ours
    assert len({id(parameter) for parameter in [*ours, *others]}) == len(ours) + len(others) == len(list(network.parameters()))
    for parameter in others:
        parameter.requires_grad_(False)
    embedding.sum().backward()
    assert all(parameter.grad is not None for parameter in ours)
    assert all(parameter.grad is None for parameter in others)
    network(images)  # its own forward pass is as it was


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.ReLU())
        self.top = nn.ConvTranspose2d(6, 2, 2, stride=2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.top(self.body(images))


def test_an_own_network_says_where_its_encoder_ends() -> None:
    with pytest.raises(NetworkError, match="encoder_end=NAME.*body, body.0, body.1, top"):
        medssl.encoder(Own())
    network = Own()
    assert medssl.encoder(network, encoder_end="body")(torch.randn(3, 1, 8, 8)).shape == (3, 6)
    assert medssl.encoder_parameters(network, encoder_end="body") == list(network.body.parameters())
    with pytest.raises(NetworkError, match="Did you mean 'body'"):
        medssl.encoder(network, encoder_end="boddy")
