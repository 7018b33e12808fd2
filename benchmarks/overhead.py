"""Share of a trial's time that is not spent in its epochs: the goal is below 10 %.

    python benchmarks/overhead.py [--num-samples 8] [--output runs/overhead] [flags of dcml_tune.search]

The program runs a search of `emoji` with the default settings, without pruning, confirmation and final scoring, unless
its results are already there. The records of the search show how the time of its trials was spent. There are two
definitions of a trial's time:

    by MLflow       from the start of the trial's run in MLflow, when its process is ready, to its end
    by the study    from the sampling of its settings, before its process is started, to its end

The other rows are parts of the second one: the start of the process (imports and set-up), the time before the first
epoch (the first trial measures the untrained network), the time between epochs and after the last one (to save the best
weights and the trial, to report, and to wait for the driver). `ours` is the median over the trials of this time,
`reference` that of the whole time of a trial, and the ratio is the median of the shares.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import Row, median, show

NAME, EPOCH = "overhead", "time/epoch_s"


@dataclass(frozen=True, kw_only=True)
class Span:
    """Moments of a trial, in seconds since 1970, and what its epochs took."""

    key: str
    drawn: float
    """Its settings were drawn."""
    started: float
    """Its process was ready, and its run began."""
    reported: list[float]
    """After each epoch, just before it was saved and reported."""
    epochs: list[float]
    """Seconds of each epoch."""
    ended: float
    """Its run ended."""
    told: float
    """The study was told."""

    def parts(self) -> dict[str, float]:
        """Seconds outside its epochs, by where they went."""
        begun = [end - epoch for end, epoch in zip(self.reported, self.epochs, strict=True)]
        between = [after - before for before, after in zip(self.reported, begun[1:], strict=False)]
        return {
            "  start of its process": self.started - self.drawn,
            "  before the first epoch": begun[0] - self.started,
            "  between epochs": sum(between),
            "  after the last": max(self.ended, self.told) - self.reported[-1],
        }


def search(samples: int, output: Path, more: Sequence[str] = ()) -> None:
    """Run the search, unless it is there."""
    state = output / NAME / "state.json"
    if state.exists() and '"finished"' in state.read_text():
        return
    begin = ["emoji", "--name", NAME, "--num-samples", str(samples), "--scheduler", "none", "--final", "none",
             "--confirm", "0", "--quiet", *more]  # fmt: skip
    words = ["--resume", NAME, "--quiet"] if state.exists() else begin
    output.mkdir(parents=True, exist_ok=True)
    with (output / f"{NAME}.log").open("a") as log:
        command = [sys.executable, "-m", "dcml_tune.search", *words, "--output-dir", str(output)]
        subprocess.run(command, stdout=log, stderr=log, check=True)


def spans(output: Path, name: str = NAME) -> list[Span]:
    """The trials of a search that came to their end.

    Raises:
        SystemExit: if there is none.
    """
    from mlflow import MlflowClient

    from dcml_tune.runs.study import KEY, read_study
    from dcml_tune.tracking.reading import read_runs

    uri = f"sqlite:///{output / 'mlflow.db'}"
    client, known = MlflowClient(tracking_uri=uri), {t.user_attrs.get(KEY): t for t in read_study(output / name)}
    found = []
    for run in read_runs(uri, "dcml_tune", search=name):
        trial = known.get(run.key.rpartition("/")[2])
        if trial is None or run.role != "trial" or run.state != "done" or run.ended is None:
            continue
        points = sorted(client.get_metric_history(run.run_id, EPOCH), key=lambda point: point.step)
        found.append(
            Span(
                key=run.key,
                drawn=trial.datetime_start.timestamp() if trial.datetime_start else run.started,
                started=run.started,
                reported=[point.timestamp / 1000 for point in points],
                epochs=[point.value for point in points],
                ended=run.ended,
                told=trial.datetime_complete.timestamp() if trial.datetime_complete else run.ended,
            )
        )
    if not found:
        raise SystemExit(f"{output / name}: no trial is complete")
    return sorted(found, key=lambda span: span.key)


def line(part: str, seconds: list[float], wholes: list[float], goal: str = "") -> Row:
    """The row of a part of the trials' time."""
    shares = [own / whole for own, whole in zip(seconds, wholes, strict=True)]
    return Row(part=part, ours=median(seconds), reference=median(wholes), unit="s", ratio=median(shares),
               least=min(shares), most=max(shares), goal=goal)  # fmt: skip


def lines(found: list[Span]) -> list[Row]:
    """The rows of the table: time outside the epochs against the whole."""
    runs = [span.ended - span.started for span in found]
    wholes = [max(span.ended, span.told) - span.drawn for span in found]
    epochs = [sum(span.epochs) for span in found]

    def outside(name: str, all_of_it: list[float]) -> Row:
        return line(name, [a - b for a, b in zip(all_of_it, epochs, strict=True)], all_of_it, "below 0.1")

    parts = [span.parts() for span in found]
    return [
        outside("not in epochs, by MLflow", runs),
        outside("not in epochs, by the study", wholes),
        *(line(name, [each[name] for each in parts], wholes) for name in parts[0]),
    ]


def main() -> None:
    """Search if need be, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-samples", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("runs/overhead"))
    arguments, more = parser.parse_known_args()
    output = arguments.output.absolute()
    search(arguments.num_samples, output, more)
    found = spans(output)
    show(f"{len(found)} trials of emoji, each {len(found[0].epochs)} epochs", lines(found))


if __name__ == "__main__":
    main()
