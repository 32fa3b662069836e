"""Does a pair show what the rows that are not GRACE must show?

The rows and their tolerances are those of ``replication/paper/calibration.yaml``. Nothing of GRACE
is read.
"""

from dataclasses import asdict, replace
from typing import Any

from replication.paper.calibration import CalibrationRow, FamilyCalibration
from replication.results.calibration import MET, NOT_MET, NOT_RUN
from replication.results.measurements import read_measurement
from replication.results.scores import NOT_IN_AVERAGE, ResultSet
from replication.settings.paths import Layout
from replication.settings.schema import Params, section
from replication.stats.association import cluster_interval, mean
from replication.stats.bootstrap import bootstrap_scores, difference, generator, interval, score
from replication.stats.verdict import Interval
from replication.train.doubt import token_doubts

SETTINGS = ("compare", "methods", "standins.train", "train.batch_size", "train.steps")
"""Dotted names of the parameters that are read."""


class PairCalibration:
    """The measured side of one pair's rows."""

    def __init__(
        self, params: Params, results: ResultSet, pair: str, rows: FamilyCalibration
    ) -> None:
        self.params, self.results, self.pair, self.rows = params, results, pair, rows

    def table(self) -> list[dict[str, Any]]:
        """Every row: "quantity", "name", "asked", "measured" (an interval, or None where it was
        not run), "status", "source" and "reason"."""
        return [self._row(row) for row in self.rows.rows]

    def _row(self, row: CalibrationRow) -> dict[str, Any]:
        measured = _MEASURES[row.quantity](self, row)
        low, high = row.asked.bounds
        status = NOT_RUN
        if measured is not None:
            value = measured.low if row.quantity == "above_chance" else measured.point
            status = MET if low <= value <= high else NOT_MET
        return {
            "quantity": row.quantity,
            "name": row.name,
            "asked": asdict(row.asked),
            "measured": None if measured is None else asdict(measured),
            "status": status,
            "source": row.source,
            "reason": row.reason,
        }

    # --- scores

    def _interval(self, runs: list[str], benchmarks: list[str], statistic: Any) -> Interval | None:
        own = [f"{self.pair}/{run}" for run in runs]
        answers = self.results.answers(self.pair, own, benchmarks)
        if answers is None:
            return None
        compare = self.params.compare
        rng = generator(compare.seed, ":".join([self.pair, *runs, *benchmarks]))
        return interval(bootstrap_scores(answers, benchmarks, rng, compare.resamples), statistic)

    def level(self, row: CalibrationRow) -> Interval | None:
        return self._interval([str(row.run)], self.rows.benchmarks, score)

    def difference(self, row: CalibrationRow) -> Interval | None:
        return self._interval([str(row.run), str(row.against)], self.rows.benchmarks, difference)

    def above_chance(self, row: CalibrationRow) -> Interval | None:
        """Of the benchmark whose lower end is nearest to chance."""
        scores = self.results.scores(self.pair, str(row.run))
        if scores is None:
            return None
        found = []
        for name in sorted(set(scores.benchmarks) - NOT_IN_AVERAGE):
            own = self._interval([str(row.run)], [name], score)
            if own is not None:
                chance = next(iter(scores.seeds.values()))[name]["chance"]
                ends = {key: getattr(own, key) - chance for key in ("point", "low", "high")}
                found.append(replace(own, **ends))
        return min(found, key=lambda one: one.low, default=None)

    # --- the teacher's doubt

    def entropy_error(self, row: CalibrationRow) -> Interval | None:
        return self._measurement("pearson_r")

    def calibration_error(self, row: CalibrationRow) -> Interval | None:
        return self._measurement("calibration_error")

    def _measurement(self, value: str) -> Interval | None:
        name = f"entropy_error-{self.pair}"
        found = read_measurement(self.results.results, self.results.scale, name)
        return None if found is None else found.values.get(value)

    def token_entropy(self, row: CalibrationRow) -> Interval | None:
        path = Layout(self.params).teacher_outputs(self.pair)
        if not path.is_dir():
            return None
        entropies, _, samples = token_doubts(path)
        rng = generator(self.params.compare.seed, f"{self.pair} token entropy")
        statistic = mean(entropies, samples)
        return cluster_interval(statistic, rng, resamples=self.params.compare.resamples)

    def passes(self, row: CalibrationRow) -> Interval:
        portion, train = section(self.params.methods, "methods")[self.pair], self.params.train
        total = section(self.params.standins, "standins").train
        first, end = portion.records or (0, total)
        return Interval.exact(train.steps * train.batch_size * train.accumulation / (end - first))


_MEASURES: dict[str, Any] = {
    name: getattr(PairCalibration, name)
    for name in (
        *("level", "difference", "above_chance", "entropy_error", "calibration_error"),
        *("token_entropy", "passes"),
    )
}
