"""Conditions of the command line equal the Python calls, run no code, and are refused in one line."""

from __future__ import annotations

import ast
import dataclasses
import inspect

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import jaxvit
from experiments.features import expressions
from experiments.features.expressions import Expression, inapplicable, parse_condition
from experiments.features.recipes import made_up_moments
from jaxvit.sites import SITES, width_at

CONFIG = jaxvit.ViTConfig(8, 24, 12, 3, 48, registers=4, position="antialias", image_size=64)
PLAIN = dataclasses.replace(CONFIG, registers=0)
SEED = 7


def random_moments() -> jaxvit.Moments:
    rng = np.random.default_rng(0)
    mean, variance = (
        {site: rng.random((CONFIG.depth, 2 + CONFIG.registers, width_at(site, CONFIG)), np.float32) for site in SITES} for _ in range(2)
    )
    return jaxvit.Moments(mean, variance, 8, (64, 64))


MOMENTS = random_moments()


def built(expression: str, seed: int = SEED) -> jaxvit.Ablation:
    return parse_condition(f"x={expression}").build(CONFIG, MOMENTS, seed)


def refusal(argument: str) -> str:
    with pytest.raises(ValueError, match="cannot read condition") as error:
        parse_condition(argument)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    return message


@pytest.mark.parametrize(
    ("expression", "call"),
    [
        ('zero("cls")', lambda: jaxvit.zero("cls")),
        ('zero("cls", layers=-1)', lambda: jaxvit.zero("cls", layers=-1)),
        ('zero("cls", layers=[5, -1])', lambda: jaxvit.zero("cls", layers=[5, -1])),
        ('zero("registers", layers="6-11")', lambda: jaxvit.zero("registers", layers=range(6, 12))),
        ("zero('registers', '0-2, 5')", lambda: jaxvit.zero("registers", [0, 1, 2, 5])),
        ('zero("cls", [3, 1], "mlp_output")', lambda: jaxvit.zero("cls", [1, 3], "mlp_output")),
        ('noise("cls", at="mlp_output", seed=3)', lambda: jaxvit.noise("cls", MOMENTS, 3, at="mlp_output")),
        ('zero(["cls", "registers[1]", 9])', lambda: jaxvit.zero(["cls", "registers[1]", 9])),
        ('zero(("cls", "patches[3]"))', lambda: jaxvit.zero(["cls", "patches[3]"])),
        ("zero(0)", lambda: jaxvit.zero(0)),
        ("zero(random_patches(4))", lambda: jaxvit.zero(jaxvit.random_patches(4, SEED))),
        ("zero(random_patches(count=4, seed=2))", lambda: jaxvit.zero(jaxvit.random_patches(4, 2))),
        ('constant("cls", 0.5)', lambda: jaxvit.constant("cls", np.full(24, 0.5))),
        ('constant("cls", -2, layers="3")', lambda: jaxvit.constant("cls", np.full(24, -2.0), [3])),
        ('constant("cls", vector=[1, -2.5, 3e2])', lambda: jaxvit.constant("cls", [1, -2.5, 300])),
        ("constant([1, 2], [[1, 2], [3, 4]])", lambda: jaxvit.constant([1, 2], [[1, 2], [3, 4]])),
        ('mean("registers")', lambda: jaxvit.mean("registers", MOMENTS)),
        ('mean("cls", "6-7", "block_input", True)', lambda: jaxvit.mean("cls", MOMENTS, [6, 7], "block_input", True)),
        ('mean("cls", any_size=True)', lambda: jaxvit.mean("cls", MOMENTS, any_size=True)),
        ('noise("registers", layers="6-11")', lambda: jaxvit.noise("registers", MOMENTS, SEED, range(6, 12))),
        ('noise("registers", 3)', lambda: jaxvit.noise("registers", MOMENTS, 3)),
        ('noise("cls", seed=3, any_size=True)', lambda: jaxvit.noise("cls", MOMENTS, 3, any_size=True)),
        ('shuffle("registers")', lambda: jaxvit.shuffle("registers", SEED)),
        ('zero("registers", at="head_output", heads=[2, 0])', lambda: jaxvit.zero("registers", at="head_output", heads=[0, 2])),
        ('zero("patches", channels=[23])', lambda: jaxvit.zero("patches", channels=[23])),
        ('constant("cls", 2, at="mlp_hidden", channels=[47])', lambda: jaxvit.constant("cls", [2] * 48, at="mlp_hidden", channels=[47])),
        ('mean("cls", at="mlp_hidden")', lambda: jaxvit.mean("cls", MOMENTS, at="mlp_hidden")),
        ('noise("registers", at="query", heads=[1])', lambda: jaxvit.noise("registers", MOMENTS, SEED, at="query", heads=[1])),
        ('shuffle("cls", at="value", heads=[1])', lambda: jaxvit.shuffle("cls", SEED, at="value", heads=[1])),
        ("constant(0, [[[1, 2]], [[3, 4]]])", lambda: jaxvit.constant(0, [[[1, 2]], [[3, 4]]])),
        ('add("cls", 0.5, strength=-2)', lambda: jaxvit.add("cls", np.full(24, 0.5), -2)),
        ('add("patches", [[1, 2]], 3, "6-11", norm="own")', lambda: jaxvit.add("patches", [[1, 2]], 3, range(6, 12), norm="own")),
        ('scale("registers", 0, at="value", heads=[1])', lambda: jaxvit.scale("registers", 0, at="value", heads=[1])),
        ('swap(["cls", 5], ["registers[1]", 9], "3")', lambda: jaxvit.swap(["cls", 5], ["registers[1]", 9], [3])),
        ('noise("registers", norm="own")', lambda: jaxvit.noise("registers", MOMENTS, SEED, norm="own")),
        ('shuffle("registers", seed=0, layers=[2])', lambda: jaxvit.shuffle("registers", 0, [2])),
        ("mean(random_patches(4))", lambda: jaxvit.mean(jaxvit.random_patches(4, SEED), MOMENTS)),
    ],
)
def test_an_expression_equals_the_python_call(expression, call):
    assert built(expression).to_json() == call().to_json()
    assert built(expression) == call()


