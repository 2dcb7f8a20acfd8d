"""The table of the measures of collapse, and the functions that compute them."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import special

from dcjax.collapse import classes, geometry, ranks, views
from dcjax.collapse.arrays import as_array
from dcjax.collapse.quantities import OF_SAMPLE, SAMPLE, Quantities


@dataclasses.dataclass(frozen=True)
class Metric:
    """A measure of collapse.

    Attributes:
      function: of quantities, by the names of its parameters; see `Quantities`. nan where the value is not defined.
      range: the values that it can take; n rows, d columns.
      better: "higher", "lower", "1", or "-" where neither is better.
      reference: where it was defined.
      by_count: what few rows do to the value: "too low", "too high"; "grows with n"; empty for noise alone.
    """

    function: Callable[..., float]
    range: str
    better: str
    reference: str
    by_count: str = ""

    @property
    def quantities(self) -> tuple[str, ...]:
        """The names of the quantities that it is computed from."""
        parameters = inspect.signature(self.function).parameters.values()
        return tuple(p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY)

    @property
    def definition(self) -> str:
        """The first sentence of the function's docstring."""
        return " ".join((inspect.getdoc(self.function) or "").partition("\n\n")[0].split())

    @property
    def of_sample(self) -> bool:
        """Whether it is computed from a sample of the rows where they are many."""
        return bool(OF_SAMPLE & set(self.quantities))

    @property
    def needs(self) -> str:
        """ "views", "labels" or nothing, which it takes beside the rows."""
        if {"rows_prime", "units_prime"} & set(self.quantities):
            return "views"
        return "labels" if any(name.startswith("class") for name in self.quantities) else ""


LOW, HIGH, GROWS = "too low", "too high", "grows with n"

# One row for each measure. A further one is a function of quantities and a row.
METRICS = {
    # Ranks
    "effective_rank": Metric(ranks.centered_effective_rank, "1..d", "higher", "Roy & Vetterli, EUSIPCO 2007", LOW),
    "rankme": Metric(ranks.rankme, "1..d", "higher", "Garrido et al., ICML 2023", LOW),
    "rankme_centered": Metric(ranks.rankme_centered, "1..d", "higher", "Garrido et al., ICML 2023, centred", LOW),
    "participation_ratio": Metric(ranks.participation_ratio, "1..d", "higher", "Gao et al., 2017", LOW),
    "participation_ratio_corrected": Metric(
        ranks.participation_ratio_corrected, "1..d", "higher", "Chun et al., arXiv 2509.26560"
    ),
    "stable_rank": Metric(ranks.stable_rank, "1..d", "higher", "Rudelson & Vershynin, J. ACM 2007", LOW),
    "nesum": Metric(ranks.nesum, "1..d", "higher", "He & Ozay, ICML 2022, Def. 4.1", LOW),
    "eigenvalue_rank": Metric(ranks.eigenvalue_rank, "1..d", "higher", "Roy & Vetterli, on eigenvalues", LOW),
    "matrix_entropy": Metric(ranks.matrix_entropy, "1..d", "higher", "Skean et al., arXiv 2502.02013", LOW),
    "srank": Metric(ranks.srank, "1..d", "higher", "Kumar et al., ICLR 2021", LOW),
    "feature_rank": Metric(ranks.feature_rank, "0..d", "higher", "Lyle et al., ICLR 2022", LOW),
    "collapsed_dimensions": Metric(ranks.collapsed_dimensions, "0..d", "lower", "Jing et al., ICLR 2022", HIGH),
    # Shape of the spectrum
    "alpha_req": Metric(ranks.alpha_req, "0..", "1", "Agrawal et al., NeurIPS 2022", HIGH),
    "iso_score": Metric(ranks.iso_score, "0..1", "higher", "Rudman et al., Findings of ACL 2022", LOW),
    "iso_score_corrected": Metric(
        ranks.iso_score_corrected, "0..1", "higher", "Rudman et al. with Chun et al., arXiv 2509.26560"
    ),
    "cev_auc": Metric(ranks.cev_auc, "0.5..1", "lower", "Li, Efros & Pathak, ECCV 2022, on eigenvalues", HIGH),
    "anisotropy": Metric(ranks.anisotropy, "1/d..1", "lower", "Razzhigaev et al., EACL 2024", HIGH),
    "pseudo_condition_number": Metric(
        ranks.pseudo_condition_number, "0..1", "higher", "Tsitsulin et al., arXiv 2305.16562", LOW
    ),
    "coding_rate": Metric(ranks.coding_rate, "0..", "higher", "Yu et al., NeurIPS 2020", LOW),
    "vicreg_variance": Metric(ranks.vicreg_variance, "0..1", "lower", "Bardes et al., ICLR 2022", HIGH),
    "vicreg_covariance": Metric(ranks.vicreg_covariance, "0..", "lower", "Bardes et al., ICLR 2022", HIGH),
    # The sphere
    "unit_std": Metric(ranks.unit_std, "0..1", "higher", "Chen & He, CVPR 2021, times sqrt d", LOW),
    "uniformity": Metric(geometry.uniformity, "-8..0", "lower", "Wang & Isola, ICML 2020, t = 2"),
    "w2_uniformity": Metric(ranks.w2_uniformity, "0..sqrt 2", "lower", "Fang et al., arXiv 2403.00642", HIGH),
    "mean_cosine": Metric(ranks.mean_cosine, "-1..1", "lower", "Ethayarajh, EMNLP 2019"),
    "self_cluster": Metric(ranks.self_cluster, "to 1", "lower", "Tsitsulin et al., arXiv 2305.16562"),
    "coherence": Metric(geometry.coherence, "1..n/rank", "lower", "Tsitsulin et al., arXiv 2305.16562", LOW),
    "norm_spread": Metric(geometry.norm_spread, "0..", "-", "arXiv 2602.24012"),
    "normality": Metric(geometry.normality, "0..", "-", "arXiv 2602.24012, on random directions", GROWS),
    "epps_pulley": Metric(geometry.epps_pulley, "0..", "lower", "Balestriero & LeCun, arXiv 2511.08544", GROWS),
    # Neighbours
    "two_nn": Metric(geometry.two_nn, "0..", "-", "Facco et al., Scientific Reports 2017", LOW),
    "two_nn_mle": Metric(geometry.two_nn_mle, "0..", "-", "Facco et al., Scientific Reports 2017", LOW),
    "hubness": Metric(geometry.hubness, "any", "lower", "Radovanovic et al., JMLR 2010", LOW),
    "cluster_learnability": Metric(
        geometry.cluster_learnability, "0..1", "higher", "after Lu et al., arXiv 2206.01251", LOW
    ),
    "local_rank": Metric(geometry.local_rank, "0..d", "higher", "effective rank within k-means cells", LOW),
    # Two views
    "alignment": Metric(views.alignment, "0..4", "lower", "Wang & Isola, ICML 2020"),
    "barlow_off_diagonal": Metric(views.barlow_off_diagonal, "0..", "lower", "Zbontar et al., ICML 2021", HIGH),
    "barlow_diagonal": Metric(views.barlow_diagonal, "0..", "lower", "Zbontar et al., ICML 2021", HIGH),
    "whitening_mse": Metric(views.whitening_mse, "0..4", "lower", "Ermolov et al., ICML 2021", HIGH),
    "lidar": Metric(views.lidar, "1..d", "higher", "Thilak et al., ICLR 2024, two views", LOW),
    "cka": Metric(views.cka, "0..1", "higher", "Kornblith et al., ICML 2019", HIGH),
    "cka_debiased": Metric(views.cka_debiased, "to 1", "higher", "Nguyen et al., ICLR 2021"),
    # Labels
    "within_class_rank": Metric(classes.within_class_rank, "0..d", "-", "Roy & Vetterli, within classes", LOW),
    "nc1": Metric(classes.nc1, "0..", "-", "Papyan et al., PNAS 2020", LOW),
    "nc2_norms": Metric(classes.nc2_norms, "0..", "-", "Papyan et al., PNAS 2020", HIGH),
    "nc2_angles": Metric(classes.nc2_angles, "0..", "-", "Papyan et al., PNAS 2020", HIGH),
    "cdnv": Metric(classes.cdnv, "0..", "-", "Galanti et al., ICLR 2022", LOW),
}


