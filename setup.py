"""Build step that ships the folder `configs` as `spectralmoe_jax.configs`; all else is in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PACKAGE = "spectralmoe_jax.configs"


class BuildWithConfigurations(build_py):
    """Copies `configs/**/*.py` into the package, so that no package `configs` is installed beside it."""

    def find_all_modules(self):
        """(package, module, file) of everything that is built."""
        return [*super().find_all_modules(), *shipped()]

    def build_packages(self):
        """Copy the modules of every package to the build folder."""
        super().build_packages()
        for package, module, file in shipped():
            self.build_module(module, file, package)


def shipped():
    """(package, module, file) of the configurations; the package's own `__init__` is in `spectralmoe_jax`."""
    for file in sorted(Path("configs").rglob("*.py")):
        *inner, name = file.with_suffix("").parts[1:]
        if inner or name != "__init__":
            yield ".".join((PACKAGE, *inner)), name, str(file)


setup(cmdclass={"build_py": BuildWithConfigurations})
