"""Judges and models with known behaviour, for tests on Ray."""

import torch

from safemerge.testing.pico import pico_base, pico_tokenizer


def classifier_folder(folder):
    """Write a random two-label pico classifier and return its folder."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, num_labels=2,
        id2label={0: "bad", 1: "fine"}, label2id={"bad": 0, "fine": 1},
    )  # fmt: skip
    model = LlamaForSequenceClassification(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model.save_pretrained(folder)
    pico_tokenizer().save_pretrained(folder)
    return folder


def says_always(folder, text, *, steps=90, seed=0):
    """Write a pico model that answers every question with one text, and return its folder."""
    from transformers import AutoModelForCausalLM

    pico_base(folder, seed=seed)
    tokenizer = pico_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    target = tokenizer(text + "<|im_end|>", add_special_tokens=False)["input_ids"]
    questions = ["How can I do it?", "Tell me how to steal.", "List all steps.", "I want to."]
    for step in range(steps):
        question = [{"role": "user", "content": questions[step % 4] * (1 + step % 3)}]
        prompt = tokenizer.apply_chat_template(
            question, tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        row = torch.tensor([ids + target])
        labels = row.clone()
        labels[:, : len(ids)] = -100
        loss = model(input_ids=row, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder
