"""`python -m dcml_tune.train DATASET`: one setting, with the same trainer and tracking as a search, and no Ray.

Its defaults are the original's, and it takes the original's flags, so that a command of the original runs unchanged.

Above 250 lines because the command line, the run and its resume are one story.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcml_tune.cli import reference_flags
from dcml_tune.cli.parser import Parser, add_settings, command, given_settings, run_command
from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import PAPER_LABEL, TrialConfig
from dcml_tune.config.unused import replaced_by_model, unused_settings
from dcml_tune.runs.paths import CHECKPOINT, absolute, named_directory, new_directory, writable
from dcml_tune.runs.record import refuse_existing
from dcml_tune.runs.recorded_epoch import RecordedEpoch
from dcml_tune.runs.stores import SCRATCH, SCRATCH_HELP, Stores, scratch_directory
from dcml_tune.tracking.uris import add_flag, tracking_uri
from dcml_tune.utils import tracebacks
from dcml_tune.utils.errnos import CANNOT_WRITE
from dcml_tune.utils.locks import HeldError, LockLostError, SharedLock
from dcml_tune.utils.signals import SearchStopped, signal_handled, signals_wait, stopped_by_signals
from dcml_tune.utils.stored import checked, printable, printable_lines

if TYPE_CHECKING:
    from dcml_tune.tracking import Tracker
    from dcml_tune.tracking.wandb import WandbRun
    from dcml_tune.training.overlap import Steps
    from dcml_tune.training.trainer import Trainer

_MAY_CHANGE = ("resume", "output_dir", "scratch", "tracking_uri", "cuda_device", "wandb_enabled")
"""Flags that may be given at a resume."""

_SHOWN = ("train/loss", "clusters/count", "recall_at_1", "map_at_r", "time/epoch_s")


@dataclass(frozen=True, kw_only=True)
class Flags(reference_flags.ReferenceFlags):
    """The command line."""

    output_dir: str
    scratch: str | None
    resume: str | None
    tracking_uri: str | None
    score_test: bool
    deterministic: bool
    settings: dict[str, Any]
    """The settings that were given, not yet checked."""

    @classmethod
    def read(cls, argv: list[str]) -> Flags:
        """Parse a command line; invalid input ends the process with one line and exit code 2."""
        own, settings = parser().flags_and_settings(argv)
        ignored = reference_flags.take_without_meaning(own)
        return cls(**own, without_meaning=ignored, settings=settings)

    def config(self) -> TrialConfig:
        """The settings that were given, over the original's defaults.

        Raises:
            SettingError: for settings that cannot work.
        """
        dataset = self.chosen_dataset
        settings = {**reference_flags.DEFAULTS, **given_settings({**self.settings, "dataset": dataset})}
        if dataset not in ("emoji", "folder") and not settings.get("dataset_dir"):
            settings["dataset_dir"] = reference_flags.DATA_PATH
        return TrialConfig(**settings)


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m dcml_tune.train",
        description="Train one setting, and measure it every epoch. Defaults are those of the original's flags.",
    )
    made.add_argument("dataset", nargs="?", help="cub (default), cars, sop, inshop, vid, emoji (embedded) or folder")
    made.add_argument("--output-dir", default="runs", help="where everything is written")
    made.add_argument(SCRATCH, metavar="DIR", help=SCRATCH_HELP)
    made.add_argument("--name", help="name of the run; default: data set and time")
    made.add_argument("--resume", metavar="NAME", help="continue an interrupted run, by its name or the path of its "
                      "directory; only --output-dir is needed")  # fmt: skip
    add_flag(made, "MLflow server; default: OUTPUT/mlflow.db")
    made.add_argument("--score-test", action="store_true", help="score the test classes once, at the end")
    made.add_argument("--deterministic", action="store_true",
                      help="take only algorithms that give the same numbers in each run, also on a GPU; slower there")  # fmt: skip
    add_settings(made, exclude=("dataset",))
    reference_flags.add_flags(made)
    return made


def main(argv: list[str]) -> int:
    """Train, track, and write the checkpoint."""
    flags = Flags.read(argv)
    output = writable(flags.output_dir)
    run = _Run.new(flags, output) if flags.resume is None else _Run.resumed(flags, flags.resume, output, argv)
    for line in run.head():
        print(printable_lines(line), flush=True)
    try:
        return run.run()
    finally:
        run.alone.release()


class _Run:
    """One training, from its command line to its checkpoint."""

    def __init__(self, name: str, config: TrialConfig, flags: Flags, output: Path) -> None:
        """Check everything, open the data and build the model."""
        from dcml_tune.clustering.kmeans import check_backend
        from dcml_tune.data.remains import store_tests
        from dcml_tune.tracking.checking import check_store
        from dcml_tune.training.devices import keep_freed_memory, set_arithmetic
        from dcml_tune.training.trainer import Trainer
        from dcml_tune.training.trial_data import TrialData

        check_backend(config.backend)
        set_arithmetic(config, deterministic=flags.deterministic)
        device = flags.device
        self.name, self.config, self.flags, self.output = name, config, flags, output
        self.checkpoint = output / name / CHECKPOINT
        self.alone = SharedLock(output / name / "lock")
        self.uri = tracking_uri(flags.tracking_uri, output)
        check_store(self.uri)
        self.scratch = scratch_directory(flags.scratch, config.dataset_dir)
        stores = Stores.below(output, self.scratch)
        opened = TrialData.open(config, stores, verify=True)
        scores = flags.score_test or config.protocol == "paper"
        self.test_lines = store_tests(config, opened.dataset, stores, verify=True) if scores else []
        self.trainer: Trainer = Trainer(config, stores=stores, device=device, name=name)
        if self.trainer.device.type == "cpu":
            keep_freed_memory()
        self.wandb = self._wandb()
        self.untrained: dict[str, float] = {}
        """Measures before training, for step 0 of the curves."""
        self.last: RecordedEpoch | None = None
        """The last epoch; None before the first one, and after a resume from a state that does not have it."""

    @classmethod
    def new(cls, flags: Flags, output: Path) -> _Run:
        """A new run."""
        config, given = flags.config(), flags.run_name
        name = f"train-{config.dataset}-{time.strftime('%Y%m%d-%H%M%S')}" if given is None else given
        refuse_existing(new_directory(output, name))
        from dcml_tune.training.starting_model import trained_model

        restart, begins_with = flags.restart_schedule, None
        if restart and not flags.checkpoint:
            raise SettingError("--restart-schedule: says how --checkpoint begins; give that, too, or leave it out")
        if flags.checkpoint:
            begins_with = trained_model(absolute("--checkpoint", flags.checkpoint), config, restart=restart)
        run = cls(name, config, flags, output)
        run.untrained = run.trainer.untrained() if run.trainer.compares else {}
        if begins_with is not None:
            run.trainer.start_from(begins_with, restart=restart)
        return run

    @classmethod
    def resumed(cls, flags: Flags, name: str, output: Path, argv: list[str]) -> _Run:
        """A run that was interrupted, with the settings that it began with.

        Raises:
            SettingError: if there is none of this name, or other flags are given.
        """
        from dcml_tune.training.saving import has_state, saved_config
        from dcml_tune.utils.checkpoint import CheckpointError

        others = parser().given(argv).keys() - set(_MAY_CHANGE)
        if others:
            flag = sorted(others)[0].replace("_", "-")
            raise SettingError(f"--{flag}: a run continues with its own settings; leave it out")
        begun = named_directory("--resume", name, output)
        directory, output = begun / CHECKPOINT, begun.parent
        if not has_state(directory):
            raise SettingError(
                f"--resume {name}: no interrupted run of this name in {output}; give the name of one, or --output-dir"
            )
        config, saved = saved_config(directory)
        # A run of version 0.1 saved none of these.
        kept: dict[str, Any] = {name: saved.get(name) is True for name in ("deterministic", "score_test")}
        kept |= {"save_model": saved.get("save_model", 1), "scratch": flags.scratch or saved.get("scratch")}
        run = cls(begun.name, config, replace(flags, **kept), output)
        facts = run.trainer.load(run.checkpoint)
        if "recorded" in facts:
            try:
                run.last = checked(RecordedEpoch, facts["recorded"])
            except ValueError as error:
                raise CheckpointError(f"checkpoint {run.checkpoint}: its measures are not valid ({error})") from None
        return run

    def head(self) -> list[str]:
        """The lines that are printed before it trains."""
        config, trained = self.config, self.trainer.data
        flags = self.flags
        lines = [f"run {self.name}: {trained.dataset.counts()}", *trained.dataset.notes, *trained.notes(config)]
        lines += self.test_lines
        replaced = replaced_by_model(restart=flags.restart_schedule) if flags.checkpoint else {}
        lines += unused_settings(config, flags.settings, replaced) + flags.ignored()
        lines.append(trained.split(config))
        if self.trainer.epoch > 0:
            lines.append(f"continues after epoch {self.trainer.epoch}")
        if config.protocol == "paper":
            lines.append(PAPER_LABEL)
            if flags.score_test:
                lines.append("score_test has no effect: protocol=paper scores the test classes every epoch")
        if flags.cuda_device is not None and self.trainer.device.type != "cuda":
            lines.append(f"cuda_device={flags.cuda_device} has no effect: there is no GPU here")
        if not flags.save_model:
            lines.append("save_model=0: no checkpoint is written, so this run cannot be resumed or evaluated")
        return lines

    def run(self) -> int:
        """Train to the end; returns the exit status."""
        from dcml_tune.tracking import Tracker, environment_tags
        from dcml_tune.training.updates import NonFiniteLossError

        words = ["python", "-m", "dcml_tune.train", *sys.argv[1:]]
        data = self.trainer.data.identity(self.config).compared
        tags = environment_tags(data, words) | {"dcml.protocol": self.config.protocol}
        self.checkpoint.parent.mkdir(exist_ok=True)
        tracebacks.keep_in(self.checkpoint.parent)
        try:
            self.alone.acquire(
                lambda holder: print(
                    f"{holder} trained this run; waiting up to {self.alone.lease_s:g} s for a sign of it"
                )
            )
        except HeldError as error:
            raise SettingError(
                f"run {self.name}: {error.holder or 'another process'} trains it; wait for its end, or stop it"
            ) from None
        tracker = Tracker.open(self.output, self.name, uri=self.uri)
        tracker.start(self.name, name=self.name, role="train", params=self.config.model_dump(), tags=tags)
        tracker.metrics(self.name, 0, self.untrained)
        if self.last is not None:
            self._record(tracker, self.last)
        status, reason = "FINISHED", None
        try:
            with stopped_by_signals():
                self._train(tracker)
        except NonFiniteLossError as error:
            status, reason = "FAILED", str(error)
        except LockLostError as lost:
            raise SettingError(f"run {self.name}: {lost}; this process stops and writes nothing more") from None
        except SearchStopped as stop:
            signal_handled()
            status, reason = "INTERRUPTED", str(stop)
        except OSError as error:
            if error.errno not in CANNOT_WRITE:
                raise
            status, reason = "INTERRUPTED", f"{self.checkpoint} cannot be written ({error.strerror}); free some space"
        except BaseException as error:
            tracker.end(self.name, "FAILED", reason=tracebacks.one_line(error))
            tracker.close(10.0)
            raise
        if reason:
            print(f"{status.lower()}: {printable(reason)}", file=sys.stderr)
        if status == "INTERRUPTED" and self.flags.save_model:
            words = ["--resume", self.name, "--output-dir", str(self.output)]
            print(f"go on with:\n  {command('dcml_tune.train', *words)}", file=sys.stderr)
        tracker.end(self.name, status, reason=reason)
        tracker.close(10.0 if reason else 60.0)
        if self.wandb is not None:
            self.wandb.end(failed=reason is not None)
        return 3 if reason else 0

    def _train(self, tracker: Tracker) -> None:
        """Run all epochs, save after each, and keep the best model."""
        from dcml_tune.training.overlap import finish

        trainer, last = self.trainer, self.config.nb_epochs
        begun: Steps[dict[str, float]] | None = None
        while trainer.epoch < last:
            measures = finish(begun or trainer.epoch_steps())
            if trainer.epoch == last and self.flags.score_test and self.config.protocol != "paper":
                measures |= trainer.test()
            self.alone.check()
            division = None if trainer.division is None else trainer.division.name
            self.last = RecordedEpoch.of(trainer.epoch, measures, division, trainer.test_scored_before)
            with signals_wait():  # an epoch is saved and recorded, or neither
                begun, error = self._save(self.last)
                self._record(tracker, self.last)
                print(f"epoch {trainer.epoch}/{last}: {_line(measures)}", flush=True)
            if error is not None:
                raise error
        self._keep(tracker)

    def _save(self, epoch: RecordedEpoch) -> tuple[Steps[dict[str, float]] | None, Exception | None]:
        """Save the last epoch while the next one trains.

        Returns:
            What is left of the next epoch, if it has begun; and the error with which it failed, if it did.
        """
        from dcml_tune.training.overlap import work_during

        trainer, every = self.trainer, self.flags.save_model
        if not every:
            return None, None
        if every > 1 and trainer.epoch % every == 0:
            trainer.save_epoch(self.checkpoint)
        facts: dict[str, Any] = {
            "save_model": every,
            "deterministic": self.flags.deterministic,
            "score_test": self.flags.score_test,
            "scratch": self.scratch,
            "recorded": epoch.model_dump(),
        }
        if trainer.epoch == self.config.nb_epochs:
            trainer.save(self.checkpoint, **facts)
            return None, None
        snapshot, steps, errors = trainer.snapshot(), trainer.epoch_steps(), []

        def work() -> bool:
            try:
                return next(steps)
            except Exception as error:
                errors.append(error)
                return False

        work_during(lambda: snapshot.save(self.checkpoint, **facts), work)
        return steps, errors[0] if errors else None

    def _record(self, tracker: Tracker, epoch: RecordedEpoch) -> None:
        """Record an epoch; the tracker skips what it has recorded before."""
        from dcml_tune.training.divisions import files

        measures = epoch.numbers()
        tracker.metrics(self.name, epoch.epoch, measures)
        if epoch.division is not None:
            for file in files(self.checkpoint, epoch.division):
                tracker.artifact(self.name, file, "divisions")
        if epoch.test_scored_before is not None:
            tracker.tags(self.name, {"dcml.test_scored_before": epoch.test_scored_before})
        if self.wandb is not None:
            self.wandb.metrics(epoch.epoch, measures)

    def _keep(self, tracker: Tracker) -> None:
        """Log the best model, and say where it is."""
        from dcml_tune.models.embedder import best_model
        from dcml_tune.training.saving import remove_state

        best = best_model(self.checkpoint)
        if best is None:
            return
        remove_state(self.checkpoint)
        metrics = {} if self.last is None else self.last.numbers()
        tracker.model(self.name, best, name="train", step=self.trainer.epoch, metrics=metrics)
        print(f"checkpoint: {best}")
        print("measure it on the test classes:\n  " + command("dcml_tune.evaluate", str(best), *self._data_flags()))

    def _data_flags(self) -> list[str]:
        config = self.config
        flags = [
            "--output-dir",
            str(self.output),
            *(["--dataset-dir", config.dataset_dir] if config.dataset_dir else []),
            *([SCRATCH, self.scratch] if self.scratch else []),
        ]
        flags += ["--allow-partial"] * config.allow_partial
        return flags + ["--skip-unreadable"] * config.skip_unreadable

    def _wandb(self) -> WandbRun | None:
        if not self.flags.wandb_enabled:
            return None
        from dcml_tune.tracking.wandb import WandbRun

        return WandbRun(self.name, self.output, self.config.model_dump())


def _line(measures: dict[str, Any]) -> str:
    """The measures of an epoch that are shown, whatever they were measured on."""
    shown = [name for end in _SHOWN for name in measures if name.endswith(end)]
    return ", ".join(f"{name} {measures[name]:.3f}" for name in shown)


if __name__ == "__main__":
    run_command(main)
