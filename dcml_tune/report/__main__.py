"""`python -m dcml_tune.report NAME`: one page about a search, in any state of the search."""

from __future__ import annotations

from dcml_tune.cli.parser import Parser, run_command
from dcml_tune.runs.paths import named_directory, output_directory
from dcml_tune.tracking.uris import add_flag


def parser() -> Parser:
    """The parser of the command line."""
    made = Parser(
        prog="python -m dcml_tune.report",
        description="Write OUTPUT/NAME/report/index.html, a page that needs no network, and its figures beside it. The "
        "search may be finished, interrupted or running; it is not changed.",
    )
    made.add_argument("name", help="name of the search, or the path of its directory")
    made.add_argument("--output-dir", default="runs", help="directory in which the searches were written")
    add_flag(made, "MLflow server or database; default: that of the search, or OUTPUT/mlflow.db")
    made.add_argument(
        "--no-pictures", action="store_true", help="leave out the pictures of queries, neighbours and clusters"
    )
    return made


def main(argv: list[str]) -> int:
    """Write the page, print its address, and return the exit code."""
    arguments = parser().parse_args(argv)
    from dcml_tune.report import write_report
    from dcml_tune.report.reading import known_search, recorded_uri

    directory = known_search(named_directory("NAME", arguments.name, output_directory(arguments.output_dir)))
    page = write_report(
        directory, uri=arguments.tracking_uri or recorded_uri(directory), pictures=not arguments.no_pictures
    )
    print(f"open in a browser: {page.as_uri()}")
    return 0


if __name__ == "__main__":
    run_command(main)
