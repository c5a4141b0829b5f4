"""What was found in prompt lists that cannot be used: the first places to be shown, and the count of all."""

from __future__ import annotations

from producer.lines import Problem
from producer.output import count_of, printable, remark
from storage.errors import BadInputError

SHOWN_PROBLEMS = 20


class Problems:
    """Collects problems, and says them in one message.

    Attributes:
        count: how many.
    """

    def __init__(self) -> None:
        self.count = 0
        self._fatal = False
        self._shown: list[str] = []

    def add(self, problem: Problem) -> None:
        """Count a problem."""
        self.count += 1
        self._fatal = self._fatal or problem.line is None
        if self.count <= SHOWN_PROBLEMS:
            self._shown.append(printable(str(problem)))

    def settle(self, *, skip_bad: bool, left: int) -> None:
        """Warn of what is left out, or refuse everything.

        Args:
            skip_bad: whether lines may be left out; a whole file or an option never is.
            left: how many prompts there are without them.

        Raises:
            BadInputError: listing what cannot be used.
        """
        if self.count and (not skip_bad or self._fatal or not left):
            raise BadInputError(self._error())
        if self.count:
            remark(f"Warning: left out {count_of(self.count, 'place')} that cannot be used:")
            for text in self._listed():
                remark(text)

    def _error(self) -> str:
        """Say why nothing was written: in one sentence where there is one."""
        if self.count == 1:
            return self._shown[0]
        listed = "\n".join(self._listed())
        return f"{self.count:,} places cannot be used, so nothing was written:\n{listed}"

    def _listed(self) -> list[str]:
        more = self.count - len(self._shown)
        rest = [f"  … and {more:,} more."] if more else []
        return [f"  {text}" for text in self._shown] + rest
