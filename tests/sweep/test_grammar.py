"""The grammar of overrides."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.core.errors import BadSyntax, OutOfRange, RequestError
from harness.core.space import Choice, Interval
from harness.sweep.grammar import PATHS, Overrides, parse, texts_of, to_overrides


@pytest.mark.parametrize(
    ("text", "value"),
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
        ("a=../studies/open-ms", "../studies/open-ms"),
        ("a=/data/my cohort", "/data/my cohort"),
        ("a=http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("a=sqlite:////tmp/x.db", "sqlite:////tmp/x.db"),
        ("a=01", "01"),
        ("a=int(3.0)", 3),
        ("a.b-c.d=1", 1),
    ],
)
def test_single_values(text: str, value: object) -> None:
    """A single value is converted to the type that it looks like."""
    parsed = parse([text])
    assert list(parsed.values.values()) == [value] and not parsed.sweeps and not parsed.space
    assert type(next(iter(parsed.values.values()))) is type(value)


@pytest.mark.parametrize(
    ("text", "values"),
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
def test_several_values_sweep(text: str, values: tuple) -> None:
    """Several values or a range are a sweep; a range excludes its end and keeps decimals as typed."""
    parsed = parse([text])
    assert parsed.sweeps == {"a": values} and not parsed.values and not parsed.space


@pytest.mark.parametrize(
    ("text", "dimension"),
    [
        ("a=interval(0.5,2)", Interval("a", 0.5, 2.0)),
        ("a=interval(1,8)", Interval("a", 1.0, 8.0)),
        ("a=tag(log,interval(1e-5,1e-2))", Interval("a", 1e-5, 1e-2, log=True)),
        ("a=tag(search,choice(4,8))", Choice("a", (4, 8))),
        ("a=tag(search,range(1,4))", Choice("a", (1, 2, 3))),
    ],
)
def test_spaces(text: str, dimension: object) -> None:
    """Intervals and values tagged for a search are dimensions of a search space."""
    parsed = parse([text])
    assert parsed.space == (dimension,) and not parsed.values and not parsed.sweeps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sequences", r"cannot read 'sequences': it has no =\. Overrides look like key=value, key=a,b or key=range"),
        ("a=(x", r"cannot read 'a=\(x': its commas, .*Overrides look like"),
        ("a=b=c", r"cannot read 'a=b=c': its commas, .* or = do not form .*as plain text, quote it: \"a='b=c'\"\."),
        ("a=it's", r"""cannot read .*as plain text, quote it: "a='it\\'s'"\."""),
        ("a=x[1]", r"""quote it: "a='x\[1\]'"\."""),
        ("a=[é,", r"""quote it: "a='\[é,'"\."""),
        ("a=$(x)", r"""quote it: 'a='"'"'\$\(x\)'"'"''\."""),
        ("é=1", r"'é' is not a key; a key has letters, digits, dots, _ and -"),
        ("a=\udcff", r"must be valid utf-8 text, the encoding of this locale, got 'a=.udcff'"),
        ("a=foo(1)", r"cannot read 'a=foo\(1\)': unknown function 'foo'"),
        ("--ray", r"'--ray' is not an option of this command; overrides look like key=value"),
        ("+a=1", r"cannot read '\+a=1': remove the \+ or ~"),
        ("~a", r"cannot read '~a': remove the \+ or ~"),
        ("a@b=1", r"cannot read 'a@b=1': 'a@b' is not a key"),
        ("=1", r"cannot read '=1': the key is missing"),
        ("a=glob(T2*)", r"cannot read 'a=glob\(T2\*\)': patterns are not supported; list the names"),
        ("a=range(1,0)", r"'a=range\(1,0\)' has no values: range\(start, stop, step\) must lead from start towards"),
        ("a=range(0,1,0)", r"'a=range\(0,1,0\)' has no values"),
        ("a=range(0,inf,1)", r"'a=range\(0,inf,1\)' has no values"),
        ("a=range(0,1e9,1e-9)", r"has 1000000000000000000 values, and a range has at most 10000; give a larger step"),
    ],
)
def test_invalid_overrides_are_refused(text: str, message: str) -> None:
    """An override that cannot be parsed is refused; the message has the reason and no terms of Hydra's parser."""
    with pytest.raises(RequestError, match=message) as caught:
        parse([text])
    assert not re.search(r"Exception|EOF|BRACE|expecting|viable", str(caught.value))


