"""The authors' two checkpoint formats, written here from their description, and read back."""

import json
import os
import zipfile

import awq_layout
import numpy as np
import pytest
import torch
from exported import answers, published, question, trained
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from grace.errors import InputError
from grace.export import load_released, save_awq, save_compressed_tensors
from grace.quantization import QuantSpec, fake_quant_layers

SIDECAR = "qat_quantized_weights.bin"
MODULES = "awq_quantized_modules.json"
FIRST = "model.language_model.layers.0.self_attn.q_proj"


def float_scales(layer):
    """exp(log_scale) as the authors' code has it: float32, not rounded to a kernel's dtype."""
    return layer.log_scale.detach().exp()


def reference_codes(layer):
    """Codes of the unrounded scales, in float64 numpy."""
    weight = layer.weight.detach().double().numpy()
    scales = (
        float_scales(layer)
        .double()
        .numpy()
        .repeat(weight.shape[1] // layer.log_scale.shape[1], axis=1)
    )
    return np.clip(np.rint(weight / scales), layer.spec.qmin, layer.spec.qmax), scales


def on_grid(layer):
    codes, scales = reference_codes(layer)
    return torch.from_numpy((codes * scales).astype(np.float32)).bfloat16()


def write_sidecar(small, model, path, *, baked=True):
    """bfloat16 weights, on the grid where `baked`, and the sidecar. Returns (codes, scales)."""
    plain = small.model().bfloat16()
    plain.load_state_dict(
        {k: v.bfloat16() for k, v in model.state_dict().items() if "log_scale" not in k}
    )
    sidecar, expected = {}, {}
    for name, layer in fake_quant_layers(model):
        layer.weight.data.copy_(layer.weight.bfloat16())  # training was in bfloat16 there
        weight = on_grid(layer)
        if baked:
            plain.get_submodule(name).weight.data.copy_(weight)
        sidecar[f"{name}.weight"] = weight
        if layer.bias is not None:
            sidecar[f"{name}.bias"] = layer.bias.detach().bfloat16()
        sidecar[f"{name}.log_scale"] = layer.log_scale.detach().flatten()
        codes, _ = reference_codes(layer)
        expected[name] = torch.from_numpy(codes.astype(np.int8)), float_scales(layer)
    plain.save_pretrained(path)
    torch.save(sidecar, path / SIDECAR)
    return expected


def write_packed(small, model, path, group_size):
    """Packed tensors in the place of weights, float16 elsewhere, and the list of modules."""
    plain = small.model().half()
    plain.load_state_dict(
        {k: v.half() for k, v in model.state_dict().items() if "log_scale" not in k}
    )
    plain.config.awq_packing = {"bits": 4, "group_size": group_size, "zero_point": 8}
    plain.save_pretrained(path)
    tensors, expected, names = load_file(path / "model.safetensors"), {}, []
    for name, layer in fake_quant_layers(model):
        codes, scales = layer.codes(), layer.scales()
        stored = published(small.name, name)
        del tensors[f"{stored}.weight"]
        numbers = codes.numpy().T.astype(np.int64) + 8
        zeros = np.full((scales.shape[1], codes.shape[0]), 8)
        tensors[f"{stored}.qweight"] = torch.from_numpy(awq_layout.write(numbers))
        tensors[f"{stored}.qzeros"] = torch.from_numpy(awq_layout.write(zeros))
        tensors[f"{stored}.scales"] = scales.t().contiguous().half()
        expected[name] = codes, scales.half().float()
        names.append(stored)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    content = {"bits": 4, "group_size": group_size, "modules": names}
    (path / MODULES).write_text(json.dumps(content))
    return expected


def assert_holds(model, expected):
    layers = dict(fake_quant_layers(model))
    assert layers.keys() == expected.keys()
    for name, (codes, scales) in expected.items():
        assert torch.equal(layers[name].codes(), codes), name
        assert torch.equal(layers[name].scales(), scales), name


@pytest.mark.parametrize("baked", [True, False], ids=["baked", "unbaked"])
def test_a_sidecar_gives_its_codes_and_scales(small, conversations, tmp_path, baked):
    model = trained(small, QuantSpec(4, 64))
    expected = write_sidecar(small, model, tmp_path, baked=baked)
    loaded = load_released(tmp_path).eval()
    assert_holds(loaded, expected)
    assert loaded.dtype == torch.bfloat16
    sidecar = torch.load(tmp_path / SIDECAR)
    for name, layer in fake_quant_layers(loaded):
        assert torch.equal(layer.dequantized(), sidecar[f"{name}.weight"]), name
    # the same function as a plain model with the sidecar's weights
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    weights = {k: v for k, v in sidecar.items() if not k.endswith("log_scale")}
    plain.load_state_dict(weights, strict=False)
    inputs = question(small, plain, conversations)
    inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
    for mine, theirs in zip(answers(loaded, inputs), answers(plain, inputs), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("size", [32, "row"])
def test_eight_bits_and_whole_rows(family, tmp_path, size):
    small = family("qwen2_vl")
    expected = write_sidecar(small, trained(small, QuantSpec(8, size)), tmp_path)
    assert_holds(load_released(tmp_path, bits=8), expected)
    with pytest.raises(InputError, match=rf"{SIDECAR}: .*proj.weight has codes .* 4 bits"):
        load_released(tmp_path)


def test_a_sidecar_under_published_names(small, tmp_path):
    """Names that an earlier version of transformers gave the same modules."""
    expected = write_sidecar(small, trained(small, QuantSpec(4, 64)), tmp_path)
    sidecar = torch.load(tmp_path / SIDECAR)
    torch.save({published(small.name, k): v for k, v in sidecar.items()}, tmp_path / SIDECAR)
    assert_holds(load_released(tmp_path), expected)


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 128])
def test_packed_tensors_give_their_codes_and_scales(small, conversations, tmp_path, size):
    model = trained(small, QuantSpec(4, size))
    expected = write_packed(small, model, tmp_path, size)
    loaded = load_released(tmp_path, dtype=torch.float32).eval()
    assert_holds(loaded, expected)
    half = load_released(tmp_path)
    assert half.dtype == torch.float16
    assert_holds(half, expected)
    # everything else was rounded to float16; the quantized weights were not
    rounded = trained(small, QuantSpec(4, size)).eval()
    for name, parameter in rounded.named_parameters():
        if not name.endswith("log_scale") and not name.endswith("_proj.weight"):
            parameter.data.copy_(parameter.half())
        if "language_model" not in name and name.endswith("weight"):
            parameter.data.copy_(parameter.half())
    inputs = question(small, model, conversations)
    for mine, theirs in zip(answers(loaded, inputs), answers(rounded, inputs), strict=True):
        assert torch.equal(mine, theirs)


