"""Measure how many concurrent trials use a GPU best (`--gpus-per-trial auto`), and whether they are faster compiled (`--compile auto`)."""

from dcml_tune.search.gpu_probe.child import ProbeError
from dcml_tune.search.gpu_probe.sharing import (
    COUNTS,
    Choice,
    Measured,
    choose,
    compiling,
    fits,
    full_division,
    measure,
    probe,
    resolve,
)

__all__ = [
    "COUNTS",
    "Choice",
    "Measured",
    "ProbeError",
    "choose",
    "compiling",
    "fits",
    "full_division",
    "measure",
    "probe",
    "resolve",
]
