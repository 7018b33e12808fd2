"""`python -m dcml_tune.train DATASET`: one setting, with the same trainer and tracking as a search, and no Ray."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcml_tune.commandline import Parser, add_settings, given_settings, run_command
from dcml_tune.config import TrialConfig
from dcml_tune.interruption import SearchStopped, stopped_by_signals
from dcml_tune.plan import writable
from dcml_tune.record import refuse_existing

if TYPE_CHECKING:
    from dcml_tune.tracking import Tracker
    from dcml_tune.trainer import Trainer


def parser() -> Parser:
    """The command line."""
    made = Parser(prog="python -m dcml_tune.train", description="Train one setting, and measure it every epoch.")
    made.add_argument("dataset", help="emoji (embedded) or folder; cub, cars, sop, inshop, vid come later")
    made.add_argument("--output-dir", default="runs", help="where everything is written")
    made.add_argument("--name", help="name of the run; default: data set and time")
    made.add_argument("--tracking-uri", help="MLflow server; default: OUTPUT/mlflow.db")
    made.add_argument("--score-test", action="store_true", help="score the test classes once, at the end")
    add_settings(made, exclude=("dataset",))
    return made


def main(argv: list[str]) -> int:
    """Train, track, and write the checkpoint."""
    arguments = parser().parse_args(argv)
    config = TrialConfig(**given_settings(arguments))
    output = writable(Path(arguments.output_dir))
    name = arguments.name or f"train-{arguments.dataset}-{time.strftime('%Y%m%d-%H%M%S')}"
    refuse_existing(output / name)
    from dcml_tune.tracking import Tracker, absolute_uri, environment_tags
    from dcml_tune.trainer import NonFiniteLossError, Trainer, TrialData

    uri = absolute_uri(arguments.tracking_uri or f"sqlite:///{output / 'mlflow.db'}")
    TrialData.open(config, output / "store", verify=True)
    trainer = Trainer(config, stores=output / "store")
    for line in [
        trainer.data.dataset.counts(),
        *trainer.data.dataset.notes,
        *trainer.data.notes(),
        *config.without_effect(),
    ]:
        print(line)
    tracker = Tracker.open(output, name, uri=uri)
    tags = environment_tags(trainer.data.dataset.fingerprint, ["python", "-m", "dcml_tune.train", *sys.argv[1:]])
    tracker.start(name, name=name, role="train", params=config.model_dump(), tags=tags)
    if trainer.data.validation is not None:
        tracker.metrics(name, 0, trainer.untrained())
    status, reason = "FINISHED", None
    try:
        with stopped_by_signals():
            _train(trainer, tracker, output / name / "checkpoint", name, score_test=arguments.score_test)
    except NonFiniteLossError as error:
        status, reason = "FAILED", str(error)
    except SearchStopped as stop:
        status, reason = "KILLED", str(stop)
    if reason:
        print(f"{status.lower()}: {reason}", file=sys.stderr)
    tracker.end(name, status, reason=reason)
    tracker.close(10.0 if reason else 60.0)
    return 3 if reason else 0


def _train(trainer: Trainer, tracker: Tracker, checkpoint: Path, name: str, *, score_test: bool) -> None:
    """Run all epochs, save after each, and keep the best model."""
    from dcml_tune.model import best_model

    measures: dict[str, float] = {}
    while trainer.epoch < trainer.config.nb_epochs:
        measures = trainer.run_epoch()
        tracker.metrics(name, trainer.epoch, measures)
        trainer.save(checkpoint)
        print(f"epoch {trainer.epoch}/{trainer.config.nb_epochs}: {_line(measures)}", flush=True)
    if score_test:
        measures |= (test := trainer.test())
        tracker.metrics(name, trainer.epoch, test)
        print(_line(test))
    best = best_model(checkpoint)
    assert best is not None
    tracker.model(name, best, name="train", step=trainer.epoch, metrics=measures)
    print(f"checkpoint: {best}")


def _line(measures: dict[str, Any]) -> str:
    shown = (
        "train/loss",
        "clusters/count",
        "val/recall_at_1",
        "val/map_at_r",
        "test/recall_at_1",
        "test/map_at_r",
        "time/epoch_s",
    )
    return ", ".join(f"{name} {measures[name]:.3f}" for name in shown if name in measures)


if __name__ == "__main__":
    run_command(main)
