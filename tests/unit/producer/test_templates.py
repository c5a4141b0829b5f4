"""Templates become prompts: the grammar, what is drawn, what is counted, and what is refused."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producer.templates import MAX_COUNT, MAX_TEMPLATE, TemplateError, Templates, template_rng
from producer.templates.wildcards import MAX_FILE
from storage.errors import BadInputError

NO_FILES = Templates()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of wildcard files beside something that is not to be read."""
    folder = tmp_path / "cards"
    (folder / "animals").mkdir(parents=True)
    (folder / "animals" / "cats.txt").write_text("tabby\nmanx\n")
    (folder / "animals" / "dogs.txt").write_text("\ufeffbasset\r\n# a comment\r\n\r\n  borzoi  \r\n", "utf-8")
    (folder / "colour.txt").write_text("red # as a ladybird\n{dark|light} green\nno \\#1\nred\n")
    (folder / "any.txt").write_text("__animals/cats__\n__colour__\n")
    (tmp_path / "secret.txt").write_text("the secret\n")
    return folder


def all_of(template: str, folder: Path | None = None) -> list[str]:
    """Return every expansion."""
    return list(Templates(folder).expand_all(template))


def drawn(template: str, seed: int = 0) -> str:
    """Return one expansion."""
    return NO_FILES.expand_random(template, template_rng(seed, 0, 0))


def refused(template: str, folder: Path | None = None) -> str:
    """Return why a template cannot be used, which every method says."""
    templates = Templates(folder)
    said = set()
    for attempt in (
        lambda: templates.count(template),
        lambda: templates.expand_all(template),
        lambda: templates.expand_random(template, template_rng(0, 0, 0)),
    ):
        with pytest.raises(TemplateError) as error:
            attempt()
        said.add(str(error.value))
    assert len(said) == 1
    return said.pop()


@pytest.mark.parametrize(
    ("template", "expansions"),
    [
        ("an otter", ["an otter"]),
        ("{red|blue} otter", ["red otter", "blue otter"]),
        ("{a|b} {c|d}", ["a c", "a d", "b c", "b d"]),
        ("{a|b{c|d}}", ["a", "bc", "bd"]),
        ("{3::red|.5::blue| 1e-3 ::green}", ["red", "blue", "green"]),
        ("{red|0::blue}", ["red"]),
        ("{red}", ["red"]),
        ("{a|} x", ["a x", "x"]),
        ("{2$$a|b|c}", ["a,b", "a,c", "b,a", "b,c", "c,a", "c,b"]),
        ("{2$$ and $$a|b}", ["a and b", "b and a"]),
        ("{2$$|$$a|b}", ["a|b", "b|a"]),
        ("{2$$$$a|b}", ["ab", "ba"]),
        (r"{2$$ \$\$ $$a|b}", ["a $$ b", "b $$ a"]),
        ("{1-2$$a|b}", ["a", "b", "a,b", "b,a"]),
        ("{-2$$a|b}", ["a", "b", "a,b", "b,a"]),
        ("{1-$$a|b}", ["a", "b", "a,b", "b,a"]),
        ("{ 1 - 2 $$a|b}", ["a", "b", "a,b", "b,a"]),
        ("x{0-1$$a|b}", ["x", "xa", "xb"]),
        ("{9$$a|b}", ["a,b", "b,a"]),
        ("{2$$a|{b|c}}", ["a,b", "a,c", "b,a", "c,a"]),
        ("{a|a}", ["a", "a"]),
        ("  {a  |b}  c ", ["a    c", "b  c"]),
        (r"\{a\|b\} \\ \_\_x \$ \%", [r"{a|b} \ __x $ %"]),
        (r"\(a:1.2\) snake_case $5 100% a|b #1 2$$3", [r"\(a:1.2\) snake_case $5 100% a|b #1 2$$3"]),
        (r"{3\::a|b}", ["3::a", "b"]),
        ("[a|b] {[c]|d}", ["[a|b] [c]", "[a|b] d"]),
        ("x\\", ["x\\"]),
    ],
)
def test_grammar(template: str, expansions: list[str]) -> None:
    """Each construct gives these expansions in this order, and as many as are counted."""
    assert all_of(template) == expansions
    assert NO_FILES.count(template) == len(expansions)


