"""The page of a study: first the result, then the evidence."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from nca_plugin.display.drawing import Drawn
from nca_plugin.display.page import html
from nca_plugin.study.paper import FIGURES
from nca_plugin.study.report.parts import Values, label
from nca_plugin.study.report.pictures import Section
from nca_plugin.study.report.stage1_tables import stage1
from nca_plugin.study.report.tables import comparison, costs, published, sweep, tasks
from nca_plugin.study.report.words import headline, limits, verdict


def page(values: Values, sections: Sequence[Section], drawn: Mapping[str, Drawn]) -> str:
    """Return the page's HTML.

    Args:
        sections: the sections of pictures.
        drawn: the drawn pictures by name.
    """
    papers = {domain: facts["paper"] for domain, facts in values["domains"].items() if facts["paper"] in FIGURES}
    return html(
        Path(__file__).with_name("templates") / "study.html.j2",
        title=f"Study of {', '.join(values['domains'])}",
        headline=headline(values),
        verdict=[_by_domain(values, line) for line in verdict(values).splitlines()],
        comparisons=[
            (comparison(values, domain), published([papers[domain]]) if domain in papers else None)
            for domain in values["domains"]
        ],
        sections=sections,
        drawn=drawn,
        tasks=tasks(values),
        sweep=sweep(values),
        stage1=stage1(values),
        published=None if papers else published(list(FIGURES)),
        costs=costs(values),
        limits=limits(values),
        command=values["command"],
        versions=", ".join(f"{name} {version}" for name, version in values["versions"].items()),
        seeds=", ".join(map(str, values["seeds"])),
        corpora="; ".join(f"{name}: {facts['corpus']}" for name, facts in values["domains"].items()),
        sources=list(dict.fromkeys(row["source"] for row in values["stage1"] if row["source"])),
        runs=_runs(values),
    )


def _by_domain(values: Values, line: str) -> tuple[str, str]:
    """Return the domain with which a line of the verdict begins, or "", and the rest of the line."""
    domain = next((name for name in values["domains"] if line.startswith(f"{name}: ")), "")
    return domain, line[len(domain) :]


def _runs(values: Values) -> list[tuple[str, list[str]]]:
    """Return the name of every run with its commands."""
    rows = [(f"Stage 1 of {', '.join(label(values, arm) for arm in row['arms'])}", row) for row in values["stage1"]]
    for row in values["language"]:
        longer = f", {row['extra_updates']} updates longer" if row["extra_updates"] else ""
        rows.append((f"{label(values, row['arm'])} on {row['domain']}{longer}", row))
    for entry in values["tasks"]:
        rows += [(f"{entry['name']} of {label(values, row['arm'])} on {entry['domain']}", row) for row in entry["runs"]]
    return [(f"{name}, seed {row['seed']}", row["commands"]) for name, row in rows]
