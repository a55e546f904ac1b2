"""Ten thousand damaged image files: each gives pixels or a BadImageError, and nothing else."""

import json
import subprocess
import sys
from pathlib import Path

COUNT = 10_000

CHILD = '''
import io, json, resource, sys, time, warnings
from pathlib import Path

import numpy as np
from PIL import Image

from refit.data.images import BadImageError, decode, open_image

COUNT, FOLDER = int(sys.argv[1]), Path(sys.argv[2])
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
random = np.random.default_rng(0)
warned = []
warnings.showwarning = lambda message, *more: warned.append(str(message))


def files():
    """Each format in several modes, with and without options that use more of its parser."""
    noise = random.integers(0, 256, (24, 20, 4), dtype=np.uint8)
    smooth = np.tile(np.arange(20, dtype=np.uint8), (24, 4, 1)).transpose(0, 2, 1).copy()
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "text"
    for format in FORMATS:
        for pixels in (noise, smooth):
            for mode, options in (("L", {}), ("RGB", {}), ("RGB", {"exif": exif}), ("P", {}), ("RGBA", {}),
                                  ("I;16", {}), ("RGB", {"progressive": True, "compression": "tiff_lzw"}),
                                  ("L", {"compression": "tiff_adobe_deflate", "lossless": True, "interlace": 1}),
                                  ("RGB", {"compression": "jpeg"})):
                image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else (
                    Image.fromarray(np.ascontiguousarray(pixels)).convert(mode))
                file = io.BytesIO()
                try:
                    image.save(file, format, **options)
                except (OSError, ValueError):  # a mode that the format does not have
                    continue
                yield file.getvalue()


def mutated(content, other):
    content = bytearray(content)
    kind = random.integers(5)
    if kind == 0:  # a few bytes anywhere
        for place in random.integers(0, len(content), random.integers(1, 9)):
            content[place] = random.integers(256)
    elif kind == 1:  # a few bytes of the header
        for place in random.integers(0, min(len(content), 96), random.integers(1, 5)):
            content[place] = random.choice([0, 1, 127, 128, 255])
    elif kind == 2:
        del content[random.integers(len(content)):]
    elif kind == 3:  # the header of another file
        place = random.integers(1, 64)
        content[:place] = other[:place]
    else:  # a part of it twice, or missing
        start, end = sorted(random.integers(0, len(content), 2))
        content[start:end] = content[start:end] * int(random.integers(0, 3))
    return bytes(content)


def outcome(source, number):
    color, size = ("grey", "rgb")[number % 2], (None, (16, 16))[number // 2 % 2]
    try:
        with open_image(source) as image:
            shape = decode(image, color, size, ("crop", "squash", "pad")[number % 3]).shape
    except BadImageError:
        return "bad"
    return "good" if shape[0] == (1 if color == "grey" else 3) and size in (None, shape[1:]) else f"shape {shape}"


originals = list(files())
good = [outcome(content, number) for number, content in enumerate(originals)]
limit = 4 * 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
counts, others, slowest = {}, [], 0.0
for number in range(COUNT):
    content = mutated(originals[number % len(originals)], originals[random.integers(len(originals))])
    source = content
    if number % 3 == 0:  # from a file, whose parsers may ask for more bytes than there are
        source = FOLDER / "image"
        source.write_bytes(content)
    start = time.perf_counter()
    try:
        found = outcome(source, number)
    except BaseException as error:
        found = "other"
        others.append(f"{number}: {type(error).__name__}: {error}")
    slowest = max(slowest, time.perf_counter() - start)
    counts[found] = counts.get(found, 0) + 1
print(json.dumps({"originals": good, "counts": counts, "others": others, "warned": warned, "slowest": slowest,
                  "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
'''


def test_each_of_ten_thousand_damaged_images_gives_pixels_or_a_bad_image_error(tmp_path: Path) -> None:
    """In a process of its own with 4 GB of memory, as a parser that asks for more would take this one along."""
    command = [sys.executable, "-W", "always", "-c", CHILD, str(COUNT), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert set(found["originals"]) == {"good"}
    assert (found["others"], found["warned"]) == ([], [])
    assert sum(found["counts"].values()) == COUNT
    assert set(found["counts"]) == {"good", "bad"}
    assert min(found["counts"].values()) > COUNT / 20, "the damage is too small or too large to be a test"
    assert found["slowest"] < 60, "an image that takes this long is a trap"
    print(f"slowest {found['slowest']:.3f} s, {found['memory'] / 2**20:.0f} MiB")
