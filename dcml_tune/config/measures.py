"""Names of the measures by which settings are compared."""

from __future__ import annotations

from dcml_tune.config.trial import TrialConfig

MEASURES = ("map_at_r", "recall_at_1", "marp", "r_precision")
"""Measures of images that may compare settings. Each is from 0 to 1; larger is better."""

_TITLES = {"map_at_r": "MAP@R", "marp": "mARP", "r_precision": "R-precision", "nmi": "NMI", "ami": "AMI"}


def chooses(config: TrialConfig) -> str:
    """Return the full name of the measure that chooses epochs and settings unless another is asked for.

    MAP@R of held-out classes ranks settings in the order of their test measures better than recall@1 does (docs/verdict.md,
    "By which measure trials are compared"). With `protocol=paper` it is recall@1, as in the original.

    Args:
        config: its protocol decides the measure and its prefix.

    Example:
        >>> chooses(TrialConfig(dataset="emoji"))
        'val/map_at_r'
    """
    return f"{config.compared_on}/{'recall_at_1' if config.protocol == 'paper' else 'map_at_r'}"


def title(measure: str) -> str:
    """Return the name of a measure as it is written in papers.

    Args:
        measure: name, with or without prefix, such as test/official_recall_at_1.

    Example:
        >>> title("val/map_at_r"), title("test/official_recall_at_10")
        ('MAP@R', 'recall@10')
    """
    name = measure.rpartition("/")[2].removeprefix("official_")
    return _TITLES.get(name, name.replace("recall_at_", "recall@"))
