"""`python -m dcml_tune.search DATASET`: search the settings of a data set and score the best one on the test classes."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from dcml_tune.cli.parser import Parser, add_settings, run_command
from dcml_tune.cli.quantities import as_text, gpus_per_trial, seconds, size, whole
from dcml_tune.config.errors import SettingError
from dcml_tune.runs.paths import STORES, TRIALS, named_directory, output_directory
from dcml_tune.search.outcome import EXIT_INCOMPLETE, EXIT_OK
from dcml_tune.tracking.uris import add_flag, tracking_uri
from dcml_tune.utils.signals import SearchStopped, signal_handled, stopped_by_signals

if TYPE_CHECKING:
    from dcml_tune.search.plan import Plan
    from trainables import DivideAndConquer


def parser() -> Parser:
    """Return the parser of the command line."""
    made = Parser(
        prog="python -m dcml_tune.search",
        description="Search the divide-and-conquer settings of a data set. Trials are compared on held-out training "
        "classes; the winner is retrained on all of them, and the test classes are scored once.",
    )
    made.add_argument("dataset", nargs="?", help="emoji (embedded), folder, cub, cars, sop, inshop or vid")
    _add_search_flags(made)
    _add_budget_flags(made)
    _add_later_stage_flags(made)
    _add_run_flags(made)
    add_settings(made, exclude=("dataset",))
    return made


def _add_search_flags(made: Parser) -> None:
    """Flags that say what is searched, and how."""
    made.add_argument("--num-samples", type=whole(1, 100_000), default=8, help="number of trials")
    made.add_argument(
        "--searcher", choices=["optuna", "random"], default="optuna", help="Optuna's TPE, or random search"
    )
    made.add_argument("--scheduler", choices=["asha", "asha-epochs", "median", "none"], default="asha",
                      help="how trials are pruned: asha compares trials at the phases of each trial's own division, asha-epochs "
                      "at fixed epochs")  # fmt: skip
    made.add_argument("--metric", action="append", help="metric by which trials are compared, each by its best value so far: "
                      "recall_at_1 (default), map_at_r, marp or r_precision, with the prefix `val/`, or `paper/` with --protocol "
                      "paper. Give the flag again for a further metric, such as time/epoch_s: the Pareto-optimal trials are "
                      "then listed")  # fmt: skip
    made.add_argument("--space", help="Python file that defines SPACE = SearchSpace(...)")
    made.add_argument("--warm-start", nargs="+", action="extend", metavar="SEARCH", help="earlier searches on the same images; "
                      "the sampler learns from their trials")  # fmt: skip
    made.add_argument("--prior", action="store_true", help="use the published setting as a prior: sample around it, less with "
                      "each trial")  # fmt: skip


def _add_budget_flags(made: Parser) -> None:
    """Flags that bound the use of GPUs, time and disk."""
    made.add_argument("--gpus-per-trial", type=gpus_per_trial, help="GPUs per trial: a fraction up to 1, or a whole number; "
                      "default 1. auto: the fraction with the highest total throughput, measured in about a minute")  # fmt: skip
    made.add_argument(
        "--max-concurrent", type=whole(1, 10_000), help="maximum number of concurrent trials; default: as many as fit"
    )
    made.add_argument(
        "--time-budget", type=as_text(seconds), help="stop the search after this time, such as 30m or 10h"
    )
    made.add_argument("--epoch-budget", type=whole(1, 10**9), help="stop the search after this number of epochs, summed over all "
                      "trials")  # fmt: skip
    made.add_argument("--patience", type=whole(1, 100_000), help="stop the search after this number of consecutive trials without "
                      "improvement")  # fmt: skip
    made.add_argument("--trial-timeout", type=as_text(seconds), help="stop a trial that reports no epoch for this time, such as "
                      "20m; default: never")  # fmt: skip
    made.add_argument("--checkpoint-budget", type=as_text(size), help="maximum disk space of checkpoints, such as 20GB; the best "
                      "models are kept")  # fmt: skip


def _add_later_stage_flags(made: Parser) -> None:
    """Flags of the confirmation and of final scoring."""
    made.add_argument("--confirm", type=whole(0, 1000), default=4, help="number of best settings that are compared again, with the "
                      "published setting and no division, on further held-out classes and seeds; 0: none")  # fmt: skip
    made.add_argument(
        "--folds", type=whole(1, 1000), help="number of sets of held-out classes in the confirmation; default 3"
    )
    made.add_argument("--seeds", type=whole(1, 1000), default=1, help="number of seeds per set of held-out classes")
    made.add_argument(
        "--final",
        choices=["best", "none"],
        default="best",
        help="score winner and controls on the test classes, or not",
    )
    made.add_argument("--final-seeds", type=whole(1, 1000), default=3, help="number of seeds in final scoring")


def _add_run_flags(made: Parser) -> None:
    """Flags that say where and how a search is run, resumed or repeated."""
    made.add_argument("--output-dir", default="runs", help="directory of all output")
    made.add_argument("--name", help="name of the search; default: data set and time")
    made.add_argument("--resume", nargs="?", const="", metavar="NAME", help="resume an interrupted search, by its name or the path "
                      "of its directory; without a name: list the searches that can be resumed. Only --output-dir has to be "
                      "repeated")  # fmt: skip
    made.add_argument("--extend", metavar="NAME", help="add --num-samples trials to a search and run them; --space may widen the "
                      "search space")  # fmt: skip
    made.add_argument("--repeat-trial", metavar="RUN", help="train SEARCH/KEY again from its MLflow record and compare its "
                      "measures; exit code 0 if all are identical")  # fmt: skip
    add_flag(made, "MLflow server; default: OUTPUT/mlflow.db")
    made.add_argument("--ray-address", help="a running Ray cluster: HOST:PORT, or auto for the cluster of RAY_ADDRESS; default, or "
                      "local: start one")  # fmt: skip
    made.add_argument("--quiet", action="store_true", help="print a line per epoch instead of a live table")
    made.add_argument("--dry-run", action="store_true", help="print what would be run, and exit")


def main(argv: list[str], trainable: type[DivideAndConquer] | None = None) -> int:
    """Check everything, search, score, and print the outcome.

    Args:
        argv: the command line.
        trainable: a subclass of DivideAndConquer to train instead.

    Returns:
        The exit code: 0 complete, 3 incomplete or interrupted.

    Raises:
        SettingError: for input that cannot work (exit code 2).
    """
    # Imported when needed, here and below: `--help` must not wait for torch and Ray.
    arguments, given = parser().parse_args(argv), parser().given(argv)
    if arguments.resume == "":
        from dcml_tune.search.resume import print_resumable

        print_resumable(output_directory(arguments.output_dir))
        return EXIT_OK
    with stopped_by_signals():
        try:
            if arguments.repeat_trial is not None:
                return _repeat(arguments)
            return _search(arguments, given, trainable)
        except SearchStopped as stop:  # before the search began
            signal_handled()
            print(f"stopped ({stop})", file=sys.stderr)
            return EXIT_INCOMPLETE


def _search(arguments: Namespace, given: dict[str, Any], trainable: type[DivideAndConquer] | None) -> int:
    """Check a search, print its plan and run it; returns the exit code."""
    from dcml_tune.search.console import plan_text
    from dcml_tune.search.runner import SearchRunner

    plan = _checked(arguments, given)
    print(plan_text(plan), flush=True)
    return EXIT_OK if arguments.dry_run else SearchRunner(plan, trainable).run()


def _repeat(arguments: Namespace) -> int:
    """Repeat a trial, named by SEARCH/KEY, by a path or by the id of its MLflow run; returns the exit code."""
    from dcml_tune.search.repeat import repeat

    output, name = output_directory(arguments.output_dir), arguments.repeat_trial.rstrip("/")
    search, _, key = name.rpartition("/")
    if search:  # otherwise the id of an MLflow run
        directory = named_directory("--repeat-trial", search.removesuffix(f"/{TRIALS}"), output)
        output, name = directory.parent, f"{directory.name}/{key}"
    uri = tracking_uri(arguments.tracking_uri, output)
    moved_to = getattr(arguments, "dataset_dir", None)
    return repeat(name, uri=uri, stores=output / STORES, dataset_dir=moved_to)


def _checked(arguments: Namespace, given: dict[str, Any]) -> Plan:
    """Return the checked plan of a new, resumed or extended search."""
    from dcml_tune.search.plan import given_plan
    from dcml_tune.search.resume import resumed_plan

    if arguments.resume is not None and arguments.extend is not None:
        raise SettingError("--resume and --extend: give only one of them; --extend resumes the search, too")
    if arguments.resume is not None or arguments.extend is not None:
        return resumed_plan(arguments, given)
    if arguments.dataset is None:
        raise SettingError("DATASET is not given; give one, such as emoji or folder, or --resume NAME")
    return given_plan(arguments, given)


if __name__ == "__main__":
    run_command(main)
