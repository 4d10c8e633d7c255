"""Whether an RGB image shows a coloured specimen, or holds channels of light.

Fluorescence is often saved as RGB: with three equal channels, in one of them with the other two constant, or several
channels merged, on a ground that is dark where that of a section is bright.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refocus.model.specimen import Specimen
from refocus.zstack import Modality

Pixels = npt.NDArray[Any]

#: Ground is dark where most pixels have less than this share of the brightest. 113 stained sections have 0.6 and more,
#: 93% of 300 mergers of two or three fluorescence images less.
_DARK_GROUND = 0.4


def colors_held(planes: Pixels) -> int:
    """Return 3 where planes [P, Y, X, 3] are images of a coloured specimen, 1 where they hold light, or are grey.

    Examples
    --------
    >>> ramp = np.arange(12.0).reshape(1, 3, 4)
    >>> colors_held(np.stack([ramp, ramp, ramp], axis=-1)), colors_held(np.stack([ramp, -ramp, ramp], axis=-1))
    (1, 3)
    """
    if planes.ndim != 4 or planes.shape[-1] != 3 or only_channel(planes) is not None:
        return 1
    return 1 if _on_dark_ground(planes) else 3


def modality_seen(planes: Pixels) -> Modality:
    """Return what planes [P, Y, X] or [P, Y, X, 3] are taken for where nobody says it."""
    return "brightfield" if colors_held(planes) == 3 else "fluorescence"


def only_channel(planes: Pixels) -> int | None:
    """Return the channel of RGB planes [..., 3] that holds all there is: the others are equal to it, or constant.

    None where there are several.
    """
    # Few pixels show nearly every coloured image.
    return None if _only_channel(planes[..., ::16, ::16, :]) is None else _only_channel(planes)


def _only_channel(planes: Pixels) -> int | None:
    channels = [planes[..., color] for color in range(3)]
    if all(np.array_equal(channels[0], other) for other in channels[1:]):
        return 0
    varying = [color for color, channel in enumerate(channels) if channel.min() < channel.max()]
    return varying[0] if len(varying) == 1 else 0 if not varying else None


def _on_dark_ground(planes: Pixels) -> bool:
    if not _mostly_dark(planes[:, ::4, ::4]):
        return False
    # A section may be padded with black, or cut out.
    return all(_mostly_dark(np.moveaxis(Specimen.of(np.moveaxis(plane, -1, 0)).visible(), 0, -1)) for plane in planes)


def _mostly_dark(colors: Pixels) -> bool:
    """Whether most pixels [..., 3] are dark, by the brightest of their colours."""
    brightest = colors.max(-1)
    usual, most = np.percentile(brightest, [50.0, 99.8])
    return bool(usual < _DARK_GROUND * most)