@pytest.mark.parametrize(
    ("template", "expansions"),
    [
        ("__animals/cats__", ["tabby", "manx"]),
        (r"__animals\cats__", ["tabby", "manx"]),
        ("__animals/dogs__", ["basset", "borzoi"]),
        ("a __ animals/dogs __.", ["a basset.", "a borzoi."]),
        ("__animals/*__", ["tabby", "manx", "basset", "borzoi"]),
        ("__**/?ogs__", ["basset", "borzoi"]),
        ("__cats__", ["tabby", "manx"]),
        ("__c*__", ["red", "dark green", "light green", "no #1"]),
        ("__**/c*__", ["tabby", "manx", "red", "dark green", "light green", "no #1"]),
        ("__any__", ["tabby", "manx", "red", "dark green", "light green", "no #1"]),
        ("{2$$__animals/cats__}", ["tabby,manx", "manx,tabby"]),
        ("{2$$+$$ __animals/cats__ }", ["tabby+manx", "manx+tabby"]),
        ("{2$$__cats__|__dogs__}", ["tabby,basset", "tabby,borzoi", "manx,basset", "manx,borzoi",
                                   "basset,tabby", "basset,manx", "borzoi,tabby", "borzoi,manx"]),
    ],
)  # fmt: skip
def test_wildcards(template: str, expansions: list[str], folder: Path) -> None:
    """A wildcard stands for the lines of its file or files, which are templates again."""
    assert all_of(template, folder) == expansions
    assert Templates(folder).count(template) == len(expansions)


def test_lines_may_have_weights(tmp_path: Path) -> None:
    """A weight before a line counts as in braces, 0 leaves it out."""
    (tmp_path / "a.txt").write_text("3::red\n0::blue\n1::green\n")
    assert all_of("__a__", tmp_path) == ["red", "green"]
    rng, templates = template_rng(1, 0, 0), Templates(tmp_path)
    counts = Counter(templates.expand_random("__a__", rng) for _ in range(1000))
    assert counts["red"] == pytest.approx(750, abs=50)


def test_file_is_read_once(folder: Path) -> None:
    """One command sees one state of a file, however often a template names it."""
    templates = Templates(folder)
    assert templates.count("__animals/cats__") == 2
    (folder / "animals" / "cats.txt").write_text("tabby\n")
    assert templates.count("x __animals/cats__") == 2


def test_same_seed_line_and_image_give_the_same_prompt() -> None:
    """The generator's arguments are all that an expansion depends on."""
    template = "{" + "|".join(map(str, range(100))) + "} {3$$a|b|c|d|e}"
    first, second = (
        [
            templates.expand_random(template, template_rng(7, line, image))
            for line in range(9)
            for image in range(3)
        ]
        for templates in (NO_FILES, Templates())
    )
    assert first == second
    assert len(set(first)) > 20
    assert template_rng(7, 1, 2).random() == Random("7:1:2").random()


def test_draws_are_as_documented() -> None:
    """The count of a range, then one number for each option taken, then what those draw, left to right."""

    class Scripted(Random):
        def __init__(self, numbers: list[float]) -> None:
            super().__init__()
            self._numbers = iter(numbers)

        def random(self) -> float:
            return next(self._numbers)

    template = "{1-2$$a|b{x|y}|c} {3::p|q}"
    assert NO_FILES.expand_random(template, Scripted([0.5, 0.34, 0.6, 0.5, 0.75])) == "by,c q"
    assert NO_FILES.expand_random(template, Scripted([0.49, 0.0, 0.74])) == "a p"


def test_weights_are_respected() -> None:
    """Of 10,000 drawn with a fixed seed, each option has its share (within 4 standard deviations, 200)."""
    rng = template_rng(6, 0, 0)
    counts = Counter(NO_FILES.expand_random("{3::a|b|0.5::c|0::d|0.5::e}", rng) for _ in range(10_000))
    expected = {"a": 6000, "b": 2000, "c": 1000, "e": 1000}
    assert counts.keys() == expected.keys()
    assert all(counts[option] == pytest.approx(number, abs=200) for option, number in expected.items())


def test_several_options_are_drawn_by_weight_without_repeats() -> None:
    """The first of two is drawn by weight, the second by the weights that are left."""
    rng = template_rng(6, 0, 0)
    counts = Counter(NO_FILES.expand_random("{2$$2::a|b|c}", rng) for _ in range(10_000))
    expected = {"a,b": 2500, "a,c": 2500, "b,a": 1667, "c,a": 1667, "b,c": 833, "c,b": 833}
    assert counts.keys() == expected.keys()
    assert all(counts[option] == pytest.approx(number, abs=200) for option, number in expected.items())


