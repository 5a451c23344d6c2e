"""Command lines of all programs: dataclasses that tyro parses, whose error pages become one line."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import tyro

Config = TypeVar("Config")
_WIDE = "10000"  # columns, so many that tyro wraps no line
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_REMEDIES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose a folder that you may write to, and files that you may read"),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space, or choose another folder"),
    errno.ENAMETOOLONG: "choose a shorter name",
}
_RULE = re.compile(r"[-─╰╯]{3,}")


def parse(
    config: type[Config],
    description: str | None = None,
    default: Config | None = None,
    prog: str | None = None,
    arguments: Sequence[str] | None = None,
) -> Config:
    """Return the command line as an instance of the dataclass `config`; `--help` prints the help and exits with code 0.

    Args:
        description: text above the options in the help; by default the docstring of `config`.
        default: values of the options that the command line leaves out; by default those of `config`.
        prog: name of the program in the help; by default that of the running script.
        arguments: the command line; by default that of this process.

    Raises:
        ValueError: an option is unknown or missing, or has a value that it does not take. The message is one line.
    """
    options: dict[str, Any] = {"description": description, "prog": prog, "args": arguments}
    if default is not None:
        options["default"] = default
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            parsed: Config = tyro.cli(config, **options)
    except SystemExit as end:
        if end.code == 2:
            raise ValueError(_one_line(_error_page(config, options), config.__name__)) from None
        raise
    sys.stderr.write(printed.getvalue())  # warnings
    return parsed


def describe(error: Exception) -> str | None:
    """What to print about bad input or a machine that lacks something, as one line; None for any other error, which is the program's."""
    if isinstance(error, OSError) and error.strerror:
        file = f'"{os.fsdecode(error.filename)}"' if isinstance(error.filename, str | bytes) else "a file"
        return f"{file} cannot be read or written ({error.strerror.lower()}); {_REMEDIES.get(error.errno or 0, 'check the path')}"
    if isinstance(error, ValueError | OSError):
        return " ".join(str(error).split())
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return f"there is no home folder ({str(error).rstrip('.').lower()}); set HOME, or set JAXVIT_CACHE and give paths without ~"
    return None


def print_anything() -> None:
    """Let this process print every name: a character that the terminal's encoding does not have is shown by its number."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _error_page(config: type[Any], options: dict[str, Any]) -> str:
    """The text that tyro prints about a command line that it rejects, with no line wrapped: parsed once more, on a wide terminal."""
    page = io.StringIO()
    with _terminal_width(_WIDE), contextlib.redirect_stderr(page), contextlib.suppress(SystemExit):
        tyro.cli(config, **options)
    return page.getvalue()


@contextlib.contextmanager
def _terminal_width(columns: str) -> Iterator[None]:
    """Pretend that the terminal is `columns` wide."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = columns
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _one_line(page: str, config_name: str) -> str:
    """An error page of tyro in one line: the problem, then the options that may have been meant, without their descriptions.

    The page is a box with a title and sections between rules. The first section says what is wrong; the others show options, or
    where the full help is.
    """
    lines = [_COLOUR.sub("", line).strip(" │") for line in page.splitlines()]
    groups = itertools.groupby(lines[1:], key=lambda line: _RULE.fullmatch(line) is not None)
    sections = [text for text in (list(group) for is_rule, group in groups if not is_rule) if any(text)]
    problem, *hints = sections or [lines]
    # tyro names the class where the dataclass itself refuses its values; the errors of each member of a union repeat the option's type
    text = re.sub(rf"^Error parsing ({re.escape(config_name)}: )?", "", " ".join(problem)).partition("Got errors:")[0]
    parts = [text, *sorted(filter(None, map(_hint, hints))), "--help shows all options"]
    return "; ".join(" ".join(part.split()).rstrip(".") for part in parts)


def _hint(section: list[str]) -> str:
    """The options of a section in one line; "" where it shows none."""
    heading, *lines = section
    options = ", ".join(line for line in lines if line.startswith("-"))
    if not options:
        return ""
    return options if heading == "Argument helptext:" else f"{heading[0].lower()}{heading[1:]} {options}"
