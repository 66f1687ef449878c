"""Vision transformers with learned spatial ideas. Importing the package registers its networks with timm."""

import importlib
import pkgutil

from gab import models

for module in pkgutil.iter_modules(models.__path__):  # all of them, so that a new file is enough to add a network
    importlib.import_module(f"gab.models.{module.name}")
