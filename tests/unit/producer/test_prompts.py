"""Prompt files are read whole, and every line that cannot be used is named."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.lines import Line, Problem
from producer.problems import SHOWN_PROBLEMS
from producer.prompts import PromptList, read_prompts
from producer.readers.decoding import LONGEST_LINE
from producer.readers.text import read_text
from storage.errors import BadInputError


def prompts_of(data: bytes) -> list[str]:
    """Read bytes as a text file."""
    return [found.prompt for found in read_text(io.BytesIO(data), "f") if isinstance(found, Line)]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_any_newline_and_byte_order_mark_are_read(newline: str, mark: bytes) -> None:
    """Files from any system give the same prompts."""
    text = newline.join(["# a comment", "", "  an otter\t", "ein Käfer", "  # another", "狐狸"])
    assert prompts_of(mark + text.encode()) == ["an otter", "ein Käfer", "狐狸"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="#-"), min_size=1)))
def test_every_line_comes_back_stripped(lines: list[str]) -> None:
    """Nothing but line ends divides prompts, whatever characters they have."""
    expected = [line.strip() for line in lines if line.strip()]
    assert prompts_of("\n".join(lines).encode()) == expected


def test_latin1_file_is_refused_with_place_and_remedy(tmp_path: Path) -> None:
    """The error names file, line and column, and how to convert the file."""
    file = tmp_path / "prompts.txt"
    file.write_bytes("an otter\na café\n".encode("latin-1"))
    with pytest.raises(BadInputError, match=r"prompts\.txt:2:6: byte 0xe9 is not UTF-8; .*iconv"):
        read_prompts([str(file)], [])


def test_utf16_file_is_refused_as_such(tmp_path: Path) -> None:
    """Windows' "Unicode" gets one clear sentence instead of one for each line."""
    file = tmp_path / "prompts.txt"
    file.write_text("an otter\na fox\n", encoding="utf-16")
    with pytest.raises(BadInputError, match=r"prompts\.txt: the file is UTF-16; save it as UTF-8\.$"):
        read_prompts([str(file)], [])


@pytest.mark.parametrize("line", ["an otter --ar 16:9", '--prompt "an otter" --step 3', "an otter --foo"])
def test_an_unknown_option_is_never_part_of_a_prompt(tmp_path: Path, line: str) -> None:
    """Other programs' options are refused, in a file and on the command line."""
    file = tmp_path / "prompts.txt"
    file.write_text(f"a fox\n{line}\n")
    with pytest.raises(BadInputError, match=r"prompts\.txt:2:\d+: --\w+ looks like an option"):
        read_prompts([str(file)], [])
    with pytest.raises(BadInputError, match="looks like an option"):
        read_prompts([], [line])


def test_dashes_that_are_no_option_stay() -> None:
    """A dash between words is part of the prompt."""
    assert [line.prompt for line in read_prompts([], ["an otter -- or a fox - well-fed"])] == [
        "an otter -- or a fox - well-fed"
    ]


def test_all_bad_lines_are_listed_at_once_up_to_a_limit(tmp_path: Path) -> None:
    """Many errors are shown together, and the rest is counted."""
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("fine\n" + "bad --x\n" * 30)
    two.write_text("a" * 10_001)
    with pytest.raises(BadInputError) as error:
        read_prompts([str(one), str(two), str(tmp_path / "none.txt")], [" "])
    lines = str(error.value).splitlines()
    assert lines[0] == "33 places cannot be used, so nothing was written:"
    assert len(lines) == 1 + SHOWN_PROBLEMS + 1
    assert lines[-1].strip() == "… and 13 more."


def test_a_file_may_be_called_anything(tmp_path: Path) -> None:
    """Also what parts the lines of the place where prompts wait for being submitted."""
    file = tmp_path / "tab\there\nnewline.txt"
    file.write_text("an otter\na fox --s 9\n")
    lines = list(read_prompts([str(file)], []))
    assert [(line.file, line.line, line.prompt) for line in lines] == [
        (str(file), 1, "an otter"), (str(file), 2, "a fox"),
    ]  # fmt: skip


