"""Laws of interp.loading.pretrained: a folder or GGUF gives the model that was saved, and each bad
file one clear LoadError."""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tiny import small_t5, tokenizer
from transformers import GPTNeoConfig, GPTNeoForCausalLM, LlamaConfig, LlamaForCausalLM

import interp


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.model("llama").save_pretrained(tmp_path / "model")
    tokenizer(tiny.VOCABULARY).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", tiny.HUGGING_FACE)
@pytest.mark.parametrize("as_path", [str, Path])
def test_a_folder_gives_the_model_that_was_saved(
    tmp_path: Path, name: str, as_path: Callable[[Path], Any]
):
    tiny.model(name).save_pretrained(tmp_path)
    subject, batch = interp.load(as_path(tmp_path)), tiny.batch(name)
    with torch.no_grad():
        assert torch.equal(
            subject.logits(batch)[:, 1:], tiny.bare(name, tiny.model(name), batch)[:, :-1]
        )
    assert subject.tokenizer is None
    assert subject.name == tmp_path.name


def test_a_folder_brings_its_tokenizer_unless_another_is_given(folder: Path):
    assert interp.load(folder).encode("w3 w4") == [3, 4]
    other = tokenizer(20)
    assert interp.load(folder, tokenizer=other).tokenizer is other


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [(None, torch.float32), ("bfloat16", torch.bfloat16), (torch.float64, torch.float64)],
)
def test_weights_come_as_asked(folder: Path, dtype: Any, wanted: torch.dtype):
    assert {p.dtype for p in interp.load(folder, dtype=dtype).module.parameters()} == {wanted}


def test_a_sharded_folder_is_read_whole(tmp_path: Path):
    tiny.model("gpt2").save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert interp.load(tmp_path).fingerprint == tiny.subject("gpt2").fingerprint


def missing_shard(folder: Path) -> None:
    tiny.model("llama").save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    sorted(folder.glob("*.safetensors"))[1].unlink()


def damaged_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map"')


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def cut_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x00" * 5)


