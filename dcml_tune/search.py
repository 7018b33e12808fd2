"""`python -m dcml_tune.search DATASET`: search space + Ray Tuner + tracking -> the best setting, scored once."""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcml_tune.commandline import Parser, add_settings, command, given_settings, run_command, settings_to_flags
from dcml_tune.config import SettingError, TrialConfig

if TYPE_CHECKING:
    from search_spaces import SearchSpace
    from trainables.callbacks import Progress

_METRICS = ("val/recall_at_1", "val/map_at_r", "val/marp", "val/r_precision")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one stage of a search left: its trials and how they were shown."""

    results: Any
    progress: Progress


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m dcml_tune.search",
        description="Search the divide-and-conquer settings of a data set. Trials are compared on held-out training "
        "classes; the winner is retrained on all of them, and the test classes are scored once.",
    )
    made.add_argument("dataset", help="emoji (embedded) or folder; cub, cars, sop, inshop, vid come later")
    made.add_argument("--num-samples", type=int, default=8, help="number of trials")
    made.add_argument("--searcher", choices=["optuna", "random"], default="optuna", help="TPE, or independent draws")
    made.add_argument("--scheduler", choices=["asha", "median", "none"], default="asha", help="how trials are pruned")
    made.add_argument("--metric", choices=_METRICS, default=_METRICS[0], help="a trial's value is its best so far")
    made.add_argument("--gpus-per-trial", type=float, help="share of a GPU up to 1, or a whole number; default 1")
    made.add_argument("--max-concurrent", type=int, help="most trials at once; default: as many as fit")
    made.add_argument("--time-budget", help="stop the search after such as 30m or 10h")
    made.add_argument("--space", help="Python file that defines SPACE = SearchSpace(...)")
    made.add_argument(
        "--final", choices=["best", "none"], default="best", help="score winner and published on test classes"
    )
    made.add_argument("--output-dir", default="runs", help="where everything is written")
    made.add_argument("--name", help="name of the search; default: data set and time")
    made.add_argument("--tracking-uri", help="MLflow server; default: OUTPUT/mlflow.db")
    made.add_argument("--ray-address", help="a running Ray cluster; default: a local one of its own")
    made.add_argument("--dry-run", action="store_true", help="say what would be run, and stop")
    add_settings(made, exclude=("dataset",))
    return made


def main(argv: list[str]) -> int:
    """Check everything, search, score, and say what was found."""
    arguments = parser().parse_args(argv)
    plan = Plan.of(arguments)
    print(plan.head(), flush=True)
    if arguments.dry_run:
        return 0
    return _run(plan)


class Plan:
    """A search that was checked: all that can be known to be wrong was refused before Ray starts."""

    def __init__(self, arguments: Any, space: SearchSpace, fixed: dict[str, Any]) -> None:
        from dcml_tune import backbones
        from dcml_tune.resources import share
        from dcml_tune.tracking import absolute_uri
        from dcml_tune.trainer import TrialData

        self.arguments, self.fixed = arguments, fixed
        self.seconds = seconds(arguments.time_budget)
        given_uri = absolute_uri(arguments.tracking_uri) if arguments.tracking_uri else None
        if arguments.num_samples < 1:
            raise SettingError(f"--num-samples {arguments.num_samples}: must be at least 1; give a number of trials")
        self.name = arguments.name or f"{arguments.dataset}-{time.strftime('%Y%m%d-%H%M%S')}"
        self.output = writable(Path(arguments.output_dir))
        refuse_existing(self.output / self.name)
        self.shares = share(
            num_samples=arguments.num_samples,
            gpus_per_trial=arguments.gpus_per_trial,
            max_concurrent=arguments.max_concurrent,
        )
        base = TrialConfig(**{**space.published, **fixed, "nb_clusters": 1, "force_full_embedding_epoch": None})
        backbones.build(base.arch, weights=base.weights, sz_crop=base.sz_crop, frozen_statistics=False)
        self.data = TrialData.open(base, self.output / "store")
        self.space = space.restricted(fixed, self.data.cannot_train)
        self.point0, self.lines = self.space.point0(self.data.cannot_train)
        self.uri = given_uri or f"sqlite:///{self.output / 'mlflow.db'}"
        self.study = f"sqlite:///{self.output / self.name / 'optuna.db'}"

    @classmethod
    def of(cls, arguments: Any) -> Plan:
        """Check a command line."""
        from dcml_tune import data
        from search_spaces import load_space

        fixed = given_settings(arguments)
        data.load(TrialConfig(dataset=arguments.dataset, **{k: v for k, v in fixed.items() if k in ("dataset_dir",)}))
        space = load_space(arguments.dataset, arguments.space)
        if fixed.get("dataset_dir"):
            fixed["dataset_dir"] = str(Path(fixed["dataset_dir"]).expanduser().absolute())
        return cls(arguments, space, {"dataset": arguments.dataset, **fixed})

    def head(self) -> str:
        """What is said before anything runs."""
        import numpy as np

        d = self.data
        held = 0 if d.validation is None else len(np.unique(d.labels[d.validation]))
        trains = len(np.unique(d.labels[d.train]))
        lines = [
            f"search {self.name}: {d.dataset.counts()}",
            *d.dataset.notes,
            *d.notes(),
            f"  {held} training classes are held out to compare trials, {trains} train; test classes stay sealed",
            f"  {self.arguments.num_samples} trials by {self.arguments.searcher} and {self.arguments.scheduler}, "
            f"{self.shares.concurrent} at once ({self.shares.why})",
            *(f"  {name}: {domain}  ({why})" for name, domain, why in self.space.describe()),
            *(f"  {line}" for line in self.lines),
        ]
        return "\n".join(lines)

    def run(self, **changes: Any) -> dict[str, Any]:
        """The `run` entry of a trial's dictionary."""
        from trainables import Run

        return Run(
            stores=str(self.output / "store"),
            threads=self.shares.threads_per_trial,
            gpu_fraction=self.shares.gpus_per_trial or 1.0,
            metric=self.arguments.metric,
            varied=tuple(self.space.domains),
            **changes,
        ).as_dict()


