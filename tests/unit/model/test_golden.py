from __future__ import annotations

import pytest
import torch

from refocus.errors import ModelUnfit
from refocus.model.checkpoint import ModelPackage, PackageConfig
from refocus.model.golden import TOLERANCE, check_golden, golden_image, golden_output, largest_difference
from refocus.model.networks import NetworkConfig, build_network


@pytest.fixture(params=[1, 3])
def package(request) -> ModelPackage:
    config = NetworkConfig(
        channels=request.param, widths=(8, 8), encoder_blocks=(1,), decoder_blocks=(1,), middle_blocks=1
    )
    torch.manual_seed(0)
    network = build_network(config)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return ModelPackage.of(
        network, PackageConfig(name="g", modality="fluorescence", network=config, largest_blur_px=8.0)
    )


def test_the_golden_image_spans_normalised_intensity():
    image = golden_image(3)
    assert image.shape == (1, 3, 96, 96)
    assert float(image.max()) == 1.0
    assert 0.0 <= float(image.min()) < 0.01


def test_the_same_package_reproduces_itself_also_in_bfloat16(package):
    expected = golden_output(package)
    # Same machine, same precision: only the order of sums may differ.
    assert check_golden(package, expected) < 1e-5
    assert check_golden(package, expected, package.network().to(torch.bfloat16)) < TOLERANCE


def test_a_network_that_computes_something_else_is_found(package):
    expected = golden_output(package)
    broken = package.network()
    with torch.no_grad():
        for weight in broken.parameters():
            weight.mul_(1.5)
    with pytest.raises(ModelUnfit, match="does not reproduce"):
        check_golden(package, expected, broken)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(ModelUnfit, match="NaN"):
        check_golden(package, expected, broken)


def test_outputs_of_other_shapes_never_compare(package):
    output = golden_output(package)
    assert largest_difference(output, output.model_copy(update={"block_means": output.block_means[1:]})) == float("inf")
