"""Packages: what is saved is what is loaded, and nothing else is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from refocus.errors import ModelCorrupt, ModelMissing, ModelUnfit
from refocus.model.checkpoint import CONFIG, WEIGHTS, ModelPackage, PackageConfig, bundled_names
from refocus.model.networks import NetworkConfig, build_network

NETWORK = NetworkConfig(
    widths=(8, 12), encoder_blocks=(1,), decoder_blocks=(1,), middle_blocks=1, noise_levels=((2e-3, 40.0),)
)


@pytest.fixture
def package() -> ModelPackage:
    torch.manual_seed(0)
    config = PackageConfig(name="test", modality="fluorescence", network=NETWORK, largest_blur_px=9.0)
    return ModelPackage.of(build_network(NETWORK), config)


def test_a_saved_package_comes_back_with_its_digest(package: ModelPackage, tmp_path: Path) -> None:
    package.save(tmp_path)
    loaded = ModelPackage.load(tmp_path, digest=package.digest)
    assert loaded.config == package.config
    x = torch.rand(1, 1, 32, 32)
    assert torch.equal(loaded.network()(x).log_scale, package.network()(x).log_scale)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["card.json", "config.json", "evaluation.json", WEIGHTS]


def test_the_digest_is_of_content_and_not_of_layout(package: ModelPackage, tmp_path: Path) -> None:
    package.save(tmp_path)
    fields = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(dict(reversed(fields.items()))))
    (tmp_path / "card.json").write_text('{"corrected": true}')
    assert ModelPackage.load(tmp_path).digest == package.digest
    fields["largest_blur_px"] = 10.0
    (tmp_path / CONFIG).write_text(json.dumps(fields))
    assert ModelPackage.load(tmp_path).digest != package.digest


def test_one_changed_weight_is_another_digest(package: ModelPackage) -> None:
    weights = {name: tensor.clone() for name, tensor in package.weights.items()}
    next(iter(weights.values())).view(-1)[0] += 1
    assert ModelPackage(package.config, weights).digest != package.digest


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights_are_corrupt(package: ModelPackage, tmp_path: Path, keep: int) -> None:
    package.save(tmp_path)
    data = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(data[:keep])
    with pytest.raises(ModelCorrupt, match="cannot be read"):
        ModelPackage.load(tmp_path)


def test_another_content_than_the_digest_names_is_corrupt(package: ModelPackage, tmp_path: Path) -> None:
    package.save(tmp_path)
    with pytest.raises(ModelCorrupt, match="not 00ff"):
        ModelPackage.load(tmp_path, digest="00ff")


def test_weights_of_another_network_do_not_fit(package: ModelPackage, tmp_path: Path) -> None:
    package.save(tmp_path)
    fields = json.loads((tmp_path / CONFIG).read_text())
    fields["network"]["widths"] = [8, 16]
    (tmp_path / CONFIG).write_text(json.dumps(fields))
    with pytest.raises(ModelUnfit, match=r"tensors differ, first .* \(12,.* should be \(16,"):
        ModelPackage.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_a_config_that_is_no_object_is_corrupt(package: ModelPackage, tmp_path: Path, text: str) -> None:
    package.save(tmp_path)
    (tmp_path / CONFIG).write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelCorrupt):
        ModelPackage.load(tmp_path)


def test_a_config_of_a_newer_version_does_not_fit(package: ModelPackage, tmp_path: Path) -> None:
    package.save(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(json.loads((tmp_path / CONFIG).read_text()) | {"format_version": 2}))
    with pytest.raises(ModelUnfit, match="newer version"):
        ModelPackage.load(tmp_path)


def test_a_folder_without_a_package_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match=r"config\.json"):
        ModelPackage.load(tmp_path)
    with pytest.raises(ModelMissing, match="no bundled model is named 'nonesuch'"):
        ModelPackage.bundled("nonesuch")


@pytest.mark.parametrize("name", bundled_names())
def test_bundled_packages_load_and_are_small(name: str) -> None:
    package = ModelPackage.bundled(name)
    assert len(package.files()[WEIGHTS]) < 20e6
    assert {"data", "limits", "recipe"} <= package.card.keys()
    assert package.network()(torch.rand(1, package.config.channels, 17, 17)).image.isfinite().all()


def test_weights_that_half_precision_cannot_hold_are_refused(package: ModelPackage) -> None:
    network = build_network(NETWORK)
    with torch.no_grad():
        network.trunk.entrance.weight[0, 0, 0, 0] = 1e6
    with pytest.raises(ModelUnfit, match="not finite as"):
        ModelPackage.of(network, package.config)


def test_weights_are_loaded_without_torch_s_compiler():
    # Drawing weights on the meta device, to throw them away, has torch load it: more than a second of every start.
    code = (
        "import sys; from refocus.model.checkpoint import ModelPackage; ModelPackage.bundled('fluorescence').network();"
        "print('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
