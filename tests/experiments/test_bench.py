"""The benchmark: what it calls the same is the same, what it reports is what it measured, and its rows are all there."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvit
from experiments.bench import opponents, precision, programs, readouts, runs, table, tpu
from experiments.bench.__main__ import Bench, all_rows, bench
from experiments.bench.opponents import SMALL
from experiments.bench.rows import Case, Goal, Row, Seconds, Size, measure
from jaxvit.vit import abstract

SMALLEST = Size(small=True)


def result(ours, theirs, scale=(1.0, 1.0), repeats=3):
    return measure(Row("x", "", "", "float32", (), lambda size: Case(ours, theirs, scale)), SMALLEST, repeats)


def test_ours_and_theirs_take_turns_and_the_ratio_is_the_median_of_pairs():
    order = []
    paces = {"ours": iter([9.0, 1.0, 2.0, 4.0]), "theirs": iter([9.0, 3.0, 2.0, 40.0])}

    def paced(side):
        def work():
            order.append(side)
            return Seconds(next(paces[side]))

        return work

    found = result(paced("ours"), paced("theirs"), scale=(10, 5))
    assert order == ["ours", "theirs"] * 4
    assert (found["seconds"], found["theirs_seconds"]) == (20, 15)  # medians of 10, 20, 40 and of 15, 10, 200; first runs do not count
    assert found["ratio"] == 1.5  # of 1.5, 0.5, 5


def test_work_is_waited_for():
    found = result(lambda: time.sleep(0.02), lambda: time.sleep(0.06), repeats=2)
    assert found["seconds"] >= 0.02
    assert found["theirs_seconds"] >= 0.06


def test_goals_are_lower_bounds_of_ratios_and_upper_bounds_of_costs():
    assert Goal("ratio", 1.5).met({"ratio": 1.6}) is True
    assert Goal("utilisation", 0.4).met({"utilisation": 0.3}) is False
    assert Goal("seconds", 10).met({"seconds": 11}) is False
    assert Goal("memory", 0.1).met({"ratio": 3}) is None


@pytest.mark.parametrize("row", [runs.conditions, runs.layer_sweep, runs.attention_flow, runs.attention_divergence])
def test_both_sides_of_a_row_compute_the_same(row):
    """Hooks on transformers' blocks and its eager attention, against ablations and captures; random draws differ."""
    case = row(SMALLEST)
    found = case.check(case.ours(), case.theirs())
    assert next(iter(found.values())) < 1e-5
    assert case.facts.get("programs", 4) == 4


@pytest.mark.parametrize("row", [readouts.effective_rank, lambda size: readouts.neighbours(5_000, 50_000, size)])
def test_both_sides_of_a_read_out_compute_the_same(row):
    case = row(SMALLEST)
    found = case.check(case.ours(), case.theirs())
    assert next(iter(found.values())) < 1e-5


def test_operations_are_those_that_xla_counts():
    """The blocks of a scan are counted once by XLA, so one block; XLA also counts additions, which are few."""
    config = jaxvit.ViTConfig(14, 64, 1, 2, 256, registers=4, image_size=140)
    images = jax.ShapeDtypeStruct((2, 140, 140, 3), np.float32)
    lowered = jax.jit(lambda model, images: jaxvit.forward(model, images).tokens).trace(abstract(config), images)
    counted = lowered.lower(lowering_platforms=("tpu",)).cost_analysis()["flops"]
    assert 0.85 < 2 * runs.flop_per_image(config, 140) / counted < 1


def test_results_become_a_table_in_the_readme(tmp_path):
    out, readme = tmp_path / "results.json", tmp_path / "README.md"
    for name in ("effective_rank", "knn"):
        bench(Bench(rows=(name,), small=True, repeats=1, out=out))
    rows = json.loads(out.read_text())["rows"]
    assert list(rows) == list(all_rows())  # those that were not measured keep their place
    assert [name for name, row in rows.items() if "seconds" in row] == ["knn", "effective_rank"]
    assert rows["knn"]["met"] is None  # small sizes meet no goal
    assert {"device", "threads", "versions", "dtype", "goal"} <= rows["effective_rank"].keys()
    readme.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.into_readme(readme, [out])
    text = readme.read_text()
    assert "python -m experiments.bench --rows study_bf16, on a GPU" in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert f"**{rows['knn']['ratio']:.2f}x**" in text
    with pytest.raises(ValueError, match="add them"):
        table.into_readme(out, [out])


def test_every_program_of_a_study_traces_for_a_mesh():
    """Shapes and functions fit each other; what a compiler makes of them is for machines with one."""
    shapes = programs.Shapes(jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("batch",)))
    wanted = [*programs.of_model(programs.NAMES[0], jnp.bfloat16, shapes, SMALLEST), *programs.of_features(shapes, SMALLEST)]
    names = " ".join(program.name for program in wanted)
    for part in (
        "noise",
        "shuffle",
        "random_patches",
        "fix_reg_mean",
        "calibration",
        "meter",
        "sweep",
        "ridge",
        "k-NN",
        "retrieval",
        "rank",
    ):
        assert part in names
    for program in wanted:
        function, arguments = program.call
        jax.eval_shape(function, *arguments)
        assert program.dtype in ("bfloat16", "float32")