def original_name(name):
    """The name that LLaVA's original code gives a tensor of transformers' model."""
    for new, old in (
        ("model.language_model.", "model."),
        ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
        ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
        ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
    ):
        name = name.replace(new, old)
    return name


def write_original(path, tower):
    """Turns a directory as written above into the layout of LLaVA's original code."""
    config = {"model_type": "llava_llama", "mm_vision_tower": "a tower", "torch_dtype": "float16"}
    (path / "config.json").write_text(json.dumps(config))
    tensors = {}
    for published_name, value in load_file(path / "model.safetensors").items():
        name = published_name.replace("language_model.model.", "model.language_model.")
        name = name if name.startswith("model.") else f"model.{name}"
        if tower or "vision_tower" not in name:
            tensors[original_name(name)] = value
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:-3].clone()
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    if (path / SIDECAR).is_file():
        sidecar = torch.load(path / SIDECAR)
        torch.save({original_name(k): v for k, v in sidecar.items()}, path / SIDECAR)
        return
    content = json.loads((path / MODULES).read_text())
    content["modules"] = [name.removeprefix("language_model.") for name in content["modules"]]
    (path / MODULES).write_text(json.dumps(content))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sidecar", "packed"])
def test_llava_in_its_original_layout(family, tmp_path, kind):
    """What the checkpoint has comes from it, the rest from the base model."""
    small, path = family("llava"), tmp_path / "model"
    model = trained(small, QuantSpec(4, 64))
    path.mkdir()
    if kind == "sidecar":
        expected = write_sidecar(small, model, path)
    else:
        expected = write_packed(small, model, path, 64)
    write_original(path, tower=kind == "packed")
    base = small.model(seed=5)
    base.save_pretrained(tmp_path / "base")
    refuse(path, "original code: give the base model")
    loaded = load_released(path, base=tmp_path / "base", dtype=torch.float32)
    assert_holds(loaded, expected)
    half = torch.bfloat16 if kind == "sidecar" else torch.float16
    rows = len(base.model.language_model.embed_tokens.weight)
    for name, value in loaded.named_parameters():
        if name.rpartition(".")[0] in expected:
            continue
        mine, theirs = model.get_parameter(name).to(half).float(), base.get_parameter(name)
        if "vision_tower" in name:
            assert torch.equal(value, mine if kind == "packed" else theirs), name
        elif "embed_tokens" in name:
            assert torch.equal(value[: rows - 3], mine[: rows - 3])
            assert torch.equal(value[rows - 3 :], theirs[rows - 3 :])
        else:
            assert torch.equal(value, mine), name
    for name, message in (
        ("model.norm.weight", "model.language_model.norm.weight is missing"),
        ("model.mm_projector.2.bias", "linear_2.bias is missing"),
    ):
        tensors = load_file(path / "model.safetensors")
        lost = tensors.pop(name)
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
        refuse(path, message, base=tmp_path / "base")
        tensors |= {name: lost}
        save_file(
            {**tensors, "model.odd": lost.clone()}, path / "model.safetensors", {"format": "pt"}
        )
        refuse(path, "model.odd has no place", base=tmp_path / "base")
        wrong = {**tensors, name: lost[1:].clone()}
        save_file(wrong, path / "model.safetensors", {"format": "pt"})
        refuse(path, f"{name} has shape", base=tmp_path / "base")
        save_file(tensors, path / "model.safetensors", {"format": "pt"})