def test_ablations_apply_in_the_order_in_which_they_are_written():
    zero, mean, shuffle = jaxvit.zero("cls"), jaxvit.mean("registers", MOMENTS, range(6, 12)), jaxvit.shuffle("patches", SEED)
    assert built('zero("cls") & mean("registers", layers="6-11") & shuffle("patches")') == zero & mean & shuffle
    assert built('shuffle("patches") & (mean("registers", layers="6-11") & zero("cls"))') == shuffle & mean & zero
    assert built('shuffle("patches") & zero("cls")') != zero & shuffle


@pytest.mark.parametrize(
    ("expression", "random"),
    [
        ('zero("cls") & mean("registers")', False),
        ('constant("cls", 1)', False),
        ('noise("cls")', True),
        ('shuffle("cls")', True),
        ("zero(random_patches(3))", True),
        ('noise("cls", seed=0)', False),
        ('noise("cls", 0)', False),
        ("zero(random_patches(3, 5))", False),
        ("shuffle(random_patches(3, 5))", True),
        ("shuffle(random_patches(3), seed=1)", True),
        ("shuffle(random_patches(3, 5), seed=1)", False),
        ('zero("cls") & shuffle("registers")', True),
    ],
)
def test_only_a_random_condition_depends_on_the_seed_of_the_study(expression, random):
    condition = parse_condition(f"x={expression}")
    assert condition.random is random
    assert (condition.build(CONFIG, MOMENTS, 1) != condition.build(CONFIG, MOMENTS, 2)) is random
    assert condition.build(CONFIG, MOMENTS, 1) == condition.build(CONFIG, MOMENTS, 1)