def metrics(
    z: Any,
    z_prime: Any = None,
    *,
    labels: Any = None,
    names: Sequence[str] | None = None,
    sample: int = SAMPLE,
) -> dict[str, float]:
    """The measures of `METRICS` that the data allows, computed in float64 on the host.

    Measures of the spectrum are of all rows. Those of single rows and of pairs of rows are of a sample: of all rows up
    to `sample`, and of as many drawn without replacement beyond. A measure that is not defined for the data, such as
    alpha-ReQ with fewer than 13 dimensions, is left out.

    Args:
      z: `[n, d]`, one embedding per row: an array of any library, a memory-mapped file, or an iterable of batches.
      z_prime: `[n, d]`, the other views of the same images in the same order; None leaves the measures of views out.
      labels: `[n]`, integers or strings; None leaves the measures of classes out.
      names: which measures; None for all.
      sample: the most rows that measures of pairs of rows look at.

    Returns:
      Name to value, in the order of `METRICS`.

    Raises:
      ValueError: z or z_prime is not `[n, d]` with n >= 1 or is not finite, the numbers of rows differ, a name is not
        known, or a measure that was asked for is not defined for the data.
    """
    chosen = chosen_names(names, paired=z_prime is not None, labelled=labels is not None)
    found = measure(Quantities(z, z_prime, labels, sample=sample), chosen)
    missing = [name for name in chosen if name not in found]
    if names is not None and missing:
        raise ValueError(f"{', '.join(missing)} is not defined for these rows: {METRICS[missing[0]].definition}")
    return found


def measure(quantities: Quantities, names: Sequence[str]) -> dict[str, float]:
    """The named measures of quantities, without those that are not defined."""
    values = {name: evaluate(METRICS[name], quantities) for name in names}
    return {name: value for name, value in values.items() if np.isfinite(value)}


