"""What a training step costs: floating-point operations, memory traffic, bytes per rank, seconds.

    student, teacher = Shape.of(student_model), Shape.of(teacher_model)
    load = Load(sequences=2, tokens=820, visual=576, supervised=150)
    step = step_flops(student, load, teacher=teacher, checkpointing=True)
    memory = rank_memory(student, load, quantized=True, teacher=teacher, wrapper="fsdp2", ranks=16)

A multiplication and an addition are two operations. What is counted is what `GraceTrainer` does:
only supervised positions reach the vocabulary projection, the tower is frozen, the teacher answers
for every micro-batch of an optimizer step before the student's first forward. The shapes are read
off a model of the real classes (the meta device will do), so that they cannot drift from it.

`tests/replication/test_costs.py` compares operations with torch's own counter and bytes with the
live storages of a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from torch import nn

from grace.distillation._common import WORKSPACE_BYTES
from grace.distillation.gated import BUFFERS
from grace.errors import InputError
from grace.models import family_of

if TYPE_CHECKING:
    from replication.plan.resources import Device

WRAPPERS = ("single", "ddp", "fsdp2", "zero2", "zero3")
ATTENTIONS = ("eager", "fused")
OPTIMIZERS = {"adamw_torch_fused": 8.0, "adamw_bnb_8bit": 2.0 * (1 + 4 / 256)}
"""Bytes of state for a trained weight: two moments in float32, or two of 8 bits with a float32
scale for every block of 256 (arXiv 2110.02861)."""
TEACHER_BYTES = {16: 2.0, 8: 1.0, 4: 0.5 + 1 / 64 + 4 / 64 / 256}
"""Bytes of a teacher's linear weight. 4 bits: NF4 with its absolute maxima (one byte for 64
weights) quantized in turn (arXiv 2305.14314, section 3)."""

WEIGHT_BYTES = 4  # `grace.models.load_model`: weights, and so gradients, are float32
GATE_PASSES, LOSS_PASSES, GRADIENT_PASSES = 7, 13, 3  # over (N, V); grace.distillation.gated
CE_PASSES = 6  # to float32, log-softmax (2), its gradient (2), back to bfloat16

# Bytes moved for a weight of a fake-quantized linear, from the operations of
# grace.quantization.primitives, 4 bytes a read or write of float32 and 2 of bfloat16, nothing kept
# in a cache. _forward: divide, clamp, round, multiply (8 each), cast (6). _backward: divide, clamp,
# round (8 each), compare (12), the quantized weight (8) and its cast (6), cast of the gradient (6),
# addcmul (16), products with the gradient (24), sum (4), write (8).
QUANTIZE_BYTES = 38
QUANTIZE_BACKWARD_BYTES = 108


@dataclass(frozen=True)
class Shape:
    """A vision-language model as the formulas see it; counts are of weights, tied ones once.

    Attributes:
        linears: matrices of the decoder layers, without biases.
        last_linears: those of them whose product ends a layer.
        projector: matrices applied to every visual token.
        tower_blocks: matrices of the tower's layers, applied to every patch.
        tower_embedding: the matrix that embeds a patch.
        patches: of a visual token.
        token_pixels: of a visual token.
        image_tokens: visual tokens of an image where all images come to one size, else 0.
        extra_patches: an image's positions in the tower that become no visual token.
    """

    name: str
    parameters: int
    layers: int
    hidden: int
    intermediate: int
    query_width: int
    key_width: int
    heads: int
    vocabulary: int
    linears: int
    last_linears: int
    embeddings: int
    tied: bool
    projector: int
    tower_parameters: int
    tower_blocks: int
    tower_embedding: int
    tower_layers: int
    tower_width: int
    patches: int
    token_pixels: int
    image_tokens: int
    extra_patches: int

    @classmethod
    def of(cls, model: Any, name: str = "") -> Shape:
        """The shape of a model.

        Raises:
            InputError: for a model of an unknown family.
        """
        config = model.config
        family = family_of(config)
        text, vision = config.get_text_config(), config.vision_config
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        names = family.decoder_linears(model)
        merge = getattr(vision, "spatial_merge_size", 0)  # 0: every patch is a visual token
        side = vision.patch_size * (merge or 1)
        return cls(
            name=name or config.model_type,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            query_width=text.num_attention_heads * head_dim,
            key_width=text.num_key_value_heads * head_dim,
            heads=text.num_attention_heads,
            vocabulary=text.vocab_size,
            linears=_weights(model, names),
            last_linears=_weights(model, [name for name in names if name.endswith("down_proj")]),
            embeddings=model.get_input_embeddings().weight.numel(),
            tied=model.get_output_embeddings().weight is model.get_input_embeddings().weight,
            projector=sum(
                module.weight.numel()
                for name in family.projectors
                for module in model.get_submodule(name).modules()
                if isinstance(module, nn.Linear)
            ),
            **_tower_weights(model, family.tower_parameters(model)),
            tower_layers=getattr(vision, "depth", None) or vision.num_hidden_layers,
            tower_width=getattr(vision, "embed_dim", None) or vision.hidden_size,
            patches=merge**2 or 1,
            token_pixels=side**2,
            image_tokens=0 if merge else (vision.image_size // side) ** 2,
            extra_patches=0 if merge else 1,
        )

    @property
    def trained(self) -> int:
        """Weights that are trained: all but the frozen tower's."""
        return self.parameters - self.tower_parameters

    @property
    def head(self) -> int:
        """Weights of the vocabulary projection."""
        return self.vocabulary * self.hidden

    @property
    def root(self) -> int:
        """Trained weights outside the decoder's linears: embeddings, head, projector, norms."""
        return self.trained - self.linears

    @property
    def widest(self) -> int:
        """Weights of a layer's largest linear."""
        return self.intermediate * self.hidden

    def visual_tokens(self, pixels: float) -> float:
        """Visual tokens of an image of so many pixels."""
        return self.image_tokens or pixels // self.token_pixels

    def scales(self, group_size: int | str) -> int:
        """Learned scales of the fake-quantized decoder, one for a group of input features."""
        return self.linears // (self.hidden if group_size == "row" else int(group_size))


