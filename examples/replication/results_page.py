"""RESULTS.md: tables, and sentences that follow from the numbers, whatever these are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from statistics import mean

from examples.replication.findings import Relation, Verdict, rho
from examples.replication.outcomes import Outcome, of_study
from examples.replication.recipe import STUDIES, Recipe, Study
from examples.replication.replicate import Replication

PICTURE_NAME = "replication.png"
STRONG = 0.8  # a rank correlation from which on two quantities are said to go together
JUDGEMENTS: dict[Verdict, str] = {
    "yes": "lower MIR goes with higher scores, as the paper finds",
    "no, the opposite": "lower MIR goes with **lower** scores, the opposite of what the paper finds",
    "undecided": "no relation to the score can be told; the paper finds that lower MIR goes with higher scores",
    "no correlation exists": "no correlation can be computed",
}
RIVALS_THAT: dict[Verdict, str] = {
    "yes": "order the checkpoints rightly",
    "no, the opposite": "order them the wrong way round",
    "undecided": "are undecided",
    "no correlation exists": "have no correlation",
}
SHOWN = ("mir", "mir_prose", "mir_photographs", "norm_ratio", "mmd_sum", "kid_sum", "mutual_information_sum",
         "training_loss", "caption_loss", "in_context_accuracy", "score_before")  # fmt: skip
PAGE = """\
# Results of the miniature replication

Does MIR before fine-tuning order checkpoints as their scores after it do? {n_checkpoints} checkpoints of the micro \
LLaVA, {seeds}. Written by `python -m examples.replication`, sentences included.

## What came out

{conclusions}

![MIR and scores of each study, and the rank correlation of every indicator]({picture})

## Every indicator against the score after fine-tuning

Spearman's rho over all checkpoints; a 95 % bootstrap interval over pre-training runs (checkpoints of one run are not \
independent; runs that share a seed are taken to be); rho of each seed alone. With {n_indicators} intervals, one in \
twenty misses by chance.

| indicator | what it is | useful if | rho | 95 % interval | each seed | useful here |
|---|---|---|---|---|---|---|
{relations}

## Study by study

Means over seeds, in the order in which the varied thing grows. In each of these studies the paper finds lower MIR \
where scores are higher.

| study | in the paper | varied | MIR | score | rho of MIR and score, each seed | as in the paper |
|---|---|---|---|---|---|---|
{studies}

## How this came about

{circumstances}

## Every checkpoint

{checkpoints}
"""


def results_page(replication: Replication, relations: Sequence[Relation]) -> str:
    """The whole page."""
    outcomes = sorted(replication.outcomes, key=lambda one: (one.seed, one.run, one.step))
    n_seeds = len({one.seed for one in outcomes})
    return PAGE.format(
        n_checkpoints=len(outcomes),
        seeds="1 seed" if n_seeds == 1 else f"{n_seeds} seeds",
        conclusions=_list(conclusions(relations, outcomes)),
        picture=PICTURE_NAME,
        n_indicators=len(relations),
        relations="\n".join(map(_relation_line, relations)),
        studies="\n".join(_study_line(study, outcomes, replication.recipe) for study in STUDIES),
        circumstances=_list(_circumstances(replication)),
        checkpoints="\n".join(_checkpoint_table(outcomes)),
    )


def conclusions(relations: Sequence[Relation], outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Sentences about MIR, its variants and its rivals."""
    by_name = {one.indicator.name: one for one in relations}
    main = by_name["mir"]
    yield f"MIR on held-out digits with true captions: {_judged(main)}."
    for name, place in (("mir_prose", "digits with unrelated prose"), ("mir_photographs", "photographs with prose")):
        yield f"MIR on {place}: {_judged(by_name[name])}."
    variants = [one for one in relations if one.indicator.name.startswith("mir_")]
    unlike = [f"`{one.indicator.name}` ({one.verdict})" for one in variants if one.verdict != main.verdict]
    kinds = f"MIR's {len(variants)} variants (square roots, normalization, outliers, samples)"
    yield f"Of {kinds}, these are judged differently: {', '.join(unlike)}." if unlike else f"{kinds} are judged alike."
    together = rho([o.indicators["norm_ratio"] for o in outcomes], [o.indicators["mir"] for o in outcomes])
    if together is not None:
        verb = "goes with" if together > STRONG else "goes against" if together < -STRONG else "is loosely related to"
        yield f"MIR {verb} the length of the vision tokens: rho of `mir` and `norm_ratio` is {together:+.2f}."
    rivals = [one for one in relations if one not in (main, by_name["norm_ratio"], *variants)]
    for verdict, words in RIVALS_THAT.items():
        found = [f"`{one.indicator.name}` ({_rho(one.rho)})" for one in rivals if one.verdict == verdict]
        if found:
            yield f"Rivals that {words}: {', '.join(found)}."
    yield "No evidence about real models: half a million parameters, one task, language model and tower of minutes."