def test_an_expression_can_be_built_for_models_of_different_shapes():
    condition = parse_condition('x=constant("cls", 1.5) & mean("cls")')
    for config in (CONFIG, PLAIN, dataclasses.replace(CONFIG, width=48, depth=3)):
        ablation = condition.build(config, made_up_moments(config, (config.image_size, config.image_size)), 0)
        assert ablation.replacements[0].value == jaxvit.constant("cls", np.full(config.width, 1.5)).replacements[0].value
        assert inapplicable(ablation, config) == ""


@pytest.mark.parametrize("name", ["both", "B2", "no_cls", "a-b+c.d"])
def test_a_condition_has_a_name(name):
    condition = parse_condition(f' {name} = zero("cls")')
    assert isinstance(condition, Expression)
    assert condition.name == name


@pytest.mark.parametrize(
    "argument",
    [
        "",
        "both",
        'zero("cls")',
        'zero("cls", layers=[1])',
        '=zero("cls")',
        '2x=zero("cls")',
        '_x=zero("cls")',
        'a b=zero("cls")',
        'é=zero("cls")',
        'both:=zero("cls")',
    ],
)
def test_a_condition_without_a_proper_name_is_refused(argument):
    assert "name" in refusal(argument)


def test_the_text_does_not_depend_on_spacing_quotes_and_brackets():
    spellings = (
        'x=zero("cls")&mean("registers",layers="6-11")',
        "x = zero('cls')  &  mean( 'registers', layers = '6-11' )",
        'x=(zero(u"cls") & (mean)("registers", layers="6-" "11",))  # registers',
        "x=(zero('cls')\n   & mean('registers', layers='6-11'))",
    )
    texts = {parse_condition(spelling).text for spelling in spellings}
    assert texts == {"zero('cls') & mean('registers', layers='6-11')"}


@pytest.mark.parametrize(
    "expression", ['zero("cls", layers=[-0, 0x10])', 'constant("cls", [1e-3, -2.5])', "shuffle(random_patches(3)) & zero(0)"]
)
def test_the_text_can_be_read_again(expression):
    once = parse_condition(f"x={expression}")
    again = parse_condition(f"x={once.text}")
    assert again.text == once.text
    assert again.build(CONFIG, MOMENTS, SEED) == once.build(CONFIG, MOMENTS, SEED)


