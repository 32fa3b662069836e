"""The fourteen benchmarks of the paper, one row each."""

import ast
from collections import Counter
from typing import Any

from replication.benchmarks.benchmark import (
    Benchmark,
    Question,
    in_column,
    leading_words,
    lettered,
    letters,
    mean_of_skills,
    mmbench_credit,
    mme_chance,
    mme_points,
    mme_standard_error,
    mmmu_credit,
    one_of,
    per_thousand,
    recorded_score,
)

_VQA_METRIC = "_task_utils/vqa_eval_metric.py"
_FILES = "_task_utils/file_utils.py"
_PUBLIC_SPLIT = "official, on the split whose answers are public; the paper's is scored by a server"

_SEED_TYPES = dict(
    enumerate(
        (
            *("scene understanding", "instance identity", "instance attributes"),
            *("instance location", "instance counting", "spatial relation"),
            *("instance interaction", "visual reasoning", "text recognition"),
            *("action recognition", "action prediction", "procedure understanding"),
        ),
        start=1,
    )
)
"""The data have numbers only; these are the names that the benchmark's paper gives them."""


def _most_common(question: Question) -> str:
    """The answer that most annotators gave."""
    answers = [a["answer"] if isinstance(a, dict) else a for a in question["answers"]]
    return Counter(answers).most_common(1)[0][0]


def _indexed(question: Question, letter: str) -> dict[str, Any]:
    answer = ord(letter) - ord("A")
    kind = type(question["answer"])
    return {**question, "answer": kind(answer)}