def _weights(model: Any, names: list[str]) -> int:
    return sum(model.get_submodule(name).weight.numel() for name in names)


def _tower_weights(model: Any, tower: Mapping[str, Any]) -> dict[str, int]:
    """Weights of the tower's parameters: all, the linears', and the patch embedding's."""

    def count(*kinds: type) -> int:
        return sum(
            parameter.numel()
            for name, parameter in tower.items()
            if name.endswith(".weight")
            and isinstance(model.get_submodule(name.removesuffix(".weight")), kinds)
        )

    return {
        "tower_parameters": sum(parameter.numel() for parameter in tower.values()),
        "tower_blocks": count(nn.Linear),
        "tower_embedding": count(nn.Conv2d, nn.Conv3d),
    }


@dataclass(frozen=True)
class Load:
    """A micro-batch.

    Attributes:
        sequences: number of sequences.
        tokens: of a sequence, padding included.
        visual: tokens of a sequence that show its one image.
        supervised: tokens of a sequence that have a target.
    """

    sequences: int
    tokens: float
    visual: float
    supervised: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not math.isfinite(value) or value < 0:
                raise InputError(f"{field.name} is {value}; give a number of at least 0")
        if self.visual > self.tokens or self.supervised > self.tokens:
            raise InputError(
                f"{self.visual} visual and {self.supervised} supervised tokens do not fit in "
                f"{self.tokens}; correct the load"
            )

    @property
    def positions(self) -> float:
        return self.sequences * self.tokens

    @property
    def targets(self) -> float:
        return self.sequences * self.supervised


# --------------------------------------------------------------------------------------- operations


