"""How good predictions are, and how sure that is: metrics, intervals, comparisons."""

from scanprior.evaluation.bootstrap import percentile_interval, resample_weights, two_sided_p
from scanprior.evaluation.compare import compare
from scanprior.evaluation.delong import DeLong, delong
from scanprior.evaluation.evaluate import evaluate, subgroups
from scanprior.evaluation.labels import groups_of, positive_of
from scanprior.evaluation.metrics import Scorer, cohen_kappa
from scanprior.evaluation.ranking import Ranking, auroc, average_precision
from scanprior.evaluation.thresholds import choose_thresholds

__all__ = [
    "DeLong",
    "Ranking",
    "Scorer",
    "auroc",
    "average_precision",
    "choose_thresholds",
    "cohen_kappa",
    "compare",
    "delong",
    "evaluate",
    "groups_of",
    "percentile_interval",
    "positive_of",
    "resample_weights",
    "subgroups",
    "two_sided_p",
]
