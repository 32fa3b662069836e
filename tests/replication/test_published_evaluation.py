"""Official tasks on data in the published layout: one score by every way, kept when finished."""

import dataclasses
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from hypothesis import given
from hypothesis import strategies as st
from test_evaluation import columns_of, features_of

from grace.errors import InputError
from grace.files import directory_sha256
from replication import benchmarks as tasks
from replication.base import hub
from replication.benchmarks import published
from replication.benchmarks.published import prepare
from replication.data.mirror import (
    COMMIT,
    add_benchmark,
    add_repository,
    card,
    sources,
)
from replication.evaluate import jobs, parts
from replication.evaluate.parts import EvaluationError, Request, open_benchmarks
from replication.evaluate.score import evaluate_model
from replication.results import scores as results
from replication.settings.checks import parse_params
from replication.settings.scales import merge, scale_params
from replication.settings.schema import Source

lmms_model = pytest.importorskip("grace.evaluation.lmms", reason="lmms-eval is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

NAMES = sorted(tasks.BENCHMARKS)
COUNT = 12
TWO = ["mmbench", "pope"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A mirror with all benchmarks, and what it was made of."""
    folder = tmp_path_factory.mktemp("published")
    for name in NAMES:
        add_benchmark(folder / "hub", name, folder / "scratch", COUNT)
    return folder


@pytest.fixture(scope="module")
def data(place):
    views, hub_ = place / "views", place / "hub"
    return {name: prepare(tasks.get(name), sources()[name], views, hub_) for name in NAMES}


@pytest.fixture
def request_of(tmp_path, place, data, speaker_dir):
    """A function that makes a request of the small model."""

    def make(names=TWO, **changes):
        request = {
            "model": str(speaker_dir),
            "data": {name: data[name] for name in names},
            "parts": str(tmp_path / "parts"),
            "cache": str(place / "tables"),
            "weights": directory_sha256(speaker_dir),
            "batch_size": 1,
            "max_new_tokens": 3,
            "dtype": "float32",
            "device": "cpu",
        }
        return Request(**request | changes)

    return make


# ------------------------------------------------------------------------------ the path to a score


@pytest.mark.slow
def test_every_benchmark_from_a_mirror_is_scored_as_from_its_file(place, data, speaker, processor):
    """The same questions as a plain file of the same schema: every answer and score is the same."""
    options = {"processor": processor, "max_new_tokens": 4}
    flat = evaluate_model(speaker, NAMES, place / "scratch", **options)
    found = evaluate_model(speaker, NAMES, data, cache=place / "tables", **options)
    assert flat.outcomes["prediction"].nunique() > 50, "answers have to differ"
    pd.testing.assert_frame_equal(found.outcomes, flat.outcomes)
    assert found.scores == flat.scores
    assert found.entropies == flat.entropies
    for name in NAMES:
        assert data[name].repository == sources()[name].repository
        assert data[name].commit == COMMIT


@pytest.mark.slow
def test_the_tasks_are_asked_under_their_own_names(place, data, speaker, processor, answering):
    asked = answering(lambda *_: "A")
    result = evaluate_model(speaker, NAMES, data, processor=processor, cache=place / "tables")
    assert asked == [tasks.get(name).official_name for name in NAMES]
    official = {name: score["official_task"] for name, score in result.scores.items()}
    assert official == {name: tasks.get(name).official_name for name in NAMES}
    text = tasks.get("mmbench").official_path.read_text()
    assert f'task: "{official["mmbench"]}"' in text


def published_table(mirror, name, columns, features):
    """A benchmark's published data from columns."""
    source = sources()[name]
    mirror.mkdir(exist_ok=True)
    table = mirror.parent / f"{name}.parquet"
    Dataset.from_dict(columns, features=features).to_parquet(table)
    subset = source.subset or "default"
    files = {f"data/{source.split}-00000-of-00001.parquet": table}
    files["README.md"] = card([(subset, {source.split: f"data/{source.split}-*"})])
    add_repository(mirror, source.repository, "dataset", files)
    return prepare(tasks.get(name), source, mirror.parent / "views", mirror)


def rotated(count):
    """MMBench's rows with every rotation of four options, as published: index + k · 10⁶."""
    base = columns_of("mmbench", count)
    options = [base[letter] for letter in "ABCD"]
    rows = []
    for turn in range(4):
        for i in range(count):
            row = {key: values[i] for key, values in base.items()}
            row["index"] = i + 1 + turn * 1_000_000
            for place_, letter in enumerate("ABCD"):
                row[letter] = options[(place_ + turn) % 4][i]
            row["answer"] = "ABCD"["ABCD".index(base["answer"][i]) - turn]
            rows.append(row)
    return {key: [row[key] for row in rows] for key in rows[0]}


@pytest.mark.slow
def test_a_rotated_question_counts_once_and_only_if_all_rotations_are_right(
    tmp_path, speaker, processor, answering
):
    """Six questions in four rotations; three are answered wrong in one, two or all of them."""
    columns = rotated(6)
    source = published_table(tmp_path / "hub", "mmbench", columns, features_of("mmbench"))
    wrong = {(2, 0), (3, 1), (3, 3), (5, 0), (5, 1), (5, 2), (5, 3)}

    def answer(_, row):
        question, turn = row % 6, row // 6
        right = columns["answer"][row]
        return {"A": "B"}.get(right, "A") if (question, turn) in wrong else right

    answering(answer)
    result = evaluate_model(speaker, ["mmbench"], {"mmbench": source}, processor=processor)
    score = result.scores["mmbench"]
    assert score["score"] == pytest.approx(50.0)  # and the official aggregation says the same
    assert score["n"] == 6
    assert score["chance"] == pytest.approx(100 * 0.25**4)
    assert score["standard_error"] == pytest.approx(100 * (0.25 / 6) ** 0.5)
    outcomes = result.outcomes
    assert outcomes["question_id"].tolist() == [str(i + 1) for i in range(6)]
    assert outcomes["credit"].tolist() == [1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    assert outcomes["prediction"][0] == " | ".join(columns["answer"][0::6])


@pytest.mark.slow
def test_questions_of_cognition_are_asked_and_do_not_enter_the_perception_score(
    tmp_path, speaker, processor, answering
):
    rows = [
        (f"{category}/{i}.png", answer, category)
        for category in ("existence", "color", "code_reasoning")
        for i in range(2)
        for answer in ("Yes", "No")
    ]
    columns = columns_of("mmbench", len(rows))
    table = {
        "question_id": [row[0] for row in rows],
        "question": columns["question"],
        "answer": [row[1] for row in rows],
        "category": [row[2] for row in rows],
        "image": columns["image"],
    }
    text = Value("string")
    features = Features({key: Image() if key == "image" else text for key in table})
    source = published_table(tmp_path / "hub", "mme", table, features)
    # all of existence right, color always yes, code reasoning all right
    answering(lambda _, row: "Yes" if rows[row][2] == "color" else rows[row][1])
    result = evaluate_model(speaker, ["mme"], {"mme": source}, processor=processor)
    score = result.scores["mme"]
    assert score["score"] == pytest.approx(200 + 50)
    assert score["other_metrics"]["mme_cognition_score"] == pytest.approx(200)
    assert score["n"] == 8
    assert score["chance"] == pytest.approx(150)
    assert set(result.outcomes["skill"]) == {"existence", "color"}


@pytest.mark.slow
def test_ids_that_occur_twice_are_told_apart(tmp_path, speaker, processor, answering):
    columns = columns_of("seedbench", 5)
    columns["question_id"] = ["a", "b", "a", "a", "c"]
    source = published_table(tmp_path / "hub", "seedbench", columns, features_of("seedbench"))
    answering(lambda *_: "A")
    result = evaluate_model(speaker, ["seedbench"], {"seedbench": source}, processor=processor)
    assert result.outcomes["question_id"].tolist() == ["a", "b", "a#2", "a#3", "c"]


@pytest.mark.slow
def test_features_of_the_readme_hold_where_the_file_has_none(
    tmp_path, speaker, processor, answering
):
    """A table written by another program: README.md alone says which column holds images."""
    from pyarrow import parquet

    source = sources()["mmstar"]
    columns = columns_of("mmbench", 4)
    table = {key: columns[key] for key in ("index", "question", "answer", "category", "image")}
    table["l2_category"] = ["a", "b", "a", "b"]
    text = Value("string")
    kinds = {"index": Value("int64"), "image": Image()}
    features = Features({key: kinds.get(key, text) for key in table})
    file = tmp_path / "mmstar.parquet"
    Dataset.from_dict(table, features=features).to_parquet(file)
    parquet.write_table(parquet.read_table(file).replace_schema_metadata(None), file)
    declared = [{"name": k, "dtype": "image" if k == "image" else "string"} for k in table]
    declared[0]["dtype"] = "int64"
    split = {"val": "mmstar.parquet"}
    for readme, told in (
        (card([("val", split)], dataset_info={"config_name": "val", "features": declared}), None),
        (card([("val", split)]), "column image holds no images"),
    ):
        mirror = tmp_path / f"hub{told is None}"
        files = {"mmstar.parquet": file, "README.md": readme}
        add_repository(mirror, source.repository, "dataset", files)
        found = prepare(tasks.get("mmstar"), source, tmp_path / "views", mirror)
        answering(lambda *_: "A")
        ask = {"processor": processor, "cache": tmp_path / "tables"}
        if told:
            with pytest.raises(InputError, match=told):
                evaluate_model(speaker, ["mmstar"], {"mmstar": found}, **ask)
        else:
            result = evaluate_model(speaker, ["mmstar"], {"mmstar": found}, **ask)
            assert result.scores["mmstar"]["n"] == 4


@pytest.mark.slow
def test_an_image_that_is_not_in_its_subset_is_named(tmp_path, speaker, processor):
    add_benchmark(tmp_path / "hub", "gqa", tmp_path / "scratch", 4, 1)
    source = prepare(tasks.get("gqa"), sources()["gqa"], tmp_path / "views", tmp_path / "hub")
    assert source.images is not None
    (file,) = Path(source.images.folder).glob("*.parquet")
    table = Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "t"))
    lost = table["id"][0]
    target = file.resolve()
    table.select(range(1, len(table))).to_parquet(target)
    with pytest.raises(InputError, match=f"gqa: image {lost!r} is not in .*fetch it again"):
        evaluate_model(speaker, ["gqa"], {"gqa": source}, processor=processor)


# ------------------------------------------------------------------------------- where the data are


README = card([("en", {"dev": "en/dev-*", "test": "en/test-*"}), ("cn", {"dev": ["cn/dev-*"]})])
DEV = [f"en/dev-{i:05d}-of-00003.parquet" for i in range(3)]


def split(subset, name):
    return published._Split("owner/name", subset, name)


@given(st.permutations([*DEV, "en/test-00000-of-00001.parquet", "cn/dev-00000-of-00001.parquet"]))
def test_the_files_of_a_split_in_order(names):
    assert published.split_files(README, names, split("en", "dev")) == (DEV, None)
    found, _ = published.split_files(README, names, split("cn", "dev"))
    assert found == ["cn/dev-00000-of-00001.parquet"]


@pytest.mark.parametrize(
    ("readme", "names", "wanted", "files"),
    [
        ("", ["data/val-00000-of-00001.parquet", "data/evaluation.parquet"], (None, "val"), 0),
        ("# no card", ["en/dev.parquet", "cn/dev.parquet"], ("cn", "dev"), 1),
        (card([("val", {"val": "x.parquet"})]), ["x.parquet", "y.parquet"], (None, "val"), 0),
        (card([("a", {"val": "a"}), ("default", {"val": "b*"})]), ["b.parquet"], (None, "val"), 0),
    ],
)
def test_names_decide_where_the_readme_does_not(readme, names, wanted, files):
    assert published.split_files(readme, names, split(*wanted))[0] == [names[files]]


def test_official_resolution_agrees(tmp_path):
    """`datasets` itself, where it may load a whole repository from a directory."""
    from datasets import load_dataset_builder

    table = tmp_path / "table.parquet"
    Dataset.from_dict({"x": [1]}).to_parquet(table)
    names = [*DEV, "en/test-00000-of-00001.parquet", "cn/dev-00000-of-00001.parquet"]
    snapshot = add_repository(
        tmp_path / "hub", "o/n", "dataset", {**dict.fromkeys(names, table), "README.md": README}
    )
    for subset in ("en", "cn"):
        builder = load_dataset_builder(str(snapshot), subset, cache_dir=str(tmp_path / "cache"))
        theirs = [str(Path(f).relative_to(snapshot)) for f in builder.config.data_files["dev"]]
        assert published.split_files(README, names, split(subset, "dev"))[0] == theirs


@pytest.mark.parametrize(
    ("readme", "names", "wanted", "told"),
    [
        (README, DEV[:2], ("en", "dev"), "1 of the 3 files en/dev-.* first is number 00002"),
        (README, DEV, ("en", "test"), "none of its files is there"),
        (README, DEV, ("de", "dev"), "'de': README.md lists no such subset"),
        (README, DEV, (None, "dev"), "lists no such subset"),
        (card([("a", {"dev": "*.json"})]), ["x.json"], ("a", "dev"), "x.json is no parquet file"),
    ],
)
def test_a_split_that_is_not_whole_is_refused(readme, names, wanted, told):
    with pytest.raises(InputError, match=told):
        published.split_files(readme, names, split(*wanted))


def test_a_mirror_may_be_a_cache_its_parent_or_plain_copies(tmp_path):
    snapshot = add_repository(tmp_path / "home" / "hub", "o/n", "dataset", {"a": "b"})
    assert hub.cached("o/n", "dataset", tmp_path / "home" / "hub") == snapshot
    assert hub.cached("o/n", "dataset", tmp_path / "home") == snapshot
    assert hub.commit_of(snapshot) == COMMIT
    assert hub.cached("o/n", "model", tmp_path / "home") is None
    shutil.copytree(snapshot, tmp_path / "plain" / "o" / "n")
    found = hub.cached("o/n", "dataset", tmp_path / "plain")
    assert found == tmp_path / "plain" / "o" / "n"
    assert hub.commit_of(found) is None
    with pytest.raises(InputError, match="nowhere' does not exist"):
        hub.cached("o/n", "dataset", tmp_path / "nowhere")


def test_the_snapshot_is_the_one_that_main_names(tmp_path):
    snapshot = add_repository(tmp_path, "o/n", "dataset", {"a": "b"})
    other = snapshot.with_name("f" * 40)
    shutil.copytree(snapshot, other)
    assert hub.cached("o/n", "dataset", tmp_path) == snapshot
    (snapshot.parent.parent / "refs" / "main").unlink()
    with pytest.raises(InputError, match="2 snapshots"):
        hub.cached("o/n", "dataset", tmp_path)
    shutil.rmtree(snapshot)
    assert hub.cached("o/n", "dataset", tmp_path) == other


def test_hashes_are_those_of_the_contents(tmp_path):
    """Read from a blob's name where that is one; the same as from a plain copy."""
    (tmp_path / "x").write_text("weights")
    snapshot = add_repository(tmp_path / "hub", "o/n", "model", {"a": tmp_path / "x", "b": "c"})
    plain = shutil.copytree(snapshot, tmp_path / "plain")
    assert directory_sha256(snapshot) == directory_sha256(plain)
    (plain / "a").write_text("Weights")
    assert directory_sha256(snapshot) != directory_sha256(plain)
    assert directory_sha256(snapshot, ["a"]) == directory_sha256(plain, ["a"])


def test_data_that_are_not_at_hand_are_named(tmp_path):
    benchmark, source = tasks.get("pope"), sources()["pope"]
    (tmp_path / "hub").mkdir()
    with pytest.raises(InputError, match=rf"{source.repository!r} is not in mirror"):
        prepare(benchmark, source, tmp_path / "views", tmp_path / "hub")
    snapshot = add_benchmark(tmp_path / "hub", "pope", tmp_path / "scratch", 4)
    next(snapshot.glob("*/*-00001-of-00002.parquet")).unlink()
    with pytest.raises(InputError, match=r"1 of the 2 files .* are missing"):
        prepare(benchmark, source, tmp_path / "views", tmp_path / "hub")
    with pytest.raises(InputError, match="names no split"):
        prepare(benchmark, Source("o/n"), tmp_path / "views", tmp_path / "hub")


def test_a_view_is_made_once_and_again_when_the_mirror_moved(tmp_path):
    source = sources()["pope"]
    add_benchmark(tmp_path / "hub", "pope", tmp_path / "scratch", 4)
    first = prepare(tasks.get("pope"), source, tmp_path / "views", tmp_path / "hub")
    inode = Path(first.folder).stat().st_ino
    assert prepare(tasks.get("pope"), source, tmp_path / "views", tmp_path / "hub") == first
    assert Path(first.folder).stat().st_ino == inode
    (tmp_path / "hub").rename(tmp_path / "moved")
    again = prepare(tasks.get("pope"), source, tmp_path / "views", tmp_path / "moved")
    assert again == first
    assert all(link.resolve(strict=True) for link in Path(again.folder).iterdir())


# ----------------------------------------------------------------------- processes and interruption


def scores_of(found):
    return {name: part.score for name, part in found.items()}


@pytest.mark.slow
def test_two_processes_give_what_one_gives(request_of, tmp_path):
    """Over gloo: the same answers, credits and scores, and parts that one process reads."""
    names = ["seedbench", "scienceqa"]
    data = {
        name: published_table(tmp_path / "hub", name, columns_of(name, 23), features_of(name))
        for name in names
    }
    request = request_of(names, data=data, batch_size=3, cache=str(tmp_path / "tables"))
    one = parts.evaluate(request)
    two = parts.evaluate(dataclasses.replace(request, parts=str(tmp_path / "two")), processes=2)
    assert scores_of(two) == scores_of(one)
    for name in names:
        assert (one[name].settings["processes"], two[name].settings["processes"]) == (1, 2)
        assert one[name].outcomes["prediction"].nunique() > 10
        pd.testing.assert_frame_equal(two[name].outcomes, one[name].outcomes)
    files = {p.name for p in (tmp_path / "two").iterdir()}
    assert files == {f"{name}.{kind}" for name in names for kind in ("json", "parquet")}


@pytest.mark.slow
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 30))
def test_shares_partition_the_batches(world, batch_size, count):
    """No question is left out or asked twice, and every batch is one of a single process."""

    class Chat(lmms_model.ChatModel):
        def __init__(self, share):  # no model
            self.share, self.batch_size, self.max_new_tokens = share, batch_size, 8

    def batches(rank):
        everything = Chat(lmms_model.Share())._batches(requests)
        return everything, everything[rank::world]

    requests = [
        dataclasses.make_dataclass("R", ["args"])(("q" * (1 + i % 7), {"max_new_tokens": 4}))
        for i in range(count)
    ]
    everything = batches(0)[0]
    shared = [batch for rank in range(world) for batch in batches(rank)[1]]
    assert sorted(i for _, batch in shared for i in batch) == list(range(count))
    assert sorted(shared) == sorted(everything)


