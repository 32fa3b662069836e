"""The model class of lmms-eval: chat template, left padding, greedy decoding, every family.

    lmms_eval --model grace --model_args pretrained=student-int4 --tasks mmbench_en_dev

lmms-eval has a model class per family, whose answers can depend on the batch size. Those here go
through the processor and the model's own ``generate`` for all of them, and their answers do not:
prompts are padded on the left and masked, so that a row sees the same tokens at the same positions
whatever shares its batch.

This module imports lmms-eval, which takes seconds, and nothing else in ``grace`` imports it at the
top.
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm
from transformers import LogitsProcessor, LogitsProcessorList

from grace.arithmetic import chosen_device
from grace.data.images import read_image
from grace.decoding.decoder import not_finite
from grace.errors import InputError
from grace.evaluation.shared import SharedInputs
from grace.export import load_student
from grace.models import load_processor, read_prompts, render_question

MAX_NEW_TOKENS = 1024
"""Most tokens of an answer where neither the task nor the user says so."""


@dataclass(frozen=True)
class Share:
    """Which of several processes this one is; more than one have a torch process group.

    Attributes:
        rank: Of this process, from 0.
        world: Number of processes.
    """

    rank: int = 0
    world: int = 1

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in the order of ranks, in every process."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(values, value)
        return values


class ChatModel(lmms):
    """A vision-language model and its processor, in lmms-eval's interface of a model.

    Several processes share the questions of a task batch by batch, where `share` says so: the
    batches are those of one process, each process answers every n-th, and every process then has
    all answers. So the answers are the same whatever their number, and lmms-eval scores them as if
    there were one.

    Example::

        chat = ChatModel(load_model("student"), load_processor("student"), batch_size=8)
        lmms_eval.evaluator.simple_evaluate(model=chat, tasks=["mmbench_en_dev"])

    Args:
        model: The model, in the type and on the device that it runs in.
        processor: Its processor, with a chat template.
        batch_size: Questions that are answered at once.
        max_new_tokens: Upper bound of an answer's length; None is the task's own bound, and
            `MAX_NEW_TOKENS` where it has none.
        stream: Where the progress bar is shown; by default standard error.
        share: Which of several processes this one is.
        shared: What this model's inputs have in common with those of others.

    Attributes:
        entropies: Entropy in nats of the first token of every answer, by task and row.
        confidences: Probability of that token, likewise.

    Raises:
        InputError: For a processor without a chat template or an end token.
    """

    is_simple = True

    def __init__(
        self,
        model: torch.nn.Module,
        processor: Any,
        *,
        batch_size: int = 64,
        max_new_tokens: int | None = None,
        stream: TextIO | None = None,
        share: Share | None = None,
        shared: SharedInputs | None = None,
    ) -> None:
        super().__init__()
        self.accelerator: Accelerator | None = None  # lmms-eval must not set up a global state
        self.share = share or Share()
        self.shared = shared
        self.model: Any = model
        self.processor = processor
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens
        self.stream = stream or sys.stderr
        self.entropies: dict[tuple[str, int], float] = {}
        self.confidences: dict[tuple[str, int], float] = {}
        tokenizer = processor.tokenizer
        if getattr(processor, "chat_template", None) is None:
            raise InputError("the processor has no chat template: save one beside the model")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token  # masked: any token serves
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.eos = _eos_ids(model, tokenizer)
        if not self.eos or tokenizer.pad_token_id is None:
            raise InputError("neither the generation config nor the tokenizer names an end token")

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answer each request greedily; the answers come back in the order of the requests."""
        own: dict[int, str] = {}
        was_training = self.model.training
        self.model.eval()
        mine = self._batches(requests)[self.share.rank :: self.share.world]
        total = sum(len(batch) for _, batch in mine)
        bar = tqdm(total=total, desc="questions", unit="q", file=self.stream, mininterval=1)
        try:
            for budget, batch in mine:
                texts = self._answer([requests[i] for i in batch], budget)
                own.update(zip(batch, texts, strict=True))
                bar.update(len(batch))
        finally:
            bar.close()
            self.model.train(was_training)
        answers = [""] * len(requests)
        kept = (own, self.entropies, self.confidences)
        for texts_of, entropies, confidences in self.share.gather(kept):
            self.entropies |= entropies
            self.confidences |= confidences
            for i, text in texts_of.items():
                answers[i] = text
        return answers

    def _budget(self, request: Instance) -> int:
        asked = request.args[1].get("max_new_tokens")
        if self.max_new_tokens is None:
            return int(asked or MAX_NEW_TOKENS)
        return min(int(asked or self.max_new_tokens), self.max_new_tokens)

    def _batches(self, requests: list[Instance]) -> list[tuple[int, list[int]]]:
        """Batches of similar prompt length that share a token budget, longest first."""
        by_budget: dict[int, list[int]] = {}
        for i, request in enumerate(requests):
            by_budget.setdefault(self._budget(request), []).append(i)
        batches = []
        for budget, members in by_budget.items():
            members.sort(key=lambda i: (-len(requests[i].args[0]), i))
            for start in range(0, len(members), self.batch_size):
                batches.append((budget, members[start : start + self.batch_size]))
        return batches

    def _answer(self, requests: list[Instance], budget: int) -> list[str]:
        inputs = self._inputs(requests)
        first = _FirstToken(self.model)
        reading = self.shared.use() if self.shared else contextlib.nullcontext()
        with torch.no_grad(), reading:
            output = self.model.generate(
                **inputs,
                max_new_tokens=budget,
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                repetition_penalty=1.0,
                use_cache=True,
                logits_processor=LogitsProcessorList([first]),
                eos_token_id=sorted(self.eos),
                pad_token_id=self.processor.tokenizer.pad_token_id,
            )
        for request, entropy, confidence in zip(
            requests, first.entropies, first.confidences, strict=True
        ):
            _, _, _, row, task, _ = request.args
            self.entropies[task, row] = entropy
            self.confidences[task, row] = confidence
        rows = output[:, inputs["input_ids"].shape[1] :].tolist()
        texts = self.processor.tokenizer.batch_decode(
            [self._up_to_eos(row) for row in rows], skip_special_tokens=True
        )
        # a space may stand between the prompt and the answer (``ASSISTANT: red``): it is in neither
        return [
            _up_to_stop(text, request.args[1].get("until")).strip()
            for text, request in zip(texts, requests, strict=True)
        ]

    def _inputs(self, requests: list[Instance]) -> Any:
        """The model's inputs, one row a question."""
        if self.shared is None:
            return self._read(requests)
        questions = [(one.args[0], one.args[4], one.args[3]) for one in requests]
        return self.shared(questions, lambda: self._read(requests))

    def _read(self, requests: list[Instance]) -> Any:
        """The processor's output: every question's images first, then its text."""
        prompts, images = [], []
        for request in requests:
            context, _, doc_to_visual, row, task, split = request.args
            visuals = _images(doc_to_visual(self.task_dict[task][split][row]), task, row)
            text = context.replace("<image>", "")
            prompts.append(render_question(self.processor, text, len(visuals)))
            images.append(visuals)
        inputs = read_prompts(self.processor, prompts, images, padding=True, padding_side="left")
        return inputs.to(self.device, self.dtype)

    def _up_to_eos(self, row: list[int]) -> list[int]:
        return next((row[:i] for i, token in enumerate(row) if token in self.eos), row)

    def clean(self) -> None:
        """Keep the model: lmms-eval would delete it, but the caller may go on using it."""

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not supported: the command refuses such tasks before anything is loaded."""
        raise NotImplementedError("tasks that are scored by likelihood are not supported")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not supported: the command refuses such tasks before anything is loaded."""
        raise NotImplementedError("tasks of several rounds are not supported")


