"""What a GGUF file holds is what was trained, bit by bit, and llama.cpp computes with it."""

import base64
import copy
import dataclasses
import importlib.util
import io
import json
import math
import statistics
import struct
import sys

import numpy as np
import pytest
import torch
from commands import done
from exported import trained
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp import MARK, ask
from tiny_families import picture, tiny_model, tiny_processor
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from grace.errors import InputError
from grace.export import save_gguf
from grace.export.gguf_file import pack_blocks
from grace.export.gguf_tokenizer import tokenizer_values
from grace.models import decoder_linears, read_prompts, render_question, save_model
from grace.quantization import QuantSpec, bake, fake_quant_layers, prepare, write_codes

FAMILIES = ("llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
SIDES = {"llava": 32, "qwen2_vl": 64, "qwen2_5_vl": 128, "qwen3_vl": 64}  # never resized
VISION = ("<|vision_start|>", "<|vision_end|>")


@dataclasses.dataclass
class Tiny:
    """A tiny model of a family with the settings that llama.cpp has."""

    name: str

    @property
    def processor(self):
        processor = copy.deepcopy(tiny_processor(self.name))
        if self.name != "llava":
            processor.image_processor.size["longest_edge"] = 256**2
        return processor

    def model(self, seed=0, **text):
        model = tiny_model(self.name, seed=seed, **text)
        if self.name == "qwen2_5_vl":
            for part in (model.config.vision_config, model.model.visual.config, model.model.visual):
                part.window_size = 112
        return model


def export(name, folder, spec=QuantSpec(4, 32), *, dtype=torch.float32, **text):  # noqa: B008
    tiny = Tiny(name)
    model = trained(tiny, spec, **text)
    save_gguf(model, folder, dtype=dtype, processor=tiny.processor)
    return model


# -- blocks ----------------------------------------------------------------------------------------


def read_blocks(row: bytes, kind: str):
    """Codes and scales of a row, read byte by byte."""
    size = {"Q4_0": 18, "Q8_0": 34}[kind]
    codes, scales = [], []
    for start in range(0, len(row), size):
        scales.append(struct.unpack_from("<e", row, start)[0])
        body = row[start + 2 : start + size]
        if kind == "Q8_0":
            codes += struct.unpack("<32b", body)
        else:
            codes += [(byte & 15) - 8 for byte in body] + [(byte >> 4) - 8 for byte in body]
    return codes, scales


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([("Q4_0", 4), ("Q4_0", 2), ("Q8_0", 8)]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([32, 64, 128]),
)
@settings(deadline=None, max_examples=30)
def test_blocks_read_byte_by_byte_have_the_codes_and_scales(seed, kind, rows, groups, width):
    kind, bits = kind
    generator = torch.Generator().manual_seed(seed)
    limit, shape = 2 ** (bits - 1), (rows, groups * width)
    codes = torch.randint(-limit, limit, shape, generator=generator, dtype=torch.int8)
    scales = (torch.rand(rows, groups, generator=generator) + 0.01).half()
    stored = pack_blocks(codes, scales, kind)
    assert stored.kind == kind
    for row in range(rows):
        own, d = read_blocks(stored.data[row].tobytes(), kind)
        assert own == codes[row].tolist()
        assert d == [scale for scale in scales[row].tolist() for _ in range(width // 32)]


# -- files -----------------------------------------------------------------------------------------


def read(folder, pattern="model-*.gguf"):
    gguf = pytest.importorskip("gguf", reason="GGUF files are read with the package gguf")
    (file,) = folder.glob(pattern)
    reader = gguf.GGUFReader(file)
    values = {name: field.contents() for name, field in reader.fields.items()}
    return values, {tensor.name: tensor for tensor in reader.tensors}


LINEARS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def file_row(name, linear, row):
    """Where llama.cpp looks for an output row: a head's halves lie side by side for Llama."""
    if name != "llava" or linear not in ("q_proj", "k_proj"):
        return row
    head, inner = divmod(row, 16)
    half, channel = divmod(inner, 8)
    return head * 16 + 2 * channel + half


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("llava", QuantSpec(4, 64)),
        ("qwen2_vl", QuantSpec(4, "row")),
        ("qwen2_5_vl", QuantSpec(8, 32)),
        ("qwen3_vl", QuantSpec(2, 32)),
    ],
)
def test_a_file_holds_every_code_and_scale(tmp_path, name, spec):
    pytest.importorskip("gguf", reason="GGUF files are written with the package gguf")
    text = {"attention_bias": True} if name == "llava" else {}
    model = export(name, tmp_path / "out", spec, **text)
    kind = "Q4_0" if spec.bits <= 4 else "Q8_0"
    values, tensors = read(tmp_path / "out")
    quantized = dict(fake_quant_layers(model))
    assert len(quantized) == 14
    for path, layer in quantized.items():
        _, index, inner = path.removeprefix("model.language_model.").split(".", 2)
        place = f"blk.{index}.{LINEARS[inner]}"
        stored = tensors[f"{place}.weight"]
        assert stored.tensor_type.name == kind
        codes, scales = layer.codes(), layer.scales()
        per_group = codes.shape[1] // scales.shape[1] // 32
        for row in range(len(codes)):
            there = file_row(name, inner.rpartition(".")[2], row)
            own, d = read_blocks(stored.data[there].tobytes(), kind)
            assert own == codes[row].tolist(), path
            assert d == [value for value in scales[row].tolist() for _ in range(per_group)]
            if layer.bias is not None:
                assert tensors[f"{place}.bias"].data[there] == layer.bias[row].item()
    decoder = model.model.language_model
    assert np.array_equal(tensors["output_norm.weight"].data, decoder.norm.weight.detach())
    assert np.array_equal(tensors["token_embd.weight"].data, decoder.embed_tokens.weight.detach())
    assert "output.weight" not in tensors  # it is tied to the embedding
    architecture = values["general.architecture"]
    assert values[f"{architecture}.attention.head_count_kv"] == 2
    assert values["tokenizer.chat_template"] == Tiny(name).processor.chat_template
    assert len(values["tokenizer.ggml.tokens"]) == model.config.get_text_config().vocab_size
    vision, towers = read(tmp_path / "out", "mmproj-*.gguf")
    assert vision["clip.vision.projection_dim"] == 64
    assert np.array_equal(vision["clip.vision.image_mean"], np.float32(vision_mean(name)))
    (last,) = (t for key, t in towers.items() if key == "mm.2.weight")
    own = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 64]
    assert any(np.array_equal(last.data, linear.weight.detach()) for linear in own)


