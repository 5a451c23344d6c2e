"""The wheel holds the library alone; a checkout that is installed in editable mode gives all three packages to any folder."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import jaxvit

ROOT = Path(__file__).resolve().parents[1]
BUILD = """
import sys
sys.modules["jax"] = None  # an import of it would fail: nothing of the package is imported while it is built
from setuptools import build_meta
print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of what is packaged, so that nothing is built in the checkout and nothing that was built there before gets in."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for package in ("jaxvit", "convert", "experiments"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def built(hook: str, checkout: Path, folder: Path) -> zipfile.ZipFile:
    """The wheel that a build hook of setuptools makes, without network."""
    folder.mkdir()
    command = [sys.executable, "-c", BUILD, hook, str(folder)]
    completed = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=120, check=False)
    assert completed.returncode == 0, completed.stderr
    return zipfile.ZipFile(folder / completed.stdout.splitlines()[-1])


def test_the_wheel_holds_the_library_alone_with_its_types_and_demo_models(checkout, tmp_path):
    with built("build_wheel", checkout, tmp_path / "wheel") as wheel:
        names = set(wheel.namelist())
    assert {name.split("/")[0] for name in names} == {"jaxvit", f"jaxvit-{jaxvit.__version__}.dist-info"}
    assert "jaxvit/py.typed" in names
    library = {path.relative_to(ROOT).as_posix() for path in (ROOT / "jaxvit").rglob("*") if path.suffix in (".py", ".safetensors", ".md")}
    assert {name for name in library if name.endswith(".safetensors")}, "the demo models"
    assert library <= names


def test_an_editable_install_adds_the_checkout_to_the_path(checkout, tmp_path):
    """One line in a .pth file, and no table of packages: files beside the modules are found, and so are new modules."""
    with built("build_editable", checkout, tmp_path / "wheel") as wheel:
        (pth,) = (name for name in wheel.namelist() if name.endswith(".pth"))
        assert Path(wheel.read(pth).decode().strip()).resolve() == checkout.resolve()
        assert not [name for name in wheel.namelist() if name.endswith(".py")]


def test_all_packages_and_their_data_are_found_from_any_folder(tmp_path):
    program = (
        "import convert, experiments, jaxvit; from importlib.resources import files; "
        "print((files('experiments.study') / 'published.json').is_file(), (files('jaxvit') / 'demo' / 'demo_reg.safetensors').is_file())"
    )
    completed = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout == "True True\n"


def test_the_installed_version_is_that_of_the_package():
    assert importlib.metadata.version("jaxvit") == jaxvit.__version__
