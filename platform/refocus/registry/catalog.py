"""Versions and aliases in the object store.

::

    registry/MODEL/versions/DIGEST/{weights.safetensors,config.json,card.json,evaluation.json}   never change
    registry/MODEL/versions/DIGEST/version.json        written last: seals the version, names every file's digest
    registry/MODEL/versions/DIGEST/evaluations/0001-SHA256.json   each evaluation that it was published with again
    registry/MODEL/aliases/{champion,challenger}.json  pointer and last event, moved by compare-and-swap
    registry/MODEL/events/ALIAS/00000001.json          one object a move

A version is its weights and config; evaluations of it are added, and the last one counts. So what a promotion was
decided by is what the version is loaded with, and those before it stay.

A move is one write: the alias carries its event. The event's own object follows; a mover who finds that the one before
has not followed (its writer died) writes it first. So the events and the alias together always tell everything.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Literal, TypeVar

from pydantic import BaseModel, ValidationError

from refocus.errors import AliasMoved, ModelCorrupt, ModelMissing, ObjectChanged, ObjectExists, ObjectMissing
from refocus.io.store import ObjectStore
from refocus.model.checkpoint import EVALUATION, ModelPackage
from refocus.model.evaluation import EvaluationReport
from refocus.model.golden import golden_output
from refocus.registry.records import (
    ALIASES,
    Alias,
    AliasName,
    Decision,
    Event,
    InputSignature,
    VersionRecord,
    checked_model_name,
)

_SEAL = "version.json"
_EVALUATIONS = "evaluations/"
_SHORTEST_DIGEST = 6
_R = TypeVar("_R", bound=BaseModel)


def check_reference(model: str, reference: str) -> None:
    """Raise `ModelMissing` where a reference is no alias and too short for a digest's first digits."""
    if reference not in ALIASES and len(reference) < _SHORTEST_DIGEST:
        raise ModelMissing(
            f"{reference!r} names no version of {model!r}; expected {' or '.join(ALIASES)}, or at least "
            f"{_SHORTEST_DIGEST} digits of a digest."
        )


