"""Every way to lay out a run trains on the same samples, in the same order, with the same losses; or it is refused.

One start of Megatron does all the runs: `RUNS` are those of `make test`, `MORE` those of `make test-all`.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import write
from releases import IS_0_18
from training_jobs import SEQ_LENGTH, Done, Job, train

from nca_plugin.errors import NCAPluginError
from nca_plugin.sources import parse
from nca_plugin.text.prepare import Corpus, prepare

ITERATIONS, BATCH, MICRO_BATCH = 3, 8, 2
TOKENS = ("--tokenizer-type", "NullTokenizer", "--vocab-size", "64")
NCA = ("--data-source", "nca://toy", *TOKENS)
THREE = ("--train-iters", str(ITERATIONS))

TP, PP = ("--tensor-model-parallel-size", "2"), ("--pipeline-model-parallel-size", "2")
VPP = (*PP, "--num-virtual-stages-per-pipeline-rank", "2")
SP = (*TP, "--sequence-parallel")
SHARDED = ("--use-distributed-optimizer",)
OVERLAPPED = (*SHARDED, "--overlap-grad-reduce", "--overlap-param-gather")
GROUPS = ("--group-query-attention", "--num-query-groups", "2")
#: This divides the scores by the layer's number and multiplies by it again, which only Megatron's own attention does.
SCALED = ("--apply-query-key-layer-scaling",)
EP, ALL_TO_ALL = ("--expert-model-parallel-size", "2"), ("--moe-token-dispatcher-type", "alltoall")


def cp(ranks: int) -> tuple[str, ...]:
    return ("--context-parallel-size", str(ranks), "--calculate-per-token-loss")


def layout(stages: str) -> tuple[str, ...]:
    return ("--pipeline-model-parallel-layout", stages, "--pipeline-model-parallel-size", str(stages.count("|") + 1))


#: Arguments by model, on one rank.
MODELS: dict[str, tuple[str, ...]] = {
    "gpt": (),
    "moe": ("--num-experts", "4", "--moe-router-topk", "2", "--moe-ffn-hidden-size", "48"),
    "mtp": ("--mtp-num-layers", "1"),
    "hybrid": ("--spec", "local_hybrid", "SPEC", "--hybrid-layer-pattern", "*-*-"),
}
HYBRID_TWO_STAGES, HYBRID_FOUR = (*PP, "--hybrid-layer-pattern", "*-|*-"), (*PP, "--hybrid-layer-pattern", "*|-|*|-")

#: Model, ranks and arguments by the name of what is tried.
Layouts = dict[str, tuple[str, int, tuple[str, ...]]]
RUNS: Layouts = {
    "one worker": ("gpt", 1, ("--num-workers", "1")),
    "two workers": ("gpt", 1, ("--num-workers", "2")),
    "Megatron's own attention": ("gpt", 1, SCALED),
    "options of documents": ("gpt", 1, ("--reset-position-ids", "--reset-attention-mask", "--eod-mask-loss")),
    "sequence parallel": ("gpt", 2, SP),
    "virtual stages": ("gpt", 2, VPP),
    "distributed optimizer": ("gpt", 2, (*OVERLAPPED, "--num-workers", "1")),
    "context parallel": ("gpt", 2, cp(2)),
    "experts": ("moe", 2, (*EP, *ALL_TO_ALL)),
    "hybrid virtual stages": ("hybrid", 2, HYBRID_FOUR),
    "hybrid sequence parallel": ("hybrid", 2, SP),
    "virtual stages x data": ("gpt", 4, (*VPP, *OVERLAPPED)),
    "context x tensor": ("gpt", 4, (*cp(2), *SP)),
    "experts x tensor": ("moe", 4, (*EP, *SP)),
    "prediction on a stage of its own": ("mtp", 4, layout("Et|tt|tm|L")),
}
MORE: Layouts = {
    "tensor": ("gpt", 2, TP),
    "stages": ("gpt", 2, PP),
    "data": ("gpt", 2, ()),
    "distributed optimizer alone": ("gpt", 2, SHARDED),
    "data x 4": ("gpt", 4, ("--num-workers", "1")),
    "tensor x stages": ("gpt", 4, (*SP, *PP)),
    "tensor x virtual stages": ("gpt", 4, (*SP, *VPP)),
    "tensor x data": ("gpt", 4, (*TP, *SHARDED)),
    "context x 4": ("gpt", 4, cp(4)),
    "context x stages": ("gpt", 4, (*cp(2), *VPP)),
    "context x data": ("gpt", 4, (*cp(2), *SHARDED)),
    "embeddings on stages of their own": ("gpt", 4, layout("E|tt|tt|L")),
    "other order of ranks": ("gpt", 4, (*PP, "--use-tp-pp-dp-mapping")),
    "experts gathered": ("moe", 2, EP),
    "experts x 4": ("moe", 4, ("--expert-model-parallel-size", "4", *ALL_TO_ALL)),
    "experts x stages": ("moe", 4, (*EP, *ALL_TO_ALL, *VPP)),
    "prediction x virtual stages": ("mtp", 2, VPP),
    "prediction x tensor": ("mtp", 4, (*SP, *PP)),
    "hybrid stages": ("hybrid", 2, HYBRID_TWO_STAGES),
    "hybrid context x tensor": ("hybrid", 4, (*cp(2), *SP)),
}

#: Schedules of the batch size, thresholds in tokens: 4 samples up to the 16th, then 8.
SCHEDULE = ("--train-samples", "32", "--step-batch-size-schedule", f"0:4 {16 * SEQ_LENGTH}:8")
EVALUATED = ("--eval-interval", "2", "--eval-iters", "2", "--eval-micro-batch-size", "1")
WHOLE_SETS = ("--full-validation", "--multiple-validation-sets", "--eval-interval", "2", "--eval-micro-batch-size", "1")

#: What is refused: ranks, arguments, and what the message says.
REFUSED: dict[str, tuple[int, tuple[str, ...], str]] = {
    "external loader": (1, ("--dataloader-type", "external"), "--dataloader-type external expects .*: use single"),
    "cyclic loader": (1, ("--dataloader-type", "cyclic"), "batches would change .*: use single"),
    "ramp-up": (
        1,
        ("--rampup-batch-size", "2", "2", "24"),
        "ignores --rampup-batch-size.*--step-batch-size-schedule '0:2 768:4 1536:6 2304:8'",
    ),
    "schedule by iterations": (1, SCHEDULE[2:], "runs out of samples.*use --train-samples"),
    "schedule that does not end": (1, ("--train-samples", "30", *SCHEDULE[2:]), "use --train-samples 32"),
    "schedule that is none": (1, ("--train-samples", "30", "--step-batch-size-schedule", "0:3"), "schedule '0:3': "),
    "phases": (1, ("--phase-transition-iterations", "2"), "would repeat its samples"),
    "full validation alone": (1, ("--full-validation",), "works only with --multiple-validation-sets"),
    "validation sets alone": (1, ("--multiple-validation-sets",), "works only with --full-validation"),
    "validation on a source": (1, WHOLE_SETS, "needs an end, and source nca://toy"),
    "masking between documents": (1, ("--dataloader-inter-document-masking",), "is not supported here"),
    "filling in the middle": (1, ("--fim-data",), "is not supported here"),
    "context parallel means": (2, ("--context-parallel-size", "2"), "needs --calculate-per-token-loss"),
    "unknown option": (1, ("--num-layer", "3"), "unknown option '--num-layer': did you mean '--num-layers'"),
    "unknown option of ours": (
        1,
        ("--nca-presett", "web"),
        "unknown option '--nca-presett': did you mean '--nca-preset'",
    ),
    "no number": (1, ("--num-layers", "three"), "argument --num-layers: invalid int value: 'three'"),
    "no validation data": (1, ("--eval-iters", "1", "--split", "100,0,0"), "ends the run when it validates"),
    "ramp-up by nothing": (1, ("--rampup-batch-size", "2", "0", "10"), "ignores --rampup-batch-size"),
    "few ids": (1, ("--data-source", "nca://web"), "is smaller than the 10002 ids of source"),
    "hybrid context parallel": (2, (*cp(2), "--hybrid-context-parallel"), "is not supported here"),
}
#: What is no data path, and what the message says.
BAD_PATHS = {
    "unknown source": (("ncaa://toy",), "unknown source 'ncaa': did you mean 'nca'?"),
    "one slash": (("nca:/toy",), "a source has two slashes"),
    "a weight without a path": (("0.1", "nca://toy", "0.9"), "0.1 stands where a data path is expected"),
}
BLEND_WITHOUT_VALIDATION = ("--data-path", "1", "nca://toy", "1", "nca://toy?seed=2", *TOKENS)
#: The same of runs that validate on all documents of a dataset.
REFUSED_WHOLE_SETS: dict[str, tuple[int, tuple[str, ...], str]] = {
    "batches of validation": (
        1,
        ("--eval-global-batch-size", "8"),
        "-micro-batch-size 1 --eval-global-batch-size 1",
    ),
    "tests": (1, ("--split", "80,10,10"), "leaves Megatron unable to test"),
    "virtual stages": (2, VPP, "does not run on virtual pipeline stages"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parallelism")


def first_weights(folder: Path) -> list[Job]:
    """Return runs that save the weights that every layout of a model starts from; a run's own depend on its layout."""
    options = ("--train-iters", "1", "--lr", "0", "--min-lr", "0", "--save-interval", "1")
    return [
        Job(f"first {model}", (*NCA, *arguments, *options, "--save", str(folder / f"weights-{model}")))
        for model, arguments in MODELS.items()
    ]