def forward_flops(shape: Shape, load: Load) -> dict[str, float]:
    """Operations of one forward pass of a micro-batch, by part.

    Returns:
        linears: 2 W a token (arXiv 2001.08361, section 2.1). attention: 4 S² d a layer and
        sequence, the causal half not taken off, which only some kernels do. head: 2 V d a
        supervised token. projector: 2 W a visual token. tower: 2 W a patch. tower_attention: 4 P² d
        a layer for an image of P patches.
    """
    patches = _patches(shape, load)
    return {
        "linears": 2 * shape.linears * load.positions,
        "attention": 4 * shape.layers * shape.query_width * load.tokens**2 * load.sequences,
        "head": 2 * shape.head * load.targets,
        "projector": 2 * shape.projector * load.visual * load.sequences,
        "tower": 2 * (shape.tower_blocks + shape.tower_embedding) * patches * load.sequences,
        "tower_attention": (
            4 * shape.tower_layers * shape.tower_width * patches**2 * load.sequences
        ),
    }


def _patches(shape: Shape, load: Load) -> float:
    """An image's positions in the tower."""
    return load.visual * shape.patches + (shape.extra_patches if load.visual else 0)


def step_flops(
    student: Shape,
    load: Load,
    *,
    teacher: Shape | None = None,
    relational: bool = False,
    quantized: bool = False,
    checkpointing: bool = False,
    attention: str = "fused",
) -> dict[str, float]:
    """Operations of a micro-batch of training, by part.

    Returns:
        forward: see `forward_flops`; the frozen tower has a forward pass alone. backward: a
        linear's is two products of its forward's size; that of attention two, and two and a half
        where a fused kernel makes the scores again (arXiv 2205.14135, appendix B). recompute: under
        gradient checkpointing every decoder layer once more; it stops at the last tensor that
        backward needs, which spares a plain linear's product at the end of a layer, but not a
        fake-quantized one's. teacher: its forward pass. rcka: the Gram matrices n² d of `cka`, and
        the student's once more for each of the two factors in backward.

    Raises:
        InputError: for an unknown attention.
    """
    if attention not in ATTENTIONS:
        raise InputError(f"attention {attention!r}: choose {' or '.join(ATTENTIONS)}")
    forward = forward_flops(student, load)
    trained = forward["linears"] + forward["head"] + forward["projector"]
    attended = 2.5 if attention == "fused" else 2.0
    flops = {
        "forward": sum(forward.values()),
        "backward": 2 * trained + forward["attention"] * attended,
        "recompute": 0.0,
        "teacher": 0.0,
        "rcka": 0.0,
    }
    if checkpointing:
        spared = 0 if quantized else 2 * student.last_linears * load.positions
        flops["recompute"] = forward["linears"] + forward["attention"] - spared
    if teacher is not None:
        flops["teacher"] = sum(forward_flops(teacher, load).values())
        if relational:
            image = _rcka_flops(load.visual, student.hidden, teacher.hidden)
            flops["rcka"] = load.sequences * image
    return flops


def _rcka_flops(tokens: float, student: int, teacher: int) -> float:
    by_token = tokens**2 * (student + teacher) + 2 * tokens**2 * student
    square = teacher**2 + teacher * student + student**2
    by_width = tokens * square + tokens * (teacher * student + 2 * student**2)
    few = tokens * (student + teacher) <= square
    return 2 * (by_token if few else by_width)


def traffic_bytes(
    student: Shape,
    load: Load,
    *,
    teacher: Shape | None = None,
    quantized: bool = False,
    checkpointing: bool = False,
    sequences_in_step: float = 0.0,
) -> dict[str, float]:
    """Bytes that the elementwise work of a micro-batch moves, by part; an upper bound, for nothing
    is taken to stay in a cache.

    Returns:
        fake_quant: every weight is quantized forward, in the recomputation, and in the walk that
        makes its gradient, whatever the number of tokens. vocabulary: passes over (N, V) of
        cross-entropy, gate and distillation, a read and a write of float32 each. optimizer: AdamW
        reads weight, gradient and two moments and writes three, once in a step of
        `sequences_in_step` sequences (0: left out).
    """
    traffic = {"fake_quant": 0.0, "vocabulary": 0.0, "optimizer": 0.0}
    if quantized:
        forwards = 2 if checkpointing else 1
        a_weight = forwards * QUANTIZE_BYTES + QUANTIZE_BACKWARD_BYTES
        traffic["fake_quant"] = student.linears * a_weight
    passes = CE_PASSES
    if teacher is not None:
        passes += 2 * GATE_PASSES + LOSS_PASSES + GRADIENT_PASSES
    traffic["vocabulary"] = 8 * passes * load.targets * student.vocabulary
    if sequences_in_step:
        traffic["optimizer"] = 28 * student.trained * load.sequences / sequences_in_step
    return traffic


