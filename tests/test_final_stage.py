"""The final stage: what is scored on the test classes, under which protocol and with which seeds."""

from dcml_tune.search.outcome import UNTRAINED
from dcml_tune.search.recording import untrained_value


def test_the_untrained_network_has_the_measure_of_the_others():
    """VehicleID's official one where the runs have it; None if it was not scored."""
    measures = {"test/recall_at_1": 0.9, "test/official_recall_at_1": 0.3, "test/map_at_r": 0.2}
    final = {UNTRAINED: {"seed 0": measures}, "001": {"seed 0": {**measures, "test/official_recall_at_1": 0.7}}}
    assert untrained_value("val/recall_at_1", final) == 0.3
    assert untrained_value("val/map_at_r", final) == 0.2
    assert untrained_value("val/recall_at_1", {UNTRAINED: {"seed 0": {"test/recall_at_1": 0.9}}}) == 0.9
    assert untrained_value("val/recall_at_1", {}) is None
