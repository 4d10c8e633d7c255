#!/usr/bin/env python
"""Time networks by the megapixel: eager fp32 against the shipped path and against compilers, side by side.

    tests/benchmarks/inference.py --threads 1 2
    tests/benchmarks/inference.py --model fluorescence --compile --accuracy
    tests/benchmarks/inference.py --model fluorescence --side 256 --large 20000
    tests/benchmarks/inference.py --model fluorescence --device cuda --side 3077 --compile

The last is 1 mm2 at 0.325 um. Every variant restores the same tile; how far it is from eager fp32 is printed as PSNR
over the output's range: a fast wrong answer is no answer. On an accelerator the rate of a large bf16 matrix product is
measured beside them: what the chip can do at best. `--accuracy` also compares the shipped path with fp32 where it
matters, in PSNR against the truth of simulated specimens. `--large` restores a square uint16 image from one
memory-mapped file into another. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from refocus.model.blanks import find_blanks
from refocus.model.blur_estimate import estimate_blur
from refocus.model.checkpoint import ModelPackage, PackageConfig, bundled_names
from refocus.model.metrics import psnr
from refocus.model.networks import NetworkConfig, RefocusNetwork, build_network
from refocus.model.normalisation import estimate
from refocus.model.restore import LoadedModel
from refocus.optics.simulate import simulate_focal_series
from refocus.training.evaluate import commit, machine
from refocus.training.scenes import SceneSettings, SharpImage, scenes_of

Run = Callable[[Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], help="bundled name or folder (default: all bundled)")
    parser.add_argument("--device", choices=("cpu", "cuda"), action="append", help="default: all that are here")
    parser.add_argument("--side", type=int, default=1024, help="side of the tile (default: 1024)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="with torch.compile, which takes a minute a variant")
    parser.add_argument("--accuracy", action="store_true", help="also PSNR against simulated truth, fp32 and shipped")
    parser.add_argument("--large", type=int, default=0, help="also restore a square image of this side and its memory")
    options = parser.parse_args()
    rows = []
    devices = options.device or ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    peak = matrix_product_tflop_per_s() if "cuda" in devices else None
    for package in packages(options.model):
        for device in devices:
            for threads in options.threads if device == "cpu" else [torch.get_num_threads()]:
                rows += measured(package, device, threads, options, peak)
    names = options.model or bundled_names()
    accuracy = []
    for package in packages(options.model) if options.accuracy else ():
        for device in devices:
            accuracy += against_truth(package, device)
    large = [peak_memory(name, options.large) for name in names] if options.large else []
    record = {
        "machine": machine(),
        "commit": commit(),
        "side_px": options.side,
        "rows": rows,
        "matrix_product_tflop_per_s": peak,
    }
    print(json.dumps({**record, "accuracy": accuracy, "large": large}))


def packages(names: list[str]) -> Iterator[ModelPackage]:
    for name in names or bundled_names():
        yield ModelPackage.bundled(name) if name in bundled_names() else ModelPackage.load(name)
    if not names and not bundled_names():
        print("no bundled weights; timing the default network untrained", file=sys.stderr)
        shape = NetworkConfig()
        config = PackageConfig(name="untrained", modality="fluorescence", network=shape, largest_blur_px=35.0)
        yield ModelPackage.of(build_network(shape), config)


def matrix_product_tflop_per_s(side: int = 8192) -> float:
    """The rate of a large bf16 matrix product of random numbers on the accelerator."""
    left, right = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    ms = median_ms(lambda x: x @ right, left, 20, "cuda")
    print(f"{torch.cuda.get_device_name()}: {2 * side**3 / ms / 1e9:.0f} TFLOP/s in a bf16 matrix product of {side}")
    return round(2 * side**3 / ms / 1e9, 1)


def measured(
    package: ModelPackage, device: str, threads: int, options: argparse.Namespace, peak: float | None
) -> list[dict[str, object]]:
    torch.set_num_threads(threads)
    side = options.side
    batch = tile(package, side).to(device)
    network = package.network(device)
    reference: Tensor | None = None
    eager_ms: float | None = None
    rows = []
    flops = arithmetic(network, batch)
    work = f"{flops / side**2 / 1e3:.0f} kFLOP a pixel"
    print(f"\n{package.config.name}, {device}, {threads} threads, {side} x {side}, {work}")
    for name, build in variants(network, device, options.compile):
        try:
            run = build(batch)
            ms = median_ms(run, batch, options.repeats, device)
            output = run(batch).float().cpu()
        except Exception as error:  # noqa: BLE001 (a compiler that is missing or fails must not end the others)
            print(f"  {name:34} failed: {type(error).__name__}: {str(error).splitlines()[0][:90]}")
            continue
        reference = output if reference is None else reference
        eager_ms = ms if eager_ms is None else eager_ms
        megapixels = side**2 / 1e6
        decibels = likeness(output, reference)
        of_peak = f" ({flops / ms / 1e9 / peak:.1%} of the product's)" if peak and device == "cuda" else ""
        print(
            f"  {name:34} {ms / megapixels:9.1f} ms/Mpx   {eager_ms / ms:5.2f} x eager   "
            f"{flops / ms / 1e9:6.2f} TFLOP/s{of_peak}   {decibels:6.1f} dB"
        )
        rows.append(
            {
                "model": package.config.name,
                "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
                "threads": threads,
                "variant": name,
                "ms_per_megapixel": round(ms / megapixels, 2),
                "speed_up": round(eager_ms / ms, 3),
                "tflop_per_s": round(flops / ms / 1e9, 4),
                "psnr_to_eager_db": round(decibels, 2),
            }
        )
    if device == "cpu":
        said = ", ".join(f"{name} {ms / (side**2 / 1e6):.0f}" for name, ms in parts(network, batch).items())
        print(f"  where the shipped path's time goes, ms/Mpx: {said}")
    whole = dict(beside(package, side, options.repeats, device))
    print("  from pixels to pixels, ms/Mpx: " + ", ".join(f"{k} {ms / (side**2 / 1e6):.1f}" for k, ms in whole.items()))
    return rows


def tile(package: ModelPackage, side: int) -> Tensor:
    """Blurred spots with shot noise, normalised, and as in `restore` what the network is told about them."""
    image = spots(side, package.config.channels)
    planes = estimate(image).apply(image)
    if package.config.network.sees_blur:
        planes = np.concatenate([planes, estimate_blur(image).over(slice(0, side), slice(0, side))])
    return torch.from_numpy(planes[None])


def spots(side: int, channels: int = 1) -> npt.NDArray[np.uint16]:
    """[C, Y, X]: networks of colours take a short way through images whose colours are all alike."""
    rng = np.random.default_rng(0)
    light = gaussian_filter(rng.gamma(0.02, 50.0, (side, side)), 6.0)
    shares = np.asarray((900.0, 700.0, 500.0)[:channels])[:, None, None]
    return rng.poisson(100 + shares * light / light.max()).astype(np.uint16)


def beside(package: ModelPackage, side: int, repeats: int, device: str) -> Iterator[tuple[str, float]]:
    """Milliseconds of a whole restoration, and of what is not the network's."""
    planes = spots(side, package.config.channels)
    image = np.moveaxis(planes, 0, -1) if len(planes) == 3 else planes[0]
    model = LoadedModel(package, device=device)
    steps: dict[str, Callable[[], object]] = {"restore": lambda: model.restore(image)}
    if package.config.network.sees_blur:
        steps["of which the blur's estimate"] = lambda: estimate_blur(planes, device=device)
    steps["of which looking for blanks"] = lambda: find_blanks(planes)
    gate = package.config.gate
    if gate is not None:
        steps["and the gate, where it is asked"] = lambda: gate.judge(planes, device=device)
    for name, step in steps.items():
        times = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            step()
            times.append(1e3 * (time.perf_counter() - start))
        yield name, statistics.median(times[1:])


