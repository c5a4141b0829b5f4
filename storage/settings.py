"""Settings: flag > environment (`PROMPTMILL_*`) > `promptmill.toml` (here, else in the home) > default."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from storage.errors import BadInputError, UnreachableError

CONFIG_FILE = "promptmill.toml"


class Settings(BaseSettings):
    """Where things are kept and how long a silent worker is trusted.

    With nothing set, everything lies below `home`: a SQLite file, a folder of pictures and a private Redis.
    """

    model_config = SettingsConfigDict(env_prefix="PROMPTMILL_", extra="forbid", frozen=True, env_ignore_empty=True)

    home: Path = Field(default_factory=lambda: Path.home() / ".promptmill")
    database_url: str | None = None
    redis_url: str | None = None
    store_url: str | None = None
    lease: float = Field(default=30.0, gt=0)  # seconds without a heartbeat until a worker is declared dead
    models: list[str] = Field(default_factory=list)  # NAME=REPO_OR_PATH[@REVISION]

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().absolute()

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
    home = Path(os.environ.get("PROMPTMILL_HOME") or Path.home() / ".promptmill").expanduser()
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
        raise BadInputError(
            f"Setting {where!r} (PROMPTMILL_{where.upper()} or {CONFIG_FILE}) cannot be used: {first['msg']}."
        ) from error
    except (ValueError, OSError) as error:  # a config file that is no TOML, or cannot be read
        raise BadInputError(f"The settings cannot be read: {error}; mend {_config_file() or 'them'}.") from error


def ensure_home(settings: Settings) -> Path:
    """Create the home (mode 0700: prompts and pictures are private) and return it.

    Raises:
        UnreachableError: when it cannot be created or written.
    """
    try:
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UnreachableError(
            f"The home {settings.home} cannot be used: {error.strerror}; set PROMPTMILL_HOME to a folder "
            f"that can be written."
        ) from error
    return settings.home
