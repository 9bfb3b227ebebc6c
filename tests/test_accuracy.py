"""Paired accuracy: statsmodels and hand-made tables as references, refusals that name the file and the items."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from statsmodels.stats.contingency_tables import mcnemar

from bench.accuracy import MARGIN, compare_accuracy, read_scores
from bench.errors import InputError
from bench.store import Loaded, load

RESULTS = Path(__file__).parent.parent / "results"


def write(path: Path, scores: Sequence[float], **fields: Any) -> Path:
    rows = [
        {"doc_id": i, "doc_hash": f"h{i}", "filter": "none", "exact_match": score, **fields}
        for i, score in enumerate(scores)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def cells(both: int, only_baseline: int, only_candidate: int, neither: int) -> tuple[list[float], list[float]]:
    baseline = [1.0] * (both + only_baseline) + [0.0] * (only_candidate + neither)
    candidate = [1.0] * both + [0.0] * only_baseline + [1.0] * only_candidate + [0.0] * neither
    return baseline, candidate


@pytest.mark.parametrize(("table", "exact"), [((114, 9, 4, 273), True), ((123, 12, 33, 232), False)])
def test_one_seed_against_mcnemar_of_statsmodels(tmp_path: Path, table: tuple[int, int, int, int], exact: bool) -> None:
    baseline, candidate = cells(*table)
    found = compare_accuracy(
        [write(tmp_path / "a.jsonl", baseline)], [write(tmp_path / "b.jsonl", candidate)], "exact_match"
    )
    a, b, c, d = table
    assert found.mcnemar is not None
    assert found.mcnemar.p_value == pytest.approx(mcnemar([[a, b], [c, d]], exact=exact).pvalue)
    assert found.mcnemar.exact is exact
    assert (found.mcnemar.only_baseline, found.mcnemar.only_candidate) == (b, c)
    assert found.difference == pytest.approx((c - b) / 400)
    # Agresti and Min: the Wald interval of the table with half an item more in each cell
    n, difference = 402, (c - b) / 402
    error = (((b + c + 1) - (c - b) ** 2 / n) / n**2) ** 0.5
    assert (found.low, found.high) == pytest.approx((difference - 1.966 * error, difference + 1.966 * error), abs=1e-4)


def test_verdicts(tmp_path: Path) -> None:
    def verdict(*table: int, margin: float = MARGIN) -> str:
        baseline, candidate = cells(*table)
        files = [write(tmp_path / "a.jsonl", baseline)], [write(tmp_path / "b.jsonl", candidate)]
        return compare_accuracy(*files, "exact_match", margin=margin).verdict

    assert verdict(600, 10, 10, 980) == "non-inferior"
    assert verdict(500, 110, 10, 980) == "inferior"
    assert verdict(130, 13, 9, 254) == "inconclusive"
    assert verdict(130, 13, 9, 254, margin=0.05) == "non-inferior"


def test_a_loss_of_the_margin_passes_in_no_more_than_its_share(tmp_path: Path) -> None:
    """A candidate that truly loses MARGIN is found non-inferior in at most 2.5 % of samples."""
    rng, passed, covered, runs = np.random.default_rng(0), 0, 0, 100
    for _ in range(runs):
        table = rng.multinomial(400, [0.3, 0.05 + MARGIN, 0.05, 0.6 - MARGIN])
        baseline, candidate = cells(*table.tolist())
        found = compare_accuracy(
            [write(tmp_path / "a.jsonl", baseline)], [write(tmp_path / "b.jsonl", candidate)], "exact_match"
        )
        passed += found.verdict == "non-inferior"
        covered += found.low <= -MARGIN <= found.high
    assert binomtest(passed, runs, 0.025, alternative="greater").pvalue > 0.001
    assert binomtest(covered, runs, 0.95).pvalue > 0.001


def test_equal_answers_do_not_prove_more_than_the_items_can(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.jsonl", [1.0, 0.0] * 5)], [write(tmp_path / "b.jsonl", [1.0, 0.0] * 5)]
    found = compare_accuracy(*files, "exact_match")
    assert found.low < -MARGIN
    assert found.verdict == "inconclusive"


def test_seeds_are_averaged_an_item(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = [rng.integers(0, 2, 500).astype(float) for _ in range(3)]
    same_item_noise = [rng.integers(0, 2, 500).astype(float) for _ in range(3)]
    files = [[write(tmp_path / f"{side}{i}.jsonl", s.tolist()) for i, s in enumerate(scores)]
             for side, scores in (("a", base), ("b", same_item_noise))]  # fmt: skip
    one = compare_accuracy(files[0][:1], files[1][:1], "exact_match")
    three = compare_accuracy(files[0], files[1], "exact_match")
    assert three.items == 500 and three.seeds == 3
    assert three.mcnemar is None and len(three.by_seed) == 3
    assert three.difference == pytest.approx(np.mean(three.by_seed))
    assert (three.high - three.low) == pytest.approx((one.high - one.low) / 3**0.5, rel=0.1)
    assert three.seed_low is not None and three.seed_high is not None
    assert three.seed_low < three.difference < three.seed_high
    # The same run handed in three times is no new evidence
    again = compare_accuracy(files[0][:1] * 3, files[1][:1] * 3, "exact_match")
    assert (again.low, again.high) == pytest.approx((one.low, one.high))


def test_mde_is_found_with_the_stated_power(tmp_path: Path) -> None:
    rng, runs = np.random.default_rng(1), 300
    quiet = cells(*[300, 60, 60, 580])
    files = [write(tmp_path / "a.jsonl", quiet[0])], [write(tmp_path / "b.jsonl", quiet[1])]
    mde = compare_accuracy(*files, "exact_match").mde
    found = 0
    for _ in range(runs):
        table = rng.multinomial(1000, [0.3, 0.06 - mde / 2, 0.06 + mde / 2, 0.58])
        result = mcnemar([[table[0], table[1]], [table[2], table[3]]], exact=False, correction=False)
        found += result.pvalue < 0.05
    assert binomtest(found, runs, 0.8).pvalue > 0.001


def test_filter_of_the_metric_is_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [1.0, 0.0], filter="strict-match")
    path.write_text(path.read_text() + path.read_text().replace("strict-match", "flexible").replace("0.0", "1.0"))
    assert list(read_scores(path, "exact_match,strict-match").values()) == [1.0, 0.0]
    assert list(read_scores(path, "exact_match,flexible").values()) == [1.0, 1.0]
    with pytest.raises(InputError, match="no item scored by 'exact_match'"):
        read_scores(path, "exact_match")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"doc_id": 0, "doc_hash": "h", "filter": "none"}\n', r"bad.jsonl line 1: no field 'exact_match'"),
        ("{not json\n", r"bad.jsonl line 1: not a sample of lm-eval"),
        ('{"doc_id": 0, "doc_hash": "h", "exact_match": "yes"}\n', r"bad.jsonl line 1: not a sample"),
        ('{"doc_id": 0, "doc_hash": "h", "exact_match": NaN}\n', r"bad.jsonl line 1: exact_match is nan"),
        ('{"doc_id": 7, "doc_hash": "h", "exact_match": 1}\n' * 2, r"bad.jsonl line 2: doc_id 7 is there twice"),
        ("", r"bad.jsonl: no item scored"),
    ],
)
def test_broken_files_are_refused_by_name_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as refused:
        read_scores(path, "exact_match")
    assert refused.value.mend


def test_unequal_items_are_refused_with_their_ids(tmp_path: Path) -> None:
    full = write(tmp_path / "full.jsonl", [1.0] * 12)
    short = write(tmp_path / "short.jsonl", [1.0] * 10)
    with pytest.raises(InputError, match=r"short.jsonl: its items are not those of full.jsonl: doc_id 10, 11 not in"):
        compare_accuracy([full], [short], "exact_match")
    with pytest.raises(InputError, match=r"doc_id 2, 3, 4, 5, 6, 7, 8, 9 and 2 more only in it"):
        compare_accuracy([write(tmp_path / "two.jsonl", [1.0] * 2)], [full], "exact_match")
    other = tmp_path / "other.jsonl"
    other.write_text(full.read_text().replace('"h3"', '"changed"'))
    with pytest.raises(InputError, match=r"doc_id 3 with other content"):
        compare_accuracy([full], [other], "exact_match")
    with pytest.raises(InputError, match="2 files of the baseline, 1 of the candidate"):
        compare_accuracy([full, full], [full], "exact_match")


def test_missing_file_says_which(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone.jsonl: cannot be read"):
        read_scores(tmp_path / "gone.jsonl", "exact_match")


def test_committed_records_pair_up() -> None:
    """The backends' files hold the same items, and their accuracies are the recorded ones."""
    sides: dict[str, dict[str, Loaded]] = defaultdict(dict)
    for item in load(RESULTS)[0]:
        if item.record.eval_after:
            sides[item.record.cell.twin_key("backend")][item.record.cell.backend] = item
    twins = [found for found in sides.values() if {"hf-peft", "unsloth"} <= found.keys()]
    assert len(twins) >= 3
    for found in twins:
        paths, recorded = [], []
        for backend in ("hf-peft", "unsloth"):
            result = found[backend].record.eval_after
            assert result is not None
            paths.append(found[backend].folder / result.samples.path)
            recorded.append(result)
        compared = compare_accuracy(paths[:1], paths[1:], recorded[0].metric)
        assert compared.items == recorded[0].items
        assert (compared.baseline, compared.candidate) == pytest.approx([result.value for result in recorded])
        assert compared.mcnemar is not None
        discordant = compared.mcnemar.only_candidate - compared.mcnemar.only_baseline
        assert discordant == round(compared.items * compared.difference)
