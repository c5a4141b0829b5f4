"""The stages: each once, in order, and anew with all that follows when something is missing."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from training import maker, place, provenance
from training.errors import TrainingError
from training.maker import Maker
from training.plan import FULL, QUICK
from training.stage import Stage


class Rehearsal(Maker):
    """Three stages that write a file each, and note that they ran."""

    def __init__(self, work: Path, **settings: Any) -> None:
        super().__init__(work, work / "demo", settings.get("plan", QUICK), settings.get("seed", 1))
        self.ran: list[str] = []

    def _stages(self) -> list[Stage]:
        return [
            Stage(name=name, run=lambda name=name: self._write(name), outputs=(f"{name}.out",))
            for name in ("draw", "train", "export")
        ]

    def _write(self, name: str) -> dict[str, Any]:
        self.ran.append(name)
        (self.work / f"{name}.out").write_text(name)
        return {name: len(self.ran)}

    def _finish(self) -> None:
        pass


def made(work: Path, **settings: Any) -> list[str]:
    """Make everything; return the stages that ran."""
    rehearsal = Rehearsal(work, **settings)
    rehearsal.make()
    return rehearsal.ran


def test_a_stage_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    """The second run finds everything; the figures are still there."""
    assert made(tmp_path) == ["draw", "train", "export"]
    assert made(tmp_path) == []
    assert json.loads((tmp_path / "notes.json").read_text())["train"] == 2


def test_what_follows_from_a_stage_is_made_anew_with_it(tmp_path: Path) -> None:
    """Old latents of new weights would be a model that nobody can make again."""
    made(tmp_path)
    (tmp_path / "train.out").unlink()
    assert made(tmp_path) == ["train", "export"]
    (tmp_path / "export.out").unlink()
    assert made(tmp_path) == ["export"]


def test_a_stage_that_broke_off_is_taken_up_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came before it stays."""

    def broken(self: Rehearsal, name: str) -> dict[str, Any]:
        if name == "train":
            raise TrainingError("the power went out")
        return write(self, name)

    write = Rehearsal._write
    monkeypatch.setattr(Rehearsal, "_write", broken)
    with pytest.raises(TrainingError, match="power"):
        made(tmp_path)
    monkeypatch.setattr(Rehearsal, "_write", write)
    assert made(tmp_path) == ["train", "export"]


def test_a_stage_that_is_made_anew_and_breaks_off_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its output may be there, and half: the next run does not take it for whole."""
    made(tmp_path)
    (tmp_path / "train.out").unlink()

    def half(self: Rehearsal, name: str) -> dict[str, Any]:
        write(self, name)
        raise TrainingError("the power went out")

    write = Rehearsal._write
    monkeypatch.setattr(Rehearsal, "_write", half)
    with pytest.raises(TrainingError, match="power"):
        made(tmp_path)
    monkeypatch.setattr(Rehearsal, "_write", write)
    assert made(tmp_path) == ["train", "export"]


@pytest.mark.parametrize("settings", [{"seed": 2}, {"plan": FULL}, {"plan": replace(QUICK, prompts=3)}])
def test_another_run_s_folder_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Its files were made with another plan or seed."""
    made(tmp_path)
    with pytest.raises(TrainingError, match="holds another plan's or seed's run"):
        Rehearsal(tmp_path, **settings)


@pytest.mark.parametrize("content", ["", '{"seed": 1', "[]", "{}"])
def test_notes_that_cannot_be_read_are_one_sentence(tmp_path: Path, content: str) -> None:
    """No traceback for a file that something else tore."""
    (tmp_path / "notes.json").write_text(content)
    with pytest.raises(TrainingError, match=r"notes\.json cannot be read|holds another plan"):
        Rehearsal(tmp_path)


def test_code_that_changes_in_the_middle_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes import the code when they start, so a run could mix two versions and name one commit."""
    rehearsal = Rehearsal(tmp_path)
    write = Rehearsal._write

    def edit(self: Rehearsal, name: str) -> dict[str, Any]:
        if name == "train":
            monkeypatch.setattr(maker, "source_digest", lambda: "another")
        return write(self, name)

    monkeypatch.setattr(Rehearsal, "_write", edit)
    with pytest.raises(TrainingError, match="has changed meanwhile"):
        rehearsal.make()
    assert json.loads((tmp_path / "notes.json").read_text())["done"] == ["draw"]


def test_a_run_of_other_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are not what this code makes, and the card would say that they are."""
    made(tmp_path)
    monkeypatch.setattr(maker, "source_digest", lambda: "another")
    with pytest.raises(TrainingError, match="holds a run of other code or libraries"):
        Rehearsal(tmp_path)