@pytest.mark.parametrize("text", ["a=b=c", "a=it's", "a=x[1]", "a=(x)", "a={x}", "a=$(x)", 'a="', "a=x\\'"])
def test_suggested_quotes_are_read_as_plain_text(text: str) -> None:
    """The override that the message suggests, typed in a shell, has the text as its value."""
    with pytest.raises(BadSyntax) as caught:
        parse([text])
    suggested = str(caught.value).partition("quote it: ")[2].partition(". Overrides")[0]
    assert parse(shlex.split(suggested)).values == {"a": text.removeprefix("a=")}


UNUSUAL = (
    *("/home/müller/x", "日本", "h#1", "am&p", "a;b", "~/x", "x!y", "a<b>c", "50% off", "a^b`c", "$HOME", "x\ny"),
    *(":smile:", "-x", "a:b", "a b", "\u3000x", "α+β", "🙂"),
)
SIGNS = ("it's", "[red]", "a,b", "{x}", "a=b", "(x)", "x [1]", "null", "true", "2024", "range(3)", 'a"b', "'a','b'", "")


@pytest.mark.parametrize("value", UNUSUAL)
def test_characters_that_the_grammar_does_not_know_are_text(value: str) -> None:
    """They are read literally, alone, in a sweep, in a list and in a mapping."""
    assert parse([f"a={value}"]).values == {"a": value}
    assert parse([f"a={value},b, {value}1"]).sweeps == {"a": (value, "b", f"{value}1")}
    assert parse([f"a=[{value},'b',{value}1]"]).values == {"a": [value, "b", f"{value}1"]}
    if ":" not in value:
        assert parse([f"a={{k:{value}}}"]).values == {"a": {"k": value}}


@pytest.mark.parametrize("key", sorted(PATHS))
@pytest.mark.parametrize("value", [one for one in (*UNUSUAL, *SIGNS) if one])
def test_paths_are_read_literally(key: str, value: str) -> None:
    """No sign of the grammar has a meaning in a path, also in Python, and its text can be parsed."""
    parsed = parse([f"{key}={value}"])
    assert parsed == Overrides({key: value}) == to_overrides(**{key: value})
    assert parse(texts_of(parsed)) == parsed


@pytest.mark.parametrize(("text", "value"), [("data='/a (b)'", "/a (b)"), ('out="x"', "x"), ("data='it\\'s'", "it's")])
def test_quotes_around_a_path_are_removed(text: str, value: str) -> None:
    """A path may be quoted like any other text."""
    assert list(parse([text]).values.values()) == [value]


def test_labels_with_dots_can_be_keys() -> None:
    """Keys are not restricted to those of Hydra."""
    assert parse(["metrics.sensitivity_1.5mm.tolerance_mm=2"]).values == {"metrics.sensitivity_1.5mm.tolerance_mm": 2}


def test_repeated_path_is_refused() -> None:
    """A path is given once; the message does not suggest several."""
    with pytest.raises(BadSyntax, match="data is given twice; give one path"):
        parse(["data=a", "data=b"])


@pytest.mark.parametrize("second", ["a=2", "a=3,4", "a=interval(1,2)"])
def test_repeated_key_is_refused(second: str) -> None:
    """A key that is given twice is refused."""
    with pytest.raises(BadSyntax, match="a is given twice; give all its values in one override: a=a,b"):
        parse(["a=1", second])


def test_reversed_interval_is_refused() -> None:
    """A reversed interval is refused."""
    with pytest.raises(OutOfRange, match="`low < high` must hold for a, got low=2.0, high=1.0"):
        parse(["a=interval(2,1)"])


