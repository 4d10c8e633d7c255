"""The deployments on Ray Serve: HTTP at an Ingress, images through Restorers."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
import torch
from fastapi import FastAPI
from ray import serve
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError, TaskCancelledError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from refocus.errors import RefocusError, ServiceBusy
from refocus.serving.config import ServingConfig
from refocus.serving.http import make_app
from refocus.serving.ray_meters import RayMeters
from refocus.serving.requests import RestoreAnswer, RestoreRequest, ServiceState
from refocus.serving.restorer import Restorer as PlainRestorer
from refocus.serving.restorer import catalog_of

IMPORT_PATH = "refocus.serving.app:build"
DEPLOYMENTS = ("Ingress", "Restorer")
_PAUSE_S = 0.2
_log = logging.getLogger("refocus.serving")
#: Read by glibc when a process starts. By default it gives every large tensor's pages back to the kernel and takes new
#: ones for the next: at 2048 x 2048 that was a third of the time on CPUs. Up to a gigabyte is kept instead.
MEMORY_ON_CPUS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_ARENA_MAX": "1"}

#: While all restorers are full the router asks them again and again, by default after up to half a second, in which a
#: restorer of small images has long run dry.
_ROUTER = RequestRouterConfig(initial_backoff_s=0.005, max_backoff_s=0.02)  # type: ignore[arg-type]


@serve.deployment(
    max_ongoing_requests=16,
    max_queued_requests=64,
    autoscaling_config={"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 4},
    request_router_config=_ROUTER,
    graceful_shutdown_timeout_s=120.0,
    health_check_period_s=5.0,
)
class Restorer:
    """Models on one device; follows the champion without a restart.

    Parameters
    ----------
    config : dict
        Of a `ServingConfig`. Where the store is, the cluster's environment says: no secret travels through here.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = ServingConfig.parse(config)
        _log_with_serve()
        torch.set_num_threads(self._config.threads or _threads())
        self._restorer = PlainRestorer(self._config, catalog_of(self._config), RayMeters())
        self._pool = ThreadPoolExecutor(self._config.concurrency, thread_name_prefix="restore")
        self._housekeeping = ThreadPoolExecutor(1, thread_name_prefix="follow")
        self._follower: asyncio.Task[None] | None = None

    async def restore(self, request: RestoreRequest) -> RestoreAnswer | RefocusError:
        """Restore planes; a caller who leaves before his turn costs nothing.

        A refusal is returned, not raised: to Serve every exception is a failure of the replica, logged with its trace.
        """
        self._follow()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._restorer.restore, request)
        except RefocusError as refusal:
            return refusal.with_traceback(None)

    async def state(self) -> ServiceState:
        """Say what serves."""
        self._follow()
        return self._restorer.state()

    async def check_health(self) -> None:
        """Called by Serve: a replica whose event loop hangs, or whose device failed, is replaced.

        A missing model is no illness.
        """
        self._follow()
        if self._restorer.device_failure:
            raise RuntimeError(f"the device failed: {self._restorer.device_failure}")

    def _follow(self) -> None:
        # The loop is not running yet while the constructor does.
        if self._follower is None:
            self._follower = asyncio.get_running_loop().create_task(self._follow_for_ever())

    async def _follow_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._config.poll_s)
            try:
                await loop.run_in_executor(self._housekeeping, self._restorer.follow)
            except Exception:  # noqa: BLE001 (whatever it was, the next look may succeed)
                # A task that ends takes its error along, and nobody would look for champions any more.
                _log.exception("looking for champions failed; trying again")


@serve.deployment(
    max_ongoing_requests=32,
    max_queued_requests=64,
    autoscaling_config={"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 8},
    graceful_shutdown_timeout_s=130.0,
    health_check_period_s=5.0,
)
@serve.ingress()
class Ingress:
    """HTTP: decodes, validates, asks a restorer, encodes.

    Parameters
    ----------
    config : dict
        Of a `ServingConfig`.
    restorer : DeploymentHandle
    """

    def __init__(self, config: dict[str, Any], restorer: DeploymentHandle) -> None:
        self._config = ServingConfig.parse(config)
        _log_with_serve()
        self._restorer = restorer

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(RayBackend(self._restorer, self._config), self._config, RayMeters())


class RayBackend:
    """Restorers behind a handle; a call whose replica dies with it is made again.

    Restoring changes nothing anywhere, so making it twice does no harm.
    """

    def __init__(self, restorer: DeploymentHandle, config: ServingConfig) -> None:
        self._restorer = restorer
        self._config = config

    async def restore(self, request: RestoreRequest) -> RestoreAnswer:
        """Restore planes on any replica."""
        answer = await self._call("restore", request)
        if isinstance(answer, RefocusError):
            raise answer
        return answer

    async def state(self) -> ServiceState:
        """Ask any replica what it serves."""
        return await self._call("state")

    async def _call(self, method: str, *arguments: Any) -> Any:
        for attempt in range(1, self._config.attempts + 1):
            try:
                return await getattr(self._restorer, method).remote(*arguments)
            except (ActorDiedError, ActorUnavailableError) as error:
                if attempt == self._config.attempts:
                    raise ServiceBusy(
                        f"{attempt} restorers ended while they had this request; ask again in a moment."
                    ) from error
                # The router learns of the death a moment later than we do.
                await asyncio.sleep(_PAUSE_S * attempt)
            except BackPressureError as error:
                raise ServiceBusy(
                    "as many requests wait as may wait; ask again in a moment.",
                    retry_after_s=float(self._config.retry_after_s),
                ) from error
            except DeploymentUnavailableError as error:
                raise ServiceBusy("no restorer could be started; the service's log says why.") from error
            except TaskCancelledError as error:
                # The caller left, or the replica was told to stop with this in its queue.
                raise ServiceBusy("the request was cancelled; ask again in a moment.") from error
            except RayTaskError as error:
                cause = error.cause
                raise (cause if isinstance(cause, Exception) else RuntimeError(str(error))) from None
        raise AssertionError("unreachable")


def build(args: dict[str, Any]) -> serve.Application:
    """Build the application from a serve config's `args`: on GPUs where the cluster has some, else on CPUs.

    Raises
    ------
    ConfigurationError
        Where `args` do not fit, before anything starts.
    """
    config = ServingConfig.parse(args)
    values = config.model_dump(mode="json")
    # Decorated classes are Deployments, which type checkers do not know.
    restorer: serve.Deployment = Restorer  # type: ignore[assignment]
    ingress: serve.Deployment = Ingress  # type: ignore[assignment]
    bound = restorer.options(ray_actor_options=_resources(config)).bind(values)
    return ingress.options(ray_actor_options={"num_cpus": 0.5}).bind(values, bound)


def _resources(config: ServingConfig) -> dict[str, Any]:
    gpus = ray.cluster_resources().get("GPU", 0) if ray.is_initialized() else torch.cuda.device_count()
    if config.device == "cuda" or (config.device == "auto" and gpus >= 1):
        return {"num_cpus": 1, "num_gpus": 1}
    return {"num_cpus": 1, "runtime_env": {"env_vars": MEMORY_ON_CPUS}}


def _log_with_serve() -> None:
    # Serve writes its replicas' log in the format that the config asks for; ours goes the same way.
    ours, theirs = logging.getLogger("refocus"), logging.getLogger("ray.serve")
    ours.handlers, ours.propagate = list(theirs.handlers), False
    ours.setLevel(logging.INFO)
    # What tifffile would warn of was checked before it was asked, or is an error.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)


def _threads() -> int:
    reserved = ray.get_runtime_context().get_assigned_resources().get("CPU", 1.0)
    return max(1, int(reserved))
