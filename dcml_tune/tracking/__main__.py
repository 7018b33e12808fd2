"""`python -m dcml_tune.tracking flush NAME`: deliver what a search could not."""

from __future__ import annotations

import logging

from dcml_tune.cli.parser import Parser, run_command
from dcml_tune.cli.quantities import real
from dcml_tune.runs.paths import SPOOL, named_directory, output_directory
from dcml_tune.tracking.recovery import flush
from dcml_tune.tracking.uris import add_flag


def parser() -> Parser:
    """The command line."""
    made = Parser(prog="python -m dcml_tune.tracking", description="Deliver records that MLflow has not taken yet.")
    made.add_argument("action", choices=["flush"])
    made.add_argument("name", help="name of the search or run, or the path of its directory")
    made.add_argument("--output-dir", default="runs", help="where it was written")
    add_flag(made, "MLflow server or database, if not the one that the search used")
    made.add_argument("--timeout", type=real(0, 86400), default=60.0, help="seconds after which to give up")
    return made


def main(argv: list[str]) -> int:
    """`python -m dcml_tune.tracking flush NAME`: deliver what a search left behind."""
    given = parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    directory = named_directory("NAME", given.name, output_directory(given.output_dir)) / SPOOL
    left = flush(directory, given.tracking_uri, timeout=given.timeout)
    print(f"{left} records wait in {directory}; is the server up?" if left else "everything is delivered")
    return 3 if left else 0


if __name__ == "__main__":
    run_command(main)