def vision_mean(name):
    return Tiny(name).processor.image_processor.image_mean


def test_an_output_head_of_its_own_and_linears_left_alone_are_stored(tmp_path):
    pytest.importorskip("gguf", reason="GGUF files are written with the package gguf")
    tiny = Tiny("qwen3_vl")
    model = tiny.model()
    model.lm_head.weight = torch.nn.Parameter(2 * model.lm_head.weight.detach())
    name = "model.language_model.layers.1.mlp.up_proj"
    prepare(model, QuantSpec(4, 32), [name])
    save_gguf(model, tmp_path / "out", processor=tiny.processor)
    _, tensors = read(tmp_path / "out")
    head = torch.from_numpy(tensors["output.weight"].data.copy()).view(torch.bfloat16)
    assert torch.equal(head, model.lm_head.weight.bfloat16())
    kinds = {key: tensor.tensor_type.name for key, tensor in tensors.items()}
    assert kinds.pop("blk.1.ffn_up.weight") == "Q4_0"
    assert set(kinds.values()) == {"BF16", "F32"}
    codes = bake(model)
    save_gguf(model, tmp_path / "baked", processor=tiny.processor, codes=codes)
    for file in ("model-Q4_0.gguf", "mmproj-BF16.gguf", "config.json"):
        same = (tmp_path / folder / file for folder in ("out", "baked"))
        assert len({path.read_bytes() for path in same}) == 1
    with pytest.raises(InputError, match=r"out exists.*overwrite"):
        save_gguf(model, tmp_path / "out", processor=tiny.processor, codes=codes)
    save_gguf(model, tmp_path / "out", processor=tiny.processor, codes=codes, overwrite=True)


