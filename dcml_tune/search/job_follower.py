"""The log of a job of Ray, printed until the job ends, and the exit code that follows from its end."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

from dcml_tune.search.outcome import EXIT_INCOMPLETE, EXIT_OK
from dcml_tune.utils.redaction import redact
from dcml_tune.utils.signals import raise_if_signalled
from dcml_tune.utils.stored import printable

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

FOLLOWED_AGAIN_S = 300.0
"""Seconds for which the dashboard is tried again after its connection broke."""

_AGAIN_S = 2.0
_LONGEST = 300


class Follower:
    """Prints the log of a job until its end."""

    def __init__(self, client: JobSubmissionClient, job: str) -> None:
        """Prepare to follow a job; nothing is printed yet.

        Args:
            client: connected to the dashboard.
            job: id of the job.
        """
        self.client, self.job = client, job
        self.printed = 0

    def run(self) -> int:
        """Follow the job, also over breaks of the connection; returns its exit code.

        Raises:
            RuntimeError: if the dashboard does not answer for minutes.
        """
        from ray.job_submission import JobStatus

        end: float | None = None
        while True:
            before = self.printed
            try:
                asyncio.run(self._print_log())
                info = self.client.get_job_info(self.job)
                if info.status.is_terminal():
                    break
                end = None
            except (TimeoutError, RuntimeError, OSError) as error:
                raise_if_signalled()
                end = end if end is not None and self.printed == before else time.monotonic() + FOLLOWED_AGAIN_S
                if time.monotonic() > end:
                    raise RuntimeError(one_line(error)) from None
            time.sleep(_AGAIN_S)
        if info.status == JobStatus.SUCCEEDED:
            return EXIT_OK
        if info.status == JobStatus.STOPPED:
            print("the job was stopped", file=sys.stderr)
            return EXIT_INCOMPLETE
        code: int | None = info.driver_exit_code
        if code is None or not 0 < code < 128:
            print(printable(f"the job failed: {redact(' '.join(str(info.message).split()))}"), file=sys.stderr)
            return 1
        return code

    async def _print_log(self) -> None:
        """Print what is new in the log; each connection gets it from its beginning."""
        seen = 0
        async for text in self.client.tail_job_logs(self.job):
            new = text[max(0, self.printed - seen) :]
            seen += len(text)
            if new:
                print(new, end="", flush=True)
            self.printed = max(self.printed, seen)


def one_line(error: BaseException) -> str:
    """An error of the cluster or of its client in one line without passwords."""
    return redact(" ".join(str(error).split()))[:_LONGEST]
