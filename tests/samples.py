"""Small specimens that tests make for themselves."""

from __future__ import annotations

import io

import numpy as np
import tifffile
from scipy import ndimage

from refocus.data.dataset import version_prefix
from refocus.data.ingest import adopt_plan, ingest_unit, plan_ingest, seal
from refocus.data.manifest import IngestSettings
from refocus.data.sidecar import Rule
from refocus.data.splits import SPLITS, split_of
from refocus.io.store import ObjectStore


def sharp_image(seed: int = 0, side: int = 96) -> np.ndarray:
    """Bright spots on a dim background, uint16, shape (side, side)."""
    rng = np.random.default_rng(seed)
    spots = (rng.random((side, side)) > 0.98).astype(np.float64)
    image = 400 + 30000 * ndimage.gaussian_filter(spots, 1.5) / 0.07
    return np.clip(image + rng.normal(0, 20, image.shape), 0, 65535).astype(np.uint16)


def focal_series(planes: int = 9, best: int = 4, seed: int = 0, side: int = 96) -> np.ndarray:
    """The same specimen through focus, uint16, shape (planes, side, side); `best` is in focus."""
    image = sharp_image(seed, side).astype(np.float64)
    rng = np.random.default_rng(seed + 1)
    blurred = [ndimage.gaussian_filter(image, 0.9 * abs(z - best)) for z in range(planes)]
    return np.clip(np.stack(blurred) + rng.normal(0, 15, (planes, side, side)), 0, 65535).astype(np.uint16)


def tiff(pixels: np.ndarray, **options) -> bytes:
    """`pixels` as a TIFF that names its axes, unless `options` say otherwise."""
    sink = io.BytesIO()
    options.setdefault("metadata", {"axes": "ZYX"} if pixels.ndim == 3 else {"axes": "YX"})
    tifffile.imwrite(sink, pixels, **options)
    return sink.getvalue()


def names_in_every_split(each: int) -> list[str]:
    """Specimen names, `each` of them in each split."""
    chosen: dict[str, list[str]] = {split: [] for split in SPLITS}
    number = 0
    while any(len(names) < each for names in chosen.values()):
        name = f"specimen{number}"
        if len(chosen[split_of(name)]) < each:
            chosen[split_of(name)].append(name)
        number += 1
    return [name for names in chosen.values() for name in names]


def put_sharp_images(store: ObjectStore, *, name: str, each: int = 6, side: int = 160, tile_px: int = 384) -> str:
    """Store and ingest sharp fluorescence images, `each` in every split, and return the dataset's address."""
    for seed, specimen in enumerate(names_in_every_split(each)):
        store.put(f"raw-{name}/{specimen}.tif", tiff(sharp_image(seed, side)))
    return _ingested(store, name, IngestSettings(tile_px=tile_px))


def put_focal_series(store: ObjectStore, *, name: str, each: int = 2, side: int = 160, planes: int = 7) -> str:
    """Store and ingest z-stacks and nothing else, `each` in every split, and return the dataset's address."""
    for seed, specimen in enumerate(names_in_every_split(each)):
        stack = focal_series(planes, best=planes // 2, seed=seed, side=side)
        store.put(f"raw-{name}/{specimen}.tif", tiff(stack))
    return _ingested(store, name, IngestSettings())


def _ingested(store: ObjectStore, name: str, settings: IngestSettings) -> str:
    fallback = Rule(modality="fluorescence")
    plan = adopt_plan(store, name, "v1", plan_ingest(store, f"raw-{name}/", settings=settings, fallback=fallback))
    prefix = version_prefix(name, "v1")
    receipts = [ingest_unit(store, prefix, plan, unit) for unit in plan.units]
    return seal(store, name, "v1", plan, receipts).uri
