"""Data set `emoji`: 1,241 emoji by up to six designers, 64 x 64, embedded (embedded/ATTRIBUTION.md)."""

from __future__ import annotations

import zipfile
from collections import defaultdict
from pathlib import Path

from dcml_tune.config import TrialConfig
from dcml_tune.data.folder import split
from dcml_tune.data.images import DataSet

ARCHIVE = Path(__file__).parent / "embedded" / "emoji64.zip"


def read(config: TrialConfig) -> DataSet:
    """List the images; of the sorted classes those at positions 0, 2, 4, ... train (621), the others test (620)."""
    images: dict[str, list[str]] = defaultdict(list)
    with zipfile.ZipFile(ARCHIVE) as archive:
        for path in sorted(name for name in archive.namelist() if name.endswith(".webp")):
            images[path.rsplit("/", 2)[-2]].append(path)
    return split(config, ARCHIVE, dict(sorted(images.items())), None, alternate=True)
