"""A dataset version in the object store, opened for reading."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from pydantic import ValidationError

from refocus.data.manifest import DatasetManifest, checked_name
from refocus.data.splits import Split
from refocus.data.tiles import Tile, drawn, is_its_own_target
from refocus.errors import ConfigurationError, DatasetIncomplete, DatasetMissing, ObjectMissing
from refocus.io.ranged import RangedObject
from refocus.io.store import ObjectStore

if TYPE_CHECKING:
    import ray.data

DATASETS = "datasets"
MANIFEST = "manifest.json"
PLAN = "plan.json"


def version_prefix(name: str, version: str) -> str:
    """Return the key prefix of a dataset version, with a trailing slash."""
    return f"{DATASETS}/{checked_name(name, 'dataset name')}/{checked_name(version, 'dataset version')}/"


@dataclass(frozen=True, slots=True)
class DatasetVersion:
    """A complete dataset version.

    Examples
    --------
    ``DatasetVersion.open(store, "s3://refocus/datasets/default/v1")`` names a version,
    ``DatasetVersion.open(store, "default")`` takes the newest complete one.
    """

    store: ObjectStore
    manifest: DatasetManifest

    @classmethod
    def open(cls, store: ObjectStore, address: str) -> DatasetVersion:
        """Open a version by URI, by ``NAME/VERSION``, or the newest one of ``NAME``.

        Raises
        ------
        DatasetMissing
            If there is no such dataset or version; the message names those that are there.
        DatasetIncomplete
            If the version's ingest has not finished.
        ConfigurationError
            If the address is of another bucket or another form.
        """
        parts = _address_parts(store, address)
        if len(parts) == 1:
            return cls(store, _newest(store, parts[0]))
        if len(parts) != 2:
            raise ConfigurationError(
                f"dataset address {address!r} is not understood; expected s3://BUCKET/datasets/NAME/VERSION, "
                "NAME/VERSION, or NAME for its newest version."
            )
        prefix = version_prefix(*parts)
        try:
            return cls(store, read_manifest(store, prefix))
        except ObjectMissing:
            if any(True for _ in store.list(prefix)):
                raise DatasetIncomplete(
                    f"{store.uri(prefix)} has no {MANIFEST}: its ingest has not finished. "
                    "Run the same jobs/ingest.py command again; it goes on where it stopped."
                ) from None
            there = [f"{m.name}/{m.version}" for m in _manifests(store, parts[0])]
            raise DatasetMissing(
                f"there is no dataset version {'/'.join(parts)} in {store.uri(DATASETS)}; "
                + (f"of {parts[0]} there is: {', '.join(there)}." if there else "run jobs/ingest.py first.")
            ) from None

    @property
    def uri(self) -> str:
        """The version's address."""
        return self.store.uri(version_prefix(self.manifest.name, self.manifest.version)).rstrip("/")

    def tiles(self, split: Split, *, modalities: Sequence[str] | None = None) -> Iterator[Tile]:
        """Yield the tiles of `split` in a fixed order, one shard in memory at a time."""
        for key in self.manifest.keys(split, modalities):
            for row in pq.read_table(io.BytesIO(self.store.get(key))).to_pylist():
                yield Tile.from_row(row)

    def draw(self, split: Split, most: int, *, modalities: Sequence[str] | None = None) -> list[int]:
        """Return the indices of at most this many tiles, `drawn` from the whole split; no pixel is read.

        In-focus planes are left out: they are their own targets, and measure nothing.
        """

        def out_of_focus() -> Iterator[int]:
            for shard in self._shards(split, modalities):
                columns = shard.read(columns=["index", "planes_from_focus"]).to_pydict()
                for index, planes in zip(columns["index"], columns["planes_from_focus"], strict=True):
                    if not is_its_own_target(planes):
                        yield index

        return drawn(out_of_focus(), most, index=int)

    def tiles_of(
        self, split: Split, indices: Collection[int], *, modalities: Sequence[str] | None = None
    ) -> Iterator[Tile]:
        """Yield the tiles of these indices in a fixed order; only the row groups that hold one are read."""
        wanted = set(indices)
        for shard in self._shards(split, modalities):
            for group in range(shard.num_row_groups):
                if wanted.isdisjoint(shard.read_row_group(group, columns=["index"])["index"].to_pylist()):
                    continue
                for row in shard.read_row_group(group).to_pylist():
                    if row["index"] in wanted:
                        yield Tile.from_row(row)

    def _shards(self, split: Split, modalities: Sequence[str] | None) -> Iterator[pq.ParquetFile]:
        """Open the shards of `split` to be read in part, in a fixed order."""
        for key in self.manifest.keys(split, modalities):
            yield pq.ParquetFile(RangedObject.open(self.store, key))

    def keys(self, split: Split, *, modalities: Sequence[str] | None = None) -> tuple[str, ...]:
        """Return the keys of the shards of `split`, in a fixed order.

        Raises
        ------
        DatasetIncomplete
            If the split has no tile of these modalities.
        """
        keys = self.manifest.keys(split, modalities)
        if not keys:
            there = sorted({shard.modality for shard in self.manifest.shards if shard.split == split})
            raise DatasetIncomplete(
                f"{self.uri} has no {split} tiles"
                + (f" of {' or '.join(modalities)}; it has {', '.join(there) or 'none at all'}." if modalities else ".")
                + " Ingest more specimens of that modality, or choose another recipe."
            )
        return keys

    def rows(self, split: Split, *, modalities: Sequence[str] | None = None, **reading: Any) -> ray.data.Dataset:
        """Return the rows of `split` as a Ray dataset, read lazily by range requests.

        Parameters
        ----------
        split : {'train', 'validation', 'calibration'}
        modalities : sequence of str, optional
            All where not given.
        **reading
            Of ``ray.data.read_parquet``: what its tasks ask of the cluster, how many run at once, in which order.

        Raises
        ------
        DatasetIncomplete
            If the split has no tile of these modalities.
        """
        import ray.data

        keys = self.keys(split, modalities=modalities)
        # The newer reader starts a pool of actors at every pass to read footers; a few shards are read sooner than
        # those processes have started, and on two cores a pass over a small dataset took a minute of it.
        ray.data.DataContext.get_current().use_datasource_v2 = False
        bucket = self.store.settings.bucket
        return ray.data.read_parquet(
            [f"{bucket}/{key}" for key in keys],
            filesystem=self.store.settings.pyarrow_filesystem(),
            # A task a shard: left to itself, Ray Data cuts what a task has read into small blocks once more.
            override_num_blocks=len(keys),
            **reading,
        )