def test_several_takes_one_value_or_many() -> None:
    """``several`` returns the values of a single value, a list or a sweep as a tuple."""
    parsed = parse(["a=1", "b=[1,2]", "c=1,2"])
    assert (parsed.several("a"), parsed.several("b"), parsed.several("c")) == ((1,), (1, 2), (1, 2))
    assert parsed.several("d", (7,)) == (7,)


def test_python_values() -> None:
    """In Python, tuples are sweeps, lists are single values, and strings are parsed, except paths."""
    parsed = to_overrides(
        task="epvs", recipe__lr=0.1, seed=(0, 1), noise="range(0,0.2,0.1)", data=Path("/a (b)"), out="c=d", size=[4, 8]
    )
    assert parsed.values == {"task": "epvs", "recipe.lr": 0.1, "data": "/a (b)", "out": "c=d", "size": [4, 8]}
    assert parsed.sweeps == {"seed": (0, 1), "noise": (0.0, 0.1)}


@pytest.mark.parametrize(
    "value",
    [b"T1w", {"a"}, 1j, object(), len, {1: 2}, [b"a"], (1, b"a"), np.array([1j])],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_values_that_cannot_be_written_are_refused(value: Any) -> None:
    """Bytes, sets and other objects of Python have no form on the command line."""
    with pytest.raises(
        BadSyntax, match="sequences must be text, a number, .* or a tuple of several values to compare, got"
    ):
        to_overrides(sequences=value)


def test_numpy_values_are_python_values() -> None:
    """Arrays are lists, scalars are numbers, and a range is a sweep."""
    parsed = to_overrides(a=np.float64(0.5), b=(np.int64(1), np.float32(0.5)), c=np.array([1, 2]), seed=range(2))
    assert parsed == Overrides({"a": 0.5, "c": [1, 2]}, {"b": (1, 0.5), "seed": (0, 1)})
    assert {type(value) for value in (parsed.values["a"], *parsed.sweeps["b"])} == {int, float}


def test_text_of_python_values_can_be_parsed() -> None:
    """Values given in Python have an equivalent text."""
    parsed = Overrides(
        {
            "task": "epvs", "phantom.shape": [24, 24, 8], "report": False, "label": None, "data": "/a (b)", "x": "12",
            "y": "true", "z": "it's", "b": "a\\", "c": "\\'", "e": "", "m": {"a": [1, 2]}, "f": 1e-05,
        },
        {"sequences": ("T2w", "T2w+FLAIR"), "levels": ([1], [2])},
    )  # fmt: skip
    assert parse(texts_of(parsed)) == parsed
    assert "phantom.shape=[24,24,8]" in texts_of(parsed)
    assert "sequences=T2w,T2w+FLAIR" in texts_of(parsed)


@pytest.mark.parametrize("key", ["data", "out", "into", "csv"])
def test_empty_path_is_refused(key: str) -> None:
    """An empty path, as of a shell variable that is not set, is not the default."""
    with pytest.raises(BadSyntax, match=f"{key}= has no value"):
        parse([f"{key}="])


def test_text_that_looks_like_a_function_can_be_quoted() -> None:
    """A name with brackets is read as a function; the message shows the quoted text, which is read as it is."""
    with pytest.raises(
        BadSyntax, match=r"unknown function 'NIHSS'.*If it is plain text, quote it: (.*?)\. Over"
    ) as caught:
        parse(["column=NIHSS (24 h)"])
    shown = str(caught.value).partition("quote it: ")[2].partition(". Over")[0]
    assert parse(shlex.split(shown)).values == {"column": "NIHSS (24 h)"}


def test_quotes_may_be_the_name_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise they are removed."""
    monkeypatch.chdir(tmp_path)
    assert parse(['data="q"']).values["data"] == "q"
    (tmp_path / '"q"').mkdir()
    assert parse(['data="q"', "out='r'"]).values == {"data": '"q"', "out": "r"}
    assert parse([f'data={tmp_path}/"q"']).values["data"] == f'{tmp_path}/"q"'
