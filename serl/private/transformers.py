"""Private parts of Hugging Face transformers, as seen in version 5.19.0."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

SEEN_IN = "5.19.0"

# The names under which tokenizers are saved that are nothing but their tokenizer.json.
_GENERIC_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")


def load_tokenizer(model_dir: str) -> Any:
    """What `AutoTokenizer` loads from the local folder ``model_dir``.

    For a generic tokenizer without `AutoTokenizer`, whose import takes seconds.
    """
    file = Path(model_dir, "tokenizer_config.json")
    declared = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if declared.get("tokenizer_class") in _GENERIC_TOKENIZERS:
        from transformers import PreTrainedTokenizerFast as tokenizer_class
    else:
        from transformers import AutoTokenizer as tokenizer_class
    return tokenizer_class.from_pretrained(model_dir, local_files_only=True)


def has_causal_model(model_type: str) -> bool:
    """Whether `AutoModelForCausalLM` has a class for a config of ``model_type``.

    Read in the mapping's source: importing it, which is public, imports torch.
    """
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return False
    source = (Path(spec.origin).parent / "models" / "auto" / "modeling_auto.py").read_text(encoding="utf-8")
    _, _, mapping = source.partition("\nMODEL_FOR_CAUSAL_LM_MAPPING_NAMES = ")
    return f'("{model_type}", ' in mapping.partition("\n)\n")[0]


def decoder_layer_names(model: Any) -> set[str]:
    """The names of the classes of ``model``'s decoder layers, which are to stay in one piece.

    transformers keeps them for its own placement on devices; there is no accessor.
    """
    return set(model._no_split_modules or ())


def attends_to_all_before(model: Any) -> bool:
    """Whether every layer of ``model`` is attention to all tokens before, by a function that can be replaced.

    Not so with sliding windows and recurrent states. They show only in the types of a cache's layers and in a
    private attribute, and so does whether the attention function is transformers' own choice.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    layers = DynamicCache(config=model.config).layers
    return (
        bool(layers)
        and all(type(layer) is DynamicLayer for layer in layers)
        and not model._is_stateful
        and model._supports_attention_backend
    )


def attention_implementation(model: Any) -> str:
    """The attention that ``model`` was loaded with, after what transformers made of the request."""
    return model.config._attn_implementation


def forget_quantization(model: Any) -> None:
    """Lets a dequantised ``model`` be saved as the plain float32 model that it is.

    transformers goes on counting a model that was loaded from GGUF as quantised.
    """
    del model.config.quantization_config
    model.hf_quantizer = None
