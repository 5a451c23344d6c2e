"""A conversion that is killed, or runs at the same time as another, leaves a whole checkpoint or none; it uses little memory."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import save_file

from convert import convert
from convert.__main__ import main
from jaxvit import checkpoint
from jaxvit.checkpoint import load, read_manifest, refuse_foreign, save, verify, weights_hash
from jaxvit.config import ViTConfig
from jaxvit.files import sibling, sweep
from tests.convert.sources import HEADS, dinov2, dinov3, write
from tests.convert.test_sizes import meta_shapes
from tests.jaxvit import tiny

# Runs the command line and kills itself with SIGKILL when a function is called, before or after the call.
KILLED = """
import os, signal, sys
import orbax.checkpoint as ocp
from convert.__main__ import main
from jaxvit import checkpoint
owner, name, when = sys.argv[1:4]
owner = {"Checkpointer": ocp.Checkpointer, "checkpoint": checkpoint, "Path": checkpoint.Path}[owner]
original = getattr(owner, name)
def dying(*arguments, **options):
    if when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(owner, name, dying)
sys.exit(main(sys.argv[4:]))
"""
MOMENTS = {
    "nothing written": ("Checkpointer", "save", "before"),
    "weights written": ("Checkpointer", "save", "after"),
    "all but the name": ("checkpoint", "_put", "before"),
    "in the middle of the renames": ("Path", "rename", "after"),
    "named": ("checkpoint", "_put", "after"),
}


def _start(program: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", program, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("before", [False, True], ids=["new", "replacing"])
def test_a_conversion_killed_at_any_moment_leaves_a_whole_checkpoint_or_none(moment, before, tmp_path):
    source, out = tmp_path / "w.safetensors", tmp_path / "out"
    safetensors.torch.save_file(dinov2(4), source)  # read without torch, whose import would take longer than the conversion
    if before:
        save(tiny.model(), out)
    process = _start(KILLED, *MOMENTS[moment], str(source), "--out", str(out), "--heads", str(HEADS))
    assert process.wait(120) == -9
    process.communicate()
    if out.exists():
        assert verify(out) == read_manifest(out)["weights_sha256"]
    else:
        assert not before or moment == "in the middle of the renames"
        with pytest.raises(ValueError, match="is not here"):
            load(out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "_put", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(source, out, heads=HEADS)
    if before:
        verify(out)  # the checkpoint that made room for the killed one is back, though this conversion failed too
    convert(source, out, heads=HEADS)
    verify(out)
    for leftover in tmp_path.glob(".*"):
        for file in (*leftover.rglob("*"), leftover):
            os.utime(file, (0, 0))
    convert(source, out, heads=HEADS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "w.safetensors"], "folders that nobody has touched for a day are removed"


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_folder_that_another_process_writes_is_not_removed(tmp_path):
    theirs = sibling(tmp_path / "out", "tmp")
    theirs.mkdir()
    (theirs / "file").write_text("begun long ago, and still written to")
    os.utime(theirs, (0, 0))
    save(tiny.model(), tmp_path / "out")
    assert theirs.exists()


def test_a_folder_that_another_process_removes_meanwhile_is_no_error(tmp_path):
    """Another thread removes its old folder again and again: in one sweep of four, part of it vanishes during the sweep."""
    ended = threading.Event()

    def clear_away() -> None:
        while not ended.is_set():
            old = sibling(tmp_path / "out", "old")
            for name in "abcdef":
                (old / name / "deep").mkdir(parents=True)
            shutil.rmtree(old, ignore_errors=True)

    other = threading.Thread(target=clear_away)
    (tmp_path / "out").mkdir()
    other.start()
    try:
        for _ in range(300):
            sweep(tmp_path / "out")
    finally:
        ended.set()
        other.join()


def test_a_folder_that_appears_meanwhile_and_is_no_checkpoint_is_left_as_it_is(tmp_path, monkeypatch):
    out, put = tmp_path / "out", checkpoint._put

    def put_too_late(*arguments):
        out.mkdir()
        (out / "thesis.tex").write_text("precious")
        put(*arguments)

    monkeypatch.setattr(checkpoint, "_put", put_too_late)
    with pytest.raises(ValueError, match="something else"):
        save(tiny.model(), out)
    assert (out / "thesis.tex").read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_processes_that_convert_to_one_name_at_once_all_end_well(tmp_path):
    """Each converts another source three times over; the checkpoint that stays is one of them, and nothing else stays."""
    program = "import sys\nfrom convert import convert\nfor _ in range(3): convert(sys.argv[1], sys.argv[2], heads=2)"
    sources = [tmp_path / f"{seed}.safetensors" for seed in range(2)]
    for seed, source in enumerate(sources):
        safetensors.torch.save_file(dinov2(4, seed), source)
    expected = {read_manifest(convert(s, tmp_path / f"{s.stem}.out", heads=HEADS))["weights_sha256"] for s in sources}
    out = tmp_path / "out"
    with contextlib.ExitStack() as started:
        running = [started.enter_context(_start(program, str(source), str(out))) for source in sources]
        for process in running:
            _, error = process.communicate(timeout=180)
            assert process.returncode == 0, error
    assert verify(out) in expected
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_name_that_comes_and_goes_is_no_foreign_folder(tmp_path):
    """Two threads move a checkpoint to the name and away again, and remove it, as processes do that convert at the same time."""
    out, ended = tmp_path / "out", threading.Event()

    def come_and_go() -> None:
        while not ended.is_set():
            new, old = sibling(out, "tmp"), sibling(out, "old")
            new.mkdir()
            (new / "manifest.json").write_text('{"format": "jaxvit"}')
            with contextlib.suppress(OSError):
                new.rename(out)
            with contextlib.suppress(OSError):
                out.rename(old)
            for left in (new, old):
                shutil.rmtree(left, ignore_errors=True)

    others = [threading.Thread(target=come_and_go) for _ in range(2)]
    for other in others:
        other.start()
    try:
        for _ in range(3000):
            refuse_foreign(out)
    finally:
        ended.set()
        for other in others:
            other.join()


def test_a_name_that_others_take_and_leave_is_taken_in_the_end(tmp_path, monkeypatch):
    """Somebody else's checkpoint appears between each look and the rename, twice."""
    out, rename, rivals = tmp_path / "out", Path.rename, []

    def raced(self, target):
        if Path(target) == out and len(rivals) < 2:
            rivals.append(1)
            out.mkdir()
            (out / "manifest.json").write_text('{"format": "jaxvit"}')
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", raced)
    save(tiny.model(), out)
    assert len(rivals) == 2
    assert weights_hash(load(out)) == weights_hash(tiny.model())
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.fixture
def mounted(tmp_path):
    """A file system of two megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, text=True, check=False)
    if mount.returncode:
        pytest.skip(f"needs the right to mount a file system: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _larger(path: Path) -> Path:
    shapes = meta_shapes(ViTConfig(14, 128, 6, 2, 512, image_size=28))
    save_file({key: np.ones(shape, np.float32) for key, shape in shapes.items()}, path)
    return path


def test_no_space_left_is_one_line_and_nothing_stays(mounted, capfd, tmp_path):
    source = _larger(tmp_path / "w.safetensors")
    assert main([str(source), "--out", str(mounted / "out"), "--heads", "2"]) == 2
    pickled = write(tmp_path / "w.pth", {"w": torch.ones(2**20)})
    assert main([str(pickled), "--to-safetensors", str(mounted / "w.safetensors")]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 2, error
    assert error.lower().count("no space left") == 2
    assert not list(mounted.iterdir())


def test_space_that_runs_out_while_writing_is_one_line_of_ours_and_nothing_stays(tmp_path):
    """Files of this process may not grow beyond a hundred kilobytes, as under a quota, which no check beforehand sees. Writes that
    the storage library has begun may still print their errors after it has given up."""
    source = _larger(tmp_path / "w.safetensors")
    program = """
