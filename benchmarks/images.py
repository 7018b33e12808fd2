"""Speed of loading training batches on one core, compared with decoding each image in each epoch.

    python benchmarks/images.py [--images 512] [--repeats 5]

The images are JPEGs of 500 x 375 (quality 90, smooth noise with the spectrum of photographs) in a temporary directory.

Ours is an image store (`full`: decoded at full size; `small`: shorter side 256) with the trainer's loader without
workers, a random resized crop to 224, and a flip. The reference is a torch DataLoader without workers, whose data set
decodes with OpenCV and augments uint8 tensors with RandomResizedCrop and RandomHorizontalFlip of
torchvision.transforms. A second reference uses torchvision.transforms.v2, which is faster and has no goal. A third one
only resizes crops, which ours has to do, too: it is the limit of what is possible.

All produce the same images in batches of 80 in uint8, with one thread, from files in the page cache. A search builds
its stores once, on all cores. The time for this is printed in a line of its own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import torch
from measure import Row, alternate, rate_line, show
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2

from dcml_tune.data import ImageList, ImageStore, Kind, open_or_build
from dcml_tune.data.crops import draw_crops
from dcml_tune.data.image_list import Indices
from dcml_tune.data.loader import BatchLoader
from dcml_tune.data.transforms import TrainTransform

RESIZE, CROP = 256, 224
GOALS: dict[Kind, str] = {"full": "12", "small": "30"}
LIBRARIES: dict[str, ModuleType] = {"OpenCV, transforms": transforms, "OpenCV, transforms.v2": v2}


def photograph(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Smooth noise: amplitudes fall with the frequency, as they do in photographs; grey mostly, with some colour."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    amplitude = np.maximum(frequency, 1 / max(width, height)) ** -1.3
    noise = np.fft.rfft2(rng.standard_normal((4, height, width))) * amplitude
    grey, *colours = np.fft.irfft2(noise, s=(height, width))
    pixels = np.stack([grey + 0.3 * colour for colour in colours], axis=2)
    return Image.fromarray(np.clip(128 + 55 * pixels / pixels.std(), 0, 255).astype(np.uint8))


def written(directory: Path, count: int, width: int, height: int) -> ImageList:
    """Images in a directory that is made."""
    directory.mkdir()
    paths = tuple(f"{number:05d}.jpg" for number in range(count))
    for number, path in enumerate(paths):
        photograph(np.random.default_rng(number), width, height).save(directory / path, quality=90)
    return ImageList(paths, np.arange(count, dtype=np.int64) // 2, directory)


class DecodedEachTime(Dataset[Tensor]):
    """What a training script does without a store: an image is decoded when it is asked for."""

    def __init__(self, images: ImageList, library: ModuleType) -> None:
        self.images = images
        self.transform = library.Compose(
            [library.RandomResizedCrop(CROP, antialias=True), library.RandomHorizontalFlip()]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        pixels = cv2.cvtColor(cv2.imread(self.images.name(i), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        squares: Tensor = self.transform(torch.from_numpy(pixels).permute(2, 0, 1))
        return squares


def looked_through(batches: Iterable[Tensor]) -> int:
    """Take all batches, as a training would; the number of their images."""
    return sum(len(batch) for batch in batches)


def cut(store: ImageStore) -> list[Tensor]:
    """A crop of each image, as ours draws them."""
    views = list(store.images(np.arange(len(store))))
    rectangles = zip(*(column.tolist() for column in draw_crops(views, np.random.default_rng(0))), strict=True)
    return [
        torch.from_numpy(view[None, top : top + height, left : left + width].copy()).permute(0, 3, 1, 2)
        for view, (top, left, height, width) in zip(views, rectangles, strict=True)
    ]


def resized(crops: list[Tensor]) -> int:
    """Resize each crop; the number of them."""
    return sum(len(nn.functional.interpolate(crop, (CROP, CROP), mode="bilinear", antialias=True)) for crop in crops)


def measured(options: argparse.Namespace, directory: Path) -> list[Row]:
    """All rows of the table."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    images = written(directory / "images", options.images, options.width, options.height)
    size = np.mean([(images.root / path).stat().st_size for path in images.paths])
    print(f"{len(images)} JPEGs of {options.width} x {options.height}, {size / 1e3:.0f} kB each on average")
    order = np.random.default_rng(0).permutation(len(images))
    batches = np.split(order, range(options.batch, len(order), options.batch))
    decoded = {
        name: DataLoader(DecodedEachTime(images, library), batch_sampler=[batch.tolist() for batch in batches])
        for name, library in LIBRARIES.items()
    }
    return [row for kind in GOALS for row in _against_store(kind, images, batches, decoded, options.repeats, directory)]


def _against_store(
    kind: Kind,
    images: ImageList,
    batches: list[Indices],
    decoded: dict[str, DataLoader[Tensor]],
    repeats: int,
    directory: Path,
) -> list[Row]:
    """The rows of one store, one for each reference."""
    start = time.perf_counter()
    store = open_or_build(images, directory / "stores", kind=kind, sz_resize=RESIZE, sz_crop=CROP)
    print(f"store {kind}: {store.nbytes / 1e6:.0f} MB, built in {time.perf_counter() - start:.1f} s")
    loader, orders = BatchLoader(store, TrainTransform(CROP)), [(0, batch) for batch in batches]

    def ours() -> int:
        return looked_through(batch for _, batch, _ in loader.epoch(orders, seed=0, epoch=0))

    works = {"ours": ours} | {name: partial(looked_through, loader) for name, loader in decoded.items()}
    works["the resize alone"] = partial(resized, cut(store))
    assert {work() for work in works.values()} == {len(images)}, "each way gives each image once"
    taken = alternate(works, repeats)
    return [
        rate_line(f"store {kind}; {name}", taken["ours"], taken[name], count=len(images), unit="images/s", goal=goal)
        for name, goal in zip(list(works)[1:], (GOALS[kind], "", ""), strict=True)
    ]


def main(argv: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--batch", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as directory:
        rows = measured(options, Path(directory))
    show("images into batches of uint8, one core", rows)
    return rows


if __name__ == "__main__":
    main()