def test_huge_templates_are_counted_and_begun_at_once() -> None:
    """Neither a count nor the first expansions wait for the others."""
    assert NO_FILES.count("{a|b|c|d|e|f|g|h|i|j}" * 9) == 10**9
    assert NO_FILES.count("{a|b|c|d|e|f|g|h|i|j}" * 4000) == MAX_COUNT
    many = "{20$$" + "|".join(map(str, range(40))) + "}"
    assert NO_FILES.count(many) == MAX_COUNT
    assert len(list(itertools.islice(NO_FILES.expand_all(many), 3))) == 3
    assert next(NO_FILES.expand_all("{a|b}" * 5000)) == "a" * 5000


def test_deepest_nesting_expands(tmp_path: Path) -> None:
    """Fifty choices within each other, through a file, are within what Python's stack bears."""
    (tmp_path / "a.txt").write_text("{" * 24 + "__b__" + "|x}" * 24)
    (tmp_path / "b.txt").write_text("{" * 23 + "y" + "|x}" * 23)
    templates = Templates(tmp_path)
    assert templates.count("{__a__}") == len(list(templates.expand_all("{__a__}"))) == 48
    assert templates.expand_random("{__a__}", template_rng(1, 0, 0)) in ("x", "y")
    assert "nested more than 50 deep" in refused("{{__a__}}", tmp_path)


def test_long_file_is_fast_enough(tmp_path: Path) -> None:
    """100 of 20,000 lines are counted and drawn."""
    (tmp_path / "a.txt").write_text("".join(f"line {n}\n" for n in range(20_000)))
    templates = Templates(tmp_path)
    assert templates.count("__a__ __a__") == 20_000**2
    assert templates.count("{100$$__a__}") == MAX_COUNT
    assert templates.count("{4$$__a__}") == 20_000 * 19_999 * 19_998 * 19_997
    taken = templates.expand_random("{100$$__a__}", template_rng(1, 0, 0)).split(",")
    assert len(set(taken)) == 100


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("a {b|c", "Column 3: { is not closed"),
        ("{a|{b}", "Column 1: { is not closed"),
        ("{", "Column 1: { is not closed"),
        ("a } b", "Column 3: } closes no brace"),
        ("{}", "Column 1: {} has no options"),
        ("x { }", "Column 3: {} has no options"),
        ("{2$$}", "Column 1: {} has no options"),
        ("{$$a|b}", "Column 2: there is no count before $$"),
        ("{-$$a|b}", "Column 2: there is no count before $$"),
        ("{0$$a|b}", "Column 2: a count of 0 takes nothing"),
        ("{2-1$$a|b}", "Column 2: 2-1 is no range; write the smaller number first."),
        ("{1.5$$a|b}", "Column 5: what stands before $$ is no count"),
        ("{2$$a$$b$$c}", "Column 9: what stands before $$ is no count"),
        ("{1-$$" + "|".join("x" * 101) + "}", "Column 1: { takes up to 101 options; take at most 100."),
        ("{-1::a|b}", "Column 2: weight -1 is out of range"),
        ("{1e999::a|b}", "Column 2: weight 1e999 is out of range"),
        ("x {0::a|0::b}", "Column 3: every option has weight 0"),
        ("${x=a}", "Column 1: variables (${…}) are not supported"),
        ("a %{b$$c}", "Column 3: wraps (%{…}) are not supported"),
        ("{@a|b}", "Column 2: the sampler signs"),
        ("__~a__", "Column 1: sampler signs and parameters"),
        ("__a(b=c)__", "Column 1: sampler signs and parameters"),
        ("8k __ x", "Column 4: __ begins a wildcard that is not closed"),
        ("____", "Column 1: __ begins a wildcard that is not closed"),
        ("__{a|b}__", "Column 1: __ begins a wildcard that is not closed"),
        ("a __b__", "Column 3: wildcard __b__ needs a folder of wildcard files, and none was given."),
        ("{" * 1000 + "a" + "}" * 1000, "Column 51: choices are nested more than 50 deep"),
        ("{" * 90_000, "Column 51: choices are nested more than 50 deep"),
        ("{|a}", "The template '{|a}' can come out empty"),
        ("{0-2$$a|b}", "can come out empty"),
        ("{2$$ $$a||}", "can come out empty"),
        ("  ", "The template '' can come out empty"),
        ("x" * (MAX_TEMPLATE + 1), "The template has over 100,000 characters"),
    ],
)
def test_mistake_is_said_in_one_sentence_with_its_column(template: str, said: str) -> None:
    """Where it stands, what is wrong and what to write, from every method alike."""
    sentence = refused(template)
    assert said in sentence
    assert len(sentence) < 200
    assert sentence.endswith(".")


