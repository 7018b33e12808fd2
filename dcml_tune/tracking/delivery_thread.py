"""The background thread of a tracker: delivers records as they come, and retries while MLflow is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from dcml_tune.tracking.delivery import Delivery
from dcml_tune.tracking.mlflow_api import THREAD

BACK_OFF_S = (0.5, 30.0)
"""Seconds between attempts while MLflow is away: the first wait, which is doubled after each attempt, and the longest."""
_LAST_CHANCE_S = 5.0  # how long `close` waits for a server that is away
_LINGER_S = 0.2  # records of this period are sent together
_MANY = 100
"""Number of records in a delivery from which on the next one lingers longer, so that it can send more records of a run together."""
_TIMES, _LONGEST_LINGER_S = 4, 30.0
"""It then lingers so many times as long as the delivery took, at most so many seconds: this thread takes a fifth of a core."""


class DeliveryThread:
    """Runs a delivery on a daemon thread, from the moment of construction until `close`."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._wake, self._closing, self._stop = threading.Event(), threading.Event(), threading.Event()
        self._hurry = threading.Event()
        self._wake.set()  # an earlier process may have left records
        self._thread = threading.Thread(target=self._run, name=THREAD, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Signal that a record was written."""
        self._wake.set()

    def wait(self, timeout: float) -> None:
        """Wait at most `timeout` seconds until no record waits. Gives up sooner if MLflow is away."""
        self._hurry.set()
        self._wait(timeout, lambda: self._delivery.count_waiting() == 0)

    def close(self, timeout: float) -> None:
        """Deliver what waits, for at most `timeout` seconds, and stop the thread. Gives up sooner if MLflow is away."""
        self._closing.set()
        self._hurry.set()
        self._wake.set()
        self._wait(timeout, lambda: not self._thread.is_alive())
        self._stop.set()

    def _wait(self, timeout: float, is_over: Callable[[], bool]) -> None:
        begun = time.monotonic()
        while not is_over() and time.monotonic() - begun < timeout:
            time.sleep(0.1)
            if self._delivery.failed_at > begun + _LAST_CHANCE_S:
                break

    def _run(self) -> None:
        """Deliver until closed and empty. Only `close` shortens the wait between two attempts."""
        delay, linger = BACK_OFF_S[0], _LINGER_S
        while not self._stop.is_set():
            if not self._closing.is_set():
                self._wake.wait()
                self._hurry.wait(linger)
                self._hurry.clear()
            self._wake.clear()
            begun, before = time.monotonic(), self._delivery.sent
            delivered = self._delivery.attempt()
            many, took = self._delivery.sent - before >= _MANY, time.monotonic() - begun
            linger = max(_LINGER_S, min(_LONGEST_LINGER_S, _TIMES * took)) if many else _LINGER_S
            if delivered:
                delay = BACK_OFF_S[0]
                if self._closing.is_set() and not self._wake.is_set():
                    return
                continue
            self._wake.set()
            if self._closing.is_set():
                self._stop.wait(BACK_OFF_S[0])
            else:
                self._closing.wait(delay)
            delay = min(2 * delay, BACK_OFF_S[1])
