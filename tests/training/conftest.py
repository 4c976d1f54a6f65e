import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def standin():
    """The module `standin.py` beside this file."""
    spec = importlib.util.spec_from_file_location("standin", Path(__file__).with_name("standin.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
