"""Styles and presets: what a file may say, where it lies, and what it does to a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from producer.jobchecks import check_line
from producer.jobs import JobOptions, build_jobs
from producer.lines import Line
from producer.presets import Preset, Presets, Style, apply, find_presets, read_presets
from storage.errors import BadInputError
from storage.settings import Settings

FILE = """
[styles.watercolor]
prefix = "a watercolor painting of "
suffix = ", soft light"
negative = "photo, blurry"
steps = 20

[styles.a1111]
prompt = "a drawing of {prompt}, ink"

[styles.after]
prompt = "masterpiece"

[presets.fast]
sampler = "dpmpp_2m"
schedule = "karras"
steps = 12
guidance = 5
size = "512x768"

[presets.seldom]
sampler = "DDIM"
width = 256
eta = 0.5
guidance_rescale = 0.7
guidance_interval = "0.2:0.8"
"""


def read(tmp_path: Path, text: str | bytes) -> Presets:
    """Read a file with this text."""
    path = tmp_path / "presets.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_presets(path)


def line(prompt: str = "an otter", **own: Any) -> Line:
    """Return a line with settings of its own."""
    return Line(file="f", line=1, prompt=prompt, settings=own)


def test_file_is_read_into_job_parameters(tmp_path: Path) -> None:
    """Keys are named for users, settings as in a job."""
    presets = read(tmp_path, FILE)
    assert presets.style("watercolor") == Style(
        name="watercolor", prefix="a watercolor painting of ", suffix=", soft light",
        negative="photo, blurry", settings={"num_inference_steps": 20},
    )  # fmt: skip
    assert presets.preset("fast").settings == {
        "sampler": "dpmpp_2m", "schedule": "karras", "num_inference_steps": 12, "guidance_scale": 5.0,
        "width": 512, "height": 768,
    }  # fmt: skip
    assert presets.preset("seldom").settings == {
        "sampler": "ddim", "width": 256,
        "options": {"eta": 0.5, "guidance_rescale": 0.7, "guidance_interval": [0.2, 0.8]},
    }  # fmt: skip


def test_style_written_as_a1111_does(tmp_path: Path) -> None:
    """The mark is the prompt's place; without one, the style follows the prompt."""
    presets = read(tmp_path, FILE)
    assert apply(line(), [presets.style("a1111")], []).prompt == "a drawing of an otter, ink"
    assert apply(line(), [presets.style("after")], []).prompt == "an otter, masterpiece"


def test_sampler_may_be_named_as_a1111_does(tmp_path: Path) -> None:
    """The name brings its schedule, which may be said again."""
    text = '[presets.a]\nsampler = "DPM++ 2M Karras"\nschedule = "karras"'
    assert read(tmp_path, text).preset("a").settings == {"sampler": "dpmpp_2m", "schedule": "karras"}


def test_byte_order_mark_and_empty_file_are_no_mistakes(tmp_path: Path) -> None:
    """Both come from editors."""
    assert read(tmp_path, b"\xef\xbb\xbf") == Presets(source="presets.toml")


def test_first_style_is_the_innermost() -> None:
    """Styles nest in the order given, and their negative prompts are joined."""
    ink = Style(name="ink", prefix="ink of ", negative="photo")
    old = Style(name="old", prefix="an old ", suffix=", torn", negative="new")
    styled = apply(line(negative_prompt="fox"), [ink, old], [])
    assert styled.prompt == "an old ink of an otter, torn"
    assert styled.settings["negative_prompt"] == "fox, photo, new"


def test_line_beats_flags_beat_styles_beat_presets() -> None:
    """Whoever is nearer to the prompt decides."""
    common = {"num_inference_steps": 1, "guidance_scale": 1.0, "width": 64, "height": 64}
    preset = Preset(name="p", settings=common)
    later = Preset(name="q", settings={"height": 128})
    style = Style(name="s", settings={"num_inference_steps": 2, "guidance_scale": 2.0, "width": 72})
    flags = JobOptions(num_inference_steps=3, guidance_scale=3.0)
    styled = apply(line(num_inference_steps=4), [style], [preset, later], flags=flags)
    (job,) = build_jobs([styled], flags, {})
    assert (job.num_inference_steps, job.guidance_scale, job.width, job.height) == (4, 3.0, 72, 128)


def test_flags_negative_prompt_is_joined_where_the_line_has_none() -> None:
    """A style adds to what the user said."""
    style, flags = Style(name="s", negative="photo"), JobOptions(negative_prompt="blurry")
    assert apply(line(), [style], [], flags=flags).settings["negative_prompt"] == "blurry, photo"
    assert apply(line(negative_prompt=""), [style], [], flags=flags).settings["negative_prompt"] == "photo"
    assert apply(line(), [Style(name="t")], [], flags=flags) == line()


