"""NodePool: which nodes of a cluster may run trials. Each is checked before its first trial, and when a trial failed there.

Above 250 lines because what is asked of the nodes and the checks that change the answers belong together.
"""

from __future__ import annotations

import atexit
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainables import node_check
from trainables.cluster import alive_nodes
from trainables.node_check import Needs, NodeReport
from trainables.nodes import Node, able
from trainables.resources import Shares

log = logging.getLogger(__name__)

ANSWERS_S = 60.0
"""Time after which a node that has not answered is named. Its answer counts when it comes: imports may be slow there."""

_LOOK_S = 1.0  # interval between looks at the nodes of the cluster
_AGAIN_S = 300.0  # an unfit node is checked again after this time


@dataclass(kw_only=True)
class _State:
    """What is known of a node."""

    node: Node
    report: NodeReport | None = None
    """None: it was not checked yet."""
    task: Any = None
    """The check that runs there."""
    since: float = field(default_factory=time.monotonic)
    """When its check began, or ended."""
    named: bool = False
    """Whether it was said that it does not answer."""
    uncount: list[Callable[[], None]] = field(default_factory=list)
    """Take back the failures of trials for which the running check may find the node at fault."""

    @property
    def is_fit(self) -> bool:
        """Whether it was checked, and no check runs because of a failure."""
        return self.task is None and self.report is not None and self.report.reason is None

    @property
    def is_unfit(self) -> bool:
        """Whether its last check found a fault."""
        return self.report is not None and self.report.reason is not None


