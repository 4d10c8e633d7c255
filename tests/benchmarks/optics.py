#!/usr/bin/env python
"""Time the optics on one core, in megapixels a second: PSFs, blur and whole training pairs, against peers.

    tests/benchmarks/optics.py
    tests/benchmarks/optics.py --crop 192 --batch 8 --repeats 9

Peers are psf-generator for PSFs and SciPy for convolution and noise; the limit is the pair of Fourier transforms
that no blur in the frequency domain can do without. Every contender gives the same PSF or the same blur, and its
distance from dense quadrature, or from our double-precision result, is printed beside its speed. Ends with one line of
JSON. ``--device cuda`` times ours and the transforms on an accelerator.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from scipy.signal import fftconvolve, oaconvolve
from scipy.special import j0
from torch import Tensor

from refocus.optics.camera import shot_noise
from refocus.optics.psf import widefield_psf
from refocus.optics.random_defocus import OpticsRange, RandomDefocus
from refocus.optics.settings import OpticalSystem
from refocus.optics.transfer import RoundTransfer
from refocus.training.evaluate import commit, machine

SYSTEM = OpticalSystem(numerical_aperture=0.75, wavelength_um=0.525, pixel_size_um=0.1625)
PSF_SIDE = 129
#: Evenly spaced about focus, as psf-generator makes them in one call.
DEPTHS_UM = tuple(float(z) for z in np.linspace(-7.0, 7.0, 8))


@dataclass(frozen=True)
class Row:
    task: str
    contender: str
    megapixels_per_s: float
    ms: float
    error: float | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop", type=int, default=256, help="side of a training pair (default: 256)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [*psf_rows(options), *blur_rows(options), *pair_rows(options)]
    task = ""
    for row in rows:
        if row.task != task:
            task = row.task
            print(f"\n{task}")
        error = "" if row.error is None else f"   error {row.error:.1e} of the peak"
        print(f"  {row.contender:46} {row.megapixels_per_s:9.3f} Mpx/s {row.ms:10.2f} ms{error}")
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu, 1 thread"
    print(
        json.dumps(
            {
                "benchmark": "optics",
                "machine": machine(),
                "commit": commit(),
                "device": device,
                "torch": torch.__version__,
                "rows": [asdict(row) for row in rows],
            }
        )
    )


def psf_rows(options: argparse.Namespace) -> list[Row]:
    """Build in-memory PSFs sampled at pixel centres, which every contender can."""
    exact = [dense_psf(z) for z in DEPTHS_UM]
    depths = torch.tensor(DEPTHS_UM, device=options.device)
    pixels = len(DEPTHS_UM) * PSF_SIDE**2
    task = f"PSF: {len(DEPTHS_UM)} depths, {PSF_SIDE} x {PSF_SIDE}, NA 0.75"
    aberrated = SYSTEM.model_copy(update={"zernike_waves": ((5, 1e-9),)})
    contenders: list[tuple[str, Callable[[], Tensor]]] = [
        ("refocus, round pupil", lambda: widefield_psf(SYSTEM, depths, size_px=PSF_SIDE, pixel_integration=False)),
        ("refocus, any pupil", lambda: widefield_psf(aberrated, depths, size_px=PSF_SIDE, pixel_integration=False)),
        *(peers() if options.device == "cpu" else []),
    ]
    rows = [measured(task, name, build, pixels, options, exact) for name, build in contenders]
    table = RoundTransfer.reaching(180.0, device=options.device)
    nodes = len(table.pupil_rho_squared)
    waves = torch.linspace(-60, 60, 64, device=options.device)[:, None] * table.pupil_rho_squared
    one = torch.ones(64, nodes, device=options.device)
    # A line each, as random defocus needs them; counted as if each were a PSF of this size.
    name = "refocus, 64 radial transfer functions"
    return [*rows, measured(task, name, lambda: table(one, waves), 64 * PSF_SIDE**2, options, None)]


def peers() -> list[tuple[str, Callable[[], Tensor]]]:
    from psf_generator.propagators import ScalarCartesianPropagator, ScalarSphericalPropagator

    def build(kind: type, samples: int, **keywords: bool) -> Callable[[], Tensor]:
        def run() -> Tensor:
            propagator = kind(
                n_pix_pupil=samples, n_pix_psf=PSF_SIDE, wavelength=525, na=0.75, n_i=1.0, n_i0=1.0, n_s=1.0,
                pix_size=1000 * SYSTEM.pixel_size_um * (PSF_SIDE - 1) / PSF_SIDE, n_defocus=len(DEPTHS_UM),
                defocus_step=2000 * DEPTHS_UM[-1] / len(DEPTHS_UM), **keywords,
            )  # fmt: skip
            intensity = propagator.compute_focus_field().abs()[:, 0] ** 2
            return intensity / intensity.sum((-1, -2), keepdim=True)

        return run

    return [
        ("psf-generator, spherical, 257 angles", build(ScalarSphericalPropagator, 257, cos_factor=True)),
        ("psf-generator, Cartesian, 257 x 257 pupil", build(ScalarCartesianPropagator, 257, sz_correction=False)),
    ]


def dense_psf(defocus_um: float) -> np.ndarray:
    """The PSF by 4000 midpoints over the pupil at each of the grid's own radii."""
    x = (np.arange(PSF_SIDE) - PSF_SIDE // 2) * SYSTEM.pixel_size_um
    radii, place = np.unique(np.hypot(x[:, None], x).round(9), return_inverse=True)
    u = (np.arange(4000) + 0.5) / 4000
    phase = np.exp(2j * np.pi * defocus_um / 0.525 * np.sqrt(1 - 0.75**2 * u))
    wave = 2 * np.pi * 0.75 / 0.525
    field = np.array([(phase * j0(wave * r * np.sqrt(u))).mean() for r in radii])
    intensity = (np.abs(field) ** 2)[place].reshape(PSF_SIDE, PSF_SIDE)
    return intensity / intensity.sum()


def blur_rows(options: argparse.Namespace) -> list[Row]:
    """Apply one PSF an image to a batch of padded images."""
    margin = 44
    side = options.crop + 2 * margin
    images = torch.rand(options.batch, side, side, generator=torch.Generator().manual_seed(0)).to(options.device)
    system = SYSTEM.model_copy(update={"pixel_size_um": 0.325})
    depths = torch.linspace(1.0, 10.0, options.batch, device=options.device)
    psf = widefield_psf(system, depths, size_px=2 * margin + 1)
    pixels = options.batch * options.crop**2
    task = f"Blur: {options.batch} images of {options.crop} x {options.crop} with a margin of {margin}, PSFs given"
    roll = torch.nn.functional.pad(psf, (0, side - 2 * margin - 1, 0, side - 2 * margin - 1))
    transfer = torch.fft.rfft2(torch.roll(roll, (-margin, -margin), (-2, -1)))
    crop = slice(margin, -margin)
    in_numpy, kernels = images.cpu().numpy(), psf.cpu().numpy()
    double = np.stack(
        [fftconvolve(a, k, mode="valid") for a, k in zip(in_numpy.astype(float), kernels.astype(float), strict=True)]
    )
    exact = list(double)

    def ours() -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(images) * transfer, s=(side, side))[:, crop, crop]

    def transforms() -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(images), s=(side, side))

    def scipy(function: Callable[..., np.ndarray]) -> Callable[[], Tensor]:
        return lambda: torch.from_numpy(
            np.stack([function(a, k, mode="valid") for a, k in zip(in_numpy, kernels, strict=True)])
        )

    rows = [
        measured(task, "refocus, transfer functions kept", ours, pixels, options, exact),
        measured(task, "limit: two Fourier transforms", transforms, pixels, options, None),
    ]
    if options.device == "cpu":
        rows += [
            measured(task, "scipy.signal.fftconvolve", scipy(fftconvolve), pixels, options, exact),
            measured(task, "scipy.signal.oaconvolve", scipy(oaconvolve), pixels, options, exact),
        ]
    return rows


