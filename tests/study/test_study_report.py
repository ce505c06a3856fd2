"""A study's report: what it says of known numbers, and that its page stands alone."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nca_plugin.display.drawing import Drawn
from nca_plugin.study.curves import gain_percent, speed_up
from nca_plugin.study.report.parts import ablations, cost, stages1
from nca_plugin.study.report.tables import tables
from nca_plugin.study.report.words import headline, verdict
from nca_plugin.study.report.write import write_report
from nca_plugin.study.summary import Comparison

PNG = b"\x89PNG\r\n\x1a\n"
HIGH = "nca://toy?band=0.15:0.22"
TOKENS, STAGE1_TOKENS, EXTRA_UPDATES, BATCH = 40_960, 20_480, 10, 1_024
Losses = Mapping[str, Sequence[float]]


def _arm(label: str, source: str | None = None, **own: Any) -> dict[str, Any]:
    stage1 = {"schedule": "decayed", "tokens": STAGE1_TOKENS} if source else {"schedule": None, "tokens": 0}
    return {
        "label": label,
        "preset": "default",
        "keep": [],
        "reinit": [],
        "source": source,
        "text": None,
        **stage1,
    } | own


ARMS = {
    "scratch": _arm("from scratch"),
    "nca": _arm("NCA", HIGH),
    "nca-no-attention": _arm("NCA, attention anew", HIGH, reinit=["attention"]),
}
SCRATCH = (3.0, 3.1, 3.2)
#: Gains of 5 % with a spread far below that, and of nothing.
LOSSES = {
    "scratch": SCRATCH,
    "nca": tuple(loss + math.log(share) for loss, share in zip(SCRATCH, (0.949, 0.950, 0.951), strict=True)),
    "nca-no-attention": (3.01, 3.10, 3.19),
}


def _values(
    losses: Losses = LOSSES, arms: Mapping[str, dict[str, Any]] = ARMS, longer: float = -0.01, **own: Any
) -> dict[str, Any]:
    """Return what a study of one domain would: each arm's final loss for each seed, and curves that lead there.

    Args:
        longer: loss of the baseline of equal compute, minus the baseline's.
    """
    seeds = list(range(1, len(losses["scratch"]) + 1))
    language = [
        _language(arms[arm], arm, seed, loss, losses["scratch"][seed - 1])
        for arm in arms
        for seed, loss in zip(seeds, losses[arm], strict=True)
    ]
    for seed, loss in zip(seeds, losses["scratch"], strict=True):
        language.append(_language(arms["scratch"], "scratch", seed, loss + longer, loss, EXTRA_UPDATES))
    longer_of = {arm: EXTRA_UPDATES for arm in arms if arms[arm]["source"]}
    comparison = Comparison(language, list(arms), "scratch", longer_of)
    of_study = {key: {} for key in ("arguments", "stage1_arguments", "language_arguments")}
    return {
        "format": 2,
        "command": "nca-plugin study laptop",
        "versions": {"python": "3.12.1", "nca-plugin": "0.1.0"},
        "seeds": seeds,
        "baseline": "scratch",
        "domains": {
            "python": {
                "paper": None,
                "corpus": "python-standard-library",
                "vocab_size": 257,
                "train_tokens": 10**7,
                "validation_tokens": 4_096,
                "validation_documents": 30,
                "validation_bytes": 4_000,
                "bytes_per_token": 4_000 / 4_096,
                "ngram_losses": {"3": 3.4, "4": 3.1, "5": 2.95},
                "noise": comparison.noise,
                "tokens": TOKENS,
                "flops_per_token": 1e5,
                "best_arguments": {"lr": 0.004},
            }
        },
        "arms": dict(arms),
        "sweep": {
            "seed": 1000,
            "tokens": 3 * TOKENS,
            "tried": [
                {
                    "domain": "python",
                    "arguments": {"lr": lr},
                    "loss": loss,
                    "is_best": lr == 0.004,
                    "flops": 4e9,
                    "folder": f"runs/sweep/{lr}",
                }
                for lr, loss in ((0.002, 3.4), (0.004, 3.2), (0.008, 3.3))
            ],
            "at_edge": {"python": []},
        },
        "stage1_sweep": {"seed": 1000, "tokens": 0, "tried": []},
        "stage1": [_stage1(arms, seed) for seed in seeds],
        "language": language,
        "tasks": [],
        "summary": {"python": comparison.summary},
        "study": {
            "arguments": {"num-layers": 2, "hidden-size": 32, "seq-length": 128},
            "arms": dict.fromkeys(arms, of_study | {"stage1_seed": None}),
        },
        "timings": {f"runs/seed{seed}/{name}": 10.0 for seed in seeds for name in ("stage1", *arms)}
        | {f"runs/sweep/{lr}": 5.0 for lr in (0.002, 0.004, 0.008)},
    } | own


def _heads() -> dict[str, Any]:
    scores = [[0.02, 0.01], [0.5, 0.03]]
    return {"period": 16, "samples": 4, "chance": 0.04, "layers": [1, 2], "scores": scores}


def _stage1(arms: Mapping[str, dict[str, Any]], seed: int) -> dict[str, Any]:
    return {
        "arms": [name for name, arm in arms.items() if arm["source"]],
        "domains": ["python"],
        "seed": seed,
        "source": f"{HIGH}&seed={seed}",
        "tokens": STAGE1_TOKENS,
        "supervised_tokens": 15_000,
        "flops": 2e9,
        "validation": [[10_240, 2.9], [STAGE1_TOKENS, 2.5]],
        "loss": 2.5,
        "unigram_loss": 2.7,
        "uniform_loss": math.log(18),
        "oracle_loss": None,
        "accuracy": 0.6,
        "learned": 0.9,
        "hard_share": 0.4,
        "in_context": {
            "frames": [0, 1, 2],
            "patch": [0.1, 0.3, 0.6],
            "cell": [0.5, 0.6, 0.8],
            "grid": [0.0, 0.1, None],
            "copy": [None, 0.2, 0.25],
            "best_copy": [None, 0.2, 0.3],
            "lookup": [None, 0.7, 0.9],
            "limit": [None, 1.0, 1.0],
            "hard": {
                "patch": [0.1, 0.25, 0.5],
                "best_copy": [None, 0.1, 0.15],
                "lookup": [None, 0.6, 0.8],
                "limit": [None, 1.0, 1.0],
                "learned": [None, 0.3, 0.5],
            },
        },
        "induction": _heads(),
        "commands": [f"train --save /runs/seed{seed}/stage1/checkpoint"],
        "folder": f"runs/seed{seed}/stage1",
    }


def _language(
    arm: dict[str, Any], name: str, seed: int, loss: float, baseline: float, extra_updates: int = 0
) -> dict[str, Any]:
    tokens = TOKENS + extra_updates * BATCH
    shape = ((0.25, 1.0), (0.5, 0.4), (0.75, 0.1), (1.0, 0.0))
    curve, base = ([(share * tokens, end + above) for share, above in shape] for end in (loss, baseline))
    folder = f"{name}+{extra_updates}" if extra_updates else name
    return {
        "domain": "python",
        "arm": name,
        "seed": seed,
        "extra_updates": extra_updates,
        "tokens": tokens,
        "stage1_tokens": arm["tokens"],
        "flops": 4e9,
        "flops_with_stage1": 4e9 + arm["tokens"] * 1e5,
        "validation": curve,
        "loss": loss,
        "perplexity": math.exp(loss),
        "difference": loss - baseline,
        "gain_percent": gain_percent(baseline, loss),
        "speed_up": speed_up(base, curve),
        "documents": [[100.0, 100 * (loss + 0.1 * number)] for number in range(30)],
        "retrieval": {"distances": [0, 16, 64], "gain": [1.2, 0.8, 0.1]},
        "induction": _heads(),
        "commands": [f"train --save /runs/seed{seed}/{folder}/checkpoint"],
        "folder": f"runs/seed{seed}/{folder}",
    }


def _printed(values: dict[str, Any]) -> str:
    console = Console(file=StringIO(), width=200)
    for table in tables(values):
        console.print(table)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


class _Page(HTMLParser):
    """Collects a page's text, and what it refers to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.links = "", []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "srcset", "href", "xlink:href")]
        assert tag not in ("script", "link", "iframe", "object", "of")

    def handle_data(self, data: str) -> None:
        self.text += data.replace("\N{NO-BREAK SPACE}", " ")