@pytest.mark.slow
def test_a_released_checkpoint_exports(family, tmp_path):
    """Packed codes go through unchanged; learned float32 scales have to be rounded, if asked."""
    small = family("qwen2_vl")
    model = trained(small, QuantSpec(4, 64))
    (tmp_path / "packed").mkdir()
    (tmp_path / "sidecar").mkdir()
    expected = write_packed(small, model, tmp_path / "packed", 64)
    save_awq(load_released(tmp_path / "packed"), tmp_path / "a")
    assert_holds(load_released(tmp_path / "a"), expected)
    expected = write_sidecar(small, model, tmp_path / "sidecar")
    loaded = load_released(tmp_path / "sidecar")
    with pytest.raises(InputError, match="not representable"):
        save_awq(loaded, tmp_path / "b")
    save_awq(loaded, tmp_path / "b", round_scales=True)
    rounded = {name: (codes, scales.half().float()) for name, (codes, scales) in expected.items()}
    assert_holds(load_released(tmp_path / "b"), rounded)
    save_compressed_tensors(loaded, tmp_path / "c", dtype=torch.float32)


# -- bad input -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def originals(family, tmp_path_factory):
    """A directory in each format."""
    small = family("qwen2_vl")
    folder = tmp_path_factory.mktemp("released")
    for name in ("sidecar", "packed"):
        (folder / name).mkdir()
    write_sidecar(small, trained(small, QuantSpec(4, 64)), folder / "sidecar")
    write_packed(small, trained(small, QuantSpec(4, 64)), folder / "packed", 64)
    return folder


@pytest.fixture
def sidecar(originals, tmp_path):
    return copied(originals / "sidecar", tmp_path / "model")


@pytest.fixture
def packed(originals, tmp_path):
    return copied(originals / "packed", tmp_path / "model")


def copied(source, target):
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def refuse(directory, message, **options):
    with pytest.raises(InputError, match=message):
        load_released(directory, **options)


def set_first(tensor, value):
    tensor = tensor.clone()
    tensor.view(-1)[0] = value
    return tensor


def with_part(part, change, module=FIRST):
    """A change of one tensor of the sidecar."""
    return lambda s: {**s, f"{module}.{part}": change(s[f"{FIRST}.{part}"])}


def without(part):
    return lambda s: {name: tensor for name, tensor in s.items() if name != f"{FIRST}.{part}"}


def renamed(old, new):
    return lambda s: {name.replace(old, new): tensor for name, tensor in s.items()}


def off_grid(s):
    half_step = 2.5 * s[f"{FIRST}.log_scale"][0].exp().item()
    return {**s, f"{FIRST}.weight": set_first(s[f"{FIRST}.weight"], half_step)}


