"""What the service is told: one frozen value, from the `args` of a serve config."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from refocus.errors import not_fitting, problems_of
from refocus.wire.image import ImageLimits


class ServingConfig(BaseModel):
    """How images are served.

    Parameters
    ----------
    models : tuple of str
        Names of the models to serve; empty for every model that has a champion, and all bundled ones.
    default_model : str or None
        For requests that name neither model nor modality; the first that fits the image's colours where None.
    store : {'auto', 'required', 'none'}
        ``'auto'`` follows champions where a store is configured and serves bundled weights where not, or where a model
        has no champion yet; ``'required'`` never serves bundled weights; ``'none'`` serves nothing else.
    poll_s : float
        How often replicas look whether an alias has moved.
    device : {'auto', 'cpu', 'cuda'}
    precision : {'auto', 'fp32', 'bf16'}
    tile_px, pixels_per_batch : int or None
        See :class:`refocus.model.restore.LoadedModel`, which chooses by the device where they are None; on an
        accelerator tiles of several requests share a batch.
    concurrency : int
        Requests that one restorer replica works on at once; the rest wait in the queue.
    threads : int or None
        CPU threads of torch in one replica; None for what the replica reserved.
    pinned_versions : int
        Versions other than champions that stay loaded because somebody asked for them by name.
    limits : ImageLimits
    upload_timeout_s : float
        A body must have arrived after so long, however slowly it drips.
    request_timeout_s : float
        An answer must have begun after so long.
    retry_after_s : int
        What refused clients are asked to wait.
    attempts : int
        How many replicas a request is tried on, where one dies with it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    models: tuple[str, ...] = ()
    default_model: str | None = None
    store: Literal["auto", "required", "none"] = "auto"
    poll_s: float = Field(default=5.0, gt=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    tile_px: int | None = Field(default=None, ge=128, le=8192)
    pixels_per_batch: int | None = Field(default=None, ge=16_384)
    concurrency: int = Field(default=4, ge=1, le=64)
    threads: int | None = Field(default=None, ge=1)
    pinned_versions: int = Field(default=2, ge=0, le=16)
    limits: ImageLimits = ImageLimits()
    upload_timeout_s: float = Field(default=60.0, gt=0)
    request_timeout_s: float = Field(default=120.0, gt=0)
    retry_after_s: int = Field(default=2, ge=1)
    attempts: int = Field(default=3, ge=1, le=10)

    @model_validator(mode="after")
    def _default_is_served(self) -> Self:
        if self.default_model and self.models and self.default_model not in self.models:
            raise ValueError(f"default_model {self.default_model!r} is not among models {list(self.models)}.")
        return self

    @classmethod
    def parse(cls, values: dict[str, Any]) -> ServingConfig:
        """Check what a serve config's `args` say.

        Raises
        ------
        ConfigurationError
            Naming every key that does not fit.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise not_fitting(error, where="args") from error


def check_serve_config(document: Any, *, name: str = "config") -> list[str]:
    """Return what is wrong with a serve config, already parsed from YAML; an empty list is a sound one.

    Serve ignores keys it does not know, so ``max_ongoing_request: 64`` is a queue of five and nobody is told. Here
    every key must be one that Serve's own schema names, every deployment one of ours, and `args` a `ServingConfig`.
    """
    from ray.serve.config import AutoscalingConfig
    from ray.serve.schema import ServeDeploySchema

    from refocus.serving.app import DEPLOYMENTS, IMPORT_PATH

    if not isinstance(document, dict):
        return [f"{name}: holds a {type(document).__name__}; expected a mapping with 'applications'."]
    problems = _unknown_keys(document, ServeDeploySchema, name)
    try:
        schema = ServeDeploySchema.model_validate(document)
    except ValidationError as error:
        return problems + problems_of(error, name)
    for number, application in enumerate(schema.applications):
        here = f"{name}.applications.{number}"
        if application.import_path != IMPORT_PATH:
            continue
        try:
            ServingConfig.model_validate(application.args or {})
        except ValidationError as error:
            problems += problems_of(error, f"{here}.args")
        raw = document["applications"][number]
        for place, deployment in enumerate(raw.get("deployments") or []):
            there = f"{here}.deployments.{place}"
            if deployment.get("name") not in DEPLOYMENTS:
                problems.append(f"{there}.name: {deployment.get('name')!r} is none of {', '.join(DEPLOYMENTS)}.")
            # Declared as a plain mapping in Serve's schema, so it is not looked into above.
            if isinstance(deployment.get("autoscaling_config"), dict):
                problems += _unknown_keys(
                    deployment["autoscaling_config"], AutoscalingConfig, f"{there}.autoscaling_config"
                )
            if deployment.get("max_queued_requests", -1) == -1:
                problems.append(f"{there}.max_queued_requests: is not set, so the queue has no end; set a number.")
    if schema.http_options.request_timeout_s is None:
        problems.append(f"{name}.http_options.request_timeout_s: is not set, so requests may wait for ever.")
    return list(dict.fromkeys(problems))


def _unknown_keys(values: Any, model: Any, where: str) -> list[str]:
    problems: list[str] = []
    if not isinstance(values, dict):
        return problems
    for key, value in values.items():
        field = model.model_fields.get(key) or next((f for f in model.model_fields.values() if f.alias == key), None)
        if field is None:
            near = ", ".join(sorted(model.model_fields))
            problems.append(f"{where}.{key}: is not known to Serve, which would ignore it; there are: {near}.")
            continue
        for inner in _models_in(field.annotation):
            entries = enumerate(value) if isinstance(value, list) else [(None, value)]
            for index, entry in entries:
                path = f"{where}.{key}" if index is None else f"{where}.{key}.{index}"
                problems += _unknown_keys(entry, inner, path)
    return problems


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for argument in getattr(annotation, "__args__", ()) for model in _models_in(argument)]
