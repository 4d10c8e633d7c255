"""From a restorer's answer to the file that travels back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from refocus.serving.requests import RestoreAnswer
from refocus.wire.codec import encode
from refocus.wire.image import Container, Provenance, WireImage
from refocus.wire.provenance import counts_pages


def encode_answer(image: WireImage, answer: RestoreAnswer, container: Container) -> bytes:
    """Return the restored planes in the shape, type and metadata of `image`, with the model that made them.

    Half widths of the interval, where there are any, follow as further planes, and the description says so.
    """
    said = {"out_of_range_share": f"{answer.out_of_range_share:.4f}"}
    if answer.blanks:
        said["left_as_it_was"] = answer.blanks
    provenance = Provenance(answer.model, answer.digest, said)
    planes, description, options = answer.planes, image.description, image.options
    if answer.half_width is not None:
        widths = answer.half_width
        if planes.dtype.kind in "ui":
            # Rounded up: an interval must not shrink on its way. Single precision does not hold the largest 32-bit
            # integers, and what lies above them comes out of the cast as a negative number, or zero.
            widths = np.ceil(widths, dtype=np.float64).clip(0, np.iinfo(planes.dtype).max)
        # Half widths of 0 mean certainty, not white.
        options = {**options, "photometric": 1}
        layout = _layout(len(planes))
        planes = np.concatenate([planes, widths.astype(planes.dtype)])
        # OME-XML, ImageJ's lines and tifffile's JSON count pages; twice as many would contradict them.
        description = layout if counts_pages(description) else "\n".join([*description.splitlines(), layout])
    alpha = image.alpha
    if alpha is not None and len(planes) != len(alpha):
        alpha = np.concatenate([alpha, alpha])
    answered = replace(image, planes=planes, description=description, alpha=alpha, options=options)
    return encode(answered, container, provenance)


def _layout(planes: int) -> str:
    first = "Page 1: in focus; page 2:" if planes == 1 else f"Pages 1-{planes}: in focus; {planes + 1}-{2 * planes}:"
    return f"{first} half widths of the 90% interval, in the image's units"
