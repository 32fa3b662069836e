# %% [markdown]
# # INT4 with GRACE on a model of your own
#
# From two checkpoints and a file of conversations to packed weights: train a student under its
# teacher, pack it, export it, load it with another library, compare what it says.
#
#     python docs/tutorial.py
#     python docs/tutorial.py --student DIR --teacher DIR --data FILE.parquet --out DIR
#
# Without arguments it makes a tiny Qwen2-VL, a larger one to teach it, and pictures to talk about,
# and takes less than a minute on two processor cores. Its numbers then show that the path works,
# and nothing about what the method is worth. The cells (`# %%`) open as a notebook in editors that
# know them, and with jupytext.
#
# Needs `pip install -e '.[export]'` and torchvision, see README.md.

# %%
import argparse
import random
import tempfile
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast, TrainingArguments

from grace.arithmetic import native_dtype
from grace.data import Collator, ConversationDataset
from grace.decoding import generate
from grace.distillation import DistillationConfig
from grace.export import load_packed, save_compressed_tensors, save_packed
from grace.int4 import effective_bits, pack
from grace.models import family_of, load_model, load_processor
from grace.quantization import CODES_FILE, CodesFile, QuantSpec, bake, prepare
from grace.training import GraceTrainer, LiveTeacher, MethodConfig, prepare_student, save_student

parser = argparse.ArgumentParser(description="GRACE on a small model, from end to end.")
parser.add_argument("--student", help="directory or hub name; with --teacher and --data")
parser.add_argument("--teacher", help="larger model of the same family and vocabulary")
parser.add_argument("--data", help="parquet file of conversations, as README.md describes it")
parser.add_argument("--out", help="directory for what is written (default: a temporary one)")
parser.add_argument("--steps", type=int, default=40, help="of GRACE (default: %(default)s)")
parser.add_argument("--batch-size", type=int, default=8, help="default: %(default)s")
parser.add_argument("--learning-rate", type=float, help="default: 1e-5; of the tiny model 1e-3")
parser.add_argument("--held-out", type=int, default=64, help="records kept to ask about")
options = parser.parse_args(None if "__file__" in globals() else [])
own = (options.student, options.teacher, options.data)
if any(own) and not all(own):
    parser.error("give all of --student, --teacher and --data, or none of them")
torch.manual_seed(0)
if not all(own):
    torch.set_num_threads(1)  # so small a model gains nothing from a second one
out = Path(options.out or tempfile.mkdtemp(prefix="grace-tutorial-"))
out.mkdir(parents=True, exist_ok=True)
rate = options.learning_rate or (1e-5 if all(own) else 1e-3)
device = "cuda" if torch.cuda.is_available() else "cpu"

# %% [markdown]
# ## Conversations
#
# A parquet file in the LLaVA schema: `id`, `image` (bytes and path, or null) and `conversations`
# (turns of `human` and `gpt`; the first human turn marks the image). Only answers are supervised.
# Here a picture shows a square of some color, and two questions are asked about it.

# %%
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 220),
    "yellow": (230, 210, 50),
    "purple": (150, 60, 200),
    "white": (240, 240, 240),
}


def make_record(number: int, draw: random.Random) -> dict:
    """One picture of 32 by 32 pixels and two questions about it."""
    picture = Image.new("RGB", (32, 32))
    color, other = draw.choice(list(COLORS)), draw.choice(list(COLORS))
    left, top = draw.randrange(13), draw.randrange(13)
    picture.paste(COLORS[color], (left, top, left + 20, top + 20))
    turns = [
        {"from": "human", "value": "<image>\nwhat color is the square ?"},
        {"from": "gpt", "value": color},
        {"from": "human", "value": f"is it {other} ?"},
        {"from": "gpt", "value": "yes" if color == other else "no"},
    ]
    content = BytesIO()
    picture.save(content, "PNG")
    image = {"bytes": content.getvalue(), "path": f"{number}.png"}
    return {"id": str(number), "image": image, "conversations": turns}


def make_data(path: Path, records: int) -> None:
    draw = random.Random(0)
    pq.write_table(pa.Table.from_pylist([make_record(i, draw) for i in range(records)]), path)


# %% [markdown]
# ## A tiny model and its teacher
#
# Ordinary Hugging Face directories: configuration, weights, tokenizer, image processor, chat
# template. Your own checkpoints take their place with `--student` and `--teacher`. A published
# student has been trained before GRACE sees it, so these are trained, too: with `GraceTrainer`,
# method `sft`, without a teacher and in 16 bits. The vision tower is frozen throughout.

