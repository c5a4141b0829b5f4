"""Files that cannot be used: a name, what is in it."""

from __future__ import annotations

import decimal
import gzip
import io
import zipfile
from collections.abc import Callable
from typing import Any

import pyarrow as pa
from pyarrow import parquet


def _zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("prompts.txt", "an otter\n" * 100_000)
    return buffer.getvalue()


def _parquet(columns: dict[str, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue()


def _deep(levels: int) -> bytes:
    return b'{"prompt": "x", "y": ' + b"[" * levels + b"]" * levels + b"}\n"


BAD_INPUTS: dict[str, tuple[str, bytes | Callable[[], bytes]]] = {
    # encodings and other programs' files
    "Latin-1": ("a.txt", b"an otter\na caf\xe9\n"),
    "Latin-1 in a cell": ("a.csv", b"prompt,Note\nan otter,caf\xe9\n"),
    "Latin-1 in a TSV's header": ("a.tsv", b"prompt\tcaf\xe9\nan otter\tx\n"),
    "Latin-1 in JSON Lines": ("a.jsonl", b'{"prompt": "caf\xe9"}\n'),
    "Latin-1 in JSON": ("a.json", b'["an otter",\n"caf\xe9"]'),
    "UTF-8 cut off": ("a.txt", "an otter\n狐".encode()[:-1]),
    "UTF-16 with a mark": ("a.csv", "prompt\nan otter\n".encode("utf-16")),
    "UTF-16 without a mark": ("a.txt", "an otter\n".encode("utf-16-le")),
    "UTF-32": ("a.txt", "an otter\n".encode("utf-32")),
    "NUL in a line": ("a.txt", b"a fox\n" * 12_000 + b"a\0b\n"),
    "surrogate in JSON": ("a.jsonl", b'{"prompt": "a \\ud800 b"}\n'),
    "surrogate in another key": ("a.jsonl", b'{"prompt": "a", "y": ["\\ud800"]}\n'),
    "NUL in another key": ("a.jsonl", b'{"prompt": "a", "y": "\\u0000"}\n'),
    "gzip": ("a.csv", lambda: gzip.compress(b"prompt\nan otter\n")),
    "gzip without a suffix": ("a", lambda: gzip.compress(b"an otter\n" * 1_000_000)),
    "zip": ("a.txt", _zipped),
    "bzip2": ("a.jsonl", b"BZh91AY&SY"),
    "xz": ("a.txt", b"\xfd7zXZ\0\0\4"),
    "zstd": ("a.txt", b"\x28\xb5\x2f\xfd\x04"),
    "spreadsheet": ("a.xlsx", _zipped),
    "old spreadsheet": ("a.xls", b"\xd0\xcf\x11\xe0\xa1\xb1"),
    "PDF": ("a.txt", b"%PDF-1.7\n"),
    "PNG": ("a.png", b"\x89PNG\r\n\x1a\n"),
    "JPEG": ("a.txt", b"\xff\xd8\xff\xe0"),
    "WebP": ("a.webp", b"RIFF\0\0\0\0WEBPVP8 "),
    "SQLite": ("a.csv", b"SQLite format 3\0"),
    "unknown suffix": ("a.yaml", b"- an otter\n"),
    # text and options
    "line of 50 MB": ("a.txt", lambda: b"a" * 50_000_000 + b"\nan otter\n"),
    "prompt of 10,001 characters": ("a.txt", b"a" * 10_001),
    "unknown kohya option": ("a.txt", b"an otter --ar 16:9\n"),
    "option with = ": ("a.txt", b"an otter --s=20\n"),
    "option without a value": ("a.txt", b"an otter --s --w 64\n"),
    "option twice": ("a.txt", b"an otter --s 20 --s 30\n"),
    "option without a prompt": ("a.txt", b"  --n blurry\n"),
    "kohya steps 1.5": ("a.txt", b"an otter --s 1.5\n"),
    "kohya guidance NaN": ("a.txt", b"an otter --l nan\n"),
    "kohya negative width": ("a.txt", b"an otter --w -512\n"),
    "kohya seeds with a gap": ("a.txt", b"an otter --d 1,,2\n"),
    "A1111 quotes": ("a.txt", b'--prompt "an otter --steps 3\n'),
    "A1111 unknown option": ("a.txt", b'--prompt "an otter" --step 3\n'),
    "A1111 batch size": ("a.txt", b'--prompt "an otter" --batch_size 3\n'),
    "A1111 styles": ("a.txt", b'--styles x --prompt "an otter"\n'),
    "A1111 sampler": ("a.txt", b'--prompt "an otter" --sampler_name magic\n'),
    "A1111 without a prompt": ("a.txt", b"--steps 3\n"),
    "A1111 stray words": ("a.txt", b"--steps 3 an otter\n"),
    "A1111 images": ("a.txt", b'--prompt "an otter" --n_iter 0\n'),
    # tables
    "no prompt column": ("a.csv", b"a,b\n1,2\n"),
    "header only of numbers": ("a.tsv", b"1\t2\n3\t4\n"),
    "column twice": ("a.csv", b"prompt,x,x\na,1,2\n"),
    "column twice by alias": ("a.csv", b"Prompt,caption\na,b\n"),
    "short row": ("a.csv", b"prompt,seed,x\nan otter,1\n"),
    "long row": ("a.csv", b"prompt,seed\nan otter,1,2\n"),
    "long row of a TSV": ("a.tsv", b"prompt\tseed\nan otter\t1\t2\n"),
    "quote not closed": ("a.csv", b'prompt,seed\n"an otter,1\n'),
    "quote not closed in a long file": ("a.csv", b'prompt,seed\n"an otter,1\n' + b"a fox,2\n" * 20_000),
    "quotes not doubled": ("a.csv", b'prompt,seed\n"an "otter"",1\n'),
    "row of 50 MB": ("a.csv", lambda: b"prompt\n" + b"a" * 50_000_000 + b"\n"),
    "header of 50 MB": ("a.csv", lambda: b"a," * 25_000_000),
    "empty prompt": ("a.csv", b"prompt,seed\n ,1\n"),
    "option in a cell": ("a.csv", b"prompt\na fox --v 5\n"),
    "steps abc": ("a.csv", b"prompt,steps\na,abc\n"),
    "steps inf": ("a.csv", b"prompt,steps\na,inf\n"),
    "steps 0": ("a.csv", b"prompt,steps\na,0\n"),
    "seed too large": ("a.csv", b"prompt,seed\na,9223372036854775808\n"),
    "seed of 5,000 digits": ("a.csv", b"prompt,seed\na," + b"9" * 5000 + b"\n"),
    "negative seed": ("a.csv", b'prompt,seed\na,"1,-2"\n'),
    "guidance with a comma": ("a.csv", b'prompt,cfg\na,"7,5"\n'),
    "guidance past 100": ("a.csv", b"prompt,cfg\na,101\n"),
    "no size": ("a.csv", b"prompt,size\na,512\n"),
    "negative size": ("a.csv", b"prompt,size\na,-512x512\n"),
    "size 100": ("a.csv", b"prompt,width\na,100\n"),
    "size and width": ("a.csv", b"prompt,size,width\na,64x64,64\n"),
    "no schedule": ("a.csv", b"prompt,schedule\na,fast\n"),
    "two schedules": ("a.csv", b"prompt,sampler,schedule\na,DPM++ 2M Karras,beta\n"),
    "schedule of another sampler": ("a.csv", b"prompt,sampler,schedule\na,ddim,karras\n"),
    "eta of another sampler": ("a.csv", b"prompt,sampler,eta\na,euler,0.5\n"),
    "no interval": ("a.csv", b"prompt,guidance_interval\na,0.5\n"),
    "backward interval": ("a.csv", b"prompt,guidance_interval\na,0.8:0.2\n"),
    "too many images": ("a.csv", b"prompt,n\na,100001\n"),
    "two models": ("a.csv", b"prompt,model\na,one\nb,two\n"),
    # JSON
    "JSON Lines cut off": ("a.jsonl", b'{"prompt": "a"}\n{"prompt": "b"'),
    "number for an entry": ("a.jsonl", b"42\n"),
    "number for a prompt": ("a.jsonl", b'{"prompt": 42}\n'),
    "true for steps": ("a.jsonl", b'{"prompt": "a", "steps": true}\n'),
    "list for guidance": ("a.jsonl", b'{"prompt": "a", "cfg": [1]}\n'),
    "NaN in JSON": ("a.jsonl", b'{"prompt": "a", "cfg": NaN}\n'),
    "infinity in another key": ("a.jsonl", b'{"prompt": "a", "y": 1e999}\n'),
    "key twice": ("a.jsonl", b'{"prompt": "a", "prompt": "b"}\n'),
    "key twice inside": ("a.json", b'[{"prompt": "a", "y": {"z": 1, "z": 2}}]'),
    "null for the prompt": ("a.jsonl", b'{"prompt": null}\n'),
    "whole number of 5,000 digits": ("a.jsonl", b'{"prompt": "a", "y": ' + b"1" * 5000 + b"}\n"),
    "whole number of 30 digits": ("a.jsonl", b'{"prompt": "a", "y": ' + b"1" * 30 + b"}\n"),
    "nested 20 deep": ("a.jsonl", _deep(20)),
    "nested 100,000 deep": ("a.json", _deep(100_000)),
    "lists 100,000 deep in JSON Lines": ("a.jsonl", b"[" * 100_000 + b"\n"),
    "line of 50 MB of JSON": ("a.jsonl", lambda: b'{"prompt": "' + b"a" * 50_000_000 + b'"}'),
    "entry of 50 MB of JSON": ("a.json", lambda: b'["' + b"a" * 50_000_000 + b'"]'),
    "list not closed": ("a.json", b'["a", "b"'),
    "comma at the end of a list": ("a.json", b'["a", "b",]'),
    "something behind a list": ("a.json", b'["a"]\n["b"]'),
    "Python for JSON": ("a.json", b"{'prompt': 'a'}"),
    # Parquet
    "Parquet cut off": ("a.parquet", lambda: _parquet({"prompt": ["a"] * 100})[:-100]),
    "no Parquet": ("a.parquet", b"prompt\nan otter\n"),
    "Parquet of one word": ("a.parquet", b"PAR1"),
    "Parquet bomb": ("a.parquet", lambda: _parquet({"prompt": ["a" * 100_000_000]}, compression="zstd")),
    "Parquet with a long cell": ("a.parquet", lambda: _parquet({"prompt": ["a" * 200_000]})),
    "Parquet with pictures": ("a.parquet", lambda: _parquet({"prompt": ["a"], "image": [{"bytes": b"x"}]})),
    "Parquet without prompts": ("a.parquet", lambda: _parquet({"x": [1]})),
    "Parquet of numbers": ("a.parquet", lambda: _parquet({"prompt": [1]})),
    "NaN in Parquet": ("a.parquet", lambda: _parquet({"prompt": ["a"], "steps": [float("nan")]})),
    "decimal in Parquet": (
        "a.parquet", lambda: _parquet({"prompt": ["a"], "steps": [decimal.Decimal("1.5")]}),
    ),
}  # fmt: skip
