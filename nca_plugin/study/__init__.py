"""The transfer study: the same language run from several starting points, compared."""
