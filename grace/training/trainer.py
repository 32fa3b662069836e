"""The Hugging Face ``Trainer`` with a frozen teacher and the objective of GRACE.

Everything that is not the method (accelerate, mixed precision, gradient checkpointing, several
processes, logging, checkpoints and resume) is the library's.
"""

import contextlib
import logging
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints

from grace.data import Collator, ConversationDataset
from grace.distillation import combine, distillation_sums, gate_sum, rcka_sums, visual_token_count
from grace.errors import InputError
from grace.models import family_of
from grace.training.batches import EpochLengthGroupedSampler, ImageInEveryBatch
from grace.training.callbacks import NoInputGradients, Objective
from grace.training.distributed import check_deepspeed, let_torch_load_onto_first_cpu
from grace.training.forward import SupervisedForward
from grace.training.method import MethodConfig
from grace.training.signals import EvaluationStopped
from grace.training.teacher import Identity, Teacher, TeacherOutputs, check_teacher

logger = logging.getLogger(__name__)

SCALE_PARAMETER = "log_scale"
"""Last part of the name of a fake-quantized linear's learned scales."""
PARTIAL = "partial"
"""Folder, beside the checkpoints, of the one that is being written."""


class GraceTrainer(Trainer):
    """Trains a student with any of `METHODS`.

    ::

        prepare_student(student, method)
        trainer = GraceTrainer(student, arguments, data, Collator(...), method=method,
                               teacher=LiveTeacher(...))
        trainer.train()
        save_student(student, processor, "student", method)

    In several processes every term is normalised over all of them, and one process with as many
    accumulation steps more takes the same optimizer steps. Weights and scales are float32
    throughout, also where they are sharded (FSDP2, ZeRO), and the arithmetic runs under bfloat16
    autocast: codes follow from float32 weights, which is what ``bake`` rounds in the end.

    Args:
        model: The student, prepared by :func:`prepare_student`.
        args: The library's own settings.
        train_dataset: The samples.
        data_collator: Makes the batches.
        method: What to train and how.
        teacher: Needed by methods with distillation, and refused by the others.
        **kwargs: Further arguments of the library's ``Trainer``.

    Attributes:
        method: As given.
        teacher: As given.
        objective: The weights of the loss terms; None without distillation.

    Raises:
        InputError: A teacher is missing or not needed, or of another family or vocabulary.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        train_dataset: ConversationDataset,
        data_collator: Collator,
        *,
        method: MethodConfig,
        teacher: Teacher | None = None,
        **kwargs: Any,
    ) -> None:
        if method.needs_teacher != (teacher is not None):
            needs = "needs a" if method.needs_teacher else "takes no"
            raise InputError(f"method {method.method} {needs} teacher")
        identity = getattr(teacher, "identity", None)
        if identity is not None:
            check_teacher(Identity.of(model.config, train_dataset.processor), identity)
        if args.n_gpu > 1:  # the library would wrap the student in DataParallel, which splits lists
            logger.warning(
                "%d devices and one process: one of them trains; for all of them start "
                "`accelerate launch`",
                args.n_gpu,
            )
            args._n_gpu = 1
        collate: Any = data_collator
        if args.world_size > 1:
            collate = ImageInEveryBatch.around(data_collator, train_dataset) or data_collator
            # with an image in every batch no parameter is ever unused
            args.ddp_find_unused_parameters = collate is data_collator
        super().__init__(model, args, collate, train_dataset, **kwargs)
        self.model_accepts_loss_kwargs = True  # the loss below divides by the global token count
        self.method = method
        self.teacher = teacher
        self.add_callback(NoInputGradients())
        self.objective: Objective | None = None
        if method.distillation is not None:
            self.objective = Objective(method.distillation)
            self.add_callback(self.objective)
        config: Any = model.config
        family = family_of(config)
        self._forward = SupervisedForward(model, family, relational=method.relational)
        self._saving = False
        self._keep_float32()
        self._step_sums: dict[str, torch.Tensor] = {}
        self._log_sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, torch.Tensor] = {}
        self._ce_finite = torch.ones((), dtype=torch.bool, device=self.args.device)
        self._micro_batches = 0

    def _keep_float32(self) -> None:
        """Shard as float32: a policy with a lower ``param_dtype`` would gather the scales in it,
        and round the weights before they are quantized."""
        state: Any = self.accelerator.state
        model: Any = self.model
        if self.is_deepspeed_enabled:
            check_deepspeed(state.deepspeed_plugin.deepspeed_config, self.method)
        if self.accelerator.is_fsdp2:
            from torch.distributed.fsdp import MixedPrecisionPolicy

            state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
            if not state.fsdp_plugin.transformer_cls_names_to_wrap:
                lists = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
                names = {type(block).__name__ for part in lists for block in part}
                state.fsdp_plugin.transformer_cls_names_to_wrap = sorted(names)

    # -- data -----------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None):
        dataset: Any = train_dataset if train_dataset is not None else self.train_dataset
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        size *= self.args.world_size
        return EpochLengthGroupedSampler(size, dataset.lengths, self.args.seed)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Fetch one optimizer step's micro-batches and ask the teacher about all of them, because
        the gate normalises over the global batch (Eq. 6)."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._micro_batches = len(batches)
        if self.teacher is not None and batches:
            config = self.method.distillation
            assert config is not None
            totals = torch.zeros(2, dtype=torch.float64, device=device)
            for batch in batches:
                outputs = self.teacher.outputs(self._prepare_inputs(batch))
                batch["teacher"] = outputs
                totals[0] += gate_sum(
                    outputs.logits, config.kappa, self._shared_vocabulary(outputs)
                )
                totals[1] += sum(visual_token_count(span) >= 2 for span in batch["image_spans"])
            totals = self.accelerator.reduce(totals, reduction="sum")
            for batch in batches:
                batch["gate_total"], batch["image_total"] = totals[0], totals[1]
        return batches, count

    def _shared_vocabulary(self, outputs: TeacherOutputs) -> int:
        config: Any = self.accelerator.unwrap_model(self.model).config
        return min(config.get_text_config().vocab_size, outputs.logits.shape[-1])

    # -- loss -----------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """L = CE + β·GDKD + ω·RCKA (Eq. 17, 21), every term over the global batch; a scalar.

        Under ``qad`` it is the divergence alone. The model in evaluation mode gives CE.
        """
        if num_items_in_batch is None:  # this batch alone
            num_items_in_batch = torch.tensor(len(inputs["targets"]))
        with self._autocast():
            logits, hidden = self._forward(model, inputs)
        logits = logits.float()
        tokens = num_items_in_batch.to(logits.device).clamp(min=1)
        ce = nn.functional.cross_entropy(logits, inputs["targets"], reduction="sum") / tokens
        loss = ce
        if model.training:
            self._ce_finite &= torch.isfinite(ce.detach())
            self._add("ce", ce)
            if self.objective is not None:
                loss = self._distil(ce, logits, hidden, inputs)
            if self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes  # gradients are averaged over ranks
        return (loss, {"logits": logits}) if return_outputs else loss

    def _autocast(self) -> Any:
        """The autocast that accelerate puts around a model's forward, but not around FSDP2's.

        Without the cache: it would keep the bfloat16 copies of all shards that were gathered.
        """
        if self.accelerator.is_fsdp2 and self.args.bf16:
            return torch.autocast(self.args.device.type, torch.bfloat16, cache_enabled=False)
        return contextlib.nullcontext()

    def _distil(self, ce, logits, hidden, inputs) -> torch.Tensor:
        """The loss with distillation; non-finite distillation terms are dropped and counted."""
        assert self.objective is not None
        config = self.objective.config
        teacher: TeacherOutputs = inputs["teacher"]
        beta, omega = self.objective.weights(self.state.global_step)
        sums = distillation_sums(
            logits,
            teacher.logits,
            inputs["targets"],
            temperature=config.temperature,
            alpha=config.alpha,
            beta=config.beta_dkd,
            kappa=config.kappa,
            decoupled=config.decoupled,
        )
        gdkd = sums.loss_sum / inputs["gate_total"].clamp(min=1e-12).float()
        rcka = torch.zeros((), device=logits.device)
        finite = sums.finite
        if self.method.relational:
            assert teacher.relational is not None
            relation = rcka_sums(hidden, teacher.relational, inputs["image_spans"])
            rcka = relation.loss_sum / inputs["image_total"].clamp(min=1).float()
            finite = finite & relation.finite
            self._add("degenerate", relation.degenerate_count)
        keep = finite.to(gdkd.dtype)
        self._add("gdkd", gdkd)
        self._add("rcka", rcka)
        self._add("gate", sums.gate_sum)
        self._add("tokens", torch.tensor(len(logits), device=logits.device))
        self._add("dropped", ~finite)
        if not self.method.cross_entropy:
            ce = torch.zeros_like(ce)
        return combine(ce, gdkd * keep, rcka * keep, beta, omega)

    def _add(self, name: str, value: torch.Tensor) -> None:
        value = value.detach().double()
        self._step_sums[name] = self._step_sums[name] + value if name in self._step_sums else value

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One micro-batch; after the last of an optimizer step its terms are summed up."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._micro_batches -= 1
        if self._micro_batches == 0:
            self._finish_step()
        return loss

    def _finish_step(self) -> None:
        """Once per optimizer step: sum the terms over ranks, update β, keep sums for the log."""
        names = sorted(self._step_sums)
        values = self.accelerator.reduce(
            torch.stack([self._step_sums[name] for name in names]), reduction="sum"
        )
        sums = dict(zip(names, values, strict=True))
        self._step_sums = {}
        self._ce_finite &= torch.isfinite(sums["ce"])  # so that all processes stop together
        if self.objective is not None:
            # a dropped term is not an observation: the controller never sees it
            kept = sums["dropped"] == 0
            observed = torch.where(kept, sums["gdkd"], torch.nan)
            if self.objective.controller is not None:
                self.objective.controller.update(observed)
            sums["dropped"] = (~kept).double()
        for name, value in {**sums, "steps": torch.ones_like(sums["ce"])}.items():
            self._log_sums[name] = self._log_sums.get(name, torch.zeros_like(value)) + value
        for name in ("dropped", "degenerate"):
            if name in sums:
                value = sums[name]
                self._counts[name] = self._counts.get(name, torch.zeros_like(value)) + value
        if self.args.device.type == "cpu":  # elsewhere the check would stall the device
            self._check_finite()

    def _check_finite(self) -> None:
        if not bool(self._ce_finite):
            raise FloatingPointError(
                f"the cross-entropy is not finite at step {self.state.global_step}; "
                "lower the learning rate or look for broken records; the last checkpoint is intact"
            )

    # -- log ------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the means of the loss terms since the last time, beside the library's values of
        training; what evaluation logs is left as it is."""
        self._check_finite()
        if "loss" in logs or "train_loss" in logs:
            self._add_means(logs)
        super().log(logs, start_time)

    def _add_means(self, logs: dict[str, float]) -> None:
        sums = {name: float(value) for name, value in self._log_sums.items()}
        self._log_sums = {}
        steps = sums.get("steps", 0)
        if not steps:
            return
        logs["ce"] = sums["ce"] / steps
        if self.objective is None:
            return
        objective = self.objective
        self._count()
        kept = max(steps - sums["dropped"], 1)
        logs["gdkd"] = sums["gdkd"] / kept
        logs["rcka"] = sums["rcka"] / kept
        logs["gate"] = sums["gate"] / max(sums["tokens"], 1)
        beta, omega = objective.weights(self.state.global_step)
        logs["beta"], logs["omega"] = float(beta), float(omega)
        if objective.controller is not None:
            logs["ema"] = float(objective.controller.ema)
        logs["skipped_steps"] = objective.skipped
        logs["degenerate_images"] = objective.degenerate

    def _count(self) -> None:
        """Move the counts since the last time into the objective, which is part of the state."""
        counts, self._counts = self._counts, {}
        if self.objective is not None:
            self.objective.skipped += int(counts.get("dropped", 0))
            self.objective.degenerate += int(counts.get("degenerate", 0))

    # -- evaluation -----------------------------------------------------------------------------

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The batch's cross-entropy; its sum and the supervised tokens of every sample (B, 2)."""
        inputs = self._prepare_inputs(inputs)
        rows = inputs["token_rows"]
        with torch.no_grad(), self.compute_loss_context_manager(), self._autocast():
            logits, _ = self._forward(model, inputs)
        ce = nn.functional.cross_entropy(logits.float(), inputs["targets"], reduction="none")
        values = torch.stack([ce.double(), torch.ones_like(ce, dtype=torch.float64)], dim=1)
        sums = values.new_zeros(len(inputs["indices"]), 2).index_add_(0, rows, values)
        return ce.mean(), sums, None

    def _evaluate(self, *args, **kwargs) -> Any:
        """The library's; at a signal it ends, and the step that it follows is saved."""
        try:
            return super()._evaluate(*args, **kwargs)
        except EvaluationStopped:
            self.control.should_save = self.control.should_training_stop = True
            self.control.should_evaluate = False
            return {}

    def _determine_best_metric(self, metrics, trial) -> bool:
        return bool(metrics) and super()._determine_best_metric(metrics, trial)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, *args, **kwargs
    ) -> Any:
        """The library's loop; the loss is the mean over all supervised tokens, whatever the
        batches."""
        output: Any = super().evaluation_loop(dataloader, description, False, *args, **kwargs)
        total, tokens = output.predictions.sum(axis=0)
        name = next(key for key in output.metrics if key.endswith("_loss"))
        output.metrics[name] = float(total / max(tokens, 1))
        return output

    # -- state ----------------------------------------------------------------------------------

    def _get_output_dir(self, trial) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, PARTIAL) if self._saving else folder

    def _save_checkpoint(self, model, trial) -> None:
        """Write a checkpoint under another name and rename it when every process has written its
        part: a folder ``checkpoint-<step>`` is complete whenever the run is killed."""
        self._check_finite()
        self._count()
        assert self.args.output_dir is not None
        place, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(place / PARTIAL, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._saving = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving = False
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            shutil.rmtree(place / name, ignore_errors=True)
            self._correct_best(place, name)
            (place / PARTIAL / name).rename(place / name)
            best = self.state.best_model_checkpoint
            rotate_checkpoints(str(place), self.args.save_total_limit, best)
        self.accelerator.wait_for_everyone()

    def _correct_best(self, place: Path, name: str) -> None:
        """The library notes the name that the best checkpoint had while it was written."""
        if self.state.best_model_checkpoint == str(place / PARTIAL / name):
            self.state.best_model_checkpoint = str(place / name)
            self.state.save_to_json(str(place / PARTIAL / name / TRAINER_STATE_NAME))

    def _save(self, output_dir=None, state_dict=None) -> None:
        # The library writes checkpoints under the hub's historical names, but reads them back
        # under the module's own: for Qwen2-VL not one name would match, and resuming would
        # silently go on from other weights. So checkpoints keep the module's own names.
        unwrapped = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        save_pretrained = unwrapped.save_pretrained
        unwrapped.save_pretrained = partial(save_pretrained, save_original_format=False)
        try:
            super()._save(output_dir, state_dict)
        finally:
            del unwrapped.save_pretrained

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        if self.args.device == torch.device("cpu", 0):
            let_torch_load_onto_first_cpu()
        super()._load_optimizer_and_scheduler(checkpoint)

    def _load_callback_state(self) -> None:
        # the library would replace the objective; keep the object the loss reads
        callbacks_state: Any = self.state.stateful_callbacks  # a dict, though declared a list
        saved = callbacks_state.get(Objective.__name__)
        super()._load_callback_state()
        if self.objective is not None and isinstance(saved, dict):
            self.objective.restore(saved)
            callbacks = self.callback_handler.callbacks
            kept = [c for c in callbacks if not isinstance(c, Objective)]
            self.callback_handler.callbacks = [*kept, self.objective]

    # -- optimizer ------------------------------------------------------------------------------

    def create_optimizer(self, model=None):
        """Weights with and without decay, and the scales: no decay, their own learning rate."""
        if self.optimizer is not None:
            return self.optimizer
        model = self.model if model is None else model
        decayed = set(self.get_decay_parameter_names(model))
        groups: dict[str, list[nn.Parameter]] = {"decay": [], "plain": [], "scales": []}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                is_scale = name.rsplit(".", 1)[-1] == SCALE_PARAMETER
                kind = "scales" if is_scale else "decay" if name in decayed else "plain"
                groups[kind].append(parameter)
        rate = self.args.learning_rate
        settings = [
            {"params": groups["decay"], "weight_decay": self.args.weight_decay},
            {"params": groups["plain"], "weight_decay": 0.0},
            {
                "params": groups["scales"],
                "weight_decay": 0.0,
                "lr": rate * self.method.scale_lr_multiplier,
            },
        ]
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        if options.get("optim_bits") == 8:
            _keep_embeddings_whole(model)
        self.optimizer = kind([group for group in settings if group["params"]], **options)
        return self.optimizer


def _keep_embeddings_whole(model: nn.Module) -> None:
    """Embeddings' moments in 32 bits, as the library has them: 8 are unstable there."""
    from bitsandbytes.optim import GlobalOptimManager

    for module in model.modules():
        if isinstance(module, nn.Embedding):
            GlobalOptimManager.get_instance().register_module_override(
                module, "weight", {"optim_bits": 32}
            )
