"""The loaders of files that users bring, each with valid input to start from.

What the project itself wrote moments ago, such as scores and logs, is not fuzzed.
"""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from annotated import build, mixed
from hypothesis import strategies as st
from mutations import ODD_YAML, contents, documents
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from grace.data import ConversationDataset
from grace.data.records import read_record
from grace.data.sources import open_records
from grace.errors import InputError
from grace.export import load_student, save_compressed_tensors, save_packed
from grace.export.packed import PACKED_FILE, load_packed
from grace.export.released import SIDECAR, _sidecar_layers
from grace.files import read_yaml
from grace.int4 import pack
from grace.models import check_model_directory, family_of
from grace.quantization import QuantSpec, bake, prepare, write_codes
from grace.quantization.codes import CODES_FILE, CodesFile
from replication.data.conversations.annotations import read_records
from replication.data.conversations.records import check_record
from replication.settings.checks import load_params, parse_params

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"
FAMILY = "qwen2_vl"
SPEC = QuantSpec(bits=4, group_size=32)


@dataclass(frozen=True)
class Loader:
    """A loader.

    Attributes:
        inputs: what it is given.
        load: calls it on one input.
        few: inputs in the ordinary tests.
        many: inputs in `make fuzz`.
    """

    inputs: st.SearchStrategy
    load: Callable[[Any], Any]
    few: int
    many: int


@dataclass
class Valid:
    """What valid input is made of: the tests' families and conversations, and an empty folder."""

    family: Callable[[str], Any]
    conversations: Path
    folder: Path

    def quantized(self) -> Any:
        model = self.family(FAMILY).model()
        prepare(model, SPEC)
        return model

    def packed(self) -> Path:
        model = self.quantized()
        pack(model, bake(model), backend="reference")
        return save_packed(model, self.folder / "packed", overwrite=True)


def encoded(document: Any) -> bytes:
    return json.dumps(document, default=str).encode("utf-8", "surrogatepass")


def json_file(valid: bytes) -> st.SearchStrategy:
    """Bytes of a JSON file: a mutated document, or the valid one's bytes, mutated."""
    return st.one_of(documents(json.loads(valid)).map(encoded), contents(valid))


def safetensors_file(valid: bytes) -> st.SearchStrategy:
    """Bytes of a safetensors file: its header as a mutated document, or its bytes mutated."""
    size = int.from_bytes(valid[:8], "little")
    header, data = json.loads(valid[8 : 8 + size]), valid[8 + size :]

    def whole(document: Any) -> bytes:
        text = encoded(document)
        return len(text).to_bytes(8, "little") + text + data

    return st.one_of(documents(header).map(whole), contents(valid))


def written(path: Path, load: Callable[[], Any]) -> Callable[[bytes], Any]:
    """A loader of a file: its bytes are put in the file's place first."""

    def run(content: bytes) -> Any:
        path.write_bytes(content)
        return load()

    return run


def params(valid: Valid) -> Loader:
    return Loader(documents(read_yaml(PARAMS), ODD_YAML), parse_params, 150, 6_000)


def params_text(valid: Valid) -> Loader:
    path = valid.folder / "params.yaml"
    load = written(path, lambda: load_params(path))
    return Loader(contents(PARAMS.read_bytes()), load, 8, 3_000)


def annotations(valid: Valid) -> Loader:
    path = valid.folder / "annotations.json"
    load = written(path, lambda: [check_record(record, "0") for record in read_records(path)])
    return Loader(json_file(encoded(mixed(valid.folder))), load, 150, 20_000)


def records_bytes(valid: Valid) -> Loader:
    """A file of records, as every kind that a data set reads them from."""
    path, lines = valid.folder / "records.arrow", valid.folder / "records.jsonl"
    directory = build(valid.folder, mixed(valid.folder), shard_size=3)

    def load() -> None:
        for file in (path, lines):
            records = open_records(file)
            for position in range(len(records)):
                with contextlib.suppress(InputError):
                    read_record(records[position], position, Path)

    def run(content: bytes) -> Any:
        path.write_bytes(content)
        lines.write_bytes(content)
        return load()

    return Loader(contents((directory / "part-00000.arrow").read_bytes()), run, 60, 6_000)


def conversations(valid: Valid) -> Loader:
    """A parquet file of conversations in the LLaVA schema: records that a file can hold."""
    small = valid.family(FAMILY)
    table = pq.read_table(valid.conversations).select(["id", "image", "conversations"])
    path, config = valid.folder / "train.parquet", small.model().config

    def load(records: Any) -> None:
        try:
            pq.write_table(pa.Table.from_pylist(records), path)
        except Exception:  # in Arrow's own words
            return
        data = ConversationDataset(path, small.processor, config)
        small.collator()([data[index] for index in range(len(data))])

    return Loader(documents(table.slice(0, 3).to_pylist()), load, 20, 5_000)


