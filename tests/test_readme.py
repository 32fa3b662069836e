"""The README's example runs as printed, on small models in place of the published ones."""

import re
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_example_runs(tmp_path, monkeypatch, make_model, processor, conversations):
    for name, model in {"2B": make_model(1), "7B": make_model(2, num_hidden_layers=3)}.items():
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    for name in ("2B", "7B"):
        code = code.replace(f"Qwen/Qwen2-VL-{name}-Instruct", str(tmp_path / name))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.parquet").write_bytes(conversations.read_bytes())

    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)

    assert names["codes_and_scales"]
    saved = AutoModelForImageTextToText.from_pretrained(tmp_path / "student-int4")
    for name, (codes, scales) in names["codes_and_scales"].items():
        assert codes.min() >= -8
        assert codes.max() <= 7
        exact = codes.cpu().float().unflatten(1, (scales.shape[1], -1)) * scales.cpu()[..., None]
        assert torch.equal(saved.get_submodule(name).weight.cpu(), exact.flatten(1)), name
