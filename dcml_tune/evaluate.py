"""`python -m dcml_tune.evaluate MODEL...`: the final measures of trained models, with published ones beside them."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcml_tune.cli.parser import Parser, run_command
from dcml_tune.cli.quantities import shown, whole
from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import PAPER_LABEL, TrialConfig
from dcml_tune.runs.paths import CHECKPOINT, STORES, TRIALS, absolute
from dcml_tune.tracking.uris import add_flag, tracking_uri

if TYPE_CHECKING:
    import torch

    from dcml_tune.data import DataSet, EvaluationSet
    from dcml_tune.metrics.protocols import Measured
    from dcml_tune.models.embedder import MaskedEmbedder
    from search_spaces.published import PublishedResult

_COMPARABLE = re.compile(r"recall_at_\d+|nmi|marp")
"""What the published results call by these names is measured as ours is; MAP@R and AMI were not published."""

CHOSEN_ON_TEST = (
    "published values are those of the best epoch by the test classes; ours are of the epoch that was chosen"
)


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m dcml_tune.evaluate",
        description="Measure trained models: recall, MAP@R, mARP, R-precision, NMI and AMI; VehicleID's three lists under "
        "both protocols, In-Shop's queries against its gallery.",
    )
    made.add_argument("models", nargs="+", metavar="MODEL", help="directory of a checkpoint, trial, run of train or "
                      "search; or the id of an MLflow run")  # fmt: skip
    made.add_argument("--dataset-dir", help="directory that holds the data set")
    made.add_argument("--dataset", help="another data set than the model's own")
    made.add_argument("--set", choices=["test", "validation"], default="test", dest="which",
                      help="validation: the classes that the model's training held out")  # fmt: skip
    made.add_argument(
        "--clusterings", type=whole(0, 1000), default=10, help="over which NMI and AMI are averaged; 0: neither"
    )
    made.add_argument("--untrained", action="store_true", help="the pretrained network's features, too")
    made.add_argument("--allow-partial", action="store_true", help="of a data set; published values are left out then")
    made.add_argument("--skip-unreadable", action="store_true", help="leave out images that cannot be decoded")
    made.add_argument("--output-dir", default="runs", help="whose image store is used, or made")
    add_flag(made, "where MLflow runs are looked up; default: OUTPUT/mlflow.db")
    made.add_argument("--device", help="such as cpu or cuda:1; default: the GPU where there is one")
    made.add_argument("--json", action="store_true", help="one JSON document, with all digits")
    return made


def main(argv: list[str]) -> int:
    """Load all models, then measure one after the other, and print."""
    arguments = parser().parse_args(argv)
    from dcml_tune.data.remains import store_tests
    from dcml_tune.runs.paths import writable

    output, device = writable(arguments.output_dir), _device(arguments.device)
    with tempfile.TemporaryDirectory() as away:
        named = [each for name in arguments.models for each in _located(name, arguments, output, Path(away))]
        models = [_Model.load(name, place, arguments) for name, place in named]
    _refuse_mixed(models)
    sets, dataset = _sets(models[0], arguments)
    for note in dataset.notes:
        print(note, file=sys.stderr)
    if arguments.untrained:
        models.append(models[0].before_training())
    if arguments.which == "test":
        lines = [line for model in models for line in store_tests(model.config, dataset, output / STORES)]
        print(*dict.fromkeys(lines), sep="\n", end="\n" if lines else "", file=sys.stderr)
        print(_entered(models, dataset, output), file=sys.stderr, flush=True)
    results = [(model, list(_measure(model, sets, arguments, output, device))) for model in models]
    published = _published(dataset, arguments)
    _print_json(results, published, dataset, arguments) if arguments.json else _print(results, published, dataset)
    return 0


def _entered(models: list[_Model], dataset: DataSet, output: Path) -> str:
    """Write into the ledger that the test classes are scored by these models, and say how often they were before."""
    from dcml_tune.runs.ledger import NAME, enter

    test_set = dataset.test_fingerprint
    befores = [
        enter(output / NAME, run=f"evaluate {model.name}", dataset=dataset.name, test_set=test_set) for model in models
    ]
    return f"the test classes of {dataset.name} are scored; {befores[0]} times before ({output / NAME})"


# -- which models ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Model:
    """A model, and how its row is called."""

    name: str
    model: MaskedEmbedder
    config: TrialConfig
    """Of the model, with the data set that is measured."""
    penultimate: bool = False

    @classmethod
    def load(cls, name: str, place: Path, arguments: Namespace) -> _Model:
        from dcml_tune.models.embedder import load

        model = load(place)
        own = {"dataset_dir": arguments.dataset_dir, "allow_partial": arguments.allow_partial,
               "skip_unreadable": arguments.skip_unreadable}  # fmt: skip
        if arguments.dataset and arguments.dataset != model.config.dataset:
            own |= {"dataset": arguments.dataset, "train_classes": None}
        return cls(name=name, model=model, config=model.config.changed(**own))

    def before_training(self) -> _Model:
        """The pretrained network of the model's backbone, of which the penultimate features are measured."""
        from dcml_tune.models.embedder import MaskedEmbedder

        config = self.config.changed(weights="pretrained")
        return _Model(name="untrained", model=MaskedEmbedder(config).eval(), config=config, penultimate=True)