class Catalog:
    """The registry in one bucket.

    Parameters
    ----------
    store : ObjectStore
    now : callable, optional
        The clock, in UTC.
    """

    def __init__(self, store: ObjectStore, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.store = store
        self._now = now

    def models(self) -> list[str]:
        """Names of all models, sorted."""
        return sorted({entry.key.split("/")[1] for entry in self.store.list("registry/") if entry.key.count("/") >= 2})

    def check_model(self, model: str) -> None:
        """Raise `ModelMissing`, with the names that are there, if nothing was ever published as `model`."""
        folder = f"registry/{checked_model_name(model)}/"
        if next(self.store.list(folder), None) is None:
            there = ", ".join(self.models()) or "none yet"
            raise ModelMissing(
                f"there is no model {model!r} in {self.store.uri('registry')}; there is: {there}. Bundled models are "
                "no part of it; jobs/promote.py publishes what was trained."
            )

    def publish(self, package: ModelPackage, *, model: str | None = None, who: str | None = None) -> VersionRecord:
        """Write a version, or find it there: the same digest is the same version.

        An evaluation that is another than its last one is added to it.

        Raises
        ------
        ModelCorrupt
            If unsealed remains of the same digest are in the way.
        """
        model = checked_model_name(model or package.config.name)
        try:
            record = self.version(model, package.digest)
        except ModelMissing:
            record = self._sealed(package, model, who)
        if package.evaluation:
            self._add_evaluation(record, package.files()[EVALUATION])
        return record

    def _sealed(self, package: ModelPackage, model: str, who: str | None) -> VersionRecord:
        folder = _version_key(model, package.digest)
        written = {}
        for name, data in package.files().items():
            try:
                self.store.create(folder + name, data)
                written[name] = data
            except ObjectExists:
                # Another publisher of the same digest, now or cut short before: what is there counts.
                written[name] = self.store.get(folder + name)
        published = ModelPackage.from_files(written, source=self.store.uri(folder), digest=package.digest)
        config, card = published.config, published.card
        record = VersionRecord(
            model=model,
            digest=package.digest,
            created=self._now(),
            created_by=who or whoami(),
            files={name: _sha256(data) for name, data in written.items()},
            size_bytes=sum(len(data) for data in written.values()),
            signature=InputSignature(
                modality=config.modality,
                channels=config.channels,
                largest_blur_px=config.largest_blur_px,
                pixel_size_um=config.pixel_size_um,
                numerical_aperture=config.numerical_aperture,
            ),
            golden=golden_output(published),
            **{name: card.get(name) for name in ("run", "dataset", "commit")},
        )
        try:
            self.store.create(folder + _SEAL, _json(record))
        except ObjectExists:
            return self.version(model, package.digest)
        return record

    def version(self, model: str, digest: str) -> VersionRecord:
        """Return the record of a sealed version.

        Raises
        ------
        ModelMissing
        ModelCorrupt
            If the record cannot be read.
        """
        key = _version_key(model, digest) + _SEAL
        try:
            return _parse(VersionRecord, self.store.get(key), self.store.uri(key))
        except ObjectMissing:
            raise ModelMissing(
                f"model {model!r} has no version {digest[:12]} in {self.store.uri('registry/')}."
            ) from None

    def versions(self, model: str) -> list[VersionRecord]:
        """Return all sealed versions, oldest first."""
        keys = [e.key for e in self.store.list(f"registry/{model}/versions/") if e.key.endswith("/" + _SEAL)]
        records = [_parse(VersionRecord, self.store.get(key), self.store.uri(key)) for key in keys]
        return sorted(records, key=lambda record: (record.created, record.digest))

    def resolve(self, model: str, reference: str) -> str:
        """Return the digest that an alias, a digest, or six or more of its first digits name.

        Raises
        ------
        ModelMissing
            If nothing, or more than one version, fits.
        """
        if reference in ALIASES:
            return self.alias(model, reference)[0].digest
        check_reference(model, reference)
        prefix = f"registry/{model}/versions/{reference}"
        found = {e.key.split("/")[3] for e in self.store.list(prefix) if e.key.endswith("/" + _SEAL)}
        if len(found) != 1:
            raise ModelMissing(f"{reference!r} fits {len(found)} versions of {model!r}; expected one.")
        return found.pop()

    def load(self, model: str, digest: str) -> ModelPackage:
        """Fetch a version and verify every file against its seal and the whole against its digest.

        Raises
        ------
        ModelMissing
        ModelCorrupt
            If a byte is not what it was.
        ModelUnfit
            If this version of Refocus does not know such a network.
        """
        return self._load(self.version(model, digest))

    def _load(self, record: VersionRecord) -> ModelPackage:
        folder = _version_key(record.model, record.digest)
        files = {}
        for name, expected in record.files.items():
            try:
                files[name] = self.store.get(folder + name)
            except ObjectMissing as error:
                raise ModelCorrupt(f"{self.store.uri(folder + name)} is gone; the version is incomplete.") from error
            if _sha256(files[name]) != expected:
                raise ModelCorrupt(f"{self.store.uri(folder + name)} is not what it was sealed with.")
        if added := self._added_evaluations(record):
            files[EVALUATION] = self.store.get(added[-1])
            if not added[-1].endswith(f"-{_sha256(files[EVALUATION])}.json"):
                raise ModelCorrupt(
                    f"{self.store.uri(added[-1])} is not what its name says; delete it, or evaluate again."
                )
        return ModelPackage.from_files(files, source=self.store.uri(folder), digest=record.digest)

    def _added_evaluations(self, record: VersionRecord) -> list[str]:
        """Keys of the evaluations that came after the seal, oldest first."""
        folder = _version_key(record.model, record.digest) + _EVALUATIONS
        return sorted(entry.key for entry in self.store.list(folder))

    def _add_evaluation(self, record: VersionRecord, data: bytes) -> None:
        added, digest = self._added_evaluations(record), _sha256(data)
        last = added[-1] if added else f"-{record.files.get(EVALUATION)}.json"
        if last.endswith(f"-{digest}.json"):
            return
        folder = _version_key(record.model, record.digest) + _EVALUATIONS
        # Of two that are added at once one counts as the last, for everybody the same one; the other stays too.
        with contextlib.suppress(ObjectExists):
            self.store.create(f"{folder}{len(added) + 1:04d}-{digest}.json", data)

    def report(self, package: ModelPackage) -> EvaluationReport | None:
        """Return a package's evaluation, None where it has none."""
        return EvaluationReport.model_validate(package.evaluation) if package.evaluation else None

    def verify(self, model: str) -> dict[str, str]:
        """Load every version of `model`; return what is wrong, by digest."""
        problems = {}
        for record in self.versions(model):
            try:
                self._load(record)
            except (ModelCorrupt, ModelMissing, ValueError) as error:
                problems[record.digest] = str(error)
        return problems

    def alias(self, model: str, name: AliasName) -> tuple[Alias, str]:
        """Return an alias and the ETag that `move` wants.

        Raises
        ------
        ModelMissing
        """
        key = _alias_key(model, name)
        try:
            data, etag = self.store.get_with_etag(key)
        except ObjectMissing:
            raise ModelMissing(f"model {model!r} has no {name} yet; promote a version first.") from None
        return _parse(Alias, data, self.store.uri(key)), etag

    def alias_if_changed(self, model: str, name: AliasName, etag: str | None) -> tuple[Alias, str] | None:
        """Return an alias and its ETag, None if it still is the one that `etag` names.

        Raises
        ------
        ModelMissing
        """
        key = _alias_key(model, name)
        try:
            changed = self.store.get_if_changed(key, etag)
        except ObjectMissing:
            raise ModelMissing(f"model {model!r} has no {name} yet; promote a version first.") from None
        return None if changed is None else (_parse(Alias, changed[0], self.store.uri(key)), changed[1])

    def move(
        self,
        model: str,
        name: AliasName,
        to_digest: str,
        *,
        seen: tuple[Alias, str] | None,
        kind: Literal["promote", "rollback"],
        why: str,
        who: str | None = None,
        forced: bool = False,
        decision: Decision | None = None,
    ) -> Alias:
        """Move an alias from what was `seen` (None: there was none) to a version.

        Raises
        ------
        AliasMoved
            If it is no longer what was seen.
        ModelMissing
            If there is no such version.
        """
        self.version(model, to_digest)
        if seen is not None:
            self._write_event(seen[0].event)
        event = Event(
            sequence=1 if seen is None else seen[0].event.sequence + 1,
            kind=kind,
            model=model,
            alias=name,
            from_digest=None if seen is None else seen[0].digest,
            to_digest=to_digest,
            who=who or whoami(),
            when=self._now(),
            why=why,
            forced=forced,
            decision=decision,
        )
        alias = Alias(digest=to_digest, event=event)
        key = _alias_key(model, name)
        try:
            if seen is None:
                self.store.create(key, _json(alias))
            else:
                self.store.replace(key, _json(alias), seen[1])
        except (ObjectExists, ObjectChanged):
            raise AliasMoved(
                f"{name} of {model!r} was moved by somebody else meanwhile; look at it with 'refocus models show', and "
                "promote again if that is still right."
            ) from None
        self._write_event(event)
        return alias

    def events(self, model: str, name: AliasName | None = None) -> list[Event]:
        """Return every move of one alias or all, oldest first."""
        found: dict[tuple[str, int], Event] = {}
        for each in ALIASES if name is None else (name,):
            with contextlib.suppress(ModelMissing):
                # The pointer is read first: whatever moves meanwhile writes its predecessor's event before.
                last = self.alias(model, each)[0].event
                found[each, last.sequence] = last
            for entry in self.store.list(f"registry/{model}/events/{each}/"):
                event = _parse(Event, self.store.get(entry.key), self.store.uri(entry.key))
                found[each, event.sequence] = event
        return sorted(found.values(), key=lambda event: (event.sequence if name else 0, event.when, event.sequence))

    def _write_event(self, event: Event) -> None:
        with contextlib.suppress(ObjectExists):
            self.store.create(f"registry/{event.model}/events/{event.alias}/{event.sequence:08d}.json", _json(event))

    def collect(
        self, model: str, *, keep_events: int = 20, minimum_age_s: float = 86_400.0, dry_run: bool = False
    ) -> Iterator[VersionRecord]:
        """Delete versions that no alias and none of the last events name; yield each.

        Parameters
        ----------
        keep_events : int
            Versions named by so many last moves of each alias stay, so that rolling back finds them.
        minimum_age_s : float
            Younger versions stay: somebody may be about to promote them.
        dry_run : bool
            Delete nothing.
        """
        for record in self.versions(model):
            if (self._now() - record.created).total_seconds() < minimum_age_s:
                continue
            # Asked anew for every version: an alias may move while this runs.
            if record.digest in self._named(model, keep_events):
                continue
            if not dry_run:
                folder = _version_key(model, record.digest)
                # The seal first: what is half deleted is no version.
                self.store.delete(folder + _SEAL)
                for key in (*(folder + name for name in record.files), *self._added_evaluations(record)):
                    self.store.delete(key)
            yield record

    def _named(self, model: str, keep_events: int) -> set[str]:
        named: set[str] = set()
        for name in ALIASES:
            with contextlib.suppress(ModelMissing):
                named.add(self.alias(model, name)[0].digest)
            last = self.events(model, name)[-keep_events:] if keep_events else []
            named.update(digest for e in last for digest in (e.from_digest, e.to_digest) if digest)
        return named


def whoami() -> str:
    """Return user and host, for the record."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def _version_key(model: str, digest: str) -> str:
    return f"registry/{checked_model_name(model)}/versions/{digest}/"


def _alias_key(model: str, name: AliasName) -> str:
    return f"registry/{checked_model_name(model)}/aliases/{name}.json"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _json(record: BaseModel) -> bytes:
    return record.model_dump_json(indent=1).encode() + b"\n"


def _parse(kind: type[_R], data: bytes, where: str) -> _R:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise ModelCorrupt(f"{where} is no {kind.__name__}: {error}") from error
