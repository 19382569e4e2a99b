"""Made-up results of python -m ldm.paper, as test_report.py reads them: files of all tables and figures, and claims."""

import json
from pathlib import Path

from PIL import Image

from ldm.paper.results.cells import Cell, as_rows

NAMES = ("table1", "table2", "table3", "table4", "figure1", "figure3", "figure4", "figure5", "figure6", "figure7", "figure8")
CELLS = {("base", "ID-ACC"): Cell(0.673), ("base", "CLIP"): Cell(0.75, published=0.3078),
         ("ours", "ID-ACC"): Cell(0.225, 0.01, 0.2, 0.25, 3, 0.04, (0.215, 0.225, 0.235)),
         ("ours", "CLIP"): Cell(0.716, 0.02, 0.7, 0.732, 3)}
ROWS = [{"name": "base", "commands": [], "seconds": None}, {"name": "ours", "commands": ["python train.py --preset mini"], "seconds": 60}]
CLAIMS = [{"number": 1, "claim": "Names draw somebody else.", "section": "4.2", "verdict": "holds",
           "figures": ["0.225, not 0.34."], "why": ""},
          {"number": 2, "claim": "Best of all.", "section": "ablations", "verdict": "does not hold",
           "figures": ["1.7, not 1.2.", "3 of 4."], "why": "Few people."}]


def make_up(out_dir: Path, name: str, *, cells=None, rows=None, pictures=("",), **about) -> Path:
    """The folder of a finished table or figure; `about` goes before what is made up, `pictures` are the ends of its pictures' names."""
    folder, cells = out_dir / name, cells or CELLS
    folder.mkdir(parents=True)
    (folder / f"{name}.json").write_text(json.dumps(as_rows(name, cells)))
    said = {"name": name, "title": f"The title of {name}", "section": "4.3", "remark": "",
            "columns": list(dict.fromkeys(column for _, column in cells)), "rows": rows or ROWS, "seeds": 3, "preset": "mini",
            "arguments": {"devices": "cpu:2", "what": [name]},
            "kind": "curve" if name in ("figure6", "figure8") else None, "settings": {"n_names": 32},
            "versions": {"torch": "2.9"}, "spent": {"training/ours": 60.0, f"pictures/{name}": 30.0}, "seconds": 90.0}
    (folder / "about.json").write_text(json.dumps(said | about))
    for end in pictures if name.startswith("figure") else ():
        Image.linear_gradient("L").resize((1300, 10)).save(folder / f"{name}{end}.png")
    return folder


def make_up_all(out_dir: Path) -> Path:
    """Every table and figure, and the claims."""
    for name in NAMES:
        make_up(out_dir, name, pictures=("", "-pictures") if name == "figure5" else ("",))
    (out_dir / "claims.json").write_text(json.dumps(CLAIMS))
    return out_dir
