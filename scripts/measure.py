"""Run a command and print its seconds, and the most memory that it and its processes held at one time.

python scripts/measure.py nca-plugin generate nca://web --tokens 164M --out datasets/web
"""

import sys
import time

import psutil

_SECONDS_BETWEEN_LOOKS = 0.2


def main() -> int:
    """Return the command's exit code."""
    start = time.monotonic()
    command = psutil.Popen(sys.argv[1:])
    most = {"pss": 0, "rss": 0}
    while command.poll() is None:
        sums = dict.fromkeys(most, 0)
        for process in (command, *_children(command)):
            try:
                memory = process.memory_full_info()
            except psutil.Error:
                # It has just ended.
                continue
            for kind in sums:
                sums[kind] += getattr(memory, kind)
        most = {kind: max(most[kind], sums[kind]) for kind in most}
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    print(
        f"{time.monotonic() - start:.1f} s, at most {most['pss'] / 1e6:.0f} MB in all processes "
        f"({most['rss'] / 1e6:.0f} MB if what they share is counted in each)"
    )
    return int(command.returncode)


def _children(command: psutil.Popen) -> list[psutil.Process]:
    try:
        return list(command.children(recursive=True))
    except psutil.Error:
        return []


if __name__ == "__main__":
    sys.exit(main())
