"""Extension of griffe: shows doctests as code, though they are in no section of their own."""

import re

import griffe

DOCTEST = re.compile(r'^>>> .*(?:\n.+)*', re.MULTILINE)  # up to an empty line


class Doctests(griffe.Extension):
    """Puts each doctest of a docstring into a fenced block."""

    def on_object(self, *, obj, **_):
        if obj.docstring:
            text = obj.docstring.value
            obj.docstring.value = DOCTEST.sub(lambda m: f'```pycon\n{m[0]}\n```', text)