def test_error_has_column_and_reason_apart() -> None:
    """Whoever lists problems puts the column where compilers do."""
    with pytest.raises(TemplateError) as error:
        NO_FILES.count("a }")
    assert error.value.column == 3
    assert error.value.reason.startswith("} closes no brace")


@pytest.mark.parametrize("prompt", ["x" * 10_001, "a\0b", "a \ud800"])
def test_expansion_that_is_no_prompt_names_its_template(prompt: str) -> None:
    """What a prompt may not be, an expansion may not be either."""
    template = "{" + prompt + "}"
    with pytest.raises(
        TemplateError, match=r"The template '\{.*makes a prompt that cannot be used: A prompt"
    ):
        drawn(template)
    with pytest.raises(TemplateError, match="cannot be used"):
        list(NO_FILES.expand_all(template))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("qqq", "there is no wildcard __qqq__ in the folder 'cards'; correct the name, or add qqq.txt."),
        ("color", "in the folder 'cards'; write __colour__"),
        ("cat", "write __animals/cats__"),
        ("z*", "there is no wildcard __z*__"),
        ("../secret", "wildcard __../secret__ leads out of the folder 'cards'; name a file in it."),
        ("../../etc/passwd", "leads out of the folder"),
        ("animals/../../secret", "leads out of the folder"),
        (r"..\secret", "leads out of the folder"),
        ("/etc/passwd", "leads out of the folder"),
        ("C:/x", "leads out of the folder"),
        ("link", "wildcard file link.txt is a link out of the folder"),
        ("lin*", "wildcard file link.txt is a link out of the folder"),
        ("linked/secret", "there is no wildcard"),
        ("loop", "wildcard file loop.txt cannot be read"),
        ("broken", "wildcard file broken.txt cannot be read"),
        ("pipe", "wildcard file pipe.txt is no plain file"),
        ("latin", "wildcard file latin.txt, line 2, is not UTF-8; save it as UTF-8."),
        ("huge", "wildcard file huge.txt has over 4 MiB; split it."),
        ("long", "wildcard file long.txt is too long; a file may have 100,000 lines"),
        ("braces", "wildcard file braces.txt is too long"),
        ("none", "wildcard __none__ has no lines to choose from"),
        ("off", "wildcard __off__ has no lines to choose from"),
        ("wrong", "wrong.txt, line 2, column 5: { is not closed"),
        ("names_wrong", "names_wrong.txt, line 1, column 3: wrong.txt, line 2, column 5: { is not closed"),
        ("a", "wildcards name each other in a circle, a -> b -> a; break it."),
        ("self", "wildcards name each other in a circle, self -> self; break it."),
        ("laughs9", "an expansion may take over 1,000,000 characters and choices"),
        ("chain0", "nested more than 50 deep"),
        ("...", "there is no wildcard"),
        (".hidden", "there is no wildcard"),
    ],
)
def test_wildcard_that_cannot_be_used_is_an_error_at_its_column(name: str, said: str, folder: Path) -> None:
    """Nothing outside of the folder is read, and nothing goes on for ever."""
    (folder / "link.txt").symlink_to(folder.parent / "secret.txt")
    (folder / "linked").symlink_to(folder.parent)
    (folder / "loop.txt").symlink_to(folder / "loop.txt")
    (folder / "broken.txt").symlink_to(folder / "gone")
    os.mkfifo(folder / "pipe.txt")
    files = {
        "none": "# only\n\n", "off": "0::a\n", "wrong": "fine\nnot {fine\n", "names_wrong": "a __wrong__\n",
        "a": "x\n__b__\n", "b": "__a__\n", "self": "__se*__\n", ".hidden": "x\n", "laughs0": "{|}\n",
        "long": "x\n" * 100_001, "braces": "{a|b}" * 100_000,
    }  # fmt: skip
    files |= {f"laughs{n + 1}": f"__laughs{n}__" * 10 for n in range(9)}
    files |= {f"chain{n}": "{" * 5 + f"__chain{n + 1}__" + "}" * 5 for n in range(30)} | {"chain30": "end"}
    files["names_wrong"] = "a __wrong__\n"
    for file, text in files.items():
        (folder / f"{file}.txt").write_text(text)
    (folder / "latin.txt").write_bytes(b"cafe\ncaf\xe9\n")
    (folder / "huge.txt").write_bytes(b"x" * (MAX_FILE + 1))
    sentence = refused(f"an __{name}__", folder)
    assert said in sentence
    assert sentence.startswith("Column 4: ")
    assert "secret\n" not in sentence


