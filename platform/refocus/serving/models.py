"""Which models serve: champions followed in the store beside bundled weights, and pinned versions in a small cache."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from refocus.errors import (
    ConfigurationError,
    ModelMissing,
    ModelUnfit,
    RefocusError,
    StoreError,
)
from refocus.model.checkpoint import ModelPackage, bundled_names
from refocus.model.golden import GoldenOutput, check_golden, golden_output
from refocus.registry.catalog import Catalog, check_reference
from refocus.serving.requests import ModelState

Load = Callable[[ModelPackage], Any]


@dataclass(slots=True)
class Served:
    """A model in memory, where it came from, and what keeps its successor from taking over.

    Attributes
    ----------
    runner : LoadedModel
        Or whatever `load` returned.
    """

    name: str
    package: ModelPackage
    runner: Any
    source: Literal["champion", "bundled"]

    def state(self, wanted: str | None, problem: str | None) -> ModelState:
        """Return what people are shown."""
        config = self.package.config
        return ModelState(
            name=self.name,
            digest=self.package.digest,
            source=self.source,
            modality=config.modality,
            channels=config.channels,
            largest_blur_px=config.largest_blur_px,
            pixel_size_um=config.pixel_size_um,
            numerical_aperture=config.numerical_aperture,
            wanted_digest=wanted,
            problem=problem,
        )


@dataclass(slots=True)
class _Followed:
    etag: str | None = None
    wanted: str | None = None
    tried: str | None = None
    problem: str | None = None


@dataclass(slots=True)
class ModelSet:
    """The models of one replica.

    Parameters
    ----------
    catalog : Catalog or None
        None serves bundled weights alone.
    load : callable
        Puts a package on the device.
    names : sequence of str
        Which models; empty for all.
    bundled : bool
        Whether bundled weights may serve.
    pinned_versions : int
        Size of the cache of versions asked for by name.
    on_swap : callable, optional
        Told ``(name, digest, problem)`` whenever a champion was swapped in, or could not be.

    Notes
    -----
    `follow` may run beside any number of `pick`: a swap replaces one reference, to a dictionary that never changes.
    Requests that hold the old model finish with it.
    """

    catalog: Catalog | None
    load: Load
    names: tuple[str, ...] = ()
    bundled: bool = True
    pinned_versions: int = 2
    on_swap: Callable[[str, str, str | None], None] | None = None
    problems: dict[str, str] = field(default_factory=dict)
    _serving: dict[str, Served] = field(default_factory=dict)
    _followed: dict[str, _Followed] = field(default_factory=dict)
    _pinned: OrderedDict[tuple[str, str], Served] = field(default_factory=OrderedDict)
    _pinning: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Load bundled weights where they may serve, then what the store names; never raises."""
        if self.bundled:
            for name in bundled_names():
                if not self.names or name in self.names:
                    self._load_bundled(name)
        self.follow()

    def _load_bundled(self, name: str) -> None:
        try:
            self._serve(self._tested(name, ModelPackage.bundled(name), "bundled", None))
            self.problems.pop(f"bundled {name}", None)
        except RefocusError as error:
            self.problems[f"bundled {name}"] = str(error)

    def follow(self) -> None:
        """Look once whether an alias has moved, and swap what has; never raises.

        One conditional read a model. What cannot be loaded, or fails its golden image, does not replace what serves;
        it is tried again only when the alias moves, or when the store itself was at fault.
        """
        if self.catalog is None:
            return
        try:
            names = self.names or tuple(self.catalog.models())
            self.problems.pop("store", None)
        except RefocusError as error:
            self.problems["store"] = str(error)
            return
        for name in names:
            self._follow_one(self.catalog, name)

    def _follow_one(self, catalog: Catalog, name: str) -> None:
        followed = self._followed.setdefault(name, _Followed())
        try:
            changed = catalog.alias_if_changed(name, "champion", followed.etag)
            if changed is not None:
                alias, followed.etag = changed
                followed.wanted = alias.digest
            self.problems.pop("store", None)
        except ModelMissing:
            return
        except StoreError as error:
            self.problems["store"] = str(error)
            return
        except RefocusError as error:
            followed.problem = str(error)
            return
        serving = self._serving.get(name)
        wanted = followed.wanted
        if wanted is None or wanted == followed.tried:
            return
        if serving is not None and serving.source == "champion" and serving.package.digest == wanted:
            followed.tried, followed.problem = wanted, None
            return
        try:
            record = catalog.version(name, wanted)
            fresh = self._tested(name, catalog.load(name, wanted), "champion", record.golden)
        except StoreError as error:
            # The store's fault, not the model's: look again at the next turn.
            self.problems["store"] = str(error)
            return
        except Exception as error:  # noqa: BLE001 (whatever a bad artifact raises, the old model goes on)
            followed.tried = wanted
            followed.problem = f"{wanted[:12]} could not take over: {error}"
            self._tell(name, wanted, followed.problem)
            return
        self._serve(fresh)
        followed.tried, followed.problem = wanted, None
        self._tell(name, wanted, None)
        if serving is not None:
            _close(serving.runner)

    def _serve(self, fresh: Served) -> None:
        self._serving = {**self._serving, fresh.name: fresh}

    def _tell(self, name: str, digest: str, problem: str | None) -> None:
        if self.on_swap is not None:
            self.on_swap(name, digest, problem)

    def _tested(
        self, name: str, package: ModelPackage, source: Literal["champion", "bundled"], golden: GoldenOutput | None
    ) -> Served:
        runner = self.load(package)
        network = getattr(runner, "network", None)
        with contextlib.ExitStack() as refused:
            refused.callback(_close, runner)
            if golden is None:
                golden_output(package, network)
            else:
                check_golden(package, golden, network)
            refused.pop_all()
        return Served(name, package, runner, source)

    def pick(self, reference: str | None, modality: str | None, colors: int, default: str | None) -> Served:
        """Return the model for a request, whose image holds so many `colors`.

        Raises
        ------
        ModelMissing
            If nothing serves, or nothing of that name.
        ModelUnfit
            If nothing that serves takes such an image.
        """
        if reference is not None:
            name, _, version = reference.partition("@")
            return self._named(name, version or "champion")
        serving = self._serving
        if not serving:
            raise ModelMissing(self.reason())
        wanted = [s for s in serving.values() if modality is None or s.package.config.modality == modality]
        if not wanted:
            served = sorted({s.package.config.modality for s in serving.values()})
            raise ModelUnfit(f"no model for {modality} is served; there are models for {', '.join(served)}.")
        # The default first, then exact colours; a brightfield network may see one colour at a time and is still not for
        # grey images where a fluorescence network serves.
        likely = "brightfield" if colors == 3 else "fluorescence"
        return min(
            wanted,
            key=lambda s: (
                s.name != default,
                s.package.config.channels != colors,
                s.package.config.modality != likely,
                s.source == "bundled",
                s.name,
            ),
        )

    def _named(self, name: str, version: str) -> Served:
        serving = self._serving.get(name)
        if serving is not None and version == "champion":
            return serving
        check_reference(name, version)
        if serving is not None and serving.package.digest.startswith(version):
            return serving
        if self.catalog is None or (self.names and name not in self.names):
            served = ", ".join(sorted(self._serving)) or "none"
            raise ModelMissing(f"model {name!r} ({version}) is not there; there is: {served}.")
        if version == "champion":
            served = ", ".join(sorted(self._serving)) or "none"
            raise ModelMissing(f"model {name!r} has no champion that serves; these do: {served}.")
        digest = self.catalog.resolve(name, version)
        with self._pinning:
            # One package may be published under several names.
            key = name, digest
            if key in self._pinned:
                self._pinned.move_to_end(key)
                return self._pinned[key]
            if not self.pinned_versions:
                raise ConfigurationError("this service serves champions alone (pinned_versions is 0).")
            record = self.catalog.version(name, digest)
            pinned = self._tested(name, self.catalog.load(name, digest), "champion", record.golden)
            self._pinned[key] = pinned
            while len(self._pinned) > self.pinned_versions:
                _close(self._pinned.popitem(last=False)[1].runner)
            return pinned

    def any_served(self) -> Served | None:
        """Return one of the models that serve; all are on one device."""
        return next(iter(self._serving.values()), None)

    def states(self) -> tuple[ModelState, ...]:
        """Return what serves, by name."""
        return tuple(
            served.state(followed.wanted, followed.problem)
            for name, served in sorted(self._serving.items())
            for followed in (self._followed.get(name, _Followed()),)
        )

    def all_problems(self) -> tuple[str, ...]:
        """Return what stands in the way of anything, in words."""
        waiting = [f"{name}: {f.problem}" for name, f in sorted(self._followed.items()) if f.problem]
        return (*(f"{what}: {said}" for what, said in sorted(self.problems.items())), *waiting)

    def reason(self) -> str:
        """Say why nothing serves, and what to do."""
        if self._serving:
            return ""
        found = "; ".join(self.all_problems())
        where = "no object store is configured" if self.catalog is None else "the registry has no champion that loads"
        what = "promote a model (jobs/promote.py) or install weights that ship with Refocus"
        return f"there is no model to serve: {where}{f' ({found})' if found else ''}; {what}."


def _close(runner: Any) -> None:
    close = getattr(runner, "close", None)
    if close is not None:
        close()
