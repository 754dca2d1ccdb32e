"""The command line: parse, one call, render.

`main` is the entry point and the one error handler, `options` turns settings into options, `render` owns
rich. A command has no SQL, no socket and no try/except.
"""