# %%
MARKS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PATCHES = {"patch_size": 8, "temporal_patch_size": 2}


def make_processor():
    """A vocabulary of the words that are used, and pictures as they are."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    spoken = ["user", "assistant", "what", "color", "is", "the", "square", "it", "?", "yes", "no"]
    words = {word: number for number, word in enumerate(["<unk>", *spoken, *COLORS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *MARKS.values()]
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in special])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        extra_special_tokens=MARKS,
        padding_side="left",
    )
    sizes = {**PATCHES, "merge_size": 2, "size": {"shortest_edge": 32**2, "longest_edge": 32**2}}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=wrapped,
        video_processor=Qwen2VLVideoProcessor(**sizes),
        chat_template=CHAT,
    )


def make_model(processor, width: int, layers: int):
    """A Qwen2-VL with random weights. Every linear of its decoder takes a multiple of 128 inputs,
    so that groups of 128 weights can share a scale."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    number = processor.tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": len(processor.tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "initializer_range": 0.05,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [width // 32, width // 32, width // 16],
        },
        "bos_token_id": None,
        "eos_token_id": processor.tokenizer.eos_token_id,
        "pad_token_id": processor.tokenizer.pad_token_id,
    }
    vision = {"depth": 1, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "hidden_size": width}
    config = Qwen2VLConfig(
        text_config=text,
        vision_config={**vision, **PATCHES, "spatial_merge_size": 2, "in_channels": 3},
        tie_word_embeddings=True,
        **{f"{name}_id": number(mark) for name, mark in MARKS.items()},
    )
    model = Qwen2VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model


def settings(folder: Path, steps: int, learning_rate: float) -> TrainingArguments:
    return TrainingArguments(
        str(folder),
        max_steps=steps,
        learning_rate=learning_rate,
        per_device_train_batch_size=options.batch_size,
        warmup_steps=0.03,
        lr_scheduler_type="cosine",
        bf16=native_dtype(device) == torch.bfloat16,
        use_cpu=device == "cpu",
        logging_steps=max(steps // 3, 1),
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        report_to=[],
    )


def collator_of(model, processor) -> Collator:
    family = family_of(model.config)
    return Collator(family, model.config.image_token_id, processor.tokenizer.pad_token_id)


def make_checkpoint(path: Path, data: Path, width: int, layers: int, steps: int) -> str:
    processor = make_processor()
    model = make_model(processor, width, layers)
    method = MethodConfig("sft")
    prepare_student(model, method)  # at 16 bits: freezes the vision tower, nothing else
    records = ConversationDataset(data, processor, model.config, limit=TRAINED)
    collate = collator_of(model, processor)
    GraceTrainer(model, settings(out, steps, 3e-3), records, collate, method=method).train()
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)


# %%
TRAINED = 448
if all(own):
    student_path, teacher_path, data_path = options.student, options.teacher, Path(options.data)
else:
    data_path = out / "conversations.parquet"
    make_data(data_path, TRAINED + options.held_out)
    teacher_path = make_checkpoint(out / "teacher", data_path, width=128, layers=4, steps=160)
    student_path = make_checkpoint(out / "before", data_path, width=128, layers=2, steps=30)

# %% [markdown]
# ## Train under the teacher
#
# `prepare_student` freezes the vision tower and puts fake quantization into the linears of the
# decoder: the forward pass sees the INT4 weights, the gradient moves the float32 weights and the
# scales. The loss is cross-entropy, gated decoupled distillation and relational alignment
# (docs/method.md); `DistillationConfig` has a switch for each part.

