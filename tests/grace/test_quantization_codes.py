"""The file of codes and scales: what is written is read, and nothing else is."""

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from grace.errors import InputError
from grace.quantization import QuantSpec
from grace.quantization.codes import CODES_FILE, CodesFile, write_codes

NAMES = ["layers.0.up", "layers.10.up", "layers.2.down"]


def random_codes(seed, names=NAMES, rows=3, groups=2):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randint(-8, 8, (rows, 32 * groups), generator=generator).to(torch.int8),
            torch.rand(rows, groups, generator=generator),
        )
        for name in names
    }


def parts(exact):
    """The tensors as the file names them."""
    return {
        f"{name}.{part}": tensor
        for name, pair in exact.items()
        for part, tensor in zip(("codes", "scales"), pair, strict=True)
    }


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32 - 1), st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
def test_what_is_written_is_read(tmp_path_factory, seed, names):
    folder, exact = tmp_path_factory.mktemp("codes"), random_codes(seed, names)
    write_codes(folder, exact, QuantSpec(bits=3).to_dict())
    stored = CodesFile(folder / CODES_FILE)
    assert (list(stored), len(stored), stored.bits) == (sorted(names), len(names), 3)
    assert stored.path == folder / CODES_FILE
    for name, (codes, scales) in exact.items():
        assert torch.equal(stored[name][0], codes) and stored[name][0].dtype == torch.int8
        assert torch.equal(stored[name][1], scales) and stored[name][1].dtype == torch.float32
    # and by safetensors' own reader
    loaded = load_file(folder / CODES_FILE)
    assert sorted(loaded) == sorted(parts(exact))
    assert all(torch.equal(loaded[key], tensor) for key, tensor in parts(exact).items())


def test_the_settings_are_the_one_entry_of_the_metadata(tmp_path):
    spec = QuantSpec(bits=8, group_size="row", gradient_factor=True)
    write_codes(str(tmp_path), random_codes(0), spec.to_dict())
    with safe_open(tmp_path / "quantized.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert list(metadata) == ["quantization"]
    assert QuantSpec.from_dict(json.loads(metadata["quantization"])) == spec
    assert CodesFile(str(tmp_path / "quantized.safetensors")).bits == 8


def test_the_same_model_is_the_same_bytes_whatever_the_order_of_its_settings(tmp_path):
    fields = QuantSpec().to_dict()
    for folder, settings_ in (("one", fields), ("other", dict(reversed(fields.items())))):
        (tmp_path / folder).mkdir()
        write_codes(tmp_path / folder, random_codes(1), settings_)
    one, other = ((tmp_path / folder / CODES_FILE).read_bytes() for folder in ("one", "other"))
    assert one == other


def test_four_bits_are_meant_where_the_file_does_not_say(tmp_path):
    for number, metadata in enumerate((None, {"format": "pt"}, {"quantization": "{}"})):
        path = tmp_path / f"{number}.safetensors"
        save_file(parts(random_codes(2)), path, metadata)
        assert CodesFile(path).bits == 4


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("{", "Expecting property name enclosed in double quotes"),
        ("[]", "'list' object has no attribute 'get'"),
        ('{"bits": 9}', "QuantSpec.bits is 9"),
        ('{"bits": "4"}', "QuantSpec.bits is '4'"),
    ],
)
def test_settings_without_a_bit_width_are_refused(tmp_path, written, why):
    path = tmp_path / "c.safetensors"
    save_file(parts(random_codes(3)), path, {"quantization": written})
    said = f"{path}: its metadata `quantization` is {written!r}, without a bit width ({why}"
    with pytest.raises(InputError, match=re.escape(said)):
        CodesFile(path)


def test_a_file_that_is_not_there_or_no_safetensors_is_refused(tmp_path):
    for path in (tmp_path / "missing.safetensors", tmp_path):  # the second is a folder
        with pytest.raises(InputError, match=re.escape(f"{path}: no such file")):
            CodesFile(path)
    write_codes(tmp_path, random_codes(4), {})
    whole = (tmp_path / CODES_FILE).read_bytes()
    for cut in (b"", b"no safetensors", whole[:-1], whole[: len(whole) // 2]):
        (tmp_path / "cut.safetensors").write_bytes(cut)
        with pytest.raises(InputError, match=r"cut\.safetensors: corrupt or truncated \("):
            CodesFile(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda held: held.pop("layers.2.down.scales"), "lacks layers.2.down.scales"),
        # Codes that are missing leave scales which belong to nothing.
        (lambda held: held.pop("layers.2.down.codes"), "also holds layers.2.down.scales"),
        (lambda held: held.update(lm_head=torch.ones(2)), "also holds lm_head"),
        (lambda held: held.update(codes=torch.ones(2)), "also holds codes"),
    ],
)
def test_a_file_of_anything_else_is_refused(tmp_path, change, said):
    held = parts(random_codes(5))
    change(held)
    path = tmp_path / "c.safetensors"
    save_file(held, path)
    with pytest.raises(InputError, match=re.escape(f"{path}: {said}: ")):
        CodesFile(path)


def test_a_file_of_nothing_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    save_file({}, path)
    with pytest.raises(InputError, match=re.escape(f"{path}: holds no codes")):
        CodesFile(path)


def test_a_linear_that_is_not_there_is_a_key_error(tmp_path):
    write_codes(tmp_path, random_codes(6), {})
    stored = CodesFile(tmp_path / CODES_FILE)
    with pytest.raises(KeyError, match=re.escape("layers.1.up")):
        stored["layers.1.up"]
    assert "layers.1.up" not in stored and "layers.0.up" in stored
    assert stored.get("layers.1.up") is None


def test_a_file_that_breaks_after_it_was_opened_is_named(tmp_path):
    write_codes(tmp_path, random_codes(7), {})
    stored = CodesFile(tmp_path / CODES_FILE)
    stored.path.write_bytes(stored.path.read_bytes()[:-1])
    with pytest.raises(InputError, match=re.escape(f"{stored.path}: corrupt or truncated")):
        stored["layers.0.up"]
