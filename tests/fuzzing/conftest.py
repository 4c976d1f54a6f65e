"""Prints what the damaged inputs ended in, as a table."""

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a row for each test that recorded its counts; see `tests.fuzzing.outcome`."""
    reports = [*terminalreporter.stats.get("passed", ()), *terminalreporter.stats.get("failed", ())]
    rows: dict[str, list[int]] = {}
    for report in reports:
        for key, value in report.user_properties:
            if key == "fuzzing":
                name, *counts = value
                rows[name] = [a + b for a, b in zip(rows.get(name, [0, 0, 0]), counts, strict=True)]
    if rows:
        terminalreporter.section("damaged and hostile inputs")
        terminalreporter.write_line("| input | variants | read exactly | refused in one line |")
        terminalreporter.write_line("| --- | ---: | ---: | ---: |")
        for name, counts in sorted(rows.items()):
            terminalreporter.write_line(f"| {name} | {' | '.join(map(str, counts))} |")
        totals = [sum(column) for column in zip(*rows.values(), strict=True)]
        terminalreporter.write_line(f"| all | {' | '.join(map(str, totals))} |")