def test_the_command_writes_what_the_function_does(tmp_path, capsys):
    pytest.importorskip("gguf", reason="GGUF files are written with the package gguf")
    tiny, spec = Tiny("qwen3_vl"), QuantSpec(4, 32)
    model = trained(tiny, spec)
    codes = bake(model)
    save_model(model, tiny.processor, tmp_path / "student")
    write_codes(tmp_path / "student", codes, spec.to_dict())
    done("export", tmp_path / "student", "--format", "gguf", "--out", tmp_path / "out")
    assert "exported 14 linears of 4 bits" in capsys.readouterr().out
    save_gguf(model, tmp_path / "own", codes=codes, processor=tiny.processor)
    for file in ("model-Q4_0.gguf", "mmproj-BF16.gguf"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "own" / file).read_bytes()


# -- what is refused -------------------------------------------------------------------------------


def change(*path, **settings):
    def spoil(model):
        part = model
        for name in path:
            part = getattr(part, name)
        for name, value in settings.items():
            setattr(part, name, value)

    return spoil


VISION_CONFIG = ("config", "vision_config")
TEXT_CONFIG = ("config", "text_config")
REFUSED = {
    "window": ("qwen2_5_vl", change(*VISION_CONFIG, window_size=32), "window_size is 32.*112"),
    "blocks": ("qwen2_5_vl", change(*VISION_CONFIG, fullatt_block_indexes=[0]), "fullatt_block"),
    "merge": ("qwen2_vl", change(*VISION_CONFIG, spatial_merge_size=4), "spatial_merge_size is 4"),
    "heads": ("qwen3_vl", change(*VISION_CONFIG, num_heads=8), "2 channels.*multiple of 4"),
    "swapped": ("llava", change(*VISION_CONFIG, intermediate_size=16), "as wide as the tower"),
    "class": ("llava", change("config", vision_feature_select_strategy="full"), "is 'full'"),
    "layers": ("llava", change("config", vision_feature_layer=[0, 1]), "reads one layer"),
    "rope": ("llava", change(*TEXT_CONFIG, rope_parameters={"rope_type": "yarn"}), "'yarn'"),
    "windows": ("qwen2_vl", change(*TEXT_CONFIG, layer_types=["sliding_attention"]), "sliding"),
    "decoder": ("llava", change(*TEXT_CONFIG, model_type="qwen2"), "model_type is 'qwen2'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_would_compute_otherwise_is_refused(tmp_path, case):
    pytest.importorskip("gguf", reason="GGUF files are written with the package gguf")
    name, spoil, message = REFUSED[case]
    tiny = Tiny(name)
    model = trained(tiny, QuantSpec(4, 32))
    spoil(model)
    with pytest.raises(InputError, match=message):
        save_gguf(model, tmp_path / "out", processor=tiny.processor)
    assert not list(tmp_path.iterdir())


def test_models_that_the_format_cannot_hold_are_refused(tmp_path):
    pytest.importorskip("gguf", reason="GGUF files are written with the package gguf")
    tiny = Tiny("qwen3_vl")

    def refuse(model, message, processor=tiny.processor, **options):
        with pytest.raises(InputError, match=message):
            save_gguf(model, tmp_path / "out", processor=processor, **options)
        assert not list(tmp_path.iterdir())

    good = trained(tiny, QuantSpec(4, 32))
    refuse(tiny.model(), "nothing is quantized")
    refuse(good, "give the processor", None)
    refuse(good, "dtype is torch.int8", dtype=torch.int8)
    refuse(trained(Tiny("gemma3"), QuantSpec(4, 32)), "gemma3 is not exported to llama.cpp")
    narrow = trained(tiny, QuantSpec(4, "row"), intermediate_size=80)
    refuse(narrow, "down_proj: 80 inputs share a scale")
    fine = trained(tiny, QuantSpec(4, 32, scale_dtype="float32"))
    refuse(fine, r"q_proj.scales: scale .* torch.float16")
    save_gguf(fine, tmp_path / "out", processor=tiny.processor, round_scales=True)


def test_without_the_package_there_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"pip install 'grace-vlm\[gguf\]'"):
        save_gguf(torch.nn.Linear(2, 2), tmp_path / "out")


# -- tokenizers ------------------------------------------------------------------------------------


def values_of(processor, around=("", ""), rows=1000):
    return tokenizer_values(processor, rows, around, [], None)


def changed(edit, name="qwen2_vl"):
    processor = copy.deepcopy(tiny_processor(name))
    content = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    edit(content)
    processor.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))
    return processor


