"""What a comparison concludes: one tree of plain values that comparison.json holds.

Differences are arm - against, of mean scores, as fractions (0.02 is two points). A level says
what the numbers speak about:

    A  these trainings on these test images        the CNNs' seeds vary
    B  this generated set, for new patients        and the test groups
    C  this method, for new patients and trainings  and the split and the generator's training
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

LEVELS = {"A": "these trainings on these test images",
          "B": "this generated set, for {whom}",
          "C": "this method, for {whom_and} new trainings of the generator"}
PATIENTS, FILES = "new patients", "new images, not new patients"  # what new test groups are
BETTER, EQUIVALENT, NOT_WORSE, WORSE, INCONCLUSIVE, OUT_OF_REACH = DECISIONS = (
    "better", "equivalent", "not worse", "worse", "inconclusive", "out of reach at this n")
# of a pair: each synthetic arm against real; all other pairs; with a baseline or a control
PRIMARY, SECOND, OUTSIDE = "primary", "second", "outside"


@dataclass
class Estimate:
    """One pair at one level: the difference of the means, its intervals, its tests, one word.

    The p-values after Holm are adjusted over the pair's family; outside both they are not.
    """

    level: str
    difference: float
    se: float                    # standard error; 0 where nothing varies
    df: float                    # degrees of freedom of the t interval
    low: float                   # 1 - alpha interval, 95 %
    high: float
    low_equivalence: float       # 1 - 2 alpha interval, 90 %: inside the margin is equivalence
    high_equivalence: float
    p_not_worse: float           # one-sided, of a difference of -margin or less
    p_not_worse_holm: float
    p_difference: float          # two-sided
    p_difference_holm: float
    p_equivalent: float          # the larger of two one-sided
    p_equivalent_holm: float
    p_sign_flip: float | None    # level C, exact, from six replicates on
    smallest_margin: float       # within which arms of equal means could be shown equivalent
    n_arm: int                   # repeats; at level C replicates
    n_against: int
    num_trainings: int           # of the arm of the pair that has fewer, over all replicates
    num_groups: int | None       # test groups, level B
    drawn_low: float | None      # level B: the percentile interval of the crossed draws, beside
    drawn_high: float | None
    decision: str = ""           # one of DECISIONS


@dataclass
class PairAnswer:
    """One pair at every level that the data reach."""

    arm: str
    against: str
    family: str
    estimates: dict[str, Estimate]  # by level; empty: one training a split, nothing varies
    level: str | None               # the highest of them: its word is the pair's
    decision: str
    sentence: str                   # names the level and holds the interval
    rank_sum: dict                  # p, p_holm, shift, shift_low, shift_high, a12: level A, against


@dataclass
class ClassScores:
    """One class of one arm on the test images, means over repeats, intervals over groups."""

    name: str
    num_images: int
    num_groups: int | None
    recall: float
    recall_low: float | None     # None: fewer than two groups of this class, or no groups known
    recall_high: float | None
    precision: float | None      # None: never said
    precision_low: float | None
    precision_high: float | None
    lost: bool                   # recall below that of guessing


@dataclass
class BandScores:
    """One arm on the real test images of one size band, as ClassScores."""

    name: str                    # of lungkit.data.size_bands.BANDS
    num_images: int
    num_groups: int
    largest_class: float | None  # share of the band's largest class; None: no image, as below
    accuracy: float | None
    accuracy_low: float | None   # None: fewer than two groups
    accuracy_high: float | None
    auroc: float | None          # None: one class only, in any split of real
    auroc_low: float | None
    auroc_high: float | None


@dataclass
class ArmAnswer:
    """One arm: its scores over repeats, and what they hide."""

    dataset: str
    metric: str
    kind: str                        # "cnn" or "baseline"
    n: int                           # values compared at level A
    num_repeats: int                 # trainings in all
    mean: float
    median: float
    sd: float | None
    training_sd: float | None        # between trainings within a replicate
    low: float | None                # 1 - alpha interval of the mean, over groups and repeats
    high: float | None
    own: float | None                # mean of the same score on the arm's own test images
    scores: dict[str, float]         # means over repeats, <name>_<split>
    classes: list[ClassScores] = field(default_factory=list)
    bands: list[BandScores] = field(default_factory=list)  # empty: no sizes known
    confusion: list[list[int]] = field(default_factory=list)  # summed over repeats, row per truth
    brier: float | None = None       # mean squared error of the probabilities, 0..2
    calibration_error: float | None = None  # expected, ten bins of equal counts
    worst_group: dict | None = None  # {group, label, accuracy, num_images}
    # {replicate, repeat, value, median of its split's, collapsed}
    outlying: list[dict] = field(default_factory=list)


@dataclass
class Component:
    """A source of the variance of one pair's difference."""

    arm: str
    against: str
    name: str           # e.g. "CNN seed", "test groups", "arm x group"
    sd: float           # of one unit of it, in the score
    units: int          # there are
    share: float        # of the variance of the difference, 0..1
    cost: str           # what would make it smaller


@dataclass
class Caution:
    """A named limit; `limits`: it belongs above the answer."""

    name: str
    text: str
    limits: bool = True

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


@dataclass
class Comparison:
    """All that a comparison found, as plain values."""

    metric: str                  # e.g. accuracy_real
    margin: float
    alpha: float
    level: str | None            # highest that the answer's pairs reach; None: no answer is given
    answer: list[str]            # the answer block, line by line, warnings first
    warnings: list[Caution]
    pairs: list[PairAnswer]      # the primary family first
    arms: list[ArmAnswer]        # real first
    components: list[Component]
    num_replicates: int          # with a split of their own
    num_repeats: int             # per arm and replicate, the most there are
    groups_per_class: dict[str, int]  # of the test images; empty: not known
    next_level: str | None       # what the next level needs; None at level C
    whom: str = PATIENTS         # what new test groups are: PATIENTS, or FILES
    plan: dict | None = None     # of comparison/plan.json, its looks included
    controls: list = field(default_factory=list)    # of instrument.ControlAnswer
    morphology: list = field(default_factory=list)  # of instrument.Morphology
    curve: list = field(default_factory=list)       # of dose.Point
    worth: list = field(default_factory=list)       # of dose.Worth

    def to_json(self) -> dict:
        """As JSON holds it: infinite ends are None."""
        return plain(asdict(self))


def of_whom(words: str, whom: str) -> str:
    """LEVELS and the like, said of `whom`: PATIENTS or FILES."""
    return words.format(whom=whom, whom_and=f"{whom}{',' * (',' in whom)} and")


def plain(value):
    """As JSON holds it: infinite numbers are None."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return None
    return value
