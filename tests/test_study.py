"""A study from its file to its report, through the real loop."""

import json
import math
from pathlib import Path

import pytest

from nca_plugin.errors import NCAPluginError
from nca_plugin.megatron.arguments import megatron_arguments
from nca_plugin.study.config import load_study
from nca_plugin.study.report import results, t95, tables, verdict, write_report
from nca_plugin.study.study import StudyResult, run_study

DEMO = Path(__file__).parents[1] / "conf" / "study" / "demo.yaml"
SMALL = [
    *("arguments.num-layers=2", "arguments.hidden-size=32", "arguments.seq-length=128", "arguments.eval-interval=5"),
    *("arguments.eval-iters=1", "warm_ups.nca.iterations=10", "language.iterations=10", "arguments.log-interval=1"),
    *("corpus.pattern=a*.py", "~warm_ups.dyck", "~arms.dyck-attention", "~arms.nca"),
]


class Silence:
    def __init__(self) -> None:
        self.started: list[str] = []

    def start(self, name: str, total: int):
        self.started.append(name)
        return lambda done: None

    def finish(self, name: str, message: str) -> None: ...


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def result(output: Path) -> StudyResult:
    return run_study(load_study(DEMO, [f"output={output}", *SMALL]), Silence())


def test_a_study_runs_and_reports(output: Path, result: StudyResult) -> None:
    study = load_study(DEMO, [f"output={output}", *SMALL])
    values = results(study, result)
    rows = {row["arm"]: row for row in values["arms"]}
    assert rows.keys() == {"scratch", "nca-attention"}
    for row in rows.values():
        assert [iteration for iteration, _ in row["validation_curve"]] == [5, 10]
        assert row["perplexity"] == pytest.approx(math.exp(row["validation_loss"]))
        assert 3 < row["validation_loss"] < math.log(384) + 0.2
    assert values["language_tokens"] == 10 * 8 * 128
    assert rows["scratch"]["difference_to_baseline"] == 0
    (warm_up,) = values["warm_ups"]
    assert warm_up["unigram_loss"] < warm_up["uniform_loss"] == pytest.approx(math.log(18))
    assert len(tables(values)) == 2
    assert "One seed" in verdict(values)
    paths = write_report(values, output)
    assert json.loads(paths[0].read_text())["arms"] == json.loads(json.dumps(values["arms"]))
    assert paths[1].read_bytes().startswith(b"\x89PNG")


def test_a_study_continues_where_it_stopped(output: Path, result: StudyResult) -> None:
    (output / "seed1" / "language-nca-attention" / "result.json").unlink()
    again = run_study(load_study(DEMO, [f"output={output}", *SMALL]), Silence())
    assert again.arms.keys() == result.arms.keys()
    assert again.arms["scratch", 1] == result.arms["scratch", 1]
    repeated, first = again.arms["nca-attention", 1], result.arms["nca-attention", 1]
    assert repeated.seconds != first.seconds
    assert dict(repeated.validation_loss) == pytest.approx(dict(first.validation_loss), rel=1e-6)


def test_a_run_that_fails_is_named_with_its_log(output: Path, result: StudyResult) -> None:
    study = load_study(DEMO, [f"output={output}", *SMALL, "+language.arguments.no-such-argument=1"])
    with pytest.raises(NCAPluginError, match=r"seed 1 ended with code 2: .*no-such-argument.*; see .*log\.txt"):
        run_study(study, Silence())


def paired(differences: dict[int, float]) -> dict:
    """Results whose arm differs from scratch by the given amounts, by seed."""
    from nca_plugin.study.report import _summary

    rows = [
        {"label": "warm", "validation_loss": 2 + d, "difference_to_baseline": d, "seconds": 1.0}
        for d in differences.values()
    ]
    scratch = [{**row, "label": "scratch", "validation_loss": 2.0, "difference_to_baseline": 0.0} for row in rows]
    return {
        "seeds": list(differences),
        "baseline": "scratch",
        "summary": {"scratch": _summary(scratch), "warm": _summary(rows)},
    }


def test_a_difference_inside_its_interval_is_reported_as_none() -> None:
    assert "no difference shown" in verdict(paired({1: -0.02, 2: 0.01, 3: -0.01}))
    assert "warm: lower (-0.0500 ± " in verdict(paired({1: -0.05, 2: -0.051, 3: -0.049}))
    assert "warm: higher" in verdict(paired({1: 0.05, 2: 0.051}))
    # t(1) = 12.706: 12.706 * 0.0007071 / sqrt(2) = 0.00635.
    assert paired({1: 0.05, 2: 0.051})["summary"]["warm"]["difference_95"] == pytest.approx(0.00635, abs=1e-5)


@pytest.mark.parametrize(
    ("freedom", "t"), [(1, 12.706), (10, 2.228), (11, 2.201), (15, 2.131), (30, 2.042), (120, 1.98)]
)
def test_students_t(freedom: int, t: float) -> None:
    """Published table values."""
    assert t95(freedom) == pytest.approx(t, abs=0.003)


def test_a_folder_that_is_no_study_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    with pytest.raises(NCAPluginError, match="is not the folder of a study"):
        run_study(load_study(DEMO, [f"output={tmp_path}"]), Silence())
    assert (tmp_path / "corpus").is_dir()


def test_the_demo_comes_with_the_package() -> None:
    assert load_study(Path("demo"), []) == load_study(DEMO, [])


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("outptu=x", "outptu"),
        ("seeds=[]", "seeds must be"),
        ("~arguments.seq-length", "arguments.seq-length is missing"),
        ("+arms.nca.keep=[atention]", "unknown selector 'atention'"),
        ("arms.nca.warm_up=none", "not a warm-up"),
        ("baseline=nobody", "not an arm"),
        ("warm_ups.nca.source='nca://toy?seed=1'", "leave out seed"),
        ("warm_ups.nca.source='nca://tyo'", "unknown NCA preset"),
        ("language.iterations=many", "iterations"),
    ],
)
def test_a_wrong_study_is_refused(override: str, reason: str) -> None:
    with pytest.raises(NCAPluginError, match=reason) as error:
        load_study(DEMO, [override])
    assert "\n" not in str(error.value)


def test_arguments_of_a_study_become_megatron_arguments() -> None:
    assert megatron_arguments({"lr": 1e-3, "flag": True, "off": False, "none": None, "data-path": [1, "a"]}) == [
        *("--lr", "0.001", "--flag", "--data-path", "1", "a")
    ]