@pytest.mark.weekly
@pytest.mark.slow
def test_a_process_that_fails_is_an_error_and_leaves_no_part(request_of, tmp_path, speaker_dir):
    broken = shutil.copytree(speaker_dir, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(EvaluationError, match="failed, see above"):
        parts.evaluate(request_of(model=str(broken)), processes=2)
    assert not (tmp_path / "parts").exists()


@pytest.mark.slow
def test_finished_benchmarks_are_kept_and_not_run_again(request_of, answering, monkeypatch):
    """The second benchmark's scorer meets an interruption; then only that one is asked again."""
    request = request_of()
    second = tasks.get(TWO[1]).official_name

    def interrupted(task, row):
        if task == second and row == 5:
            raise KeyboardInterrupt
        return "A"

    asked = answering(interrupted)
    with pytest.raises(KeyboardInterrupt):
        parts.evaluate(request)
    assert open_benchmarks(request) == [TWO[1]]
    names = {path.name for path in Path(request.parts).iterdir()}
    assert names == {f"{TWO[0]}.json", f"{TWO[0]}.parquet"}
    asked = answering(lambda *_: "B")
    both = parts.evaluate(request)
    assert asked == [second]
    assert set(both[TWO[0]].outcomes["prediction"]) != {"B"}
    assert set(both[TWO[1]].outcomes["prediction"]) == {"B"}
    answering(lambda *_: pytest.fail("asked again"))
    monkeypatch.setattr(parts, "load", lambda _: pytest.fail("loaded again"))
    assert scores_of(parts.evaluate(request)) == scores_of(both)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"weights": "other"}, {"batch_size": 2}, {"max_new_tokens": 4}, {"limit": 6}, "data", "task"],
)
def test_a_part_of_another_origin_does_not_count(request_of, answering, monkeypatch, changes):
    answering(lambda *_: "A")
    request = request_of(["pope"])
    parts.evaluate(request)
    assert open_benchmarks(request) == []
    if changes == "data":
        changes = {"data": {"pope": dataclasses.replace(request.data["pope"], sha256="x")}}
    elif changes == "task":
        monkeypatch.setattr(tasks.Benchmark, "sha256", lambda _: "x")
        changes = {}
    assert open_benchmarks(dataclasses.replace(request, **changes)) == ["pope"]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["half a record", "other outcomes"])
