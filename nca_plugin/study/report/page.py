"""The page of a study: the result first, then what it rests on."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

from nca_plugin.display.page import Rendered, document, figure, table
from nca_plugin.study.paper import FIGURES, SETTING, SOURCE
from nca_plugin.study.report.parts import Row, Values, label
from nca_plugin.study.report.pictures import Section
from nca_plugin.study.report.tables import Rows, comparison, costs, stage1, sweep, tasks
from nca_plugin.study.report.words import headline, limits, verdict

_STYLE: Final = """
h1 { font-size: 1rem; font-weight: 600; color: var(--soft); }
.headline { font-size: 1.5rem; line-height: 1.3; font-weight: 650; color: var(--text); margin: .25rem 0 1rem;
  overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.75rem 0 .5rem; overflow-wrap: anywhere; }
.verdict p, li { color: var(--text); margin: .5rem 0; max-width: 60rem; overflow-wrap: anywhere; }
small { color: var(--soft); }
.paper { border-left: 3px solid var(--line); padding: .25rem 0 .25rem 1rem; margin: 1.25rem 0; max-width: 46rem; }
.single { max-width: 46rem; }
.wide + p { max-width: 60rem; font-size: .9rem; }
.reading { margin-bottom: 1rem; max-width: 60rem; }
.wide th:first-child, .wide td:first-child { position: sticky; left: 0; background: var(--page); min-width: 9rem;
  overflow-wrap: anywhere; }
details { margin: .5rem 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; border-left: 3px solid var(--line);
  padding-left: .75rem; }
"""


def page(values: Values, sections: Sequence[Section], drawn: Mapping[str, Rendered]) -> str:
    """Return the page's HTML.

    Args:
        sections: of pictures, in any order.
        drawn: the pictures by name.
    """
    shown = {section.name: _section(section, drawn) for section in sections}
    body = [
        f'<p class="headline">{_words(headline(values))}</p>',
        _verdict(values),
        "<h2>Against the baseline</h2>",
    ]
    for domain, facts in values["domains"].items():
        body.append(_table(comparison(values, domain)))
        if facts["paper"] in FIGURES:
            body.append(_paper([facts["paper"]]))
    body += [shown.pop("curves", ""), shown.pop("gains", ""), shown.pop("ablation", "")]
    asked = tasks(values)
    body += ["<h2>Tasks</h2>"] if asked else []
    body += [_table(rows) for rows in asked]
    body += [_table(rows) for rows in sweep(values)]
    body += [shown.pop("stage1", "")]
    body += [_table(rows) for rows in stage1(values)]
    body += shown.values()
    if not any(facts["paper"] in FIGURES for facts in values["domains"].values()):
        body += ["<h2>What the paper reports</h2>", _paper(list(FIGURES))]
    spent = costs(values)
    body += [f"<h2>{escape(spent.title)}</h2>", _table(spent, has_title=False)]
    body += ["<h2>Limits</h2>", f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in limits(values))}</ul>"]
    body += ["<h2>How to repeat it</h2>", *_recipe(values)]
    return document(f"Study of {', '.join(values['domains'])}", body, _STYLE)


def _verdict(values: Values) -> str:
    lines = []
    for line in verdict(values).splitlines():
        domain = next((name for name in values["domains"] if line.startswith(f"{name}: ")), "")
        strong = f"<strong>{escape(domain)}</strong>" if domain else ""
        lines.append(f"<p>{strong}{_words(line[len(domain) :])}</p>")
    return f'<div class="verdict">{"".join(lines)}</div>'


def _words(text: str) -> str:
    return escape(text).replace(" %", "\N{NO-BREAK SPACE}%")


def _section(section: Section, drawn: Mapping[str, Rendered]) -> str:
    figures = "".join(figure(drawn[picture.name]) for picture in section.pictures)
    kind = "charts" if len(section.pictures) > 1 else "single"
    return (
        f'<h2>{escape(section.title)}</h2>\n<p class="reading">{escape(section.reading)}</p>\n'
        f'<div class="{kind}">{figures}</div>'
    )


def _table(rows: Rows, has_title: bool = True) -> str:
    title = f"<h3>{escape(rows.title)}</h3>" if has_title else ""
    return f"{title}{table(rows.heads, rows.rows)}<p>{escape(rows.note)}</p>"


def _paper(names: Sequence[str]) -> str:
    """Return the paper's figures, marked as such."""
    heads = ("the paper's corpus", "scratch", "C4", "Dyck", "NCA", "gain of NCA, %", "speed-up of NCA")
    rows = []
    for name in names:
        found = FIGURES[name]
        perplexities = (f"{value:.2f}" for value in (found.scratch, found.c4, found.dyck, found.nca))
        rows.append([found.title, *perplexities, f"{found.gain_percent:.1f}", f"{found.speed_up:.2f}"])
    return (
        f'<div class="paper"><h3>The paper\'s figures, not measured here</h3>{table(heads, rows)}'
        f"<p>Held-out perplexities of another model, text and budget: {escape(SETTING)}. {escape(SOURCE)}.</p></div>"
    )


def _recipe(values: Values) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in values["versions"].items())
    seeds = ", ".join(map(str, values["seeds"]))
    sources = dict.fromkeys(row["source"] for row in values["stage1"] if row["source"])
    corpora = (f"{name}: {facts['corpus']}" for name, facts in values["domains"].items())
    body = [
        f"<pre>{escape(values['command'])}</pre>",
        f"<p>With {escape(versions)}; seeds {escape(seeds)}. Text: {escape('; '.join(corpora))}.</p>",
    ]
    if sources:
        listed = "\n".join(map(escape, sources))
        body.append(f"<details><summary>Sources of stage 1, one a seed</summary><pre>{listed}</pre></details>")
    groups = [(f"Stage 1 of {', '.join(label(values, arm) for arm in row['arms'])}", row) for row in values["stage1"]]
    for row in values["language"]:
        longer = f", {row['extra_updates']} updates longer" if row["extra_updates"] else ""
        groups.append((f"{label(values, row['arm'])} on {row['domain']}{longer}", row))
    for entry in values.get("tasks", []):
        groups += [
            (f"{entry['name']} of {label(values, row['arm'])} on {entry['domain']}", row) for row in entry["runs"]
        ]
    body.append(f"<details><summary>The commands of all {len(groups)} runs</summary>")
    body += [_commands(name, row) for name, row in groups]
    body.append("</details>")
    return body


def _commands(name: str, row: Row) -> str:
    commands = escape("\n".join(row["commands"]))
    return f"<p>{escape(name)}, seed {row['seed']}</p><pre>{commands}</pre>"
