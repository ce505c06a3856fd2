"""`python -m nca_plugin.doctor`, which works where the command `nca-plugin` itself may not."""

import sys

from nca_plugin.doctor.screen import run

if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit("usage: python -m nca_plugin.doctor")
    sys.exit(run())
