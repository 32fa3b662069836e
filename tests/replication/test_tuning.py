"""The grids: equal budgets, the best of each method, and a page that says what was tried."""

import pytest
import yaml

from grace.errors import InputError
from replication.base.files import ROOT
from replication.measure.tuning import best, describe, with_candidates
from replication.settings.checks import parse_params
from replication.settings.scales import scale_params

PARAMS = parse_params(scale_params("small"))


def record(method, score, **more):
    return {"method": method, "learning_rate": 1e-3, "distillation": {}, "score": score, **more}


def test_every_candidate_is_a_run_of_its_own_settings():
    full, group = with_candidates(PARAMS, "qwen2_vl")
    models = full.runs[group].models
    assert len(models) == sum(map(len, PARAMS.tuning.candidates.values()))
    for method, candidates in PARAMS.tuning.candidates.items():
        for index, candidate in enumerate(candidates):
            run = models[f"{method}_{index}"]
            assert (run.method, run.bits, run.seeds) == (method, 4, [PARAMS.tuning.seed])
            assert run.learning_rate == candidate.learning_rate
            assert run.distillation == candidate.distillation
    assert group not in PARAMS.runs


def test_the_published_learning_rate_and_the_run_s_own_are_among_the_candidates():
    for candidates in PARAMS.tuning.candidates.values():
        rates = [candidate.learning_rate for candidate in candidates if not candidate.distillation]
        assert {1e-5, PARAMS.train.learning_rate} <= set(rates)


def test_the_seed_is_not_one_of_the_evaluation():
    assert PARAMS.tuning.seed != PARAMS.standins.seed


def test_the_best_of_every_method_is_chosen():
    records = [record("qat", 3.0), record("kd", 5.0), record("qat", 4.0), record("qat", 4.0)]
    assert best(records) == {"qat": records[2], "kd": records[1]}
    assert best(records)["qat"] is records[2]


def test_the_page_says_what_was_tried():
    tried = [record("qat", 3.0), record("grace", 5.0, distillation={"tau": 3.0})]
    page = describe(PARAMS, "qwen2_vl", tried)
    assert "| grace | 0.001 | tau 3.0 | 5.00 | best |" in page
    assert "| qat | 0.001 | none | 3.00 | best |" in page


@pytest.mark.parametrize(
    ("method", "candidates", "told"),
    [
        ("qat", [{}], "the same number"),
        ("qat", [{"distillation": {"tau": 1.0}}] + [{}] * 5, "'distillation'"),
        ("kd", [{"distillation": {"tua": 1.0}}] + [{}] * 5, "did you mean 'tau'"),
        ("kdd", [{}] * 6, "did you mean 'kd'"),
        ("kd", [{"learning_rate": -1.0}] + [{}] * 5, "-1.0"),
    ],
)
def test_a_wrong_candidate_is_named(method, candidates, told):
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["tuning"]["candidates"][method] = candidates
    with pytest.raises(InputError, match="tuning") as caught:
        parse_params(content)
    assert told in str(caught.value)