import resource, signal, sys
from convert.__main__ import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.exit(main(sys.argv[1:]))
"""
    process = _start(program, str(source), "--out", str(tmp_path / "deep" / "out"), "--heads", "2")
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2
    (line,) = re.findall("convert: .*", error)
    assert "nothing is left of it" in line
    assert "ERROR:absl" not in error
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_the_program_needs_no_accelerator(tmp_path):
    """Nor waits for one that somebody else holds."""
    source = write(tmp_path / "w.pth", dinov2(4))
    command = [sys.executable, "-m", "convert", str(source), "--out", str(tmp_path / "out"), "--heads", str(HEADS)]
    environment = {**os.environ, "JAX_PLATFORMS": "tpu"}
    completed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert completed.returncode == 0, completed.stderr


def test_a_read_only_target_is_one_line(mounted, capfd, tmp_path):
    source = write(tmp_path / "w.pth", dinov2(4))
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    assert main([str(source), "--out", str(mounted / "deep" / "out"), "--heads", "2"]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert "ead-only file system" in error


MEASURED = """
import resource, sys
import orbax.checkpoint, torch
from convert import convert, sources
sources._REOPEN_AFTER = 2**25  # half a gigabyte is more than this source holds
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert(sys.argv[1], sys.argv[2], heads=8)
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_memory_stays_below_the_written_size_and_a_leaf(kind, tmp_path):
    """In a process of its own, with everything imported before; at most 1.3 leaves above the written size. A file that stays mapped, or
    a checkpoint that is copied before it is written, takes twice the written size."""
    shapes = meta_shapes(ViTConfig(14, 512, 24, 8, 2048))
    random = np.random.default_rng(0)
    weights = {key: random.standard_normal(shape, np.float32) for key, shape in shapes.items()}
    source = tmp_path / f"w.{kind}"
    if kind == "pth":
        write(source, {key: torch.from_numpy(value) for key, value in weights.items()})
    else:
        save_file(weights, source)
    del weights
    process = _start(MEASURED, str(source), str(tmp_path / "out"))
    printed, error = process.communicate(timeout=180)
    assert process.returncode == 0, error
    before, peak = (1024 * int(x) for x in printed.split())
    written = sum(entry["bytes"] for entry in read_manifest(tmp_path / "out")["files"].values())
    leaf = 24 * 512 * 2048 * 4
    assert written > 300e6
    assert peak - before < written + 1.3 * leaf


