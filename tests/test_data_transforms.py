"""Training augmentation against torchvision's, in law and in pixels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import transforms as T
from torchvision.transforms import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as V

from dcml_tune.data import augmentations
from dcml_tune.data.augmentations import jitter
from dcml_tune.data.crops import Crops, crop_and_flip, draw_crops, resized_crops
from dcml_tune.data.transforms import TrainTransform


def noise(height: int, width: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photo(height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A smooth image of many colours."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = [np.sin(7 * x + 3 * y), np.cos(5 * y - x), np.sin(11 * x * y)]
    return np.stack([128 + 120 * wave for wave in waves], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (375, 500), (64, 40)])
def test_crops_follow_torchvisions_law(height: int, width: int) -> None:
    """Area, ratio and position of the crops have the same distribution as torchvision's RandomResizedCrop."""
    count = 4000
    ours = np.stack(draw_crops([np.empty((height, width, 3), np.uint8)] * count, np.random.default_rng(0)), axis=1)
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    law = T.RandomResizedCrop(8)
    theirs = np.array([law.get_params(image, list(law.scale), list(law.ratio)) for _ in range(count)])
    for measure in (
        lambda c: c[:, 2] * c[:, 3] / (height * width),
        lambda c: np.log(c[:, 3] / c[:, 2]),
        lambda c: c[:, 0] / height,
        lambda c: c[:, 1] / width,
    ):
        a, b = np.sort(measure(ours)), np.sort(measure(theirs))
        # Kolmogorov-Smirnov distance, at a chance of about 1e-4 of being exceeded by equal distributions.
        points = np.concatenate([a, b])
        distance = abs(np.searchsorted(a, points, "right") - np.searchsorted(b, points, "right")).max() / count
        assert distance < 2.2 * math.sqrt(2 / count)


@pytest.mark.parametrize(("height", "width"), [(10, 400), (400, 10), (1, 1), (3, 2)])
def test_crops_of_extreme_images_are_torchvisions_middle(height: int, width: int) -> None:
    """Where no try fits, the crop is the one in the middle that torchvision takes; none leaves the image."""
    crops = draw_crops([np.empty((height, width, 3), np.uint8)] * 50, np.random.default_rng(1))
    top, left, h, w = crops
    assert ((top >= 0) & (left >= 0) & (h > 0) & (w > 0) & (top + h <= height) & (left + w <= width)).all()
    if max(height, width) == 400:
        law = T.RandomResizedCrop(8)
        wanted = law.get_params(torch.empty(3, height, width), list(law.scale), list(law.ratio))
        assert {tuple(crop) for crop in np.stack(crops, axis=1).tolist()} == {wanted}


@pytest.mark.parametrize("size", [32, 64, 224])
@pytest.mark.parametrize("image", [noise(64, 64), photo(375, 500), noise(20, 90)], ids=["noise", "photo", "wide"])
def test_resized_crops_equal_torchvision(image: np.ndarray[Any, np.dtype[np.uint8]], size: int) -> None:
    """A crop is, pixel for pixel, torchvision's on tensors, and within one level of Pillow's."""
    height, width = image.shape[:2]
    crops = draw_crops([image] * 8, np.random.default_rng(2))
    found = resized_crops([image] * 8, crops, size)
    whole = Crops(*(np.array([value]) for value in (0, 0, height, width)))
    assert resized_crops([image], whole, size).shape == (1, size, size, 3)
    for square, crop in zip(found, np.stack(crops, axis=1).tolist(), strict=True):
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        theirs = V.resized_crop(tensor, *crop, [size, size], antialias=True).permute(1, 2, 0).numpy()
        assert (square == theirs).all()
        pillow = np.asarray(F.resized_crop(F.to_pil_image(image), *crop, [size, size]))
        assert abs(square.astype(int) - pillow.astype(int)).max() <= 1


