"""The ablation: which settings of the winner made the difference.

Its most important settings are put back to the published value, one at a time, and trained on held-out classes: on the
folds and seeds on which the confirmation has measured the winner or, without a confirmation, on those of the search.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dcml_tune.config.errors import SettingError
from dcml_tune.config.measures import title
from dcml_tune.config.trial import TrialConfig
from dcml_tune.runs.importance import importance
from dcml_tune.search.confirmation import CONTROLS, PUBLISHED, Candidate, Confirmation, FoldSeed
from dcml_tune.search.reversions import Reversion, reversions
from dcml_tune.search.statistics import Comparison
from trainables.run import run_of

if TYPE_CHECKING:
    from dcml_tune.search.plan import Plan
    from dcml_tune.search.stage import StageRunner
    from trainables.known_trial import KnownTrial
    from trainables.searcher import OptunaSearcher

Measured = dict[tuple[str, FoldSeed], dict[str, Any]]
"""(candidate, unit) -> what its run measured."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What is known of the winner, and of other settings, where reversions are measured."""

    winner: Candidate
    units: list[FoldSeed]
    results: Measured
    """Of the winner, and of settings that a reversion may be equal to."""
    settings: list[Candidate]
    """The settings of these results."""
    is_confirmed: bool
    """Whether the units are those of the confirmation."""
    note: str | None = None
    """Why the winner itself is run again; None if its results are there."""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """What an ablation has measured."""

    reversions: list[Reversion]
    values: dict[str, dict[FoldSeed, float]]
    """Setting that was put back, or the name of the winner -> unit -> value."""
    reference: Reference
    method: str
    """How the importance of settings was computed."""
    left_out: list[str]
    """A line for each setting that was not put back, with the reason."""
    metric: str
    """Measure of held-out classes that is compared."""
    unmeasured: str = "no result: its run failed"
    """Why a reversion may have no value."""

    def facts(self) -> dict[str, Any]:
        """The entry of verdict.json."""
        found = [self._entry(each) for each in self.reversions]
        return {"order": self.method, "winner": self.reference.winner.name, "settings": found, "lines": self.lines()}

    def lines(self) -> list[str]:
        """The lines of the verdict."""
        winner = self.reference.winner.name
        if winner == PUBLISHED:
            return ["nothing is put back: the winner is the published setting"]
        said = f"the control {winner!r}" if winner in CONTROLS else f"trial {winner}"
        if not self.reversions and not self.left_out:
            return [f"nothing is put back: {said} differs from the published setting in nothing that has an effect"]
        where = "the folds and seeds of the confirmation" if self.reference.is_confirmed else "fold 0 of the search"
        head = (
            f"{said} with one setting put back to published, minus {said} as it is, on held-out classes ({where}, where it "
            f"was chosen; the most important first, by {self.method}):"
        )
        notes = [] if self.reference.note is None else [self.reference.note]
        return [head, *map(self._line, self.reversions), *self.left_out, *notes]

    def _entry(self, each: Reversion) -> dict[str, Any]:
        compared, winner = Comparison(self.values), self.reference.winner.name
        facts: dict[str, Any] = {"pairs": compared.pairs(each.setting, winner)}
        facts |= dict.fromkeys(("difference", "low", "high"))
        if facts["pairs"]:
            found = compared.difference(each.setting, winner)
            facts |= {"difference": found.mean, "low": found.low, "high": found.high}
        changes = [{"setting": name, "from": old, "to": new} for name, (old, new) in each.changes.items()]
        return {
            "setting": each.setting,
            "change": str(each),
            "changes": changes,
            "importance": each.importance,
            **facts,
        }

    def _line(self, each: Reversion) -> str:
        found = self._entry(each)
        if found["difference"] is None:
            return f"{each}: {self.unmeasured}"
        units = self.reference.units
        missing = len(units) - len(self.values[each.setting])
        lost = f"; {missing} of {len(units)} runs have no result" if missing else ""
        said = f"{each}: {100 * found['difference']:+.1f} points of {title(self.metric)}"
        if found["low"] is None:
            return f"{said} ({self._why_no_interval(found['pairs'])}, no interval){lost}"
        low, high = 100 * found["low"], 100 * found["high"]
        return f"{said}, 95 % interval {low:+.1f} to {high:+.1f} ({found['pairs']} folds){lost}"

    def _why_no_interval(self, folds: int) -> str:
        if len(self.reference.units) == 1:
            return "one run each"
        return "one fold of classes" if folds == 1 else "no spread between folds"


