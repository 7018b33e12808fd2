"""How many trials a GPU takes at once: what `--gpus-per-trial auto` measures.

Trials of one setting are trained for some seconds on synthetic images: one, then two, four and eight at the same time on one
GPU, each in a process of its own as under Ray. What is compared is the sum of their images a second.

`python -m dcml_tune.search.gpu_probe` is one of these processes: `measure` starts it, and says by its standard input what to do.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from dcml_tune.cli.quantities import AUTO
from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.utils.machine import usable_cores
from dcml_tune.utils.stored import Count, Finite, Stored, checked, parse, printable

COUNTS = (1, 2, 4, 8)
HEADROOM = 1.1
"""A trial's share of the memory is at least so many times what it took at most."""
LEAST_GAIN = 0.03
"""Fewer trials at once are taken where more of them bring less than this: each of them ends sooner."""
SECONDS = 6.0
_START_S = 240.0  # to import torch, build the network and warm up, on a busy machine


class ProbeError(RuntimeError):
    """Trials could not be measured: one line with the reason."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one trial took, and how fast it was."""

    images_per_s: float
    allocated: int
    """Most bytes of tensors."""
    reserved: int
    """Most bytes that torch had taken for them."""
    used: int
    """Bytes of the device that were taken at the end, by all processes: with one trial, its context included."""
    total: int
    """Bytes of the device."""


class Choice(NamedTuple):
    """What each trial gets."""

    gpus_per_trial: float | None
    """None: as if nothing had been asked for."""
    why: str
    """A sentence for the head of a search."""


def resolve(config: TrialConfig, *, at_once: int) -> Choice:
    """What `auto` means on this machine, whose GPUs are taken to be alike.

    Args:
        config: of a trial.
        at_once: most trials at the same time on all GPUs.
    """
    import torch

    gpus = torch.cuda.device_count()
    if gpus == 0:
        return Choice(None, f"--gpus-per-trial {AUTO}: without a GPU it means what leaving it out means")
    return probe(config, most=max(1, min(-(-at_once // gpus), usable_cores() // gpus)))


def full_division(base: TrialConfig, nb_clusters: int) -> TrialConfig:
    """A setting with all of its masks from the first epoch; as it is, where it cannot have as many."""
    with suppress(SettingError):
        return base.changed(nb_clusters=nb_clusters, hierarchy_method="none", force_full_embedding_epoch=None)
    return base


def probe(config: TrialConfig, *, most: int = COUNTS[-1], device: str = "cuda", seconds: float = SECONDS) -> Choice:
    """Measure one trial, and several at once as long as their memory fits; where that fails, each gets a whole GPU.

    Args:
        config: of the trials.
        most: more at once are not asked for.
        device: of all of them.
        seconds: of each measurement.
    """
    sums: dict[int, float] = {}
    alone, note = None, ""
    for count in COUNTS:
        if count > most or (alone is not None and not fits(count, alone.total, alone.used)):
            break
        try:
            found = measure(config, count, device=device, seconds=seconds)
        except Exception as error:  # whatever it is, the search goes on without
            if alone is None:
                return Choice(1.0, f"1 GPU each: it could not be measured what a trial takes ({error})")
            note = f"; {count} at once failed ({error})"
            break
        alone = alone or found[0]
        sums[count] = sum(each.images_per_s for each in found)
    assert alone is not None
    choice = choose(alone.total, alone.used, sums)
    return choice._replace(why=choice.why + note)


def choose(total: int, peak: int, sums: dict[int, float]) -> Choice:
    """The fewest trials at once whose sum of images a second is within `LEAST_GAIN` of the largest.

    Args:
        total: bytes of the GPU.
        peak: bytes of it that one trial takes.
        sums: by the number of trials at once; 1 is among them.
    """
    able = {count: rate for count, rate in sums.items() if fits(count, total, peak)}
    best = max(able.values())
    count = min(count for count, rate in able.items() if best < (1 + LEAST_GAIN) * rate)
    each = "1 GPU each" if count == 1 else f"{1 / count:g} of a GPU each"
    numbers, rates = ", ".join(map(str, sums)), ", ".join(f"{rate:,.0f}" for rate in sums.values())
    gives = f"{numbers} trials give {rates} images/s in sum" if len(sums) > 1 else f"1 trial gives {rates} images/s"
    crowded = [str(n) for n in COUNTS if not fits(n, total, peak)]
    room = f", no room for {crowded[0]}" if crowded else ""
    return Choice(1 / count, f"{each}: {gives}; one takes {peak / 1e9:.1f} of {total / 1e9:.0f} GB{room}")


def fits(count: int, total: int, peak: int) -> bool:
    """Whether so many trials, each with its part of the GPU's memory, have enough of it."""
    return count == 1 or total / count >= HEADROOM * peak


def measure(config: TrialConfig, count: int, *, device: str = "cuda", seconds: float = SECONDS) -> list[Measured]:
    """Train so many trials at the same time, each with its part of the cores and capped to its part of the memory.

    Raises:
        ProbeError: if one of them cannot run.
    """
    share = {"share": 1 / count, "threads": max(1, usable_cores() // count)}
    order = {"config": config.model_dump(mode="json"), "device": device, "seconds": seconds, **share}
    with ExitStack() as stack:
        children = [stack.enter_context(_child()) for _ in range(count)]
        limit = _START_S + 2 * seconds
        timer = threading.Timer(limit, _kill, [children])
        timer.daemon = True
        stack.callback(timer.cancel)
        timer.start()
        try:
            for child in children:
                child.tell(json.dumps(order))
            for child in children:
                child.answer()  # it is ready
            for child in children:
                child.tell("go")
            return [_measured(child.answer()) for child in children]
        except ProbeError as error:
            raise ProbeError(str(error) if timer.is_alive() else f"no answer within {limit:.0f} s") from None


def _measured(answer: dict[str, Any]) -> Measured:
    try:
        return Measured(**answer)
    except TypeError:
        raise ProbeError(f"its answer is none of a measurement ({', '.join(answer) or 'empty'})") from None


def _kill(children: list[_Child]) -> None:
    for child in children:
        child.process.kill()


class _Answer(Stored):
    """A line of a process that trains: that it is ready, why it failed, or what it measured."""

    ready: bool = False
    failed: str | None = None
    images_per_s: Annotated[Finite, Field(gt=0)] | None = None
    allocated: Count | None = None
    reserved: Count | None = None
    used: Count | None = None
    total: Count | None = None


class _Child:
    """A process that trains, seen from the one that started it."""

    def __init__(self, process: subprocess.Popen[str], errors: Any) -> None:
        self.process, self._errors = process, errors

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # its answer says why it has ended
            print(line, file=self.process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
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
def _child() -> Iterator[_Child]:
    """A process that is gone at the end of the block, whatever happens in it."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "dcml_tune.search.gpu_probe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            yield _Child(process, errors)
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]