def test_schedule_goes_with_its_sampler() -> None:
    """Who names another sampler does not get the preset's schedule, which it may not have."""
    preset = Preset(name="p", settings={"sampler": "lms", "schedule": "karras"})
    assert apply(line(sampler="ddim"), [], [preset]).settings == {"sampler": "ddim"}
    assert apply(line(), [], [preset], flags=JobOptions(sampler="ddim")).settings == {}
    assert apply(line(schedule="beta"), [], [preset]).settings == {"sampler": "lms", "schedule": "beta"}
    styled = apply(line(), [Style(name="s", settings={"sampler": "ddim"})], [preset])
    check_line(styled, JobOptions())
    assert styled.settings == {"sampler": "ddim"}


def test_seldom_options_are_laid_over_one_by_one() -> None:
    """A default undoes a preset's option, and leaves no trace unless a flag is to be undone."""
    preset = Preset(name="p", settings={"options": {"eta": 0.5, "guidance_rescale": 0.7}})
    style = Style(name="s", settings={"options": {"eta": 0.0}})
    assert apply(line(), [style], [preset]).settings == {"options": {"guidance_rescale": 0.7}}
    flags = JobOptions(options={"guidance_rescale": 0.1})
    assert apply(line(), [style], [preset], flags=flags).settings == {}
    own = line(options={"guidance_rescale": 0})
    assert apply(own, [], [preset], flags=flags).settings == {"options": {"eta": 0.5, "guidance_rescale": 0}}


def test_line_keeps_everything_else() -> None:
    """Its place, seeds and columns are its own; nothing is changed in place."""
    before = Line(file="f", line=3, prompt="x", seeds=(1, 2), images=2, model="m", extra={"a": 1})
    assert apply(before, [], []) == before
    after = apply(before, [Style(name="s", suffix=" y ")], [])
    assert (after.prompt, after.seeds, after.extra, before.prompt) == ("x y", (1, 2), {"a": 1}, "x")


def test_unknown_name_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    """Or with what to write where there are none."""
    presets = read(tmp_path, FILE)
    with pytest.raises(BadInputError, match=r"'oil' in presets.toml; choose one of watercolor, a1111, after"):
        presets.style("oil")
    with pytest.raises(BadInputError, match="choose one of fast, seldom"):
        presets.preset("slow")
    with pytest.raises(BadInputError, match=r"has no presets: add \[presets.slow\]"):
        read(tmp_path, "").preset("slow")
    with pytest.raises(BadInputError, match=r"no file of presets; write presets.toml here or in"):
        Presets().style("oil")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[style.a]", "[style]: there is no such key; write styles."),
        ("other = 1", "[other]: there is no such key; known are styles, presets."),
        ("styles = 1", "styles: this is no table; write [styles.NAME]."),
        ("[styles]\na = 1", "[styles.a]: this is no table of settings"),
        ("[[presets.a]]", "[presets.a]: this is no table of settings"),
        ('[styles."a,b"]', "[styles.'a,b']: a name has up to 64 letters"),
        ('[styles.""]', "[styles.'']: a name has"),
        (f"[styles.{'a' * 65}]", "a']: a name has"),
        ("[presets.a]\nstep = 3", "[presets.a] step: there is no such key; write steps."),
        ("[presets.a]\ncfg_scale = 3", "cfg_scale: there is no such key; write guidance."),
        ("[presets.a]\nprefix = 'x'", "prefix: there is no such key; known are steps, guidance"),
        ("[styles.a]\nnegative_prompt = 'x'", "negative_prompt: there is no such key; write negative."),
        ("[presets.a]\nsteps = 0", "[presets.a] steps: 0 steps are out of range; choose 1 to 1000."),
        ("[presets.a]\nsteps = 2.5", "steps: this is no whole number."),
        ("[presets.a]\nsteps = true", "steps: this is no number"),
        ("[presets.a]\nsteps = '20'", "steps: this is no number; write one without quotes."),
        (f"[presets.a]\nsteps = 0x{'f' * 5000}", "steps: this number is far out of range."),
        ("[presets.a]\nguidance = nan", "guidance: Guidance nan is out of range"),
        ("[presets.a]\nguidance = inf", "guidance: this number is far out of range"),
        ("[presets.a]\nguidance = 101", "Guidance 101 is out of range"),
        ("[presets.a]\nsampler = 3", "sampler: this is no text; put it in quotes."),
        ("[presets.a]\nsampler = 'magic'", "sampler: There is no sampler 'magic'"),
        ("[presets.a]\nschedule = 'magic'", "schedule: There is no schedule 'magic'"),
        ("[presets.a]\nsampler = 'ddim'\nschedule = 'karras'", "together: Sampler ddim has no karras"),
        ("[presets.a]\nsampler = 'LMS Karras'\nschedule = 'beta'", "another key says the schedule already"),
        ("[presets.a]\nsampler = 'lms'\neta = 0.5", "together: Sampler lms has no eta"),
        ("[presets.a]\nsize = '512'", "size: '512' is no size; write WIDTHxHEIGHT"),
        ("[presets.a]\nsize = 512", "size: this is no text"),
        ("[presets.a]\nsize = '512x513'", "Height 513 is not a multiple of 8"),
        ("[presets.a]\nsize = '512x512'\nwidth = 256", "width: another key says the width already"),
        ("[presets.a]\nheight = 1", "height: Height 1 is not a multiple of 8"),
        ("[presets.a]\neta = 2", "eta: eta 2.0 is out of range"),
        ("[presets.a]\nguidance_rescale = -1", "guidance_rescale -1.0 is out of range"),
        ("[presets.a]\nguidance_interval = 'a'", "guidance_interval: 'a' is no interval; write A:B"),
        ("[presets.a]\nguidance_interval = [1, 0]", "the smaller one first"),
        ("[presets.a]\nguidance_interval = 1", "this is no interval"),
        ("[styles.a]\nprefix = 1", "prefix: this is no text; put it in quotes."),
        ("[styles.a]\nprefix = 'a {prompt}'", "{prompt} marks the prompt's place in `prompt` only"),
        ("[styles.a]\nprompt = 'a {prompt}'\nsuffix = 'x'", "prompt: it says prefix and suffix already"),
        ("[styles.a]\nprompt = '{prompt} {prompt}'", "prompt: {prompt} stands here more than once"),
        ('[styles.a]\nnegative = "\\u0000"', "negative: A negative holds a NUL character"),
        (f"[styles.a]\nsuffix = '{'x' * 10_001}'", "suffix: A suffix has 10,001 characters"),
        ("[styles.a", "cannot be read (Expected ']'"),
        ("a = 1\na = 2", "cannot be read (Cannot overwrite a value"),
        ("a = " + "[" * 5000, "is nested too deeply"),
        (b"a = '\xe9'", "is not UTF-8; save it as UTF-8."),
        (b"#" * (2**20 + 1), "has over 1 MiB"),
    ],
)  # fmt: skip
def test_mistake_is_said_with_its_place(text: str | bytes, said: str, tmp_path: Path) -> None:
    """Table, key, what is wrong and what to write."""
    with pytest.raises(BadInputError) as error:
        read(tmp_path, text)
    assert said in str(error.value)
    assert "presets.toml" in str(error.value)


