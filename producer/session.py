"""What a command needs of the rest of promptmill, opened on first use and closed at the end."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cached_property
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    # Slow to import, and `--help` needs none of it.
    from storage.imagestore import ImageStore
    from storage.jobstore import JobStore
    from storage.settings import Settings


class Session:
    """One run of the command line.

    Attributes:
        debug: whether errors show their traceback.
    """

    def __init__(self) -> None:
        self.debug = False
        self._open = ExitStack()

    @cached_property
    def settings(self) -> Settings:
        """The settings; BadInputError when one cannot be used."""
        from storage.settings import load_settings  # noqa: PLC0415  (slow; --help needs none)

        return load_settings()

    @cached_property
    def jobs(self) -> JobStore:
        """The job store; UnreachableError or SchemaError when it cannot be used."""
        from storage.stores import open_job_store  # noqa: PLC0415  (slow, likewise)

        store = open_job_store(self.settings)
        self._open.callback(store.close)
        return store

    @cached_property
    def images(self) -> ImageStore:
        """The picture store; UnreachableError when it cannot be used."""
        from storage.stores import open_image_store  # noqa: PLC0415  (slow, likewise)

        return open_image_store(self.settings)

    def close(self) -> None:
        """Close what was opened."""
        self._open.close()


pass_session = click.make_pass_decorator(Session, ensure=True)
