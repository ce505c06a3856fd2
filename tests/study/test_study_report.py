"""A study's report: what it says of known numbers, and that its page stands alone."""

import dataclasses
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
from nca_plugin.study.comparison import estimate, gain_percent, smallest_effect, speed_up
from nca_plugin.study.report.parts import ablations, cost, stages1
from nca_plugin.study.report.tables import tables
from nca_plugin.study.report.words import headline, verdict
from nca_plugin.study.report.write import write_report

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
    summary = {arm: _summary([row for row in language if row["arm"] == arm], arm, longer) for arm in arms}
    for seed, loss in zip(seeds, losses["scratch"], strict=True):
        language.append(_language(arms["scratch"], "scratch", seed, loss + longer, loss, EXTRA_UPDATES))
    of_study = {key: {} for key in ("arguments", "stage1_arguments", "language_arguments")}
    return {
        "format": 1,
        "command": "nca-plugin study laptop",
        "versions": {"python": "3.12.1", "nca-plugin": "0.1.0"},
        "seeds": seeds,
        "baseline": "scratch",
        "tokens_per_update": BATCH,
        "domains": {
            "python": {
                "paper": None,
                "corpus": "python-standard-library",
                "vocab_size": 257,
                "train_tokens": 10**7,
                "validation_tokens": 4_096,
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
        "stage1": [_stage1(arms, seed) for seed in seeds],
        "language": language,
        "summary": {"python": summary},
        "study": {
            "arguments": {"num-layers": 2, "hidden-size": 32, "seq-length": 128},
            "arms": dict.fromkeys(arms, of_study),
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
        "accuracy": 0.6,
        "in_context": {
            "frames": [0, 1, 2],
            "patch": [0.1, 0.3, 0.6],
            "cell": [0.5, 0.6, 0.8],
            "grid": [0.0, 0.1, None],
            "copy": [None, 0.2, 0.25],
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
        "induction": _heads(),
        "commands": [f"train --save /runs/seed{seed}/{folder}/checkpoint"],
        "folder": f"runs/seed{seed}/{folder}",
    }


def _summary(rows: list[dict[str, Any]], arm: str, longer: float) -> dict[str, Any]:
    def of(key: str) -> dict[str, Any]:
        return dataclasses.asdict(estimate([row[key] for row in rows]))

    found: dict[str, Any] = {"loss": of("loss"), "perplexity": of("perplexity"), "verdict": "baseline"}
    found |= dict.fromkeys(("difference", "gain_percent", "speed_up", "equal_compute", "smallest_effect"))
    if arm == "scratch":
        return found
    speeds = [row["speed_up"] for row in rows]
    reached = [speed for speed in speeds if speed is not None]
    found |= {
        "difference": of("difference"),
        "gain_percent": of("gain_percent"),
        "verdict": _shown(of("difference")),
        "speed_up": {
            "values": speeds,
            "reached": len(reached),
            "estimate": dataclasses.asdict(estimate(reached)) if len(reached) == len(speeds) else None,
        },
    }
    if len(rows) > 1:
        found["smallest_effect"] = smallest_effect(0.01, len(rows))
    if rows[0]["stage1_tokens"]:
        against = dataclasses.asdict(estimate([row["difference"] - longer for row in rows]))
        gains = dataclasses.asdict(estimate([gain_percent(longer, row["difference"]) for row in rows]))
        found["equal_compute"] = {
            "extra_tokens": EXTRA_UPDATES * BATCH,
            "difference": against,
            "gain_percent": gains,
            "verdict": _shown(against),
        }
    return found


def _shown(difference: Mapping[str, Any]) -> str:
    if difference["low"] is None:
        return "one seed"
    return "better" if difference["high"] < 0 else "worse" if difference["low"] > 0 else "none"


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
    # Three gains with a standard deviation of 0.1: 4.303 * 0.1 / sqrt(3).
    assert "(95 % interval of the gain +4.8 to +5.2 %)" in said and "1.14 times as fast" in said
    assert "No difference shown: 'NCA, attention anew'." in said and "not corrected for the number of arms, 2" in said
    printed = _printed(values)
    assert re.search(r"NCA +│.*\+5\.0.*\+4\.0", printed) and "better" in printed and "+4.8 to +5.2" in printed
    # Between arms: what the context adds in stage 1, and what the sweep took.
    assert re.search(r"2\.500 +│ +2\.700 +│ +2\.890 +│ +yes", printed)
    assert re.search(r"1 to 2 +│ +30\.0 to 60\.0 +│ +60\.0 to 80\.0 +│ +10\.0 to 10\.0 +│ +20\.0 to 25\.0", printed)
    assert "on seed 1000: 3 runs, 123K tokens" in " ".join(printed.split())


def test_a_difference_inside_its_interval_is_none_shown() -> None:
    values = _values({**LOSSES, "nca": (3.01, 3.08, 3.2)})
    assert headline(values) == "No stage 1 is shown to beat 'from scratch' on python (3 seeds)."
    assert "no stage 1 is shown to beat 'from scratch' at equal tokens" in verdict(values)
    assert "none shown" in _printed(values) and "better" not in _printed(values)


def test_equal_compute_can_take_a_gain_away() -> None:
    said = headline(_values(longer=-0.08))
    assert "at equal compute 2.9 % higher on python" in said


def test_nobody_reaches_scratch() -> None:
    values = _values({"scratch": SCRATCH, "nca": (3.2, 3.31, 3.4), "nca-no-attention": (3.3, 3.41, 3.5)})
    assert headline(values) == "Every stage 1 ends with higher perplexity than 'from scratch' on python (3 seeds)."
    assert "Higher: 'NCA', 'NCA, attention anew'." in verdict(values)
    printed = _printed(values)
    assert re.search(r"reached by.*\n.*0 of 3 seeds", printed) and "worse" in printed


def test_one_seed_shows_nothing() -> None:
    values = _values({arm: losses[:1] for arm, losses in LOSSES.items()})
    assert headline(values).startswith("One seed, so nothing is shown: 'NCA' ends with 5.1 % lower perplexity")
    assert "no difference between arms" in verdict(values) and "interval" not in verdict(values)
    assert "one seed" in _printed(values)


def test_the_released_recipe_is_compared_with_both_starts_from_scratch() -> None:
    arms = {
        **ARMS,
        "released-scratch": _arm("scratch as released", preset="release"),
        "released": _arm("NCA as released", HIGH, preset="release", schedule="release"),
    }
    released = {"released-scratch": (3.2, 3.3, 3.4), "released": (3.1, 3.21, 3.3)}
    said = verdict(_values(LOSSES | released, arms))
    assert "The released recipe on python: 'NCA as released' ends with 10.9 % higher perplexity" in said
    assert "Against 'scratch as released' it has 9.2 % lower perplexity (+7.9 to +10.5 % gain)." in said
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
    assert [path.name for path in paths[:2]] == ["results.json", "report.html"]
    pictures = {"curves", "differences", "gains", "ablation", "stage1", "in_context", "strongest", "heads", "data"}
    assert {path.stem for path in paths[2:]} == {f"{name}-0" for name in pictures}
    assert set(paths) == set((tmp_path).iterdir())
    assert all(path.read_bytes().startswith(PNG) for path in paths[2:])
    html = paths[1].read_text()
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
    values |= {"stage1": [], "language": [row | {"induction": None} for row in values["language"]]}
    values["arms"]["nca-no-attention"] = {**ARMS["nca-no-attention"], "schedule": "constant"}
    paths = write_report(values, tmp_path)
    assert {path.stem for path in paths[2:]} == {"curves-0", "differences-0", "gains-0"}
    text = _Page(paths[1].read_text()).text
    assert "CodeParrot" in text and "1.84" in text and "OpenWebText" not in text
