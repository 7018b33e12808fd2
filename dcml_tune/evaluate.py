"""`python -m dcml_tune.evaluate MODEL...`: measure trained models, beside published results."""

# Imports inside functions: torch and Optuna take seconds to import, and `--help` needs neither.
from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dcml_tune.cli.parser import Parser, run_command
from dcml_tune.cli.quantities import shown, whole
from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.report.measures import Evaluated, Evaluation, print_json, print_tables
from dcml_tune.runs import ledger
from dcml_tune.runs.paths import writable
from dcml_tune.runs.stores import SCRATCH, SCRATCH_HELP, Stores, scratch_directory
from dcml_tune.tracking.uris import add_flag

if TYPE_CHECKING:
    import torch

    from dcml_tune.data import DataSet, EvaluationSet
    from dcml_tune.metrics.protocols import Measured
    from dcml_tune.models.embedder import MaskedEmbedder
    from search_spaces.published import PublishedResult


@dataclass(frozen=True, kw_only=True)
class _Flags:
    """The command line."""

    models: list[str]
    dataset: str | None
    dataset_dir: str | None
    which: Literal["test", "validation"]
    clusterings: int
    untrained: bool
    allow_partial: bool
    skip_unreadable: bool
    output_dir: str
    scratch: str | None
    tracking_uri: str | None
    device: str | None
    json: bool


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m dcml_tune.evaluate",
        description="Measure trained models: recall, MAP@R, mARP, R-precision, NMI and AMI. VehicleID's three lists are "
        "measured by two protocols, In-Shop's queries against its gallery.",
    )
    made.add_argument("models", nargs="+", metavar="MODEL", help="directory of a checkpoint, a trial, a run of train "
                      "or a search; or the id of an MLflow run")  # fmt: skip
    made.add_argument("--dataset-dir", help="directory that holds the data set")
    made.add_argument("--dataset", help="measure on this data set instead of the model's own")
    made.add_argument("--set", choices=["test", "validation"], default="test", dest="which",
                      help="classes to measure on; validation: those that the model's training held out")  # fmt: skip
    made.add_argument("--clusterings", type=whole(0, 1000), default=10,
                      help="number of clusterings over which NMI and AMI are averaged; 0 computes neither")  # fmt: skip
    made.add_argument("--untrained", action="store_true", help="measure the features of the pretrained backbone, too")
    made.add_argument("--allow-partial", action="store_true",
                      help="accept an incomplete copy of the data set; published results are not shown then")  # fmt: skip
    made.add_argument("--skip-unreadable", action="store_true", help="leave out images that cannot be decoded")
    made.add_argument("--output-dir", default="runs", help="directory whose image store is used or created")
    made.add_argument(SCRATCH, metavar="DIR", help=SCRATCH_HELP)
    add_flag(made, "MLflow store that holds the run MODEL; default: OUTPUT/mlflow.db")
    made.add_argument("--device", help="such as cpu or cuda:1; default: the GPU if there is one")
    made.add_argument("--json", action="store_true", help="print one JSON document, with all digits")
    return made


def main(argv: list[str]) -> int:
    """Load all models, measure one after the other, and print."""
    flags = _Flags(**vars(parser().parse_args(argv)))
    output, device = writable(flags.output_dir), _device(flags.device)
    models = _load_models(flags, output)
    stores = Stores.below(output, scratch_directory(flags.scratch, models[0].config.dataset_dir))
    sets, dataset = _sets(models[0], flags)
    for note in dataset.notes:
        print(note, file=sys.stderr)
    if flags.untrained:
        models.append(models[0].before_training())
    if flags.which == "test":
        _announce_test(models, dataset, output, stores)
    evaluation = Evaluation(
        dataset=dataset.name,
        which=flags.which,
        notes=tuple(dataset.notes),
        models=[each.evaluated(_measure(each, sets, flags.clusterings, stores, device)) for each in models],
        published=_published(dataset, flags),
    )
    (print_json if flags.json else print_tables)(evaluation)
    return 0