def job(
    folder: Path, name: str, model: str, ranks: int, arguments: tuple[str, ...], data: tuple[str, ...] = NCA
) -> Job:
    start = ("--pretrained-checkpoint", str(folder / f"weights-{model}"))
    return Job(name, (*data, *MODELS[model], *start, *arguments, *length(arguments)), ranks)


def checkpoint(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return arguments that save there after each iteration, and those that go on from what is saved."""
    return ("--save", str(path), "--save-interval", "1"), ("--load", str(path))


def length(arguments: tuple[str, ...]) -> tuple[str, ...]:
    return () if {"--train-samples", "--train-iters"} & set(arguments) else THREE


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, Done]:
    rows = [json.dumps({"text": "All work and no play makes Jack a dull boy. " * 100})] * 20
    (folder / "text.jsonl").write_text("\n".join(rows))
    prepare(Corpus(inputs=(str(folder / "text.jsonl"),)), folder / "text")
    for name, uri, documents in (("corpus", "nca://toy?vocab_offset=257", 40), ("thirteen", "nca://toy?seed=5", 13)):
        write(folder / name, uri, documents=documents, seq_length=SEQ_LENGTH)
    write(folder / "forty", "nca://toy", documents=40, seq_length=SEQ_LENGTH)
    blend = (
        *("--data-path", "2", "nca://toy?vocab_offset=257", "1", str(folder / "text"), "1", str(folder / "corpus")),
        *("--tokenizer-type", "NullTokenizer", "--vocab-size", "257", "--padded-vocab-size", "320"),
        *("--split", "90,10,0", "--data-cache-path", str(folder / "cache"), "--num-dataset-builder-threads", "2"),
    )
    whole = ("--data-path", str(folder / "forty"), "--split", "90,10,0", *TOKENS, *WHOLE_SETS)
    sets = (
        *(
            "--train-data-path",
            str(folder / "forty"),
            "--valid-data-path",
            str(folder / "forty"),
            str(folder / "thirteen"),
        ),
        *(*TOKENS, *WHOLE_SETS),
    )
    forty = str(folder / "forty")
    (saved, loaded), (saved_blend, loaded_blend) = (
        checkpoint(folder / f"checkpoint-{name}") for name in ("gpt", "blend")
    )
    blended = (*blend, *THREE, "--eval-iters", "1")
    jobs = [
        *first_weights(folder),
        *(job(folder, model, model, 1, ()) for model in MODELS),
        *(job(folder, name, *what) for name, what in RUNS.items()),
        *(Job(f"groups{name}", (*NCA, *GROUPS, *THREE, *how)) for name, how in (("", ()), (" scaled", SCALED))),
        *(job(folder, f"schedule on {ranks}", "gpt", ranks, SCHEDULE) for ranks in (1, 2)),
        job(folder, "evaluation", "gpt", 1, (*EVALUATED, "--eval-global-batch-size", "4")),
        job(folder, "evaluation on stages", "gpt", 4, (*EVALUATED, *SP, *PP, "--eval-global-batch-size", "4")),
        *(
            job(folder, f"sets on {ranks}", "gpt", ranks, ("--eval-global-batch-size", str(ranks)), sets)
            for ranks in (1, 2)
        ),
        Job("blend", blended),
        Job("blend on stages", (*blended, *VPP, *OVERLAPPED, "--num-workers", "1"), 4),
        job(folder, "interrupted", "gpt", 1, (*saved, "--exit-interval", "1")),
        job(folder, "resumed", "gpt", 1, loaded),
        job(folder, "resumed on stages", "gpt", 2, (*loaded, *VPP)),
        Job("blend interrupted", (*blended, *saved_blend, "--exit-interval", "1")),
        Job("blend resumed", (*blended, *loaded_blend)),
        job(folder, "corpus", "gpt", 1, (), ("--data-path", forty, "--split", "100,0,0", *TOKENS)),
        job(folder, "other vocabulary", "gpt", 1, ("--vocab-size", "65")),
        *(Job(name, ("--data-path", *paths, *TOKENS, *THREE)) for name, (paths, _) in BAD_PATHS.items()),
        Job("refused blend", (*BLEND_WITHOUT_VALIDATION, *THREE)),
        Job("a blend that only trains", (*BLEND_WITHOUT_VALIDATION, *THREE, "--split", "100,0,0")),
        Job("a sample that fails", ("--data-source", "failing://", *TOKENS, *THREE, "--num-workers", "1"), 2),
        *(Job(f"refused {name}", (*NCA, *what, *length(what)), ranks) for name, (ranks, what, _) in REFUSED.items()),
        *(
            Job(f"refused {name}", (*whole, "--eval-global-batch-size", "1", *THREE, *what), ranks)
            for name, (ranks, what, _) in REFUSED_WHOLE_SETS.items()
        ),
    ]
    return train(folder, jobs, may_fail=True)


@pytest.fixture(scope="module")
def more_runs(folder: Path) -> dict[str, Done]:
    more = folder / "more"
    jobs = [
        *first_weights(more),
        *(job(more, model, model, 1, ()) for model in MODELS),
        *(job(more, name, *what) for name, what in MORE.items()),
    ]
    return train(more, jobs, may_fail=True)


Batch = dict[str, np.ndarray]


def of_all(batches: list[Batch]) -> Batch:
    """Return the samples of one rank's batches in order, by key."""
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def check_shares(done: Done, expected: Batch, micro_batch: int, kind: str = "training") -> None:
    """Check that each rank was given its share of `expected`, and nothing else.

    Data-parallel ranks take micro-batches in turn; context-parallel rank r of n takes chunks r and 2n - 1 - r of 2n;
    the first stage reads tokens and the last one labels.
    """
    sizes = {axis: 1 + max(rank.coordinates[axis] for rank in done.ranks) for axis in ("pp", "dp", "cp")}
    for rank in done.ranks:
        pp, dp, cp = (rank.coordinates[axis] for axis in ("pp", "dp", "cp"))
        given = [batch for batch in getattr(rank, kind) if batch]
        keys = set().union(*given)
        if pp == 0:
            assert keys >= {"tokens", "position_ids"}
        if pp == sizes["pp"] - 1:
            assert keys >= {"labels", "loss_mask"}
        if not keys:
            continue
        for key, values in of_all(given).items():
            turns = expected[key].reshape(-1, sizes["dp"], micro_batch, SEQ_LENGTH)[:, dp].reshape(-1, SEQ_LENGTH)
            chunks = np.split(turns, 2 * sizes["cp"], axis=1)
            share = np.concatenate([chunks[cp], chunks[-1 - cp]], axis=1)
            np.testing.assert_array_equal(values, share, err_msg=f"{key} of {rank.coordinates}")


def check_layout(runs: dict[str, Done], name: str, model: str) -> None:
    done = runs[name]
    assert not done.error and not done.refusal, done.error or done.refusal
    check_shares(done, of_all(runs[model].ranks[0].training), MICRO_BATCH)
    assert list(done.losses) == list(range(1, ITERATIONS + 1))
    np.testing.assert_allclose(list(done.losses.values()), list(runs[model].losses.values()), rtol=1e-3)


def validation_losses(done: Done) -> dict[str, list[float]]:
    return {name: values for name, values in done.scalars.items() if "validation" in name}


@pytest.mark.parametrize("name", [*MODELS, *RUNS])
def test_a_run_reports_its_tokens(runs: dict[str, Done], name: str) -> None:
    scalars = runs[name].scalars
    assert scalars["tokens"] == [BATCH * SEQ_LENGTH * iteration for iteration in range(1, ITERATIONS + 1)]
    supervised = parse("nca://toy").sample(0, SEQ_LENGTH).loss_mask.sum()
    np.testing.assert_allclose(scalars["supervised tokens"], [BATCH * supervised] * ITERATIONS, rtol=1e-6)
    # A worker may be ahead of the iterations.
    assert scalars["generator ms per sample"] and min(scalars["generator ms per sample"]) > 0


@pytest.mark.parametrize("model", MODELS)
def test_one_rank_trains_on_the_samples_of_the_source(runs: dict[str, Done], model: str) -> None:
    given = of_all(runs[model].ranks[0].training)
    samples = [parse("nca://toy").sample(i, SEQ_LENGTH) for i in range(ITERATIONS * BATCH)]
    tokens = np.stack([sample.tokens for sample in samples])
    np.testing.assert_array_equal(given["tokens"], tokens[:, :-1])
    np.testing.assert_array_equal(given["labels"], tokens[:, 1:])
    np.testing.assert_array_equal(given["loss_mask"], np.stack([sample.loss_mask for sample in samples]))
    losses = list(runs[model].losses.values())
    assert losses[0] == pytest.approx(np.log(64), abs=0.15) and losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("name", RUNS)
def test_batches_and_losses_do_not_depend_on(runs: dict[str, Done], name: str) -> None:
    check_layout(runs, name, RUNS[name][0])


@pytest.mark.parametrize(("name", "scaled"), [("gpt", "Megatron's own attention"), ("groups", "groups scaled")])
def test_attention_in_cpu_mode_is_megatrons_own(runs: dict[str, Done], name: str, scaled: str) -> None:
    losses, own_losses = (list(runs[run].losses.values()) for run in (name, scaled))
    np.testing.assert_allclose(losses, own_losses, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_nor_on(more_runs: dict[str, Done], name: str) -> None:
    check_layout(more_runs, name, MORE[name][0])


def test_a_growing_batch_reads_the_same_samples(runs: dict[str, Done]) -> None:
    samples = np.stack([parse("nca://toy").sample(i, SEQ_LENGTH).tokens[:-1] for i in range(32)])
    for ranks in (1, 2):
        done = runs[f"schedule on {ranks}"]
        assert len(done.losses) == 4 + 2
        check_shares(done, {**of_all(runs["schedule on 1"].ranks[0].training), "tokens": samples}, MICRO_BATCH)
    np.testing.assert_allclose(
        list(runs["schedule on 2"].losses.values()), list(runs["schedule on 1"].losses.values()), rtol=1e-3
    )


def test_evaluation_has_batches_of_its_own_size(runs: dict[str, Done]) -> None:
    one, on_stages = runs["evaluation"], runs["evaluation on stages"]
    assert not on_stages.error, on_stages.error
    given = of_all(one.ranks[0].evaluation)
    # Two batches of four after the second iteration, and after the last one; two of the test split.
    valid = [parse("nca://toy?split=valid").sample(i, SEQ_LENGTH) for i in range(16)]
    test = [parse("nca://toy?split=test").sample(i, SEQ_LENGTH) for i in range(8)]
    np.testing.assert_array_equal(given["tokens"], np.stack([sample.tokens[:-1] for sample in valid + test]))
    check_shares(on_stages, given, 1, "evaluation")
    check_shares(on_stages, of_all(one.ranks[0].training), MICRO_BATCH)
    expected = validation_losses(one)
    assert expected
    for name, losses in expected.items():
        np.testing.assert_allclose(on_stages.scalars[name], losses, rtol=1e-3)


def test_full_validation_reads_each_document_once_at_any_layout(runs: dict[str, Done]) -> None:
    whole = [parse("nca://toy").sample(i, SEQ_LENGTH) for i in range(40)]
    whole += [parse("nca://toy?seed=5").sample(i, SEQ_LENGTH) for i in range(13)]
    # After the second iteration, and after the last one.
    expected = sorted(sample.tokens[1:].tolist() for sample in 2 * whole)
    for ranks in (1, 2):
        done = runs[f"sets on {ranks}"]
        assert not done.error, done.error
        counted = [batch for rank in done.ranks for batch in rank.evaluation if batch["loss_mask"].any()]
        assert sorted(of_all(counted)["labels"].tolist()) == expected
    one = validation_losses(runs["sets on 1"])
    assert {"lm loss validation-0", "lm loss validation-1"} <= set(one)
    for name, losses in one.items():
        np.testing.assert_allclose(runs["sets on 2"].scalars[name], losses, rtol=1e-3)


def test_a_blend_is_the_same_at_any_layout(runs: dict[str, Done]) -> None:
    one, on_stages = runs["blend"], runs["blend on stages"]
    assert not on_stages.error, on_stages.error
    given = of_all(one.ranks[0].training)
    assert (given["tokens"].max(1) < 257).sum() == ITERATIONS * BATCH // 4
    check_shares(on_stages, given, MICRO_BATCH)
    check_shares(on_stages, of_all(one.ranks[0].evaluation), MICRO_BATCH, "evaluation")


def test_a_blend_without_validation_needs_a_split_without(runs: dict[str, Done]) -> None:
    assert "add --split 100,0,0" in str(runs["refused blend"].refusal)
    assert len(runs["a blend that only trains"].losses) == ITERATIONS


@pytest.mark.parametrize(
    ("names", "whole", "tolerance"),
    [
        (("interrupted", "resumed"), "gpt", 1e-6),
        (("interrupted", "resumed on stages"), "gpt", 1e-3),
        (("blend interrupted", "blend resumed"), "blend", 1e-6),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(
    runs: dict[str, Done], names: tuple[str, str], whole: str, tolerance: float
) -> None:
    first, second, expected = (runs[name] for name in (*names, whole))
    assert not first.error and not second.error, first.error or second.error
    given = of_all(expected.ranks[0].training)
    check_shares(first, {key: values[:BATCH] for key, values in given.items()}, MICRO_BATCH)
    check_shares(second, {key: values[BATCH:] for key, values in given.items()}, MICRO_BATCH)
    assert list(first.losses) == [1] and list(second.losses) == [2, 3]
    losses = first.losses | second.losses
    for iteration, loss in expected.losses.items():
        assert losses[iteration] == pytest.approx(loss, rel=tolerance)


def test_a_dataset_trains_like_the_source_it_was_written_from(runs: dict[str, Done]) -> None:
    check_shares(runs["corpus"], of_all(runs["gpt"].ranks[0].training), MICRO_BATCH)
    assert runs["corpus"].losses == runs["gpt"].losses


def test_a_checkpoint_of_another_vocabulary_is_refused(runs: dict[str, Done]) -> None:
    """Megatron would load it, with zeros for the rows that it lacks."""
    refusal = str(runs["other vocabulary"].refusal)
    assert re.search(r"has 64 embedding rows, the run has 72.* --vocab-size", refusal), refusal


@pytest.mark.parametrize("name", [*REFUSED, *REFUSED_WHOLE_SETS])
def test_what_makes_no_sense_is_refused(runs: dict[str, Done], name: str) -> None:
    """Before any model is built: later errors are not raised as such, and end the run."""
    if IS_0_18 and name == "masking between documents":
        pytest.skip("megatron-core 0.18 does not have it")
    _, _, reason = {**REFUSED, **REFUSED_WHOLE_SETS}[name]
    done = runs[f"refused {name}"]
    assert done.refusal is not None, done.error or "it ran"
    assert "\n" not in done.refusal
    assert re.search(reason, done.refusal), done.refusal


@pytest.mark.parametrize("name", BAD_PATHS)
def test_what_is_no_data_path_is_refused(runs: dict[str, Done], name: str) -> None:
    assert BAD_PATHS[name][1] in str(runs[name].refusal)


def test_the_error_of_a_sample_is_one_line_of_the_rank_that_has_it(runs: dict[str, Done], folder: Path) -> None:
    """Raised in a process of the data loader, of the second rank."""
    assert runs["a sample that fails"].error == "SystemExit: 2"
    lines = [line for line in (folder / "train.log").read_text().splitlines() if "sample 5 cannot" in line]
    assert "nca-plugin: error: sample 5 cannot be made" in lines


def pretrain_0_19(
    cfg_container: Any, provider: Any, model_type: Any, forward: Any, model_provider: Any = None
) -> None: ...


def pretrain_0_18(cfg_container: Any, provider: Any, model_provider: Any, model_type: Any) -> None: ...


def pretrain_0_17(provider: Any, model_provider: Any, model_type: Any) -> None: ...


def test_pretrain_is_found_by_its_signature() -> None:
    from nca_plugin.megatron.pretraining import needs_model_provider

    assert not needs_model_provider(pretrain_0_19)
    assert needs_model_provider(pretrain_0_18)
    with pytest.raises(NCAPluginError, match=r"older than 0\.18"):
        needs_model_provider(pretrain_0_17)