def pair_rows(options: argparse.Namespace) -> list[Row]:
    """Whole training pairs: new optics for every image, blur, noise."""
    task = f"Training pairs: {options.batch} of {options.crop} x {options.crop}, new optics for each"
    pixels = options.batch * options.crop**2
    rows = []
    for modality, channels in (("fluorescence", 1), ("brightfield", 3)):
        blur = RandomDefocus(OpticsRange(), crop_px=options.crop, modality=modality, device=options.device)
        side = blur.input_px
        shape = (options.batch, channels, side, side)
        images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(options.device)
        seeds = torch.arange(options.batch)

        def run(blur: RandomDefocus = blur, images: Tensor = images, seeds: Tensor = seeds) -> Tensor:
            return blur(images, seeds=seeds).image

        name = f"refocus, {modality}, {channels} channel{'s' if channels > 1 else ''}"
        rows.append(measured(task, name, run, pixels * channels, options, None))
    light = 1000.0 * torch.rand(options.batch, options.crop, options.crop).to(options.device)
    generator = torch.Generator(options.device).manual_seed(0)

    def noise() -> Tensor:
        return shot_noise(light, read_noise=2.0, generator=generator)

    rows.append(measured(task, "of which noise: refocus, 0 to 1000 photons", noise, pixels, options, None))
    if options.device == "cpu":
        rows.append(measured(task, "noise: numpy poisson + normal", numpy_noise(light.numpy()), pixels, options, None))
        rows.append(measured(task, "psf-generator + scipy + numpy", composed(options), pixels, options, None))
    return rows


