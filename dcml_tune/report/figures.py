"""Figures by matplotlib: they are drawn, written as PNG files, and embedded in the page."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import PercentFormatter
from optuna.exceptions import ExperimentalWarning
from PIL import Image

from dcml_tune.report.page import Figure
from dcml_tune.utils.files import write_atomic

Pixels = npt.NDArray[np.uint8]

SIZE = 9.0, 4.5
"""Width and height of a figure in inches."""

_DPI = 110
_QUALITY = 85  # of the JPEG that is embedded in the page; the PNG file is lossless
_STYLE: dict[str, Any] = {"legend.fontsize": "small"}


@contextmanager
def drawing() -> Iterator[None]:
    """Within this context, draw without a display and in the style of the report; afterwards close the figures."""
    before, backend = set(plt.get_fignums()), matplotlib.get_backend()
    plt.switch_backend("agg")
    try:
        with plt.style.context(["ggplot", _STYLE]), warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # of Optuna's plots
            yield
    finally:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)
        plt.switch_backend(backend)


def axes(width: float = SIZE[0], height: float = SIZE[1]) -> Axes:
    """The axes of a new figure."""
    figure, made = plt.subplots(figsize=(width, height))
    assert isinstance(figure, Drawing)
    return made


def in_percent(axis: Axis) -> None:
    """Label an axis of fractions in percent."""
    axis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))


class Album:
    """The figures of a page, each of which is also written as a PNG file into its directory.

    Attributes:
        names: names of the files that were written, without `.png`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.names: list[str] = []

    def keep(self, drawn: Axes, name: str, *, title: str, caption: str, several: bool = False) -> Figure:
        """Write the figure of some axes and return it for the page; `several` says that the figure has more axes."""
        figure = drawn.get_figure(root=True)
        assert isinstance(figure, Drawing)
        drawn.set_title("", loc="left")  # remove Optuna's title
        figure.suptitle(title, y=0.97, fontsize="large") if several else drawn.set_title(title, fontsize="large")
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=_DPI, bbox_inches="tight")
        plt.close(figure)
        self._write(name, file.getvalue())
        return Figure(name=name, title=title, caption=caption, source=_data_uri("png", file.getvalue()))

    def keep_picture(self, pixels: Pixels, name: str, *, title: str, caption: str) -> Figure:
        """Write a picture (H x W x 3) that is composed of photographs, and return it for the page."""
        image, png, jpeg = Image.fromarray(pixels), io.BytesIO(), io.BytesIO()
        image.save(png, "PNG")
        image.save(jpeg, "JPEG", quality=_QUALITY)
        self._write(name, png.getvalue())
        source = _data_uri("jpeg", jpeg.getvalue())
        return Figure(name=name, title=title, caption=caption, source=source)

    def remove_others(self) -> None:
        """Delete the PNG files of an earlier page that this one does not have."""
        for file in self.directory.glob("*.png"):
            if file.stem not in self.names:
                file.unlink(missing_ok=True)

    def _write(self, name: str, data: bytes) -> None:
        write_atomic(self.directory / f"{name}.png", data)
        self.names.append(name)


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
