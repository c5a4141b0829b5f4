"""Styles and presets in a TOML file: words around a prompt and settings, under a name.

    [styles.watercolor]
    prefix = "a watercolor painting of "
    suffix = ", soft light"
    negative = "photo, blurry"

    [presets.fast]
    sampler = "dpmpp_2m"
    steps = 12

A preset is a style without words: settings that a style, or the line itself, may say otherwise.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from producer.jobs import JobOptions
from producer.lines import Line
from producer.presetvalues import Found, no_such_key, read_settings
from storage.errors import BadInputError
from storage.parameters import check_prompt, other_format, overlaid_options

if TYPE_CHECKING:
    from storage.settings import Settings

PRESETS_FILE = "presets.toml"
MAX_FILE = 2**20  # bytes
MARK = "{prompt}"
WORDS = ("prefix", "suffix", "negative", "prompt")
LONGEST_NAME = 64  # characters
_NAME = re.compile(rf"\w[\w.+-]{{0,{LONGEST_NAME - 1}}}")
_WHOLE_SCHEDULE = [0.0, 1.0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """Settings under a name.

    Attributes:
        name: what the user types.
        settings: job parameters, as in `Line.settings`, without a negative prompt.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Style(Preset):
    """Words around a prompt, and settings that go with them.

    Attributes:
        prefix, suffix: put before and after the prompt as they are.
        negative: negative prompt, joined to the line's own and to other styles'.
    """

    prefix: str = ""
    suffix: str = ""
    negative: str = ""


_AnyPreset = TypeVar("_AnyPreset", bound=Preset)


@dataclass(frozen=True, kw_only=True, slots=True)
class Presets:
    """What a file of presets holds; without a file, nothing.

    Attributes:
        source: the file's name, for messages.
        styles, presets: by name, in the file's order.
    """

    source: str = ""
    styles: Mapping[str, Style] = field(default_factory=dict)
    presets: Mapping[str, Preset] = field(default_factory=dict)

    def style(self, name: str) -> Style:
        """Return a style, or raise BadInputError that names those there are."""
        return self.styles[name] if name in self.styles else self._unknown("style", name, self.styles)

    def preset(self, name: str) -> Preset:
        """Return a preset, or raise BadInputError that names those there are."""
        return self.presets[name] if name in self.presets else self._unknown("preset", name, self.presets)

    def _unknown(self, what: str, name: str, known: Iterable[str]) -> Any:
        if not self.source:
            raise BadInputError(
                f"There is no {what} {name!r}, as there is no file of presets; write {PRESETS_FILE} here or "
                f"in PROMPTMILL_HOME."
            )
        listed = ", ".join(known)
        hint = f"choose one of {listed}" if listed else f"the file has no {what}s: add [{what}s.{name}]"
        raise BadInputError(f"There is no {what} {name!r} in {self.source}; {hint}.")


def find_presets(settings: Settings, given: Path | None) -> Path | None:
    """Return the file of presets: the one given, else that of the working folder, else the home's.

    Returns:
        None when none is given and neither place has one; a file that was given is not looked for.
    """
    if given is not None:
        return given
    return next((path for path in (Path(PRESETS_FILE), settings.home / PRESETS_FILE) if path.is_file()), None)


def apply(
    line: Line, styles: Sequence[Style], presets: Sequence[Preset], *, flags: JobOptions | None = None
) -> Line:
    """Put a line into styles, with the settings of styles and presets that neither it nor a flag says.

    The first style is the innermost: its words stand next to the prompt. A line's setting beats a flag's,
    which beats a style's, which beats a preset's; of several styles or presets the later one. A sampler comes
    with its schedule. Negative prompts are joined by ", ": the line's own, or else the flags', then the
    styles'.
    """
    flags = flags or JobOptions()
    below: Mapping[str, Any] = {}
    for preset in (*presets, *styles):
        below = _overlaid(below, preset.settings)
    settings = _overlaid(_without_flags(below, flags), line.settings)
    if options := _worth_saying(settings.pop("options", {}), flags.options):
        settings["options"] = options
    prompt = line.prompt
    for style in styles:
        prompt = f"{style.prefix}{prompt}{style.suffix}"
    added = [style.negative for style in styles if style.negative]
    if added:
        own = line.settings.get("negative_prompt", flags.negative_prompt)
        settings["negative_prompt"] = ", ".join([own, *added] if own else added)
    return dataclasses.replace(line, prompt=prompt.strip(), settings=settings)


