"""Every loader of the project, with valid input to start from.

Each function of `LOADERS` makes one `Loader` from `Valid`, what its valid input is made of.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from annotated import build, mixed
from hypothesis import strategies as st
from mutations import ODD, contents, documents
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from grace.cli.models import load as load_directory
from grace.data import ConversationDataset
from grace.data.shards import INDEX_FILE, SCHEMA, Shards, locate_image
from grace.errors import InputError
from grace.export import save_compressed_tensors, save_packed
from grace.export.packed import PACKED_FILE, load_packed
from grace.export.released import SIDECAR, _sidecar_layers
from grace.int4 import crossover, pack
from grace.models import check_model_directory, family_of
from grace.quantization import QuantSpec, bake, prepare, write_codes
from grace.quantization.codes import CODES_FILE, CodesFile
from grace.training import CachedTeacher
from replication import paper as reported
from replication.base.yaml import read_yaml
from replication.data.conversations.annotations import read_records
from replication.data.conversations.images import check_images
from replication.data.conversations.records import Record, check_record
from replication.report.tables.deployments import deployment_reports
from replication.report.tables.summaries import _deploy
from replication.results.measurements import measurement_path, read_measurement
from replication.results.scores import outcomes_path, read_outcomes, read_scores, scores_path
from replication.results.training_logs import cost_of, read_logs, trajectory_of
from replication.settings.checks import load_params, parse_params

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
SCALE, FAMILY, RUN = "small", "qwen2_vl", "qat_int4"
YAML = b"{}[]&*!|>%@`:-#'\" \n\t\0"


@dataclass(frozen=True)
class Loader:
    """What a loader is given, how it is called on it, and how often: in the ordinary tests, and in
    `make fuzz`."""

    inputs: st.SearchStrategy
    load: Callable[[Any], Any]
    few: int
    many: int


@dataclass
class Valid:
    """What valid input is made of: the tests' families, and an empty folder."""

    family: Callable[[str], Any]
    conversations: Path
    folder: Path


def encoded(document: Any) -> bytes:
    return json.dumps(document, default=str).encode("utf-8", "surrogatepass")


def json_file(valid: Any) -> st.SearchStrategy:
    """Bytes of a JSON file: a mutated document, or the valid one's bytes, mutated."""
    return st.one_of(documents(valid).map(encoded), contents(encoded(valid)))