def test_a_rule_that_llama_cpp_has_is_named():
    assert values_of(tiny_processor("llava"))["tokenizer.ggml.pre"] == "gpt-2"
    assert values_of(tiny_processor("qwen2_vl"), VISION)["tokenizer.ggml.pre"] == "gpt-2"


def test_tokenizers_that_split_otherwise_are_refused(family):
    def strips(content):
        content["added_tokens"][0]["lstrip"] = True

    def lowers(content):
        content["normalizer"] = {"type": "Lowercase"}

    def wordwise(content):
        words = {"type": "Whitespace"}
        content["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [words, content["pre_tokenizer"]],
        }

    for edit, message in (
        (strips, "has lstrip"),
        (lowers, "normalizer is Lowercase"),
        (wordwise, "split texts differently"),
    ):
        with pytest.raises(InputError, match=message):
            values_of(changed(edit), VISION)
    # one token for the start of a turn and the start of an image: llama.cpp writes the latter
    with pytest.raises(InputError, match=r"split texts differently(.|\n)*<\|vision_start\|>"):
        values_of(family("qwen2_vl").processor, VISION)
    assert values_of(family("llava").processor)["tokenizer.ggml.model"] == "gpt2"
    with pytest.raises(InputError, match=r"only 10 embeddings"):
        values_of(tiny_processor("llava"), rows=10)


def pieces(scheme):
    """A tokenizer like LLaVA-1.5's: pieces with every merge there is, and bytes."""
    words = ["▁What", "▁is", "▁in", "▁the", "▁picture", "▁circle", "▁a", "▁red", "USER", ":", "?"]
    parts = sorted({word[:end] for word in words for end in range(2, len(word) + 1)}, key=len)
    letters = sorted({letter for word in words for letter in word})
    vocab = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *parts, *letters]
    ids = {token: index for index, token in enumerate(vocab)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in parts
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    model = models.BPE(ids, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    if scheme == "prepend":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme, False)
    tokenizer.decoder = decoders.Metaspace("▁", "always", False)
    marks = ("<unk>", "<s>", "</s>", "<image>", "<pad>")
    tokenizer.add_special_tokens(
        [AddedToken(mark, special=True, normalized=False) for mark in marks]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        add_bos_token=True,
        extra_special_tokens={"image_token": "<image>"},
    )
    processor = copy.deepcopy(tiny_processor("llava"))
    processor.tokenizer = fast
    processor.chat_template = (
        "{% for message in messages %}USER: {% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    return processor


def test_pieces_of_sentencepiece_get_scores_in_the_order_of_their_merges():
    values = values_of(pieces("prepend"))
    assert values["tokenizer.ggml.model"] == "llama"
    assert values["tokenizer.ggml.add_space_prefix"] and values["tokenizer.ggml.add_bos_token"]
    score = dict(zip(values["tokenizer.ggml.tokens"], values["tokenizer.ggml.scores"], strict=True))
    assert score["▁W"] > score["▁Wh"] > score["▁What"]
    kinds = values["tokenizer.ggml.token_type"]
    assert kinds[:4] == [2, 3, 3, 6] and kinds[-1] == 5
    first = values_of(pieces("first"))
    assert not first["tokenizer.ggml.add_space_prefix"]
    assert first["tokenizer.chat_template"].startswith(" {% for")

    processor = pieces("prepend")
    content = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    content["model"]["merges"] = content["model"]["merges"][:-1]
    processor.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))
    with pytest.raises(InputError, match="never joins"):
        values_of(processor)


