"""A folder of images that no range of the search spaces was made for: flags of countries, drawn by several designers.

    npm install --prefix flags --ignore-scripts flag-icons@7.5.0 circle-flags@2.8.3 country-flag-icons@1.6.20 \
        svg-country-flags@1.2.10 @iconify-json/flagpack@1.2.8 @iconify-json/cif@1.2.7
    pip install resvg-py==0.5.0
    python benchmarks/flags.py flags/node_modules flags/images
    python -m dcml_tune.search folder --dataset-dir flags/images --sz-resize 64 --sz-crop 64 --space wide

A class is a country of ISO 3166-1. Its images are the drawings of `DESIGNS`, 64 x 64 pixels on white, in their own
proportions. The licences of the packages are MIT (flag-icons, circle-flags, country-flag-icons, flagpack), CC0-1.0 (cif) and
public domain (svg-country-flags); none is share-alike. None of them is a source of the data set `emoji`. This script alone
needs npm and resvg-py.

Left out: countries with fewer than four drawings, and territories that fly the flag of another country in some packages,
because nothing in the images tells them apart.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

SIDE = 64
"""Side of the images, in pixels."""

FEWEST = 4
"""Smallest number of drawings of a country."""

FLAG_OF_ANOTHER = frozenset(["bl", "gf", "gp", "mf", "pm", "re", "wf", "yt", "bv", "sj", "bq", "hm", "sh", "um"])
"""Territories that fly the flag of another country in some packages: of France, Norway, the Netherlands, Australia, the
United Kingdom and the United States."""

_ICONS = "icons.json"


@dataclass(frozen=True, kw_only=True)
class Design:
    """The drawings of flags in a package."""

    name: str
    """Name of the image files."""
    package: str
    """Name of the package in the npm registry."""
    files: str = _ICONS
    """Path of the SVG files in the package, with * for the code of a country; or the file of an Iconify package."""

    def drawings(self, packages: Path) -> Iterator[tuple[str, str]]:
        """Return the code of each country and its drawing as SVG."""
        root = packages / self.package
        if self.files == _ICONS:
            return _of_iconify(json.loads((root / _ICONS).read_text()))
        return ((file.stem.lower(), file.read_text()) for file in sorted(root.glob(self.files)))


DESIGNS = (
    Design(name="flag-icons-4x3", package="flag-icons", files="flags/4x3/*.svg"),
    Design(name="flag-icons-1x1", package="flag-icons", files="flags/1x1/*.svg"),
    Design(name="circle-flags", package="circle-flags", files="flags/*.svg"),
    Design(name="country-flag-icons", package="country-flag-icons", files="3x2/*.svg"),
    Design(name="svg-country-flags", package="svg-country-flags", files="svg/*.svg"),
    Design(name="flagpack", package="@iconify-json/flagpack"),
    Design(name="cif", package="@iconify-json/cif"),
)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, help="directory of the installed packages: node_modules")
    parser.add_argument("output", type=Path, help="directory to make, with one folder for each country")
    flags = parser.parse_args(argv)
    found = countries(flags.packages)
    for code, drawings in found.items():
        (flags.output / code).mkdir(parents=True)
        for name, svg in drawings.items():
            rasterised(svg).save(flags.output / code / f"{name}.png")
    print(f"{flags.output}: {len(found)} classes, {sum(map(len, found.values()))} images")


def countries(packages: Path) -> dict[str, dict[str, str]]:
    """Return the drawings of each country as SVG: code of the country -> name of the design -> drawing."""
    listed = json.loads((packages / "flag-icons" / "country.json").read_text())
    drawn: dict[str, dict[str, str]] = {each["code"]: {} for each in listed if each["iso"]}
    for design in DESIGNS:
        for code, svg in design.drawings(packages):
            if code in drawn and code not in FLAG_OF_ANOTHER:
                drawn[code][design.name] = svg
    return {code: drawings for code, drawings in sorted(drawn.items()) if len(drawings) >= FEWEST}


def rasterised(svg: str) -> Image.Image:
    """Return a drawing in the middle of a white square, as large as it fits."""
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, width=4 * SIDE, skip_system_fonts=True)
    drawing = Image.open(io.BytesIO(png)).convert("RGBA")
    drawing.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (SIDE, SIDE), "white")
    square.alpha_composite(drawing, ((SIDE - drawing.width) // 2, (SIDE - drawing.height) // 2))
    return square.convert("RGB")


def _of_iconify(icons: dict[str, dict[str, dict[str, object]]]) -> Iterator[tuple[str, str]]:
    """Yield name and SVG of each icon of an Iconify package."""
    for name, icon in icons["icons"].items():
        width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
        yield name, f"{head}{icon['body']}</svg>"


if __name__ == "__main__":
    main()