# ------------------------------------------------------------------------------------------- memory


@dataclass(frozen=True)
class Precision:
    """How a run computes.

    Attributes:
        autocast: products in bfloat16; otherwise all in float32.
        optimizer: one of OPTIMIZERS.
        teacher_bits: 16, 8 or 4 for the teacher's decoder linears.
        teacher_dtype_bytes: of the teacher's other weights and of its outputs.
    """

    autocast: bool = True
    optimizer: str = "adamw_torch_fused"
    teacher_bits: int = 16
    teacher_dtype_bytes: int = 2

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise InputError(f"optimizer {self.optimizer!r}: choose of {', '.join(OPTIMIZERS)}")
        if self.teacher_bits not in TEACHER_BYTES:
            known = ", ".join(map(str, TEACHER_BYTES))
            raise InputError(f"teacher_bits is {self.teacher_bits}; choose of {known}")

    @property
    def bytes(self) -> int:
        """Of an operand of a product."""
        return 2 if self.autocast else 4


def teacher_bytes(teacher: Shape, precision: Precision) -> float:
    """Bytes of the frozen teacher's weights on a rank that holds all of them."""
    other = (teacher.parameters - teacher.linears) * precision.teacher_dtype_bytes
    if precision.teacher_bits == 16:
        return teacher.linears * precision.teacher_dtype_bytes + other
    return teacher.linears * TEACHER_BYTES[precision.teacher_bits] + other


def state_bytes(
    shape: Shape,
    *,
    scales: int = 0,
    wrapper: str = "single",
    ranks: int = 1,
    precision: Precision | None = None,
) -> dict[str, float]:
    """Bytes per rank of weights, gradients, optimizer state and, as communication, what a wrapper
    adds.

    single: float32 weights (the frozen tower's too), gradients and moments, the scales like any
    weight. ddp: the same, and a second copy of the gradients in its buckets (its default). fsdp2:
    all sharded; gathered are embeddings, head, projector and tower, which stay for the whole step,
    and two decoder layers (one computes while the next arrives), the trained ones beside their
    unsharded gradients. zero2: bfloat16 weights on every rank, float32 master weights, gradients
    and moments sharded (arXiv 1910.02054, section 5), and a bucket of 5e8 values twice (DeepSpeed's
    default). zero3: bfloat16 weights sharded as well, gathered layers as above. Gathered weights
    are float32: the scales may not be cast, see `FakeQuantLinear`.

    Raises:
        InputError: for an unknown wrapper, or a number of ranks that it cannot have.
    """
    precision = precision or Precision()
    if wrapper not in WRAPPERS:
        raise InputError(f"wrapper {wrapper!r}: choose of {', '.join(WRAPPERS)}")
    if ranks < 1 or (wrapper == "single" and ranks != 1):
        raise InputError(f"{ranks} ranks under {wrapper}: give at least 1, and 1 where single")
    trained = shape.trained + scales
    every = shape.parameters + scales
    layer = (shape.linears + scales) / shape.layers
    moments = trained * OPTIMIZERS[precision.optimizer]
    if wrapper in ("single", "ddp"):
        return {
            "weights": every * WEIGHT_BYTES,
            "gradients": trained * WEIGHT_BYTES,
            "optimizer": moments,
            "communication": trained * WEIGHT_BYTES if wrapper == "ddp" else 0.0,
        }
    gathered = (shape.root + shape.tower_parameters + 2 * layer) * WEIGHT_BYTES
    gathered += (shape.root + 2 * layer) * WEIGHT_BYTES  # and their gradients
    if wrapper == "fsdp2":
        return {
            "weights": every * WEIGHT_BYTES / ranks,
            "gradients": trained * WEIGHT_BYTES / ranks,
            "optimizer": moments / ranks,
            "communication": gathered if ranks > 1 else 0.0,
        }
    weights = every * 2 if wrapper == "zero2" else every * 2 / ranks
    communication = 2 * min(5e8, trained) * 2 if wrapper == "zero2" else gathered / 2
    return {
        "weights": weights,
        "gradients": trained * WEIGHT_BYTES / ranks,
        "optimizer": (moments + trained * WEIGHT_BYTES) / ranks,
        "communication": communication if ranks > 1 else 0.0,
    }


