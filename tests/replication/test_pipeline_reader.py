"""The pipeline read without DVC is the pipeline that DVC reads."""

import pytest
import yaml
from repository import copy_repository

from grace.errors import InputError
from replication.settings.pipeline import Stage, ancestors, in_order, producers, read_pipeline
from replication.settings.scales import scale_params, workspace


@pytest.fixture(scope="module", params=["small", "smoke"])
def both(request, tmp_path_factory):
    """The stages as read here, and DVC's graph of them."""
    from dvc.repo import Repo

    folder = copy_repository(tmp_path_factory.mktemp(request.param))
    if request.param == "small":
        (folder / ".dvc" / "config").write_text("[core]\n    no_scm = True\n")
    else:
        folder = workspace(request.param, folder)
    with Repo(str(folder)) as repo:
        graph = repo.index.graph
        stages = {stage.name: stage for stage in repo.index.stages}
        edges = {stage.name: {other.name for other in graph[stage]} for stage in graph}
        told = {
            name: {
                "cmd": stage.cmd,
                "deps": {d.def_path for d in stage.deps if d.def_path != "params.yaml"},
                "params": {
                    p
                    for d in stage.deps
                    for p in getattr(d, "params", [])
                    if d.def_path == "params.yaml"
                },
                "outs": {out.def_path for out in stage.outs},
                "persistent": {out.def_path for out in stage.outs if out.persist},
            }
            for name, stage in stages.items()
        }
    return read_pipeline(folder / "dvc.yaml", scale_params(request.param)), told, edges


@pytest.mark.slow
def test_stages_are_dvcs(both):
    """Addresses, commands, dependencies, parameters and outputs, foreach expanded."""
    read, told, _ = both
    assert len({stage.name for stage in read}) == len(read)
    assert {
        stage.name: {
            "cmd": stage.cmd,
            "deps": set(stage.deps),
            "params": set(stage.params),
            "outs": set(stage.outs),
            "persistent": set(stage.persistent),
        }
        for stage in read
    } == told


@pytest.mark.slow
def test_order_is_one_of_dvcs_graph(both):
    """Each stage waits for just the stages that DVC has it wait for, and comes after them."""
    read, _, edges = both
    done: set[str] = set()
    for stage in read:
        assert {other.name for other in producers(stage, read)} == edges[stage.name], stage.name
        assert edges[stage.name] <= done, stage.name
        done.add(stage.name)
    assert done == set(edges)


def stage(name, deps=(), outs=()):
    return Stage(name, "python x", tuple(deps), (), tuple(outs), frozenset())


def test_ancestors_are_direct_and_indirect():
    stages = [stage("a", (), ["x/a"]), stage("b", ["x"], ["y"]), stage("c", ["y/part"], ["z"])]
    assert [one.name for one in ancestors(stages[2], stages)] == ["a", "b"]
    assert in_order([stages[2], stages[1], stages[0]]) == stages


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([stage("a", ["y"], ["x"]), stage("b", ["x"], ["y"])], "wait for each other: a -> b -> a"),
        ([stage("a", (), ["x"]), stage("b", (), ["x/y"])], "both write x/y"),
    ],
)
def test_what_has_no_order_is_refused(stages, message):
    with pytest.raises(InputError, match=message):
        in_order(stages)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"cmd": "python ${nothing}"}, "names 'nothing'"),
        ({"foreach": "${scale}", "do": {"cmd": "x"}}, "takes a mapping or a list"),
        ({"foreach": [1], "do": {"cmd": "x"}, "cmd": "x"}, "takes do alone"),
        ({"cmd": "x", "matrix": [1]}, "matrix, which is not known"),
        ({"cmd": "x", "outs": [{"y": {"remote": "z"}}]}, "remote, which is not known"),
        ({"cmd": "x", "deps": [{"other.yaml": None}]}, "not a plain name"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path, body, message):
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"a": body}}))
    with pytest.raises(InputError, match=message):
        read_pipeline(tmp_path / "dvc.yaml", {"scale": "small"})
