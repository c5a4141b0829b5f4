"""How a request can end other than with a picture."""

from __future__ import annotations

from storage.errors import PromptmillError


class EngineError(PromptmillError):
    """Base of everything that the engine puts into a request's future."""


class Cancelled(EngineError):  # noqa: N818 - an outcome that was asked for, not a fault
    """The request was cancelled; nothing of it is left in the engine."""


class Released(EngineError):  # noqa: N818 - an outcome that was asked for, not a fault
    """The engine drains or closes and gave the request back unrendered; another worker may take it."""


class RenderError(EngineError):
    """This request failed; its neighbours did not.

    Attributes:
        permanent: True when the same job would fail the same way again, so that retrying is pointless.
    """

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


class OutOfMemoryError(RenderError):
    """The device has too little memory for the lanes or the size that were asked for."""


class DeadlineError(RenderError):
    """The request took longer than a request may; it was dropped between two steps."""


class EngineDeadError(EngineError):
    """The device or the engine itself failed; the process has to be started again."""