def test_links_within_the_folder_are_followed(folder: Path) -> None:
    """A file may have two names."""
    (folder / "kitten.txt").symlink_to(folder / "animals" / "cats.txt")
    assert all_of("__kitten__", folder) == ["tabby", "manx"]


def test_folder_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    """Before the first template."""
    with pytest.raises(BadInputError, match=r"folder of wildcards .*gone' is not there"):
        Templates(tmp_path / "gone")


_LITERAL = st.text(alphabet="ab ,", max_size=2).map(lambda text: f"a{text}")


def _choices(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    options = st.lists(inner, min_size=1, max_size=3).map("|".join)
    counts = st.sampled_from(["", "", "2$$", "1-2$$", "-3$$", "2-$$ and $$", "0-1$$"])
    return st.builds(lambda count, listed: f"x{{{count}{listed}}}", counts, options)


SMALL = st.recursive(
    _LITERAL,
    lambda inner: _choices(inner) | st.lists(inner, min_size=1, max_size=2).map("".join),
    max_leaves=5,
).map(lambda template: f"x{template}")


@given(SMALL, st.integers(0, 2**64))
@settings(max_examples=150, deadline=None)
def test_what_is_drawn_is_among_what_is_counted(template: str, seed: int) -> None:
    """For any small template, count, all and random agree."""
    number = NO_FILES.count(template)
    if number <= 5000:
        expansions = list(NO_FILES.expand_all(template))
        assert len(expansions) == number
        assert NO_FILES.expand_random(template, template_rng(seed, 0, 0)) in expansions


_PIECES = st.sampled_from(
    ["{", "}", "|", "$$", "$", "%", "2", "-", "1-2$$", "::", "0", "3::", "__", "_", "a", " ", "\\", "\n", "é",
     "#", "__cats__", "__*__", "__../x__", "__any__", "~", "!", "\0", "\ud800"]
)  # fmt: skip


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Templates:
    """Return templates with a few files, which all examples share."""
    folder = tmp_path_factory.mktemp("cards")
    (folder / "cats.txt").write_text("tabby\n{manx|2::korat}\n")
    (folder / "any.txt").write_text("{2$$__cats__}\n\n__cats__ {|x}\n")
    return Templates(folder)


_ANY = st.lists(_PIECES, max_size=30).map("".join) | st.text(max_size=60)


@given(template=_ANY, seed=st.integers())
@settings(max_examples=300, deadline=None)
def test_any_text_expands_or_is_a_bad_input(shared: Templates, template: str, seed: int) -> None:
    """There is no other error, and no end that is not reached."""
    try:
        number = shared.count(template)
        prompt = shared.expand_random(template, template_rng(seed, 0, 0))
        some = list(itertools.islice(shared.expand_all(template), 200))
    except BadInputError:
        return
    assert prompt == prompt.strip() != ""
    assert len(some) == min(number, 200)


def test_page_of_the_docs_says_what_is_so(tmp_path: Path) -> None:
    """The examples of docs/templates.md are read as they stand there."""
    page = (Path(__file__).parents[3] / "docs" / "templates.md").read_text()
    (tmp_path / "animals").mkdir()
    (tmp_path / "animals" / "cats.txt").write_text("tabby\n")
    (tmp_path / "animal.txt").write_text(page.split("```")[1].strip("\n"))
    assert all_of("__animal__", tmp_path) == ["otter", "red fox", "arctic fox", "tabby", "cat no. #1"]
    rows = [row.split("` | ")[0].removeprefix("| `") for row in page.split("## Wildcards")[0].splitlines()]
    shown = [row.replace(r"\|", "|") for row in rows if row.startswith("{")]
    assert len(shown) == 7
    assert all(NO_FILES.count(f"x{template}") > 1 for template in shown)
