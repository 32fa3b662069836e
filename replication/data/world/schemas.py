"""A question as a row of each official dataset.

A row has the columns that the lmms-eval task reads, and those beside them that the official data
have and our questions can fill.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from replication.data.world.questions import LETTERS, UNANSWERABLE, YES_NO, Question, listed
from replication.data.world.scenes import pick

Row = dict[str, Any]
Writer = Callable[[int, Question, np.random.Generator, Row], Row]
"""(index, question, generator, image) -> row"""

# SEED-Bench numbers its question types; these are the official ones that our skills belong to.
SEED_TYPES = {"presence": 2, "attribute": 3, "position": 4, "counting": 5, "neighbor": 6}
SEED_TYPES |= {"comparison": 8, "reading": 9}

MMSTAR_CATEGORIES = {
    "comparison": ("coarse perception", "image scene and topic"),
    "counting": ("fine-grained perception", "object counting"),
    "attribute": ("fine-grained perception", "recognition"),
    "position": ("fine-grained perception", "localization"),
    "located": ("instance reasoning", "single-instance reasoning"),
    "neighbor": ("instance reasoning", "cross-instance attribute reasoning"),
    "presence": ("logical reasoning", "common reasoning"),
}
# MMMU's subjects that our skills come closest to
MMMU_SUBJECTS = {
    "counting": "Math",
    "comparison": "Economics",
    "located": "Design",
    "neighbor": "Architecture_and_Engineering",
    "reading": "Literature",
}
# GQA's structural and semantic types
_GQA = {"neighbor": ("query", "rel"), "composed": ("query", "attr"), "position": ("query", "rel")}
_VQA_TYPES = (
    *("how many", "what color is the", "what shape is the", "what does the", "where is the"),
    *("which", "is there a", "is the number of", "is the", "is", "does the", "what"),
)
_ANNOTATORS = 10


def _mmbench(index: int, question: Question, rng: np.random.Generator, image: Row) -> Row:
    options, place = question.options(rng, 4)
    return {
        "index": index,
        "question": question.text,
        "hint": question.hint or "nan",
        "answer": LETTERS[place],
        **dict(zip(LETTERS, options, strict=True)),
        "category": question.skill,
        "L2-category": "perception" if question.skill != "neighbor" else "reasoning",
        "source": "stand-in",
        "split": "dev",
        "image": image,
    }


def _seedbench(index: int, question: Question, rng: np.random.Generator, image: Row) -> Row:
    options, place = question.options(rng, 4)
    return {
        "answer": LETTERS[place],
        **{f"choice_{letter.lower()}": o for letter, o in zip(LETTERS, options, strict=True)},
        "data_id": f"scene_{index}",
        "data_type": "image",
        "image": [image],
        "question": question.text,
        "question_id": str(index),
        "question_type_id": SEED_TYPES[question.skill],
        "segment": [],
    }


def _scienceqa(index: int, question: Question, rng: np.random.Generator, image: Row) -> Row:
    options, place = question.options(rng, int(rng.integers(2, 5)))
    return {
        "image": image,
        "question": question.text,
        "choices": list(options),
        "answer": place,
        "hint": question.hint,
        "task": "closed choice",
        "grade": "grade1",
        "subject": "natural science",
        "topic": "scenes",
        "category": "stand-in",
        "skill": question.skill,
        "lecture": "",
        "solution": "",
    }


def annotated(question: Question, rng: np.random.Generator) -> list[str]:
    """Ten annotators' answers: eight or more are right, the others are each a wrong one.

    An answer that one or two of them gave earns a part of the credit, as in the official data.
    """
    wrong = question.wrong or tuple(a for a in YES_NO if a != question.answer)
    if question.answer == UNANSWERABLE or question.skill == "string":
        wrong = ("unsuitable",)
    answers = [question.answer] * _ANNOTATORS
    for place in range(int(rng.integers(3))):
        answers[place] = pick(rng, wrong)
    return [answers[int(place)] for place in rng.permutation(_ANNOTATORS)]


def _answer_type(answer: str) -> str:
    if answer in YES_NO:
        return "yes/no"
    return "number" if answer.isdigit() else "other"


def _vqav2(index: int, question: Question, rng: np.random.Generator, image: Row) -> Row:
    sure = ("yes", "maybe")
    return {
        "question_type": next(t for t in _VQA_TYPES if question.text.lower().startswith(t)),
        "multiple_choice_answer": question.answer,
        "answers": [
            {"answer": answer, "answer_confidence": sure[int(rng.random() < 0.1)], "answer_id": i}
            for i, answer in enumerate(annotated(question, rng), start=1)
        ],
        "image_id": index,
        "answer_type": _answer_type(question.answer),
        "question_id": index,
        "question": question.text,
        "image": image,
    }


def _gqa(index: int, question: Question, rng: np.random.Generator, image: Row) -> Row:
    verified = question.answer in YES_NO
    structural, semantic = ("verify", "rel") if verified else _GQA[question.skill]
    return {
        "id": f"{index:09d}",
        "imageId": f"scene_{index}",
        "question": question.text,
        "answer": question.answer,
        "fullAnswer": f"{question.answer.capitalize()}.",
        "isBalanced": True,
        "groups": {"global": "", "local": question.skill},
        "entailed": "[]",
        "equivalent": f"['{index:09d}']",
        "types": {"structural": structural, "semantic": semantic, "detailed": question.skill},
        "semanticStr": question.skill,
        "image": image,
    }


def _textvqa(index: int, question: Question, rng: np.random.Generator, image: Row) -> Row:
    return {
        "image_id": f"scene_{index}",
        "question_id": index,
        "question": question.text,
        "question_tokens": question.text.lower().rstrip("?").split(),
        "image": image,
        "image_width": 64,
        "image_height": 64,
        "flickr_original_url": "",
        "flickr_300k_url": "",
        "answers": annotated(question, rng),
        "image_classes": ["Sign"],
        "set_name": "val",
        "ocr_tokens": [],
    }


def _vizwiz(index: int, question: Question, rng: np.random.Generator, image: Row) -> Row:
    answer = question.answer
    return {
        "question_id": f"VizWiz_val_{index:08d}.jpg",
        "image": image,
        "question": question.text,
        "answers": annotated(question, rng),
        "category": answer if answer == UNANSWERABLE else _answer_type(answer),
    }


def _mmstar(index: int, question: Question, rng: np.random.Generator, image: Row) -> Row:
    options, place = question.options(rng, 4)
    category, fine = MMSTAR_CATEGORIES[question.skill]
    hint = f"{question.hint} " if question.hint else ""
    return {
        "index": index,
        # the official data, too, spell the options in the question
        "question": f"{hint}{question.text}\n{listed(options)}",
        "image": image,
        "answer": LETTERS[place],
        "category": category,
        "l2_category": fine,
        "meta_info": {"source": "stand-in", "split": "val", "image_path": f"scene_{index}.png"},
    }


def _mmmu(index: int, question: Question, rng: np.random.Generator, image: Row) -> Row:
    options, place = question.options(rng, 4)
    # one in ten of every subject, about as in the official data
    open_ended = index // len(MMMU_SUBJECTS) % 10 == 9
    hint = f"{question.hint} " if question.hint else ""
    return {
        "id": f"validation_{MMMU_SUBJECTS[question.skill]}_{index}",
        "question": f"{hint}{question.text} <image 1>",
        "options": "[]" if open_ended else repr(list(options)),
        "explanation": "",
        "image_1": image,
        **{f"image_{place}": None for place in range(2, 8)},
        "img_type": "['Drawings']",
        "answer": question.answer if open_ended else LETTERS[place],
        "topic_difficulty": "Easy",
        "question_type": "open" if open_ended else "multiple-choice",
        "subfield": question.skill,
    }


def _ai2d(index: int, question: Question, rng: np.random.Generator, image: Row) -> Row:
    options, place = question.options(rng, 4)
    return {
        "question": question.text,
        "options": list(options),
        "answer": str(place),
        "image": image,
    }


def _ocrbench(index: int, question: Question, rng: np.random.Generator, image: Row) -> Row:
    words = question.answer.split()
    if question.skill == "reading":
        kind = "Scene Text-centric VQA"
    elif all(word.isdigit() for word in words):
        kind = "Digit String Recognition"
    elif not any(word.isdigit() for word in words):
        kind = "Regular Text Recognition"
    else:
        kind = "Non-Semantic Text Recognition"
    return {
        "dataset": "stand-in",
        "question": question.text,
        "question_type": kind,
        "answer": [question.answer],
        "image": image,
    }


def pope(index: int, question: Question, category: str, image: Row) -> Row:
    return {
        "id": str(index),
        "question_id": str(index),
        "question": question.text,
        "answer": question.answer,
        "image_source": f"scene_{index // 2}",
        "image": image,
        "category": category,
    }


def mme(index: int, question: Question, category: str, image: Row) -> Row:
    return {
        "question_id": f"{category}/{index // 2:05d}.png",
        "image": image,
        # the official task takes this ending off again
        "question": f"{question.text} Please answer yes or no.",
        "answer": question.answer.capitalize(),
        "category": category,
    }


def hallusionbench(index: int, question: Question, subcategory: str, image: Row) -> Row:
    figure = index % 2
    return {
        "category": "VD",
        "subcategory": subcategory,
        "visual_input": str(1 + figure),  # 1: the figure, 2: the figure after an edit
        "set_id": str(index // 2),
        "figure_id": str(figure),
        "sample_note": question.skill,
        "question_id": "0",
        "question": question.text,
        "gt_answer_details": f"{question.answer.capitalize()}.",
        "gt_answer": "1" if question.answer == "yes" else "0",
        "filename": f"./stand-in/VD/{subcategory}/{index // 2}_{figure}.png",
        "image": image,
    }


WRITERS: dict[str, Writer] = {
    "mmbench": _mmbench,
    "seedbench": _seedbench,
    "scienceqa": _scienceqa,
    "vqav2": _vqav2,
    "gqa": _gqa,
    "textvqa": _textvqa,
    "vizwiz": _vizwiz,
    "mmstar": _mmstar,
    "mmmu": _mmmu,
    "ai2d": _ai2d,
    "ocrbench": _ocrbench,
}
"""The benchmarks whose questions stand alone; the others ask two questions together."""


def features_of(row: Row):
    """The declared types of a row's columns, with images as images."""
    from datasets import Features, Image, List, Value  # slow to import

    def kind(value: Any):
        if isinstance(value, dict):
            return {name: kind(item) for name, item in value.items()}
        if isinstance(value, list):
            return List(kind(value[0]) if value else Value("string"))
        return Value({bool: "bool", int: "int64"}.get(type(value), "string"))

    columns = {}
    for name, value in row.items():
        if name == "image" or (name.startswith("image_") and name[6:].isdigit()):
            columns[name] = List(Image()) if isinstance(value, list) else Image()
        else:
            columns[name] = kind(value)
    return Features(columns)
