"""Settings: flag > environment (`PROMPTMILL_*`) > `promptmill.toml` (here, else in the home) > default."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from storage.errors import BadInputError, StoreFullError, UnreachableError

CONFIG_FILE = "promptmill.toml"


class Settings(BaseSettings):
    """Where things are kept and how long a silent worker is trusted.

    With nothing set, everything lies below `home`: a SQLite file, a folder of pictures and a private Redis.
    """

    model_config = SettingsConfigDict(
        env_prefix="PROMPTMILL_", extra="forbid", frozen=True, env_ignore_empty=True
    )

    home: Path = Field(default_factory=lambda: Path.home() / ".promptmill")
    # Not in a repr: they may hold passwords.
    database_url: str | None = Field(default=None, repr=False)
    redis_url: str | None = Field(default=None, repr=False)
    store_url: str | None = Field(default=None, repr=False)
    lease: float = Field(default=30.0, ge=3)  # seconds without a heartbeat until a worker is declared dead
    stall: float = Field(default=1800.0, ge=1)  # seconds without an answer until a device hangs
    deadline: float = Field(default=86400.0, ge=1)  # seconds that one job's steps may take
    models: Annotated[list[str], NoDecode] = Field(default_factory=list)  # NAME=REPO_OR_PATH[@REVISION]
    loras: Annotated[list[str], NoDecode] = Field(default_factory=list)  # NAME=PATH

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        try:
            return home.expanduser().absolute()
        except RuntimeError as error:  # ~somebody who is not here
            raise ValueError(str(error)) from error

    @field_validator("store_url")
    @classmethod
    def _same_everywhere(cls, store_url: str | None) -> str | None:
        """Let a relative path mean one folder, whatever a process's working directory is."""
        return (
            store_url
            if store_url is None or ":" in store_url
            else str(Path(store_url).expanduser().absolute())
        )

    @field_validator("models", "loras", mode="before")
    @classmethod
    def _split(cls, named: Any) -> Any:
        """Read what an environment variable can hold: models or LoRAs joined by commas, or a JSON list."""
        if not isinstance(named, str):
            return named
        if named.lstrip().startswith("["):
            return json.loads(named)
        return [each.strip() for each in named.split(",") if each.strip()]

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

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  (pydantic's signature)
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  (pydantic's signature)
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the config file behind the environment."""
        file = _config_file()
        toml = (TomlConfigSettingsSource(settings_cls, toml_file=file),) if file else ()
        return (init_settings, env_settings, *toml)


def _config_file() -> Path | None:
    # expanduser of os.path leaves a `~somebody` that is unknown as it is: the home's own check says it.
    home = Path(os.path.expanduser(os.environ.get("PROMPTMILL_HOME") or "~/.promptmill"))  # noqa: PTH111
    return next((file for file in (Path(CONFIG_FILE), home / CONFIG_FILE) if file.is_file()), None)


def load_settings() -> Settings:
    """Read the settings of this process.

    Raises:
        BadInputError: one sentence naming the setting that cannot be used.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(Settings.model_fields)
            raise BadInputError(
                f"There is no setting {where!r}, which {_config_file()} names; known are {known}."
            ) from error
        sources = f"PROMPTMILL_{where.upper()} or {CONFIG_FILE}"
        raise BadInputError(
            f"Setting {where!r} ({sources}) cannot be used: {first['msg'].rstrip('.')}."
        ) from error
    except (ValueError, OSError) as error:  # a config file that is no TOML, or cannot be read
        raise BadInputError(
            f"The settings cannot be read: {error}; mend {_config_file() or 'them'}."
        ) from error


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
