"""Plan: a search that was checked. All that can be known to be wrong is refused before anything runs."""

from __future__ import annotations

import shlex
import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcml_tune.cli.parser import given_settings
from dcml_tune.cli.quantities import AUTO, seconds, size
from dcml_tune.config.errors import SettingError, unknown_name
from dcml_tune.config.trial import PAPER_LABEL, SEEDS, TrialConfig
from dcml_tune.config.unused import unused_settings
from dcml_tune.runs.moved import follow, output_before, with_images
from dcml_tune.runs.paths import (
    STORES,
    STUDY,
    TRIALS,
    absolute,
    named_directory,
    new_directory,
    output_directory,
    study_address,
    writable,
)
from dcml_tune.runs.record import Record, refuse_existing
from dcml_tune.runs.results import read_result
from dcml_tune.runs.study_file import mend
from dcml_tune.search.confirmation import CONTROLS, Candidate, FoldSeed, candidates, units
from dcml_tune.search.data_identity import images_then_and_now, refuse_missing_images
from dcml_tune.tracking.uris import absolute_uri, tracking_uri
from dcml_tune.utils import tracebacks
from dcml_tune.utils.files import CorruptFileError, free_bytes, readable_size
from dcml_tune.utils.redaction import redact
from trainables.resources import cluster_address

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler

    from search_spaces import SearchSpace
    from trainables.resources import Shares
    from trainables.run import Role
    from trainables.searcher import KnownTrial, OptunaSearcher
    from trainables.warm_start import WarmStart
    from trainables.watchdog import TrialWatchdog

# Bytes that are left free for the study, the spool and the logs.
_RESERVE = 64 << 20
# What a trial saves after each epoch, in sizes of its model: model and two moments of Adam; the best model.
_STATE, _BEST = 3, 1
# The flags that say how and where a search is run, not what is searched: they may differ at a resume.
# The settings that say which images there are: a data set that cannot be read is refused first of all.
_OF_DATA = ("dataset_dir", "train_classes", "ratio_classes", "allow_partial", "strict")
_FOLDS = 3  # to confirm on, unless others are asked for
_MEASURES = ("recall_at_1", "map_at_r", "marp", "r_precision")
_TIMES = ("time/epoch_s", "time/train_s", "time/cluster_s", "time/evaluate_s")
_MAY_CHANGE = ("resume", "extend", "output_dir", "ray_address", "quiet", "dry_run")


def given_plan(arguments: Any, given: dict[str, Any]) -> Plan:
    """The plan of a new search.

    Args:
        arguments: the command line, with defaults.
        given: the arguments that were given.

    Raises:
        SettingError: for anything that cannot work.
    """
    from dcml_tune import data
    from search_spaces import load_space

    output = output_directory(arguments.output_dir)
    if arguments.name is not None:
        refuse_existing(new_directory(output, arguments.name))
    settings = given_settings(arguments)
    of_data = {name: value for name, value in settings.items() if name in _OF_DATA}
    data.load(TrialConfig(dataset=arguments.dataset, **of_data))
    space = load_space(arguments.dataset, arguments.space)
    if settings.get("dataset_dir"):
        settings["dataset_dir"] = str(absolute("--dataset-dir", settings["dataset_dir"]))
    settings = {"dataset": arguments.dataset, **settings}
    name = arguments.name or f"{arguments.dataset}-{time.strftime('%Y%m%d-%H%M%S')}"
    directory = new_directory(writable(arguments.output_dir), name)
    refuse_existing(directory)
    return Plan(arguments, settings, space, directory, given=given)


