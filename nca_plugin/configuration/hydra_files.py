"""Loading Hydra configuration files with overrides, and checking them against dataclasses."""

import dataclasses
import os
import typing
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import AnyNode, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

import nca_plugin
from nca_plugin.configuration.yaml_files import check_interpolations, check_yaml
from nca_plugin.errors import NCAPluginError, empty_value, in_context, one_line
from nca_plugin.suggestions import unknown_name, unknown_names

#: The package that holds the configuration files of nca-plugin.
SHIPPED: Final = "nca_plugin.conf"

#: What Hydra and OmegaConf raise for a wrong file. They raise RecursionError for one that nests too deeply.
_FAULTS: Final = (HydraException, OmegaConfBaseException, YAMLError, ValueError, TypeError, RecursionError)

#: The most errors that are reported. Finding each takes as long as composing the whole configuration.
_MAX_REPORTED: Final = 20


def shipped_folder() -> Path:
    """Return the folder of the configuration files that nca-plugin brings."""
    try:
        return Path(str(resources.files(SHIPPED)))
    except ModuleNotFoundError:
        # `python -m` in a checkout imports its source tree, in which they are beside the package.
        return Path(nca_plugin.__file__).parents[1] / "conf"


def find_file(path: Path, group: str) -> Path:
    """Return the file `path`. A bare name may also be that of a file in `group` that nca-plugin brings.

    Raises:
        NCAPluginError: the file does not exist. The message lists the files that nca-plugin brings.
    """
    shipped = shipped_folder() / group
    for candidate in (path, shipped / f"{path.name}.yaml"):
        if candidate.is_file() and (candidate is path or path.parent == Path()):
            return candidate
    names = ", ".join(sorted(file.stem for file in shipped.glob("*.yaml")))
    raise NCAPluginError(f"{group} file {path} does not exist (those that come with the package: {names})")


