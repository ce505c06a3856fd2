"""Studies that tests begin with."""

from pathlib import Path

from nca_plugin.study.design import StudyConfig
from nca_plugin.study.file import load_study
from nca_plugin.study.plan import Plan, unprepared

DEMO = Path(__file__).parents[1] / "conf" / "study" / "demo.yaml"
STUDY = Path(__file__).parent / "data" / "study.yaml"


def config_of(*overrides: str, path: Path = STUDY) -> StudyConfig:
    return load_study(path, list(overrides)).config


def plan_of(*overrides: str) -> Plan:
    return unprepared(config_of(*overrides))


def write_letters(folder: Path) -> Path:
    """Make `folder` with 40 documents of 100 to 490 bytes."""
    folder.mkdir()
    for i in range(40):
        (folder / f"{i:02}.txt").write_text(chr(65 + i % 26) * (100 + 10 * i))
    return folder
