"""From nothing to an INT4 student that answers about a picture, within five minutes on two cores.

    python recipes/five_minutes.py

makes what a user brings, conversations about pictures and two models, in the folder five-minutes;
then it runs the commands that a user runs, and prints each. The models are small Qwen2-VLs that
know a few words. Their scores show that the path works, and nothing about what the method is worth.
"""

import json
import os
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

FOLDER = Path("five-minutes")
RECIPE = os.path.relpath(Path(__file__).with_name("five-minutes.yaml"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}  # so small a model gains nothing from two
RECORDS = {"train": 1500, "held-out": 100}
STEPS = {"tower": 120, "teacher": 160, "baseline": 60}
LAYERS = {"teacher": 4, "baseline": 2}
RATE = "2e-3"
CELL = 28  # pixels: one visual token, which is two by two patches of 14
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 210, 50),
}
SHAPES = {  # corners, within a square of side 1
    "circle": [],
    "square": [(0, 0), (1, 0), (1, 1), (0, 1)],
    "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "cross": [
        *[(0.35, 0), (0.65, 0), (0.65, 0.35), (1, 0.35), (1, 0.65), (0.65, 0.65)],
        *[(0.65, 1), (0.35, 1), (0.35, 0.65), (0, 0.65), (0, 0.35), (0.35, 0.35)],
    ],
}
GRIDS = [(3, 3), (4, 3), (3, 4)]
GREY = (123, 117, 104)


# -- pictures and conversations -------------------------------------------------------------------


class Scene(NamedTuple):
    """A picture, and the color, shape and cell, in reading order, of what it shows."""

    picture: Image.Image
    things: list[tuple[str, str, int]]


def make_scene(draw: random.Random, most: int) -> Scene:
    """A picture with up to ``most`` shapes on a grid."""
    columns, rows = draw.choice(GRIDS)
    picture = Image.new("RGB", (columns * CELL, rows * CELL), GREY)
    pen, things = ImageDraw.Draw(picture), []
    for cell in draw.sample(range(columns * rows), draw.randint(1, min(most, columns * rows))):
        color, shape = draw.choice(list(COLORS)), draw.choice(list(SHAPES))
        things.append((color, shape, cell))
        top, left = (CELL * place + 3 for place in divmod(cell, columns))
        size = CELL - 6
        if shape == "circle":
            pen.ellipse((left, top, left + size, top + size), fill=COLORS[color])
        else:
            corners = [(left + x * size, top + y * size) for x, y in SHAPES[shape]]
            pen.polygon(corners, fill=COLORS[color])
    return Scene(picture, things)


def ask_about(scene: Scene, draw: random.Random) -> list[dict[str, str]]:
    """Questions and answers about a picture in the chat schema."""
    ((color, shape, _),) = scene.things
    if draw.random() < 0.4:
        turns = [("What is in the picture?", f"a {color} {shape}")]
    else:
        turns = [("What color is it?", color), ("What shape is it?", shape)]
        draw.shuffle(turns)
    messages = []
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return messages


def make_data() -> dict[str, list[dict[str, Any]]]:
    """NAME.jsonl and its pictures, PNG and JPEG, in FOLDER; the records by name."""
    draw = random.Random(0)
    images = FOLDER / "images"
    images.mkdir(parents=True)
    made = {}
    for name, count in RECORDS.items():
        records = made[name] = []
        for number in range(count):
            scene = make_scene(draw, 1)
            file = f"{name}-{number:04d}.{draw.choice(['png', 'jpg'])}"
            scene.picture.save(images / file, quality=92)
            records.append({"images": [file], "messages": ask_about(scene, draw)})
        lines = [json.dumps(record) + "\n" for record in records]
        (FOLDER / f"{name}.jsonl").write_text("".join(lines))
    return made


# -- models ---------------------------------------------------------------------------------------

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}


