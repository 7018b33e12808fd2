"""`python -m dcml_tune.tracking flush NAME`: deliver the records that a search could not deliver."""

from __future__ import annotations

import logging

from dcml_tune.cli.parser import Parser, run_command
from dcml_tune.cli.quantities import real
from dcml_tune.runs.paths import SPOOL, named_directory, output_directory
from dcml_tune.tracking.recovery import flush
from dcml_tune.tracking.uris import add_flag


def parser() -> Parser:
    """The parser of the command line."""
    made = Parser(
        prog="python -m dcml_tune.tracking",
        description="Deliver the records of a search or run that still wait for MLflow. "
        "Exit codes: 0 everything is delivered, 2 invalid input, 3 records still wait.",
    )
    made.add_argument("action", choices=["flush"])
    made.add_argument("name", help="name of the search or run, or the path of its directory")
    made.add_argument("--output-dir", default="runs", help="directory in which it was written")
    add_flag(made, "MLflow server or database; default: that of the search")
    made.add_argument("--timeout", type=real(0, 86400), default=60.0, help="seconds after which to give up")
    return made


def main(argv: list[str]) -> int:
    """Deliver the waiting records, and return the exit code."""
    given = parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    directory = named_directory("NAME", given.name, output_directory(given.output_dir)) / SPOOL
    left = flush(directory, given.tracking_uri, timeout=given.timeout)
    print(f"{left} records wait in {directory}; is the server up?" if left else "everything is delivered")
    return 3 if left else 0


if __name__ == "__main__":
    run_command(main)
