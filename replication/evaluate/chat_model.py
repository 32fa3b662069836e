"""One lmms-eval model for every family: chat template, left padding, greedy decoding.

lmms-eval has a model class per family, whose answers can depend on the batch size. This one
goes through ``AutoProcessor`` and the model's own ``generate`` for all of them, and its answers
do not: prompts are padded on the left and masked, so that a row sees the same tokens at the same
positions whatever shares its batch.

Several processes share the questions of a task batch by batch: the batches are those of one
process, each process answers every n-th, and every process then has all answers. So the answers are
the same whatever their number, and lmms-eval scores them as if there were one.
"""

import pathlib
import sys
from dataclasses import dataclass
from typing import Any, TextIO

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from tqdm import tqdm
from transformers import LogitsProcessor, LogitsProcessorList

from grace.data.images import read_image
from grace.errors import InputError


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

    Args:
        model: The model, in the type and on the device that it runs in.
        processor: Its processor, with a chat template and a padding token.
        batch_size: Questions that are answered at once.
        max_new_tokens: Upper bound of an answer's length.
        stream: Where the progress bar is shown; by default standard error.
        share: Which of several processes this one is.

    Attributes:
        entropies: Entropy in nats of the first token of every answer, by task and row.

    Raises:
        InputError: For a processor without a chat template, a padding or an end token.
    """

    is_simple = True

    def __init__(
        self,
        model: torch.nn.Module,
        processor: Any,
        *,
        batch_size: int = 64,
        max_new_tokens: int = 8,
        stream: TextIO | None = None,
        share: Share | None = None,
    ) -> None:
        super().__init__()
        self.accelerator = None  # lmms-eval must not set up accelerate's global state
        self.share = share or Share()
        self.model: Any = model
        self.processor = processor
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens
        self.stream = stream or sys.stderr
        self.entropies: dict[tuple[str, int], float] = {}
        tokenizer = processor.tokenizer
        if getattr(processor, "chat_template", None) is None:
            raise InputError("the processor has no chat template: save one beside the model")
        if tokenizer.pad_token_id is None:
            raise InputError("the tokenizer has no padding token: set tokenizer.pad_token")
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.eos = _eos_ids(model, tokenizer)
        if not self.eos:
            raise InputError("neither the generation config nor the tokenizer names an end token")

    @classmethod
    def from_directory(
        cls,
        path: pathlib.Path,
        *,
        dtype: torch.dtype,
        device: str,
        processor_path: pathlib.Path | None = None,
        **options: Any,
    ) -> "ChatModel":
        """A model directory as save_pretrained writes it; its processor may lie elsewhere."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        loader: Any = AutoModelForImageTextToText
        try:
            processor = AutoProcessor.from_pretrained(processor_path or path, local_files_only=True)
            model, loading = loader.from_pretrained(
                path, dtype=dtype, local_files_only=True, output_loading_info=True
            )
        except Exception as error:  # each part of the directory fails with a type of its own
            raise InputError(
                f"model directory {path} does not load ({error}); it has to hold a Hugging Face "
                "image-text-to-text model with its processor, as save_pretrained writes them"
            ) from error
        # transformers only warns of these; a score of half a model would be believed.
        for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if loading[fault]:
                raise InputError(
                    f"model directory {path}: the weights do not match config.json "
                    f"({fault.replace('_', ' ')}: {sorted(map(str, loading[fault]))[:3]} ...); "
                    "save it again with save_pretrained"
                )
        # beside 8-bit weights transformers keeps the others as they are stored
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
        model.to(torch.device(device))
        return cls(model, processor, **options)

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
        for texts_of, entropies in self.share.gather((own, self.entropies)):
            self.entropies |= entropies
            for i, text in texts_of.items():
                answers[i] = text
        return answers

    def _batches(self, requests: list[Instance]) -> list[tuple[int, list[int]]]:
        """Batches of similar prompt length that share a token budget, longest first."""
        by_budget: dict[int, list[int]] = {}
        for i, request in enumerate(requests):
            budget = int(request.args[1].get("max_new_tokens") or self.max_new_tokens)
            by_budget.setdefault(min(budget, self.max_new_tokens), []).append(i)
        batches = []
        for budget, members in by_budget.items():
            members.sort(key=lambda i: (-len(requests[i].args[0]), i))
            for start in range(0, len(members), self.batch_size):
                batches.append((budget, members[start : start + self.batch_size]))
        return batches

    def _answer(self, requests: list[Instance], budget: int) -> list[str]:
        chats, images = [], []
        for request in requests:
            context, _, doc_to_visual, row, task, split = request.args
            visuals = doc_to_visual(self.task_dict[task][split][row])
            images.extend(read_image(visual, f"{task}, row {row}: image") for visual in visuals)
            content: list[dict] = [{"type": "image"} for _ in visuals]
            content.append({"type": "text", "text": context.replace("<image>", "")})
            chats.append([{"role": "user", "content": content}])
        prompts = self.processor.apply_chat_template(
            chats, tokenize=False, add_generation_prompt=True
        )
        inputs = self.processor(
            text=prompts,
            images=images or None,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(self.device, self.dtype)
        first = _FirstEntropy()
        with torch.no_grad():
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
        for request, entropy in zip(requests, first.values, strict=True):
            _, _, _, row, task, _ = request.args
            self.entropies[task, row] = entropy
        rows = output[:, inputs["input_ids"].shape[1] :].tolist()
        texts = self.processor.tokenizer.batch_decode(
            [self._up_to_eos(row) for row in rows], skip_special_tokens=True
        )
        # a space may stand between the prompt and the answer (``ASSISTANT: red``): it is in neither
        return [
            _up_to_stop(text, request.args[1].get("until")).strip()
            for text, request in zip(texts, requests, strict=True)
        ]

    def _up_to_eos(self, row: list[int]) -> list[int]:
        return next((row[:i] for i, token in enumerate(row) if token in self.eos), row)

    def clean(self) -> None:
        """Keep the model: lmms-eval would delete it, but the caller may go on using it."""

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("none of the benchmarks here is scored by likelihood")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("none of the benchmarks here has several rounds")


class _FirstEntropy(LogitsProcessor):
    """Changes nothing and keeps the entropies of the first step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self.values:
            self.values = torch.distributions.Categorical(logits=scores.float()).entropy().tolist()
        return scores


def _eos_ids(model: Any, tokenizer: Any) -> set[int]:
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = set(configured) if isinstance(configured, list | tuple) else {configured}
    return {i for i in ids | {tokenizer.eos_token_id} if i is not None}


def _up_to_stop(text: str, until: str | list[str] | None) -> str:
    for stop in [until] if isinstance(until, str) else until or []:
        if stop:
            text = text.split(stop, maxsplit=1)[0]
    return text