def test_a_damaged_part_does_not_count(request_of, answering, damage):
    answering(lambda *_: "A")
    request = request_of(["pope"])
    parts.evaluate(request)
    record, outcomes = (Path(request.parts) / f"pope.{kind}" for kind in ("json", "parquet"))
    if damage == "half a record":
        record.write_text(record.read_text()[:100])
    else:
        frame = pd.read_parquet(outcomes)
        frame.assign(credit=1.0).to_parquet(outcomes)
    assert open_benchmarks(request) == ["pope"]
    asked = answering(lambda *_: "no")
    parts.evaluate(request)
    assert asked == ["pope"]


# ---------------------------------------------------------------------------------------- the stage


@pytest.fixture
def paper(tmp_path, monkeypatch, speaker_dir, place):
    """Scale paper with small models in the place of the published ones, and the mirror as cache."""
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "hub"))
    content = scale_params("paper")
    content["evaluate"]["benchmarks"] = {
        folder: TWO for folder in content["evaluate"]["benchmarks"]
    }
    content = merge(content, {"evaluate": {"dtype": "float32", "processes": 1}})
    params = parse_params(content)
    for job in jobs.jobs_of(params, "llava"):
        for path in job.paths.values():
            shutil.copytree(speaker_dir, path)
    return params


@pytest.mark.slow
def test_the_stage_writes_results_of_scale_paper(paper, answering, capfd):
    answering(lambda task, row: "yes" if task == "pope" else "A")
    jobs.evaluate_folder(paper, "llava")
    found = results.ResultSet("results", "paper")
    assert found.runs("llava") == ["baseline", "teacher"]
    scores = found.scores("llava", "baseline")
    assert not scores.standin
    assert scores.benchmarks == ["MMBench", "POPE"]
    assert scores.provenance["data"]["POPE"]["commit"] == COMMIT
    assert scores.provenance["settings"]["batch_size"] == 1
    assert scores.provenance["settings"]["lmms_eval"] == tasks.official_version()
    (answers,) = found.answers("llava", ["baseline"], scores.benchmarks)
    assert answers.score(["POPE"]) == pytest.approx(scores.score("POPE"))
    # nothing changed: nothing is asked, and the files stay
    before = {p: p.stat().st_mtime_ns for p in Path("results").rglob("*") if p.is_file()}
    asked = answering(lambda *_: "B")
    jobs.evaluate_folder(paper, "llava")
    assert asked == []
    assert before == {p: p.stat().st_mtime_ns for p in Path("results").rglob("*") if p.is_file()}
    # the results are lost and the finished benchmarks are not
    shutil.rmtree("results")
    jobs.evaluate_folder(paper, "llava")
    assert asked == []
    assert results.ResultSet("results", "paper").scores("llava", "baseline") == scores


@pytest.mark.slow
def test_the_stage_names_data_that_are_missing(paper, monkeypatch, tmp_path):
    from huggingface_hub import constants

    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(InputError, match="'lmms-lab-encoder/MMBench' is not in the hub's cache"):
        jobs.evaluate_folder(paper, "llava")
    assert not Path("results").exists()


def test_the_protocol_of_scale_paper_is_pinned():
    settings = parse_params(scale_params("paper")).evaluate
    assert settings.batch_size == 1
    assert settings.dtype == "bfloat16"
    assert settings.processes == "all"
    assert parts.count_processes("all") == max(1, torch.cuda.device_count())
    assert parts.count_processes(3) == 3
