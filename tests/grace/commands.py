"""The `grace` command in this process, and models for it on the disk."""

from grace.cli import main
from grace.quantization import QuantSpec, bake, prepare, write_codes


def save(small, path, seed=1, **text):
    """Write a small random model with its processor; the directory's name."""
    small.model(seed, **text).save_pretrained(path)
    small.processor.save_pretrained(path)
    return str(path)


def trained_directory(small, folder):
    """What `grace train` leaves, without the training; the directory's path."""
    model = small.model(seed=3)
    spec = QuantSpec(4, 64)
    prepare(model, spec)
    exact = bake(model)
    path = folder / "trained"
    model.save_pretrained(path)
    small.processor.save_pretrained(path)
    write_codes(path, exact, spec.to_dict())
    return path


def done(*words):
    """The command ends well."""
    assert main([str(word) for word in words]) == 0


def refused(capsys, *words):
    """The command ends with exit code 2 and one line, which is returned."""
    assert main([str(word) for word in words]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if "it/s]" not in line]  # no bars
    errors = [line for line in told if line.startswith("error: ")]
    assert errors == told[-1:]
    return errors[0]