def written(path: Path, load: Callable[[], Any]) -> Callable[[bytes], Any]:
    """A loader of a file: its bytes are put in the file's place first."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def run(content: bytes) -> Any:
        path.write_bytes(content)
        return load()

    return run


# --- YAML -----------------------------------------------------------------------------------------


def params(valid: Valid) -> Loader:
    return Loader(documents(read_yaml(ROOT / "params.yaml"), ODD), parse_params, 150, 6_000)


def params_text(valid: Valid) -> Loader:
    path = valid.folder / "params.yaml"
    inputs = contents((ROOT / "params.yaml").read_bytes(), YAML)
    return Loader(inputs, written(path, lambda: load_params(path)), 8, 3_000)


def ledger(valid: Valid) -> Loader:
    known = reported.load_tables()
    content = reported.read_yaml(reported.FOLDER / "claims.yaml")
    return Loader(
        documents(content, ODD), lambda found: reported.parse_ledger(found, known), 100, 2_500
    )


def ledger_text(valid: Valid) -> Loader:
    path = valid.folder / "claims.yaml"
    inputs = contents((reported.FOLDER / "claims.yaml").read_bytes(), YAML)
    return Loader(inputs, written(path, lambda: reported.load_ledger(path)), 20, 3_000)


def tables(valid: Valid) -> Loader:
    content = reported.read_yaml(reported.FOLDER / "tables.yaml")
    return Loader(documents(content, ODD), reported.parse_tables, 100, 2_500)


def tables_text(valid: Valid) -> Loader:
    path = valid.folder / "tables.yaml"
    inputs = contents((reported.FOLDER / "tables.yaml").read_bytes(), YAML)
    return Loader(
        inputs,
        written(path, lambda: reported.parse_tables(reported.read_yaml(path))),
        20,
        3_000,
    )


# --- training data --------------------------------------------------------------------------------


def annotations(valid: Valid) -> Loader:
    path = valid.folder / "annotations.json"

    def load() -> list[Record]:
        checked = [check_record(record, "0") for record in read_records(path)]
        return [record for record in checked if isinstance(record, Record)]

    return Loader(json_file(mixed(valid.folder)), written(path, load), 150, 20_000)


def image_cache(valid: Valid) -> Loader:
    images = {"a": valid.folder / "a.png", "b": valid.folder / "b.png"}
    mixed(valid.folder)
    for place, path in enumerate(images.values()):
        shutil.copy(valid.folder / "images" / "coco" / "train2017" / f"{place}.png", path)
    cache = valid.folder / "images.jsonl"
    expected = check_images(images, cache, workers=1)

    def load() -> None:
        found = check_images(images, cache, workers=1)
        assert {n: (s.width, s.height, s.reason) for n, s in found.items()} == {
            n: (s.width, s.height, s.reason) for n, s in expected.items()
        }

    lines = [json.loads(line) for line in cache.read_text().splitlines()]
    moved = [[path, size + 1, *rest] for path, size, *rest in lines]  # of files that have changed
    inputs = documents(moved).map(
        lambda found: b"\n".join(map(encoded, found if isinstance(found, list) else [found]))
    )
    return Loader(inputs, written(cache, load), 30, 4_000)


def shards_index(valid: Valid) -> Loader:
    directory = build(valid.folder, mixed(valid.folder), shard_size=3)
    index = json.loads((directory / INDEX_FILE).read_text())
    return Loader(
        json_file(index), written(directory / INDEX_FILE, lambda: records(directory)), 60, 6_000
    )


def records(directory: Path) -> list[dict[str, Any]]:
    found = Shards(directory)
    assert len(found.ids) == len(found)
    return [found[position] for position in range(len(found))]


def shards(valid: Valid) -> Loader:
    """Bytes of a shard: as an index of the same bytes has them, so that their hash is right."""
    directory = build(valid.folder, mixed(valid.folder))
    index = json.loads((directory / INDEX_FILE).read_text())
    (shard,) = index["shards"]
    path = directory / shard["file"]

    def load() -> None:
        shard["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (directory / INDEX_FILE).write_text(json.dumps(index))
        for record in records(directory):
            assert isinstance(record["id"], str)
            assert all(isinstance(turn["value"], str) for turn in record["conversations"])
            assert all(image["width"] > 0 < image["height"] for image in record["images"])

    return Loader(contents(path.read_bytes()), written(path, load), 60, 12_000)


def shard_records(valid: Valid) -> Loader:
    """Records that Arrow can hold and a conversation cannot."""
    directory = build(valid.folder, mixed(valid.folder))
    index = json.loads((directory / INDEX_FILE).read_text())
    (shard,) = index["shards"]
    path = directory / shard["file"]
    given = records(directory)

    def load(found: Any) -> None:
        try:
            batch = pa.RecordBatch.from_pylist(found, schema=SCHEMA)
        except Exception:  # in Arrow's own words
            return  # nothing that a file can hold
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
            writer.write_batch(batch)
        shard["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        shard["records"] = batch.num_rows
        (directory / INDEX_FILE).write_text(json.dumps(index))
        for record in records(directory):
            for image in record["images"]:
                assert image["width"] > 0 < image["height"]
                with contextlib.suppress(InputError):  # a path that leads out
                    place = locate_image(image["path"], str(valid.folder), {})
                    assert Path(os.path.normpath(place)).is_relative_to(valid.folder)
            assert all(turn["value"] is not None for turn in record["conversations"])

    return Loader(documents(given), load, 60, 8_000)


# --- results --------------------------------------------------------------------------------------


def scores(valid: Valid) -> Loader:
    place = (SCALE, FAMILY, RUN, f"{FAMILY}_runs")
    content = json.loads(scores_path(RESULTS, SCALE, f"{FAMILY}_runs", RUN).read_text())
    path = scores_path(valid.folder, SCALE, f"{FAMILY}_runs", RUN)
    return Loader(
        json_file(content), written(path, lambda: read_scores(valid.folder, *place)), 100, 14_000
    )


def outcomes(valid: Valid) -> Loader:
    columns = _few_outcomes()
    path = outcomes_path(valid.folder, SCALE, FAMILY, RUN)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    load = written(path, lambda: read_outcomes(valid.folder, SCALE, FAMILY, RUN))
    return Loader(contents(sink.getvalue().to_pybytes()), load, 60, 4_000)


def outcome_columns(valid: Valid) -> Loader:
    path = outcomes_path(valid.folder, SCALE, FAMILY, RUN)
    path.parent.mkdir(parents=True, exist_ok=True)

    def load(found: Any) -> None:
        try:
            pq.write_table(pa.table(found), path)
        except Exception:  # in Arrow's own words
            return  # nothing that a file can hold
        read = read_outcomes(valid.folder, SCALE, FAMILY, RUN)
        for values in read.answers.values.values():
            assert np.isfinite(values).all()

    return Loader(documents(_few_outcomes()), load, 60, 4_000)


def _few_outcomes() -> dict[str, list[Any]]:
    return {
        "seed": [0, 0, 1, 1],
        "benchmark": ["GQA"] * 4,
        "question_id": ["a", "b", "a", "b"],
        "skill": ["counting"] * 4,
        "prediction": ["1", "2", "1", "3"],
        "target": ["1", "2", "1", "2"],
        "credit": [1.0, 1.0, 1.0, 0.0],
    }


def measurement(valid: Valid) -> Loader:
    name = f"entropy_error-{FAMILY}"
    content = json.loads(measurement_path(RESULTS, SCALE, name).read_text())
    path = measurement_path(valid.folder, SCALE, name)
    return Loader(
        json_file(content),
        written(path, lambda: read_measurement(valid.folder, SCALE, name)),
        100,
        6_000,
    )


def training_log(valid: Valid) -> Loader:
    name = "grace_int4"
    (content, *_) = read_logs(RESULTS, SCALE, FAMILY, name).values()
    content = {**content, "history": content["history"][:3]}
    path = valid.folder / SCALE / "training" / f"{FAMILY}_runs" / name / "seed0.json"

    def load() -> None:
        for log in read_logs(valid.folder, SCALE, FAMILY, name).values():
            cost_of(log)
            trajectory_of(log)

    return Loader(json_file(content), written(path, load), 100, 12_000)


def deployment(valid: Valid) -> Loader:
    model = "llava-1.5-7b"
    content = json.loads((RESULTS / SCALE / "deploy" / model / "deploy.json").read_text())
    path = valid.folder / SCALE / "deploy" / model / "deploy.json"
    place = SimpleNamespace(results=valid.folder, scale=SCALE)
    sources: Any = SimpleNamespace(results=place, recorded=None, reported=reported.load_tables())

    def load() -> None:
        if deployment_reports(valid.folder, SCALE):
            _deploy(sources)

    return Loader(json_file(content), written(path, load), 60, 4_000)


def crossovers(valid: Valid) -> Loader:
    """A damaged file counts for none."""
    path = crossover.crossover_path()
    content = {"format": crossover._FORMAT, "rows": {"one": 4, "another": 16}}

    def load() -> None:
        rows = crossover._read()
        assert all(type(row) is int and row >= 1 for row in rows.values())

    return Loader(json_file(content), written(path, load), 60, 2_000)


# --- models ---------------------------------------------------------------------------------------


def sidecar(valid: Valid) -> Loader:
    """Tensors of a released checkpoint's sidecar; none is put into a model."""
    path, family = valid.folder / SIDECAR, family_of(FAMILY)
    tensors = _sidecar()
    names = sorted(tensors)

    def change(what: tuple[str, int, int]) -> dict[str, Any]:
        name, kind, seed = what
        found = {key: value.clone() for key, value in tensors.items()}
        generator = torch.Generator().manual_seed(seed)
        value: Any = found.pop(name)
        at = int(torch.randint(value.numel(), (1,), generator=generator))
        if kind < 5:
            value.view(-1)[at] = (float("nan"), float("inf"), 1e38, 0.0, -7.0)[kind]
            found[name] = value
        elif kind < 15:
            found[name] = (
                *(value.half(), value.to(torch.int8), value.to(torch.complex64), value[:1]),
                *(value.reshape(-1), value.new_zeros(0), value.to_sparse(), value.to("meta")),
                *(value[..., None], value > 0),
            )[kind - 5]
        elif kind < 19:
            found[name] = (None, [1.0], "text", {"a": value})[kind - 15]
        elif kind == 19:
            found[f"{name}.weight"] = value
        return found

    def load(found: dict[str, Any]) -> None:
        torch.save(found, path)
        for layer in _sidecar_layers(path, family, 4):
            assert torch.isfinite(layer.scales).all() and (layer.scales > 0).all()
            assert layer.codes.min() >= -8 and layer.codes.max() <= 7

    kinds = st.tuples(st.sampled_from(names), st.integers(0, 20), st.integers(0, 2**31))
    return Loader(kinds.map(change), load, 100, 3_000)


