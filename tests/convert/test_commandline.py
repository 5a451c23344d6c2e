"""A wrong command line is one line that says what is possible, and exit code 2; the help is whole."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass, field
from typing import Literal

import pytest

from convert.__main__ import main
from convert.commandline import parse


@dataclass(frozen=True)
class Nested:
    ridge: float = 1.0
    """Strength of the penalty."""


@dataclass(frozen=True)
class Settings:
    """Settings of a test."""

    preset: Literal["demo", "custom"] = "demo"
    """One of the studies, described at such great length that no terminal of usual width shows all of this in a single line of text."""
    batch_size: int = 8
    seed: int | None = None
    nested: Nested = field(default_factory=Nested)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {self.batch_size}; pass 1 or more")


# case: arguments, and what the line must contain
WRONG = {
    "choice": (["--preset", "dmo"], "invalid choice 'dmo' for argument '--preset'. Expected one of ('demo', 'custom'); --help"),
    "misspelt": (["--bacth-size", "3"], "Unrecognized options: --bacth-size, 3; perhaps you meant: --batch-size INT; --help"),
    "nothing similar": (["--zzzz"], "Unrecognized options: --zzzz; --help shows all options"),
    "word for a number": (["--batch-size", "many"], "--batch-size: invalid literal for int() with base 10: 'many'; --batch-size INT; "),
    "word for a number or none": (["--seed", "x"], "no type matching {None}|INT could be instantiated from ['x']; --seed {None}|INT; "),
    "no value": (["--batch-size"], "Missing value for argument"),
    "nested value": (["--nested.ridge", "x"], "--nested.ridge: could not convert string to float: 'x'; --nested.ridge FLOAT; "),
    "nested option": (["--nested.rigde", "1"], "perhaps you meant: --nested.ridge FLOAT; --help shows all options"),
    "two options": (["--bacth-size", "3", "--preste", "x"], "to --bacth-size: --batch-size INT; arguments similar to --preste: --preset {"),
    "value longer than a terminal": (["--batch-size", "x" * 150], f"'{'x' * 150}'"),
    "refused by the dataclass": (["--batch-size", "0"], "batch_size must be positive, got 0; pass 1 or more"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("columns", ["20", "80", "500"])
def test_a_wrong_command_line_is_one_line_on_a_terminal_of_any_width(case, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    arguments, expected = WRONG[case]
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as refused:
        parse(Settings, arguments=arguments)
    assert expected in str(refused.value)
    assert not set(str(refused.value)) & set("╭╮╰╯│─\x1b")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("encoding", "colours"), [("utf-8", True), ("utf-8", False), ("ascii", False)])
def test_the_line_is_the_same_on_every_kind_of_terminal(encoding, colours, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(terminal, "isatty", lambda: colours)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(ValueError, match=r".") as refused:
        parse(Settings, arguments=["--preset", "dmo"])
    assert (
        str(refused.value) == "invalid choice 'dmo' for argument '--preset'. Expected one of ('demo', 'custom'); --help shows all options"
    )


def test_a_good_command_line_becomes_the_dataclass_from_the_defaults():
    default = Settings(preset="custom", batch_size=3)
    assert parse(Settings, default=default, arguments=["--nested.ridge", "2"]) == Settings("custom", 3, None, Nested(2.0))


def test_the_help_is_printed_whole_and_ends_the_program_with_code_0(capsys):
    with pytest.raises(SystemExit) as end:
        parse(Settings, prog="python -m something", arguments=["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    for text in (
        "usage: python -m something",
        "Settings of a test.",
        "--preset {demo,custom}",
        "such great length",
        "--nested.ridge FLOAT",
    ):
        assert text in printed.out


def test_remarks_made_while_a_good_command_line_is_parsed_reach_stderr(capsys):
    @dataclass
    class Remarking:
        x: int = 0

        def __post_init__(self) -> None:
            print("a remark", file=sys.stderr)

    parse(Remarking, arguments=[])
    assert capsys.readouterr().err == "a remark\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["x", "--oracle", "google"], "invalid choice 'google' for argument '--oracle'"),
        (["x", "--dtype", "int8"], "('float32', 'bfloat16', 'float16')"),
        (["x", "--haeds", "3"], "Unrecognized options: --haeds, 3; perhaps you meant: --heads {None}|INT"),
        (["x", "--heads", "three"], "--heads: no type matching {None}|INT could be instantiated from ['three']; --heads {None}|INT"),
        (["x", "y"], "Unrecognized options: y"),
    ],
)
def test_the_converter_refuses_a_wrong_command_line_in_one_line_with_code_2(arguments, expected, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("convert: ")
    assert printed.err.count("\n") == 1
    assert expected in printed.err


def test_the_converter_prints_its_help(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr()
    assert "usage: python -m convert" in printed.out
    assert "--to-safetensors" in printed.out
    assert printed.err == ""
