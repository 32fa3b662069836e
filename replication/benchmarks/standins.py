"""Stand-ins: questions of the small world in a benchmark's official schema."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from grace.files import file_sha256


@dataclass(frozen=True)
class Standins:
    """A file of stand-ins.

    Attributes:
        file: A parquet file in the schema of the official data set.
    """

    file: str

    @property
    def name(self) -> str:
        """What an error message calls it."""
        return self.file

    @property
    def place(self) -> str:
        """What is read."""
        return self.file

    @cached_property
    def digest(self) -> str:
        """Hash of the questions and their images."""
        return file_sha256(Path(self.file))
