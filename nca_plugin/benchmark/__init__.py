"""How fast sources make tokens on this machine, and how fast they could."""
