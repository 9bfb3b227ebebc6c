"""Scoring the model in memory with lm-eval, without leaving a trace in the training that follows.

lm-eval's own ``HFLM`` and ``simple_evaluate`` run the task; its own ``EvaluationTracker`` writes the files, so that its
tools read them: ``<out_dir>/<model name>/results_<time>.json`` and ``samples_<task>_<time>.jsonl``.
"""

import contextlib
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from bench.cache import cache_dir
from bench.errors import InputError, StoreError
from bench.record import EvalResult, FileRef
from bench.tasks import TaskFiles
from bench.tasks.prompt import CHAT_TEMPLATE_ARGS


def evaluate(
    model: Any,
    tokenizer: Any,
    task: TaskFiles | str,
    *,
    limit: int | None,
    batch_size: int,
    max_new_tokens: int,
    out_dir: Path,
    record_dir: Path,
    model_name: str = "model",
) -> EvalResult:
    """Score ``model`` greedily on the first ``limit`` items of ``task`` and keep lm-eval's files under ``out_dir``.

    ``task`` is one of ours (materialised) or the name of an lm-eval task, whose first metric is then reported; groups
    of tasks are refused. Prompts go through the model's chat template where it has one. ``record_dir`` is the folder
    that the returned paths are relative to; ``model_name`` is what lm-eval's files call the model.

    Restored afterwards: training mode of every module, ``use_cache``, the tokenizer's padding, and the random states
    of Python, numpy and torch, which lm-eval seeds. Raises InputError where the task or its data cannot be had.
    """
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM

    public_name = Path(model_name).name if Path(model_name).is_absolute() else model_name
    chat = bool(getattr(tokenizer, "chat_template", None))
    name = task if isinstance(task, str) else task.eval_task
    tracker = EvaluationTracker(output_path=str(out_dir))
    with _preserved_random_states(), _preserved_model(model, tokenizer):
        loaded, manager = _load(task)
        lm = HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            # The chat template writes the special tokens, as in training: the tokenizer must not add another BOS.
            add_bos_token=False if chat else None,
            chat_template_args=dict(CHAT_TEMPLATE_ARGS),
        )
        results = simple_evaluate(
            model=lm,
            model_args=f"pretrained={public_name}",
            tasks=[loaded],
            task_manager=manager,  # else it makes one with all default tasks, which takes seconds
            batch_size=batch_size,
            limit=limit,
            gen_kwargs={"max_gen_toks": max_new_tokens},
            apply_chat_template=chat,
            log_samples=True,
            evaluation_tracker=tracker,
        )
        assert results is not None
        samples_path, results_path = _save(tracker, dict(results), _private_roots(task, out_dir), public_name)
    scores = results["results"][name]
    metric = next(key for key in scores if "," in key and "_stderr," not in key)
    stderr = scores.get(metric.replace(",", "_stderr,", 1))
    return EvalResult(
        task=name,
        metric=metric.removesuffix(",none"),
        value=float(scores[metric]),
        stderr=float(stderr) if isinstance(stderr, float | int) else None,
        items=int(results["n-samples"][name]["effective"]),
        results=FileRef.of(results_path, record_dir),
        samples=FileRef.of(samples_path, record_dir),
    )


def _load(task: TaskFiles | str) -> tuple[Any, Any]:
    """lm-eval's task object and its manager.

    Our task's YAML names its data relative to its folder, so it is loaded from inside that folder.
    """
    from lm_eval.tasks import TaskManager

    if isinstance(task, TaskFiles):
        manager = TaskManager(include_path=str(task.eval_folder), include_defaults=False)
        with contextlib.chdir(task.folder):
            return manager.load([task.eval_task])["tasks"][task.eval_task], manager
    manager = _default_manager()
    if task not in manager.all_tasks:
        raise InputError(f"lm-eval task {task!r}", "no such task", "list the names with 'lm_eval ls tasks'")
    if task not in manager.all_subtasks:
        raise InputError(f"lm-eval task {task!r}", "a group or tag of tasks", "name one task of it")
    try:
        return manager.load([task])["tasks"][task], manager
    except Exception as error:  # its data set's loader raises many kinds: no network, gated, gone
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"lm-eval task {task!r}",
            f"it cannot be loaded here: {first_line}",
            "run it where the Hugging Face hub can be reached, or choose a generated task such as chain-sum",
        ) from None


@cache
def _default_manager() -> Any:
    """lm-eval's index of its own tasks; reading it takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


@contextlib.contextmanager
def _preserved_random_states() -> Iterator[None]:
    """Python's, numpy's and torch's random states (every initialised GPU included) are afterwards what they were."""
    import numpy as np
    import torch

    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)


@contextlib.contextmanager
def _preserved_model(model: Any, tokenizer: Any) -> Iterator[None]:
    """Training mode of every module, ``use_cache`` and the tokenizer's padding are afterwards what they were."""
    training = [(module, module.training) for module in model.modules()]
    configs = [c for c in (getattr(model, "config", None), getattr(model, "generation_config", None)) if c is not None]
    use_cache = [(config, getattr(config, "use_cache", None)) for config in configs]
    padding = tokenizer.pad_token, tokenizer.padding_side
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode
        for config, value in use_cache:
            config.use_cache = value
        tokenizer.pad_token, tokenizer.padding_side = padding


def _save(tracker: Any, results: dict[str, Any], roots: list[str], model_name: str) -> tuple[Path, Path]:
    """Write lm-eval's two files through its tracker, without machine paths; returns (samples, results).

    Left out: lm-eval's dump of the environment (``pretty_env_info``), for which the record has its own, made by
    allow-list. The model's folder is replaced by its name; other paths below ``roots`` keep their last component only.
    """
    samples = results.pop("samples")
    results["pretty_env_info"] = None
    results["config"]["model"] = model_name
    tracker.save_results_aggregated(results=_without_paths(results, roots), samples=samples)
    (task_name,) = samples
    tracker.save_results_samples(task_name=task_name, samples=_without_paths(samples[task_name], roots))
    folder = Path(tracker.output_path, tracker.general_config_tracker.model_name_sanitized)
    date_id = getattr(tracker, "date_id", "")
    written = folder / f"samples_{task_name}_{date_id}.jsonl", folder / f"results_{date_id}.json"
    for path in written:
        if not path.is_file():  # lm-eval logs a failed write and goes on
            raise StoreError(f"{path}: lm-eval's results could not be written; is the disk full?")
    return written


def _private_roots(task: TaskFiles | str, out_dir: Path) -> list[str]:
    """Folders whose paths say something about this machine or its user; the longest first."""
    roots = {Path.home(), Path.cwd(), cache_dir().resolve(), out_dir.resolve()}
    if isinstance(task, TaskFiles):
        roots.add(task.folder.resolve())
    return sorted((str(root) for root in roots if root != Path(root.anchor)), key=len, reverse=True)


def _without_paths(value: Any, roots: list[str]) -> Any:
    """A copy of nested ``value`` in which a text that is a path below a root is its last component."""
    if isinstance(value, str):
        return Path(value).name if any(value == root or value.startswith(root + "/") for root in roots) else value
    if isinstance(value, dict):
        return {key: _without_paths(item, roots) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_paths(item, roots) for item in value]
    return value
