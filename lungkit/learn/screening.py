"""Which network to begin with: every candidate on the same folds, the cheapest of the best.

A candidate is a network and a way to train it: `features`, a linear head on its pretrained
features as they are; `finetune`, all of it from pretrained weights; `scratch`, all of it from
weights drawn anew, of what has no pretrained ones, and said to be so. What is cheaper has fewer
weights, and of one network fewer that are trained; how long a training took is recorded beside it,
but on a shared machine decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lungkit.data.result import SCORES
from lungkit.learn import cnns, heads, imagenet, pretrained
from lungkit.learn.features import Extractor
from lungkit.learn.fold_training import Bench, parameters
from lungkit.learn.folds import Choice, choose, mean_of, shown, standard_error
from lungkit.learn.search_records import Records
from lungkit.run.faults import BadOptions, Fault
from lungkit.run.files import sha256_file

SCHEMA = "lungkit.screen/1"
NONE = "none"
WEIGHTS = (NONE, imagenet.IMAGENET, pretrained.IMAGENET_LITE0)
FEATURES, FINETUNE, SCRATCH, BOTH = "features", "finetune", "scratch", "both"
FROM_SCRATCH = "small"  # ours: there are no pretrained weights of it
NETWORKS = [*imagenet.WEIGHTS, cnns.LITE0, FROM_SCRATCH]
# the networks that are looked at unless some are named
USUAL = {NONE: NETWORKS, imagenet.IMAGENET: NETWORKS,
         pretrained.IMAGENET_LITE0: [cnns.LITE0, FROM_SCRATCH]}


@dataclass(frozen=True)
class Candidate:
    """A network and how it is trained; weights_path: None from scratch."""

    backbone: str
    mode: str
    weights_path: Path | None

    @property
    def name(self) -> str:
        return f"{self.backbone}-{self.mode}"

    def training(self, fold: int) -> str:
        return f"{self.name}-fold{fold + 1}"

    @property
    def learning_rate(self) -> float:
        return heads.PEAK_RATE if self.mode == FEATURES else cnns.MODELS[self.backbone][1]

    def extractor(self, device) -> Extractor | None:
        """Of the features that a head is trained on, None where the network itself is trained."""
        if self.mode != FEATURES:
            return None
        return Extractor(cnns.extractor_name(self.backbone), self.weights_path, device)

    def options(self, weights: str) -> list[str]:
        """Those of cnn_classify.py that train it."""
        given = ["--model", self.backbone]
        if self.mode != SCRATCH:
            given += ["--weights", weights]
        return given + ["--frozen"] * (self.mode == FEATURES)


def candidates(backbones: Sequence[str] | None, weights: str, mode: str) -> list[Candidate]:
    """What is looked at. Raises BadOptions where a network's weights are not there.

    backbones: None means the usual of `weights`.
    """
    chosen = list(dict.fromkeys(backbones or USUAL[weights]))
    trained_on = [name for name in chosen if name != FROM_SCRATCH] if weights != NONE else []
    if mode == FEATURES and not trained_on:
        raise BadOptions(f"--mode {FEATURES} looks at features of pretrained weights: give "
                         f"--weights {imagenet.IMAGENET} or {pretrained.IMAGENET_LITE0} and a "
                         f"network of which there are some, not {', '.join(chosen)} alone")
    if weights == pretrained.IMAGENET_LITE0:
        others = [name for name in trained_on if name != cnns.LITE0]
        if others:
            raise BadOptions(f"--weights {weights}: there are none of {', '.join(others)}: name "
                             f"{cnns.LITE0} and {FROM_SCRATCH} alone, or give --weights "
                             f"{imagenet.IMAGENET} or {NONE}")
    paths = cnns.imagenet_weights(trained_on)
    modes = [each for each in (FEATURES, FINETUNE) if mode in (each, BOTH)]
    found = []
    for name in chosen:
        if name in paths:
            found += [Candidate(name, each, paths[name]) for each in modes]
        else:
            found.append(Candidate(name, SCRATCH, None))
    return found


def identity(of_any: dict, found: Sequence[Candidate]) -> dict:
    """What decides a screening. of_any: what decides any search of the same data."""
    return {"schema": SCHEMA, **of_any,
            "candidates": {each.name: each.weights_path and sha256_file(each.weights_path)
                           for each in found}}


def screen(bench: Bench, found: Sequence[Candidate], records: Records,
           settings: dict) -> dict[str, list[dict]]:
    """Train every candidate on every fold; the records by candidate, in the order of the folds.

    Raises Fault where one diverges, which then can only be left out.
    """
    from lungkit.learn.loop import Diverged

    def work(each: Candidate, extractor: Extractor | None, fold: int) -> dict:
        name = each.training(fold)
        try:
            return {"backbone": each.backbone, "mode": each.mode, **bench.train_fold(
                each.name, fold, {**settings, "learning_rate": each.learning_rate},
                model=each.backbone, weights_path=each.weights_path, extractor=extractor,
                checkpoint_path=records.checkpoint_path(name))}
        except Diverged as fault:
            raise Fault(f"{name} diverged: look at the images, or leave {each.backbone} out: name "
                        "the others by --backbones and give another --output") from fault

    trainings = {}
    for each in found:
        extractor = each.extractor(bench.device)
        for fold in range(len(bench.folds)):
            trainings[each.training(fold)] = (each, extractor, fold)
    done = records.share(list(trainings), lambda name: work(*trainings[name]))
    return {each.name: [done[each.training(fold)] for fold in range(len(bench.folds))]
            for each in found}


# ------------------------------------------------------------------ what came of it

def rows(done: dict[str, list[dict]]) -> list[dict]:
    """One of screen.csv for each training."""
    metrics = SCORES["classify"]
    return [{"backbone": each["backbone"], "mode": each["mode"], "fold": each["fold"] + 1,
             **{metric: each["scores"][metric] for metric in metrics},
             **{name: each[name] for name in ("train_loss", "num_train_images",
                                              "num_held_out_images")}}
            for of_one in done.values() for each in of_one]


def conclude(found: Sequence[Candidate], done: dict[str, list[dict]], num_classes: int, *,
             metric: str, weights: str) -> dict:
    """What screen.json says of the choice; see `lungkit.learn.folds.choose`."""
    scores = {name: [each["scores"][metric] for each in of_one] for name, of_one in done.items()}
    sizes = {each.name: parameters(each.backbone, num_classes, frozen=each.mode == FEATURES)
             for each in found}
    choice = choose(scores, sizes)
    chosen = next(each for each in found if each.name == choice.chosen)
    return {"schema": SCHEMA, "metric": metric, "looked_at": len(found),
            "chosen": {"backbone": chosen.backbone, "mode": chosen.mode,
                       "options": chosen.options(weights)},
            "best": choice.best, "alike": choice.alike, "within_noise": choice.within_noise,
            "reason": reason(choice, scores, sizes, metric),
            "candidates": [{"backbone": each.backbone, "mode": each.mode,
                            "mean": mean_of(scores[each.name]),
                            "standard_error": standard_error(scores[each.name]),
                            "folds": scores[each.name], "num_weights": sizes[each.name][0],
                            "num_trained_weights": sizes[each.name][1],
                            "elapsed_sec": mean_of([one["elapsed_sec"]
                                                    for one in done[each.name]])}
                           for each in found]}


def reason(choice: Choice, scores: dict, sizes: dict, metric: str) -> str:
    """Why it is chosen, in one sentence."""
    among = f"of {len(scores)} looked at"
    best = f"{choice.best}, {metric} {shown(scores[choice.best])} over " \
           f"{len(scores[choice.best])} folds"
    if not choice.within_noise:
        return f"{best}, is the best {among}, by more than its standard error"
    if choice.chosen == choice.best:
        return (f"{best}, is the best {among} and the cheapest within noise: one standard error "
                f"does not tell it from {', '.join(choice.alike)}")
    return (f"{choice.chosen} ({metric} {shown(scores[choice.chosen])}, "
            f"{sizes[choice.chosen][0] / 1e6:.2f} M weights) is within noise of the best {among}, "
            f"{choice.best} ({shown(scores[choice.best])}, "
            f"{sizes[choice.best][0] / 1e6:.2f} M), and the cheapest that is")


def table(found: dict) -> list[str]:
    """The candidates of screen.json in lines, best first."""
    lines = [f"{'network':<20} {'mode':<9} {'weights':>9} {'trained':>9}  {found['metric']}"]
    for each in sorted(found["candidates"], key=lambda one: -one["mean"]):
        sizes = "".join(f"{each[size] / 1e6:>8.2f} M" for size in ("num_weights",
                                                                    "num_trained_weights"))
        lines.append(f"{each['backbone']:<20} {each['mode']:<9}{sizes}  {shown(each['folds'])}")
    return lines
