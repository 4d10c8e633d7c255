"""Check what the quickstart measured: served images must be closer to the truth than what was sent."""

import json
import sys
from pathlib import Path

result = json.loads(Path(sys.argv[1]).read_text())
gain_db = result["psnr_after"] - result["psnr_before"]
gain_ssim = result["ssim_after"] - result["ssim_before"]
print(
    f"{result['images']} validation images that training never saw: "
    f"PSNR {result['psnr_before']:.2f} -> {result['psnr_after']:.2f} dB ({gain_db:+.2f}), "
    f"SSIM {result['ssim_before']:.3f} -> {result['ssim_after']:.3f} ({gain_ssim:+.3f})"
)
if gain_db <= 0 or gain_ssim <= 0:
    sys.exit("the served image is not better than the input")
