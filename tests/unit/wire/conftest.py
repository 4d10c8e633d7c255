"""Small real files, written by the libraries that people use."""

from __future__ import annotations

import io

import imagecodecs
import numpy as np
import pytest
import tifffile


def tiff_bytes(pixels: np.ndarray, **options) -> bytes:
    sink = io.BytesIO()
    tifffile.imwrite(sink, pixels, **options)
    return sink.getvalue()


@pytest.fixture
def grey16() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 65536, (37, 53), dtype=np.uint16)


@pytest.fixture
def rgb8() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (37, 53, 3), dtype=np.uint8)


@pytest.fixture
def sound_bodies(grey16, rgb8) -> dict[str, bytes]:
    """One sound body of each kind, by name."""
    return {
        "tiff16": tiff_bytes(grey16),
        "tiff_rgb_deflate": tiff_bytes(rgb8, compression="zlib", predictor=True, photometric="rgb"),
        "tiff_tiled_lzw": tiff_bytes(grey16, tile=(16, 16), compression="lzw"),
        "tiff_jpeg": tiff_bytes(rgb8, compression="jpeg", photometric="ycbcr"),
        "tiff_zstd_big": tiff_bytes(grey16, compression="zstd", bigtiff=True, byteorder=">"),
        "ome": tiff_bytes(np.stack([grey16, grey16]), ome=True, metadata={"axes": "CYX", "PhysicalSizeX": 0.325}),
        "imagej": tiff_bytes(np.stack([grey16, grey16]), imagej=True, metadata={"unit": "um"}),
        "png16": imagecodecs.png_encode(grey16),
        "png_rgb": imagecodecs.png_encode(rgb8),
        "jpeg": imagecodecs.jpeg8_encode(rgb8),
    }