def test_line_beyond_all_reason_is_skipped_not_held() -> None:
    """A file without newlines is reported, and the next line is read."""
    found = list(read_text(io.BytesIO(b"a" * (3 * LONGEST_LINE + 5) + b"\nan otter\n"), "f"))
    assert [type(each) for each in found] == [Problem, Line]
    assert found[1] == Line(file="f", line=2, prompt="an otter")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing.txt", "there is no such file"),
        ("folder.txt", "this is a folder"),
        ("prompts.yaml", r"a name that ends in \.yaml and the content do not tell the format"),
        ("prompts.xlsx", "zip archive or a spreadsheet; .* save the sheet as CSV"),
        ("nul\0.txt", "cannot be read"),
    ],
)
def test_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path, name: str, said: str) -> None:
    """A format that is not known is never silently read as text."""
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "prompts.yaml").write_text("- an otter\n")
    (tmp_path / "prompts.xlsx").write_bytes(b"PK\3\4...")
    with pytest.raises(BadInputError, match=said):
        read_prompts([str(tmp_path / name)], [])


def test_list_without_prompts_is_an_error(tmp_path: Path) -> None:
    """Only blank lines and comments are no submission."""
    file = tmp_path / "prompts.txt"
    file.write_text("# later\n\n")
    with pytest.raises(BadInputError, match=r"no prompt in prompts\.txt"):
        read_prompts([str(file)], [])
    with pytest.raises(BadInputError, match="No prompts were given"):
        read_prompts([], [])


def test_prompts_keep_their_order_and_can_be_read_again(tmp_path: Path) -> None:
    """Files come first, in their order, then the texts; iterating twice gives the same."""
    file = tmp_path / "prompts"
    file.write_text("one\n\ntwo\n")
    prompts = read_prompts([str(file)], ["three"])
    assert [(line.line, line.prompt) for line in prompts] == [(1, "one"), (3, "two"), (0, "three")]
    assert [line.prompt for line in prompts] == ["one", "two", "three"]
    assert prompts.source == "prompts, the command line"


def test_every_line_comes_back_from_the_spool() -> None:
    """Plain ones and those that say more, with any text."""
    prompts = PromptList(source="test")
    lines = [
        Line(file="a\tb", line=1, prompt="=x"),
        Line(file="f", line=0, prompt="one\r\ttwo\n[three"),
        Line(file="f", line=2, prompt="狐狸", settings={"options": {"eta": 0.5}}, seeds=(1, 2), images=3),
        Line(file="f", line=3, prompt="x", drawn=True, model="m", extra={"a": ["b"]}),
        *(Line(file="g", line=number, prompt=f"an otter {number}") for number in range(2500)),
    ]
    for number, line in enumerate(lines):
        prompts.append(line)
        if number == 3:
            assert list(prompts) == lines[:4]
    assert list(prompts) == lines
    assert list(prompts) == lines


def test_what_prompts_ask_for_has_one_digest_wherever_they_stood() -> None:
    """And another one for anything else."""

    def digest(*lines: Line) -> str:
        prompts = PromptList(source="test")
        for line in lines:
            prompts.append(line)
        return prompts.digest

    one = digest(Line(file="f", line=1, prompt="x"), Line(file="f", line=2, prompt="y"))
    assert one == digest(Line(file="g", line=5, prompt="x"), Line(file="h", line=9, prompt="y"))
    others = [
        digest(Line(file="f", line=1, prompt="x"), Line(file="f", line=2, prompt="z")),
        digest(Line(file="f", line=1, prompt="x\ny")),
        digest(Line(file="f", line=1, prompt="x")),
        digest(Line(file="f", line=1, prompt="x"), Line(file="f", line=2, prompt="y", drawn=True)),
    ]
    assert len({one, *others}) == 5


def test_a_column_quality_is_the_users_own(tmp_path: Path) -> None:
    """A rating, as data sets have it; the files' quality is called image_quality."""
    path = tmp_path / "rated.csv"
    path.write_text("prompt,quality,image_format,image_quality\na fox,0.9,webp,70\n")
    (line,) = read_prompts([str(path)], [])
    assert line.extra == {"quality": "0.9"}
    assert line.settings["options"] == {"image_format": "webp", "quality": 70}


def test_a_file_whose_name_is_no_text_is_read(tmp_path: Path) -> None:
    """Names are bytes on Linux; Python's stand-ins for those that are no UTF-8 are no reason to stop."""
    path = tmp_path / "caf\udce9.txt"
    path.write_text("an otter\n")
    (line,) = read_prompts([str(path)], [])
    assert (line.prompt, line.file) == ("an otter", str(path))