def sidecar_bytes(valid: Valid) -> Loader:
    path, family = valid.folder / SIDECAR, family_of(FAMILY)
    torch.save(_sidecar(), path)
    archive = path.read_bytes()
    torch.save(_sidecar(), path, _use_new_zipfile_serialization=False)
    inputs = st.one_of(contents(archive), contents(path.read_bytes()))
    load = written(path, lambda: _sidecar_layers(path, family, 4))
    return Loader(inputs, load, 60, 6_000)


def _sidecar() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-8, 8, (4, 64), generator=generator)
    log_scale = torch.full((4, 2), 0.5).log()
    weight = codes * log_scale.exp().repeat_interleave(32, 1)
    stem = "model.layers.0.self_attn.q_proj"
    return {
        f"{stem}.weight": weight,
        f"{stem}.log_scale": log_scale.flatten(),
        f"{stem}.bias": torch.zeros(4),
    }


def codes_file(valid: Valid) -> Loader:
    path = valid.folder / CODES_FILE
    codes = torch.zeros(4, 64, dtype=torch.int8)
    write_codes(valid.folder, {"a.b": (codes, torch.ones(4, 2))}, QuantSpec(bits=4).to_dict())
    load = written(path, lambda: dict(CodesFile(path).items()))
    return Loader(safetensors_file(path.read_bytes()), load, 100, 3_000)


