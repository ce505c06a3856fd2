"""Functions that lm-eval calls for our tasks. They score the answers to a question as pass@k for each k.

The metric `pass@k` is `nca_plugin.tasks.pass_at_k`. It is left out for each k larger than the number of answers.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from nca_plugin.display.terminal import num_cores
from nca_plugin.tasks.pass_at_k import pass_at_k
from nca_plugin.tasks.sandbox import Limits, run_programs

#: The values of k: powers of two in 1 .. 32, the paper's range.
KS: Final = (1, 2, 4, 8, 16, 32)
#: The end of a solution in GSM8K with its result (Cobbe et al. 2021, arXiv 2110.14168).
_RESULT: Final = re.compile(r"#### *\$?(-?[\d.,]*\d)")

#: A row of a task's data set.
Doc = Mapping[str, Any]
Scores = dict[str, float]


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


def bigbench(doc: Doc, answers: Sequence[Sequence[str]]) -> Scores:
    """Score answers that must equal one of the targets, ignoring case and space around it.

    `normalised@k` maps pass@k from chance .. 1 to 0 .. 1: (pass - chance) / (1 - chance). Chance is that of k
    independent guesses among the choices of the question (0 without choices). Below chance the score is negative.
    """
    targets = {_plain(target) for target in doc["targets"]}
    found = scores("pass", [_plain(answer) in targets for answer in answers[0]])
    choices = {_plain(choice) for choice in doc["multiple_choice_targets"] or ()}
    guess = len(targets & choices) / len(choices) if choices else 0.0
    for k in KS:
        if f"pass@{k}" in found:
            certainty = (1 - guess) ** k
            # If every choice is right, certainty is 0 and the question shows nothing.
            found[f"normalised@{k}"] = 1 - (1 - found[f"pass@{k}"]) / certainty if certainty else 0.0
    return found


def automata(doc: Doc, results: Sequence[tuple[float, bool]]) -> Scores:
    """Return the mean loss of the continuation in nats per token."""
    return {"loss": -results[0][0] / len(doc["continuation"].split())}


def scores(name: str, is_right: Sequence[bool]) -> Scores:
    """Return `name`@k of the answers to one question, for each k in `KS` up to the number of answers."""
    return {f"{name}@{k}": pass_at_k(len(is_right), sum(is_right), k) for k in KS if k <= len(is_right)}


def _result(text: str) -> str | None:
    found = _RESULT.search(text)
    return None if found is None else found[1].replace(",", "")


def _plain(text: str) -> str:
    return text.strip().casefold()
