"""Why a template cannot be used, and where."""

from __future__ import annotations

from storage.errors import BadInputError


class TemplateError(BadInputError):
    """A template, or a wildcard file that it names, cannot be used.

    Attributes:
        reason: one sentence that says what to do, without the template's column (as `Problem.reason`).
        column: of the template, from 1; where a wildcard file is wrong, that of the wildcard; None where it
            is the whole template.
    """

    def __init__(self, reason: str, column: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.column = column

    def __str__(self) -> str:
        if self.column is None:
            return self.reason[:1].upper() + self.reason[1:]
        return f"Column {self.column}: {self.reason}"