def _mmmu_options(question: Question) -> list[str]:
    if question["question_type"] != "multiple-choice":
        return []
    return letters(len(ast.literal_eval(question["options"])))


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="vqav2",
            official_yaml="vqav2/vqav2_val.yaml",
            sources=("vqav2/_default_template_vqav2_yaml", "vqav2/utils.py", _VQA_METRIC, _FILES),
            split="validation",
            metric="exact_match",
            columns=("question", "answers", "question_type", "answer_type", "question_id", "image"),
            id_columns=("question_id",),
            skill=in_column("question_type"),
            target=_most_common,
            scorer=_PUBLIC_SPLIT,
        ),
        Benchmark(
            name="gqa",
            official_yaml="gqa/gqa.yaml",
            sources=("gqa/utils.py", "../api/metrics.py"),
            split="testdev",
            metric="exact_match",
            columns=("id", "imageId", "question", "answer", "types", "image"),
            id_columns=("id",),
            skill=lambda question: " ".join(
                question["types"][k] for k in ("structural", "semantic")
            ),
            # the official step only joins the images, which lie in a second subset; in the
            # stand-ins they lie beside the questions, and published ones are joined when read
            replaced="process_docs: null\n",
            images="testdev_balanced_images",
            image_key="imageId",
        ),
        Benchmark(
            name="textvqa",
            official_yaml="textvqa/textvqa_val.yaml",
            sources=(
                *("textvqa/_default_template_textvqa_yaml", "textvqa/utils.py"),
                *(_VQA_METRIC, _FILES),
            ),
            split="validation",
            metric="exact_match",
            columns=("question", "answers", "question_id", "image"),
            id_columns=("question_id",),
            skill=leading_words,
            target=_most_common,
            files_only=("submission",),
        ),
        Benchmark(
            name="vizwiz",
            official_yaml="vizwiz_vqa/vizwiz_vqa_val.yaml",
            sources=(
                *("vizwiz_vqa/_default_template_vqa_yaml", "vizwiz_vqa/utils.py"),
                *(_VQA_METRIC, _FILES),
            ),
            split="val",
            metric="exact_match",
            columns=("question", "answers", "question_id", "category", "image"),
            id_columns=("question_id",),
            skill=in_column("category"),
            target=_most_common,
            scorer=_PUBLIC_SPLIT,
        ),
        Benchmark(
            name="pope",
            official_yaml="pope/pope.yaml",
            sources=("pope/utils.py",),
            split="test",
            metric="pope_accuracy",
            columns=("id", "question_id", "question", "answer", "category", "image"),
            id_columns=("id",),
            skill=in_column("category"),
            options=one_of("yes", "no"),
            scorer="official accuracy; the paper's number is the F1 score, which stands beside it",
        ),
        Benchmark(
            name="scienceqa",
            official_yaml="scienceqa/scienceqa_img.yaml",
            sources=("scienceqa/utils.py",),
            split="test",
            metric="exact_match",
            columns=("image", "question", "choices", "answer", "hint", "skill"),
            skill=in_column("skill"),
            options=lambda question: letters(len(question["choices"])),
            with_answer=_indexed,
        ),
        Benchmark(
            name="mme",
            official_yaml="mme/mme.yaml",
            sources=("mme/utils.py",),
            split="test",
            metric="mme_perception_score",
            percent=1.0,
            columns=("question_id", "question", "answer", "category", "image"),
            id_columns=("question_id", "answer"),
            skill=in_column("category"),
            options=one_of("Yes", "No"),
            credit=recorded_score,
            recompute=mme_points,
            score_is_mean=False,
            standard_error=mme_standard_error,
            chance=mme_chance,
            paired="question_id",
            counts_all=False,
            scorer="official, in points: at most 200 a category",
        ),
        Benchmark(
            name="mmbench",
            official_yaml="mmbench/mmbench_en_dev_static.yaml",
            sources=(
                "mmbench/_default_template_mmbench_en_yaml",
                "mmbench/en_utils.py",
                "mmbench/mmbench.yaml",
                "mmbench/mmbench_evals.py",
                "_task_utils/mcq_extract.py",
            ),
            split="dev",
            metric="gpt_eval_score",
            percent=1.0,
            columns=(
                *("index", "question", "hint", "A", "B", "C", "D", "answer"),
                *("category", "L2-category", "source", "split", "image"),
            ),
            id_columns=("index",),
            skill=in_column("category"),
            options=lettered("A", "B", "C", "D"),
            scorer="rule-based: the official static variant, no judge model; the benchmark's "
            "headline protocol asks a judge model where the rules find no option",
            files_only=("submission",),
            credit=mmbench_credit,
            # the published questions are asked once for every rotation of their options
            distinct=lambda index: str(int(index) % 1_000_000),
        ),
        Benchmark(
            name="seedbench",
            official_yaml="seedbench/seedbench.yaml",
            sources=("seedbench/utils.py",),
            split="test",
            metric="seed_all",
            columns=(
                *("question", "choice_a", "choice_b", "choice_c", "choice_d", "answer"),
                *("data_type", "question_id", "question_type_id", "image"),
            ),
            id_columns=("question_id",),
            skill=in_column("question_type_id", _SEED_TYPES),
            options=lettered("choice_a", "choice_b", "choice_c", "choice_d"),
        ),
        Benchmark(
            name="mmstar",
            official_yaml="mmstar/mmstar.yaml",
            sources=(
                *("mmstar/_default_template_yaml", "mmstar/utils.py"),
                "_task_utils/mcq_extract.py",
            ),
            split="val",
            metric="average",
            columns=("index", "question", "answer", "category", "l2_category", "image"),
            id_columns=("index",),
            skill=in_column("l2_category"),
            options=lambda question: letters(4),
            credit=recorded_score,
            recompute=mean_of_skills,
            score_is_mean=False,
            scorer="official: the mean over the finer categories, whatever their sizes",
        ),
        Benchmark(
            name="mmmu",
            official_yaml="mmmu/mmmu_val.yaml",
            sources=(
                *("mmmu/_default_template_yaml", "mmmu/utils.py"),
                *("_task_utils/mmmu_mcq_utils.py", _FILES),
            ),
            split="validation",
            metric="mmmu_acc",
            columns=("id", "question", "options", "answer", "question_type", "subfield", "image_1"),
            id_columns=("id",),
            skill=in_column("subfield"),
            image_column="image_1",
            options=_mmmu_options,
            credit=mmmu_credit,
            decimals=5,
            scorer="rule-based: the official default, no judge model; it replaces an answer "
            "without a letter by a random option, drawn here from a seed per question",
        ),
        Benchmark(
            name="hallusionbench",
            official_yaml="hallusion_bench/hallusion_bench_image.yaml",
            sources=("hallusion_bench/evaluate_hb.py", "hallusion_bench/utils.py"),
            split="image",
            metric="aAcc",
            columns=(
                *("category", "subcategory", "visual_input", "set_id", "figure_id"),
                *("question_id", "question", "gt_answer", "gt_answer_details", "image"),
            ),
            id_columns=("category", "subcategory", "set_id", "figure_id", "question_id"),
            skill=in_column("subcategory"),
            options=one_of("yes", "no"),
            target=lambda question: {"1": "yes", "0": "no"}.get(question["gt_answer"], "?"),
            with_answer=lambda question, answer: {
                **question,
                "gt_answer": "1" if answer == "yes" else "0",
            },
            scorer="rule-based: the official functions that read yes or no from the answer (the "
            "official task file names them as the alternative to its judge model)",
            replaced="metric_list:\n"
            + "".join(
                f"- metric: {metric}\n"
                "  aggregation: !function lmms_eval.tasks.hallusion_bench.evaluate_hb."
                f"hb_aggregation_result_{metric}_intern\n"
                "  higher_is_better: true\n"
                for metric in ("aAcc", "qAcc", "fAcc")
            ),
        ),
        Benchmark(
            name="ai2d",
            official_yaml="ai2d/ai2d.yaml",
            sources=("ai2d/utils.py", "../api/metrics.py"),
            split="test",
            metric="exact_match",
            columns=("question", "options", "answer", "image"),
            skill=leading_words,
            options=lambda question: letters(len(question["options"])),
            with_answer=_indexed,
        ),
        Benchmark(
            name="ocrbench",
            official_yaml="ocrbench/ocrbench.yaml",
            sources=("ocrbench/utils.py", _FILES),
            split="test",
            metric="ocrbench_accuracy",
            columns=("dataset", "question", "question_type", "answer", "image"),
            skill=in_column("question_type"),
            target=lambda question: question["answer"][0],
            credit=recorded_score,
            recompute=per_thousand,
            scorer="official; in percent of the questions asked, not of 1,000",
        ),
    )
}
