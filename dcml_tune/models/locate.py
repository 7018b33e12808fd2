"""The models that a word of a command line names: a directory, the retrained models of a search, or an MLflow run."""

from __future__ import annotations

import os
import re
from pathlib import Path

from dcml_tune.config.errors import SettingError
from dcml_tune.models.embedder import best_model
from dcml_tune.runs.paths import CHECKPOINT, TRIALS, absolute
from dcml_tune.tracking.uris import tracking_uri

_RUN_ID = re.compile(r"[0-9a-f]{32}")


def locate_models(word: str, *, output: Path, downloads: Path, uri: str | None = None) -> list[tuple[str, Path]]:
    """The name and the directory of each model that `word` names.

    Args:
        word: directory of a checkpoint, a trial, a run of train or a search; the name of one of the last two below
            `output`; or the id of an MLflow run.
        output: the output directory.
        downloads: where the files of an MLflow run are put, unless its store keeps them on this machine.
        uri: address of the MLflow store; None: that of `output`.

    Raises:
        SettingError: if nothing is found, or the search has not retrained its winner yet.
    """
    absolute("MODEL", word)  # refuses words that are not a path
    place = Path(word).expanduser()
    if not place.is_dir() and "/" not in word and os.path.isdir(output / word):
        place = output / word
    if not place.exists() and _RUN_ID.fullmatch(word):
        return [(word, _download(word, tracking_uri(uri, output), downloads))]
    if (place / TRIALS).is_dir():
        return [(str(model), model) for model in _retrained(word, place / TRIALS)]
    if (place / CHECKPOINT).is_dir():
        return [(word, place / CHECKPOINT)]
    if place.is_dir():
        return [(word, place)]
    raise SettingError(f"{word}: no such directory, and no id of an MLflow run; give one of them")


def _download(run_id: str, uri: str, downloads: Path) -> Path:
    from dcml_tune.tracking.reading import model_of_run  # MLflow takes seconds to import

    return model_of_run(run_id, uri=uri, target=downloads / run_id)


def _retrained(word: str, trials: Path) -> list[Path]:
    """The retrained models of a search: the first seed of each setting."""
    finals = [each for each in sorted(trials.glob("final-*")) if best_model(each) and "-seed-" not in each.name]
    if finals:
        return finals
    examples = [each for each in sorted(trials.iterdir()) if best_model(each)]
    raise SettingError(
        f"{word}: the search has not retrained its winner; give one of its trials, such as "
        f"{examples[0] if examples else trials / 'KEY'}"
    )