def test_the_largest_config_is_created_without_allocating():
    """Shapes and shardings of the 7B model, in less memory than one of its matrices."""
    program = """
import resource
import jax
jax.config.update("jax_num_cpu_devices", 4)
from jax.sharding import NamedSharding, PartitionSpec
import jaxvit
from jaxvit.checkpoint import named_leaves
from jaxvit.sharding import batch_mesh
from jaxvit.vit import abstract
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sharding = NamedSharding(batch_mesh(), PartitionSpec(None, None, "batch"))
model = abstract("dinov3_vit7b16")
matrices = {name: leaf for name, leaf in named_leaves(model).items() if leaf.ndim == 3}
placed = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding) for name, leaf in matrices.items()}
assert placed["blocks.feed_forward.up.kernel"].sharding.shard_shape((40, 4096, 8192)) == (40, 4096, 2048)
print(sum(leaf.size for leaf in jax.tree.leaves(model)), 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""
    process = _start(program)
    printed, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    parameters, used = map(int, printed.split())
    assert 6.6e9 < parameters < 6.8e9
    assert used < 4096 * 8192 * 4


def test_a_half_precision_checkpoint_keeps_its_periods(tmp_path):
    source = write(tmp_path / "w.pth", dinov3())
    kernel = dinov3()["blocks.1.attn.qkv.weight"].numpy().T
    for dtype in ("bfloat16", "float16"):
        out = convert(source, tmp_path / dtype, dtype=dtype)
        model = load(out)
        stored = np.asarray(model.blocks.attention.qkv.kernel[...][1])
        np.testing.assert_array_equal(stored, kernel.astype(stored.dtype))
        assert (str(stored.dtype), read_manifest(out)["dtype"]) == (dtype, dtype)
        assert model.rope_periods[...].dtype == np.float32
    weights = dinov3() | {"norm.bias": dinov3()["norm.bias"] * 1e6}
    large = write(tmp_path / "large.pth", weights)
    with pytest.raises(ValueError, match=r"norm\.bias \(16,\) holds numbers too large for float16; choose bfloat16"):
        convert(large, tmp_path / "large", dtype="float16")
    with pytest.raises(ValueError, match='unknown dtype "int8"; possible are float32, bfloat16, float16'):
        convert(large, tmp_path / "large", dtype="int8")
    assert not (tmp_path / "large").exists()


def test_show_and_verify(tmp_path, capsys):
    out = convert(write(tmp_path / "w.pth", dinov2(4)), tmp_path / "out", heads=HEADS)
    assert main(["--show", str(out)]) == 0
    assert json.loads(capsys.readouterr().out) == read_manifest(out)
    assert main(["--verify", str(out)]) == 0
    assert f"is whole: {read_manifest(out)['weights_sha256']}" in capsys.readouterr().out
    for arguments in (["--show", str(out), "--verify", str(out)], ["--verify", str(out), "--heads", "2"], ["--show", str(tmp_path)], []):
        assert main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_flipped_byte_anywhere_is_noticed(tmp_path, capsys):
    out = convert(write(tmp_path / "w.pth", dinov2(4)), tmp_path / "out", heads=HEADS)
    files = sorted(f for f in out.rglob("*") if f.is_file())
    assert len(files) > 4
    random = np.random.default_rng(0)
    for file in files:
        content = file.read_bytes()
        for offset in random.integers(len(content), size=8):
            file.write_bytes(content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :])
            assert main(["--verify", str(out)]) == 2, f"{file} at {offset}"
            assert capsys.readouterr().err.count("\n") == 1
        file.write_bytes(content)
    assert main(["--verify", str(out)]) == 0


def test_no_module_imports_torch_or_transformers():
    """Not even all modules of the three packages together; nor huggingface_hub, before something is downloaded."""
    program = """
import importlib, pkgutil, sys
import convert, experiments, jaxvit
for package in (jaxvit, convert, experiments):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
assert "jaxvit.probes.knn" in sys.modules and "convert.pickles" in sys.modules and "experiments.study.target" in sys.modules
print(sorted({"torch", "transformers", "huggingface_hub", "timm"} & set(sys.modules)))
"""
    process = _start(program)
    printed, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert printed == "[]\n"
