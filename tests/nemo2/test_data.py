"""The data module: what NeMo's command line makes of its arguments, and the samples that it gives."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fiddle
import numpy as np
import pytest
from before_the_model import set_up
from nemo.collections.llm import pretrain
from nemo_run.cli.cli_parser import parse_cli_args

from nca_plugin.errors import NCAPluginError
from nca_plugin.lineage.training_data import KEY, Lineage
from nca_plugin.megatron.dataset import SourceGPTDataset
from nca_plugin.nemo2.data import SourceDataModule
from nca_plugin.sources import parse
from nca_plugin.text.prepare import Corpus, prepare


def from_command_line(*arguments: str) -> SourceDataModule:
    import nca_plugin.nemo2.factories  # noqa: F401

    return fiddle.build(parse_cli_args(pretrain, list(arguments)).data)


@pytest.mark.parametrize(
    ("arguments", "uri"),
    [
        (("data=nca",), "nca://web"),
        (("data=nca", "data.preset=code", "data.seed=7"), "nca://code?seed=7"),
        (("data=nca", "data.band=[0.3,0.4]"), "nca://web?band=0.3:0.4"),
        (("data=nca", "data.band=none"), "nca://web?band=none"),
        (("data=nca", "data.source=nca://code?seed=7"), "nca://code?seed=7"),
        (("data=nca", "data.path=nca://code?seed=7"), "nca://code?seed=7"),
        (("data=dyck", "data.k=8"), "dyck://?k=8"),
        (("data=nca", "data.source=dyck", "data.k=8"), "dyck://?k=8"),
        (("data=iid", "data.vocab_size=64"), "iid://?vocab_size=64"),
    ],
)
def test_the_spellings_of_a_source(arguments: tuple[str, ...], uri: str) -> None:
    data = from_command_line(*arguments)
    assert [parse(path).uri for path in data.paths] == [parse(uri).uri]
    # Without a tokenizer of the user's own, the model gets the vocabulary of the source.
    assert data.tokenizer.vocab_size == parse(uri).vocab_size


def test_the_arguments_of_a_data_module() -> None:
    data = from_command_line(
        *("data=nca", "data.seq_length=512", "data.micro_batch_size=4", "data.global_batch_size=64"),
        *("data.rampup_batch_size=[16,16,1000]", "data.num_workers=3"),
    )
    assert (data.seq_length, data.micro_batch_size, data.global_batch_size, data.num_workers) == (512, 4, 64, 3)
    assert data.data_sampler.rampup_batch_size == [16, 16, 1000]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data.presett=code",), "unknown key 'data.presett': did you mean 'data.preset'"),
        (("data.seq_lenght=512",), "unknown key 'data.seq_lenght': did you mean 'data.seq_length'"),
        (("data.paths=text",), "unknown key 'data.paths': did you mean 'data.path'"),
        (("data.preset=wbe",), "unknown NCA preset 'wbe': did you mean 'web'"),
        (("data.bandd=none",), "unknown option 'bandd': did you mean 'band'"),
        (("data.source=nac",), "unknown source 'nac': did you mean 'nca'"),
        (("data.source=nca://code", "data.preset=web"), "data.preset: web contradicts source nca://code"),
        (("data.source=nca", "data.path=text"), "data.source and data.path contradict each other"),
        (("data.path=nca://web", "data.seed=7"), "data.seed is no option of the data module"),
        (("data.path=[0.1,nca://web,0.9,text]",), "write it without brackets"),
        (("data.path=0.1 nca://web 0.9 text",), "set data.tokenizer_vocab_size"),
        (("data.eod_mask_loss=true",), "needs the end of document of a tokenizer"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(NCAPluginError) as error:
        from_command_line("data=nca", *arguments)
    # Fiddle adds lines to it, which the launcher leaves out.
    line = str(getattr(error.value, "proxy_base_exception", error.value))
    assert message in line and "\n" not in line


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ({"seq_length": 64}, {}, "data.seq_length=64 contradicts model.config.seq_length=128"),
        ({}, {"vocab_size": 12}, "vocabulary of 12 is smaller than the 18 ids .* data.tokenizer_vocab_size=18"),
        ({"tokenizer_vocab_size": 12}, {}, "vocabulary of 12 is smaller than the 18 ids"),
        ({}, {"seq_length": 3}, "model.config.seq_length=3: "),
        ({}, {"max_steps": -1}, "trainer.max_steps=-1"),
        ({}, {"limit_val_batches": 0.5}, "trainer.limit_val_batches=0.5 is a share"),
        ({"path": "nac://toy"}, {}, "unknown source 'nac'"),
    ],
)
def test_what_does_not_fit_is_refused_before_there_is_a_model(
    arguments: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(NCAPluginError, match=message):
        set_up(SourceDataModule(**({"source": "nca://toy"} if "path" not in arguments else {}) | arguments), **settings)


def test_samples_are_those_of_the_source(capsys: pytest.CaptureFixture[str]) -> None:
    data = SourceDataModule(preset="toy", num_workers=2, pin_memory=False)
    set_up(data)
    assert capsys.readouterr().out.count(f"training on {10 * 16 * 128:,} tokens of nca://toy (") == 1
    assert type(data._train_ds) is SourceGPTDataset
    for loader, split in ((data.train_dataloader(), "train"), (data.val_dataloader(), "valid")):
        source = parse("nca://toy").for_split(split)
        for index, batch in zip(range(12), loader, strict=False):
            sample = source.sample(index, 128)
            np.testing.assert_array_equal(batch["tokens"][0], sample.tokens[:-1])
            np.testing.assert_array_equal(batch["labels"][0], sample.tokens[1:])
            np.testing.assert_array_equal(batch["loss_mask"][0], sample.loss_mask)


def test_a_blend_of_a_source_and_text(tmp_path: Path) -> None:
    text = tmp_path / "text_document"
    (tmp_path / "text.jsonl").write_text("\n".join([json.dumps({"text": "All work and no play. " * 100})] * 20))
    prepare(Corpus(inputs=(str(tmp_path / "text.jsonl"),)), text)
    path = f"0.25 nca://toy?vocab_offset=257 0.75 {text}"
    data = SourceDataModule(path=path, tokenizer_vocab_size=512)
    set_up(data, limit_val_batches=0)
    largest = [int(data._train_ds[index]["tokens"].max()) for index in range(160)]
    assert sum(value >= 257 for value in largest) == 40
    assert max(largest) < 275


def test_a_checkpoint_keeps_what_was_trained_on(tmp_path: Path) -> None:
    data = SourceDataModule(preset="toy")
    set_up(data)
    data.data_sampler.compute_consumed_samples = lambda steps: 80
    state = data.state_dict()
    assert state["consumed_samples"] == 80
    now = Lineage.from_stored(state[KEY]).now
    assert now is not None and now.parts[0].uri == parse("nca://toy").uri


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], SourceDataModule]:
    """A data module that a checkpoint after so many samples was loaded into."""
    import nca_plugin.nemo2.data as module

    monkeypatch.setattr(module, "update_num_microbatches", lambda **_: None)

    def load(consumed_samples: int) -> SourceDataModule:
        data = SourceDataModule(preset="toy", micro_batch_size=2, global_batch_size=8, num_workers=0, pin_memory=False)
        set_up(data)
        data.load_state_dict({"consumed_samples": consumed_samples})
        return data

    return load


def test_the_sampler_starts_after_the_consumed_samples(
    loaded: Callable[[int], SourceDataModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron.core import parallel_state

    monkeypatch.setattr(parallel_state, "get_data_parallel_rank", lambda: 1)
    monkeypatch.setattr(parallel_state, "get_data_parallel_world_size", lambda: 2)
    data = loaded(24)
    batch = next(iter(data.data_sampler.transform_dataloader(data.train_dataloader())))
    expected = [parse("nca://toy").sample(index, 128).tokens[:-1] for index in (26, 27)]
    np.testing.assert_array_equal(batch["tokens"], expected)
