"""Measures of evaluated models beside published results, as a table or as a JSON document."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dcml_tune.config.measures import title
from dcml_tune.config.trial import PAPER_LABEL, TrialConfig

if TYPE_CHECKING:
    from rich.table import Table

    from dcml_tune.metrics.protocols import Measured
    from search_spaces.published import PublishedResult

CHOSEN_ON_TEST = (
    "published values are those of the best epoch by the test classes; ours are of the epoch that was chosen"
)

_COMPARABLE = re.compile(r"recall_at_\d+|nmi|marp")
"""Published measures whose definition is ours. MAP@R and AMI were not published."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A model and its measures."""

    name: str
    config: TrialConfig
    untrained: bool
    """The pretrained backbone of a model, before training."""
    results: list[Measured]
    """One for each test set and protocol; all models have the same ones."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Models measured on the same images."""

    dataset: str
    which: str
    """Which images: test or validation."""
    notes: tuple[str, ...]
    """On the copy of the data set, one line each."""
    models: list[Evaluated]
    published: list[PublishedResult]
    """Published results that may stand beside these; empty if images or protocol differ."""

    @property
    def published_set(self) -> str:
        """Name of the test set that was published: the first one."""
        return self.models[0].results[0].name


def print_json(evaluation: Evaluation) -> None:
    """Print one JSON document, with all digits."""
    document = {
        "dataset": evaluation.dataset,
        "set": evaluation.which,
        "notes": list(evaluation.notes),
        "models": [
            {
                "model": model.name,
                "arch": model.config.arch,
                "chosen_by": "untrained" if model.untrained else model.config.protocol,
                "results": [vars(result) for result in model.results],
            }
            for model in evaluation.models
        ],
        "published": [
            {"set": evaluation.published_set, **each._asdict(), "value": each.value / 100}
            for each in evaluation.published
            if _COMPARABLE.fullmatch(each.metric)
        ],
    }
    if evaluation.published:
        document["published_note"] = CHOSEN_ON_TEST
    print(json.dumps(document, indent=2))


def print_tables(evaluation: Evaluation) -> None:
    """Print a table for each test set and protocol."""
    from rich.console import Console  # only commands that print tables pay for rich

    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else 10_000, highlight=False, markup=False, emoji=False)
    for place in range(len(evaluation.models[0].results)):
        console.print(_table(evaluation, place, terminal), no_wrap=not terminal, crop=False)
    if evaluation.published:
        print(CHOSEN_ON_TEST)


def _table(evaluation: Evaluation, place: int, terminal: bool) -> Table:
    """The table of the test set and protocol at `place`: a row for each model, then the published rows."""
    from rich import box
    from rich.table import Table

    result = evaluation.models[0].results[place]
    names = [name for name in result.measures if not name.endswith("_std")]
    table = Table(
        "model",
        *map(_title, names),
        title=f"{evaluation.dataset}, {result.name} ({result.protocol}), in percent",
        title_justify="left",
        box=box.HEAVY_HEAD if terminal else box.SIMPLE_HEAD,
    )
    for model in evaluation.models:
        table.add_row(_label(model), *(_percent(model.results[place].measures, name) for name in names))
    # The published protocol is that of the first set; the authors published none by VehicleID's official protocol.
    if result.name == evaluation.published_set and result.protocol != "official":
        for label, values in _published_rows(evaluation.published):
            table.add_row(label, *(_percent(values, name) for name in names))
    return table


def _published_rows(published: list[PublishedResult]) -> Iterator[tuple[str, dict[str, float]]]:
    """For each published variant its label and its measures, as shares of 1."""
    for variant, source in dict.fromkeys((each.variant, each.source) for each in published):
        rows = [each for each in published if (each.variant, each.source) == (variant, source)]
        yield f"published, {variant} ({source})", {each.metric: each.value / 100 for each in rows}


def _label(model: Evaluated) -> str:
    paper = f"; {PAPER_LABEL}" if model.config.protocol == "paper" and not model.untrained else ""
    return f"{model.name} ({model.config.arch}{paper})"


def _title(measure: str) -> str:
    return title(measure).replace("recall@", "R@")


def _percent(measures: dict[str, float], name: str) -> str:
    if name not in measures:
        return ""
    deviation = f" ± {100 * measures[f'{name}_std']:.1f}" if f"{name}_std" in measures else ""
    return f"{100 * measures[name]:.1f}{deviation}"
