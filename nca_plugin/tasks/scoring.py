"""Functions that lm-eval calls for our tasks. They score the answers to a question as pass@k for each k.

The metric `pass@k` is `nca_plugin.tasks.pass_at_k`. It is left out for each k larger than the number of answers.
"""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

from nca_plugin.display.terminal import num_cores
from nca_plugin.tasks.pass_at_k import pass_at_k
from nca_plugin.tasks.sandbox import Limits, run_programs

#: The values of k: powers of two in 1 .. 32, the paper's range.
KS: Final = (1, 2, 4, 8, 16, 32)
#: The largest chance@k of a question that counts in `normalised@k`.
_MOST_CHANCE: Final = 0.75
#: The end of a solution in GSM8K with its result (Cobbe et al. 2021, arXiv 2110.14168).
_RESULT: Final = re.compile(r"#### *\$?(-?[\d.,]*\d)")

#: A row of a task's data set.
Doc = Mapping[str, Any]
Scores = dict[str, float]
#: Pass@k and chance@k of a question.
Pair = tuple[float, float]


def all_answers(answers: list[list[str]], docs: list[Doc]) -> list[list[str]]:
    """Return all answers to each question. lm-eval's own filters would keep only one of them."""
    return answers


def gsm8k(doc: Doc, answers: Sequence[Sequence[str]]) -> Scores:
    """Score solutions by the number after `####`, which marks the result in the data set. Without it they are wrong."""
    expected = _result(doc["answer"])
    return scores("pass", [expected is not None and _result(answer) == expected for answer in answers[0]])


def prompt_answer(doc: Doc, answers: Sequence[Sequence[str]]) -> Scores:
    """Score answers that must equal the expected one, ignoring space around it."""
    return scores("pass", [answer.strip() == doc["answer"].strip() for answer in answers[0]])


def humaneval(doc: Doc, answers: Sequence[Sequence[str]]) -> Scores:
    """Score function bodies by the problem's tests, which run in a sandbox."""
    programs = [f"{doc['prompt']}{answer}\n{doc['test']}\ncheck({doc['entry_point']})\n" for answer in answers[0]]
    return scores("pass", [error is None for error in run_programs(programs, Limits(), num_cores())])


def first_target(doc: Doc) -> str:
    """Return the first of several right answers, as the one to train on."""
    target: str = doc["targets"][0]
    return target


def bigbench(doc: Doc, answers: Sequence[Sequence[str]]) -> dict[str, float | Pair]:
    """Score answers that must equal one of the targets, ignoring case and space around it.

    For `normalised@k`, which is a score of a task and not of a question, return the pair that `normalised` takes. A
    question is left out of it if chance@k is above 3/4, as it is for two choices from k = 4 on: its answers would say
    little, and be magnified more than fourfold.
    """
    targets = {_plain(target) for target in doc["targets"]}
    passes = scores("pass", [_plain(answer) in targets for answer in answers[0]])
    choices = {_plain(choice) for choice in doc["multiple_choice_targets"] or ()}
    guess = len(targets & choices) / len(choices) if choices else 0.0
    chances = {k: 1 - (1 - guess) ** k for k in KS}
    pairs = {
        f"normalised@{k}": (passes[f"pass@{k}"], chance)
        for k, chance in chances.items()
        if f"pass@{k}" in passes and chance <= _MOST_CHANCE
    }
    return {**passes, **pairs}


def normalised(pairs: Sequence[Pair]) -> float:
    """Return the score of a task on a scale where guesses have 0 and certainty has 1: (pass - chance) / (1 - chance).

    `pass` and `chance` are means over the questions of the task. BIG-bench normalises the scores of its tasks in this
    way (Srivastava et al. 2022, arXiv 2206.04615).

    Args:
        pairs: pass@k and chance@k of each question. Chance@k, at most 3/4, is the probability that at least one of k
            independent guesses among the choices of the question is right; 0 for a question without choices.

    Returns:
        -3 .. 1. It is negative if the answers do worse than guesses, which vary more than the answers of a model do.
    """
    passed, chance = _means(pairs)
    return (passed - chance) / (1 - chance)


def normalised_error(pairs: Sequence[Pair]) -> float:
    """Return the standard error of `normalised` over questions, by linearising it in both means (delta method).

    Args:
        pairs: see `normalised`; at least two.
    """
    _, chance = _means(pairs)
    rest = 1 - normalised(pairs)
    parts = [question_pass - rest * question_chance for question_pass, question_chance in pairs]
    return statistics.stdev(parts) / math.sqrt(len(parts)) / (1 - chance)


def automata(doc: Doc, results: Sequence[tuple[float, bool]]) -> Scores:
    """Return the mean loss of the continuation in nats per token."""
    return {"loss": -results[0][0] / len(doc["continuation"].split())}


def scores(name: str, is_right: Sequence[bool]) -> Scores:
    """Return `name`@k of the answers to one question, for each k in `KS` up to the number of answers."""
    return {f"{name}@{k}": pass_at_k(len(is_right), sum(is_right), k) for k in KS if k <= len(is_right)}


def _means(pairs: Sequence[Pair]) -> tuple[float, float]:
    passes, chances = zip(*pairs, strict=True)
    return statistics.fmean(passes), statistics.fmean(chances)


def _result(text: str) -> str | None:
    found = _RESULT.search(text)
    return None if found is None else found[1].replace(",", "")


def _plain(text: str) -> str:
    return text.strip().casefold()
