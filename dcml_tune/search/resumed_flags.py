"""The flags of a search that is resumed or extended: those that it began with, and those that may change then."""

from __future__ import annotations

import shlex
from typing import Any

from dcml_tune.cli.quantities import AUTO
from dcml_tune.config.errors import SettingError
from dcml_tune.config.search import SearchConfig
from dcml_tune.runs.stores import scratch_directory
from dcml_tune.runs.study_server import without_password
from dcml_tune.search.request import MAY_CHANGE
from dcml_tune.tracking.uris import absolute_uri
from dcml_tune.utils.redaction import redact
from search_spaces.user_file import recorded_name


def resumed_flags(asked: dict[str, Any], config: SearchConfig) -> dict[str, Any]:
    """Return the recorded flags, with those of this process.

    Raises:
        SettingError: if the password of the MLflow server, which is not stored, is missing, or --scratch cannot be used.
    """
    recorded = {"searcher": "optuna", **asked["flags"]}  # which was the default, before there was `auto`
    flags = {name: value for name, value in recorded.items() if name in SearchConfig.model_fields}
    flags |= {flag: getattr(config, flag) for flag in MAY_CHANGE}
    gpus = flags.get("gpus_per_trial")
    if gpus is not None and gpus != AUTO and not asked.get("ranks"):
        flags["gpus_per_trial"] = min(gpus, 1)  # trials of earlier versions held several GPUs and trained on one
    if "tracking_uri" in config.model_fields_set:  # the record has it without its password
        flags["tracking_uri"] = config.tracking_uri
    elif "***" in (flags["tracking_uri"] or ""):
        raise SettingError(
            f"--tracking-uri {flags['tracking_uri']}: its password is not stored; give the whole address"
        )
    for flag in ("study_uri", "scratch"):
        if flag in config.model_fields_set:
            flags[flag] = getattr(config, flag)
    flags["scratch"] = scratch_directory(flags.get("scratch"), asked["settings"].get("dataset_dir"))
    return flags


def refuse_changes(name: str, asked: dict[str, Any], given: dict[str, Any], *, extends: bool) -> None:
    """Refuse a flag that differs from the one that the search began with; repeating one is allowed."""
    known = {**asked["flags"], **asked["settings"], "name": name}
    if known.get("tracking_uri"):
        known["tracking_uri"] = absolute_uri(known["tracking_uri"])  # version 0.1 recorded it as it was given
    for flag, value in given.items():
        if _may_differ(flag, value, asked, extends=extends):
            continue
        if flag == "space":
            value = recorded_name(value)
        if flag == "tracking_uri" and value:
            value = redact(value)
        if flag == "study_uri" and value:
            value = without_password(value)
        if value != known.get(flag):
            shown = "DATASET" if flag == "dataset" else "--" + flag.replace("_", "-")
            remedy = "start a new search" if flag != "final_seeds" else f"add seeds by {_more_seeds_command(name)}"
            raise SettingError(
                f"{shown} {value}: search {name} began with {known.get(flag, 'its default')}; leave the flag out, or {remedy}"
            )


def _more_seeds_command(name: str) -> str:
    return f"--extend {shlex.quote(name)} --more-final-seeds N"


def _may_differ(flag: str, value: Any, asked: dict[str, Any], *, extends: bool) -> bool:
    if flag == "skip_unreadable":
        return bool(value)  # training images must be the same, so it acts on test images alone
    if flag == "searcher" and value == "auto":
        return True  # the searcher that it means was recorded
    if flag == "compile" and value == AUTO:
        return True  # what was measured was recorded as on or off
    if flag == "gpus_per_trial":
        return value == AUTO and asked.get("measured") is not None  # it was measured once, and recorded as a number
    return flag in (*MAY_CHANGE, "dataset_dir", "scratch") or (extends and flag in ("num_samples", "space"))
