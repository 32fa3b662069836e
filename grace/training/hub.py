"""The result on the Hugging Face hub: named and checked before training, uploaded after it."""

from pathlib import Path

from accelerate import PartialState
from huggingface_hub import HfApi
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from grace.errors import InputError, one_line


def repository(arguments: TrainingArguments, out: Path) -> str | None:
    """Make the repository that ``push_to_hub`` asks for, before hours are spent.

    Args:
        arguments: The trainer's; ``push_to_hub`` is taken out of them, because checkpoints, whose
            weights are not rounded yet, are no models for others.
        out: The directory that is written; its name is the repository's, unless there is a
            ``hub_model_id``.

    Returns:
        The repository's name; None unless it was asked for, and in other processes than the first.

    Raises:
        InputError: The hub does not let it be made.
    """
    if not arguments.push_to_hub:
        return None
    arguments.push_to_hub = False
    strategy = HubStrategy(arguments.hub_strategy).value
    if strategy not in ("every_save", "end"):
        raise InputError(
            f"hub_strategy is {strategy}; leave it out: the trained model is "
            "uploaded, checkpoints are not"
        )
    if not PartialState().is_main_process:
        return None
    name = arguments.hub_model_id or out.name
    try:
        made = HfApi(token=arguments.hub_token).create_repo(
            name, private=arguments.hub_private_repo, exist_ok=True
        )
    except Exception as error:  # offline, not logged in, not allowed: each has its own type
        raise InputError(f"push_to_hub: cannot make {name!r} ({one_line(error, 200)})") from error
    return made.repo_id


def upload(out: Path, name: str, arguments: TrainingArguments) -> None:
    """Upload a directory that was written.

    Raises:
        InputError: It failed; the directory is complete.
    """
    try:
        HfApi(token=arguments.hub_token).upload_folder(
            repo_id=name,
            folder_path=out,
            commit_message="Trained with grace",
            revision=arguments.hub_revision,
        )
    except Exception as error:
        raise InputError(
            f"{out} is complete, but its upload to {name!r} failed ({one_line(error, 200)}); "
            f"try `hf upload {name} {out}`"
        ) from error
    print(f"uploaded {name}")
