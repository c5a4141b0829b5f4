"""Settings: environment > config file here > config file in the home > default; nonsense is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.errors import BadInputError, UnreachableError
from storage.settings import CONFIG_FILE, Settings, ensure_home, load_settings


def test_with_nothing_set_everything_lies_in_the_users_folder(tmp_path: Path) -> None:
    """The default home is `~/.promptmill`, and nothing points elsewhere."""
    settings = load_settings()
    assert settings.home == tmp_path / "user" / ".promptmill"
    assert (settings.database_url, settings.redis_url, settings.store_url) == (None, None, None)
    assert (settings.lease, settings.models) == (30.0, [])
    assert settings.database_path == settings.home / "promptmill.db"


def test_the_environment_wins_over_files_and_the_file_here_over_the_one_in_the_home(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each source is used only where the ones before it are silent."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("PROMPTMILL_HOME", str(home))
    (home / CONFIG_FILE).write_text('lease = 11\nstore_url = "memory://home"\n')
    assert load_settings().lease == 11.0
    (work / CONFIG_FILE).write_text("lease = 12\n")
    assert load_settings().lease == 12.0
    assert load_settings().store_url is None  # one file is read, not two
    monkeypatch.setenv("PROMPTMILL_LEASE", "13")
    assert load_settings().lease == 13.0
    monkeypatch.setenv("PROMPTMILL_LEASE", "")
    assert load_settings().lease == 12.0


@pytest.mark.parametrize(
    ("text", "models"),
    [
        ("sd15=a/b", ["sd15=a/b"]),
        ("sd15=a/b, mine=./x ,", ["sd15=a/b", "mine=./x"]),
        ('["sd15=a/b", "mine=/x,y"]', ["sd15=a/b", "mine=/x,y"]),
    ],
)
def test_models_are_joined_by_commas_or_a_json_list(
    monkeypatch: pytest.MonkeyPatch, text: str, models: list[str]
) -> None:
    """The environment may name models in the simple way or, for odd names, as JSON."""
    monkeypatch.setenv("PROMPTMILL_MODELS", text)
    assert load_settings().models == models


def test_models_in_the_file_are_a_list(work: Path) -> None:
    """The config file says it in TOML's own way."""
    (work / CONFIG_FILE).write_text('models = ["sd15=a/b"]\n')
    assert load_settings().models == ["sd15=a/b"]


def test_a_relative_home_is_made_absolute(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home means the same folder from wherever it is used."""
    monkeypatch.setenv("PROMPTMILL_HOME", "here")
    assert load_settings().home == work / "here"
    monkeypatch.setenv("PROMPTMILL_HOME", "~/there")
    assert load_settings().home == Path("~/there").expanduser()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LEASE", "soon"),
        ("LEASE", "0"),
        ("LEASE", "-1"),
        ("LEASE", "nan"),
        ("MODELS", "[1, 2"),
        ("MODELS", "[1]"),
        ("HOME", "~nobody-by-this-name/x"),
    ],
)
def test_a_bad_value_is_one_sentence_that_names_the_setting(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """What cannot be used is named as the user wrote it."""
    monkeypatch.setenv(f"PROMPTMILL_{name}", value)
    with pytest.raises(BadInputError, match=f"PROMPTMILL_{name}") as caught:
        load_settings()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["lease = ", "colour = 1", "lease = 'x'", "[lease]\nx = 1", "\udcff"])
def test_a_bad_config_file_is_one_sentence_that_names_the_file(work: Path, text: str) -> None:
    """No TOML, an unknown key or a wrong type end in a sentence about `promptmill.toml`."""
    (work / CONFIG_FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadInputError, match=CONFIG_FILE):
        load_settings()


def test_a_home_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    """A home below a regular file names itself."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UnreachableError, match="cannot be used"):
        ensure_home(Settings(home=tmp_path / "file" / "below"))


def test_a_relative_store_is_the_same_folder_for_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path is made absolute where it is read; a URL stays as it is."""
    monkeypatch.setenv("PROMPTMILL_STORE_URL", "pictures")
    assert load_settings().store_url == str(Path("pictures").absolute())
    monkeypatch.setenv("PROMPTMILL_STORE_URL", "memory://pictures")
    assert load_settings().store_url == "memory://pictures"
