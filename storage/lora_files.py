"""Where a worker's LoRAs are: `NAME=PATH`, from its own command line or configuration, never from a job."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from storage.errors import BadInputError, ModelLoadError
from storage.loras import check_lora_name

SUFFIX = ".safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraReference:
    """A LoRA's name and its file.

    Attributes:
        name: what jobs call it.
        path: absolute, of a safetensors file.
    """

    name: str
    path: str

    def __str__(self) -> str:
        """Render back to `NAME=PATH`."""
        return f"{self.name}={self.path}"

    @property
    def origin(self) -> str:
        """Where its file is, with size and time: another one differs."""
        try:
            found = Path(self.path).stat()
        except OSError:  # the worker, which needs it, says what is wrong with it
            return self.path
        return f"{self.path} {found.st_size} {found.st_mtime_ns}"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraFacts:
    """What tells one LoRA file from another.

    Attributes:
        sha256: over the file's bytes: its revision.
        short_hash: the first 12 digits of the sha256 over what follows the header, as infotext has it: it
            stays the same when somebody edits the file's metadata (A1111 calls it AutoV3).
    """

    sha256: str
    short_hash: str


def parse_lora_file(text: str) -> LoraReference:
    """Read `NAME=PATH`; a path alone derives NAME from the file's.

    Raises:
        BadInputError: when the text names no safetensors file, or the name cannot be used.
    """
    name, equals, path = text.partition("=")
    if not equals:
        name, path = "", text
    if not path.strip().lower().endswith(SUFFIX):
        raise BadInputError(
            f"LoRA {text!r} names no safetensors file; write NAME=PATH{SUFFIX} (other formats can run "
            f"foreign code, so they are not read)."
        )
    found = os.path.abspath(os.path.expanduser(path.strip()))  # noqa: PTH100, PTH111 - leaves ~nobody alone
    return LoraReference(name=check_lora_name(name.strip() or Path(found).stem), path=found)


def lora_files(configured: Iterable[str], named: Iterable[str] = ()) -> dict[str, LoraReference]:
    """Return the LoRAs of a worker by name; what its command line names beats what is configured.

    Raises:
        BadInputError: when one cannot be read, or the same list names two files by one name.
    """
    found: dict[str, LoraReference] = {}
    for texts in (configured, named):
        own: dict[str, LoraReference] = {}
        for reference in map(parse_lora_file, texts):
            if own.setdefault(reference.name, reference) != reference:
                raise BadInputError(
                    f"LoRA {reference.name} is {own[reference.name].path} and {reference.path}; give one of "
                    f"them another name."
                )
        found |= own
    return found


def check_lora_file(reference: LoraReference) -> None:
    """Raise ModelLoadError if there is no such file."""
    path = Path(reference.path)
    if not path.is_file():
        hint = (
            "that is a folder; name the file in it" if path.is_dir() else "there is nothing; check the path"
        )
        raise ModelLoadError(f"LoRA {reference.name}: at {reference.path} {hint}.")


def lora_facts(path: Path) -> LoraFacts:
    """Hash a safetensors file, piece by piece.

    Raises:
        OSError: when it cannot be read.
    """
    with path.open("rb") as file:
        whole = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        file.seek(8 + int.from_bytes(file.read(8), "little"))  # the header's length, then the header
        return LoraFacts(sha256=whole, short_hash=hashlib.file_digest(file, "sha256").hexdigest()[:12])