# -- llama.cpp -------------------------------------------------------------------------------------

TEXTS = (
    "What is in the picture? A red circle, and 2 blue squares (3.5 cm each).",
    "It's the DOG'S ball;\n\n they'll  say 1234\tGröße 日本 <|im_end|> 👍🏽\n",
    "def f(x):\n    return x[0] ** 2  # 100%\n",
)
STEPS = 8


def completion(prompt, images, forced=None):
    """One token with the logarithms of all probabilities, or `STEPS` greedy ones."""
    given = prompt
    if images:
        coded = []
        for image in images:
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            coded.append(base64.b64encode(buffer.getvalue()).decode())
        given = {"prompt_string": prompt, "multimodal_data": coded}
    body = {"prompt": given, "temperature": 0, "return_tokens": True, "cache_prompt": False}
    if forced is None:
        return ["/completion", {**body, "n_predict": STEPS, "ignore_eos": True}]
    # A token that is part of a character would not be reported before the whole of it is there.
    return [
        "/completion",
        {**body, "n_predict": 1, "n_probs": 1000, "logit_bias": [[forced, 1e9]]},
    ]


def need_the_engine():
    for package in ("gguf", "xllamacpp"):
        if importlib.util.find_spec(package) is None:  # the engine runs in a process of its own
            pytest.skip(f"llama.cpp is asked through the package {package}")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["prepend", "always", "first", "never"])
def test_llama_cpp_makes_the_same_pieces(tmp_path, scheme):
    """A space before "first" is written by the chat template: here it is part of the prompt."""
    need_the_engine()
    processor = pieces(scheme)
    model = trained(Tiny("llava"), QuantSpec(4, 32), vocab_size=400)
    save_gguf(model, tmp_path / "out", processor=processor)
    texts = (
        "What is in the picture?",
        "USER: a  red circle<image>the picture\nWhat?",
        "Größe 日本 wha",
    )
    space = " " if scheme == "first" else ""
    requests = [["/tokenize", {"content": space + text, "add_special": True}] for text in texts]
    for text, answer in zip(texts, ask(tmp_path / "out", requests), strict=True):
        assert answer["tokens"] == processor.tokenizer(text).input_ids, text


def class_token_last(model):
    """CLIP as llama.cpp has it in the versions tested: patches first, then the class token.

    Positions are counted through, and the first one is left out, which is a patch's then.
    """
    own = copy.deepcopy(model)
    embeddings = own.model.vision_tower.embeddings

    def embed(pixel_values, **_):
        patches = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        mark = embeddings.class_embedding.expand(len(patches), 1, -1)
        return torch.cat([patches, mark], 1) + embeddings.position_embedding.weight

    embeddings.forward = embed
    return own


