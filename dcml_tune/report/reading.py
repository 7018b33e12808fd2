"""Reading of a search from disk and MLflow, without changing either."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field

from dcml_tune.config.errors import SettingError, unknown_name
from dcml_tune.config.trial import TrialConfig
from dcml_tune.report.search_data import SearchData, Trial
from dcml_tune.runs import ledger
from dcml_tune.runs.paths import mlflow_address
from dcml_tune.runs.record import Record, all_records
from dcml_tune.runs.study import KEY, by_launch, read_study
from dcml_tune.tracking.uris import absolute_uri
from dcml_tune.utils.files import CorruptFileError, read_checksummed
from dcml_tune.utils.redaction import redact
from dcml_tune.utils.stored import Count, Finite, Scalar, Stored, printable

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from dcml_tune.tracking.reading import StoredRun

T = TypeVar("T")

_EXPERIMENT = "dcml_tune"
_STATES: dict[str, Any] = {"COMPLETE": "done", "PRUNED": "pruned", "WAITING": "interrupted", "RUNNING": "running"}


def known_search(directory: Path) -> Path:
    """Check that a directory is that of a search, and return it.

    Raises:
        SettingError: if it is not; the message names the searches beside it.
    """
    output, name = directory.parent, directory.name
    if not (directory / "search.json").is_file():
        known = [record.name for record in all_records(output)[0]]
        if not known:
            raise SettingError(f"{output}: holds no search; give --output-dir")
        raise SettingError(f"{unknown_name('search', name, known)} in {output}; --output-dir says where searches are")
    return directory


def recorded_uri(directory: Path) -> str:
    """Address of the MLflow store of a search: that which it was given, or that in its output directory."""
    uri = _record(directory).asked["flags"].get("tracking_uri")
    return absolute_uri(uri) if uri and "***" not in uri else mlflow_address(directory.parent)


def read_search_data(directory: Path, uri: str) -> SearchData:
    """Read a search. Parts that cannot be read are missing, and `SearchData.problems` says why.

    Raises:
        SettingError: if the record of the search cannot be read.
    """
    record = _record(directory)
    problems: list[str] = []
    frozen = _attempt(lambda: read_study(directory), problems, "The Optuna study") or []
    whole = _settings_of(record)
    known = [trial for trial in frozen if KEY in trial.user_attrs]
    found = _attempt(lambda: [_trial(each, whole) for each in known if each.state.name in _STATES], problems, "A trial")
    return SearchData(
        directory=directory,
        record=record,
        trials=sorted(found or [], key=lambda trial: by_launch(trial.key)),
        failed=sum(each.state.name == "FAIL" for each in known),
        runs=_attempt(lambda: _runs(uri, directory.name), problems, "MLflow") or [],
        problems=problems,
        verdict=_verdict(directory, problems),
        uri=uri,
    )


def read_ledger(file: Path) -> list[dict[str, Any]] | None:
    """The entries of a ledger; None if there is no file. An invalid line becomes a dictionary with its text as `torn`."""
    if not file.is_file():
        return None
    lines = [line for line in file.read_bytes().splitlines() if line.strip()]
    return [ledger.entry_of(line) or {"torn": printable(line.decode(errors="replace"))} for line in lines]


def _record(directory: Path) -> Record:
    try:
        return Record.open(directory)
    except SettingError as error:  # a report does not resume
        raise SettingError(str(error).removeprefix("--resume ")) from None


def _settings_of(record: Record) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that returns all settings of a trial, given those that were sampled."""
    from search_spaces.space import SearchSpace  # imports optuna, which is slow to import

    given, facts = record.asked["settings"], record.asked["space"]
    try:
        space = SearchSpace.from_json(facts)
    except SettingError:  # a report also shows a search whose space this version does not accept
        return lambda sampled: {**given, **facts["published"], **sampled}
    return lambda sampled: {**given, **space.whole(sampled)}


def _trial(frozen: FrozenTrial, whole: Callable[[dict[str, Any]], dict[str, Any]]) -> Trial:
    return Trial(
        key=frozen.user_attrs[KEY],
        settings=dict(frozen.params),
        config=TrialConfig(**whole(frozen.params)),
        curve={epoch: value for epoch, value in frozen.intermediate_values.items() if epoch > 0},
        state=_STATES[frozen.state.name],
        frozen=frozen,
    )


def _runs(uri: str, name: str) -> list[StoredRun]:
    from dcml_tune.tracking.reading import read_runs

    return read_runs(uri, _EXPERIMENT, search=name)


class _NewClasses(Stored):
    low: Finite | None
    high: Finite | None
    classes: Count | None
    found: str


class _Comparison(Stored):
    control: str
    on: str
    pairs: Count
    difference: Finite
    low: Finite | None
    high: Finite | None
    needed: Count | None
    found: str
    sided: Literal["both", "lower"] = "both"
    unit: str = "pairs"
    new_classes: _NewClasses | None = None


class _Gap(Stored):
    setting: str
    validation: Finite | None
    test: Finite | None


class _Change(Stored):
    setting: str
    was: Scalar = Field(alias="from")
    to: Scalar


class _PutBack(Stored):
    setting: str
    change: str
    changes: list[_Change]
    importance: Finite
    pairs: Count
    difference: Finite | None
    low: Finite | None
    high: Finite | None


class _Ablation(Stored):
    order: str
    winner: str
    settings: list[_PutBack]
    lines: list[str]


class _Verdict(Stored):
    """verdict.json, which `dcml_tune.search.verdict.verdict` returns."""

    format: Count = 1
    metric: str
    winner: str
    lines: list[str] = Field(default_factory=list)
    comparisons: list[_Comparison] = Field(default_factory=list)
    gap: list[_Gap] = Field(default_factory=list)
    ablation: _Ablation | None = None


def _verdict(directory: Path, problems: list[str]) -> dict[str, Any] | None:
    """The verdict of the confirmation; None if there was none."""
    file = directory / "verdict.json"
    if not file.exists():
        return None
    try:
        return read_checksummed(file, _Verdict)
    except CorruptFileError as error:
        problems.append(f"The verdict cannot be read: {error}.")
        return None


def _attempt(read: Callable[[], T], problems: list[str], what: str) -> T | None:
    """Return what `read` returns; if it fails, return None and add the reason to the problems."""
    try:
        return read()
    except Exception as error:  # the page shows the reason and all other parts
        problems.append(f"{what} cannot be read: {redact(' '.join(str(error).split())) or type(error).__name__}.")
        return None
