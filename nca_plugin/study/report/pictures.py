"""The pictures of a report, by section."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from nca_plugin.display.drawing import CHART, Picture
from nca_plugin.study.report import charts, probes
from nca_plugin.study.report.parts import Row, Stage1, Values, ablations, label, language_rows, others, stages1

#: Largest height of a picture of heads, in inches.
_TALLEST: Final = 14.0


@dataclass(frozen=True, slots=True)
class Section:
    """Pictures that belong together.

    Attributes:
        title: the heading.
        reading: how to read the pictures.
    """

    name: str
    title: str
    reading: str
    pictures: list[Picture]


def sections(values: Values) -> list[Section]:
    """Return the sections for which a study has pictures."""
    found = [
        _curves(values),
        _gains(values),
        _ablation(values),
        *_stage1(values),
        _retrieval(values),
        *_induction(values),
        _data(values),
    ]
    return [section for section in found if section.pictures]


def _curves(values: Values) -> Section:
    seeds = len(values["seeds"])
    height = CHART[1] + charts.legend_height(values)
    pictures = []
    for i, domain in enumerate(values["domains"]):
        curves = partial(charts.draw_curves, values=values, domain=domain)
        pictures.append(Picture(f"curves-{i}", f"{domain}: held-out perplexity", "", curves, (CHART[0], height)))
        if others(values):
            title = f"{domain}: difference in loss, paired by seed"
            differences = partial(charts.draw_differences, values=values, domain=domain)
            pictures.append(Picture(f"differences-{i}", title, "", differences, (CHART[0], height)))
    base = f"'{label(values, values['baseline'])}'"
    reading = f"Left: the grey line is where {base} ends; an arm that crosses it earlier is that much faster. "
    reading += "The dotted line is the best model that counts n-grams. "
    if any(row["extra_updates"] for row in values["language"]):
        reading += f"The dashed line is {base} of equal compute. "
    if seeds > 1:
        reading += "Shades hold the lowest to the highest seed. "
    reading += f"Right: below 0 is better than {base}. "
    if seeds > 1:
        reading += "Bars at the right end are the 95 % intervals of the table"
        if len(others(values)) <= charts.MOST_BANDS:
            reading += ", and shades those before, with the held-out documents varying as they do at the end"
        reading += ". "
        reading += "The line is thick where the interval leaves out 0. "
    reading += f"The axes fit what comes after the first {100 * charts.SHOWN_FROM:.0f} % of the tokens."
    return Section("curves", "Learning curves", reading, pictures)


def _gains(values: Values) -> Section:
    if not others(values):
        return Section("gains", "", "", [])
    size = (CHART[0], charts.gains_height(values))
    pictures = [
        Picture(f"gains-{i}", f"{domain}: gain", "", partial(charts.draw_gains, values=values, domain=domain), size)
        for i, domain in enumerate(values["domains"])
    ]
    reading = "Ticks are seeds. One seed has no interval, and shows no difference."
    if len(values["seeds"]) > 1:
        reading = (
            "Ticks are seeds, bars are 95 % intervals that hold together for all arms; one that touches 0 shows no "
            "difference. An arrow marks where an interval goes on outside the picture. "
        )
    if any(facts["bytes_per_token"] for facts in values["domains"].values()):
        reading += " The band is what the paper's gains would be for tokens of as many bytes as these."
    return Section("gains", "Gain over the baseline", reading, pictures)


def _ablation(values: Values) -> Section:
    shown = ablations(values)
    lines = max((charts.ablation_label(values, one).count("\n") + 1 for one in shown), default=1)
    size = (3.0 + 1.7 * len(values["domains"]), 1.2 + len(shown) * max(0.85, 0.21 * lines))
    reading = (
        "Gain over the arm which keeps everything of the same stage 1. Below 0, something of the gain was in what is "
        "drawn anew."
    )
    if len(values["seeds"]) > 1:
        reading += " With the 95 % interval of this comparison alone; bold and in full colour where it leaves out 0."
    title = "Gain over keeping everything, %"
    drawn = partial(charts.draw_ablations, values=values, shown=shown)
    pictures = [Picture("ablation-0", title, "", drawn, (max(size[0], CHART[0]), size[1]))] if shown else []
    return Section("ablation", "Ablation: what carries the gain", reading, pictures)


def _stage1(values: Values) -> list[Section]:
    stages = stages1(values)
    curves = [
        Picture(f"stage1-{i}", stage.title, "", partial(probes.draw_stage1, stage=stage))
        for i, stage in enumerate(stages)
    ]
    reading = (
        "Held-out loss of stage 1, seeds thin and their mean thick. A model that only knows how often each token "
        "occurs is on the dashed line: below it the context is used. The solid line is an oracle that knows the law of "
        "the source."
    )
    frames = [
        Picture(f"in_context-{i}", stage.title, "", partial(probes.draw_in_context, stage=stage))
        for i, stage in enumerate(stages)
        if all(row["in_context"] and row["in_context"]["hard"] for row in stage.rows)
    ]
    frames_reading = (
        "Accuracy by the number of frames in the context, on the samples that copying does not predict; shades hold "
        "the lowest to the highest seed. Looking up the neighbourhoods seen so far in the sequence is what a model "
        "that infers the rule can do. The first frame is random, and no model can know it."
    )
    return [
        Section("stage1", "Stage 1: what is learned", reading, curves),
        Section("in_context", "Stage 1: accuracy in context", frames_reading, frames),
    ]


def _induction(values: Values) -> list[Section]:
    starts = [stage for stage in stages1(values) if probes.has_induction(stage.rows)]
    pictures = []
    for i, domain in enumerate(values["domains"]):
        groups: list[tuple[str, list[Row]]] = [
            (f"after stage 1:\n{_names(values, stage)}", stage.rows) for stage in starts if domain in stage.domains
        ]
        for arm in values["arms"]:
            rows = language_rows(values, domain, arm)
            if probes.has_induction(rows):
                groups.append((f"after text:\n{label(values, arm)}", rows))
        if groups:
            # The title must fit the width of its picture.
            pictures += _heads(i, f"{domain[:20]}, " if len(values["domains"]) > 1 else "", groups)
    chances = [
        f"{_chance(values[key])} {after}" for key, after in (("stage1", "after stage 1"), ("language", "after text"))
    ]
    reading = (
        "Induction score: how much a head attends to what followed the same token before, on random tokens that "
        "repeat; 1 is a perfect induction head. Shown is the score minus that of chance, "
        f"{' and '.join(chances)}. Heads of different seeds have nothing to do with each other: the mean over seeds is "
        "of each layer's strongest head, and all heads are shown for one seed alone."
    )
    return [Section("induction", "Induction heads", reading, pictures)]


def _chance(rows: list[Row]) -> str:
    """Return the range of the scores of a head that attends to everything equally, which depend on the vocabulary."""
    found = [row["induction"]["chance"] for row in rows if row["induction"]]
    if not found:
        return "unknown"
    ends = dict.fromkeys((f"{min(found):.3f}", f"{max(found):.3f}"))
    return " to ".join(ends)


def _heads(index: int, prefix: str, groups: list[tuple[str, list[Row]]]) -> list[Picture]:
    names = [charts.wrapped(name, 30) for name, _ in groups]
    highest = probes.highest_score([row for _, rows in groups for row in rows])
    runs = [rows[0] for _, rows in groups]
    lines = sum(name.count("\n") + 1 for name in names)
    layers = sum(len(row["induction"]["scores"]) + 1 for row in runs)
    strongest: Any = partial(
        probes.draw_strongest_heads, names=names, groups=[rows for _, rows in groups], highest=highest
    )
    heads: Any = partial(probes.draw_heads, names=names, runs=runs, highest=highest)
    height = 1.3 + 0.21 * lines
    return [
        Picture(
            f"strongest-{index}", _title(f"{prefix}strongest head of each layer"), "", strongest, (CHART[0], height)
        ),
        Picture(
            f"heads-{index}",
            _title(f"{prefix}all heads of seed {runs[-1]['seed']}"),
            "",
            heads,
            (CHART[0], min(max(height, 1.3 + 0.1 * layers), _TALLEST)),
        ),
    ]


def _title(text: str) -> str:
    return text[0].upper() + text[1:]


def _names(values: Values, stage: Stage1) -> str:
    more = f" and {len(stage.arms) - 1} more" if len(stage.arms) > 1 else ""
    return f"{label(values, stage.arms[0])}{more}"


def _retrieval(values: Values) -> Section:
    drawn = []
    for i, domain in enumerate(values["domains"]):
        runs = {arm: language_rows(values, domain, arm) for arm in values["arms"]}
        if all(row["retrieval"] for rows in runs.values() for row in rows):
            curve = partial(charts.draw_retrieval, values=values, domain=domain)
            drawn.append(Picture(f"retrieval-{i}", f"{domain}: retrieval of repeated text", "", curve))
    reading = (
        "How much lower the loss of a passage of held-out text is when the passage stands in the context already than "
        "when other text stands there, against the number of tokens between the two. Shades hold the lowest to the "
        "highest seed."
    )
    return Section("retrieval", "Retrieval after text", reading, drawn)


def _data(values: Values) -> Section:
    seq_length = int(values["study"]["arguments"]["seq-length"])
    # Stages 1 that differ only in schedule or length read the same data.
    by_uri = {stage.uri: stage for stage in reversed(stages1(values)) if stage.uri is not None}
    pictures = []
    for i, stage in enumerate(reversed(by_uri.values())):
        samples = probes.data_of(stage, seq_length)
        title = values["arms"][stage.arms[0]]["source"]
        drawn = partial(probes.draw_data, samples=samples)
        pictures.append(Picture(f"data-{i}", title, "", drawn, (CHART[0], 3.0 if samples.grid else 2.2)))
    reading = (
        "The first sequences of the first seed, the simplest on top. Of an automaton every square is the grid at one "
        "moment, from left to right; a wide gap leaves out frames. Of other sources every cell is a token."
    )
    return Section("data", "What stage 1 reads", reading, pictures)
