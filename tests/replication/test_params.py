"""The parameter file: every mistake is one clear error that names the key, and nothing else."""

import copy
import dataclasses
import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from grace.errors import InputError
from replication.base.code import closure
from replication.base.files import ROOT
from replication.base.scales import SCALES
from replication.benchmarks import BENCHMARKS
from replication.settings import schema as module
from replication.settings.checks import check_architectures, load_params, parse_params
from replication.settings.scales import scale_params
from replication.settings.schema import Params
from replication.train.runs import method_config

COMMITTED = yaml.safe_load((ROOT / "params.yaml").read_text())
BY_NAME = (
    *("teacher.qwen2_vl", "baseline.qwen2_vl", "vision.qwen2_vl"),
    "coefficients.code",
)
NAMED = {name.partition(".")[0] for name in BY_NAME}
SECTIONS = sorted(
    set(COMMITTED) - {"scale", "arithmetic", "families", "pairs", "methods", "runs", *NAMED}
)
RUNS = "runs.llava_controls.models"
GRACE = "runs.qwen2_vl_runs.models"
QAT = COMMITTED["runs"]["llava_controls"]["models"]["qat_int4"]


def changed(path: str, value=..., base=None) -> dict:
    """The committed parameters with one key set, or removed where no value is given."""
    content = copy.deepcopy(COMMITTED if base is None else base)
    *parents, last = path.split(".")
    place = content
    for name in parents:
        place = place[name]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return content


def refused(content) -> str:
    with pytest.raises(InputError) as caught:
        parse_params(content)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_the_committed_file_is_that_of_scale_small():
    params = load_params(ROOT / "params.yaml")
    assert params.scale == "small"
    assert params.data is None
    assert params == parse_params(scale_params("small"))


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_has_valid_parameters(scale):
    params = parse_params(scale_params(scale))
    assert params.scale == scale
    for group in params.runs.values():
        for run in group.models.values():
            assert method_config(params, run).bits == run.bits
    if scale != "paper":
        check_architectures(params)


@pytest.mark.parametrize(
    "name",
    sorted({"scale", "families", "pairs", "methods", "runs", *NAMED, *SECTIONS} - {"regimes"}),
)
def test_a_missing_section_is_named(name):
    assert repr(name) in refused(changed(name))


def required(name: str) -> list[str]:
    kind = getattr(module, name.partition(".")[0].title().replace("_", ""), None)
    if kind is None:
        return []
    fields = dataclasses.fields(kind)
    none = dataclasses.MISSING
    return [f.name for f in fields if f.default is none and f.default_factory is none]


@pytest.mark.parametrize(
    "path", [f"{n}.{key}" for n in (*SECTIONS, *BY_NAME) for key in required(n)]
)
def test_a_missing_key_is_named(path):
    section, _, key = path.rpartition(".")
    text = refused(changed(path))
    assert section in text
    assert repr(key) in text