def safetensors_file(valid: bytes) -> st.SearchStrategy:
    """Bytes of a safetensors file: its header as a mutated document, or its bytes mutated."""
    size = int.from_bytes(valid[:8], "little")
    header, data = json.loads(valid[8 : 8 + size]), valid[8 + size :]

    def whole(document: Any) -> bytes:
        text = encoded(document)
        return len(text).to_bytes(8, "little") + text + data

    headers = [documents(header).map(whole)]
    for key, value in header.get("__metadata__", {}).items():
        inner = documents(json.loads(value)).map(
            lambda found, key=key: whole(
                {**header, "__metadata__": {key: encoded(found).decode("utf-8", "replace")}}
            )
        )
        headers.append(inner)
    return st.one_of(*headers, contents(valid))


def packed_file(valid: Valid) -> Loader:
    directory = _packed(valid)
    path = directory / PACKED_FILE
    load = written(path, lambda: load_packed(directory, backend="reference"))
    return Loader(safetensors_file(path.read_bytes()), load, 15, 4_000)


def packed_tensors(valid: Valid) -> Loader:
    """A packed directory one of whose tensors is another."""
    directory = _packed(valid)
    path = directory / PACKED_FILE
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size])["__metadata__"]
    tensors = load_tensors(content)

    def load(what: tuple[str, int]) -> None:
        name, kind = what
        found, value = dict(tensors), tensors[what[0]]
        made = (
            *(value[:1].contiguous(), value.flatten(), value.new_zeros(0), value.half()),
            *(value.to(torch.int8), torch.full_like(value.float(), float("nan")), -value.float()),
            *(value[..., None].contiguous(), value.double(), value > 0, None),
        )[kind]
        del found[name]
        if made is not None:
            found[name] = made
        path.write_bytes(save_tensors(found, metadata))
        load_packed(directory, backend="reference")

    inputs = st.tuples(st.sampled_from(sorted(tensors)), st.integers(0, 10))
    return Loader(inputs, load, 15, 500)


def packed_config(valid: Valid) -> Loader:
    directory = _packed(valid)
    path = directory / "config.json"
    load = written(path, lambda: load_packed(directory, backend="reference"))
    return Loader(json_file(json.loads(path.read_text())), load, 15, 4_000)


def _packed(valid: Valid) -> Path:
    model: Any = valid.family(FAMILY).model()
    prepare(model, QuantSpec(bits=4, group_size=32))
    exact = bake(model)
    pack(model, exact, backend="reference")
    return save_packed(model, valid.folder / "packed", overwrite=True)


