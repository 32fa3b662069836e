"""What can be refused before weights are loaded: from options, configurations and processors."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from PIL import Image
from torch import nn
from transformers import (
    AutoConfig,
    Trainer,
    TrainingArguments,
    get_scheduler,
)

from grace.errors import InputError, one_line
from grace.models import (
    Family,
    check_model_directory,
    family_of,
    load_processor,
    model_directory,
    read_prompts,
    render_question,
    without_weights,
)
from grace.training.distributed import check_deepspeed
from grace.training.method import MethodConfig
from grace.training.teacher import Identity

_QUESTION = "Which?"


@dataclass(frozen=True)
class Source:
    """A model without its weights.

    Attributes:
        name: As it was given.
        directory: Where its files are.
        config: Its configuration.
        processor: Its processor; padding has a token.
        family: Its adapter.
    """

    name: str
    directory: Path
    config: Any
    processor: Any
    family: Family

    @classmethod
    def read(cls, name: str, *, student: bool = True) -> "Source":
        """Read configuration and processor of a directory or hub name.

        Args:
            name: The directory or hub name.
            student: Whether it is trained, and asked questions later.

        Raises:
            InputError: They cannot be read, the family cannot be trained, or the processor cannot
                render a question about an image.
        """
        check_model_directory(name)
        directory = model_directory(name, weights=False)
        try:
            config = AutoConfig.from_pretrained(directory)
        except Exception as error:  # the library fails with many types
            reason = one_line(error, 200)
            raise InputError(f"cannot read the configuration of {name!r}: {reason}") from error
        family = family_of(config)
        processor = load_processor(directory)
        _check_rows(processor.tokenizer, config, name)
        if student:
            _give_padding(processor.tokenizer, name)
            _check_questions(processor, name)
        return cls(name, directory, config, processor, family)

    @property
    def identity(self) -> Identity:
        """What a teacher and a student must have in common."""
        return Identity.of(self.config, self.processor)


def _give_padding(tokenizer: Any, name: str) -> None:
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"the tokenizer of {name!r} has neither a pad token nor an end token; set "
                "pad_token in its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token


def _check_rows(tokenizer: Any, config: Any, name: str) -> None:
    rows = config.get_text_config().vocab_size
    if len(tokenizer) > rows:
        raise InputError(
            f"the tokenizer of {name!r} has {len(tokenizer)} tokens and the model {rows} embedding "
            "rows; call model.resize_token_embeddings(len(tokenizer)) and save it again"
        )


def _check_questions(processor: Any, name: str) -> None:
    """Ask about an image as `grace generate` does later."""
    image = Image.new("RGB", (64, 64), (128, 128, 128))
    try:
        prompt = render_question(processor, _QUESTION, images=1)
        if _QUESTION not in prompt:
            raise InputError("the processor's chat template leaves out the question")
        read_prompts(processor, [prompt], [[image]])
    except Exception as error:  # processors fail with types of their own
        raise InputError(
            f"{name!r} could not answer questions about images after training: {error}"
        ) from error


def say(text: str) -> None:
    """What the run does now, in one line of the first process."""
    if PartialState().is_main_process:
        print(text, file=sys.stderr, flush=True)


def check_structure(source: Source, method: MethodConfig) -> None:
    """Check the decoder of a student from a model without weights.

    Raises:
        InputError: Its weights are quantized already, a group size does not divide a linear's
            inputs, or the decoder has too few layers for relational alignment.
    """
    if getattr(source.config, "quantization_config", None) is not None:
        raise InputError(
            f"the weights of {source.name!r} are quantized already; give the unquantized model"
        )
    model = without_weights(source.config)
    if method.quantization is not None:
        for name in source.family.decoder_linears(model):
            method.quantization.group_width(model.get_submodule(name).in_features, name)
    if method.relational:
        source.family.relational_layer(model)


def check_libraries(arguments: TrainingArguments, method: MethodConfig) -> None:
    """Check that optimizer, schedule and loggers can be made, on one parameter, and that DeepSpeed
    leaves the scales as they are.

    Raises:
        InputError: A library is missing, or an option does not fit.
    """
    from transformers.integrations import get_reporting_integration_callbacks

    if arguments.deepspeed_plugin is not None:
        check_deepspeed(arguments.deepspeed_plugin.deepspeed_config, method)
    model: Any = nn.Linear(1, 1)
    more: Any = dict(arguments.lr_scheduler_kwargs or {})  # type: ignore[arg-type]
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        optimizer = kind([{"params": list(model.parameters())}], **options)
        get_scheduler(
            arguments.lr_scheduler_type,
            optimizer,
            num_warmup_steps=1,
            num_training_steps=10,
            scheduler_specific_kwargs=more,
        )
        for logger in get_reporting_integration_callbacks(arguments.report_to):
            logger()
    except Exception as error:  # each library has a type of its own
        reason = one_line(error, 300)
        raise InputError(f"training arguments: {reason}") from error
