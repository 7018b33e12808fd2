"""SearchConfig: how a search is run, as its flags say; the settings of its trials are in `dcml_tune.config.trial`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dcml_tune.config.errors import SettingError, invalid_setting

Duration = Annotated[str, "duration"]
"""Time as text, such as 30m; the command line checks it, and the record of a search holds it as it was given."""

Size = Annotated[str, "size"]
"""Bytes as text, such as 20GB; the command line checks it, and the record of a search holds it as it was given."""


class SearchConfig(BaseModel):
    """Every flag of a search, apart from the settings of its trials. The docstring of a field is the help of its flag.

    `model_fields_set` holds the flags that were given.

    Example:
        >>> SearchConfig(dataset="cars", num_samples=64).confirm
        4

    Raises:
        SettingError: (a ValueError) for an unknown flag or a value out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    dataset: str | None = None
    """emoji (embedded), folder, cub, cars, sop, inshop or vid"""

    # -- what is searched, and how ---------------------------------------------------------------------
    num_samples: Annotated[int, Field(ge=1, le=100_000)] = 8
    """number of trials"""
    searcher: Literal["auto", "local", "optuna", "random"] = "auto"
    """how settings are sampled. optuna: by Optuna's TPE. local: one or two settings of one of the best trials are changed, so
    that epochs are shared; every fourth trial is sampled by TPE. random: independently. auto: local if more than 8 settings
    vary, else optuna"""
    scheduler: Literal["asha", "asha-epochs", "median", "none"] = "asha"
    """how trials are pruned: asha compares, at half and at three quarters of the epochs, trials in the same phase;
    asha-epochs compares all trials at half of the epochs; median and none"""
    metric: list[str] | None = None
    """measure of held-out classes by which trials are compared, each by its best value so far: map_at_r (default),
    recall_at_1 (default with --protocol paper), marp or r_precision, with the prefix `val/`, or `paper/` with --protocol
    paper. Give the flag again for a further metric, such as time/epoch_s: the Pareto-optimal trials are then listed"""
    test_metric: Literal["recall_at_1", "map_at_r", "marp", "r_precision"] | None = None
    """measure by which the winner and its controls are compared on the test classes: recall_at_1 (default), which alone has
    an interval for new classes, map_at_r, marp or r_precision"""
    space: str | None = None
    """what varies. four (the default): the four settings of the division. wide: whole recipes, loss and rates among them.
    Otherwise a Python file that defines SPACE = SearchSpace(...)"""
    warm_start: list[str] | None = None
    """earlier searches on the same images; the sampler learns from their trials"""
    prior: bool = False
    """use the published setting as a prior: sample around it, less often with each trial"""

    # -- budgets ---------------------------------------------------------------------------------------
    gpus_per_trial: float | Literal["auto"] | None = None
    """GPUs per trial: a fraction up to 1 (default 1), or 2 to 8: each run of the search, the final ones included, then trains
    data-parallel on GPUs of one machine, which changes its result as a larger batch does (docs/scale.md). auto: the fraction
    with the highest total throughput, measured in about a minute"""
    max_concurrent: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """maximum number of concurrent trials; default: as many as fit. On a cluster with an autoscaler it brings nodes for so many
    trials; default there: for twice as many as fit, at most a fourth of all"""
    time_budget: Duration | None = None
    """stop trials, confirmation and ablation together after this time, such as 30m or 10h; final scoring comes after it"""
    epoch_budget: Annotated[int, Field(ge=1, le=10**9)] | None = None
    """stop the search after this number of epochs, summed over all trials"""
    patience: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """stop the search after this number of consecutive trials without improvement"""
    trial_timeout: Duration | None = None
    """stop a trial that reports no epoch for this time, such as 20m; default: never"""
    checkpoint_budget: Size | None = None
    """maximum disk space of checkpoints, such as 20GB; the best models are kept"""

    checkpoint_every: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """save the state of a trial after every N-th epoch. A resume trains the epochs since then again; nothing that was
    reported changes. The best model is always saved"""
    deterministic: bool = False
    """take only algorithms that give the same numbers in each run, also on a GPU; slower there"""
    compile: Literal["off", "auto", "on"] = "off"
    """on: compile the training of the backbone by torch.compile, on a GPU with CUDA graphs; the first batches then take a
    minute or more. auto: where a measurement of about two minutes on this machine shows a gain. No effect on the CPU"""
    mps: Literal["off", "on"] = "off"
    """on: trials that share a GPU of this machine go through NVIDIA's Multi-Process Service, which is started for this search. off:
    it is used if it is running"""
    no_share: bool = False
    """compute every epoch in every trial; by default epochs that are the same computation in several trials are computed
    once"""

    # -- confirmation and final scoring ----------------------------------------------------------------
    confirm: Annotated[int, Field(ge=0, le=1000)] = 4
    """number of best settings that are compared again on further held-out classes and seeds, the better half of them on more
    of these than the others; 0: none"""
    folds: Annotated[int, Field(ge=1, le=1000)] | None = None
    """number of sets of held-out classes in the confirmation; default 3"""
    seeds: Annotated[int, Field(ge=1, le=1000)] = 1
    """number of seeds per set of held-out classes; further sets reduce the uncertainty more than further seeds do"""
    controls: Literal["both", "published"] = "both"
    """what the winner is compared with: the published setting, and the same without division (both), or the published setting
    alone"""
    ablate: Annotated[int, Field(ge=0, le=1000)] = 0
    """number of the winner's most important settings that are set back to their published values, one at a time, and compared
    on held-out classes, to see which of them made the difference; 0: none"""
    final: Literal["best", "none"] = "best"
    """best: score the winner and the controls on the test classes; none: do not"""
    final_seeds: Annotated[int, Field(ge=1, le=1000)] = 5
    """number of seeds in final scoring"""
    difference: Annotated[float, Field(ge=0.01, le=100)] = 0.5
    """the smallest difference that matters, in points (hundredths of the metric)"""

    # -- where and how it is run, resumed or repeated --------------------------------------------------
    output_dir: str = "runs"
    """directory of all output"""
    scratch: str | None = None
    """directory on each machine's own disk for the image stores, such as /local/dcml; it is created if it does not exist. Default:
    OUTPUT/store. It does not change the results"""
    storage: str | None = None
    """address such as s3://BUCKET/PREFIX, or file:///PATH, that keeps the search where nodes share no directory: --output-dir is
    then on each node's own disk, and the same command resumes on another machine with an empty one"""
    name: str | None = None
    """name of the search; default: data set and time"""
    resume: str | None = None
    """resume an interrupted search, by its name or the path of its directory; without a name: list the searches that can
    be resumed. Only --output-dir has to be repeated"""
    start_or_resume: str | None = None
    """start the search of this name, or resume it if it was interrupted; exit with code 0 if it is complete. The same command
    may be run any number of times, as a job that is retried or requeued does"""
    extend: str | None = None
    """add --num-samples trials to a search and run them; --space may widen the search space. With --more-final-seeds: add
    seeds to the final scoring of a finished search"""
    more_final_seeds: Annotated[int, Field(ge=1, le=1000)] | None = None
    """with --extend: number of further seeds with which its winner and controls are trained and scored; nothing else runs"""
    repeat_trial: str | None = None
    """train SEARCH/KEY again from its MLflow record and compare its measures; exit code 0 if all are identical"""
    tracking_uri: str | None = None
    """MLflow server; default: OUTPUT/mlflow.db"""
    study_uri: str | None = None
    """PostgreSQL server that holds the Optuna study, postgresql://USER@HOST:PORT/DATABASE; default: a file in the directory of the
    search. Give the password in PGPASSWORD or ~/.pgpass: it is not stored"""
    ray_address: str | None = None
    """a running Ray cluster: HOST:PORT, or auto for that of RAY_ADDRESS; default: that of RAY_ADDRESS if it is set, as in
    a job of Ray; local: start one"""
    wait_for_nodes: Duration = "10m"
    """longest wait for a node that can hold a trial, where the cluster of --ray-address has none yet"""
    submit: bool = False
    """run the search as a job of the Ray cluster whose dashboard is at --ray-address http://HOST:8265, and follow it. Ctrl-C leaves
    the job running. The same command resumes the search"""
    quiet: bool = False
    """print a line per epoch instead of a live table"""
    dry_run: bool = False
    """print what would be run, and exit"""

    def __init__(self, **flags: Any) -> None:
        """Check the flags; see the class."""
        try:
            super().__init__(**flags)
        except ValidationError as error:
            raise SettingError(invalid_setting(error, SearchConfig.model_fields)) from None
