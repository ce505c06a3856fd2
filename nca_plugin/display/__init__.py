"""What commands show: the terminal, progress, how a command ends, and HTML pages."""