def layer_bytes(
    shape: Shape, load: Load, *, autocast: bool, attention: str = "fused", bias: bool = False
) -> float:
    """Bytes that one decoder layer keeps of a micro-batch for its backward pass.

    A token, with d = hidden, I = intermediate, q and k the widths of queries and keys. Under
    autocast the residual stream and the norms are float32, and every linear casts its input for
    itself: two norms keep their input and the normalised value (16 d), the casts of the inputs of
    q, k, v (6 d) and of gate, up (4 d), queries, keys, values and attention's output in bfloat16
    (4 q + 4 k), SiLU's and the product's operands and the input of down (8 I). Without autocast
    the norms' outputs are shared by the linears (24 d), and the rest is float32 (8 q + 8 k + 16 I).
    Eager attention keeps its softmax in float32 and as an operand, and repeats keys and values for
    every query head: S times heads (6 or 8 bytes; 4 without a cast) and 4 (q − k) or 8 (q − k).
    """
    wide, other = (26, 4) if autocast else (24, 8)
    a_token: float = wide * shape.hidden + 2 * other * shape.intermediate
    a_token += other * (shape.query_width + shape.key_width)
    if attention == "eager":
        a_token += (6 if autocast else 4) * load.tokens * shape.heads
        a_token += other * (shape.query_width - shape.key_width)
    return a_token * load.positions


def vocabulary_bytes(shape: Shape, load: Load, *, distilled: bool, autocast: bool) -> float:
    """Bytes of (N, V) tensors alive at the height of a backward pass.

    Cross-entropy keeps log-probabilities and makes two gradients of their size (12), distillation
    keeps its gradient in the logits' dtype (2 under autocast, else 4), and under autocast the sum
    is cast (2). The workspace of the chunked loss comes on top.
    """
    a_value = 12 + (2 if autocast else 0)
    if distilled:
        a_value += 2 if autocast else 4
    values = load.targets * shape.vocabulary
    workspace = min(WORKSPACE_BYTES, 4 * BUFFERS * values) if distilled else 0
    return a_value * values + workspace


def teacher_outputs_bytes(
    teacher: Shape, load: Load, *, accumulation: int, relational: bool, dtype_bytes: int = 2
) -> dict[str, float]:
    """Bytes of the teacher's answers to an optimizer step's micro-batches, which wait for the
    student all at once: logits (N, V) and, for RCKA, hidden states (B, S, d)."""
    logits = dtype_bytes * load.targets * teacher.vocabulary * accumulation
    hidden = dtype_bytes * load.positions * teacher.hidden * accumulation if relational else 0.0
    return {"logits": logits, "hidden": hidden}


