"""The localization methods, one file each. Every file in this folder is imported here, which
registers the methods in it."""

import importlib
import pkgutil

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")