@pytest.fixture
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what does not depend on the pictures: they take seconds."""
    monkeypatch.setattr("nca_plugin.study.report.write.drawn", lambda picture: Drawn(picture, "<svg></svg>", PNG))


def test_a_gain_that_is_shown_is_named_with_its_interval() -> None:
    values = _values()
    said = verdict(values)
    assert headline(values) == (
        "Perplexity is lower than that of 'from scratch' after 'NCA' by 5.0 % on python, at equal tokens; at equal "
        "compute 4.0 % lower on python (3 seeds)."
    )
    assert "'NCA' ends with 5.0 % lower perplexity than 'from scratch' at equal tokens" in said
    assert "(95 % interval of the gain +3.4 to +6.6 %)" in said and "1.14 times as fast" in said
    assert "No difference shown: 'NCA, attention anew'." in said and "hold together for all 2 comparisons" in said
    assert "'from scratch' loses to counting 5-grams in the same tokens (22.20 against 19.11)" in said
    printed = _printed(values)
    assert re.search(r"NCA +│.*\+5\.0.*\+4\.0", printed) and "better" in printed and "+3.4 to +6.6" in printed
    # Between arms: what the context adds in stage 1, and what the sweep took.
    assert re.search(r"2\.500 +│ +│ +2\.700 +│ +90", printed)
    assert re.search(r"1 to 2 +│ +30\.0 to 60\.0 +│ +20\.0 to 30\.0 +│ +70\.0 to 90\.0 +│ +25\.0 to 50\.0", printed)
    assert "on seed 1000: 3 runs, 123K tokens" in " ".join(printed.split())


def test_a_difference_inside_its_interval_is_none_shown() -> None:
    values = _values({**LOSSES, "nca": (3.01, 3.08, 3.2)})
    assert headline(values) == "No stage 1 is shown to beat 'from scratch' on python (3 seeds)."
    assert "no stage 1 is shown to beat 'from scratch' at equal tokens" in verdict(values)
    assert "none shown" in _printed(values) and not re.search(r"│ +better", _printed(values))


def test_equal_compute_can_take_a_gain_away() -> None:
    said = headline(_values(longer=-0.08))
    assert "at equal compute 2.9 % higher on python" in said


def test_nobody_reaches_scratch() -> None:
    values = _values({"scratch": SCRATCH, "nca": (3.2, 3.31, 3.4), "nca-no-attention": (3.3, 3.41, 3.5)})
    assert headline(values) == "Every stage 1 ends with higher perplexity than 'from scratch' on python (3 seeds)."
    assert "Higher: 'NCA', 'NCA, attention anew'." in verdict(values)
    printed = _printed(values)
    # Until where the baseline is at the arm's end, it has taken two thirds of the tokens.
    assert re.search(r"NCA +│.*-22\.5.*│ +0\.67 ", printed) and "worse" in printed


def test_one_seed_shows_nothing() -> None:
    values = _values({arm: losses[:1] for arm, losses in LOSSES.items()})
    assert headline(values).startswith("One seed, so nothing is shown: 'NCA' ends with 5.1 % lower perplexity")
    assert "One seed cannot show a difference between arms" in verdict(values) and "interval" not in verdict(values)
    assert "too few seeds" in _printed(values)


def test_two_seeds_give_intervals_and_no_verdict() -> None:
    values = _values({arm: losses[:2] for arm, losses in LOSSES.items()})
    assert headline(values).startswith("2 seeds, so nothing is shown: 'NCA' ends with 5.1 % lower perplexity")
    assert "2 seeds cannot show a difference between arms" in verdict(values)


def test_a_stage_1_that_was_not_learned_is_named_first() -> None:
    values = _values()
    values["stage1"] = [{**row, "learned": share} for row, share in zip(values["stage1"], (0.5, 0.4, 0.6), strict=True)]
    assert headline(values).startswith(f"Stage 1 was not learned: {HIGH} (50 %). Perplexity is lower")
    assert re.search(r"│ NCA +│.*\n│ stage 1 not learned", _printed(values))


def test_a_runner_up_within_the_noise_is_named() -> None:
    values = _values()
    assert "runner-up" not in verdict(values)
    values["sweep"]["tried"][2]["loss"] = 3.2001
    assert "The sweep's runner-up on python, lr 0.008, ends 0.0001 nats behind its best" in verdict(values)


def test_arms_of_unequal_spread_are_told() -> None:
    values = _values()
    assert "lie further apart" not in verdict(values)
    values["domains"]["python"]["noise"]["unequal_spread"] = 0.001
    assert "On python the seeds of some arms lie further apart than those of others" in verdict(values)


def test_a_stage_1_of_all_seeds_is_told() -> None:
    values = _values()
    assert "share one stage 1" not in verdict(values)
    values["study"]["arms"] |= {"nca": {"stage1_seed": 1}}
    assert "In 'NCA', the runs of all seeds share one stage 1. Their intervals do not contain" in verdict(values)


def test_a_stage_1_that_is_shared_for_some_seeds_is_listed_once() -> None:
    values = _values()
    for row, arms in zip(values["stage1"], (["nca", "nca-no-attention"], ["nca"], ["nca"]), strict=True):
        row["arms"] = arms
    (stage,) = stages1(values)
    assert (stage.arms, len(stage.rows)) == (["nca", "nca-no-attention"], 3)


def test_the_released_recipe_is_compared_with_both_starts_from_scratch() -> None:
    arms = {
        **ARMS,
        "released-scratch": _arm("scratch as released", preset="release"),
        "released": _arm("NCA as released", HIGH, preset="release", schedule="release"),
    }
    released = {"released-scratch": (3.2, 3.3, 3.4), "released": (3.1, 3.21, 3.3)}
    said = verdict(_values(LOSSES | released, arms))
    assert "The released recipe on python: 'NCA as released' ends with 10.9 % higher perplexity" in said
    assert (
        "Against 'scratch as released' it has 9.2 % lower perplexity (+8.3 to +10.1 % gain, this comparison alone)."
        in said
    )
    assert "it is the one to beat" not in said
    better = verdict(_values(LOSSES | released | {"released-scratch": (2.9, 3.0, 3.1)}, arms))
    assert "'scratch as released', without a stage 1 too, ends lower than 'from scratch'" in better


def test_the_edge_of_the_sweep_is_told() -> None:
    values = _values()
    assert "edge" not in verdict(values)
    values["sweep"]["at_edge"]["python"] = ["lr"]
    assert "best at the edge of what was tried: lr 0.004 on python" in verdict(values)
    assert "best, lr at the edge" in _printed(values)
    values["sweep"]["tried"] = []
    assert "was not swept" in verdict(values)


def test_ablations_differ_by_what_is_drawn_anew_alone() -> None:
    values = _values()
    (found,) = ablations(values)
    assert (found.arm, found.whole, found.component) == ("nca-no-attention", "nca", "attention")
    values["arms"]["nca-no-attention"] = {**ARMS["nca-no-attention"], "schedule": "constant"}
    assert ablations(values) == []
    values["arms"]["nca-no-attention"] = {**ARMS["nca"], "preset": "attention-only"}
    assert [one.component for one in ablations(values)] == ["all but attention"]


def test_costs_count_stage_1() -> None:
    values = _values()
    (stage,) = stages1(values)
    assert stage.arms == ["nca", "nca-no-attention"] and stage.title == HIGH
    found = cost(values, "python", "nca")
    assert (found.stage1_tokens, found.supervised_tokens, found.language_tokens) == (STAGE1_TOKENS, 15_000, TOKENS)
    assert found.stage1_flops == pytest.approx(STAGE1_TOKENS * 1e5) and found.seconds == 20.0
    assert cost(values, "python", "scratch").stage1_tokens == 0


def test_the_page_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nca_plugin.display.drawing._DPI", 15)
    values = _values()
    arms = values["arms"]
    arms["nca"] = {**arms["nca"], "label": "<of> & [red]$x$"}
    paths = write_report(values, tmp_path)
    assert [path.name for path in paths[:3]] == ["results.json", "results.csv", "report.html"]
    pictures = {
        "curves",
        "differences",
        "gains",
        "ablation",
        "stage1",
        "in_context",
        "retrieval",
        "strongest",
        "heads",
        "data",
    }
    assert {path.stem for path in paths[3:]} == {f"{name}-0" for name in pictures}
    assert set(paths) == set((tmp_path).iterdir())
    assert all(path.read_bytes().startswith(PNG) for path in paths[3:])
    html = paths[2].read_text()
    page = _Page(html)
    assert html.count("<svg") == len(pictures)
    assert page.links and all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert "url(" not in html.replace("url(#", "") and "@import" not in html
    assert "<of>" not in html and "<of> & [red]$x$" in page.text
    assert "[red]$x$" in _printed(values)
    for said in (headline(values), *verdict(values).splitlines(), values["command"], "The paper's figures", "13.82"):
        assert said in page.text


@pytest.mark.usefixtures("_undrawn")
def test_the_numbers_read_back_give_the_same_page(tmp_path: Path) -> None:
    first = write_report(_values(), tmp_path / "first")
    again = write_report(json.loads(first[0].read_text()), tmp_path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in first]


def test_an_error_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report.html").write_text("before")
    monkeypatch.setattr("nca_plugin.study.report.write.sections", lambda _: [])
    monkeypatch.setattr(Path, "write_bytes", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(_values(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "before"


@pytest.mark.usefixtures("_undrawn")
def test_the_paper_stands_beside_a_domain_of_its_own(tmp_path: Path) -> None:
    values = _values({arm: losses[:1] for arm, losses in LOSSES.items()})
    values["domains"]["python"]["paper"] = "codeparrot"
    # Without what other pages are tested for.
    values |= {"stage1": [], "language": [row | {"induction": None, "retrieval": None} for row in values["language"]]}
    values["arms"]["nca-no-attention"] = {**ARMS["nca-no-attention"], "schedule": "constant"}
    paths = write_report(values, tmp_path)
    assert {path.stem for path in paths[3:]} == {"curves-0", "differences-0", "gains-0"}
    text = _Page(paths[2].read_text()).text
    assert "CodeParrot" in text and "1.84" in text and "OpenWebText" not in text