def _connect(address: str | None) -> str:
    """Start a local Ray cluster, or join a running one; returns the address of its dashboard, if it has one.

    Raises:
        SettingError: if no cluster answers at the address.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():  # Ray itself would try for minutes
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as error:
            raise SettingError(f"--ray-address {address}: nothing answers ({error}); is the cluster up?") from None
    if address and "RAY_AUTH_MODE" not in os.environ and _has_ray_token():
        os.environ["RAY_AUTH_MODE"] = "token"  # Ray sends its token to an address that is given only when told to
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    options: dict[str, Any] = {"address": address} if address else {"address": "local", "include_dashboard": True}
    try:
        context = ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address is None:
            raise
        raise SettingError(
            f"--ray-address {address}: no Ray cluster lets us in there ({str(error).splitlines()[0]}); check the "
            "address, and RAY_AUTH_MODE (token or disabled) and the token of that cluster, or leave the flag out"
        ) from None
    return str(context.dashboard_url or "")


def _has_ray_token() -> bool:
    default = Path.home() / ".ray" / "auth_token"
    return "RAY_AUTH_TOKEN" in os.environ or Path(os.environ.get("RAY_AUTH_TOKEN_PATH", default)).is_file()


def _run(plan: Plan) -> int:
    from dcml_tune.tracking import Tracker, environment_tags

    dashboard = _connect(plan.arguments.ray_address)
    import ray

    if dashboard:
        print(f"  Ray dashboard: http://{dashboard} (log in with the output of: ray get-auth-token)")
    tracker = Tracker.open(plan.output, plan.name, uri=plan.uri)
    tags = environment_tags(plan.data.dataset.fingerprint, ["python", "-m", "dcml_tune.search", *sys.argv[1:]])
    tracker.start(plan.name, name=plan.name, role="search", params={"dataset": plan.arguments.dataset}, tags=tags)
    try:
        searched = _search(plan, tracker, tags)
        best = max(
            (r for r in searched.results if _value(r, plan) is not None),
            key=lambda r: _value(r, plan) or 0.0,
            default=None,
        )
        final = (
            _final(plan, tracker, tags, best, searched) if best is not None and plan.arguments.final == "best" else None
        )
    finally:
        ray.shutdown()
    tracker.end(plan.name, "FINISHED" if best is not None else "FAILED")
    left = tracker.close()
    _say_end(plan, tracker, searched, best, final)
    if left:
        print(
            f"{left} records wait; deliver them with: {command('dcml_tune.tracking', 'flush', plan.name, '--output-dir', str(plan.output))}"
        )
    failed = sum(row["state"] == "failed" for row in searched.progress.rows.values())
    return 0 if best is not None and not failed and len(searched.progress.rows) == plan.arguments.num_samples else 3


def _search(plan: Plan, tracker: Any, tags: dict[str, str]) -> Outcome:
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule

    from trainables.callbacks import Progress
    from trainables.optuna_searcher import OptunaSearcher

    arguments, metric = plan.arguments, f"{plan.arguments.metric}_best"
    epochs = TrialConfig(**{**plan.space.published, **plan.point0}).nb_epochs
    # The first rung lies at half of the epochs: earlier ones compare trials before their division.
    grace = max(1, (epochs + 1) // 2)
    schedulers: dict[str, Any] = {
        "asha": lambda: AsyncHyperBandScheduler(
            time_attr="training_iteration",
            metric=metric,
            mode="max",
            grace_period=grace,
            max_t=epochs,
            reduction_factor=2,
        ),
        "median": lambda: MedianStoppingRule(
            time_attr="training_iteration", metric=metric, mode="max", grace_period=grace
        ),
        "none": FIFOScheduler,
    }
    searcher = OptunaSearcher(
        plan.space,
        storage=plan.study,
        study_name=plan.name,
        metric=arguments.metric,
        sampler=arguments.searcher,
        seed=plan.fixed.get("seed", 0),
        feasible=plan.data.cannot_train,
        points=[plan.point0],
        constants={"run": plan.run()},
    )
    progress = Progress(
        tracker,
        search=plan.name,
        metric=arguments.metric,
        varied=list(plan.space.domains),
        tags=tags,
        planned=arguments.num_samples,
    )
    results = _fit(plan, progress, "trials", search_alg=searcher, scheduler=schedulers[arguments.scheduler](),
                   num_samples=arguments.num_samples, time_budget_s=plan.seconds)  # fmt: skip
    return Outcome(results=results, progress=progress)


def _fit(plan: Plan, progress: Progress, stage: str, param_space: dict[str, Any] | None = None, **tuning: Any) -> Any:
    """Run a stage by Ray."""
    from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner

    from trainables import DivideAndConquer

    shares = plan.shares

    class Trial(DivideAndConquer):
        @classmethod
        def default_resource_request(cls, config: dict[str, Any]) -> Any:
            from ray.tune import PlacementGroupFactory

            return PlacementGroupFactory([{"CPU": shares.cpus_per_trial, "GPU": shares.gpus_per_trial}])

    Trial.__name__ = Trial.__qualname__ = "DivideAndConquer"
    tuner = Tuner(
        Trial,
        param_space=param_space,
        tune_config=TuneConfig(max_concurrent_trials=shares.concurrent or None, **tuning),
        run_config=RunConfig(
            name=stage,
            storage_path=str(plan.output / plan.name),
            callbacks=[progress],
            verbose=0,
            checkpoint_config=CheckpointConfig(num_to_keep=1, checkpoint_frequency=1, checkpoint_at_end=True),
            failure_config=FailureConfig(max_failures=2),
        ),
    )
    try:
        return tuner.fit()
    finally:
        progress.close()


def _value(result: Any, plan: Plan) -> float | None:
    metrics = result.metrics or {}
    return None if metrics.get("failed_reason") else metrics.get(f"{plan.arguments.metric}_best")


def _final(plan: Plan, tracker: Any, tags: dict[str, str], best: Any, searched: Outcome) -> dict[str, dict[str, Any]]:
    """Retrain winner and published setting on all training classes; score them and the untrained network once."""
    from ray import tune

    from trainables.callbacks import Progress

    def settings(result: Any) -> dict[str, Any]:
        return {name: value for name, value in result.config.items() if name != "run"}

    published = next((r for r in searched.results if all(r.config[n] == v for n, v in plan.point0.items())), None)
    runs = [{**settings(best), "val_share": 0.0, "run": plan.run(role="final", until=int(best.metrics["epoch_best"]))}]
    if published is not None and published.config != best.config and published.metrics.get("epoch_best"):
        until = int(published.metrics["epoch_best"])
        runs.append({**settings(published), "val_share": 0.0, "run": plan.run(role="published", until=until)})
    runs.append({**settings(best), "val_share": 0.0, "run": plan.run(role="untrained")})
    progress = Progress(
        tracker,
        search=plan.name,
        metric=plan.arguments.metric,
        varied=list(plan.space.domains),
        tags=tags,
        planned=len(runs),
    )
    print(
        "\nthe winner and the published setting are retrained on all training classes, and the test classes scored once"
    )
    results = _fit(plan, progress, "final", param_space={"whole": tune.grid_search(runs)}, num_samples=1)
    found = {
        r.config["whole"]["run"]["role"]: r.metrics for r in results if r.metrics and "test/recall_at_1" in r.metrics
    }
    if published is not None and published.config == best.config and "final" in found:
        found["published"] = found["final"]
    return found


def _say_end(plan: Plan, tracker: Any, searched: Outcome, best: Any, final: dict[str, dict[str, Any]] | None) -> None:
    from dcml_tune.tracking import compare_url, ui_command

    if best is None:
        print("\nno trial came to an end; the reasons stand in the table above")
        return
    metric = plan.arguments.metric
    chosen = {name: best.config[name] for name in plan.space.domains}
    rows = searched.progress.rows.values()
    states = [row["state"] for row in rows]
    full = sum(TrialConfig(**row["settings"]).nb_epochs for row in rows)
    print(f"\nbest of {len(states)} trials ({states.count('pruned')} pruned, {states.count('failed')} failed; "
          f"{sum(row['epoch'] for row in rows)} of {full} epochs run)")  # fmt: skip
    print("  " + ", ".join(f"{name}={value:.4g}" for name, value in chosen.items()))
    print(
        f"  {metric} {100 * best.metrics[f'{metric}_best']:.1f} % after epoch {int(best.metrics['epoch_best'])} (held-out training classes)"
    )
    for role, measures in sorted((final or {}).items()):
        print(
            f"  test, {role:9s}: recall@1 {100 * measures['test/recall_at_1']:.1f} %, MAP@R {100 * measures['test/map_at_r']:.1f} %"
        )
    settings = {n: v for n, v in best.config.items() if n not in ("run", "dataset")}
    print("\ntrain it again:\n  " + command("dcml_tune.train", plan.arguments.dataset, *settings_to_flags(settings)))
    print("open MLflow:\n  " + ui_command(plan.uri))
    runs = [tracker.run_id(searched.progress.key(trial)) for trial in searched.progress.rows]
    if tracker.experiment_id and all(runs):
        print("  compare the trials: " + compare_url(plan.uri, tracker.experiment_id, runs))
    print(f"open the Optuna dashboard:\n  {Path(sys.executable).parent / 'optuna-dashboard'} {plan.study}")


def writable(directory: Path) -> Path:
    """An output directory, made and absolute.

    Raises:
        SettingError: if it cannot be written.
    """
    directory = directory.expanduser().absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SettingError(f"--output-dir {directory}: cannot be written ({error.strerror}); choose another") from None
    return directory


def refuse_existing(directory: Path) -> None:
    """Nothing is written over.

    Raises:
        SettingError: if the directory of a search or run is there already.
    """
    if directory.exists():
        raise SettingError(f"--name {directory.name}: {directory} exists; choose another name")


def seconds(text: str | None) -> float | None:
    """Seconds of such as 90s, 30m, 10h; None for None."""
    if text is None:
        return None
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:])
    try:
        value = float(text[:-1]) * (unit or 0)
    except ValueError:
        value = 0
    if not 0 < value < math.inf:
        raise SettingError(f"--time-budget {text}: must be a number and a unit, such as 90s, 30m or 10h; give one")
    return value


if __name__ == "__main__":
    run_command(main)
