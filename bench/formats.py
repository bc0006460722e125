"""Memory and CPU time of decoding an image of each format, beside what the server counts for it.

    PYTHONPATH=. python bench/formats.py

Each image has 19 million pixels and is decoded in a process of its own. Memory is the growth of its peak, in pixels of
4 bytes for each pixel of the image.
"""

import io
import subprocess
import sys

import numpy as np
from PIL import Image

_SIZE = (4800, 4000)
_DECODE = """
import sys, time
from penult.bundle.guards import LEARNING_LIMITS
from penult.bundle.preprocess import Preprocess, crop_opened, decoding_pixels, open_image

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) << 10

data, before, start = sys.stdin.buffer.read(), peak(), time.process_time()
image = open_image(data, LEARNING_LIMITS, Preprocess())
pixels, counted = image.width * image.height, decoding_pixels(image)
crop_opened(image, Preprocess())
used, seconds = (peak() - before) / 4, time.process_time() - start
print(f"{image.mode:5} counted {counted / pixels:.2f}  used {used / pixels:.2f}  {1000 * seconds:.0f} ms of CPU time")
"""


def main() -> None:
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 255, (50, 60, 3), dtype=np.uint8)).resize(_SIZE, Image.Resampling.BICUBIC)
    clear = photo.convert("RGBA")
    clear.putalpha(100)
    few, gray = photo.quantize(64), photo.convert("L")
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    fast = {"speed": 10, "quality": 40}
    for name, image, kind, options in (
        ("JPEG", photo, "JPEG", {}),
        ("AVIF", photo, "AVIF", fast),
        ("AVIF 4:4:4", photo, "AVIF", fast | {"subsampling": "4:4:4"}),
        ("AVIF with transparency", clear, "AVIF", fast),
        ("TIFF", photo, "TIFF", {}),
        ("TIFF, LZW, palette", few, "TIFF", {"compression": "tiff_lzw"}),
        ("TIFF, LZW, 16 bits", deep, "TIFF", {"compression": "tiff_lzw"}),
        ("TIFF, fax", photo.convert("1"), "TIFF", {"compression": "group4"}),
        ("TIFF, JPEG", photo, "TIFF", {"compression": "jpeg"}),
        ("BMP", photo, "BMP", {}),
        ("BMP, palette", few, "BMP", {}),
        ("GIF", few, "GIF", {}),
        ("GIF with transparency", few, "GIF", {"transparency": 3}),
    ):
        file = io.BytesIO()
        image.save(file, kind, **options)
        done = subprocess.run([sys.executable, "-c", _DECODE], input=file.getvalue(), capture_output=True, check=True)
        print(f"{name:24}", done.stdout.decode().strip(), flush=True)


if __name__ == "__main__":
    main()