def parts(network: RefocusNetwork, batch: Tensor) -> dict[str, float]:
    """Milliseconds in each child of the trunk, and between them, over one bf16 pass; the fastest of three."""
    began: dict[str, float] = {}
    spent: dict[str, float] = {}

    def hooks(name: str, module: torch.nn.Module) -> None:
        module.register_forward_pre_hook(lambda *_: began.__setitem__(name, time.perf_counter()))
        module.register_forward_hook(
            lambda *_: spent.__setitem__(name, spent.get(name, 0.0) + 1e3 * (time.perf_counter() - began[name]))
        )

    for name, child in network.trunk.named_children():
        # A list of levels is never called itself.
        for member in child if isinstance(child, torch.nn.ModuleList) else [child]:
            hooks(name, member)
    passes = []
    for _ in range(3):
        spent.clear()
        start = time.perf_counter()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            network(batch.contiguous(memory_format=torch.channels_last))
        whole = 1e3 * (time.perf_counter() - start)
        passes.append((whole, {**spent, "between": whole - sum(spent.values())}))
    return min(passes, key=lambda measured: measured[0])[1]


def against_truth(package: ModelPackage, device: str) -> list[dict[str, object]]:
    """PSNR against the truth of simulated specimens, in fp32 and as shipped."""
    models = {precision: LoadedModel(package, device=device, precision=precision) for precision in ("fp32", "auto")}
    colour = package.config.modality == "brightfield"
    kinds = ("tissue",) if colour else ("nuclei", "filaments", "puncta", "membranes")
    found: dict[float, list[tuple[float, float]]] = {}
    for kind in kinds:
        _, known = simulate_focal_series(kind, planes=3, size_px=(384, 384), seed=5)
        pixels = np.moveaxis(known.in_focus, -1, 0) if known.in_focus.ndim == 3 else known.in_focus[None]
        sharp = SharpImage(pixels, kind, package.config.modality)
        for scene in scenes_of([sharp], SceneSettings(defocus_um=(0.0, 2.0, 4.0, 8.0), photons=(1500.0,))):
            out = [model.restore(scene.image, axes="CYX").pixels for model in models.values()]
            found.setdefault(scene.defocus_um, []).append((psnr(out[0], scene.truth), psnr(out[1], scene.truth)))
    rows = []
    print(f"\n{package.config.name}, {device}: PSNR against simulated truth, fp32 and shipped; a single image's worst")
    for depth, pairs in found.items():
        exact, shipped = (float(np.mean(column)) for column in zip(*pairs, strict=True))
        worst = max(a - b for a, b in pairs)
        print(f"  |z| = {depth:4g} um   {exact:7.3f} dB   {shipped:7.3f} dB   {worst:+.4f} dB")
        rows.append({"model": package.config.name, "device": device, "defocus_um": depth, "fp32_db": round(exact, 3),
                     "shipped_db": round(shipped, 3), "worst_loss_db": round(worst, 4)})  # fmt: skip
    return rows


