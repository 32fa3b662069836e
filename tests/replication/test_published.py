"""Published annotation files: every record checked, every image opened, nothing lost in silence."""

import itertools
import json
import os
import shutil
import sys
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from annotated import annotate, build, draw, mixed, talk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grace.data import json_source
from grace.data.sources import open_records
from grace.errors import InputError
from replication.data.conversations import convert, images
from replication.data.conversations.annotations import find_annotations, read_records
from replication.data.conversations.convert import Images, Limits
from replication.data.conversations.images import check_images, inspect
from replication.data.conversations.records import REASONS, Problem, Record, check_record, is_inside
from replication.settings.scales import scale_params
from replication.stages import conversations as stage

# ------------------------------------------------------------------------------------ JSON arrays

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("json") / "file.json"


@pytest.mark.slow
@given(st.lists(JSON, max_size=8), st.integers(1, 40), st.booleans(), st.sampled_from(["", "\n "]))
def test_an_array_is_read_as_json_reads_it(scratch, array, chunk, pretty, around):
    text = json.dumps(array, indent=2 if pretty else None)
    scratch.write_text(around + text + around, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_source, "_CHUNK", chunk)
        assert list(read_records(scratch)) == array


@pytest.mark.slow
@given(st.lists(JSON, max_size=4), st.data())
def test_a_torn_array_is_refused(scratch, array, data):
    text = json.dumps(array)
    scratch.write_text(text[: data.draw(st.integers(0, len(text) - 1))])
    with pytest.raises(InputError, match=r"file\.json.*download it again"):
        list(read_records(scratch))


@pytest.mark.parametrize(
    "content",
    [b'{"id": 1}', b"[1 2]", b"[1,]", b"[1] 2", b"[,1]", b"[\xff]", b"[tru]", b"[" * 100_000],
)
def test_what_is_no_array_is_refused(scratch, content):
    scratch.write_bytes(content)
    with pytest.raises(InputError, match=r"file\.json"):
        list(read_records(scratch))


@pytest.mark.slow
def test_a_large_file_is_never_held(scratch):
    record = {"id": "x", "conversations": talk(3, length=60)}
    with scratch.open("w") as file:
        file.write("[" + ",\n".join([json.dumps(record)] * 20_000) + "]")
    assert scratch.stat().st_size > 30e6
    tracemalloc.start()
    try:
        assert sum(1 for _ in itertools.islice(read_records(scratch), 5_000)) == 5_000
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


def test_files_are_found_on_disk_or_refused(tmp_path, monkeypatch):
    path = annotate(tmp_path / "own.json", [])
    assert find_annotations(str(path), "any/repository").repository is None
    with pytest.raises(InputError, match=r"absent\.json.*data\.training\.repository"):
        find_annotations("absent.json")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"'Lin-Chen/ShareGPT4V' cannot be downloaded"):
        find_annotations("absent.json", "Lin-Chen/ShareGPT4V")


# ---------------------------------------------------------------------------------------- records

VALID = {"id": "sa_1", "image": "sam/images/sa_1.jpg", "conversations": talk(2, 1)}


def spoilt(**changes):
    return {**VALID, **changes}


