# What we import from the top of transformers, and where it comes from. Without this, Pyright reads every
# model that transformers has, and that takes half of its time. A name that is missing here is added here.
from transformers.cache_utils import DynamicCache as DynamicCache
from transformers.models.auto.modeling_auto import AutoModelForCausalLM as AutoModelForCausalLM
from transformers.models.auto.tokenization_auto import AutoTokenizer as AutoTokenizer
from transformers.models.gpt2.configuration_gpt2 import GPT2Config as GPT2Config
from transformers.models.llama.configuration_llama import LlamaConfig as LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM as LlamaForCausalLM
from transformers.models.mamba.configuration_mamba import MambaConfig as MambaConfig
from transformers.models.mistral.configuration_mistral import MistralConfig as MistralConfig
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast as PreTrainedTokenizerFast

__version__: str