def test_all_mistakes_are_listed_at_once(tmp_path: Path) -> None:
    """One run is enough to mend a file."""
    with pytest.raises(BadInputError) as error:
        read(tmp_path, "[presets.a]\nsteps = 0\nwidht = 3\n[styles.b]\nprefix = 1\nsteps = 'x'\n[c]")
    assert str(error.value).count("\n  ") == 5


def test_file_that_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    """A folder, or nothing at all."""
    for path in (tmp_path, tmp_path / "gone.toml", Path("a\0b")):
        with pytest.raises(BadInputError, match="cannot be read"):
            read_presets(path)


def test_working_folder_comes_before_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is named is taken as it is, there or not."""
    here, home = tmp_path / "here", tmp_path / "home"
    here.mkdir()
    home.mkdir()
    monkeypatch.chdir(here)
    place = Settings(home=home)
    assert find_presets(place, None) is None
    (home / "presets.toml").touch()
    assert find_presets(place, None) == home / "presets.toml"
    (here / "presets.toml").touch()
    assert find_presets(place, None) == Path("presets.toml")
    assert find_presets(place, Path("gone.toml")) == Path("gone.toml")


_VALUES = st.sampled_from(
    ["1", "20", "-3", "0.5", "nan", "inf", "true", "'512x512'", "'lms'", "'DDIM'", "'karras'", "'{prompt} x'",
     "'0.2:0.8'", "[0.1, 0.9]", "[]", "{}", "1979-05-27", "''", "'x", "=", "0x" + "f" * 5000]
)  # fmt: skip
_KEYS = st.sampled_from(
    ["steps", "guidance", "sampler", "schedule", "size", "width", "height", "eta", "guidance_rescale",
     "guidance_interval", "prefix", "suffix", "negative", "prompt", "cfg", "'a b'"]
)  # fmt: skip
_TABLES = st.sampled_from(["[styles.a]", "[presets.b]", "[styles]", "[presets.'']", "[[styles.c]]", "[d]"])
_ROWS = st.one_of(_TABLES, st.builds("{} = {}".format, _KEYS, _VALUES))


@given(text=st.lists(_ROWS, max_size=12).map("\n".join) | st.text(max_size=40) | st.binary(max_size=40))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_is_read_or_is_a_bad_input(text: str | bytes, tmp_path: Path) -> None:
    """What is read goes with a line as it is."""
    try:
        presets = read(tmp_path, text if isinstance(text, bytes) else text.encode("utf-8", "replace"))
    except BadInputError as error:
        message = str(error)
        assert "presets.toml" in message
        return
    check_line(apply(line(), list(presets.styles.values())[:1], []), JobOptions())
    check_line(apply(line(), [], list(presets.presets.values())[:1]), JobOptions())


def test_example_of_the_docs_is_read(tmp_path: Path) -> None:
    """The file of docs/templates.md is one, and its styles nest as it says."""
    page = (Path(__file__).parents[3] / "docs" / "templates.md").read_text()
    presets = read(tmp_path, page.split("```toml")[1].split("```")[0])
    assert presets.preset("fast").settings["schedule"] == "karras"
    styles = [presets.style("watercolor"), presets.style("ink")]
    assert f"`{apply(line(), styles, []).prompt}`" in page
