"""Figure 5a: ID-ACC over the iterations of each attack, without and with the prefix."""

import math
from collections.abc import Sequence
from pathlib import Path

from ldm.evaluation.id_acc import Row
from ldm.util import write_atomically

COLOURS = {"without prefix": "tab:red", "with prefix": "tab:blue"}


def draw_curves(rows: Sequence[Row], path: Path) -> None:
    """A panel an attack, side by side: means over people with their 95 % intervals; dotted: the model before any attack.

    Args:
        rows: attack, prefix ("none" or a file), iteration, id_acc_mean, id_acc_low, id_acc_high, None where no face was found.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    attacks = list(dict.fromkeys(row["attack"] for row in rows))
    figure, panels = pyplot.subplots(1, len(attacks), figsize=(5.5 * len(attacks), 4), sharey=True, squeeze=False, layout="constrained")
    for axes, attack in zip(panels[0], attacks, strict=True):
        for title, colour in COLOURS.items():
            curve = [row for row in rows if row["attack"] == attack and (row["prefix"] == "none") == (title == "without prefix")]
            iterations = [row["iteration"] for row in curve]
            mean, low, high = ([math.nan if row[key] is None else row[key] for row in curve]
                               for key in ("id_acc_mean", "id_acc_low", "id_acc_high"))
            axes.plot(iterations, mean, marker="o", color=colour, label=title)
            axes.fill_between(iterations, low, high, color=colour, alpha=0.2, linewidth=0)
            if title == "without prefix" and not math.isnan(mean[0]):
                axes.axhline(mean[0], color="black", linestyle=":", label="strangers")
        axes.set_title(attack.replace("_", " "))
        axes.set_xlabel("iterations of the attack")
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("ID-ACC")
    panels[0][0].legend()
    write_atomically(path, lambda target: figure.savefig(target, dpi=120))
    pyplot.close(figure)
