"""Measure how many concurrent trials use a GPU best: `--gpus-per-trial auto`.

Trials of one setting embed, cluster and evaluate as many random images as a trial of the search, and then train for some
seconds: one, then two, four and eight concurrently on one GPU, each in its own process as under Ray. Their total throughput
in images per second is compared.

`python -m dcml_tune.search.gpu_probe` is one of these processes. `measure` starts it and writes to its standard input.
"""

from __future__ import annotations

import json
import threading
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from dcml_tune.cli.quantities import AUTO
from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.search.gpu_probe.child import Child, ProbeError, child_process
from dcml_tune.utils.machine import usable_cores

COUNTS = (1, 2, 4, 8)
HEADROOM = 1.1
"""Minimum ratio of the memory share of a trial to its peak memory."""
LEAST_GAIN = 0.03
"""If more concurrent trials gain less than this share of throughput, fewer are chosen: each of them ends sooner."""
IMAGES = 10_000
"""Number of images that are embedded, clustered and evaluated before the measurement, where it is not known."""
SECONDS = 6.0
"""Duration of a measurement."""
_START_S = 240.0  # longest time to import torch, build the network and warm up, on a busy machine


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Memory and throughput of one trial. Memory is in bytes."""

    images_per_s: float
    allocated: int
    """Peak memory of tensors."""
    reserved: int
    """Peak memory that PyTorch reserved for them."""
    used: int
    """Memory of the device in use at the end, by all processes; with one trial, its CUDA context included."""
    total: int
    """Memory of the device."""


class Choice(NamedTuple):
    """The share of a GPU that each trial gets."""

    gpus_per_trial: float | None
    """None: the default of --gpus-per-trial."""
    why: str
    """The reason, as a search prints it."""


def resolve(config: TrialConfig, *, at_once: int, images: int = IMAGES) -> Choice:
    """Return what `auto` means on this machine. Its GPUs are assumed to be identical.

    Args:
        config: of a trial.
        at_once: maximum number of concurrent trials on all GPUs together.
        images: number of images that a trial clusters.
    """
    import torch

    gpus = torch.cuda.device_count()
    if gpus == 0:
        return Choice(None, f"--gpus-per-trial {AUTO}: without a GPU it is the same as the default")
    return probe(config, most=max(1, min(-(-at_once // gpus), usable_cores() // gpus)), images=images)


def full_division(base: TrialConfig, nb_clusters: int) -> TrialConfig:
    """Return a setting with all of its masks from the first epoch; if it cannot have as many, return it unchanged."""
    with suppress(SettingError):
        return base.changed(nb_clusters=nb_clusters, hierarchy_method="none", force_full_embedding_epoch=None)
    return base


def probe(
    config: TrialConfig,
    *,
    most: int = COUNTS[-1],
    device: str = "cuda",
    seconds: float = SECONDS,
    images: int = IMAGES,
) -> Choice:
    """Measure one trial, then several concurrent ones as long as their memory fits.

    If even one trial cannot be measured, each trial gets a whole GPU.

    Args:
        config: of the trials.
        most: maximum number of concurrent trials to measure.
        device: of all trials.
        seconds: duration of each measurement.
        images: number of images that each trial clusters and evaluates first.
    """
    sums: dict[int, float] = {}
    alone, note = None, ""
    for count in COUNTS:
        if count > most or (alone is not None and not fits(count, alone.total, alone.used)):
            break
        try:
            found = measure(config, count, device=device, seconds=seconds, images=images)
        except Exception as error:  # any failure: the search runs without the measurement
            if alone is None:
                return Choice(1.0, f"1 GPU each: a trial could not be measured ({error})")
            note = f"; {count} at once failed ({error})"
            break
        alone = alone or found[0]
        sums[count] = sum(each.images_per_s for each in found)
    assert alone is not None
    choice = choose(alone.total, alone.used, sums)
    return choice._replace(why=choice.why + note)


def choose(total: int, peak: int, sums: dict[int, float]) -> Choice:
    """Choose the smallest number of concurrent trials whose total throughput is within `LEAST_GAIN` of the highest.

    Args:
        total: memory of the GPU in bytes.
        peak: memory that one trial uses, in bytes.
        sums: number of concurrent trials -> images per second in total; has the key 1.
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
    """Whether the memory of a GPU is enough for a number of concurrent trials with equal shares."""
    return count == 1 or total / count >= HEADROOM * peak


def compiling(config: TrialConfig, share: float, *, device: str = "cuda", seconds: float = SECONDS) -> tuple[bool, str]:
    """Measure whether trials train faster with a compiled backbone: `--compile auto`.

    Args:
        config: of the trials.
        share: of a GPU that each trial gets; as many trials as fit on a GPU train at once.
        device: of all trials.
        seconds: duration of each of the two measurements.

    Returns:
        Whether it gains at least `LEAST_GAIN`, and the reason, as a search prints it.
    """
    count = max(1, int(1 / share))
    try:
        plain, compiled = (
            sum(
                each.images_per_s
                for each in measure(config, count, device=device, seconds=seconds, images=0, compiled=on)
            )
            for on in (False, True)
        )
    except Exception as error:  # any failure: the search runs without it
        return False, f"--compile {AUTO}: off, it could not be measured ({error})"
    gains = compiled >= (1 + LEAST_GAIN) * plain
    at_once = "" if count == 1 else f" of {count} trials at once"
    return gains, (
        f"--compile {AUTO}: {'on' if gains else 'off'}, {compiled:,.0f} images/s{at_once} with it and {plain:,.0f} without"
    )


def measure(
    config: TrialConfig,
    count: int,
    *,
    device: str = "cuda",
    seconds: float = SECONDS,
    images: int = IMAGES,
    compiled: bool = False,
) -> list[Measured]:
    """Train concurrent trials, each with an equal share of the cores and capped to an equal share of the memory.

    Args:
        config: of the trials.
        count: number of trials.
        device: of all trials.
        seconds: duration of the measurement.
        images: number of images that each of them clusters and evaluates before it.
        compiled: whether each of them compiles the training of its backbone.

    Raises:
        ProbeError: if one of them cannot run, or does not answer in time.
    """
    share = {"share": 1 / count, "threads": max(1, usable_cores() // count)}
    order = {"config": config.model_dump(mode="json"), "device": device, "seconds": seconds, "images": images}
    order |= {"compiled": compiled, **share}
    with ExitStack() as stack:
        children = [stack.enter_context(child_process()) for _ in range(count)]
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
        raise ProbeError(f"its answer is not a measurement ({', '.join(answer) or 'empty'})") from None


def _kill(children: list[Child]) -> None:
    for child in children:
        child.process.kill()
