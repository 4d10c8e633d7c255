"""A trained network as files: weights, what they are for, what is known of them; named by a digest.

::

    weights.safetensors   tensors, half precision unless asked otherwise
    config.json           `PackageConfig`: enough to build the network and to serve it
    card.json             provenance, data and licences, limits, metrics: for people
    evaluation.json       measurements, as `refocus.model.evaluation` writes them

The digest covers weights and config alone: cards may be corrected without making another model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from refocus.errors import ModelCorrupt, ModelMissing, ModelUnfit
from refocus.model.abstain import RangeGate
from refocus.model.calibration import Calibration
from refocus.model.networks import NetworkConfig, RefocusNetwork, build_network
from refocus.model.restraint import Restraint

WEIGHTS, CONFIG, CARD, EVALUATION = "weights.safetensors", "config.json", "card.json", "evaluation.json"
_BUNDLED = Path(__file__).parent / "bundled"

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PackageConfig(BaseModel):
    """What serving must know before it runs a network.

    Parameters
    ----------
    format_version : int
    name : str
        Of the model, such as ``fluorescence``.
    modality : {'fluorescence', 'brightfield', 'phase_contrast'}
    network : NetworkConfig
    largest_blur_px : float
        Largest geometric blur radius in training; beyond it the network has seen nothing.
    pixel_size_um, numerical_aperture : (low, high) or None
        Ranges in training, for messages; the network itself sees pixels alone.
    normalisation : {'percentiles-1-99.8', 'percentiles-99-0.2'}
        How :func:`refocus.model.normalisation.estimate` is to read whole images: from the dark end, or from the bright
        end where specimens absorb.
    halo_px : int
        Rim that tiles need around what is kept of them.
    restraint : Restraint
        What share of the network's changes is applied; unfitted, all of them.
    calibration : Calibration
        What the scale head must be multiplied by; unfitted, the Laplace distribution is taken at its word.
    gate : RangeGate or None
        What tells tiles outside the range; None where none was fitted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    name: str
    modality: Literal["fluorescence", "brightfield", "phase_contrast"]
    network: NetworkConfig
    largest_blur_px: PositiveFloat
    pixel_size_um: tuple[PositiveFloat, PositiveFloat] | None = None
    numerical_aperture: tuple[PositiveFloat, PositiveFloat] | None = None
    normalisation: Literal["percentiles-1-99.8", "percentiles-99-0.2"] = "percentiles-1-99.8"
    halo_px: Annotated[int, Field(ge=0)] = 160
    restraint: Restraint = Restraint()
    calibration: Calibration = Calibration()
    gate: RangeGate | None = None

    @property
    def absorbing(self) -> bool:
        """Whether zero is the lamp's full light."""
        return self.normalisation == "percentiles-99-0.2"

    @property
    def channels(self) -> int:
        """Channels that the network sees at once: 1 or 3."""
        return self.network.channels


