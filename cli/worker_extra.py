"""What only a machine with a model needs: the `worker` group of dependencies."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from jobs.catalogue import CatalogueModel
from jobs.errors import TgpError

# From a checkout: the name is on no package index that we could vouch for.
INSTALL_COMMAND = "pip install -c constraints.txt '.[worker]' in the checkout"


class MissingExtraError(TgpError):
    """This machine cannot run models: install what is missing with pip."""

    code = "missing_extra"


def require_engine(models: Iterable[CatalogueModel]) -> None:
    """Make sure that the models can be run here at all.

    Raises:
        MissingExtraError: A model needs torch, and it is not installed.
    """
    needs_torch = any(model.engine != "null" for model in models)
    if needs_torch and not is_installed("torch"):
        raise MissingExtraError(
            f"torch is not installed, so no model can run here: {INSTALL_COMMAND}"
        )


def is_installed(module: str) -> bool:
    """Whether a module could be imported, without importing it."""
    return find_spec(module) is not None