def _located(name: str, arguments: Namespace, output: Path, away: Path) -> Iterator[tuple[str, Path]]:
    """Name and directory of each model that a word of the command line means."""
    from dcml_tune.models.embedder import best_model

    absolute("MODEL", name)  # refuses what is no path
    place = Path(name).expanduser()
    if not place.is_dir() and "/" not in name and os.path.isdir(output / name):
        place = output / name
    if not place.exists() and re.fullmatch(r"[0-9a-f]{32}", name):
        from dcml_tune.tracking.reading import model_of_run

        uri = tracking_uri(arguments.tracking_uri, output)
        yield name, model_of_run(name, uri=uri, target=away / name)
    elif (place / TRIALS).is_dir():
        finals = sorted(each.name for each in (place / TRIALS).glob("final-*") if best_model(each))
        found = [each for each in finals if "-seed-" not in each]  # the first seed of each setting
        if not found:
            some = [each.name for each in sorted((place / TRIALS).iterdir()) if best_model(each)]
            raise SettingError(
                f"{name}: the search has not retrained its winner; give one of its trials, such as "
                f"{place / TRIALS / (some or ['KEY'])[0]}"
            )
        yield from ((str(place / TRIALS / each), place / TRIALS / each) for each in found)
    elif (place / CHECKPOINT).is_dir():
        yield name, place / CHECKPOINT
    elif place.is_dir():
        yield name, place
    else:
        raise SettingError(f"{name}: no such directory, and no id of an MLflow run; give one of them")


def _refuse_mixed(models: list[_Model]) -> None:
    names = {model.config.dataset for model in models}
    if len(names) > 1:
        raise SettingError(
            f"models of several data sets ({', '.join(sorted(names))}) cannot share a table; give those of one, or --dataset"
        )


# -- measuring -------------------------------------------------------------------------------------------------


def _sets(model: _Model, arguments: Namespace) -> tuple[tuple[EvaluationSet, ...], DataSet]:
    """What is measured on."""
    from dcml_tune import data

    config = model.config
    dataset = data.load(config)
    if arguments.which == "test":
        return dataset.tests, dataset
    held = data.hold_out(dataset, share=config.held_out_share, seed=config.split_seed, fold=config.fold)[1]
    if held is None:
        raise SettingError("--set validation: the model's training held no classes out; measure it on --set test")
    return (held,), dataset


def _device(name: str | None) -> torch.device:
    """The device that is named; by default the GPU where there is one.

    Raises:
        SettingError: for one that is not here.
    """
    import torch

    there = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    known = ["cpu", *(["cuda"] if there else []), *there]
    if name is not None and name not in known:
        raise SettingError(f"--device {shown(name)}: must be a device of this machine; give {' or '.join(known)}")
    return torch.device(name or ("cuda" if there else "cpu"))


