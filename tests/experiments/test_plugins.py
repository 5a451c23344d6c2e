"""Plug-ins: files and modules with dictionaries, and what is said of those that cannot be loaded."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.plugins import KINDS, load_plugin, source_hash

GOOD = '''"""A plug-in with something of every kind."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Named:
    name: str


CONDITIONS = {"mine": lambda config, moments, seed: None}
TASKS = {"depth": Named("depth")}
ANALYSES = {"section": Named("section")}
'''


@pytest.fixture
def write(tmp_path, monkeypatch) -> Callable[[str, str], Path]:
    """Writes a file into the current folder, whose modules are forgotten again."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)

    def written(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    yield written
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize("source", ["my_plugin.py", "my_plugin", "./my_plugin.py", "absolute"])
def test_a_plugin_is_a_file_or_a_module_of_the_current_folder(write, source):
    path = write("my_plugin.py", GOOD)
    source = str(path) if source == "absolute" else source
    plugin = load_plugin(source)
    assert plugin.source == (str(Path(source).resolve()) if source.endswith(".py") else source), "found from another folder, too"
    assert plugin.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert list(plugin.conditions) == ["mine"]
    assert plugin.tasks["depth"].name == "depth"
    assert plugin.analyses["section"].name == "section"


def test_a_module_of_a_package_is_a_plugin(write):
    write("package/__init__.py", "")
    path = write("package/inner.py", GOOD)
    plugin = load_plugin("package.inner")
    assert plugin.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert list(plugin.conditions) == ["mine"]


def test_one_dictionary_is_enough(write):
    write("conditions_only.py", "CONDITIONS = {'mine': None}")
    plugin = load_plugin("conditions_only.py")
    assert (list(plugin.conditions), dict(plugin.tasks), dict(plugin.analyses)) == (["mine"], {}, {})


def test_a_changed_file_is_loaded_again_and_is_another(write):
    write("changing.py", "CONDITIONS = {'one': None}")
    first = load_plugin("changing.py")
    write("changing.py", "CONDITIONS = {'two': None}")
    second = load_plugin("changing.py")
    assert (list(first.conditions), list(second.conditions)) == (["one"], ["two"])
    assert first.sha256 != second.sha256


@pytest.mark.parametrize("source", ["good.py", "good", "broken.py", "broken", "nowhere", "nowhere.py"])
def test_the_path_of_imports_is_left_as_it_was(write, source):
    write("good.py", GOOD)
    write("broken.py", "import nothing_of_this_name")
    before = list(sys.path)
    try:
        load_plugin(source)
    except ValueError:
        assert source != "good.py"
    assert sys.path == before


@pytest.mark.parametrize("name", ["jaxvit", "json", "numpy"])
def test_a_file_of_the_name_of_a_package_does_not_stand_in_for_it(write, name):
    package = __import__(name)
    write(f"{name}.py", GOOD)
    load_plugin(f"{name}.py")
    assert sys.modules[name] is package


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.py", r"there is no plug-in nowhere\.py; give the path of a Python file or the name of a module"),
        (".py", r"there is no plug-in \.py; "),
        ("folder.py", r"there is no plug-in folder\.py; "),
        ("nowhere", r"there is no module nowhere for a plug-in; give its name, or the path of a file that ends in \.py"),
        ("nowhere.inner", r"there is no module nowhere\.inner for a plug-in; "),
    ],
)
def test_a_plugin_that_is_not_there_is_named(write, tmp_path, source, message):
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(ValueError, match=message):
        load_plugin(source)


@pytest.mark.parametrize("source", ["broken_plugin.py", "broken_plugin"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n\nimport nothing_of_this_name\n", ", line 3: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("CONDITIONS = {}\nraise RuntimeError('two\\nlines')\n", ", line 2: RuntimeError: two lines"),
        ("def inner():\n    return 1 / 0\n\n\ninner()\n", ", line 2: ZeroDivisionError: division by zero"),
        ("import json\n\njson.loads('{')\n", ", line 3: JSONDecodeError: "),
        ("CONDITIONS = {\n", "SyntaxError: .*line 1"),
    ],
)
def test_a_broken_plugin_is_named_in_one_line_with_the_line_that_failed(write, source, text, message):
    write("broken_plugin.py", text)
    with pytest.raises(ValueError, match=f"^plug-in {source} cannot be loaded.*{message}") as raised:
        load_plugin(source)
    assert "\n" not in str(raised.value)


def test_the_line_of_a_broken_package_is_named_and_nothing_of_it_stays(write):
    write("package/__init__.py", "\nraise RuntimeError('no')\n")
    write("package/inner.py", GOOD)
    before = set(sys.modules)
    for source in ("package", "package/__init__.py"):
        with pytest.raises(ValueError, match=f"^plug-in {source} cannot be loaded, line 2: RuntimeError: no$"):
            load_plugin(source)
    assert set(sys.modules) == before


@pytest.mark.parametrize("source", ["empty.py", "empty"])
@pytest.mark.parametrize("text", ["", "CONDITIONS = {}\nTASKS = {}\n", "conditions = {'mine': None}\n"])
def test_a_plugin_without_dictionaries_is_refused(write, source, text):
    write("empty.py", text)
    with pytest.raises(ValueError, match=f"plug-in {source} has none of {', '.join(KINDS)}; define at least one"):
        load_plugin(source)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("value", "found"), [("[1]", "list"), ("None", "NoneType"), ("'text'", "str")])
def test_a_dictionary_of_another_type_is_refused(write, kind, value, found):
    write("wrong.py", f"{GOOD}\n{kind} = {value}\n")
    with pytest.raises(ValueError, match=rf"{kind} of plug-in wrong\.py is {found}; it must be a dictionary by name"):
        load_plugin("wrong.py")


def test_the_hash_of_a_source_is_of_its_text_and_empty_where_there_is_none():
    def one() -> int:
        return 1

    def other() -> int:
        return 2

    assert len(source_hash(one)) == 64
    assert source_hash(one) == source_hash(one) != source_hash(other)
    assert source_hash(eval("lambda: 1")) == ""
    assert source_hash(3) == source_hash(len) == ""