@pytest.mark.parametrize("section", ["", "runs.gates", f"{RUNS}.qat_int4", *SECTIONS, *BY_NAME])
def test_an_unknown_key_is_named(section):
    text = refused(changed(f"{section}.sede".lstrip("."), 1))
    assert "'sede'" in text
    assert "known: " in text


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("standins.vocabsize", "vocab_size"),
        ("train.learning_rat", "learning_rate"),
        (f"{RUNS}.qat_int4.seed", "seeds"),
        ("runs.gates.piar", "pair"),
        ("coefficients.code.distillation.tua", "tau"),
        (f"{GRACE}.grace_int4.distillation", None),
        ("evaluates", "evaluate"),
    ],
)
def test_the_nearest_name_is_offered(path, near):
    if near is None:
        assert "'rcka_weight'" in refused(changed(path, {"rcka_weigth": 0.5}))
    else:
        assert f"{near!r}" in refused(changed(path, 1))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("scale", "smal", "did you mean 'small'"),
        ("scale", 3, "3"),
        ("teacher", {"qwen2vl": COMMITTED["teacher"]["qwen2_vl"]}, "the same ones"),
        ("baseline", {"llava": COMMITTED["baseline"]["qwen2_vl"]}, "the same ones"),
        ("pairs.qwen2_vl.start", "alignment/qwen2", "did you mean 'alignment/qwen2_vl'"),
        ("pairs.qwen2_vl.start", "qwen2_vl", "'qwen2_vl'"),
        ("pairs.qwen2_vl.start", None, "start None"),
        ("pairs.qwen2_vl.vision", "qwen3_vl", "of another family or world"),
        ("pairs.qwen2_vl_pair2.world", "second", "of another family or world"),
        ("pairs.qwen2_vl.world", "third", "'third'"),
        ("pairs.qwen2_vl_pair2.family", "qwen2vl", "did you mean 'qwen2_vl'"),
        ("pairs.qwen2_vl.family", "llava", "pairs lacks 'qwen2_vl'"),
        ("families", ["llava", "llava"], "each once"),
        ("families", ["llava", "qwen2vl"], "qwen2vl"),
        ("teacher.qwen2_vl.records", [0, 28001], "of 28000"),
        ("teacher.qwen2_vl.records", [5, 5], "give the first row"),
        ("teacher.qwen2_vl.records", [0, 1, 2], "[0, 1, 2]"),
        ("teacher.qwen2_vl.labels", "wrong", "'wrong'"),
        ("standins.wrong_labels", 0.0, "labels is 'noisy' and standins.wrong_labels is 0"),
        ("methods.qwen2_vl.records", [0, 99999], "methods.qwen2_vl.records"),
        ("regimes.pair", "qwen2vl", "did you mean 'qwen2_vl'"),
        ("regimes.models.teacher_noisy.like", "student", "'student'"),
        ("regimes.models", {"teacher": {"like": "teacher"}}, "'teacher'"),
        ("runs.gates.teacher", "qwen2_vl/teacher", "takes no key 'teacher'"),
        ("runs.gates.records", [0, 4], "takes no key 'records'"),
        ("runs.regime_all_clean_same.teacher", "regimes/baseline_all", "known: qwen2_vl/teacher"),
        ("runs.regime_all_clean_same.baseline", None, "baseline None"),
        ("standins", None, "'standins'"),
        ("standins.seed", 1.5, "1.5"),
        ("standins.seed", True, "True"),
        ("standins.train", 0, "at least 1"),
        ("standins.captions", 1.5, "at most 1"),
        ("standins.noise", "6", "'6'"),
        ("standins.noise", math.nan, "nan"),
        ("vision.qwen2_vl.learning_rate", math.inf, "inf"),
        ("vision.qwen2_vl.learning_rate", 10**400, "must be a number"),
        ("vision.qwen2_vl.config", [1], "[1]"),
        ("vision.qwen2_vl.config", {1: 2}, "key 1"),
        ("teacher.qwen2_vl.text", "large", "'large'"),
        ("teacher.qwen2_vl.text", {}, "'text'"),
        ("teacher.qwen2_vl.steps", 0, "'steps'"),
        ("train.learning_rate", "1e-5", "1.0e-5"),
        ("train.learning_rate", -0.1, "-0.1"),
        ("train.batch_size", 0, "at least 1"),
        ("train.steps", 0, "exactly one"),
        ("train.epochs", 3.0, "exactly one"),
        ("train.devices", 2, "train.devices"),
        ("train.max_length", 64, "train.max_length"),
        ("train.group_size", [128], "[128]"),
        ("train.group_size", "rows", "'rows'"),
        ("train.init", "mean", "'mean'"),
        ("train.gradient_checkpointing", 1, "1"),
        ("coefficients.code.distillation.tau", "low", "'low'"),
        ("train.coefficients", "cod", "did you mean 'code'"),
        ("coefficients.launcher.steps", 0, "at least 1"),
        ("runs", [], "[]"),
        ("runs", {1: COMMITTED["runs"]["gates"]}, "key 1"),
        ("runs", {"../x": COMMITTED["runs"]["gates"]}, "'../x'"),
        ("runs", {"qwen2_vl": COMMITTED["runs"]["gates"]}, "'qwen2_vl'"),
        ("runs.gates.pair", "qwen2vl", "did you mean 'qwen2_vl'"),
        ("runs.gates.models", {}, "runs.gates.models is empty"),
        ("runs.gates.models", {"qat_int4": QAT}, "a run of this name in qwen2_vl_controls"),
        (RUNS, {"../x": QAT}, "'../x'"),
        (RUNS, {"teacher": QAT}, "'teacher'"),
        (f"{RUNS}.qat_int4.group_size", 48, "48"),
        (f"{RUNS}.sft_bf16.group_size", 64, "'group_size'"),
        (f"{RUNS}.qat_int4.shuffled_teacher", True, "'shuffled_teacher'"),
        (f"{RUNS}.qat_int4.learning_rate", -1.0, "-1.0"),
        (f"{RUNS}.qat_int4.method", "qta", "did you mean 'qat'"),
        (f"{RUNS}.qat_int4.bits", 16, "16 bits"),
        (f"{RUNS}.qat_int4.bits", 9, "9"),
        (f"{RUNS}.sft_bf16.bits", 4, "4 bits"),
        (f"{RUNS}.qat_int4.seeds", [], f"{RUNS}.qat_int4.seeds is []; name each once"),
        (f"{RUNS}.qat_int4.seeds", [0, 0], "[0, 0]"),
        (f"{RUNS}.qat_int4.seeds", [-1], "-1"),
        (f"{RUNS}.qat_int4.seeds", 0, "0"),
        (f"{RUNS}.qat_int4.distillation", {"tau": 0.1}, "'qat'"),
        (f"{RUNS}.qat_int4.coefficients", "launcher", "'coefficients'"),
        (f"{GRACE}.grace_int4.coefficients", "launchr", "did you mean 'launcher'"),
        (f"{GRACE}.grace_int4.length", 0, "greater than 0"),
        (f"{GRACE}.grace_int4.start", "grace_bf15", "did you mean 'grace_bf16'"),
        (f"{GRACE}.grace_int4.start", "grace_int8", "name a run of 16"),
        (f"{GRACE}.grace_bf16.start", "grace_bf16", "start from each other"),
        ("evaluate.benchmarks.gates", [], "[]"),
        ("evaluate.benchmarks.gates", ["mmbench", "mmbench"], "each once"),
        ("evaluate.benchmarks.gates", ["mmbensh"], "did you mean 'mmbench'"),
        ("evaluate.benchmarks.gate", ["mmbench"], "did you mean 'gates'"),
        ("evaluate.benchmarks", {"gates": ["mmbench"]}, "lacks llava, qwen2_vl"),
        ("evaluate.dtype", "float23", "did you mean 'float32'"),
        ("internals.families", [], "at least one"),
        ("internals.families", ["llava", "llava"], "each once"),
        ("internals.families", ["qwen2vl"], "did you mean 'qwen2_vl'"),
        ("internals.samples", 3, "the first 4"),
        ("internals.scenes", 0, "at least 1"),
        ("internals.bins", 0, "at least 1"),
        ("train.gradient_factor", "yes", "'yes'; it must be true or false"),
        ("evaluate.processes", "al", "did you mean 'all'"),
        ("evaluate.processes", 0, "at least 1 or 'all'"),
        (
            "tuning.candidates.qat",
            ["qat_int4", 3],
            "qat[1] is 3; it must be text",
        ),
        ("tuning.candidates.qat", [], "the same number"),
        ("teacher_outputs.baselines", [], "add 'qwen2_vl' to teacher_outputs.baselines"),
        ("teacher_outputs.baselines", ["qwen2_vl", "qwen2vl"], "did you mean 'qwen2_vl'"),
        ("runs.self_distillation.models.qad_int4.start", "qad_int8", "remove the key 'start'"),
        ("data", {"training": {"files": ["a"], "images": "b"}, "benchmarks": {}}, "'data'"),
    ],
)
def test_a_wrong_value_is_named(path, value, message):
    text = refused(changed(path, value))
    assert message in text
    assert any(part in text for part in path.split("."))