def turns(*said):
    return [{"from": speaker, "value": value} for speaker, value in said]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ([], "object"),
        (spoilt(id=None), "id"),
        (spoilt(id=True), "id"),
        (spoilt(image={"path": "x"}), "image"),
        (spoilt(image=["a.jpg", 1]), "image"),
        (spoilt(image="../secret.jpg"), "path"),
        (spoilt(image="coco/../../x.jpg"), "path"),
        (spoilt(image="/etc/passwd"), "path"),
        (spoilt(image="coco\\..\\x.jpg"), "path"),
        (spoilt(image="coco/"), "path"),
        (spoilt(image=["."]), "path"),
        (spoilt(image="a\0b"), "path"),
        (spoilt(conversations=None), "conversations"),
        (spoilt(conversations=[]), "conversations"),
        (spoilt(conversations=[{"from": "human"}]), "conversations"),
        (spoilt(conversations=[{"from": "human", "value": 1}]), "conversations"),
        (spoilt(conversations=turns(("user", "<image>x"), ("gpt", "y"))), "role"),
        (spoilt(conversations=turns(("human", "<image>"), ("system", "y"))), "role"),
        (spoilt(conversations=turns(("gpt", "x"), ("human", "<image>"))), "order"),
        (spoilt(conversations=turns(("human", "<image>"), ("human", "x"))), "order"),
        (spoilt(conversations=turns(("human", "<image>x"))), "unanswered"),
        (spoilt(conversations=turns(("system", "x"))), "unanswered"),
        (spoilt(conversations=turns(("human", "<image>x"), ("gpt", " \n"))), "empty_answer"),
        (spoilt(image=None, conversations=turns(("human", ""), ("gpt", "x"))), "empty_prompt"),
        (spoilt(conversations=turns(("human", "x"), ("gpt", "y"))), "marks"),
        (spoilt(conversations=turns(("human", "x"), ("gpt", "<image>"))), "marks"),
        (spoilt(conversations=turns(("human", "<image>"), ("gpt", "<image>"))), "marks"),
        (spoilt(image=None), "marks"),
        (spoilt(image=["a.jpg", "b.jpg"]), "marks"),
        (spoilt(conversations=turns(("human", "<image>\ud800"), ("gpt", "x"))), "text"),
    ],
)
def test_an_invalid_record_has_its_reason(record, reason):
    assert check_record(record, "file:0").reason == reason


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(
    lambda text: text.strip() and "<image>" not in text
)
PART = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=6)


@st.composite
def valid_records(draw):
    paths = ["/".join(draw(st.lists(PART, min_size=1, max_size=3))) for _ in range(draw(COUNTS))]
    spoken = draw(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3))
    places = [draw(st.integers(0, len(spoken) - 1)) for _ in paths]
    said = [("system", draw(TEXT))] if draw(st.booleans()) else []
    for place, (question, answer) in enumerate(spoken):
        said.append(("human", "<image>\n" * places.count(place) + question))
        said.append(("gpt", answer))
    shown = paths if paths else draw(st.sampled_from([None, ""]))
    record = {"conversations": turns(*said), "image": paths[0] if len(paths) == 1 else shown}
    if draw(st.booleans()):
        record["id"] = draw(TEXT | st.integers())
    return record, paths, said


COUNTS = st.integers(0, 3)


@given(valid_records())
def test_a_valid_record_is_taken_as_it_is(made):
    record, paths, said = made
    checked = check_record(record, "file:7")
    assert isinstance(checked, Record)
    assert (list(checked.images), list(checked.turns)) == (paths, said)
    assert checked.id == str(record.get("id", "file:7"))


@given(JSON | st.dictionaries(st.sampled_from(["id", "image", "conversations"]), JSON))
def test_anything_is_a_record_or_has_a_reason(record):
    checked = check_record(record, "file:0")
    assert isinstance(checked, Record) or checked.reason in REASONS


TURN = st.fixed_dictionaries(
    {
        "from": st.sampled_from(["human", "gpt", "system", "user"]),
        "value": st.sampled_from(["x", "", "<image>", "<image>\n<image>y", "\ud800"]),
    }
)