def compose_file(path: Path, folder: Path, overrides: list[str]) -> DictConfig:
    """Return the configuration of a file and its defaults, after overrides such as `a.b=1`.

    Args:
        folder: where files are looked up, including `path`. Files that nca-plugin brings are found last.

    Raises:
        NCAPluginError: a file is missing or not YAML, or an override does not fit. The message names the nearest key.
    """
    path, folder = Path(os.path.normpath(path)), Path(os.path.normpath(folder))
    if not path.is_file():
        raise NCAPluginError(f"configuration file {path} does not exist")
    if not path.is_relative_to(folder):
        raise NCAPluginError(f"configuration file {path} is not in folder {folder}, where its defaults are looked for")
    Plugins.instance().register(_ShippedFiles)
    with in_context(f"configuration file {path}"):
        check_yaml(path)
        parsed = parse_overrides(overrides)
        try:
            with initialize_config_dir(str(folder.resolve()), version_base="1.3"):
                config = _composed(path.relative_to(folder).with_suffix("").as_posix(), parsed)
            unresolved: Any = OmegaConf.to_container(config, resolve=False)
            check_interpolations(unresolved)
            return config
        except _FAULTS as error:
            raise NCAPluginError(_described(error)) from error


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Return the parsed overrides, such as `a.b=1`.

    Raises:
        NCAPluginError: some are malformed. The message says how to write each, if that is clear.
    """
    parsed, problems = [], []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except (HydraException, RecursionError):
            problems.append(_malformed(text))
        else:
            if override.key_or_group:
                parsed.append(override)
            else:
                problems.append(_malformed(text))
    if problems:
        raise NCAPluginError("; ".join(problems[:_MAX_REPORTED]))
    return parsed


def _malformed(text: str) -> str:
    # The launcher may have added plus signs.
    text = text.lstrip("+")
    shown = _short(text)
    key, equals, value = text.partition("=")
    if not key:
        return f"override {shown} names no key: write key=value"
    if not equals:
        return f"override {shown} has no value: write {shown}=VALUE"
    quoted = f"{key}='" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    try:
        OverridesParser.create().parse_override(quoted)
    except (HydraException, RecursionError):
        return f"override {shown} is not of the form key=value"
    return f'override {shown}: quote its value, for Hydra and for the shell: "{_short(quoted)}"'


def _short(text: str) -> str:
    """Return a text for a message: cut off if it is long, and on one line."""
    text = text if len(text) <= 200 else f"{text[:200]}..."
    return text if text and text.isprintable() else repr(text)


def _composed(name: str, overrides: Sequence[Override]) -> DictConfig:
    """Compose a configuration. Hydra stops at the first wrong override, so the rest are tried again without it."""
    problems: list[str] = []
    unknown: dict[str, list[str]] = {}
    while len(problems) + len(unknown) < _MAX_REPORTED:
        try:
            config = compose(name, overrides=[str(override.input_line) for override in overrides])
        except HydraException as error:
            # Described here, while Hydra still knows its groups of files.
            key = _unknown_key(error)
            if key is None:
                problems.append(_described(error))
            else:
                unknown |= key
            wrong = next((override for override in overrides if _is_of(error, override)), None)
            if wrong is None:
                break
            overrides = [override for override in overrides if override is not wrong]
        else:
            if not problems and not unknown:
                return config
            break
    if unknown:
        known = dict.fromkeys(name for names in unknown.values() for name in names)
        problems.insert(0, unknown_names("key", unknown, known, "a plus sign before a key adds it to the file"))
    raise NCAPluginError("; ".join(problems))


def _unknown_key(error: BaseException) -> dict[str, list[str]] | None:
    """Return the key of an override that the file does not have, with the keys beside it; None for other errors."""
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if not isinstance(cause, ConfigKeyError | ConfigAttributeError) or not cause.full_key or cause.parent_node is None:
        return None
    if cause.full_key.partition(".")[0] in _groups(""):
        return None
    prefix = cause.full_key.removesuffix(str(cause.key))
    beside = dict.fromkeys([*cause.parent_node.keys(), *_groups(prefix)])
    return {cause.full_key: [f"{prefix}{key}" for key in beside if key != "hydra"]}


def _is_of(error: HydraException, override: Override) -> bool:
    """Whether an error is about this override."""
    text, key = str(error), override.key_or_group
    choice = (
        isinstance(error, MissingConfigException) and error.missing_cfg_file == f"{key}/{override.get_value_string()}"
    )
    return choice or f"'{key}'" in text or str(override.input_line) in text


def checked_by[T](schema: type[T], config: DictConfig) -> T:
    """Return `config` as an object of the dataclass `schema`, with interpolations resolved.

    Raises:
        NCAPluginError: unknown keys (each with the nearest known one), a value of the wrong type, or a missing value.
    """
    unknown = list(_unknown_keys(schema, config, ""))
    if unknown:
        known = [f"{prefix}{name}" for prefix, _, names in unknown for name in names]
        names = [f"{prefix}{key}" for prefix, key, _ in unknown]
        raise NCAPluginError(unknown_names("key", names, dict.fromkeys(known), "docs/ describes them"))
    try:
        result = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), config))
    except _FAULTS as error:
        raise NCAPluginError(_described(error)) from error
    assert isinstance(result, schema)
    empty = list(_empty_values(result, ""))
    if empty:
        raise NCAPluginError("; ".join(map(empty_value, empty[:_MAX_REPORTED])))
    return result


def resolved(config: DictConfig) -> dict[Any, Any]:
    """Return `config` as a dict with interpolations resolved. Raises `NCAPluginError` if they cannot be resolved."""
    try:
        container = OmegaConf.to_container(config, resolve=True)
    except _FAULTS as error:
        raise NCAPluginError(_described(error)) from error
    assert isinstance(container, dict)
    return container


def _unknown_keys(schema: Any, section: DictConfig, prefix: str) -> Iterator[tuple[str, Any, list[str]]]:
    """Yield each key that the dataclasses do not have: prefix of its section, key, and known names of the section.

    Raises:
        NCAPluginError: the value of a section is not a mapping.
    """
    hints = typing.get_type_hints(schema)
    for key in section:
        node = section._get_node(key)
        if key not in hints:
            yield prefix, key, list(hints)
            continue
        inner, is_dict = _dataclass_of(hints[key]), typing.get_origin(hints[key]) is dict
        if (inner is None and not is_dict) or not isinstance(node, AnyNode | DictConfig | ListConfig):
            continue
        if not isinstance(node, DictConfig) and not node._is_interpolation() and not node._is_missing():
            if node._is_none() and not is_dict and type(None) in typing.get_args(hints[key]):
                continue
            raise NCAPluginError(f"{prefix}{key} must be a mapping of names to values")
        if inner is not None and isinstance(node, DictConfig) and not node._is_interpolation():
            members = {f"{key}.{name!s}": node._get_node(name) for name in node} if is_dict else {key: node}
            for name, member in members.items():
                if isinstance(member, DictConfig) and not member._is_interpolation():
                    yield from _unknown_keys(inner, member, f"{prefix}{name}.")


def _empty_values(section: Any, prefix: str) -> Iterator[str]:
    """Yield each key whose value is an empty text, unless that is its default: no path or name is empty."""
    for field in dataclasses.fields(section):
        value, key = getattr(section, field.name), f"{prefix}{field.name}"
        members = value.items() if isinstance(value, dict) else [("", value)]
        for name, member in members:
            if dataclasses.is_dataclass(member):
                yield from _empty_values(member, f"{key}.{name}." if name else f"{key}.")
        if (value == "" and field.default != "") or (isinstance(value, list) and "" in value):
            yield key


def _dataclass_of(hint: Any) -> Any:
    """Return the dataclass in a type hint, or in its arguments; None if there is none."""
    return next((kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)), None)


class _ShippedFiles(SearchPathPlugin):
    """Adds the files of nca-plugin to the end of the search path, so that the user's files have precedence."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("nca-plugin", f"file://{shipped_folder()}")