def conversations_bytes(valid: Valid) -> Loader:
    small = valid.family(FAMILY)
    path, config = valid.folder / "train.parquet", small.model().config
    table = pq.read_table(valid.conversations).select(["id", "image", "conversations"])
    pq.write_table(table.slice(0, 2), path)

    def load() -> None:
        data = ConversationDataset(path, small.processor, config)
        small.collator()([data[index] for index in range(len(data))])

    return Loader(contents(path.read_bytes()), written(path, load), 20, 5_000)


def sidecar(valid: Valid) -> Loader:
    """A released checkpoint's sidecar one of whose tensors is another."""
    path, family = valid.folder / SIDECAR, family_of(FAMILY)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-8, 8, (4, 64), generator=generator)
    log_scale = torch.full((4, 2), 0.5).log()
    stem = "model.layers.0.self_attn.q_proj"
    tensors = {
        f"{stem}.weight": codes * log_scale.exp().repeat_interleave(32, 1),
        f"{stem}.log_scale": log_scale.flatten(),
        f"{stem}.bias": torch.zeros(4),
    }

    def load(change: tuple[str, int]) -> None:
        torch.save(changed(tensors, *change), path)
        for layer in _sidecar_layers(path, family, 4):
            assert torch.isfinite(layer.scales).all() and (layer.scales > 0).all()
            assert layer.codes.min() >= -8 and layer.codes.max() <= 7

    return Loader(st.tuples(st.sampled_from(sorted(tensors)), CHANGES), load, 30, 300)


def sidecar_bytes(valid: Valid) -> Loader:
    path, family = valid.folder / SIDECAR, family_of(FAMILY)
    stem = "model.layers.0.self_attn.q_proj"
    torch.save({f"{stem}.weight": torch.ones(4, 64), f"{stem}.log_scale": torch.zeros(8)}, path)
    load = written(path, lambda: _sidecar_layers(path, family, 4))
    return Loader(contents(path.read_bytes()), load, 60, 6_000)


def codes_file(valid: Valid) -> Loader:
    path = valid.folder / CODES_FILE
    codes = torch.zeros(4, 64, dtype=torch.int8)
    write_codes(valid.folder, {"a.b": (codes, torch.ones(4, 2))}, SPEC.to_dict())
    load = written(path, lambda: dict(CodesFile(path).items()))
    return Loader(safetensors_file(path.read_bytes()), load, 100, 3_000)


def packed_file(valid: Valid) -> Loader:
    directory = valid.packed()
    path = directory / PACKED_FILE
    load = written(path, lambda: load_packed(directory, backend="reference"))
    return Loader(safetensors_file(path.read_bytes()), load, 15, 4_000)


def packed_tensors(valid: Valid) -> Loader:
    """A packed directory one of whose tensors is another."""
    directory = valid.packed()
    path = directory / PACKED_FILE
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size])["__metadata__"]
    tensors = load_tensors(content)

    def load(change: tuple[str, int]) -> None:
        path.write_bytes(save_tensors(changed(tensors, *change), metadata))
        load_packed(directory, backend="reference")

    inputs = st.tuples(st.sampled_from(sorted(tensors)), CHANGES)
    return Loader(inputs, load, 15, 500)


CHANGES = st.integers(0, 10)


def changed(tensors: dict[str, Any], name: str, kind: int) -> dict[str, Any]:
    """The tensors with one of another shape, dtype or value, or without it."""
    value = tensors[name]
    change = (
        *(value[:1].contiguous(), value.flatten(), value.new_zeros(0), value.half()),
        *(value.to(torch.int8), torch.full_like(value.float(), float("nan")), -value.float()),
        *(value[..., None].contiguous(), value.double(), value > 0, None),
    )[kind]
    return {key: other for key, other in {**tensors, name: change}.items() if other is not None}


def packed_config(valid: Valid) -> Loader:
    directory = valid.packed()
    path = directory / "config.json"
    load = written(path, lambda: load_packed(directory, backend="reference"))
    return Loader(json_file(path.read_bytes()), load, 15, 4_000)


def model_config(valid: Valid) -> Loader:
    """config.json of a model directory, up to the family's adapter."""
    directory = valid.folder / "model"
    valid.family(FAMILY).model().save_pretrained(directory)
    path = directory / "config.json"
    load = written(path, lambda: family_of(str(check_model_directory(directory).get("model_type"))))
    return Loader(json_file(path.read_bytes()), load, 60, 4_000)


def compressed_tensors_config(valid: Valid) -> Loader:
    """config.json of our export in that format, as transformers loads it."""
    directory = save_compressed_tensors(
        *(valid.quantized(), valid.folder / "compressed"), dtype=torch.float32, round_scales=True
    )
    path = directory / "config.json"
    content = json.loads(path.read_text())

    def load(document: Any) -> None:
        path.write_bytes(encoded({**content, "quantization_config": document}))
        load_student(directory, dtype="float32")

    return Loader(documents(content["quantization_config"]), load, 4, 2_000)


FILES = (
    *(params_text, annotations, records_bytes, conversations_bytes, sidecar_bytes, codes_file),
    *(packed_file, packed_config, model_config),
)
"""Loaders that take the bytes of a file."""
LOADERS = (*FILES, params, conversations, sidecar, packed_tensors, compressed_tensors_config)