@given(st.lists(TURN, max_size=5), st.lists(st.sampled_from(["a.jpg", "../b", "c/d.jpg"])))
def test_an_accepted_record_keeps_every_rule(said, paths):
    checked = check_record({"image": paths, "conversations": said}, "file:0")
    if isinstance(checked, Problem):
        assert checked.value.isascii()
        return
    speakers = [turn["from"] for turn in said]
    spoken = speakers[speakers[0] == "system" :]
    assert spoken == ["human", "gpt"] * (len(spoken) // 2) != []
    assert all(turn["value"].strip() for turn in said)
    assert sum(turn["value"].count("<image>") for turn in said) == len(paths)
    assert "../b" not in paths


@pytest.mark.slow
@given(st.text(st.sampled_from("ab./\\~ \0"), max_size=12))
def test_an_accepted_path_stays_inside(path):
    if is_inside(path):
        assert os.path.normpath(f"/data/{path}").startswith("/data/")
        assert not os.path.isabs(path)


# ----------------------------------------------------------------------------------------- images


def test_every_kind_of_bad_image_has_its_reason(tmp_path, monkeypatch):
    draw(tmp_path / "good.png", 20, 30)
    content = (tmp_path / "good.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.jpg").write_text("not found")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    names = (
        "good.png",
        "torn.png",
        "text.jpg",
        "empty.jpg",
        "folder.jpg",
        "none.jpg",
        "good.png/x",
    )
    seen = {name: inspect(str(tmp_path / name)) for name in names}
    assert (seen["good.png"].width, seen["good.png"].height) == (20, 30)
    assert [seen[name].reason for name in names] == [
        *(None, "undecodable", "undecodable", "empty", "unreadable", "missing", "missing"),
    ]


def test_an_interrupted_check_goes_on_and_sees_changes(tmp_path, monkeypatch):
    files = {str(k): tmp_path / f"{k}.png" for k in range(10)}
    for k, path in enumerate(files.values()):
        draw(path, 8 + k, 8)
    files["absent"] = tmp_path / "absent.png"
    cache, decoded = tmp_path / "seen.jsonl", []
    real = images.image_size

    def counted(file, name):
        decoded.append(Path(file.name).stem)
        if len(decoded) == 7:
            raise KeyboardInterrupt
        return real(file, name)

    monkeypatch.setattr(images, "image_size", counted)
    monkeypatch.setattr(images, "_CHUNK", 2)
    with pytest.raises(KeyboardInterrupt):
        check_images(files, cache, workers=1)
    with cache.open("a") as file:
        file.write('["torn')
    seen = check_images(files, cache, workers=1)
    assert decoded == ["0", "1", "2", "3", "4", "5", "6", *"6789"]
    assert [look.width for look in seen.values()] == [*range(8, 18), 0]
    assert seen["absent"].reason == "missing"
    draw(files["3"], 50, 50)
    draw(files["absent"], 60, 60)
    decoded.clear()
    seen = check_images(files, cache, workers=1)
    assert decoded == ["3", "absent"]
    assert (seen["3"].width, seen["absent"].width, seen["4"].width) == (50, 60, 12)


@pytest.mark.slow
def test_processes_see_what_one_sees(tmp_path):
    files = {str(k): tmp_path / f"{k}.png" for k in range(70)}
    for k, path in enumerate(files.values()):
        if k % 7:
            draw(path, 8 + k, 9)
    assert check_images(files, tmp_path / "a", workers=2) == check_images(
        files, tmp_path / "b", workers=1
    )


# ------------------------------------------------------------------------------------- conversion


def rows(directory):
    records = open_records(directory)
    return [records[k] for k in range(len(records))]


def contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def report(target):
    return [json.loads(line) for line in Path(f"{target}.left_out.jsonl").read_text().splitlines()]


def test_a_conversion_keeps_everything(tmp_path):
    records = mixed(tmp_path)
    target = build(tmp_path, records, shard_size=3)
    made = rows(target)
    assert [row["id"] for row in made] == [str(record["id"]) for record in records]
    for row, record in zip(made, records, strict=True):
        assert row["conversations"] == record["conversations"]
        given = record.get("image") or []
        assert row["images"] == ([given] if isinstance(given, str) else given)
    index = json.loads((target / "index.json").read_text())
    assert [shard["records"] for shard in index["shards"]] == [3, 3, 1]
    assert index["counts"] == {
        **{"records": 7, "invalid": {}, "chosen": 7, "images": 5, "missing_images": {}},
        **{"conversations": 7, "answers": 13, "text_alone": 2, "several_images": 2},
        **{"without_image": 0, "shown_images": {"coco": 8}},
    }
    assert report(target) == []
    assert sorted(path.name for path in target.iterdir()) == [
        *("index.json", "part-00000.arrow", "part-00001.arrow", "part-00002.arrow"),
    ]


def broken(folder):
    """Ten records: two invalid, two whose images cannot be used, one of them for two images."""
    records = mixed(folder)
    (folder / "images/sam").mkdir()
    (folder / "images/sam/bad.jpg").write_text("no image")
    records.insert(1, {"id": "escape", "image": "../x.jpg", "conversations": talk(1, 1)})
    records.insert(3, {"id": "lost", "image": "gqa/lost.jpg", "conversations": talk(1, 1)})
    pair = ["gqa/lost.jpg", "sam/bad.jpg"]
    records.append({"id": "pair", "image": pair, "conversations": talk(1, 2)})
    return [*records, {"id": "mute", "conversations": turns(("human", "x"))}]


def test_what_is_left_out_is_listed_and_counted(tmp_path):
    limits = Limits(invalid_records=0.2, missing_images=0.3)
    target = build(tmp_path, broken(tmp_path), limits=limits)
    counts = json.loads((target / "index.json").read_text())["counts"]
    assert counts["invalid"] == {"path": 1, "unanswered": 1}
    assert counts["missing_images"] == {"gqa": {"missing": 1}, "sam": {"undecodable": 1}}
    assert (counts["records"], counts["chosen"], counts["images"]) == (11, 9, 7)
    assert (counts["conversations"], counts["without_image"]) == (7, 2)
    assert [(line["record"], line["reason"], line.get("image")) for line in report(target)] == [
        (1, "path", None),
        (3, "missing", "gqa/lost.jpg"),
        (9, "missing", "gqa/lost.jpg"),
        (9, "undecodable", "sam/bad.jpg"),
        (10, "unanswered", None),
    ]


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        (Limits(0.18, 0.3), r"2 of 11 records are invalid \(path 1, unanswered 1\).*0\.18"),
        (Limits(0.19, 0.28), r"2 of 7 images .*gqa: missing 1; sam: undecodable 1.*0\.28"),
    ],
)
def test_more_than_the_share_is_refused(tmp_path, limits, told):
    records = broken(tmp_path)
    with pytest.raises(InputError, match=told) as caught:
        build(tmp_path, records, limits=limits)
    target = tmp_path / "conversations"
    assert f"{target}.left_out.jsonl" in str(caught.value)
    assert {line["reason"] for line in report(target)} >= {"path", "unanswered"}
    assert not target.exists()


