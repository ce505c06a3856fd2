"""`nca-plugin doctor`: what works on this machine, and how to fix what does not.

It has to work where other things are broken. So it needs only the standard library of Python 3.9 or newer, and imports
packages that may fail, hang or crash in separate processes.
"""