def test_a_new_constructor_is_one_entry_in_the_table_and_its_arguments_are_read_off_its_signature(monkeypatch):
    def soften(tokens: str, statistics: jaxvit.Moments, heads: list[int] | None = None, at: str = "block_output") -> jaxvit.Ablation:
        return jaxvit.mean(tokens, statistics, layers=heads or "all", at=at)

    soften.__annotations__ = {"tokens": str, "heads": list[int] | None, "at": str}
    monkeypatch.setitem(expressions.FUNCTIONS, "soften", soften)
    assert built('soften("cls", heads=[1, 2])') == jaxvit.mean("cls", MOMENTS, layers=[1, 2])
    assert "soften takes tokens, heads, at" in refusal('x=soften("cls", head=[1])')
    assert "heads is a list of integers" in refusal('x=soften("cls", heads="1")')


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        (
            'zeros("cls")',
            'there is no "zeros" (did you mean "zero"?); possible are zero, constant, mean, noise, shuffle, add, scale, swap, cut, random_',
        ),
        ('patch("cls", "donor")', "patch is not possible here: it takes an array at call time, which a study has not; call jaxvit.forward"),
        ('zero(Positions("sink"))', "Positions is not possible here: it reads an array at call time"),
        ('custom("f")', "custom is not possible here: it takes a Python function; put the condition into a file and pass that with"),
        ('eval("1")', 'there is no "eval"; possible are zero'),
        ("zero(cls)", '"cls" stands alone; put words in double quotes'),
        ("zero", '"zero" stands alone; write zero(...)'),
        ('zero("cls", layer="1")', 'zero has no argument "layer" (did you mean "layers"?); zero takes tokens, layers, at'),
        ('zero("cls", seed=1)', 'zero has no argument "seed"; zero takes tokens, layers, at'),
        ('zero("cls", any_size=True)', 'zero has no argument "any_size"'),
        ('mean("cls", statistics=1)', "statistics are the study's own"),
        ("zero()", "zero needs tokens; zero takes tokens, layers, at"),
        ('constant("cls")', "constant needs vector"),
        ('zero("cls", "all", "block_input", 5)', '"5" is one argument too many'),
        ('zero("cls", tokens="cls")', "zero is given tokens twice"),
        ('zero("cls", layers="1", layers="2")', "zero is given layers twice"),
        ('zero(**{"tokens": "cls"})', "no argument with **"),
        ('zero(*["cls"])', "\"*['cls']\" is not possible"),
        ('zero("cls", layers="11-6")', "got '11-6'"),
        ('zero("cls", layers=6.5)', 'zero cannot take "6.5" as layers; layers is a string, an integer or a list of integers'),
        ('zero("register")', 'unknown token name "register"; use "cls", "registers"'),
        ('zero("cls\\n\\x1b[0m")', "unknown token name"),
        ('zero("cls", at="output")', 'unknown site "output"; at is one of block_input'),
        ('mean("cls", at="output")', "mean is possible at block_input, query, key, value, head_output, attention_output, mlp_hidden,"),
        ('zero("cls", heads=[1])', 'heads=[1] is not possible at "block_output"; heads are apart at query, key, value, head_output'),
        ('zero("cls", at="query", channels=[1])', "channels are chosen at block_input"),
        ('zero("cls", at="query", heads=1)', "heads is a list of integers"),
        ('zero("cls", at="query", heads=[-1])', "head -1 does not exist"),
        ('zero("cls", at="query", head=[1])', 'no argument "head" (did you mean "heads"?)'),
        ('constant("cls", 1, at="output")', 'unknown site "output"'),
        ('noise("cls", seed=-1)', "seed -1 is out of range"),
        ('noise("cls", seed=1.5)', "seed is an integer"),
        ('zero("cls", norm="own")', "zero has no direction"),
        ('scale("cls", factor="2")', "factor is a number"),
        ('swap("cls", random_patches(2))', 'swap cannot take "random_patches(2)" as b; b is a string, an integer or a list of strings or'),
        ('mean("cls", norm=1)', 'norm is "own"'),
        ("zero(random_patches(0))", "count is 0; give an integer of at least 1"),
        ("random_patches(3)", "selects tokens and does nothing to them; write for example zero(random_patches(3))"),
        ('zero(zero("cls"))', "tokens is a string, an integer, a list of strings or integers or random_patches(count)"),
        ('zero(["cls", random_patches(2)])', "as tokens"),
        ("zero(1.5)", "as tokens"),
        ("zero(None)", '"None" is not possible'),
        ('constant("cls", "a")', "vector is a number, a list of numbers, a list of lists of numbers or a list of lists of lists"),
        ('constant("cls", 1e300)', "a number beyond 1e+38"),
        ('constant("cls", 1e999)', "a number beyond 1e+38"),
        ('constant("cls", [[1], [2, 3]])', "the vectors of a constant differ in length"),
        ('zero("cls") & 3', '"3" is no ablation'),
        ('"zero"', "is no ablation"),
        ('zero("cls") | zero("registers")', "is not possible; an expression is calls of zero, constant, mean"),
        ('zero("cls") and zero("registers")', "joined by &"),
        ('zero("cls") zero("registers")', 'invalid syntax at "zero("registers")"'),
        ('zero("cls"', "'(' was never closed"),
        ("", "invalid syntax"),
        ('zero("a\x00")', "null bytes"),
        ('zero("a\ud800")', "surrogates"),
        ("&".join(["zero(0)"] * 60), "more than 50 levels"),
        ("&".join(["zero(0)"] * 600), "4,799 characters, more than 4,000"),
        ("-" * 3_900 + "1", "more than 50 levels"),
        ("(" * 3_900, "too many nested parentheses"),
        ("not " * 900 + "1", "more than 50 levels"),
        ("x" + ".y" * 1_900, "more than 50 levels"),
        ("0x" + "f" * 3_900, "a number beyond 1e+38"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line_that_says_what_is_possible(expression, says):
    assert says in refusal(f"x={expression}")


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').mkdir(PATH)",
        "zero(__import__('os').mkdir(PATH))",
        "zero('cls', layers=[__import__('os').mkdir(PATH)])",
        "zero(f\"{__import__('os').mkdir(PATH)}\")",
        "[__import__('os').mkdir(PATH) for _ in (1,)]",
        "(lambda: __import__('os').mkdir(PATH))()",
        "zero(open(PATH, 'w'))",
        "eval(\"__import__('os').mkdir(PATH)\")",
        "zero.__globals__['__builtins__']['open'](PATH, 'w')",
        "zero((x := open)(PATH, 'w'))",
    ],
)
def test_no_code_is_run(expression, tmp_path):
    made = tmp_path / "made"
    refusal("x=" + expression.replace("PATH", repr(str(made))))
    assert not made.exists()


