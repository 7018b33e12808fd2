"""Memory of four trials that read one image store: the store is in memory once.

    python benchmarks/memory.py [--images 1000] [--processes 4] [--repeats 3]

Synthetic JPEGs of 500 x 375 are stored as a trial stores its training images: at full size, and as the network sees
them in evaluation. Processes then open the stores with `dcml_tune.data` and read every pixel. While all of them have
the stores open, the kernel reports their memory as PSS, which counts a page that n processes share as 1/n of a page in
each. Three cases are measured: one process; four processes on the same stores; four processes on a store of their own
each, as if each trial decoded its images itself.

    store    PSS of the mapped pixels of the stores (/proc/PID/smaps), summed over the processes
    files    PSS of all mapped files, including libraries (Pss_File of smaps_rollup)
    all      PSS of everything
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from costs import cost_line, grid
from measure import Row, alternate, show

WIDTH, HEIGHT = 500, 375
CLASSES, TEST_CLASSES = 8, 2
Taken = dict[str, float]
ONE, SHARED, OWN = "one process", "one store", "own stores"


def draw(images: int, directory: Path, *, width: int = WIDTH, height: int = HEIGHT) -> Path:
    """A data set of so many synthetic JPEGs that train, a folder a class, and a few that test; those of a class are the same."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    files = []
    for _ in range(CLASSES):
        (directory / f"class {len(files):02d}").mkdir(parents=True)
        image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height))
        image.save(written := io.BytesIO(), "JPEG", quality=85)
        files.append(written.getvalue())
    trained = CLASSES - TEST_CLASSES
    places = [number % trained for number in range(images)] + 2 * list(range(trained, CLASSES))
    for number, place in enumerate(places):
        (directory / f"class {place:02d}" / f"{number:07d}.jpg").write_bytes(files[place])
    return directory


def open_stores(images: Path, stores: Path, kinds: Sequence[Any] = ("full", "evaluation")) -> list[Any]:
    """The stores of a trial on the images; they are built where they are missing."""
    from dcml_tune import data
    from dcml_tune.config.trial import TrialConfig

    config = TrialConfig(dataset="folder", dataset_dir=str(images), train_classes=CLASSES - TEST_CLASSES)
    train = data.load(config).train
    sizes = {"sz_resize": config.sz_resize, "sz_crop": config.sz_crop}
    return [data.open_or_build(train, stores, kind=kind, **sizes) for kind in kinds]


def child(images: Path, stores: Path) -> None:
    """Read all of the stores, say how large they are, and keep them open until the input ends."""
    opened = open_stores(images, stores)
    total = sum(int(store.image(row).sum()) for store in opened for row in range(len(store)))
    assert total > 0, "black images"
    print(json.dumps({"bytes": sum(store.nbytes for store in opened)}), flush=True)
    sys.stdin.read()


def pss(pid: int) -> Taken:
    """Megabytes of a process, by the kernel."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = {"all": _kilobytes(rollup, "Pss:"), "files": _kilobytes(rollup, "Pss_File:"), "store": 0.0}
    maps = Path(f"/proc/{pid}/smaps").read_text().split("VmFlags:")
    found["store"] = sum(_kilobytes(each, "Pss:") for each in maps if "pixels.npy" in each)
    return {name: value * 1024 / 1e6 for name, value in found.items()}


def _kilobytes(text: str, name: str) -> float:
    return next((float(line.split()[1]) for line in text.splitlines() if line.startswith(name)), 0.0)


def taken(images: Path, stores: Sequence[Path]) -> Taken:
    """What a process on each of some stores take together, when all have read all."""
    words = [sys.executable, __file__, "--child", str(images)]
    running = [
        subprocess.Popen([*words, str(each)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for each in stores
    ]
    try:
        said = [json.loads(process.stdout.readline()) for process in running if process.stdout]
        each = [pss(process.pid) for process in running]
    finally:
        for process in running:
            process.communicate()
    sums = {name: sum(one[name] for one in each) for name in each[0]}
    return {"size": said[0]["bytes"] / 1e6, **sums}


def measured(images: int, processes: int, repeats: int, root: Path) -> dict[str, list[Taken]]:
    """What is taken together, of each repeat."""
    drawn = draw(images, root / "images")
    places = [root / f"stores-{number}" for number in range(processes)]
    open_stores(drawn, places[0])
    for place in places[1:]:
        shutil.copytree(places[0], place)
    wanted = {ONE: places[:1], SHARED: places[:1] * processes, OWN: places}
    found: dict[str, list[Taken]] = {name: [] for name in wanted}
    alternate({n: (lambda n=n: found[n].append(taken(drawn, wanted[n]))) for n in wanted}, repeats)
    return found


def lines(found: dict[str, list[Taken]]) -> list[Row]:
    """The rows of the table."""

    def of(name: str, part: str) -> list[float]:
        return [each[part] for each in found[name]]

    def line(name: str, other: str, part: str, goal: str = "") -> Row:
        return cost_line(f"{part}, {name} to {other}", of(name, part), of(other, part), goal=goal, unit="MB")

    rows = [line(SHARED, ONE, "store", "1: counted once"), line(OWN, ONE, "store")]
    return rows + [line(SHARED, OWN, part) for part in ("files", "all")]


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    with tempfile.TemporaryDirectory() as root:
        found = measured(arguments.images, arguments.processes, arguments.repeats, Path(root))
    grid(
        f"megabytes of {arguments.processes} processes, of the last repeat",
        [{"": name, **each[-1]} for name, each in found.items()],
    )
    show(f"{arguments.processes} processes, {arguments.images} images", lines(found))


if __name__ == "__main__":
    main()