@pytest.mark.parametrize(
    ("path", "message"),
    [("data", "'data'"), ("teacher.llava.source", "'source'"), ("train.epochs", "exactly one")],
)
def test_scale_paper_lacks_nothing(path, message):
    assert message in refused(changed(path, base=scale_params("paper")))


@pytest.mark.slow
def test_scale_paper_is_the_published_set_up():
    params = parse_params(scale_params("paper"))
    train = params.train
    assert train.batch_size * train.accumulation * train.devices == 512
    assert (train.epochs, train.learning_rate, train.max_length) == (3.0, 1e-5, 8192)
    assert {family: (params.teacher[family].source, params.baseline[family].source)
            for family in params.families} == {
        "llava": ("llava-hf/llava-1.5-13b-hf", "llava-hf/llava-1.5-7b-hf"),
        "qwen2_vl": ("Qwen/Qwen2-VL-7B-Instruct", "Qwen/Qwen2-VL-2B-Instruct"),
        "qwen3_vl": ("Qwen/Qwen3-VL-8B-Instruct", "Qwen/Qwen3-VL-2B-Instruct"),
    }  # fmt: skip
    assert params.data is not None
    training = params.data.training
    assert training.repository == "Lin-Chen/ShareGPT4V"
    assert training.files == ["sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k.json"]
    assert training.samples is None
    asked = {name for names in params.evaluate.benchmarks.values() for name in names}
    assert set(params.data.benchmarks) == asked == set(BENCHMARKS)


