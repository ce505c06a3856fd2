"""Text as people have it: files of any name, compressed or not, folders, data sets of a hub, and their tokenizers."""
