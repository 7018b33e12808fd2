"""The metrics by which trials are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dcml_tune.config.errors import SettingError, unknown_name
from dcml_tune.config.measures import MEASURES, chooses

if TYPE_CHECKING:
    from dcml_tune.config.search import SearchConfig
    from dcml_tune.config.trial import TrialConfig

_TIMES = ("time/epoch_s", "time/train_s", "time/cluster_s", "time/evaluate_s")


def metric_names(asked: list[str] | None, config: TrialConfig) -> list[str]:
    """Return the full names of the metrics by which trials are compared.

    Args:
        asked: names with or without prefix; None: the default.
        config: its protocol decides the prefix.

    Raises:
        SettingError: if a metric is unknown, the protocol does not measure it, or the first metric is a time.
    """
    found: list[str] = []
    for metric in asked or [chooses(config)]:
        prefix, _, name = metric.rpartition("/")
        if metric not in _TIMES and name not in MEASURES:
            raise SettingError(f"--metric {metric}: {unknown_name('measure', name, [*MEASURES, *_TIMES])}")
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
        raise SettingError(f"--metric {', '.join(found)}: a metric is given twice; give each once")
    return found


def scheduler_name(metrics: list[str], config: SearchConfig, *, resumes: bool) -> str:
    """Return the scheduler of a search. With several metrics it is `none`: no single metric could decide what to prune.

    Args:
        metrics: of the search.
        config: of the search; `model_fields_set` says whether --scheduler was given.
        resumes: whether the flags are those of a record.

    Raises:
        SettingError: if a pruning scheduler was given together with several metrics.
    """
    if len(metrics) == 1:
        return config.scheduler
    if not resumes and "scheduler" in config.model_fields_set and config.scheduler != "none":
        raise SettingError(
            f"--scheduler {config.scheduler}: with several metrics no trial is pruned; leave it out, or give one --metric"
        )
    return "none"
