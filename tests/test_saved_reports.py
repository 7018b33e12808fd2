"""Which reports of a trial its state contains, for a driver that was killed before it had written them."""

import pytest

from trainables.saved_reports import KEPT_S, SavedReports


def report(epoch):
    return {"epoch": epoch, "val/map_at_r": epoch / 10}


def epochs(reports):
    return [each["epoch"] for each in reports]


def test_those_of_the_last_minute_are_kept(clock):
    """Or the last two, where epochs take longer."""
    reports = SavedReports(keeps_all=False)
    for epoch in (1, 2, 3):
        reports.add(report(epoch))
        clock.now += 1
    clock.now += KEPT_S - 2
    reports.add(report(4))
    assert epochs(reports.as_list()) == [2, 3, 4]
    for epoch in (5, 6):
        clock.now += 2 * KEPT_S
        reports.add(report(epoch))
    assert epochs(reports.as_list()) == [5, 6]


def test_all_are_kept_where_the_driver_may_go_on_elsewhere(clock):
    """With an older copy of the study."""
    reports = SavedReports(keeps_all=True)
    for epoch in (1, 2, 3):
        clock.now += 2 * KEPT_S
        reports.add(report(epoch))
    assert epochs(reports.as_list()) == [1, 2, 3]


def test_those_that_are_repeated_are_new(clock):
    """However long ago their epochs were: the driver gets them now, and may be killed again."""
    reports = SavedReports(keeps_all=False)
    clock.now += 10 * KEPT_S
    reports.restore(map(report, (1, 2, 3)))
    clock.now += 1
    reports.add(report(4))
    assert epochs(reports.as_list()) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("reported", "repeated"), [(None, []), (0, [3, 4, 5]), (2, [3, 4, 5]), (4, [4, 5]), (5, [5]), (6, [])]
)
def test_the_last_one_that_the_driver_has_is_repeated_too(reported, repeated):
    """The scheduler does not take it from the study."""
    reports = SavedReports(keeps_all=False)
    reports.restore(map(report, (3, 4, 5)))
    assert epochs(reports.after(reported)) == repeated
