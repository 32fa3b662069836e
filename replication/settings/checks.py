"""Reading of ``params.yaml``: its fields, and everything that has to go together.

    params = load_params()

The checks look into registries of other packages (benchmarks, methods, model families). They may
refuse a file and never change a value, so that no stage's code hash includes this module.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from graphlib import CycleError
from pathlib import Path
from typing import Any

from grace.distillation import DistillationConfig
from grace.errors import InputError, one_line
from grace.files import read_yaml
from grace.models import family_of
from grace.quantization import QuantSpec
from grace.training import METHODS, TEACHER_METHODS
from replication.base.messages import unknown
from replication.base.scales import FULL_SCALE
from replication.base.validation import validate
from replication.benchmarks import BENCHMARKS
from replication.settings.ptq_methods import check_method
from replication.settings.schema import (
    ALIGNMENT,
    KINDS,
    LANGUAGE_FAMILY,
    PARAMS_FILE,
    REDUCED_ONLY,
    REGIMES,
    Group,
    Params,
    Run,
    section,
)

_QUANTIZE = ("qat", "qad")


def load_params(path: str | Path = PARAMS_FILE) -> Params:
    """Read and check a parameter file.

    Raises:
        InputError: in one line that names the file, the key, the value and the mend.
    """
    return parse_params(read_yaml(path), str(path))


def parse_params(content: dict[str, Any], source: str = "params") -> Params:
    """Check a mapping and make it :class:`replication.settings.schema.Params`.

    Args:
        content: what a parameter file holds.
        source: what it is, for error messages.

    Raises:
        InputError: in one line that names the source, the key, the value and the mend.
    """
    params = validate(Params, content, source)
    for message in itertools.chain.from_iterable(check(params) for check in _CHECKS):
        raise InputError(f"{source}: {message}")
    return params


def check_architectures(params: Params) -> None:
    """Check every key that describes a model against transformers' own configuration classes.

    Apart from :func:`parse_params` because it imports transformers.

    Raises:
        InputError: naming the section and the key.
    """
    from transformers import AutoConfig

    parts: list[tuple[str, dict[str, Any], Any]] = []
    towers = section(params.vision, "vision")
    for name, pair in params.pairs.items():
        config = AutoConfig.for_model(family_of(pair.family).model_type)
        for kind in KINDS:
            text = params.settings_of(name, kind).text
            parts.append((f"{kind}.{name}.text", text, config.get_text_config()))
        if name in towers:
            parts.append((f"vision.{name}.config", towers[name].config, config.vision_config))
    for where, values, known in parts:
        names = [entry.name for entry in dataclasses.fields(known)]
        for key in values:
            if key not in names:
                raise InputError(unknown(f"{where}: key {key!r}", key, names))
        try:
            type(known)(**values)
        except Exception as error:  # the library's own validation errors have no common base
            raise InputError(
                f"{where} makes no {type(known).__name__}: {one_line(error)}"
            ) from error


# --- checks: each yields what is wrong, and is not asked for more than the first ------------------


def _sections(params: Params) -> Iterator[str]:
    full, reduced = ["data"], list(REDUCED_ONLY)
    required, refused = (full, reduced) if params.scale == FULL_SCALE else (reduced, full)
    for name in required:
        if getattr(params, name) is None:
            yield f"scale {params.scale} needs the section {name!r}; add it"
    for name in refused:
        if getattr(params, name) is not None:
            yield f"scale {params.scale} takes no section {name!r}; remove it"


def _pairs(params: Params) -> Iterator[str]:
    yield from _once("families", params.families)
    for family in params.families:
        if fault := _fault(family_of, family):
            yield f"families: {fault}"
        if family not in params.pairs or params.pairs[family].family != family:
            yield f"pairs lacks {family!r}, the first pair of that family; add it"
    for name, pair in params.pairs.items():
        yield from _name("pairs", name, ["language", ALIGNMENT, REGIMES])
        if pair.family not in params.families:
            yield unknown(f"pairs.{name}.family {pair.family!r}", pair.family, params.families)
    sections: dict[str, Collection[str] | None] = {
        "teacher": params.teacher,
        "baseline": params.baseline,
        "methods": params.methods,
    }
    for section_name, pairs in sections.items():
        if pairs is not None and sorted(pairs) != sorted(params.pairs):
            yield (
                f"{section_name} names the pairs {', '.join(pairs)}, the section pairs names "
                f"{', '.join(params.pairs)}; name the same ones"
            )
    yield from _once("internals.families", params.internals.families, params.families)


def _starts(params: Params) -> Iterator[str]:
    for kind in KINDS:
        for name, settings in getattr(params, kind).items():
            where = f"{kind}.{name}"
            if settings.source is not None:
                continue
            if params.scale == FULL_SCALE:
                yield f"{where} lacks the key 'source', a published checkpoint; add it"
            if settings.steps < 1 or not settings.text:
                yield (
                    f"{where} has neither a 'source' nor 'steps' and 'text' to train it; give one "
                    "of them"
                )
    if params.scale == FULL_SCALE:
        return
    towers, aligned = section(params.vision, "vision"), section(params.alignment, ALIGNMENT).pairs
    if LANGUAGE_FAMILY not in towers:
        yield f"vision lacks {LANGUAGE_FAMILY!r}, whose words the language models have; add it"
    for name, pair in params.pairs.items():
        if pair.vision not in towers:
            yield unknown(f"pairs.{name}.vision {pair.vision!r}", pair.vision, towers)
        if pair.vision != name:
            lender = params.pairs.get(pair.vision or "")
            if lender is None or (lender.family, lender.world) != (pair.family, pair.world):
                yield (
                    f"pairs.{name}.vision {pair.vision!r} is of another family or world; choose a "
                    "pair of its own"
                )
        own = [f"{ALIGNMENT}/{pair.vision}"] if pair.vision in aligned else []
        others = [*own, *(other for other in params.pairs if other != name)]
        if pair.start not in others:
            yield unknown(f"pairs.{name}.start {pair.start!r}", pair.start, others)
    for name in aligned:
        if name not in towers:
            yield unknown(f"alignment.pairs {name!r}", name, towers)
    for name in towers:
        if name not in params.pairs:
            yield unknown(f"vision.{name}", name, params.pairs)


def _portions(params: Params) -> Iterator[str]:
    """Rows of the training conversations that are there, and labels that were written."""
    if params.standins is None:
        return
    asked = {f"methods.{name}": portion for name, portion in (params.methods or {}).items()}
    everything: dict[str, Any] = {
        **asked,
        **{f"{kind}.{n}": model for kind in KINDS for n, model in getattr(params, kind).items()},
        **{f"runs.{name}": group for name, group in params.runs.items()},
    }
    if params.regimes is not None:
        models = params.regimes.models
        everything |= {f"{REGIMES}.models.{name}": model for name, model in models.items()}
    total = params.standins.train
    for where, portion in everything.items():
        if portion.records is not None:
            first, end = portion.records
            if not first < end <= total:
                yield (
                    f"{where}.records is {portion.records}; give the first row and the one after "
                    f"the last, of {total} (standins.train)"
                )
        if portion.labels == "noisy" and params.standins.wrong_labels == 0:
            yield (
                f"{where}.labels is 'noisy' and standins.wrong_labels is 0; give a share of wrong "
                "answers, or clean labels"
            )


def _regimes(params: Params) -> Iterator[str]:
    regimes = params.regimes
    if regimes is None:
        return
    if regimes.pair not in params.pairs:
        yield unknown(f"{REGIMES}.pair {regimes.pair!r}", regimes.pair, params.pairs)
    for name in regimes.models:
        yield from _name(f"{REGIMES}.models", name, KINDS)


def _training(params: Params) -> Iterator[str]:
    train, launch = params.train, params.train.launch
    for name, chosen in params.coefficients.items():
        if fault := _fault(DistillationConfig.from_dict, chosen.distillation):
            yield f"coefficients.{name}.distillation: {fault}"
    if train.coefficients not in params.coefficients:
        yield unknown(
            f"train.coefficients {train.coefficients!r}", train.coefficients, params.coefficients
        )
    if (train.steps > 0) == (train.epochs is not None):
        yield (
            f"train.steps is {train.steps} and train.epochs is {train.epochs}; give exactly one of "
            "them"
        )
    if params.scale != FULL_SCALE:
        alone = {
            "train.epochs": (train.epochs, None),
            "train.devices": (train.devices, 1),
            "train.launch": (launch, None),
            "train.preset": (train.preset, None),
            "train.max_length": (train.max_length, None),
            "evaluate.processes": (params.evaluate.processes, 1),
        }
        for name, (value, default) in alone.items():
            if value != default:
                yield f"{name} is {value!r}; remove it, only scale {FULL_SCALE} takes it"
    if launch is None:
        return
    if launch.processes != train.devices:
        yield (
            f"train.launch.processes is {launch.processes} and train.devices is {train.devices}; "
            "an optimizer step counts on one process a device, so make them one number"
        )
    if launch.teacher_sharded and launch.teacher_bits != 16:
        yield (
            f"train.launch.teacher_sharded is for 16 bits, teacher_bits is {launch.teacher_bits}; "
            "choose one of the two"
        )


def _data(params: Params) -> Iterator[str]:
    if params.data is None:
        return
    training = params.data.training
    yield from _once("data.training.files", training.files)
    for name in training.folders:
        if not name or "/" in name or name in (".", ".."):
            yield (
                f"data.training.folders: {name!r} is no folder of images; use the first part of "
                "the paths in the annotation files, such as coco"
            )


def _groups(params: Params) -> Iterator[str]:
    """Folders and runs have names of their own: no folder that of a family or another folder, and
    no run that of another of its family."""
    folders = ["language", ALIGNMENT, REGIMES, *params.pairs]
    owners: dict[tuple[str, str], str] = {}
    sections: dict[str, Any] = {"runs": params.runs, "ptq.groups": params.ptq.groups}
    for section_name, groups in sections.items():
        for folder, group in groups.items():
            where = f"{section_name}.{folder}"
            yield from _name(section_name, folder, folders)
            folders.append(folder)
            known = [*params.pairs, *([REGIMES] if section_name == "runs" else [])]
            if group.pair not in known:
                yield unknown(f"{where}.pair {group.pair!r}", group.pair, known)
            if not group.models:
                yield f"{where}.models is empty; name at least one run"
            for name in group.models:
                yield from _name(f"{where}.models", name, KINDS)
                owner = owners.setdefault((params.owner_of(folder), name), folder)
                if owner != folder:
                    yield (
                        f"{where}.models.{name}: the pair {group.pair} has a run of this name "
                        f"in {owner}; choose another name"
                    )


def _cells(params: Params) -> Iterator[str]:
    """A group of the map says which teacher and baseline it has; another one cannot."""
    for folder, group in params.runs.items():
        where = f"runs.{folder}"
        if group.pair != REGIMES:
            for key in (*KINDS, "records", "labels"):
                if getattr(group, key) is not None:
                    yield f"{where} takes no key {key!r}; only groups of the pair {REGIMES} do"
            continue
        if params.regimes is None:
            yield f"{where}.pair is {REGIMES!r}, and there is no section of this name; add it"
        for kind in KINDS:
            yield from _cell_model(params, group, kind, where)


def _cell_model(params: Params, group: Group, kind: str, where: str) -> Iterator[str]:
    assert params.regimes is not None
    pair, further = params.regimes.pair, params.regimes.models
    known = [f"{pair}/{kind}", *(f"{REGIMES}/{n}" for n, m in further.items() if m.like == kind)]
    named = getattr(group, kind)
    if named not in known:
        yield unknown(f"{where}.{kind} {named!r}", named, known)


def _runs(params: Params) -> Iterator[str]:
    for folder, group in params.runs.items():
        for name, run in group.models.items():
            yield from _run(params, run, f"runs.{folder}.models.{name}")
        yield from _order(group, f"runs.{folder}.models")
        own = [name for name, run in group.models.items() if run.method == "qad"]
        kept = params.scale == FULL_SCALE or group.pair in params.teacher_outputs.baselines
        if own and not kept:
            yield (
                f"runs.{folder}.models.{own[0]}: method 'qad' is taught by the baseline; add "
                f"{group.pair!r} to teacher_outputs.baselines"
            )
    for name in params.teacher_outputs.baselines:
        if name not in params.pairs:
            yield unknown(f"teacher_outputs.baselines names {name!r}, which", name, params.pairs)


def _order(group: Group, where: str) -> Iterator[str]:
    """What a run starts from is there before it: a run of its group and seeds, at 16 bits."""
    for name, run in group.models.items():
        if run.start is None:
            continue
        if run.start not in group.models:
            yield unknown(f"{where}.{name}.start {run.start!r}", run.start, group.models)
        if run.method == "qad":
            yield f"{where}.{name}: method 'qad' starts from its teacher; remove the key 'start'"
        start = group.models[run.start]
        if start.bits != 16:
            yield (
                f"{where}.{name}.start {run.start!r} has {start.bits} bits; name a run of 16, "
                "whose weights are on no grid"
            )
        if missing := sorted(set(run.seeds) - set(start.seeds)):
            yield f"{where}.{name}.seeds: {run.start}, its start, lacks {missing}; add them there"
    try:
        group.rounds()
    except CycleError as error:
        yield f"{where}: {' and '.join(error.args[1])} start from each other; break the circle"


def _run(params: Params, run: Run, where: str) -> Iterator[str]:
    train = params.train
    yield from _once(f"{where}.seeds", run.seeds)
    if run.method not in METHODS:
        yield unknown(f"{where}.method {run.method!r}", run.method, METHODS)
    if (run.method == "sft" and run.bits != 16) or (run.method in _QUANTIZE and run.bits == 16):
        yield (
            f"{where}: method {run.method!r} at {run.bits} bits; sft is for 16, qat and qad are "
            "for fewer"
        )
    for key in ("coefficients", "distillation", "shuffled_teacher"):
        if getattr(run, key) and run.method not in TEACHER_METHODS:
            yield f"{where}: method {run.method!r} takes no key {key!r}; remove it"
    if run.group_size is not None and run.bits == 16:
        yield f"{where}: 16 bits have no groups; remove the key 'group_size'"
    name = run.coefficients or train.coefficients
    if name not in params.coefficients:
        yield unknown(f"{where}.coefficients {name!r}", name, params.coefficients)
    distillation = {**params.coefficients[name].distillation, **run.distillation}
    if fault := _fault(DistillationConfig.from_dict, distillation):
        yield f"{where}.distillation: {fault}"
    size = train.group_size if run.group_size is None else run.group_size
    if run.bits != 16 and (fault := _fault(QuantSpec, run.bits, size, train.init)):
        yield f"{where}: {fault}"


def _ptq(params: Params) -> Iterator[str]:
    for folder, group in params.ptq.groups.items():
        for name, model in group.models.items():
            if fault := _fault(check_method, model.method, model.bits, params.ptq.group_size):
                yield f"ptq.groups.{folder}.models.{name}: {fault}"


def _evaluation(params: Params) -> Iterator[str]:
    evaluated = params.evaluate.benchmarks
    for folder, names in evaluated.items():
        if folder not in params.folders:
            yield unknown(f"evaluate.benchmarks names {folder!r}, which", folder, params.folders)
        yield from _once(f"evaluate.benchmarks.{folder}", names, BENCHMARKS)
    if missing := [folder for folder in params.folders if folder not in evaluated]:
        yield f"evaluate.benchmarks lacks {', '.join(missing)}; say on what they are evaluated"


def _tuning(params: Params) -> Iterator[str]:
    tuning = params.tuning
    if tuning is None:
        return
    counts = {method: len(names) for method, names in tuning.candidates.items()}
    if len(set(counts.values())) != 1:
        yield (
            f"tuning.candidates: the methods have {counts} candidates; give each the same number"
        )
    if tuning.pairs:
        yield from _once("tuning.pairs", tuning.pairs, params.pairs)
    for pair in tuning.pairs:
        folder = f"{pair}_tuning"
        if folder not in params.runs or params.runs[folder].pair != pair:
            yield f"tuning.pairs names {pair!r}, and runs has no group {folder} of it; add one"
        for method, names in tuning.candidates.items():
            where = f"tuning.candidates.{method}"
            yield from _once(where, names)
            for name in names:
                yield from _candidate(params, pair, name, method, where)
        runs = [params.find_run(pair, n)[1] for names in tuning.candidates.values() for n in names]
        if len({(run.bits, run.seeds[0]) for run in runs}) > 1:
            yield f"tuning.candidates: runs of {pair} differ in bits or first seed; name equal ones"


def _candidate(params: Params, pair: str, name: str, method: str, where: str) -> Iterator[str]:
    groups = [group for group in params.runs.values() if group.pair == pair]
    known = {name for group in groups for name in group.models}
    if name not in known:
        yield unknown(f"{where}: {name!r}, a run of {pair}, which", name, sorted(known))
    run = params.find_run(pair, name)[1]
    if run.method != method:
        yield f"{where}: {name!r} has the method {run.method!r}; name runs of {method!r}"


def _internals(params: Params) -> Iterator[str]:
    samples, scenes = params.internals.samples, params.internals.scenes
    if samples < max(2, scenes):
        yield (
            f"internals.samples is {samples}; an interval needs at least 2, and of them the first "
            f"{scenes} (scenes) are shown"
        )


_CHECKS: tuple[Callable[[Params], Iterable[str]], ...] = (
    *(_sections, _pairs, _starts, _portions, _regimes, _training, _data, _groups, _cells, _runs),
    *(_ptq, _evaluation, _tuning, _internals),
)


def _once(where: str, values: list[Any], known: Collection[str] | None = None) -> Iterator[str]:
    """A list that names each thing once, and at least one."""
    if not values or len(set(values)) != len(values):
        yield f"{where} is {values}; name each once, and at least one"
    for value in values:
        if known is not None and value not in known:
            yield unknown(f"{where} names {value!r}, which", value, known)


def _name(where: str, name: str, taken: Collection[str]) -> Iterator[str]:
    if not re.fullmatch(r"[a-z0-9_]+", name) or name in taken:
        yield (
            f"{where}: {name!r} cannot be a name here; use a-z, 0-9 and _, and none of "
            f"{', '.join(taken)}"
        )


def _fault(function: Callable[..., Any], *arguments: Any) -> str | None:
    """What a function says of its arguments; None where it takes them."""
    try:
        function(*arguments)
    except (InputError, OverflowError) as error:
        return one_line(error)
    return None
