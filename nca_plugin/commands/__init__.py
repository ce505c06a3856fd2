"""The `nca-plugin` command. Each module holds one group of its commands."""