def test_nothing_in_the_parser_can_run_code():
    called = {ast.unparse(node.func) for node in ast.walk(ast.parse(inspect.getsource(expressions))) if isinstance(node, ast.Call)}
    assert not called & {"eval", "exec", "compile", "__import__", "getattr", "importlib.import_module"}


NAMES = ("zero", "cls", "__import__", "__builtins__", "os", "eval", "open", "None", "True", "...", "1j", "b'x'", "{}", '"__class__"')
LITERALS = (
    '"cls"',
    '"registers"',
    '"registers[9]"',
    "[0, 2]",
    '"6-11"',
    '"block_input"',
    '"\\n"',
    "[]",
    "1",
    "-1",
    "2.5",
    "random_patches(3)",
)
ABLATIONS = ('zero("cls")', 'mean("registers", layers="6-11")', 'noise("cls")', "shuffle(random_patches(2, 1))")
VALID = (
    "({a} & {b})",
    "zero({a})",
    "zero({a}, layers={b})",
    "zero({a}) & zero({b})",
    "mean({a}, at={b})",
    "noise({a}, seed={b})",
    "constant({a}, {b})",
    "shuffle({a}, {b})",
    "random_patches({a}, {b})",
    "[{a}, {b}]",
    "({a}, {b})",
    "-{a}",
)
INVALID = (
    "{a}.__class__",
    "{a}.{b}",
    "{a}[{b}]",
    "{a}({b})",
    "{a}(*{b})",
    "({a} + {b})",
    "[{a} for x in {b}]",
    "(x := {a})",
    "(lambda: {a})",
    "({a} if {b} else 1)",
    "f'{{{a}}}'",
    "eval({a})",
    "mean({a}, **{b})",
)
FORMS = st.one_of(st.sampled_from(VALID), st.sampled_from(INVALID))
SOURCES = st.recursive(
    st.one_of(*map(st.sampled_from, (NAMES, LITERALS, ABLATIONS))),
    lambda part: st.builds(lambda form, a, b: form.format(a=a, b=b), FORMS, part, part),
    max_leaves=8,
)
CALLS = st.lists(
    st.builds(
        lambda function, *arguments: f"{function}({', '.join(arguments)})",
        st.sampled_from(list(expressions.FUNCTIONS)),
        st.sampled_from(('"cls"', '"registers"', "2", '["cls", 1]', "random_patches(3)", "[]", '"registers[9]"')),
        st.sampled_from(
            ("seed=1", "layers=[20]", 'layers="0-3"', '"all"', "0.5", "[-1]", 'at="block_input"', 'at="mlp_output"', "any_size=True")
        ),
    ),
    min_size=1,
    max_size=3,
).map(" & ".join)
PIECES = st.lists(
    st.sampled_from(["zero", "mean", "(", ")", "[", "]", '"cls"', "'", "&", ",", "=", "layers", "1", ".", " ", "\n", "\\", "*"])
)