def _described(error: BaseException) -> str:
    """Return the message for an error; for an unknown file it names the nearest known one."""
    if isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError):
        return "it, or a file in its defaults, includes itself or nests too deeply"
    if isinstance(error, MissingConfigException) and isinstance(error.missing_cfg_file, str):
        group, _, name = error.missing_cfg_file.rpartition("/")
        if error.options:
            return unknown_name("option", f"{group}={name}", [f"{group}={option}" for option in error.options])
        return f"file {error.missing_cfg_file}.yaml, which its defaults or an override name, does not exist"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.full_key:
        group = cause.full_key.partition(".")[0]
        if group in _groups(""):
            return f"{group} is a group of files: choose one with {group}=..., and set its keys where they end up"
    if isinstance(cause, MissingMandatoryValue):
        return f"{cause.full_key} has no value: give it one, {cause.full_key}=..."
    if isinstance(cause, OmegaConfBaseException):
        # The rest of the message is about OmegaConf's internals.
        text = one_line(str(cause).partition("\n    full_key:")[0])
        return f"{cause.full_key}: {text}" if cause.full_key else text
    return _text(error)


def _text(error: BaseException) -> str:
    """Return the message of an error, or of its cause if it has none."""
    # The launcher has added the plus signs.
    text = one_line(error).partition(" See https://hydra.cc")[0].replace("'++", "'")
    return text or (_text(error.__cause__) if error.__cause__ else type(error).__name__)


def _groups(prefix: str) -> Sequence[Any]:
    """Return the groups of files that an override may name instead of a key."""
    if prefix or not GlobalHydra.instance().is_initialized():
        return ()
    loader = GlobalHydra.instance().config_loader()
    return [group for group in loader.list_groups("") if group != "hydra"]