def _overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay settings over others."""
    kept = dict(below)
    if "sampler" in above:
        kept.pop("schedule", None)  # it was meant for the other sampler, which may be the only one to have it
    options = overlaid_options(below.get("options", {}), above.get("options", {}))
    return {**kept, **above, "options": options}


def _without_flags(settings: Mapping[str, Any], flags: JobOptions) -> dict[str, Any]:
    """Leave out what the flags say."""
    said = {name for name in settings if name != "options" and getattr(flags, name) is not None}
    if flags.sampler is not None:
        said.add("schedule")
    kept = {name: value for name, value in settings.items() if name not in said}
    typed = {*flags.options, *flags.said}
    options = settings.get("options", {})
    if "image_format" in typed and other_format(options, flags.options):
        typed.add("quality")
    return {**kept, "options": {name: value for name, value in options.items() if name not in typed}}


def _worth_saying(options: Mapping[str, Any], of_flags: Mapping[str, Any]) -> dict[str, Any]:
    """Leave defaults out, so that equal jobs are equal, unless they are there to undo a flag."""
    return {
        name: value
        for name, value in options.items()
        if name in of_flags or value not in (0, _WHOLE_SCHEDULE)
    }


def read_presets(path: Path) -> Presets:
    """Read a file of styles and presets.

    Raises:
        BadInputError: listing every mistake in it, or saying why it cannot be read.
    """
    content, problems = _load(path), list[str]()
    sections = ("styles", "presets")
    problems += [
        f"[{_shown(name)}]: {no_such_key(name, sections)}" for name in content if name not in sections
    ]
    presets = Presets(
        source=path.name,
        styles=_section(content, "styles", _style, problems),
        presets=_section(content, "presets", _preset, problems),
    )
    if problems:
        raise BadInputError(f"{path} cannot be used:" + "".join(f"\n  {problem}" for problem in problems))
    return presets


def _load(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
        if len(data) > MAX_FILE:
            raise BadInputError(f"{path} has over {MAX_FILE // 2**20} MiB, which no file of presets needs.")
        return tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path} is not UTF-8; save it as UTF-8.") from error
    except RecursionError as error:
        raise BadInputError(f"{path} is nested too deeply; a style or preset holds plain values.") from error
    except (OSError, ValueError) as error:  # ValueError: no TOML, a NUL in the name
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise BadInputError(f"{path} cannot be read ({reason}); mend it, or name another file.") from error


def _section(
    content: Mapping[str, Any],
    section: str,
    build: Callable[[str, Mapping[str, Any], Found], _AnyPreset],
    problems: list[str],
) -> dict[str, _AnyPreset]:
    """Build all styles, or all presets, and note what is wrong with them."""
    tables = content.get(section, {})
    if not isinstance(tables, dict):
        problems.append(f"{section}: this is no table; write [{section}.NAME].")
        return {}
    built = {}
    for name, table in tables.items():
        place = f"[{section}.{_shown(name)}]"
        if not _NAME.fullmatch(name):
            problems.append(f"{place}: a name has up to {LONGEST_NAME} letters, digits and _ - + . only.")
        if not isinstance(table, dict):
            problems.append(f"{place}: this is no table of settings; write its name in brackets.")
            continue
        found: Found = []
        built[name] = build(name, table, found)
        problems += [f"{place} {_shown(key)}: {reason}" for key, reason in found]
    return built


def _shown(name: str) -> str:
    """Quote and shorten a name that would not fit a line."""
    return name if _NAME.fullmatch(name) else repr(name[:LONGEST_NAME])


def _preset(name: str, table: Mapping[str, Any], found: Found) -> Preset:
    return Preset(name=name, settings=read_settings(table, found))


def _style(name: str, table: Mapping[str, Any], found: Found) -> Style:
    words = {key: _words(key, table[key], found) for key in WORDS if key in table}
    if "prompt" in words:
        if "prefix" in words or "suffix" in words:
            found.append(("prompt", "it says prefix and suffix already; leave them out."))
        words["prefix"], words["suffix"] = _around(words.pop("prompt"), found)
    rest = {key: value for key, value in table.items() if key not in WORDS}
    return Style(name=name, settings=read_settings(rest, found, also=WORDS), **words)


def _words(key: str, value: Any, found: Found) -> str:
    if not isinstance(value, str):
        found.append((key, "this is no text; put it in quotes."))
        return ""
    try:
        check_prompt(value, what=key)
    except BadInputError as error:
        found.append((key, str(error)))
    if key != "prompt" and MARK in value:
        found.append(
            (key, f"{MARK} marks the prompt's place in `prompt` only; write prompt = {value[:40]!r}.")
        )
    return value


def _around(text: str, found: Found) -> tuple[str, str]:
    """Split a style that is written as A1111 does; there too, one without the mark follows the prompt."""
    before, mark, after = text.partition(MARK)
    if MARK in after:
        found.append(("prompt", f"{MARK} stands here more than once; the prompt has one place."))
    return (before, after) if mark else ("", f", {text}" if text.strip() else "")
