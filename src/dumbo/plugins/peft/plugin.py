"""The plugin that puts an adapter on the model and trains it alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dumbo.config.schema import RunConfig
from dumbo.errors import ConfigError
from dumbo.plugin_loader import CallbackPlugin, LearningRatePlugin, ModelPatcherPlugin, Phase, StatePlugin
from dumbo.plugins.peft.checks import option_problems
from dumbo.plugins.peft.methods import ADALORA
from dumbo.plugins.peft.options import PeftOptions as PeftOptions  # a public name of this module, too

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerCallback

    from dumbo.plugins.peft.budget import RankBudget


class PeftPlugin(ModelPatcherPlugin, CallbackPlugin, StatePlugin, LearningRatePlugin):
    """Puts an adapter on the model, trains it alone, and leaves it alone in `model/`."""

    name = "peft"
    section = "model.peft"
    options_type = PeftOptions
    packages = ("peft",)
    phase = Phase.ADAPTER

    options: PeftOptions
    _adapted: Any = None
    _budget: RankBudget | None = None

    def check(self, config: RunConfig) -> None:
        """Look at what can be told without the model."""
        problems = list(option_problems(self.options, config))
        if problems:
            raise ConfigError(problems)

    def patch_model(self, model: PreTrainedModel, config: RunConfig) -> PreTrainedModel:
        """Return the model in PEFT's wrapper. Raises ConfigError for names that the model does not have."""
        from dumbo.plugins.peft.adapter import ADAPTER, Place, add_adapter

        place = Place(config, self.services.output_dir, self.services.say, self.services.rank == 0)
        self._adapted = add_adapter(model, self.options, place)
        if self.options.method == ADALORA:
            from dumbo.plugins.peft.budget import RankBudget

            self._budget = RankBudget(self._adapted, ADAPTER)
        wrapped: PreTrainedModel = self._adapted
        return wrapped

    def learning_rate_factors(self, config: RunConfig) -> Mapping[str, float]:
        """LoRA+: the matrices B learn faster, adapters on embeddings at a rate of their own."""
        if self.options.lora_plus_ratio is None:
            return {}
        from dumbo.plugins.peft.rates import lora_plus_factors

        return lora_plus_factors(self._adapted, self.options, config.trainer.arguments.learning_rate)

    def get_callbacks(self, config: RunConfig) -> Sequence[TrainerCallback]:
        """What AdaLoRA does after each step; LoRA that begins with EVA looks at the rows now, as they are there."""
        if self.options.init == "eva":
            from dumbo.plugins.peft.eva import begin_with_eva

            begin_with_eva(self._adapted, self.services.train_set(), config, self.services.say)
        return [] if self._budget is None else [self._budget]

    def state_dict(self) -> Mapping[str, Any]:
        """AdaLoRA's budget of ranks."""
        return {} if self._budget is None else self._budget.state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the budget."""
        if self._budget is not None:
            self._budget.load(state)
