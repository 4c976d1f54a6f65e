"""What is found on a page, and that an unknown command is not passed over."""

import pytest

from tests.documentation import pages

PAGE = """
Run `spectralmoe report DIR` or `spectralmoe evaluate --workdir
RUN`; the command is `spectralmoe report`.

```bash
spectralmoe train --config a.py \\
  --config.x=1 --workdir "my runs"   # a remark
for name in one two; do
  spectralmoe report $W/$name
done
```

```bash
W=here OTHER="a
  b"
```
"""


@pytest.fixture
def page(tmp_path, monkeypatch):
    (tmp_path / "page.md").write_text(PAGE)
    monkeypatch.setitem(pages.PAGES, "page", tmp_path / "page.md")
    return "page"


def test_what_the_shell_makes_of_a_block(page, tmp_path):
    (script,) = pages.scripts(page)
    found = pages.calls(script, tmp_path / "empty")
    assert [call.words for call in found] == [
        ("spectralmoe", "train", "--config", "a.py", "--config.x=1", "--workdir", "my runs"),
        ("spectralmoe", "report", "here/one"),
        ("spectralmoe", "report", "here/two"),
    ]
    assert {call.line for call in found} == {6}


def test_commands_in_a_sentence(page):
    assert [(block.line, block.text) for block in pages.inline_commands(page)] == [
        (2, "spectralmoe report DIR"), (2, "spectralmoe evaluate --workdir RUN"),
    ]  # fmt: skip


def test_an_unknown_command_fails(tmp_path):
    with pytest.raises(AssertionError, match=r"line 3: .*wget: command not found"):
        pages.calls(pages.Block("bash", "spectralmoe report x\nwget example.org\n", 3), tmp_path)
