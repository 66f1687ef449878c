"""Vision transformers with learned spatial ideas. Importing the package registers its networks with timm."""

from gab.models import registry as registry
