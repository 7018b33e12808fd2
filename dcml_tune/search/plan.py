"""Plan: a search that was checked. Everything that can be known to be wrong is refused before anything runs.

Above 250 lines because a plan describes its attributes here, and makes the parts of each stage from them.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any, Literal

from dcml_tune.cli.quantities import seconds
from dcml_tune.config.trial import PAPER_LABEL, TrialConfig
from dcml_tune.runs.paths import TRIALS, absolute, new_directory, sqlite_file, writable
from dcml_tune.runs.record import Record, SearchRunningError, refuse_existing
from dcml_tune.runs.storage import Storage
from dcml_tune.runs.stored_lock import StoredLock
from dcml_tune.runs.stored_record import RecordPusher, refuse_stored
from dcml_tune.runs.stores import scratch_directory
from dcml_tune.runs.study_place import new_place, recorded_place
from dcml_tune.runs.trial_files import StoredTrialFiles, TrialFiles
from dcml_tune.search import checks
from dcml_tune.search.budget import Budget
from dcml_tune.search.cluster_checks import check_images_of_nodes
from dcml_tune.search.confirmation import Candidate, candidates, confirmation_units, nb_confirming_runs, wanted_controls
from dcml_tune.search.early_checks import checked_settings
from dcml_tune.search.metrics import metric_names, scheduler_name
from dcml_tune.search.request import MAY_CHANGE, Request
from dcml_tune.search.resource_checks import resources
from dcml_tune.search.trial_runs import TrialRuns
from dcml_tune.utils import tracebacks
from dcml_tune.utils.redaction import redact
from search_spaces import load_space
from search_spaces.user_file import recorded_name
from trainables.cluster import connect
from trainables.known_trial import KnownTrial
from trainables.schedulers import scheduler
from trainables.searcher import Launching, OptunaSearcher, Sampling, StudyOptions, StudyStart
from trainables.watchdog import TrialWatchdog

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler

    from dcml_tune.search.flags import CommandLine


LOCAL_MLFLOW = "MLflow's database stays on this machine, also with --storage; give --tracking-uri the address of a server to keep its files"


def given_plan(command_line: CommandLine, settings: dict[str, Any] | None = None) -> Plan:
    """Return the plan of a new search.

    Args:
        command_line: names the data set.
        settings: what `early_checks.checked_settings` returned, if it was called before.

    Raises:
        SettingError: for anything that cannot work.
    """
    config = command_line.config
    if settings is None:
        settings = checked_settings(command_line)
    assert config.dataset is not None, "checked_settings refuses it"
    space = load_space(config.dataset, config.space, settings.get("arch"), settings.get("sz_embedding"))
    if settings.get("dataset_dir"):
        settings["dataset_dir"] = str(absolute("--dataset-dir", settings["dataset_dir"]))
    settings = {"dataset": config.dataset, **settings}
    name = config.name or f"{config.dataset}-{time.strftime('%Y%m%d-%H%M%S')}"
    directory = new_directory(writable(config.output_dir), name)
    refuse_existing(directory)
    scratch = scratch_directory(config.scratch, settings.get("dataset_dir"))
    return Plan(
        Request(
            config=config.model_copy(update={"scratch": scratch}),
            settings=settings,
            space=space,
            directory=directory,
            planned=config.num_samples,
        )
    )


class Plan:
    """A search that was checked.

    Attributes:
        request: what was asked for.
        config: the flags, with the searcher, the scheduler and the GPUs per trial that the checks chose.
        directory: of the search.
        study: where its Optuna study lies.
        base: the published setting with the settings that were given, without division.
        metrics: by which trials are compared. The first one, `metric`, decides where only one can.
        scores_test: whether the winner and the controls are retrained and scored on the test classes at the end.
        data: images and held-out classes.
        identity: fingerprints of the images.
        space: what varies, restricted to what can work.
        shares: what each trial gets of the machine.
        cluster: the cluster that was joined, with its nodes; None: one is started on this machine.
        measured: the measurement behind `--gpus-per-trial auto`, in words, or None.
        planned: number of trials.
        trial_files: gets the files of trials.
        runs: makes the dictionaries of trials and of later runs.
        controls: names of the settings that the winner is compared with.
        units: folds and seeds of the confirmation; empty if nothing is confirmed.
        later: final seeds that were added to the search after a verdict.
        budget: of time and epochs.
        store_bytes: the disk space that the image stores take, on each node with --scratch.
        checkpoints: the disk space that checkpoints take.
        lines: lines about the search that are printed before it runs.
        changes: entries of the record that a resume replaces.
    """

    def __init__(self, request: Request) -> None:
        """Check everything; see `dcml_tune.search.checks` for the order.

        Raises:
            SettingError: for anything that cannot work.
        """
        flags = request.config
        self.settings, self.directory = request.settings, request.directory
        self.record, self.planned, self.output = request.record, request.planned, request.output
        self.dataset, self.name, self.trials = self.settings["dataset"], self.directory.name, self.directory / TRIALS
        self.study = new_place(self.directory, flags.study_uri)
        if request.record is not None:
            self.study = recorded_place(self.directory, request.record.asked, flags.study_uri)
        self.budget = Budget(
            seconds=seconds(flags.time_budget) if flags.time_budget else None, epochs=flags.epoch_budget
        )
        self.trial_timeout = seconds(flags.trial_timeout) if flags.trial_timeout else None
        self.changes: dict[str, Any] = {}
        if request.record is None:
            self.study.check_new()

        checked = checks.checked_settings(request)
        self.request = request = request.with_searcher(checked.space)
        flags = request.config
        self.base, self.uri, self.store_is_up = checked.base, checked.uri, checked.store_is_up
        self.scores_test = flags.final == "best" and checked.has_test_stage
        given = resources(request, checked)
        self.shares, self.measured, self.dashboard = given.shares, given.measured, given.dashboard
        self.cluster = given.cluster
        self.metrics = metric_names(flags.metric, self.base)
        self.metric = self.metrics[0]
        chosen = {
            "scheduler": scheduler_name(self.metrics, flags, resumes=request.record is not None),
            "gpus_per_trial": given.gpus_per_trial,
            "compile": given.compile,
            "test_metric": flags.test_metric or "recall_at_1",
        }
        self.config = flags = flags.model_copy(update=chosen)
        self.checkpoints = checks.checkpoint_space(request, checked, self.shares)
        images = checks.images(request, checked, scores_test=self.scores_test)
        self.data, self.identity, self.test_lines = images.data, images.identity, images.test_lines
        self.store_bytes = sum(images.store_bytes.values())
        if self.cluster is not None:
            check_images_of_nodes(
                self.base,
                self.identity.compared,
                self.cluster,
                store_bytes=images.store_bytes,
                address=str(checked.address),
            )
        found = checks.search_space(request, self.data)
        self.space, self.published_point, self.starts = found.space, found.published_point, found.starts
        self.controls, self.later = wanted_controls(flags), request.later_seeds
        nb_classes = int(self.data.labels.max()) + 1
        self.units, why_none = confirmation_units(self.base, nb_classes, flags.confirm, flags.folds, flags.seeds)
        self.earlier = checks.earlier_searches(request, images, self.metrics, self.space)
        self.lines = [*found.lines, *why_none, *self.earlier.lines, *given.lines]
        self.runs = TrialRuns(
            search=self.name,
            output=self.output,
            scratch=flags.scratch,
            storage=flags.storage,
            shares=self.shares,
            metric=self.metric,
            varied=tuple(self.space.domains),
            first_seed=self.base.seed,
            old_final_seeds=0 if self.has_seeds_apart else flags.final_seeds,
            images=self.identity.compared,
            shares_epochs=self.checkpoints.shared > 0,
            on_cluster=self.cluster is not None,
            largest_gpu=self.cluster.pool.largest_gpu() if self.cluster is not None else 0,
            save_every=flags.checkpoint_every,
            deterministic=flags.deterministic,
            compiles=flags.compile == "on",
            wait_s=self.trial_timeout / 2 if self.trial_timeout else None,  # a trial that waits reports nothing
        )
        self.trial_files = TrialFiles()
        if flags.storage is not None:
            self.trial_files = StoredTrialFiles(Storage(flags.storage), self.name)
            if sqlite_file(self.uri) is not None:
                self.lines.append(LOCAL_MLFLOW)
        if flags.ablate and not self.ablates:
            self.lines.append("nothing is put back: --protocol paper holds no classes out")
        if flags.prior:
            self.lines.append("prior: the published setting is the prior, strongest in the first trials")

    def compared_on(self) -> str:
        """The classes on which trials are compared, in words."""
        return "held-out training classes" if self.base.protocol == "held_out" else PAPER_LABEL

    @property
    def keep_models(self) -> int | None:
        """Maximum number of models of ended trials that --checkpoint-budget allows; None: all."""
        return self.checkpoints.keep_models

    @property
    def ablates(self) -> int:
        """Number of settings that are put back to the published value after the confirmation."""
        return self.config.ablate if self.base.protocol == "held_out" else 0

    @property
    def has_seeds_apart(self) -> bool:
        """Whether final runs have seeds of their own.

        In searches of earlier versions they began at the seed of the trials. Such runs are not repeated with other seeds,
        because they have scored the test classes.
        """
        if self.record is None or self.record.asked.get("seeds_apart"):
            return True
        return not any(self.trials.glob("final-*"))

    @property
    def final_seeds(self) -> int:
        """Number of seeds of the final stage, those that were added later included."""
        return self.config.final_seeds + self.later.count

    @property
    def adds_seeds(self) -> bool:
        """Whether nothing runs but further final seeds of a winner that is known."""
        return self.later.winner is not None

    # -- the parts of a run ----------------------------------------------------------------------------

    def connect(self) -> str:
        """Start Ray, unless a cluster was joined; returns the address of its dashboard."""
        if self.dashboard is None:
            self.dashboard = connect(None)
        return self.dashboard

    def begin(self) -> Record:
        """Record what was asked for, and that this process runs it; returns the record, held by this process."""
        known = {"data": self.identity.compared, "test": self.identity.test, "test_sizes": self.identity.test_sizes,
                 "output": str(self.output), "name": self.name, "seeds_apart": self.has_seeds_apart}  # fmt: skip
        if self.record is None:
            if self.study.file is None:
                known["study"] = self.study.name
            self.record = self._create({**self._asked(), **known})
        else:
            changes = {**self.changes, **known}
            if self.request.wider is not None:
                changes |= {"space": self.space.as_json(), "flags": {**changes["flags"], "space": self.config.space}}
            self.record.ask(**changes)
        self.record.begin(planned=self.planned)
        tracebacks.keep_in(self.directory)
        self.trials.mkdir(exist_ok=True)
        self.trial_files.get_all(self.trials)
        return self.record

    def _create(self, asked: dict[str, Any]) -> Record:
        if self.config.storage is None:
            return Record.create(self.directory, asked)
        storage = Storage(self.config.storage)
        lock = StoredLock(self.directory, storage)
        record = Record.create(self.directory, asked, lock)
        refuse_stored(storage, self.name, SearchRunningError)  # another process was quicker, and has ended
        lock.has_record()
        return record

    def pusher(self, record: Record) -> RecordPusher | None:
        """Return what keeps the record in the storage while this process runs the search; None without --storage."""
        lock, files = record.stored_lock, self.trial_files
        if lock is None or not isinstance(files, StoredTrialFiles):
            return None
        return RecordPusher(lock, self.directory, self.study.file, files.remove_rest)

    def check_held(self) -> None:
        """Make sure that no other process runs the search by now; see `Record.check_held`."""
        if self.record is not None:
            self.record.check_held()

    def _asked(self) -> dict[str, Any]:
        """What a new search records of its command line; passwords are left out."""
        flags = self.config.model_dump(exclude={"dataset", *MAY_CHANGE})
        flags["tracking_uri"] = redact(self.uri) if flags["tracking_uri"] else None
        flags["study_uri"] = None if self.study.file is not None else self.study.shown
        flags["space"] = recorded_name(flags["space"])
        asked: dict[str, Any] = {"flags": flags, "settings": self.settings, "space": self.space.as_json()}
        asked |= {"metrics": self.metrics, "ranks": self.shares.ranks}
        return asked | ({"measured": self.measured} if self.measured is not None else {})

    def searcher(self) -> OptunaSearcher:
        """Return the searcher. Its study is created, or opened: then running trials are queued again."""
        return OptunaSearcher(
            self.space,
            StudyOptions(
                storage=self.study.address,
                name=self.study.name,
                metrics=self.metrics,
                check=self.check_held,
            ),
            sampling=Sampling(
                sampler=self.config.searcher if self.config.searcher != "auto" else "optuna",
                seed=self.settings.get("seed", 0),
                prior=self.published_point if self.config.prior else None,
            ),
            start=StudyStart(
                points=[self.published_point, *self.starts, *self.earlier.points], earlier=self.earlier.trials
            ),
            launching=Launching(
                run=self.runs.run(),
                trials=self.trials,
                prefixes=self.runs.prefixes,
                infeasible_reason=self.data.cannot_train,
                patience=self.config.patience,
            ),
        )

    def requeue_running(self) -> None:
        """Queue the running trials again, so that a resume continues them."""
        if self.study.file is None or self.study.file.exists():
            self.searcher()

    def scheduler(self, known: list[KnownTrial]) -> TrialScheduler:
        """Return the scheduler, with the results of earlier processes replayed.

        Args:
            known: trials of the study.
        """
        return scheduler(
            self.config.scheduler,
            metric=f"{self.metric}_best",
            epochs=TrialConfig(**self.space.whole(self.published_point)).nb_epochs,
            known=known,
        )

    def guard(self) -> TrialWatchdog:
        """Return the callback that ends a hung trial, and the search before the disk is full."""
        need = self.checkpoints.save_bytes()
        return TrialWatchdog(directory=self.output, need=need, trial_timeout=self.trial_timeout, check=self.check_held)

    def begin_stage(self, record: Record, stage: Literal["search", "confirm", "ablate"]) -> None:
        """Start the clock of a stage. Each has its share of the time budget, counted in runs of all epochs.

        Args:
            record: has the seconds that were used before.
            stage: that begins.
        """
        confirming = nb_confirming_runs(
            self.config.confirm, len(self.units), len(self.controls), controls_compete=not self.scores_test
        )
        runs = {
            "search": self.planned,
            "confirm": confirming,
            "ablate": self.ablates * max(1, len(self.units)),
        }
        until = itertools.accumulate(runs.values())
        share = dict(zip(runs, until, strict=True))[stage] / sum(runs.values())
        self.budget.begin_stage(share=share, elapsed_s=record.state.elapsed_s)

    def candidates(self, trials: list[KnownTrial]) -> list[Candidate]:
        """Return the settings that can win: the best trials, and the controls."""
        published = self.space.whole(self.published_point)
        return candidates(trials, published, max(1, self.config.confirm), self.controls)
