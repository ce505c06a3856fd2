"""What it means that a wrong URI is refused."""

import pytest

from nca_plugin.errors import NCAPluginError
from nca_plugin.sources import parse


def assert_refused_in_one_line(uri: str, reason: str) -> None:
    with pytest.raises(NCAPluginError, match=reason) as error:
        parse(uri)
    assert "\n" not in str(error.value)
