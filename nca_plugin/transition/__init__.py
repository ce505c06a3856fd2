"""The stage transition: a checkpoint of one stage as the start of the next. Offline, on the CPU, without ranks."""
