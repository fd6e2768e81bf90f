"""Where a policy's weights and tokenizer come from: one local folder, whatever the config says."""

from serl.models.resolve import ModelPathError, resolve_model

__all__ = ["ModelPathError", "resolve_model"]
