"""The methods that `model.peft.method` knows: what each does, where it is put, and which are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

ALL_LINEAR = "all-linear"
LORA = "lora"
ADALORA = "adalora"


@dataclass(frozen=True)
class Method:
    """A method of PEFT that adds weights to modules."""

    words: str
    """What it does, with its paper."""
    targets: str | None
    """What gets it where nothing is said; None is PEFT's own choice for the model's architecture."""
    names: Mapping[str, str]
    """Our options that it has under a name of its own."""
    refused: Mapping[str, str]
    """Its settings that need more than a training of this tool does, with the reason."""


def _method(
    words: str, *, targets: str | None = ALL_LINEAR, refused: Mapping[str, str] | None = None, **names: str
) -> Method:
    return Method(words, targets, MappingProxyType(names), MappingProxyType(dict(refused or {})))


_PROJECTION: Mapping[str, str] = MappingProxyType(
    {"save_projection": "an adapter without it loads only where random numbers come out the same"}
)

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        LORA: _method("adds a product of two narrow matrices to a weight (arXiv 2106.09685)"),
        ADALORA: _method(
            "LoRA that takes ranks from the layers that need them least (arXiv 2303.10512)",
            refused={"total_step": "it is the number of optimizer steps of the run", "r": "write rank, or target_r"},
            rank="init_r",
            alpha="lora_alpha",
            dropout="lora_dropout",
        ),
        "beft": _method("trains new biases of some projections", targets=None),
        "boft": _method(
            "turns weights by butterfly-shaped orthogonal matrices (arXiv 2311.06243)", dropout="boft_dropout"
        ),
        "c3a": _method("adds circular convolutions (arXiv 2407.19342)"),
        "deft": _method("replaces a low-rank part of each weight", rank="r", alpha="alpha", dropout="deft_dropout"),
        "delora": _method("LoRA with bounded, normalised updates (arXiv 2503.18225)", rank="r"),
        "fourierft": _method("trains a few frequencies of each weight's change (arXiv 2405.03003)"),
        "frod": _method("trains a sparse rotation over a shared basis", dropout="frod_dropout"),
        "glora": _method("trains scales, shifts and prompts of weights and biases (arXiv 2306.07967)", rank="r"),
        "gralora": _method(
            "LoRA in blocks of each weight (arXiv 2505.20355)", rank="r", alpha="alpha", dropout="gralora_dropout"
        ),
        "hira": _method("multiplies each weight by a low-rank matrix", rank="r", dropout="hira_dropout"),
        "hra": _method("turns weights by a chain of reflections (arXiv 2405.17484)", rank="r"),
        "ia3": _method("scales keys, values and feed-forward activations (arXiv 2205.05638)", targets=None),
        "lily": _method("LoRA whose matrices are shared among layers", rank="r"),
        "ln_tuning": _method("trains the norms (arXiv 2312.11420)", targets=None),
        "loha": _method(
            "adds a product of two low-rank matrices, element by element (arXiv 2108.06098)", rank="r", alpha="alpha"
        ),
        "lokr": _method("adds a Kronecker product (arXiv 2309.14859)", rank="r", alpha="alpha"),
        "miss": _method(
            "adds one small matrix, repeated over the shards of a weight (arXiv 2409.15371)",
            rank="r",
            dropout="miss_dropout",
        ),
        "oft": _method("turns weights by block-diagonal orthogonal matrices (arXiv 2306.07280)", rank="r"),
        "osf": _method("trains the weak singular directions of weights and keeps the strong ones (arXiv 2504.07097)"),
        "peanut": _method("adds a small network of each weight", rank="r"),
        "psoft": _method(
            "turns weights within their principal subspace", rank="r", alpha="psoft_alpha", dropout="psoft_dropout"
        ),
        "pvera": _method("VeRA with a random latent", rank="r", dropout="pvera_dropout", refused=_PROJECTION),
        "randlora": _method(
            "adds sums of scaled random matrices, of full rank (arXiv 2502.00987)",
            rank="r",
            alpha="randlora_alpha",
            dropout="randlora_dropout",
            refused=_PROJECTION,
        ),
        "road": _method("turns pairs of activations (arXiv 2409.00119)"),
        "shira": _method("trains a sparse part of each weight (arXiv 2406.13175)", rank="r"),
        "supertuning": _method(
            "trains a sparse part of each weight, by its size", rank="r", alpha="lora_alpha", dropout="lora_dropout"
        ),
        "tinylora": _method(
            "trains a handful of numbers over fixed projections",
            rank="r",
            dropout="tinylora_dropout",
            refused=_PROJECTION,
        ),
        "unilora": _method("LoRA whose numbers come from one short vector", rank="r", dropout="unilora_dropout"),
        "vblora": _method(
            "LoRA put together from a shared bank of vectors (arXiv 2405.15179)", rank="r", dropout="vblora_dropout"
        ),
        "vera": _method(
            "trains scales of random matrices that all layers share (arXiv 2310.11454)",
            rank="r",
            dropout="vera_dropout",
            refused=_PROJECTION,
        ),
        "waveft": _method("trains a few wavelet coefficients of each weight's change (arXiv 2505.12532)"),
    }
)
"""Name -> method, as PEFT calls it."""

_VIRTUAL = "it puts tokens that no row has before each row, and labels, packing and lengths here know nothing of them"
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "prompt_tuning": _VIRTUAL,
        "prefix_tuning": _VIRTUAL,
        "p_tuning": _VIRTUAL,
        "multitask_prompt_tuning": _VIRTUAL,
        "cpt": _VIRTUAL,
        "cartridge": _VIRTUAL,
        "adaption_prompt": "it rewrites attention by the class of its layer, and knows few; packing would be lost",
        "adamss": "it finds its subspaces with scikit-learn, and loads only where they come out the same",
        "shadow": "it trains a second model in parallel, with a loss of its own that would be left out",
        "poly": "it needs the number of a task with every row",
        "xlora": "it mixes adapters that are there already; train one, or several with 'beside'",
        "trainable_tokens": "write train_tokens: [...], with any LoRA",
    }
)
"""Methods of PEFT that are not offered, and why."""

INITS = ("default", "gaussian", "orthogonal", "pissa", "olora", "mica", "eva", "loftq")
REFUSED_INITS: Mapping[str, str] = MappingProxyType(
    {
        "corda": "it needs passes over rows before the adapter is there; 'eva' looks at rows, too",
        "lora_ga": "it needs gradients of rows before the adapter is there; 'eva' looks at rows, too",
    }
)
"""Beginnings that PEFT has and that are not offered, and why."""

LORA_ONLY = (
    *(
        "use_rslora",
        "use_dora",
        "init",
        "eva_rho",
        "rank_pattern",
        "alpha_pattern",
        "target_parameters",
        "train_tokens",
    ),
    *("lora_plus_ratio", "lora_plus_embedding_rate"),
)
"""Options of LoRA that no other method takes from here."""
SHARED = ("exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "bias")
"""Options that go to any method which has a setting of that name."""
