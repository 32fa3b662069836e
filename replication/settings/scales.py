"""The parameters of a scale.

The committed ``params.yaml`` is that of scale small. Another scale has the same parameters with
some values replaced (``replication/settings/values/<scale>.yaml``).
"""

from pathlib import Path
from typing import Any

from grace.errors import InputError
from grace.files import read_yaml
from replication.base.files import ROOT
from replication.base.messages import unknown
from replication.base.scales import COMMITTED, check_scale
from replication.settings.checks import parse_params
from replication.settings.schema import PARAMS_FILE, PRESETS

VALUES = Path("replication") / "settings" / "values"
"""The folder of the scales' values, from the repository's root."""


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` on top, section by section; a value of None removes the key."""
    merged = dict(base)
    for key, value in changes.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            known = merged.get(key)
            merged[key] = merge(known if isinstance(known, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def scale_params(scale: str, root: Path = ROOT) -> dict[str, Any]:
    """The parameters of a scale: the committed ones, with the scale's changes.

    Where the changes name a preset of hyperparameters (``train.preset``), its values come between.

    Raises:
        InputError: for an unknown scale, or changes that give no valid parameters.
    """
    check_scale(scale)
    params = read_yaml(root / PARAMS_FILE)
    if scale != COMMITTED:
        changes = read_yaml(root / VALUES / f"{scale}.yaml")
        preset = (changes.get("train") or {}).get("preset")
        if preset is not None:
            if preset not in PRESETS:
                raise InputError(unknown(f"preset {preset!r}", preset, PRESETS))
            params = merge(params, read_yaml(root / VALUES / "presets" / f"{preset}.yaml"))
        params = merge(params, changes)
    parse_params(params, f"parameters of scale {scale}")
    return params
