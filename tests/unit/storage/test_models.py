"""How a model is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import BadInputError
from storage.models import ModelReference, builtin_model_path, parse_model


@pytest.mark.parametrize(
    ("text", "name", "source", "revision"),
    [
        ("sd15=runwayml/stable-diffusion-v1-5", "sd15", "runwayml/stable-diffusion-v1-5", None),
        ("sd15=runwayml/stable-diffusion-v1-5@fp16", "sd15", "runwayml/stable-diffusion-v1-5", "fp16"),
        ("owner/Some_Model.v2", "some_model.v2", "owner/Some_Model.v2", None),
        ("  owner/name@abc123 ", "name", "owner/name", "abc123"),
        ("gpt=single", "gpt", "single", None),
        ("=owner/name", "name", "owner/name", None),
    ],
)
def test_a_repo_is_read_with_its_name_and_revision(
    text: str, name: str, source: str, revision: str | None
) -> None:
    """NAME and REVISION may be left out; a bare repo derives its name."""
    assert parse_model(text) == ModelReference(name=name, source=source, revision=revision)


def test_a_path_becomes_absolute_and_keeps_its_at_sign(work: Path) -> None:
    """A folder has no revision; what looks like a path is one."""
    assert parse_model("./my model@home").source == str(work / "my model@home")
    assert parse_model("x=./m").source == str(work / "m")
    (work / "here").mkdir()
    assert parse_model("here") == ModelReference(name="here", source=str(work / "here"))
    assert parse_model(str(parse_model("x=./m"))) == parse_model("x=./m")


@pytest.mark.parametrize(
    ("text", "name", "file", "config"),
    [
        ("Real Vis.safetensors", "real-vis", "Real Vis.safetensors", None),
        ("x=./m.safetensors", "x", "m.safetensors", None),
        ("x=m.safetensors@./conf", "x", "m.safetensors", "conf"),
        ("x=m.safetensors@owner/repo", "x", "m.safetensors", "owner/repo"),
    ],
)
def test_a_single_file_may_name_its_configs(
    work: Path, text: str, name: str, file: str, config: str | None
) -> None:
    """A folder becomes absolute, a repo stays one; the name comes from the file's."""
    reference = parse_model(text)
    expected = str(work / config) if config == "conf" else config
    assert reference == ModelReference(name=name, source=str(work / file), config=expected)
    assert reference.folder == (work / "conf" if config == "conf" else None)
    assert parse_model(str(reference)) == reference


def test_a_folder_may_be_called_like_a_file(work: Path) -> None:
    """What is a folder has no configs elsewhere."""
    (work / "odd.safetensors").mkdir()
    (work / "odd.safetensors@x").mkdir()
    for name in ("odd.safetensors", "odd.safetensors@x"):
        reference = parse_model(f"odd=./{name}")
        assert reference == ModelReference(name="odd", source=str(work / name))


def test_demo_is_the_model_that_comes_with_the_project() -> None:
    """`demo` alone needs no source, and its folder is there."""
    assert parse_model("demo") == ModelReference(name="demo", source=str(builtin_model_path()))
    assert (builtin_model_path() / "model_index.json").is_file()


@pytest.mark.parametrize(
    "text",
    [
        *("", "x=", "=", "a/b/c", "UPPER=a/b", "a b=c/d", "x=a b", "x=a/b@", "x=\0"),
        *("x=./m.safetensors@", "x=m.safetensors@a/b/c", "x=m.safetensors@owner/repo@main"),
        "x" * 64 + "=a/b",
        "x=" + "a" * 5000 + "/é/",
    ],
)
def test_what_names_no_model_is_one_sentence(text: str) -> None:
    """A name or source that cannot be is refused."""
    with pytest.raises(BadInputError):
        parse_model(text)


def test_an_unknown_users_folder_is_no_traceback() -> None:
    """`~nobody/…` stays a path, which the worker will not find."""
    assert "~nobody-by-this-name" in parse_model("x=~nobody-by-this-name/m").source


@given(st.text(max_size=40))
def test_any_text_is_a_model_or_a_sentence(text: str) -> None:
    """Whatever is typed, the answer is a valid reference that reads back, or BadInputError."""
    try:
        reference = parse_model(text)
    except BadInputError:
        return
    assert parse_model(str(reference)) == reference
