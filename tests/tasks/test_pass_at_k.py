"""pass@k against its definition."""

import itertools

import pytest

from nca_plugin.errors import NCAPluginError
from nca_plugin.tasks.pass_at_k import pass_at_k


@pytest.mark.parametrize("num_samples", [1, 2, 5, 8])
def test_it_is_the_share_of_choices_with_a_right_one(num_samples: int) -> None:
    for num_right in range(num_samples + 1):
        answers = [True] * num_right + [False] * (num_samples - num_right)
        for k in range(1, num_samples + 1):
            choices = [any(choice) for choice in itertools.combinations(answers, k)]
            assert pass_at_k(num_samples, num_right, k) == pytest.approx(sum(choices) / len(choices), abs=1e-12)


def test_of_64_samples() -> None:
    assert pass_at_k(64, 0, 32) == 0 and pass_at_k(64, 64, 1) == 1 and pass_at_k(64, 33, 32) == 1
    assert pass_at_k(64, 16, 1) == 0.25
    # The product form: one less the chance that each of two draws without replacement is wrong.
    assert pass_at_k(64, 16, 2) == pytest.approx(1 - 48 / 64 * 47 / 63, rel=1e-12)


@pytest.mark.parametrize("k", [0, 65])
def test_more_than_the_samples_is_refused(k: int) -> None:
    with pytest.raises(NCAPluginError, match=f"pass@{k} of 64 samples: k must lie in 1 .. 64"):
        pass_at_k(64, 3, k)
