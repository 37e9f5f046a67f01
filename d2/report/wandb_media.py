"""What the page of a report shows, as tables, charts and pictures of a W&B run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from d2.report.page import Charts, Example, Table, shrunk


def log_to_wandb(
    run: Any,  # wandb's
    *,
    tables: Sequence[Table],
    charts: Sequence[Charts],
    examples: Sequence[Example],
) -> None:
    """Log them together, each under `report/` and its heading."""
    import wandb

    logged: dict[str, Any] = {}
    for table in tables:
        if table.rows:
            columns: list[Any] = list(table.rows[0])
            data = [[row[name] for name in columns] for row in table.rows]
            logged[f"report/{table.heading}"] = wandb.Table(columns=columns, data=data)
    for group in charts:
        logged |= {
            f"report/{group.heading}/{name}": wandb.Html(drawn)
            for name, drawn in group.drawn.items()
        }
    for one in examples:
        logged[f"report/{one.heading}"] = [
            wandb.Image(shrunk(p.path), caption=p.caption) for p in one.pictures
        ]
    run.log(logged)