def _judged(one: Relation) -> str:
    numbers = "" if one.rho is None else f" (rho {one.rho:+.2f}, {_interval(one)})"
    return JUDGEMENTS[one.verdict] + numbers


def _interval(one: Relation) -> str:
    return "no interval" if one.low is None or one.high is None else f"{one.low:+.2f} to {one.high:+.2f}"


def _relation_line(one: Relation) -> str:
    wanted = "low" if one.indicator.useful_sign < 0 else "high"
    seeds = " ".join(map(_rho, one.by_seed))
    return (
        f"| {one.indicator.name} | {one.indicator.meaning} | {wanted} | {_rho(one.rho)} | {_interval(one)} | {seeds} "
        f"| {one.verdict} |"
    )


def _study_line(study: Study, outcomes: Sequence[Outcome], recipe: Recipe) -> str:
    rows = of_study(study, outcomes, recipe)
    values = sorted({getattr(one, study.varied) for one in rows})

    def means(number: Callable[[Outcome], float], form: str) -> str:
        at = ([number(one) for one in rows if getattr(one, study.varied) == value] for value in values)
        return " ".join(format(mean(found), form) for found in at)

    seeds = sorted({one.seed for one in rows})
    found = [
        rho([o.indicators["mir"] for o in rows if o.seed == seed], [o.score for o in rows if o.seed == seed])
        for seed in seeds
    ]
    return (
        f"| {study.name} | {study.paper} | {study.axis}: {' '.join(map(_value, values))} "
        f"| {means(lambda one: one.indicators['mir'], '.3f')} | {means(lambda one: one.score, '.1f')} "
        f"| {' '.join(map(_rho, found))} | {_agreement(found)} |"
    )


def _agreement(found: Sequence[float | None]) -> str:
    """Whether all seeds say the same about the sign."""
    numbers = [one for one in found if one is not None]
    if not numbers or len(numbers) < len(found):
        return "cannot be told"
    return "yes" if max(numbers) < 0 else "no, the opposite" if min(numbers) > 0 else "seeds disagree"


def _circumstances(replication: Replication) -> Iterator[str]:
    recipe, outcomes = replication.recipe, replication.outcomes
    yield (
        f"Recipe {recipe.fingerprint} (`examples/replication/recipe.py`): {len(recipe.pre_trainings)} pre-trainings "
        f"of {recipe.n_steps} steps for each seed; language model and tower frozen, those of the packaged `step-5`. "
        "The recipe is part of the package: it was fixed before this run."
    )
    yield (
        f"Every checkpoint is fine-tuned alike ({recipe.fine_tuning_steps} steps of {recipe.fine_tuning_batch} "
        "questions; projector and language model learn) and answers lmms-eval's task `mir_digits`, the same 200 "
        "held-out digits, before and after. A score of 70 has a standard error of 3."
    )
    yield (
        f"Indicators: {recipe.n_samples} held-out digits with a true caption each; {recipe.n_in_context} questions in "
        "context."
    )
    parts = outcomes[0].seconds
    costs = ", ".join(f"{name} {mean(one.seconds[name] for one in outcomes):.0f}" for name in parts)
    yield (
        f"`python -m examples.replication --processes {replication.n_processes}`: {replication.minutes:.0f} minutes on "
        f"the clock. Seconds for a checkpoint: {costs}."
    )
    yield ", ".join(f"{name} {version(name)}" for name in ("mir-plugin", "torch", "transformers", "lmms-eval")) + "."
    reasons = {name: reason for one in outcomes for name, reason in one.not_computed.items()}
    for name, reason in reasons.items():
        n = sum(name in one.not_computed for one in outcomes)
        yield f"`{name}` could not be computed for {n} of {len(outcomes)} checkpoints: {reason}"


def _checkpoint_table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield f"| seed | run | step | {' | '.join(SHOWN)} | score |"
    yield f"|{'---|' * (len(SHOWN) + 4)}"
    for one in outcomes:
        cells = [f"{one.indicators[name]:.3f}" if name in one.indicators else "–" for name in SHOWN]
        yield f"| {one.seed} | {one.run} | {one.step} | {' | '.join(cells)} | {one.score:.1f} |"


def _list(sentences: Iterable[str]) -> str:
    return "\n".join(f"* {sentence}" for sentence in sentences)


def _rho(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
