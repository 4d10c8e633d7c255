"""Bring an image into focus: any size, any numeric type, in and out in the same units."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from refocus.errors import ConfigurationError, ModelUnfit, UnsupportedImage
from refocus.model.blanks import Blanks
from refocus.model.blur_estimate import BlurEstimate, estimate_blur
from refocus.model.checkpoint import ModelPackage
from refocus.model.finishing import balance_factor, balanced, undone
from refocus.model.memory import batch_pixels_for, tile_px_for
from refocus.model.networks import Prediction
from refocus.model.normalisation import Normalisation, estimate
from refocus.model.seen import SeenPlane, fetched, held_on
from refocus.model.specimen import Specimen
from refocus.model.tiling import SMALLEST_HALO_PX, Float32, HaloGrid, Window, run_tiled
from refocus.optics.ladder import nearest_profile
from refocus.optics.settings import OpticalSystem
from refocus.zstack import AXES

Precision = Literal["auto", "fp32", "bf16"]
Progress = Callable[[int, int], None]

#: Pixels that arithmetic after the network takes at a time: they stay in a core's own cache.
_BLOCK_PIXELS = 100_000
#: What deconvolution says at a place depends on what lies this many blur radii away; see docs/networks.md.
_HALO_RADII = 10.0


@dataclass(frozen=True, slots=True)
class Restoration:
    """An image in focus and what the network says about it.

    Parameters
    ----------
    pixels : ndarray
        Shape, axes, dtype and units of the input.
    blur_radius_px : ndarray, float32, shape [planes, ceil(Y / stride), ceil(X / stride)]
        Predicted geometric radius of the defocus in pixels of the input; one map for each plane that was restored by
        itself: each time, channel and z-position in their order, and each colour where the network sees one channel.
    stride_px : int
        Pixels a side of one entry of that map.
    scale : ndarray, float32, shape of `pixels`, or None
        Laplace scale of the error in the input's units, uncalibrated.
    normalisations : tuple of Normalisation
        One for each plane.
    digest : str
        Of the model that made it.
    blanks : tuple of Blanks
        What of each plane was taken for padding, overlays, hot and dead pixels, and is as it was.
    """

    pixels: npt.NDArray[Any]
    blur_radius_px: Float32
    stride_px: int
    scale: Float32 | None
    normalisations: tuple[Normalisation, ...]
    digest: str
    blanks: tuple[Blanks, ...] = ()

    @property
    def median_blur_radius_px(self) -> float:
        """Median over planes and positions."""
        return float(np.median(self.blur_radius_px))


class LoadedModel:
    """A package's network on a device, ready to restore images one after the other.

    Parameters
    ----------
    package : ModelPackage
    device : torch.device or str, optional
        CUDA where there is one, else the CPU.
    precision : {'auto', 'fp32', 'bf16'}
        ``'auto'`` takes bf16 where the device computes it natively. Images, sums and the residual stay in float32.
    tile_px, pixels_per_batch : int, optional
        See :mod:`refocus.model.tiling`. Where not given, 1024 px and 2 million pixels on the CPU; on CUDA devices what
        their memory has room for, up to 4096 px and 20 million.
    halo_px : int, optional
        See :mod:`refocus.model.tiling`. Where the halo is not given, it is the package's own, at least 64 px, and wider
        where the image is blurred widely.

    Raises
    ------
    ConfigurationError
        If halo or precision cannot be used.
    """

    def __init__(
        self,
        package: ModelPackage,
        *,
        device: torch.device | str | None = None,
        precision: Precision = "auto",
        tile_px: int | None = None,
        halo_px: int | None = None,
        pixels_per_batch: int | None = None,
    ) -> None:
        if halo_px is not None and halo_px < SMALLEST_HALO_PX:
            raise ConfigurationError(f"halo_px is {halo_px}; below {SMALLEST_HALO_PX} seams between tiles show.")
        if precision not in ("auto", "fp32", "bf16"):
            raise ConfigurationError(f"precision is {precision!r}; expected 'auto', 'fp32' or 'bf16'.")
        self.package = package
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.precision = precision if precision != "auto" else ("bf16" if has_native_bf16(self.device) else "fp32")
        self.tile_px = tile_px or tile_px_for(self.device, package.config.channels)
        self._halo_px = halo_px
        self.pixels_per_batch = pixels_per_batch or batch_pixels_for(self.device, package.config.channels)
        self.network = package.network(self.device)

    @torch.inference_mode()
    def predict(self, batch: Tensor) -> Prediction:
        """Run the network on normalised tiles, float32 [B, C (+ 2), H, W], and follow it as far as the package says.

        The answer lies on the device.
        """
        batch = batch.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            prediction: Prediction = self.network(batch)
        return self.package.config.restraint.applied(prediction, batch)

    def restore(
        self,
        image: npt.NDArray[Any],
        *,
        axes: str | None = None,
        optics: OpticalSystem | None = None,
        normalisation: Normalisation | None = None,
        with_scale: bool = False,
        out: npt.NDArray[Any] | None = None,
        progress: Progress | None = None,
    ) -> Restoration:
        """Bring an image into focus; parameters and errors as :func:`restore`."""
        axes = _checked_axes(image, axes)
        channels = self.package.config.channels
        pixels = np.empty_like(image) if out is None else out
        if pixels.shape != image.shape or pixels.dtype != image.dtype:
            raise ConfigurationError(
                f"out is {pixels.shape} of {pixels.dtype}; expected {image.shape} of {image.dtype}, like the image."
            )
        scale = np.zeros(image.shape, np.float32) if with_scale else None
        stride = self.package.config.network.stride_px
        profile = None if optics is None else nearest_profile(optics)
        maps: list[Float32] = []
        constants: list[Normalisation] = []
        blanks: list[Blanks] = []
        planes = list(_planes(axes, image.shape, together=channels == 3))
        for number, where in enumerate(planes):
            plane, made = _channels_first(image[where], axes), _channels_first(pixels[where], axes)
            held = held_on(self.device, _finite(plane))
            specimen = Specimen.of(plane, stride_px=stride, held=held)
            chosen = normalisation or estimate(specimen.visible(), absorbing=self.package.config.absorbing)
            blanks.append(specimen.blanks)
            if specimen.blanks:
                made[...] = plane
            seen = slice(None), *specimen.window
            blur = self._plane(
                SeenPlane(specimen, chosen, self.device, None if specimen.blanks else held),
                profile,
                made[seen],
                None if scale is None else _channels_first(scale[where], axes)[seen],
                _scaled(progress, number, len(planes)),
            )
            maps.append(specimen.placed(blur))
            constants.append(chosen)
        return Restoration(pixels, np.stack(maps), stride, scale, tuple(constants), self.package.digest, tuple(blanks))

    def _plane(
        self,
        seen: SeenPlane,
        profile: int | None,
        pixels: npt.NDArray[Any],
        scale: Float32 | None,
        progress: Progress | None,
    ) -> Float32:
        """Restore what shows a specimen into views of the result, [C, Y, X]. Returns the blur map."""
        channels = self.package.config.channels
        stride = self.package.config.network.stride_px
        specimen, constants, held = seen.specimen, seen.constants, seen.held
        plane = specimen.given
        height, width = plane.shape[1:]
        blur = np.zeros((-(-height // stride), -(-width // stride)), np.float32)
        low, high = (plane.min(), plane.max()) if held is None else torch.stack(held.aminmax()).tolist()
        if low == high:
            # Nothing to see, and nothing that a network should invent.
            pixels[...] = plane
            return blur
        repeated = channels // plane.shape[0]
        floor = 0.0 if low >= 0 else None
        blurred = self.estimated_blur(seen, profile)
        made = None if held is None else torch.empty_like(held)

        def read(window: Window) -> Tensor:
            normalised = seen[window]
            normalised = normalised.expand(channels, -1, -1) if repeated > 1 else normalised
            return normalised if blurred is None else torch.cat([normalised, blurred.laid_over(*window, self.device)])

        grid = HaloGrid(height, width, stride_px=stride, tile_px=self.tile_px, halo_px=self._halo(blurred))
        for band in run_tiled(
            read,
            self.predict,
            grid,
            channels=channels,
            with_scale=scale is not None,
            pixels_per_batch=self.pixels_per_batch,
            blur_radius_px=blur,
            progress=progress,
        ):
            if made is not None:
                image = band.image.mean(0, keepdim=True) if repeated > 1 else band.image
                made[:, band.rows] = undone(image, constants, pixels.dtype, floor=floor)
            else:
                whole = band.image.cpu().numpy()
                for part, block in _blocks(plane, band.rows):
                    answer = whole[:, part].mean(0, keepdims=True) if repeated > 1 else whole[:, part]
                    values = constants.undo(answer, _arithmetic(pixels.dtype))
                    pixels[:, block] = _as_dtype(values, pixels.dtype, floor=floor)
                specimen.put_back(pixels, band.rows)
            if scale is not None and band.scale is not None:
                error = band.scale.mean(0, keepdim=True) if repeated > 1 else band.scale
                fetched(error * abs(constants.scale), scale[:, band.rows])
                specimen.put_back(scale, band.rows, level=0.0)
        if held is None or made is None:
            _balance(plane, pixels, floor=floor)
        else:
            fetched(balanced(held, made, pixels.dtype, floor=floor), pixels)
        return blur

    def estimated_blur(self, seen: SeenPlane, profile: int | None) -> BlurEstimate | None:
        """What `restore` takes the blur of a plane for; None where the network sees none."""
        if not self.package.config.network.sees_blur:
            return None
        return estimate_blur(seen, profile=profile, widest_px=self.package.config.largest_blur_px)

    def _halo(self, blurred: BlurEstimate | None) -> int:
        if self._halo_px is not None:
            return self._halo_px
        widest = 0.0 if blurred is None else float(blurred.radius_px.max())
        return max(self.package.config.halo_px, SMALLEST_HALO_PX, math.ceil(_HALO_RADII * widest))


def restore(
    image: npt.NDArray[Any],
    package: ModelPackage,
    *,
    axes: str | None = None,
    optics: OpticalSystem | None = None,
    normalisation: Normalisation | None = None,
    with_scale: bool = False,
    out: npt.NDArray[Any] | None = None,
    device: torch.device | str | None = None,
    precision: Precision = "auto",
    tile_px: int | None = None,
    halo_px: int | None = None,
    progress: Progress | None = None,
) -> Restoration:
    """Bring an image into focus.

    Values keep the input's units, and each plane its total: defocus loses no light. Planes are restored one by one:
    each time, channel and z-position, and each colour by itself where the network sees one channel. To restore many
    images with one model, keep a `LoadedModel`.

    Parameters
    ----------
    image : ndarray
        Grey ``YX``, colour ``YXS``, or with leading axes; integers or floats of any width.
    package : ModelPackage
    axes : str, optional
        Letters of ``"TCZYXS"``. Where not given: two axes are ``YX``; a last axis of 3 (4 is refused) after two longer
        ones is colour; all other leading axes are planes.
    optics : OpticalSystem, optional
        The objective, its light and its pixels, where they are known: the blur is then read more surely, most of all
        below NA 0.6 and above 0.85 (docs/evaluation.md). Not needed.
    normalisation : Normalisation, optional
        Used for all planes in place of each plane's own.
    with_scale : bool
        Also return the error's scale for each pixel.
    out : ndarray, optional
        Where to write the result, such as a memory map; not the image itself.
    device, precision, tile_px, halo_px
        See `LoadedModel`.
    progress : callable, optional
        Called with tiles done and tiles in all.

    Returns
    -------
    Restoration

    Raises
    ------
    UnsupportedImage
        If the image has NaN or infinities, no pixels, or axes or a type that cannot be an image.
    ConfigurationError
        If a setting cannot be used.
    ModelUnfit
        If image and network have different numbers of colours.
    """
    model = LoadedModel(package, device=device, precision=precision, tile_px=tile_px, halo_px=halo_px)
    return model.restore(
        image, axes=axes, optics=optics, normalisation=normalisation, with_scale=with_scale, out=out, progress=progress
    )


def has_native_bf16(device: torch.device) -> bool:
    """Whether bf16 convolutions run on the device's own units rather than by conversion."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # AVX512_BF16 is the least that makes it worth while; AMX is faster still.
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and torch.cpu._is_avx512_bf16_supported()
    return False