def test_the_published_benchmarks_are_those_of_the_official_tasks():
    """The names in the parameters against the official task files themselves."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    params = parse_params(scale_params("paper"))
    assert params.data is not None

    def read(path):
        task = yaml.load(path.read_text(), Loader)
        return read(path.parent / task["include"]) | task if "include" in task else task

    for name, source in params.data.benchmarks.items():
        task = read(BENCHMARKS[name].official_path)
        assert source.repository == task["dataset_path"]
        assert source.subset == task.get("dataset_name")
        assert source.split == task["test_split"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("vision.qwen2_vl.config.dept", "'dept'"),
        ("vision.qwen2_vl.config.patch", "did you mean 'patch_size'"),
        ("teacher.qwen2_vl.text.hiden_size", "did you mean 'hidden_size'"),
        ("baseline.qwen2_vl.text.hidden_size", "baseline.qwen2_vl.text"),
    ],
)
def test_a_key_that_no_model_has_is_named(path, message):
    params = parse_params(changed(path, "256"))
    with pytest.raises(InputError, match=r"text|config") as caught:
        check_architectures(params)
    assert message in str(caught.value)


def test_an_unknown_name_names_the_nearest():
    params: Params = parse_params(COMMITTED)
    assert params.group("gates").pair == "qwen2_vl" == params.known_family("qwen2_vl")
    assert params.family_of("qwen2_vl_ptq") == params.family_of("qwen2_vl") == "qwen2_vl"
    for ask in (params.group, params.family_of):
        with pytest.raises(InputError, match="did you mean 'gates'"):
            ask("gate")
    with pytest.raises(InputError, match="did you mean 'qwen2_vl'"):
        params.known_family("qwen2vl")


def test_a_file_is_named(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("scale: small\nscale: smoke\n")
    with pytest.raises(InputError, match=r"params\.yaml', line 2: the key 'scale' appears twice"):
        load_params(path)
    path.write_text("scale: small\n")
    with pytest.raises(InputError, match=r"params\.yaml: the file lacks the key 'families'"):
        load_params(path)


def test_the_schema_needs_nothing_but_the_base():
    """So that a new benchmark or method changes no stage's code but those that run it."""
    rooms = {path.relative_to(ROOT).parts[:2] for path in closure("replication.settings.schema")}
    assert {room for owner, room in rooms if owner == "replication"} <= {
        *("__init__.py", "base", "settings")
    }
    assert not {("grace", "training"), ("grace", "quantization")} & rooms


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(max_size=8)
    | st.dates()
    | st.binary(max_size=4)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3),
    max_leaves=6,
)


def paths(content, prefix=()):
    yield prefix
    if isinstance(content, dict):
        for key, value in content.items():
            yield from paths(value, (*prefix, key))
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from paths(value, (*prefix, index))


PLACES = [path for path in paths(COMMITTED) if path]


def parsed_or_refused(content) -> None:
    try:
        assert isinstance(parse_params(content), Params)
    except InputError as error:
        assert "\n" not in str(error)


@given(st.dictionaries(st.sampled_from([*COMMITTED, "x"]) | SCALARS, VALUES, max_size=4))
@settings(max_examples=100)
def test_garbage_is_refused(content):
    parsed_or_refused(content)


@pytest.mark.slow
@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=3))
@settings(max_examples=150)
def test_garbage_in_valid_parameters_is_refused_or_valid(changes):
    content = copy.deepcopy(COMMITTED)
    for path, value in changes:
        place = content
        try:
            for step in path[:-1]:
                place = place[step]
            place[path[-1]] = value
        except (KeyError, TypeError, IndexError):
            continue  # an earlier change took the place away
    parsed_or_refused(content)


def test_a_subset_is_what_a_stage_reads():
    params = parse_params(COMMITTED)
    names = ("compare.resamples", "runs.gates.pair", "data.benchmarks", "train.coefficients")
    assert params.subset(*names) == {
        "compare.resamples": 10000,
        "runs.gates.pair": "qwen2_vl",
        "data.benchmarks": None,
        "train.coefficients": "code",
    }
    before = params.subset("entropy_error", "evaluate.dtype")
    other = parse_params(changed("evaluate.batch_size", 3))
    assert other.subset("entropy_error", "evaluate.dtype") == before
    with pytest.raises(KeyError):
        params.subset("compare.sedes")
