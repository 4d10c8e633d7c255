"""What OME-XML says of the optics, read by pattern: a description from the network is never parsed as XML."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping

#: Micrometres in one unit, by the names that OME, ImageJ and people use.
UNITS_UM: Mapping[str, float] = {
    "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "\\u00b5m": 1.0, "\\u00B5m": 1.0,
    "nm": 1e-3, "nanometer": 1e-3, "pm": 1e-6, "Å": 1e-4, "A": 1e-4, "angstrom": 1e-4,
    "mm": 1e3, "millimeter": 1e3, "cm": 1e4, "centimeter": 1e4, "m": 1e6, "meter": 1e6, "inch": 25400.0, "in": 25400.0,
}  # fmt: skip
_ROOT = re.compile(r"<(\w+:)?OME\b")

_NUMBER = r"([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)"
#: Beyond this a number is nonsense, infinity among it.
_LARGEST = 1e12


def is_ome(description: str) -> bool:
    """Whether a TIFF's description is OME-XML."""
    return _ROOT.search(description) is not None


def prefix_of(xml: str) -> str:
    """What stands before the names of OME's elements, colon included; mostly nothing."""
    root = _ROOT.search(xml)
    return "" if root is None or root[1] is None else root[1]


def number_said(xml: str, name: str) -> float | None:
    """The positive number that the first attribute of this name has.

    Examples
    --------
    >>> number_said('<Objective LensNA="0.75"/>', "LensNA")
    0.75
    """
    found = re.search(rf'\b{name}="{_NUMBER}"', xml)
    value = float(found[1]) if found else 0.0
    return value if 0.0 < value < _LARGEST else None


def length_said_um(xml: str, name: str, *, unit: str) -> float | None:
    """The length that the first attribute of this name has, in um; in `unit` where its element names none.

    Examples
    --------
    >>> length_said_um('<Pixels PhysicalSizeX="325" PhysicalSizeXUnit="nm"/>', "PhysicalSizeX", unit="µm")
    0.325
    """
    first = re.search(rf'\b{name}="', xml)
    if first is None:
        return None
    # Cut out by its ends: a pattern for all of it looks from every attribute to the end of what never closes.
    element = xml[xml.rfind("<", 0, first.start()) : xml.find(">", first.end())]
    value = number_said(element, name)
    said = re.search(rf'\b{name}Unit="([^"]*)"', element)
    # Writers that keep to ASCII say a micrometre with a character reference.
    factor = UNITS_UM.get(html.unescape(said[1]) if said else unit)
    return None if value is None or factor is None else value * factor