def variants(network: RefocusNetwork, device: str, compiled: bool) -> Iterator[tuple[str, Callable[[Tensor], Run]]]:
    """Name each way of running the network, and how to prepare it."""
    narrow = torch.bfloat16

    def eager(contiguous: bool, dtype: torch.dtype | None, compiler: bool = False) -> Callable[[Tensor], Run]:
        def build(_: Tensor) -> Run:
            layout = torch.contiguous_format if contiguous else torch.channels_last
            prepared = network.to(memory_format=layout)  # type: ignore[call-overload]
            function = (
                torch.compile(prepared, mode="max-autotune" if device == "cuda" else None) if compiler else prepared
            )

            @torch.inference_mode()
            def run(x: Tensor) -> Tensor:
                with torch.autocast(device, dtype or narrow, enabled=dtype is not None):
                    return function(x.contiguous(memory_format=layout)).image

            return run

        return build

    yield "eager fp32", eager(True, None)
    yield "channels_last fp32", eager(False, None)
    yield "channels_last bf16 (shipped)", eager(False, narrow)
    if device == "cuda":
        yield "channels_last fp16", eager(False, torch.float16)
    if compiled:
        yield "compiled channels_last fp32", eager(False, None, True)
        yield "compiled channels_last bf16", eager(False, narrow, True)
    if device == "cpu" and importlib.util.find_spec("openvino") is not None:
        for precision in ("f32", "bf16"):
            yield f"OpenVINO {precision}", openvino(network, precision)