def _measure(
    model: _Model, sets: tuple[EvaluationSet, ...], arguments: Namespace, output: Path, device: torch.device
) -> Iterator[Measured]:
    from dcml_tune.data.datasets.vid import has_official_protocol
    from dcml_tune.metrics.protocols import final_measures
    from dcml_tune.training.embedding import embed_images

    network = model.model.to(device)
    config = model.config

    def embed(images: Any) -> Any:
        return embed_images(network, images, config, output / STORES, penultimate=model.penultimate)

    for found in final_measures(
        embed, sets, official=has_official_protocol(config.dataset), clusterings=arguments.clusterings
    ):
        print(f"{model.name}: {found.name} ({found.protocol}) is measured", file=sys.stderr, flush=True)
        yield found


def _published(dataset: DataSet, arguments: Namespace) -> list[PublishedResult]:
    """The published results, where the protocol is theirs: the test classes of a whole copy."""
    from dcml_tune.data.datasets.official_counts import COUNTS, differences
    from search_spaces.published import RESULTS

    whole = dataset.name in COUNTS and not differences(dataset) and not arguments.skip_unreadable
    return RESULTS.get(dataset.name, []) if whole and arguments.which == "test" else []


# -- printing --------------------------------------------------------------------------------------------------


Results = list[tuple[_Model, list["Measured"]]]


def _is_published(found: Measured, first: str) -> bool:
    """Whether the published protocol is that of these measures: the first set, and not VehicleID's official one."""
    return found.name == first and found.protocol != "official"


def _print(results: Results, published: list[PublishedResult], dataset: DataSet) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else 10_000, highlight=False, markup=False, emoji=False)
    first = results[0][1][0].name
    for place, found in enumerate(results[0][1]):
        names = [name for name in found.measures if not name.endswith("_std")]
        title = f"{dataset.name}, {found.name} ({found.protocol}), in percent"
        table = Table("model", *map(_short, names), title=title, title_justify="left",
                      box=box.HEAVY_HEAD if terminal else box.SIMPLE_HEAD)  # fmt: skip
        for model, measured in results:
            table.add_row(_label(model), *(_percent(measured[place].measures, name) for name in names))
        for variant, source in dict.fromkeys((each.variant, each.source) for each in published):
            if _is_published(found, first):
                values = {e.metric: e.value / 100 for e in published if (e.variant, e.source) == (variant, source)}
                table.add_row(f"published, {variant} ({source})", *(_percent(values, name) for name in names))
        console.print(table, no_wrap=not terminal, crop=False)
    if published:
        print(CHOSEN_ON_TEST)


def _label(model: _Model) -> str:
    paper = f"; {PAPER_LABEL}" if model.config.protocol == "paper" and not model.penultimate else ""
    return f"{model.name} ({model.config.arch}{paper})"


def _short(name: str) -> str:
    return {"map_at_r": "MAP@R", "marp": "mARP", "r_precision": "R-precision", "nmi": "NMI", "ami": "AMI"}.get(
        name, name.replace("recall_at_", "R@")
    )


def _percent(measures: dict[str, float], name: str) -> str:
    if name not in measures:
        return ""
    spread = f" ± {100 * measures[f'{name}_std']:.1f}" if f"{name}_std" in measures else ""
    return f"{100 * measures[name]:.1f}{spread}"


def _print_json(results: Results, published: list[PublishedResult], dataset: DataSet, arguments: Namespace) -> None:
    first = results[0][1][0].name
    document = {
        "dataset": dataset.name,
        "set": arguments.which,
        "notes": list(dataset.notes),
        "models": [
            {
                "model": model.name,
                "arch": model.config.arch,
                "chosen_by": "untrained" if model.penultimate else model.config.protocol,
                "results": [vars(found) for found in measured],
            }
            for model, measured in results
        ],
        "published": [
            {"set": first, **each._asdict(), "value": each.value / 100}
            for each in published
            if _COMPARABLE.fullmatch(each.metric)
        ],
    }
    if published:
        document["published_note"] = CHOSEN_ON_TEST
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    run_command(main)