def read_manifest(store: ObjectStore, prefix: str) -> DatasetManifest:
    """Return the manifest under `prefix`.

    Raises
    ------
    ObjectMissing
        If there is none.
    DatasetIncomplete
        If it cannot be read by this release.
    """
    data = store.get(prefix + MANIFEST)
    try:
        return DatasetManifest.model_validate_json(data)
    except ValidationError as error:
        raise DatasetIncomplete(f"{store.uri(prefix + MANIFEST)} is not a manifest of this release: {error}") from error


def _address_parts(store: ObjectStore, address: str) -> list[str]:
    return store.key_of(address).removeprefix(DATASETS + "/").split("/")


def _manifests(store: ObjectStore, name: str) -> Iterator[DatasetManifest]:
    prefix = f"{DATASETS}/{checked_name(name, 'dataset name')}/"
    for entry in store.list(prefix):
        if entry.key.endswith("/" + MANIFEST) and entry.key.count("/") == 3:
            yield read_manifest(store, entry.key.removesuffix(MANIFEST))


def _complete_names(store: ObjectStore) -> list[str]:
    keys = (entry.key.split("/") for entry in store.list(DATASETS + "/"))
    return sorted({parts[1] for parts in keys if len(parts) == 4 and parts[3] == MANIFEST})


def _newest(store: ObjectStore, name: str) -> DatasetManifest:
    complete = sorted(_manifests(store, name), key=lambda m: m.created)
    if not complete:
        raise DatasetMissing(
            f"there is no complete version of dataset {name!r} in {store.uri(DATASETS)}; there is: "
            f"{', '.join(_complete_names(store)) or 'none yet'}. jobs/ingest.py makes one."
        )
    return complete[-1]
