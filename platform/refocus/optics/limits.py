"""What objectives, cameras and stages there are, for those who check what is said of one: the least and the most.

Microscopes keep these bounds by far; a number of nm in place of um does not. Imports nothing, so that commands start
fast.
"""

from __future__ import annotations

APERTURE = (0.01, 1.7)
PIXEL_SIZE_UM = (1e-3, 100.0)
Z_STEP_UM = (1e-3, 100.0)
WAVELENGTH_UM = (0.1, 2.0)
