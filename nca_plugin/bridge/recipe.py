"""Applies a user's settings to a recipe or complete configuration of Megatron-Bridge, so that none gets lost.

Megatron-Bridge merges settings loosely. It silently drops keys that `+` adds, and only warns about unknown keys in YAML
and about a failing `_target_`, and then goes on with the previous value. Here every key is looked up in the
configuration first, and every value is compared with the configuration afterwards.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nca_plugin.bridge.field_types import check_type, takes_mapping
from nca_plugin.configuration.hydra_files import parse_overrides
from nca_plugin.configuration.yaml_files import check_interpolations, check_yaml
from nca_plugin.errors import NCAPluginError, in_context, one_line
from nca_plugin.suggestions import unknown_name, unknown_names

#: Keys with which Megatron-Bridge instantiates a class or calls a function.
_TARGET: Final = "_target_"
_INSTANTIATION_KEYS: Final = (_TARGET, "_args_", "_partial_", "_call_")

Settings = dict[str, Any]


def read_file(path: Path) -> Settings:
    """Return the settings in a YAML file. Raises `NCAPluginError` if it cannot be read."""
    with in_context(f"configuration file {path}"):
        check_yaml(path)
    try:
        # OmegaConf reads the file as Megatron-Bridge does: 1e-4 is a number, and duplicate keys are refused.
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise NCAPluginError(f"configuration file {path} cannot be read: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise NCAPluginError(f"configuration file {path} must be a mapping of names to values")
    return {str(key): value for key, value in content.items()}


def read_overrides(overrides: list[str]) -> Settings:
    """Return the settings of overrides such as `train.train_iters=100`. Raises `NCAPluginError` for an invalid one."""
    settings = OmegaConf.create({})
    for override in parse_overrides(overrides):
        text = override.input_line
        try:
            if override.is_delete() or override.is_sweep_override() or override.package is not None:
                raise NCAPluginError(
                    f"override '{text}' must have the form key=value, with quotes around a value that has commas"
                )
            # `+key` and `++key` mean the same as `key`, since all keys are checked against the configuration.
            OmegaConf.update(settings, override.key_or_group, override.value(), merge=True, force_add=True)
        except OmegaConfBaseException as error:
            raise NCAPluginError(f"override '{text}': {one_line(error)}") from error
    return _container(settings)


def merged(settings: Settings, others: Settings) -> Settings:
    """Return settings with those of `others`, which take precedence."""
    return _container(OmegaConf.merge(settings, others))


def _container(settings: Any) -> Settings:
    # Interpolations are resolved later, in the whole configuration.
    result = OmegaConf.to_container(settings, resolve=False)
    assert isinstance(result, dict)
    return {str(key): value for key, value in result.items()}


def load_recipe(name: str) -> Any:
    """Return the configuration of a recipe of Megatron-Bridge.

    Raises:
        NCAPluginError: if there is no such recipe, or it cannot read its model's configuration.
    """
    from megatron.bridge import recipes

    known = [other for other in dir(recipes) if other.endswith("_config") and not other.startswith("_")]
    if name not in known:
        raise NCAPluginError(unknown_name("recipe", name, known, "megatron.bridge.recipes has all"))
    try:
        return getattr(recipes, name)()
    except (ValueError, OSError) as error:
        raise NCAPluginError(
            f"recipe {name}: {one_line(error)} (a recipe reads its model's config.json from the Hugging Face hub, or "
            "from the cache that HF_HOME names)"
        ) from error


def load_complete(settings: Settings, path: Path) -> Any:
    """Return the configuration of a complete YAML file, such as the run_config.yaml of a checkpoint.

    Raises:
        NCAPluginError: if the file is not complete, or is not a valid configuration.
    """
    from megatron.bridge.training.config import ConfigContainer
    from megatron.bridge.utils.instantiate_utils import InstantiationException, InstantiationMode

    if _TARGET not in settings:
        raise NCAPluginError(
            f"configuration file {path} is no complete configuration, such as the run_config.yaml of a checkpoint: "
            "name the recipe that it belongs to with --recipe"
        )
    _check_keys(None, settings, "")
    try:
        return ConfigContainer.from_dict(settings, mode=InstantiationMode.STRICT)
    except (InstantiationException, ValueError, TypeError, OmegaConfBaseException) as error:
        raise NCAPluginError(f"configuration file {path}: {one_line(error)}") from error


def apply_overrides(config: Any, settings: Settings) -> None:
    """Set a user's values in a configuration.

    Raises:
        NCAPluginError: if keys are unknown, with similar ones in the message, or Megatron-Bridge ignores a value.
    """
    from megatron.bridge.training.utils.omegaconf_utils import apply_overrides, create_omegaconf_dict_config

    _check_keys(config, settings, "")
    base, callables = create_omegaconf_dict_config(config)
    with in_context("configuration"):
        check_interpolations(settings)
    for key, _ in _leaves(settings):
        if f"root.{key}" in callables:
            raise NCAPluginError(f"{key} is a function of the recipe, which a setting cannot replace: leave it out")
    dtypes = {key for key, value in _leaves(settings) if _is_dtype(_value_at(config, key))}
    try:
        merged = OmegaConf.to_container(OmegaConf.merge(base, OmegaConf.create(settings)), resolve=True)
    except OmegaConfBaseException as error:
        raise NCAPluginError(f"configuration: {one_line(error)}") from error
    # Only the user's keys are applied, because applying all of them would turn the recipe's tuples into lists.
    apply_overrides(config, _chosen(merged, settings), {})
    _check_values(config, merged, settings, dtypes)


def _chosen(merged: Any, settings: Mapping[Any, Any]) -> Any:
    """Return the part of a configuration that settings name. A section whose class they name is returned whole."""
    if _TARGET in settings:
        return merged
    return {
        name: _chosen(merged[name], value) if isinstance(value, Mapping) and value else merged[name]
        for name, value in settings.items()
    }


def _check_keys(config: Any, settings: Mapping[Any, Any], prefix: str) -> None:
    """Refuse keys that the configuration does not have."""
    unknown = dict(_unknown_keys(config, settings, prefix))
    if unknown:
        known = dict.fromkeys(name for names in unknown.values() for name in names)
        raise NCAPluginError(unknown_names("key", unknown, known, "Megatron-Bridge's ConfigContainer has all"))


def _unknown_keys(owner: Any, settings: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, list[str]]]:
    """Yield every key that `owner` does not have, with the keys that it has.

    Raises:
        NCAPluginError: if a key cannot have its value.
    """
    if _TARGET in settings:
        owner = _located(settings[_TARGET], prefix)
    if not dataclasses.is_dataclass(owner):
        # This is a function, whose arguments Megatron-Bridge checks.
        return
    known = _public_names(owner)
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if name in _INSTANTIATION_KEYS and _TARGET in settings:
            continue
        if name not in known:
            yield key, [f"{prefix}{other}" for other in known]
            continue
        if not isinstance(value, Mapping):
            check_type(owner, name, value, key)
            continue
        current = None if isinstance(owner, type) else getattr(owner, name)
        if _TARGET in value or (dataclasses.is_dataclass(current) and not isinstance(current, type)):
            yield from _unknown_keys(current, value, f"{key}.")
        elif not isinstance(current, Mapping) and not takes_mapping(owner, name):
            raise NCAPluginError(
                f"{key}.{next(iter(value), '')}: {key} is {current} in this run, which has no keys: name a class with "
                f"{key}.{_TARGET}=..., or use another recipe"
            )


def _public_names(owner: Any) -> list[str]:
    """Return the names that can be set in a configuration: its fields, and other attributes that its class sets."""
    names = [field.name for field in dataclasses.fields(owner)]
    attributes = [] if isinstance(owner, type) else vars(owner)
    return [name for name in dict.fromkeys([*names, *attributes]) if not name.startswith("_")]


def _located(target: Any, prefix: str) -> Any:
    """Return the class or function that a `_target_` names, if Megatron-Bridge allows it."""
    from megatron.bridge.utils.instantiate_utils import InstantiationException, _resolve_target

    try:
        return _resolve_target(target, prefix, check_callable=False)
    except (InstantiationException, ImportError, ValueError) as error:
        raise NCAPluginError(f"{prefix}{_TARGET}={target}: {one_line(error)}") from error


def _check_values(config: Any, merged: Any, settings: Settings, dtypes: set[str]) -> None:
    """Raise `NCAPluginError` if the configuration does not have the values that the user set."""
    from megatron.bridge.training.utils.omegaconf_utils import create_omegaconf_dict_config
    from megatron.bridge.utils.instantiate_utils import instantiate

    actual = OmegaConf.to_container(create_omegaconf_dict_config(config)[0])
    for key, _ in _leaves(settings):
        owner, _, name = key.rpartition(".")
        wanted, found = _item_at(merged, key), _value_at(config, key)
        if name == _TARGET:
            expected = _located(wanted, f"{owner}.")
            if isinstance(expected, type) and type(_value_at(config, owner)) is not expected:
                try:
                    instantiate(_item_at(merged, owner))
                except Exception as error:  # The user needs the error of the class, whatever its type.
                    raise NCAPluginError(f"{key}={wanted}: {one_line(error)}") from error
                raise NCAPluginError(
                    f"{key}={wanted} was not taken over: the run has {type(_value_at(config, owner)).__name__}"
                )
        elif name in _INSTANTIATION_KEYS:
            continue
        elif key in dtypes or callable(found):
            # Megatron-Bridge makes these from their names. A name that it does not know stays a string.
            if isinstance(found, str):
                raise NCAPluginError(f"{key}={wanted} is no type or function that Megatron-Bridge knows")
        elif wanted not in (_item_at(actual, key), found):
            raise NCAPluginError(f"{key}={wanted} was not taken over by Megatron-Bridge: the run has {found}")


def _leaves(settings: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _value_at(config: Any, key: str) -> Any:
    """Return the value of a configuration at a dotted key; None if it has no such key."""
    for name in key.split("."):
        config = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
    return config


def _item_at(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def _is_dtype(value: Any) -> bool:
    import torch

    return isinstance(value, torch.dtype)
