"""What errors say, for whoever asks over HTTP: without tracebacks, passwords and where files are here.

The command line shows it all: who uses that has the files. Of a path the last part stays, or what lies below
the home, the store or a model's folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from storage.browsing import JobPage
from storage.errors import BadInputError
from storage.lora_files import parse_lora_file
from storage.models import BUILTIN_MODEL, is_single_file, parse_model
from storage.records import Job, Status, Worker
from storage.settings import Settings

_FILE_URL = re.compile(r"\b(file|sqlite)://[^\s'\"]*?([^\s'\"/?#]*)(?:[?#][^\s'\"]*)?(?=['\"\s]|$)")
_URL = re.compile(r"\b([A-Za-z][\w+.-]*)://(?:[^\s/?#'\"]*@)?([^\s?#'\"]*)(?:[?#][^\s'\"]*)?")
_SECRET = re.compile(r"(?i)\b(\w*(?:password|passwd|secret|token))\s*=\s*[^\s,;]+")
_PATH = re.compile(r"(?<![\w/.…-])~?/(?:[^\s/'\"`:;,()<>]+/)+([^\s/'\"`:;,()<>]*)")


def discreet(text: str, folders: Iterable[Path] = ()) -> str:
    """Return a sentence without what concerns this machine alone.

    Args:
        text: the sentence.
        folders: that it may name, whatever characters they have: blanks end any other path.
    """
    for folder in sorted(folders, key=lambda one: len(one.parts), reverse=True):
        itself = rf"(?<![\w.…-]){re.escape(str(folder))}"
        text = re.sub(f"{itself}/", "…/", text)
        text = re.sub(itself, f"…/{folder.name}".replace("\\", r"\\"), text)
    text = _FILE_URL.sub(r"\1://…/\2", text)
    text = _URL.sub(r"\1://\2", text)
    text = _SECRET.sub(r"\1=…", text)
    return _PATH.sub(r"…/\1", text)


def folders_of(settings: Settings) -> list[Path]:
    """Return the folders that errors may name: the home, the store's, those of models and LoRAs.

    What is configured wrongly is left out: who uses it says so, and that sentence passes through here.
    """
    found = [settings.home]
    if settings.store_url:
        found.append(Path(settings.store_url.removeprefix("file://")))
    for text in (BUILTIN_MODEL, *settings.models):
        with suppress(BadInputError):
            model = parse_model(text)
            source = Path(model.source)
            found += [source.parent if is_single_file(model.source) else source, Path(model.config or "")]
    for text in settings.loras:
        with suppress(BadInputError):
            found.append(Path(parse_lora_file(text).path).parent)
    # A repo of the hub or a bucket is no folder, and the root is in every path.
    return [folder for folder in dict.fromkeys(found) if folder.is_absolute() and folder != folder.parent]


class Discretion:
    """Keeps what a record tells of this machine to itself.

    Args:
        folders: whose names are not told.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = tuple(folders)

    def text(self, text: str) -> str:
        """Return a sentence as others may read it."""
        return discreet(text, self._folders)

    def note(self, text: str | None) -> str | None:
        """Return a sentence, if there is one."""
        return None if text is None else self.text(text)

    def job(self, job: Job) -> Job:
        """Return a job with its error in words, and no more."""
        if not (job.error_message or job.traceback or job.warnings):
            return job
        return replace(
            job,
            error_message=self.note(job.error_message),
            traceback=None,
            warnings=[self.text(one) for one in job.warnings],
        )

    def page(self, page: JobPage) -> JobPage:
        """Return a page of such jobs."""
        return replace(page, jobs=[self.job(one) for one in page.jobs])

    def status(self, status: Status) -> Status:
        """Return how far a submission is."""
        if not (status.waiting_because or status.submission.note):
            return status
        submission = replace(status.submission, note=self.note(status.submission.note))
        return replace(status, submission=submission, waiting_because=self.note(status.waiting_because))

    def worker(self, worker: Worker) -> Worker:
        """Return a worker."""
        return replace(worker, note=self.note(worker.note)) if worker.note else worker
