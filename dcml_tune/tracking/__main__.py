"""`python -m dcml_tune.tracking flush NAME`: deliver what a search could not."""

from __future__ import annotations

import logging
from pathlib import Path

from dcml_tune.commandline import Parser, run_command
from dcml_tune.tracking import flush


def main(argv: list[str]) -> int:
    """`python -m dcml_tune.tracking flush NAME`: deliver what a search left behind."""
    parser = Parser(prog="python -m dcml_tune.tracking", description="Deliver records that MLflow has not taken yet.")
    parser.add_argument("action", choices=["flush"])
    parser.add_argument("name", help="name of the search or run")
    parser.add_argument("--output-dir", default="runs", help="where it was written")
    parser.add_argument("--tracking-uri", help="MLflow server or database, if not the one that the search used")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds after which to give up")
    given = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    directory = Path(given.output_dir).resolve() / given.name / "tracking"
    left = flush(directory, given.tracking_uri, timeout=given.timeout)
    print(f"{left} records wait in {directory}; is the server up?" if left else "everything is delivered")
    return 3 if left else 0


if __name__ == "__main__":
    run_command(main)
