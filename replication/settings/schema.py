"""``params.yaml`` as validated, typed values.

:func:`replication.settings.checks.load_params` reads the file and checks what goes together. This
module holds the fields alone, with their types and bounds, and imports nothing but the base: a
stage's code does not change with a registry that the checks look into.
"""

import dataclasses
import typing
from dataclasses import field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, Strict

from grace.errors import InputError
from replication.base.messages import unknown
from replication.base.scales import Scale
from replication.base.validation import Flag, Natural, Positive, Text, record

PARAMS_FILE = Path("params.yaml")

LANGUAGE_FAMILY = "qwen2_vl"
ALIGNMENT = "alignment"
"""The family whose decoders are trained on text; other families' models start from its models."""

REGIMES = "regimes"
"""The section, and the folder, of the map's further models; a group may name it as its pair."""

KINDS = ("teacher", "baseline")
"""The two models of a pair."""

REDUCED_ONLY = (*("standins", "vision", "features", "language", "alignment", "methods", "tuning"),)
"""Sections of the small world. Scale paper has ``data`` in their place."""

Amount = Annotated[float, Strict(), Field(ge=0, le=2**53, allow_inf_nan=False)]
Share = Annotated[float, Strict(), Field(ge=0, le=1, allow_inf_nan=False)]
Length = Annotated[float, Strict(), Field(gt=0, le=1000, allow_inf_nan=False)]
Preset = Literal["paper", "released"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Arithmetic = Literal["auto", "bfloat16", "float32"]
World = Literal["first", "second"]
Labels = Literal["clean", "noisy"]
Records = Annotated[list[Natural], Field(min_length=2, max_length=2)]
Optimizer = Literal["adamw_torch_fused", "adamw_bnb_8bit"]

PRESETS: tuple[str, ...] = typing.get_args(Preset)
DTYPES: tuple[str, ...] = typing.get_args(Dtype)[1:]


@record
class AlignmentData:
    """Images of one object after the other training images: decoders learn to see on them.

    Attributes:
        images: how many in each of the two lessons.
        turns: fewest turns in a conversation.
        captions: chance that a conversation opens with a caption.
        open_answers: chance that a question is asked without its options.
    """

    images: Positive
    turns: Positive
    captions: Share
    open_answers: Share


@record
class Standins:
    """The procedural world: its sizes, its seed and how hard the drawings are.

    Attributes:
        seed: of the draw of all scenes.
        train: training images, one conversation each.
        alignment: further ones, after them.
        language: conversations without an image.
        evaluation: questions in every benchmark.
        turns: fewest turns in a conversation.
        captions: chance that a conversation opens with a caption.
        echoes: chance that a question gives way to one for the letter of an option.
        open_answers: chance that a question is asked without its options.
        spelled_letters: chance that the answer is the option with its letter.
        diagrams: chance that a training image is a diagram with labels.
        strings: chance that it has several signs, to be read together.
        poor_images: chance that it is blurred, dark, grainy or black.
        noise: standard deviation of the pixel noise of a good image, in grey levels.
        clutter: grey dots in empty cells.
        poorest: how poor the poorest image is, from 0 (all are good) to 1.
        wrong_labels: share of wrong answers in the corpus's noisy column.
        world: which things there are. The stage writes every world that a pair sees.
        vocab_size: most words of the tokenizer.
    """

    seed: Natural
    train: Positive
    alignment: AlignmentData
    language: Natural
    evaluation: Positive
    turns: Positive
    captions: Share
    echoes: Share
    open_answers: Share
    spelled_letters: Share
    diagrams: Share
    strings: Share
    poor_images: Share
    noise: Amount
    clutter: Natural
    vocab_size: Positive
    poorest: Share = 0.0
    wrong_labels: Share = 0.0
    world: World = "first"


@record
class Pair:
    """One teacher and one baseline of a family, and the world they see.

    Attributes:
        family: of both. The pair that has its family's name is the family's first.
        vision: the pair whose processor, vision tower and features they use.
        start: where their decoders start: another pair, or "alignment/<vision>".
        world: "first", or "second": other shapes, colours, layouts and words.
    """

    family: Text
    vision: Text | None = None
    start: Text | None = None
    world: World = "first"


@record
class Portion:
    """What a model is trained on.

    Attributes:
        records: the first row of the training conversations, and the one after the last; None for
            all.
        labels: "clean", or "noisy": with wrong answers among them.
    """

    records: Records | None = None
    labels: Labels = "clean"


@record
class Vision:
    """Pretraining of a pair's vision tower.

    Attributes:
        seed: of weights and draws.
        images: training images.
        steps: optimizer steps.
        batch_size: images in a step.
        learning_rate: at the highest.
        config: keys of the tower's configuration class in transformers.
    """

    seed: Natural
    images: Positive
    steps: Natural
    batch_size: Positive
    learning_rate: Amount
    config: dict[Text, Any]


@record
class Projector:
    """The projector's first lesson, before a teacher or baseline is trained.

    Attributes:
        steps: of the optimizer.
        batch_size: images in a step.
        learning_rate: at the highest.
    """

    steps: Positive
    batch_size: Positive
    learning_rate: Amount


@record
class Features:
    """Frozen vision features of the training images.

    Attributes:
        batch_size: images that are encoded at once.
    """

    batch_size: Positive


@record
class Source:
    """A published data set.

    Attributes:
        repository: on the Hugging Face hub.
        subset: its configuration; None for the only one, or the default.
        split: its split.
    """

    repository: Text
    subset: Text | None = None
    split: Text | None = None


@record
class Training:
    """The training conversations of scale paper; docs/data.md has the formats.

    Attributes:
        files: annotation files: local paths, or names in the hub's data set ``repository``.
        images: the folder of image folders.
        repository: data set on the hub.
        revision: of ``repository``; None for the newest.
        folders: image folders that lie elsewhere, by name.
        samples: conversations that are drawn; None for all.
        seed: of the draw.
        missing_images: share of the images that may be missing.
        invalid_records: share of the records that may be left out.
    """

    files: list[Text]
    images: Text
    repository: Text | None = None
    revision: Text | None = None
    folders: dict[Text, Text] = field(default_factory=dict)
    samples: Positive | None = None
    seed: Natural = 0
    missing_images: Share = 0.0
    invalid_records: Share = 0.0


@record
class Data:
    """The published data of scale paper.

    Attributes:
        training: the training conversations.
        benchmarks: where each benchmark's questions are.
    """

    training: Training
    benchmarks: dict[Text, Source]


@record
class Lesson:
    """What a decoder learns before it is a teacher or a baseline, by plain fine-tuning.

    Attributes:
        seed: of weights and draws.
        steps: optimizer steps.
        batch_size: conversations in a step.
        learning_rate: at the highest.
        warmup_ratio: share of the steps in which the learning rate rises.
        weight_decay: of the optimizer.
    """

    seed: Natural
    steps: Natural
    batch_size: Positive
    learning_rate: Amount
    warmup_ratio: Share = 0.05
    weight_decay: Amount = 0.0


@record
class Language:
    """Decoders are trained on text alone, of the shapes of the pair ``LANGUAGE_FAMILY``.

    Attributes:
        teacher: training of a decoder of the teacher's shape.
        baseline: training of one of the baseline's shape.
    """

    teacher: Lesson
    baseline: Lesson


@record
class Alignment:
    """Decoders learn to see, on the images of one object.

    Attributes:
        pairs: with a vision tower of their own; other pairs of the tower start from the same.
        projector: its training, before, and before that of other teachers and baselines.
        teacher: training of a decoder of the teachers' shape in the first lesson.
        baseline: training of one of the baselines' shape, likewise.
        where_steps: steps of the second lesson, in which places are asked for, too.
    """

    pairs: list[Text]
    projector: Projector
    teacher: Lesson
    baseline: Lesson
    where_steps: Positive


@record
class Pretraining:
    """A teacher or baseline: trained here (``steps``, ``text``), or a ``source``.

    Attributes:
        seed: of weights and draws.
        steps: optimizer steps.
        batch_size: conversations in a step.
        learning_rate: at the highest.
        warmup_ratio: share of the steps in which the learning rate rises.
        weight_decay: of the optimizer.
        records: the first row of the training conversations, and the one after the last; None for
            all.
        labels: "clean", or "noisy": with wrong answers among them.
        text: keys of the decoder's configuration class in transformers.
        source: a published checkpoint: a repository on the hub, or a local directory.
    """

    seed: Natural = 0
    steps: Natural = 0
    batch_size: Positive = 1
    learning_rate: Amount = 0.0
    warmup_ratio: Share = 0.05
    weight_decay: Amount = 0.0
    records: Records | None = None
    labels: Labels = "clean"
    text: dict[Text, Any] = field(default_factory=dict)
    source: Text | None = None


@record
class FurtherModel:
    """A further teacher or baseline, for the map; what is None is as in the pair.

    Attributes:
        like: the model of the pair whose shape, start and settings it has.
        records: as in `Pretraining`.
        labels: as in `Pretraining`.
        steps: optimizer steps.
        seed: of weights and draws.
    """

    like: Literal["teacher", "baseline"]
    records: Records | None = None
    labels: Labels | None = None
    steps: Positive | None = None
    seed: Natural | None = None


@record
class Regimes:
    """Teachers and baselines of other data than a pair's, for the map of regimes.

    Attributes:
        pair: whose shapes, starts and features they have.
        models: by name.
    """

    pair: Text
    models: dict[Text, FurtherModel]


@record
class TeacherOutputs:
    """A teacher's outputs on the methods' data, computed once.

    Attributes:
        batch_size: conversations in a forward pass.
        baselines: pairs whose baseline's own outputs are kept too: its runs of self-distillation
            are taught by them.
    """

    batch_size: Positive
    baselines: list[Text] = field(default_factory=list)


@record
class Launch:
    """How ``accelerate launch`` starts training.

    Attributes:
        config: accelerate's configuration file, a path from the directory of ``params.yaml``.
        processes: of all machines together.
        teacher_bits: of the teacher's weights; 8 and 4 are held through bitsandbytes.
        teacher_sharded: shard the teacher over the processes, as FSDP2 does the student.
        optimizer: the Trainer's name of it.
        workers: processes that prepare one process's batches.
    """

    config: Text
    processes: Positive
    teacher_bits: Literal[16, 8, 4] = 16
    teacher_sharded: Flag = False
    optimizer: Optimizer = "adamw_torch_fused"
    workers: Natural = 0


@record
class Coefficients:
    """A set of weights of the distillation losses, and of the controller's settings.

    Attributes:
        distillation: keys of ``grace.distillation.DistillationConfig``.
        steps: of the training that they were set for: a run of another number of steps warms its
            losses up over the same share of them. None: over as many steps as they say.
    """

    distillation: dict[Text, Any]
    steps: Positive | None = None


@record
class Train:
    """What all runs share.

    Attributes:
        batch_size: conversations in a forward pass of one device.
        learning_rate: at the highest.
        coefficients: the name of those of the distillation losses, in the section of that name.
        steps: optimizer steps; or give ``epochs``.
        epochs: passes over the data, at scale paper alone.
        devices: of all machines together. An optimizer step takes
            ``batch_size * accumulation * devices`` conversations.
        launch: how training is started at scale paper.
        preset: the file of ``replication/settings/values/presets`` whose values come first.
        max_length: longest sequence, in tokens.
        accumulation: forward passes of a device in an optimizer step.
        warmup_ratio: share of the steps in which the learning rate rises.
        weight_decay: of the optimizer.
        max_grad_norm: gradients are clipped to this norm.
        logging_steps: steps between two entries of the training log.
        save_steps: steps between two checkpoints.
        gradient_checkpointing: compute activations again in the backward pass.
        group_size: weights that share a scale; "row" for a whole row.
        init: how the scales are found before training; see ``grace.quantization.QuantSpec``.
        gradient_factor: scale the step sizes' gradients as LSQ does.
        scale_lr_multiplier: the step sizes' learning rate, in multiples of ``learning_rate``.
    """

    batch_size: Positive
    learning_rate: Amount
    coefficients: Text
    steps: Natural = 0
    epochs: Amount | None = None
    devices: Positive = 1
    launch: Launch | None = None
    preset: Preset | None = None
    max_length: Positive | None = None
    accumulation: Positive = 1
    warmup_ratio: Share = 0.03
    weight_decay: Amount = 0.0
    max_grad_norm: Amount = 1.0
    logging_steps: Positive = 50
    save_steps: Positive = 500
    gradient_checkpointing: Flag = False
    group_size: Natural | Text = 128
    init: Text = "mse"
    gradient_factor: Flag = False
    scale_lr_multiplier: Amount = 10.0


@record
class Run:
    """One named run: a method at a bit width, over seeds.

    Attributes:
        method: "sft", "qat", "kd", "grace" or "qad".
        bits: of the weights; 16 is no quantization.
        seeds: each is trained and evaluated.
        start: the run of the same group, at 16 bits, whose model of the same seed it starts from;
            None for the baseline.
        length: of the training, in multiples of that of `Train`.
        learning_rate: in place of that of `Train`.
        group_size: in place of that of `Train`.
        coefficients: in place of those of `Train`.
        distillation: before the values of the coefficients.
        shuffled_teacher: a control: the teacher's outputs are those on other samples.
    """

    method: Text
    bits: Natural
    seeds: list[Natural]
    start: Text | None = None
    length: Length = 1.0
    learning_rate: Amount | None = None
    group_size: Natural | Text | None = None
    coefficients: Text | None = None
    distillation: dict[Text, Any] = field(default_factory=dict)
    shuffled_teacher: Flag = False


@record
class Group:
    """Runs of one teacher and baseline that are trained, and evaluated, in one stage.

    Attributes:
        pair: whose teacher and baseline they are; or "regimes", and then ``teacher`` and
            ``baseline`` say which, as ``<folder>/<model>``.
        models: runs by name.
        teacher: in a regime alone.
        baseline: in a regime alone.
        records: in a regime alone: what the runs are trained on, in place of the section methods.
        labels: in a regime alone, as ``records``.
    """

    pair: Text
    models: dict[Text, Run]
    teacher: Text | None = None
    baseline: Text | None = None
    records: Records | None = None
    labels: Labels | None = None

    def rounds(self) -> list[list[str]]:
        """The runs' names in rounds: a run comes in one after that of the run it starts from.

        Raises:
            graphlib.CycleError: when runs start from each other.
        """
        starts = {name: [run.start] if run.start else [] for name, run in self.models.items()}
        order, rounds = TopologicalSorter(starts), list[list[str]]()
        order.prepare()
        while order.is_active():
            ready = order.get_ready()
            rounds.append([name for name in self.models if name in ready])
            order.done(*ready)
        return rounds


@record
class Calibration:
    """The training conversations that a quantizer looks at.

    Attributes:
        samples: how many.
        seed: of their draw.
    """

    samples: Positive
    seed: Natural


@record
class PtqModel:
    """A baseline of post-training quantization.

    Attributes:
        method: a name of ``replication.settings.ptq_methods.BITS``.
        bits: of the weights.
    """

    method: Text
    bits: Natural


@record
class PtqGroup:
    """Quantizations of a pair's model ``baseline``, made and evaluated in one stage.

    Attributes:
        pair: whose baseline it is.
        models: quantizations by name.
    """

    pair: Text
    models: dict[Text, PtqModel]


@record
class Ptq:
    """Post-training quantization.

    Attributes:
        calibration: what a quantizer looks at.
        groups: quantized models by the name of their group.
        group_size: weights that share a scale, of the methods on the integer grid.
    """

    calibration: Calibration
    groups: dict[Text, PtqGroup]
    group_size: Natural | Text = 128

    def group(self, name: str) -> PtqGroup:
        """A group of quantized models.

        Raises:
            InputError: for a name that is not in ``groups``.
        """
        if name not in self.groups:
            raise InputError(unknown(f"ptq group {name!r}", name, self.groups))
        return self.groups[name]


@record
class Evaluate:
    """How models are evaluated, and each group of them on what.

    Attributes:
        batch_size: questions that are answered at once.
        max_new_tokens: longest answer.
        dtype: of the weights; "auto" is what the machine multiplies natively.
        benchmarks: names of benchmarks, by the folder of the models.
        processes: over how many the questions are shared, at scale paper alone; "all" is one per
            accelerator. The answers do not depend on it.
    """

    batch_size: Positive
    max_new_tokens: Positive
    dtype: Dtype
    benchmarks: dict[Text, list[Text]]
    processes: Positive | Literal["all"] = 1


@record
class EntropyError:
    """The teacher's entropy against its error.

    Attributes:
        seed: of the resampling.
        bins: of equal count.
    """

    seed: Natural
    bins: Positive


@record
class GateCovariance:
    """The gate against the loss.

    Attributes:
        seed: of the draw and the resampling.
        samples: training conversations.
    """

    seed: Natural
    samples: Positive


@record
class Internals:
    """What is observed inside trained models.

    Attributes:
        families: whose models.
        seed: of the draws and the resampling.
        scenes: questions that are shown, the first of ``samples``.
        samples: questions that are asked.
        conversations: training conversations whose gates are counted.
        bins: of every histogram; an odd number, so that zero lies within a bin.
    """

    families: list[Text]
    seed: Natural
    scenes: Positive
    samples: Positive
    conversations: Positive
    bins: Positive


@record
class Examples:
    """Answers that a method changes.

    Attributes:
        each: answers lost, and answers gained, of every benchmark.
    """

    each: Natural


@record
class Tuning:
    """Runs to choose from, and the validation questions that choose.

    Attributes:
        pairs: whose runs; each has a group of runs ``<pair>_tuning``, whose benchmarks are asked.
            Of none, nothing is chosen.
        seed: of the questions.
        questions: of every benchmark.
        candidates: names of runs by method, the same number of each; all at the same bits.
    """

    pairs: list[Text]
    seed: Natural
    questions: Positive
    candidates: dict[Text, list[Text]]


@record
class Deploy:
    """Which published architectures are built with random weights, and how they are measured.

    Attributes:
        models: the variants of every architecture.
        batches: batch sizes of decoding.
        repeats: of the prefill.
        decode_repeats: of a run of tokens.
        tokens: most tokens in a run.
        seed: of the weights.
        layers: build only so many, to show that everything runs; such numbers decide nothing.
    """

    models: dict[Text, list[Text]]
    batches: list[Natural]
    repeats: Natural
    decode_repeats: Natural
    tokens: Natural
    seed: Natural
    layers: Natural | None = None


@record
class Export:
    """What exported models are asked.

    Attributes:
        questions: of every benchmark.
        seed: of the resampling.
    """

    questions: Positive
    seed: Natural


@record
class Compare:
    """The resampling behind every interval.

    Attributes:
        resamples: how many.
        seed: of the draws.
    """

    resamples: Positive
    seed: Natural


@record
class Params:
    """All of ``params.yaml``; a section has the name of the stage that reads it.

    Attributes:
        scale: "smoke", "small" or "paper".
        families: in order; each has a pair of its name.
        pairs: by name.
        methods: by pair, what the runs are trained on.
        arithmetic: what training computes in; "auto" is what the machine multiplies natively.
    """

    scale: Scale
    families: list[Text]
    pairs: dict[Text, Pair]
    teacher: dict[Text, Pretraining]
    baseline: dict[Text, Pretraining]
    teacher_outputs: TeacherOutputs
    coefficients: dict[Text, Coefficients]
    train: Train
    runs: dict[Text, Group]
    ptq: Ptq
    evaluate: Evaluate
    entropy_error: EntropyError
    gate_covariance: GateCovariance
    internals: Internals
    export: Export
    deploy: Deploy
    examples: Examples
    compare: Compare
    arithmetic: Arithmetic = "auto"
    standins: Standins | None = None
    vision: dict[Text, Vision] | None = None
    features: Features | None = None
    language: Language | None = None
    alignment: Alignment | None = None
    methods: dict[Text, Portion] | None = None
    regimes: Regimes | None = None
    tuning: Tuning | None = None
    data: Data | None = None

    def subset(self, *names: str) -> dict[str, Any]:
        """What a stage reads, for the provenance of its results.

        Example::

            params.subset("compare.resamples", "entropy_error")

        Args:
            names: dotted names, as ``dvc.yaml`` lists them under ``params``.

        Returns:
            The value of every name, of JSON's types; None for a section that this scale lacks.

        Raises:
            KeyError: for a name that is not in the schema.
        """
        content = dataclasses.asdict(self)
        values = {}
        for name in names:
            value: Any = content
            for key in name.split("."):
                value = None if value is None else value[key]
            values[name] = value
        return values

    def group(self, name: str) -> Group:
        """A group of runs.

        Raises:
            InputError: for a name that is not in ``runs``.
        """
        if name not in self.runs:
            raise InputError(unknown(f"group of runs {name!r}", name, self.runs))
        return self.runs[name]

    def known_family(self, name: str) -> str:
        """``name``, if it is one of the families.

        Raises:
            InputError: if it is not.
        """
        if name not in self.families:
            raise InputError(unknown(f"family {name!r}", name, self.families))
        return name

    def pair(self, name: str) -> Pair:
        """A pair by its name; for "regimes" the one that the further models resemble.

        Raises:
            InputError: for an unknown name.
        """
        key = self.regimes.pair if name == REGIMES and self.regimes is not None else name
        if key not in self.pairs:
            raise InputError(unknown(f"pair {name!r}", name, self.pairs))
        return self.pairs[key]

    def pairs_of(self, family: str, world: str = "first") -> list[str]:
        """The names of a family's pairs in a world, in order."""
        of = ((pair.family, pair.world) for pair in self.pairs.values())
        return [name for name, own in zip(self.pairs, of, strict=True) if own == (family, world)]

    def find_run(self, pair: str, name: str) -> tuple[str, Run]:
        """A pair's run and the group it is in.

        Raises:
            InputError: when no group of the pair has it.
        """
        for folder, group in self.runs.items():
            if group.pair == pair and name in group.models:
                return folder, group.models[name]
        raise InputError(
            f"no group of runs of {pair} has a run {name!r}; add it to the section runs"
        )

    @property
    def folders(self) -> dict[str, str]:
        """Folders of models and their pairs: the pairs' own, the groups', and that of the map's
        further models, whose pair is "regimes"."""
        groups: dict[str, Any] = {**self.runs, **self.ptq.groups}
        own = {pair: pair for pair in self.pairs}
        further = {} if self.regimes is None else {REGIMES: REGIMES}
        return own | further | {name: group.pair for name, group in groups.items()}

    def pair_of(self, folder: str) -> str:
        """The name of the pair of the models in a folder.

        Raises:
            InputError: for an unknown folder.
        """
        if folder not in self.folders:
            raise InputError(unknown(f"folder {folder!r}", folder, self.folders))
        return self.folders[folder]

    def family_of(self, folder: str) -> str:
        """The family of the models in a folder.

        Raises:
            InputError: for an unknown folder.
        """
        return self.pair(self.pair_of(folder)).family

    def owner_of(self, folder: str) -> str:
        """The name that a folder's results go by: its pair, in which a run's name is the only one
        of its kind; the groups of the map, whose runs have the same names, go by their own."""
        pair = self.pair_of(folder)
        return folder if pair == REGIMES else pair

    def model_of(self, group: Group, kind: str) -> tuple[str, str]:
        """Folder and name of a group's teacher or baseline."""
        named = group.teacher if kind == "teacher" else group.baseline
        if named is None:
            return group.pair, kind
        folder, _, name = named.partition("/")
        return folder, name

    def settings_of(self, folder: str, name: str) -> Pretraining:
        """How a pair's teacher or baseline, or a further model of the map, is trained.

        Raises:
            InputError: for an unknown model.
        """
        if folder == REGIMES and self.regimes is not None:
            if name not in self.regimes.models:
                raise InputError(unknown(f"regimes.models {name!r}", name, self.regimes.models))
            model = self.regimes.models[name]
            own = {
                key: value
                for key in ("records", "labels", "steps", "seed")
                if (value := getattr(model, key)) is not None
            }
            return dataclasses.replace(self.settings_of(self.regimes.pair, model.like), **own)
        models = self.teacher if name == "teacher" else self.baseline
        if name not in KINDS or folder not in models:
            raise InputError(unknown(f"model {folder}/{name}", folder, models))
        return models[folder]

    def portion_of(self, group: Group) -> Portion:
        """What a group's runs are trained on."""
        pair = section(self.regimes, REGIMES).pair if group.pair == REGIMES else group.pair
        methods = section(self.methods, "methods")[pair]
        return Portion(group.records or methods.records, group.labels or methods.labels)


T = typing.TypeVar("T")


def section(value: T | None, name: str) -> T:
    """A section that only some scales have.

    Raises:
        InputError: when this scale has none.
    """
    if value is None:
        raise InputError(f"the parameters have no section {name}, which this stage reads")
    return value
