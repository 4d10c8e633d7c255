"""Procedural 3-D specimens with the texture that real ones have, for tests, demonstrations and breadth in training.

>>> import torch
>>> from refocus.optics.specimens import SPECIMENS, grow
>>> nuclei = grow("nuclei", size_px=(64, 64), pixel_size_um=0.5, seed=1)
>>> nuclei.light.shape[1:], nuclei.modality
(torch.Size([64, 64]), 'fluorescence')
"""

from refocus.optics.specimens.catalogue import SPECIMENS, grow
from refocus.optics.specimens.specimen import Grid, Specimen

__all__ = ["SPECIMENS", "Grid", "Specimen", "grow"]
