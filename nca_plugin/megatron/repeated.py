"""Finds parts of a blend that give the same samples, on which a run would train twice."""

from itertools import combinations
from pathlib import Path

from nca_plugin.indexed.source import is_generated
from nca_plugin.lineage.training_data import DataPath, TrainingData
from nca_plugin.sources import parse, short_uri
from nca_plugin.sources.details import generators


def repeated(data: TrainingData) -> list[str]:
    """Return a warning, with a way out, for each part of the blend that repeats samples of an earlier part."""
    warnings: dict[int, str] = {}
    for (_, first), (second, part) in combinations(enumerate(data.parts), 2):
        if second not in warnings and (warning := _warning(first, part)) is not None:
            warnings[second] = warning
    return list(warnings.values())


def _warning(first: DataPath, second: DataPath) -> str | None:
    if first.uri is None and second.uri is None:
        if not _is_same_file(first.path, second.path):
            return None
        names, way_out = [first.path, second.path], "name it once, with the sum of the weights"
    elif first.uri is None or second.uri is None:
        return None
    elif is_generated(first.path) or is_generated(second.path):
        # Two generated datasets may have the same URI and still different samples, if they are parts of one.
        if first.fingerprint != second.fingerprint:
            return None
        names = [part.path if is_generated(part.path) else short_uri(part.path) for part in (first, second)]
        way_out = "leave one of them out"
    else:
        if set(generators(parse(first.uri))).isdisjoint(generators(parse(second.uri))):
            return None
        names = [short_uri(first.uri), short_uri(second.uri)]
        way_out = "give one of them another seed, as in nca://web?seed=7"
    both = f"{names[0]} twice" if names[0] == names[1] else f"{names[0]} and {names[1]}"
    return f"the blend names {both}, so that the same samples are trained on twice: {way_out}"


def _is_same_file(first: str, second: str) -> bool:
    # The files of an indexed dataset may be links with other names.
    return first == second or any(
        Path(first + suffix).resolve() == Path(second + suffix).resolve() for suffix in ("", ".bin")
    )
