"""What works on this machine, and what to do about what does not.

It has to work where things are broken: it needs the standard library only, of Python 3.9 or newer, and imports what may
fail, hang or crash in processes of its own.
"""
