"""One writer per home, between threads and between processes."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage import writer_lock
from storage.errors import UnreachableError
from storage.writer_lock import WriterLock

COUNT_UP = """
import sys
from pathlib import Path
from storage.writer_lock import WriterLock

lock, counter = WriterLock(Path(sys.argv[1])), Path(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(100):
    with lock.held():
        counter.write_text(str(int(counter.read_text()) + 1))
"""

HOLD = """
import sys
from pathlib import Path
from storage.writer_lock import WriterLock

with WriterLock(Path(sys.argv[1])).held():
    print("held", flush=True)
    sys.stdin.readline()
"""


def start(code: str, *arguments: Path) -> subprocess.Popen[str]:
    """Start a process and wait for its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def test_two_processes_and_many_threads_never_hold_it_together(tmp_path: Path) -> None:
    """Reading, adding and writing under the lock loses no count."""
    path, counter = tmp_path / "lock", tmp_path / "counter"
    counter.write_text("0")
    processes = [start(COUNT_UP, path, counter) for _ in range(2)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    lock = WriterLock(path)

    def count_up(_: int) -> None:
        with lock.held():
            counter.write_text(str(int(counter.read_text()) + 1))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count_up, range(100)))
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert counter.read_text() == "300"


def test_a_frozen_holder_is_named_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience ends with a sentence; once the holder is dead the lock is free again."""
    monkeypatch.setattr(writer_lock, "WRITER_PATIENCE", 0.05)
    holder = start(HOLD, tmp_path / "lock")
    lock = WriterLock(tmp_path / "lock")
    with pytest.raises(UnreachableError, match="frozen promptmill process"), lock.held():
        pass
    holder.kill()
    holder.communicate()
    with lock.held():
        pass
