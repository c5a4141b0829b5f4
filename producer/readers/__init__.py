"""The formats of prompt files, a module each: every one turns an open file into lines and problems.

A reader is imported when a file needs it (`producer.readers.opening`), so that a command that reads text does
not wait for the others.
"""

READERS = {
    "text": "producer.readers.text:read_text",
    "kohya": "producer.readers.text:read_kohya",
    "a1111": "producer.readers.text:read_a1111",
    "csv": "producer.readers.delimited:read_csv",
    "tsv": "producer.readers.delimited:read_tsv",
    "jsonl": "producer.readers.json_lines:read_json_lines",
    "json": "producer.readers.json_values:read_json",
    "parquet": "producer.readers.parquet:read_parquet",
}
FORMATS = tuple(READERS)