def make_processor(texts: list[str]) -> Any:
    """Qwen2-VL's processor, with a vocabulary of the words in ``texts``."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor, Qwen2VLProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", *MARKS.values()]
    tokens = [AddedToken(mark, special=True) for mark in special]
    trainer = trainers.WordLevelTrainer(special_tokens=tokens, show_progress=False)
    tokenizer.train_from_iterator(["user assistant", *texts], trainer)
    sizes = {"shortest_edge": CELL**2, "longest_edge": (16 * CELL) ** 2}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=sizes),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
            unk_token="<unk>",
            extra_special_tokens=MARKS,
            padding_side="left",
        ),
        video_processor=Qwen2VLVideoProcessor(size=sizes),
        chat_template=CHAT,
    )


def make_model(processor: Any, layers: int, width: int = 128) -> Any:
    """A Qwen2-VL with random weights; groups of 128 divide the inputs of its decoder's linears."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    tokenizer = processor.tokenizer
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "initializer_range": 0.05,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 4, 8],
            },
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={"depth": 1, "embed_dim": 64, "num_heads": 2, "mlp_ratio": 2}
        | {"hidden_size": width},
        tie_word_embeddings=True,
        **{f"{name}_id": tokenizer.convert_tokens_to_ids(mark) for name, mark in MARKS.items()},
    )
    model = Qwen2VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def pretrain_tower(model: Any, processor: Any) -> dict[str, Any]:
    """Weights of a vision tower that tells colors and shapes, as a published one does: its token of
    a cell becomes the sum of a vector for the color and one for the shape."""
    import torch

    draw, tower, steps = random.Random(1), model.model.visual, STEPS["tower"]
    names = ["nothing", *COLORS, *SHAPES]
    codes = dict(zip(names, torch.randn(len(names), tower.config.hidden_size), strict=True))
    optimizer = torch.optim.AdamW(tower.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        scenes = [make_scene(draw, 16) for _ in range(16)]
        images = processor.image_processor(
            images=[scene.picture for scene in scenes], return_tensors="pt"
        )
        grids = images["image_grid_thw"]
        tokens = tower(images["pixel_values"], grids).pooler_output
        targets = []
        for cells, scene in zip(grids.prod(dim=1) // 4, scenes, strict=True):
            target = codes["nothing"].repeat(int(cells), 1)
            for color, shape, cell in scene.things:
                target[cell] = codes[color] + codes[shape]
            targets.append(target)
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(tokens, torch.cat(targets)).backward()
        optimizer.step()
        schedule.step()
    return {name: value for name, value in model.state_dict().items() if ".visual." in name}


def make_models(records: list[dict[str, Any]]) -> None:
    """Two models with random decoders and one tower, and their processor, in FOLDER."""
    import torch

    import grace  # noqa: F401  # before transformers where torchvision is another build

    quieten()
    torch.manual_seed(0)
    processor = make_processor([turn["content"] for each in records for turn in each["messages"]])
    tower = pretrain_tower(make_model(processor, 1), processor)
    for name, layers in LAYERS.items():
        model = make_model(processor, layers)
        model.load_state_dict(tower, strict=False)
        model.save_pretrained(FOLDER / f"{name}-untrained")
        processor.save_pretrained(FOLDER / f"{name}-untrained")


def quieten() -> None:
    """No bars for files that are read and written at once."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


# -- what a user does -----------------------------------------------------------------------------


def run(*words: Any) -> str:
    """Run `grace` as from a shell, and give what it printed."""
    words = tuple(str(word) for word in words)
    print(f"\n$ {shlex.join(('grace', *words))}", flush=True)
    command = [sys.executable, "-m", "grace", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=ENVIRONMENT)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def train(name: str) -> None:
    """A model that somebody else has trained: the teacher, and the student before GRACE."""
    settings = ("--image-folder", FOLDER / "images", "--learning-rate", RATE, "--batch-size", 16)
    run(
        *("train", FOLDER / f"{name}-untrained", "--method", "sft"),
        *("--data", FOLDER / "train.jsonl", *settings, "--steps", STEPS[name]),
        *("--out", FOLDER / name),
    )


def score(path: Path, records: list[dict[str, Any]]) -> int:
    """How many first questions of the records a model answers with the very words."""
    from grace.decoding import generate
    from grace.export import load_student
    from grace.models import load_processor

    quieten()
    model, processor = load_student(path), load_processor(path)
    right = 0
    for start in range(0, len(records), 50):
        part = records[start : start + 50]
        chats = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
            for text in (record["messages"][0]["content"] for record in part)
        ]
        inputs = processor(
            text=processor.apply_chat_template(chats, tokenize=False, add_generation_prompt=True),
            images=[[Image.open(FOLDER / "images" / each["images"][0])] for each in part],
            padding=True,
            return_tensors="pt",
        ).to(model.device, model.dtype)
        tokens = generate(model, dict(inputs), max_new_tokens=16)
        answers = processor.batch_decode(
            tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        expected = [record["messages"][1]["content"] for record in part]
        right += sum(answer.strip() == word for answer, word in zip(answers, expected, strict=True))
    return right


def main() -> None:
    """Make data and models, train, quantize, pack and ask."""
    if FOLDER.exists():
        sys.exit(f"{FOLDER} is there already; remove it, or go on with the commands by hand")
    started = time.monotonic()
    print(f"making pictures, conversations and two models in {FOLDER}", flush=True)
    data = make_data()
    make_models(data["train"])
    train("teacher")
    train("baseline")
    run("train", RECIPE)
    run("pack", FOLDER / "student", "--out", FOLDER / "student-int4")
    held_out = data["held-out"]
    asked_about = next(each for each in held_out if "in the" in each["messages"][0]["content"])
    picture = FOLDER / "images" / asked_about["images"][0]
    question, answer = (turn["content"] for turn in asked_about["messages"][:2])
    asked = ("--image", picture, "--prompt", question)
    said = run("generate", FOLDER / "student-int4", *asked).strip()
    print(f"\npicture:  {picture}\nquestion: {question}\nright:    {answer}\nstudent:  {said}\n")
    print(f"right of {len(held_out)} held-out questions:")
    for name in ("teacher", "baseline", "student-int4"):
        print(f"  {name:<13} {score(FOLDER / name, held_out):>3}", flush=True)
    print(f"\n{time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main()
