"""Errors of models that were loaded or made ready: each is caused, and its advice followed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import skipgpt
from following import advised
from made_world import world
from runs import rows, shared_checkpoint
from skipgpt.config import LoraStage
from skipgpt.data.chat import chat_ids
from skipgpt.model.base import load_base
from skipgpt.model.loading.int8 import quantize_int8
from skipgpt.model.lora import merge_lora
from skipgpt.model.surgery import add_routers
from skipgpt.training.stages import with_lora
from tiny import byte_tokenizer, tiny_base, tiny_routed

IDS = rows(2)
INT8 = "model/loading/int8.py"


def lora_on() -> Any:
    return get_peft_model(tiny_base(), LoraConfig(r=2, target_modules=["q_proj"])).eval()


def test_int8_wants_a_merged_model_for_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lora_on()
    with advised(INT8, "load it with merge=True, or call merge_and_unload"):
        quantize_int8(model)
    quantize_int8(model.merge_and_unload())
    skipgpt.load(shared_checkpoint(), merge=True, quantize="int8")
    model = tiny_base().train()
    with advised(INT8, "call model.eval() first"):
        quantize_int8(model)
    quantize_int8(model.eval())
    vectors = model.get_input_embeddings()(IDS).detach().requires_grad_()
    with advised(INT8, "train before quantising, or use torch.no_grad()"):
        model(inputs_embeds=vectors)
    with torch.no_grad():
        model(inputs_embeds=vectors)
    tiny_base()(inputs_embeds=vectors).logits.sum().backward()


def test_a_model_that_int8_cannot_hold_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    experts, model = tiny_base("mixtral"), tiny_base()
    with advised(INT8, "leave the model as it is"):
        quantize_int8(experts)
    experts(IDS)
    monkeypatch.setattr("skipgpt.model.loading.int8.products_are_exact", lambda: False)
    with advised(INT8, "leave the model as it is"):
        quantize_int8(model)
    model(IDS)


def test_the_kinds_of_a_base_are_chosen_when_training() -> None:
    advice = "choose 8bit and 4bit when training: the checkpoint keeps them"
    with advised(INT8, advice):
        skipgpt.load(shared_checkpoint(), quantize="8bit")
    # `train --quantize 8bit`, and a checkpoint that keeps it: tests/test_quantized.py.
    load_base(str(world() / "base"), quantize="8bit")


def test_modules_of_two_names_keep_lora_beside_them() -> None:
    base = tiny_base()
    base.model.layers[1].self_attn.q_proj = base.model.layers[0].self_attn.q_proj
    model = with_lora(add_routers(base), LoraStage(rank=2, targets=("q_proj",)))
    with advised("model/lora.py", "leave LoRA unmerged: skipgpt.load(…, merge=False)"):
        merge_lora(model)
    model(IDS)


def test_targets_that_peft_refuses_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    model = add_routers(tiny_base("mixtral"))
    with advised("model/lora.py", "set them with --set lora_stage.targets=…") as told:
        with_lora(model, LoraStage(rank=2, targets=("embed_tokens", "post_attention_layernorm")))
    with_lora(
        add_routers(tiny_base("mixtral")),
        LoraStage(rank=2, targets=tuple(told.values[0].split(","))),
    )


def test_a_prompt_as_long_as_the_context_needs_a_longer_one() -> None:
    from skipgpt.generation import generate

    prompt = "a" * 200
    with advised("model/loading/limits.py", "take a model with a longer context"):
        generate(tiny_routed(), byte_tokenizer(), prompt, max_new_tokens=200)
    longer = tiny_routed(max_position_embeddings=512)
    generate(longer, byte_tokenizer(), prompt, max_new_tokens=200)


def test_tokens_without_a_row_are_left_out_or_the_tokenizer_is_replaced() -> None:
    from skipgpt.generation import generate

    other = byte_tokenizer()
    other.add_tokens(["cats"])
    advice = "take the tokenizer that belongs to the model, or leave such tokens out of the text"
    model = tiny_routed()
    with advised("model/loading/limits.py", advice):
        generate(model, other, "The cats", max_new_tokens=2)
    generate(model, byte_tokenizer(), "The cats", max_new_tokens=2)
    generate(model, other, "The dogs", max_new_tokens=2)


CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "feed"}}]}
TEMPLATE = "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ m.tool_calls }};{% endfor %}"
PLAIN = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"


def test_a_chat_holds_what_its_template_reads() -> None:
    tokenizer, asked = byte_tokenizer(), {"role": "user", "content": "Hi"}
    with advised("data/chat.py", "give a plain prompt: leave --chat out"):
        chat_ids(tokenizer, [asked])
    tokenizer.chat_template = TEMPLATE
    go_on: dict[str, Any] = {"continue_final_message": True}
    with advised("data/chat.py", "add them, or set add_generation_prompt to true"):
        chat_ids(tokenizer, [asked, CALL], **go_on)
    chat_ids(tokenizer, [asked, CALL], add_generation_prompt=True)
    answer = {"role": "tool", "content": "fed"}
    chat_ids(tokenizer, [asked, CALL, answer], add_generation_prompt=True)
    tokenizer.chat_template = PLAIN
    with advised("data/chat.py", "leave it out"):
        chat_ids(tokenizer, [asked | {"mood": "glad"}])
    chat_ids(tokenizer, [asked])


def test_a_model_that_forgot_its_base_is_saved_with_its_name(tmp_path: Path) -> None:
    saving = "checkpoint/saving.py"
    with advised(saving, "pass base=, the folder or hub id of its base model"):
        skipgpt.save(tiny_routed(), tmp_path / "out")
    base = str(world() / "base")
    skipgpt.save(tiny_routed(initializer_range=0.2), tmp_path / "out", base=base)
    model, _ = skipgpt.load(shared_checkpoint(), merge=True)
    with advised(saving, "load without merge=True, or export the model with skipgpt.export_merged"):
        skipgpt.save(model, tmp_path / "merged")
    skipgpt.save(skipgpt.load(shared_checkpoint())[0], tmp_path / "unmerged")
    skipgpt.export_merged(shared_checkpoint(), tmp_path / "merged")
    whole, _ = skipgpt.load(tmp_path / "merged")
    with advised(saving, "call model.save_pretrained, which keeps all of it"):
        skipgpt.save(whole, tmp_path / "again")
    whole.save_pretrained(tmp_path / "again")
    with advised(saving, "save it before quantising"):
        model = tiny_routed(initializer_range=0.2)
        quantize_int8(model)
        skipgpt.save(model, tmp_path / "int8", base=base)
    skipgpt.save(tiny_routed(initializer_range=0.2), tmp_path / "int8", base=base)
    assert skipgpt.load(tmp_path / "int8")
    with advised("checkpoint/folder.py", "pass --overwrite (overwrite=True) to replace it"):
        skipgpt.save(skipgpt.load(shared_checkpoint())[0], tmp_path / "unmerged")
    skipgpt.save(skipgpt.load(shared_checkpoint())[0], tmp_path / "unmerged", overwrite=True)
    with advised("checkpoint/loading.py", "load the checkpoint"):
        skipgpt.load(tmp_path / "merged", trainable=True)
    skipgpt.load(shared_checkpoint(), trainable=True)
