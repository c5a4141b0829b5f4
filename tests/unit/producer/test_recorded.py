"""From a numerics record to the worker that renders so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from producer.recorded import (
    THREADS,
    Wishes,
    kind_of,
    recorded_environment,
    recorded_flags,
    reference_of,
    unlike,
    worker_options,
)
from producer.repairing import NO_WISHES
from storage.errors import BadInputError
from storage.models import ModelReference
from storage.served import ServedModel
from storage.settings import Settings
from tests.records import worker_record

NUMERICS: dict[str, Any] = {
    "model_revision": "a" * 40, "mode": "exact", "dtype": "float32", "vae_dtype": "float32", "lanes": 8,
    "layout": "contiguous", "launch": "eager", "device_type": "cpu", "threads": 3,
}  # fmt: skip
DEMO = ModelReference(name="demo", source="/models/demo")


def test_a_worker_is_started_as_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mode, dtype, lanes and device, and as many threads."""
    monkeypatch.delenv(THREADS, raising=False)
    options = worker_options(DEMO, NUMERICS, NO_WISHES)
    assert (options.mode, options.dtype, options.lanes, options.launch) == ("exact", "float32", 8, "eager")
    assert (options.devices, options.parent_pipe, options.model) == ("cpu", True, str(DEMO))
    assert recorded_environment(NUMERICS) == {THREADS: "3"}


def test_what_the_user_typed_beats_what_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags that were not typed do not, whatever their default is."""
    wishes = Wishes(flags={**NO_WISHES.flags, "lanes": "4"}, typed=frozenset({"lanes"}))
    options = worker_options(DEMO, NUMERICS | {"mode": "throughput"}, wishes)
    assert (options.lanes, options.mode) == (4, "throughput")
    other_mode = Wishes(flags={**NO_WISHES.flags, "mode": "reference"}, typed=frozenset({"mode"}))
    options = worker_options(DEMO, NUMERICS, other_mode)
    assert (options.mode, options.lanes, options.devices) == ("reference", None, "cpu")
    monkeypatch.setenv(THREADS, "2")
    assert recorded_environment(NUMERICS) == {}


@pytest.mark.parametrize("measured", [{"layout": "channels_last"}, {"dtype": "bfloat16"}])
def test_what_was_measured_is_left_to_the_tuning_that_is_kept(measured: dict[str, str]) -> None:
    """No flag can ask for another layout, or for a UNet in another dtype than its VAE."""
    flags = recorded_flags(NUMERICS | measured)
    assert "lanes" not in flags
    assert "dtype" not in flags


def test_a_vae_that_float16_would_overflow_is_no_measurement() -> None:
    """Stable Diffusion XL decodes in float32 beside a UNet in float16, which is only ever asked for."""
    flags = recorded_flags(NUMERICS | {"dtype": "float16", "vae_dtype": "float32"})
    assert (flags["dtype"], flags["lanes"]) == ("float16", str(NUMERICS["lanes"]))


def test_other_records_ask_for_no_more_than_they_know() -> None:
    """A reference worker has its lanes and dtype by itself; an empty record says nothing."""
    assert recorded_flags(NUMERICS | {"mode": "reference", "lanes": 2}) == {
        "mode": "reference",
        "devices": "cpu",
    }
    assert recorded_flags(NUMERICS | {"launch": "compiled", "device_type": "cuda"})["compile"] is True
    assert worker_options(DEMO, {}, NO_WISHES).lanes is None


def test_a_repo_is_taken_at_the_recorded_commit(tmp_path: Path) -> None:
    """Unless its revision is pinned already; a folder is what it is."""
    folder = tmp_path / "mine"
    folder.mkdir()
    settings = Settings(home=tmp_path, models=["sd=o/r", "pinned=o/r@v1", f"mine={folder}"])
    assert str(reference_of(settings, "sd", NUMERICS, NO_WISHES)) == "sd=o/r@" + "a" * 40
    assert str(reference_of(settings, "pinned", NUMERICS, NO_WISHES)) == "pinned=o/r@v1"
    assert str(reference_of(settings, "mine", NUMERICS, NO_WISHES)) == f"mine={folder}"
    assert reference_of(settings, "unknown", NUMERICS, NO_WISHES) is None
    asked = Wishes(flags=NO_WISHES.flags, model=f"sd={folder}")
    assert str(reference_of(settings, "sd", NUMERICS, asked)) == f"sd={folder}"
    with pytest.raises(BadInputError, match="not sd"):
        reference_of(settings, "mine", NUMERICS, asked)


def test_pictures_of_one_worker_are_of_one_kind() -> None:
    """Its versions and its machine are not what a worker can be started with."""
    assert kind_of("demo", NUMERICS) == kind_of("demo", NUMERICS | {"versions": {"torch": "1"}})
    others = [{"lanes": 4}, {"threads": 1}, {"dtype": "float16"}, {"model_revision": "b"}]
    assert len({kind_of("demo", NUMERICS | other) for other in others}) == 4
    assert kind_of("demo", NUMERICS) != kind_of("other", NUMERICS)


def test_lanes_that_no_worker_can_be_started_with_are_not_asked_for() -> None:
    """Pipelines render some pictures alone, with the lanes that those need."""
    alone = NUMERICS | {"way": "alone", "lanes": 2}
    assert "lanes" not in recorded_flags(alone)
    assert worker_options(DEMO, NUMERICS | {"lanes": 1}, NO_WISHES).lanes is None


def test_a_worker_of_several_models_is_compared_by_the_one_that_is_meant() -> None:
    """Not by the one that has its turn; what was never loaded cannot be compared."""
    other = ServedModel(name="other", revision="b", dtype="bfloat16", lanes=2)
    worker = worker_record(revision="a", models=(ServedModel(name="demo"), other, ServedModel(name="new")))
    recorded = {"mode": "exact", "model_revision": "b", "dtype": "bfloat16", "lanes": 8}
    assert unlike(worker, "other", recorded) == ["lanes 2, not 8"]
    assert unlike(worker, "new", {**recorded, "mode": "throughput"}) == ["mode exact, not throughput"]
