"""Tables of samplers are read once, and found by whoever asks after that, in this process or the next."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from worker.stages import tables
from worker.stages.sampler import SamplerSettings
from worker.stages.table import SamplerTable, probe
from worker.stages.tables import Tables

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
}


def _settings(sampler: str, **changes: Any) -> SamplerSettings:
    return SamplerSettings(
        **{"sampler": sampler, "num_inference_steps": 5, "scheduler_config": CONFIG, **changes}
    )


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by one with every table that is read out of a scheduler."""
    counted: list[int] = []

    def reading(*arguments: Callable[..., Any]) -> SamplerTable | None:
        counted.append(1)
        return probe(*arguments)

    monkeypatch.setattr(tables, "probe", reading)
    return counted


@pytest.mark.parametrize("sampler", ["lms", "unipc", "dpm2_a", "dpmpp_sde"])
def test_a_table_outlives_its_process_to_the_bit(sampler: str, tmp_path: Path, readings: list[int]) -> None:
    """Fractions, a hidden register, draws at every other evaluation and intervals of a tree alike."""
    first = Tables(tmp_path / "new")[_settings(sampler)]
    second = Tables(tmp_path / "new")[_settings(sampler)]
    assert len(readings) == 1
    assert first is not None
    assert second is not None
    assert torch.equal(first.weights, second.weights)
    for field in fields(SamplerTable):
        if field.name != "weights":
            assert getattr(first, field.name) == getattr(second, field.name)


def test_that_there_is_no_table_is_found_out_once_a_process(tmp_path: Path, readings: list[int]) -> None:
    """A passing fault looks the same, so it is not kept for others."""
    clipped = _settings("ddim", scheduler_config=CONFIG | {"thresholding": True})
    kept = Tables(tmp_path)
    assert kept[clipped] is None
    assert kept[clipped] is None
    assert len(readings) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_order_of_diffusers_defaults_does_not_matter(tmp_path: Path, readings: list[int]) -> None:
    """It comes out of a set, in another order in every process."""
    names = ["prediction_type", "timestep_spacing", "sample_max_value"]
    for order in (names, names[::-1]):
        assert Tables(tmp_path)[_settings("lms", scheduler_config=CONFIG | {"_use_default_values": order})]
    assert len(readings) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"sampler": "euler"},
        {"schedule": "karras"},
        {"num_inference_steps": 6},
        {"scheduler_config": CONFIG | {"beta_end": 0.02}},
    ],
)
def test_other_settings_have_another_table(
    change: dict[str, Any], tmp_path: Path, readings: list[int]
) -> None:
    """Whatever a table depends on tells it from others."""
    kept = Tables(tmp_path)
    one, other = kept[_settings("lms")], kept[_settings(**{"sampler": "lms", **change})]
    assert one is not None
    assert other is not None
    assert one.to_json() != other.to_json()
    assert len(readings) == 2


def test_eta_tells_tables_apart(tmp_path: Path) -> None:
    """It comes in by `step`, not by the config."""
    kept = Tables(tmp_path)
    without, full = kept[_settings("ddim")], kept[_settings("ddim", eta=1.0)]
    assert without is not None
    assert full is not None
    assert not any(without.draws)
    assert any(full.draws)


@pytest.mark.parametrize("damage", ["", "{", "[1]", "{}", '{"sha256": "", "table": {}}', "one digit"])
def test_a_damaged_file_is_read_anew(damage: str, tmp_path: Path, readings: list[int]) -> None:
    """And mended, even where it is still a table."""
    expected = Tables(tmp_path)[_settings("euler")]
    (file,) = tmp_path.iterdir()
    whole = file.read_text()
    file.write_text(whole.replace("749.25", "749.75") if damage == "one digit" else damage)
    assert file.read_text() != whole
    for _ in range(2):
        again = Tables(tmp_path)[_settings("euler")]
        assert expected is not None
        assert again is not None
        assert torch.equal(again.weights, expected.weights)
    assert len(readings) == 2
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path: Path, readings: list[int]) -> None:
    """As on a full disk."""
    (tmp_path / "file").write_text("")
    kept = Tables(tmp_path / "file" / "below")
    assert kept[_settings("euler")] is not None
    assert kept[_settings("euler")] is not None
    assert len(readings) == 1


def test_threads_that_ask_at_once_read_once(readings: list[int]) -> None:
    """A list of equal jobs arrives all at once."""
    kept = Tables()
    threads = [
        threading.Thread(target=lambda: kept[_settings("lms", num_inference_steps=9)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(readings) == 1
