"""The second network of adversarial recipes: it judges what the first one makes, and only training sees it."""

from __future__ import annotations

from torch import Tensor, nn


class Discriminator(nn.Module):
    """Tells in-focus images from refocused ones: strided 3 x 3 convolutions, then one score an image.

    It averages over the whole crop, which only training sees.

    Parameters
    ----------
    channels : int
    width : int
        Features after the first block; they double four times.
    """

    def __init__(self, channels: int = 1, width: int = 24) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        given = channels
        for level in range(5):
            wanted = width * 2**level
            layers += [
                nn.Conv2d(given, wanted, 3, padding=1),
                nn.LeakyReLU(0.1),
                nn.Conv2d(wanted, wanted, 3, stride=2, padding=1),
                nn.LeakyReLU(0.1),
            ]
            given = wanted
        self.features = nn.Sequential(*layers)
        self.score = nn.Sequential(nn.Linear(given, given), nn.LeakyReLU(0.1), nn.Linear(given, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return scores of shape [B]; 1 means in focus, 0 refocused."""
        return self.score(self.features(x).mean((2, 3))).float().squeeze(1)
