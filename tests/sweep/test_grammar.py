"""The override grammar, as users type it."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.core.errors import BadSyntax, OutOfRange
from harness.core.space import Choice, Interval
from harness.sweep.grammar import Overrides, parse, texts_of, to_overrides


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("a=3", 3),
        ("a=3.5", 3.5),
        ("a=1e-3", 1e-3),
        ("a=true", True),
        ("a=null", None),
        ("a=", ""),
        ("a=T2w+FLAIR", "T2w+FLAIR"),
        ("a='x, y'", "x, y"),
        ('a="it\'s"', "it's"),
        ("a=[4,8,16]", [4, 8, 16]),
        ("a=[a,[b,'c d']]", ["a", ["b", "c d"]]),
        ("a={b:1,c:[2]}", {"b": 1, "c": [2]}),
        ("a=../shared/data/open-ms", "../shared/data/open-ms"),
        ("a=/data/my cohort", "/data/my cohort"),
        ("a=http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("a=sqlite:////tmp/x.db", "sqlite:////tmp/x.db"),
        ("a=01", "01"),
        ("a=int(3.0)", 3),
        ("a.b-c.d=1", 1),
    ],
)
def test_single_values(word: str, value: object) -> None:
    """One value is a value, of the type that it looks like."""
    words = parse([word])
    assert list(words.values.values()) == [value] and not words.sweeps and not words.space
    assert type(next(iter(words.values.values()))) is type(value)


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("a=T2w,T2w+FLAIR", ("T2w", "T2w+FLAIR")),
        ("a=0,1", (0, 1)),
        ("a=choice(x,'y z')", ("x", "y z")),
        ("a=[1,2],[3]", ([1, 2], [3])),
        ("a=range(3)", (0, 1, 2)),
        ("a=range(0,0.6,0.1)", (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)),
        ("a=range(0,0.2,0.1)", (0.0, 0.1)),
        ("a=range(0,0.3,0.1)", (0.0, 0.1, 0.2)),
        ("a=range(0.1,1,0.3)", (0.1, 0.4, 0.7)),
        ("a=range(5,1,-2)", (5, 3)),
    ],
)
def test_several_values_sweep(word: str, values: tuple) -> None:
    """A comma or a range is an axis; a range leaves out its end and shows the numbers that were typed."""
    words = parse([word])
    assert words.sweeps == {"a": values} and not words.values and not words.space


@pytest.mark.parametrize(
    ("word", "dimension"),
    [
        ("a=interval(0.5,2)", Interval("a", 0.5, 2.0)),
        ("a=interval(1,8)", Interval("a", 1.0, 8.0)),
        ("a=tag(log,interval(1e-5,1e-2))", Interval("a", 1e-5, 1e-2, log=True)),
        ("a=tag(search,choice(4,8))", Choice("a", (4, 8))),
        ("a=tag(search,range(1,4))", Choice("a", (1, 2, 3))),
    ],
)
def test_spaces(word: str, dimension: object) -> None:
    """Intervals and what is tagged for the search are dimensions of a space."""
    words = parse([word])
    assert words.space == (dimension,) and not words.values and not words.sweeps


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("sequences", r"cannot read 'sequences': missing EQUAL.*Overrides look like key=value, key=a,b or key=range"),
        ("a=(x", r"cannot read 'a=\(x': .*Overrides look like"),
        ("a=b=c", r"cannot read 'a=b=c': a value that contains = .*needs quotes"),
        ("a=foo(1)", r"cannot read 'a=foo\(1\)': Unknown function 'foo'"),
        ("--ray", r"'--ray' is not an option of this command; overrides look like key=value"),
        ("+a=1", r"cannot read '\+a=1': remove the \+ or ~"),
        ("~a", r"cannot read '~a': remove the \+ or ~"),
        ("a@b=1", r"cannot read 'a@b=1': a@… is not a key"),
        ("=1", r"cannot read '=1': the key is missing"),
        ("a=glob(T2*)", r"cannot read 'a=glob\(T2\*\)': patterns are not supported; list the names"),
        ("a=range(1,0)", r"'a=range\(1,0\)' has no values: range\(start, stop, step\) must lead from start towards"),
        ("a=range(0,1,0)", r"'a=range\(0,1,0\)' has no values"),
        ("a=range(0,inf,1)", r"'a=range\(0,inf,1\)' has no values"),
    ],
)
def test_words_that_cannot_be_read(word: str, message: str) -> None:
    """The message holds the word, what is wrong and what a word looks like."""
    with pytest.raises(BadSyntax, match=message):
        parse([word])


@pytest.mark.parametrize("second", ["a=2", "a=3,4", "a=interval(1,2)"])
def test_key_twice_is_refused(second: str) -> None:
    """The second of two equal keys would win in silence."""
    with pytest.raises(BadSyntax, match="a is given twice; give all its values in one override: a=a,b"):
        parse(["a=1", second])


def test_reversed_interval_shows_the_relation() -> None:
    """The grammar reads it, the dimension refuses it."""
    with pytest.raises(OutOfRange, match="`low < high` must hold for a, got low=2.0, high=1.0"):
        parse(["a=interval(2,1)"])


def test_several_takes_one_value_or_many() -> None:
    """A single value, a list and a sweep can be asked for in one way."""
    words = parse(["a=1", "b=[1,2]", "c=1,2"])
    assert (words.several("a"), words.several("b"), words.several("c")) == ((1,), (1, 2), (1, 2))
    assert words.several("d", (7,)) == (7,)


def test_python_values_are_words() -> None:
    """A notebook's tuple sweeps, its list is one value, its strings are read by the grammar, not its paths."""
    words = to_overrides(
        task="epvs", recipe__lr=0.1, seed=(0, 1), noise="range(0,0.2,0.1)", data=Path("/a (b)"), out="c=d", size=[4, 8]
    )
    assert words.values == {"task": "epvs", "recipe.lr": 0.1, "data": "/a (b)", "out": "c=d", "size": [4, 8]}
    assert words.sweeps == {"seed": (0, 1), "noise": (0.0, 0.1)}


def test_text_is_what_a_person_would_type() -> None:
    """Notebook values have a command that says the same."""
    words = Overrides(
        {
            "task": "epvs", "phantom.shape": [24, 24, 8], "report": False, "label": None, "data": "/a (b)", "x": "12",
            "y": "true", "z": "it's", "b": "a\\", "c": "\\'", "e": "", "m": {"a": [1, 2]}, "f": 1e-05,
        },
        {"sequences": ("T2w", "T2w+FLAIR"), "levels": ([1], [2])},
    )  # fmt: skip
    assert parse(texts_of(words)) == words
    assert "phantom.shape=[24,24,8]" in texts_of(words)
    assert "sequences=T2w,T2w+FLAIR" in texts_of(words)
