"""Which licence a model is under, as far as this machine knows: what the card beside its files says."""

from __future__ import annotations

import re
from pathlib import Path

from storage.models import ModelReference

CARD = "README.md"
_FRONT = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_FIELD = re.compile(r"^(license(?:_name)?):[ \t]*[\"']?([^\"'\n#]+?)[\"']?[ \t]*(?:#.*)?$", re.MULTILINE)
_MOST = 100_000  # characters of a card that are read


def licence_of(model: ModelReference | None) -> str | None:
    """Return the licence that a model's card names (https://huggingface.co/docs/hub/model-cards).

    Args:
        model: where it comes from; None where nobody on this machine can say.

    Returns:
        Such as `apache-2.0`; None where no card is here, or it names none.
    """
    card = None if model is None else _card(model)
    if card is None:
        return None
    try:
        text = card.read_text(encoding="utf-8", errors="replace")[:_MOST]
    except OSError:
        return None
    front = _FRONT.match(text.lstrip("\N{ZERO WIDTH NO-BREAK SPACE}"))
    fields = dict(_FIELD.findall(front[1])) if front else {}
    named: str | None = fields.get("license")
    return fields.get("license_name", named) if named == "other" else named


def _card(model: ModelReference) -> Path | None:
    folder = Path(model.source)
    if folder.is_absolute():
        return folder / CARD
    try:
        from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415  (an extra, and slow to import)
    except ImportError:
        return None
    found = try_to_load_from_cache(model.source, CARD, revision=model.revision)
    return Path(found) if isinstance(found, str) else None
