"""The stage transition turns the checkpoint of one stage into the start of the next. It runs offline, on the CPU."""