def openvino(network: RefocusNetwork, precision: str) -> Callable[[Tensor], Run]:
    def build(batch: Tensor) -> Run:
        import openvino as ov

        class ImageOnly(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = network

            def forward(self, x: Tensor) -> Tensor:
                return self.network(x).image

        with torch.inference_mode():
            converted = ov.convert_model(ImageOnly(), example_input=batch)
        hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = ov.Core().compile_model(converted, "CPU", hints)
        return lambda x: torch.from_numpy(compiled(x.numpy())[0])

    return build


def median_ms(run: Run, batch: Tensor, repeats: int, device: str) -> float:
    times = []
    for number in range(repeats + 2):
        start = time.perf_counter()
        run(batch)
        if device == "cuda":
            torch.cuda.synchronize()
        if number >= 2:
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def arithmetic(network: RefocusNetwork, batch: Tensor) -> float:
    """Floating-point operations of one pass, two a multiply-add."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(batch[..., :256, :256])
    return counter.get_total_flops() * batch.shape[-1] * batch.shape[-2] / 256**2


def likeness(output: Tensor, reference: Tensor) -> float:
    error = float((output - reference).square().mean())
    span = float(reference.max() - reference.min())
    return 100.0 if error == 0 else min(100.0, 10 * float(np.log10(span**2 / error)))


_LARGE = """
import sys, threading, time
import numpy as np
from scipy.ndimage import gaussian_filter
from refocus.model.checkpoint import ModelPackage, bundled_names
from refocus.model.restore import LoadedModel
name, side, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
model = LoadedModel(ModelPackage.bundled(name) if name in bundled_names() else ModelPackage.load(name))
shape = (side, side) if model.package.config.modality != "brightfield" else (side, side, 3)
image = np.lib.format.open_memmap(folder + "/in.npy", "w+", np.uint16, shape)
# One square of blurred spots and noise over and over: something to restore everywhere, and quick to make.
rng = np.random.default_rng(0)
coarse = gaussian_filter(np.kron(rng.gamma(0.4, 1.0, (64, 64)), np.ones((16, 16))), 6.0, mode="wrap")
square = rng.poisson(100 + 900 * coarse / coarse.max()).astype(np.uint16)
square = square if len(shape) == 2 else np.repeat(square[..., None], 3, -1)
for row in range(0, side, len(square)):
    for column in range(0, side, len(square)):
        part = image[row : row + len(square), column : column + len(square)]
        part[:] = square[: part.shape[0], : part.shape[1]]
image.flush()
del image, part
def resident(*fields):
    with open("/proc/self/status") as status:
        found = {line.split(":")[0]: int(line.split()[1]) for line in status if line.startswith("Rss")}
    return sum(found[field] for field in fields)
# Pages of the two mapped files are the kernel's cache, which it takes back at need. Libraries and weights count.
libraries = resident("RssFile")
image = np.load(folder + "/in.npy", mmap_mode="r")
out = np.lib.format.open_memmap(folder + "/out.npy", "w+", np.uint16, shape)
peak, done = [0], threading.Event()
def watch():
    while not done.wait(0.01):
        peak[0] = max(peak[0], resident("RssAnon"))
threading.Thread(target=watch, daemon=True).start()
start = time.perf_counter()
model.restore(image, out=out)
seconds = time.perf_counter() - start
done.set()
rows = range(0, side, 1000)
totals = [sum(float(a[r : r + 1000].sum(dtype=np.float64)) for r in rows) for a in (image, out)]
changed = float(np.mean(image[::97] != out[::97]))
print(seconds, (peak[0] + libraries) / 2**20, libraries / 2**20, totals[1] / totals[0], changed)
"""


def peak_memory(name: str, side: int) -> dict[str, object]:
    """Restore a square uint16 image from file to file in a process of its own and watch that process's memory."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _LARGE, name, str(side), folder]
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    seconds, peak_gib, libraries_gib, light, changed = map(float, answer)
    print(
        f"\n{name}: {side} x {side} uint16 in {seconds:.0f} s; at most {peak_gib:.2f} GiB of memory beside the mapped "
        f"files, {libraries_gib:.2f} of it libraries; {changed:.0%} of pixels changed, total {light:.5f} of the input's"
    )
    return {"model": Path(name).name, "side_px": side, "seconds": round(seconds, 1), "peak_gib": round(peak_gib, 3)}


if __name__ == "__main__":
    main()
