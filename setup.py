"""Build step that ships the folder `configs` as `spectralmoe_jax.configs`; all else is in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigurations(build_py):
    """Copy `configs/**/*.py` into the package, so that no package `configs` is installed beside it."""

    def find_package_modules(self, package, package_dir):
        modules = super().find_package_modules(package, package_dir)
        if package == "spectralmoe_jax.configs":
            for file in sorted(Path("configs").rglob("*.py")):
                *inner, name = file.with_suffix("").parts[1:]
                if (inner, name) != ([], "__init__"):
                    modules.append((".".join((package, *inner)), name, str(file)))
        return modules


setup(cmdclass={"build_py": BuildWithConfigurations})