def resumed_plan(arguments: Any, given: dict[str, Any]) -> Plan:
    """The plan of a search that goes on.

    Raises:
        SettingError: if there is none of this name, it has ended, another process runs it, its images have changed,
            or a flag is given that differs from that of its beginning.
    """
    from search_spaces import load_space

    flag, word = ("--resume", arguments.resume) if arguments.extend is None else ("--extend", arguments.extend)
    directory = named_directory(flag, word, output_directory(arguments.output_dir))
    record = Record.open(directory)
    writable(directory.parent)
    record.hold()
    old = output_before(record.directory, record.asked)
    asked = record.asked if old is None else follow(record.asked, old, directory.parent)
    images: dict[str, Any] = {}
    if "dataset_dir" in given:
        images["dataset_dir"] = str(absolute("--dataset-dir", arguments.dataset_dir))
    if given.get("skip_unreadable"):
        images["skip_unreadable"] = True
    if images:
        space_now = {**asked["space"], "published": with_images(asked["space"]["published"], images)}
        asked = {**asked, "settings": with_images(asked["settings"], images), "space": space_now}
    name = record.name
    refuse_missing_images(name, asked["settings"])
    _refuse_changes(name, asked, given, extends=arguments.extend is not None)
    if record.state.status == "finished" and arguments.extend is None:
        raise SettingError(
            f"--resume {name}: it is finished ({record.state.ended} of {record.state.planned} trials); add trials to it "
            f"by --extend {shlex.quote(name)} --num-samples {asked['flags']['num_samples']}"
        )
    mend(record.directory / STUDY, record.name)
    flags = {**asked["flags"], **{flag: getattr(arguments, flag) for flag in _MAY_CHANGE}}
    if "tracking_uri" in given:  # the record holds it without its password
        flags["tracking_uri"] = given["tracking_uri"]
    elif "***" in (flags["tracking_uri"] or ""):
        raise SettingError(
            f"--tracking-uri {flags['tracking_uri']}: its password is not stored; give the whole address"
        )
    planned = record.state.planned or flags["num_samples"]
    space, wider = _recorded_space(name, asked["space"]), None
    if arguments.extend is not None and given.get("space"):
        wider = load_space(asked["settings"]["dataset"], arguments.space)
        flags["space"] = str(absolute("--space", arguments.space))
    resumed = type(arguments)(**{**vars(arguments), **flags, "dataset": asked["settings"]["dataset"]})
    extra = arguments.num_samples if arguments.extend is not None else 0
    plan = Plan(resumed, asked["settings"], space, record.directory, record=record, planned=planned + extra,
                wider=wider)  # fmt: skip
    plan.lines += images_then_and_now(name, asked, plan.identity, plan.data.dataset)
    plan.lines += [f"the output directory was {old}, and what lies below it is found here"] if old is not None else []
    plan.changes = {name: asked[name] for name in ("settings", "space", "flags")}
    return plan


def _recorded_space(name: str, facts: dict[str, Any]) -> SearchSpace:
    from search_spaces import SearchSpace

    try:
        return SearchSpace.from_json(facts)
    except SettingError as error:  # an earlier version took it
        raise SettingError(f"--resume {name}: {error}; this search cannot go on, so start a new one") from None


def _refuse_changes(name: str, asked: dict[str, Any], given: dict[str, Any], *, extends: bool) -> None:
    """A search goes on as it began: a flag may be repeated, and not changed."""
    known = {**asked["flags"], **asked["settings"], "name": name}
    if known.get("tracking_uri"):
        known["tracking_uri"] = absolute_uri(known["tracking_uri"])  # version 0.1 wrote it as it was given
    for flag, value in {**given, **given_settings(Namespace(**given))}.items():
        if flag == "skip_unreadable" and value:
            continue  # training images must be what they were, so it acts on test images alone
        if flag in (*_MAY_CHANGE, "dataset_dir") or (flag in ("num_samples", "space") and extends):
            continue
        if flag == "gpus_per_trial" and value == AUTO and asked.get("measured") is not None:
            continue  # it was measured once, and is a number since
        if flag == "space" and value:
            value = str(absolute("--space", value))
        if flag == "tracking_uri" and value:
            value = redact(value)
        if value != known.get(flag):
            raise SettingError(
                f"{'DATASET' if flag == 'dataset' else '--' + flag.replace('_', '-')} {value}: search {name} began with {known.get(flag, 'its default')}; leave "
                "the flag out, or start a new search"
            )


