"""`--repeat-trial RUN`: train a trial again from its MLflow record, and compare its measures with the recorded ones.

On the CPU a trial is reproducible to the last bit, given the same kind of processor, packages and number of threads.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dcml_tune.cli.parser import given_settings
from dcml_tune.cli.quantities import brief
from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.runs.paths import absolute
from dcml_tune.runs.stores import Stores, scratch_directory
from dcml_tune.tracking import environment_tags

if TYPE_CHECKING:
    from dcml_tune.tracking.reading import StoredRun
    from trainables import DivideAndConquer
    from trainables.run import Role

EXPERIMENT = "dcml_tune"
_REPEATABLE = ("trial", "confirm", "ablate")
_COMPARED = ("val/", "paper/", "train/", "clusters/", "phase/")  # times are not compared
_SAME, _DIFFERENT = 0, 3


def repeat(name: str, *, uri: str, output: Path, scratch: str | None = None, dataset_dir: str | None = None) -> int:
    """Train a trial again, and print for each epoch whether it measures the same. Nothing is recorded.

    Args:
        name: SEARCH/KEY, such as cars-1/003, or the id of an MLflow run.
        uri: of the MLflow store.
        output: directory of all searches.
        scratch: directory of the image stores, if it is not that of the output directory.
        dataset_dir: the new directory of the images, if they were moved.

    Returns:
        0 if all measures of all epochs are identical, 3 if not.

    Raises:
        SettingError: if there is no such trial, it has no epoch, it scores test classes, or its images have changed.
    """
    import torch

    from trainables import DivideAndConquer, Run
    from trainables.run import pack

    run = _find(uri, name)
    config = _config(run, dataset_dir)
    stores = Stores.below(output, scratch_directory(scratch, config.dataset_dir))
    recorded = _recorded(uri, run)
    if not recorded:
        raise SettingError(f"--repeat-trial {name}: it has no epoch in MLflow; choose one that has")
    metric = next(each.removesuffix("_best") for each in run.metrics if each.endswith("_best"))
    print(f"trial {run.key} again: {max(recorded)} epochs of {config.nb_epochs}, {config.dataset}", flush=True)
    for line in _environment_changes(run):
        print(f"  {line}", flush=True)
    threads = int(run.tags["dcml.threads"]) if "dcml.threads" in run.tags else None
    trial = DivideAndConquer.__new__(DivideAndConquer)  # as in an actor of Ray, without its log files
    how = Run(
        search=run.search,
        key=f"{run.key.rpartition('/')[2]} again",
        stores=str(stores.directory),
        shared_stores=None if stores.shared is None else str(stores.shared),
        threads=threads,
        ranks=int(run.tags.get("dcml.ranks", 1)),
        deterministic=_is_deterministic(run),
        compiled=run.tags.get("dcml.compiled") == "yes" and torch.cuda.is_available(),
        metric=metric,
        role=cast("Role", run.role),
    )
    trial.setup(pack(config.model_dump(), how))
    try:
        _refuse_other_images(trial, run)
        return _compare(trial, recorded, metric)
    finally:
        trial.cleanup()


def _is_deterministic(run: StoredRun) -> bool:
    return run.tags.get("dcml.deterministic") == "yes"


def _refuse_other_images(trial: DivideAndConquer, run: StoredRun) -> None:
    if not hasattr(trial, "trainer"):
        return  # setup failed; the first step returns the reason
    data, then = trial.trainer.data, run.tags.get("dcml.data")
    here = data.identity(trial.trainer.config).compared
    if then not in (here, data.dataset.fingerprint_by_time):  # version 0.1 recorded the latter
        raise SettingError(
            f"--repeat-trial {run.key}: the images have changed since (fingerprint {here}, then {then}); restore them"
        )


def _compare(trial: DivideAndConquer, recorded: dict[int, dict[str, float]], metric: str) -> int:
    """Train epoch by epoch, and print which measures differ; returns the exit code."""
    from trainables.run import FAILED

    different = 0
    for epoch in range(1, max(recorded) + 1):
        result = trial.step()
        if FAILED in result:
            raise SettingError(f"the repeated trial failed after {result['epoch']} epochs: {result[FAILED]}")
        for step, measured in ((0, result.get("untrained", {})), (epoch, result)):
            known = recorded.get(step, {})
            names = [name for name in known if name in measured]
            changed = [name for name in names if measured[name] != known[name]]
            if step == epoch or measured:
                different += len(changed) + (not names)
                print(f"epoch {step}: {_epoch_text(names, changed, known, measured, metric)}", flush=True)
    print("identical" if different == 0 else f"{different} measures differ")
    return _SAME if different == 0 else _DIFFERENT


def _epoch_text(
    names: list[str], changed: list[str], known: dict[str, float], measured: dict[str, Any], metric: str
) -> str:
    if not names:
        return "was not recorded"
    value = f"{metric} {100 * measured[metric]:.2f} %, " if metric in measured else ""
    parts = [f"{name} {brief(measured[name])} (was {brief(known[name])})" for name in changed[:5]]
    return f"{value}{len(names) - len(changed)} of {len(names)} measures identical" + "".join(f"; {p}" for p in parts)


def _find(uri: str, name: str) -> StoredRun:
    from dcml_tune.tracking.reading import read_runs

    runs = read_runs(uri, EXPERIMENT)
    run = next((each for each in runs if name in (each.key, each.run_id)), None)
    if run is None:
        search = name.rpartition("/")[0]
        of_search = sorted(each.key for each in runs if each.search == search and each.role in _REPEATABLE)
        known = f"; {search} has {', '.join(of_search[:8])}" if of_search else "; python -m dcml_tune.browse lists them"
        raise SettingError(f"--repeat-trial {name}: no such run in MLflow; give SEARCH/KEY{known}")
    if run.role not in _REPEATABLE:
        raise SettingError(
            f"--repeat-trial {name}: it is a run of role {run.role or 'unknown'}; only {', '.join(_REPEATABLE)} runs are "
            "repeated, as others score the test classes"
        )
    return run


def _config(run: StoredRun, dataset_dir: str | None) -> TrialConfig:
    known = {name: value for name, value in run.params.items() if name in TrialConfig.model_fields}
    if len(known) < len(TrialConfig.model_fields):
        missing = sorted(TrialConfig.model_fields.keys() - known.keys())
        raise SettingError(
            f"--repeat-trial {run.key}: its record has no {', '.join(missing)}; repeat it with the version that recorded it"
        )
    settings = given_settings(known)
    if dataset_dir is not None:
        settings["dataset_dir"] = str(absolute("--dataset-dir", dataset_dir))
    return TrialConfig(**settings)


def _recorded(uri: str, run: StoredRun) -> dict[int, dict[str, float]]:
    """Epoch -> measure -> value."""
    from dcml_tune.tracking.reading import curve

    found: dict[int, dict[str, float]] = {}
    for name in run.metrics:
        if name.startswith(_COMPARED):
            for step, value in curve(uri, run.run_id, name):
                found.setdefault(step, {})[name] = value
    return found


def _environment_changes(run: StoredRun) -> list[str]:
    """Lines about differences of packages and device, which can change the measures."""
    import torch

    now = {name: value for name, value in environment_tags("", []).items() if name.startswith("dcml.version.")}
    lines = [
        f"{name.removeprefix('dcml.version.')} is {value}, then {run.tags[name]}"
        for name, value in now.items()
        if run.tags.get(name, value) != value
    ]
    on_gpu = run.tags.get("dcml.device") == "GPU" or torch.cuda.is_available()
    if on_gpu and not _is_deterministic(run):
        lines.append("on a GPU the order of additions varies, so measures differ in their last digits")
    return lines