def sensitivity(model, linears, inputs, tokens):
    """(log-probabilities (V,), largest change (T,), its spread (T,)) at the last position.

    A hook adds a zero to every input that llama.cpp rounds; the gradient with respect to it says
    how far a rounding moves the answer. Inputs of several linears are rounded once.
    """
    zeros = {}
    second = ("mlp.fc2", "linear_fc2", "linear_2", "merger.mlp.2")  # after a GELU of the tower

    def add(module, arguments, name):
        (x,) = arguments
        if id(x) not in zeros:
            if name in linears:
                largest = x.detach().abs().unflatten(-1, (-1, 32)).amax(-1, keepdim=True)
                size = (largest * (1 / 254 + 2**-11)).expand(*largest.shape[:-1], 32).flatten(-2)
            else:
                size = 2**-10 * (x.detach().abs() + 1) + 5e-4
            zeros[id(x)] = torch.zeros_like(x, requires_grad=True), size, x  # x keeps its id
        return (x + zeros[id(x)][0],)

    hooks = [
        module.register_forward_pre_hook(lambda m, a, name=name: add(m, a, name))
        for name, module in model.named_modules()
        if name in linears or ("language_model" not in name and name.endswith(second))
    ]
    model.requires_grad_(False)
    answer = model(**inputs, use_cache=False).logits[0, -1].log_softmax(-1)
    for hook in hooks:
        hook.remove()
    bounds, spreads = [], []
    for token in tokens:
        places = [zero for zero, _, _ in zeros.values()]
        gradients = torch.autograd.grad(
            answer[token], places, retain_graph=True, allow_unused=True
        )  # CLIP's last layer is not used
        sizes = [size for _, size, _ in zeros.values()]
        pairs = zip(gradients, sizes, strict=True)
        moved = [gradient.abs() * size for gradient, size in pairs if gradient is not None]
        bounds.append(sum(part.sum() for part in moved))
        spreads.append((sum(part.square().sum() for part in moved) / 3).sqrt())
    return answer.detach(), torch.stack(bounds), torch.stack(spreads)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("llava", QuantSpec(4, 64)),
        ("qwen2_vl", QuantSpec(4, "row")),
        ("qwen2_5_vl", QuantSpec(8, 32)),
        ("qwen3_vl", QuantSpec(3, 32)),
    ],
)
def test_llama_cpp_answers_within_the_error_of_its_activations(
    tmp_path, name, spec, record_property
):
    """Texts and images, through llama.cpp, against transformers with the same weights.

    llama.cpp rounds the input x of a linear in Q4_0 or Q8_0 in blocks of 32: with a = max |x| of
    the block, d = a / 127 and q = round(x / d), the product takes d' q, where d' is d in float16.
    So |x - d' q| <= d / 2 + |q| |d - d'| <= a / 254 + 127 d 2^-11 = a (1 / 254 + 2^-11). The rest
    is float32 in both here, but for two things in a tower: the GELU is read from a table of
    float16 (2^-11 of its input and of its output), and is the one with tanh where transformers has
    erf (apart by less than 5e-4).

    To first order a logarithm of a probability then moves by at most the sum, over all these
    inputs, of |its derivative| times that size: the bound, which has to hold for every token.
    Roundings are as good as independent and even in their intervals: the error is a sum of many,
    with a variance of a third of the sum of squares, and has to stay within four deviations. That
    is sharper: with one linear's scales an eighth larger it does not.
    """
    need_the_engine()
    tiny = Tiny(name)
    text = {"attention_bias": True} if name == "llava" else {}
    model = export(name, tmp_path / "out", spec, **text)
    processor, tokenizer = tiny.processor, tiny.processor.tokenizer
    linears = set(bake(model))
    around = ("", "") if name == "llava" else VISION
    written = f"{around[0]}{processor.image_token}{around[1]}"
    image = picture(1, SIDES[name], SIDES[name])
    letter = tokenizer.convert_tokens_to_ids("a")
    prompts = []
    for images in ([], [image]):
        prompt = render_question(processor, "What is in the picture?", len(images))
        inputs = read_prompts(processor, [prompt], [images])
        prompts.append((prompt.replace(written, MARK), images, inputs))
    requests = [["/tokenize", {"content": text, "add_special": True}] for text in TEXTS]
    for prompt, images, _ in prompts:
        requests += [completion(prompt, images, letter), completion(prompt, images)]
    answers = ask(tmp_path / "out", requests)
    for text, answer in zip(TEXTS, answers, strict=False):
        assert answer["tokens"] == tokenizer(text).input_ids
    for index, (_, images, inputs) in enumerate(prompts):
        first, greedy = answers[len(TEXTS) + 2 * index :][:2]
        assert first["tokens_evaluated"] == inputs["input_ids"].shape[1]
        (given,) = first["completion_probabilities"]
        theirs = {entry["id"]: entry["logprob"] for entry in given["top_logprobs"]}
        assert len(theirs) == model.config.get_text_config().vocab_size
        tokens = sorted(theirs, key=theirs.get)[::20]
        values = torch.tensor([theirs[token] for token in tokens])
        likely = [model]
        if images and name == "llava":
            likely.append(class_token_last(model))
        found = []
        for one in likely:
            own, bound, spread = sensitivity(one, linears, inputs, tokens)
            error = (own[tokens] - values).abs()
            found.append((error.max().item(), (error / bound).max(), (error / spread).max(), one))
        worst, share, deviations, one = min(found, key=lambda entry: entry[0])
        record_property(f"images {len(images)}", f"{worst:.4f} {share:.3f} {deviations:.2f}")
        assert share < 1 and deviations < 4, found
        gaps = greedy_gaps(one, inputs, greedy["tokens"])
        record_property(f"greedy {len(images)}", str([round(gap, 3) for gap in gaps]))
        assert max(gaps) <= 2 * bound.max()


