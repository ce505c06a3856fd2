"""Configuration files: YAML that is safe to read, and Hydra files composed with overrides."""
