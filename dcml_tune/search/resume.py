"""The plan of a search that is resumed or extended."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dcml_tune.config.errors import SettingError
from dcml_tune.config.search import SearchConfig
from dcml_tune.runs.moved import follow, output_before, with_images
from dcml_tune.runs.paths import VERDICT, absolute, named_directory, output_directory, writable
from dcml_tune.runs.record import Record
from dcml_tune.runs.storage import Storage
from dcml_tune.runs.storage_address import checked_address
from dcml_tune.runs.stored_record import open_stored, storage_of
from dcml_tune.runs.study_place import recorded_place
from dcml_tune.search.data_identity import images_then_and_now, refuse_missing_images
from dcml_tune.search.request import LaterSeeds, Request, SearchCompleteError
from dcml_tune.search.resumable import resume_command
from dcml_tune.search.resumed_flags import refuse_changes, resumed_flags
from dcml_tune.utils.files import CorruptFileError, read_checksummed
from dcml_tune.utils.stored import printable
from search_spaces import SearchSpace, load_space
from search_spaces.user_file import recorded_name

if TYPE_CHECKING:
    from dcml_tune.search.flags import CommandLine
    from dcml_tune.search.plan import Plan


def resumed_plan(command_line: CommandLine) -> Plan:
    """Return the plan of a search that is resumed or extended.

    Args:
        command_line: names the search.

    Raises:
        SettingError: if there is no search of this name, its images have changed, or a flag differs from the one that the
            search began with.
        SearchCompleteError: if it is finished.
        SearchRunningError: if another process runs it.
    """
    record = _held_record(command_line.config)
    try:
        return _plan_of(record, command_line)
    except BaseException:
        record.release()  # a process that goes on, and asks again in another way, must not find itself
        raise


def _plan_of(record: Record, command_line: CommandLine) -> Plan:
    """The plan of a held record."""
    extends = command_line.config.extend is not None
    old = output_before(record.directory, record.asked)
    asked = record.asked if old is None else follow(record.asked, old, record.directory.parent)
    asked = _with_given_images(asked, command_line.settings)
    refuse_changes(record.name, asked, command_line.given(), extends=extends)
    if record.state.status == "finished" and not extends:
        raise _is_finished(record, asked)
    refuse_missing_images(record.name, asked["settings"])
    later = _later_seeds(record, asked, command_line)
    recorded_place(record.directory, asked, command_line.config.study_uri).check(record.directory)
    from dcml_tune.search.plan import Plan  # torch and Ray, for which the errors above need not wait

    plan = Plan(_request(record, asked, command_line.config, later))
    plan.lines += images_then_and_now(record.name, asked, plan.identity, plan.data.dataset)
    if old is not None:
        plan.lines.append(f"the output directory was {old}; the files of the search are read from its new place")
    plan.changes = {name: asked[name] for name in ("settings", "space", "flags")}
    plan.changes["flags"] = {**asked["flags"], "scratch": plan.config.scratch}
    if later != LaterSeeds():
        plan.changes["later_seeds"] = later.as_json()
    return plan


def _held_record(config: SearchConfig) -> Record:
    """The record of the search that --resume or --extend names, held by this process."""
    flag, word = ("--resume", config.resume) if config.extend is None else ("--extend", config.extend)
    directory = named_directory(flag, word or "", output_directory(config.output_dir))
    storage = storage_of(directory, config.storage)
    if storage is not None:
        writable(directory.parent)
        return open_stored(directory, Storage(checked_address(storage)))
    record = Record.open(directory)
    writable(directory.parent)
    record.hold()
    return record


def _is_finished(record: Record, asked: dict[str, Any]) -> SearchCompleteError:
    state = record.state
    trials = f"{state.ended} of {state.planned} trials"
    why = f" ({state.reason})" if state.reason else ""
    return SearchCompleteError(
        f"--resume {record.name}: it is finished ({trials}); add trials to it "
        f"by --extend {shlex.quote(record.name)} --num-samples {asked['flags']['num_samples']}",
        line=f"search {record.name} is complete, {trials}{why}: nothing is left to run",
    )


def _later_seeds(record: Record, asked: dict[str, Any], command_line: CommandLine) -> LaterSeeds:
    """The final seeds that extensions added, that of this process included.

    Raises:
        SettingError: if --more-final-seeds is given for a search that is not finished or has scored no test classes, or
            together with flags that add trials.
    """
    from dcml_tune.search.confirmation import PUBLISHED  # its statistics, which the list of searches need not wait for

    config, known = command_line.config, LaterSeeds.from_json(asked.get("later_seeds"))
    count = config.more_final_seeds
    if config.extend is None:
        return known
    if count is None:
        return replace(known, winner=None)
    if also := sorted({"num_samples", "space"} & config.model_fields_set):
        raise SettingError(
            f"--more-final-seeds {count}: adds seeds to a known winner, and --{also[0].replace('_', '-')} adds trials, which "
            "may change it; give one of them"
        )
    if record.state.status != "finished":
        raise SettingError(
            f"--more-final-seeds {count}: search {record.name} is not finished; first resume it: {resume_command(record)}"
        )
    if asked["flags"].get("final", "best") != "best" or not (record.directory / VERDICT).exists():
        raise SettingError(
            f"--more-final-seeds {count}: search {record.name} has scored no test classes; start a new one without --final none"
        )
    try:
        winner = str(read_checksummed(record.directory / VERDICT)["winner"])
    except (CorruptFileError, KeyError) as error:
        raise SettingError(f"--more-final-seeds {count}: {printable(str(error))}; the winner must be known") from None
    seeds = asked["flags"].get("final_seeds", SearchConfig.model_fields["final_seeds"].default) + known.count
    name = PUBLISHED if winner == "000" else winner
    return LaterSeeds(count=known.count + count, looks=(*known.looks, seeds), winner=name)


def _request(record: Record, asked: dict[str, Any], config: SearchConfig, later: LaterSeeds) -> Request:
    """The request that a record and the flags of this process make; an extension adds trials, and may widen the space."""
    flags, dataset = resumed_flags(asked, config), asked["settings"]["dataset"]
    flags["metric"] = asked["metrics"]  # the default was another one in earlier versions, and the same on test classes
    flags["test_metric"] = flags.get("test_metric") or asked["metrics"][0].rpartition("/")[2]
    planned = record.state.planned or flags["num_samples"]
    wider = None
    if config.extend is not None and config.more_final_seeds is None:
        planned += config.num_samples
        if config.space:
            given = asked["settings"]
            wider = load_space(dataset, config.space, given.get("arch"), given.get("sz_embedding"))
            flags["space"] = recorded_name(config.space)
    return Request(
        config=SearchConfig(**{**config.model_dump(), **flags, "dataset": dataset}),
        settings=asked["settings"],
        space=recorded_space(record.name, asked["space"]),
        directory=record.directory,
        planned=planned,
        later_seeds=later,
        record=record,
        wider=wider,
    )


def _with_given_images(asked: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The record of a search with the place of its images, and --skip-unreadable, as they are given now."""
    images: dict[str, Any] = {}
    if "dataset_dir" in given:
        images["dataset_dir"] = str(absolute("--dataset-dir", given["dataset_dir"]))
    if given.get("skip_unreadable"):
        images["skip_unreadable"] = True
    if not images:
        return asked
    space = {**asked["space"], "published": with_images(asked["space"]["published"], images)}
    return {**asked, "settings": with_images(asked["settings"], images), "space": space}


def recorded_space(name: str, facts: dict[str, Any]) -> SearchSpace:
    """Return the search space of a record.

    Args:
        name: of the search.
        facts: the space as it was recorded.

    Raises:
        SettingError: if this version does not accept a space that an earlier one accepted.
    """
    try:
        return SearchSpace.from_json(facts)
    except SettingError as error:
        raise SettingError(f"--resume {name}: {error}; this search cannot go on, so start a new one") from None
