"""The stage transition: a checkpoint of one stage as the start of the next. Offline, on the CPU, without ranks."""

from nca_plugin.checkpoint.transfer import transfer

__all__ = ["transfer"]
