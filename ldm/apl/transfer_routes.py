"""Transfer of a prefix between two text encoders with a common vocabulary, from their token tables alone.

The paper (section 4.1) transfers the prefix to SDXL by zero-shot continuous prompt transfer (arXiv 2310.01691), here `relative`; two linear
maps, `ridge` and `procrustes`, a perceptron, `mlp`, the `nearest` token, and two controls, `mean_row` and zeros, are added. Row i of both
tables is the same token:

    prefix (m, d_s) or (m, d_t);  source, `A_s` (N, d_s);  target, `A_t` (N, d_t);  code, `r` (m, N): cosines with the N tokens
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ldm.finite import is_finite
from ldm.util import UserError

PUBLISHED_TOP_K = 8192
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # candidates for `ridge`
FOLDS = 5
HIDDEN, MLP_BATCH = 512, 256  # units, and tokens per step of `mlp`

Metrics = dict[str, float]  # of a transfer, by name


def transfer(route: str, prefix: Tensor, source: Tensor, target: Tensor, *, centred: bool, **options: Any) -> tuple[Tensor, Metrics]:
    """Vectors (m, d_t) and metrics of a route; `options` are the flags that args/transfer_args.py lists for it."""
    if route == "relative":
        return relative(prefix, source, target, centred=centred, **options)
    if route == "mean":
        return mean_row(prefix, target)
    if route == "zeros":
        return target.new_zeros(len(prefix), target.shape[1]), {}
    if route == "nearest":
        return nearest(prefix, source, target, centred=centred)
    if route == "mlp":
        return mlp(prefix, source, target, **options)
    if route == "procrustes":
        return linear(prefix, source, target, procrustes, **options)
    penalty, chosen = options["penalty"], {}
    if penalty is None:
        penalty, chosen["held_out"] = penalty_by_validation(source, target)
    vectors, metrics = linear(prefix, source, target, partial(ridge, penalty=penalty), scale=options["scale"])
    return vectors, metrics | {"penalty": penalty} | chosen


def relative(prefix: Tensor, source: Tensor, target: Tensor, *, top_k: int | None = None, centred: bool = False, scale: str = "target",
             steps: int = 2000, lr: float = 5e-3, seed: int = 0) -> tuple[Tensor, Metrics]:
    """Vectors (m, d_t) whose cosines with the target's tokens match those of the prefix with the source's (arXiv 2310.01691).

    Selects the candidate with the lowest loss; the publication uses a validation set of its task.

    Args:
        top_k: number of highest entries used of each code; 0 uses all; None uses PUBLISHED_TOP_K, or all if there are fewer.
        centred: subtract the mean row of each table before taking cosines.
        scale: "target" sets the mean and standard deviation of the target table, as published; "ratio", see `keep_ratio`.

    Returns:
        The vectors, and "loss" with its lower bound "least_loss" from `least_squares`; if they are far apart, give more steps.
    """
    from_source, from_target = (table.mean(0) if centred else torch.zeros_like(table[0]) for table in (source, target))
    anchors = target - from_target
    code = relative_code(prefix - from_source, source - from_source)
    grams, moments = normal_equations(anchors, code, largest(code, min(PUBLISHED_TOP_K, len(source)) if top_k is None else top_k))

    def loss_of(directions: Tensor) -> Tensor:
        return 1 - code_cosines(directions, grams, moments).mean()

    start = torch.empty(len(prefix), target.shape[1])
    torch.nn.init.xavier_normal_(start, generator=torch.Generator().manual_seed(seed))
    mean, deviation = target.mean(), target.std()
    vectors = search(start, lambda free: standardised(free, mean, deviation), lambda candidate: loss_of(candidate - from_target),
                     steps=steps, lr=lr)
    if scale == "ratio":
        vectors = from_target + keep_ratio(vectors - from_target, prefix - from_source, source - from_source, anchors)
    return vectors, {"loss": loss_of(vectors - from_target).item(), "least_loss": loss_of(least_squares(grams, moments)).item()}


def linear(prefix: Tensor, source: Tensor, target: Tensor, fit: Callable[[Tensor, Tensor], Tensor], *,
           scale: str | None = None) -> tuple[Tensor, Metrics]:
    """(v - mean A_s) W + mean A_t for each vector v, (m, d_t), where `fit` finds W (d_s, d_t) from the centred tables.

    `scale` None keeps the scale of the map; otherwise see `relative`. The metric "explained" is the share of the target table's variance
    that the map explains, 0 .. 1.
    """
    from_source, from_target = source.mean(0), target.mean(0)
    rows, wanted = source - from_source, target - from_target
    weight = fit(rows, wanted)
    explained = 1 - (rows @ weight - wanted).square().sum() / wanted.square().sum()
    vectors = (prefix - from_source) @ weight
    if scale == "ratio":
        vectors = keep_ratio(vectors, prefix - from_source, rows, wanted)
    vectors = vectors + from_target
    if scale == "target":
        vectors = standardised(vectors, target.mean(), target.std())
    return vectors, {"explained": explained.item()}


def mean_row(prefix: Tensor, target: Tensor) -> tuple[Tensor, Metrics]:
    """The mean row of the target table for each vector, (m, d_t): a control that shows the effect of the source encoder alone."""
    return target.mean(0).expand(len(prefix), -1).clone(), {}


def nearest(prefix: Tensor, source: Tensor, target: Tensor, *, centred: bool = False) -> tuple[Tensor, Metrics]:
    """The target's row of the token at the highest cosine to each vector, (m, d_t); that cosine's mean is the metric "cosine_nearest"."""
    origin = source.mean(0) if centred else 0
    cosines, tokens = relative_code(prefix - origin, source - origin).max(1)
    return target[tokens], {"cosine_nearest": cosines.mean().item()}


def mlp(prefix: Tensor, source: Tensor, target: Tensor, *, scale: str | None = None, steps: int = 1000, lr: float = 1e-3,
        seed: int = 0) -> tuple[Tensor, Metrics]:
    """Vectors (m, d_t) by a perceptron with one hidden layer, trained on the tokens of both tables: 1 - cos of its output and A_t's row.

    It maps directions from the mean rows to directions, as a prefix may be far longer than a token; lengths are those of `keep_ratio`, or
    with `scale` "target" as in `relative`. The metric "cosine_held_out" is the mean cosine over every FOLDS-th token, which is held out.
    """
    from_source, from_target = source.mean(0), target.mean(0)
    rows, wanted = F.normalize(source - from_source, dim=1), target - from_target
    kept = (torch.arange(len(source)) % FOLDS != 0).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(source.shape[1], HIDDEN), nn.GELU(), nn.Linear(HIDDEN, target.shape[1]))
    adam = torch.optim.Adam(network.parameters(), lr=lr)
    for _ in tqdm(range(steps), "training", unit="step"):
        batch = kept[torch.randint(len(kept), (MLP_BATCH,), generator=generator)]
        loss = 1 - F.cosine_similarity(network(rows[batch]), wanted[batch]).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        directions = network(F.normalize(prefix - from_source, dim=1))
        found = F.cosine_similarity(network(rows[::FOLDS]), wanted[::FOLDS]).mean().item()
    if not is_finite(directions):
        raise UserError(f"the training of the perceptron has diverged, and nothing was written; give a smaller --lr than {lr:g}")
    vectors = from_target + keep_ratio(directions, prefix - from_source, source - from_source, wanted)
    return standardised(vectors, target.mean(), target.std()) if scale == "target" else vectors, {"cosine_held_out": found}


def ridge(source: Tensor, target: Tensor, penalty: float) -> Tensor:
    """W (d_s, d_t) that minimises ||A_s W - A_t||^2 + penalty' ||W||^2, penalty' = `penalty` times the mean of diag(A_s^T A_s)."""
    gram = (source.T @ source).double()
    gram.diagonal().add_(penalty * gram.diagonal().mean())
    return torch.linalg.solve(gram, (source.T @ target).double()).to(source)


def penalty_by_validation(source: Tensor, target: Tensor) -> tuple[float, float]:
    """Select the penalty of `ridge` by cross-validation over tokens; returns it and the explained share of held-out variance, at most 1.

    Each fold holds out every FOLDS-th token, and the means of the tables are taken over the others.
    """
    errors, spread = dict.fromkeys(PENALTIES, 0.0), 0.0
    for number in range(FOLDS):
        kept = torch.arange(len(source)) % FOLDS != number
        from_source, from_target = source[kept].mean(0), target[kept].mean(0)
        rows, wanted = source - from_source, target - from_target
        spread += wanted[~kept].square().sum().item()
        for penalty in PENALTIES:
            errors[penalty] += (rows[~kept] @ ridge(rows[kept], wanted[kept], penalty) - wanted[~kept]).square().sum().item()
    best = min(errors, key=errors.__getitem__)
    return best, 1 - errors[best] / spread


def procrustes(source: Tensor, target: Tensor) -> Tensor:
    """s Q (d_s, d_t): Q with orthonormal rows (columns where d_s > d_t), so that angles between vectors stay, and s > 0 a scale.

    Q maximises the inner product of A_s Q with A_t, and s is the best one for it. Where d_s <= d_t this minimises ||s A_s Q - A_t||.
    """
    left, stretches, right = torch.linalg.svd(source.T @ target, full_matrices=False)
    rotation = left @ right
    return stretches.sum() / (source @ rotation).square().sum() * rotation


def relative_code(vectors: Tensor, anchors: Tensor) -> Tensor:
    """r = cos(v, a) of (m, d) vectors with (N, d) anchors, (m, N); a zero row has cosine 0 with everything."""
    return F.normalize(vectors, dim=1) @ F.normalize(anchors, dim=1).T


def largest(code: Tensor, k: int) -> Tensor:
    """(m, N) bool, true at the k highest entries of each row; k = 0 stands for all; UserError if k is larger than N."""
    if k > code.shape[1]:
        raise UserError(f"got top_k {k}, but the two encoders share {code.shape[1]} tokens; give at most as many, or 0 for all")
    return torch.zeros_like(code, dtype=torch.bool).scatter_(1, code.topk(k or code.shape[1], sorted=False).indices, True)


def normal_equations(anchors: Tensor, code: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """G = U^T U (m, d, d), or (1, d, d) if the masks keep everything, and b = U^T r/||r|| (m, d) of each vector.

    U (k, d) are the unit anchors that the vector's mask keeps, and r (k,) is its code.
    """
    units = F.normalize(anchors, dim=1)
    kept = units[None] if mask.all() else (units[row] for row in mask)
    return torch.stack([unit.T @ unit for unit in kept]), F.normalize(code * mask, dim=1) @ units


def code_cosines(candidate: Tensor, grams: Tensor, moments: Tensor) -> Tensor:
    """cos(U x, r) = x b / sqrt(x G x) of each row x of (m, d), with G and b of `normal_equations`; (m,).

    One minus their mean is the published objective, 1 - cos(cos(X, A_t) * mask, r * mask), at a tenth of the work.
    """
    fixed = candidate.detach()
    mapped = (fixed.view(len(grams), -1, fixed.shape[1]) @ grams).view_as(fixed)  # (m, d): G x
    # The value is x G x and the gradient 2 G x, with one product: G is symmetric.
    energy = 2 * (candidate * mapped).sum(1) - (fixed * mapped).sum(1)
    return (candidate * moments).sum(1) / energy.clamp_min(1e-30).sqrt()


def least_squares(grams: Tensor, moments: Tensor) -> Tensor:
    """G^-1 b, (m, d): for each vector the direction of the highest possible cosine, in closed form."""
    width = grams.shape[1]
    traces = grams.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    regular = grams.double() + 1e-6 * traces * torch.eye(width, dtype=torch.float64)  # G may be singular
    return torch.linalg.solve(regular, moments.double().view(len(grams), -1, width).mT).mT.reshape_as(moments).to(moments)


def search(start: Tensor, place: Callable[[Tensor], Tensor], loss_of: Callable[[Tensor], Tensor], *, steps: int, lr: float) -> Tensor:
    """The candidate place(x) with the lowest loss in `steps` steps of Adam on x from `start`, (m, d); UserError if one is not finite."""
    free = start.clone().requires_grad_()
    adam = torch.optim.Adam([free], lr=lr)
    best, lowest = start, float("inf")
    for step in tqdm(range(steps), "search", unit="step"):
        candidate = place(free)
        loss = loss_of(candidate)
        if not is_finite(loss):
            raise UserError(f"the search has diverged: its loss is not finite at step {step + 1} of {steps}, and nothing was written; give "
                            f"a smaller --lr than {lr:g}")
        if loss.item() < lowest:
            best, lowest = candidate.detach().clone(), loss.item()  # a copy: Adam updates x in place
        adam.zero_grad()
        loss.backward()
        adam.step()
    return best


def standardised(vectors: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """All numbers of (m, d) together shifted and stretched to a scalar mean and standard deviation."""
    return (vectors - vectors.mean()) / vectors.std() * deviation + mean


def keep_ratio(vectors: Tensor, prefix: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """(m, d_t) of the same directions, with ||x|| / mean ||A_t|| = ||v|| / mean ||A_s|| for each vector v of the prefix."""
    longer = prefix.norm(dim=1, keepdim=True) / source.norm(dim=1).mean()  # (m, 1): than a token
    return F.normalize(vectors, dim=1) * longer * target.norm(dim=1).mean()


def code_metrics(prefix: Tensor, vectors: Tensor, source: Tensor, target: Tensor, *, centred: bool = False) -> Metrics:
    """Mean cosines of codes of all N tokens: among the prefix, among the transferred (m, d_t) `vectors`, and of row i with row i."""
    codes = [relative_code(rows - table.mean(0), table - table.mean(0)) if centred else relative_code(rows, table)
             for rows, table in ((prefix, source), (vectors, target))]
    return {"likeness": likeness(codes[0]), "likeness_transferred": likeness(codes[1]),
            "agreement": F.cosine_similarity(codes[0], codes[1], dim=1).mean().item()}


def likeness(code: Tensor) -> float:
    """Mean cosine between the rows of (m, N) codes, over all pairs; 1 for a single row."""
    if len(code) == 1:
        return 1.0
    cosines = relative_code(code, code)
    return ((cosines.sum() - cosines.trace()) / (cosines.numel() - len(cosines))).item()