def pickled_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def damaged_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def config_with(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def brings_code(folder: Path) -> None:
    (folder / "configuration_own.py").write_text("raise SystemExit('ran')\n")
    config_with(
        folder,
        model_type="own",
        auto_map={
            "AutoConfig": "configuration_own.Own",
            "AutoModelForCausalLM": "configuration_own.Own",
        },
    )


def unknown_kind(folder: Path) -> None:
    config_with(folder, model_type="own")


def other_shapes(folder: Path) -> None:
    config_with(folder, intermediate_size=40)


def missing_keys(folder: Path) -> None:
    config_with(folder, num_hidden_layers=tiny.BLOCKS + 1)


def fewer_blocks(folder: Path) -> None:
    config_with(folder, num_hidden_layers=tiny.BLOCKS - 1)


def value_head(folder: Path) -> None:
    """As trainers of reward models leave one behind."""
    add_weights(folder, {"v_head.summary.weight": torch.ones(1, 32)})


def biases_of_attention(folder: Path) -> None:
    config_with(folder, attention_bias=True)
    config = LlamaConfig.from_pretrained(folder)
    tiny.seeded(lambda: LlamaForCausalLM(config)).save_pretrained(folder)
    config_with(folder, attention_bias=False)


def unapplied_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')


def add_weights(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    file = folder / "model.safetensors"
    save_file(load_file(file) | weights, file, metadata={"format": "pt"})


def not_finite(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def foreign_tokenizer(folder: Path) -> None:
    tokenizer(tiny.VOCABULARY + 5).save_pretrained(folder)


def encoder_decoder(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    small_t5().save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing_shard, r"lacks 1 of \d+ weight files: model-00002"),
        (damaged_index, "index.json is damaged"),
        (truncated, "model.safetensors is truncated or damaged"),
        (cut_header, "model.safetensors is truncated or damaged"),
        (pickled_only, "pytorch_model.bin is pickled and may run code"),
        (no_weights, "no .safetensors weights"),
        (no_config, "no config.json and no GGUF: expected a Hugging Face model folder"),
        (damaged_config, "cannot load.*not a valid JSON"),
        (brings_code, "pass trust_remote_code=True"),
        (unknown_kind, "cannot load.*own"),
        (other_shapes, r"mismatched keys: .*down_proj.*weights and config of two models"),
        (missing_keys, r"missing keys: model\.layers\.3"),
        (
            fewer_blocks,
            r"unused keys: model\.layers\.2.*load it with transformers and pass the model",
        ),
        (value_head, r"\(1 unused keys: v_head\.summary\.weight\)"),
        (biases_of_attention, r"12 unused keys: model\.layers\.0\.self_attn\.k_proj\.bias"),
        # With PEFT, transformers looks for the adapter's weights; without, it passes over them.
        (unapplied_adapter, r"adapter_model\.safetensors|holds an adapter .* not applied"),
        (not_finite, r"1 of \d+ weights hold NaN or infinity: model\.norm\.weight"),
        (foreign_tokenizer, f"{tiny.VOCABULARY + 5} tokens but the model embeds {tiny.VOCABULARY}"),
        (encoder_decoder, r"encoder-decoder \(t5\)"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_damaged_folder_is_one_clear_error(
    folder: Path, damage: Callable[[Path], None], message: str
):
    damage(folder)
    with pytest.raises(interp.LoadError, match=message) as error:
        interp.load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["gpt2", "neox", "opt", "bloom", "gemma3", "mixtral", "gpt_neo"])
def test_what_a_model_computes_anew_may_be_in_an_old_file(tmp_path: Path, name: str):
    """Masks and frequencies were saved by old versions, and tied weights are saved twice by some."""
    if name == "gpt_neo":
        model = tiny.seeded(
            lambda: GPTNeoForCausalLM(
                GPTNeoConfig(
                    vocab_size=tiny.VOCABULARY,
                    hidden_size=32,
                    num_layers=2,
                    num_heads=4,
                    attention_types=[[["global", "local"], 1]],
                )
            )
        )
    else:
        model = tiny.model(name)
    model.save_pretrained(tmp_path)
    extra = {
        buffer: value.clone()
        for buffer, value in model.named_buffers()
        if buffer not in model.state_dict()
    }
    if model.config.tie_word_embeddings:
        extra["lm_head.weight"] = model.lm_head.weight.detach().clone()
    extra["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    add_weights(tmp_path, extra)
    batch = tiny.batch("llama")
    with torch.no_grad():
        assert torch.equal(interp.load(tmp_path).logits(batch), interp.load(model).logits(batch))


def test_what_is_no_model_path_offers_the_nearest(folder: Path):
    with pytest.raises(interp.LoadError, match=f"does not exist.*nearest: {folder}$"):
        interp.load(folder.with_name("modle"))
    with pytest.raises(interp.LoadError, match=r"does not exist; nearest: .*model$"):
        interp.load(folder.with_name("model.gguf"))
    with pytest.raises(interp.LoadError, match=r"kind '\.json': expected a model folder"):
        interp.load(folder / "config.json")


def test_converting_is_done_once(folder: Path, tmp_path: Path):
    made = interp.convert(folder, tmp_path / "made")
    assert interp.load(made).fingerprint == interp.load(folder).fingerprint
    before = {p.name: p.stat().st_mtime_ns for p in made.iterdir()}
    assert interp.convert(tmp_path / "nowhere", made) == made
    assert {p.name: p.stat().st_mtime_ns for p in made.iterdir()} == before
    assert not list(tmp_path.glob(".*"))


def test_what_an_interrupted_conversion_left_is_no_part_of_the_next(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in (".made.part", f".made.{os.getpid()}.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "generation_config.json").write_text("{ of another model")
    interp.convert(folder, tmp_path / "made")
    assert interp.load(tmp_path / "made").fingerprint == interp.load(folder).fingerprint

    def interrupted(self: Any, place: Path) -> None:
        (place / "half").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", interrupted)
    before = set(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        interp.convert(folder, tmp_path / "again")
    assert set(tmp_path.iterdir()) == before


def test_a_folder_of_other_files_is_not_written_over(folder: Path, tmp_path: Path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="used exists and is not an empty folder"):
        interp.convert(folder, tmp_path / "used")


def write_gguf(
    file: Path, architecture: str, lost: str = "", more: Mapping[str, int] = MappingProxyType({})
) -> None:
    """A GGUF of the tiny Llama, float32; the query and key rows are permuted as llama.cpp does."""
    gguf = pytest.importorskip("gguf")
    model = tiny.model("llama")
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_block_count(tiny.BLOCKS)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(tiny.HEADS)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(tiny.VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(
        ["<|endoftext|>", "w", "1", *(f"w{n}" for n in range(1, tiny.VOCABULARY - 2))]
    )
    writer.add_token_types([1] * tiny.VOCABULARY)
    writer.add_token_merges(["w 1"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, tiny.BLOCKS)
    for name, weight in model.state_dict().items():
        array = weight
        for part, heads in (("q_proj", tiny.HEADS), ("k_proj", 2)):
            if part in name:
                array = (
                    weight.reshape(heads, 2, -1, weight.shape[1])
                    .transpose(1, 2)
                    .reshape(weight.shape)
                )
        writer.add_tensor(
            names.get_name(name, try_suffixes=(".weight",)) if name != lost else "other",
            array.contiguous().numpy(),
        )
    for name, size in more.items():
        writer.add_tensor(name, np.ones(size, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_gives_the_model_that_was_written(tmp_path: Path):
    import gguf

    own = gguf.GGUFReader, gguf.get_tensor_name_map
    write_gguf(tmp_path / "tiny.gguf", "llama")
    for source in (tmp_path / "tiny.gguf", tmp_path):
        subject, batch = interp.load(source), tiny.batch("llama")
        with torch.no_grad():
            torch.testing.assert_close(
                subject.logits(batch)[:, 1:],
                tiny.bare("llama", tiny.model("llama"), batch)[:, :-1],
                rtol=0,
                atol=1e-4,
            )
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == own
    interp.convert(tmp_path / "tiny.gguf", tmp_path / "plain")
    assert interp.load(tmp_path / "plain").fingerprint == subject.fingerprint


def test_a_gguf_that_lacks_weights_is_refused(tmp_path: Path):
    write_gguf(tmp_path / "lacking.gguf", "llama", lost="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(
        interp.LoadError, match=r"1 missing keys: model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        interp.load(tmp_path / "lacking.gguf")


@pytest.mark.parametrize(
    "name", ["rope_freqs.weight", "blk.1.attn_q.bias", f"blk.{tiny.BLOCKS}.attn_norm.weight"]
)
def test_a_gguf_with_tensors_that_are_not_read_is_refused(tmp_path: Path, name: str):
    write_gguf(tmp_path / "more.gguf", "llama", more={name: 32})
    with pytest.raises(
        interp.LoadError, match=rf"more\.gguf holds [\d,]+ numbers .* \({re.escape(name)} are left"
    ):
        interp.load(tmp_path / "more.gguf")


def test_a_gguf_of_an_unsupported_architecture_is_refused(tmp_path: Path):
    write_gguf(tmp_path / "other.gguf", "lama")
    with pytest.raises(
        interp.LoadError,
        match="architecture 'lama', which transformers cannot read from GGUF; nearest: llama",
    ):
        interp.load(tmp_path / "other.gguf")


@pytest.mark.parametrize("keep", [0, 3, 40, 700, 0.5, 0.99])
def test_a_truncated_gguf_is_refused(tmp_path: Path, keep: float):
    file = tmp_path / "cut.gguf"
    write_gguf(file, "llama")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep if isinstance(keep, int) else keep * len(whole))])
    with pytest.raises(
        interp.LoadError, match=r"cut\.gguf is not a whole GGUF file \(truncated or damaged"
    ):
        interp.load(file)


def test_several_ggufs_in_a_folder_must_be_told_apart(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.gguf").touch()
    with pytest.raises(interp.LoadError, match=r"2 GGUF files: name one of a\.gguf, b\.gguf"):
        interp.load(tmp_path)