class NodePool:
    """The nodes of a cluster that was joined. Calls return at once, apart from `wait` and `recheck`.

    Attributes:
        needs: what a node must have.
        autoscales: whether an autoscaler brings further nodes.
        shares: what each trial asks for; None: not known yet.
        say: prints a line.
        moves: how often each trial was moved because its node failed, by Ray's id of the trial.
        reasons: why a trial was moved last; taken by who shows it.
    """

    def __init__(
        self,
        needs: Needs,
        *,
        gpus_per_trial: float | None,
        autoscales: bool,
        driver: str | None = None,
        say: Callable[[str], None] = log.warning,
    ) -> None:
        """Write the file that shows whether nodes share the output directory. Nothing is checked before `refresh`.

        Args:
            needs: what a node must have.
            gpus_per_trial: as it was asked for.
            autoscales: whether an autoscaler brings further nodes.
            driver: Ray's id of the node of this process, whose images are known.
            say: prints a line.
        """
        self.needs, self.autoscales, self.say = needs, autoscales, say
        self.shares: Shares | None = None
        self.moves: dict[str, int] = {}
        self.reasons: dict[str, str] = {}
        self._places: dict[str, str | None] = {}
        self._gpus_per_trial, self._driver = gpus_per_trial, driver
        self._states: dict[str, _State] = {}
        self._looked, self._announces = 0.0, False
        self._untold: list[str] | None = []
        needs.write_mark()
        atexit.register(self.close)

    def close(self) -> None:
        """Remove the file of this driver; called when its process ends."""
        self.needs.remove_mark()

    def tell(self) -> None:
        """Print which nodes were left out; until now, all of them may have been, which is a line of its own."""
        for line in self._untold or ():
            self.say(line)
        self._untold = None

    def announce(self) -> None:
        """Print a line from now on for each node that comes or goes."""
        self._announces = True

    # -- questions -------------------------------------------------------------------------------------

    def nodes(self) -> list[Node]:
        """Return the nodes that are there and could hold a trial, fit or not."""
        return [state.node for state in self._states.values()]

    def fit(self) -> list[Node]:
        """Return the nodes that may run trials."""
        return [state.node for state in self._states.values() if state.is_fit]

    def checking(self) -> list[Node]:
        """Return the nodes that are being checked; no trial starts there."""
        return [state.node for state in self._states.values() if not state.is_fit and not state.is_unfit]

    def unfit(self) -> dict[str, str]:
        """Return the ids of the nodes that were left out, with the reasons."""
        return {
            key: state.report.reason
            for key, state in self._states.items()
            if state.report is not None and state.report.reason is not None
        }

    def avoided(self) -> frozenset[str]:
        """Return the ids of the nodes on which no trial is to be placed: left out, or without an answer for a minute.

        A node whose check has just begun is not among them: a trial that is placed there waits for the answer, so that an
        autoscaler does not bring another node for it.
        """
        return frozenset(key for key, state in self._states.items() if state.is_unfit or (state.named and state.task))

    def is_alive(self, node: str) -> bool:
        """Whether a node is in the cluster."""
        return any(each.id == node for each in alive_nodes())

    def named_faults(self) -> str:
        """Return the nodes that were left out and why, in one line."""
        return "; ".join(f"node {self._states[key].node.name}: {reason}" for key, reason in self.unfit().items())

    def starts(self, trial: str, node: str | None) -> None:
        """Note the node on which a trial starts; both are ids of Ray."""
        self._places[trial] = node

    def tags(self, trial: str) -> dict[str, str]:
        """Return tags for MLflow: name and GPUs of the node on which a trial has started."""
        state = self._states.get(self._places.get(trial) or "")
        if state is None:
            return {}
        gpu = (state.report.gpu if state.report is not None else None) or state.node.gpu_type
        return {"dcml.node": state.node.name} | ({"dcml.gpu": gpu} if gpu else {})

    def largest_gpu(self) -> int:
        """Return the most bytes of memory that each GPU of a node that may run trials has; 0: no node has a GPU."""
        reports = [state.report for state in self._states.values() if state.is_fit and state.report is not None]
        return max((report.gpu_bytes for report in reports), default=0)

    def places(self) -> int:
        """Return the number of trials that fit on the nodes that may run them."""
        shares = self.shares
        if shares is None:
            return 0
        return sum(node.trials(shares.cpus_per_trial, shares.gpus_per_trial) for node in self.fit())

    # -- checks ----------------------------------------------------------------------------------------

    def require(self, needs: Needs) -> None:
        """Check all nodes again, because more is needed now: the images, which the driver's node has."""
        self.needs, self._untold = needs, []
        for state in self._states.values():
            if state.node.id == self._driver or state.is_unfit:
                continue
            state.report, state.named = None, False
            self._check(state)

    def refresh(self) -> None:
        """Look for nodes that came or went, begin their checks, and take the reports of those that ended."""
        if time.monotonic() - self._looked >= _LOOK_S:
            self._looked = time.monotonic()
            self._find_nodes()
        for state in self._states.values():
            if state.task is not None and ray.wait([state.task], timeout=0)[0]:
                self._take(state)
            elif state.task is not None and not state.named and time.monotonic() - state.since > ANSWERS_S:
                state.named = True
                self.say(f"node {state.node.name} is still being checked; no trial starts there before it answers")
            elif state.task is None and state.is_unfit and time.monotonic() - state.since > _AGAIN_S:
                self._check(state)

    def wait(self, seconds: float, until: Callable[[], bool]) -> bool:
        """Refresh until a condition holds; returns whether it did within the time."""
        end = time.monotonic() + seconds
        while True:
            self.refresh()
            if until():
                return True
            if time.monotonic() >= end:
                return False
            time.sleep(0.1)

    def suspect(self, node: str, uncount: Callable[[], None] = lambda: None) -> None:
        """Check a node again, because a trial failed there; no trial starts there before it answers.

        Args:
            node: Ray's id.
            uncount: called if the node is at fault or leaves: takes back the failure of the trial.
        """
        state = self._states.get(node)
        if state is None:
            return
        state.uncount.append(uncount)
        if state.task is None:
            self._check(state)

    def recheck(self, node: str) -> str | None:
        """Check a node again and wait for its answer; returns why it cannot run trials, or None."""
        self.suspect(node)
        self.wait(ANSWERS_S, lambda: node not in self._states or self._states[node].task is None)
        return self.unfit().get(node) if node in self._states else f"node {node[:6]} has left the cluster"

    def leave_out(self, node: str, reason: str) -> None:
        """Leave a node out, because a trial found that it cannot run there."""
        state = self._states.get(node)
        if state is not None:
            state.task = None
            self._record(state, NodeReport(reason=reason))

    def _find_nodes(self) -> None:
        there = {node.id: node for node in self._able(alive_nodes())}
        for key in [key for key in self._states if key not in there]:
            gone = self._states.pop(key)
            _call(gone.uncount)
            if self._announces:
                self.say(f"node {gone.node.name} has left the cluster")
        for key in [key for key in there if key not in self._states]:
            self._states[key] = _State(node=there[key])
            self._check(self._states[key])

    def _able(self, nodes: list[Node]) -> list[Node]:
        shares = self.shares
        if shares is None:
            return able(nodes, self._gpus_per_trial)
        return [node for node in nodes if node.trials(shares.cpus_per_trial, shares.gpus_per_trial) > 0]

    def _check(self, state: _State) -> None:
        needs = self.needs if state.node.id != self._driver else self.needs.without_images()
        needs = replace(needs, gpus=needs.gpus and state.node.gpus > 0)
        strategy = NodeAffinitySchedulingStrategy(node_id=state.node.id, soft=False)
        # A process of its own, which ends: it may hold memory of the GPUs, and must see what changed on the node.
        task = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(node_check.examine)
        state.since = time.monotonic()
        state.task = task.options(scheduling_strategy=strategy).remote(needs.as_dict(), state.node.gpus)

    def _take(self, state: _State) -> None:
        """Take the answer of a node."""
        try:
            report = NodeReport(**ray.get(state.task))
        except Exception as error:
            if not self.is_alive(state.node.id):
                return  # it goes with the next look at the nodes
            report = NodeReport(reason=node_check.why_no_answer(error))
        state.task = None
        self._record(state, report)

    def _record(self, state: _State, report: NodeReport) -> None:
        before, state.report, state.since = state.report, report, time.monotonic()
        if report.reason is not None:
            _call(state.uncount)
        state.uncount.clear()
        if report.reason is not None and (before is None or before.reason is None):
            line = f"node {state.node.name} is left out: {report.reason}"
            self.say(line) if self._untold is None else self._untold.append(line)
        elif report.reason is None and (before.reason is not None if before is not None else self._announces):
            self.say(f"node {state.node.name} can be used now")


def _call(functions: list[Callable[[], None]]) -> None:
    for function in functions:
        function()
