"""Suites: the cells a file makes, and that every fault of a file is told with its line, its field and the mend."""

from pathlib import Path

import pytest

from bench import suite
from bench.cell import Cell
from bench.errors import InputError


@pytest.fixture
def write(tmp_path: Path):  # type: ignore[no-untyped-def]
    def _write(text: str) -> Path:
        path = tmp_path / "my.yaml"
        path.write_text(text)
        return path

    return _write


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        suite.load(path)
    return str(caught.value)


@pytest.mark.parametrize("name", suite.shipped())
def test_shipped_suites_load(name: str) -> None:
    loaded = suite.load(suite.find(name))
    assert loaded.name == name
    assert loaded.cells()
    assert not loaded.warnings
    assert {cell.backend for cell in loaded.cells()} >= {"hf-peft", "unsloth"}


def test_shipped_suites_are_these() -> None:
    assert suite.shipped() == [
        "demo", "h100-accuracy", "h100-caps", "h100-control", "h100-memory", "h100-seeds", "h100-speed", "ladder",
    ]  # fmt: skip
    assert len(suite.load(suite.find("demo")).cells()) == 8


def test_cells_are_the_product_in_the_order_of_the_axes(write) -> None:  # type: ignore[no-untyped-def]
    loaded = suite.load(
        write("name: s\nrecipe: {model: m, batch_size: 8}\naxes: {r: [16, 4], backend: [unsloth, fake]}")
    )
    assert [(c.r, c.backend) for c in loaded.cells()] == [(16, "unsloth"), (16, "fake"), (4, "unsloth"), (4, "fake")]
    assert {c.batch_size for c in loaded.cells()} == {8}
    assert loaded.axes == ("r", "backend")


def test_every_field_of_a_cell_is_a_recipe_field_and_an_axis() -> None:
    definitions = suite.json_schema()["$defs"]
    for section in ("Recipe", "Axes", "Rule"):
        assert list(definitions[section]["properties"]) == list(Cell.model_fields)  # type: ignore[index]


def test_recipe_without_axes_is_one_cell(write) -> None:  # type: ignore[no-untyped-def]
    assert suite.load(write("name: s\nrecipe: {model: m}")).cells() == [Cell(model="m")]


def test_exclude_takes_values_lists_and_all_fields_of_a_rule(write) -> None:  # type: ignore[no-untyped-def]
    text = """\
name: s
recipe: {model: m}
axes: {r: [4, 8, 16], precision: [bf16, nf4]}
exclude:
  - {r: [4, 8], precision: nf4}
  - {r: 16, precision: [bf16]}
"""
    assert [(c.r, c.precision) for c in suite.load(write(text)).cells()] == [(4, "bf16"), (8, "bf16"), (16, "nf4")]


def test_exclude_sees_the_cell_as_it_will_be(write) -> None:  # type: ignore[no-untyped-def]
    """A full fine-tune has no rank, so a rule on r does not drop it; defaults count as values."""
    text = "name: s\nrecipe: {model: m}\naxes: {method: [lora, full], r: [4]}\nexclude: [{r: 4, batch_size: 2}]"
    assert [(c.method, c.r) for c in suite.load(write(text)).cells()] == [("full", None)]


def test_exclude_can_drop_combinations_that_are_no_cells(write) -> None:  # type: ignore[no-untyped-def]
    axes = "axes: {method: [lora, full], precision: [bf16, nf4]}"
    told = refusal(write(f"name: s\nrecipe: {{model: m}}\n{axes}"))
    assert "line 3, axes.method" in told
    assert "1 of 4 combinations" in told
    assert "add to exclude: {method: full, precision: nf4}" in told
    loaded = suite.load(write(f"name: s\nrecipe: {{model: m}}\n{axes}\nexclude: [{{method: full, precision: nf4}}]"))
    assert [(c.method, c.precision) for c in loaded.cells()] == [("lora", "bf16"), ("lora", "nf4"), ("full", "bf16")]


