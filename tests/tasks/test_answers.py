"""Reading the final answer out of a reply, and comparing it."""

import pytest

from bench.tasks.answers import final_answer, is_correct, normalise, process_results


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Answer: 42", "42"),
        ("2 + 2 = 4\nAnswer: 4\n", "4"),
        ("Answer: 1\nNo, wait.\nAnswer: 2", "2"),
        ("**Answer:** 42.", "42"),
        ("Answer:\n\n  7", "7"),
        ("Answer: 5\nand then it rambles on 99", "5"),
        ("Answer: Ann: knight, Bob: knave.", "ann: knight, bob: knave"),
        ("Answer: 1,080.00", "1080"),
        ("Answer: $18", "18"),
        ("Answer: -$3.50", "-3.5"),
        ("Answer: \N{MINUS SIGN}12", "-12"),
        ("Answer: 1,5", "1,5"),
        ("Answer: 0.0", "0"),
        ("Answer: 100", "100"),
        ("42", None),
        ("Answer:", None),
        ("Answer:   \n \n", None),
        ("", None),
    ],
)
def test_final_answer(reply: str, expected: str | None) -> None:
    assert final_answer(reply) == expected


def test_a_wrong_number_that_comes_first_does_not_count() -> None:
    assert not is_correct("288 is not it. Answer: 10", "288")
    assert is_correct("10 is not it. Answer: 288.0", "288")


def test_no_marker_is_wrong_even_when_the_number_is_there() -> None:
    assert not is_correct("288", "288")
    assert not is_correct("", "")


def test_numbers_that_differ_stay_different() -> None:
    assert normalise("10") != normalise("1")
    assert normalise("1.50") == normalise("1.5") != normalise("15")
    assert normalise("-3") != normalise("3")


def test_lm_eval_hook_scores_one_or_nothing() -> None:
    doc = {"question": "?", "answer": "12"}
    assert process_results(doc, ["Answer: 12"]) == {"exact_match": 1.0}
    assert process_results(doc, ["Answer: 121"]) == {"exact_match": 0.0}
