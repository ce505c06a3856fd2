"""The registry of sources by the scheme of their URI.

Other packages add sources through the entry-point group `nca_plugin.sources`. The name of an entry is the scheme, and
its object a function from `ParsedURI` to `Source`.
"""

import functools
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points

from nca_plugin.automata import PRESETS
from nca_plugin.errors import NCAPluginError
from nca_plugin.sources.base import Source
from nca_plugin.sources.copy import CopySource
from nca_plugin.sources.dyck import DyckSource, ShuffleDyckSource
from nca_plugin.sources.eca import ECASource
from nca_plugin.sources.iid import IIDSource
from nca_plugin.sources.linear_rnn import LinearRNNSource
from nca_plugin.sources.mixture import nca_from_uri
from nca_plugin.sources.offset import OffsetSource, split_offset
from nca_plugin.sources.shuffled import ShuffledSource
from nca_plugin.sources.uri import ParsedURI, join_uri, split_uri
from nca_plugin.suggestions import unknown_names

SourceFactory = Callable[[ParsedURI], Source]

_FACTORIES: dict[str, SourceFactory] = {
    "nca": nca_from_uri,
    "shuffled": ShuffledSource.from_uri,
    "dyck": DyckSource.from_uri,
    "shuffle_dyck": ShuffleDyckSource.from_uri,
    "copy": CopySource.from_uri,
    "iid": IIDSource.from_uri,
    "eca": ECASource.from_uri,
    "linear_rnn": LinearRNNSource.from_uri,
}


def register(scheme: str, factory: SourceFactory) -> None:
    """Add a source to this process. Raises `NCAPluginError` if the scheme, in upper or lower case, is taken."""
    scheme = scheme.lower()
    if scheme in _known():
        raise NCAPluginError(f"source scheme '{scheme}' is already registered")
    _FACTORIES[scheme] = factory
    parse.cache_clear()


def schemes() -> tuple[str, ...]:
    """Return the schemes of all sources, including those of installed packages."""
    return tuple(_known())


def is_source(path: str) -> bool:
    """Whether a data path is the URI of a source rather than the name of files. `s3://` and the like are files."""
    scheme, separator, _ = path.partition("://")
    return bool(separator) and scheme.lower() in _known()


def check_schemes(names: Iterable[str]) -> None:
    """Raise `NCAPluginError` if some names are not sources. The message also suggests presets of `nca`."""
    known = _known()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise NCAPluginError(unknown_names("source", unknown, [*known, *(f"nca://{preset}" for preset in PRESETS)]))


@functools.lru_cache(maxsize=256)
def parse(uri: str) -> Source:
    """Return the source that `uri` names: `nca`, `nca://web`, `nca://code?seed=7&band=0.3:0.4`, `dyck://?k=64`.

    Every source takes the options `split` and `vocab_offset`, which shifts its ids. A URI is parsed, and its source
    made, once in a process: a source has no state.

    Raises:
        NCAPluginError: an unknown scheme, preset or option, a value that the source refuses, or a source of another
            package without an attribute of `Source`.
    """
    parsed = split_uri(uri)
    check_schemes([parsed.scheme or uri])
    parsed, offset = split_offset(parsed)
    source = _known()[parsed.scheme](parsed)
    lacking = [name for name in vars(Source) if not name.startswith("_") and not hasattr(source, name)]
    if lacking:
        raise NCAPluginError(
            f"source '{parsed.scheme}' lacks {', '.join(lacking)}: its package was written for another version of "
            "nca-plugin, see nca_plugin.sources.Source"
        )
    return OffsetSource(source, offset) if offset else source


def short_uri(source: Source | str) -> str:
    """Return the URI of a source for messages, with only those options that differ from its preset's.

    `parse` returns the same source for it. A text that is not the URI of a known source is returned unchanged.
    """
    given = source if isinstance(source, str) else source.uri
    try:
        uri = parse(given).uri
        parsed = split_uri(uri)
        preset = f"{parsed.scheme}://{parsed.preset}"
        usual = split_uri(parse(preset).uri).options
        differing: dict[str, object] = {
            name: value for name, value in parsed.options.items() if usual.get(name) != value
        }
        short = join_uri(parsed.scheme, parsed.preset, differing) if differing else preset
        return short if parse(short).uri == uri else uri
    except NCAPluginError:
        return given


def _known() -> dict[str, SourceFactory]:
    return {**_installed(), **_FACTORIES}


# Reading the metadata of all installed packages takes milliseconds.
@functools.cache
def _installed() -> dict[str, SourceFactory]:
    schemes: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group="nca_plugin.sources"):
        schemes.setdefault(entry.name.lower(), []).append(entry)
    return {scheme: _Deferred(entries) for scheme, entries in schemes.items()}


class _Deferred:
    """An installed source that is imported when it is first used."""

    def __init__(self, entries: list[EntryPoint]) -> None:
        self._entries = entries

    def __call__(self, parsed: ParsedURI) -> Source:
        packages = " and ".join(sorted(entry.dist.name if entry.dist else entry.value for entry in self._entries))
        if len(self._entries) > 1:
            raise NCAPluginError(f"source '{parsed.scheme}' comes from {packages}: uninstall all but one")
        try:
            factory = self._entries[0].load()
        except Exception as error:
            raise NCAPluginError(
                f"source '{parsed.scheme}' comes from the package {packages}, which cannot be imported ({error!r}): "
                "repair or uninstall it"
            ) from error
        source: Source = factory(parsed)
        return source
