"""What lm-eval calls for the tasks in `tasks`: how many of a question's answers are right, as pass@k for each k.

A metric `pass@k` is `nca_plugin.tasks.pass_at_k`; those with more than the answers drawn are left out.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from nca_plugin.display.terminal import num_cores
from nca_plugin.tasks.pass_at_k import pass_at_k
from nca_plugin.tasks.sandbox import Limits, run_programs

#: Of pass@k: powers of two in 1 .. 32, the paper's range.
KS: Final = (1, 2, 4, 8, 16, 32)
#: The end of a solution of GSM8K, and the number that it arrives at (Cobbe et al. 2021, arXiv 2110.14168).
_RESULT: Final = re.compile(r"#### *\$?(-?[\d.,]*\d)")

#: A row of a task's data set.
Doc = Mapping[str, Any]
Scores = dict[str, float]


def all_answers(answers: list[list[str]], docs: list[Doc]) -> list[list[str]]:
    """Return all answers to each question: lm-eval's own filters would leave one of them."""
    return answers


def gsm8k(doc: Doc, answers: Sequence[Sequence[str]]) -> Scores:
    """Score solutions by the number after `####`, as the data set marks it; one without is wrong."""
    expected = _result(doc["answer"])
    return scores("pass", [expected is not None and _result(answer) == expected for answer in answers[0]])


def prompt_answer(doc: Doc, answers: Sequence[Sequence[str]]) -> Scores:
    """Score answers that are to be the one expected, but for space around it."""
    return scores("pass", [answer.strip() == doc["answer"].strip() for answer in answers[0]])


def humaneval(doc: Doc, answers: Sequence[Sequence[str]]) -> Scores:
    """Score bodies of a function by the tests of the problem, run in a sandbox."""
    programs = [f"{doc['prompt']}{answer}\n{doc['test']}\ncheck({doc['entry_point']})\n" for answer in answers[0]]
    return scores("pass", [error is None for error in run_programs(programs, Limits(), num_cores())])


def first_target(doc: Doc) -> str:
    """Return the answer to learn where several are right."""
    target: str = doc["targets"][0]
    return target


def bigbench(doc: Doc, answers: Sequence[Sequence[str]]) -> Scores:
    """Score answers that are to be one of the targets, but for case and space around it.

    `normalised@k` is pass@k from chance to certainty as 0 to 1: (pass - chance) / (1 - chance). Chance is that of k
    independent guesses among the choices of the question (0 without choices), so below it the score is negative.
    """
    targets = {_plain(target) for target in doc["targets"]}
    found = scores("pass", [_plain(answer) in targets for answer in answers[0]])
    choices = {_plain(choice) for choice in doc["multiple_choice_targets"] or ()}
    guess = len(targets & choices) / len(choices) if choices else 0.0
    for k in KS:
        if f"pass@{k}" in found:
            certainty = (1 - guess) ** k
            # All choices are right, so that there is nothing to tell.
            found[f"normalised@{k}"] = 1 - (1 - found[f"pass@{k}"]) / certainty if certainty else 0.0
    return found


def automata(doc: Doc, results: Sequence[tuple[float, bool]]) -> Scores:
    """Return the mean loss of what follows, in nats a token."""
    return {"loss": -results[0][0] / len(doc["continuation"].split())}


def scores(name: str, is_right: Sequence[bool]) -> Scores:
    """Return `name`@k of a question's answers, for each k of `KS` that there are as many answers for."""
    return {f"{name}@{k}": pass_at_k(len(is_right), sum(is_right), k) for k in KS if k <= len(is_right)}


def _result(text: str) -> str | None:
    found = _RESULT.search(text)
    return None if found is None else found[1].replace(",", "")


def _plain(text: str) -> str:
    return text.strip().casefold()