BAD_SIDECARS = {
    "unknown layer": (renamed("layers.0", "layers.7"), r"layers.7.\S+, which the model lacks"),
    "no linear": (
        renamed(f"{FIRST}.", "model.language_model.norm."),
        "norm, which is a .* no linear",
    ),
    "no scale": (without("log_scale"), r"q_proj.(weight|bias): expected"),
    "no scales": (lambda s: {}, "no <name>.log_scale"),
    "no weight": (without("weight"), "q_proj.weight is missing"),
    "strange": (lambda s: {**s, "extra": s[f"{FIRST}.bias"]}, "has extra: expected"),
    "no tensor": (lambda s: {**s, "x.log_scale": 3}, "expected tensors by name"),
    "nan scale": (
        with_part("log_scale", lambda t: set_first(t, torch.nan)),
        "q_proj.log_scale gives the scale nan",
    ),
    "huge scale": (
        with_part("log_scale", lambda t: set_first(t, 1e4)),
        "q_proj.log_scale gives the scale inf",
    ),
    "integer scale": (with_part("log_scale", torch.Tensor.int), "q_proj.log_scale is torch.int32"),
    "out of range": (
        with_part("weight", lambda t: set_first(t, 1e3)),
        "q_proj.weight has codes from -8 to .* 4 bits",
    ),
    "nan weight": (
        with_part("weight", lambda t: set_first(t, torch.nan)),
        "q_proj.weight has values that are not finite",
    ),
    "off the grid": (off_grid, "q_proj.weight is not on the grid"),
    "other codes": (
        with_part("weight", torch.zeros_like),
        "q_proj.weight has other codes than the weights beside it",
    ),
    "group size": (with_part("log_scale", lambda t: t[:-1]), "q_proj.log_scale has 255 values"),
    "small groups": (
        with_part("log_scale", lambda t: t.repeat_interleave(8)),
        "q_proj: QuantSpec.group_size is 8",
    ),
    "shape": (
        lambda s: with_part("weight", lambda t: t[:64])(
            with_part("log_scale", lambda t: t[:128])(s)
        ),
        r"q_proj.weight has shape \(64, 128\), the model's is \(128, 128\)",
    ),
    "vector": (with_part("weight", torch.flatten), "q_proj.weight has shape .* expected a matrix"),
    "bias": (with_part("bias", lambda t: t[1:]), "q_proj.bias has shape"),
    "bias of none": (
        with_part("bias", torch.clone, FIRST.replace("q_proj", "o_proj")),
        "o_proj.bias has shape .* the model's is none",
    ),
}


@pytest.mark.parametrize("case", BAD_SIDECARS)
def test_bad_sidecars_are_refused_by_file_and_tensor(sidecar, case):
    spoil, message = BAD_SIDECARS[case]
    torch.save(spoil(torch.load(sidecar / SIDECAR)), sidecar / SIDECAR)
    refuse(sidecar, rf"model/{SIDECAR}: .*{message}|model/{SIDECAR}: {message}")


class Payload:
    """Unpickled, it would make a directory."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_pickle_is_refused_and_never_run(sidecar, tmp_path):
    content = torch.load(sidecar / SIDECAR)
    for zipped in (True, False):
        torch.save(
            {**content, "x": Payload(tmp_path / "owned")},
            sidecar / SIDECAR,
            _use_new_zipfile_serialization=zipped,
        )
        refuse(sidecar, rf"{SIDECAR}: .*mkdir.*may run code")
        assert not (tmp_path / "owned").exists()
    torch.load(sidecar / SIDECAR, weights_only=False)
    assert (tmp_path / "owned").is_dir()  # it would have run


@pytest.mark.parametrize("part", [0.0, 0.2, 0.5, 0.99])
def test_a_truncated_sidecar_is_refused(sidecar, part):
    whole = (sidecar / SIDECAR).read_bytes()
    (sidecar / SIDECAR).write_bytes(whole[: int(part * len(whole))])
    refuse(sidecar, rf"{SIDECAR}: (corrupt or truncated|is no pickle)")


def test_a_damaged_sidecar_is_refused(sidecar):
    """One changed byte inside a tensor: the archive's checksum tells."""
    with zipfile.ZipFile(sidecar / SIDECAR) as archive:
        entry = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray((sidecar / SIDECAR).read_bytes())
    content[entry.header_offset + 200 + entry.file_size // 2] ^= 1
    (sidecar / SIDECAR).write_bytes(content)
    refuse(sidecar, rf"{SIDECAR}: .* is damaged")


def spoil_tensor(directory, name, change):
    file = directory / "model.safetensors"
    tensors = load_file(file)
    value = change(tensors.pop(name))
    save_file({**tensors, **value}, file, {"format": "pt"})


Q = "model.layers.0.self_attn.q_proj"
BAD_PACKED = {
    "zero points": (
        "qzeros",
        lambda t: set_first(t, 0x11111111),
        "q_proj.qzeros has the zero point 1",
    ),
    "nan": ("scales", lambda t: set_first(t, torch.nan), "q_proj.scales gives the scale nan"),
    "zero": ("scales", lambda t: set_first(t, 0), r"q_proj.scales gives the scale 0\.0"),
    "scales' shape": (
        "scales",
        lambda t: t[:1].clone(),
        r"q_proj.scales has shape \(1, 128\): group size 64",
    ),
    "scales' dtype": ("scales", torch.Tensor.float, "q_proj.scales is .*float32"),
    "zeros' shape": ("qzeros", lambda t: t[:, 1:].clone(), "q_proj.qzeros has"),
    "words' dtype": ("qweight", torch.Tensor.long, "q_proj.qweight is .*int64"),
    "fewer rows": (
        "qweight",
        lambda t: t[:100].clone(),
        "q_proj: group size 64 does not divide its 100",
    ),
}


@pytest.mark.parametrize("case", BAD_PACKED)
def test_bad_packed_tensors_are_refused_by_file_and_tensor(packed, case):
    part, change, message = BAD_PACKED[case]
    name = f"{Q}.{part}"
    spoil_tensor(packed, name, lambda t: {name: change(t)})
    refuse(packed, rf"model.*: .*{message}")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("model.layers.0.mlp.x.qweight", "mlp.x.qweight is there, but"),
        (f"{Q}.weight", "q_proj.weight is there, packed and not"),
        ("model.layers.0.extra", "extra is not the model's"),
    ],
)
def test_a_tensor_too_many_is_refused(packed, extra, message):
    spoil_tensor(packed, f"{Q}.qweight", lambda t: {f"{Q}.qweight": t, extra: t.clone()})
    refuse(packed, message)


