"""Token sources: what `data.source` can name. Each is a pure function of its configuration and an index.

>>> from nca_plugin.sources import parse
>>> source = parse("nca://web?seed=7")
>>> source.vocab_size, source.sample(0, 1024).tokens.shape
(10002, (1025,))
>>> parse(source.uri) == source
True
"""

from nca_plugin.sources.base import FrameLayout, Sample, Source
from nca_plugin.sources.registry import is_source, parse, register, schemes, short_uri
from nca_plugin.sources.split import checked_split
from nca_plugin.sources.uri import ParsedURI, join_uri, parse_options

__all__ = [
    "FrameLayout",
    "ParsedURI",
    "Sample",
    "Source",
    "checked_split",
    "is_source",
    "join_uri",
    "parse",
    "parse_options",
    "register",
    "schemes",
    "short_uri",
]
