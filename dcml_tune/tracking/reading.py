"""Reading of an MLflow store: runs, their metrics and their models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcml_tune.config.errors import SettingError
from dcml_tune.runs.paths import sqlite_file
from dcml_tune.runs.study import by_launch, first_best
from dcml_tune.tracking.mlflow_api import KEY, REASON, ROLE, SEARCH, STATE, client_of, safe_key, short
from dcml_tune.tracking.moved import files_of
from dcml_tune.tracking.uris import absolute_uri
from dcml_tune.utils.redaction import redact

_PAGE = 1000  # runs per query
_MAX_EQUAL = 100  # models that may share the highest value


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """A run in MLflow."""

    run_id: str
    key: str
    """Identity within the store, such as SEARCH/007; for a run of another program, MLflow's name."""
    role: str
    """One of those that `mlflow_api` lists; empty for a run of another program."""
    search: str
    """Key of the search it belongs to."""
    state: str
    """running, done, pruned, interrupted, killed or failed; for a run of another program, MLflow's status."""
    reason: str
    """Why it ended; empty if it has none."""
    params: dict[str, str]
    metrics: dict[str, float]
    """The last value of each metric."""
    tags: dict[str, str]
    started: float
    """Seconds since 1970."""
    ended: float | None
    """Seconds since 1970; None while the run is open."""


def read_runs(uri: str, experiment: str, *, search: str | None = None, all_programs: bool = False) -> list[StoredRun]:
    """The runs of an experiment, newest first.

    Args:
        uri: address of the store; it is not created if it is missing.
        experiment: name of the experiment.
        search: key of a search, to read only its runs; None reads all runs.
        all_programs: include the runs of other programs.

    Raises:
        SettingError: if the store cannot be read, or the experiment does not exist.
    """
    client = _open(uri)
    try:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            known = ", ".join(sorted(each.name for each in client.search_experiments()))
            raise SettingError(
                f"--experiment {experiment}: is not in {redact(uri)}, which has {known or 'no experiments'}; give another"
            )
        wanted = [] if all_programs else [f"tags.`{ROLE}` != ''"]
        if search is not None:
            wanted = [f"tags.`{SEARCH}` = '{safe_key(search)}'"]
        return [_stored(run) for run in _pages(client, found.experiment_id, " AND ".join(wanted))]
    except SettingError:
        raise
    except Exception as error:
        raise _unreachable(uri, error) from None


def curve(uri: str, run_id: str, metric: str) -> list[tuple[int, float]]:
    """Step and value of each point of a metric, by step.

    Raises:
        SettingError: if the store cannot be read.
    """
    try:
        return sorted((point.step, point.value) for point in _open(uri).get_metric_history(run_id, metric))
    except SettingError:
        raise
    except Exception as error:
        raise _unreachable(uri, error) from None


def model_of_run(run_id: str, *, uri: str, target: Path) -> Path:
    """The directory of the last model that a run logged, which `dcml_tune.models.embedder.load` reads.

    Args:
        run_id: MLflow's id of the run.
        uri: address of the store.
        target: directory for the files, if they must be downloaded.

    Raises:
        SettingError: if there is no such run, it has no model, or the store cannot be read.
    """
    client = _open(uri)
    try:
        run = client.get_run(run_id)
        models = client.search_logged_models(
            [run.info.experiment_id], filter_string=f"source_run_id = '{safe_key(run_id)}'"
        )
        if not models:
            raise SettingError(
                f"run {run_id}: has logged no model; give a run that has ended, or the directory of a checkpoint"
            )
        newest = max(models, key=lambda model: int(model.tags.get("dcml.step", 0)))
        place = files_of(newest.artifact_location, sqlite_file(absolute_uri(uri)))
        if place is not None:
            return place
        import mlflow  # imported on use: it takes seconds to import

        mlflow.set_tracking_uri(absolute_uri(uri))
        return Path(mlflow.artifacts.download_artifacts(f"models:/{newest.model_id}", dst_path=str(target)))
    except SettingError:
        raise
    except Exception as error:
        if "RESOURCE_DOES_NOT_EXIST" in str(error) or "not found" in str(error):
            raise SettingError(f"run {run_id}: is not in {redact(uri)}; give another, or --tracking-uri") from None
        raise _unreachable(uri, error) from None


def best_model(
    uri: str, experiment: str, search: str, metric: str = "val/map_at_r_best", *, role: str = "trial"
) -> Any:
    """The logged model of a search with the highest metric; of equal models that of the first trial. It takes one query.

    Args:
        uri: address of the store.
        experiment: name of the experiment.
        search: key of the search.
        metric: one of those given to `Tracker.model`.
        role: role of the runs to compare.

    Returns:
        The `mlflow.entities.LoggedModel`, with `artifact_location`, `source_run_id` and `metrics`; None if no model has
        the metric. A forgotten model is returned as long as its `forget` record waits in a spool, and no longer once its
        removal has begun.
    """
    client = client_of(absolute_uri(uri))
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    models = client.search_logged_models(
        [found.experiment_id],
        filter_string=f"tags.`{SEARCH}` = '{safe_key(search)}' AND tags.`{ROLE}` = '{safe_key(role)}'",
        order_by=[{"field_name": f"metrics.{metric}", "ascending": False}],
        max_results=_MAX_EQUAL,
    )

    def value(model: Any) -> float | None:
        return next((float(point.value) for point in model.metrics or [] if point.key == metric), None)

    return first_best(sorted(models, key=lambda model: by_launch(model.tags.get(KEY, ""))), value)


def _open(uri: str) -> Any:
    """A client of an existing store."""
    whole = absolute_uri(uri)
    file = sqlite_file(whole)
    if file is not None and not file.is_file():
        raise SettingError(f"{file}: no MLflow store there; give --output-dir or --tracking-uri")
    return client_of(whole)


def _pages(client: Any, experiment_id: str, wanted: str) -> Iterator[Any]:
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment_id],
            filter_string=wanted,
            max_results=_PAGE,
            order_by=["attributes.start_time DESC"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


def _stored(run: Any) -> StoredRun:
    tags = dict(run.data.tags)
    return StoredRun(
        run_id=run.info.run_id,
        key=tags.get(KEY, run.info.run_name or run.info.run_id),
        role=tags.get(ROLE, ""),
        search=tags.get(SEARCH, ""),
        state=tags.get(STATE, run.info.status.lower()),
        reason=tags.get(REASON, ""),
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        tags=tags,
        started=run.info.start_time / 1000,
        ended=None if run.info.end_time is None else run.info.end_time / 1000,
    )


def _unreachable(uri: str, error: Exception) -> SettingError:
    return SettingError(f"tracking-uri={redact(uri)}: cannot be read ({short(error)}); is the server up?")
