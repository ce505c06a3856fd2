"""The `nca-plugin` command. If a package that it needs is missing, its error says what to do."""

import os
import sys

from nca_plugin.display.ending import run_to_its_end
from nca_plugin.errors import one_line
from nca_plugin.launch.process import CHILD, die_with_torchrun


def main() -> None:
    """Run the command of this process's arguments. `doctor` runs even if the other commands cannot be imported."""
    if os.environ.pop(CHILD, None):
        die_with_torchrun()
    sys.exit(run_to_its_end(_run))


def _run() -> None:
    try:
        from nca_plugin.commands.app import main as run
    except ImportError as error:
        if sys.argv[1:] == ["doctor"]:
            from nca_plugin.doctor import screen

            sys.exit(screen.run())
        print(f"nca-plugin: error: {one_line(error)}: run nca-plugin doctor, which tells what to do", file=sys.stderr)
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