COMPILING = """
import json, os, sys
from experiments.bench import tpu
topology, accelerator, _ = tpu.SLICES["v5e"]
os.environ |= tpu.ENVIRONMENT | {"TPU_ACCELERATOR_TYPE": accelerator}
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from experiments.bench.programs import Program, Shapes
mesh = jax.sharding.Mesh(np.asarray(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices), ("batch",))
x, square = Shapes(mesh).one(512, 512), Shapes(mesh).one(64, 64)
looped = lambda x: jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x @ x, x)
calls = {"product": (jnp.matmul, (x, x)), "loop": (looped, (x,)), "eigenvalues": (jnp.linalg.eigvalsh, (square,))}
print(json.dumps(list(tpu._told(Program(name, "", "float32", call) for name, call in calls.items()))))
"""


@pytest.mark.skipif(not tpu.available(), reason="needs the TPU compiler (pip install libtpu)")
def test_there_are_seconds_only_of_what_the_compiler_can_price():
    done = subprocess.run([sys.executable, "-c", COMPILING], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    product, loop, eigenvalues = json.loads(done.stdout.splitlines()[-1])
    assert 0 < product["seconds"] < 1e-3
    assert product["bytes"] == 3 * 4 * 512**2
    assert "seconds" not in loop
    assert loop["loops"] == 1
    assert "seconds" not in eigenvalues
    assert eigenvalues["without_estimate"]


def test_programs_compiled_for_a_slice_have_a_table_of_their_own():
    entry = {"program": "forward", "model": "s", "dtype": "bfloat16", "seconds": 0.0234, "bytes": 2e9, "fits": True}
    rank = {"program": "rank", "model": "s", "dtype": "float32", "bytes": 3e10, "fits": False}
    found = [entry | {"images_per_second_per_chip": 2_700.4}, rank]
    row = {"what": "w", "against": "a", "dtype": "bfloat16", "goal": "", "met": True, "device": "v5e:2x4", "facts": {"programs": found}}
    lines = table.markdown({"rows": {"tpu": row}, "scaling": {}}).splitlines()
    assert lines[-4:] == [
        "| forward | s | bfloat16 | 23.40 | 2700 | 2000 | yes |",
        "| rank | s | float32 |  |  | 30000 | no |",
        "",
        "</details>",
    ]
    assert lines[-6].startswith("| v5e:2x4 |")


def test_precisions_are_compared_number_by_number_and_numbered_metrics_together():
    values = {"a": (0.5, 0.25), "b": (0.75, 0.05)}
    full = {("m", name, "t", f"cosine[{i}]", "f", 0, "p"): values[name] for i, name in enumerate(values)}
    half = {key: (value + (0.125 if key[1] == "a" else -0.375), 9.0) for key, (value, _) in full.items()}
    (metric,) = dict.fromkeys(map(precision._metric, full))
    found = precision._apart(full, half, *metric)
    assert found.pop("half_interval") == pytest.approx(0.15)
    assert found == {"task": "t", "metric": "cosine", "numbers": 2, "mean_difference": 0.25, "largest_difference": 0.375}
    row = {
        "what": "w",
        "against": "a",
        "dtype": "d",
        "goal": "",
        "met": None,
        "device": "",
        "facts": {"metrics": [found | {"half_interval": 0.15}]},
    }
    assert "| t | cosine | 2 | 0.25 | 0.38 | 0.15 |" in table.markdown({"rows": {"precision": row}, "scaling": {}}).splitlines()


def test_bad_input_is_refused_in_one_line(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match='unknown row "forwards"; known are forward_s'):
        bench(Bench(rows=("forwards",)))
    with pytest.raises(ValueError, match="at least once"):
        bench(Bench(repeats=0))
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ValueError, match="no results of the benchmark"):
        table.read(tmp_path / "x.json")
    with pytest.raises(ValueError, match=r"pip install -e '.\[test\]'"):
        opponents.optional("no_such_package")
    monkeypatch.setattr(tpu.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install -e '.\[tpu\]'"):
        tpu.compiled("v5e", SMALLEST)


def test_no_row_of_the_plan_is_missing():
    wanted = {
        "forward_s", "forward_b", "forward_s_bf16", "forward_b_bf16", "forward_l_bf16", "conditions", "layer_sweep", "attention_flow",
        "attention_divergence", "probes", "probes_gpu", "knn", "knn_gpu", "effective_rank", "study_bf16", "study_f32", "dispatch",
        "compile_s", "compile_g", "tpu_v5e", "tpu_v4",
    }  # fmt: skip
    assert wanted <= all_rows().keys()
    assert SMALL.grid(70, 70) == (5, 5)