@torch.no_grad()
def greedy_gaps(model, inputs, tokens):
    """How much likelier than llama.cpp's own choice the likeliest token was, step by step."""
    gaps = []
    inputs = dict(inputs)
    for token in tokens:
        logits = model(**inputs, use_cache=False).logits[0, -1]
        gaps.append((logits.max() - logits[token]).item())
        for name, new in (("input_ids", token), ("attention_mask", 1), ("mm_token_type_ids", 0)):
            if name in inputs:
                old = inputs[name]
                inputs[name] = torch.cat([old, torch.full_like(old[:, :1], new)], 1)
    return gaps


def taught(model, tokenizer, texts, steps=80):
    """The model after some steps on texts alone; the mean loss falls by more than half."""
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    order = torch.Generator().manual_seed(5)
    losses = []
    for _ in range(steps):
        chosen = [texts[i] for i in torch.randint(len(texts), (8,), generator=order)]
        batch = tokenizer(chosen, padding=True, truncation=True, max_length=24, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        loss = model.train()(**inputs, labels=labels, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert statistics.fmean(losses[-10:]) < 0.5 * losses[0], losses
    return model.eval()


@pytest.mark.slow
def test_perplexity_in_llama_cpp_is_that_of_transformers(tmp_path, family, texts, record_property):
    """On texts of the small world, word by word: a student that was trained on them, in Q4_0.

    The mean of the logarithms moves by no more than the mean of their bounds, which are those of
    the test above; and, were the errors of all places one and the same, by four times the mean of
    their deviations.
    """
    need_the_engine()
    small = family("llava")
    chosen = [one for one in dict.fromkeys(texts) if "<image>" not in one]
    model = taught(small.model(2), small.processor.tokenizer, chosen)
    prepare(model, QuantSpec(4, 32), decoder_linears(model))
    save_gguf(model, tmp_path / "out", dtype=torch.float32, processor=small.processor)
    linears = set(bake(model))
    tokenizer = small.processor.tokenizer
    asked, requests = [], []
    for text in chosen[:6]:
        tokens = tokenizer(text).input_ids[:24]
        for place in range(4, len(tokens)):
            asked.append((tokens[:place], tokens[place]))
            requests.append(completion(tokens[:place], [], tokens[place]))
    assert len(asked) > 40
    answers = ask(tmp_path / "out", requests)
    ours, theirs, bounds, spreads = [], [], [], []
    for (before, token), answer in zip(asked, answers, strict=True):
        (given,) = answer["completion_probabilities"]
        theirs.append(next(e["logprob"] for e in given["top_logprobs"] if e["id"] == token))
        inputs = {"input_ids": torch.tensor([before])}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        own, bound, spread = sensitivity(model, linears, inputs, [token])
        ours.append(own[token].item())
        bounds.append(bound.item())
        spreads.append(spread.item())
    assert math.exp(-statistics.fmean(ours)) < 40, "it was trained"
    perplexities = [math.exp(-statistics.fmean(values)) for values in (ours, theirs)]
    record_property("perplexity", str([round(value, 3) for value in perplexities]))
    error = abs(statistics.fmean(ours) - statistics.fmean(theirs))
    assert error <= statistics.fmean(bounds)
    assert error <= 4 * statistics.fmean(spreads)