@dataclass(frozen=True)
class ModelPackage:
    """Weights with everything that travels beside them.

    Parameters
    ----------
    config : PackageConfig
    weights : mapping of str to Tensor
        As `RefocusNetwork.state_dict` names them.
    card, evaluation : mapping
        JSON values.

    Raises
    ------
    ModelUnfit
        If weights and config do not describe one network.
    """

    config: PackageConfig
    weights: Mapping[str, Tensor]
    card: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with torch.device("meta"):
            expected = {name: tuple(t.shape) for name, t in build_network(self.config.network).state_dict().items()}
        found = {name: tuple(t.shape) for name, t in self.weights.items()}
        if expected != found:
            names = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
            first = names[0]
            raise ModelUnfit(
                f"weights do not fit the config ({self.config.network.architecture}, widths "
                f"{self.config.network.widths}): {len(names)} tensors differ, first {first!r}, which is "
                f"{found.get(first, 'missing')} and should be {expected.get(first, 'absent')}. "
                "Were the files of two models mixed?"
            )

    @classmethod
    def of(cls, network: RefocusNetwork, config: PackageConfig, *, dtype: torch.dtype = torch.float16) -> Self:
        """Take the weights of `network`, rounded to `dtype`: half precision costs less than a hundredth of a decibel.

        Raises
        ------
        ModelUnfit
            If a weight is not finite in `dtype`.
        """
        weights = {name: t.detach().cpu().contiguous().to(dtype) for name, t in network.state_dict().items()}
        for name, tensor in weights.items():
            if not tensor.isfinite().all():
                raise ModelUnfit(f"weight {name!r} is not finite as {dtype}; the network cannot be shipped like this.")
        return cls(config, weights)

    @classmethod
    def load(cls, folder: str | Path, *, digest: str | None = None) -> Self:
        """Read a package from a folder and check it.

        Raises
        ------
        ModelMissing
            If there is no such package.
        ModelCorrupt
            If a file is truncated or unreadable, or the content is not what `digest` names.
        ModelUnfit
            If the config is of another version of Refocus, or the weights do not fit it.
        """
        folder = Path(folder)
        if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
            raise ModelMissing(f"{folder} holds no model: {CONFIG} and {WEIGHTS} are expected there.")
        files = {
            name: (folder / name).read_bytes()
            for name in (WEIGHTS, CONFIG, CARD, EVALUATION)
            if (folder / name).is_file()
        }
        return cls.from_files(files, source=str(folder), digest=digest)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], *, source: str = "memory", digest: str | None = None) -> Self:
        """Rebuild a package from the bytes of its files by name; raises as `load` does."""
        if WEIGHTS not in files or CONFIG not in files:
            raise ModelMissing(f"{source} holds {sorted(files)}; {CONFIG} and {WEIGHTS} are needed.")
        try:
            weights = load_tensors(files[WEIGHTS])
        except (SafetensorError, ValueError) as error:
            raise ModelCorrupt(
                f"{source}: {WEIGHTS} cannot be read ({error}); {len(files[WEIGHTS])} bytes arrived. Fetch it again."
            ) from error
        values = {name: _json(files[name], f"{source}: {name}") for name in (CONFIG, CARD, EVALUATION) if name in files}
        try:
            config = PackageConfig.model_validate_json(files[CONFIG])
        except ValidationError as error:
            raise ModelUnfit(
                f"{source}: {CONFIG} does not describe a network that this version knows: {error}. "
                "It may come from a newer version of Refocus."
            ) from error
        package = cls(config, weights, values.get(CARD, {}), values.get(EVALUATION, {}))
        if digest is not None and package.digest != digest:
            raise ModelCorrupt(f"{source} has digest {package.digest}, not {digest}; the files were changed.")
        return package

    @classmethod
    def bundled(cls, name: str) -> Self:
        """Load the weights that ship with Refocus.

        Raises
        ------
        ModelMissing
            If none has this name.
        """
        if name not in bundled_names():
            raise ModelMissing(
                f"no bundled model is named {name!r}; there are: {', '.join(bundled_names()) or 'none'}."
            )
        return cls.load(_BUNDLED / name)

    def files(self) -> dict[str, bytes]:
        """Return what `save` writes, by name."""
        tensors = {name: tensor.contiguous() for name, tensor in self.weights.items()}
        return {
            WEIGHTS: save_tensors(tensors),
            CONFIG: self.config.model_dump_json(indent=2).encode() + b"\n",
            CARD: json.dumps(self.card, indent=2, ensure_ascii=False).encode() + b"\n",
            EVALUATION: json.dumps(self.evaluation, indent=None, ensure_ascii=False).encode() + b"\n",
        }

    def save(self, folder: str | Path) -> Path:
        """Write the four files into `folder`, config last: a folder without it is no model. Returns the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = self.files()
        for name in (WEIGHTS, CARD, EVALUATION, CONFIG):
            partial = folder / f"{name}.partial"
            partial.write_bytes(files[name])
            partial.replace(folder / name)
        return folder

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, over the config's fields and each tensor's name, dtype, shape and bytes.

        It depends on content alone: not on JSON spacing, nor on how safetensors orders or pads. Fields at their
        defaults are left out, so that packages keep their names when a later version of Refocus adds one.
        """
        sha = hashlib.sha256()
        fields = self.config.model_dump(mode="json", exclude_defaults=True)
        sha.update(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode())
        for name in sorted(self.weights):
            tensor = self.weights[name]
            sha.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()

    def network(self, device: torch.device | str = "cpu") -> RefocusNetwork:
        """Build the network with these weights in float32, for inference, on `device`."""
        with torch.device("meta"):
            network = build_network(self.config.network)
        network.load_state_dict({name: t.float() for name, t in self.weights.items()}, assign=True)
        network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network.requires_grad_(False).eval()


def bundled_names() -> tuple[str, ...]:
    """Names of the models that ship with Refocus."""
    return tuple(sorted(path.parent.name for path in _BUNDLED.glob(f"*/{CONFIG}")))


def _json(data: bytes, source: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelCorrupt(f"{source} is not JSON ({error}); fetch it again.") from error
    if not isinstance(value, dict):
        raise ModelCorrupt(f"{source} holds a {type(value).__name__}; expected an object.")
    return value
