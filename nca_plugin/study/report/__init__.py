"""Reports the results of a study: tables and a verdict in the terminal, and a page with pictures."""