def test_exclude_that_matches_nothing_is_a_warning(write) -> None:  # type: ignore[no-untyped-def]
    loaded = suite.load(write("name: s\nrecipe: {model: m}\naxes: {r: [4]}\nexclude: [{r: 8}]"))
    assert loaded.warnings == ("exclude[0] matches no combination",)


def test_included_cells_come_last_and_are_not_repeated(write) -> None:  # type: ignore[no-untyped-def]
    text = "name: s\nrecipe: {model: m}\naxes: {r: [4, 4, 8]}\nexclude: [{r: 8}]\ninclude: [{r: 8}, {r: 4}, {r: 64}]"
    loaded = suite.load(write(text))
    assert [c.r for c in loaded.cells()] == [4, 8, 64]
    assert len({c.digest for c in loaded.cells()}) == 3


def test_include_without_axes_is_the_whole_list(write) -> None:  # type: ignore[no-untyped-def]
    loaded = suite.load(write("name: s\nrecipe: {r: 8}\ninclude: [{model: a}, {model: b, r: 4}]"))
    assert [(c.model, c.r) for c in loaded.cells()] == [("a", 8), ("b", 4)]


def test_full_fine_tunes_of_a_rank_axis_are_one_cell(write) -> None:  # type: ignore[no-untyped-def]
    loaded = suite.load(write("name: s\nrecipe: {model: m, method: full}\naxes: {r: [4, 8, 16]}"))
    assert len(loaded.cells()) == 1


def test_on_and_off_are_words_where_a_cell_says_so(write) -> None:  # type: ignore[no-untyped-def]
    text = """\
name: s
recipe: {model: m, packing: off, padding_free: on, trust_remote_code: off}
axes: {gradient_checkpointing: [on, off, unsloth]}
exclude: [{gradient_checkpointing: off}]
"""
    cells = suite.load(write(text)).cells()
    assert [c.gradient_checkpointing for c in cells] == ["on", "unsloth"]
    assert {(c.packing, c.padding_free, c.trust_remote_code) for c in cells} == {("off", "on", False)}


def test_yaml_numbers_without_a_dot_are_numbers(write) -> None:  # type: ignore[no-untyped-def]
    assert suite.load(write("name: s\nrecipe: {model: m, learning_rate: 1e-3}")).cells()[0].learning_rate == 1e-3


def test_target_modules_may_vary_and_be_excluded(write) -> None:  # type: ignore[no-untyped-def]
    text = """\
name: s
recipe: {model: m}
axes: {target_modules: [all-linear, attention, [q_proj, v_proj]]}
exclude: [{target_modules: [all-linear, attention]}]
"""
    assert [c.target_modules for c in suite.load(write(text)).cells()] == [("q_proj", "v_proj")]


