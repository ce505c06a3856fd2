"""The one class of error that a user is meant to read."""


class NCAPluginError(Exception):
    """Something a user can put right. The message is one line: what is wrong, where, and what to do."""