def test_folders_may_lie_elsewhere(tmp_path):
    records = mixed(tmp_path)
    (tmp_path / "images/coco").rename(tmp_path / "elsewhere")
    source = find_annotations(str(annotate(tmp_path / "a.json", records)))
    target = tmp_path / "out"
    with pytest.raises(InputError, match=r"5 of 5 images.*coco: missing 5"):
        convert.convert([source], Images(str(tmp_path / "images")), target)
    folders = {"coco": str(tmp_path / "elsewhere")}
    index = convert.convert([source], Images(str(tmp_path / "images"), folders), target)
    assert index["counts"]["conversations"] == 7


DRAWN = [3, 4, 11, 13, 16, 22, 27, 29]


def test_a_draw_follows_from_the_seed_and_the_files(tmp_path):
    records = [{"id": k, "conversations": talk(1, seed=k)} for k in range(200)]
    drawn = {}
    for name, seed, shard_size in (("a", 0, 7), ("b", 0, 100), ("c", 1, 7)):
        target = build(tmp_path / name, records, samples=40, seed=seed, shard_size=shard_size)
        drawn[name] = [int(row["id"]) for row in rows(target)]
    assert drawn["a"] == drawn["b"] == sorted(drawn["a"]) != drawn["c"]
    assert len(set(drawn["a"])) == 40
    # written down once: another machine or library version draws the same
    assert drawn["a"][:8] == DRAWN
    smaller = {int(row["id"]) for row in rows(build(tmp_path / "d", records, samples=10))}
    assert smaller < set(drawn["a"])
    with pytest.raises(InputError, match=r"samples is 201.* 200 valid"):
        build(tmp_path / "e", records, samples=201)


def test_the_draw_does_not_depend_on_the_images(tmp_path):
    for k in range(30):
        draw(tmp_path / f"images/coco/{k}.png", 8, 8)
    records = [{"id": k, "image": f"coco/{k}.png", "conversations": talk(1, 1)} for k in range(30)]
    target = build(tmp_path, records, samples=10)
    chosen = [row["id"] for row in rows(target)]
    (tmp_path / f"images/coco/{chosen[4]}.png").unlink()
    limits = Limits(missing_images=0.1)
    assert [r["id"] for r in rows(build(tmp_path, records, samples=10, limits=limits))] == [
        identity for identity in chosen if identity != chosen[4]
    ]


