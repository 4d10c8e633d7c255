"""What networks are made of. No block looks beyond its receptive field: no global pooling, no norm over positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel by itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        rows = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6)
        return rows.permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions around a rectifier, added to the input. The branch starts small."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        if self.first.weight.is_meta:
            # Nothing to draw, and drawing would have torch load its compiler: more than a second of every start.
            return
        nn.init.kaiming_normal_(self.first.weight, nonlinearity="relu")
        nn.init.kaiming_normal_(self.second.weight, nonlinearity="linear")
        with torch.no_grad():
            # Without normalisation each block would double the variance of what passes through it.
            self.second.weight.mul_(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x)))


class NafBlock(nn.Module):
    """NAFNet's block without channel attention, whose global mean would differ from tile to tile."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm_space = ChannelNorm(channels)
        self.expand = nn.Conv2d(channels, 2 * channels, 1)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.project = nn.Conv2d(channels, channels, 1)
        self.norm_feature = ChannelNorm(channels)
        self.widen = nn.Conv2d(channels, 2 * channels, 1)
        self.narrow = nn.Conv2d(channels, channels, 1)
        for branch in (self.project, self.narrow):
            with torch.no_grad():
                branch.weight.mul_(0.2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.depthwise(self.expand(self.norm_space(x))).chunk(2, 1)
        x = x + self.project(left * right)
        left, right = self.widen(self.norm_feature(x)).chunk(2, 1)
        return x + self.narrow(left * right)
