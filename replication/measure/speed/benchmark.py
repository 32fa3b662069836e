"""All variants side by side: a fresh process for each, results kept as they come, one report.

    <out>/parts/<model>/<variant>.json    one variant; a run that is interrupted goes on after it
    <out>/deploy.json                     all of them, with provenance

A part is measured again when anything that decides it has changed: its architecture, the settings,
the code, torch, transformers or the device.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grace.errors import InputError
from replication.base import provenance
from replication.base.code import code_hash
from replication.base.files import read_json, write_json_atomic
from replication.measure.speed.measure import Settings
from replication.measure.speed.variants import Variant
from replication.plan.architectures import Architecture
from replication.results.deployment import BASELINE, RESULT

MODELS = ("llava-1.5-7b",)
DEFAULT_VARIANTS = (BASELINE, "int4")
LIBRARIES = ("torch", "transformers", "bitsandbytes", "torchao")


def run(
    models: Sequence[Architecture],
    variants: Sequence[Variant],
    settings: Settings,
    out: str | Path,
    *,
    command: str,
    evidence: str = "measured",
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure what is missing, and write and return <out>/deploy.json.

    evidence: "measured" here and now, or "recorded": on another device, to be kept as such.
    say: is told what happens.

    Raises InputError where there is nothing to measure, and where BF16 or a variant of our own
    fails; a peer that fails is not run, with its error as the reason.
    """
    out = Path(out)
    if evidence not in ("measured", "recorded"):
        raise InputError(f"evidence {evidence!r}: choose measured or recorded")
    if not models or not variants:
        raise InputError("nothing to measure: name a model and a variant")
    found: dict[str, Any] = {}
    for one in models:
        parts: dict[str, Any] = {}
        for way in variants:
            path = out / "parts" / one.name / f"{way.name}.json"
            key = part_key(one, way.name, settings)
            part = _kept(path, key)
            if part is None:
                say(f"{one.name}, {way.label}: measuring")
                part = {"key": key, **_in_a_process(one, way, settings, path)}
                write_json_atomic(path, part)
            else:
                say(f"{one.name}, {way.label}: kept")
            kept = {k: v for k, v in part.items() if k != "key"}
            parts[way.name] = {"label": way.label, **kept}
        found[one.name] = {
            "repository": one.repository,
            "parameters": one.parameters if settings.layers is None else None,
            "variants": parts,
        }
    report = {
        "name": "deploy",
        "evidence": evidence,
        "settings": settings.to_dict(),
        "device": _device(settings),
        "models": found,
        "provenance": provenance.collect(
            {
                "models": [one.name for one in models],
                "variants": [way.name for way in variants],
                "settings": settings.to_dict(),
            },
            [settings.seed],
            command,
            device=_device(settings),
            extra={"libraries": provenance.library_versions(LIBRARIES), "code": _code_hash()},
        ),
    }
    write_json_atomic(out / RESULT, report)
    return report


def part_key(architecture: Architecture, name: str, settings: Settings) -> str:
    """What decides a part, as one hash."""
    return provenance.params_hash(
        {
            "architecture": dict(architecture.values),
            "image": dict(architecture.image),
            "variant": name,
            "settings": settings.to_dict(),
            "code": _code_hash(),
            "libraries": provenance.library_versions(LIBRARIES),
            "device": _device(settings),
        }
    )


def _device(settings: Settings) -> str:
    if settings.torch_device().type == "cuda":
        return provenance.device_description()
    return provenance.cpu_description()


def _code_hash() -> str:
    return code_hash("replication.measure.speed.process")


def _kept(path: Path, key: str) -> dict[str, Any] | None:
    """A part that is still what it would be, or None. One that was not run is tried again."""
    if not path.exists():
        return None
    try:
        part = read_json(path)
    except InputError:
        return None  # damaged: measured again
    current = isinstance(part, dict) and part.get("key") == key and "not_run" not in part
    return part if current else None


def _in_a_process(
    model: Architecture, way: Variant, settings: Settings, path: Path
) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    result = path.with_suffix(".new")
    job = {
        "model": asdict(model),
        "variant": way.name,
        "settings": settings.to_dict(),
        "out": str(result),
    }
    root = Path(__file__).resolve().parents[3]
    # allocator settings that keep freed memory would be measured as the model's
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    environment = {
        **inherited,
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "replication.measure.speed.process", json.dumps(job)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            found: dict[str, Any] = read_json(result)
            return found
    finally:
        result.unlink(missing_ok=True)
    lines = done.stderr.strip().splitlines()
    reason = lines[-1][:300] if lines else f"its process ended with {done.returncode}"
    if done.returncode < 0:
        reason = f"its process was ended by signal {-done.returncode} (out of memory?)"
    if way.ours or way.name == BASELINE:
        raise InputError(f"{model.name}, {way.name}: {reason}")
    return {"not_run": reason}


def settings_from(values: Mapping[str, Any]) -> Settings:
    """Settings from what `Settings.to_dict` gives, or from parameters of these names."""
    known = Settings.__dataclass_fields__
    for name in values:
        if name not in known:
            raise InputError(f"unknown setting {name!r}: choose of {', '.join(known)}")
    given = dict(values)
    if "batches" in given:
        given["batches"] = tuple(given["batches"])
    return Settings(**given)