def _checked_axes(image: npt.NDArray[Any], axes: str | None) -> str:
    if image.dtype.kind not in "uif" or image.size == 0:
        raise UnsupportedImage(
            f"the image has shape {image.shape} and dtype {image.dtype}; expected pixels of integers or floats."
        )
    if axes is None:
        if image.ndim < 2 or image.ndim > 5:
            raise UnsupportedImage(f"the image has shape {image.shape}; expected rows and columns, at most 5 axes.")
        colour = image.ndim >= 3 and image.shape[-1] in (3, 4) and min(image.shape[-3:-1]) > 4
        axes = "TCZ"[-(image.ndim - 3) :] * (image.ndim > 3) + "YXS" if colour else "TCZYX"[-image.ndim :]
    if len(axes) != image.ndim or "".join(a for a in AXES if a in axes) != axes or not {"Y", "X"} <= set(axes):
        raise UnsupportedImage(
            f"axes {axes!r} do not fit an image of shape {image.shape}; expected one letter of {AXES!r} an axis, in "
            "that order, with Y and X."
        )
    if "S" in axes and image.shape[-1] not in (1, 3):
        raise ModelUnfit(
            f"the image has {image.shape[-1]} colour samples; networks see 1 (grey) or 3 (RGB). Drop an alpha channel "
            "with image[..., :3], and give fluorescence channels as axis C, before Y and X."
        )
    return axes


