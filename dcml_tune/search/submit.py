"""--submit: the search runs as a job of a Ray cluster, and this process follows it.

The job needs no files of this machine: dcml_tune is installed on the cluster, and images and output are on storage that its nodes
share. So no working directory is uploaded, and all paths must be absolute.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import WORDS_FOR_WEIGHTS
from dcml_tune.runs.stores import SCRATCH
from dcml_tune.runs.study_server import without_password
from dcml_tune.search.job_follower import Follower, one_line
from dcml_tune.search.outcome import EXIT_INCOMPLETE
from dcml_tune.utils.redaction import redact
from dcml_tune.utils.signals import SearchStopped, signal_handled
from dcml_tune.utils.stored import printable

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from dcml_tune.search.flags import CommandLine

_ANSWERS_S = 10.0
_STOP_S = "60"  # between SIGTERM and SIGKILL of `ray job stop`; Ray's default is 3
_OWN_FLAGS = {"--submit": 0, "--ray-address": 1, "--name": 1}  # number of words that follow
_FOUR_SLASHES = "sqlite:////"


def submit(argv: list[str], command_line: CommandLine) -> int:
    """Submit the search as a job, print its log, and return its exit code.

    Args:
        argv: the command line.
        command_line: the same, parsed.

    Raises:
        SettingError: if the command cannot work on another machine, or no cluster takes it.
    """
    address = dashboard_address(command_line)
    words = job_words(argv, command_line)
    name = _search_name(words)
    job = f"{re.sub(r'[^A-Za-z0-9_.-]', '-', name)}-{uuid.uuid4().hex[:8]}"
    entrypoint = shlex.join(["python", "-m", "dcml_tune.search", *words])
    with _without_ray_addresses():
        client = _client(address)
        try:
            client.submit_job(
                entrypoint=entrypoint,
                submission_id=job,
                runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": _STOP_S}},
            )
        except (RuntimeError, OSError) as error:
            raise SettingError(f"--ray-address {address}: the job was not accepted ({one_line(error)})") from None
    print(printable(f"job {job} of {address}: {entrypoint}"), flush=True)
    try:
        return Follower(client, job).run()
    except SearchStopped as stop:
        signal_handled()
        print(f"\n{stop}: the job runs on\n{_hints(address, job)}", file=sys.stderr)
        return EXIT_INCOMPLETE
    except (RuntimeError, OSError) as error:
        print(f"\nthe job cannot be followed any longer ({one_line(error)})\n{_hints(address, job)}", file=sys.stderr)
        return EXIT_INCOMPLETE


def dashboard_address(command_line: CommandLine) -> str:
    """Return the address of the cluster's dashboard.

    Raises:
        SettingError: if --ray-address does not give it, or it holds a login.
    """
    given = command_line.config.ray_address or os.environ.get("RAY_API_SERVER_ADDRESS", "")
    try:
        parts = urlsplit(given)
        is_right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_right = False
    if not is_right or "@" in given:
        raise SettingError(
            f"--ray-address {redact(given) or repr('')}: with --submit it must be the address of the cluster's dashboard, such as "
            "http://HOST:8265"
        )
    return given.rstrip("/")


def job_words(argv: list[str], command_line: CommandLine) -> list[str]:
    """Return the command line of the job, which can be run again: a new search gets --start-or-resume.

    Raises:
        SettingError: for a path that is not absolute, a password, or a command that is no search.
    """
    config = command_line.config
    if config.resume == "" or config.repeat_trial is not None:
        raise SettingError(
            "--submit: only a search can be a job; leave --submit out, and log in to a node of the cluster"
        )
    _refuse_paths_of_this_machine(argv, command_line)
    for flag, uri, bare in (
        ("--tracking-uri", config.tracking_uri, redact(config.tracking_uri or "")),
        ("--study-uri", config.study_uri, without_password(config.study_uri) if config.study_uri else ""),
    ):
        if uri and uri != bare:
            raise SettingError(
                f"{flag} {redact(uri)}: the command of a job is shown in Ray's dashboard, its password, too; leave it out, and "
                "give it in the environment of the cluster (docs/cluster.md)"
            )
    words = _without(argv, _OWN_FLAGS)
    if config.resume is None and config.extend is None and config.start_or_resume is None:
        words += ["--start-or-resume", config.name or f"{config.dataset}-{time.strftime('%Y%m%d-%H%M%S')}"]
    return words


def _refuse_paths_of_this_machine(argv: list[str], command_line: CommandLine) -> None:
    config, settings = command_line.config, command_line.settings
    given = {"--output-dir": config.output_dir, "--dataset-dir": settings.get("dataset_dir"), "--space": config.space}
    given[SCRATCH] = config.scratch
    if config.space in ("four", "wide"):
        del given["--space"]
    if settings.get("weights") not in (None, "", *WORDS_FOR_WEIGHTS):
        given["--weights"] = settings["weights"]
    for flag, text in given.items():
        if text and not Path(str(text)).is_absolute() and not str(text).startswith("~"):
            where = "the disk of each node" if flag == SCRATCH else "the storage that the nodes of the cluster share"
            raise SettingError(
                f"{flag} {text}: the job runs in another directory and on another machine; give the absolute path on {where}"
            )
    if (config.tracking_uri or "").startswith("sqlite:") and _FOUR_SLASHES not in " ".join(argv):
        raise SettingError(
            f"--tracking-uri {config.tracking_uri}: give sqlite:////FILE with the absolute path on the cluster"
        )


def _without(argv: list[str], flags: dict[str, int]) -> list[str]:
    """The words of a command line without some flags and their values."""
    words, skip = [], 0
    for word in argv:
        if skip:
            skip -= 1
        elif word in flags:
            skip = flags[word]
        elif word.partition("=")[0] not in flags:
            words.append(word)
    return words


def _search_name(words: list[str]) -> str:
    """The name of the search in the command line of a job."""
    for flag in ("--start-or-resume", "--resume", "--extend"):
        for place, word in enumerate(words):
            if word == flag:
                return Path(words[place + 1]).name
            if word.startswith(f"{flag}="):
                return Path(word.partition("=")[2]).name
    raise AssertionError("job_words gives one of these flags")


def _client(address: str) -> JobSubmissionClient:
    """Connect to the dashboard; the token is sent only if it is asked for.

    Raises:
        SettingError: if nothing answers there, it is no dashboard of Ray, or the token is missing or wrong.
    """
    import requests
    from ray.job_submission import JobSubmissionClient

    from trainables.ray_files import token_file

    headers: dict[str, str] = {}
    try:
        if requests.get(f"{address}/api/version", timeout=_ANSWERS_S).status_code in (401, 403):
            file = token_file()
            token = os.environ.get("RAY_AUTH_TOKEN") or (file.read_text().strip() if file.is_file() else "")
            if not token:
                raise SettingError(
                    f"--ray-address {address}: the cluster asks for a token, and there is none in RAY_AUTH_TOKEN or {file}; give "
                    "the output of `ray get-auth-token` on its head"
                )
            headers["Authorization"] = f"Bearer {token}"
        return JobSubmissionClient(address, headers=headers)
    except requests.RequestException as error:
        raise SettingError(
            f"--ray-address {address}: nothing answers ({one_line(error)}); correct the address"
        ) from None
    except (RuntimeError, ConnectionError, ValueError) as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError(f"--ray-address {address}: no dashboard of Ray takes the job ({one_line(error)})") from None


def _hints(address: str, job: str) -> str:
    ray = shlex.join(["ray", "job", "logs", "--address", address, "--follow", job])
    return f"  follow it: {ray}\n  stop it:   {shlex.join(['ray', 'job', 'stop', '--address', address, job])}"


@contextmanager
def _without_ray_addresses() -> Iterator[None]:
    """Hide addresses in the environment, which Ray would take instead of that of --ray-address."""
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    hidden: dict[str, Any] = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