def rank_memory(
    student: Shape,
    load: Load,
    *,
    quantized: bool,
    group_size: int | str = 128,
    teacher: Shape | None = None,
    relational: bool = False,
    checkpointing: bool = True,
    accumulation: int = 1,
    wrapper: str = "single",
    ranks: int = 1,
    teacher_sharded: bool = False,
    precision: Precision | None = None,
    attention: str = "fused",
) -> dict[str, float]:
    """Peak bytes on a rank, by part; `peak` is not their sum where parts do not meet.

    Returns:
        weights, gradients, optimizer and communication: see `state_bytes`. activations: of all
        layers, or under checkpointing the layers' inputs and one layer made again. casts: bfloat16
        copies that autocast makes of trained weights. vocabulary, teacher and teacher_outputs: see
        the functions. peak: reached when the loss is differentiated (all activations, the
        vocabulary), or in a layer's recomputation. With one micro-batch a step the gradients are
        not there yet at the first of these; with more they are.
    """
    precision = precision or Precision()
    memory = state_bytes(
        student,
        scales=student.scales(group_size) if quantized else 0,
        wrapper=wrapper,
        ranks=ranks,
        precision=precision,
    )
    kept = layer_bytes(student, load, autocast=precision.autocast, attention=attention)
    inputs = student.layers * 4 * student.hidden * load.positions
    memory["activations"] = inputs + kept if checkpointing else student.layers * kept
    memory["casts"] = _cast_bytes(student, quantized, wrapper) if precision.autocast else 0.0
    memory["vocabulary"] = vocabulary_bytes(
        student, load, distilled=teacher is not None, autocast=precision.autocast
    )
    memory["teacher"] = memory["teacher_outputs"] = 0.0
    if teacher is not None:
        memory["teacher"] = teacher_bytes(teacher, precision) / (ranks if teacher_sharded else 1)
        outputs = teacher_outputs_bytes(
            teacher,
            load,
            accumulation=accumulation,
            relational=relational,
            dtype_bytes=precision.teacher_dtype_bytes,
        )
        memory["teacher_outputs"] = sum(outputs.values())
    always = ("weights", "optimizer", "communication", "teacher", "teacher_outputs", "casts")
    saved = inputs if checkpointing else memory["activations"]
    at_loss = saved + memory["vocabulary"] + (memory["gradients"] if accumulation > 1 else 0.0)
    in_layer = memory["activations"] + memory["gradients"]
    memory["peak"] = sum(memory[part] for part in always) + max(at_loss, in_layer)
    return memory


def _cast_bytes(student: Shape, quantized: bool, wrapper: str) -> float:
    """Copies of the head and, at 16 bits, of the decoder too; a fake-quantized linear makes one at
    a time."""
    decoder = 2.0 * student.widest if quantized else 2.0 * student.linears
    if wrapper in ("fsdp2", "zero3"):
        decoder = min(decoder, 4 * student.linears / student.layers)
    return 2 * student.head + decoder


# --------------------------------------------------------------------------------------------- time


def training_seconds(
    student: Shape,
    load: Load,
    samples: float,
    device: Device,
    *,
    batch: float,
    teacher: Shape | None = None,
    relational: bool = False,
    quantized: bool = False,
    checkpointing: bool = True,
) -> float:
    """Device-seconds of a training run over `samples` sequences: seconds of a micro-batch times
    samples / sequences. Divided by the number of devices it is the duration, but for waiting."""
    flops = sum(
        step_flops(
            student,
            load,
            teacher=teacher,
            relational=relational,
            quantized=quantized,
            checkpointing=checkpointing,
        ).values()
    )
    traffic = sum(
        traffic_bytes(
            student,
            load,
            teacher=teacher,
            quantized=quantized,
            checkpointing=checkpointing,
            sequences_in_step=batch,
        ).values()
    )
    return device.seconds(flops, traffic) * samples / load.sequences


def answering_seconds(
    shape: Shape, load: Load, questions: float, new_tokens: float, device: Device
) -> float:
    """Device-seconds of answering questions greedily: reading the prompts at the device's rate, and
    for each new token of a batch one pass over the bfloat16 weights."""
    reading = device.seconds(sum(forward_flops(shape, load).values())) / load.sequences
    writing = new_tokens * 2 * shape.parameters / device.bandwidth / load.sequences
    return questions * (reading + writing)