def ablate(plan: Plan, stages: StageRunner, confirmation: Confirmation, searcher: OptunaSearcher) -> Ablation:
    """Measure the winner with its `--ablate` most important settings put back, each run once.

    Args:
        plan: of the search.
        stages: run what has no result yet.
        confirmation: knows the winner.
        searcher: its study has the trials of the search.
    """
    trials, published = searcher.known(), plan.space.whole(plan.published_point)
    known = reference(confirmation, trials, FoldSeed(plan.base.fold, plan.base.seed))
    rated = importance(
        searcher.study.get_trials(deepcopy=False),
        list(plan.space.domains),
        settings=lambda trial: plan.space.whole(trial.params),
        winner=known.winner.config,
        published=published,
    )

    def refusal(settings: dict[str, Any]) -> str | None:
        try:
            return plan.data.cannot_train(TrialConfig(**settings))
        except SettingError as error:
            return str(error)

    found, left_out = reversions(plan.space, known.winner.config, published, rated.of, refusal)
    found = found[: plan.ablates]
    if found:
        print(f"\nsettings of {known.winner.name} are put back to published, one at a time: "
              f"{', '.join(map(str, found))}", flush=True)  # fmt: skip
    results = _measure(plan, stages, known, found, trials)
    return Ablation(
        reversions=found,
        values=_values(confirmation, known, found, results),
        reference=known,
        method=rated.method,
        metric=confirmation.metric,
        left_out=left_out,
        unmeasured=f"not measured: {over}" if (over := plan.budget.out_of_time()) else Ablation.unmeasured,
    )


def reference(confirmation: Confirmation, trials: list[KnownTrial], unit: FoldSeed) -> Reference:
    """Return what is known of the winner.

    Args:
        confirmation: knows the winner.
        trials: of the search.
        unit: fold and seed of the search.
    """
    winner = confirmation.winner
    units = [each for each in confirmation.units if (winner.name, each) in confirmation.results]
    if units:
        return Reference(
            winner=winner,
            units=units,
            results=confirmation.results,
            settings=confirmation.candidates,
            is_confirmed=True,
        )
    done = [trial for trial in trials if trial.state == "done" and trial.best is not None]
    settings = [Candidate(name=trial.key, config=trial.config) for trial in done]
    results: Measured = {(trial.key, unit): {f"{confirmation.metric}_best": trial.best} for trial in done}
    note = None
    if winner.key in {trial.key for trial in done}:
        results[winner.name, unit] = results[winner.key or "", unit]
    elif winner.name != PUBLISHED:
        why = "was pruned or stopped" if winner.key is not None else "was not tried"
        note = f"{winner.name} {why} in the search, so it was run in full to compare with"
    return Reference(winner=winner, units=[unit], results=results, settings=settings, is_confirmed=False, note=note)


def _measure(
    plan: Plan, stages: StageRunner, known: Reference, found: list[Reversion], trials: list[KnownTrial]
) -> Measured:
    """Return the results of all reversions and of the winner; run what has none."""
    wanted: dict[tuple[str, FoldSeed], dict[str, Any]] = {}
    results: Measured = {}
    winner = known.winner
    named = [(winner.name, winner.slug, winner), *((each.setting, *_run_names(winner, each)) for each in found)]
    configs = {each.name: TrialConfig(**each.config) for each in known.settings}
    for name, slug, candidate in named if found else ():
        config = TrialConfig(**candidate.config)  # of two equal settings one is run
        same = name if name == winner.name else next((each for each in configs if configs[each] == config), "")
        for unit in known.units:
            if (result := known.results.get((same, unit))) is not None:
                results[name, unit] = result
            else:
                wanted[name, unit] = plan.runs.ablate_run(candidate, unit, slug)
    others = [] if known.is_confirmed else [TrialConfig(**trial.config) for trial in trials]
    measured = stages.run_missing(list(wanted.values()), plan.budget.out_of_time, others)
    stages.remove_prefixes()  # those of the search may be there
    keys = {at: run_of(run).key for at, run in wanted.items()}
    return results | {at: measured[key] for at, key in keys.items() if key in measured}


def _run_names(winner: Candidate, each: Reversion) -> tuple[str, Candidate]:
    """The part of the key, and the setting, of the runs of a reversion."""
    named = Candidate(name=f"{winner.name} without {each.setting}", config=each.config)
    return f"{winner.slug}-without-{each.slug}", named


def _values(
    confirmation: Confirmation, known: Reference, found: list[Reversion], results: Measured
) -> dict[str, dict[FoldSeed, float]]:
    """Name -> unit -> value, as the confirmation values a run or, without one, by the best epoch, as the search does."""
    winner = known.winner
    if known.is_confirmed:
        # On a single unit a run is valued at the epoch that was the winner's best one in the search.
        reverted = [Candidate(name=each.setting, config=each.config, epochs=winner.epochs) for each in found]
        return replace(confirmation, candidates=[winner, *reverted], results=results, dropped={}).values
    measure = f"{confirmation.metric}_best"
    return {
        name: {unit: float(results[name, unit][measure]) for unit in known.units if (name, unit) in results}
        for name in (winner.name, *(each.setting for each in found))
    }
