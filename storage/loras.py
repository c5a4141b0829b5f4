"""Which LoRAs a job is rendered with: names and weights, as options, columns, sweeps and prompts write them.

    --lora style:0.8 --lora sketch          a column `lora`: style:0.8, sketch          <lora:style:0.8>

A job keeps them as `options["loras"]`, a list of [name, weight] by name; equal sets are equal lists. Where a
name's file is, only workers know (`storage.lora_files`): a job can name a LoRA, and never a path.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from storage.errors import BadInputError

MAX_LORAS = 16  # of one job
MAX_WEIGHT = 10.0  # either sign
DEFAULT_WEIGHT = 1.0
OPTION = "loras"  # in a job's options, in a worker's defaults and in a numerics record

LoraSet = tuple[tuple[str, float], ...]  # by name; () is the model as it is

_NAME = re.compile(r"\w(?:[\w .+()-]{0,98}[\w.+()-])?")
_OPENING = re.compile("<lora:", re.IGNORECASE)
_TAG = re.compile("<lora:([^<>]*)>", re.IGNORECASE)
_CLOSING = " \t\r\n,.;:!?)]}"  # what follows a word without a blank, or is one


def check_lora_name(name: str) -> str:
    """Return `name` if it can name a LoRA, else raise BadInputError."""
    if not _NAME.fullmatch(name):
        raise BadInputError(
            f"{name[:60]!r} cannot name a LoRA; use up to 100 letters, digits, blanks and . _ + - ( ), "
            f"beginning with a letter or digit."
        )
    return name


def parse_lora(text: str) -> tuple[str, float]:
    """Read `NAME:WEIGHT`, or `NAME`, which weighs 1.

    Raises:
        BadInputError: for what is no name, or a weight that is no number from -10 to 10.
    """
    name, colon, weight = (part.strip() for part in text.partition(":"))
    check_lora_name(name)
    if not colon:
        return name, DEFAULT_WEIGHT
    try:
        number = float(weight)
    except ValueError:
        more = "it has one weight, for UNet and text encoder alike" if ":" in weight else "that is no number"
        raise BadInputError(
            f"LoRA {name} has the weight {weight[:40]!r}, and {more}; write {name}:0.8."
        ) from None
    return name, check_lora_weight(name, number)


def check_lora_weight(name: str, weight: float) -> float:
    """Return `weight` if it is from -10 to 10, else raise BadInputError."""
    if not -MAX_WEIGHT <= weight <= MAX_WEIGHT:  # false for NaN as well
        raise BadInputError(
            f"LoRA {name} has the weight {weight:g}; choose one from {-MAX_WEIGHT:g} to {MAX_WEIGHT:g}."
        )
    return weight


def parse_loras(text: str) -> list[list[Any]]:
    """Read `NAME:WEIGHT, NAME:WEIGHT`; an empty text is the model as it is.

    Returns:
        What a job keeps.

    Raises:
        BadInputError: see `parse_lora` and `lora_list`.
    """
    return lora_list(parse_lora(part) for part in text.split(",")) if text.strip() else []


def lora_list(pairs: Iterable[tuple[str, float]]) -> list[list[Any]]:
    """Return what a job keeps of names and weights: by name, those that weigh 0 left out.

    Raises:
        BadInputError: when a name is there twice, or there are too many.
    """
    found: dict[str, float] = {}
    for name, weight in pairs:
        if name in found:
            raise BadInputError(f"LoRA {name} is named twice; give it one weight.")
        found[name] = float(weight)
    if len(found) > MAX_LORAS:
        raise BadInputError(f"These are {len(found)} LoRAs; a job can have at most {MAX_LORAS}.")
    return [[name, weight] for name, weight in sorted(found.items()) if weight]


def check_loras(value: Any) -> None:
    """Raise BadInputError if `value` is not what `lora_list` makes."""
    try:
        pairs = [(check_lora_name(name), check_lora_weight(name, weight)) for name, weight in value]
        right = lora_list(pairs)
    except (TypeError, ValueError):
        right = None
    if right is None or [list(pair) for pair in value] != right:
        raise BadInputError(f"loras {str(value)[:80]} is no list of [NAME, WEIGHT] that is sorted by name.")


def lora_set(options: Mapping[str, Any]) -> LoraSet:
    """Return the LoRAs that a job's options ask for."""
    return tuple((name, float(weight)) for name, weight in options.get(OPTION, ()))


def shown_loras(value: Sequence[Sequence[Any]]) -> str:
    """Write what a job keeps as users do: `sketch, style:0.8`."""
    return ", ".join(name if weight == 1 else f"{name}:{written_weight(weight)}" for name, weight in value)


def told_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job's options as tables and exports have them: LoRAs as text, since no table holds pairs."""
    found = dict(options)
    return found | ({OPTION: shown_loras(found[OPTION])} if OPTION in found else {})


def written_weight(weight: float) -> str:
    """Write a weight the way people do (1, not 1.0) without losing a digit."""
    return repr(float(weight)).removesuffix(".0")


def take_tags(prompt: str) -> tuple[str, list[tuple[str, float]]]:
    """Take each `<lora:NAME:WEIGHT>` out of a prompt, with the blank that it leaves behind.

    Returns:
        The prompt without them, and what they name; weights of 0 too.

    Raises:
        BadInputError: for one that cannot be read, with its place.
    """
    pieces: list[str] = []
    pairs: list[tuple[str, float]] = []
    end = 0
    for opening in _OPENING.finditer(prompt):
        start = opening.start()
        pairs.append(_read_tag(prompt, start))
        piece, end = prompt[end:start], prompt.index(">", start) + 1
        pieces.append(piece.rstrip() if end == len(prompt) or prompt[end] in _CLOSING else piece)
    if not pairs:
        return prompt, []
    return "".join([*pieces, prompt[end:]]).strip(), pairs


def _read_tag(prompt: str, start: int) -> tuple[str, float]:
    tag = _TAG.match(prompt, start)
    if tag is None:
        raise BadInputError(
            f"The <lora: at character {start + 1} of the prompt has no end; write <lora:NAME:WEIGHT>."
        )
    try:
        return parse_lora(tag[1])
    except BadInputError as error:
        raise BadInputError(f"{tag[0][:60]!r} at character {start + 1} of the prompt: {error}") from error


def has_tag(text: str) -> bool:
    """Whether a text names a LoRA as prompts do."""
    return _OPENING.search(text) is not None


def write_tags(options: Mapping[str, Any]) -> str:
    """Return what A1111 writes behind a prompt for a job's LoRAs; "" for none."""
    return "".join(f" <lora:{name}:{written_weight(weight)}>" for name, weight in lora_set(options))


def published_loras(defaults: Mapping[str, Any]) -> dict[str, str]:
    """Return the LoRAs that a worker has loaded, by name, with the sha256 of their files."""
    found = defaults.get(OPTION)
    return dict(found) if isinstance(found, dict) else {}


def no_such_lora(names: Iterable[str], known: Iterable[str]) -> str:
    """Say that nobody knows these LoRAs."""
    listed = ", ".join(sorted(known)) or "none"
    return (
        f"There is no LoRA {', '.join(sorted(names))} (known: {listed}); configure it in PROMPTMILL_LORAS, "
        f"or start a worker with --lora NAME=PATH first."
    )