def model_config(valid: Valid) -> Loader:
    """config.json of a model directory, up to the family's adapter."""
    directory = valid.folder / "model"
    valid.family(FAMILY).model().save_pretrained(directory)
    path = directory / "config.json"

    def load() -> None:
        config = check_model_directory(directory)
        assert isinstance(config, dict)
        family_of(str(config.get("model_type")))

    return Loader(json_file(json.loads(path.read_text())), written(path, load), 60, 4_000)


def compressed_tensors_config(valid: Valid) -> Loader:
    """config.json of our export in that format, as transformers loads it."""
    model: Any = valid.family(FAMILY).model()
    prepare(model, QuantSpec(bits=4, group_size=32))
    directory = save_compressed_tensors(
        model,
        valid.folder / "compressed",
        dtype=torch.float32,
        round_scales=True,
        overwrite=True,
    )
    path = directory / "config.json"
    content = json.loads(path.read_text())

    def load(document: Any) -> None:
        path.write_bytes(encoded({**content, "quantization_config": document}))
        load_directory(str(directory), "cpu", "float32")

    return Loader(documents(content["quantization_config"]), load, 4, 2_000)


def conversations(valid: Valid) -> Loader:
    """A parquet file of conversations in the LLaVA schema."""
    small = valid.family(FAMILY)
    table = pq.read_table(valid.conversations).select(["id", "image", "conversations"])
    given = table.slice(0, 3).to_pylist()
    path, config = valid.folder / "train.parquet", small.model().config

    def load(found: Any) -> None:
        try:
            pq.write_table(pa.Table.from_pylist(found), path)
        except Exception:  # in Arrow's own words
            return  # nothing that a file can hold
        data = ConversationDataset(path, small.processor, config)
        small.collator()([data[index] for index in range(len(data))])

    return Loader(documents(given), load, 20, 5_000)


def conversations_bytes(valid: Valid) -> Loader:
    small = valid.family(FAMILY)
    path, config = valid.folder / "train.parquet", small.model().config
    table = pq.read_table(valid.conversations).select(["id", "image", "conversations"])
    pq.write_table(table.slice(0, 2), path)

    def load() -> None:
        data = ConversationDataset(path, small.processor, config)
        small.collator()([data[index] for index in range(len(data))])

    return Loader(contents(path.read_bytes()), written(path, load), 20, 5_000)


def teacher_outputs(valid: Valid) -> Loader:
    """meta.json and the arrays' bytes of teacher outputs."""
    directory = valid.folder / "teacher_outputs"
    directory.mkdir(exist_ok=True)
    np.save(directory / "offsets.npy", np.array([0, 2, 3]))
    np.save(directory / "logits.npy", np.zeros((3, 8), np.int16))
    np.save(directory / "grams.npy", np.zeros((2, 4, 4), np.float16))
    identity = {"model_type": FAMILY, "rows": 8, "tokens": 8, "vocabulary": "0"}
    meta = encoded({"samples": 2, "teacher": identity, "sha256": "0" * 64})
    files = {f"{name}.npy": (directory / f"{name}.npy").read_bytes() for name in ("offsets",)}
    files["meta.json"] = meta

    def load(what: tuple[str, bytes]) -> None:
        for name, content in files.items():
            (directory / name).write_bytes(content)
        (directory / what[0]).write_bytes(what[1])
        CachedTeacher(directory, samples=2)

    inputs = [
        st.tuples(st.just("offsets.npy"), contents(files["offsets.npy"])),
        st.tuples(st.just("meta.json"), json_file(json.loads(meta))),
    ]
    return Loader(st.one_of(*inputs), load, 60, 4_000)


LOADERS: dict[str, Callable[[Valid], Loader]] = {
    made.__name__: made
    for made in (
        *(params, params_text, ledger, ledger_text, tables, tables_text),
        *(annotations, image_cache, shards_index, shards, shard_records),
        *(scores, outcomes, outcome_columns, measurement, training_log, deployment, crossovers),
        *(sidecar, sidecar_bytes, codes_file, packed_file, packed_tensors, packed_config),
        *(model_config, compressed_tensors_config, conversations, conversations_bytes),
        teacher_outputs,
    )
}

PENDING: dict[str, str] = {}
"""Loaders that still raise other errors, and why."""


def expected(*names: str) -> list[Any]:
    """Names as parameters of a test, those of PENDING expected to fail."""
    return [
        pytest.param(name, marks=pytest.mark.xfail(reason=PENDING[name], strict=False))
        if name in PENDING
        else name
        for name in names
    ]
