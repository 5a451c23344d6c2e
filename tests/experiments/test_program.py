"""A program ends with one clear line and exit code 2 on bad input, whether of the command line or of the run."""

from __future__ import annotations

import errno
import io
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from experiments import results
from experiments.bench import __main__ as bench
from experiments.datasets.folders import Folders
from experiments.planning import Study
from experiments.pretrain.recipe import Pretraining, Recipe
from experiments.program import run
from experiments.report import __main__ as report
from experiments.tasks import base as tasks


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


LACKING = {
    "rights": (
        OSError(errno.EACCES, "Permission denied", "out"),
        '"out" cannot be read or written (permission denied); choose a folder that',
    ),
    "a disk for writing": (OSError(errno.EROFS, "Read-only file system", "out"), "choose a folder that you may write to"),
    "space": (OSError(errno.ENOSPC, "No space left on device"), "(no space left on device); free some space, or choose another folder"),
    "a folder": (
        OSError(errno.ENOTDIR, "Not a directory", "file/x"),
        '"file/x" cannot be read or written (not a directory); check the path',
    ),
    "a home": (
        RuntimeError("Could not determine home directory."),
        "there is no home folder (could not determine home directory); set HOME",
    ),
}


@pytest.mark.parametrize("lacking", LACKING)
def test_what_a_machine_lacks_is_one_line_with_the_remedy(lacking, monkeypatch, capsys):
    error, line = LACKING[lacking]

    def program(settings: Settings) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as end:
        run(program, Settings, None)
    printed = capsys.readouterr().err
    assert (end.value.code, printed.count("\n")) == (2, 1)
    assert line in printed


def test_names_are_printed_on_a_terminal_that_lacks_their_letters(monkeypatch):
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii", write_through=True))
    monkeypatch.setattr(sys, "argv", ["program"])
    run(lambda settings: print("käse ╭"), Settings, None)
    assert printed.getvalue() == b"k\\xe4se \\u256d\n"


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_back_end_that_is_not_here_is_one_line(platform, tmp_path):
    command = [sys.executable, "-m", "experiments.pretrain", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": platform}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith(f'error: JAX cannot start JAX_PLATFORMS="{platform}" on this machine (')
    assert "unset JAX_PLATFORMS, or set it to cpu" in done.stderr
    assert not (tmp_path / "out").exists()


REMOTE = {
    "study": lambda: Study(out="gs://bucket/study"),
    "models": lambda: Study(models=["hf://owner/model"]),
    "plug-in": lambda: Study(plugins=["https://host/plugin.py"]),
    "folders": lambda: Study("custom", data=Folders(images=Path("s3://bucket/images"))),
    "images": lambda: Study("custom", data="s3://bucket/images"),
    "results": lambda: results("gs://bucket/study"),
    "report": lambda: report.write(report.Report(Path("gs://bucket/study"))),
    "README": lambda: report.write(report.Report(Path("study"), readme=Path("https://host/README.md"))),
    "pretraining": lambda: Pretraining(Path("gs://bucket/run")),
    "start": lambda: Pretraining(Path("run"), start=Path("gs://bucket/run")),
    "benchmark": lambda: bench.bench(bench.Bench(small=True, out=Path("s3://bucket/results.json"))),
}


@pytest.mark.parametrize("place", REMOTE)
def test_a_remote_path_is_refused_and_makes_no_folder(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r'^"(gs|s3|hf|https)://.* is remote, .* copy it to a local folder'):
        REMOTE[place]()
    assert not list(tmp_path.iterdir())


IMPOSSIBLE = {
    "image size": (lambda: Study(image_size=0), "--image-size is 0; give at least 1"),
    "seed": (lambda: Study(seed=-1), "--seed is -1; give 0 or more"),
    "layer": (lambda: tasks.Readouts(layer=-1), "layer is -1; give 0 or more"),
    "iterations": (lambda: tasks.Readouts(grid_iterations=-1), "grid_iterations is -1; give 0 or more"),
    "tolerance": (lambda: tasks.Readouts(tolerance=float("nan")), "tolerance is nan; it must be positive"),
    "penalties": (lambda: tasks.Readouts(cs=(float("nan"), 1.0)), "cs are .*give at least one, all positive"),
    "steps": (lambda: Pretraining(Path("run"), steps=0), "--steps is 0; give at least 1"),
    "checkpoints": (lambda: Pretraining(Path("run"), checkpoint_every=0), "--checkpoint-every is 0; give at least 1"),
    "batch": (lambda: Recipe(batch=0), "--batch is 0; give at least 1"),
}


@pytest.mark.parametrize("option", IMPOSSIBLE)
def test_an_impossible_number_is_refused_before_anything_runs(option):
    call, message = IMPOSSIBLE[option]
    with pytest.raises(ValueError, match=message):
        call()


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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc, whose settings these are")
def test_freed_arrays_stay_with_the_process():
    """Without it 64 MB go back to the system as soon as they are freed."""
    code = (
        "import sys, numpy as np; from experiments import program; from pathlib import Path\n"
        "pages = lambda: int(Path('/proc/self/statm').read_text().split()[1]) * 4096\n"
        "if sys.argv[1] == 'keep': program._keep_freed_memory()\n"
        "before = pages(); array = np.ones(2**23); del array; print(pages() - before)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    kept = [
        int(subprocess.run([sys.executable, "-c", code, what], env=environment, capture_output=True, text=True, check=True).stdout)
        for what in ("keep", "as it is")
    ]
    assert kept[0] > 2**25 > kept[1]
