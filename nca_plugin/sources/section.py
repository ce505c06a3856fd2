"""The `data` section of a configuration file. `data.source` names a source and `data.<source>.<option>` its options, or
`data.path` is a blend, such as `[0.1, nca://web, 0.9, my_text_document]`."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from nca_plugin.errors import NCAPluginError, in_context
from nca_plugin.sources.registry import check_schemes, parse, schemes
from nca_plugin.sources.uri import format_value, split_uri
from nca_plugin.suggestions import near_name, unknown_names


def data_path(data: Mapping[str, Any]) -> list[str] | None:
    """Return the value of Megatron-LM's `--data-path` for a `data` section, None if the section names no data.

    For example, `{"source": "nca", "nca": {"preset": "code", "band": [0.3, 0.4]}}` gives the canonical URI of
    `nca://code?band=0.3:0.4`.

    Raises:
        NCAPluginError: an unknown key or source, options of another source than the one named, or options that the
            source refuses. The message names keys as the user writes them, such as `data.nca.band`.
    """
    known = ("source", "path", *schemes())
    unknown = [f"data.{key}" for key in data if key not in known]
    if unknown:
        raise NCAPluginError(unknown_names("key", unknown, [f"data.{name}" for name in known]))
    source, path = data.get("source"), data.get("path")
    if source is not None and path is not None:
        raise NCAPluginError("data.source and data.path contradict each other: give one of them")
    if source is not None and not isinstance(source, str):
        raise NCAPluginError(f"data.source={source} must be a name or a URI, such as nca")
    scheme = None if source is None else split_uri(source).scheme
    if scheme is not None:
        with in_context("data.source"):
            check_schemes([scheme])
    for other, options in data.items():
        if other not in ("source", "path", scheme) and options is not None:
            raise NCAPluginError(
                f"data.{other} does not apply without data.source={other}: leave it out, or set data.{other}=null "
                "where a file has it"
            )
    if path is not None:
        return [str(part) for part in (path if isinstance(path, list) else [path])]
    if source is None or scheme is None:
        return None
    section = data.get(scheme) or {}
    if not isinstance(section, Mapping):
        raise NCAPluginError(f"data.{scheme} must be a mapping of options to values")
    return [source_uri(source, section, lambda name: f"data.{scheme}.{name}")]


def source_uri(
    source: str, options: Mapping[str, Any], spelling: Callable[[str], str], others: Collection[str] = ()
) -> str:
    """Return the canonical URI of `source` with options that are given beside it, including `preset`.

    Args:
        options: values as they are in a configuration file, or as text.
        spelling: returns how the user writes an option of a given name.
        others: names of other keys beside the options, as candidates for a misspelt name.

    Raises:
        NCAPluginError: the source refuses an option or does not know it. The message names the nearest option.
    """
    texts = {str(name): format_value(_tuples(value)) for name, value in options.items()}
    try:
        return parse(with_options(source, texts, spelling)).uri
    except NCAPluginError as error:
        # The source knows only its own options, so names that stand for keys beside them are looked up here.
        beside = ("preset", *others)
        refused = [name for name in texts if "unknown option" in str(error) and f"'{name}'" in str(error)]
        misspelt = [name for name in refused if name not in beside and near_name(name, beside) is not None]
        if not misspelt:
            raise
        messages = [unknown_names("key", map(spelling, misspelt), map(spelling, beside))]
        with_others = {name: text for name, text in texts.items() if name not in misspelt}
        try:
            parse(with_options(source, with_others, spelling))
        except NCAPluginError as other:
            messages.append(str(other))
        raise NCAPluginError("; ".join(messages)) from None


def with_options(source: str, options: Mapping[str, str], spelling: Callable[[str], str]) -> str:
    """Return `source` as a URI that includes options given beside it, and `preset`.

    Args:
        spelling: returns how the user writes an option of a given name.

    Raises:
        NCAPluginError: the URI already has one of the options.
    """
    if not options:
        return source
    parsed = split_uri(source)
    preset = options.get("preset", parsed.preset)
    if parsed.preset not in ("", preset):
        raise NCAPluginError(f"{spelling('preset')}: {preset} contradicts source {source}: give one of them")
    for name in options.keys() & parsed.options.keys():
        raise NCAPluginError(f"{spelling(name)} is also given in source {source}: give it once")
    query = {**parsed.options, **options}.items()
    return f"{parsed.scheme}://{preset}?{'&'.join(f'{k}={v}' for k, v in query if k != 'preset')}".removesuffix("?")


def _tuples(value: Any) -> Any:
    """Return a list, such as a band, as a tuple, and any other value unchanged."""
    return tuple(value) if isinstance(value, list) else value
