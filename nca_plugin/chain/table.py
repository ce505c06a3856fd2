"""The progress of a chain and its commands, for people to read."""

import shlex
from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from nca_plugin.chain.next_stage import StageState
from nca_plugin.chain.stages import Chain


def state_table(states: Iterable[StageState]) -> Table:
    """Return a table with a row for each stage and each start checkpoint, in order."""
    table = Table(show_edge=False, pad_edge=False, box=None, header_style="bold")
    for column in ("", "state", "length", "folder"):
        table.add_column(column, no_wrap=True)
    for state in states:
        stage = state.stage
        if stage.start is not None:
            start = "made" if stage.start.is_dir() else "no longer needed" if state.is_started else "waiting"
            table.add_row("transition", start, "", str(stage.start))
        described = state.described + (f" (its tracker file {state.damage})" if state.damage else "")
        # A folder's name may look like rich's markup, which `Text` does not interpret.
        table.add_row(*map(Text, (stage.name, described, stage.length, str(stage.folder))))
    return table


def commands(chain: Chain, ranks: int) -> list[str]:
    """Return the commands that do the same as the chain, in order."""
    lines = []
    for number, stage in enumerate(chain.stages):
        if stage.start is not None and stage.transition is not None:
            options: list[str] = []
            defaults = type(stage.transition)().described()
            for name, value in stage.transition.described().items():
                if value == defaults[name]:
                    continue
                option = f"--{name.replace('_', '-')}"
                if value is True:
                    options.append(option)
                else:
                    for one in value if isinstance(value, list) else [value]:
                        options += [option, str(one)]
            folders = ("--from", str(chain.stages[number - 1].folder), "--to", str(stage.start))
            lines.append(shlex.join(["nca-plugin", "transfer", *folders, *options]))
        start = ("torchrun", "--standalone", "--nproc-per-node", str(ranks), "-m", stage.module)
        lines.append(shlex.join([*start, *stage.arguments]))
    return lines