# %%
student = load_model(student_path)
teacher = load_model(teacher_path, dtype=torch.bfloat16).to(device)
processor = load_processor(student_path)
family = family_of(student.config)
method = MethodConfig("grace", 4, QuantSpec(bits=4, group_size=128), DistillationConfig())
quantized = prepare_student(student, method)
records = pq.read_table(data_path).num_rows
kept = min(options.held_out, records // 2)
data = ConversationDataset(data_path, processor, student.config, limit=records - kept)
frozen = LiveTeacher(
    teacher,
    family,
    relational=method.relational,
    tokenizer=load_processor(teacher_path).tokenizer,  # so that another vocabulary is refused
)
trainer = GraceTrainer(
    student,
    settings(out, options.steps, rate),
    data,
    collator_of(student, processor),
    method=method,
    teacher=frozen,
)
trainer.train()
for line in trainer.state.log_history:
    if "gdkd" in line:
        shown = ", ".join(f"{term} {line[term]:.3f}" for term in ("ce", "gdkd", "rcka", "beta"))
        print(f"step {line['step']}: {shown}")

# %% [markdown]
# `save_student` turns the trained linears into plain ones whose weights are on the INT4 grid, and
# writes the integers and scales beside the weights. Packing and exports start from these: nothing
# is rounded a second time.

# %%
save_student(student, processor, out / "student", method, overwrite=True)

# %% [markdown]
# ## Pack
#
# Two codes a byte, read by a kernel of the device where there is one. Every layer is unpacked again
# and compared. `crossover` is the number of rows up to which the kernel is used; left out, it is
# measured once on the device and kept.

# %%
codes = CodesFile(out / "student" / CODES_FILE)
packed = load_model(out / "student", dtype=torch.bfloat16).to(device)
names = pack(packed, codes, crossover=16)
save_packed(packed, out / "packed", processor=processor)
print(str(effective_bits(packed).of(names)).splitlines()[-1])

# %% [markdown]
# ## Export
#
# The format `pack-quantized` of compressed-tensors: transformers loads it by itself, vLLM serves
# it. The codes are exact; scales were trained in bfloat16, which it stores.

# %%
save_compressed_tensors(
    load_model(out / "student"),
    out / "compressed",
    codes=codes,
    bits=codes.bits,
    dtype=torch.bfloat16,
    processor=processor,
)

# %% [markdown]
# ## Load and ask
#
# Each model answers the first question of every record that training has not seen.

# %%
held_out = pq.read_table(data_path).slice(records - kept).to_pylist()


def ask(model, most: int = 8) -> list[str]:
    """Greedy answers, in batches with padding on the left."""
    answers = []
    for start in range(0, len(held_out), 32):
        part = held_out[start : start + 32]
        texts, pictures = [], []
        for record in part:
            question = record["conversations"][0]["value"].replace("<image>", "").strip()
            content = [{"type": "text", "text": question}]
            if record["image"] is not None:
                pictures.append(Image.open(BytesIO(record["image"]["bytes"])).convert("RGB"))
                content.insert(0, {"type": "image"})
            chat = [{"role": "user", "content": content}]
            texts.append(
                processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            )
        inputs = processor(text=texts, images=pictures or None, padding=True, return_tensors="pt")
        inputs = dict(inputs.to(device, torch.bfloat16))
        tokens = generate(model, inputs, max_new_tokens=most)[:, inputs["input_ids"].shape[1] :]
        answers += processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [answer.strip() for answer in answers]


def loaded(path: str | Path):
    return load_model(path, dtype=torch.bfloat16).to(device).eval()


rounded = load_model(student_path)  # round to nearest: the same grid without training
prepare(rounded, QuantSpec(bits=4, group_size=128, init="max"))
bake(rounded)
exported = AutoModelForImageTextToText.from_pretrained(out / "compressed").to(device)
answered = {
    "teacher": (ask(loaded(teacher_path)), teacher_path),
    "student before": (ask(loaded(student_path)), student_path),
    "rounded to INT4": (ask(rounded.to(device, torch.bfloat16).eval()), None),
    "trained to INT4": (ask(loaded(out / "student")), out / "student"),
    "packed": (ask(load_packed(out / "packed", device=device, crossover=16)), out / "packed"),
    "exported": (ask(exported.eval()), out / "compressed"),
}

# %% [markdown]
# ## Compare
#
# "Changed" counts answers that are not those of the trained model: packing and export should change
# none (a product in another order can, where two words are almost equally likely).

# %%
expected = [record["conversations"][1]["value"] for record in held_out]
trained, _ = answered["trained to INT4"]
print(f"\n{'':<16} {'right':>8} {'changed':>8} {'KiB on disk':>12}")
for name, (answers, place) in answered.items():
    right = sum(answer == word for answer, word in zip(answers, expected, strict=True))
    changed = sum(answer != before for answer, before in zip(answers, trained, strict=True))
    stored = sum(file.stat().st_size for file in Path(place or "").glob("*.safetensors"))
    size = f"{stored / 1024:.0f}" if place and Path(place).is_dir() else "-"
    print(f"{name:<16} {right:>4}/{len(expected)} {changed:>8} {size:>12}")
print(f"\n{len(quantized)} linears in INT4, group size 128; written to {out}")
