"""OME-Zarr 0.4 and 0.5: a folder of chunks, on a disk or in the object store, plane by plane.

Only the full resolution is read. See https://ngff.openmicroscopy.org/0.4/ and https://ngff.openmicroscopy.org/0.5/.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from refocus.errors import (
    ConfigurationError,
    InputError,
    MetadataMissing,
    ObjectChanged,
    StoreError,
    UnreadableImage,
    UnsupportedImage,
)
from refocus.io.microscopy import ImageSource
from refocus.wire.ome import UNITS_UM
from refocus.zstack import AXES, Acquisition

if TYPE_CHECKING:
    import zarr

    from refocus.io.store import ObjectInfo, ObjectStore

# Files that say that a folder is a Zarr group, in format 3 and 2.
_MARKERS = ("zarr.json", ".zgroup")
_TYPES_OF_AXES = {"time": "T", "channel": "C"}
# A chunk is decoded once for all its planes as long as the slab of chunks stays below this.
_SLAB_BYTES = 256 * 2**20


def zarr_roots(keys: Iterable[str]) -> list[str]:
    """Return the outermost Zarr groups among the keys of a bucket or the paths of a folder, without final slash.

    Examples
    --------
    >>> zarr_roots(["raw/a.zarr/zarr.json", "raw/a.zarr/0/zarr.json", "raw/a.zarr/0/c/0/0", "raw/b.tif"])
    ['raw/a.zarr']
    """
    folders = sorted({key.rpartition("/")[0] for key in keys if key.rpartition("/")[2] in _MARKERS})
    roots: list[str] = []
    for folder in folders:
        if not any(folder.startswith(f"{root}/") for root in roots):
            roots.append(folder)
    return roots


def is_zarr(folder: Path) -> bool:
    """Return whether a folder is a Zarr group by itself."""
    return any((folder / marker).is_file() for marker in _MARKERS)


def etag_of_folder(objects: Iterable[ObjectInfo]) -> str:
    """Return one ETag for many objects, in the order of their keys: any change of one gives another."""
    listing = "\n".join(f"{entry.key} {entry.etag}" for entry in objects)
    return hashlib.sha256(listing.encode()).hexdigest()


class ZarrSource(ImageSource):
    """The full resolution of one OME-Zarr image.

    Parameters
    ----------
    location : Path or (ObjectStore, str)
        A folder, or a store and the prefix of the image's keys.
    name : str
        For messages.
    answers : Acquisition or None
        Fills what the file leaves open.
    axes : str or None
        What its axes mean, where the file does not say or says it wrongly; lengths along those that it says wrongly
        are then unknown, too.
    etag : str or None
        Of a store's image, as `etag_of_folder` gives it: it must be that one still.

    Notes
    -----
    A chunk that is missing holds the fill value, mostly 0: Zarr does not tell an empty region from a lost file.

    Raises
    ------
    UnreadableImage
        If it is no Zarr group, or its metadata or array is missing or broken.
    UnsupportedImage
        If it is a plate or a collection of several images, or an axis is none of ours.
    MetadataMissing
        If it has no OME metadata and `axes` is not given.
    ObjectChanged
        If the store's image is no longer the one that `etag` names, or changes while it is read.
    """

    def __init__(
        self,
        location: Path | tuple[ObjectStore, str],
        *,
        name: str = "",
        answers: Acquisition | None = None,
        axes: str | None = None,
        etag: str | None = None,
    ) -> None:
        if isinstance(location, Path):
            self.name = name or str(location)
        else:
            self.name = name or location[0].uri(location[1].strip("/"))
        group = _open_group(location, self.name, etag)
        try:
            image, group = _only_image(group, self.name)
            self._image = image
            path = str(image["datasets"][0]["path"])
            array = group[path]
            self._array: zarr.Array = array  # type: ignore[assignment]
            file_axes, units = _axes_of(image, self._array.ndim, self.name, axes)
            scale = _scale_of(image, self._array.ndim)
        except (InputError, StoreError):
            raise
        except Exception as error:
            raise UnreadableImage(
                f"{self.name} cannot be read as OME-Zarr ({type(error).__name__}: {error}). Is the folder complete?"
            ) from error
        if len(file_axes) != self._array.ndim or len(set(file_axes)) != len(file_axes) or set(file_axes) - set(AXES):
            raise ConfigurationError(
                f"{self.name} has {self._array.ndim} axes of lengths {self._array.shape}, so axes {file_axes!r} "
                "cannot be their meaning."
            )
        if 0 in self._array.shape or not {"Y", "X"} <= set(file_axes):
            raise UnreadableImage(f"{self.name} has shape {self._array.shape} and axes {file_axes}; that is no image.")
        self._file_axes = file_axes
        sizes = dict(zip(file_axes, self._array.shape, strict=True))
        self.axes = "".join(axis for axis in AXES if axis in sizes)
        self.shape = tuple(sizes[axis] for axis in self.axes)
        self.dtype = self._array.dtype.newbyteorder("=")
        said = Acquisition(
            pixel_size_um=_in_um(file_axes, "X", scale, units), z_step_um=_in_um(file_axes, "Z", scale, units)
        )
        self.acquisition = said.filled_from(answers or Acquisition())
        self._slab: tuple[tuple[slice | int, ...], npt.NDArray[Any]] | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        """The multiscales entry of the image."""
        return {"multiscales": dict(self._image)}

    def plane(self, *, z: int = 0, c: int = 0, t: int = 0) -> npt.NDArray[Any]:
        """Read one plane; chunks that hold several planes are decoded once while they are asked for in turn."""
        return self.window(slice(None), slice(None), z=z, c=c, t=t)

    def _read_window(self, rows: slice, columns: slice, *, z: int, c: int, t: int) -> npt.NDArray[Any]:
        depth = dict(zip(self._file_axes, self._array.chunks, strict=True)).get("Z", 1)
        samples = self.size("S") * self.dtype.itemsize
        window_bytes = (rows.stop - rows.start) * (columns.stop - columns.start) * samples
        depth = depth if depth * window_bytes <= _SLAB_BYTES else 1
        first = z - z % depth
        planes = slice(first, min(first + depth, self.size("Z")))
        parts: dict[str, slice | int] = {"T": t, "C": c, "Z": planes, "Y": rows, "X": columns, "S": slice(None)}
        where = tuple(parts[axis] for axis in self._file_axes)
        if self._slab is None or self._slab[0] != where:
            self._slab = None
            self._slab = (where, self._read(where))
        left = [axis for axis in self._file_axes if axis in "ZYXS"]
        pixels = self._slab[1]
        if "Z" in left:
            pixels = np.take(pixels, z - first, axis=left.index("Z"))
            left.remove("Z")
        pixels = np.transpose(pixels, [left.index(axis) for axis in "YXS" if axis in left])
        return np.ascontiguousarray(pixels, dtype=self.dtype)

    def close(self) -> None:
        """Let go of the chunks that are held."""
        self._slab = None

    def _read(self, where: tuple[slice | int, ...]) -> npt.NDArray[Any]:
        try:
            return np.asarray(self._array[where])
        except StoreError:
            raise
        except Exception as error:
            raise UnreadableImage(
                f"{self.name}: a chunk cannot be decoded ({type(error).__name__}: {error}). Is the folder complete?"
            ) from error


def _open_group(location: Path | tuple[ObjectStore, str], name: str, etag: str | None) -> zarr.Group:
    try:
        import zarr
    except ImportError as error:
        raise UnsupportedImage(f"{name}: OME-Zarr needs the zarr package; pip install 'refocus[train]'.") from error
    try:
        if isinstance(location, Path):
            return zarr.open_group(zarr.storage.LocalStore(location, read_only=True), mode="r")
        from refocus.io.zarr_store import ZarrObjects

        objects = ZarrObjects(*location)
        if etag not in (None, objects.etag):
            raise ObjectChanged(f"{name} is not the image that it was: objects of it have been replaced or removed.")
        return zarr.open_group(objects, mode="r")
    except StoreError:
        raise
    except Exception as error:
        if not isinstance(location, Path):
            # To zarr a bucket that is missing is a group that is missing: let the store say which.
            next(location[0].list(location[1]), None)
        elif not any((location / marker).exists() for marker in _MARKERS):
            raise UnreadableImage(
                f"{name} is a folder and no OME-Zarr, which holds {' or '.join(_MARKERS)}. Name one image in it."
            ) from None
        raise UnreadableImage(f"{name} is no Zarr group ({type(error).__name__}: {error}).") from error


def _only_image(group: zarr.Group, name: str) -> tuple[Mapping[str, Any], zarr.Group]:
    import zarr

    # Format 0.5 keeps everything under one key, 0.4 at the top.
    attributes: Mapping[str, Any] = dict(group.attrs)
    said = attributes.get("ome", attributes)
    if "plate" in said or "well" in said:
        raise UnsupportedImage(f"{name} is a plate or a well; name one of its fields, such as {name}/A/1/0.")
    images = said.get("multiscales")
    if images is None and "bioformats2raw.layout" in said:
        series = sorted(key for key in group.group_keys() if key.isdigit())
        if series != ["0"]:
            raise UnsupportedImage(f"{name} holds {len(series)} images; name one of them, such as {name}/0.")
        inner = group["0"]
        assert isinstance(inner, zarr.Group)
        return _only_image(inner, f"{name}/0")
    if not images:
        arrays = ", ".join(sorted(group.array_keys())) or "none"
        raise UnreadableImage(f"{name} is a Zarr group without OME metadata (multiscales); its arrays: {arrays}.")
    if len(images) > 1:
        raise UnsupportedImage(
            f"{name} describes {len(images)} images; expected one. Save each as a folder of its own."
        )
    return images[0], group


def _axes_of(image: Mapping[str, Any], ndim: int, name: str, answer: str | None) -> tuple[str, dict[str, str]]:
    if answer is not None:
        try:
            said, units = _axes_of(image, ndim, name, None)
        except InputError:
            return answer, {}
        return answer, {letter: units[letter] for letter, same in zip(answer, said, strict=False) if letter == same}
    if "axes" not in image:
        raise MetadataMissing(
            f"{name} does not say what its {ndim} axes mean (OME-Zarr before 0.3); answer with axes, such as "
            f"{'TCZYX'[-ndim:]}."
        )
    letters, units = "", {}
    for entry in image["axes"]:
        # 0.3 had bare names; types came with 0.4.
        entry = {"name": entry} if isinstance(entry, str) else entry
        letter = _TYPES_OF_AXES.get(str(entry.get("type")), str(entry["name"]).upper())
        if letter not in AXES or letter == "S":
            raise UnsupportedImage(f"{name} has an axis {entry['name']!r}; expected t, c, z, y and x.")
        letters += letter
        units[letter] = str(entry.get("unit", ""))
    return letters, units


def _scale_of(image: Mapping[str, Any], ndim: int) -> list[float]:
    scale = [1.0] * ndim
    for transformation in (
        *image["datasets"][0].get("coordinateTransformations", ()),
        *image.get("coordinateTransformations", ()),
    ):
        if transformation.get("type") == "scale" and "scale" in transformation:
            scale = [a * float(b) for a, b in zip(scale, transformation["scale"], strict=True)]
    return scale


def _in_um(file_axes: str, axis: str, scale: list[float], units: dict[str, str]) -> float | None:
    # Without a unit a scale is a number of nothing: 1.0 is what writers put who know no better.
    unit_um = UNITS_UM.get(units.get(axis, ""))
    if axis not in file_axes or unit_um is None:
        return None
    value = abs(scale[file_axes.index(axis)]) * unit_um
    return value if value > 0 and math.isfinite(value) else None