def evaluate(metric: Metric, quantities: Quantities) -> float:
    """A measure of quantities; nan where it is not defined."""
    return float(metric.function(**{name: getattr(quantities, name) for name in metric.quantities}))


def chosen_names(names: Sequence[str] | None, *, paired: bool, labelled: bool) -> list[str]:
    """The measures that are asked for, or all that views and labels, where given, allow.

    Raises:
      ValueError: a name is not known, or needs views or labels that are not given.
    """
    given = {"": True, "views": paired, "labels": labelled}
    if names is None:
        return [name for name, metric in METRICS.items() if given[metric.needs]]
    for name in names:
        if name not in METRICS:
            raise ValueError(f"the measure '{name}' is not known; known: {', '.join(METRICS)}")
        if not given[METRICS[name].needs]:
            raise ValueError(f"the measure '{name}' needs {METRICS[name].needs}")
    return [name for name in METRICS if name in set(names)]


def markdown() -> str:
    """The table as Markdown, a row for each measure: `dcjax collapse --measures`, docs/metrics.md."""
    header = ["measure", "definition", "range", "better", "from", "few rows", "reference"]
    rows = [header, ["---"] * len(header)]
    for name, metric in METRICS.items():
        definition = metric.definition.replace("|", "\\|")
        given = ", ".join(metric.quantities).replace("_", " ") + (" (sample)" if metric.of_sample else "")
        rows.append([f"`{name}`", definition, metric.range, metric.better, given, metric.by_count, metric.reference])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value with its delete-a-group jackknife.

    Attributes:
      value: of all rows.
      low, high: the interval of 95 %.
      bias: the jackknife's estimate of value minus the value of infinitely many rows, to first order in 1 / n.
    """

    value: float
    low: float
    high: float
    bias: float


def jackknife(
    z: Any,
    z_prime: Any = None,
    *,
    labels: Any = None,
    names: Sequence[str] | None = None,
    groups: int = 20,
    sample: int = SAMPLE,
) -> dict[str, Interval]:
    """Intervals of the measures by leaving out one of 20 groups of rows at a time.

    Unlike the bootstrap, which repeats rows and so lowers every rank, it leaves the rows distinct. It costs as much as
    `groups` calls of `metrics`. Measures that count or take a maximum, such as `srank`, are not smooth enough for it:
    their intervals are rough.

    Args:
      z, z_prime, labels, names, sample: as in `metrics`; arrays. The interval of a measure of the sample is for as many
        rows as the sample has.
      groups: how many groups the rows are dealt to at random, by a fixed seed.

    Returns:
      Name to interval; measures that are not defined without one of the groups are left out.

    Raises:
      ValueError: as `metrics`; z is no array, or has fewer rows than two for each group.

    References:
      Efron & Stein, Annals of Statistics 1981; Shao & Wu, Annals of Statistics 1989 (groups).
    """
    parts = [None if part is None else as_array(part) for part in (z, z_prime, labels)]
    rows = parts[0]
    if rows is None or groups < 2 or len(rows) < 2 * groups:
        found = "an iterable of batches" if rows is None else f"{len(rows)} rows and {groups} groups"
        raise ValueError(
            f"a jackknife needs an array with two rows or more in each of two groups or more, found {found}"
        )
    chosen = chosen_names(names, paired=parts[1] is not None, labelled=parts[2] is not None)
    drawn = np.sort(np.random.default_rng(0).permutation(len(rows))[:sample])
    if len(drawn) == len(rows):
        return _left_out(parts, chosen, groups)
    # Measures of a sample have the error of the sample, which stays the same while its groups are left out.
    of_sample = [name for name in chosen if METRICS[name].of_sample]
    found = _left_out(parts, [name for name in chosen if name not in of_sample], groups)
    found |= _left_out([None if part is None else np.asarray(part)[drawn] for part in parts], of_sample, groups)
    return {name: found[name] for name in chosen if name in found}


def _left_out(parts: Sequence[np.ndarray | None], names: Sequence[str], groups: int) -> dict[str, Interval]:
    """The jackknife of measures of rows, their other views and labels; those not defined for a part are left out."""
    rows = parts[0]
    assert rows is not None
    if not names:
        return {}
    sets = [np.ones(len(rows), bool)]
    group = np.random.default_rng(1).permutation(len(rows)) % groups
    sets += [group != g for g in range(groups)]
    measured = []
    for kept in sets:
        z, z_prime, labels = (None if part is None else np.asarray(part)[kept] for part in parts)
        measured.append(measure(Quantities(z, z_prime, labels, sample=len(rows)), names))
    whole, left_out = measured[0], measured[1:]
    found = {}
    for name in [name for name in names if all(name in values for values in measured)]:
        values = np.array([values[name] for values in left_out])
        error = np.sqrt((groups - 1) / groups * ((values - values.mean()) ** 2).sum())
        half = float(special.stdtrit(groups - 1, 0.975) * error)
        bias = float((groups - 1) * (values.mean() - whole[name]))
        found[name] = Interval(whole[name], whole[name] - half, whole[name] + half, bias)
    return found
