"""Every way to be no prompt file that we know gets its own sentence: what is wrong, where, what to do."""

from __future__ import annotations

import io
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from producer.lines import Line, Problem
from producer.prompts import read_prompts
from producer.readers.opening import read
from storage.errors import BadInputError

_SPEC = spec_from_file_location("bad_inputs", Path(__file__).with_name("bad_inputs.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
_MODULE = module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)
BAD_INPUTS = _MODULE.BAD_INPUTS

SAID = {
    "Latin-1": (
        "a.txt:2:6: byte 0xe9 is not UTF-8; save the file as UTF-8, or convert it, for example from "
        "Latin-1 with `iconv -f LATIN1 -t UTF-8`."
    ),
    "Latin-1 in a cell": (
        "a.csv:2:2: byte 0xe9 is not UTF-8; save the file as UTF-8, or convert it, for example from "
        "Latin-1 with `iconv -f LATIN1 -t UTF-8`."
    ),
    "Latin-1 in a TSV's header": (
        "a.tsv:1:2: byte 0xe9 is not UTF-8; save the file as UTF-8, or convert it, for example from "
        "Latin-1 with `iconv -f LATIN1 -t UTF-8`."
    ),
    "Latin-1 in JSON Lines": (
        "a.jsonl:1:16: byte 0xe9 is not UTF-8; save the file as UTF-8, or convert it, for example "
        "from Latin-1 with `iconv -f LATIN1 -t UTF-8`."
    ),
    "Latin-1 in JSON": (
        "a.json:2: byte 0xe9 is not UTF-8; save the file as UTF-8, or convert it, for example from "
        "Latin-1 with `iconv -f LATIN1 -t UTF-8`."
    ),
    "UTF-8 cut off": (
        "a.txt:2:1: byte 0xe7 is not UTF-8; save the file as UTF-8, or convert it, for example from "
        "Latin-1 with `iconv -f LATIN1 -t UTF-8`."
    ),
    "UTF-16 with a mark": "a.csv: the file is UTF-16; save it as UTF-8.",
    "UTF-16 without a mark": (
        "a.txt: the file holds NUL bytes, so it is UTF-16 or no text at all; save it as UTF-8 text."
    ),
    "UTF-32": "a.txt: the file is UTF-32; save it as UTF-8.",
    "NUL in a line": "a.txt:12001: A prompt holds a NUL character; remove it.",
    "surrogate in JSON": ("a.jsonl:1: A prompt holds half of a surrogate pair; save it as UTF-8."),
    "surrogate in another key": ("a.jsonl:1: y holds a NUL or half of a surrogate pair; remove it."),
    "NUL in another key": ("a.jsonl:1: y holds a NUL or half of a surrogate pair; remove it."),
    "gzip": ("a.csv: the file is packed with gzip; unpack it with `gunzip`."),
    "gzip without a suffix": "a: the file is packed with gzip; unpack it with `gunzip`.",
    "zip": ("a.txt: the file is a zip archive or a spreadsheet; unpack it, or save the sheet as CSV."),
    "bzip2": ("a.jsonl: the file is packed with bzip2; unpack it with `bunzip2`."),
    "xz": "a.txt: the file is packed with xz; unpack it with `unxz`.",
    "zstd": ("a.txt: the file is packed with zstd; unpack it with `unzstd`."),
    "spreadsheet": (
        "a.xlsx: the file is a zip archive or a spreadsheet; unpack it, or save the sheet as CSV."
    ),
    "old spreadsheet": ("a.xls: the file is an old Office document; save it as CSV or text."),
    "PDF": "a.txt: the file is a PDF; save its text.",
    "PNG": "a.png: the file is a PNG picture; name a prompt file.",
    "JPEG": "a.txt: the file is a JPEG picture; name a prompt file.",
    "WebP": "a.webp: the file is a WebP picture; name a prompt file.",
    "SQLite": ("a.csv: the file is an SQLite database; export a table as CSV."),
    "unknown suffix": (
        "a.yaml: a name that ends in .yaml and the content do not tell the format; say it with "
        "--input-format, text for one prompt a line."
    ),
    "line of 50 MB": "a.txt:1: the line has over 131,072 characters; split it.",
    "prompt of 10,001 characters": ("a.txt:1: A prompt has 10,001 characters; shorten it to at most 10,000."),
    "unknown kohya option": (
        "a.txt:1:10: --ar looks like an option, and there is none of that name (known: --n, --w, --h,"
        " --s, --l, --d); remove it, or put a space after the dashes."
    ),
    "option with = ": (
        "a.txt:1:10: --s=20 looks like an option, and there is none of that name (known: --n, --w, "
        "--h, --s, --l, --d); remove it, or put a space after the dashes."
    ),
    "option without a value": "a.txt:1:10: --s has no value; give it one, or leave it out.",
    "option twice": "a.txt:1:17: --s is given twice; leave one out.",
    "option without a prompt": (
        "a.txt:1:3: --n looks like an option, and there is none of that name (known: --prompt, "
        "--negative_prompt, --seed, --steps, --cfg_scale, --width, --height, --sampler_name, "
        "--n_iter); remove it, or put a space after the dashes."
    ),
    "kohya steps 1.5": ("a.txt:1:10: --s '1.5' is not a whole number; write digits, for example 20."),
    "kohya guidance NaN": ("a.txt:1:10: --l 'nan' is not a number; write one, for example 7.5."),
    "kohya negative width": (
        "a.txt:1: Width -512 is not a multiple of 8 from 64 to 2048; the nearest is 64."
    ),
    "kohya seeds with a gap": (
        "a.txt:1:10: --d '1,,2' is no list of whole numbers; write 42, or several as 1,2,3."
    ),
    "A1111 quotes": (
        'a.txt:1: the quotation marks do not match; write --prompt "…", and \\" for one inside.'
    ),
    "A1111 unknown option": (
        "a.txt:1:21: --step looks like an option, and there is none of that name (known: --prompt, "
        "--negative_prompt, --seed, --steps, --cfg_scale, --width, --height, --sampler_name, "
        "--n_iter); remove it, or put a space after the dashes."
    ),
    "A1111 batch size": (
        "a.txt:1:21: --batch_size cannot be used: batches are formed as they fit the device; write "
        "--n_iter for the number of pictures."
    ),
    "A1111 styles": ("a.txt:1:1: --styles cannot be used: promptmill has nothing like it; remove it."),
    "A1111 sampler": (
        "a.txt:1:21: There is no sampler 'magic'; choose one of lms, ddim, ddpm, pndm, euler, "
        "euler_a, heun, dpm2, dpm2_a, dpmpp_2m, dpmpp_3m, dpmpp_2m_sde, dpmpp_2s, unipc, deis, ipndm,"
        " lcm, tcd, sa_solver, dpmpp_sde, or default for the model's own (see `promptmill samplers`)."
    ),
    "A1111 without a prompt": "a.txt:1: the line has options and no prompt; give it one.",
    "A1111 stray words": (
        "a.txt:1:11: there is text outside the options; put a prompt with blanks in quotes."
    ),
    "A1111 images": "a.txt:1: 0 images are out of range; choose 1 to 100,000.",
    "no prompt column": (
        "a.csv:1: no column is the prompt (there is 'a', 'b'); call one prompt, prompts, text or caption."
    ),
    "header only of numbers": (
        "a.tsv:1: no column is the prompt (there is '1', '2'); call one prompt, prompts, text or caption."
    ),
    "column twice": "a.csv:1:3: columns 'x' and 'x' are the same; rename one.",
    "column twice by alias": ("a.csv:1:2: columns 'Prompt' and 'caption' are the same; rename one."),
    "short row": (
        "a.csv:2: the row has 2 cells and the header 3; add a comma for each cell that is missing."
    ),
    "long row": ('a.csv:2: the row has 3 cells and the header 2; put a cell that holds a comma in "…".'),
    "long row of a TSV": ("a.tsv:2: the row has 3 cells and the header 2; take the tabs out of its cells."),
    "quote not closed": (
        'a.csv:2: the quotation marks of this row do not match; put a cell that has some in "…", and '
        "write each of its own twice."
    ),
    "quote not closed in a long file": (
        'a.csv:2: the quotation marks of this row do not match; put a cell that has some in "…", and '
        "write each of its own twice."
    ),
    "quotes not doubled": (
        'a.csv:2: the quotation marks of this row do not match; put a cell that has some in "…", and '
        "write each of its own twice."
    ),
    "row of 50 MB": "a.csv:2: the line has over 131,072 characters; split it.",
    "header of 50 MB": "a.csv:1: the line has over 131,072 characters; split it.",
    "empty prompt": "a.csv:2:1: the prompt is empty; give it at least one word.",
    "option in a cell": (
        "a.csv:2:1: prompt has '--v', which looks like an option, and those are read from text lines "
        "only; remove it, or put a space after the dashes."
    ),
    "steps abc": ("a.csv:2:2: steps 'abc' is not a whole number; write digits, for example 20."),
    "steps inf": ("a.csv:2:2: steps 'inf' is not a whole number; write digits, for example 20."),
    "steps 0": "a.csv:2: 0 steps are out of range; choose 1 to 1000.",
    "seed too large": (
        "a.csv:2: Seed 9223372036854775808 is out of range; choose one from 0 to 9223372036854775807."
    ),
    "seed of 5,000 digits": (
        "a.csv:2:2: seed '9999999999999999999999999999999999999999'… is no list of whole numbers; "
        "write 42, or several as 1,2,3."
    ),
    "negative seed": ("a.csv:2: Seed -2 is out of range; choose one from 0 to 9223372036854775807."),
    "guidance with a comma": ("a.csv:2:2: cfg '7,5' is not a number; write one, for example 7.5."),
    "guidance past 100": "a.csv:2: Guidance 101.0 is out of range; choose 0 to 100.",
    "no size": ("a.csv:2:2: size '512' is no size; write WIDTHxHEIGHT, for example 512x512."),
    "negative size": ("a.csv:2:2: size '-512x512' is no size; write WIDTHxHEIGHT, for example 512x512."),
    "size 100": ("a.csv:2: Width 100 is not a multiple of 8 from 64 to 2048; the nearest is 96."),
    "size and width": ("a.csv:2: size says width and height already; leave them out."),
    "no schedule": (
        "a.csv:2:2: There is no schedule 'fast'; choose one of default, karras, exponential, beta."
    ),
    "two schedules": (
        "a.csv:2: the sampler's name asks for the karras schedule and the schedule is beta; leave one out."
    ),
    "schedule of another sampler": (
        "a.csv:2: Sampler ddim has no karras schedule; leave the schedule out, or take a sampler that"
        " has it (see `promptmill samplers`)."
    ),
    "eta of another sampler": ("a.csv:2: Sampler euler has no eta; leave it out, or take ddim or tcd."),
    "no interval": ("a.csv:2:2: guidance_interval '0.5' is no interval; write A:B, for example 0.2:0.8."),
    "backward interval": (
        "a.csv:2: guidance_interval [0.8, 0.2] is no interval; give two fractions of the schedule, 0 "
        "to 1, the smaller one first."
    ),
    "too many images": ("a.csv:2: 100001 images are out of range; choose 1 to 100,000."),
    "two models": (
        "a.csv:3: This line is for model 'two' and an earlier one for 'one'; a submission has one "
        "model: split the list."
    ),
    "JSON Lines cut off": ("a.jsonl:2:15: this is no JSON (expecting ',' delimiter); correct it."),
    "number for an entry": ("a.jsonl:1: an entry has to be an object or a text, not 42; correct it."),
    "number for a prompt": "a.jsonl:1: prompt has to be text, not 42; put it in quotes.",
    "true for steps": ("a.jsonl:1: steps true is not a whole number; write digits, for example 20."),
    "list for guidance": ("a.jsonl:1: cfg a list is not a number; write one, for example 7.5."),
    "NaN in JSON": ("a.jsonl:1: cfg nan is not a number; write one, for example 7.5."),
    "infinity in another key": "a.jsonl:1: y is inf, which cannot be kept; leave it empty.",
    "key twice": "a.jsonl:1: the key 'prompt' is there twice; remove one.",
    "key twice inside": "a.json:1: the key 'z' is there twice; remove one.",
    "null for the prompt": "a.jsonl:1: the prompt is empty; give it at least one word.",
    "whole number of 5,000 digits": ("a.jsonl:1: it has a number of thousands of digits; put it in quotes."),
    "whole number of 30 digits": (
        "a.jsonl:1: y has a whole number past 2^63, which cannot be kept; put it in quotes."
    ),
    "nested 20 deep": "a.jsonl:1: y is nested over 16 levels deep; flatten it.",
    "nested 100,000 deep": ("a.json:1:1: this is nested too deeply; nothing after it was read."),
    "lists 100,000 deep in JSON Lines": "a.jsonl:1: this is nested too deeply; flatten it.",
    "line of 50 MB of JSON": "a.jsonl:1: the line has over 131,072 characters; split it.",
    "entry of 50 MB of JSON": (
        "a.json:1:2: an entry has over 131,072 characters; nothing after it was read."
    ),
    "list not closed": ("a.json:1:10: a comma or ] has to follow; nothing after it was read."),
    "comma at the end of a list": (
        "a.json:1:11: this is no JSON (expecting value); nothing after it was read."
    ),
    "something behind a list": (
        "a.json:2:1: something follows the end of the list; nothing after it was read."
    ),
    "Python for JSON": (
        "a.json:1:2: this is no JSON (expecting property name enclosed in double quotes); nothing "
        "after it was read."
    ),
    "Parquet cut off": (
        "a.parquet: it is damaged or no Parquet that can be read (Parquet magic bytes not found in "
        "footer. Either the file is corrupted or this is not a parquet file); write it anew."
    ),
    "no Parquet": ("a.parquet: it does not begin as a Parquet file does; write it anew, or rename it."),
    "Parquet of one word": (
        "a.parquet: it is damaged or no Parquet that can be read (Parquet file size is 4 bytes, "
        "smaller than the minimum file footer (8 bytes)); write it anew."
    ),
    "Parquet bomb": (
        "a.parquet: column 'prompt' unpacks to 100,000,052 bytes, over 100 times its size in the "
        "file; no list of prompts does: write it anew."
    ),
    "Parquet with a long cell": ("a.parquet:1: a cell has over 131,072 characters; shorten it."),
    "Parquet with pictures": ("a.parquet:2: column 'image' holds bytes, which cannot be kept; drop it."),
    "Parquet without prompts": (
        "a.parquet: no column is the prompt (there is 'x'); call one prompt, prompts, text or caption."
    ),
    "Parquet of numbers": ("a.parquet:1:1: prompt has to be text, not 1; put it in quotes."),
    "NaN in Parquet": ("a.parquet:1:2: steps nan is not a whole number; write digits, for example 20."),
    "decimal in Parquet": ("a.parquet:1:2: steps 1.5 is not a whole number; write digits, for example 20."),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_gets_one_exact_sentence(name: str) -> None:
    """The file is in the working folder, which belongs to the test."""
    file, content = BAD_INPUTS[name]
    Path(file).write_bytes(content() if callable(content) else content)
    with pytest.raises(BadInputError) as error:
        read_prompts([file], [])
    assert str(error.value) == SAID[name]


def test_there_are_many() -> None:
    """Each has a sentence, and none is left over."""
    assert SAID.keys() == BAD_INPUTS.keys()
    assert len(SAID) > 100


LEGAL: dict[str, tuple[str, bytes, list[str]]] = {
    "mixed newlines": (".csv", b"prompt,seed\r\na,1\rb,2\nc,3", ["a", "b", "c"]),
    "mark and blank rows": (".csv", b"\xef\xbb\xbf\r\nPROMPT ,x\n\n,\na,\n", ["a"]),
    "newline in a cell": ("", b'prompt,x\n"a\nb",1\n', ["a\nb"]),
    "nothing but a header": (".tsv", b"prompt\tx\n", []),
    "templates": ("", b"{red|blue} otter\n[word]\n", ["{red|blue} otter", "[word]"]),
    "a list of words": ("", b"[a] b, c\nd\n", ["[a] b, c", "d"]),
    "words with commas": (".txt", b"photo, text, 4k\na, b, c, d\n", ["photo, text, 4k", "a, b, c, d"]),
    "one word as text": (".txt", b"prompt\na\n", ["prompt", "a"]),
    "one column": ("", b"prompt\na\n", ["a"]),
    "dashes": ("", b"a -- b --5\n", ["a -- b --5"]),
    "a list of JSON": ("", b' [ "a", {"Text": "b"} ] ', ["a", "b"]),
    "one object": ("", b'{"prompt":\n"a"}', ["a"]),
    "objects one after the other": (".json", b'{"prompt": "a"}\n{"prompt": "b"}', ["a", "b"]),
    "texts on lines": (".jsonl", b'"a"\n\n"b"', ["a", "b"]),
    "an index of pandas": (".csv", b",prompt\n0,a\n1,b\n", ["a", "b"]),
}


@pytest.mark.parametrize("name", LEGAL)
def test_unusual_files_are_read(name: str) -> None:
    """What people do write, and what only looks like another format."""
    suffix, content, prompts = LEGAL[name]
    found = list(read(io.BytesIO(content), "f", suffix=suffix))
    assert [line.prompt if isinstance(line, Line) else str(line) for line in found] == prompts


def test_a_format_that_was_said_is_not_guessed() -> None:
    """What only looks like a table can be read as text, and one kind of options only."""
    data = b"prompt,seed\na --n b\n"
    text = [
        line.prompt for line in read(io.BytesIO(data), "f", input_format="text") if isinstance(line, Line)
    ]
    assert text == ["prompt,seed", "a"]
    first, second = read(io.BytesIO(data), "f", input_format="a1111")
    assert isinstance(first, Line)
    assert str(second) == "f:2:1: there is text outside the options; put a prompt with blanks in quotes."
    (kohya,) = read(io.BytesIO(b'--prompt "a"'), "f", input_format="kohya")
    assert "known: --n, --w" in str(kohya)


def test_a_broken_quote_costs_its_own_row_only() -> None:
    """What the quote swallowed is read again, so that --skip-bad leaves out no more than it has to."""
    found = list(read(io.BytesIO(b'prompt,x\n"a,1\nb,2\nc,"3\nd,4\n'), "f"))
    assert [line.prompt if isinstance(line, Line) else line.line for line in found] == [2, "b", 4, "d"]


def test_broken_quotes_on_every_line_end() -> None:
    """Each opens what the next one closes: reading them again and again has a limit."""
    found = list(read(io.BytesIO(b"prompt,x\n" + b'x","y\n' * 200_000), "f"))
    assert len(found) < 10_000
    assert "nothing after this line was read" in str(found[-1])


def test_one_long_text_repeated_in_parquet_is_held_once() -> None:
    """A million characters a thousand times over take a few bytes of a file, and no more here."""
    buffer = io.BytesIO()
    parquet.write_table(pa.table({"prompt": ["a" * 1_000_000] * 1000}), buffer)
    assert len(buffer.getvalue()) < 200_000
    pa_bytes = pa.total_allocated_bytes()
    found = 0
    for each in read(io.BytesIO(buffer.getvalue()), "f"):
        found += isinstance(each, Problem)
        assert pa.total_allocated_bytes() - pa_bytes < 20_000_000
    assert found == 1000
