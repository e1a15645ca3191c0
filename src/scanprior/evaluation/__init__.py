"""How good predictions are, and how sure that is: metrics, intervals, comparisons."""

from scanprior.evaluation.average_ranks import AverageRank, Contest, average_ranks
from scanprior.evaluation.bootstrap import percentile_interval, resample_weights, two_sided_p
from scanprior.evaluation.combination import FITTED as FITTED_METHODS
from scanprior.evaluation.combination import METHODS as COMBINATION_METHODS
from scanprior.evaluation.combination import Combination, apply_temperature, fit_temperature
from scanprior.evaluation.compare import compare
from scanprior.evaluation.conformal import (
    SET_METHODS,
    Conformal,
    calibrate,
    calibrate_findings,
    finding_sets,
    prediction_sets,
)
from scanprior.evaluation.corrections import holm
from scanprior.evaluation.delong import DeLong, delong
from scanprior.evaluation.drift import drift_rows
from scanprior.evaluation.ensembles import (
    Setting,
    best_member,
    evaluate_members,
    member_column,
    member_probabilities,
    truth_matrix,
    validate_members,
)
from scanprior.evaluation.evaluate import evaluate
from scanprior.evaluation.evaluate_masks import MaskScorer, compare_masks, defined_in_all, evaluate_masks
from scanprior.evaluation.gaps import largest_gap
from scanprior.evaluation.intervals import LOWER_IS_BETTER, UNBOUNDED
from scanprior.evaluation.labels import are_numbers, are_rising, count_patients, groups_of, positive_of
from scanprior.evaluation.metrics import METRICS, Scorer, cohen_kappa, why_not
from scanprior.evaluation.outliers import OutlierScore
from scanprior.evaluation.pointing import (
    chance,
    energy_inside,
    evaluate_pointing,
    pointing_game,
    pointing_row,
)
from scanprior.evaluation.ranking import Ranking, auroc, average_precision
from scanprior.evaluation.replicates import (
    Match,
    Replicates,
    averaged,
    labels_to_match,
    mean_change,
    mean_difference,
    mean_interval,
    replicates,
)
from scanprior.evaluation.segmentation import METRICS as MASK_METRICS
from scanprior.evaluation.segmentation import dice, iou, mask_metrics, mask_row
from scanprior.evaluation.set_coverage import coverage, finding_coverage
from scanprior.evaluation.shift import shift_score
from scanprior.evaluation.subgroups import subgroups
from scanprior.evaluation.surface import hausdorff95, surface_distance
from scanprior.evaluation.thresholds import choose_thresholds

__all__ = [
    "COMBINATION_METHODS",
    "FITTED_METHODS",
    "LOWER_IS_BETTER",
    "MASK_METRICS",
    "METRICS",
    "SET_METHODS",
    "UNBOUNDED",
    "AverageRank",
    "Combination",
    "Conformal",
    "Contest",
    "DeLong",
    "MaskScorer",
    "Match",
    "OutlierScore",
    "Ranking",
    "Replicates",
    "Scorer",
    "Setting",
    "apply_temperature",
    "are_numbers",
    "are_rising",
    "auroc",
    "average_precision",
    "average_ranks",
    "averaged",
    "best_member",
    "calibrate",
    "calibrate_findings",
    "chance",
    "choose_thresholds",
    "cohen_kappa",
    "compare",
    "compare_masks",
    "count_patients",
    "coverage",
    "defined_in_all",
    "delong",
    "dice",
    "drift_rows",
    "energy_inside",
    "evaluate",
    "evaluate_masks",
    "evaluate_members",
    "evaluate_pointing",
    "finding_coverage",
    "finding_sets",
    "fit_temperature",
    "groups_of",
    "hausdorff95",
    "holm",
    "iou",
    "labels_to_match",
    "largest_gap",
    "mask_metrics",
    "mask_row",
    "mean_change",
    "mean_difference",
    "mean_interval",
    "member_column",
    "member_probabilities",
    "percentile_interval",
    "pointing_game",
    "pointing_row",
    "positive_of",
    "prediction_sets",
    "replicates",
    "resample_weights",
    "shift_score",
    "subgroups",
    "surface_distance",
    "truth_matrix",
    "two_sided_p",
    "validate_members",
    "why_not",
]