def is_read_or_refused(argument: str) -> None:
    """Whatever is written is an ablation or a `ValueError` of one line; so is the reason why a model cannot run it."""
    try:
        ablation = parse_condition(argument).build(CONFIG, MOMENTS, SEED)
        message = inapplicable(ablation, CONFIG)
    except ValueError as error:
        ablation, message = jaxvit.Ablation(), str(error)
    assert isinstance(ablation, jaxvit.Ablation)
    assert message.isprintable()  # and so has no line breaks


@settings(max_examples=300)
@given(st.one_of(SOURCES, CALLS))
@example('zero("cls", layers=[-1])')
@example('zero("cls[3]")')
@example("constant(0, [])")
@example("constant(0, [[]])")
def test_a_small_expression_is_read_or_refused(source):
    is_read_or_refused(f"x={source}")


@settings(max_examples=300)
@given(st.one_of(st.text(), PIECES.map("".join)))
def test_any_text_is_read_or_refused(text):
    is_read_or_refused(text)
    is_read_or_refused(f"x={text}")
    is_read_or_refused(f"x=zero({text!r})")


CONSTANT_OF_TWO = (
    'a constant of shape (2,) does not fit 1 tokens of width 24 at "block_output"; pass [24], [tokens, 24] or [12 blocks, tokens, 24]'
)


@pytest.mark.parametrize(
    ("expression", "config", "reason"),
    [
        ('zero("registers")', CONFIG, ""),
        ('mean("registers", layers="6-11") & noise("cls") & shuffle("patches")', CONFIG, ""),
        ('zero("registers")', PLAIN, "it has no registers"),
        ('zero("cls") & mean("registers[0]")', PLAIN, "it has no registers"),
        ('zero("cls", layers="10-14")', CONFIG, "it has blocks 0 to 11, not 12"),
        ('zero("cls", layers=[-13])', CONFIG, "it has blocks 0 to 11, not -13"),
        ('zero("cls", layers=[14])', CONFIG, "it has blocks 0 to 11, not 14"),
        ('zero("registers[4]")', CONFIG, "it has registers 1 to 4, written registers[0] to registers[3]"),
        ('zero("registers[1]")', dataclasses.replace(CONFIG, registers=1), "it has one register, registers[0]"),
        ('zero("patches[64]")', CONFIG, '"patches[64]" is out of range; patches are numbered 0 to 63'),
        ("zero(99)", CONFIG, "position 99 is not a token; there are 69, numbered from 0"),
        ("zero(random_patches(65))", CONFIG, "65 random patches asked for, but an image of this size has 64"),
        ('constant("cls", [1, 2])', CONFIG, CONSTANT_OF_TWO),
        ('zero("cls", at="key", heads=[1, 3])', CONFIG, "it has heads 0 to 2, not 3"),
        ('zero("cls", channels=[24])', CONFIG, 'channel 24 does not exist; this model has channels 0 to 23 at "block_output"'),
    ],
)
def test_why_a_model_cannot_run_a_condition(expression, config, reason):
    ablation = parse_condition(f"x={expression}").build(config, made_up_moments(config, (config.image_size, config.image_size)), SEED)
    assert inapplicable(ablation, config) == reason


def test_a_condition_that_reads_what_a_study_does_not_give_is_no_condition_of_a_study():
    reason = inapplicable(jaxvit.patch("cls", "donor"), CONFIG)
    assert reason == 'the condition reads "donor" at call time, which a study has not; run it with jaxvit.forward'


def test_patches_and_moments_are_compared_with_the_images_of_the_study():
    ablation = jaxvit.zero("patches[20]")
    assert inapplicable(ablation, CONFIG) == ""
    assert inapplicable(ablation, CONFIG, 32) == '"patches[20]" is out of range; patches are numbered 0 to 15'
    assert inapplicable(ablation, CONFIG, (32, 64)) == ""
    mean = jaxvit.mean("cls", made_up_moments(CONFIG, (32, 48)))
    assert inapplicable(mean, CONFIG) == ""
    assert inapplicable(mean, CONFIG, 32).startswith("statistics were made at 32x48, the images are 32x32")
    with pytest.raises(ValueError, match="no multiple of the patch size"):
        inapplicable(ablation, CONFIG, 20)
