#!/usr/bin/env python
"""Time networks by the megapixel: eager fp32 against the shipped path and against compilers, side by side.

    tests/benchmarks/inference.py --threads 1 2
    tests/benchmarks/inference.py --model fluorescence --side 2048 --large 20000

Every variant restores the same tile; how far it is from eager fp32 is printed as PSNR over the output's range: a
fast wrong answer is no answer. Ends with one line of JSON.
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
import torch
from torch import Tensor

from refocus.model.checkpoint import ModelPackage, PackageConfig, bundled_names
from refocus.model.networks import NetworkConfig, RefocusNetwork, build_network
from refocus.training.evaluate import commit, machine

Run = Callable[[Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], help="bundled name or folder (default: all bundled)")
    parser.add_argument("--side", type=int, default=1024, help="side of the tile (default: 1024)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="with torch.compile, which takes a minute a variant")
    parser.add_argument("--large", type=int, default=0, help="also restore a square image of this side and its memory")
    options = parser.parse_args()
    rows = []
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for package in packages(options.model):
        for device in devices:
            for threads in options.threads if device == "cpu" else [torch.get_num_threads()]:
                rows += measured(package, device, threads, options)
    large = [peak_memory(name, options.large) for name in options.model or bundled_names()] if options.large else []
    print(json.dumps({"machine": machine(), "commit": commit(), "side_px": options.side, "rows": rows, "large": large}))


def packages(names: list[str]) -> Iterator[ModelPackage]:
    for name in names or bundled_names():
        yield ModelPackage.bundled(name) if name in bundled_names() else ModelPackage.load(name)
    if not names and not bundled_names():
        print("no bundled weights; timing the default network untrained", file=sys.stderr)
        shape = NetworkConfig()
        config = PackageConfig(name="untrained", modality="fluorescence", network=shape, largest_blur_px=35.0)
        yield ModelPackage.of(build_network(shape), config)


def measured(package: ModelPackage, device: str, threads: int, options: argparse.Namespace) -> list[dict[str, object]]:
    torch.set_num_threads(threads)
    side = options.side
    rng = np.random.default_rng(0)
    image = rng.poisson(50, (1, package.config.channels, side, side)).astype(np.float32) / 100
    batch = torch.from_numpy(image).to(device)
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
        print(
            f"  {name:34} {ms / megapixels:9.1f} ms/Mpx   {eager_ms / ms:5.2f} x eager   "
            f"{flops / ms / 1e9:6.2f} TFLOP/s   {decibels:6.1f} dB"
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
from refocus.model.checkpoint import ModelPackage, bundled_names
from refocus.model.restore import restore
name, side, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
package = ModelPackage.bundled(name) if name in bundled_names() else ModelPackage.load(name)
shape = (side, side) if package.config.channels == 1 else (side, side, 3)
image = np.lib.format.open_memmap(folder + "/in.npy", "w+", np.uint16, shape)
rng = np.random.default_rng(0)
for row in range(0, side, 256):
    image[row : row + 256] = rng.integers(100, 4000, image[row : row + 256].shape, dtype=np.uint16)
image.flush()
image = np.load(folder + "/in.npy", mmap_mode="r")
out = np.lib.format.open_memmap(folder + "/out.npy", "w+", np.uint16, shape)
peak, done = [0], threading.Event()
def watch():
    # Pages of the mapped files are the kernel's cache, not ours: only anonymous memory counts.
    while not done.wait(0.02):
        with open("/proc/self/status") as status:
            peak[0] = max(peak[0], *(int(l.split()[1]) for l in status if l.startswith("RssAnon")))
threading.Thread(target=watch, daemon=True).start()
start = time.perf_counter()
restore(image, package, out=out)
seconds = time.perf_counter() - start
done.set()
print(seconds, peak[0] / 2**20)
"""


def peak_memory(name: str, side: int) -> dict[str, object]:
    """Restore a square image from and to disk in a process of its own and watch its own memory, torch included."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _LARGE, name, str(side), folder]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    seconds, peak_gib = float(answer[0]), float(answer[1])
    print(f"\n{name}: {side} x {side} in {seconds:.0f} s, peak {peak_gib:.2f} GiB beside the mapped files")
    return {"model": Path(name).name, "side_px": side, "seconds": round(seconds, 1), "peak_gib": round(peak_gib, 3)}


if __name__ == "__main__":
    main()