class Plan:
    """A search that was checked.

    Attributes:
        arguments: the command line.
        directory: of the search.
        base: the published setting with what was fixed, without division.
        metrics: by which trials are compared; the first of them, `metric`, decides where there can be only one.
        scores_test: whether winner and published setting are retrained and scored on the test classes at the end.
        data: images, held-out classes.
        identity: what tells the images from others.
        space: what varies, restricted to what can work.
        changes: what else the record of a search that goes on holds from now on.
        shares: what each trial gets of the machine.
        measured: what it was found by, if that was asked for; of a search that goes on, at its beginning.
        planned: number of trials.
        units: what settings are confirmed on; empty if they are not.
        keep_models: most models of ended trials that fit the budget of checkpoints; None: all.
    """

    def __init__(
        self,
        arguments: Any,
        settings: dict[str, Any],
        space: SearchSpace,
        directory: Path,
        *,
        given: dict[str, Any] | None = None,
        record: Record | None = None,
        planned: int | None = None,
        wider: SearchSpace | None = None,
    ) -> None:
        """Check everything: cheap things first, then the cluster if one is named, then the images.

        Args:
            arguments: the command line.
            settings: of a trial, those that were given.
            space: what varies; of a search that goes on, as it was recorded.
            directory: of the search.
            given: the arguments of a new search that were given.
            record: of a search that goes on.
            planned: trials of a search that goes on, those that have ended included.
            wider: what varies from now on in a search that is extended.
        """
        from dcml_tune.clustering.kmeans import check_backend
        from dcml_tune.data.remains import store_tests
        from dcml_tune.models import backbones
        from dcml_tune.tracking.checking import check_store
        from dcml_tune.training.trial_data import TrialData

        self.arguments, self.settings, self.directory, self.record = arguments, settings, directory, record
        self.dataset, self.output, self.name = settings["dataset"], directory.parent, directory.name
        self.trials = directory / TRIALS
        self.deadline: float | None = None
        self.seconds = seconds(arguments.time_budget) if arguments.time_budget else None
        self.trial_timeout = seconds(arguments.trial_timeout) if arguments.trial_timeout else None
        budget = size(arguments.checkpoint_budget) if arguments.checkpoint_budget else None
        self.uri = tracking_uri(arguments.tracking_uri and absolute_uri(arguments.tracking_uri), self.output)
        self.store_is_up = check_store(self.uri)
        self.address = cluster_address(arguments.ray_address)
        self.study = study_address(directory)
        self.planned = planned or arguments.num_samples
        self.dashboard: str | None = None
        self.changes: dict[str, Any] = {}
        self.measured: str | None = record.asked.get("measured") if record is not None else None
        base = self._without_division(space if record is not None else space.restricted(settings))
        if base.protocol == "held_out" and base.val_share == 0:
            raise SettingError(
                "val_share=0: trials are compared on training classes that are held out; give a share, or --protocol "
                "paper to choose on the test classes as the original does"
            )
        self.shares = self._share(base, {**space.published, **settings}.get("nb_clusters", 1))
        if self.address is None:  # another machine's GPUs are not seen from here
            check_backend(base.backend)
        self.base, self.metrics = base, compared_by(arguments.metric, base)
        self.metric = self.metrics[0]
        if len(self.metrics) > 1:
            self._check_several(given or {})
        self.scores_test = arguments.final == "best" and base.protocol == "held_out"
        backbone = backbones.build(base.arch, weights=base.weights, sz_crop=base.sz_crop, frozen_statistics=False)
        numbers = sum(p.numel() for p in backbone.parameters()) + (backbone.dim + 1) * base.sz_embedding
        self.model_bytes = 4 * numbers
        self.keep_models = self._models_within(budget) if budget else None
        self._check_disk(base)
        self.data = TrialData.open(base, self.output / STORES, verify=True)
        self.identity = self.data.identity(base)
        scores = self.scores_test or base.protocol == "paper"
        self.test_lines = store_tests(base, self.data.dataset, self.output / STORES, verify=True) if scores else []
        if record is None:
            space = space.restricted(settings, self.data.cannot_train)
        if wider is not None:
            space = space.extended(wider.restricted(settings, self.data.cannot_train))
        self.space, self.is_wider = space, wider is not None
        self.published_point, self.lines = self.space.published_point(self.data.cannot_train)
        self.units = self._units()
        self.earlier = self._earlier() if record is None and arguments.warm_start else None
        if arguments.prior:
            self.lines.append("prior: the published setting is believed in, in the first trials most")

    @staticmethod
    def _without_division(space: SearchSpace) -> TrialConfig:
        """The setting of trial 0 without division, before the images are known."""
        point, _ = space.published_point()
        return TrialConfig(**{**space.published, **point, "nb_clusters": 1, "force_full_embedding_epoch": None})

    def _check_several(self, given: dict[str, Any]) -> None:
        """With several metrics no trial is pruned: which of two is ahead is not known before the end."""
        if given.get("scheduler", "none") != "none":
            raise SettingError(
                f"--scheduler {given['scheduler']}: with several metrics no trial is pruned; leave it out, or give one --metric"
            )
        self.arguments.scheduler = "none"

    def _earlier(self) -> WarmStart:
        """What earlier searches know."""
        from trainables.warm_start import warm_start

        found = warm_start(
            self.arguments.warm_start,
            self.output,
            data=(self.identity.compared, self.data.dataset.fingerprint_by_time),
            metrics=self.metrics,
            space=self.space,
            infeasible_reason=self.data.cannot_train,
        )
        self.lines += found.lines
        return found

    def _units(self) -> list[FoldSeed]:
        """What settings are confirmed on; empty if they are not."""
        from dcml_tune.data.splits import nb_folds

        asked, base = self.arguments.folds, self.base
        if self.arguments.confirm == 0:
            return []
        if base.protocol == "paper":
            self.lines.append("nothing is confirmed: --protocol paper holds no classes out")
            return []
        most = nb_folds(int(self.data.labels.max()) + 1, base.held_out_share) - 1
        if asked is not None and asked > most:
            raise SettingError(
                f"--folds {asked}: val_share={base.val_share:g} leaves {most} beside that of the search; give at most so "
                "many, or lower --val-share"
            )
        folds = min(_FOLDS if asked is None else asked, most)
        if folds == 0:
            self.lines.append(
                f"nothing is confirmed: val_share={base.val_share:g} leaves no further classes to hold out"
            )
            return []
        return units(folds, self.arguments.seeds, base.seed)

    def _nb_runs_after(self) -> tuple[int, int]:
        """Runs of a unit of the confirmation, and of the final stage."""
        flags = self.arguments
        confirm = flags.confirm + len(CONTROLS) if flags.confirm else 0
        return confirm, 1 + (1 + len(CONTROLS)) * flags.final_seeds if flags.final == "best" else 0

    def _share(self, base: TrialConfig, nb_clusters: int) -> Shares:
        """What each trial gets: of this machine, or of the cluster that is joined."""
        from dcml_tune.search.gpu_probe import full_division, resolve
        from trainables.cluster import cluster_size, connect
        from trainables.resources import share

        asked, address = self.arguments.gpus_per_trial, self.address
        if asked == AUTO and address is not None:
            raise SettingError(
                f"--gpus-per-trial {AUTO}: with --ray-address the GPUs are those of the cluster, and only this machine's can "
                "be measured; give a number, such as 0.5"
            )
        cores = gpus = None
        if address is not None:
            self.dashboard = connect(address)
            cores, gpus = cluster_size()

        most = max(self.planned, *self._nb_runs_after())  # of a stage

        def shares(gpus_per_trial: float | None) -> Shares:
            return share(
                num_samples=most,
                gpus_per_trial=gpus_per_trial,
                max_concurrent=self.arguments.max_concurrent,
                cores=cores,
                gpus=gpus,
            )

        if asked == AUTO:
            if shares(None).gpus_per_trial > 0:
                print("measuring how many trials a GPU takes at once: about a minute", flush=True)
            at_once = min(most, self.arguments.max_concurrent or most)
            # A resume takes what was measured at the beginning.
            asked, self.measured = resolve(full_division(base, nb_clusters), at_once=at_once)
            self.arguments.gpus_per_trial = asked
        return shares(asked)

    # -- what is said ----------------------------------------------------------------------------------

    def head(self) -> str:
        """What is said before anything runs."""
        import numpy as np

        d, shares = self.data, self.shares
        held = 0 if d.validation is None else len(np.unique(d.labels[d.validation]))
        trains = len(np.unique(d.labels[d.train]))
        whole = TrialConfig(**{**self.space.published, **self.published_point, "dataset": self.dataset})
        lines = [
            f"search {self.name}: {d.dataset.counts()}",
            *d.dataset.notes,
            *d.notes(self.base),
            *self.test_lines,
            f"  {held} training classes are held out to compare trials, {trains} train; test classes stay sealed"
            if self.base.protocol == "held_out"
            else f"  {PAPER_LABEL}; {trains} classes train",
            f"  {self.planned} trials by {self.arguments.searcher} and {self.arguments.scheduler}, "
            f"{shares.concurrent} at once ({shares.why})",
            *([f"  {self.measured}"] if self.measured is not None else []),
            *self._head_of_confirmation(),
            *(f"  {name}: {domain}  ({why})" for name, domain, why in self.space.describe()),
            *(f"  {line}" for line in self.lines),
            *(f"  {line}" for line in [*unused_settings(whole, self.settings), *self.space.unused_settings()]),
            f"  disk: checkpoints take up to {readable_size(self.checkpoint_bytes())}, "
            f"{readable_size(free_bytes(self.output))} are free in {self.output}",
        ]
        if self.record is not None:
            lines.append(
                f"  goes on: {self.record.state.ended} trials have ended, {self.record.state.elapsed_s / 60:.1f} min were run"
            )
        return "\n".join(lines)

    def _head_of_confirmation(self) -> list[str]:
        lines = []
        if self.units:
            folds = len({unit.fold for unit in self.units})
            lines.append(
                f"  the best {self.arguments.confirm} and the controls ({', '.join(CONTROLS)}) are then compared on {folds} "
                f"further folds of classes, {len(self.units)} seeds in all, until one is ahead"
            )
        if self.scores_test:
            lines.append(
                f"  winner and controls are trained on all training classes with {self.arguments.final_seeds} seeds, and the "
                "test classes scored once by each"
            )
        return lines

    def compared_on(self) -> str:
        """On which classes trials are compared, in words."""
        return "held-out training classes" if self.base.protocol == "held_out" else PAPER_LABEL

    # -- disk ------------------------------------------------------------------------------------------

    def checkpoint_bytes(self) -> int:
        """Most bytes that checkpoints take: of trials that run, while they save, and models of ended ones."""
        kept = self.planned if self.keep_models is None else min(self.planned, self.keep_models)
        scored = (1 + len(CONTROLS)) * self.arguments.final_seeds if self.scores_test else 0
        return self._running_bytes() + (kept + scored) * _BEST * self.model_bytes

    def save_bytes(self) -> int:
        """Bytes that all running trials write if they save at the same moment."""
        return self.shares.concurrent * (_STATE + _BEST) * self.model_bytes + _RESERVE // 2

    def _running_bytes(self) -> int:
        """A trial that saves has its old state and the new one."""
        return 2 * self.shares.concurrent * (_STATE + _BEST) * self.model_bytes

    def _models_within(self, budget: int) -> int:
        """How many models of ended trials a budget leaves room for."""
        fixed = self._running_bytes() + 2 * _BEST * self.model_bytes
        count = (budget - fixed) // (_BEST * self.model_bytes)
        if count < 1:
            raise SettingError(
                f"--checkpoint-budget {self.arguments.checkpoint_budget}: must be at least "
                f"{readable_size(fixed + _BEST * self.model_bytes)}, for {self.shares.concurrent} trials that run and "
                "one model that is kept; raise it, or lower --max-concurrent"
            )
        return int(count)

    def _check_disk(self, base: TrialConfig) -> None:
        """Refuse a search that would fill the disk."""
        from dcml_tune.training.trial_data import TrialData

        stores = TrialData.needed_bytes(base, self.output / STORES)
        need = stores + self.checkpoint_bytes() + _RESERVE
        free = free_bytes(self.output)
        if self.record is None and need > free:
            raise SettingError(
                f"--output-dir {self.output}: the search needs {readable_size(need)} there (image store "
                f"{readable_size(stores)}, checkpoints {readable_size(self.checkpoint_bytes())}) and "
                f"{readable_size(free)} are free; free some space, choose another directory, or bound the checkpoints "
                "by --checkpoint-budget"
            )
        if self.record is not None and self.save_bytes() + _RESERVE > free:
            raise SettingError(
                f"--output-dir {self.output}: {readable_size(free)} are free, and the next checkpoints need "
                f"{readable_size(self.save_bytes() + _RESERVE)}; free some space there"
            )

    # -- what is run -----------------------------------------------------------------------------------

    def connect(self) -> str:
        """Start Ray, unless a cluster was joined; returns the address of its dashboard."""
        from trainables.cluster import connect

        if self.dashboard is None:
            self.dashboard = connect(None)
        return self.dashboard

    def begin(self) -> Record:
        """Write down what was asked for, and that this process runs it."""
        known = {"data": self.identity.compared, "test": self.identity.test, "test_sizes": self.identity.test_sizes,
                 "output": str(self.output), "name": self.name}  # fmt: skip
        if self.record is None:
            flags = {n: v for n, v in vars(self.arguments).items() if n not in TrialConfig.model_fields}
            flags = {n: v for n, v in flags.items() if n not in _MAY_CHANGE}
            flags["tracking_uri"] = redact(self.uri) if flags["tracking_uri"] else None
            flags["space"] = str(absolute("--space", flags["space"])) if flags["space"] else None
            asked = {"flags": flags, "settings": self.settings, "space": self.space.as_json(), "metrics": self.metrics}
            asked |= {"measured": self.measured} if self.measured is not None else {}
            self.record = Record.create(self.directory, {**asked, **known})
        else:
            changes = {**self.changes, **known}
            if self.is_wider:
                changes |= {"space": self.space.as_json(), "flags": {**changes["flags"], "space": self.arguments.space}}
            self.record.ask(**changes)
        self.record.begin(planned=self.planned)
        tracebacks.keep_in(self.directory)
        self.trials.mkdir(exist_ok=True)
        return self.record

    def searcher(self) -> OptunaSearcher:
        """The searcher, with its study."""
        from trainables.searcher import OptunaSearcher

        return OptunaSearcher(
            self.space,
            storage=self.study,
            study_name=self.name,
            metrics=self.metrics,
            sampler=self.arguments.searcher,
            seed=self.settings.get("seed", 0),
            infeasible_reason=self.data.cannot_train,
            points=[self.published_point, *(self.earlier.points if self.earlier else [])],
            earlier=self.earlier.trials if self.earlier else [],
            belief=self.published_point if self.arguments.prior else None,
            run=self.run(),
            trials=self.trials,
            patience=self.arguments.patience,
        )

    def scheduler(self, known: list[KnownTrial]) -> TrialScheduler:
        """The scheduler, which knows what earlier processes did."""
        from trainables.schedulers import scheduler

        return scheduler(
            self.arguments.scheduler,
            metric=f"{self.metric}_best",
            epochs=TrialConfig(**{**self.space.published, **self.published_point}).nb_epochs,
            known=known,
        )

    def guard(self) -> TrialWatchdog:
        """What ends a hung trial, and the search before the disk is full."""
        from trainables.watchdog import TrialWatchdog

        return TrialWatchdog(directory=self.output, need=self.save_bytes(), trial_timeout=self.trial_timeout)

    def requeue_running(self) -> None:
        """Let trials that were running wait for a resume."""
        if (self.directory / STUDY).exists():
            self.searcher()

    def begin_stage(self, record: Record, *, searches: bool) -> None:
        """Note when the time budget of a stage ends: what is to be confirmed has its share of it, by full runs."""
        if self.seconds is None:
            return
        runs = (self.arguments.confirm + len(CONTROLS)) * len(self.units)
        share = self.planned / (self.planned + runs) if searches else 1.0
        self.deadline = time.time() + share * self.seconds - record.state.elapsed_s

    def out_of_time(self) -> str | None:
        """That the time budget of the stage is used up, or None."""
        is_over = self.deadline is not None and time.time() >= self.deadline
        return "the time budget was used up" if is_over else None

    def why_over(self, epochs: int) -> str | None:
        """Why no more trials are run after so many epochs, or None."""
        if reason := self.out_of_time():
            return reason
        if self.arguments.epoch_budget is not None and epochs >= self.arguments.epoch_budget:
            return "the epoch budget was used up"
        return None

    def run(self, **changes: Any) -> dict[str, Any]:
        """The `run` entry of a trial's dictionary."""
        from trainables import Run

        shares = self.shares
        return Run(
            search=self.name,
            stores=str(self.output / STORES),
            threads=shares.threads_per_trial,
            gpu_fraction=shares.gpus_per_trial or 1.0,
            metric=self.metric,
            varied=tuple(self.space.domains),
            **changes,
        ).as_dict()

    def candidates(self, trials: list[KnownTrial]) -> list[Candidate]:
        """The settings that may be the winner: the best trials, and the controls."""
        return candidates(trials, {**self.space.published, **self.published_point}, max(1, self.arguments.confirm))

    def confirm_run(self, candidate: Candidate, unit: FoldSeed) -> dict[str, Any]:
        """The dictionary of a run that compares a setting on further held-out classes."""
        key = f"confirm-{candidate.slug}-fold-{unit.fold}-seed-{unit.seed}"
        run = self._run_of(key, "confirm", candidate)
        return {**candidate.config, "fold": unit.fold, "seed": unit.seed, "run": run}

    def final_run(self, candidate: Candidate, role: Role, number: int, until: int | None) -> dict[str, Any]:
        """The dictionary of a run that trains a setting on all training classes and scores the test classes.

        Args:
            candidate: the setting.
            role: of the run.
            number: of its seed, from 0.
            until: after how many epochs.
        """
        seed = (self.base.seed + number) % SEEDS
        key = f"final-{candidate.slug}" + (f"-seed-{seed}" if number else "")
        if role == "untrained":
            key = role
        run = self._run_of(key, role, candidate, until=until)
        return {**candidate.config, "val_share": 0.0, "seed": seed, "run": run}

    def _run_of(self, key: str, role: Role, candidate: Candidate, **changes: Any) -> dict[str, Any]:
        return self.run(key=key, role=role, setting=candidate.name, directory=str(self.trials / key), **changes)

    def results(self, runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Key -> what a run measured, of those that have come to their end."""
        from trainables.run import RESULT_FILE

        found = {}
        for key in (each["run"]["key"] for each in runs):
            try:
                found[key] = read_result(self.trials / key / RESULT_FILE)
            except CorruptFileError:
                continue
        return found


def compared_by(asked: list[str] | None, config: TrialConfig) -> list[str]:
    """The whole names of the measures by which trials are compared.

    Raises:
        SettingError: if there is no such measure, the protocol does not have it, or the first is a time.
    """
    found: list[str] = []
    for metric in asked or [_MEASURES[0]]:
        prefix, _, name = metric.rpartition("/")
        if metric not in _TIMES and name not in _MEASURES:
            raise SettingError(f"--metric {metric}: {unknown_name('measure', name, [*_MEASURES, *_TIMES])}")
        if metric not in _TIMES and prefix not in ("", config.compared_on):
            raise SettingError(
                f"--metric {metric}: with --protocol {config.protocol} trials are compared by "
                f"{config.compared_on}/{name}; give that"
            )
        found.append(metric if metric in _TIMES else f"{config.compared_on}/{name}")
    if found[0] in _TIMES:
        raise SettingError(
            f"--metric {found[0]}: the first metric chooses epochs and winner; give one of images before it"
        )
    if len(set(found)) < len(found):
        raise SettingError(f"--metric {', '.join(found)}: one is there twice; give each once")
    return found
