"""A child process of the GPU probe, seen from its parent."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any

from pydantic import Field

from dcml_tune.utils.stored import Count, Finite, Stored, checked, parse, printable


class ProbeError(RuntimeError):
    """Trials could not be measured. The message is one line with the reason."""


class _Answer(Stored):
    """A line from a child process: that it is ready, why it failed, or what it measured."""

    ready: bool = False
    failed: str | None = None
    images_per_s: Annotated[Finite, Field(gt=0)] | None = None
    allocated: Count | None = None
    reserved: Count | None = None
    used: Count | None = None
    total: Count | None = None


class Child:
    """A child process that trains."""

    def __init__(self, process: subprocess.Popen[str], errors: Any) -> None:
        self.process, self._errors = process, errors

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # `answer` raises with the reason why it ended
            print(line, file=self.process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        """Wait for a line from it.

        Raises:
            ProbeError: if it failed, ended, or its line is invalid.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        try:
            facts = checked(_Answer, parse(line) if line else {"failed": self._last_words()})
        except ValueError as error:
            raise ProbeError(f"its answer cannot be read ({error})") from None
        if facts.failed is not None:
            raise ProbeError(printable(facts.failed))
        return facts.model_dump(exclude_defaults=True)

    def _last_words(self) -> str:
        status = self.process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        return lines[-1] if lines else f"its process ended with status {status}"


@contextmanager
def child_process() -> Iterator[Child]:
    """A child process that is killed at the end of the block, also after an exception."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "dcml_tune.search.gpu_probe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            yield Child(process, errors)
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]
