"""The record is the exact one of what a picture says; what was changed or cut is never taken for it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from storage.errors import BadInputError
from storage.parameters import JobParameters
from storage.picture_record import Record, read_record, write_record

JOB = JobParameters(
    prompt='an otter, "quoted": \U0001f9a6\n\u202eright to left',
    negative_prompt="dark",
    seed=2**63 - 1,
    guidance_scale=7.123456789012345,
    width=64,
    height=128,
    options={"image_format": "jpeg", "quality": 80, "guidance_interval": [0.1, 0.9]},
)
NUMERICS = {"model_revision": "a" * 40, "lanes": 8, "versions": {"torch": "2.13"}}
RECORD = Record(parameters=JOB, model="sd15", source="owner/repo", numerics=NUMERICS)


def test_a_record_reads_back_as_it_was() -> None:
    """All parameters, digit by digit, with model and numerics."""
    found = read_record(write_record(RECORD))
    assert found == RECORD
    assert found.revision == "a" * 40


def test_equal_records_are_equal_text() -> None:
    """Whatever the order in which options and numerics came together; plain ASCII, on one line."""
    turned = dataclasses.replace(
        RECORD,
        parameters=dataclasses.replace(JOB, options=dict(reversed(JOB.options.items()))),
        numerics=dict(reversed(NUMERICS.items())),
    )
    text = write_record(RECORD)
    assert write_record(turned) == text
    assert text.isascii()
    assert text.isprintable()


def test_extra_columns_stay_out() -> None:
    """They did not determine the picture, and may be private."""
    private = dataclasses.replace(JOB, extra={"customer": "Ada"})
    assert write_record(dataclasses.replace(RECORD, parameters=private)) == write_record(RECORD)


def changed(**parts: object) -> str:
    """Return the record's JSON with other parts."""
    return json.dumps(json.loads(write_record(RECORD)) | parts)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it was changed or cut"),
        (write_record(RECORD)[:-40], "it was changed or cut"),
        ("[1]", "it was changed or cut"),
        ("[" * 100_000, "it was changed or cut"),
        (changed(version=2), "version 2; upgrade promptmill"),
        (changed(version="1"), "it was changed or cut"),
        (changed(model="sd15"), "model"),
        (changed(numerics=[]), "numerics"),
        (changed(surprise=1), "surprise"),
        (changed(parameters={"prompt": "an otter"}), "parameters"),
        (write_record(RECORD).replace('"width":64', '"width":65'), "Width 65 is not a multiple of 8"),
        (write_record(RECORD).replace('"quality":80', '"quality":800'), "quality 800 is out of range"),
        (write_record(RECORD).replace('"seed":', '"seed":1'), "out of range"),
    ],
)
def test_what_was_changed_is_one_sentence(text: str, said: str) -> None:
    """Cut, of another version, with parts of another kind, with parameters that no job has."""
    with pytest.raises(BadInputError, match=r"^Its promptmill record .*\.$") as caught:
        read_record(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
