"""What a search was asked for, as small as it can be."""

from __future__ import annotations

from typing import Any

SMALLEST: dict[str, Any] = {
    "flags": {"num_samples": 3, "tracking_uri": None},
    "settings": {"dataset": "emoji"},
    "space": {"name": "emoji", "published": {}, "domains": {"nb_clusters": {"kind": "Choice", "values": [1, 2]}}},
    "metrics": ["val/recall_at_1"],
    "data": "abc",
}
