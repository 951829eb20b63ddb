"""The table of healthy ranges: metric by metric, what is an alarm, what it means and what to try."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

Bounds = tuple[float | None, float | None]


@dataclass(frozen=True)
class Range:
    """A row of the table. It acts where its metric is logged by its method."""

    method: str
    metric: str
    healthy: Bounds
    alarm: Bounds
    """Below the first and above the second is an alarm; between healthy and alarm nothing is said."""
    meaning: str
    remedy: str
    logs: int = 3
    """An alarm lasts for so many logged values in a row: single outliers are none."""
    reach_by: int | None = None
    """The alarm is rather that no value was within the bounds up to this step."""
    pretrained: bool = False
    """Whether it is about models alone that do not start from random weights."""

    def shown(self) -> str:
        """The healthy range, for people."""
        low, high = self.healthy
        if low is None:
            return f"below {high:g}"
        return f"above {low:g}" if high is None else f"{low:g} to {high:g}"


MARKS: Mapping[str, str] = MappingProxyType(
    {"train/reward": "grpo", "train/rewards/accuracies": "dpo", "train/ebft/alignment": "ebft"}
)
"""A metric that one method alone logs -> that method; where none of them is logged, it is supervised training."""

SUPERVISED = "sft"

RANGES: tuple[Range, ...] = (
    Range(
        SUPERVISED,
        "train/loss",
        (0.5, 2),
        (None, 4),
        "a pretrained model starts between 2 and 4 on most texts: these are far from all that it has seen, or are "
        "not what it is given",
        "look at the text and its template, and whether tokenizer and model belong together",
        logs=5,
        pretrained=True,
    ),
    Range(
        SUPERVISED,
        "train/grad_norm",
        (0.1, 10),
        (None, 100),
        "single updates pull very hard, and are clipped to a direction that a few rows decide",
        "lower learning_rate, more warmup_steps, and look for broken rows",
    ),
    Range(
        "grpo",
        "train/reward",
        (0.15, None),
        (0.15, None),
        "hardly any answer earns a reward, so there is nothing to learn from",
        "easier prompts, a reward in steps, or supervised training before",
        reach_by=20,
    ),
    Range(
        "grpo",
        "train/reward_std",
        (0, None),
        (1e-8, None),
        "all answers to a prompt earn the same, so that no advantage is left",
        "a higher temperature, more generations per prompt, or a finer reward",
        logs=5,
    ),
    Range(
        "grpo",
        "train/frac_reward_zero_std",
        (None, 0.8),
        (None, 0.8),
        "for most prompts all answers earn the same, and teach nothing",
        "prompts of a difficulty between always and never, or more generations per prompt",
        logs=5,
    ),
    Range(
        "grpo",
        "train/grad_norm",
        (0.001, 1),
        (None, 10),
        "the policy takes steps that are too large (0 is fine here: no advantage in the batch)",
        "lower learning_rate or max_grad_norm",
    ),
    Range(
        "grpo",
        "train/entropy",
        (0.05, 0.5),
        (0.01, None),
        "the policy has collapsed: it writes the same answer again and again",
        "a higher temperature, a lower learning_rate, or more weight on the KL term",
    ),
    Range(
        "grpo",
        "train/kl",
        (0, 0.5),
        (None, 2),
        "the policy has gone far from the reference model",
        "a lower learning_rate, or more weight on the KL term",
    ),
    Range(
        "grpo",
        "train/sampling/sampling_logp_difference/mean",
        (None, 0.1),
        (None, 1),
        "the engine that generates and the model that is trained disagree on the probabilities",
        "the same precision in both, and newer weights in the engine",
    ),
    Range(
        "grpo",
        "train/sampling/importance_sampling_ratio/min",
        (0.1, None),
        (0.1, None),
        "answers come from weights that are too old",
        "sync the weights of the engine more often (a smaller interval)",
    ),
    Range(
        "grpo",
        "train/clip_ratio/region_mean",
        (None, 0.1),
        (None, 0.3),
        "much of the update is clipped away",
        "a lower learning_rate, or fewer updates per batch of answers",
    ),
    Range(
        "grpo",
        "train/completions/clipped_ratio",
        (None, 0.3),
        (None, 0.8),
        "most answers are cut off before their end",
        "a larger limit for answers, or a reward for short ones",
    ),
    Range(
        "ebft",
        "train/ebft/alignment",
        (0.3, 0.9),
        (0.3, None),
        "what is generated stays unlike the reference answers (a cosine, without its coefficient)",
        "a higher learning_rate, other feature layers, or supervised training before",
        reach_by=50,
    ),
    Range(
        "ebft",
        "train/ebft/diversity",
        (0.01, 0.1),
        (None, 1),
        "the answers to a prompt have become alike",
        "a higher temperature or diversity coefficient",
    ),
    Range(
        "ebft",
        "train/ebft/cfm_loss",
        (None, 10),
        (None, 10),
        "the features of the answers are far from those of the references",
        "a lower learning_rate, and normalised or whitened features",
    ),
    Range(
        "dpo",
        "train/loss",
        (0.3, 0.7),
        (None, 0.7),
        "above ln 2 = 0.69 the model prefers the rejected answers",
        "a lower learning_rate, and look whether chosen and rejected are swapped",
        logs=10,
    ),
    Range(
        "dpo",
        "train/rewards/accuracies",
        (0.7, None),
        (0.5, None),
        "the model does not learn to tell chosen from rejected answers",
        "a higher learning_rate or beta, and look whether chosen and rejected are swapped",
        reach_by=50,
    ),
)
"""Between what is healthy and what is an alarm lies what is merely unusual."""

WATCHED = frozenset({row.metric for row in RANGES} | {"train/learning_rate", "eval/loss"})
"""All metrics that are looked at."""
