"""Settings: flag > environment (`PROMPTMILL_*`) > `promptmill.toml` (here, else in the home) > default."""

from __future__ import annotations

import errno
import json
import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from storage.errors import BadInputError, StoreFullError, UnreachableError

CONFIG_FILE = "promptmill.toml"
PREFIX = "PROMPTMILL_"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where things are kept and how long a silent worker is trusted.

    With nothing set, everything lies below `home`: a SQLite file, a folder of pictures and a private Redis.
    Not pydantic's: importing that takes longer than most commands have to do.

    Attributes:
        home: a folder.
        database_url, redis_url, store_url: None for what is embedded; a path of `store_url` is made absolute.
        lease: seconds without a heartbeat until a worker is declared dead, 3 or more.
        stall: seconds without an answer until a device hangs, 1 or more.
        deadline: seconds that one job's steps may take since it last began, 1 or more.
        models: each NAME=REPO_OR_PATH[@REVISION].
        loras: each NAME=PATH.

    Raises:
        BadInputError: naming the setting that cannot be used.
    """

    home: Path = field(default_factory=lambda: Path.home() / ".promptmill")
    # Not in a repr: they may hold passwords.
    database_url: str | None = field(default=None, repr=False)
    redis_url: str | None = field(default=None, repr=False)
    store_url: str | None = field(default=None, repr=False)
    lease: float = 30.0
    stall: float = 1800.0
    deadline: float = 86400.0
    models: list[str] = field(default_factory=list)
    loras: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, read in _READ.items():
            try:
                object.__setattr__(self, name, read(getattr(self, name)))
            except (ValueError, RecursionError) as error:
                sources = f"{PREFIX}{name.upper()} or {CONFIG_FILE}"
                raise BadInputError(f"Setting {name!r} ({sources}) cannot be used: {error}.") from error

    @property
    def database_path(self) -> Path:
        """The SQLite file of the embedded default."""
        return self.home / "promptmill.db"

    @property
    def images_path(self) -> Path:
        """The picture folder of the embedded default."""
        return self.home / "images"

    @property
    def logs_path(self) -> Path:
        """Where workers that were started in the background write their logs."""
        return self.home / "logs"

    @property
    def tables_path(self) -> Path:
        """Where this host's workers keep the samplers' tables that they have read; may be deleted."""
        return self.home / "tables"

    @property
    def thumbnails_path(self) -> Path:
        """Where this host's web pages keep small copies of pictures, by submission; may be deleted."""
        return self.home / "cache" / "thumbnails"


def _home(value: Any) -> Path:
    if not isinstance(value, str | Path):
        raise ValueError(f"it is {value!r}, not a folder")  # noqa: TRY004  (all of them are told alike)
    try:
        return Path(value).expanduser().absolute()
    except RuntimeError as error:  # ~somebody who is not here
        raise ValueError(str(error).rstrip(".")) from error


def _url(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"it is {value!r}, not a text")
    return value


def _store(value: Any) -> str | None:
    """Let a relative path mean one folder, whatever a process's working directory is."""
    url = _url(value)
    return url if url is None or ":" in url else str(Path(url).expanduser().absolute())


def _at_least(least: float) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        try:
            seconds = float("nan" if isinstance(value, bool) else value)
        except (TypeError, ValueError):
            seconds = float("nan")
        if not seconds >= least:  # so that NaN is refused, too
            raise ValueError(f"it is {value!r}, not a number of seconds, {least:g} or more")
        return seconds

    return read


def _named(form: str) -> Callable[[Any], list[str]]:
    """Read what an environment variable can hold, too: models or LoRAs joined by commas, or a JSON list."""

    def read(value: Any) -> list[str]:
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = json.loads(value)
        elif isinstance(value, str):
            value = [each.strip() for each in value.split(",") if each.strip()]
        if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
            raise ValueError(f"it is {value!r}, not a list of {form}")
        return list(value)

    return read


_READ: dict[str, Callable[[Any], Any]] = {
    "home": _home,
    "database_url": _url,
    "redis_url": _url,
    "store_url": _store,
    "lease": _at_least(3),
    "stall": _at_least(1),
    "deadline": _at_least(1),
    "models": _named("NAME=REPO_OR_PATH"),
    "loras": _named("NAME=PATH"),
}
SETTINGS = tuple(item.name for item in fields(Settings))


def _config_file() -> Path | None:
    # expanduser of os.path leaves a `~somebody` that is unknown as it is: the home's own check says it.
    home = Path(os.path.expanduser(os.environ.get("PROMPTMILL_HOME") or "~/.promptmill"))  # noqa: PTH111
    return next((file for file in (Path(CONFIG_FILE), home / CONFIG_FILE) if file.is_file()), None)


def given_settings() -> dict[str, Any]:
    """Return what the environment says, and the config file where that is silent, as they say it.

    Raises:
        BadInputError: when the file cannot be read, or names what is no setting.
    """
    # Windows knows no lower case in names, and others may write them so.
    found = {name.upper(): value for name, value in os.environ.items() if value}
    said = {name: found[key] for name in SETTINGS if (key := PREFIX + name.upper()) in found}
    try:
        file = _config_file()
        written = tomllib.loads(file.read_text(encoding="utf-8")) if file else {}
    except (ValueError, OSError) as error:
        raise BadInputError(
            f"The settings cannot be read: {error}; mend {_config_file() or 'them'}."
        ) from error
    if unknown := next((name for name in written if name not in SETTINGS), None):
        raise BadInputError(
            f"There is no setting {unknown!r}, which {file} names; known are {', '.join(SETTINGS)}."
        )
    return written | said


def load_settings() -> Settings:
    """Read the settings of this process.

    Raises:
        BadInputError: one sentence naming the setting that cannot be used.
    """
    return Settings(**given_settings())


def ensure_home(settings: Settings, *below: Path) -> Path:
    """Create the home, and folders below it (mode 0700: prompts and pictures are private); return the home.

    Raises:
        UnreachableError: when it cannot be created or written.
    """
    try:
        for folder in (settings.home, *below):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        kind = StoreFullError if error.errno == errno.ENOSPC else UnreachableError
        raise kind(
            f"The home {settings.home} cannot be used: {error.strerror}; set PROMPTMILL_HOME to a folder "
            f"that can be written."
        ) from error
    return settings.home
