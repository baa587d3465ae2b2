"""What a diagnosis is, and how it shows itself; `diagnose` makes one."""

import html
import textwrap
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd

Verdict = Literal["ok", "look", "wrong"]


@dataclass(frozen=True)
class Check:
    """One line of a diagnosis.

    Attributes
    ----------
    name, value : str
        What was looked at, and what was found.
    verdict : {"ok", "look", "wrong"}
        ``"look"`` may be as you want it; ``"wrong"`` hardly can.
    advice : str
        What it means, or what to do, in one sentence.
    """

    name: str
    value: str
    verdict: Verdict
    advice: str


class Diagnosis:
    """What `diagnose` found: a table in a notebook, text in a terminal.

    Attributes
    ----------
    title : str
        The encoder.
    checks : list of Check
    verdict : {"ok", "look", "wrong"}
        The worst of all checks.
    """

    def __init__(self, title: str, checks: list[Check]) -> None:
        self.title, self.checks = title, checks
        verdicts = {check.verdict for check in checks}
        self.verdict: Verdict = next(v for v in ("wrong", "look", "ok") if v in verdicts)  # type: ignore[assignment]

    def __getitem__(self, name: str) -> Check:
        """Give the check of a name."""
        found = {check.name: check for check in self.checks}
        if name not in found:
            raise KeyError(f"no check {name!r}; there are {', '.join(found)}")
        return found[name]

    def __repr__(self) -> str:
        """Show the checks as text, the advice under each."""
        lines = [self._summary()]
        for check in self.checks:
            lines.append(f"{check.verdict:<6}{check.name:<23}{check.value}")
            lines += [" " * 29 + line for line in textwrap.wrap(check.advice, 70)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        colors = {"ok": "#009E73", "look": "#E69F00", "wrong": "#D55E00"}
        cell = '<td style="text-align:left;vertical-align:top{}">{}</td>'
        rows = "".join(
            "<tr>"
            + cell.format(f";border-left:4px solid {colors[c.verdict]}", html.escape(c.verdict))
            + "".join(cell.format("", html.escape(text)) for text in (c.name, c.value, c.advice))
            + "</tr>"
            for c in self.checks
        )
        head = "".join(
            f'<th scope="col" style="text-align:left">{name}</th>'
            for name in ("verdict", "check", "value", "what to do")
        )
        caption = f'<caption style="text-align:left">{html.escape(self._summary())}</caption>'
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"

    def _summary(self) -> str:
        counts = Counter(check.verdict for check in self.checks)
        return f"{self.title}: " + ", ".join(f"{counts[v]} {v}" for v in ("ok", "look", "wrong"))

    def to_pandas(self) -> "pd.DataFrame":
        """Make a table: one row per check, with its name, value, verdict and advice."""
        import pandas as pd

        return pd.DataFrame([vars(check) for check in self.checks])
