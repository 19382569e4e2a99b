"""Tables that python -m ldm.paper is asked for, with the pieces of work behind them, and the claims about finished results."""

from collections.abc import Sequence
from pathlib import Path

from args.paper_args import CLAIMED, CONFIGS, OWN, TABLES
from ldm.evaluation.tables import Row, console_table
from ldm.paper.config import kind_of, read_table
from ldm.paper.results.adversary import Adversary
from ldm.paper.results.celebrities import CelebrityTable
from ldm.paper.results.cells import read_cells
from ldm.paper.results.claims import check_claims
from ldm.paper.results.figure5 import Figure5
from ldm.paper.results.tables import MeasuredTable
from ldm.paper.runner import adversary, celebrities
from ldm.paper.runner.attacks import AttackOptions, read_plan
from ldm.paper.runner.processes import who_works
from ldm.paper.runner.queue import Piece, whole
from ldm.paper.runner.trainings import Training, training
from ldm.run_folder import write_json

AnyTable = MeasuredTable | Figure5 | Adversary | CelebrityTable


def read_tables(what: Sequence[str], seeds: int, options: AttackOptions) -> list[AnyTable]:
    """Tables and figures, by name or as YAML files; UserError or SystemExit if a YAML file is invalid."""
    preset = Path(options.preset).stem
    tables: list[AnyTable] = []
    for name in what:
        path = CONFIGS / f"{name}.yaml" if name in TABLES | OWN else Path(name)
        if name == "figure5":
            plan = read_plan(path, n_people=options.n_people, n_photos=options.n_photos, n_samples=options.n_samples)
            tables.append(Figure5(plan, options, [options.embedding or training(options.out_dir, options.preset, {}, seed, str(path))
                                                  for seed in range(seeds)]))
        elif (kind := kind_of(path)) == adversary.KIND:
            tables.append(Adversary(path, options.preset, options.out_dir, options.embedding))
        elif kind == celebrities.KIND:
            tables.append(CelebrityTable(celebrities.read_protocol(path, preset), options.preset, seeds, options.out_dir))
        else:
            tables.append(MeasuredTable(read_table(path, preset), options.preset, seeds, options.out_dir))
    return tables


def pieces_of(tables: Sequence[AnyTable]) -> list[Piece]:
    """All pieces that the tables need, without duplicates, ordered by seed."""
    return whole([piece for seed in range(max(table.seeds for table in tables)) for table in tables if seed < table.seeds
                  for piece in table.pieces(seed)])


def list_tables(tables: Sequence[AnyTable]) -> str:
    """One line per table: finished trainings and pieces, and the machines at work."""
    rows: list[Row] = []
    for table in tables:
        pieces = pieces_of([table])
        trainings = [piece for piece in pieces if isinstance(piece, Training)]
        rows.append({"name": table.name, "what": table.table.title, "section": table.table.section,
                     "trainings": f"{sum(piece.is_done() for piece in trainings)} of {len(trainings)}",
                     "pieces": f"{sum(piece.is_done() for piece in pieces)} of {len(pieces)}",
                     "at work": ", ".join(f"{machine} ({count})" for machine, count in who_works(pieces).items()) or None})
    return console_table(rows)


def claims_table(out_dir: Path, preset: str) -> str:
    """Write claims.json for the finished results in `out_dir`; returns the verdicts for the console."""
    verdicts = check_claims(read_cells(out_dir, CLAIMED), Path(preset).stem)
    write_json(out_dir / "claims.json", verdicts)
    return console_table([{key: row[key] for key in ("number", "verdict", "claim")} for row in verdicts])
