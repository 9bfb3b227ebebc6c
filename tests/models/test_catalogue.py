"""The catalogue: each configuration builds a model of the published size; misspelt names get the nearest."""

import subprocess
import sys

import pytest

from bench.errors import InputError
from bench.models.catalogue import catalogue, entry, find, hidden_size


@pytest.mark.parametrize("name", list(catalogue()))
def test_parameters_computed_from_the_config_equal_the_published_count(name: str) -> None:
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    model = entry(name)
    config = CONFIG_MAPPING[model.config["model_type"]].from_dict(model.config)
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    assert type(built).__name__ == model.config["architectures"][0]
    assert sum(p.numel() for p in built.parameters()) == pytest.approx(model.published_parameters, rel=1e-3)


def test_has_the_architectures_that_suites_name() -> None:
    wanted = {
        "smollm2-135m-instruct", "smollm2-360m-instruct", "smollm2-1.7b-instruct", "llama-3.2-1b", "llama-3.2-3b",
        "llama-3.1-8b", "llama-3.3-70b", "mistral-7b-v0.3", "qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-7b", "qwen3-0.6b",
        "qwen3-4b", "qwen3-8b", "qwen3-14b", "gemma-3-1b", "tinyllama-1.1b",
    }  # fmt: skip
    assert wanted <= set(catalogue())
    assert len({e.hub_id for e in catalogue().values()}) == len(catalogue())


def test_found_by_name_or_hub_id_in_any_case() -> None:
    assert entry("Llama-3.1-8B").hub_id == "meta-llama/Llama-3.1-8B-Instruct"
    assert entry("qwen/qwen3-4b").name == "qwen3-4b"
    assert find("qwen/no-such") is None


def test_misspelt_name_gets_the_nearest() -> None:
    with pytest.raises(
        InputError, match=r"model 'lama-3.1-8b': not in the catalogue\n  mend: did you mean 'llama-3.1-8b'"
    ):
        entry("lama-3.1-8b")


def test_hidden_size_of_entry_and_of_nested_config() -> None:
    assert hidden_size(entry("qwen3-14b")) == 5120
    assert hidden_size({"model_type": "gemma3", "text_config": {"hidden_size": 2560}}) == 2560


def test_reading_the_catalogue_imports_no_heavy_library() -> None:
    code = "import sys, bench.models.sources, bench.models.catalogue as c; c.catalogue(); print([m for m in "
    code += "('torch', 'transformers', 'huggingface_hub', 'tokenizers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