def _finite(plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if plane.dtype.kind == "f":
        # Row by row: a mask of a whole slide is a gigabyte.
        bad = sum(int(np.count_nonzero(~np.isfinite(row))) for channel in plane for row in channel)
        if bad:
            raise UnsupportedImage(
                f"{bad} of {plane.size} pixels are NaN or infinite; replace them, for instance with np.nan_to_num."
            )
    return plane


def _planes(axes: str, shape: tuple[int, ...], *, together: bool) -> Iterator[tuple[Any, ...]]:
    """Index each image that is restored by itself; keeps Y, X and, where colours go together, S."""
    looped = [i for i, a in enumerate(axes) if a not in "YX" and not (a == "S" and together)]
    for position in np.ndindex(*(shape[i] for i in looped)):
        index: list[Any] = [slice(None)] * len(axes)
        for axis, at in zip(looped, position, strict=True):
            # A slice keeps the S axis, so that every plane has the same form.
            index[axis] = slice(at, at + 1) if axes[axis] == "S" else at
        yield tuple(index)


def _channels_first(plane: npt.NDArray[Any], axes: str) -> npt.NDArray[Any]:
    """View [Y, X] or [Y, X, S] as [C, Y, X]."""
    return np.moveaxis(plane, -1, 0) if "S" in axes else plane[None]


def _arithmetic(dtype: np.dtype[Any]) -> type[np.float32] | type[np.float64]:
    """What an image's values are computed in: single precision holds those of up to 16 bits 250 times over."""
    return np.float64 if dtype.itemsize > 2 and dtype != np.float32 else np.float32


def _as_dtype(values: npt.NDArray[Any], dtype: np.dtype[Any], *, floor: float | None) -> npt.NDArray[Any]:
    """Round floats in place to an integer type within its limits, or cast to a float type; not below `floor`."""
    if floor is not None:
        np.maximum(values, floor, out=values)
    if dtype.kind == "f":
        return values.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    # The float nearest to the largest 64-bit integer lies above it, and casting that overflows.
    highest = float(limits.max) if int(float(limits.max)) <= limits.max else float(np.nextafter(limits.max, 0.0))
    np.rint(values, out=values)
    return values.clip(float(limits.min), highest, out=values).astype(dtype)


def _blocks(plane: npt.NDArray[Any], rows: slice) -> Iterator[tuple[slice, slice]]:
    """Cut rows of [C, Y, X] into small blocks: relative to `rows.start`, and as they are."""
    step = max(1, _BLOCK_PIXELS // (plane.shape[0] * plane.shape[2]))
    for start in range(rows.start, rows.stop, step):
        stop = min(start + step, rows.stop)
        yield slice(start - rows.start, stop - rows.start), slice(start, stop)


def _balance(plane: npt.NDArray[Any], pixels: npt.NDArray[Any], *, floor: float | None) -> None:
    """Make the restored image's total that of the input (`balance_factor`), in place and some rows at a time."""
    blocks = [block for _, block in _blocks(plane, slice(0, plane.shape[1]))]
    kind = _arithmetic(pixels.dtype)
    added = total = 0.0
    for block in blocks:
        change = pixels[:, block].astype(kind) - plane[:, block].astype(kind, copy=False)
        total += float(change.sum(dtype=np.float64))
        added += float(np.maximum(change, 0.0, out=change).sum(dtype=np.float64))
    factor = balance_factor(added, added - total)
    if factor is None:
        return
    for block in blocks:
        given = plane[:, block].astype(kind)
        change = pixels[:, block] - given
        np.add(given, factor * np.maximum(change, 0.0), out=given)
        np.add(given, np.minimum(change, 0.0, out=change) / factor, out=given)
        pixels[:, block] = _as_dtype(given, pixels.dtype, floor=floor)


def _scaled(progress: Progress | None, plane: int, planes: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total: progress(plane * total + done, planes * total)