def test_a_training_whose_loss_does_not_fall_stops_the_run(tmp_path: Path) -> None:
    """What did not learn makes no model."""

    class Stuck(Rehearsal):
        def _stages(self) -> list[Stage]:
            first, *rest = super()._stages()
            return [replace(first, trainings=("net",)), *rest]

    lines = [{"step": 20, "loss": 0.5, "seconds": 1.0}, {"step": 40, "loss": 0.5, "seconds": 2.0}]
    (tmp_path / "net.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    stuck = Stuck(tmp_path)
    with pytest.raises(TrainingError, match=r"net did not learn: the loss went from 0\.5 to 0\.5"):
        stuck.make()
    assert stuck.ran == ["draw"]


@pytest.mark.parametrize(("ends", "learned"), [(0.2, True), (0.5, False)])
def test_a_training_that_goes_on_with_another_begins_where_that_ended(
    tmp_path: Path, *, ends: float, learned: bool
) -> None:
    """Its own loss need not fall: what counts is where the stage began."""

    class Twice(Rehearsal):
        def _stages(self) -> list[Stage]:
            first, *rest = super()._stages()
            return [replace(first, trainings=("net", "more")), *rest]

    for name, losses in {"net": (0.5, 0.1), "more": (0.1, ends)}.items():
        lines = [{"step": 20 * i, "loss": loss, "seconds": 1.0} for i, loss in enumerate(losses, 1)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    twice = Twice(tmp_path)
    with nullcontext() if learned else pytest.raises(TrainingError, match="more did not learn"):
        twice.make()
    assert (twice.ran == ["draw", "train", "export"]) == learned


@pytest.mark.parametrize("name", ["pictures", "pictures/deeper", "a file"])
def test_only_a_model_is_replaced(tmp_path: Path, name: str) -> None:
    """Neither a folder of something else, nor one that holds the work folder, nor a file."""
    work = tmp_path / "pictures" / "deeper" / "work"
    work.mkdir(parents=True)
    (tmp_path / "a file").write_text("")
    with pytest.raises(TrainingError, match="name another --model"):
        Maker(work, tmp_path / name, QUICK, 1)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "holiday.png").write_text("")
    with pytest.raises(TrainingError, match="is no model"):
        Maker(work, tmp_path / "own", QUICK, 1)


def test_half_of_a_replacement_is_undone(tmp_path: Path) -> None:
    """Killed between the two renames, the old model is put back by the next run."""
    model = tmp_path / "models" / "demo"
    old = model.with_name(".demo.old")
    old.mkdir(parents=True)
    (old / "model_index.json").write_text("{}")
    Maker(tmp_path / "work", model, QUICK, 1)
    assert (model / "model_index.json").exists()
    assert not old.exists()


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    """The second one says so."""
    with place.alone(tmp_path), pytest.raises(TrainingError, match="Another process makes a model"):
        made(tmp_path)


def test_the_model_takes_the_old_one_s_place_whole(tmp_path: Path) -> None:
    """Nothing of the old folder stays, and no helper folder either."""
    exported, model = tmp_path / "export", tmp_path / "models" / "demo"
    for folder in (exported, model):
        folder.mkdir(parents=True)
    (exported / "new.txt").write_text("new")
    (model / "old.txt").write_text("old")
    place.replace(model, exported)
    assert [path.name for path in model.iterdir()] == ["new.txt"]
    assert [path.name for path in model.parent.iterdir()] == ["demo"]


def test_the_commit_is_dirty_with_the_code_and_not_with_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is what a run makes, not what it is made from."""
    tmp_path = tmp_path.resolve()
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert provenance.commit() == "unknown"
    for name in ("models/demo.txt", "code.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("first")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], cwd=tmp_path, env=clean, check=True)
    commit = provenance.commit()
    assert len(commit) == 40
    (tmp_path / "models/demo.txt").write_text("second")
    assert provenance.commit() == commit
    (tmp_path / "new.py").write_text("not committed")
    assert provenance.commit() == f"{commit}-dirty"
    (tmp_path / "new.py").unlink()
    (tmp_path / "code.py").write_text("second")
    assert provenance.commit() == f"{commit}-dirty"
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "models")
    assert provenance.commit() == "unknown"  # somebody else's repository