def test_base_is_the_folder_of_the_file(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    text = "name: s\nrecipe: {model: m, task: custom, custom_task: {path: data.jsonl}}"
    loaded = suite.load(write(text))
    assert loaded.base == tmp_path.resolve()
    custom = loaded.cells()[0].custom_task
    assert custom is not None and custom.path == "data.jsonl"


ONE_FAULT = {
    "misspelt key of the file": ("name: s\nrecipe: {model: m}\nrepeets: 2", "line 3, repeets", "'repeats'"),
    "misspelt key of the recipe": ("name: s\nrecipe:\n  modle: m", "line 3, recipe.modle", "'model'"),
    "misspelt axis": ("name: s\nrecipe: {model: m}\naxes:\n  precison: [bf16]", "line 4, axes.precison", "'precision'"),
    "misspelt key of a rule": (
        "name: s\nrecipe: {model: m}\nexclude:\n  - {backnd: fake}", "line 4, exclude[0].backnd", "'backend'",
    ),
    "misspelt key of an extra cell": (
        "name: s\nrecipe: {model: m}\ninclude:\n  - {sed: 1}", "line 4, include[0].sed", "'seed'",
    ),
    "misspelt key of a custom task": (
        "name: s\nrecipe:\n  model: m\n  task: custom\n  custom_task: {path: a, qestion: q}",
        "line 5, recipe.custom_task.qestion", "'question'",
    ),
    "misspelt value": ("name: s\nrecipe: {model: m, precision: bf61}", "recipe.precision: 'bf61'", "'bf16'"),
    "misspelt value of an axis": (
        "name: s\nrecipe: {model: m}\naxes:\n  precision:\n  - nf4\n  - itn8", "line 6, axes.precision[1]", "'int8'",
    ),
    "misspelt value of a rule": (
        "name: s\nrecipe: {model: m}\naxes: {precision: [nf4]}\nexclude: [{precision: [nf4, bf61]}]",
        "line 4, exclude[0].precision[1]", "'bf16'",
    ),
    "value far from any": ("name: s\nrecipe: {model: m, method: xyzzy}", "recipe.method", "known: lora, rslora"),
    "misspelt backend": ("name: s\nrecipe: {model: m, backend: unslot}", "recipe.backend: 'unslot'", "'unsloth'"),
    "misspelt task": ("name: s\nrecipe: {model: m, task: chain_sum}", "recipe.task: 'chain_sum'", "'chain-sum'"),
    "rule or number": ("name: s\nrecipe: {model: m, lora_alpha: 2rr}", "recipe.lora_alpha", "'2r'"),
    "empty axis": ("name: s\nrecipe: {model: m}\naxes:\n  r: []", "line 4, axes.r", "at least one value"),
    "axis without list": ("name: s\nrecipe: {model: m}\naxes: {r: 4}", "axes.r: an axis is a list", "write [4]"),
    "rank zero": ("name: s\nrecipe: {model: m, r: 0}", "recipe.r", "greater than or equal to 1 (got 0)"),
    "rank zero in an axis": ("name: s\nrecipe: {model: m}\naxes: {r: [4, 0]}", "axes.r[1]", "(got 0)"),
    "no rank": ("name: s\nrecipe: {model: m, r: null}", "recipe.r", "rank of at least 1"),
    "a switch for a number": ("name: s\nrecipe: {model: m, batch_size: yes}", "recipe.batch_size", "switch"),
    "infinite rate": ("name: s\nrecipe: {model: m, learning_rate: .inf}", "recipe.learning_rate", "finite"),
    "no model": ("name: s\nrecipe: {r: 4}", "recipe", "model: is missing"),
    "no name": ("recipe: {model: m}", "name: is missing", "add it"),
    "name with a slash": ("name: ../s\nrecipe: {model: m}", "line 1, name", "'../s'"),
    "no repeats": ("name: s\nrepeats: 0\nrecipe: {model: m}", "line 2, repeats", "(got 0)"),
    "no time": ("name: s\ntimeout_s: 0\nrecipe: {model: m}", "line 2, timeout_s", "greater than 0"),
    "conflict": ("name: s\nrecipe:\n  model: m\n  max_steps: 5", "line 4, recipe.max_steps", "untimed_steps (5)"),
    "accuracy of random weights": (
        "name: s\nrecipe: {model: m}\naxes:\n  source: [random, hub]\n  eval_examples: [8]",
        "line 5, axes.eval_examples", "random weights have no accuracy",
    ),
    "duplicate key": ("name: s\nrecipe:\n  model: m\n  r: 4\n  r: 8", "line 5, recipe.r", "first on line 4"),
    "empty rule": ("name: s\nrecipe: {model: m}\nexclude: [{}]", "exclude[0]", "names no field"),
    "nothing left": ("name: s\nrecipe: {model: m}\nexclude: [{r: 16}]", "exclude", "drop every combination"),
    "too many": (
        f"name: s\nrecipe: {{model: m}}\naxes: {{r: {list(range(1, 401))}, seed: {list(range(400))}}}",
        "axes", "160,000 combinations",
    ),
    "bad syntax": ("name: s\nrecipe: {model: m\naxes: {}", "line 3", "not valid YAML"),
    "an impossible date": ("name: 2024-13-45", "my.yaml", "not valid YAML"),
    "an endless alias": ("name: s\nrecipe: &a\n  model: *a", "line 2", "contains itself"),
    "two documents": ("name: s\n---\nname: t", "my.yaml", "not valid YAML"),
    "a list": ("- 1", "my.yaml", "not a mapping"),
    "empty": ("# nothing\n", "my.yaml", "is empty"),
}  # fmt: skip


@pytest.mark.parametrize("case", ONE_FAULT)
def test_a_fault_names_file_place_and_mend(case: str, write) -> None:  # type: ignore[no-untyped-def]
    text, place, mend = ONE_FAULT[case]
    told = refusal(write(text))
    assert "my.yaml" in told
    assert place in told
    assert mend in told
    assert "problems" not in told, "one fault is told once"


def test_all_faults_of_a_file_are_told_at_once_in_its_order(write) -> None:  # type: ignore[no-untyped-def]
    text = """\
name: s
repeets: 2
recipe:
  model: m
  r: 0
  max_steps: 3
axes:
  precision: [bf61]
  backend: []
"""
    told = refusal(write(text))
    assert told.startswith(f"{write(text)}: 5 problems")
    places = [
        "line 2, repeets",
        "line 5, recipe.r",
        "line 6, recipe.max_steps",
        "line 8, axes.p",
        "line 9, axes.backend",
    ]
    positions = [told.index(place) for place in places]
    assert positions == sorted(positions)


def test_a_fault_does_not_bring_forth_others(write) -> None:  # type: ignore[no-untyped-def]
    """untimed_steps 40 conflicts with the default of max_steps only because max_steps is misspelt."""
    told = refusal(write("name: s\nrecipe: {model: m, max_stepz: 50, untimed_steps: 40}"))
    assert "max_stepz" in told and "problems" not in told
    told = refusal(write("name: s\nrecipee: {model: m}"))
    assert "recipee" in told and "model: is missing" not in told


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "none.yaml")
    assert "cannot be read" in refusal(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9t\xe9")
    assert "UTF-8" in refusal(tmp_path / "latin.yaml")


def test_find(write) -> None:  # type: ignore[no-untyped-def]
    path = write("name: s")
    assert suite.find(str(path)) == path
    assert suite.find("demo").name == "demo.yaml"
    with pytest.raises(InputError, match="did you mean 'demo'"):
        suite.find("demmo")
    with pytest.raises(InputError, match=r"no such suite file.*\n.*demo"):
        suite.find("suites/none.yaml")


def test_schema_refuses_what_the_loader_refuses() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    import yaml

    schema = suite.json_schema()
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    for name in suite.shipped():
        validator.validate(yaml.safe_load(suite.find(name).read_text()))
    for bad in ({"name": "s", "recipe": {"modle": 1}}, {"name": "s", "axes": {"r": []}}, {"name": "s", "timeout_s": 0}):
        assert list(validator.iter_errors(bad))


def test_schema_describes_fields_and_their_values() -> None:
    schema = suite.json_schema()
    assert schema["additionalProperties"] is False
    definitions = schema["$defs"]
    packing = definitions["Axes"]["properties"]["packing"]  # type: ignore[index]
    assert packing["minItems"] == 1
    assert packing["items"]["enum"] == ["off", "wrapped", "bfd"]
    assert "packed best-fit" in packing["description"]
    assert definitions["Recipe"]["additionalProperties"] is False  # type: ignore[index]
    assert "required" not in definitions["Recipe"]  # type: ignore[index]
    assert schema["properties"]["timeout_s"]["exclusiveMinimum"] == 0  # type: ignore[index]
