"""What python -m ldm.paper is asked for, as tables with their pieces; and the claims about what is finished."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from args.paper_args import CONFIGS, TABLES
from ldm.evaluation.tables import console_table
from ldm.paper.config import read_table
from ldm.paper.results.cells import read_cells
from ldm.paper.results.claims import check_claims
from ldm.paper.results.figure5 import CONFIG, Figure5
from ldm.paper.results.tables import MeasuredTable
from ldm.paper.runner.attacks import AttackOptions, read_plan
from ldm.paper.runner.processes import who_works
from ldm.paper.runner.queue import Piece, whole
from ldm.paper.runner.trainings import Training, training
from ldm.run_folder import write_json

AnyTable = MeasuredTable | Figure5


def read_tables(what: Sequence[str], seeds: int, options: AttackOptions) -> list[AnyTable]:
    """The tables and figures asked for, by name or as YAML files.

    Raises:
        UserError: a YAML file is not what it should be, or a file that it names is not there.
        SystemExit: it has a flag that no command has.
    """
    preset = Path(options.preset).stem
    return [_figure5(seeds, options) if name == "figure5" else
            MeasuredTable(read_table(CONFIGS / f"{name}.yaml" if name in TABLES else Path(name), preset), options.preset, seeds,
                          options.out_dir) for name in what]


def pieces_of(tables: Sequence[AnyTable]) -> list[Piece]:
    """All that the tables need, each piece once: everything of the first seed, then of the next."""
    return whole([piece for seed in range(max(table.seeds for table in tables)) for table in tables if seed < table.seeds
                  for piece in table.pieces(seed)])


def list_tables(tables: Sequence[AnyTable]) -> str:
    """A line a table: what is done of it, and who is at work."""
    rows: list[dict[str, Any]] = []
    for table in tables:
        pieces = pieces_of([table])
        trainings = [piece for piece in pieces if isinstance(piece, Training)]
        done = [piece for piece in pieces if piece.is_done()]
        rows.append({"name": table.name, "what": table.table.title, "section": table.table.section,
                     "trainings": f"{sum(piece.is_done() for piece in trainings)} of {len(trainings)}",
                     "pieces": f"{len(done)} of {len(pieces)}",
                     "at work": ", ".join(f"{machine} ({count})" for machine, count in who_works(pieces).items()) or None})
    return console_table(rows)


def claims_table(out_dir: Path, preset: str) -> str:
    """claims.json of all that is finished in `out_dir`; the verdicts as the console shows them."""
    verdicts = check_claims(read_cells(out_dir, TABLES), Path(preset).stem)
    write_json(out_dir / "claims.json", verdicts)
    return console_table([{key: row[key] for key in ("number", "verdict", "claim")} for row in verdicts])


def _figure5(seeds: int, options: AttackOptions) -> Figure5:
    plan = read_plan(CONFIG, n_people=options.n_people, n_photos=options.n_photos, n_samples=options.n_samples)
    source = "configs/paper/figure5.yaml"
    return Figure5(plan, options, [options.embedding or training(options.out_dir, options.preset, {}, seed, source)
                                   for seed in range(seeds)])
