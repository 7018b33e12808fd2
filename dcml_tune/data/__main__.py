"""`python -m dcml_tune.data DATASET --dataset-dir D`: checks a copy and builds the image stores of a search."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dcml_tune.cli.parser import BAD_INPUT, Parser, add_settings, given_settings, run_command
from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.runs.paths import output_directory, writable
from dcml_tune.runs.stores import SCRATCH, SCRATCH_HELP, Stores, scratch_directory

if TYPE_CHECKING:
    from dcml_tune.data import DataSet, ImageList, ImageStore, Inspection
    from dcml_tune.data.remains import Remains

    Seen = dict[ImageList, ImageStore | Inspection]

# The settings that select the images and the form in which they are stored.
_SETTINGS = (
    "dataset_dir", "train_classes", "ratio_classes", "allow_partial", "skip_unreadable", "strict", "image_store",
    "sz_resize", "sz_crop", "val_share", "protocol",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Flags:
    """The command line."""

    dataset: str
    output_dir: str
    scratch: str | None
    check_only: bool
    json: bool


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m dcml_tune.data",
        description="Compare a copy of a data set with what was published, decode every image, and build the image stores "
        "where search and train look for them. Exit code 2: the copy cannot be used as it is.",
    )
    made.add_argument("dataset", help="cub, cars, sop, inshop, vid, emoji or folder")
    made.add_argument("--output-dir", default="runs", help="directory whose image store is built")
    made.add_argument(SCRATCH, metavar="DIR", help=SCRATCH_HELP)
    made.add_argument("--check-only", action="store_true", help="only compare and decode; build no image store")
    made.add_argument("--json", action="store_true", help="print what was found as JSON")
    add_settings(made, exclude=[name for name in TrialConfig.model_fields if name not in _SETTINGS])
    return made


def main(argv: list[str]) -> int:
    """Check the copy, build the stores, and print the result."""
    own, settings = parser().flags_and_settings(argv)
    flags = _Flags(**own)
    from dcml_tune import data
    from dcml_tune.data.datasets.official_counts import COUNTS, counts
    from dcml_tune.data.remains import of_tests, of_train

    config = TrialConfig(**{**given_settings(settings), "dataset": flags.dataset})
    dataset = data.load(config.changed(allow_partial=True, strict=False, skip_unreadable=True))
    builds = not flags.check_only and not _refusals(config)
    output = output_directory(flags.output_dir)
    stores = None
    if builds:
        stores = Stores.below(writable(output), scratch_directory(flags.scratch, config.dataset_dir))
    seen = _decode(dataset) if stores is None else _build(config, dataset, stores)
    published = COUNTS.get(dataset.name, {})
    sides = [of_train(config, dataset, seen[dataset.train]), of_tests(config, dataset, lambda images: seen[images])]
    found = {
        "dataset": dataset.name,
        "counts": [
            {"what": what, "found": number, "published": published.get(what)}
            for what, number in counts(dataset).items()
        ],
        "notes": [*dataset.notes, *(line for side in sides for line in side.lines)],
        "unreadable": list(dict.fromkeys(name for each in seen.values() for name in each.left_out)),
        "problems": _problems(config, dataset, seen, sides),
        "stores": None if stores is None else str(stores.directory),
    }
    _print(found, as_json=flags.json)
    return BAD_INPUT if found["problems"] else 0


def _refusals(config: TrialConfig) -> list[str]:
    """The reasons why a search would reject this copy before it decodes images."""
    from dcml_tune import data

    try:
        data.load(config)
    except SettingError as error:
        return [str(error)]
    return []


def _problems(config: TrialConfig, dataset: DataSet, seen: Seen, sides: list[Remains]) -> list[str]:
    """The errors that a search would report, found with the functions that a search uses."""
    from dcml_tune import data
    from dcml_tune.data.image_store import unreadable

    problems = _refusals(config)
    left_out = [name for each in seen.values() for name in each.left_out]
    if left_out and not config.skip_unreadable:
        return [*problems, str(unreadable(left_out, sum(map(len, seen))))]
    problems += [side.problem for side in sides if side.problem is not None]
    try:
        images = dataset.train.take(seen[dataset.train].kept)
        data.hold_out_rows(images, share=config.held_out_share, seed=config.split_seed)
    except SettingError as error:
        problems.append(str(error))
    return problems


def _decode(dataset: DataSet) -> Seen:
    """Decode all images without storing them."""
    from dcml_tune import data

    lists = [("training images", dataset.train), *(("test images", images) for images in dataset.test_lists)]
    return {images: data.inspect(images, _progress(f"{what} are decoded")) for what, images in lists}


def _build(config: TrialConfig, dataset: DataSet, stores: Stores) -> Seen:
    """Build the image stores of a search, and return the store of each list."""
    from dcml_tune import data
    from dcml_tune.utils.files import free_bytes, readable_size

    wanted: list[tuple[ImageList, data.Kind]] = [(dataset.train, config.image_store), (dataset.train, "evaluation")]
    wanted += [(images, "evaluation") for images in dataset.test_lists]
    sizes: dict[str, Any] = {"sz_resize": config.sz_resize, "sz_crop": config.sz_crop}
    need = sum(data.needed_bytes(images, stores, kind=kind, **sizes) for images, kind in wanted)
    flag, place = ("--output-dir", stores.directory.parent) if stores.shared is None else (SCRATCH, stores.directory)
    if need > (free := free_bytes(place)):
        raise SettingError(
            f"{flag} {place}: the image stores need {readable_size(need)} there and {readable_size(free)} are free; free some "
            "space, choose another directory, or keep smaller images with --image-store small"
        )
    found: Seen = {}
    for number, (images, kind) in enumerate(wanted, 1):
        report = _progress(f"image store {number} of {len(wanted)}")
        found[images] = data.open_or_build(
            images, stores, kind=kind, skip_unreadable=True, progress=report, **sizes
        )  # training images have two stores; either one is enough for the messages
    return found


def _progress(what: str) -> Callable[[int, int], None]:
    """A function that prints progress: continuously on a terminal, else once at the end."""

    def report(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{what}: {done:,} of {total:,}", end="\n" if done >= total else "", file=sys.stderr, flush=True)
        elif done >= total:
            print(f"{what}: {total:,}", file=sys.stderr, flush=True)

    return report


def _print(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        _print_table(found)
    for problem in found["problems"]:
        print(f"error: {problem}", file=sys.stderr)


def _print_table(found: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(found["dataset"], "found", "published", "", box=box.SIMPLE_HEAD)
    for each in found["counts"]:
        known = each["published"]
        verdict = "" if known is None else "ok" if known == each["found"] else "differs"
        table.add_row(each["what"], f"{each['found']:,}", "" if known is None else f"{known:,}", verdict)
    Console(highlight=False).print(table)
    for note in found["notes"]:
        print(note)
    for name in found["unreadable"][:20]:
        print(f"cannot be decoded: {name}")
    if len(found["unreadable"]) > 20:
        print(f"and {len(found['unreadable']) - 20:,} more that cannot be decoded")
    if found["stores"]:
        print(f"image stores are in {found['stores']}")


if __name__ == "__main__":
    run_command(main)