def test_half_of_the_crops_are_mirrored() -> None:
    """A flip mirrors the very crop; half of all are flipped."""
    views = [noise(30, 30)] * 1000
    plain = resized_crops(views, draw_crops(views, np.random.default_rng(3)), 16)
    found = crop_and_flip(views, np.random.default_rng(3), size=16)
    mirrored = (found == plain[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (mirrored | (found == plain).all(axis=(1, 2, 3))).all()
    assert 420 < mirrored.sum() < 580


@pytest.mark.parametrize("album", [None, "Geom", "GeomColor", "ColorHeavy", "RandAugment"])
def test_batches_depend_on_their_generator_alone(album: str | None) -> None:
    """The same generator gives the same batch, whatever was drawn before; another gives another."""
    views = [photo(70, 90), noise(64, 64), photo(40, 40)]
    for view in views:
        view.flags.writeable = False
    transform = TrainTransform(48, album)
    first = transform(views, np.random.default_rng(5))
    transform(views, np.random.default_rng(6))
    torch.manual_seed(9)
    np.random.seed(9)
    again = TrainTransform(48, album)(views, np.random.default_rng(5))
    assert torch.equal(first, again)
    assert not torch.equal(first, transform(views, np.random.default_rng(6)))
    assert first.dtype == torch.uint8
    assert first.shape == (3, 3, 48, 48)
    assert first.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("least", [0.25, 1.0])
def test_crops_take_at_least_their_share(least: float) -> None:
    """Between the least share and the whole image, which a share of 1 leaves as it is."""
    crops = draw_crops([np.empty((200, 200, 3), np.uint8)] * 500, np.random.default_rng(0), least)
    shares = crops.height * crops.width / 200**2
    assert least - 0.01 <= shares.min() <= least + 0.03
    assert shares.max() > 0.97


@pytest.mark.parametrize("album", [None, "ColorHeavy", "RandAugment", "Geom", "GeomColor"])
def test_every_augmentation_crops_by_crop_scale(album: str | None) -> None:
    """The larger the least share, the less an image is enlarged: a ramp keeps more of its range."""
    ramp = np.repeat(np.linspace(0, 250, 64).astype(np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    kept = []
    for crop_scale in (0.08, 0.9):
        squares = TrainTransform(64, album, crop_scale=crop_scale)([ramp] * 200, np.random.default_rng(0)).float()
        kept.append((squares[:, 0, 32].amax(1) - squares[:, 0, 32].amin(1)).mean())
    assert kept[1] > kept[0] + 15


def test_randaugment_is_torchvisions() -> None:
    """Of the same crop and seed it is torchvision's class, and torch's global generator is as before."""
    views = [photo(60, 50)] * 20
    rng = np.random.default_rng(4)
    crops = crop_and_flip(views, rng, size=32)
    seeds = rng.integers(2**32, size=20).tolist()
    state = torch.get_rng_state()
    transform = TrainTransform(32, "RandAugment", randaugment_ops=3, randaugment_magnitude=20)
    found = transform(views, np.random.default_rng(4))
    assert torch.equal(torch.get_rng_state(), state)
    law = v2.RandAugment(3, 20)
    for square, seed, crop in zip(found, seeds, crops, strict=True):
        torch.manual_seed(seed)
        assert torch.equal(square, law(torch.from_numpy(crop).permute(2, 0, 1)))
    assert not torch.equal(found, torch.from_numpy(crops).permute(0, 3, 1, 2))


@pytest.mark.parametrize("album", ["Geom", "GeomColor"])
def test_holes_appear(album: str) -> None:
    """About half of the images have holes: a renamed argument would make them vanish without an error."""
    white = [np.full((64, 64, 3), 255, np.uint8)] * 200
    # Nothing else can make a white image this dark: contrast and brightness take 40 % at the most.
    holes = (TrainTransform(64, album)(white, np.random.default_rng(0)) < 100).flatten(1).any(1)
    assert 0.25 < holes.float().mean() < 0.65


@pytest.mark.parametrize(("size", "side"), [(224, 40), (256, 40), (112, 20), (64, 11)])
def test_holes_have_one_size(size: int, side: int) -> None:
    """Each hole is a square of 40 pixels, smaller in crops below 224; together they cover what a loop's squares do."""
    pipeline = augmentations.Pipeline([augmentations._holes(size)])
    white = [np.full((size, size, 3), 255, np.uint8)] * 300
    dark = pipeline(white, np.random.default_rng(0))[:, :, :, 0] == 0
    areas = dark.sum(axis=(1, 2))
    with_holes = areas[areas > 0]
    assert 0.4 < len(with_holes) / 300 < 0.6
    assert with_holes.min() == side**2  # one hole, or several that lie on each other
    rng, covered = np.random.default_rng(1), []
    for _ in range(300):
        square = np.zeros((size, size), bool)
        for _ in range(rng.integers(1, 6)):
            top, left = rng.integers(0, size - side + 1, 2)
            square[top : top + side, left : left + side] = True
        covered.append(square.mean())
    assert with_holes.mean() / size**2 == pytest.approx(np.mean(covered), rel=0.12)
    if size == 224:
        assert np.mean(covered) == pytest.approx(0.09, abs=0.006)


@pytest.mark.parametrize(
    ("album", "coloured"), [("Geom", False), ("GeomColor", True), ("ColorHeavy", True), ("RandAugment", True)]
)
def test_colour_changes_where_it_should(album: str, coloured: bool) -> None:
    """Geom leaves a colour as it is; the others change its brightness."""
    grey = [np.full((64, 64, 3), 120, np.uint8)] * 60
    brightest = TrainTransform(64, album)(grey, np.random.default_rng(0)).flatten(1).amax(1)
    assert bool((brightest == 120).all()) != coloured


def test_color_heavy_takes_colour_away() -> None:
    """A fifth of ColorHeavy's images is grey."""
    squares = TrainTransform(32, "ColorHeavy")([photo(40, 40)] * 400, np.random.default_rng(0)).int()
    grey = (squares.amax(1) == squares.amin(1)).flatten(1).all(1)
    assert 0.13 < grey.float().mean() < 0.28


def test_jitter_has_the_ranges_of_torchvision() -> None:
    """Colour jitter moves the mean and the spread of an image as far as torchvision's ColorJitter does."""
    image = torch.from_numpy(photo(24, 24)).permute(2, 0, 1)
    theirs = T.ColorJitter(0.4, 0.4, 0.4, 0.1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    samples = [
        np.array([[x.float().mean(), x.float().std()] for x in (draw() for _ in range(600))])
        for draw in (lambda: jitter(image, rng), lambda: theirs(image))
    ]
    # The means of 600 draws differ by less than four standard errors, the spreads by less than a seventh.
    error = np.sqrt(sum(sample.var(axis=0) for sample in samples) / 600)
    assert (abs(samples[0].mean(axis=0) - samples[1].mean(axis=0)) < 4 * error).all()
    assert (abs(samples[0].std(axis=0) / samples[1].std(axis=0) - 1) < 1 / 7).all()