def test_resuming_gives_the_same_bytes(tmp_path, monkeypatch):
    records = mixed(tmp_path) * 3
    whole = contents(build(tmp_path, records, shard_size=2))
    target = tmp_path / "conversations"
    shutil.rmtree(target)
    real, written = convert._write_shard, []

    def interrupted(made, path):
        if len(written) == 4:
            path.write_bytes(b"half a shard")
            raise KeyboardInterrupt
        written.append(path)
        real(made, path)

    monkeypatch.setattr(convert, "_write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, records, shard_size=2)
    assert not target.exists()
    kept = sorted((tmp_path / "conversations.tmp").glob("part-*"))
    assert len(kept) == 4
    written.clear()
    monkeypatch.setattr(
        convert, "_write_shard", lambda made, path: written.append(real(made, path))
    )
    assert contents(build(tmp_path, records, shard_size=2)) == whole
    assert len(written) == len(whole) - 1 - 4
    assert not (tmp_path / "conversations.tmp").exists()


def test_other_parameters_do_not_go_on_from_an_interrupted_conversion(tmp_path, monkeypatch):
    records = mixed(tmp_path)
    real = convert._finish
    monkeypatch.setattr(convert, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, records, shard_size=2)
    monkeypatch.setattr(convert, "_finish", real)
    records[1]["conversations"][1]["value"] = "changed"
    assert "changed" in str(rows(build(tmp_path, records, shard_size=2)))


def test_a_failed_conversion_leaves_the_old_one(tmp_path):
    records = mixed(tmp_path)
    before = contents(build(tmp_path, records))
    with pytest.raises(InputError):
        build(tmp_path, [{"id": "x"}])
    assert contents(tmp_path / "conversations") == before


@pytest.mark.slow
@given(st.lists(valid_records(), min_size=1, max_size=6), st.integers(1, 3))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_texts_survive_conversion(tmp_path, made, shard_size):
    records = [{**record, "image": None} for record, paths, _ in made if not paths]
    if not records:
        return
    target = build(tmp_path, records, shard_size=shard_size)
    assert [row["conversations"] for row in rows(target)] == [r["conversations"] for r in records]


@pytest.mark.slow
def test_shards_are_mapped_not_read(tmp_path):
    before = pa.total_allocated_bytes()
    target = build(
        tmp_path, [{"id": k, "conversations": talk(4, seed=k, length=200)} for k in range(500)]
    )
    records = open_records(target)
    assert (target / "part-00000.arrow").stat().st_size > 2e6
    for position in range(len(records)):
        records[position]
    assert pa.total_allocated_bytes() - before < 1e5


# ------------------------------------------------------------------------------------------ stage


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    def run(**training):
        params = scale_params("paper")
        given = {"images": "images", "files": ["annotations.json"], **training}
        params["data"]["training"] = given
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["conversations"])
        try:
            stage.main()
            return 0, ""
        except SystemExit as stop:
            return stop.code, capsys.readouterr().err

    return run


def test_the_stage_writes_data_and_a_result(tmp_path, run):
    annotate(tmp_path / "annotations.json", broken(tmp_path))
    assert run(invalid_records=0.2, missing_images=0.3, samples=8, seed=5) == (0, "")
    assert len(open_records(tmp_path / "data/paper/conversations")) <= 8
    result = json.loads((tmp_path / "results/paper/conversations.json").read_text())
    assert result["counts"]["chosen"] == 8
    assert result["selection"] == {"samples": 8, "seed": 5}
    assert result["sources"][0]["records"] == 11
    assert result["provenance"]["seeds"] == [5]


@pytest.mark.parametrize(
    ("training", "told"),
    [
        ({"files": ["absent.json"]}, "absent.json"),
        ({"images": "nowhere", "missing_images": 0.5, "invalid_records": 0.2}, "7 of 7 images"),
        ({"image": "x"}, "did you mean 'images'"),
    ],
)
def test_the_stage_refuses_bad_parameters(tmp_path, run, training, told):
    annotate(tmp_path / "annotations.json", broken(tmp_path))
    code, error = run(**training)
    assert code == 2
    assert told in error
    assert error.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "results").exists()
