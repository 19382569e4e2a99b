"""Transfer of a prefix between two text encoders with a common vocabulary, from their token tables alone.

The paper (section 4.1) transfers the prefix to SDXL by zero-shot continuous prompt transfer (arXiv 2310.01691), here `relative`. Two linear
maps between the tables, `ridge` and `procrustes`, and a control, `mean_row`, are added. Row i of both tables is the same token:

    prefix (m, d_s) or (m, d_t);  source, `A_s` (N, d_s);  target, `A_t` (N, d_t);  code, `r` (m, N): cosines with the N tokens
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ldm.finite import is_finite
from ldm.util import UserError

PUBLISHED_TOP_K = 8192
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # candidates for `ridge`
FOLDS = 5

Metrics = dict[str, float]  # of a transfer, by name


def relative(prefix: Tensor, source: Tensor, target: Tensor, *, top_k: int = 8192, centred: bool = False, scale: str = "target",
             steps: int = 2000, lr: float = 5e-3, seed: int = 0) -> tuple[Tensor, Metrics]:
    """Vectors (m, d_t) whose cosines with the target's tokens match those of the prefix with the source's (arXiv 2310.01691).

    The publication selects the candidate with the best result on a validation set of its task. Only the tables are used here, so the
    candidate with the lowest loss is selected.

    Args:
        top_k: number of highest entries used of each code; 0 uses all.
        centred: subtract the mean row of each table before taking cosines.
        scale: "target" sets the mean and standard deviation of the target table, as published; "ratio", see `keep_ratio`.

    Returns:
        The vectors, and "loss" with its lower bound "least_loss" from `least_squares`; if they are far apart, give more steps.

    Raises:
        UserError: top_k is larger than N.
    """
    from_source, from_target = (table.mean(0) if centred else torch.zeros_like(table[0]) for table in (source, target))
    anchors = target - from_target
    code = relative_code(prefix - from_source, source - from_source)
    mask = largest(code, top_k)
    grams, moments = normal_equations(anchors, code, mask)

    start = torch.empty(len(prefix), target.shape[1])
    torch.nn.init.xavier_normal_(start, generator=torch.Generator().manual_seed(seed))
    mean, deviation = target.mean(), target.std()
    vectors = search(start, lambda free: standardised(free, mean, deviation),
                     lambda candidate: 1 - code_cosines(candidate - from_target, grams, moments).mean(), steps=steps, lr=lr)
    if scale == "ratio":
        vectors = from_target + keep_ratio(vectors - from_target, prefix - from_source, source - from_source, anchors)
    return vectors, {"loss": code_loss(vectors - from_target, anchors, code, mask).item(),
                     "least_loss": code_loss(least_squares(grams, moments), anchors, code, mask).item()}


def linear(prefix: Tensor, source: Tensor, target: Tensor, fit: Callable[[Tensor, Tensor], Tensor], *,
           scale: str | None = None) -> tuple[Tensor, Metrics]:
    """(v - mean A_s) W + mean A_t for each vector v, (m, d_t), where `fit` finds W (d_s, d_t) from the centred tables.

    Both tables are centred, which amounts to an intercept without penalty: the mean rows carry no information about single words.

    Args:
        fit: `ridge` with its penalty, or `procrustes`.
        scale: None keeps the scale of the map; otherwise as in `relative`.

    Returns:
        The vectors, and "explained": the share of the target table's variance that the map explains, 0 .. 1.
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


def ridge(source: Tensor, target: Tensor, penalty: float) -> Tensor:
    """W (d_s, d_t) that minimises ||A_s W - A_t||^2 + penalty' ||W||^2, penalty' = `penalty` times the mean of diag(A_s^T A_s)."""
    gram = (source.T @ source).double()
    gram.diagonal().add_(penalty * gram.diagonal().mean())
    return torch.linalg.solve(gram, (source.T @ target).double()).to(source)


