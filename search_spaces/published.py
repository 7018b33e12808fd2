"""Published results of the method. Reports show them beside measured ones where the protocol is the same.

The authors report the best epoch by the test classes. Values are in percent. *learned* and *fixed* are the kind of masks;
*cvpr2019* is the predecessor of the method, which has slices of the embedding instead of masks.

Sources: the README of the authors' code of "Improving Deep Metric Learning by Divide and Conquer" (TPAMI 2021), and that of
"Divide and Conquer the Embedding Space for Metric Learning" (CVPR 2019).
"""

from __future__ import annotations

from typing import NamedTuple


class PublishedResult(NamedTuple):
    """A published value of one measure."""

    variant: str
    """learned, fixed, or cvpr2019."""
    metric: str
    """Our name of the measure: recall_at_K, nmi (of one clustering), marp (precision divided by hits)."""
    value: float
    """In percent."""
    source: str


_TPAMI = "TPAMI 2021, authors' README"
_CVPR = "CVPR 2019, authors' README"


def _rows(variant: str, source: str, **values: float) -> list[PublishedResult]:
    return [PublishedResult(variant, metric, value, source) for metric, value in values.items()]


RESULTS: dict[str, list[PublishedResult]] = {
    "cub": [
        *_rows(
            "fixed",
            _TPAMI,
            nmi=68.6,
            marp=54.98,
            recall_at_1=67.39,
            recall_at_2=77.43,
            recall_at_4=84.82,
            recall_at_8=90.83,
        ),
        *_rows(
            "learned",
            _TPAMI,
            nmi=69.84,
            marp=55.11,
            recall_at_1=67.71,
            recall_at_2=78.14,
            recall_at_4=85.8,
            recall_at_8=91.46,
        ),
    ],
    "cars": [
        *_rows(
            "fixed",
            _TPAMI,
            nmi=70.57,
            marp=65.89,
            recall_at_1=87.22,
            recall_at_2=92.19,
            recall_at_4=95.39,
            recall_at_8=97.43,
        ),
        *_rows(
            "learned",
            _TPAMI,
            nmi=70.1,
            marp=65.54,
            recall_at_1=86.9,
            recall_at_2=92.34,
            recall_at_4=95.41,
            recall_at_8=97.45,
        ),
    ],
    "inshop": [
        *_rows(
            "fixed",
            _TPAMI,
            nmi=89.76,
            marp=87.86,
            recall_at_1=89.84,
            recall_at_10=97.56,
            recall_at_20=98.21,
            recall_at_30=98.51,
        ),
        *_rows(
            "learned",
            _TPAMI,
            nmi=89.88,
            marp=88.5,
            recall_at_1=90.49,
            recall_at_10=97.48,
            recall_at_20=98.23,
            recall_at_30=98.51,
        ),
        *_rows("cvpr2019", _CVPR, recall_at_1=87.36),
    ],
    "sop": [
        *_rows("fixed", _TPAMI, nmi=89.59, marp=79.32, recall_at_1=79.5, recall_at_10=90.44, recall_at_100=95.08),
        *_rows("learned", _TPAMI, nmi=89.68, marp=79.6, recall_at_1=79.8, recall_at_10=90.46, recall_at_100=95.26),
        *_rows("cvpr2019", _CVPR, recall_at_1=76.4),
    ],
    "vid": [
        *_rows(
            "fixed",
            f"{_TPAMI}, test list of 2,400 vehicles",
            nmi=90.78,
            marp=92.89,
            recall_at_1=94.01,
            recall_at_5=96.18,
        ),
        *_rows(
            "learned",
            f"{_TPAMI}, test list of 2,400 vehicles",
            nmi=90.7,
            marp=92.68,
            recall_at_1=93.93,
            recall_at_5=95.99,
        ),
        *_rows("cvpr2019", _CVPR, recall_at_1=91.54),
    ],
}


def as_text(dataset: str) -> str:
    """The published results on a data set, one line for each variant."""
    found = RESULTS.get(dataset, [])
    variants = dict.fromkeys((each.variant, each.source) for each in found)
    lines = [
        f"{variant}: {', '.join(f'{e.metric} {e.value:.2f}' for e in found if e.variant == variant)} ({source})"
        for variant, source in variants
    ]
    return "\n".join(lines) or "no published results"
