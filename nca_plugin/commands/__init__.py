"""The `nca-plugin` command, one file for each group of its commands."""