def test_a_missing_packed_tensor_is_refused(packed):
    spoil_tensor(packed, f"{Q}.qweight", lambda t: {})
    refuse(packed, "q_proj.qweight is missing")


def test_a_missing_tensor_is_refused(packed):
    spoil_tensor(packed, "model.norm.weight", lambda t: {})
    refuse(packed, r"model: model.language_model.norm.weight is missing")


BAD_LISTS = {
    "bits": ({"bits": 8}, "bits is 8: the layout has 4"),
    "group size": ({"group_size": 128}, r"q_proj.q?(zeros|scales) has shape .*: group size 128"),
    "odd group size": ({"group_size": 48}, "group_size is 48"),
    "no group size": ({"group_size": None}, "group_size is None"),
    "no modules": ({"modules": []}, "modules is '\\[\\]'"),
    "modules": ({"modules": "all"}, "modules is 'all'"),
    "unknown module": ({"modules": ["model.layers.9.x"]}, "layers.9.x.qweight is missing"),
    "twice": ({"modules": [Q, Q]}, "q_proj is listed twice"),
    "too few": ({"modules": [Q]}, "is there, but .* does not list it"),
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_a_bad_list_of_modules_is_refused(packed, case):
    change, message = BAD_LISTS[case]
    content = json.loads((packed / MODULES).read_text())
    (packed / MODULES).write_text(json.dumps(content | change))
    refuse(packed, message)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\udcff"])
def test_a_list_that_is_no_json_object_is_refused(packed, text):
    (packed / MODULES).write_bytes(text.encode(errors="surrogateescape"))
    refuse(packed, MODULES)


@pytest.mark.parametrize("part", [0.0, 0.01, 0.9])
def test_truncated_weights_are_refused(packed, part):
    whole = (packed / "model.safetensors").read_bytes()
    (packed / "model.safetensors").write_bytes(whole[: int(part * len(whole))])
    refuse(packed, r"model.safetensors: corrupt or truncated")


def test_an_index_that_promises_more_is_refused(packed):
    index = {"weight_map": {"model.layers.0.lost": "model-00002-of-00002.safetensors"}}
    (packed / "model.safetensors.index.json").write_text(json.dumps(index))
    refuse(packed, "layers.0.lost should be in model-00002")


def test_directories_in_no_released_format_are_refused(originals, sidecar, tmp_path):
    refuse(sidecar, "bits is 3", bits=3)
    (sidecar / MODULES).write_text("{}")
    refuse(sidecar, "has both of")
    (sidecar / MODULES).unlink()
    config = json.loads((sidecar / "config.json").read_text())
    refuse(sidecar, "is complete: base is for LLaVA", base=sidecar)
    (sidecar / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    refuse(sidecar, "'bert' is no image-text model")
    (sidecar / SIDECAR).unlink()
    refuse(sidecar, "has neither of")
    refuse(tmp_path / "nowhere", "nowhere.*does not exist")
    refuse("nobody/no-such-model", "cannot fetch 'nobody/no-such-model'")