# -- models ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Model:
    """A model to measure."""

    name: str
    network: MaskedEmbedder
    config: TrialConfig
    """The model's own, with the data set that is measured."""
    untrained: bool = False

    @classmethod
    def load(cls, name: str, directory: Path, flags: _Flags) -> _Model:
        """Load a model, to be measured on the data set of the flags."""
        from dcml_tune.models.embedder import load

        network = load(directory)
        changes: dict[str, Any] = {
            "dataset_dir": flags.dataset_dir,
            "allow_partial": flags.allow_partial,
            "skip_unreadable": flags.skip_unreadable,
        }
        if flags.dataset and flags.dataset != network.config.dataset:
            changes |= {"dataset": flags.dataset, "train_classes": None}
        return cls(name=name, network=network, config=network.config.changed(**changes))

    def before_training(self) -> _Model:
        """The pretrained backbone of this model, whose penultimate features are measured."""
        from dcml_tune.models.embedder import MaskedEmbedder

        config = self.config.changed(weights="pretrained")
        return _Model(name="untrained", network=MaskedEmbedder(config).eval(), config=config, untrained=True)

    def evaluated(self, results: Iterator[Measured]) -> Evaluated:
        """The model with its measures."""
        return Evaluated(name=self.name, config=self.config, untrained=self.untrained, results=list(results))


def _load_models(flags: _Flags, output: Path) -> list[_Model]:
    """The models that the command line names.

    Raises:
        SettingError: if one cannot be found or loaded, or they are of several data sets.
    """
    from dcml_tune.models.locate import locate_models

    with tempfile.TemporaryDirectory() as downloads:
        located = [
            found
            for word in flags.models
            for found in locate_models(word, output=output, downloads=Path(downloads), uri=flags.tracking_uri)
        ]
        models = [_Model.load(name, directory, flags) for name, directory in located]
    names = sorted({model.config.dataset for model in models})
    if len(names) > 1:
        raise SettingError(
            f"models of several data sets ({', '.join(names)}) cannot share a table; give those of one, or --dataset"
        )
    return models


# -- measuring -------------------------------------------------------------------------------------------------


def _sets(model: _Model, flags: _Flags) -> tuple[tuple[EvaluationSet, ...], DataSet]:
    """The sets of images to measure on, and their data set."""
    from dcml_tune import data

    config = model.config
    dataset = data.load(config)
    if flags.which == "test":
        return dataset.tests, dataset
    held_out = data.hold_out(dataset, share=config.held_out_share, seed=config.split_seed, fold=config.fold)[1]
    if held_out is None:
        raise SettingError("--set validation: the model's training held no classes out; measure it on --set test")
    return (held_out,), dataset


def _announce_test(models: list[_Model], dataset: DataSet, output: Path, stores: Stores) -> None:
    """Check the store of the test images, then write to the ledger that these models score the test classes."""
    from dcml_tune.data.remains import store_tests

    lines = [line for model in models for line in store_tests(model.config, dataset, stores)]
    print(*dict.fromkeys(lines), sep="\n", end="\n" if lines else "", file=sys.stderr)
    file, test_set = output / ledger.NAME, dataset.test_fingerprint
    before = [
        ledger.enter(file, run=f"evaluate {model.name}", dataset=dataset.name, test_set=test_set) for model in models
    ]
    line = f"the test classes of {dataset.name} are scored; they were scored {before[0]} times before ({file})"
    print(line, file=sys.stderr, flush=True)


def _device(name: str | None) -> torch.device:
    """The device to compute on; by default the GPU if there is one.

    Raises:
        SettingError: if this machine has no device of that name.
    """
    import torch

    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    known = ["cpu", *(["cuda"] if gpus else []), *gpus]
    if name is not None and name not in known:
        raise SettingError(f"--device {shown(name)}: must be a device of this machine; give {' or '.join(known)}")
    return torch.device(name or ("cuda" if gpus else "cpu"))


def _measure(
    model: _Model, sets: tuple[EvaluationSet, ...], clusterings: int, stores: Stores, device: torch.device
) -> Iterator[Measured]:
    """Measure a model, with a line of progress for each set and protocol."""
    from dcml_tune.data.datasets.vid import has_official_protocol
    from dcml_tune.metrics.protocols import final_measures
    from dcml_tune.training.embedding import embed_images

    network, config = model.network.to(device), model.config

    def embed(images: Any) -> Any:
        return embed_images(network, images, config, stores, penultimate=model.untrained)

    official = has_official_protocol(config.dataset)
    for found in final_measures(embed, sets, official=official, clusterings=clusterings):
        print(f"{model.name}: measured on {found.name} ({found.protocol})", file=sys.stderr, flush=True)
        yield found


def _published(dataset: DataSet, flags: _Flags) -> list[PublishedResult]:
    """The published results if they were measured on the same images: the test classes of a complete copy."""
    from dcml_tune.data.datasets.official_counts import COUNTS, differences
    from search_spaces.published import RESULTS

    complete = dataset.name in COUNTS and not differences(dataset) and not flags.skip_unreadable
    return RESULTS.get(dataset.name, []) if complete and flags.which == "test" else []


if __name__ == "__main__":
    run_command(main)