class Grace(ChatModel):
    """``--model grace`` of lmms-eval: a directory of any kind that `grace` writes or reads.

    Example::

        Grace("student-int4", batch_size=8, backend="reference")

    Args:
        pretrained: A directory or hub name: trained, packed, exported or published.
        device: Where it runs; "auto" is CUDA where there is one. Under a launcher every process has
            a device of its own.
        dtype: Format of weights that are not packed: "float32", "bfloat16" or "float16"; "auto" is
            what the device multiplies natively.
        backend: Kernel of packed layers.
        batch_size: Questions that are answered at once.
        max_batch_size: lmms-eval passes it; it is not used.
        max_new_tokens: As in :class:`ChatModel`.

    Raises:
        InputError: Nothing readable is there, or a setting is wrong.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        backend: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        max_new_tokens: int | None = None,
    ) -> None:
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise InputError(f"batch_size is {batch_size!r}: give a whole number from 1")
        accelerator = Accelerator() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None
        device = str(accelerator.device) if accelerator is not None else chosen_device(device)
        processor = load_processor(pretrained)
        model = load_student(pretrained, device=device, dtype=dtype, backend=backend)
        super().__init__(
            model, processor, batch_size=int(batch_size), max_new_tokens=max_new_tokens
        )
        self.accelerator = accelerator


class _FirstToken(LogitsProcessor):
    """Changes nothing and keeps entropies and highest probabilities of the first step, whose logits
    have to be finite."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.entropies: list[float] = []
        self.confidences: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self.entropies:
            if torch.isnan(scores).any():
                raise InputError(not_finite(self.model))
            first = torch.distributions.Categorical(logits=scores.float())
            self.entropies = first.entropy().tolist()
            self.confidences = first.probs.max(dim=-1).values.tolist()
        return scores


def _images(visuals: Sequence[Any] | None, task: str, row: int) -> list[Image.Image]:
    """What a task shows with a question, as the model sees it.

    Raises:
        InputError: For a video or sound, and for an image that cannot be read.
    """
    images = []
    for number, visual in enumerate(visuals or [], 1):
        what = f"task {task}, question {row}, image {number}"
        if not isinstance(visual, str | Image.Image):
            raise InputError(
                f"{what} is a {type(visual).__name__}: only tasks about images are supported"
            )
        images.append(read_image(visual, what, "only tasks about images are supported"))
    return images


def _eos_ids(model: Any, tokenizer: Any) -> set[int]:
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = set(configured) if isinstance(configured, list | tuple) else {configured}
    return {i for i in ids | {tokenizer.eos_token_id} if i is not None}


def _up_to_stop(text: str, until: str | list[str] | None) -> str:
    for stop in [until] if isinstance(until, str) else until or []:
        if stop:
            text = text.split(stop, maxsplit=1)[0]
    return text
