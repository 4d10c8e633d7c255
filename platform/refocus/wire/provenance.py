"""Where an image says which model made it, without disturbing what it said before."""

from __future__ import annotations

import json
import re
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from refocus.wire.image import Provenance
from refocus.wire.ome import is_ome, prefix_of

_OME_2016 = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
# Up to the next annotation and no further: a description comes from the network, and thousands that never close would
# each be followed to its end.
_OURS = re.compile(
    r'<(\w+:)?MapAnnotation ID="Annotation:Refocus"(?:(?!<(\w+:)?MapAnnotation\b).)*?</(\w+:)?MapAnnotation>', re.DOTALL
)


def described(description: str, provenance: Provenance | None) -> str:
    """Return a TIFF description with the provenance added, in the language that it is written in.

    OME-XML gets a map annotation, ImageJ's lines get lines, tifffile's JSON gets a key, free text a line.
    """
    if provenance is None:
        return description
    facts = provenance.items()
    if is_ome(description):
        return _in_ome_xml(description, facts)
    if description.startswith("ImageJ="):
        kept = [line for line in description.splitlines() if not line.startswith("refocus_")]
        return "\n".join([*kept, *(f"refocus_{key}={_ascii(value)}" for key, value in facts.items())]) + "\n"
    shaped = _mapping_in(description)
    if shaped is not None:
        return json.dumps({**shaped, "refocus": facts})
    line = "Refocus: " + "; ".join(f"{key}={value}" for key, value in facts.items())
    return "\n".join([*(old for old in description.splitlines() if not old.startswith("Refocus: ")), line])


def counts_pages(description: str) -> bool:
    """Whether a description says how many pages there are, as OME-XML, ImageJ's lines and tifffile's JSON do.

    Examples
    --------
    >>> counts_pages('{"shape": [2, 64, 64]}'), counts_pages("slide 7")
    (True, False)
    """
    is_ome_or_imagej = is_ome(description) or description.startswith("ImageJ=")
    return is_ome_or_imagej or _mapping_in(description) is not None


def _mapping_in(description: str) -> dict[str, Any] | None:
    try:
        found = json.loads(description)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _ascii(value: str) -> str:
    return value.encode("ascii", errors="replace").decode()


def _in_ome_xml(xml: str, facts: dict[str, str]) -> str:
    prefix = prefix_of(xml)
    if _OME_2016 not in xml:
        # Older schemas keep annotations elsewhere; a comment is valid in all of them.
        text = "; ".join(f"{key}={value}" for key, value in facts.items()).replace("--", "-")
        return re.sub(rf"</{prefix}OME>", lambda end: f"<!-- Refocus: {text} -->{end[0]}", xml, count=1)
    xml = _OURS.sub("", xml)
    values = "".join(f"<{prefix}M K={quoteattr(key)}>{escape(value)}</{prefix}M>" for key, value in facts.items())
    annotation = (
        f'<{prefix}MapAnnotation ID="Annotation:Refocus" Namespace="refocus">'
        f"<{prefix}Value>{values}</{prefix}Value></{prefix}MapAnnotation>"
    )
    opening = f"<{prefix}StructuredAnnotations>"
    if opening in xml:
        return xml.replace(opening, opening + annotation, 1)
    # The schema's order: images, then structured annotations, then regions of interest.
    place = re.search(rf"<{prefix}ROI\b|</{prefix}OME>", xml)
    if place is None:
        return xml
    block = f"{opening}{annotation}</{prefix}StructuredAnnotations>"
    return xml[: place.start()] + block + xml[place.start() :]