def penalty_by_validation(source: Tensor, target: Tensor) -> tuple[float, float]:
    """Select the penalty of `ridge` by cross-validation over tokens; returns it and the explained share of held-out variance, at most 1.

    Fold i holds out every FOLDS-th token; the means of the tables are taken over the others.
    """
    fold = torch.arange(len(source)) % FOLDS
    errors, spread = torch.zeros(len(PENALTIES), dtype=torch.float64), 0.0
    for number in range(FOLDS):
        kept = fold != number
        from_source, from_target = source[kept].mean(0), target[kept].mean(0)
        rows, wanted = source[~kept] - from_source, target[~kept] - from_target
        spread += wanted.square().sum().item()
        for place, penalty in enumerate(PENALTIES):
            weight = ridge(source[kept] - from_source, target[kept] - from_target, penalty)
            errors[place] += (rows @ weight - wanted).square().sum().item()
    best = int(errors.argmin())
    return PENALTIES[best], 1 - errors[best].item() / spread


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
    """(m, N) bool, true at the k highest entries of each row; k = 0 stands for all."""
    if k > code.shape[1]:
        raise UserError(f"got top_k {k}, but the two encoders share {code.shape[1]} tokens; give at most as many, or 0 for all")
    return torch.zeros_like(code, dtype=torch.bool).scatter_(1, code.topk(k or code.shape[1], sorted=False).indices, True)


def code_loss(vectors: Tensor, anchors: Tensor, code: Tensor, mask: Tensor) -> Tensor:
    """Mean over the m rows of 1 - cos(cos(X, A_t) * mask, r * mask), the objective as published; scalar.

    The search computes it by `normal_equations` and `code_cosines`: the same number at a tenth of the work.
    """
    return (1 - F.cosine_similarity(relative_code(vectors, anchors) * mask, code * mask, dim=1)).mean()


def normal_equations(anchors: Tensor, code: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """G = U^T U and b = U^T r/||r|| of each vector, where U (k, d) are the unit anchors that its mask keeps and r (k,) is its code.

    Returns:
        (m, d, d), or (1, d, d) where all masks keep everything; and (m, d).
    """
    units = F.normalize(anchors, dim=1)
    kept = units[None] if mask.all() else (units[row] for row in mask)
    return torch.stack([unit.T @ unit for unit in kept]), F.normalize(code * mask, dim=1) @ units


def code_cosines(candidate: Tensor, grams: Tensor, moments: Tensor) -> Tensor:
    """cos(U x, r) = x b / sqrt(x G x) of each row x of (m, d), with G and b of `normal_equations`; (m,)."""
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


def search(start: Tensor, place: Callable[[Tensor], Tensor], loss_of: Callable[[Tensor], Tensor], *, steps: int,
           lr: float) -> Tensor:
    """The candidate place(x) with the lowest loss in `steps` steps of Adam on x from `start`; (m, d), detached.

    Raises:
        UserError: the loss is not finite.
    """
    free = start.clone().requires_grad_()
    adam = torch.optim.Adam([free], lr=lr)
    best, lowest = start, float("inf")
    bar = tqdm(range(steps), "search", unit="step")
    for step in bar:
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
        if step % 100 == 0:
            bar.set_postfix(loss=f"{lowest:.4f}")
    return best


def standardised(vectors: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """All numbers of (m, d) together shifted and stretched to a scalar mean and standard deviation."""
    return (vectors - vectors.mean()) / vectors.std() * deviation + mean


def keep_ratio(vectors: Tensor, prefix: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """(m, d_t) of the same directions, with ||x|| / mean ||A_t|| = ||v|| / mean ||A_s|| for each vector v of the prefix."""
    longer = prefix.norm(dim=1, keepdim=True) / source.norm(dim=1).mean()  # (m, 1): than a token
    return F.normalize(vectors, dim=1) * longer * target.norm(dim=1).mean()


def code_metrics(prefix: Tensor, vectors: Tensor, source: Tensor, target: Tensor, *, centred: bool = False) -> Metrics:
    """Similarity among the codes of the prefix, among those of the transferred (m, d_t) `vectors`, and between the two.

    Cosines between codes of all N tokens, of each pair of rows (`likeness`) or of row i with row i ("agreement"), on any route.
    """
    codes = [relative_code(rows - table.mean(0), table - table.mean(0)) if centred else relative_code(rows, table)
             for rows, table in ((prefix, source), (vectors, target))]
    return {"likeness": likeness(codes[0]), "likeness_transferred": likeness(codes[1]),
            "agreement": F.cosine_similarity(codes[0], codes[1], dim=1).mean().item()}


def likeness(code: Tensor) -> float:
    """Mean cosine between the rows of (m, N) codes, over all pairs; 1 for a single row."""
    if len(code) == 1:
        return 1.0
    units = F.normalize(code, dim=1)
    cosines = units @ units.T
    return ((cosines.sum() - cosines.trace()) / (cosines.numel() - len(cosines))).item()
