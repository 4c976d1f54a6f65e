import pytest
from rich.console import Console

from data_pipelines.prepare import plan
from data_pipelines.prepare.prepare import prepare
from tests.prepare import tiny_dataset


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(plan, "PIECE_TILES", 5)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """(source folder, what was written there, out folder prepared in this process)."""
    root = tmp_path_factory.mktemp("tiny benchmark ä")
    written = tiny_dataset.write_source(root / "source")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "PIECE_TILES", 5)
        prepare(tiny_dataset.TINY, root / "source", root / "out", workers=0, console=Console(quiet=True))
    return root / "source", written, root / "out"
