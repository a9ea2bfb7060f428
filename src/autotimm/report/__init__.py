"""The report of a run: one page for people, made of the files of the run.

It is derived: it can be made again at any time, and no verdict depends on it. The modules are loaded lazily, since a
training makes its page at the end.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names are those of __init__.pyi
