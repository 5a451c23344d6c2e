"""A program ends with one clear line and exit code 2 on bad input, whether of the command line or of the run."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from typing import Literal

import pytest

from experiments.program import run


@dataclass(frozen=True)
class Readouts:
    ridge: float = 1.0


@dataclass(frozen=True)
class Settings:
    """Settings of a test."""

    preset: Literal["demo", "custom"] = "demo"
    batch_size: int = 8
    readouts: Readouts = field(default_factory=Readouts)


def _unreached(settings: Settings) -> None:
    pytest.fail(f"the program ran, with {settings}")


WRONG = {
    "preset": (["--preset", "dmo"], "invalid choice 'dmo' for argument '--preset'. Expected one of ('demo', 'custom')"),
    "option": (["--bacth-size", "3"], "Unrecognized options: --bacth-size, 3; perhaps you meant: --batch-size INT"),
    "word for a number": (["--batch-size", "many"], "--batch-size: invalid literal for int() with base 10: 'many'; --batch-size INT"),
    "nested value": (["--readouts.ridge", "x"], "--readouts.ridge: could not convert string to float: 'x'; --readouts.ridge FLOAT"),
    "nested option": (["--readouts.rigde", "1"], "Unrecognized options: --readouts.rigde, 1; perhaps you meant: --readouts.ridge FLOAT"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_command_line_is_one_error_line_and_code_2(case, monkeypatch, capsys):
    arguments, expected = WRONG[case]
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    with pytest.raises(SystemExit) as end:
        run(_unreached, Settings, None)
    printed = capsys.readouterr()
    assert (end.value.code, printed.out) == (2, "")
    assert printed.err == f"error: {expected}; --help shows all options\n"


def test_the_program_runs_on_the_parsed_command_line(monkeypatch):
    received = []
    monkeypatch.setattr(sys, "argv", ["program", "--batch-size", "3"])
    run(received.append, Settings, None, Settings(preset="custom"))
    assert received == [Settings("custom", 3)]


def test_bad_input_that_the_program_finds_is_one_error_line_and_code_2(monkeypatch, capsys):
    def program(settings: Settings) -> None:
        raise ValueError('cell "0123" is missing; run the study again')

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as end:
        run(program, Settings, None)
    assert end.value.code == 2
    assert capsys.readouterr().err == 'error: cell "0123" is missing; run the study again\n'


def test_other_errors_keep_their_traceback(monkeypatch):
    def program(settings: Settings) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(RuntimeError, match="a bug"):
        run(program, Settings, None)


def test_an_interrupted_program_says_how_to_go_on_and_ends_with_code_130(monkeypatch, capsys):
    def program(settings: Settings) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as end:
        run(program, Settings, None)
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted; what was finished is kept, the same command goes on from it\n"


def test_the_help_shows_the_description_and_all_options_and_ends_with_code_0(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["program", "--help"])
    with pytest.raises(SystemExit) as end:
        run(_unreached, Settings, "What the program does.")
    printed = capsys.readouterr()
    assert (end.value.code, printed.err) == (0, "")
    for text in ("What the program does.", "--preset {demo,custom}", "--batch-size INT", "--readouts.ridge FLOAT"):
        assert text in printed.out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["experiments.reproduce", "--preset", "dmo"], "error: invalid choice 'dmo' for argument '--preset'. Expected one of ('demo',"),
        (["experiments.report"], "error: Missing from python -m experiments.report: "),
        (["convert", "x", "--haeds", "3"], "convert: Unrecognized options: --haeds, 3; perhaps you meant: --heads {None}|INT;"),
    ],
)
def test_the_programs_end_so_from_a_terminal(arguments, expected):
    completed = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert (completed.returncode, completed.stdout) == (2, "")
    assert completed.stderr.startswith(expected), completed.stderr
    assert completed.stderr.count("\n") == 1
