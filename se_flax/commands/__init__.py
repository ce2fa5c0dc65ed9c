"""The commands, one per file: `add_to` adds the parser, `_run` is what it runs.

Packages that only some commands need are imported when a command runs.
"""
