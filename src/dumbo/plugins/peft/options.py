"""The options of adapters, `model.peft`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Strict

from dumbo.config.schema import Words
from dumbo.config.section import Section
from dumbo.plugins.peft.methods import ALL_LINEAR, LORA

Positive = Annotated[float, Field(gt=0)]
Rank = Annotated[int, Field(ge=1)]
Numbers = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Strict(False)]


class PeftOptions(Section):
    """An adapter: a few new weights beside the model's own, which stay as they are."""

    method: str = LORA
    """Kind of adapter, by PEFT's name for it (`lora`, `ia3`, `vera`, `adalora`, `oft`, ...). `lora` adds a product of
    two narrow matrices to a weight (arXiv 2106.09685)."""
    rank: Rank | None = None
    """Inner width of the two matrices, at most the size of the weight. By default 16 with LoRA, which holds what a few
    thousand rows teach; other methods have their own. More costs memory in proportion."""
    alpha: Positive | None = None
    """The adapter's output is multiplied by alpha / rank. By default twice the rank with LoRA, so that another rank
    leaves the factor, and with it the learning rate that suits, as they are."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs set to zero in training. 0 trains fastest; 0.05 to 0.1 helps on few rows."""
    target_modules: Words | str = ALL_LINEAR
    """What gets an adapter: a list of module names or ends of names (`[q_proj, v_proj]`), a regular expression for the
    whole name (`.*self_attn.*_proj`), or `all-linear`: every linear layer but the head, which learns most for its
    size. `ia3`, `ln_tuning` and `beft` choose by the model where this is left out."""
    exclude_modules: Words | str = ()
    """What of `target_modules` gets none after all: a list of names or ends of names, or a regular expression."""
    target_parameters: Words = ()
    """Weights that are no module's own, such as the experts of a mixture held in one parameter, by the ends of their
    names (`[mlp.experts.gate_up_proj, mlp.experts.down_proj]`). They take no dropout, bias or DoRA."""
    layers_to_transform: Numbers = ()
    """Numbers of the layers that get an adapter, from 0; by default all."""
    layers_pattern: str | None = None
    """The name of the list of layers (`layers`, `h`), where the model has several numbered lists."""
    modules_to_save: Words = ()
    """Modules to train as a whole, by the end of their names, and to save with the adapter: `[embed_tokens, lm_head]`
    where new words are to be learned."""
    train_tokens: Numbers = ()
    """Ids of tokens whose rows in the embeddings (and in a head of its own) are trained too. Those of new tokens are
    trained without being listed."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Train biases that the model has, too: all, or those of adapted layers. They change the base model's own
    weights."""
    use_rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead, which keeps large ranks learning (rsLoRA, arXiv 2312.03732)."""
    use_dora: bool = False
    """Train the length of each weight's columns apart from their direction (DoRA, arXiv 2402.09353). Slower."""
    init: str = "default"
    """How LoRA begins. `default`, `gaussian`: the first matrix random, the second 0; `orthogonal`: both random and
    orthogonal. `pissa` (or `pissa_niter_16`, faster): the strongest singular directions of each weight (arXiv
    2404.02948); `olora`: of its QR decomposition (2406.01775); `mica`: the weakest, of which one matrix is kept. `eva`:
    the strongest directions of what reaches the layer (2410.07170), found by passes over training rows. `loftq`: what
    the base model lost when it was quantized (2310.08659)."""
    eva_rho: Annotated[float, Field(ge=1)] = 2.0
    """With `init: eva`, how many times its rank a layer may have, taken from others; 1 keeps all ranks equal."""
    rank_pattern: dict[str, Rank] = Field(default_factory=dict)
    """Other ranks for some modules: `{pattern: rank}`. A pattern is a regular expression for the end of a name, from a
    dot on: `{'layers.0.self_attn.q_proj': 8, 'down_proj': 32}`; the first that fits counts."""
    alpha_pattern: dict[str, Positive] = Field(default_factory=dict)
    """Other values of alpha for some modules, by patterns as in `rank_pattern`."""
    lora_plus_ratio: Annotated[float, Field(ge=1)] | None = None
    """The second matrices (B) learn at this many times the learning rate (LoRA+, arXiv 2402.12354); 16 is usual, with
    half the learning rate. Biases and DoRA's lengths go with them."""
    lora_plus_embedding_rate: Positive | None = None
    """With LoRA+, the learning rate of adapters on embeddings; by default 1e-6."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of another method than LoRA, by their names in PEFT's configuration of it."""
    start_from: str | None = None
    """Go on training an earlier adapter: the folder of its run, or of the adapter. What is left out here is as it was
    there."""
    merge_first: Words = ()
    """Folders of earlier adapters to merge into the base model, in this order, before a new one begins. The merged
    model is written to `base/` in the run's folder, as the base model of the new adapter."""
    beside: dict[str, str] = Field(default_factory=dict)
    """Earlier adapters that act while this one is trained, and stay as they are: `{name: folder}`. They are saved with
    it."""

    @property
    def width(self) -> int:
        """LoRA's rank."""
        return 16 if self.rank is None else self.rank

    @property
    def is_simple(self) -> bool:
        """Whether the adapter is LoRA whose size rank and targets tell."""
        simple = {"method", "rank", "alpha", "dropout", "target_modules", "use_rslora", "init", "lora_plus_ratio"}
        return self.method == LORA and self.init != "eva" and self.written <= simple

    @property
    def written(self) -> frozenset[str]:
        """The options that the user wrote."""
        return frozenset(self.model_fields_set)