def numpy_noise(light: np.ndarray) -> Callable[[], Tensor]:
    random = np.random.default_rng(0)
    return lambda: torch.from_numpy(random.poisson(light) + random.normal(0.0, 2.0, light.shape))


def composed(options: argparse.Namespace) -> Callable[[], Tensor]:
    """The same job from parts: a PSF an image, one convolution, noise from NumPy."""
    from psf_generator.propagators import ScalarSphericalPropagator

    random = np.random.default_rng(0)
    margin = 44
    side = options.crop + 2 * margin
    images = random.random((options.batch, side, side), dtype=np.float32)
    # Two samples a pixel, as the band of |PSF|^2 at 0.325 um demands, then summed in twos.
    fine = 2 * (2 * margin + 1)

    def run() -> Tensor:
        out = []
        for image in images:
            z = random.uniform(0.1, 10.0)
            propagator = ScalarSphericalPropagator(
                n_pix_pupil=257, n_pix_psf=fine, wavelength=525, na=0.75, n_i=1.0, n_i0=1.0, n_s=1.0,
                pix_size=162.5 * (fine - 1) / fine, defocus_step=2000 * z, n_defocus=1, cos_factor=True,
            )  # fmt: skip
            intensity = propagator.compute_focus_field().abs()[0, 0].numpy() ** 2
            psf = intensity.reshape(fine // 2, 2, fine // 2, 2).sum((1, 3))
            blurred = fftconvolve(image, psf / psf.sum(), mode="valid")
            photons = math.exp(random.uniform(math.log(100), math.log(20000)))
            light = random.poisson(np.maximum(blurred, 0) * photons) + random.normal(0.0, 2.0, blurred.shape)
            out.append(torch.from_numpy(light / photons))
        return torch.stack(out)

    return run


def measured(
    task: str, name: str, run: Callable[[], Tensor], pixels: int, options: argparse.Namespace,
    exact: list[np.ndarray] | None,
) -> Row:  # fmt: skip
    """Median time of a contender after one warm-up, and its largest error relative to each peak.

    One thread's processor time on a CPU, so that neighbours on the machine count less; wall time on an accelerator.
    """
    clock = time.perf_counter if options.device == "cuda" else time.process_time
    result = run()
    times = []
    for _ in range(options.repeats):
        start = clock()
        run()
        if options.device == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - start)
    error = None
    if exact is not None:
        pairs = zip(result.cpu().double().numpy(), exact, strict=True)
        error = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
    seconds = statistics.median(times)
    return Row(task, name, round(pixels / seconds / 1e6, 4), round(1e3 * seconds, 3), error)


if __name__ == "__main__":
    main()
